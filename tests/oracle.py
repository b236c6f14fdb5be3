"""Dense answers from the definitions, by NumPy and SciPy; nothing of kronax or JAX is used.

A `Jet` is an array that depends on P parameters, with its exact first and second derivatives in
them. Sums, Kronecker products, solves and determinants of jets give gradient and Hessian oracles.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg


class Jet(NamedTuple):
    """`value` `(...)`, `first` `(P, ...)`, `second` `(P, P, ...)`."""

    value: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def __add__(self, other: "Jet") -> "Jet":
        return Jet(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: "Jet") -> "Jet":
        return self + -1.0 * other

    def __rmul__(self, scalar: float) -> "Jet":
        return Jet(*(scalar * a for a in self))


def constant(value, num_parameters: int) -> Jet:
    value = np.asarray(value)
    first = np.zeros((num_parameters, *value.shape))
    return Jet(value, first, np.zeros((num_parameters, *first.shape)))


def linear_map(function, jet: Jet) -> Jet:
    """A linear function that keeps leading axes."""
    return Jet(*(function(a) for a in jet))


def product(multiply, a: Jet, b: Jet) -> Jet:
    """Leibniz' rule for a bilinear function; both must have the same number of batch axes."""
    crossed = multiply(a.first[:, None], b.first[None, :])
    return Jet(
        multiply(a.value, b.value),
        multiply(a.first, b.value) + multiply(a.value, b.first),
        multiply(a.second, b.value)
        + multiply(a.value, b.second)
        + crossed
        + np.swapaxes(crossed, 0, 1),
    )


def kron(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Kronecker product of matrices, with broadcasting leading axes."""
    blocks = a[..., :, None, :, None] * b[..., None, :, None, :]
    rows, columns = a.shape[-2] * b.shape[-2], a.shape[-1] * b.shape[-1]
    return blocks.reshape(*blocks.shape[:-4], rows, columns)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=-1)


def _mv(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...j->...i", matrix, x)


def _solve(matrix: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One factorisation of a matrix for all leading axes of `b` that it has not."""
    num_leading = b.ndim - (matrix.ndim - 1)
    columns = np.moveaxis(b.reshape(-1, *b.shape[num_leading:]), 0, -1)
    x = np.moveaxis(np.linalg.solve(matrix, columns), -1, 0)
    return x.reshape(*b.shape[:num_leading], *x.shape[1:])


def solve(matrix: Jet, b: Jet) -> Jet:
    """`S x = b` differentiated as an equation: `S dx = db − dS x`, and once more."""
    s, ds, dds = matrix
    x = _solve(s, b.value)
    dx = _solve(s, b.first - _mv(ds, x))
    crossed = _mv(ds[:, None], dx[None, :])
    ddx = _solve(s, b.second - _mv(dds, x) - crossed - np.swapaxes(crossed, 0, 1))
    return Jet(x, dx, ddx)


def inv_quad(matrix: Jet, b: Jet) -> Jet:
    return product(dot, b, solve(matrix, b))


def logdet(matrix: Jet) -> Jet:
    """`d log|det S| = tr(S⁻¹ dS)` and `d(S⁻¹) = −S⁻¹ dS S⁻¹`."""
    s, ds, dds = matrix
    inverse = np.linalg.inv(s)
    relative = inverse @ ds
    transposed = np.swapaxes(relative, -1, -2)
    curvature = np.sum(relative[:, None] * transposed[None, :], axis=(-2, -1))
    return Jet(
        np.linalg.slogdet(s)[1],
        np.trace(relative, axis1=-2, axis2=-1),
        np.sum(inverse.swapaxes(-1, -2) * dds, axis=(-2, -1)) - curvature,
    )


def normal_logpdf(y: Jet, mean: Jet, matrix: Jet) -> Jet:
    size = matrix.value.shape[-1]
    log_density = -0.5 * (inv_quad(matrix, y - mean) + logdet(matrix))
    return log_density._replace(value=log_density.value - size / 2 * np.log(2 * np.pi))


def inverse_diagonal(matrix: Jet) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal of the inverse and its first derivative."""
    inverse = np.linalg.inv(matrix.value)
    slope = -np.einsum("...ij,k...jl,...li->k...i", inverse, matrix.first, inverse, optimize=True)
    return np.diagonal(inverse, axis1=-2, axis2=-1), slope


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    return np.real(scipy.linalg.sqrtm(matrix))
