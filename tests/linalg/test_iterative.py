"""Iterative results equal the dense ones within the error that they report."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.krylov.conjugate_gradients import conjugate_gradients
from tests import oracle
from tests.everyday import full
from tests.tolerances import assert_close, assert_within_error

GRID = (8, 9)
QUICK = kx.Iteration(box_size=12, on_failure="flag")


def matern(size, lengthscale):
    x = np.linspace(0, 1, size)
    r = np.abs(x[:, None] - x) * np.sqrt(3) / lengthscale
    return (1 + r) * np.exp(-r)


class Case(NamedTuple):
    """One problem as arrays; infinite variances are gaps."""

    first: np.ndarray
    second: np.ndarray
    variances: np.ndarray
    y: np.ndarray

    def dense(self):
        """The matrix of the observed cells, and where they are."""
        cells = np.flatnonzero(np.isfinite(self.variances))
        whole = oracle.kron(self.first, self.second)
        return whole[np.ix_(cells, cells)] + np.diag(self.variances.ravel()[cells]), cells

    def operator(self):
        return kx.KroneckerPlusDiagonal(kx.Kronecker(self.first, self.second), self.variances)

    def cast(self, dtype):
        return Case(*(jnp.asarray(a, dtype) for a in self))


def draw_case(rng, grid=GRID, noise=None, share=None, spread=3.0):
    """Scattered gaps up to 70 %, noise ratios from 1e-3 to 1, noise uneven up to 20 times."""
    lengthscales = np.exp(rng.uniform(-3, 0, 2))
    noise = 10 ** rng.uniform(-3, 0) if noise is None else noise
    share = rng.uniform(0, 0.7) if share is None else share
    variances = noise * np.exp(rng.uniform(0, spread, grid)) if spread else np.full(grid, noise)
    variances[rng.random(grid) < share] = np.inf
    variances[0, 0] = noise
    case = Case(*map(matern, grid, lengthscales), variances, np.zeros(grid))
    matrix, cells = case.dense()
    y = np.full(grid, np.nan)
    y.ravel()[cells] = np.linalg.cholesky(matrix) @ rng.standard_normal(len(cells))
    return case._replace(y=y)


def dense_logpdf(case):
    matrix, cells = case.dense()
    y = case.y.ravel()[cells]
    quadratic = y @ np.linalg.solve(matrix, y)
    return -0.5 * (quadratic + np.linalg.slogdet(matrix)[1] + len(cells) * np.log(2 * np.pi))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_log_densities_lie_within_their_error(dtype):
    rng = np.random.default_rng(0)
    cases = [draw_case(rng) for _ in range(200)]
    truth = np.array([dense_logpdf(case) for case in cases])
    stacked = Case(*map(np.stack, zip(*cases, strict=True))).cast(dtype)

    @jax.jit
    def run(stacked):
        one = lambda c: kx.iterative_logpdf(c.y, 0.0, c.operator(), iteration=QUICK)  # noqa: E731
        return jax.lax.map(one, stacked)

    estimate = run(stacked)
    assert estimate.value.dtype == dtype
    assert_within_error(estimate, truth, 0.02)


def test_an_even_grid_is_exact():
    case = draw_case(np.random.default_rng(1), noise=0.1, share=0.0, spread=0)

    def iterative(first, y):
        op = kx.KroneckerPlusDiagonal(kx.Kronecker(first, case.second), 0.1)
        return kx.iterative_logpdf(y, 0.3, op, iteration=QUICK).value

    def exact(first, y):
        return kx.normal_logpdf(y, 0.3, kx.Kronecker(first, case.second) + 0.1)

    @jax.jit
    def both(*operands):
        return [jax.value_and_grad(f, (0, 1))(*operands) for f in (iterative, exact)]

    ours, truth = both(jnp.asarray(case.first), jnp.asarray(case.y))
    for value, known in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        assert_close(value, known)


def dense_slopes(case):
    """`∂ log density / ∂A` as a matrix over the whole grid, and that in the data."""
    matrix, cells = case.dense()
    inverse = np.linalg.inv(matrix)
    weights = inverse @ case.y.ravel()[cells]
    size = case.variances.size
    by_matrix, in_y = np.zeros((size, size)), np.zeros(size)
    by_matrix[np.ix_(cells, cells)] = 0.5 * (np.outer(weights, weights) - inverse)
    in_y[cells] = -weights
    return by_matrix, in_y.reshape(case.variances.shape)


@pytest.mark.parametrize("num_probes", [2048, full(8192)])
def test_gradients_are_unbiased(num_probes):
    """In random directions, within four of the standard errors that come with them."""
    case = draw_case(np.random.default_rng(2), (5, 6), noise=0.05, share=0.3)
    case = case._replace(y=np.nan_to_num(case.y))
    observed = np.isfinite(case.variances)
    finite = np.where(observed, case.variances, 1)
    rng = np.random.default_rng(3)
    in_first, in_noise, in_data = (rng.standard_normal((4, *s)) for s in ((5, 5), (5, 6), (5, 6)))
    in_first = in_first + in_first.transpose(0, 2, 1)
    in_noise[0, observed] = 0
    iteration = kx.Iteration(num_probes=num_probes, box_size=4)

    def density(p):
        first = case.first + jnp.tensordot(p[0], in_first, 1)
        variances = finite + jnp.tensordot(p[1], in_noise, 1)
        signal = kx.Kronecker(first, case.second)
        op = kx.KroneckerPlusDiagonal(signal, variances, observed=observed)
        return kx.iterative_logpdf(
            case.y + jnp.tensordot(p[2], in_data, 1), 0.0, op, iteration=iteration
        )

    found = jax.jit(partial(kx.gradient_estimate, density))((jnp.zeros(4),) * 3)
    by_matrix, in_y = dense_slopes(case)
    by_first = np.einsum("abcd,bd->ac", by_matrix.reshape(5, 6, 5, 6), case.second)
    by_noise = np.where(observed, np.diagonal(by_matrix).reshape(5, 6), 0)
    slopes = zip((by_first, by_noise, in_y), (in_first, in_noise, in_data), strict=True)
    truth = [np.sum(slope * directions, (1, 2)) for slope, directions in slopes]
    for value, spread, exact in zip(found.value, found.standard_error, truth, strict=True):
        scale = np.abs(exact).max()
        assert np.all(np.abs(value - exact) <= 4 * spread + 1e-4 * scale)
        assert np.all(spread <= 0.01 * scale * np.sqrt(8192 / num_probes))
    assert found.value[1][0] == 0


def assert_close_to(actual, expected, share):
    assert np.abs(np.asarray(actual, float) - expected).max() <= share * np.abs(expected).max()


def test_gaps_equal_the_exact_operator():
    case = draw_case(np.random.default_rng(3), noise=0.02, share=0.3, spread=0)
    signal, observed = kx.Kronecker(case.first, case.second), np.isfinite(case.variances)
    exact = dense_logpdf(case)
    by_mask = kx.KroneckerPlusDiagonal(signal, 0.02, observed=observed)

    @jax.jit
    def found(op, given, y):
        estimates = kx.iterative_logpdf(y, 0.0, op, iteration=QUICK), kx.iterative_logdet(op)
        return (op.to_dense(), given.to_dense()), estimates

    matrices, (estimate, log_det) = found(by_mask, case.operator(), case.y)
    assert_close(*matrices)
    assert abs(estimate.value - exact) <= estimate.error < 3.0
    # By default a grid as small as this one is handled exactly.
    assert log_det.error < 1e-10
    assert abs(log_det.value - np.linalg.slogdet(case.dense()[0])[1]) <= log_det.error


@jax.jit
def density_of_two(case, variances):
    """The log densities of the data and of twice the data, with other variances."""
    op = case._replace(variances=variances).operator()
    return kx.iterative_logpdf(jnp.stack([case.y, 2 * case.y]).reshape(2, -1), 0.0, op).value


def test_replicates_share_one_evaluation():
    case = draw_case(np.random.default_rng(4))
    together = density_of_two(case, case.variances)
    alone = [dense_logpdf(case._replace(y=scale * case.y)) for scale in (1, 2)]
    np.testing.assert_allclose(together, alone, rtol=1e-8)


@pytest.mark.parametrize("dtype", [full("float64"), "float32"])
def test_solves(dtype):
    case = draw_case(np.random.default_rng(5), noise=0.01, share=0.3)
    matrix, cells = case.dense()
    b = np.random.default_rng(6).standard_normal((2, *GRID))
    iteration = kx.Iteration(tolerance=1e-10 if dtype == "float64" else None)
    op, b = case.cast(dtype).operator(), b.astype(dtype)
    estimate = kx.iterative_solve(op, b, iteration=iteration)
    expected = np.zeros((2, 72))
    expected[:, cells] = np.linalg.solve(matrix, b.reshape(2, -1)[:, cells].T).T
    share = 1e-8 if dtype == "float64" else 1e-2
    assert_close_to(estimate.value.reshape(2, -1), expected, share)
    error = (np.asarray(estimate.value, float).reshape(2, -1) - expected)[:, cells]
    norms = [np.sqrt(np.sum(v @ matrix * v, -1)) for v in (error, expected[:, cells])]
    assert np.all(norms[0] / norms[1] <= max(float(estimate.error), 1e-11))
    flat = kx.iterative_solve(op, b.reshape(2, -1), iteration=iteration)
    assert flat.value.shape == (2, 72)


@pytest.mark.parametrize("outer", [jax.jacfwd, full(jax.jacrev)])
def test_solves_have_second_derivatives(outer):
    case = draw_case(np.random.default_rng(7), (5, 6), noise=0.1, share=0.3)
    y, iteration = np.nan_to_num(case.y), kx.Iteration(tolerance=1e-11)
    matrix, cells = case.dense()

    def quadratic(scale):
        op = kx.KroneckerPlusDiagonal(scale * kx.Kronecker(case.first, case.second), case.variances)
        return jnp.sum(y * kx.iterative_solve(op, y, iteration=iteration).value)

    by_scale = oracle.kron(case.first, case.second)[np.ix_(cells, cells)]
    b = y.ravel()[cells]
    jet = oracle.Jet(matrix, by_scale[None], np.zeros((1, 1, *matrix.shape)))
    truth = oracle.inv_quad(jet, oracle.constant(b, 1))

    def first(scale):
        value, slope = jax.value_and_grad(quadratic)(scale)
        return (value, slope), slope

    # Of the value and of its gradient, many directions at once.
    (again, bend), slope = jax.jit(outer(first, has_aux=True))(1.0)
    assert_close(again, truth.first[0], 1)
    assert_close(slope, truth.first[0], 1)
    assert_close(bend, truth.second[0, 0], 2)


def test_the_quadratic_form_has_its_gradient_at_low_noise_too():
    """Weights `W (y − f)` would magnify what the iteration leaves of `f`: a share of 1e-3 here."""
    n, noise = 16, 1e-6
    rng = np.random.default_rng(5)
    x = np.linspace(0, 1, n)
    variances = noise * np.exp(rng.normal(size=(n, n)))
    seen = rng.random((n, n)) < 0.6
    settings = kx.Iteration(box_size=30, max_steps=3000)

    def operator(p):
        signal = kx.Kronecker(p[1] * kx.RBF(p[0])(x, x), kx.RBF(0.15)(x, x))
        return kx.KroneckerPlusDiagonal(signal, p[2] * variances, observed=seen)

    lags = (x[:, None] - x) ** 2
    along = np.exp(-0.5 * lags / 0.15**2)
    cells = np.flatnonzero(seen)
    signal, by_scale = (
        np.kron(a, along)[np.ix_(cells, cells)] for a in (along, lags / 0.15**3 * along)
    )
    matrix = signal + np.diag(variances.ravel()[cells])
    y = np.zeros(n * n)
    y[cells] = np.linalg.cholesky(matrix) @ rng.standard_normal(len(cells))

    def iterative(p):  # the same probes twice: their log-determinants cancel
        both = np.stack([y, 0 * y]).reshape(2, n, n)
        densities = kx.iterative_logpdf(both, 0.0, operator(p), iteration=settings).value
        return densities[0] - densities[1]

    found = jax.jit(jax.grad(iterative))(np.array([0.15, 1.0, 1.0]))
    weights = np.linalg.solve(matrix, y[cells])
    moved = by_scale, signal, np.diag(variances.ravel()[cells])
    known = [0.5 * weights @ m @ weights for m in moved]
    np.testing.assert_allclose(found, known, rtol=3e-5)


def test_variances():
    case = draw_case(np.random.default_rng(8), noise=0.05, share=0.4)
    matrix, cells = case.dense()
    whole = oracle.kron(case.first, case.second)
    explained = np.einsum("ab,bc,ac->a", whole[:, cells], np.linalg.inv(matrix), whole[:, cells])
    posterior = (np.diagonal(whole) - explained).reshape(GRID)
    places = np.argwhere(np.ones(GRID, bool))[::5].T
    rows = [f[i] for f, i in zip((case.first, case.second), places, strict=True)]
    exact = kx.iterative_inverse_at(case.operator(), tuple(map(jnp.asarray, rows)))
    np.testing.assert_allclose(exact.value, explained[::5], atol=float(exact.error) + 1e-12)
    assert exact.error < 1e-6
    few = kx.Iteration(box_size=4)
    drawn = kx.iterative_posterior_variances(case.operator(), iteration=few)
    assert np.mean(np.abs(drawn.value - posterior) <= drawn.error) >= 0.95
    # Plain draws have a relative standard error of √(2 / 64) = 0.18.
    assert np.median(drawn.standard_error / posterior) < 0.09
    whole = kx.iterative_posterior_variances(case.operator())  # the box holds the whole grid
    np.testing.assert_allclose(whole.value, posterior, rtol=1e-4)


def test_variances_of_an_even_grid_are_exact():
    case = draw_case(np.random.default_rng(9), noise=0.1, share=0.0, spread=0)
    drawn = kx.iterative_posterior_variances(case.operator())
    whole = oracle.kron(case.first, case.second)
    expected = np.diagonal(whole - whole @ np.linalg.inv(case.dense()[0]) @ whole)
    np.testing.assert_allclose(drawn.value, expected.reshape(GRID), rtol=1e-4)
    assert np.max(drawn.standard_error) < 1e-4


@pytest.mark.parametrize(("kind", "box", "most"), [("scattered", 1, 12), ("a hole", 1, 200)])
def test_steps_stay_few(kind, box, most):
    grid = (40, 45)
    variances = np.full(grid, 1e-3)
    if kind == "scattered":
        variances[np.random.default_rng(10).random(grid) < 0.1] = np.inf
    else:
        variances[10:24, 12:26] = np.inf
    signal = kx.Kronecker(*(matern(n, 0.2) for n in grid))
    op = kx.KroneckerPlusDiagonal(signal, variances)
    plain = kx.iterative_logdet(op, iteration=kx.Iteration(box_size=box))
    assert plain.num_steps <= most
    if kind == "a hole":
        boxed = kx.iterative_logdet(op, iteration=kx.Iteration(box_size=400))
        assert int(boxed.num_steps) <= int(plain.num_steps) / 3
        assert abs(boxed.value - plain.value) <= boxed.error + plain.error


def test_failure_is_never_silent():
    case = draw_case(np.random.default_rng(11), noise=1e-3, share=0.5)
    short = kx.Iteration(max_steps=2, box_size=1)
    op, y = case.operator(), np.nan_to_num(case.y)
    # And of solves in `test_terms.py`.
    calls = (
        lambda it: kx.iterative_logpdf(y, 0.0, op, iteration=it),
        lambda it: kx.iterative_posterior_variances(op, iteration=it),
    )
    for call in calls:
        with pytest.raises(kx.ConvergenceError, match="after 2 steps"):
            call(short)
    traced = jax.jit(partial(calls[0], short))()
    assert np.isnan(traced.value)
    assert not traced.converged


def test_a_second_derivative_of_an_estimate_is_refused():
    case = draw_case(np.random.default_rng(12), (5, 6))

    def value(scale):
        op = kx.KroneckerPlusDiagonal(scale * kx.Kronecker(case.first, case.second), case.variances)
        return kx.iterative_logpdf(case.y, 0.0, op).value

    with pytest.raises(kx.DerivativeOrderError):
        jax.eval_shape(jax.grad(jax.grad(value)), 1.0)

    def variances(scale):
        return kx.iterative_posterior_variances(scale * case.operator()).value.sum()

    with pytest.raises(kx.DerivativeOrderError, match="values only"):
        jax.eval_shape(jax.grad(variances), 1.0)


def test_traced_bad_variances_give_nan():
    case = draw_case(np.random.default_rng(13))
    bad = np.where(case.variances == case.variances[0, 0], -1.0, case.variances)
    assert np.all(np.isfinite(density_of_two(case, case.variances)))
    assert np.all(np.isnan(density_of_two(case, bad)))


SIGNAL = kx.Kronecker(np.eye(3), np.eye(2))
OP = kx.KroneckerPlusDiagonal(SIGNAL, np.ones((3, 2)))
BAD = {
    "half a probe": (lambda: kx.Iteration(num_probes=16.5), "whole number"),
    "zero": (lambda: kx.KroneckerPlusDiagonal(SIGNAL, 0.0), "must be positive; got 0.0"),
    "negative": (
        lambda: kx.KroneckerPlusDiagonal(SIGNAL, np.array([1.0, -2.0])),
        r"must be positive; got -2.0 at cell \(0, 1\)",
    ),
    "NaN": (lambda: kx.KroneckerPlusDiagonal(SIGNAL, np.nan), "must be positive; got nan"),
    "all gaps": (lambda: kx.KroneckerPlusDiagonal(SIGNAL, np.inf), "At least one cell"),
    "shape": (lambda: kx.KroneckerPlusDiagonal(SIGNAL, np.ones((2, 3))), r"broadcast to the grid"),
    "mask shape": (
        lambda: kx.KroneckerPlusDiagonal(SIGNAL, 1.0, observed=np.ones((2, 3), bool)),
        "shape of the grid",
    ),
    "batch": (
        lambda: kx.KroneckerPlusDiagonal(kx.Kronecker(np.stack([np.eye(3)] * 2)), 1.0),
        "no batch axes",
    ),
    "infinite y": (
        lambda: kx.iterative_logpdf(np.full((3, 2), np.inf), 0.0, OP),
        "y at the observed cells must be finite",
    ),
    "NaN in b": (lambda: kx.iterative_solve(OP, np.full(6, np.nan)), "b at the observed cells"),
    "probes": (
        lambda: kx.Iteration(num_probes=1),
        "`num_probes` must be a whole number, at least 4; got 1",
    ),
    "tolerance": (lambda: kx.Iteration(tolerance=2.0), "between 0 and 1"),
    "on_failure": (lambda: kx.Iteration(on_failure="ignore"), "'raise' or 'flag'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_indefinite_signal_is_blamed():
    signal = kx.Kronecker(np.eye(8) - np.eye(8)[::-1] * 2, np.eye(9))
    op = kx.KroneckerPlusDiagonal(signal, np.full(GRID, 0.5))
    with pytest.raises(np.linalg.LinAlgError, match="factor 0 of the signal"):
        kx.iterative_logdet(op)


def test_a_mask_that_is_not_boolean_is_refused():
    with pytest.raises(TypeError, match="boolean"):
        kx.KroneckerPlusDiagonal(SIGNAL, 1.0, observed=np.ones((3, 2)))


def test_conjugate_gradients_know_the_spectrum():
    rng = np.random.default_rng(14)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    values = np.geomspace(1e-3, 5, 12)
    matrix = basis * values @ basis.T
    b = rng.standard_normal((3, 12))
    b[2] = 0

    @jax.jit
    def iterated(b):
        return conjugate_gradients(
            lambda x: x @ matrix,
            b,
            energy=jnp.sum(b**2, -1),
            num_solves=1,
            falls=False,
            tolerance=1e-10,
            max_steps=100,
            bound=lambda r: jnp.sum(r**2, -1) / values[0],
            least=jnp.asarray(values[0] / 7),
        )

    found = iterated(b)
    assert_close(found.solution, np.linalg.solve(matrix, b.T).T, 1)
    weights = (b @ basis)[:2] ** 2 / np.sum(b[:2] ** 2, -1, keepdims=True)
    logs = np.log(values)
    np.testing.assert_allclose(found.log_form[:2], weights @ logs, rtol=1e-9)
    np.testing.assert_allclose(found.log_square[:2], weights @ logs**2, rtol=1e-9)
    remainder = weights @ (logs - (values - 1)) ** 2
    np.testing.assert_allclose(found.remainder_square[:2], remainder, rtol=1e-5)
    assert found.num_steps[2] == 0
    assert np.all(found.solution[2] == 0)


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
def test_what_the_iteration_has_not_met_is_bounded(tolerance):
    """One eigenvalue of 1e-9 that a column hardly has: no iteration of a few steps sees it."""
    rng = np.random.default_rng(15)
    values = np.concatenate([[1e-9], np.geomspace(0.3, 3, 40)])
    b = rng.standard_normal((6, 41)) * np.concatenate(
        [np.geomspace(1e-6, 1, 6)[:, None], *[np.ones((6, 1))] * 40], 1
    )

    @jax.jit
    def iterated(b):
        return conjugate_gradients(
            lambda x: x * values[None],
            b,
            energy=jnp.sum(b**2, -1),
            num_solves=0,
            tolerance=tolerance,
            max_steps=100,
            bound=lambda r: jnp.sum(r**2 / values[None], -1),
            least=jnp.asarray(1e-10),
        )

    found = iterated(b)
    form = b**2 @ np.log(values) / np.sum(b**2, -1)
    assert np.all(found.log_form >= form - 1e-12)
    assert np.all(found.log_form - found.log_left <= form + 1e-12)
    residual = np.asarray(b - found.solution * values[None])
    np.testing.assert_allclose(found.left, np.sum(residual**2 / values, -1), rtol=1e-6)
