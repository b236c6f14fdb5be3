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
    def moments(f: Array) -> tuple[Array, ...]:
        rate, own = likelihood.response(f), likelihood.mean(f)
        return rate, rate**2, own, own**2, likelihood.variance(f)

    rate, square, own, own_square, spread = average(moments, mean, variance)
    sd = jnp.sqrt(variance)
    scores = [NormalDist().inv_cdf(p) for p in levels]
    quantiles = [likelihood.response(mean + score * sd) for score in scores]
    empty = jnp.zeros((0, *mean.shape), mean.dtype)
    return Response(
        mean=rate,
        std=jnp.sqrt(jnp.maximum(square - rate**2, 0)),
        quantiles=jnp.stack(quantiles) if levels else empty,
        observation_mean=own,
        observation_std=jnp.sqrt(spread + jnp.maximum(own_square - own**2, 0)),
        observation_quantiles=_observed(likelihood, mean, variance, own, levels, empty),
        probabilities=levels,
        name=likelihood.response_name,
    )


def _observed(
    likelihood: AbstractLikelihood,
    mean: Array,
    variance: Array,
    centre: Array,
    levels: tuple[float, ...],
    empty: Array,
) -> Array | None:
    """Quantiles of observations, where their distribution function is known."""
    try:
        jax.eval_shape(likelihood.cdf, centre, mean)
    except NotImplementedError:
        return None

    def probability(y: Array) -> Array:
        return average(lambda f: likelihood.cdf(y, f), mean, variance)

    if not levels:
        return empty
    if likelihood.support.is_discrete:
        return jnp.stack([_whole_quantile(probability, level, centre) for level in levels])
    return jnp.stack([_real_quantile(probability, level, centre) for level in levels])


def _whole_quantile(probability: Any, level: float, centre: Array) -> Array:
    """The least whole number whose probability of not being exceeded reaches the level."""
    high = _doubled(lambda y: probability(y) < level, jnp.ceil(centre), 1.0)
    low = jnp.full_like(high, -1)

    def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = jnp.floor((low + high) / 2)
        is_enough = probability(middle) >= level
        return jnp.where(is_enough, low, middle), jnp.where(is_enough, middle, high)

    ends = lax.while_loop(lambda ends: jnp.any(ends[1] - ends[0] > 1), halve, (low, high))
    return ends[1]


def _real_quantile(probability: Any, level: float, centre: Array) -> Array:
    """By halving a bracket around the centre."""
    high = _doubled(lambda y: probability(y) < level, centre, 1.0)
    low = _doubled(lambda y: probability(y) >= level, centre, -1.0)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) / 2
        is_enough = probability(middle) >= level
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
