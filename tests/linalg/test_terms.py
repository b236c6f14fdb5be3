"""Sums of many products plus a variance per cell: densities, solves and variances, with errors."""

from functools import cache, partial
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
from tests.tolerances import assert_close, assert_within_error

GRID = (8, 9)
QUICK = kx.Iteration(box_size=12, on_failure="flag")
SHORT = kx.Iteration(max_steps=60)
MANY = kx.Iteration(num_draws=256, max_steps=20, on_failure="flag")


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


def cast(case, dtype):
    return jax.tree.map(lambda array: jnp.asarray(array, dtype), case)


@jax.jit
def log_density(case):
    return kx.iterative_logpdf(case.y, 0.0, case.operator(), iteration=QUICK)


class Moves(NamedTuple):
    """Directions in the first factor of the first term, in the noise and in the data."""

    first: np.ndarray
    noise: np.ndarray
    data: np.ndarray


def draw_moves(rng):
    first = rng.standard_normal((GRID[0], GRID[0]))
    return Moves(first + first.T, *rng.standard_normal((2, *GRID)))


@jax.jit
def quick_gradient(case, moves):
    """One program for all problems of three terms on the grid."""
    (first, others), *rest = case.factors
    observed = jnp.isfinite(case.variances)

    def density(p):
        pairs = ((first + p[0] * moves.first, others), *rest)
        variances = jnp.where(observed, case.variances, 1) + p[1] * moves.noise
        op = kx.KroneckerPlusDiagonal(
            tuple(kx.Kronecker(*pair) for pair in pairs), variances, observed=observed
        )
        y = case.y + p[2] * moves.data
        return kx.iterative_logpdf(y, 0.0, op, iteration=QUICK)

    return kx.gradient_estimate(density, jnp.zeros(3))


def dense_slopes(case):
    """`∂ log density / ∂A` as a matrix over the whole grid, and the weights."""
    matrix, cells = case.dense()
    inverse = np.linalg.inv(matrix)
    weights = inverse @ case.y.ravel()[cells]
    size = case.variances.size
    by_matrix, in_y = np.zeros((size, size)), np.zeros(size)
    by_matrix[np.ix_(cells, cells)] = 0.5 * (np.outer(weights, weights) - inverse)
    in_y[cells] = -weights
    return by_matrix, in_y.reshape(case.variances.shape)


def dense_gradient(case, moves):
    """The slopes along the directions, and the sizes of the gradients that these are parts of."""
    by_matrix, in_y = dense_slopes(case)
    by_first = np.einsum("abcd,bd->ac", by_matrix.reshape(*GRID, *GRID), case.factors[0][1])
    slopes = by_first, np.diagonal(by_matrix).reshape(GRID), in_y
    along = [np.sum(slope * move) for slope, move in zip(slopes, moves, strict=True)]
    return np.array(along), np.array([np.linalg.norm(slope) for slope in slopes])


@cache
def quick_results(count):
    """Cases, directions, and what is found of both."""
    rng = np.random.default_rng(0)
    cases = [draw_case(rng, num_terms=3) for _ in range(count)]
    moves = [draw_moves(rng) for _ in range(count)]
    found = [quick_gradient(*each) for each in zip(cases, moves, strict=True)]
    return cases, moves, jax.tree.map(lambda *arrays: np.stack(arrays), *found)


@pytest.mark.parametrize(
    ("dtype", "count"),
    # In float32 the exact densities below are everyday, and these of one product.
    [("float64", 60), full("float32", 60), full("float64", 200), full("float32", 200)],
)
def test_log_densities_lie_within_their_error(dtype, count):
    cases, _, found = quick_results(count)
    estimate = found.estimate
    if dtype == "float32":
        found = [log_density(cast(case, dtype)) for case in cases]
        estimate = jax.tree.map(lambda *arrays: np.stack(arrays), *found)
    truth = np.array([dense_logpdf(case) for case in cases])
    assert estimate.value.dtype == dtype
    assert_within_error(estimate, truth, 0.04)


@pytest.mark.parametrize("count", [60, full(200)])
def test_gradients_are_unbiased(count):
    """In random directions, in units of the errors that come with them."""
    cases, moves, found = quick_results(count)
    pairs = [dense_gradient(*each) for each in zip(cases, moves, strict=True)]
    truth, sizes = (np.array(each) for each in zip(*pairs, strict=True))
    off, spread = found.value - truth, found.standard_error[:, :2]
    # Those in the data need no probes.
    assert np.all(np.abs(off[:, 2]) <= 1e-4 * sizes[:, 2])
    off, sizes = off[:, :2], sizes[:, :2]
    assert np.all(np.mean(np.abs(off) <= found.error[:, :2], axis=0) >= 0.95)
    assert np.all(np.abs(np.mean(off / spread, axis=0)) <= 4 / np.sqrt(count))
    assert np.mean(spread <= 0.1 * sizes * np.sqrt(4096 / QUICK.num_probes)) >= 0.95


def test_a_signal_over_noise_of_1e8():
    rng = np.random.default_rng(16)
    known = 0
    for _ in range(4):
        case, moves = draw_case(rng, noise=1e-8, share=0.5, num_terms=3), draw_moves(rng)
        found = quick_gradient(case, moves)
        known += int(found.estimate.converged)
        if found.estimate.converged:
            assert abs(found.estimate.value - dense_logpdf(case)) <= found.estimate.error
            off = np.abs(found.value - dense_gradient(case, moves)[0])
            assert np.all((off <= found.error)[:2])
    assert known >= 3


def test_noise_where_nothing_is_observed_has_no_slope():
    case = draw_case(np.random.default_rng(2), noise=0.05, share=0.3, num_terms=3)
    moves = draw_moves(np.random.default_rng(3))
    moves = moves._replace(noise=np.where(np.isfinite(case.variances), 0, moves.noise))
    assert quick_gradient(case, moves).value[1] == 0


def test_a_box_makes_values_and_gradients_exact():
    """The gradient was off by 0.1 to 1 whatever the box held: probes said all of it.

    Mapped over problems of which one is even; three factors have a structure.
    """
    rng = np.random.default_rng(19)
    cases = [
        draw_case(rng, (6, 7), noise=0.02, share=0.3),
        draw_case(rng, (6, 7), noise=0.1, share=0.0, spread=0),
    ]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *cases)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def density(scales, case):
        def value(scales):
            *signal, noise, data = scales
            (a, b), (c, d) = case.factors
            terms = (kx.Toeplitz(a[0]), kx.Toeplitz(b[0])), (kx.Toeplitz(c[0]), d)
            products = tuple(s * kx.Kronecker(*pair) for s, pair in zip(signal, terms, strict=True))
            observed = jnp.isfinite(case.variances)
            variances = noise * jnp.where(observed, case.variances, 1)
            op = kx.KroneckerPlusDiagonal(products, variances, observed=observed)
            iteration = kx.Iteration(num_probes=4)
            return kx.iterative_logpdf(data * case.y, 0.0, op, iteration=iteration).value

        return jax.value_and_grad(value)(scales)

    def dense(case):
        by_matrix, in_y = dense_slopes(case)
        finite = np.where(np.isfinite(case.variances), case.variances, 1)
        moved = [oracle.kron(*pair) for pair in case.factors] + [np.diag(finite.ravel())]
        return [*(np.sum(by_matrix * m) for m in moved), np.sum(in_y * case.y)]

    one = np.ones(4)
    value, slopes = density(one, stacked)
    np.testing.assert_allclose(value, [dense_logpdf(case) for case in cases], rtol=1e-10)
    np.testing.assert_allclose(slopes, [dense(case) for case in cases], rtol=1e-6)
    differences = [
        np.subtract(density(one + s, stacked)[0], density(one - s, stacked)[0]) / 2e-4
        for s in 1e-4 * np.eye(4)
    ]
    np.testing.assert_allclose(np.transpose(differences), slopes, rtol=1e-5)


def assert_close_to(actual, expected, share):
    assert np.abs(np.asarray(actual, float) - expected).max() <= share * np.abs(expected).max()


def test_few_probes_suffice_on_an_even_grid():
    case = draw_case(np.random.default_rng(3), noise=0.1, share=0.0, spread=0, num_terms=3)
    scales = Moves(case.factors[0][0], case.variances, case.y)
    found = quick_gradient(case, scales)
    assert abs(found.estimate.value - dense_logpdf(case)) <= found.estimate.error
    assert found.estimate.error < 0.2
    np.testing.assert_allclose(found.value, dense_gradient(case, scales)[0], atol=0.3)


def test_terms_that_commute_are_exact():
    rng = np.random.default_rng(4)
    bases = [np.linalg.qr(rng.standard_normal((n, n)))[0] for n in GRID]
    products = tuple(tuple(q * rng.uniform(0, 2, len(q)) @ q.T for q in bases) for _ in range(3))
    case = Case(products, np.full(GRID, 0.1), rng.standard_normal(GRID))
    estimate = quick_gradient(case, draw_moves(rng)).estimate
    np.testing.assert_allclose(estimate.value, dense_logpdf(case), rtol=1e-9)
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
    x = np.random.default_rng(7).standard_normal((2, 4, 5))

    @jax.jit
    def found(op, x):
        draws = op.draw(jax.random.key(0), (40000,))
        return op.to_dense(), (2.0 * op).to_dense(), op.diagonal(), op.mv(x), draws

    dense, doubled, diagonal, product, draws = found(op, x)
    assert_close(dense, whole)
    assert_close(doubled, 2 * whole)
    assert_close(diagonal.ravel(), np.diagonal(whole))
    assert_close(product.reshape(2, 20), x.reshape(2, 20) @ whole)
    draws = np.asarray(draws).reshape(-1, 20)
    np.testing.assert_allclose(draws.T @ draws / 40000, whole, atol=0.05 * whole.max())
    with pytest.raises(TypeError, match="KroneckerPlusDiagonal as a tuple"):
        (
            kx.Kronecker(*case.factors[0])
            + kx.Kronecker(*case.factors[1])
            + 0.1
            + kx.Kronecker(*case.factors[2])
        )


@pytest.mark.parametrize("dtype", [full("float64"), "float32"])
def test_solves(dtype):
    case = draw_case(np.random.default_rng(8), noise=0.01, share=0.3)
    matrix, cells = case.dense()
    b = np.random.default_rng(9).standard_normal((2, *GRID))
    iteration = kx.Iteration(tolerance=1e-10) if dtype == "float64" else SHORT
    op = cast(case, dtype).operator()
    estimate = kx.iterative_solve(op, jnp.asarray(b, dtype), iteration=iteration)
    expected = np.zeros((2, 72))
    expected[:, cells] = np.linalg.solve(matrix, b.reshape(2, -1)[:, cells].T).T
    share = 1e-8 if dtype == "float64" else 1e-2
    assert_close_to(estimate.value.reshape(2, -1), expected, share)
    error = (np.asarray(estimate.value, float).reshape(2, -1) - expected)[:, cells]
    norms = [np.sqrt(np.sum(v @ matrix * v, -1)) for v in (error, expected[:, cells])]
    assert np.all(norms[0] / norms[1] <= max(float(estimate.error), 1e-11))


@pytest.mark.parametrize("order", [1, full(2)])
def test_solves_have_derivatives(order):
    """The second ones are everyday for one product: each is by another solve."""
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
    derivative = jax.grad(jax.grad(quadratic)) if order == 2 else jax.grad(quadratic)
    known = (truth.first[0], truth.second[0, 0])[order - 1]
    assert_close(jax.jit(derivative)(1.0), known, order)


@pytest.mark.parametrize("term", [None, full(1)])
def test_variances(term):
    case = draw_case(np.random.default_rng(11), noise=0.05, share=0.4)
    matrix, cells = case.dense()
    own = case.signal() if term is None else oracle.kron(*case.factors[term])
    explained = np.einsum("ab,bc,ac->a", own[:, cells], np.linalg.inv(matrix), own[:, cells])
    posterior = (np.diagonal(own) - explained).reshape(GRID)
    if term is None:
        drawn = kx.iterative_posterior_variances(case.operator(), iteration=MANY)
        # Plain draws have a relative standard error of √(2 / 256) = 0.09.
        assert np.median(drawn.standard_error / posterior) < 0.08
    else:
        drawn = posterior_estimate(case.operator(), iteration=MANY, term=term)
    assert drawn.converged
    assert np.mean(np.abs(drawn.value - posterior) <= drawn.error) >= 0.95


def test_a_covariance_at_chosen_places():
    """With one place of the first term."""
    case = draw_case(np.random.default_rng(11), noise=0.05, share=0.4)
    matrix, cells = case.dense()
    rows = [f[[1, 4]] for f in case.factors[0]]
    cross = np.stack([np.kron(a, b) for a, b in zip(*rows, strict=True)])[:, cells]
    exact = kx.iterative_inverse_at(case.operator(), tuple(map(jnp.asarray, rows)))
    truth = np.einsum("ab,bc,ac->a", cross, np.linalg.inv(matrix), cross)
    np.testing.assert_allclose(exact.value, truth, atol=float(exact.error) + 1e-12)


def test_steps_stay_few():
    grid = (20, 22)
    products = tuple(
        v * kx.Kronecker(kind(20, a), matern(22, b))
        for v, kind, a, b in [
            (1.0, rbf, 0.4, 0.5),
            (0.5, periodic, 0.2, 0.6),
            (0.3, matern, 0.05, 0.1),
        ]
    )
    variances = np.full((2, *grid), 1e-2)
    variances[1, np.random.default_rng(12).random(grid) < 0.1] = np.inf
    num_steps = jax.jit(
        lambda v: (
            kx.iterative_logdet(
                kx.KroneckerPlusDiagonal(products, v), iteration=kx.Iteration(box_size=220)
            ).num_steps
        )
    )
    for noise in variances:
        assert num_steps(noise) <= 20


def test_rounding_is_the_same_in_any_units():
    rng = np.random.default_rng(14)
    case, moves = draw_case(rng, num_terms=3), draw_moves(rng)

    def in_units(c):
        factors = tuple((c * first, second) for first, second in case.factors)
        scaled = Case(factors, c * case.variances, np.sqrt(c) * case.y)
        return quick_gradient(scaled, moves).estimate

    small, usual, large = (in_units(c) for c in (1e-4, 1.0, 1e4))
    assert small.converged
    assert large.converged
    np.testing.assert_allclose([small.rounding, large.rounding], usual.rounding, rtol=0.3)


def test_the_basis_is_that_of_the_marginal_covariances():
    case = draw_case(np.random.default_rng(13), (5, 6), share=0.0, num_terms=3)
    op = case.operator()

    @jax.jit
    def parts(op):
        held = terms_reference(op.kronecker, op.variances, QUICK)
        bases = [(basis.matrix(), basis.values) for basis in held.compared.bases]
        return bases, held.compared.box, held.compared.spectrum

    bases, box, spectrum = parts(op)
    cube = case.signal().reshape(5, 6, 5, 6)
    marginals = np.einsum("abcb->ac", cube) / 6, np.einsum("abad->bd", cube) / 5
    for (w, values), marginal in zip(bases, marginals, strict=True):
        np.testing.assert_allclose(w * values[None] @ w.T, marginal, atol=1e-9)
    # In the basis, whole in the box of 12 leading vectors and the diagonal beyond.
    whole = oracle.kron(*(np.asarray(w) for w, _ in bases))
    turned = whole.T @ case.signal() @ whole
    place = np.ix_(*(np.asarray(chosen) for chosen in box))
    inside = np.arange(30).reshape(5, 6)[place].ravel()
    values = np.diagonal(turned).reshape(5, 6).copy()
    values[place] = np.linalg.eigvalsh(turned[np.ix_(inside, inside)]).reshape(values[place].shape)
    assert_close(spectrum, values)


def test_structured_factors_keep_their_blocks():
    """Their densities are among those of a box that makes them exact."""
    case = draw_case(np.random.default_rng(14), share=0.2, num_terms=3)
    (a, b), (c, d), (e, _) = case.factors

    def bases():
        products = (
            kx.Kronecker(kx.Toeplitz(a[0]), kx.Toeplitz(b[0])),
            kx.Kronecker(kx.Toeplitz(c[0]), d),
            kx.Kronecker(kx.Toeplitz(e[0]), kx.ScaledIdentity(1.0, 9)),
        )
        return common_bases(kx.KroneckerPlusDiagonal(products, case.variances).kronecker)

    first, second = jax.eval_shape(bases)
    assert len(first.sizes) == 2  # the even and the odd half
    assert len(second.sizes) == 1


def test_failure_is_never_silent():
    hard = draw_case(np.random.default_rng(11), noise=1e-12, share=0.4)
    flagged = kx.iterative_posterior_variances(hard.operator(), iteration=MANY)
    assert not flagged.converged
    assert np.all(np.isfinite(flagged.value))
    hard = cast(draw_case(np.random.default_rng(11), noise=1e-5, share=0.4), "float32")
    with pytest.raises(kx.ConvergenceError, match="after 60 steps"):
        kx.iterative_solve(hard.operator(), jnp.stack([hard.y, hard.y]), iteration=SHORT)
    bad = hard._replace(factors=(hard.factors[0], (-hard.factors[1][0], hard.factors[1][1])))
    with pytest.raises(np.linalg.LinAlgError, match="factor 0 of the signal's term 1"):
        kx.iterative_solve(bad.operator(), jnp.stack([bad.y, bad.y]), iteration=SHORT)


@pytest.mark.parametrize("num_terms", [full(1), 2])
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
    case = draw_case(np.random.default_rng(18), num_terms=3)
    bad = np.where(case.variances == case.variances[0, 0], -1.0, case.variances)
    moves = draw_moves(np.random.default_rng(3))
    for variances, test in ((case.variances, np.isfinite), (bad, np.isnan)):
        found = quick_gradient(case._replace(variances=variances), moves)
        assert test(found.estimate.value)
        assert np.all(test(found.value))


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
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
