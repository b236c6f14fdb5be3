"""Bad input: what is refused, by which exception, and that the message shows the bad values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import kronax as kx

KEY = jax.random.key(0)
EYE2, EYE3, EYE4 = np.eye(2), np.eye(3), np.eye(4)
K = kx.Kronecker(EYE4, EYE3)
NOISY = K + 0.1
TWO_TERMS = K + K
BATCHED = kx.Kronecker(np.stack([EYE2] * 3), EYE2)
RECTANGULAR = kx.Kronecker(EYE3, np.ones((4, 3)))
SINGLE = kx.Kronecker(EYE4.astype(np.float32), EYE3.astype(np.float32)) + 0.1
Y = np.ones((4, 3))
ASYMMETRIC = np.array([[1.0, 0.5], [0.0, 1.0]])
INDEFINITE = np.diag([1.0, -2.0])
SINGULAR = np.ones((2, 2))
LinAlgError = np.linalg.LinAlgError


class Slanted(kx.AbstractFactor):
    size: int = eqx.field(static=True, default=2)

    def mv(self, x):
        return x @ ASYMMETRIC.T

    def to_dense(self):
        return jnp.asarray(ASYMMETRIC)


def kronecker_of(second):
    return kx.Kronecker(second, EYE3)


# name: (call, exception, what the message must match)
FACTORS = {
    "no factor": (lambda: kx.Kronecker(), ValueError, r"at least one factor; got none"),
    "tuple": (lambda: kx.Kronecker((EYE3, EYE3)), TypeError, r"a tuple of 2.*Kronecker\(\*fac"),
    "list": (lambda: kx.Kronecker([EYE3]), TypeError, r"a list of 1.*Kronecker\(\*factors\)"),
    "vector": (lambda: kx.Kronecker(EYE2, np.ones(3)), ValueError, r"factor 1 .*shape \(3,\)"),
    "number": (lambda: kx.Kronecker(2.0), ValueError, r"factor 0 must be a matrix.*shape \(\)"),
    "empty": (lambda: kx.Kronecker(np.ones((0, 0))), ValueError, r"factor 0.*shape \(0, 0\)"),
    "integer": (lambda: kx.Kronecker(np.eye(2, dtype=int)), TypeError, r"factor 0.*int64.*astype"),
    "complex": (lambda: kx.Kronecker(EYE2 * 1j), TypeError, r"factor 0.*complex128.*real part"),
    "None": (lambda: kx.Kronecker(EYE2, None), TypeError, r"factor 1 .*got None"),
    "string": (lambda: kx.Kronecker("a"), TypeError, r"factor 0 .*got 'a'"),
    "NaN": (
        lambda: kx.Kronecker(EYE2, [[1.0, np.nan], [np.nan, 1.0]]),
        ValueError,
        r"factor 1 must be finite; got nan at index \(0, 1\) \(2 such entries\)",
    ),
    "infinite": (
        lambda: kx.Dense(np.diag([1.0, np.inf])),
        ValueError,
        r"got inf at index \(1, 1\) \(1 such entry\)",
    ),
    "sum inside": (
        lambda: kx.Kronecker(NOISY, EYE3),
        TypeError,
        r"factor 0 .*got KroneckerPlusNoise.*whole product",
    ),
    "batches": (
        lambda: kx.Kronecker(np.stack([EYE2] * 3), np.stack([EYE2] * 5)),
        ValueError,
        r"batch shapes of the Kronecker factors.*\(3,\), \(5,\)",
    ),
    "scalar diagonal": (lambda: kx.Diagonal(2.0), ValueError, r"shape \(\).*ScaledIdentity"),
    "NaN diagonal": (lambda: kx.Diagonal([1.0, np.nan]), ValueError, r"got nan at index \(1,\)"),
    "size of identity": (lambda: kx.ScaledIdentity(1.0, 2.5), TypeError, r"integer; got 2.5"),
    "no size": (lambda: kx.ScaledIdentity(1.0, 0), ValueError, r"at least 1; got 0"),
    "whole Toeplitz": (
        lambda: kx.Toeplitz([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]),
        ValueError,
        r"column of Toeplitz must be the first column alone.*\(3, 3\).*`matrix\[:, 0\]`",
    ),
    "batch of whole Toeplitz": (
        lambda: kx.Toeplitz(np.stack([EYE3, 2 * EYE3])),
        ValueError,
        r"whole matrix of shape \(2, 3, 3\)",
    ),
    "whole circulant": (
        lambda: kx.Circulant([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]),
        ValueError,
        r"column of Circulant must be the first column alone.*\(3, 3\)",
    ),
    "kernel for a column": (
        lambda: kx.Toeplitz(kx.RBF(1.0)),
        TypeError,
        r"got SquaredExponential\. .*first column, `kernel\(x, x\[:1\]\)\[:, 0\]`",
    ),
    "kernel for a matrix": (
        lambda: kx.Kronecker(kx.RBF(1.0), EYE3),
        TypeError,
        r"got SquaredExponential\. .*matrix `kernel\(x, x\)`",
    ),
    "upper entries": (
        lambda: kx.LowerTriangular(np.full((2, 2), 7.0)),
        ValueError,
        r"lower triangular; got 7 at index \(0, 1\).*jnp.tril",
    ),
    "rectangular triangle": (
        lambda: kx.LowerTriangular(np.ones((2, 3))),
        ValueError,
        r"square; got shape \(2, 3\)",
    ),
    "definite, asymmetric": (
        lambda: kx.Dense(ASYMMETRIC, positive_definite=True),
        ValueError,
        r"differ by 0.5",
    ),
    "definite, rectangular": (
        lambda: kx.Dense(np.ones((2, 3)), positive_definite=True),
        ValueError,
        r"shape \(2, 3\)",
    ),
}
SQUARE = {
    name: (call, ValueError, r"Kronecker factor 1 must be square.*shape \(4, 3\).*cross-covariance")
    for name, call in {
        "noise": lambda: RECTANGULAR + 0.1,
        "solve": lambda: kx.solve(RECTANGULAR, np.ones((3, 3))),
        "logdet": lambda: kx.logdet(RECTANGULAR),
        "inv_quad": lambda: kx.inv_quad(RECTANGULAR, np.ones((3, 3))),
        "inverse": lambda: kx.inverse(RECTANGULAR),
        "inverse_diagonal": lambda: kx.inverse_diagonal(RECTANGULAR),
        "normal_logpdf": lambda: kx.normal_logpdf(np.ones((3, 3)), 0.0, RECTANGULAR),
        "sample_normal": lambda: kx.sample_normal(KEY, RECTANGULAR),
        "decompose": lambda: kx.decompose(RECTANGULAR),
        "diagonal": lambda: RECTANGULAR.diagonal(),
    }.items()
}
SYMMETRIC = {
    name: (call, ValueError, r"factor 0 must be symmetric.*\(0, 1\) and \(1, 0\) differ by 0.5")
    for name, call in {
        "noise": lambda: kronecker_of(ASYMMETRIC) + 0.1,
        "as noise": lambda: kx.Kronecker(EYE2, EYE3) + kronecker_of(ASYMMETRIC),
        "normal_logpdf": lambda: kx.normal_logpdf(np.ones((2, 3)), 0.0, kronecker_of(ASYMMETRIC)),
        "sample_normal": lambda: kx.sample_normal(KEY, kronecker_of(ASYMMETRIC)),
        "of a user": lambda: kronecker_of(Slanted()) + 0.1,
    }.items()
} | {
    f"triangle, {name}": (call, TypeError, r"factor 0 .*covariance; got a LowerTriangular")
    for name, call in {
        "noise": lambda: kronecker_of(kx.LowerTriangular(EYE2)) + 0.1,
        "normal_logpdf": lambda: kx.normal_logpdf(
            np.ones((2, 3)), 0.0, kronecker_of(kx.LowerTriangular(EYE2))
        ),
        "sample_normal": lambda: kx.sample_normal(KEY, kronecker_of(kx.LowerTriangular(EYE2))),
    }.items()
}
WRONG_SHAPE = r"shape \(\*batch, 4, 3\) or \(\*batch, 12\); got shape "
COLUMNS = r".*trailing column axis.*op @ X.*kx.inverse\(op\) @ X"
VECTORS = {
    "other grid": (lambda: kx.solve(NOISY, np.ones((4, 4))), ValueError, WRONG_SHAPE + r"\(4, 4\)"),
    "number": (lambda: kx.solve(NOISY, 1.0), ValueError, WRONG_SHAPE + r"\(\)"),
    "too short": (lambda: NOISY.mv(np.ones(11)), ValueError, WRONG_SHAPE + r"\(11,\)"),
    "swapped axes": (
        lambda: kx.normal_logpdf(Y.T, 0.0, NOISY),
        ValueError,
        r"y must.*" + WRONG_SHAPE + r"\(3, 4\).*another order.*transpose y",
    ),
    "named dimensions": (
        lambda: kx.solve(NOISY, xr.DataArray(Y, dims=("a", "b"))),
        TypeError,
        r"b names its dimensions, \('a', 'b'\), and the axes here have no names",
    ),
    "swapped in solve": (lambda: kx.solve(K, Y.T), ValueError, r"\(3, 4\).*transpose b"),
    "columns": (
        lambda: kx.solve(NOISY, np.ones((12, 5))),
        ValueError,
        WRONG_SHAPE + r"\(12, 5\)" + COLUMNS,
    ),
    "grid columns": (
        lambda: kx.inv_quad(NOISY, np.ones((4, 3, 5))),
        ValueError,
        r"\(4, 3, 5\)" + COLUMNS,
    ),
    "one column": (lambda: K.mv(np.ones((12, 1))), ValueError, r"\(12, 1\)" + COLUMNS),
    "integers": (lambda: kx.solve(K, Y.astype(int)), TypeError, r"b must hold.*int64.*astype"),
    "complex": (lambda: kx.inv_quad(K, Y + 1j), TypeError, r"b must hold.*complex128"),
    "NaN": (
        lambda: kx.normal_logpdf(np.where(np.arange(12).reshape(4, 3) == 5, np.nan, Y), 0.0, NOISY),
        ValueError,
        r"y must be finite; got nan at index \(1, 2\)",
    ),
    "infinite": (lambda: K.mv(-np.inf * Y), ValueError, r"x must be finite; got -inf.*12 such"),
    "None": (lambda: kx.solve(K, None), TypeError, r"b must be an array.*got None"),
    "ragged": (lambda: kx.solve(K, [[1.0, 2.0], [1.0]]), TypeError, r"rectangular.*\[1.0\]\]"),
    "double data": (
        lambda: kx.solve(SINGLE, Y),
        TypeError,
        r"b must.*float64 with float32.*jax_enable_x64",
    ),
    "double y": (lambda: kx.normal_logpdf(Y, 0.0, SINGLE), TypeError, r"y must.*float64"),
    "double mean": (
        lambda: kx.normal_logpdf(np.float32(Y), Y, SINGLE),
        TypeError,
        r"mean must.*float64",
    ),
    "double columns": (lambda: SINGLE @ np.ones(12), TypeError, r"x must.*float64"),
    "batches": (
        lambda: kx.solve(BATCHED + 0.1, np.ones((5, 2, 2))),
        ValueError,
        r"\(3,\), \(5,\).*one",
    ),
    "batches of mv": (lambda: BATCHED.mv(np.ones((5, 2, 2))), ValueError, r"\(3,\), \(5,\)"),
    "batches of inv_quad": (
        lambda: kx.inv_quad(BATCHED, np.ones((5, 2, 2))),
        ValueError,
        r"\(3,\), \(5,\)",
    ),
    "mean": (lambda: kx.normal_logpdf(Y, np.ones(5), NOISY), ValueError, r"mean must.*\(5,\)"),
    "mean NaN": (lambda: kx.normal_logpdf(Y, np.nan, NOISY), ValueError, r"mean must.*got nan"),
    "mean integers": (lambda: kx.normal_logpdf(Y, np.ones(3, int), K), TypeError, r"mean.*int64"),
    "matmul of a grid": (lambda: K @ Y, ValueError, r"\(12,\) or.*got shape \(4, 3\).*op.mv"),
    "matmul of a number": (lambda: K @ 2.0, ValueError, r"\(12,\) or.*got shape \(\)"),
}
NOISE = {
    "negative": (lambda: K + -0.25, ValueError, r"not be negative; got -0.25.*variance σ²"),
    "negative array": (lambda: K + jnp.array(-0.25), ValueError, r"not be negative; got -0.25"),
    "negative in a batch": (
        lambda: BATCHED + np.array([0.1, -0.5, 0.2]),
        ValueError,
        r"not be negative; got -0.5",
    ),
    "NaN": (lambda: K + np.nan, ValueError, r"noise variance must be finite; got nan"),
    "infinite": (lambda: K + np.inf, ValueError, r"noise variance must be finite; got inf"),
    "matrix": (lambda: K + np.eye(12), ValueError, r"single number.*shape \(12, 12\).*Kronecker"),
    "matrix given": (
        lambda: kx.KroneckerPlusNoise(K, np.eye(12)),
        ValueError,
        r"single number.*\(12, 12\)",
    ),
    "grid": (lambda: kx.KroneckerPlusNoise(K, Y), ValueError, r"shape \(4, 3\).*kx.Diagonal"),
    "array": (lambda: K + np.ones(3), ValueError, r"shape \(3,\).*not elementwise"),
    "array first": (lambda: jnp.ones(3) + K, ValueError, r"shape \(3,\).*not elementwise"),
    "not the batch": (lambda: BATCHED + np.ones(5), ValueError, r"batch \(3,\); got shape \(5,\)"),
    "string": (lambda: K + "a", TypeError, r"noise variance.*got 'a'"),
    "None": (lambda: kx.KroneckerPlusNoise(K, None), TypeError, r"noise variance.*got None"),
    "bool": (lambda: K + True, TypeError, r"noise variance.*dtype bool"),
    "double": (
        lambda: kx.Kronecker(EYE2.astype(np.float32)) + jnp.array(0.1),
        TypeError,
        r"noise variance.*float64 with float32",
    ),
    "double product": (
        lambda: kx.Kronecker(EYE2.astype(np.float32)) + kx.Kronecker(EYE2),
        TypeError,
        r"The noise must.*float64 with float32",
    ),
    "other grid": (
        lambda: kx.KroneckerPlusNoise(K, kx.Kronecker(EYE3, EYE4)),
        ValueError,
        r"\(4, 3\) and \(3, 4\)",
    ),
    "sum of other grids": (lambda: K + kx.Kronecker(EYE3, EYE4), ValueError, r"\(4, 3\) and \(3"),
    "three terms": (lambda: NOISY + K, TypeError, r"two terms.*plus noise plus Kronecker\."),
    "three terms, reversed": (lambda: K + NOISY, TypeError, r"two terms.*plus Kronecker\."),
    "noise on a sum": (lambda: TWO_TERMS + 0.1, TypeError, r"Kronecker noise plus a number"),
    "two sums": (lambda: NOISY + NOISY, TypeError, r"plus noise plus KroneckerPlusNoise"),
}
ARITHMETIC = {
    "op * array": (lambda: K * np.ones(3), ValueError, r"single number; got shape \(3,\).*op.mv"),
    "array * op": (lambda: np.ones(3) * K, ValueError, r"single number; got shape \(3,\)"),
    "jax array * op": (lambda: jnp.ones(3) * K, ValueError, r"single number; got shape \(3,\)"),
    "op * op": (lambda: K * K, TypeError, r"product of two operators use `@`"),
    "op * string": (lambda: K * "a", TypeError, r"got 'a'"),
    "op @ op": (lambda: K @ kx.Kronecker(EYE3, EYE4), ValueError, r"\(4, 3\) and rows \(3, 4\)"),
    "negative multiple": (lambda: -2.0 * NOISY, ValueError, r"not be negative; got -0.2"),
    "array as operator": (lambda: kx.solve(EYE2, np.ones(2)), TypeError, r"got ndarray.*kx.Dense"),
    "array in logdet": (lambda: kx.logdet(EYE2), TypeError, r"kronax operator; got ndarray"),
    "inverse in solve": (lambda: kx.solve(kx.inverse(K), Y), TypeError, r"got Inverse"),
}
INDEFINITE_SIGNAL = r"factor 0 of the signal must be positive semidefinite.*-2 \(largest 2\)"
NOT_DEFINITE = r"factor 0 of the covariance must be positive (semi)?definite.*-2 \(largest 2\)"
NOT_INVERTIBLE = r"factor 0 must be invertible; got condition number (inf|[\d.]+e\+1[5-9])"
VALUES = {
    "indefinite signal": (
        lambda: kx.logdet(kronecker_of(INDEFINITE) + 0.1),
        LinAlgError,
        INDEFINITE_SIGNAL,
    ),
    "indefinite, solve": (
        lambda: kx.solve(kronecker_of(INDEFINITE) + 0.1, np.ones((2, 3))),
        LinAlgError,
        INDEFINITE_SIGNAL,
    ),
    "indefinite, inverse_diagonal": (
        lambda: kx.inverse_diagonal(kronecker_of(INDEFINITE) + 0.1),
        LinAlgError,
        INDEFINITE_SIGNAL,
    ),
    "indefinite, sample with noise": (
        lambda: kx.sample_normal(KEY, kronecker_of(INDEFINITE) + 0.1),
        LinAlgError,
        INDEFINITE_SIGNAL,
    ),
    "indefinite, decompose": (
        lambda: kx.decompose(kronecker_of(INDEFINITE) + 0.1),
        LinAlgError,
        INDEFINITE_SIGNAL,
    ),
    "indefinite noise": (
        lambda: kx.logdet(kx.Kronecker(EYE2, EYE3) + kronecker_of(INDEFINITE)),
        LinAlgError,
        r"factor 0 of the noise must be positive semidefinite.*-2",
    ),
    "indefinite density": (
        lambda: kx.normal_logpdf(np.ones((2, 3)), 0.0, kronecker_of(INDEFINITE)),
        LinAlgError,
        NOT_DEFINITE,
    ),
    "indefinite draw": (
        lambda: kx.sample_normal(KEY, kronecker_of(INDEFINITE)),
        LinAlgError,
        NOT_DEFINITE,
    ),
    "indefinite beside singular": (
        lambda: kx.sample_normal(KEY, kx.Kronecker(SINGULAR, INDEFINITE)),
        LinAlgError,
        r"factor 1 of the covariance must be positive semidefinite.*-2",
    ),
    "two negative factors": (
        lambda: kx.normal_logpdf(np.ones((2, 3)), 0.0, kx.Kronecker(-EYE2, -EYE3)),
        LinAlgError,
        r"factor 0 of the covariance.*-1 \(largest 1\)",
    ),
    "declared definite": (
        lambda: kx.solve(kx.Dense(INDEFINITE, positive_definite=True), np.ones(2)),
        LinAlgError,
        r"factor 0 must be positive definite.*-2 \(largest 2\)",
    ),
    "singular density": (
        lambda: kx.normal_logpdf(np.ones((2, 3)), 0.0, kronecker_of(SINGULAR)),
        LinAlgError,
        r"factor 0 of the covariance must be positive definite.*\(largest 2\)",
    ),
    "singular sum": (
        lambda: kx.logdet(kronecker_of(SINGULAR) + 0.0),
        LinAlgError,
        r"not above zero in float64",
    ),
    "singular, solve": (
        lambda: kx.solve(kronecker_of(SINGULAR), np.ones((2, 3))),
        LinAlgError,
        NOT_INVERTIBLE,
    ),
    "singular, logdet": (lambda: kx.logdet(kronecker_of(SINGULAR)), LinAlgError, NOT_INVERTIBLE),
    "singular triangle": (
        lambda: kx.solve(kx.LowerTriangular(np.diag([1.0, 0.0])), np.ones(2)),
        LinAlgError,
        NOT_INVERTIBLE,
    ),
    "singular diagonal": (
        lambda: kx.inv_quad(kx.Diagonal([1.0, 0.0]), np.ones(2)),
        LinAlgError,
        NOT_INVERTIBLE,
    ),
}
TABLE = {
    f"{group}: {name}": row
    for group, rows in {
        "factors": FACTORS,
        "square": SQUARE,
        "symmetric": SYMMETRIC,
        "vectors": VECTORS,
        "noise": NOISE,
        "arithmetic": ARITHMETIC,
        "values": VALUES,
    }.items()
    for name, row in rows.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused(name):
    call, exception, pattern = TABLE[name]
    with pytest.raises(exception, match=f"(?s){pattern}"):
        call()


def test_a_square_batch_of_columns_is_a_batch():
    constant = kx.Toeplitz(np.ones((3, 3)))
    columns = kx.Toeplitz([[2.0, 1.0], [3.0, 0.5]])
    assert (constant.shape, columns.shape) == ((3, 3, 3), (2, 2, 2))


TRACED = {
    "indefinite signal": lambda t: kx.logdet(kronecker_of(t * INDEFINITE) + 0.1),
    "indefinite, solve": lambda t: kx.solve(kronecker_of(t * INDEFINITE) + 0.1, np.ones((2, 3))),
    "indefinite density": lambda t: kx.normal_logpdf(
        np.ones((2, 3)), 0.0, kronecker_of(t * INDEFINITE)
    ),
    "indefinite diagonal": lambda t: kx.normal_logpdf(
        np.ones(2), 0.0, kx.Kronecker(kx.Diagonal(t * np.array([1.0, -1.0])))
    ),
    "two negative factors": lambda t: kx.normal_logpdf(
        np.ones((2, 3)), 0.0, kx.Kronecker(-t * EYE2, -t * EYE3)
    ),
    "indefinite draw": lambda t: kx.sample_normal(KEY, kronecker_of(t * INDEFINITE)),
    "negative noise": lambda t: kx.normal_logpdf(Y, 0.0, K + (-0.1 * t)),
    "negative noise, draw": lambda t: kx.sample_normal(KEY, K + (-0.1 * t)),
    "negative noise, inverse_diagonal": lambda t: kx.inverse_diagonal(K + (-0.1 * t)),
    "indefinite noise": lambda t: kx.logdet(
        kx.Kronecker(EYE2, EYE3) + kronecker_of(t * INDEFINITE)
    ),
    "NaN data": lambda t: kx.inv_quad(NOISY, Y * jnp.where(t > 0, jnp.nan, 1.0)),
    "singular, solve": lambda t: kx.solve(kx.Kronecker(t * SINGULAR), np.ones(2)),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_values_give_nan(name):
    """So that a sampler can reject the proposal."""
    assert np.all(np.isnan(jax.jit(TRACED[name])(1.0)))


def test_a_traced_asymmetric_triangle_is_not_read():
    solved = jax.jit(lambda m: kx.solve(kx.LowerTriangular(m), np.ones(2)))(np.ones((2, 2)))
    np.testing.assert_allclose(solved, [1.0, 0.0])


LARGE = 20_000
ON_LARGE_AXES = {
    "diagonal": (
        lambda: kx.logdet(kx.Kronecker(kx.Diagonal(-np.ones(LARGE))) + 0.5),
        "semidefinite",
    ),
    "circulant": (
        lambda: kx.sample_normal(
            jax.random.key(0), kx.Kronecker(kx.Circulant(np.r_[1, 2, np.zeros(LARGE - 3), 2]))
        ),
        r"smallest eigenvalue is -3 \(largest 5\)",
    ),
    "beside a thin factor": (
        lambda: kx.logdet(
            kx.Kronecker(kx.LowRank(np.ones((LARGE, 2))), np.array([[1.0, 2], [2, 1]])) + 0.1
        ),
        "factor 1 of the signal must be positive semidefinite",
    ),
    "singular": (
        lambda: kx.logdet(kx.Kronecker(kx.Diagonal(np.r_[0, np.ones(LARGE)]))),
        "must be invertible; got condition number inf",
    ),
}


@pytest.mark.parametrize("name", ON_LARGE_AXES)
def test_a_diagnosis_costs_no_more_than_the_decomposition(name):
    """A dense matrix of that size would take 3.2 GB."""
    call, match = ON_LARGE_AXES[name]
    with pytest.raises(np.linalg.LinAlgError, match=match):
        call()
