"""Sums of many products plus a variance per cell: densities, solves and variances, with errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.krylov.terms_reference import common_bases, terms_reference
from kronax.linalg.krylov.variances import posterior_estimate
from tests import oracle
from tests.everyday import full
from tests.tolerances import assert_close

GRID = (8, 9)
QUICK = kx.Iteration(box_size=12, on_failure="flag")


def matern(size, lengthscale):
    x = np.linspace(0, 1, size)
    r = np.abs(x[:, None] - x) * np.sqrt(3) / lengthscale
    return (1 + r) * np.exp(-r)


def rbf(size, lengthscale):
    x = np.linspace(0, 1, size)
    return np.exp(-0.5 * ((x[:, None] - x) / lengthscale) ** 2)


def periodic(size, period):
    x = np.linspace(0, 1, size)
    return np.exp(-2 * np.sin(np.pi * (x[:, None] - x) / period) ** 2)


class Case(NamedTuple):
    """One problem as arrays; infinite variances are gaps."""

    factors: tuple
    variances: np.ndarray
    y: np.ndarray

    def signal(self):
        return sum(oracle.kron(*pair) for pair in self.factors)

    def dense(self):
        """The matrix of the observed cells, and where they are."""
        cells = np.flatnonzero(np.isfinite(self.variances))
        noise = np.diag(self.variances.ravel()[cells])
        return self.signal()[np.ix_(cells, cells)] + noise, cells

    def operator(self):
        products = tuple(kx.Kronecker(*pair) for pair in self.factors)
        return kx.KroneckerPlusDiagonal(products, self.variances)


def draw_case(rng, grid=GRID, noise=None, share=None, spread=3.0, num_terms=2):
    """Terms of different kinds and scales; gaps and noise as in the tests of one term."""
    kinds = [(matern, matern), (rbf, matern), (periodic, rbf)][:num_terms]
    factors = []
    for pair in kinds:
        scales = np.exp(rng.uniform(-2.5, 0, 2))
        variance = np.exp(rng.uniform(-2, 1))
        first, second = (k(n, s) for k, n, s in zip(pair, grid, scales, strict=True))
        factors.append((variance * first, second))
    noise = 10 ** rng.uniform(-3, 0) if noise is None else noise
    share = rng.uniform(0, 0.7) if share is None else share
    variances = noise * np.exp(rng.uniform(0, spread, grid)) if spread else np.full(grid, noise)
    variances[rng.random(grid) < share] = np.inf
    variances[0, 0] = noise
    case = Case(tuple(factors), variances, np.zeros(grid))
    matrix, cells = case.dense()
    y = np.zeros(grid)
    y.ravel()[cells] = np.linalg.cholesky(matrix) @ rng.standard_normal(len(cells))
    return case._replace(y=y)


def dense_logpdf(case):
    matrix, cells = case.dense()
    y = case.y.ravel()[cells]
    quadratic = y @ np.linalg.solve(matrix, y)
    return -0.5 * (quadratic + np.linalg.slogdet(matrix)[1] + len(cells) * np.log(2 * np.pi))


def as_stack(cases, dtype):
    return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays), dtype), *cases)


@pytest.mark.parametrize(
    ("dtype", "count"),
    [("float64", 100), ("float32", 60), full("float64", 200), full("float32", 200)],
)
def test_log_densities_lie_within_their_error(dtype, count):
    rng = np.random.default_rng(0)
    cases = [draw_case(rng, num_terms=3) for _ in range(count)]
    truth = np.array([dense_logpdf(case) for case in cases])

    @jax.jit
    def run(stacked):
        one = lambda c: kx.iterative_logpdf(c.y, 0.0, c.operator(), iteration=QUICK)  # noqa: E731
        return jax.lax.map(one, stacked)

    estimate = run(as_stack(cases, dtype))
    assert estimate.value.dtype == dtype
    assert np.all(estimate.converged)
    value, error = (np.asarray(a, float) for a in (estimate.value, estimate.error))
    ratio = np.abs(value - truth) / error
    assert np.mean(ratio <= 1) >= 0.95
    # Nor is the error an empty promise: it is as small as a 99 % interval of what is seen.
    assert 0.1 < np.median(ratio) < 0.5
    assert np.median(error / np.abs(truth)) < 0.04


def dense_slopes(case, inverse_only=False):
    """`∂ log density / ∂A` as a matrix over the whole grid, and the weights."""
    matrix, cells = case.dense()
    inverse = np.linalg.inv(matrix)
    weights = inverse @ case.y.ravel()[cells]
    size = case.variances.size
    by_matrix, in_y = np.zeros((size, size)), np.zeros(size)
    by_matrix[np.ix_(cells, cells)] = 0.5 * (np.outer(weights, weights) - inverse)
    in_y[cells] = -weights
    return by_matrix, in_y.reshape(case.variances.shape)


@pytest.mark.parametrize(("share", "num_probes"), [full(0.0, 4096), full(0.3, 4096), (0.3, 1024)])
def test_gradients_are_unbiased(share, num_probes):
    """In random directions, within four of the standard errors that come with them."""
    spread = 3.0 if share else 0
    case = draw_case(np.random.default_rng(2), (5, 6), noise=0.05, share=share, spread=spread)
    observed = np.isfinite(case.variances)
    finite = np.where(observed, case.variances, 1)
    (first, others), *rest = case.factors
    rng = np.random.default_rng(3)
    in_first, in_noise, in_data = (rng.standard_normal((2, *s)) for s in ((5, 5), (5, 6), (5, 6)))
    in_first = in_first + in_first.transpose(0, 2, 1)
    in_noise[0, observed] = 0
    iteration = kx.Iteration(num_probes=num_probes, box_size=4)

    def density(p):
        pairs = ((first + jnp.tensordot(p[0], in_first, 1), others), *rest)
        op = kx.KroneckerPlusDiagonal(
            tuple(kx.Kronecker(*pair) for pair in pairs),
            finite + jnp.tensordot(p[1], in_noise, 1),
            observed=observed,
        )
        y = case.y + jnp.tensordot(p[2], in_data, 1)
        return kx.iterative_logpdf(y, 0.0, op, iteration=iteration)

    found = kx.gradient_estimate(density, (jnp.zeros(2),) * 3)
    by_matrix, in_y = dense_slopes(case)
    by_first = np.einsum("abcd,bd->ac", by_matrix.reshape(5, 6, 5, 6), others)
    by_noise = np.diagonal(by_matrix).reshape(5, 6)
    slopes = zip((by_first, by_noise, in_y), (in_first, in_noise, in_data), strict=True)
    truth = [np.sum(slope * directions, (1, 2)) for slope, directions in slopes]
    sizes = [np.linalg.norm(slope) for slope in (by_first, by_noise, in_y)]
    found_all = zip(found.value, found.standard_error, truth, sizes, strict=True)
    for value, error, exact, size in found_all:
        assert np.all(np.abs(value - exact) <= 4 * error + 1e-4 * size)
        assert np.all(error <= 0.1 * size * np.sqrt(4096 / num_probes))
    assert found.value[1][0] == 0


def test_a_box_makes_values_and_gradients_exact():
    """The gradient was off by 0.1 to 1 whatever the box held: probes said all of it."""
    case = draw_case(np.random.default_rng(19), (6, 7), noise=0.02, share=0.3, num_terms=3)
    finite = np.where(np.isfinite(case.variances), case.variances, 1)
    iteration = kx.Iteration(num_probes=4)

    @jax.jit
    @jax.value_and_grad
    def density(p):
        products = [s * kx.Kronecker(*pair) for s, pair in zip(p[:3], case.factors, strict=True)]
        op = kx.KroneckerPlusDiagonal(
            tuple(products), p[3] * finite, observed=np.isfinite(case.variances)
        )
        return kx.iterative_logpdf(p[4] * case.y, 0.0, op, iteration=iteration).value

    one = np.ones(5)
    value, slopes = density(one)
    np.testing.assert_allclose(value, dense_logpdf(case), rtol=1e-10)
    by_matrix, in_y = dense_slopes(case)
    moved = [oracle.kron(*pair) for pair in case.factors] + [np.diag(finite.ravel())]
    truth = [*(np.sum(by_matrix * m) for m in moved), np.sum(in_y * case.y)]
    np.testing.assert_allclose(slopes, truth, rtol=1e-6)
    steps = 1e-4 * np.eye(5)
    differences = [(density(one + s)[0] - density(one - s)[0]) / 2e-4 for s in steps]
    np.testing.assert_allclose(differences, slopes, rtol=1e-5)


def assert_close_to(actual, expected, share):
    assert np.abs(np.asarray(actual, float) - expected).max() <= share * np.abs(expected).max()


def test_few_probes_suffice_on_an_even_grid():
    case = draw_case(
        np.random.default_rng(3), (16, 18), noise=0.1, share=0.0, spread=0, num_terms=3
    )

    def value(scales):
        products = [s * kx.Kronecker(*pair) for s, pair in zip(scales, case.factors, strict=False)]
        op = kx.KroneckerPlusDiagonal(tuple(products), scales[-1] * 0.1)
        estimate = kx.iterative_logpdf(case.y, 0.0, op)
        return estimate.value, estimate

    (found, estimate), slopes = jax.jit(jax.value_and_grad(value, has_aux=True))(jnp.ones(4))
    assert abs(found - dense_logpdf(case)) <= estimate.error
    assert estimate.error < 0.2
    by_matrix, _ = dense_slopes(case)
    terms = [oracle.kron(*pair) for pair in case.factors] + [0.1 * np.eye(16 * 18)]
    np.testing.assert_allclose(slopes, [np.sum(by_matrix * t) for t in terms], atol=0.3)


def test_terms_that_commute_are_exact():
    grid, noise = (6, 7), 0.1
    rng = np.random.default_rng(4)
    bases = [np.linalg.qr(rng.standard_normal((n, n)))[0] for n in grid]
    products = [tuple(q * rng.uniform(0, 2, len(q)) @ q.T for q in bases) for _ in range(3)]
    dense = sum(oracle.kron(*pair) for pair in products) + noise * np.eye(42)
    op = kx.KroneckerPlusDiagonal(tuple(kx.Kronecker(*pair) for pair in products), noise)
    estimate = kx.iterative_logdet(op)
    np.testing.assert_allclose(estimate.value, np.linalg.slogdet(dense)[1], rtol=1e-9)
    assert estimate.error < 1e-6
    assert estimate.num_steps <= 2


def test_one_product_in_a_tuple_is_a_product():
    case = draw_case(np.random.default_rng(5))
    product = kx.Kronecker(*case.factors[0])
    for signal in (product, (product,), [product]):
        op = kx.KroneckerPlusDiagonal(signal, case.variances)
        assert isinstance(op.kronecker, kx.Kronecker)


def test_the_operator():
    case = draw_case(np.random.default_rng(6), (4, 5), share=0.3, num_terms=3)
    op = case.operator()
    matrix, cells = case.dense()
    whole = np.zeros((20, 20))
    whole[np.ix_(cells, cells)] = matrix
    assert_close(op.to_dense(), whole)
    assert_close((2.0 * op).to_dense(), 2 * whole)
    assert_close(op.diagonal().ravel(), np.diagonal(whole))
    x = np.random.default_rng(7).standard_normal((2, 4, 5))
    assert_close(op.mv(x).reshape(2, 20), x.reshape(2, 20) @ whole)
    draws = op.draw(jax.random.key(0), (40000,)).reshape(-1, 20)
    np.testing.assert_allclose(draws.T @ draws / 40000, whole, atol=0.05 * whole.max())
    with pytest.raises(TypeError, match="KroneckerPlusDiagonal as a tuple"):
        (
            kx.Kronecker(*case.factors[0])
            + kx.Kronecker(*case.factors[1])
            + 0.1
            + kx.Kronecker(*case.factors[2])
        )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_solves(dtype):
    case = draw_case(np.random.default_rng(8), noise=0.01, share=0.3)
    matrix, cells = case.dense()
    b = np.random.default_rng(9).standard_normal((2, *GRID))
    iteration = kx.Iteration(tolerance=1e-10 if dtype == "float64" else None)
    (cast,) = [jax.tree.map(lambda a: jnp.asarray(a, dtype), case)]
    estimate = kx.iterative_solve(cast.operator(), jnp.asarray(b, dtype), iteration=iteration)
    expected = np.zeros((2, 72))
    expected[:, cells] = np.linalg.solve(matrix, b.reshape(2, -1)[:, cells].T).T
    share = 1e-8 if dtype == "float64" else 1e-2
    assert_close_to(estimate.value.reshape(2, -1), expected, share)
    error = (np.asarray(estimate.value, float).reshape(2, -1) - expected)[:, cells]
    norms = [np.sqrt(np.sum(v @ matrix * v, -1)) for v in (error, expected[:, cells])]
    assert np.all(norms[0] / norms[1] <= max(float(estimate.error), 1e-11))


def test_solves_have_second_derivatives():
    case = draw_case(np.random.default_rng(10), (5, 6), noise=0.1, share=0.3)
    iteration = kx.Iteration(tolerance=1e-11)
    matrix, cells = case.dense()

    def quadratic(scale):
        products = [kx.Kronecker(*pair) for pair in case.factors]
        op = kx.KroneckerPlusDiagonal((scale * products[0], *products[1:]), case.variances)
        return jnp.sum(case.y * kx.iterative_solve(op, case.y, iteration=iteration).value)

    by_scale = oracle.kron(*case.factors[0])[np.ix_(cells, cells)]
    jet = oracle.Jet(matrix, by_scale[None], np.zeros((1, 1, *matrix.shape)))
    truth = oracle.inv_quad(jet, oracle.constant(case.y.ravel()[cells], 1))
    slope, bend = jax.jit(jax.value_and_grad(jax.grad(quadratic)))(1.0)
    assert_close(slope, truth.first[0], 1)
    assert_close(bend, truth.second[0, 0], 2)


def test_variances():
    case = draw_case(np.random.default_rng(11), noise=0.05, share=0.4)
    matrix, cells = case.dense()
    whole = case.signal()
    explained = np.einsum("ab,bc,ac->a", whole[:, cells], np.linalg.inv(matrix), whole[:, cells])
    posterior = (np.diagonal(whole) - explained).reshape(GRID)
    many = kx.Iteration(num_draws=256)
    drawn = kx.iterative_posterior_variances(case.operator(), iteration=many)
    assert np.mean(np.abs(drawn.value - posterior) <= drawn.error) >= 0.95
    # Plain draws have a relative standard error of √(2 / 256) = 0.09.
    assert np.median(drawn.standard_error / posterior) < 0.08
    own = oracle.kron(*case.factors[1])
    explained = np.einsum("ab,bc,ac->a", own[:, cells], np.linalg.inv(matrix), own[:, cells])
    posterior = (np.diagonal(own) - explained).reshape(GRID)
    drawn = posterior_estimate(case.operator(), iteration=many, term=1)
    assert np.mean(np.abs(drawn.value - posterior) <= drawn.error) >= 0.95
    # The covariance with one place of the first term, at chosen places.
    rows = [f[[1, 4]] for f in case.factors[0]]
    cross = np.stack([np.kron(a, b) for a, b in zip(*rows, strict=True)])[:, cells]
    exact = kx.iterative_inverse_at(case.operator(), tuple(map(jnp.asarray, rows)))
    truth = np.einsum("ab,bc,ac->a", cross, np.linalg.inv(matrix), cross)
    np.testing.assert_allclose(exact.value, truth, atol=float(exact.error) + 1e-12)


def test_steps_stay_few():
    grid = (40, 45)
    products = tuple(
        v * kx.Kronecker(kind(40, a), matern(45, b))
        for v, kind, a, b in [
            (1.0, rbf, 0.4, 0.5),
            (0.5, periodic, 0.2, 0.6),
            (0.3, matern, 0.05, 0.1),
        ]
    )
    variances = np.full(grid, 1e-2)
    even = kx.iterative_logdet(kx.KroneckerPlusDiagonal(products, variances))
    variances[np.random.default_rng(12).random(grid) < 0.1] = np.inf
    gaps = kx.iterative_logdet(kx.KroneckerPlusDiagonal(products, variances))
    assert even.num_steps <= 20
    assert gaps.num_steps <= 20


def test_rounding_is_the_same_in_any_units():
    case = draw_case(np.random.default_rng(14))

    @jax.jit
    def run(scales):
        def one(c):
            op = case.operator().scaled(c)
            return kx.iterative_logpdf(jnp.sqrt(c) * case.y, 0.0, op, iteration=QUICK)

        return jax.lax.map(one, scales)

    estimate = run(np.array([1e-4, 1.0, 1e4]))
    assert np.all(estimate.converged)
    np.testing.assert_allclose(estimate.rounding, estimate.rounding[1], rtol=0.3)


def test_the_basis_is_that_of_the_marginal_covariances():
    case = draw_case(np.random.default_rng(13), (5, 6), share=0.0, num_terms=3)
    held = terms_reference(case.operator().kronecker, case.operator().variances, QUICK)
    cube = case.signal().reshape(5, 6, 5, 6)
    marginals = np.einsum("abcb->ac", cube) / 6, np.einsum("abad->bd", cube) / 5
    for basis, marginal in zip(held.compared.bases, marginals, strict=True):
        w = np.asarray(basis.matrix())
        np.testing.assert_allclose(w * np.asarray(basis.values) @ w.T, marginal, atol=1e-9)
    # In the basis, whole in the box of 12 leading vectors and the diagonal beyond.
    whole = oracle.kron(*(np.asarray(b.matrix()) for b in held.compared.bases))
    turned = whole.T @ case.signal() @ whole
    place = np.ix_(*(np.asarray(chosen) for chosen in held.compared.box))
    inside = np.arange(30).reshape(5, 6)[place].ravel()
    values = np.diagonal(turned).reshape(5, 6).copy()
    values[place] = np.linalg.eigvalsh(turned[np.ix_(inside, inside)]).reshape(values[place].shape)
    assert_close(held.compared.spectrum, values)


def test_structured_factors():
    case = draw_case(np.random.default_rng(14), share=0.2, num_terms=3)
    (a, b), (c, d), (e, _) = case.factors
    products = (
        kx.Kronecker(kx.Toeplitz(a[0]), kx.Toeplitz(b[0])),
        kx.Kronecker(kx.Toeplitz(c[0]), d),
        kx.Kronecker(kx.Toeplitz(e[0]), kx.ScaledIdentity(1.0, 9)),
    )
    dense = case._replace(factors=((a, b), (c, d), (e, np.eye(9))))
    op = kx.KroneckerPlusDiagonal(products, case.variances)
    first, second = common_bases(op.kronecker)
    assert len(first.sizes) == 2  # the even and the odd half
    assert len(second.sizes) == 1
    estimate = kx.iterative_logpdf(case.y, 0.0, op, iteration=QUICK)
    assert abs(estimate.value - dense_logpdf(dense)) <= estimate.error


def test_maps():
    cases = [draw_case(np.random.default_rng(15 + k)) for k in range(3)]
    stacked = as_stack(cases, "float64")

    def value(scale, case):
        op = case.operator()
        return kx.iterative_logpdf(scale * case.y, 0.0, op, iteration=QUICK).value

    slope = jax.value_and_grad(value)
    together = jax.jit(jax.vmap(slope, in_axes=(None, 0)))(1.0, stacked)
    alone = jax.jit(lambda cases: jax.lax.map(lambda case: slope(1.0, case), cases))(stacked)
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_failure_is_never_silent():
    case = draw_case(np.random.default_rng(16), noise=1e-3, share=0.5)
    short = kx.Iteration(max_steps=2, box_size=1)
    op = case.operator()
    for call in (kx.iterative_logdet, kx.iterative_posterior_variances):
        with pytest.raises(kx.ConvergenceError, match="after 2 steps"):
            call(op, iteration=short)
    traced = jax.jit(lambda: kx.iterative_logdet(op, iteration=short))()
    assert np.isnan(traced.value)
    assert not traced.converged
    flag = kx.Iteration(max_steps=2, box_size=1, on_failure="flag")
    flagged = kx.iterative_logdet(op, iteration=flag)
    assert not flagged.converged
    assert np.isfinite(flagged.value)


def test_a_second_derivative_of_an_estimate_is_refused():
    case = draw_case(np.random.default_rng(17), (5, 6))

    def value(scale):
        op = case._replace(variances=scale * case.variances).operator()
        return kx.iterative_logpdf(case.y, 0.0, op).value

    with pytest.raises(kx.DerivativeOrderError):
        jax.eval_shape(jax.grad(jax.grad(value)), 1.0)

    def variances(scale):
        return kx.iterative_posterior_variances(scale * case.operator()).value.sum()

    with pytest.raises(kx.DerivativeOrderError, match="values only"):
        jax.eval_shape(jax.grad(variances), 1.0)


@pytest.mark.parametrize("num_terms", [1, 2])
def test_a_large_variance_is_as_good_as_a_gap(num_terms):
    """Where its square is beyond float32, and where its inverse is."""
    case = draw_case(np.random.default_rng(19), (5, 6), share=0.1, num_terms=num_terms)
    case.variances[2, 3], case.y[2, 3] = np.inf, 0
    truth = np.diagonal(dense_slopes(case)[0]).reshape(5, 6)
    signals = [[np.float32(f) for f in pair] for pair in case.factors]

    @jax.jit
    @jax.value_and_grad
    def density(variances):
        op = kx.KroneckerPlusDiagonal(tuple(kx.Kronecker(*pair) for pair in signals), variances)
        return kx.iterative_logpdf(np.float32(case.y), 0.0, op).value

    for large in (1e20, 1e30, 3e38):
        variances = case.variances.copy()
        variances[2, 3] = large
        value, slopes = density(np.float32(variances))
        known = (np.log(2 * np.pi) + np.log(large)) / 2
        np.testing.assert_allclose(value, dense_logpdf(case) - known, rtol=1e-4)
        assert_close_to(slopes, truth, 1e-3)


def test_traced_bad_variances_give_nan():
    case = draw_case(np.random.default_rng(18))
    value = jax.jit(lambda v: kx.iterative_logdet(case._replace(variances=v).operator()).value)
    assert np.isfinite(value(case.variances))
    assert np.isnan(value(np.where(case.variances == case.variances[0, 0], -1.0, case.variances)))


EYES = kx.Kronecker(np.eye(3), np.eye(2))
BAD = {
    "no term": (lambda: kx.KroneckerPlusDiagonal((), 1.0), ValueError, "a term or more; got none"),
    "grids": (
        lambda: kx.KroneckerPlusDiagonal((EYES, kx.Kronecker(np.eye(2), np.eye(3))), 1.0),
        ValueError,
        "over the same grid",
    ),
    "no product": (
        lambda: kx.KroneckerPlusDiagonal((EYES, EYES + 1.0), 1.0),
        TypeError,
        "Term 1 of the signal of KroneckerPlusDiagonal must be a Kronecker product",
    ),
    "asymmetric": (
        lambda: kx.KroneckerPlusDiagonal(
            (EYES, kx.Kronecker(np.triu(np.ones((3, 3))), np.eye(2))), 1.0
        ),
        ValueError,
        "symmetric",
    ),
    "batch": (
        lambda: kx.KroneckerPlusDiagonal(
            (EYES, kx.Kronecker(np.stack([np.eye(3)] * 2), np.eye(2))), 1.0
        ),
        ValueError,
        "no batch axes",
    ),
    "negative": (
        lambda: kx.KroneckerPlusDiagonal((EYES, EYES), -1.0),
        ValueError,
        "must be positive; got -1.0",
    ),
    "infinite y": (
        lambda: kx.iterative_logpdf(
            np.full((3, 2), np.inf), 0.0, kx.KroneckerPlusDiagonal((EYES, EYES), 1.0)
        ),
        ValueError,
        "y at the observed cells must be finite",
    ),
    "indefinite": (
        lambda: kx.iterative_logdet(
            kx.KroneckerPlusDiagonal(
                (EYES, kx.Kronecker(np.diag([1.0, 2.0, -9.0]), np.eye(2))), 0.5
            )
        ),
        np.linalg.LinAlgError,
        "factor 0 of the signal's term 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
