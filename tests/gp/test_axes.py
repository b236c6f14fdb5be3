"""Coordinates are data: static when concrete, leaves with right gradients when traced."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kronax as kx
from tests.gp.dense import PLACES, SPACE, TIME, two_axes
from tests.tolerances import assert_close

Y = two_axes().y


def make(axes=(TIME, SPACE), noise=0.1):
    return kx.GridGP((kx.Matern52(0.6), kx.RBF(0.4)), axes, noise)


def test_concrete_coordinates_are_no_leaves():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(make())]
    assert sorted(paths) == [
        ".kernels[0].lengthscale",
        ".kernels[1].lengthscale",
        ".noise",
        ".variance",
    ]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, list], ids=["numpy", "jax", "list"])
def test_closed_over_coordinates_stay_static_under_jit(kind):
    axes = tuple(kind(x) for x in (TIME, SPACE))
    seen = []

    @jax.jit
    def value(noise):
        gp = make(axes, noise)
        seen.append([x.static is not None for x in gp.axes] + [len(jax.tree.leaves(gp.axes))])
        return gp.log_marginal_likelihood(Y)

    assert_close(value(0.1), make().log_marginal_likelihood(Y))
    assert seen == [[True, True, 0]]


class Pair(eqx.Module):
    """A model that holds a GP and a network."""

    gp: kx.GridGP
    network: eqx.nn.MLP


def test_weight_decay_moves_parameters_and_nothing_else():
    network = eqx.nn.MLP(1, 1, 3, 1, key=jax.random.key(0))
    # Integer and float coordinates of every form that an axis may have.
    gp = kx.GridGP(
        (kx.RBF(1.0), kx.RBF(1.0), kx.RBF(1.0)), (np.arange(3), PLACES, jnp.arange(2.0)), 0.1
    )
    before = Pair(gp, network)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    trained, rest = eqx.partition(before, eqx.is_inexact_array)

    @jax.jit
    def updated(trained):
        slopes = jax.tree.map(jnp.ones_like, trained)
        return optimizer.update(slopes, optimizer.init(trained), trained)[0]

    with jax.numpy_dtype_promotion("standard"):
        after = eqx.combine(optax.apply_updates(trained, updated(trained)), rest)
    for old, new in zip(before.gp.axes, after.gp.axes, strict=True):
        np.testing.assert_array_equal(old.coordinates(float), new.coordinates(float))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), trained, eqx.filter(after, eqx.is_array)
    )
    assert all(jax.tree.leaves(moved))
    names = {p.path for p in kx.parameters(before) if p.path.startswith("gp.")}
    lengthscales = {f"gp.kernels[{i}].lengthscale" for i in range(3)}
    assert names == {"gp.variance", "gp.noise"} | lengthscales


def test_traced_coordinates_are_leaves_with_the_gradients_of_the_dense_model():
    def by_kronax(time, space):
        gp = make((time, space))
        assert len(jax.tree.leaves(gp.axes)) == 2
        return gp.log_marginal_likelihood(Y)

    def by_hand(time, space):
        r = jnp.sqrt(5.0) * jnp.abs(time[:, None] - time[None]) / 0.6
        first = (1 + r + r**2 / 3) * jnp.exp(-r)
        second = jnp.exp(-jnp.square((space[:, None] - space[None]) / 0.4) / 2)
        covariance = jnp.kron(first, second) + 0.1 * jnp.eye(20)
        zero = jnp.zeros(20)
        return jax.scipy.stats.multivariate_normal.logpdf(Y.ravel(), zero, covariance)

    value, slopes, true_value, true_slopes = (
        part
        for f in (by_kronax, by_hand)
        for part in jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(TIME, SPACE)
    )
    assert_close(value, true_value)
    for slope, expected in zip(slopes, true_slopes, strict=True):
        assert_close(slope, expected, order=1)


def test_equal_coordinates_do_not_retrace_and_others_do():
    count = 0

    @jax.jit
    def value(gp, y):
        nonlocal count
        count += 1
        return gp.log_marginal_likelihood(y)

    value(make(), Y)
    value(make((TIME.copy(), jnp.asarray(SPACE)), noise=0.7), Y)
    assert count == 1
    value(make((TIME + 1, SPACE)), Y)
    assert count == 2


def test_coordinates_cannot_be_changed_from_outside():
    time = TIME.copy()
    gp = make((time, SPACE))
    time[:] = 0
    np.testing.assert_array_equal(gp.axes[0].coordinates(float), TIME)
    with pytest.raises(ValueError, match="read-only"):
        gp.axes[0].static.values[0] = 3.0


@pytest.mark.parametrize(
    ("time", "error", "match"),
    [
        (
            np.array([0.0, np.nan, 1.0]),
            ValueError,
            r"axis 0 must be finite; got nan at index \(1,\)",
        ),
        (
            np.array([object()] * 5),
            TypeError,
            "axis 0 must be real numbers, dates or labels; got dtype object",
        ),
        (list("abcde"), TypeError, "kernel of axis 0 must take labels.*Matern52.*kx.Categorical"),
        (np.arange(5) > 2, TypeError, "axis 0 must be real numbers, .*got dtype bool"),
        (np.ma.array(TIME, mask=TIME == 0.3), ValueError, "must not be missing; entry 1 is masked"),
        (TIME * 1j, TypeError, "axis 0 must be real numbers, .*got dtype complex128"),
        (1.0, ValueError, r"shape \(n,\), or \(n, p\).*got shape \(\)"),
        (np.ones((2, 2, 2)), ValueError, r"shape \(n,\), or \(n, p\).*got shape \(2, 2, 2\)"),
        (np.ones(0), ValueError, r"shape \(n,\), or \(n, p\).*got shape \(0,\)"),
        ([[1.0], [1.0, 2.0]], ValueError, r"rectangular array; got \[\[1\.0\], \[1\.0, 2\.0\]\]"),
    ],
    ids=lambda v: None if isinstance(v, np.ndarray | list) else str(v)[:30],
)
def test_bad_coordinates_raise(time, error, match):
    with pytest.raises(error, match=match):
        make((time, SPACE))
