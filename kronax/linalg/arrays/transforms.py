"""Fixed orthonormal transforms along one axis, in which structured matrices fall into blocks.

They have no parameters, so a derivative passes them as a constant. Each takes a vector to its
coordinates (`forward`) and back (`backward`), without a matrix.
"""

import abc
import dataclasses
from math import prod, sqrt

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

# Up to this size a product with the Fourier matrix beats the FFT; see docs/benchmarks.md.
MATRIX_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Transform(abc.ABC):
    """An orthonormal transform along one axis."""

    @abc.abstractmethod
    def forward(self, x: Array, axis: int) -> Array:
        """Coordinates of `x` along `axis < 0`."""

    @abc.abstractmethod
    def backward(self, x: Array, axis: int) -> Array:
        """The vector with these coordinates: the transpose, and the inverse, of `forward`."""


@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """No transform."""

    def forward(self, x: Array, axis: int) -> Array:
        """`x`."""
        return x

    def backward(self, x: Array, axis: int) -> Array:
        """`x`."""
        return x


@dataclasses.dataclass(frozen=True)
class EvenOdd(Transform):
    """Even and odd parts about the middle: `(x_i ± x_{n-1-i}) / √2`.

    The even coordinates come first; with an odd size the middle entry is the last of them.
    """

    def forward(self, x: Array, axis: int) -> Array:
        """Even coordinates, then odd ones."""
        size = x.shape[axis]
        half = size // 2
        top, middle, bottom = _split(x, (half, size - half), axis)
        mirrored = jnp.flip(bottom, axis)
        scale = 1 / sqrt(2)
        parts = [scale * (top + mirrored), middle, scale * (top - mirrored)]
        return jnp.concatenate(parts, axis)

    def backward(self, x: Array, axis: int) -> Array:
        """Back to places."""
        size = x.shape[axis]
        half = size // 2
        even, middle, odd = _split(x, (half, size - half), axis)
        scale = 1 / sqrt(2)
        parts = [scale * (even + odd), middle, jnp.flip(scale * (even - odd), axis)]
        return jnp.concatenate(parts, axis)


@dataclasses.dataclass(frozen=True)
class RealFourier(Transform):
    """The orthonormal real Fourier basis: cosines, then sines, by frequency."""

    def forward(self, x: Array, axis: int) -> Array:
        """Real parts of the frequencies `0 … n/2`, then imaginary parts of those that have one."""
        size = x.shape[axis]
        if size <= MATRIX_SIZE:
            return _multiply(_fourier_matrix(size), x, axis)
        spectrum = jnp.fft.rfft(x, axis=axis, norm="ortho")
        num_sines = (size - 1) // 2
        edge, inner, top = _split(spectrum, (1, 1 + num_sines), axis)
        scaled = sqrt(2) * inner
        return jnp.concatenate([edge.real, scaled.real, top.real, -scaled.imag], axis)

    def backward(self, x: Array, axis: int) -> Array:
        """Back to places."""
        size = x.shape[axis]
        if size <= MATRIX_SIZE:
            return _multiply(_fourier_matrix(size).T, x, axis)
        num_sines, num_cosines = (size - 1) // 2, size // 2 + 1
        cosines, _, sines = _split(x, (num_cosines, num_cosines), axis)
        edge, inner, top = _split(cosines, (1, 1 + num_sines), axis)
        zero = jnp.zeros_like
        cosine = jnp.concatenate([edge, inner / sqrt(2), top], axis)
        sine = jnp.concatenate([zero(edge), -sines / sqrt(2), zero(top)], axis)
        spectrum = lax.complex(cosine, sine)
        return jnp.fft.irfft(spectrum, n=size, axis=axis, norm="ortho")


def _fourier_matrix(size: int) -> np.ndarray:
    """The rows of the real Fourier basis."""
    angles = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(size)) % size)
    num_cosines, num_sines = size // 2 + 1, (size - 1) // 2
    rows = [np.cos(angles[:num_cosines]), np.sin(angles[1 : 1 + num_sines])]
    matrix = np.concatenate(rows) * sqrt(2 / size)
    matrix[0] /= sqrt(2)
    if size % 2 == 0:
        matrix[size // 2] /= sqrt(2)
    return matrix


def _multiply(matrix: np.ndarray, x: Array, axis: int) -> Array:
    constant = jnp.asarray(matrix, x.dtype)
    if axis == -1:
        return jnp.matmul(x, constant.T, precision=lax.Precision.HIGHEST)
    stacked = x.reshape(prod(x.shape[:axis]), x.shape[axis], -1)
    product = jnp.matmul(constant, stacked, precision=lax.Precision.HIGHEST)
    return product.reshape(x.shape)


def _split(x: Array, at: tuple[int, int], axis: int) -> list[Array]:
    return jnp.split(x, list(at), axis)
