"""What probes say of the log-determinant of a reference, and what rounding does to a density."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.estimates.certificates import ROUNDING, trace_error
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.krylov.preconditioner import Reference, remainder_squares
from kronax.linalg.krylov.probe_derivatives import ProbeDerivative, probe_derivative


class ProbedLogdet(NamedTuple):
    """`tr [log M − (M − I)]` by probes, where `M` is the reference's `L⁻¹ C L⁻ᵀ`.

    Args:
        forms: what each probe says.
        error: half of a 99 % interval around their mean.
        standard_error: of their mean.
        left: what the iterations leave, at most.
        inverse: `tr M⁻¹`, likewise by probes.
        derivative: what the differential is made of.
    """

    forms: Array
    error: Array
    standard_error: Array
    left: Array
    inverse: Array
    derivative: ProbeDerivative


def probed_logdet(held: Reference, white: Array, krylov: Krylov) -> ProbedLogdet:
    """From probes over the spectrum and what the iteration found for each."""
    size = white[0].size
    forms = size * (krylov.log_form - (krylov.first - 1))
    error, spread = trace_error(forms, remainder_squares(held, krylov, white), size)
    return ProbedLogdet(
        forms=forms,
        error=error,
        standard_error=spread,
        left=size * jnp.mean(krylov.log_left),
        inverse=jnp.mean(jnp.sum(white * krylov.solution, tuple(range(1, white.ndim)))),
        derivative=probe_derivative(held, white, krylov.solution),
    )


def rounding_of(
    held: Reference, precisions: Array, y: Array, quadratics: Array, sizes: tuple[Array, ...]
) -> Array:
    """By how much rounding may move `yᵀ A⁻¹ y + log det A`, for the worst of the columns.

    The decomposition is that of a matrix within rounding of the signal, the product that of one
    within rounding of `M`: with `‖dK‖ = ε λ_max` it is `αᵀ dK α + tr (A⁻¹ dK)` and `tr (M⁻¹ dM)`.

    Args:
        held: the reference.
        precisions: of the noise, zero at the gaps.
        y: the columns.
        quadratics: `yᵀ A⁻¹ y`.
        sizes: `αᵀ α` per column, `tr A⁻¹` and `tr M⁻¹`.
    """
    weights, trace, inverse = sizes
    spectrum, most = held.spectrum, jnp.max(precisions)
    signal = jnp.max(spectrum) * (jnp.max(weights, initial=0.0) + trace)
    uneven = held.noise * most * (inverse + jnp.sum(held.root_inverse**2))
    scale = jnp.sum(precisions[None] * y**2, tuple(range(1, y.ndim)))
    data = jnp.max(scale * jnp.abs(quadratics), initial=0.0)
    logs = jnp.sum(jnp.abs(jnp.log(jnp.where(precisions > 0, precisions, 1))))
    sums = logs + jnp.sum(jnp.log1p(spectrum / held.noise)) + precisions.size
    return ROUNDING * jnp.finfo(y.dtype).eps * (signal + uneven + jnp.sqrt(data) + sums)
