"""What is true, in NumPy and SciPy alone: likelihoods with their derivatives in closed form.

Every axis has one parameter `t`: the logarithm of a lengthscale, or a correlation. A kernel here
gives `K`, `dK/dt` and `d²K/dt²`. The parameters of a model are `(t_1, …, t_d, log σ²)`.
"""

from math import log, pi, sqrt

import numpy as np
from scipy.linalg import cholesky
from scipy.linalg.lapack import dpotri

Kernel = tuple[np.ndarray, np.ndarray, np.ndarray]


def rbf(x: np.ndarray, t: float) -> Kernel:
    """`exp(−s/2)` with `s = (r/ℓ)²`, `t = log ℓ`."""
    s = np.square((x[:, None] - x[None, :]) / np.exp(t))
    k = np.exp(-s / 2)
    return k, s * k, (s * s - 2 * s) * k


def matern32(x: np.ndarray, t: float) -> Kernel:
    """`(1 + s) exp(−s)` with `s = √3 r/ℓ`, `t = log ℓ`."""
    s = sqrt(3) * np.abs(x[:, None] - x[None, :]) / np.exp(t)
    decay = np.exp(-s)
    return (1 + s) * decay, s**2 * decay, (s**3 - 2 * s**2) * decay


def exchangeable(x: np.ndarray, t: float) -> Kernel:
    """`(1 − ρ) I + ρ 1 1ᵀ` with `t = ρ`; the identity at zero."""
    identity, ones = np.eye(len(x)), np.ones((len(x), len(x)))
    return (1 - t) * identity + t * ones, ones - identity, np.zeros_like(ones)


KERNELS = {"RBF": rbf, "Matérn-3/2": matern32, "exchangeable": exchangeable}


def draw(rng: np.random.Generator, factors: list[np.ndarray], noise: float) -> np.ndarray:
    """A sample of `N(0, ⊗ factors + noise)` as a grid array."""
    shape = tuple(len(k) for k in factors)
    y = rng.standard_normal(shape)
    for axis, k in enumerate(factors):
        values, vectors = np.linalg.eigh(k)
        root = vectors * np.sqrt(np.maximum(values, 0))
        y = _along(root, y, axis)
    return y + sqrt(noise) * rng.standard_normal(shape)


def kronecker_gradient(
    kernels: list[Kernel], log_noise: float, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Value and gradient in the eigenbasis: one decomposition per axis, none differentiated."""
    noise = np.exp(log_noise)
    values, vectors = zip(*(np.linalg.eigh(k) for k, _, _ in kernels), strict=True)
    d = _outer(values) + noise
    rotated = y
    for axis, q in enumerate(vectors):
        rotated = _along(q.T, rotated, axis)
    a = rotated / d
    value = -0.5 * (np.sum(rotated * a) + np.sum(np.log(d)) + y.size * log(2 * pi))
    gradient = []
    for axis, (_, slope, _) in enumerate(kernels):
        turned = vectors[axis].T @ slope @ vectors[axis]
        others = _outer(
            [np.ones_like(v) if i == axis else v for i, v in enumerate(values)],
        )
        fit = np.sum(a * _along(turned, others * a, axis))
        size = np.sum(_along(np.diag(np.diagonal(turned)), others / d, axis))
        gradient.append(0.5 * (fit - size))
    gradient.append(0.5 * noise * (np.sum(a * a) - np.sum(1 / d)))
    return float(value), np.array(gradient)


def dense_derivatives(
    kernels: list[Kernel], log_noise: float, y: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient and Hessian from the dense inverse `(N, N)` and traces of products with it.

    `∂_i L = ½ αᵀ S_i α − ½ tr(S⁻¹S_i)`, and `∂_i ∂_j L = ½ αᵀ S_ij α − αᵀ S_i S⁻¹ S_j α
    − ½ tr(S⁻¹S_ij) + ½ tr(S⁻¹S_i S⁻¹S_j)`. It holds at most `d + 4` arrays of `N²` numbers.
    """
    noise, num_axes = np.exp(log_noise), len(kernels)
    inverse, log_det = _dense_inverse([k for k, _, _ in kernels], noise)
    alpha = (inverse @ y.ravel()).reshape(y.shape)
    value = -0.5 * (np.sum(y * alpha) + log_det + y.size * log(2 * pi))

    def product(orders: dict[int, int], x: np.ndarray) -> np.ndarray:
        """The derivative of the covariance, of the given order per axis, times grids `x`."""
        for axis, kernel in enumerate(kernels):
            x = _along(kernel[orders.get(axis, 0)], x, axis - num_axes)
        return x

    def traced(orders: dict[int, int]) -> np.ndarray:
        """`S⁻¹` times that derivative, `(N, N)`."""
        rows = inverse.reshape(y.size, *y.shape)
        return product(orders, rows).reshape(inverse.shape)

    slopes = [traced({i: 1}) for i in range(num_axes)] + [noise * inverse]
    forces = [product({i: 1}, alpha) for i in range(num_axes)] + [noise * alpha]
    gradient = [
        0.5 * (np.sum(alpha * f) - np.trace(t)) for f, t in zip(forces, slopes, strict=True)
    ]
    hessian = np.empty((num_axes + 1, num_axes + 1))
    for i in range(num_axes + 1):
        for j in range(i + 1):
            response = (inverse @ forces[j].ravel()).reshape(y.shape)
            entry = -np.sum(forces[i] * response) + 0.5 * np.einsum(
                "ab,ba->", slopes[i], slopes[j], optimize=False
            )
            if i < num_axes:
                orders = {i: 2} if i == j else {i: 1, j: 1}
                entry += 0.5 * (np.sum(alpha * product(orders, alpha)) - np.trace(traced(orders)))
            elif i == j:
                entry += gradient[-1]
            hessian[i, j] = hessian[j, i] = entry
    return float(value), np.array(gradient), hessian


def _dense_inverse(factors: list[np.ndarray], noise: float) -> tuple[np.ndarray, float]:
    dense = factors[0]
    for k in factors[1:]:
        dense = np.kron(dense, k)
    dense = np.asfortranarray(dense)
    dense[np.diag_indices_from(dense)] += noise
    root = cholesky(dense, lower=True, overwrite_a=True, check_finite=False)
    log_det = 2 * float(np.sum(np.log(np.diagonal(root))))
    inverse, info = dpotri(root, lower=1, overwrite_c=1)
    if info:
        raise np.linalg.LinAlgError(f"the dense inverse failed with LAPACK code {info}")
    upper = np.triu_indices_from(inverse, 1)
    inverse[upper] = inverse.T[upper]
    return inverse, log_det


def _along(matrix: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def _outer(vectors) -> np.ndarray:
    result = np.ones(())
    for v in vectors:
        result = np.multiply.outer(result, v)
    return result
