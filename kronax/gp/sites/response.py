"""Rates, probabilities and new observations, from the marginals of the latent function."""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.gp.likelihoods.base import AbstractLikelihood, average
from kronax.gp.likelihoods.predictive import probability
from kronax.gp.model.process import AbstractProcess
from kronax.linalg.arrays.precision import where

# Doublings of a bracket and halvings of it, together.
MOST_PROBES = 300


class Response(eqx.Module):
    """What a likelihood makes of the latent function, place by place.

    Attributes:
        mean: of the rate, probability, share or location itself.
        std: its posterior standard deviation.
        quantiles: its posterior quantiles, `(len(probabilities), …)`.
        observation_mean: of a new observation there, with its own exposure or number of trials.
        observation_std: its standard deviation.
        category_probabilities: of every category, `(K, …)`, where observations are categories;
            else `None`.
        likelihood: of observations at these places.
        function_mean: of the latent function there.
        function_variance: likewise.
        probabilities: of the quantiles.
        name: what the response is: a rate, a probability, …

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> rate = post.response(quantiles=(0.1, 0.5, 0.9))
        >>> rate.name, rate.quantiles.shape, rate.observation_quantiles.shape
        ('rate', (3, 4, 4), (3, 4, 4))
    """

    mean: Float[Array, "..."]
    std: Float[Array, "..."]
    quantiles: Float[Array, "..."]
    observation_mean: Float[Array, "..."]
    observation_std: Float[Array, "..."]
    category_probabilities: Float[Array, "..."] | None
    likelihood: AbstractLikelihood
    function_mean: Float[Array, "..."]
    function_variance: Float[Array, "..."]
    probabilities: tuple[float, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.mean.shape))
        return f"Response of {shape} places: the {self.name}, and new observations"

    @property
    def observation_quantiles(self) -> Float[Array, "..."] | None:
        """Quantiles of a new observation, `(len(probabilities), …)`.

        They are looked for when they are asked for, at every access: that takes a hundred times
        as long as all the rest. `None` where NumPyro has no distribution function, for which draws
        serve.
        """
        return _observed(
            self.likelihood, self.function_mean, self.function_variance, self.probabilities
        )


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


def likelihood_at(
    model: AbstractProcess, given: Any, axes: Any, points: Any, shape: tuple[int, ...]
) -> AbstractLikelihood:
    """The likelihood of a model at new places, or at those of the data; see `at` of it."""
    assert model.likelihood is not None
    is_grid = points is None and not any(model.new_axes(axes))
    return model.likelihood.at(given, shape, model.grid_shape if is_grid else ())


@eqx.filter_jit
def _response(
    likelihood: AbstractLikelihood, mean: Array, variance: Array, levels: tuple[float, ...]
) -> Response:
    found = likelihood.moments(mean, variance)
    sd = jnp.sqrt(variance)
    scores = [NormalDist().inv_cdf(p) for p in levels]
    quantiles = [likelihood.response(mean + score * sd) for score in scores]
    return Response(
        mean=found.response,
        std=jnp.sqrt(found.response_variance),
        quantiles=jnp.stack(quantiles) if levels else _none(mean),
        observation_mean=found.observation,
        observation_std=jnp.sqrt(found.observation_variance),
        category_probabilities=average(likelihood.category_probabilities, mean, variance),
        likelihood=likelihood,
        function_mean=mean,
        function_variance=variance,
        probabilities=levels,
        name=likelihood.response_name,
    )


def _none(mean: Array) -> Array:
    return jnp.zeros((0, *mean.shape), mean.dtype)


@eqx.filter_jit
def _observed(
    likelihood: AbstractLikelihood, mean: Array, variance: Array, levels: tuple[float, ...]
) -> Array | None:
    """Quantiles of observations, where their distribution function is known."""
    # Not the mean, which may be infinite where the quantiles are not.
    centre = likelihood.mean(mean)
    try:
        jax.eval_shape(likelihood.cdf, centre, mean)
    except NotImplementedError:
        return None

    if not levels:
        return _none(mean)

    def is_enough(y: Array) -> Array:
        def reached(level: Array, y: Array) -> Array:
            return probability(likelihood, y, mean, variance) >= level

        return jax.vmap(reached)(jnp.asarray(levels, mean.dtype), y)

    is_whole = likelihood.support.is_discrete
    return _quantiles(is_enough, jnp.stack([centre] * len(levels)), is_whole)


def _quantiles(is_enough: Callable[[Array], Array], centre: Array, is_whole: bool) -> Array:
    """The least numbers, or whole numbers, that are enough: a bracket is widened, then halved.

    One loop, so that the distribution function is compiled once.
    """
    if is_whole:
        start = jnp.ceil(centre)
        bracket = jnp.full_like(start, -1), jnp.full_like(start, jnp.inf)
    else:
        start = centre
        bracket = jnp.full_like(start, -jnp.inf), jnp.full_like(start, jnp.inf)

    def between(low: Array, high: Array) -> Array:
        middle = low + (high - low) / 2
        return jnp.floor(middle) if is_whole else middle

    def is_wide(low: Array, high: Array) -> Array:
        # Where no number lies between the ends the search is over.
        middle = between(low, high)
        return ~jnp.isfinite(high - low) | ((middle > low) & (middle < high))

    def narrower(state: _Bracket) -> _Bracket:
        low, high, probe, width, count = state
        enough = is_enough(probe)
        low, high = jnp.where(enough, low, probe), jnp.where(enough, probe, high)
        beyond = jnp.where(jnp.isinf(high), low + width, high - width)
        is_known = jnp.isfinite(high) & jnp.isfinite(low)
        probe = jnp.where(is_known, between(low, high), beyond)
        return _Bracket(low, high, probe, 2 * width, count + 1)

    def goes_on(state: _Bracket) -> Array:
        return (state.num_probes < MOST_PROBES) & jnp.any(is_wide(state.low, state.high))

    first = _Bracket(*bracket, start, jnp.ones((), start.dtype), jnp.zeros((), jnp.int32))
    high = lax.while_loop(goes_on, narrower, first).high
    return where(jnp.isfinite(high), high, jnp.nan)


class _Bracket(NamedTuple):
    """Numbers that are not enough and those that are, and where to look next."""

    low: Array
    high: Array
    probe: Array
    width: Array
    num_probes: Array
