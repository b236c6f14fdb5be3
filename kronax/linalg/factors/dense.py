"""A full matrix on one axis."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import apply_along
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.factorizations import AbstractFactorization


class Dense(AbstractFactor):
    """A full matrix on one axis; rectangular ones multiply only.

    Args:
        matrix: `(*batch, m, n)`.
        positive_definite: the matrix is known to be symmetric positive definite, so that
            noise-free `solve` and `logdet` use Cholesky (half the cost of LU), and give NaN if it
            is not.

    Raises:
        ValueError: if it is not a matrix, is empty, has NaN or infinite entries, or is declared
            positive definite and is not symmetric.
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Dense(jnp.eye(3)).shape
        (3, 3)
    """

    leaves_have_batch: ClassVar[bool] = True
    matrix: Float[Array, "*batch m n"]
    positive_definite: bool = eqx.field(static=True)

    def __init__(self, matrix: Any, positive_definite: bool = False):
        self.matrix = checks.matrix(matrix, "The matrix of Dense", square=positive_definite)
        self.positive_definite = positive_definite
        if positive_definite:
            checks.check_symmetric(self.matrix, "The matrix of a positive definite Dense")

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.matrix.shape[-1]

    @property
    def output_grid_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return (self.matrix.shape[-2],)

    @property
    def dtype(self) -> Any:
        """Floating-point type of the matrix."""
        return self.matrix.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the matrix."""
        return self.matrix.shape[:-2]

    @property
    def T(self) -> "Dense":
        """The transpose."""
        return Dense(jnp.swapaxes(self.matrix, -1, -2), self.positive_definite)

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`; `2 m` operations per entry."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`."""
        return apply_along(self.matrix, x, axis)

    def to_dense(self) -> Array:
        """The matrix."""
        return self.matrix

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype, copy=copy)

    def symmetrised(self) -> "Dense":
        """The symmetric part of a traced matrix, of which value and gradient are then those."""
        part = checks.symmetric(self.matrix)
        return self if part is self.matrix else Dense(part, self.positive_definite)

    def scaled(self, scalar: Array) -> "Dense":
        """`scalar * self`; a negative number is not known to keep the definiteness."""
        return Dense(scalar * self.matrix)

    def factorize(self, positive_definite: bool = False) -> AbstractFactorization:
        """Cholesky where the matrix is known to be positive definite, else LU."""
        return super().factorize(positive_definite or self.positive_definite)

    def root(self) -> SymmetricBlocks:
        """The Cholesky factor if the matrix is known to be positive definite."""
        if not self.positive_definite:
            return super().root()
        return self.blocks().map_blocks(lambda a, _: jnp.linalg.cholesky(a))
