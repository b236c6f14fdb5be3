"""Log-determinants, quadratic forms and the Gaussian log density, right to second order."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.decompositions.abstract import AbstractDecomposition
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.functions.choice import Solvable, asked, solvable, watched
from kronax.linalg.operators.diagnose import explained
from kronax.linalg.operators.kronecker import Kronecker


def logdet(op: AbstractOperator) -> Float[Array, "*batch"]:
    """`log|det op|`.

    With noise: one `eigh` per dense factor. Without: LU or Cholesky of each factor.

    Args:
        op: a kronax operator with square factors.

    Raises:
        ValueError: if a factor is not square, or the operator is singular or indefinite (concrete
            values; traced ones give NaN).

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> round(kx.logdet(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0).item(), 4)
        4.1589
    """
    op = solvable(op, "logdet")
    value = watched(_logdet, "The log-determinant may be wrong", op)
    return explained(value, op)


def inv_quad(op: AbstractOperator, b: Float[ArrayLike, "..."]) -> Float[Array, "*batch"]:
    """`bᵀ op⁻¹ b`; with noise it takes half the products of a solve.

    Args:
        op: a kronax operator with square factors.
        b: `(*batch, n_1, …, n_d)` or `(*batch, N)`.

    Raises:
        ValueError: if `b` does not lie on the grid, a factor is not square, or the operator is
            singular or indefinite (concrete values; traced ones give NaN).
        TypeError: if `b` is not real, or of higher precision than the operator.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.inv_quad(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0, jnp.ones((3, 2))).item()
        3.0
    """
    op = solvable(op, "inv_quad")
    grid, _ = op.vector(b, "b")
    value = watched(_inv_quad, "The quadratic form may be wrong", op, grid)
    return explained(value, op)


def normal_logpdf(y: Float[ArrayLike, "..."], mean: Any, op: AbstractOperator) -> Array:
    """Log density of `N(mean, op)` at `y`, in nats.

    Value and gradient take one `eigh` per dense factor (with noise) or one Cholesky (without);
    the quadratic form and the log-determinant share them.

    Args:
        y: `(*batch, n_1, …, n_d)` or `(*batch, N)`.
        mean: a number, or an array that broadcasts to the grid, or a flat one.
        op: the covariance.

    Raises:
        ValueError: if `y` or `mean` does not lie on the grid, or `op` is no positive definite
            covariance (concrete values; traced ones give NaN).
        TypeError: if `y` is not real, or of higher precision than the operator.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0
        >>> round(kx.normal_logpdf(jnp.zeros((3, 2)), 0.0, op).item(), 4)
        -7.5931
    """
    op = solvable(op, "normal_logpdf")
    if isinstance(op, Kronecker):
        op.check_covariance("normal_logpdf")
    residual = jnp.subtract(*same_rank(op.vector(y, "y")[0], op.mean_vector(mean)))
    value = watched_logpdf(residual, op)
    return explained(value, op, covariance=True)


def watched_logpdf(residual: Array, op: Any) -> Array:
    """`normal_logpdf_grid` that warns where concrete values are too ill-conditioned for it."""
    return watched(_logpdf, "The log density may be wrong", op, residual, is_covariance=True)


def normal_logpdf_grid(residual: Array, op: Solvable) -> Array:
    """`normal_logpdf` for checked residuals in the grid layout."""
    return asked(_logpdf, op, residual)


def _logdet(found: AbstractDecomposition) -> Array:
    return found.logdet()


def _inv_quad(found: AbstractDecomposition, b: Array) -> Array:
    return found.inv_quad(b)


def _logpdf(found: AbstractDecomposition, residual: Array) -> Array:
    return found.logpdf(residual)
