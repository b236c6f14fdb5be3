"""Slices given the others and decorrelated vectors, beside dense matrices."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.gaps.slices import slices_given_others
from kronax.linalg.spectral.whiten import decorrelate
from tests.everyday import everyday, full
from tests.tolerances import assert_close

GRID = (5, 4, 3)
RNG = np.random.default_rng(0)
FIELDS = jnp.asarray(RNG.normal(size=(2, *GRID)))


def smooth(n, lengthscale):
    x = np.linspace(0, 1, n)
    return np.exp(-np.square((x[:, None] - x) / lengthscale) / 2)


def random(n):
    root = RNG.normal(size=(n, n))
    return root @ root.T / n + 0.1 * np.eye(n)


def thin(n, rank):
    return kx.LowRank(jnp.asarray(RNG.normal(size=(n, rank))))


A, B, C = smooth(5, 0.3), smooth(4, 0.5), random(3)
BY_AXIS = kx.Kronecker(
    kx.Diagonal(jnp.array([0.1, 0.4, 0.2, 0.3, 0.5])),
    kx.ScaledIdentity(1.0, 4),
    kx.Diagonal(jnp.array([1.0, 2.0, 0.5])),
)
FULL = kx.Kronecker(random(5), random(4), random(3))
OPERATORS = {
    "one variance": kx.Kronecker(A, B, C) + 0.1,
    "halves": kx.Kronecker(kx.Toeplitz(jnp.array(A[0])), B, kx.Diagonal(jnp.ones(3))) + 0.2,
    "noise by axis": kx.KroneckerPlusNoise(kx.Kronecker(A, B, C), BY_AXIS),
    "full noise": kx.KroneckerPlusNoise(kx.Kronecker(A, B, C), FULL),
    "thin": kx.Kronecker(thin(5, 2), B, thin(3, 1)) + 0.1,
    "thin, noise by axis": kx.KroneckerPlusNoise(kx.Kronecker(thin(5, 2), B, thin(3, 1)), BY_AXIS),
    "thin, noise full elsewhere": kx.KroneckerPlusNoise(
        kx.Kronecker(thin(5, 2), B, C),
        kx.Kronecker(kx.ScaledIdentity(1.0, 5), random(4), random(3)),
    ),
}


def cells_of(axis):
    """The flat cells of every slice."""
    cells = np.arange(np.prod(GRID)).reshape(GRID)
    return np.moveaxis(cells, axis, 0).reshape(GRID[axis], -1)


# Every kind of operator on one axis.
EVERYDAY = [(name, k % 3) for k, name in enumerate(OPERATORS)]


@pytest.mark.parametrize(("name", "axis"), everyday(product(OPERATORS, range(3)), EVERYDAY))
def test_the_covariance_of_a_slice_given_the_others_is_the_dense_one(name, axis):
    op = OPERATORS[name]
    dense, every = np.asarray(op.to_dense()), np.arange(np.prod(GRID))
    applied, diagonal = np.empty((2, every.size)), np.empty(every.size)
    log_det = np.empty(GRID[axis])
    for a, cells in enumerate(cells_of(axis)):
        others = np.setdiff1d(every, cells)
        cross = dense[np.ix_(cells, others)]
        inside = dense[np.ix_(others, others)]
        given = dense[np.ix_(cells, cells)] - cross @ np.linalg.solve(inside, cross.T)
        applied[:, cells] = np.asarray(FIELDS).reshape(2, -1)[:, cells] @ given
        diagonal[cells], log_det[a] = np.diagonal(given), np.linalg.slogdet(given)[1]
    found = slices_given_others(op, axis, FIELDS)
    assert_close(found.applied, applied.reshape(FIELDS.shape))
    assert_close(found.diagonal, diagonal.reshape(GRID))
    assert_close(found.log_det, log_det)


def moved(op):
    """A direction for every parameter, symmetric where the matrix is."""
    rng = np.random.default_rng(1)
    steps = jax.tree.map(lambda x: rng.normal(size=x.shape), op)
    return jax.tree.map(lambda x: x + x.T if x.ndim == 2 else x, steps)


@partial(jax.jit, static_argnums=2)
def along(point, step, axis):
    """The slices given the others, and how they move along a step."""
    return jax.jvp(lambda op, x: slices_given_others(op, axis, x), point, step)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        full("one variance", (1,)),
        ("halves", (0,)),
        full("noise by axis", (2,)),
        ("full noise", (1,)),
        full("full noise", (0, 1)),
    ],
)
def test_derivatives_are_those_of_the_dense_formula(name, axes):
    """Along `dS` a covariance `C` given the others moves by `C [S⁻¹ dS S⁻¹]_oo C`."""
    op = OPERATORS[name]
    step, field_step = moved(op), jnp.asarray(RNG.normal(size=FIELDS.shape))
    precision = np.linalg.inv(op.to_dense())
    moves = jax.jit(lambda o, s: jax.jvp(lambda o: o.to_dense(), (o,), (s,))[1])
    change = precision @ np.asarray(moves(op, step)) @ precision
    for axis in axes:
        _, slopes = along((op, FIELDS), (step, field_step), axis)
        x, dx = (np.asarray(v).reshape(2, -1) for v in (FIELDS, field_step))
        applied, diagonal, log_det = np.empty_like(x), np.empty(x.shape[1]), np.empty(GRID[axis])
        for a, own in enumerate(cells_of(axis)):
            given = np.linalg.inv(precision[np.ix_(own, own)])
            tangent = given @ change[np.ix_(own, own)] @ given
            applied[:, own] = x[:, own] @ tangent + dx[:, own] @ given
            diagonal[own] = np.diagonal(tangent)
            log_det[a] = np.trace(precision[np.ix_(own, own)] @ tangent)
        assert_close(slopes.applied, applied.reshape(FIELDS.shape), order=1)
        assert_close(slopes.diagonal, diagonal.reshape(GRID), order=1)
        assert_close(slopes.log_det, log_det, order=1)


def test_gradients_agree_with_forward_derivatives():
    op = OPERATORS["full noise"]

    def value(op, fields):
        found = slices_given_others(op, 1, fields)
        return jnp.sum(jnp.sin(found.applied)) + jnp.sum(found.diagonal**2) + found.log_det[1]

    step = (moved(op), jnp.asarray(RNG.normal(size=FIELDS.shape)))
    slopes = jax.jit(jax.grad(value, argnums=(0, 1)))(op, FIELDS)
    products = jax.tree.map(lambda a, b: np.sum(np.asarray(a) * b), slopes, step)
    found, moves = jax.tree.map(np.asarray, along((op, FIELDS), step, 1))
    forward = np.sum(np.cos(found.applied) * moves.applied) + moves.log_det[1]
    forward += np.sum(2 * found.diagonal * moves.diagonal)
    assert_close(sum(jax.tree.leaves(products)), forward, order=1)


def test_orders_that_have_no_rule_raise():
    def value(scale, name):
        op = scale * OPERATORS[name]
        return jnp.sum(slices_given_others(op, 0, FIELDS).diagonal)

    def traced(function):
        return jax.eval_shape(function, 1.0)

    with pytest.raises(kx.DerivativeOrderError):
        traced(jax.grad(jax.grad(partial(value, name="one variance"))))
    with pytest.raises(kx.DerivativeOrderError, match="low-rank factors have values only"):
        traced(jax.grad(partial(value, name="thin")))
    with pytest.raises(kx.DerivativeOrderError, match="values only"):
        traced(jax.grad(lambda s: jnp.sum(decorrelate(s * OPERATORS["thin"], FIELDS))))


def test_mapped_over_parameters():
    scales = jnp.array([1.0, 2.0])

    def value(scale):
        return slices_given_others(scale * OPERATORS["full noise"], 1, FIELDS)

    together, alone = jax.jit(lambda s: (jax.vmap(value)(s), jax.lax.map(value, s)))(scales)
    for k in range(2):
        for all_of_them, one in zip(together, (x[k] for x in alone), strict=True):
            assert_close(all_of_them[k], one)


def test_one_axis_alone_has_slices_of_one_cell():
    op, x = kx.Kronecker(A) + 0.1, FIELDS[0, :, 0, 0]
    variance = 1 / np.diagonal(np.linalg.inv(A + 0.1 * np.eye(5)))
    found = slices_given_others(op, 0, x)
    assert_close(found.applied, variance * x)
    assert_close(found.diagonal, variance)
    assert_close(found.log_det, np.log(variance))


WHITE = ["one variance", "halves", "full noise", "thin, noise full elsewhere"]


@pytest.mark.parametrize("name", everyday(OPERATORS, WHITE))
def test_decorrelated_vectors_have_covariance_one(name):
    op, size = kx.decompose(OPERATORS[name]), np.prod(GRID)
    root = np.asarray(decorrelate(op, jnp.eye(size).reshape(size, *GRID))).reshape(size, size)
    np.testing.assert_allclose(root.T @ op.to_dense() @ root, np.eye(size), atol=1e-11)
    if name == "one variance":  # the symmetric root
        np.testing.assert_allclose(root, root.T, atol=1e-11)
