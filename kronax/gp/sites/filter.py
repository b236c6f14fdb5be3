"""A forecast service for data with a likelihood: an assumed-density filter.

At every time the function at all places has a normal distribution, which the filter forecasts. New
observations get the sites that they have given that forecast, and the filter takes these in as it
takes in normal data. Sites of older data stay as they are: conditioning on the longer grid would
move them a little, which is all that the two differ by.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.forecasts import recursion, saved
from kronax.gp.forecasts.filter import Filter, Forecast
from kronax.gp.forecasts.history import gaps_between, kernels_in_time, mean_of, nan_before
from kronax.gp.forecasts.recursion import State, Values
from kronax.gp.forecasts.times import check_batch, points_ahead, read_slices
from kronax.gp.kernels.points import NewPoints
from kronax.gp.labelled.templates import check_data_units
from kronax.gp.likelihoods.base import AbstractLikelihood, as_floats
from kronax.gp.likelihoods.predictive import log_predictive
from kronax.gp.sites.few import FewCells, Joint, Seen, sites_given
from kronax.gp.sites.response import Response, response
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import where


class LikelihoodSurprise(eqx.Module):
    """How new observations compare with what was forecast of them before they were known.

    Attributes:
        mean: of the observations as forecast, laid out as they are.
        variance: alike.
        standardised: the errors in standard deviations, NaN where nothing was observed.
        pointwise: the log density of each observation by itself, in nats; NaN alike.
        log_density: of all observations of a slice together, by the approximation; with the slices
            last where there are several, each given all before it.
        count: the number of observations of a slice.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> _, surprise = post.filter().update(jnp.array([9.0, 0.0, 2.0, 1.0]), 1.2)
        >>> (
        ...     int(surprise.standardised.argmax()),
        ...     surprise.pointwise.shape,
        ...     surprise.log_density.shape,
        ... )
        (0, (4,), ())
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    standardised: Float[Array, "..."]
    pointwise: Float[Array, "..."]
    log_density: Float[Array, "..."]
    count: Array


class LikelihoodFilter(eqx.Module):
    """What a fitted model with a likelihood knows at the last time of its data: `post.filter()`.

    `service, surprise = service.update(y_new, time)` takes in a slice of new observations, any of
    which may be missing (NaN); `service.predict(time)` forecasts the function and
    `service.response(time)` rates or probabilities and new observations. It starts at the posterior
    itself. Sites of new observations are found from their forecast, and those of older ones stay:
    so updates are close to conditioning on the longer grid, `post.append`, and not the same.

    Attributes:
        function: the filter of the latent function.
        likelihood: of one slice.
        varying: its fields that vary along the time, and must be given with every slice.
        approximation: "variational" or "laplace".

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> service, surprise = post.filter().update(jnp.array([1.0, 0.0, 2.0, jnp.nan]), 1.2)
        >>> service.response(1.4).mean.shape, int(surprise.count)
        ((4,), 3)
    """

    function: Filter
    likelihood: AbstractLikelihood
    varying: tuple[str, ...] = eqx.field(static=True)
    approximation: str = eqx.field(static=True)

    def __repr__(self) -> str:
        return f"{self.function!r}, {type(self.likelihood).__name__}"

    def predict(self, time: Any, covariates: Any = None) -> Forecast:
        """Mean and variance of the latent function, as of a `kx.Filter` without noise."""
        return self.function.predict(time, include_noise=False, covariates=covariates)

    def response(
        self,
        time: Any,
        quantiles: Sequence[float] = (0.025, 0.975),
        covariates: Any = None,
        **given: Any,
    ) -> Response:
        """Rates or probabilities, and new observations, at the last time or any later.

        Args:
            time: one, or several `(k,)`, as for `predict`.
            quantiles: their probabilities; `()` for none.
            covariates: of the mean then.
            given: what the likelihood has at every cell, such as `exposure=`, then.

        Raises:
            KeyError: if the likelihood has no such field.
            TypeError: if one varies along the time and is not given.
            ValueError: if a time is before the last one, or a shape does not fit.
        """
        mean, variance = self.predict(time, covariates)
        likelihood = self._likelihood_at(given, mean.shape, np.ndim(time) == 0)
        return response(likelihood, mean, variance, quantiles)

    def update(
        self, y_new: Any, time: Any = None, covariates: Any = None, **given: Any
    ) -> tuple["LikelihoodFilter", LikelihoodSurprise]:
        """The filter that knows new observations as well, and how they compare with their forecast.

        Args:
            y_new: at one time the grid without that axis; at several the grid, as of a `kx.Filter`.
            time: not before the last one.
            covariates: of the mean then.
            given: as for `response`.

        Raises:
            KeyError: as in `response`.
            TypeError: as in `response`.
            ValueError: as in `response`; or if the likelihood excludes an observation.
        """
        service = self.function
        template = service.template and service.template.data
        check_data_units(y_new, template, "y_new")
        y_new = as_floats(y_new, service.gp.dtype)
        grid, new, single = read_slices(service.gp, service.axis, y_new, time, service.name)
        check_batch(grid, (), len(service.gp.axes) - single)
        likelihood = self._likelihood_at(given, grid.shape, single)
        if is_concrete(grid, likelihood):
            likelihood.check(np.asarray(grid), ~np.isnan(np.asarray(grid)))
        halves = service._halves(new, in_order=True)
        ahead = points_ahead(service.gp, service.axis, new, covariates, single)
        bare = dataclasses.replace(self, function=service._bare)
        last, state, surprise = _absorb(bare, halves, ahead, grid, likelihood, single)
        moved = dataclasses.replace(service, time=last, state=state)
        return dataclasses.replace(self, function=moved), surprise

    def save(self, path: Any) -> None:
        """Write it to a file, parameters included, which `kx.LikelihoodFilter.load` reads."""
        saved.save(self, path, self._what)

    @classmethod
    def load(cls, path: Any, like: "LikelihoodFilter") -> "LikelihoodFilter":
        """A filter from a file, as of a `kx.Filter`.

        Raises:
            ValueError: if the file holds a filter of another model, or none.
        """
        return saved.load(path, like, like._what)

    @property
    def _what(self) -> str:
        return f"{self.function._what} {type(self.likelihood).__name__} {self.approximation}"

    def _likelihood_at(
        self, given: Mapping[str, Any], shape: tuple[int, ...], single: bool
    ) -> AbstractLikelihood:
        """The likelihood where observations are laid out in a shape."""
        missing = [name for name in self.varying if name not in given]
        if missing:
            raise TypeError(
                f"{type(self.likelihood).__name__} must know `{missing[0]}` at new times; it "
                f"varies along {self.function.name}. Pass {missing[0]}=, one value, or values that "
                f"broadcast to {shape}."
            )
        own = {name: getattr(self.likelihood, name) for name in self.likelihood.cell_fields}
        # What a slice has at its places is the same at all times.
        axis, count = self.function.axis, len(self.function.gp.axes)
        known = {
            name: value if single else _with_time(value, axis, count)
            for name, value in own.items()
            if value is not None and name not in given and jnp.ndim(value)
        }
        return self.likelihood.at({**known, **given}, shape, ())


def _with_time(value: Array, axis: int, count: int) -> Array:
    """Values at the places of a slice, with the time among them."""
    full = value.reshape(*(1,) * (count - 1 - value.ndim), *value.shape)
    return jnp.expand_dims(full, axis)


def likelihood_filter(
    function: Filter, likelihood: AbstractLikelihood, approximation: str
) -> LikelihoodFilter:
    """That of a filter of the function; of the likelihood it keeps what holds at all times."""
    behind, varying = function.axis - len(function.gp.axes), []
    for name in likelihood.cell_fields:
        value = getattr(likelihood, name)
        if value is None or jnp.ndim(value) < -behind:
            continue
        if value.shape[behind] > 1:
            varying.append(name)
            kept: Any = jnp.ones((), value.dtype)
        else:
            kept = jnp.squeeze(value, behind)
        likelihood = eqx.tree_at(attrgetter(name), likelihood, kept)
    return LikelihoodFilter(function, likelihood, tuple(varying), approximation)


@eqx.filter_jit
def _absorb(
    bare: LikelihoodFilter,
    halves: Array,
    new: NewPoints,
    y: Array,
    likelihood: AbstractLikelihood,
    single: bool,
) -> tuple[Array, State, LikelihoodSurprise]:
    """The last time and the state then, and how the observations compare with their forecast."""
    service, shape = bare.function, y.shape
    gp, i, places = service.gp, service.axis, service.places
    values = service.front(y, single)
    seen = ~jnp.isnan(values)
    varying = {
        name: service.front(jnp.broadcast_to(getattr(likelihood, name), shape), single)
        for name in likelihood.cell_fields
        if getattr(likelihood, name) is not None
    }
    halves = jnp.concatenate([service.time[None], halves])
    gaps, kernels = gaps_between(halves), kernels_in_time(gp, i)
    steps = jax.vmap(lambda gap: recursion.step_of(kernels, jnp.maximum(gap, 0)))(gaps)
    # No step leads back: what is told of a traced one is NaN.
    steps = steps._replace(transition=steps.transition + nan_before(gaps)[:, None, None])
    mean, design = mean_of(gp, i, new)

    def body(state: State, each: Any) -> tuple[State, Any]:
        step, y, mean, design, seen, fields = each
        like = _with_fields(likelihood, fields)
        state = recursion.moved(state, step, places)
        own = recursion.at_places(step.nuggets, places)
        forecast, covariance = recursion.expected(state, design, state.covariance[0, 0] + own)
        joint = Joint(forecast + mean, (covariance + covariance.T) / 2)
        cells, filled = (
            FewCells(like, bare.approximation, Seen(seen)),
            jnp.where(seen, y, like.filler),
        )
        sites, evidence = sites_given(cells, filled, joint)
        is_site = sites.precision > 0
        noise = own + jnp.diag(1 / jnp.where(is_site, sites.precision, 1))
        target = where(sites.converged, sites.target, jnp.nan) - mean
        told, _ = recursion.told(state, Values(target, design, noise, is_site))
        variance = jnp.diagonal(joint.covariance)
        found = like.moments(joint.mean, variance)
        pointwise = log_predictive(like, filled, joint.mean, variance)
        score = (y - found.observation) / jnp.sqrt(found.observation_variance)
        surprise = (
            *(found.observation, found.observation_variance),
            *(where(seen, x, jnp.nan) for x in (score, pointwise)),
            *(evidence, jnp.sum(seen)),
        )
        return told, surprise

    inputs = (steps, values, jnp.broadcast_to(mean, values.shape), design, seen, varying)
    state, found = jax.lax.scan(body, service.state, inputs)
    back = [service.back(x, single) for x in found[:4]]
    sums = [x[0] if single else x for x in found[4:]]
    return halves[-1], state, LikelihoodSurprise(*back, *sums)


def _with_fields(likelihood: AbstractLikelihood, fields: Mapping[str, Array]) -> Any:
    for name, value in fields.items():
        likelihood = eqx.tree_at(attrgetter(name), likelihood, value)
    return likelihood
