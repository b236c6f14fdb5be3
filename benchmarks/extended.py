"""A second closed form of the likelihood's gradient, in 80-bit floating point.

For smooth kernels only: pivoted Cholesky finds the few directions that a kernel matrix has at that
precision, and everything happens in these; no eigendecomposition of the whole matrix is used, and
nothing of LAPACK. It confirms results on grids whose dense matrix does not fit.
"""

from math import pi
from typing import NamedTuple

import numpy as np

Extended = np.longdouble
SWEEPS = 30


class Spectrum(NamedTuple):
    """Eigenvectors `(n, r)` and eigenvalues of a kernel matrix, and its slope in `log ℓ`."""

    vectors: np.ndarray
    values: np.ndarray
    slope: np.ndarray


def rbf_spectrum(x: np.ndarray, t: float) -> Spectrum:
    """Of `exp(−r²/2ℓ²)` with `t = log ℓ`, to the precision of the numbers."""
    x = x.astype(Extended)
    s = np.square((x[:, None] - x) / np.exp(Extended(t)))
    matrix = np.exp(-s / 2)
    basis, triangle = _orthonormalised(_pivoted_cholesky(matrix))
    values, turn = _jacobi(triangle @ triangle.T)
    return Spectrum(basis @ turn, values, s * matrix)


def gradient(
    spectra: tuple[Spectrum, Spectrum], log_noise: float, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Value and gradient in `(log ℓ_1, log ℓ_2, log σ²)` on a grid of two axes."""
    (u, a, du), (v, b, dv) = spectra
    y, noise = y.astype(Extended), np.exp(Extended(log_noise))
    d = np.multiply.outer(a, b) + noise
    inside = u.T @ y @ v
    outside = y - u @ inside @ v.T
    outside = outside - u @ (u.T @ outside @ v) @ v.T
    num_outside = y.size - d.size
    alpha = u @ (inside / d) @ v.T + outside / noise
    value = np.sum(inside**2 / d) + np.sum(outside**2) / noise
    value += np.sum(np.log(d)) + num_outside * np.log(noise) + y.size * np.log(Extended(2 * pi))
    slopes = []
    for basis, slope, values, half, shares in (
        (u, du, b, alpha @ v, d),
        (v, dv, a, alpha.T @ u, d.T),
    ):
        fit = np.sum(half * (slope @ half) * values)
        turned = np.sum(basis * (slope @ basis), axis=0)
        rest = np.trace(slope) - np.sum(turned)
        size = np.sum(turned[:, None] * values / shares) + rest * np.sum(values) / noise
        slopes.append((fit - size) / 2)
    fit = np.sum((inside / d) ** 2) + np.sum(outside**2) / noise**2
    size = np.sum(1 / d) + num_outside / noise
    slopes.append(noise * (fit - size) / 2)
    return float(-value / 2), np.array(slopes, np.float64)


def _pivoted_cholesky(matrix: np.ndarray) -> np.ndarray:
    left = np.diagonal(matrix).copy()
    columns: list[np.ndarray] = []
    while left.max() > np.finfo(Extended).eps:
        place = int(left.argmax())
        column = matrix[:, place] - sum(c * c[place] for c in columns)
        columns.append(column / np.sqrt(left[place]))
        left = np.maximum(left - columns[-1] ** 2, 0)
        left[place] = 0
    return np.stack(columns, axis=1)


def _orthonormalised(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Q` and `R` by Gram–Schmidt, every projection twice."""
    count = columns.shape[1]
    basis, triangle = np.zeros_like(columns), np.zeros((count, count), Extended)
    for k in range(count):
        rest = columns[:, k].copy()
        for _ in range(2):
            share = basis[:, :k].T @ rest
            triangle[:k, k] += share
            rest -= basis[:, :k] @ share
        triangle[k, k] = np.sqrt(np.sum(rest**2))
        basis[:, k] = rest / triangle[k, k]
    return basis, triangle


def _jacobi(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors by Jacobi rotations."""
    matrix, vectors = matrix.copy(), np.eye(len(matrix), dtype=Extended)
    for _ in range(SWEEPS):
        for p in range(len(matrix)):
            for q in range(p + 1, len(matrix)):
                if matrix[p, q] == 0:
                    continue
                angle = np.arctan2(2 * matrix[p, q], matrix[q, q] - matrix[p, p]) / 2
                c, s = np.cos(angle), np.sin(angle)
                turn = np.array([[c, s], [-s, c]], Extended)
                pair = [p, q]
                matrix[:, pair] = matrix[:, pair] @ turn
                matrix[pair] = turn.T @ matrix[pair]
                vectors[:, pair] = vectors[:, pair] @ turn
        off = matrix - np.diag(np.diagonal(matrix))
        if np.abs(off).max() <= np.finfo(Extended).eps * np.abs(matrix).max():
            break
    return np.diagonal(matrix).copy(), vectors
