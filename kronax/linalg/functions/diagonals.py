"""Diagonals of inverses."""

from jaxtyping import Array, Float

from kronax.linalg.decompositions.abstract import AbstractDecomposition
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.functions.choice import solvable, watched
from kronax.linalg.operators.diagnose import explained


def inverse_diagonal(op: AbstractOperator) -> Float[Array, "..."]:
    """The diagonal of `op⁻¹`, grid-shaped; right to first order, raises beyond (with noise).

    `2 N Σ n_i` operations after the decomposition; a gradient takes `O(N Σ n_i²)`.

    Args:
        op: a kronax operator with square factors.

    Raises:
        ValueError: if a factor is not square, or the operator is singular or indefinite.
        DerivativeOrderError: if it is differentiated twice (with noise).

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.inverse_diagonal(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0).sum().item()
        3.0
    """
    op = solvable(op, "inverse_diagonal")
    value = watched(_inverse_diagonal, "The diagonal of the inverse may be wrong", op)
    return explained(value, op)


def _inverse_diagonal(found: AbstractDecomposition) -> Array:
    return found.inverse_diagonal()
