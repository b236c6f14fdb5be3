"""Log densities with gaps and uneven noise, by conjugate gradients, with a certificate.

The log density is `−½ [yᵀ A⁻¹ y + log det A + n log 2π]` with the splitting of `reference`. Of the
log-determinant, `log det S`, the logarithms of the noise, the trace of `C − I` and the exact box
are computed and differentiated exactly. What is left, `tr [log M − (M − I)]` of the preconditioned
`M = L⁻¹ C L⁻ᵀ`, is second order in how uneven the grid is; it is estimated by random probes `g`,
the same ones at every call, from the quadrature that conjugate gradients give on the way.

Derivatives are implicit, never through iterations or eigenvectors. With `α = A⁻¹ y`,
`d(yᵀ A⁻¹ y) = 2αᵀ dy − αᵀ dA α`. With `T = K (I + wK)⁻¹ = Q t² Qᵀ`, `E = Q t C⁻¹ t Qᵀ` and
`N = (I + wK)⁻¹`, so that `dT = N dK N`, what is left of the log-determinant has the differential
`−tr [E V N dK N V] + tr [(E − T) dV]`: with `x = M⁻¹ Qᵀg`, `a = Q t L⁻ᵀ x` and `b = Q t L⁻ᵀ Qᵀg`,
its estimate is `−(N V a)ᵀ dK (N V b) + Σ dV ∘ (a ∘ b − (Q t Qᵀ g)²)`.
"""

from functools import partial
from math import log, pi
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.conjugate_gradients import Krylov
from kronax.linalg.diagonals import conjugated_inverse_diagonal
from kronax.linalg.estimates import DEFAULT, Certificate, Estimate, Iteration, quantile, settled
from kronax.linalg.iterative_solve import refuse_if_failed, run, upper_quadratics
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.logdet import logdet, mean_of
from kronax.linalg.modes import same_rank
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.reference import Reference, balanced_box, even, reference
from kronax.linalg.rules import by_surrogate
from kronax.linalg.terms import KroneckerTerms
from kronax.linalg.terms_density import terms_both
from kronax.linalg.uneven import KroneckerPlusDiagonal


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
    residual = op.held(jnp.subtract(*same_rank(op.vector(y, "y")[0], mean_of(mean, op))))
    estimate = density_estimate(residual, op, iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the log density")


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
    return settled(estimate, iteration, "the log-determinant")


class _Found(NamedTuple):
    """What the surrogate of one evaluation holds constant."""

    quadratics: Array
    logdet: Array
    residuals: Array
    weights: Array
    left: Array
    right: Array
    variations: Array


@partial(jax.jit, static_argnums=2)
def density_estimate(y: Array, op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`iterative_logpdf` of checked data without a mean, whether it converged or not."""
    batch = y.shape[: y.ndim - len(op.grid_shape)]
    columns = y.reshape(-1, *op.grid_shape)
    quadratics, log_det, certificate = _both_terms(op, columns, iteration)
    count = jnp.sum(op.observed.astype(op.dtype))
    value = -0.5 * (quadratics + log_det + count * log(2 * pi))
    halves = (certificate.error / 2, certificate.standard_error / 2)
    return Estimate(value.reshape(batch), *halves, *certificate[2:])


@partial(jax.jit, static_argnums=1)
def _logdet(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    nothing = jnp.zeros((1, *op.grid_shape), op.dtype)
    _, log_det, certificate = _both_terms(op, nothing, iteration)
    return Estimate(log_det, *certificate)


def _both_terms(
    op: KroneckerPlusDiagonal, y: Array, iteration: Iteration
) -> tuple[Array, Array, Certificate]:
    """`yᵀ op⁻¹ y` per column, `log det op`, and the certificate of their sum."""
    if isinstance(op.kronecker, KroneckerTerms):
        return terms_both(op.kronecker, op.variances, y, iteration)
    precisions = op.precisions
    smooth = even(op.kronecker, precisions)
    held = reference(smooth, precisions, balanced_box(op.grid_shape, iteration.box_size))
    smooth = KroneckerPlusNoise(smooth.kronecker, smooth.noise, decomposition=held.bases)
    found, certificate = lax.stop_gradient(_iterate(held, op, y, iteration))
    quadratics, rest = _estimate((op.kronecker, precisions, y), found)
    exact = _exact_part(smooth, precisions)
    return quadratics, exact + held.box_logdet + rest, certificate


def _exact_part(smooth: KroneckerPlusNoise, precisions: Array) -> Array:
    """`log det (I + wK) − Σ log W + tr (C − I)`."""
    noise: Any = smooth.noise
    inverse = conjugated_inverse_diagonal(smooth, [None] * precisions.ndim)
    variances = noise - noise**2 * inverse
    observed = precisions != 0
    logs = jnp.sum(jnp.where(observed, jnp.log(jnp.where(observed, precisions, 1)), 0))
    whole = logdet(smooth) - precisions.size * jnp.log(noise)
    return whole - logs + jnp.sum((precisions - 1 / noise) * variances)


def _iterate(
    held: Reference, op: KroneckerPlusDiagonal, y: Array, iteration: Iteration
) -> tuple[_Found, Certificate]:
    """One pass for all columns: the data and the probes."""
    precisions = op.precisions
    shape = (iteration.num_probes, *op.grid_shape)
    probes = jax.random.rademacher(jax.random.key(iteration.seed), shape, op.dtype)
    white = held.to_spectrum(probes)
    krylov = run(held, precisions, y, white, iteration)
    num = y.shape[0]
    whitened = held.filtered(krylov.solution[:num])
    a, b = held.filtered(krylov.solution[num:]), held.filtered(white)
    plain = held.to_cells(held.filter[None] * white)
    forms = jnp.sum(white**2, axis=tuple(range(1, white.ndim)))
    forms = forms * (krylov.log_form - (krylov.first - 1))[num:]
    found = _Found(
        quadratics=upper_quadratics(held, precisions, y, whitened, krylov.solution[:num]),
        logdet=jnp.mean(forms),
        residuals=y - whitened,
        weights=held.weighted(krylov.solution[:num]),
        left=held.smoothed(held.excess[None] * a),
        right=held.smoothed(held.excess[None] * b),
        variations=jnp.mean(a * b - plain**2, axis=0),
    )
    return found, _certificate(krylov, forms, num, iteration, op.dtype)


def _certificate(
    krylov: Krylov, forms: Array, num: int, iteration: Iteration, dtype: Any
) -> Certificate:
    """Of `yᵀ A⁻¹ y + log det A`, for the worst of the columns."""
    probes = iteration.num_probes
    standard_error = jnp.std(forms, ddof=1) / jnp.sqrt(jnp.asarray(probes, dtype))
    smallest = jnp.min(krylov.smallest)
    left = krylov.residual**2 / smallest
    # bᵀ (A + s)⁻¹ b lacks ‖r_s‖² in the norm of (A + s)⁻¹, and ‖r_s‖ falls with s.
    bounds = jnp.max(left[:num], initial=0.0) + jnp.mean(left[num:])
    rounding = 64 * jnp.finfo(dtype).eps * jnp.mean(krylov.scale[num:] ** 2)
    residual = jnp.max(krylov.relative_residual)
    return Certificate(
        error=quantile(probes) * standard_error + bounds + rounding,
        standard_error=standard_error,
        residual=residual,
        num_steps=jnp.max(krylov.num_steps),
        converged=residual <= 10 * iteration.tolerance_of(dtype),
    )


def _surrogate(kronecker: Kronecker, precisions: Array, y: Array, found: _Found) -> Any:
    """A function of the operands with the right derivative; its value is of no interest.

    Of the quadratic form it is that of `(y − f)ᵀ W (y − f) + fᵀ K⁻¹ f` at the `f` found, a minimum:
    `K⁻¹ f` and `y − f`, not the one from the other, which would magnify its error.
    """
    axes = tuple(range(1, y.ndim))
    explained = jnp.sum(found.weights * kronecker.mv_grid(found.weights), axes)
    moved = y - lax.stop_gradient(y) + found.residuals
    quadratics = jnp.sum(precisions[None] * moved**2, axes) - explained
    along = jnp.sum(found.left * kronecker.mv_grid(found.right)) / found.left.shape[0]
    return quadratics, jnp.sum(precisions * found.variations) - along


def _value(found: _Found) -> Any:
    return found.quadratics, found.logdet


_estimate = by_surrogate("kronax_iterative", _value, _surrogate, "An iterative log density")
