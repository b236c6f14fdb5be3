"""Solve with an operator, and its inverse as one."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kronax.linalg.decompositions.abstract import AbstractDecomposition
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.functions.choice import (
    DataCovariance,
    Solvable,
    asked,
    decomposition_of,
    solvable,
    watched,
)
from kronax.linalg.operators.diagnose import explained


def solve(op: AbstractOperator, b: Float[ArrayLike, "..."]) -> Array:
    """`op⁻¹ b`, exact.

    With noise: one `eigh` per dense factor and `4 N Σ n_i` operations. Without: LU of general
    square factors, Cholesky of those known to be positive definite, substitution for triangular
    ones. Differentiable to every order at any spectrum.

    Args:
        op: a kronax operator with square factors.
        b: `(*batch, n_1, …, n_d)` or `(*batch, N)`; the batch broadcasts against the operator's.

    Returns:
        The solution, in the layout of `b`.

    Raises:
        ValueError: if `b` does not lie on the grid, a factor is not square, or the operator is
            singular or indefinite (concrete values; traced ones give NaN).
        TypeError: if `b` is not real, or of higher precision than the operator.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.solve(2.0 * kx.Kronecker(jnp.eye(3), jnp.eye(2)), jnp.ones((3, 2))).sum().item()
        3.0
    """
    op = solvable(op, "solve")
    grid, flat = op.vector(b, "b")
    solution = explained(watched(_solve, "The solution may be wrong", op, grid), op)
    if not flat:
        return solution
    return solution.reshape(*solution.shape[: solution.ndim - len(op.grid_shape)], op.shape[-1])


def _solve(found: AbstractDecomposition, b: Array) -> Array:
    return found.solve(b)


def solve_grid(op: Solvable, b: Array) -> Array:
    """`solve` for a checked operator and vectors in the grid layout."""
    return asked(_solve, op, b)


def signal_weights(op: DataCovariance, b: Array) -> Array:
    """`op⁻¹ b` in the grid layout, to be multiplied by covariances of the signal."""
    found = decomposition_of(op)
    return found.settled(found.weights(b), "the posterior", is_marked=True).value


class Inverse(AbstractOperator):
    """`op⁻¹`, lazy: every product is a solve."""

    op: Solvable

    @property
    def factors(self) -> tuple:
        """Not available, as an inverse of a sum is no Kronecker product."""
        raise AttributeError("kx.inverse(op) has no factors; use kx.inverse(op).op.factors.")

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """That of the operator."""
        return self.op.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the operator."""
        return self.op.batch_shape

    @property
    def dtype(self) -> Any:
        """That of the operator."""
        return self.op.dtype

    @property
    def T(self) -> "Inverse":
        """The inverse of the transpose."""
        return Inverse(solvable(self.op.T, "an inverse"))

    def mv_grid(self, x: Array) -> Array:
        """Solve."""
        return solve(self.op, x)

    def diagonal(self) -> Array:
        """Use `kx.inverse_diagonal(op)`, which needs no inverse."""
        raise NotImplementedError("Use kx.inverse_diagonal(op) for the diagonal of the inverse.")

    def to_dense(self) -> Array:
        """The matrix: for tests and small grids only."""
        return self @ jnp.eye(self.shape[-1], dtype=self.dtype)

    def scaled(self, scalar: Array) -> "Inverse":
        """`scalar * op⁻¹`."""
        return Inverse(solvable((1 / scalar) * self.op, "an inverse"))


def inverse(op: AbstractOperator) -> Inverse:
    """`op⁻¹` as a lazy operator: `kx.inverse(op) @ X` solves for the columns of `X` `(N, k)`.

    Raises:
        ValueError: if a factor is not square.
        TypeError: if `op` is no kronax operator.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> (kx.inverse(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0) @ jnp.ones((6, 4))).shape
        (6, 4)
    """
    return Inverse(solvable(op, "an inverse"))
