"""Predictive densities and probabilities of observations, the latent function integrated out.

An observation can say far more of the function `f` than is known of it: ten thousand counts fix a
log rate to 0.01. Nodes that lie over all that is known then miss what the observation allows.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtr
from jaxtyping import Array

from kronax.gp.likelihoods.base import AbstractLikelihood, average, log_average

# Looks for the peak of an integrand, by Newton's steps inside of a bracket.
PEAK_STEPS = 50


@eqx.filter_jit
def log_predictive(like: AbstractLikelihood, y: Array, mean: Array, variance: Array) -> Array:
    """`log E p(y | f)`, cell by cell.

    Nodes lie about the peak of the integrand; where there may be two, about the greater.
    """
    sd = jnp.sqrt(variance)
    y = jnp.broadcast_to(y, mean.shape).astype(mean.dtype)
    at_data = (like.start(y) - mean) / jnp.where(sd > 0, sd, 1)
    found = _log_average_about(like, y, mean, sd, at_data)
    if like.is_log_concave:
        return found
    return jnp.maximum(found, _log_average_about(like, y, mean, sd, jnp.zeros_like(mean)))


def _log_average_about(
    like: AbstractLikelihood, y: Array, mean: Array, sd: Array, start: Array
) -> Array:
    """`log E p(y | mean + sd x)` for standard normal `x`, by the peak found from a start."""

    def newton(x: Array) -> tuple[Array, Array]:
        slope, bend = like.derivatives(y, mean + sd * x)
        return sd * slope - x, jnp.maximum(1 + jnp.square(sd) * bend, 1)

    def step(_: Any, at: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, low, high = at
        slope, curvature = newton(x)
        low, high = jnp.where(slope > 0, x, low), jnp.where(slope < 0, x, high)
        further = x + slope / curvature
        is_inside = ((further > low) & (further < high)) | (further == x)
        halved = jnp.where(jnp.isfinite(high - low), low + (high - low) / 2, x)
        return jnp.where(is_inside, further, halved), low, high

    ends = jnp.full_like(start, -jnp.inf), jnp.full_like(start, jnp.inf)
    peak, *_ = lax.fori_loop(0, PEAK_STEPS, step, (start, *ends))
    width = 1 / jnp.sqrt(newton(peak)[1])

    def integrand(node: Array) -> Array:
        x = peak + width * node
        return like.log_density(y, mean + sd * x) + (jnp.square(node) - jnp.square(x)) / 2

    return log_average(integrand, jnp.zeros_like(mean), jnp.ones_like(mean)) + jnp.log(width)


@eqx.filter_jit
def probability(like: AbstractLikelihood, y: Array, mean: Array, variance: Array) -> Array:
    """The probability of an observation of at most `y`, cell by cell.

    As a function of `f` it falls like a normal step whose place and width the likelihood tells,
    and whose average is known; quadrature serves what is left.
    """
    centre = like.start(y)
    width = 1 / jnp.sqrt(like.derivatives(y, centre)[1])
    # Both by one call, as distribution functions take long to compile.
    sides = jax.vmap(lambda side: like.cdf(y, centre + side * width))(
        jnp.array([-1.0, 1.0], mean.dtype)
    )
    fall = sides[0] - sides[1]
    is_step = jnp.abs(fall) > 0.5  # not so outside of the support, and beyond limits
    centre, width = jnp.where(is_step, centre, 0), jnp.where(is_step, width, 1)
    sign = jnp.where(is_step, jnp.sign(fall), 0)
    rest = average(lambda f: like.cdf(y, f) - ndtr(sign * (centre - f) / width), mean, variance)
    step = ndtr(sign * (centre - mean) / jnp.sqrt(variance + jnp.square(width)))
    return jnp.clip(rest + step, 0, 1)
