"""Condition numbers of factors without noise, and the warnings that they lead to."""

import warnings

import numpy as np
import pytest

import kronax as kx
from kronax.linalg.functions.choice import decomposition_of
from tests.gp.dense import matern32, matern52

X = np.linspace(0, 1, 12)
SMOOTH = matern52(X, X, 0.4)
SCALES = 10.0 ** np.linspace(-4, 4, 12)
SKEW = np.tril(SMOOTH) - 0.4 * np.triu(SMOOTH)
PAIR = np.stack([np.eye(12), SMOOTH])
FACTORS = {
    "dense": (SMOOTH, SMOOTH),
    "positive definite": (kx.Dense(SMOOTH, positive_definite=True), SMOOTH),
    "of no symmetry": (SKEW, SKEW),
    "triangular": (kx.LowerTriangular(np.tril(SMOOTH)), np.tril(SMOOTH)),
    "upper triangular": (kx.LowerTriangular(np.tril(SMOOTH)).T, np.tril(SMOOTH).T),
    "regular": (kx.Toeplitz(SMOOTH[0]), SMOOTH),
    "a circle": (kx.Circulant(np.array([1.0, 0.4, 0.1, 0.4])), np.diag([1.9, 0.9, 0.3, 0.9])),
    "scaled and shifted": (
        2.0 * kx.Dense(SMOOTH) + kx.ScaledIdentity(0.1, 12),
        SMOOTH + 0.05 * PAIR[0],
    ),
    "a batch": (PAIR, SMOOTH),
    # Scales of rows and columns cost no digits.
    "units": (SCALES[:, None] * SMOOTH * SCALES, SMOOTH),
    "diagonal": (kx.Diagonal(SCALES), np.eye(2)),
}


@pytest.mark.parametrize("name", FACTORS)
def test_condition_numbers(name):
    factor, matrix = FACTORS[name]
    found = decomposition_of(kx.Kronecker(factor)).ends().ratio() / np.finfo(float).eps
    truth = np.linalg.cond(matrix)
    assert truth / 2.5 < found < 2.5 * truth


def near_singular(power):
    """Exact in single precision, as is its Cholesky factor nearly: of condition `2 ** power`."""
    entry = 1 - 2.0 ** (1 - power)
    return np.array([[1, entry], [entry, 1]], np.float32)


def calls(factor, order):
    op = kx.Kronecker(factor, np.eye(3, dtype=np.float32), factor)
    y = np.ones((2, 3, 2), np.float32)
    zero = np.float32(0)
    normal = {"loc": zero, "factors": op}
    return {
        "solve": lambda: kx.solve(op, y),
        "logdet": lambda: kx.logdet(op),
        "inv_quad": lambda: kx.inv_quad(kx.decompose(op), y),
        "inverse": lambda: kx.inverse(op) @ y.reshape(-1, 1),
        "inverse_diagonal": lambda: kx.inverse_diagonal(op),
        "density": lambda: kx.normal_logpdf(y, zero, op),
        "normal": lambda: kx.KroneckerNormal(**normal).log_prob(y),
        "student": lambda: kx.KroneckerStudentT(np.float32(4), **normal).log_prob(y),
    }[order]


@pytest.mark.parametrize(
    "order",
    [
        *("solve", "logdet", "inv_quad", "inverse", "inverse_diagonal"),
        *("density", "normal", "student"),
    ],
)
def test_products_without_noise_warn_where_a_factor_is_lost(order):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls(near_singular(16), order)()  # two of them: condition numbers do not multiply
    with pytest.warns(
        kx.PrecisionWarning, match="number of a factor is of order 1, .*x64"
    ) as found:
        calls(near_singular(24), order)()
    assert len(found) == 1
    assert found[0].filename == __file__


def test_errors_of_a_product_are_those_of_its_factors():
    """So a product of condition 1e9 is solved with in single precision, and nothing warns."""
    x = np.linspace(0, 1, 8)
    factors = [matern32(x, x, scale).astype(np.float32) for scale in (0.5, 0.7, 0.9)]
    wide = [factor.astype(float) for factor in factors]
    assert np.prod([np.linalg.cond(m) for m in wide]) > 1e8
    b = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    truth = np.einsum("ai,bj,ck,ijk->abc", *(np.linalg.inv(m) for m in wide), b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kx.solve(kx.Kronecker(*factors), b)
    error = np.abs(np.asarray(found) - truth).max() / np.abs(truth).max()
    assert error < np.finfo(np.float32).eps * sum(np.linalg.cond(m) for m in wide)
