"""Log densities with gaps and uneven noise, by conjugate gradients, with a certificate.

The log density is `−½ [yᵀ A⁻¹ y + log det A + n log 2π]` with the splitting of `reference`. Of the
log-determinant, `log det S`, the logarithms of the noise, the trace of `C − I` and the exact box
are computed and differentiated exactly. What is left, `tr [log M − (M − I)]` of the preconditioned
`M = L⁻¹ C L⁻ᵀ`, is second order in how uneven the grid is; it is estimated by random probes `g`,
the same ones at every call, from the quadrature that conjugate gradients give on the way. The
certificate adds up what the probes miss, what the iterations leave and what rounding does.

Derivatives are implicit, never through iterations or eigenvectors. With `α = A⁻¹ y`,
`d(yᵀ A⁻¹ y) = 2αᵀ dy − αᵀ dA α`; that of what is left is in `probes`.
"""

from functools import partial
from math import log, pi
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.primitives import by_surrogate
from kronax.linalg.estimates.certificates import (
    DEFAULT,
    Certificate,
    Estimate,
    Iteration,
    settled,
)
from kronax.linalg.krylov.abstract import Evaluation
from kronax.linalg.krylov.solve import has_box, prepared, refuse_if_failed
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.sum_of_products import Signal


def iterative_logpdf(
    y: Float[Array, "..."],
    mean: Any,
    op: KroneckerPlusDiagonal,
    *,
    iteration: Iteration = DEFAULT,
) -> Estimate:
    """Log density of `N(mean, op)` at the observed cells of `y`, with its error.

    One decomposition per axis, then `4 N Σ n_i` operations per iteration for `y` and for each of
    the probes. Differentiable once, at the cost of one more product and the diagonal of an inverse.

    Args:
        y: `(*batch, n_1, …, n_d)` or `(*batch, N)`: replicates with the same gaps and noise.
        mean: a number, or an array that broadcasts to the grid.
        op: the covariance.
        iteration: how.

    Returns:
        The log densities, `(*batch,)`, and how far to trust them.

    Raises:
        ValueError: if `y` does not lie on the grid or is not finite at an observed cell.
        ConvergenceError: if an iteration does not converge (concrete values; traced ones give NaN).
        DerivativeOrderError: if it is differentiated twice.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), variances)
        >>> estimate = kx.iterative_logpdf(jnp.zeros((2, 2)), 0.0, op)
        >>> round(estimate.value.item(), 3), estimate.converged.item()
        (-4.143, True)
    """
    residual = op.held(jnp.subtract(*same_rank(op.vector(y, "y")[0], op.mean_vector(mean))))
    estimate = density_estimate(residual, op, iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the log density", has_box(op))


def iterative_logdet(op: KroneckerPlusDiagonal, *, iteration: Iteration = DEFAULT) -> Estimate:
    """`log det op` at the observed cells, with its error; see `iterative_logpdf`.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), variances)
        >>> round(kx.iterative_logdet(op).value.item(), 3)
        2.773
    """
    estimate = _logdet(op, iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the log-determinant", has_box(op))


@partial(jax.jit, static_argnums=2)
def density_estimate(y: Array, op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`iterative_logpdf` of checked data without a mean, whether it converged or not."""
    batch = y.shape[: y.ndim - len(op.grid_shape)]
    columns = y.reshape(-1, *op.grid_shape)
    quadratics, log_dets, certificate = _both_terms(op, columns, iteration)
    count = jnp.sum(op.observed.astype(op.dtype))
    value = -0.5 * (quadratics + jnp.mean(log_dets) + count * log(2 * pi))
    exact = Estimate(quadratics, *certificate, probes=log_dets).scaled(-0.5)
    return eqx.tree_at(lambda e: e.value, exact, value.reshape(batch))


@partial(jax.jit, static_argnums=1)
def _logdet(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    nothing = jnp.zeros((1, *op.grid_shape), op.dtype)
    _, log_dets, certificate = _both_terms(op, nothing, iteration)
    return Estimate(jnp.mean(log_dets), *certificate, probes=log_dets)


def _both_terms(
    op: KroneckerPlusDiagonal, y: Array, iteration: Iteration
) -> tuple[Array, Array, Certificate]:
    """`yᵀ op⁻¹ y` per column, `log det op` per probe, and the certificate of their sum."""
    held = prepared(op, iteration)
    found, certificate = held.evaluate(lax.stop_gradient(y))
    quadratics, log_dets = _estimate((op.kronecker, op.precisions, y), found)
    return quadratics, held.known_logdet(op) + log_dets, certificate


def _surrogate(signal: Signal, precisions: Array, y: Array, found: Evaluation) -> Any:
    """A function of the operands with the right derivative; its value is of no interest.

    Of the quadratic form it is that of `(y − f)ᵀ W (y − f) + fᵀ K⁻¹ f` at the `f` found, a minimum:
    `K⁻¹ f` and `y − f`, not the one from the other, which would magnify its error.
    """
    axes = tuple(range(1, y.ndim))
    explained = jnp.sum(found.weights * signal.mv_grid(found.weights), axes)
    moved = y - lax.stop_gradient(y) + found.residuals
    quadratics = jnp.sum(precisions[None] * moved**2, axes) - explained
    return quadratics, found.derivative.along(signal, precisions)


def _value(found: Evaluation) -> Any:
    return found.quadratics, found.logdets


_estimate = by_surrogate("kronax_iterative", _value, _surrogate, "An iterative log density")
