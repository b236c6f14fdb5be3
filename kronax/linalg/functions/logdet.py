"""Log-determinants, quadratic forms and the Gaussian log density, right to second order."""

from math import log, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator, AbstractSolvable
from kronax.linalg.functions.conditioning import watched
from kronax.linalg.functions.solve import solve_grid
from kronax.linalg.operators.diagnose import explain_not_finite
from kronax.linalg.operators.kronecker import Kronecker, as_kronecker, num_cells
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, with_noise
from kronax.linalg.spectral.low_rank import decomposition, is_thin, logdet_outside, reduced
from kronax.linalg.spectral.value_and_rules import TwoTermSum, Weights, log_det_and_quadratic


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
    if isinstance(op, AbstractSolvable):
        return op.logdet()
    op = with_noise(op)
    if isinstance(op, KroneckerPlusNoise):
        value = watched(_log_det, "The log-determinant may be wrong", op)
    else:
        op = as_kronecker(op)
        op.check_square("logdet")
        value = log_abs_det(op)
    explain_not_finite(value, op)
    return value


def inv_quad(op: AbstractOperator, b: Float[Array, "..."]) -> Float[Array, "*batch"]:
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
    if isinstance(op, AbstractSolvable):
        return op.inv_quad(b)
    op = with_noise(op)
    if not isinstance(op, KroneckerPlusNoise):
        op = as_kronecker(op)
        op.check_square("inv_quad")
    grid, _ = checks.grid_of(b, op.grid_shape, "b", op.dtype)
    if isinstance(op, KroneckerPlusNoise):
        value = watched(_quadratic, "The quadratic form may be wrong", op, grid)
    else:
        value = _inv_quad(op, grid)
    explain_not_finite(value, op)
    return value


def normal_logpdf(y: Float[Array, "..."], mean: Any, op: AbstractOperator) -> Array:
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
    if isinstance(op, AbstractSolvable):
        return op.normal_logpdf(y, mean)
    op = with_noise(op)
    if not isinstance(op, KroneckerPlusNoise):
        op = as_kronecker(op)
        op.check_covariance("normal_logpdf")
    grid, _ = checks.grid_of(y, op.grid_shape, "y", op.dtype)
    value = watched_logpdf(jnp.subtract(*same_rank(grid, mean_of(mean, op))), op)
    explain_not_finite(value, op, covariance=True)
    return value


def mean_of(mean: Any, op: AbstractOperator, name: str = "mean") -> Array:
    """`mean` as an array that broadcasts against vectors in the grid layout."""
    if isinstance(mean, int | float):
        mean = np.asarray(mean, op.dtype)
        checks.check_finite(mean, name)
        return jnp.asarray(mean)
    checks.check_precision(mean, name, op.dtype)
    array = checks.array_of_reals(mean, name).astype(op.dtype)
    checks.check_not_square(array.shape, op.grid_shape, name)
    trailing = array.shape[-len(op.grid_shape) :]
    fits = len(trailing) <= len(op.grid_shape) and all(
        m in (1, n) for m, n in zip(trailing[::-1], op.grid_shape[::-1], strict=False)
    )
    return array if fits else checks.grid_of(array, op.grid_shape, name, op.dtype)[0]


def watched_logpdf(residual: Array, op: Any) -> Array:
    """`normal_logpdf_grid` that warns where concrete values are too ill-conditioned for it."""
    return watched(_logpdf, "The log density may be wrong", op, residual)


def _logpdf(op: Any, residual: Array) -> Array:
    return normal_logpdf_grid(residual, op)


@jax.jit
def normal_logpdf_grid(
    residual: Array, op: Kronecker | KroneckerPlusNoise | AbstractSolvable
) -> Array:
    """`normal_logpdf` for checked residuals in the grid layout."""
    if isinstance(op, AbstractSolvable):
        return op.logpdf_grid(residual)
    constant = num_cells(op) * log(2 * pi) / 2
    if isinstance(op, KroneckerPlusNoise):
        return _two_term(op, residual, (-0.5, -0.5)) - constant
    held = Kronecker(*op.factors, decomposition=op.factorize(positive_definite=True))
    return -0.5 * (log_abs_det(held) + _inv_quad(held, residual)) - constant


@jax.jit
def log_abs_det(op: Kronecker) -> Array:
    """`log|det|` of a checked Kronecker product of square factors."""
    size = num_cells(op)
    parts = [
        size / factor.size * factor.log_abs_det(factorization)
        for factor, factorization in zip(op.factors, op.factorize(), strict=True)
    ]
    parts = list(same_rank(*parts))
    return sum(parts[1:], parts[0])


@jax.jit
def _inv_quad(op: Kronecker | KroneckerPlusNoise, b: Array) -> Array:
    product = jnp.multiply(*same_rank(b, solve_grid(op, b)))
    return jnp.sum(product, axis=tuple(range(-len(op.grid_shape), 0)))


def _two_term_value(op: KroneckerPlusNoise, y: Array | None, weights: Weights) -> Array:
    if is_thin(op):
        return _thin_value(op, y, weights)
    signal, noise = op.blocks()
    bases = op.eigenbases()
    num_axes = len(op.grid_shape)
    lead = () if y is None else y.shape[: y.ndim - num_axes]
    batch = checks.check_broadcast([op.batch_shape, lead], "the operator and the vector")
    ndims = TwoTermSum(
        tuple(b.event_ndims for b in signal),
        tuple(b.event_ndims for b in noise),
        None if y is None else num_axes,
    )
    return map_batch(
        lambda problem, held: log_det_and_quadratic(problem, held, weights=weights),
        batch,
        (TwoTermSum(signal, noise, y), ndims),
        (bases, tuple(b.event_ndims for b in bases)),
    )


def _thin_value(op: KroneckerPlusNoise, y: Array | None, weights: Weights) -> Array:
    on_logdet, on_quadratic = weights
    if op.decomposition is None:  # one for both terms
        op = KroneckerPlusNoise(op.kronecker, op.noise, decomposition=decomposition(op))
    total = jnp.zeros((), op.dtype)
    if on_logdet:
        inside = _two_term_value(reduced(op), None, (1.0, 0.0))
        total = total + on_logdet * jnp.add(*same_rank(inside, logdet_outside(op)))
    if y is not None:
        total = jnp.add(*same_rank(total, on_quadratic * _inv_quad(op, y)))
    return total


_two_term = jax.jit(_two_term_value, static_argnums=2)


def _log_det(op: KroneckerPlusNoise) -> Array:
    return _two_term(op, None, (1.0, 0.0))


def _quadratic(op: KroneckerPlusNoise, b: Array) -> Array:
    return _two_term(op, b, (0.0, 1.0))
