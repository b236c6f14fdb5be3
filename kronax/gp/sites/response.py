"""Rates, probabilities and new observations, from the marginals of the latent function."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.gp.likelihoods.base import AbstractLikelihood, average
from kronax.gp.sites.predictive import probability

# Doublings of a bracket, and halvings of it.
MOST_DOUBLINGS = 200
HALVINGS = 60


class Response(eqx.Module):
    """What a likelihood makes of the latent function, place by place.

    Attributes:
        mean: of the rate, probability, share or location itself.
        std: its posterior standard deviation.
        quantiles: its posterior quantiles, `(len(probabilities), …)`.
        observation_mean: of a new observation there, with its own exposure or number of trials.
        observation_std: its standard deviation.
        observation_quantiles: its quantiles; `None` where NumPyro has no distribution function,
            for which draws serve.
        probabilities: of the quantiles.
        name: what the response is: a rate, a probability, …
    """

    mean: Float[Array, "..."]
    std: Float[Array, "..."]
    quantiles: Float[Array, "..."]
    observation_mean: Float[Array, "..."]
    observation_std: Float[Array, "..."]
    observation_quantiles: Float[Array, "..."] | None
    probabilities: tuple[float, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.mean.shape))
        return f"Response of {shape} places: the {self.name}, and new observations"


def response(
    likelihood: AbstractLikelihood, mean: Array, variance: Array, probabilities: Sequence[float]
) -> Response:
    """For a function with normal marginals.

    Raises:
        ValueError: if a probability is not between 0 and 1.
    """
    levels = tuple(float(p) for p in probabilities)
    if not all(0 < p < 1 for p in levels):
        raise ValueError(f"Quantiles need probabilities between 0 and 1; got {probabilities!r}.")
    return _response(likelihood, mean, jnp.broadcast_to(variance, mean.shape), levels)


@eqx.filter_jit
def _response(
    likelihood: AbstractLikelihood, mean: Array, variance: Array, levels: tuple[float, ...]
) -> Response:
    def means(f: Array) -> tuple[Array, Array]:
        return likelihood.response(f), likelihood.mean(f)

    rate, own = average(means, mean, variance)

    def spreads(f: Array) -> tuple[Array, Array]:
        # About the means, which may be far from zero.
        rest, own_rest = likelihood.response(f) - rate, likelihood.mean(f) - own
        return jnp.square(rest), jnp.square(own_rest) + likelihood.variance(f)

    spread, own_spread = average(spreads, mean, variance)
    sd = jnp.sqrt(variance)
    scores = [NormalDist().inv_cdf(p) for p in levels]
    quantiles = [likelihood.response(mean + score * sd) for score in scores]
    empty = jnp.zeros((0, *mean.shape), mean.dtype)
    return Response(
        mean=rate,
        std=jnp.sqrt(spread),
        quantiles=jnp.stack(quantiles) if levels else empty,
        observation_mean=own,
        observation_std=jnp.sqrt(own_spread),
        observation_quantiles=_observed(likelihood, mean, variance, levels, empty),
        probabilities=levels,
        name=likelihood.response_name,
    )


def _observed(
    likelihood: AbstractLikelihood,
    mean: Array,
    variance: Array,
    levels: tuple[float, ...],
    empty: Array,
) -> Array | None:
    """Quantiles of observations, where their distribution function is known."""
    # Not the mean, which may be infinite where the quantiles are not.
    centre = likelihood.mean(mean)
    try:
        jax.eval_shape(likelihood.cdf, centre, mean)
    except NotImplementedError:
        return None

    def below(y: Array) -> Array:
        return probability(likelihood, y, mean, variance)

    if not levels:
        return empty
    if likelihood.support.is_discrete:
        return jnp.stack([_whole_quantile(below, level, centre) for level in levels])
    return jnp.stack([_real_quantile(below, level, centre) for level in levels])


def _whole_quantile(below: Any, level: float, centre: Array) -> Array:
    """The least whole number whose probability of not being exceeded reaches the level."""
    high = _doubled(lambda y: below(y) < level, jnp.ceil(centre), 1.0)
    low = jnp.full_like(high, -1)

    def middle(ends: tuple[Array, Array]) -> Array:
        return jnp.floor(ends[0] + (ends[1] - ends[0]) / 2)

    def goes_on(ends: tuple[Array, Array]) -> Array:
        # Whole numbers beyond what the precision counts are some steps apart.
        return jnp.any((middle(ends) > ends[0]) & (middle(ends) < ends[1]))

    def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        is_enough = below(middle(ends)) >= level
        return jnp.where(is_enough, low, middle(ends)), jnp.where(is_enough, middle(ends), high)

    return lax.while_loop(goes_on, halve, (low, high))[1]


def _real_quantile(below: Any, level: float, centre: Array) -> Array:
    """By halving a bracket around the centre."""
    high = _doubled(lambda y: below(y) < level, centre, 1.0)
    low = _doubled(lambda y: below(y) >= level, centre, -1.0)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) / 2
        is_enough = below(middle) >= level
        return jnp.where(is_enough, low, middle), jnp.where(is_enough, middle, high)

    return lax.fori_loop(0, HALVINGS, halve, (low, high))[1]


def _doubled(is_short: Any, start: Array, step: float) -> Array:
    """From the start in steps that double, to where it is no longer short."""

    def further(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, width, count = state
        return jnp.where(is_short(y), y + width, y), 2 * width, count + 1

    def going(state: tuple[Array, Array, Array]) -> Array:
        return (state[2] < MOST_DOUBLINGS) & jnp.any(is_short(state[0]))

    width = jnp.asarray(step, start.dtype)
    return lax.while_loop(going, further, (start, width, jnp.zeros((), jnp.int32)))[0]
