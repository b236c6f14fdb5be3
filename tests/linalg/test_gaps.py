"""Operators with gaps equal the dense rows and columns, in values and derivatives."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import kronax as kx
from kronax.linalg.gaps import rules, schur, variances
from kronax.linalg.operators.gap_geometry import Fibres, Gaps, Mask
from kronax.linalg.spectral.conditional_variances import Places
from tests import oracle
from tests.cases import CASES, covariance, rbf
from tests.everyday import everyday, full
from tests.linalg.contracted import FUSED, QUICK, three_orders, two_orders, weights_of
from tests.linalg.gapped import (
    expected,
    first_order,
    mask_of,
    scattered,
    second_order,
)
from tests.tolerances import assert_close

GRID = (3, 2, 4)
ALL = slice(None)
MASKS = {
    "scattered": mask_of(GRID, [(0, 0, 1), (2, 0, 3), (2, 1, 0)]),
    "shared by the first axis": mask_of(GRID, [(ALL, 0, 1), (ALL, 1, 3), (ALL, 1, 0)]),
    "shared by the middle axis": mask_of(GRID, [(0, ALL, 1), (2, ALL, 3)]),
    "scattered and slabs": mask_of(GRID, [(1,), (..., 0), (0, 0, 1), (2, 1, 3)]),
    "slabs at the edges": mask_of(GRID, [(2,), (..., 0)]),
    "two left": mask_of(GRID, [(0,), (..., 0), (ALL, 0, 1), (ALL, 0, 2), (ALL, 1, 3), (ALL, 1, 1)]),
}


def compare(result, truth):
    """`truth` makes the orders of an output."""
    for output in result[0]:
        known = truth[output]()
        for order, values in enumerate(result):
            assert np.any(known[order]), "a derivative that vanishes tests nothing"
            assert_close(values[output], known[order], order)


def run_first_order(case, mask, method):
    names = ("normal_logpdf", "inverse_diagonal")
    result = first_order(
        case.layout, mask, method, names, case.leaves, weights_of(case), case.theta
    )
    compare(result, expected(case, mask))


jitted = partial(jax.jit, compiler_options=QUICK)
METHODS = ("gaps", "merged")
# Scattered gaps alone are in the tests of every kind of factor, slabs in those of structure.
MASKED = [
    ("shared by the first axis", "gaps"),
    ("shared by the middle axis", "merged"),
    ("scattered and slabs", "merged"),
]


@pytest.mark.parametrize(("name", "method"), everyday(product(MASKS, METHODS), MASKED))
def test_every_kind_of_mask(name, method):
    if not MASKS[name].gaps.count:
        method = "slabs"
    run_first_order(CASES["three axes"], MASKS[name], method)


GAPPED = (
    "exchangeable, rho = 0",
    "near-singular",
    "identity factor",
    "all diagonal",
    "one factor of each structure",
    "structured signal and noise",
    "low rank beside dense",
    "full Kronecker noise",
    "each axis another pair of kinds",
    "noise-free",
    "batched full noise",
    "batched with a noise of each",
)
# Dense factors are in the tests of masks, full noise in those of Hessians, thin ones below.
KINDS = (
    "one factor of each structure",
    "noise-free",
    "batched with a noise of each",
)


@pytest.mark.parametrize("name", everyday(GAPPED, KINDS))
def test_every_kind_of_factor(name):
    case = CASES[name]
    run_first_order(case, scattered(case.grid), "gaps")


@pytest.mark.parametrize("method", [full("gaps"), "merged"])
def test_the_parts_of_a_density(method):
    case = CASES["full Kronecker noise, three axes"]
    mask = MASKS["shared by the middle axis"]
    arguments = (case.leaves, weights_of(case), case.theta)
    names = ("logdet", "inv_quad")
    compare(first_order(case.layout, mask, method, names, *arguments), expected(case, mask))


@pytest.mark.parametrize("name", [full("Toeplitz, even and odd"), "low rank, batched noise"])
def test_every_kind_of_factor_merged(name):
    case = CASES[name]
    run_first_order(case, scattered(case.grid), "merged")


@pytest.mark.parametrize(
    ("name", "method", "modes"),
    [
        # Reverse over reverse is that of derivatives inside a scan, below.
        full("exchangeable, rho = 0", "gaps", "reverse over reverse"),
        ("full Kronecker noise", "gaps", "reverse over forward"),
        # Forward over reverse follows at the end.
        full("exchangeable, rho = 0", "gaps", "forward over reverse"),
        full("one factor of each structure", "gaps", "reverse over reverse"),
        full("batched with a noise of each", "gaps", "forward over reverse"),
        ("exchangeable, rho = 0", "merged", "forward over forward"),
    ],
)
def test_hessians(name, method, modes):
    case = CASES[name]
    mask = scattered(case.grid)
    result = second_order(
        case.layout, mask, method, FUSED, modes, case.leaves, weights_of(case), case.theta
    )
    compare(result, expected(case, mask))


def test_a_smooth_kernel_on_a_regular_grid():
    """Crowded eigenvalues, where derivatives of eigenvectors fail; against the dense formulas."""
    case = CASES["RBF 30 × 25"]
    observed = np.random.default_rng(5).random((30, 25)) < 0.95
    run_first_order(case, Mask.of(observed, (30, 25)), "gaps")


def dense_inverse(part):
    places = np.flatnonzero(part.observed.ravel())
    matrix = np.asarray(part.op.to_dense())
    inverse = np.zeros_like(matrix)
    inverse[np.ix_(places, places)] = np.linalg.inv(matrix[np.ix_(places, places)])
    return inverse


ELSEWHERE = ("scattered", "shared by the middle axis", "scattered and slabs")
EXPLAINED = [("scattered", "gaps"), ("shared by the middle axis", "merged")]


@pytest.mark.parametrize(("name", "method"), everyday(product(ELSEWHERE, METHODS), EXPLAINED))
def test_what_data_explain_elsewhere(name, method):
    case = CASES["three axes"]
    part = kx.Masked(case.operator, MASKS[name], method=method)
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(n + 1, n)) for n in GRID]
    whole = np.kron(np.kron(rows[0], rows[1]), rows[2])
    truth = np.diag(whole @ dense_inverse(part) @ whole.T).reshape([n + 1 for n in GRID])
    found = jitted(lambda rows: part.decomposed().explained(rows))(rows)
    assert_close(found, truth)


@pytest.mark.parametrize("method", ["gaps", full("merged")])
def test_derivative_of_what_data_explain_elsewhere(method):
    """In rows and factors at once, against the dense formula."""
    base = [covariance(n) for n in (4, 3)]
    rows = [np.random.default_rng(n).normal(size=(2, n)) for n in (4, 3)]
    mask = mask_of((4, 3), [(1, 1), (3, 0)])
    places = np.flatnonzero(mask.array.ravel())

    def operands(t):
        matrices = [k + t * np.cos(k) + t * np.eye(len(k)) for k in base]
        return matrices, [(1 + t) * r + t for r in rows]

    def ours(t):
        matrices, c = operands(t)
        part = kx.Masked(kx.Kronecker(*matrices) + (0.3 + t), mask, method=method)
        return part.decomposed().explained(c).ravel()

    def dense(t):
        (k1, k2), (c1, c2) = operands(t)
        matrix = np.kron(k1, k2) + (0.3 + t) * np.eye(12)
        c = np.kron(c1, c2)[:, places]
        return np.einsum("ij,jk,ik->i", c, np.linalg.inv(matrix[np.ix_(places, places)]), c)

    found, slope = jitted(partial(two_orders, jax.jacrev, ours))(0.0)
    truth = dense(1e-30j)  # analytic: its slope is the imaginary part, without differences
    assert_close(found, truth.real)
    assert_close(slope, truth.imag / 1e-30, 1)


@pytest.mark.parametrize("method", ["gaps", "merged"])
def test_scattered_places(method):
    """Cells of the grid as places: gaps among them, and one cell twice."""
    part = kx.Masked(CASES["three axes"].operator, MASKS["scattered"], method=method)
    index = np.random.default_rng(1).integers(0, GRID, size=(6, len(GRID))).T
    index[:, -1] = index[:, 0]
    matrices = [np.asarray(factor.to_dense()) for factor in part.factors]
    places = [Places(k[i], np.diag(k)[i]) for k, i in zip(matrices, index, strict=True)]
    priors = [k[np.ix_(i, i)] for k, i in zip(matrices, index, strict=True)]
    signal = np.asarray(part.op.kronecker.to_dense())[np.ravel_multi_index(index, GRID)]
    prior = signal[:, np.ravel_multi_index(index, GRID)]
    truth = prior - signal @ dense_inverse(part) @ signal.T
    assert_close(part.decomposed().covariance_at((places, priors)), truth)
    assert_close(part.decomposed().variance_at(places).value, np.diag(truth))


@pytest.mark.parametrize(
    ("case", "name", "method"),
    [
        full("three axes", "scattered", "gaps"),
        ("three axes", "shared by the middle axis", "merged"),
        ("full Kronecker noise, three axes", "scattered", "gaps"),
        full("three axes", "scattered and slabs", "gaps"),
    ],
)
def test_variance_of_the_signal(case, name, method):
    """At a gap it is that of an unobserved cell."""
    part = kx.Masked(CASES[case].operator, MASKS[name], method=method)
    signal = np.asarray(part.op.kronecker.to_dense())
    truth = np.diag(signal - signal @ dense_inverse(part) @ signal).reshape(GRID)
    assert_close(jitted(lambda: part.decomposed().posterior_diagonal())(), truth)


@pytest.mark.parametrize("method", ["gaps", full("merged")])
def test_operator(method):
    case = CASES["three axes"]
    part = kx.Masked(case.operator, MASKS["scattered and slabs"], method=method)
    cells = part.observed.ravel()
    matrix = np.where(cells[:, None] & cells, np.asarray(case.operator.to_dense()), 0)
    y = np.random.default_rng(0).normal(size=GRID)
    gapped = np.where(part.observed, y, np.nan)
    truth = dense_inverse(part) @ np.where(cells, y.ravel(), 0)

    @jitted
    def found(y, gapped):
        return (
            (part.to_dense(), matrix),
            (part.mv(y.ravel()), matrix @ y.ravel()),
            (part @ y.reshape(24, 1), matrix @ y.reshape(24, 1)),
            (part.diagonal().ravel(), np.diag(matrix)),
            ((2.0 * part).to_dense(), 2 * matrix),
            ((part + 0.5).to_dense(), matrix + 0.5 * np.diag(cells)),
            (kx.solve(part, gapped.ravel()), truth),
            ((kx.inverse(part) @ y.reshape(24, 1))[:, 0], truth),
        )

    for ours, theirs in found(y, gapped):
        assert_close(ours, np.asarray(theirs))
    assert part.T is part
    assert np.all(np.asarray(kx.solve(part, gapped))[~part.observed] == 0)


def test_draws():
    part = kx.Masked(CASES["two axes"].operator, mask_of((4, 3), [(1, 1), (3, 0)]))

    @jitted
    def found(part):
        return kx.sample_normal(jax.random.key(0), part, 20_000), part.to_dense()

    draws, truth = map(np.asarray, found(part))
    covariance = np.cov(draws.reshape(20_000, -1).T)
    assert np.abs(covariance - truth).max() < 0.05 * truth.max()  # five standard errors
    assert np.all(draws[:, ~part.observed] == 0)


@pytest.mark.parametrize("method", ["gaps", full("merged")])
def test_a_decomposed_operator_needs_no_decomposition(method):
    case = CASES["three axes"]
    mask = MASKS["shared by the first axis"]
    op, y, _ = case.inputs
    held = kx.decompose(kx.Masked(op, mask, method=method))
    value, slope = jitted(jax.value_and_grad(lambda k: kx.normal_logpdf(y, 0.0, k)))(held)
    cells = np.flatnonzero(mask.array)
    matrix, r = case.dense[0].value[np.ix_(cells, cells)], np.ravel(y)[cells]
    inverse = np.linalg.inv(matrix)
    log_det = np.linalg.slogdet(2 * np.pi * matrix)[1]
    assert_close(value, -0.5 * (r @ inverse @ r + log_det))
    assert_close(slope.op.noise, 0.5 * (np.sum((inverse @ r) ** 2) - np.trace(inverse)), 1)

    def everything(k):
        return kx.logdet(k), kx.inverse_diagonal(k), kx.solve(k, b=y)

    def written(function, part):
        """How often an eigensolver is called in the program as it is handed to XLA."""
        return jax.jit(function).lower(part).as_text().count("syevd")

    assert written(everything, held) == 0
    assert written(kx.logdet, kx.Masked(op, mask, method=method)) > 0


# --- transformations ---------------------------------------------------------------------------


def total(theta, y, mask):
    """A log density of two parameters and data."""
    x = jnp.arange(4.0)
    matrix = jnp.exp(-0.5 * jnp.square((x[:, None] - x[None]) / theta[0]))
    op = kx.Kronecker(matrix, kx.Toeplitz(jnp.exp(-jnp.arange(3.0)))) + theta[1]
    return kx.normal_logpdf(y, 0.0, kx.Masked(op, mask))


THETA = np.array([1.1, 0.2])
HOLES = mask_of((4, 3), [(1, 1), (3, 0), (0, 2)])
DATA = np.random.default_rng(3).normal(size=(5, 4, 3))


def test_batches_of_data_and_of_operators():
    single = jitted(jax.value_and_grad(partial(total, mask=HOLES)))
    alone, slopes = zip(*(single(THETA, y) for y in DATA), strict=True)
    thetas = THETA[None] * np.linspace(0.8, 1.2, 3)[:, None]

    @jitted
    def together(thetas, data):
        mapped = lambda t: jax.vmap(lambda y: total(t, y, HOLES))(data)  # noqa: E731
        slopes = jax.vmap(jax.grad(partial(total, mask=HOLES)))(thetas, data[:3])
        return total(THETA, data, HOLES), mapped(THETA), jax.jacrev(mapped)(THETA), slopes

    batched, mapped, mapped_slopes, with_operators = together(thetas, DATA)
    assert_close(batched, np.array(alone))
    assert_close(mapped, np.array(alone))
    assert_close(mapped_slopes, np.array(slopes), 1)
    for t, y, row in zip(thetas, DATA, with_operators, strict=False):
        assert_close(row, single(t, y)[1], 1)


def in_scan(f, theta):
    return lax.scan(lambda carry, t: (carry + f(t), None), 0.0, jnp.stack([theta, theta]))[0] / 2


def in_checkpoint(f, theta):
    return jax.checkpoint(f)(theta)


@pytest.mark.parametrize("wrapper", [in_scan, full(in_checkpoint)])
def test_derivatives_inside(wrapper):
    """Against the dense density; older versions of JAX lose rules inside loops."""
    places = np.flatnonzero(HOLES.array.ravel())

    x, (scale, noise) = np.arange(4.0), THETA
    lags = np.square(x[:, None] - x)
    first, second = np.exp(-0.5 * lags / scale**2), np.exp(-np.abs(x[:3, None] - x[:3]))
    slope = lags / scale**3
    bend = np.square(slope) - 3 * lags / scale**4
    in_scale, zero = [np.kron(first * d, second) for d in (slope, bend)], np.zeros((12, 12))
    matrix = oracle.Jet(
        np.kron(first, second) + noise * np.eye(12),
        np.stack([in_scale[0], np.eye(12)]),
        np.stack([[in_scale[1], zero], [zero, zero]]),
    )
    matrix = oracle.linear_map(lambda a: a[..., places, :][..., places], matrix)
    zeros = oracle.constant(np.zeros(len(places)), 2)
    y = oracle.constant(DATA[0].ravel()[places], 2)
    truth = oracle.normal_logpdf(y, zeros, matrix)

    ours = partial(wrapper, lambda t: total(t, DATA[0], HOLES))
    orders = jitted(partial(three_orders, "reverse over reverse", ours))(THETA)
    for order, (found, known) in enumerate(zip(orders, truth, strict=True)):
        assert_close(found, known, order)


def test_single_precision():
    """In float32 the values are as good as those without gaps."""
    mask = mask_of((30, 25), [(3, 4), (10, slice(5, 9)), (20, 20), (ALL, 24)])
    y = np.random.default_rng(0).normal(size=(30, 25))

    def value(scale):
        dtype = scale.dtype
        matrices = [rbf(n).astype(dtype) for n in (30, 25)]
        part = kx.Masked(scale * kx.Kronecker(*matrices) + jnp.asarray(0.1, dtype), mask)
        density = kx.normal_logpdf(y.astype(dtype), 0.0, part)
        assert density.dtype == dtype
        return density

    scale, cells = np.float32(1.3), np.flatnonzero(mask.array)
    single = jitted(jax.value_and_grad(value))(jnp.asarray(scale))
    signal = np.kron(rbf(30), rbf(25))[np.ix_(cells, cells)]
    matrix, r = float(scale) * signal + 0.1 * np.eye(len(cells)), y.ravel()[cells]
    inverse = np.linalg.inv(matrix)
    weights = inverse @ r
    log_det = np.linalg.slogdet(2 * np.pi * matrix)[1]
    slope = 0.5 * (weights @ signal @ weights - np.sum(inverse * signal))
    assert_close(single[0], -0.5 * (r @ weights + log_det), 0)
    assert_close(single[1], slope, 1)


# --- the plan ----------------------------------------------------------------------------------


def test_slabs_are_dropped():
    op = kx.Kronecker(*(kx.Toeplitz(np.exp(-np.arange(float(n)))) for n in (5, 6))) + 0.1
    plan = kx.Masked(op, mask_of((5, 6), [(0,), (ALL, 5), (ALL, 4)])).plan
    assert plan.method == "slabs"
    assert plan.dropped == (1, 2)
    assert (plan.num_observed, plan.num_missing, plan.num_gaps) == (16, 14, 0)
    assert "whole missing slab" in plan.reason
    assert kx.Masked(op, np.ones((5, 6), bool)).plan.method == "slabs"


def test_the_cheaper_method_is_chosen_and_its_reason_told():
    op = kx.Kronecker(covariance(30), covariance(20)) + 0.1
    few_gaps = kx.Masked(op, mask_of((30, 20), [(3, 4), (5, 6)])).plan
    few_left = np.zeros((30, 20), bool)
    few_left[np.arange(20), np.arange(20)] = True
    few_left = kx.Masked(op, few_left).plan
    assert (few_gaps.method, few_left.method) == ("gaps", "merged")
    assert "2 gaps and 598 observed cells; 'gaps' takes" in few_gaps.reason
    assert few_gaps.flops > 0
    assert few_gaps.memory > 8 * 600
    asked = kx.Masked(op, mask_of((30, 20), [(3, 4), (5, 6)]), method="merged").plan
    assert asked.method == "merged"
    assert "'merged' was asked for" in asked.reason
    assert asked.flops > few_gaps.flops


def test_gaps_that_repeat_along_axes_are_found():
    op = kx.Kronecker(*(covariance(n) for n in GRID)) + 0.1
    plan = kx.Masked(op, MASKS["shared by the middle axis"]).plan
    assert (plan.shared_axes, plan.num_gaps, plan.num_problems) == ((1,), 2, 2)
    assert "the same gaps along axis 1: 2 problems of 2 gaps and 10 observed" in plan.reason


@pytest.mark.parametrize("seed", range(5))
def test_fibres_hold_every_gap_once(seed):
    missing = np.random.default_rng(seed).random((6, 9)) < 0.3
    gaps = Gaps((6, 9), (), Mask(missing.shape, np.packbits(missing).tobytes()))
    for column, fibres in zip(gaps.places.T, gaps.fibres, strict=True):
        assert isinstance(fibres, Fibres)
        inside = fibres.table[fibres.table < gaps.count]
        assert sorted(inside) == list(range(gaps.count))
        assert np.array_equal(fibres.table.ravel()[fibres.slots], np.arange(gaps.count))
        for row, piece in zip(fibres.row_of_piece, fibres.table, strict=True):
            assert set(column[piece[piece < gaps.count]]) == {fibres.rows[row]}


def test_structure_survives_where_it_can():
    grid = (4, 6, 6, 3)
    factors = (
        kx.Toeplitz(np.exp(-np.arange(4.0))),
        kx.Circulant(np.exp(np.cos(np.pi / 3 * np.arange(6)))),
        kx.Toeplitz(np.exp(-np.arange(6.0))),
        kx.Diagonal(np.arange(1.0, 4)),
    )
    missing = [(0,), (ALL, slice(4, 6)), (ALL, ALL, slice(1, 6, 2)), (..., 1)]
    part = kx.Masked(kx.Kronecker(*factors) + 0.1, mask_of(grid, missing))
    inner = part.inner()
    kinds = [type(f) for f in inner.factors]
    assert kinds == [kx.Toeplitz, kx.Toeplitz, kx.Toeplitz, kx.Diagonal]
    cells = part.observed.ravel()
    whole, found = jitted(lambda: (part.op.to_dense(), inner.to_dense()))()
    assert_close(found, np.asarray(whole)[cells][:, cells])


# --- bad input ---------------------------------------------------------------------------------

OP = kx.Kronecker(np.eye(4), np.eye(3)) + 0.1
OK = np.ones((4, 3), bool)
BAD = {
    "all missing": (lambda: kx.Masked(OP, ~OK), ValueError, r"one cell.*a mask of 12 gaps"),
    "shape": (lambda: kx.Masked(OP, OK.T), ValueError, r"shape of the grid, \(4, 3\); got \(3, 4"),
    "batch": (lambda: kx.Masked(OP, OK[None]), ValueError, r"got \(1, 4, 3\).*whole batch"),
    "integers": (lambda: kx.Masked(OP, OK.astype(int)), TypeError, r"boolean.*got dtype int64"),
    "numbers": (lambda: kx.Masked(OP, np.ones((4, 3))), TypeError, r"boolean.*dtype float64"),
    "None": (lambda: kx.Masked(OP, None), TypeError, r"boolean.*got dtype"),
    "traced": (
        lambda: jax.jit(lambda m: kx.logdet(kx.Masked(OP, m)))(OK),
        TypeError,
        r"concrete values.*traced array. Close over it",
    ),
    "no operator": (lambda: kx.Masked(np.eye(12), OK), TypeError, r"kronax operator; got ndarray"),
    "method": (
        lambda: kx.Masked(OP, OK, method="dense"),
        ValueError,
        r"'auto', 'slabs' for this mask; got 'dense'",
    ),
    "sum": (lambda: kx.Masked(OP, OK) + OP, TypeError, r"got KroneckerPlusNoise.*kx.Masked\(a"),
    "NaN": (
        lambda: kx.solve(kx.Masked(OP, OK), np.full((4, 3), np.nan)),
        ValueError,
        r"b at the observed cells must be finite; got nan at index \(0, 0\)",
    ),
    "layout": (
        lambda: kx.normal_logpdf(np.ones((3, 4)), 0.0, kx.Masked(OP, OK)),
        ValueError,
        r"y must have shape \(\*batch, 4, 3\)",
    ),
    "no noise, singular": (
        lambda: kx.logdet(kx.Masked(kx.Kronecker(np.ones((4, 4)), np.eye(3)), scattered((4, 3)))),
        np.linalg.LinAlgError,
        r"must be positive definite.*Add noise",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, exception, match = BAD[name]
    with pytest.raises(exception, match=match):
        call()


def test_a_variance_per_cell_has_a_density_where_it_is_called_eagerly():
    variances = np.random.default_rng(3).uniform(0.1, 0.2, (5, 4))
    op = kx.KroneckerPlusDiagonal(kx.Kronecker(covariance(5), covariance(4)), variances)
    part = kx.Masked(op, scattered((5, 4)))
    cells = np.flatnonzero(part.observed)
    matrix = np.asarray(op.to_dense())[np.ix_(cells, cells)]
    y = np.random.default_rng(4).standard_normal((5, 4))
    r = y.ravel()[cells]
    expected = -0.5 * (r @ np.linalg.solve(matrix, r) + np.linalg.slogdet(2 * np.pi * matrix)[1])
    np.testing.assert_allclose(kx.normal_logpdf(y, 0.0, part), expected, rtol=1e-10)


# --- with constants of other sizes; last, since compiled programs are lost -----------------------


MERGED = [
    ("two axes", mask_of((4, 3), [(1, 1), (3, 0)])),
    full("three axes", mask_of(GRID, [(ALL, 0, 1), (ALL, 1, 3)])),
    full("full Kronecker noise, three axes", mask_of(GRID, [(ALL, 0, 1), (ALL, 1, 3)])),
]


@pytest.mark.parametrize(("name", "mask"), MERGED)
def test_orders_by_merging_where_the_gaps_are_many(name, mask, monkeypatch, uncompiled):
    """The other definition of the derivatives, taken where all columns would not fit."""
    monkeypatch.setattr(rules, "MOST_COLUMNS", 0)
    case = CASES[name]
    arguments = (case.leaves, weights_of(case), case.theta)
    truth = expected(case, mask)
    names, modes = ("normal_logpdf",), "forward over reverse"
    compare(second_order(case.layout, mask, "gaps", names, modes, *arguments), truth)
    compare(first_order(case.layout, mask, "gaps", ("inverse_diagonal",), *arguments), truth)


LOOPS = [
    ("two axes", mask_of((4, 3), [(0, 2), (1, 2), (1, 0), (3, 1)])),
    full("three axes", mask_of(GRID, [(0, 0, 2), (0, 1, 2), (1, 0, 1), (2, 0, 3), (2, 1, 3)])),
]


@pytest.mark.parametrize(("name", "mask"), LOOPS)
def test_loops_over_groups_and_halves(name, mask, monkeypatch, uncompiled):
    """What large problems do: one piece, row and column at a time, triangles by halves."""
    for module in (schur, variances, rules):
        monkeypatch.setattr(module, "CHUNK", 1)
    monkeypatch.setattr(schur, "INVERTED_SIZE", 1)
    case = CASES[name]
    assert all(len(fibres.table) > 1 for fibres in mask.gaps.fibres)
    arguments = (case.leaves, weights_of(case), case.theta)
    truth = expected(case, mask)
    names, modes = ("normal_logpdf",), "forward over reverse"
    compare(second_order(case.layout, mask, "gaps", names, modes, *arguments), truth)
    compare(first_order(case.layout, mask, "gaps", ("inverse_diagonal",), *arguments), truth)


def test_an_order_that_does_not_fit_raises(monkeypatch, uncompiled):
    monkeypatch.setattr(rules, "MOST_COLUMNS", 0)
    monkeypatch.setattr(rules, "MOST_MERGED", 3)
    part = kx.Masked(kx.Kronecker(covariance(5), covariance(4)) + 0.3, scattered((5, 4)))

    def density(scale):
        return kx.logdet(scale * part)

    assert np.isfinite(jitted(jax.grad(density))(1.0))
    with pytest.raises(kx.DerivativeOrderError, match="a matrix of 16 observed cells; at most 0"):
        jax.eval_shape(jax.hessian(density), 1.0)
