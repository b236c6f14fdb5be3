"""Factors of regular, periodic and symmetric axes.

Each is a fixed transform around smaller symmetric blocks: two halves for a matrix that is
symmetric about its middle, single numbers for one that goes round a circle.
"""

from math import sqrt
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fibres import on_fibres
from kronax.linalg.arrays.mode_products import along, apply_along
from kronax.linalg.arrays.transforms import EvenOdd, RealFourier
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import SymmetricBlocks

# From these sizes on a Toeplitz product by FFT beats one with two halves, for many and for few
# other cells; up to the last one a circulant product with the matrix beats the FFT. See the
# crossovers in docs/benchmarks.md.
FFT_SIZE = 1000
FFT_SIZE_FEW_CELLS = 400
FEW_CELLS = 64
DENSE_CIRCLE_SIZE = 64


class Toeplitz(AbstractFactor):
    """A symmetric matrix that is constant along its diagonals: a stationary kernel, regular axis.

    It splits into an even and an odd half: a quarter of the cost of a dense `eigh`, and rotations
    at half the cost. Products with long axes go by FFT.

    Args:
        column: the first column, `(*batch, n)`.

    Raises:
        ValueError: if it is a scalar, is empty, has NaN or infinite entries, or is a whole matrix.
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Toeplitz(jnp.array([2.0, 1.0, 0.0])).to_dense().tolist()
        [[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    column: Float[Array, "*batch n"]

    def __init__(self, column: Any):
        self.column = checks.column(column, "The column of Toeplitz")

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.column.shape[-1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the column."""
        return self.column.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the column."""
        return self.column.shape[:-1]

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`: by FFT, or by halves on short axes."""
        few = x.size <= FEW_CELLS * self.size
        if self.size < (FFT_SIZE_FEW_CELLS if few else FFT_SIZE):
            return self.blocks().apply(x, axis)
        return on_fibres(Toeplitz._by_fft, self, x, axis)

    def _by_fft(self, x: Array, axis: int) -> Array:
        """Embedded in a circulant matrix of twice the size or more, of a length that FFT likes."""
        length = _smooth_length(2 * self.size - 1)
        padding = jnp.zeros(length - 2 * self.size + 1, self.dtype)
        wrapped = jnp.concatenate([self.column, padding, self.column[:0:-1]])
        eigenvalues = along(jnp.fft.rfft(wrapped).real, axis, x.ndim)
        spectrum = jnp.fft.rfft(x, n=length, axis=axis)
        spectrum = spectrum * eigenvalues.astype(spectrum.dtype)
        product = jnp.fft.irfft(spectrum, n=length, axis=axis)
        return jnp.split(product, [self.size], axis)[0].astype(x.dtype)

    def to_dense(self) -> Array:
        """The matrix."""
        return _toeplitz_rows(self.column, self.size)

    def diagonal(self) -> Array:
        """The first entry, everywhere."""
        return jnp.broadcast_to(self.column[..., :1], self.column.shape)

    def scaled(self, scalar: Array) -> "Toeplitz":
        """`scalar * self`."""
        return Toeplitz(scalar * self.column)

    def blocks(self) -> SymmetricBlocks:
        """An even and an odd half."""
        return halves(_toeplitz_rows(self.column, (self.size + 1) // 2))


class Circulant(AbstractFactor):
    """A symmetric matrix whose rows go round a circle: a stationary kernel on a periodic axis.

    The Fourier basis diagonalises it: no decomposition, `O(n log n)` products.

    Args:
        column: the first column, `(*batch, n)`, with `column[k] = column[n - k]`.

    Raises:
        ValueError: if it is a scalar, is empty, has NaN or infinite entries, is a whole matrix, or
            is not symmetric about the circle (concrete values; of a traced one the first half is
            used).
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Circulant(jnp.array([2.0, 1.0, 1.0])).to_dense().tolist()
        [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    column: Float[Array, "*batch n"]

    def __init__(self, column: Any):
        self.column = checks.column(column, "The column of Circulant")
        checks.check_even(self.column, "The column of Circulant")

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.column.shape[-1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the column."""
        return self.column.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the column."""
        return self.column.shape[:-1]

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`: by FFT, or by the matrix of a short axis."""
        if self.size <= DENSE_CIRCLE_SIZE:
            return apply_along(self.to_dense(), x, axis)
        return self.blocks().apply(x, axis)

    def to_dense(self) -> Array:
        """The matrix."""
        return _toeplitz_rows(self._even_column(), self.size)

    def diagonal(self) -> Array:
        """The first entry, everywhere."""
        return jnp.broadcast_to(self.column[..., :1], self.column.shape)

    def scaled(self, scalar: Array) -> "Circulant":
        """`scalar * self`."""
        return Circulant(scalar * self.column)

    def blocks(self) -> SymmetricBlocks:
        """Its eigenvalues, in the real Fourier basis."""
        if self.size == 1:  # XLA on CPU refuses some Fourier transforms of length one
            return SymmetricBlocks((self.column,), (1,), (1,))
        values = jnp.fft.rfft(self._even_column(), axis=-1).real
        num_sines = (self.size - 1) // 2
        eigenvalues = jnp.concatenate([values, values[..., 1 : 1 + num_sines]], axis=-1)
        return SymmetricBlocks((eigenvalues,), (1,), (self.size,), RealFourier())

    def _even_column(self) -> Array:
        """The column with its second half mirrored from the first."""
        if self.size <= 2:
            return self.column
        half = self.size // 2 + 1
        rest = jnp.flip(self.column[..., 1 : self.size - half + 1], axis=-1)
        return jnp.concatenate([self.column[..., :half], rest], axis=-1)


class Centrosymmetric(AbstractFactor):
    """A symmetric matrix that is also symmetric about its middle: `K_ij = K_{n-1-i, n-1-j}`.

    So is any stationary kernel on an axis that is symmetric about its middle: every regular axis,
    Chebyshev and Gauss nodes. It splits into an even and an odd half.

    Args:
        matrix: `(*batch, n, n)`.

    Raises:
        ValueError: if it is not square, is empty, has NaN or infinite entries, or is not symmetric
            about both (concrete values; of a traced one the part that is is used).
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Centrosymmetric(jnp.array([[2.0, 1.0], [1.0, 2.0]])).trace().item()
        4.0
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    matrix: Float[Array, "*batch n n"]

    def __init__(self, matrix: Any):
        name = "The matrix of Centrosymmetric"
        self.matrix = checks.matrix(matrix, name, square=True)
        checks.check_symmetric(self.matrix, name)
        checks.check_centrosymmetric(self.matrix, name)
        matrix = checks.symmetric(self.matrix)
        if not checks.is_concrete(matrix):
            matrix = (matrix + matrix[..., ::-1, ::-1]) / 2
        self.matrix = matrix

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.matrix.shape[-1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the matrix."""
        return self.matrix.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the matrix."""
        return self.matrix.shape[:-2]

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`, by halves."""
        return self.blocks().apply(x, axis)

    def to_dense(self) -> Array:
        """The matrix, its lower half mirrored from the upper one."""
        upper = self.matrix[..., : (self.size + 1) // 2, :]
        lower = jnp.flip(upper[..., : self.size // 2, :], axis=(-2, -1))
        return jnp.concatenate([upper, lower], axis=-2)

    def scaled(self, scalar: Array) -> "Centrosymmetric":
        """`scalar * self`."""
        return Centrosymmetric(scalar * self.matrix)

    def blocks(self) -> SymmetricBlocks:
        """An even and an odd half."""
        return halves(self.matrix[..., : (self.size + 1) // 2, :])


def halves(upper: Float[Array, "*batch h n"]) -> SymmetricBlocks:
    """The even and odd blocks of a centrosymmetric matrix, from its upper `⌈n/2⌉` rows.

    With `K = [[A, BJ], [JB, JAJ]]` and `J` the reversal they are `A + B` and `A − B`; an odd size
    has a middle row, which joins the even block with weight √2.
    """
    size = upper.shape[-1]
    half = size // 2
    near = upper[..., :half, :half]
    far = jnp.flip(upper[..., :half, size - half :], axis=-1)
    even, odd = near + far, near - far
    if size % 2:
        middle = sqrt(2) * upper[..., :half, half, None]
        corner = upper[..., half, half, None, None]
        top = jnp.concatenate([even, middle], axis=-1)
        bottom = jnp.concatenate([jnp.swapaxes(middle, -1, -2), corner], axis=-1)
        even = jnp.concatenate([top, bottom], axis=-2)
    if half == 0:
        return SymmetricBlocks((even,), (2,), (1,), EvenOdd())
    return SymmetricBlocks((even, odd), (2, 2), (size - half, half), EvenOdd())


def _smooth_length(least: int) -> int:
    """The next `m · 2^k` with `m ≤ 16`: a length with a large prime takes FFT many times longer."""
    step = 1 << max(least.bit_length() - 4, 0)
    return -(-least // step) * step


def _toeplitz_rows(column: Float[Array, "*batch n"], rows: int) -> Float[Array, "*batch r n"]:
    """The first rows of a symmetric Toeplitz matrix, by copies and reshapes only.

    Copies of the diagonals `c_{n-1} … c_0 … c_{n-1}, 0` laid end to end and read in rows that are
    one shorter shift by one place per row; unlike a gather, this has a fast transpose.
    """
    n = column.shape[-1]
    lead = column.shape[:-1]
    zero = jnp.zeros((*lead, 1), column.dtype)
    diagonals = jnp.concatenate([jnp.flip(column[..., 1:], axis=-1), column, zero], axis=-1)
    copies = jnp.broadcast_to(diagonals[..., None, :], (*lead, rows, 2 * n))
    shifted = copies.reshape(*lead, rows * 2 * n)[..., : rows * (2 * n - 1)]
    return shifted.reshape(*lead, rows, 2 * n - 1)[..., n - 1 :]
