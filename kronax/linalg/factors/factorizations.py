"""LU, Cholesky, triangular and diagonal factorisations of one factor, for noise-free operators.

A factorisation is held constant. `solve` carries its derivative by `custom_linear_solve` around
the operator's own product, and `log_abs_det` by the rule beside it: both right at every order.
"""

import abc
from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.fibres import on_fibres
from kronax.linalg.arrays.lapack_order import in_sequence, matrix_by_matrix
from kronax.linalg.arrays.mode_products import along, left_product, map_batch, matmul
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import RulePrimitive
from kronax.linalg.arrays.transforms import Transform
from kronax.linalg.factors.eigenbases import SymmetricBlocks, expand, split_blocks

# LAPACK's substitution runs on one core, products on all: larger triangles are cut in two. To
# invert the small triangles would be faster still, but the residual of an RBF matrix of condition
# 1e8 then grows by 1e4.
SUBSTITUTED_SIZE = 128


class AbstractFactorization(eqx.Module):
    """What solves with one factor along an axis."""

    @abc.abstractmethod
    def solve_columns(self, b: Array, transpose: bool) -> Array:
        """Solve for the columns of `b` `(n, k)`."""

    @property
    @abc.abstractmethod
    def event_ndims(self) -> "AbstractFactorization":
        """The number of axes of every leaf without its batch, as a matching pytree."""

    @property
    def needs_definite(self) -> bool:
        """Whether it gives NaN, and not a wrong density, where the matrix is indefinite."""
        return False

    def solve_along(self, b: Array, axis: int, transpose: bool = False) -> Array:
        """Solve along `axis < 0` of `b`."""
        front = jnp.moveaxis(b, axis, 0)
        solution = self.solve_columns(front.reshape(front.shape[0], -1), transpose)
        return jnp.moveaxis(solution.reshape(front.shape), 0, axis)

    def log_abs_det(self, matrix: Array) -> Array:
        """`log|det|` of the matrix that this factorises, with its derivative."""
        return map_batch(_log_abs_det, matrix.shape[:-2], (matrix, 2), (self, self.event_ndims))

    @abc.abstractmethod
    def log_abs_det_value(self) -> Array:
        """`log|det|` without a derivative."""


class LUFactorization(AbstractFactorization):
    """`P A = L U` of a general square matrix."""

    lu: Array
    permutation: Array

    @classmethod
    def of(cls, matrix: Array) -> "LUFactorization":
        """Factorise `(*batch, n, n)`; `2/3 n³` operations."""
        lu, _, permutation = lax.linalg.lu(matrix)
        return cls(lu, permutation)

    @property
    def event_ndims(self) -> "LUFactorization":
        """Number of axes without the batch."""
        return LUFactorization(2, 1)  # type: ignore[arg-type]

    def solve_columns(self, b: Array, transpose: bool) -> Array:
        """Two triangular solves and a permutation."""
        if transpose:
            x = _triangular(self.lu, b, lower=False, transpose=True)
            x = _triangular(self.lu, x, lower=True, transpose=True, unit=True)
            return x[jnp.argsort(self.permutation)]
        x = _triangular(self.lu, b[self.permutation], lower=True, unit=True)
        return _triangular(self.lu, x, lower=False)

    def log_abs_det_value(self) -> Array:
        """From the diagonal of `U`."""
        return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.lu))))


class CholeskyFactorization(AbstractFactorization):
    """`A = L Lᵀ` of a symmetric positive definite matrix; NaN if it is not."""

    root: Array

    @classmethod
    def of(cls, matrix: Array) -> "CholeskyFactorization":
        """Factorise `(*batch, n, n)`; `1/3 n³` operations."""
        return cls(jnp.linalg.cholesky(matrix))

    @property
    def event_ndims(self) -> "CholeskyFactorization":
        """Number of axes without the batch."""
        return CholeskyFactorization(2)  # type: ignore[arg-type]

    @property
    def needs_definite(self) -> bool:
        """Always."""
        return True

    def solve_columns(self, b: Array, transpose: bool) -> Array:
        """Two triangular solves."""
        x = _triangular(self.root, b, lower=True)
        return _triangular(self.root, x, lower=True, transpose=True)

    def log_abs_det_value(self) -> Array:
        """From the diagonal of `L`."""
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self.root)))


class TriangularFactorization(AbstractFactorization):
    """A triangular matrix is its own factorisation."""

    matrix: Array
    lower: bool = eqx.field(static=True)

    @property
    def event_ndims(self) -> "TriangularFactorization":
        """Number of axes without the batch."""
        return TriangularFactorization(2, self.lower)  # type: ignore[arg-type]

    def solve_columns(self, b: Array, transpose: bool) -> Array:
        """One triangular solve."""
        return _triangular(self.matrix, b, lower=self.lower, transpose=transpose)

    def log_abs_det_value(self) -> Array:
        """From the diagonal."""
        return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.matrix))))


class DiagonalFactorization(AbstractFactorization):
    """A diagonal matrix is its own factorisation."""

    values: Array

    @classmethod
    def of(cls, values: Array, positive_definite: bool) -> "DiagonalFactorization":
        """Held constant; NaN where a positive definite one is asked for and it is not."""
        values = lax.stop_gradient(values)
        return cls(where(values > 0, values, jnp.nan) if positive_definite else values)

    @property
    def event_ndims(self) -> "DiagonalFactorization":
        """Number of axes without the batch."""
        return DiagonalFactorization(1)  # type: ignore[arg-type]

    def solve_columns(self, b: Array, transpose: bool) -> Array:
        """Divide."""
        return b / self.values[:, None]

    def solve_along(self, b: Array, axis: int, transpose: bool = False) -> Array:
        """Divide along `axis < 0` of `b`."""
        return b / along(self.values, axis, b.ndim)

    def log_abs_det_value(self) -> Array:
        """Sum of the logarithms."""
        return jnp.sum(jnp.log(jnp.abs(self.values)))


class BlockFactorization(AbstractFactorization):
    """One factorisation per block of a matrix that a fixed transform takes to blocks."""

    pieces: tuple[AbstractFactorization, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)
    transform: Transform = eqx.field(static=True)

    @property
    def needs_definite(self) -> bool:
        """If every block does."""
        return all(p.needs_definite for p in self.pieces)

    @classmethod
    def of(cls, blocks: SymmetricBlocks, positive_definite: bool) -> "BlockFactorization":
        """Cholesky or LU of the full blocks; diagonal ones need nothing."""
        full = CholeskyFactorization if positive_definite else LUFactorization
        held = lax.stop_gradient(blocks)

        def one(item: tuple[Array, int, int]) -> AbstractFactorization:
            array, ndim, size = item
            if ndim == 2:
                return full.of(array)
            return DiagonalFactorization.of(expand(array, ndim, size), positive_definite)

        items = zip(held.arrays, held.ndims, held.sizes, strict=True)
        pieces = tuple(in_sequence(one, items, batched=bool(blocks.batch_shape)))
        return cls(pieces, blocks.sizes, blocks.transform)

    @property
    def event_ndims(self) -> "BlockFactorization":
        """Number of axes without the batch."""
        pieces = tuple(p.event_ndims for p in self.pieces)
        return BlockFactorization(pieces, self.sizes, self.transform)

    def solve_columns(self, b: Array, transpose: bool) -> Array:
        """Solve in the coordinates of the blocks."""
        return self.solve_along(b, -2, transpose)

    def solve_along(self, b: Array, axis: int, transpose: bool = False) -> Array:
        """Solve along `axis < 0` of `b`, block by block."""
        return on_fibres(BlockFactorization._solved, self, b, axis, transpose=transpose)

    def _solved(self, b: Array, axis: int, transpose: bool) -> Array:
        parts = split_blocks(self.transform.forward(b, axis), self.sizes, axis)
        solved = [
            piece.solve_along(part, axis, transpose)
            for piece, part in zip(self.pieces, parts, strict=True)
        ]
        joined = solved[0] if len(solved) == 1 else jnp.concatenate(solved, axis)
        return self.transform.backward(joined, axis)

    def log_abs_det_of(self, blocks: SymmetricBlocks) -> Array:
        """`log|det|` of the blocks that this factorises, right at every order."""
        total = jnp.zeros((), blocks.arrays[0].dtype)
        for a, ndim, size, piece in zip(
            blocks.arrays, blocks.ndims, blocks.sizes, self.pieces, strict=True
        ):
            if ndim == 2:
                total = total + piece.log_abs_det(a)
            else:
                total = total + jnp.sum(jnp.log(jnp.abs(expand(a, ndim, size))), axis=-1)
        return total

    def log_abs_det_value(self) -> Array:
        """Sum over the blocks."""
        return sum((p.log_abs_det_value() for p in self.pieces), jnp.zeros(()))


def _triangular(
    matrix: Array, b: Array, *, lower: bool, transpose: bool = False, unit: bool = False
) -> Array:
    """Substitution for the columns of `b`, by halves with a product between them."""
    size = matrix.shape[0]
    if size <= SUBSTITUTED_SIZE:
        substitute = partial(
            lax.linalg.triangular_solve,
            left_side=True,
            lower=lower,
            transpose_a=transpose,
            unit_diagonal=unit,
        )
        return matrix_by_matrix(substitute)(matrix, b)
    half = slice(None, size // 2), slice(size // 2, None)
    forward = lower != transpose
    first, second = half if forward else half[::-1]

    def solve(part, rest):
        return _triangular(matrix[part, part], rest, lower=lower, transpose=transpose, unit=unit)

    x = solve(first, b[first])
    off = matrix[first, second] if transpose else matrix[second, first]
    y = solve(second, b[second] - left_product(off, x, transpose=transpose))
    return jnp.concatenate([x, y] if forward else [y, x])


def inverse_matrix(matrix: Array, factorization: AbstractFactorization) -> Array:
    """`A⁻¹` `(n, n)` with its derivative at every order."""
    return lax.custom_linear_solve(
        lambda x: matmul(matrix, x),
        jnp.eye(matrix.shape[-1], dtype=matrix.dtype),
        solve=lambda _, b: factorization.solve_columns(b, False),
        transpose_solve=lambda _, b: factorization.solve_columns(b, True),
    )


def _log_abs_det_derivative(matrix, factorization, tangents):
    # d log|det A| = tr(A⁻¹ dA); the inverse is differentiable, so every further order follows.
    return jnp.sum(inverse_matrix(matrix, factorization).T * tangents[0])


_log_abs_det = RulePrimitive(
    "kronax_log_abs_det",
    lambda matrix, factorization: factorization.log_abs_det_value(),
    _log_abs_det_derivative,
)
