"""Iterations that start from the complete grid along a Markov axis equal dense matrices."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.estimates.certificates import exact_estimate
from kronax.linalg.krylov.markov_reference import MarkovPreconditioner, largest_along
from kronax.linalg.krylov.operator import Iterations
from kronax.linalg.krylov.solve import prepared
from tests.everyday import everyday

SHAPE = (5, 14)
TIGHT = kx.Iteration(tolerance=1e-11, num_probes=256, num_draws=512, on_failure="flag")
FIELDS = ("scattered gaps", "an outage", "a time missing", "uneven noise", "no gaps")


def matern(x, lengthscale):
    r = np.sqrt(3) * np.abs(x[:, None] - x) / lengthscale
    return (1 + r) * np.exp(-r)


TIMES = np.random.default_rng(0).uniform(0, 6, SHAPE[1])
ORDER = np.argsort(TIMES)
START = np.log([1.1, 0.8, 1.2])


def operator(variances, logarithms):
    """Of multiples of lengthscale, variance and noise."""
    scale, variance, noise = jnp.exp(logarithms)
    space = kx.Matern32(1.5 * scale).state_space(jnp.asarray(np.diff(TIMES[ORDER])))
    places = jnp.asarray(matern(np.arange(5.0), 2.0))
    signal = kx.Kronecker(places, kx.Markov(space, SHAPE[1], ORDER)).scaled(variance)
    seen = jnp.isfinite(variances)
    noises = jnp.where(seen, noise * jnp.where(seen, variances, 1), jnp.inf)
    return kx.KroneckerPlusDiagonal(signal, noises)


class Case(NamedTuple):
    """Places × unsorted times: the variances of the noise, infinite at gaps, and data."""

    variances: np.ndarray
    y: np.ndarray

    def dense(self, logarithms):
        """The signal on all cells, the covariance of the observed ones, and which these are."""
        scale, variance, noise = np.exp(logarithms)
        along = matern(TIMES, 1.5 * scale)
        whole = variance * np.kron(matern(np.arange(5.0), 2.0), along)
        cells = np.flatnonzero(np.isfinite(self.variances))
        noises = noise * self.variances.ravel()[cells]
        return whole, whole[np.ix_(cells, cells)] + np.diag(noises), cells

    def logpdf(self, logarithms):
        _, matrix, cells = self.dense(logarithms)
        y = self.y.ravel()[cells]
        whole = y @ np.linalg.solve(matrix, y) + np.linalg.slogdet(matrix)[1]
        return -0.5 * (whole + len(cells) * np.log(2 * np.pi))


def draw_case(field):
    rng = np.random.default_rng(FIELDS.index(field))
    variances = np.full(SHAPE, 0.05)
    if field == "scattered gaps":
        variances[rng.random(SHAPE) < 0.3] = np.inf
    elif field == "an outage":
        variances[2, ORDER[3:10]] = np.inf
    elif field == "a time missing":
        variances[:, 4] = np.inf
        variances[1, 6] = np.inf
    elif field == "uneven noise":
        variances = variances * np.exp(rng.uniform(0, 2, SHAPE))
        variances[0, 0] = np.inf
    case = Case(variances, np.zeros(SHAPE))
    _, matrix, cells = case.dense(START)
    case.y.ravel()[cells] = np.linalg.cholesky(matrix) @ rng.standard_normal(len(cells))
    return case


@pytest.fixture(params=FIELDS, scope="module")
def case(request):
    return draw_case(request.param)


ROWS = np.linspace(0, 1, 10).reshape(2, 5), np.linspace(-1, 1, 42).reshape(3, 14)


@jax.jit
def answers(variances, y):
    """A solve, a product with the weights, and the posterior variances."""
    op = operator(variances, jnp.asarray(START))
    way = Iterations(kx.Iterative(op, TIGHT))
    return way.solved(y), op.kronecker.mv_grid(way.weights(y).value), way.posterior()


@jax.jit
def further_variances(variances):
    """The diagonal of the inverse, and what data explain elsewhere."""
    way = Iterations(kx.Iterative(operator(variances, jnp.asarray(START)), TIGHT))
    return way.inverse_estimate(), way.explained_estimate([jnp.asarray(row) for row in ROWS])


@jax.jit
def densities(variances, y):
    """The log density, its gradient, and that of every probe."""

    def of(logarithms):
        op = operator(variances, logarithms)
        estimate = kx.iterative_logpdf(y, 0.0, op, iteration=TIGHT)
        return (estimate.value, estimate.probes), estimate

    slopes, estimate = jax.jacfwd(of, has_aux=True)(jnp.asarray(START))
    return estimate, slopes


def close_within(estimate, truth):
    """Nearly all cells within three standard errors, and these not without end."""
    off = np.abs(np.asarray(estimate.value) - truth)
    assert np.mean(off <= 3 * np.asarray(estimate.standard_error) + 1e-9) > 0.95
    assert np.max(off) < 0.2 * np.max(np.abs(truth))


def test_solves_and_variances(case):
    whole, matrix, cells = case.dense(START)
    solved, smooth, posterior = answers(case.variances, case.y)
    truth = np.zeros(whole.shape[0])
    truth[cells] = np.linalg.solve(matrix, case.y.ravel()[cells])
    assert bool(solved.converged)
    np.testing.assert_allclose(solved.value.ravel(), truth, rtol=0, atol=1e-8)
    np.testing.assert_allclose(smooth.ravel(), whole @ truth, rtol=0, atol=1e-8)
    cross = whole[:, cells]
    known = np.diag(cross @ np.linalg.solve(matrix, cross.T))
    close_within(posterior, (np.diag(whole) - known).reshape(SHAPE))


@pytest.mark.parametrize("field", everyday(FIELDS, ["uneven noise"]))
def test_further_variances(field):
    case = draw_case(field)
    whole, matrix, cells = case.dense(START)
    inverse, explained = further_variances(case.variances)
    full = np.zeros(whole.shape[0])
    full[cells] = np.diag(np.linalg.inv(matrix))
    close_within(inverse, full.reshape(SHAPE))
    cross = np.kron(*ROWS)[:, cells]
    found = np.sum(cross * np.linalg.solve(matrix, cross.T).T, axis=1)
    close_within(explained, found.reshape(2, -1))


def test_the_log_density_has_its_error_and_derivatives(case):
    estimate, (slope, per_probe) = densities(case.variances, case.y)
    assert bool(estimate.converged)
    assert abs(float(estimate.value) - case.logpdf(START)) <= float(estimate.error) + 1e-9
    steps = 1e-5 * np.eye(3)
    truth = np.array([case.logpdf(START + e) - case.logpdf(START - e) for e in steps]) / 2e-5
    error = np.std(np.asarray(per_probe), axis=0) / np.sqrt(TIGHT.num_probes)
    largest = np.abs(truth).max()
    assert np.all(np.abs(np.asarray(slope) - truth) <= 4 * error + 1e-6 * largest)
    assert np.all(error < 0.1 * largest)


def test_the_reference_is_the_filter():
    variances = draw_case("an outage").variances
    held = jax.eval_shape(lambda: prepared(operator(variances, jnp.asarray(START)), TIGHT))
    assert isinstance(held, MarkovPreconditioner)
    assert held.reference.axis == 1


def test_the_largest_eigenvalue_is_bounded_where_covariances_are_negative():
    """Row sums are not: of whole waves they are zero."""
    n, waves = 240, np.arange(240) * 2 * np.pi / 12
    cases = {
        "whole waves": (kx.Cosine(12.0), np.cos(waves[:, None] - waves)),
        "a product": (
            kx.Matern32(40.0) * kx.Cosine(12.0),
            np.cos(waves[:, None] - waves) * matern(np.arange(float(n)), 40.0),
        ),
        "positive": (kx.Matern32(9.0), matern(np.arange(float(n)), 9.0)),
        "short": (kx.Matern32(0.01), np.eye(n)),
    }
    spaces = {name: kernel.state_space(np.asarray(1.0)) for name, (kernel, _) in cases.items()}
    factors = {name: kx.Markov(space, n) for name, space in spaces.items()}
    found = jax.jit(lambda fs: {k: largest_along(kx.Kronecker(f), 0) for k, f in fs.items()})(
        factors
    )
    for name, (_, matrix) in cases.items():
        largest = np.linalg.eigvalsh(matrix)[-1]
        assert largest <= found[name] * (1 + 1e-12), name
        assert found[name] < 4 * largest, name


def test_advice_is_of_what_has_a_say():
    op = kx.Iterative(operator(np.full(SHAPE, 0.05), jnp.asarray(START)))
    estimate = eqx.tree_at(lambda e: e.converged, exact_estimate(jnp.ones(())), jnp.asarray(False))
    with pytest.raises(kx.ConvergenceError, match=r"Raise `max_steps` of kx\.Iteration, loosen"):
        Iterations(op).settled(estimate, "the solve")
    by_matrix = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), jnp.ones((2, 2)))
    with pytest.raises(kx.ConvergenceError, match="Raise `max_steps` or `box_size` of kx"):
        Iterations(kx.Iterative(by_matrix)).settled(estimate, "the solve")
