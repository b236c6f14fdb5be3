"""The covariance of a posterior as an operator: never a matrix of the new grid's size squared."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.functions.choice import DataCovariance
from kronax.linalg.functions.solve import signal_weights
from kronax.linalg.operators.kronecker import Kronecker


class PosteriorCovariance(AbstractOperator):
    """`K_** − K_* S⁻¹ K_*ᵀ` on a grid, plus noise: what `post.covariance(…)` returns.

    It multiplies vectors, `4 (N + M) Σ n_i` operations each, and knows its diagonal. It is no
    Kronecker product: for its inverse or log-determinant take `to_dense()` where that fits.
    `prior` and `cross` are sums, of one product for each component of the function.
    """

    prior: tuple[Kronecker, ...]
    cross: tuple[Kronecker, ...]
    operator: DataCovariance
    regressed: Array | None
    variances: Array
    noise: Array | None

    @property
    def factors(self) -> tuple[Any, ...]:
        """There are none.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A posterior covariance is no Kronecker product and has no factors. Multiply by it "
            "(op.mv, op @ x), take op.diagonal(), or op.to_dense() where that fits."
        )

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Shape of the grid of the prediction."""
        return self.prior[0].grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """None, as the covariance does not depend on the data."""
        return ()

    @property
    def dtype(self) -> Any:
        """Precision of the model."""
        return self.operator.dtype

    @property
    def T(self) -> "PosteriorCovariance":
        """Itself, being symmetric."""
        return self

    def mv_grid(self, x: Array) -> Array:
        """The prior's product, less what the data explain."""
        result: Any = sum(part.mv_grid(x) for part in self.prior)
        data: Any = sum(part.T.mv_grid(x) for part in self.cross)
        weights = signal_weights(self.operator, data)
        result = result - sum(part.mv_grid(weights) for part in self.cross)
        if self.regressed is not None:
            num, ndim = self.regressed.shape[0], len(self.grid_shape)
            root = self.regressed.reshape(num, -1)
            flat = matmul(matmul(x.reshape(*x.shape[: x.ndim - ndim], -1), root.T), root)
            result = result + flat.reshape(x.shape)
        return result if self.noise is None else result + jnp.multiply(*same_rank(self.noise, x))

    def diagonal(self) -> Array:
        """The variances."""
        if self.noise is None:
            return self.variances
        return jnp.add(*same_rank(self.variances, self.noise))

    def to_dense(self) -> Array:
        """The matrix, column by column: for small grids only."""
        size = self.shape[-1]

        def column(k: Array) -> Array:
            unit = jnp.zeros(size, self.dtype).at[k].set(1.0)
            return self.mv_grid(unit.reshape(self.grid_shape)).reshape(size)

        matrix = jax.lax.map(column, jnp.arange(size))
        return (matrix + matrix.T) / 2

    def scaled(self, scalar: Array) -> AbstractOperator:
        """Not defined.

        Raises:
            TypeError: always.
        """
        raise TypeError("A posterior covariance cannot be scaled: scale its products instead.")

    def __add__(self, other: Any) -> AbstractOperator:
        raise TypeError(
            "Nothing can be added to a posterior covariance: for new observations ask for "
            "post.covariance(include_noise=True)."
        )

    __radd__ = __add__
