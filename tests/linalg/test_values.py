"""Values of every function on every case, called as a user does: concrete, in both layouts."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests import oracle
from tests.cases import CASES, few_cases, solve_cases
from tests.everyday import everyday, full
from tests.linalg.contracted import QUICK
from tests.tolerances import assert_close


def grid_shaped(case, flat):
    return np.reshape(flat, (*np.shape(flat)[:-1], *case.grid))


@partial(jax.jit, compiler_options=QUICK)
def product_of(op, x):
    return op.mv(x)


@solve_cases
def test_functions_of_a_vector(name):
    case = CASES[name]
    op, y, _ = case.inputs
    matrix, flat, _ = case.dense
    x = oracle.solve(matrix, flat).value
    assert_close(kx.solve(op, y), grid_shaped(case, x))
    assert_close(kx.solve(op, flat.value), x)
    assert_close(kx.inv_quad(op, y), oracle.dot(flat.value, x))
    assert_close(
        product_of(op, y), grid_shaped(case, (matrix.value @ flat.value[..., None])[..., 0])
    )


@partial(jax.jit, compiler_options=QUICK)
def entries_of(op):
    return op.to_dense(), op.T.to_dense(), op.diagonal(), op.trace()


@few_cases
def test_functions_of_the_operator_alone(name):
    case = CASES[name]
    op, dense = case.operator, case.dense[0].value
    assert op.shape == dense.shape
    assert op.grid_shape == case.grid
    assert op.batch_shape == dense.shape[:-2]
    matrix, transposed, diagonal, trace = entries_of(op)
    assert_close(matrix, dense)
    assert_close(transposed, np.swapaxes(dense, -1, -2))
    truth = np.diagonal(dense, axis1=-2, axis2=-1)
    assert_close(diagonal, grid_shaped(case, truth))
    assert_close(trace, truth.sum(-1))
    assert_close(kx.logdet(op), np.linalg.slogdet(dense)[1])
    assert_close(
        kx.inverse_diagonal(op),
        grid_shaped(case, np.diagonal(np.linalg.inv(dense), axis1=-2, axis2=-1)),
    )


@few_cases
def test_normal_logpdf(name):
    case = CASES[name]
    if not case.covariance:
        pytest.skip("the factors are general, and a density needs a covariance")
    op, y, mean = case.inputs
    matrix, flat, flat_mean = case.dense
    truth = oracle.normal_logpdf(flat, flat_mean, matrix).value
    assert_close(kx.normal_logpdf(y, mean, op), truth)
    zero = oracle.constant(np.zeros_like(flat.value), case.theta.size)
    assert_close(kx.normal_logpdf(y, 0.0, op), oracle.normal_logpdf(flat, zero, matrix).value)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def all_values(layout, leaves, theta):
    op, y, mean = layout.inputs(leaves, theta)
    values = {
        "mv": op.mv(y),
        "solve": kx.solve(op, y),
        "logdet": kx.logdet(op),
        "inv_quad": kx.inv_quad(op, y),
        "inverse_diagonal": kx.inverse_diagonal(op),
    }
    if layout.covariance:
        values["normal_logpdf"] = kx.normal_logpdf(y, mean, op)
    return values


# In half the precision: structure, a filter, a sum, and what is batched.
SINGLE = (
    "one factor of each structure",
    "Markov, full noise beside it",
    "batched Kronecker sum",
    "batched user-defined factor",
)


@pytest.mark.parametrize("name", everyday(CASES, SINGLE))
def test_float32(name):
    case = CASES[name].astype("float32")
    matrix, y, mean = case.dense
    x = oracle.solve(matrix, y).value
    truth = {
        "mv": grid_shaped(case, np.einsum("...ij,...j->...i", matrix.value, y.value)),
        "solve": grid_shaped(case, x),
        "logdet": np.linalg.slogdet(matrix.value)[1],
        "inv_quad": oracle.dot(y.value, x),
        "inverse_diagonal": grid_shaped(case, oracle.inverse_diagonal(matrix)[0]),
    }
    if case.covariance:
        truth["normal_logpdf"] = oracle.normal_logpdf(y, mean, matrix).value
    values = all_values(case.layout, case.leaves, case.theta)
    assert values.keys() == truth.keys()
    # Rounding the numbers costs cond · eps before anything is computed.
    slack = np.linalg.cond(matrix.value).max() * np.finfo(np.float32).eps
    for key, value in values.items():
        assert value.dtype == jnp.float32, key
        if slack < 1e-5:
            assert_close(value, truth[key])
        else:
            np.testing.assert_allclose(
                value, truth[key], rtol=slack, atol=slack * np.abs(truth[key]).max()
            )


SHAPES = [(2, 3), (5, 2, 3), (3, 5, 2, 3), (3, 1, 2, 3), (7, 3, 5, 2, 3)]
BATCHED = ("batched (3, 1) against (5,)", "batched, noise-free")
BROADCAST = [(BATCHED[0], SHAPES[3]), (BATCHED[0], SHAPES[4]), (BATCHED[1], SHAPES[1])]


@pytest.mark.parametrize(("name", "shape"), everyday(product(BATCHED, SHAPES), BROADCAST))
def test_batches_of_vectors_broadcast_against_the_operator(name, shape):
    op, dense = CASES[name].operator, CASES[name].dense[0].value
    b = np.random.default_rng(0).normal(size=shape)
    flat = b.reshape(*shape[:-2], 6)
    x = np.linalg.solve(dense, flat[..., None])[..., 0]
    assert_close(kx.solve(op, b), x.reshape(*x.shape[:-1], 2, 3))
    assert_close(kx.solve(op, flat), x)
    assert_close(kx.inv_quad(op, b), np.sum(flat * x, axis=-1))
    moved = (dense @ flat[..., None])[..., 0]
    assert_close(product_of(op, b), moved.reshape(*moved.shape[:-1], 2, 3))


@pytest.mark.parametrize(
    "name", [full("two axes"), "full Kronecker noise", full("noise-free, general")]
)
def test_batches_of_vectors_with_one_operator(name):
    op, dense = CASES[name].operator, CASES[name].dense[0].value
    b = np.random.default_rng(0).normal(size=(5, 2, 4, 3))
    flat = b.reshape(5, 2, 12)
    x = np.linalg.solve(dense, flat[..., None])[..., 0]
    assert_close(kx.solve(op, b), x.reshape(b.shape))
    assert_close(kx.inv_quad(op, flat), np.sum(flat * x, axis=-1))


MEANS = {
    "number": 0.7,
    "zero-dimensional": np.float64(0.7),
    "grid": np.arange(12.0).reshape(4, 3),
    "flat": np.arange(12.0),
    "one axis": np.arange(3.0),
    "column": np.arange(4.0)[:, None],
    "batch": np.arange(24.0).reshape(2, 4, 3),
}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("flat", [False, True])
def test_normal_logpdf_takes_means_of_every_layout(mean, flat):
    case = CASES["two axes"]
    op, y, _ = case.inputs
    m = MEANS[mean]
    grid = np.broadcast_to(m.reshape(4, 3) if mean == "flat" else m, (2, 4, 3))
    residual = (np.asarray(y) - grid).reshape(2, 12)
    quadratic = oracle.dot(residual, np.linalg.solve(case.dense[0].value, residual.T).T)
    logdet = np.linalg.slogdet(case.dense[0].value)[1]
    truth = -0.5 * (quadratic + logdet + 12 * np.log(2 * np.pi))
    ours = kx.normal_logpdf(np.ravel(y) if flat else y, m, op)
    assert_close(ours, truth if mean == "batch" else truth[0])


def test_logdet_of_a_negative_determinant_is_of_its_magnitude():
    op = kx.Kronecker(jnp.diag(jnp.array([2.0, -3.0, 1.0])), jnp.eye(2))
    assert_close(kx.logdet(op), np.asarray(np.log(36.0)))


def test_functions_take_a_bare_factor():
    factor = kx.Dense(CASES["one axis"].leaves[0].value)
    b = jnp.arange(5.0)
    dense = np.asarray(factor.to_dense())
    assert_close(kx.solve(factor, b), np.linalg.solve(dense, b))
    assert_close(kx.logdet(factor), np.linalg.slogdet(dense)[1])
    assert_close(kx.logdet(factor + 0.1), np.linalg.slogdet(dense + 0.1 * np.eye(5))[1])


@pytest.mark.parametrize(
    "name", [full("two axes"), "noise-free, general", full("full Kronecker noise")]
)
def test_inverse_solves_columns(name):
    op, dense = CASES[name].operator, CASES[name].dense[0].value
    columns = np.random.default_rng(0).normal(size=(12, 5))

    @jax.jit
    def found(op, columns):
        inverse = kx.inverse(op)
        matrices = (2.0 * inverse).to_dense(), inverse.T.to_dense()
        return inverse @ columns, inverse @ columns[:, 0], *matrices

    truth = np.linalg.inv(dense)
    known = truth @ columns, truth @ columns[:, 0], 2 * truth, truth.T
    for ours, theirs in zip(found(op, columns), known, strict=True):
        assert_close(ours, theirs)
