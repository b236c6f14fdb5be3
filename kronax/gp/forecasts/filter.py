"""A fitted process as a service: it forecasts the next values, and takes them in as they come."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.axes.axis import Axis
from kronax.gp.criticism.held_out import axis_labels
from kronax.gp.forecasts import recursion, saved
from kronax.gp.forecasts.history import (
    absorbed,
    check_axis,
    front,
    gaps_between,
    kernels_in_time,
    markov_axis,
    mean_of,
    nan_before,
    one_slice,
    state_given,
)
from kronax.gp.forecasts.recursion import State
from kronax.gp.forecasts.times import (
    check_batch,
    checked_halves,
    levels_of,
    new_times,
    points_ahead,
    read_slices,
    word_of_time,
)
from kronax.gp.kernels.points import NewPoints
from kronax.gp.labelled.data_arrays import by_axis
from kronax.gp.labelled.templates import Template, check_data_units, without_axis
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.gp.noise.abstract import NoiseInTime
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import where


class Forecast(eqx.Module):
    """What a filter expects at places and times to come; it unpacks to two: `mean, variance = …`.

    Attributes:
        mean: laid out as the values would be, batches in front.
        variance: without the batches.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> mean, variance = post.filter().predict(1.2)
        >>> mean.shape, variance.shape
        ((4,), (4,))
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]

    def __iter__(self) -> Iterator[Array]:
        return iter((self.mean, self.variance))

    @property
    def standard_deviation(self) -> Float[Array, "..."]:
        """The root of the variance."""
        return jnp.sqrt(self.variance)


class Surprise(eqx.Module):
    """How new values compare with what was forecast of them before they were known.

    The joint density counts the values that were measured; with several slices each is forecast
    from all before it, so that the sum over the slices is the joint density of all.

    Attributes:
        mean: the forecast, laid out as the values, batches in front.
        variance: of the values, noise included, without the batches.
        standardised: the errors in standard deviations, NaN where nothing was measured: one by
            one standard normal under the model.
        log_density: of all values of a slice together, in nats, `(*batch,)`; with the slices last
            where there are several.
        distance: the squared distance of a slice from its forecast, in units of its covariance:
            under the model χ² with `count` degrees of freedom. Alike.
        count: the number of values of a slice that were measured.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> _, surprise = post.filter().update(jnp.array([0.1, jnp.nan, 0.2, 9.0]), 1.2)
        >>> surprise.standardised.shape, int(surprise.count), bool(surprise.standardised[3] > 3)
        ((4,), 3, True)
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    standardised: Float[Array, "..."]
    log_density: Float[Array, "..."]
    distance: Float[Array, "..."]
    count: Array


class Filter(eqx.Module):
    """What a fitted model knows at the last time of its data, ready for the next: `post.filter()`.

    `service, surprise = service.update(y_new, time)` takes in a slice of new values, any of which
    may be missing (NaN), and `service.predict(time)` forecasts. Both take constant time however
    long the history is, and are compiled once: times are arguments, and steps may be irregular.
    The numbers are those of conditioning the longer grid, with the same parameters. `O(m³ D²)`
    operations and `O(m² D²)` memory for `m` places and a state of `D` numbers at each.

    It works in `jax.jit`, `jax.lax.scan` and `jax.vmap`. What was computed of the model is held:
    after changing a parameter, condition the data again.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> axes = {"time": jnp.arange(3.0), "place": jnp.arange(2.0)}
        >>> kernels = {"time": kx.Matern32(2.0), "place": kx.RBF(1.0)}
        >>> service = kx.GridGP(kernels, axes, noise=0.1).condition(jnp.ones((3, 2))).filter()
        >>> service, surprise = service.update([0.9, jnp.nan], 3.5)
        >>> surprise.log_density.shape, surprise.count.item(), service.predict(4.0).mean.shape
        ((), 1, (2,))

    Attributes:
        gp: the process of one slice; nothing of it grows with the data.
        axis: the number of the axis that is the time.
        template: what the data came as.
        places: the covariance of the other axes, for every part of the function.
        noise: variances or covariance of the noise, `None` if it must be given with the values.
        time: the last one, from the origin of the axis, in two halves.
        state: of the function, less its mean.
    """

    gp: AbstractProcess
    axis: int = eqx.field(static=True)
    template: Template | None = eqx.field(static=True)
    places: Array
    noise: Array | None
    time: Array
    state: State

    def __repr__(self) -> str:
        shape = self._slice_shape
        last = np.sum(np.asarray(self.time, np.float64)) if is_concrete(self.time) else None
        when = "a traced time" if last is None else word_of_time(self.gp.axes[self.axis], last)
        return f"Filter along {self.name} up to {when}, slices of shape {shape}"

    @property
    def name(self) -> str:
        """The name of the axis that is the time."""
        return axis_labels(self.gp)[self.axis]

    @property
    def _slice_shape(self) -> tuple[int, ...]:
        return tuple(n for j, n in enumerate(self.gp.grid_shape) if j != self.axis)

    def predict(
        self, time: Any, include_noise: bool = True, noise: Any = None, covariates: Any = None
    ) -> Forecast:
        """Mean and variance of new observations at all places, at the last time or any later.

        Args:
            time: one, or several `(k,)` in any order: the forecasts then have the layout of the
                grid. Numbers, dates, pandas timestamps or a DataArray, as the axis has them.
            include_noise: false for the function itself.
            noise: the noise variance there, where the model's is not defined at new times.
            covariates: of the mean then, by name, where they vary along the time: at one time they
                broadcast to the grid without that axis, at several to the forecasts.

        Raises:
            TypeError: if the times are of another kind than those of the data, or `noise` is given
                without `include_noise=True`.
            ValueError: if a time is before the last one, or the noise is not defined.
        """
        if noise is not None and not include_noise:
            raise TypeError(
                f"`noise` is used with include_noise=True only; got noise={noise!r} without it."
            )
        new, single = new_times(self.gp, self.axis, time), np.ndim(time) == 0
        levels = self._levels(noise, new, single) if include_noise else None
        halves = self._halves(new, in_order=False)
        ahead = points_ahead(self.gp, self.axis, new, covariates, single)
        return _forecast(self._bare, halves, ahead, include_noise, levels, single)

    def update(
        self, y_new: Any, time: Any = None, noise: Any = None, covariates: Any = None
    ) -> tuple["Filter", Surprise]:
        """The filter that knows new values as well, and how they compare with their forecast.

        Values of one time may come one after the other, as stations report: what is missing is
        NaN. It does nothing to this filter: raise the alarm, and keep the old one if they are
        wrong.

        Args:
            y_new: at one time the grid without that axis, batches in front; at several times
                `(k,)`, not falling, the grid with `k` at its place. An array, a pandas object, or
                a DataArray with its dimensions in any order.
            time: not before the last one. A DataArray may bring it as a coordinate.
            noise: the noise variance of the values, one or broadcast to them, where the model's is
                not defined at new times or not theirs.
            covariates: of the mean then, as for `predict`.

        Raises:
            TypeError: if the times are of another kind than those of the data, or `y_new` is not
                real.
            ValueError: if the time is before the last one, `y_new` does not lie on the grid, or
                the noise is not defined. Traced times before the last one give NaN.
        """
        check_data_units(y_new, self.template, "y_new")
        grid, new, single = read_slices(self.gp, self.axis, y_new, time, self.name)
        num_axes = len(self._slice_shape) + (not single)
        check_batch(grid, self.state.mean.shape[:-2], num_axes)
        levels = self._levels(noise, new, single)
        halves = self._halves(new, in_order=True)
        ahead = points_ahead(self.gp, self.axis, new, covariates, single)
        time, state, surprise = _absorb(self._bare, halves, ahead, grid, levels, single)
        return dataclasses.replace(self, time=time, state=state), surprise

    def save(self, path: Any) -> None:
        """Write it to a file, model parameters included, which `kx.Filter.load` reads.

        Args:
            path: of the file.
        """
        saved.save(self, path, self._what)

    @classmethod
    def load(cls, path: Any, like: "Filter") -> "Filter":
        """A filter from a file.

        Args:
            path: of the file.
            like: a filter of the same model, from any data whose times begin with the same one and
                with any parameters: those in the file replace them.

        Raises:
            ValueError: if the file holds a filter of another model, or none.
        """
        return saved.load(path, like, like._what)

    @property
    def _what(self) -> str:
        """What a file must agree with beside the shapes of its arrays."""
        axis = self.gp.axes[self.axis]
        kernels = [str(jax.tree.structure(kernel)) for kernel in self.gp.kernels]
        return f"{axis_labels(self.gp)} {axis.origin!r} {axis.coding!r} {kernels}"

    @property
    def _bare(self) -> "Filter":
        """Without the template: filters of a hundred variables share one compiled program."""
        return self if self.template is None else dataclasses.replace(self, template=None)

    def _halves(self, new: Axis, in_order: bool) -> Array:
        return checked_halves(new, self.time, self.gp.axes[self.axis], self.name, in_order)

    def _levels(self, noise: Any, new: Axis, single: bool) -> Array | None:
        """Given variances in the layout of new values; `None` for those of the model."""
        if noise is None and self.noise is None:
            raise ValueError(
                f"The noise varies along {self.name} and is not defined at its new coordinates. "
                "Pass `noise=` with the variance there."
            )
        if noise is None:
            return None
        i, axes, names = self.axis, list(self.gp.axes), list(self.gp.axis_names or ())
        axes[i : i + 1] = [] if single else [new]
        names[i : i + 1] = names[i : i + (not single)]
        if np.ndim(noise) > 1:
            noise = by_axis(noise, axes, tuple(names) or None, "The noise")
        return levels_of(noise, tuple(axis.size for axis in axes), self.gp.dtype)

    def noise_at(self, levels: Array | None, num_times: int, single: bool) -> NoiseInTime:
        """The noise at some times, that of the model or given variances."""
        if levels is None:
            assert self.noise is not None
            return NoiseInTime(jnp.ones((num_times, 1), self.gp.dtype), self.noise)
        levels = self.front(levels, single)
        return NoiseInTime(levels, jnp.ones(levels.shape[-1], levels.dtype))

    def front(self, x: Array, single: bool) -> Array:
        """What is laid out as new values as `(k, *batch, m)`."""
        num_axes = len(self.gp.axes)
        x = jnp.expand_dims(x, self.axis - num_axes) if single else x
        return front(x, self.axis, num_axes)

    def back(self, x: Array, single: bool) -> Array:
        """`(k, *batch, m)` as new values are laid out."""
        x = x.reshape(*x.shape[:-1], *self._slice_shape)
        return x[0] if single else jnp.moveaxis(x, 0, self.axis - len(self.gp.axes))


def filter_of(post: AbstractPosterior, axis: int | None) -> Filter:
    """The filter of a posterior along an axis, by default the Markov one."""
    names = axis_labels(post.gp)
    i = markov_axis(post.gp, names) if axis is None else axis
    check_axis(post.gp, i, names[i])
    small = one_slice(post.gp, i)
    jax.eval_shape(lambda: mean_of(small, i, (None,) * len(small.axes)))
    time, places, state, noise = state_given(post, i, small)
    return Filter(small, i, without_axis(post.template, names[i]), places, noise, time, state)


@eqx.filter_jit
def _forecast(
    service: Filter,
    halves: Array,
    new: NewPoints,
    include_noise: bool,
    levels: Array | None,
    single: bool,
) -> Forecast:
    gp, i, places = service.gp, service.axis, service.places
    kernels, (mean, design) = kernels_in_time(gp, i), mean_of(gp, i, new)
    own = jnp.zeros((len(halves), places.shape[-1]), gp.dtype)
    if include_noise:
        noise = service.noise_at(levels, len(halves), single)
        own = noise.levels * jnp.atleast_2d(noise.variances)

    def one(half: Array, mean: Array, design: Array | None, noise: Array) -> tuple[Array, Array]:
        gap = gaps_between(jnp.stack([service.time, half]))[0]
        step = recursion.step_of(kernels, jnp.maximum(gap, 0))
        noise = noise + jnp.diagonal(recursion.at_places(step.nuggets, places))
        value, variance = recursion.forecast(service.state, step, places, design, noise)
        wrong = nan_before(gap)  # no step leads back
        return value + jnp.broadcast_to(mean, value.shape) + wrong, variance + wrong

    value, variance = jax.vmap(one)(halves, mean, design, own)
    return Forecast(service.back(value, single), service.back(variance, single))


@eqx.filter_jit
def _absorb(
    service: Filter,
    halves: Array,
    new: NewPoints,
    y: Array,
    levels: Array | None,
    single: bool,
) -> tuple[Array, State, Surprise]:
    """The last time and the state then, and how the values compare with their forecast."""
    values = service.front(y, single)
    batch = tuple(range(1, values.ndim - 1))
    seen = jnp.any(~jnp.isnan(values), axis=batch)
    noise = service.noise_at(levels, len(seen), single)
    halves = jnp.concatenate([service.time[None], halves])
    given = (service.places, service.state, halves, new, values, noise, seen)
    state, found = absorbed(service.gp, service.axis, *given)
    shape = (len(seen), *(1,) * len(batch), seen.shape[-1])
    score = (values - found.mean) / jnp.sqrt(found.variance).reshape(shape)
    score = where(jnp.broadcast_to(seen.reshape(shape), score.shape), score, jnp.nan)
    count = jnp.sum(seen, axis=-1)
    back = [service.back(x, single) for x in (found.mean, found.variance, score)]
    sums = [found.log_density, found.distance, count]
    sums = [x[0] if single else jnp.moveaxis(x, 0, -1) for x in sums]
    surprise = Surprise(back[0], back[1], back[2], sums[0], sums[1], sums[2])
    return halves[-1], state, surprise
