"""New times and new slices of a process, in the form in which a filter takes them."""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.dates import place_of
from kronax.gp.axes.indexes import is_frame, is_labelled
from kronax.gp.coordinates.spacing import UNITS, difference
from kronax.gp.kernels.points import NewPoints
from kronax.gp.labelled.data_arrays import in_grid_order
from kronax.gp.means.covariates import numbers_of
from kronax.gp.model.process import AbstractProcess
from kronax.linalg.arrays.checks import array_of_reals, check_precision, is_concrete


def new_times(gp: AbstractProcess, i: int, time: Any) -> Axis:
    """One time or several `(k,)` as an axis: numbers, dates, what a DataArray or pandas holds."""
    if np.ndim(time) == 0:
        if is_labelled(time):
            time = time.expand_dims("time")
        elif isinstance(time, jax.core.Tracer):
            time = time[None]
        else:
            time = np.asarray(time)[None] if hasattr(time, "dtype") else [time]
    if gp.axes[i].num_dimensions == 1 and np.ndim(time) == 1:
        time = jnp.reshape(time, (-1, 1)) if not is_concrete(time) else np.reshape(time, (-1, 1))
    given = [time if j == i else None for j in range(len(gp.axes))]
    new = gp.new_axes(given)[i]
    assert new is not None
    return new


def points_ahead(
    gp: AbstractProcess, i: int, new: Axis, covariates: Any, single: bool
) -> NewPoints:
    """New times as points, with the covariates of the mean then.

    Those of one time may come as one slice of the grid, without that axis.
    """
    count = len(gp.axes)
    if single and isinstance(covariates, Mapping):
        covariates = {name: _slice(x, i, count, name) for name, x in covariates.items()}
    known = gp.new_covariates(covariates, [new if j == i else None for j in range(count)])
    times = new.points(gp.dtype)
    return NewPoints([times if j == i else None for j in range(count)], known)


def _slice(value: Any, i: int, count: int, name: str) -> Any:
    """A covariate of one time with an axis for it."""
    if is_labelled(value) or is_frame(value):
        return value
    array = numbers_of(value, name)
    if not 0 < array.ndim < count:
        return array
    shape = (1,) * (count - 1 - array.ndim) + array.shape
    return array.reshape((*shape[:i], 1, *shape[i:]))


def halves(axis: Axis, dtype: Any) -> Any:
    """How far times are from the origin, `(k, 2)`: two numbers each, whose sum it is.

    Differences of late times then keep their digits in float32.
    """
    if axis.static is None:
        high = axis.points(dtype).centred.reshape(-1)
        return jnp.stack([high, jnp.zeros_like(high)], axis=-1)
    return split(axis.offsets.reshape(-1), dtype)


def split(offsets: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers in float64 as two in another precision."""
    high = offsets.astype(dtype)
    return np.stack([high, (offsets - high).astype(dtype)], axis=-1)


def checked_halves(new: Axis, last: Array, old: Axis, name: str, in_order: bool) -> Any:
    """The same of times that are refused before the last one; a rounding before it is it.

    Args:
        new: the times.
        last: of the filter.
        old: the axis of the process.
        name: of it.
        in_order: whether each must not be before the one in front.
    """
    if new.static is None or not is_concrete(last):
        return halves(new, last.dtype)
    offsets, end = new.offsets.reshape(-1), float(np.sum(np.asarray(last, np.float64)))
    scale = np.maximum(np.abs(new.static.values.astype(np.float64).reshape(-1)), np.abs(offsets))
    early = end - offsets
    same = np.abs(early) <= UNITS * np.spacing(scale)
    same |= (early > 0) & (early <= np.max(new.static.rounding))
    offsets = np.where(same, end, offsets)
    before = np.concatenate([[end], offsets[:-1]]) if in_order else np.full(offsets.shape, end)
    wrong = offsets < before
    if wrong.any():
        at = int(wrong.argmax())
        when = word_of_time(old, float(before[at]))
        raise ValueError(
            f"The times along {name} must not be before the last one that the filter knows of, "
            f"{when}; got {new.at(at)}. What comes late belongs to the data: condition them again, "
            "or `post.append` it."
        )
    return split(offsets, last.dtype)


def word_of_time(axis: Axis, offset: float) -> str:
    """A time in words, from how far it is from the origin."""
    if axis.coding is None and axis.origin is not None:
        origin = axis.origin[0] if isinstance(axis.origin, tuple) else axis.origin
        return place_of(difference(origin, -offset), None)
    return place_of(offset, axis.coding)


def read_slices(
    gp: AbstractProcess, i: int, y_new: Any, time: Any, name: str
) -> tuple[Any, Axis, bool]:
    """New values, batches in front, their times, and whether it is one slice, without that axis."""
    single = time is not None and np.ndim(time) == 0
    if is_labelled(y_new) and name not in y_new.dims:
        single = True
        y_new = y_new.expand_dims(name) if name in y_new.coords else y_new
    if time is None:
        if not is_labelled(y_new) or name not in y_new.coords:
            raise TypeError(
                f"The time of new values must be given: `update(y_new, time)`; it may be left out "
                f"for a DataArray that has its coordinate along {name!r}."
            )
        time = y_new.coords[name]
    new = new_times(gp, i, time)
    axes = [new if j == i else axis for j, axis in enumerate(gp.axes)]
    names = gp.axis_names
    is_whole = not single or (is_labelled(y_new) and name in y_new.dims)
    if not is_whole:
        axes.pop(i)
        names = None if names is None else names[:i] + names[i + 1 :]
    given = in_grid_order(y_new, axes, names, "y_new")
    grid = _grid(given, tuple(axis.size for axis in axes), gp.dtype)
    if single and is_whole:
        grid = jnp.squeeze(grid, axis=i - len(gp.axes))
    return grid, new, single


def _grid(y: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """New values as an array of that shape, batches in front."""
    check_precision(y, "y_new", dtype)
    array = array_of_reals(y, "y_new", finite=False)
    if array.shape[array.ndim - len(shape) :] != shape or array.ndim < len(shape):
        places = ", ".join(map(str, shape))
        raise ValueError(
            f"y_new must have shape (*batch, {places}): the grid without the time of one slice, "
            f"or with several times at the place of their axis; got shape {array.shape}."
        )
    if is_concrete(array) and np.isinf(np.asarray(array)).any():
        raise ValueError("y_new must be finite, or NaN where nothing was measured; got infinity.")
    return array.astype(dtype)


def check_batch(array: Array, batch: tuple[int, ...], num_axes: int) -> None:
    """Refuse another number of data sets, or data sets with different gaps."""
    own = array.shape[: array.ndim - num_axes]
    if own != batch:
        raise ValueError(
            f"y_new must have as many data sets as the filter, of batch shape {batch}; got {own}."
        )
    if not batch or not is_concrete(array):
        return
    missing = np.isnan(np.asarray(array)).reshape(prod(batch), -1)
    if (missing != missing[:1]).any():
        raise ValueError(
            "All data sets of a batch must have the same missing cells. Filter data sets with "
            "different gaps one at a time, or in jax.vmap."
        )


def levels_of(noise: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Noise variances as an array of that shape."""
    value = array_of_reals(noise, "noise")
    if is_concrete(value) and bool((np.asarray(value) < 0).any()):
        raise ValueError(f"The noise variance must not be negative; got {value}.")
    if np.broadcast_shapes(value.shape, shape) != shape:
        raise ValueError(
            f"The noise must be one variance, or variances that broadcast to the new values, "
            f"{shape}; got shape {value.shape}."
        )
    return jnp.broadcast_to(value, shape).astype(dtype)
