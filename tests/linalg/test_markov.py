"""Signal plus noise along a Markov axis against dense matrices: rules, gaps, new places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.dense_covariance import DenseCovariance
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.markov import full_state_value
from kronax.linalg.markov.at_observed import MarkovAtObserved
from kronax.linalg.markov.full_state import FullState
from kronax.linalg.markov.kalman import AbstractKalman
from kronax.linalg.markov.lanes import KalmanLanes
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.spectral.conditional_variances import Places
from tests.everyday import full

TIMES = np.sort(np.random.default_rng(0).uniform(0, 10, 9))
TIMES[4] = TIMES[3]  # measured twice
ORDER = np.array([2, 0, 1, 8, 5, 4, 7, 3, 6])
X = np.linspace(0, 1, 4)


def rbf(x, z, lengthscale=0.4):
    return jnp.exp(-0.5 * jnp.square((x[:, None] - z[None]) / lengthscale))


def factor(kernel, order=None):
    return kx.Markov(kernel.state_space(jnp.diff(TIMES)), len(TIMES), order)


def dense(kernel):
    return kx.Dense(kernel(jnp.asarray(TIMES), jnp.asarray(TIMES)))


NOISE = {
    "a number": lambda s: s,
    "a variance per place and time": lambda s: kx.Kronecker(
        kx.Diagonal(s * jnp.linspace(0.5, 2, 9)), kx.Diagonal(jnp.linspace(1, 3, 4))
    ),
    "correlated between places": lambda s: kx.Kronecker(
        kx.Diagonal(s * jnp.linspace(0.5, 2, 9)), kx.Dense(jnp.eye(4) + 0.3 * s)
    ),
}


SUM = lambda ell: kx.Matern52(ell) + 0.5 * kx.Matern12(2 * ell)  # noqa: E731


@pytest.mark.parametrize(
    ("kernel", "noise", "order"),
    [
        # Hessians along a Markov axis are those of `test_hessians.py` every day.
        (kx.Matern32, "a number", 1),
        full(kx.Matern32, "a number", 2),
        full(SUM, "correlated between places", 2),
        full(kx.Matern32, "a variance per place and time", 2),
    ],
    ids=["Matérn-3/2", "Hessian", "sum", "noise per place"],
)
def test_density_to_second_order(kernel, noise, order):
    y = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)))

    def density(theta):
        op = kx.Kronecker(factor(kernel(theta[0])), theta[1] * rbf(X, X, theta[2]))
        if noise == "a number":
            return kx.normal_logpdf(y, 0.0, op + theta[3])
        return kx.normal_logpdf(y, 0.0, kx.KroneckerPlusNoise(op, NOISE[noise](theta[3])))

    def by_matrix(theta):
        along = kernel(theta[0])(jnp.asarray(TIMES), jnp.asarray(TIMES))
        own = NOISE[noise](theta[3])
        own = own * jnp.eye(36) if noise == "a number" else own.to_dense()
        matrix = jnp.kron(along, theta[1] * rbf(X, X, theta[2])) + own
        quadratic = y.ravel() @ jnp.linalg.solve(matrix, y.ravel())
        return -0.5 * (quadratic + jnp.linalg.slogdet(2 * jnp.pi * matrix)[1])

    def orders(function):
        def slope(theta):
            value, slope = jax.value_and_grad(function)(theta)
            return slope, (value, slope)

        theta = jnp.array([1.3, 2.0, 0.5, 0.3])
        if order == 1:
            return jax.jit(slope)(theta)[1]
        hessian, both = jax.jit(jax.jacfwd(slope, has_aux=True))(theta)
        return *both, hessian

    for got, wanted in zip(orders(density), orders(by_matrix), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


def masks():
    some = np.random.default_rng(2).random((4, 9)) > 0.3
    times = np.ones((4, 9), bool)
    times[:, [2, 5]] = False
    return {"any cells": some, "whole times": times, "none": np.ones((4, 9), bool)}


@pytest.mark.parametrize("gaps", ["any cells", full("whole times"), full("none")])
def test_what_is_asked_of_a_decomposition(gaps):
    kernel = kx.Matern32(1.3)
    mask = Mask.of(masks()[gaps], (4, 9))
    rng = np.random.default_rng(3)
    y = np.where(mask.array, rng.normal(size=(4, 9)), np.nan)
    # Unsorted times, and a second way in which places are new: rows of covariances.
    where, back = TIMES[ORDER], np.argsort(ORDER)
    new = np.array([0.1, 0.55, 2.0])
    rows = [jnp.asarray(rng.normal(size=(2, n))) for n in (4, 9)]

    @jax.jit
    def markov():
        found = MarkovAtObserved(kx.Kronecker(rbf(X, X), factor(kernel, back)) + 0.3, mask)
        found = found.decomposed()
        assert isinstance(found, AbstractKalman)
        places = [Places(rbf(new, X), jnp.ones(3)), Places(None)]
        return answers(found), found.variance_given(places)

    @jax.jit
    def by_cholesky():
        time = kernel(where, where)
        found = DenseCovariance(kx.Kronecker(rbf(X, X), kx.Dense(time)) + 0.3, mask).decomposed()
        return answers(found), jnp.ones((3, 9)) - found.explained([rbf(new, X), time])

    def answers(found):
        scattered = [Places(rbf(new, X), jnp.ones(3)), Places(kernel(new, where), jnp.ones(3))]
        between = [rbf(new, new), kernel(new, new)]
        b = found.op.held(y)
        return (
            found.solve(b),
            found.logdet(),
            found.inv_quad(b),
            found.logpdf(b),
            found.inverse_diagonal(),
            found.explained(rows),
            found.posterior_diagonal(),
            found.variance_at(scattered).value,
            found.covariance_at((scattered, between)),
        )

    got, wanted = markov(), by_cholesky()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_variance_per_cell_and_traced_gaps():
    variances = np.random.default_rng(4).uniform(0.1, 1, (4, 9))
    variances[1, 3] = np.inf
    y = jnp.asarray(np.random.default_rng(5).normal(size=(4, 9)))
    everywhere = Mask.of(np.ones((4, 9), bool), (4, 9))

    def density(theta, variances, markov):
        time = (factor if markov else dense)(kx.Matern32(theta))
        op = kx.KroneckerPlusDiagonal(kx.Kronecker(rbf(X, X), time), variances)
        made = (MarkovAtObserved if markov else DenseCovariance)(op, everywhere)
        return kx.normal_logpdf(y, 0.0, made)

    both = [
        jax.jit(jax.value_and_grad(lambda t, v, m=m: density(t, v, m), argnums=(0, 1)))(
            jnp.array(1.3), jnp.asarray(variances)
        )
        for m in (True, False)
    ]
    for got, wanted in zip(*map(jax.tree.leaves, both), strict=True):
        finite = np.isfinite(np.asarray(wanted))
        np.testing.assert_allclose(np.asarray(got)[finite], np.asarray(wanted)[finite], rtol=1e-9)


def test_small_noise_keeps_its_digits():
    """`log det` at a noise of 1e-10 in long double, of which `eigh` loses six digits."""
    kernel, noise = kx.Matern52(1.3), np.longdouble(1e-10)
    got = kx.logdet(kx.Kronecker(factor(kernel)) + 1e-10)
    times = TIMES.astype(np.longdouble)
    r = np.sqrt(np.longdouble(5)) * np.abs(times[:, None] - times) / np.longdouble(1.3)
    matrix = (1 + r + r * r / 3) * np.exp(-r) + noise * np.eye(len(times))
    wanted = np.longdouble(0)
    for k in range(len(times)):
        wanted += np.log(matrix[k, k])
        below = matrix[k + 1 :, k] / matrix[k, k]
        matrix[k + 1 :, k + 1 :] -= below[:, None] * matrix[k, k + 1 :]
    assert abs(float(got) - float(wanted)) < 1e-9


def test_the_filter_is_chosen():
    op = kx.Kronecker(rbf(X, X), factor(kx.Matern32(1.0))) + 0.1
    assert isinstance(decomposition_of(op), KalmanLanes)


def test_looking_back_over_many_places_is_stable():
    """Rounding that is not symmetric grew from step to step where places outnumber a few."""
    n, m, noise = 60, 12, 1e-4
    times, places = np.linspace(0, 4, n), np.linspace(0, 1, m)
    seen = np.ones((n, m), bool)
    seen[10:25, 3:9] = seen[40:, :4] = False

    @jax.jit
    def ours():
        space = kx.Matern32(0.3).state_space(jnp.asarray(times[1]))
        op = kx.Kronecker(kx.Markov(space, n), kx.Dense(kx.Matern32(0.5)(places, places))) + noise
        found = decomposition_of(MarkovAtObserved(op, Mask.of(seen, seen.shape)))
        return found.posterior_diagonal(), found.inverse_diagonal()

    posterior, inverse_diagonal = ours()
    along, across = (
        (1 + s) * np.exp(-s)
        for s in (np.sqrt(3) * np.abs(x[:, None] - x) / c for x, c in ((times, 0.3), (places, 0.5)))
    )
    signal = np.kron(along, across)
    inverse = np.linalg.inv(signal[seen.ravel()][:, seen.ravel()] + noise * np.eye(seen.sum()))
    rows = signal[:, seen.ravel()]
    expected = np.diag(signal) - np.sum(rows @ inverse * rows, axis=1)
    np.testing.assert_allclose(posterior.ravel(), expected, rtol=1e-6)
    diagonal = np.zeros(seen.shape)
    diagonal[seen] = np.diag(inverse)
    np.testing.assert_allclose(inverse_diagonal, diagonal, rtol=1e-6)


def test_float32_does_not_drift_along_a_long_axis():
    """Equal terms added one after another have a rounding of 30 nats here, always one way."""

    def logdet(dtype):
        space = kx.Matern32(dtype(24)).state_space(dtype(1))
        return float(kx.logdet(kx.Kronecker(kx.Markov(space, 50_000)) + dtype(0.01)))

    assert abs(logdet(np.float32) - logdet(np.float64)) < 1


def dense_of_places(state):
    """The covariance of all cells, by the recursion of covariances between times."""
    space, size = state.space, state.size
    along = [[None] * size for _ in range(size)]
    own, steps = space.initial, (space.transitions, space.innovations)
    for i in range(size):
        across = own
        for j in range(i, size):
            along[i][j] = along[j][i] = across[0, 0]
            a, q = (x if space.regular else x[min(j, size - 2)] for x in steps)
            across = a @ across
            own = a @ own @ a.T + q if j == i else own
    nugget = jnp.broadcast_to(space.nugget, (size,))
    return jnp.kron(jnp.array(along) + jnp.diag(nugget), state.places)


@pytest.mark.parametrize("regular", [full(True), False])
def test_gradient_of_all_places_in_everything(regular, monkeypatch):
    """In every matrix of the process and its nugget, with gaps; a long axis is cut into blocks."""
    monkeypatch.setattr(full_state_value, "LONG", 9 if regular else 3)
    rng = np.random.default_rng(6)
    steps = (2, 2) if regular else (6, 2, 2)
    a = 0.6 * np.eye(2) + 0.2 * rng.normal(size=steps)
    q = 0.3 * np.eye(2) + np.zeros(steps)
    nugget = 0.2 if regular else rng.uniform(0.1, 0.4, 7)
    space = kx.StateSpace(a, q, 1.2 * jnp.eye(2), jnp.asarray(nugget), regular, False)
    seen = rng.random((7, 3)) > 0.3
    weights = jnp.where(seen, rng.uniform(1, 9, (7, 3)), 0)
    state = FullState(space, rbf(X[:3], X[:3]), weights)
    y, cells = jnp.asarray(rng.normal(size=(7, 3))), np.flatnonzero(seen)

    def symmetric(state):
        def even(x):
            return (x + jnp.swapaxes(x, -1, -2)) / 2

        q, p, places = (
            even(x) for x in (state.space.innovations, state.space.initial, state.places)
        )
        space = kx.StateSpace(state.space.transitions, q, p, state.space.nugget, regular, False)
        return FullState(space, places, state.precisions)

    def ours(state, y):
        return full_state_value.log_det_and_quadratic(symmetric(state), y, (0.7, 1.3))

    def by_matrix(state, y):
        noise = 1 / jnp.where(state.precisions > 0, state.precisions, 1)
        data = dense_of_places(symmetric(state)) + jnp.diag(noise.ravel())
        data, values = data[np.ix_(cells, cells)], y.ravel()[cells]
        return 0.7 * jnp.linalg.slogdet(data)[1] + 1.3 * values @ jnp.linalg.solve(data, values)

    got, wanted = (jax.jit(jax.value_and_grad(f, (0, 1)))(state, y) for f in (ours, by_matrix))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.abs(b).max())
