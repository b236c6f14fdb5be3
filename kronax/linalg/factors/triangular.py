"""A triangular matrix on one axis."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.host import numpy_of, on_host
from kronax.linalg.arrays.mode_products import apply_along
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.factorizations import AbstractFactorization, TriangularFactorization


class LowerTriangular(AbstractFactor):
    """A lower triangular matrix on one axis, such as a Cholesky factor.

    It is a general square factor: it multiplies and solves, and is no covariance. Entries above
    the diagonal are never read when they are traced.

    Args:
        matrix: `(*batch, n, n)`.

    Raises:
        ValueError: if it is not square, is empty, has NaN or infinite entries, or entries above
            the diagonal.
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> L = kx.LowerTriangular(jnp.array([[2.0, 0.0], [1.0, 3.0]]))
        >>> [round(v, 3) for v in kx.solve(L, jnp.array([2.0, 4.0])).tolist()]
        [1.0, 1.0]
    """

    leaves_have_batch: ClassVar[bool] = True
    matrix: Float[Array, "*batch n n"]
    lower: bool = eqx.field(static=True)

    def __init__(self, matrix: Any, *, lower: bool = True):
        name = "The matrix of LowerTriangular"
        self.matrix = checks.matrix(matrix, name, square=True)
        self.lower = lower
        checks.check_triangular(self.matrix, name, lower)

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

    @property
    def T(self) -> "LowerTriangular":
        """The transpose, an upper triangular factor."""
        return LowerTriangular(jnp.swapaxes(self.matrix, -1, -2), lower=not self.lower)

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`."""
        return apply_along(self.to_dense(), x, axis)

    def to_dense(self) -> Array:
        """The matrix."""
        return jnp.tril(self.matrix) if self.lower else jnp.triu(self.matrix)

    def diagonal(self) -> Array:
        """The diagonal, `(*batch, n)`."""
        return on_host(lambda m: numpy_of(m).diagonal(m, axis1=-2, axis2=-1), self.matrix)

    def scaled(self, scalar: Array) -> "LowerTriangular":
        """`scalar * self`."""
        return LowerTriangular(scalar * self.matrix, lower=self.lower)

    def check_covariance(self, name: str) -> None:
        """A triangular matrix is no covariance."""
        raise TypeError(
            f"{name} must be a covariance; got a LowerTriangular. Pass `scale_trils` to "
            "kx.KroneckerNormal, or the covariance kx.Dense(L @ L.T)."
        )

    def factorize(self, positive_definite: bool = False) -> AbstractFactorization:
        """The matrix itself: nothing to factorise."""
        return TriangularFactorization(jax.lax.stop_gradient(self.matrix), self.lower)

    def log_abs_det(self, factorization: AbstractFactorization) -> Array:
        """Sum of the logarithms of the diagonal."""
        diagonal = jnp.diagonal(self.matrix, axis1=-2, axis2=-1)
        return jnp.sum(jnp.log(jnp.abs(diagonal)), axis=-1)
