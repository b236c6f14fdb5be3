"""Predictions as an xarray Dataset: with the coordinates, names and units that the data came in."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.dates import is_dates, plain
from kronax.gp.axes.labels import is_labels
from kronax.gp.labelled.packages import pandas, xarray
from kronax.gp.model.process import AbstractPosterior, AbstractProcess

MEAN, SD, QUANTILES, DRAWS = "mean", "standard_deviation", "quantiles", "draws"


def to_dataset(
    post: AbstractPosterior,
    axes: Any,
    quantiles: Sequence[float],
    draws: tuple[int, PRNGKeyArray | None],
    include_noise: bool,
    noise: Any,
    covariates: Any,
) -> Any:
    """The body of `Posterior.to_dataset`; `draws` are their number and key."""
    package, (num_samples, key) = xarray(), draws
    levels = _checked_levels(quantiles)
    check_draws_have_a_key(num_samples, key)
    new = post.gp.new_axes(axes)
    dims, batch = grid_dims(post.gp), batch_dims(post)
    options = {"include_noise": include_noise, "noise": noise, "covariates": covariates}
    mean = np.asarray(post.mean(axes, covariates=covariates))
    sd = np.sqrt(np.asarray(post.variance(axes, **options)))
    about = _About(post, include_noise)
    variables: dict[str, Any] = {
        MEAN: ((*batch, *dims), mean, about.values("posterior mean")),
        SD: (*_shared(sd, mean.shape, (*batch, *dims)), about.spread()),
    }
    coordinates = coordinates_of(post, new)
    if levels:
        scores = np.array([NormalDist().inv_cdf(level) for level in levels], mean.dtype)
        values = mean + scores.reshape(-1, *(1,) * mean.ndim) * sd
        variables[QUANTILES] = (
            ("quantile", *batch, *dims),
            values,
            about.values("posterior quantiles"),
        )
        coordinates["quantile"] = ("quantile", np.array(levels), {"long_name": "probability"})
    if num_samples:
        assert key is not None
        values = np.asarray(post.sample(key, axes, (num_samples,), **options))
        variables[DRAWS] = (
            ("draw", *batch, *dims),
            values,
            about.values("posterior draws"),
        )
        coordinates["draw"] = ("draw", np.arange(num_samples))
    check_names((*variables, "quantile", "draw"), (*dims, *batch), post)
    return package.Dataset(variables, coordinates, about.title())


def _shared(
    sd: np.ndarray, shape: tuple[int, ...], dims: tuple[str, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Deviations that all data sets of a batch share have the dimensions of the grid alone."""
    lead = 0 if sd.ndim == len(shape) else len(shape) - sd.ndim
    return dims[lead:], np.broadcast_to(sd, shape[lead:])


def to_dataarray(post: AbstractPosterior, values: Any, axes: Any, name: str | None) -> Any:
    """The body of `Posterior.to_dataarray`."""
    array, new = np.asarray(values), post.gp.new_axes(axes)
    grid, dims, batch = post.grid_shape(axes), grid_dims(post.gp), batch_dims(post)
    shape = (*post.y.shape[: len(batch)], *grid)
    if array.shape[-len(grid) :] == grid and array.ndim == len(grid):
        found: tuple[str, ...] = dims
    elif array.shape == shape:
        found = (*batch, *dims)
    elif array.shape[1:] == shape:
        found = ("draw", *batch, *dims)
    else:
        raise ValueError(
            f"The values must have the shape of the grid, {grid}, or of the posterior, {shape}, "
            f"behind an axis of draws or not; got {array.shape}."
        )
    coordinates = coordinates_of(post, new)
    known = {k: v for k, v in coordinates.items() if set(_dims_of(v)) <= set(found)}
    return xarray().DataArray(array, known, found, name)


def to_frame(post: AbstractPosterior, axes: Any, columns: Mapping[str, Any], data: Any) -> Any:
    """A long table with a row per cell: where it is, the data if it is on their grid, `columns`."""
    package, new = pandas(), post.gp.new_axes(axes)
    dims, batch = grid_dims(post.gp), batch_dims(post)
    table, template = post.gp.table, post.template
    names = dims if table is None else table.index
    shape = (*post.y.shape[: len(batch)], *post.grid_shape(axes))
    places = [index.ravel() for index in np.indices(shape)]
    known = {} if template is None else {c.name: c.values.values for c in template.coordinates}
    found: dict[Any, np.ndarray] = {}
    for dim, size, place in zip(batch, shape, places, strict=False):
        found[dim] = known.get(dim, np.arange(size))[place]
    for name, axis, old, place in zip(names, new, post.gp.axes, places[len(batch) :], strict=True):
        found.update({key: x[place] for key, x in _labels_of(name, axis or old).items()})
    if not any(new):
        own: Any = None if template is None else (template.data or template).name
        own = table.value if own is None and table is not None else own
        columns = {"y" if own is None else own: data, **columns}
    for name, values in columns.items():
        if name in found:
            raise ValueError(
                f"The name {name!r} is that of a column of the posterior, and of an axis or the "
                "data. Rename that and build the model with the new name."
            )
        found[name] = np.broadcast_to(values, shape).ravel()
    return package.DataFrame(found).infer_objects()


def _labels_of(name: Any, axis: Axis) -> dict[Any, np.ndarray]:
    """The coordinates of one axis as columns: as they were given, zones of time included."""
    index, given = axis.index, axis.given
    places = None if axis.static is None else axis.static.values
    found: dict[Any, np.ndarray] = {}
    if index is not None and index.values is not None and index.values.values.ndim == 1:
        found[name] = index.values.values
    elif given is not None:
        found[name] = given.values
    elif places is None or places.ndim == 1:
        found[name] = np.arange(axis.size) if places is None else places
    if places is not None and places.ndim == 2:
        called = () if index is None else index.columns
        for k, column in enumerate(places.T):
            found[called[k] if called else f"{name}_{k}"] = column
    return found


def _dims_of(coordinate: Any) -> tuple[str, ...]:
    return (coordinate[0],) if isinstance(coordinate[0], str) else tuple(coordinate[0])


def grid_dims(gp: AbstractProcess) -> tuple[str, ...]:
    """The dimensions of the grid."""
    return gp.axis_names or tuple(f"axis_{i}" for i in range(len(gp.axes)))


def batch_dims(post: AbstractPosterior) -> tuple[str, ...]:
    """The dimensions that lead the grid: those of the data."""
    if post.template is not None:
        return post.template.batch_dims
    count = post.y.ndim - len(post.gp.axes)
    return ("batch",) if count == 1 else tuple(f"batch_{i}" for i in range(count))


def coordinates_of(post: AbstractPosterior, new: Sequence[Axis | None]) -> dict[str, Any]:
    """Coordinates by name, as a Dataset takes them: of the grid where `new` has it."""
    dims = grid_dims(post.gp)
    moved = {dim for dim, axis in zip(dims, new, strict=True) if axis is not None}
    found: dict[str, Any] = {}
    for dim, axis, old in zip(dims, new, post.gp.axes, strict=True):
        found.update(_coordinates(dim, axis or old))
    if post.template is not None:
        for name, along, values, attributes in post.template.coordinates:
            if not moved.intersection(along):
                found[name] = (along, values.values, attributes.values)
    return found


def _coordinates(dim: str, axis: Axis) -> dict[str, Any]:
    """The coordinates of one axis: one, none for cells that only count, or one per column."""
    index = axis.index
    attributes = {} if index is None else index.attributes.values
    found: dict[str, Any] = {}
    places = values_of(axis)
    if index is not None and index.values is not None and index.values.values.ndim == 1:
        found[dim] = (dim, _plain(index.values.values), attributes)
    elif places is not None and places.ndim == 1 and not _only_counts(axis):
        found[dim] = (dim, places, attributes)
    if places is not None and places.ndim == 2:
        columns = () if index is None else index.columns
        for k, column in enumerate(places.T):
            found[columns[k] if columns else f"{dim}_{k}"] = (dim, column)
    return found


def values_of(axis: Axis) -> np.ndarray | None:
    """The coordinates as they were given: dates are dates, labels are labels."""
    if axis.given is not None:
        return _plain(axis.given.values)
    if axis.index is not None and axis.index.values is not None and axis.coding is None:
        values = axis.index.values.values
        if values.dtype.kind in "fiu" and values.shape == axis.shape:
            return values
    return None if axis.static is None else axis.static.values


def _only_counts(axis: Axis) -> bool:
    """Whether it is a dimension without coordinates."""
    return (
        axis.index is not None
        and axis.index.values is None
        and axis.static is not None
        and np.array_equal(axis.static.values, np.arange(axis.size))
    )


def _plain(values: np.ndarray) -> np.ndarray:
    """Dates and labels in the types that files know."""
    if is_dates(values):
        dates = plain(values, "an axis")
        # Days and months are no types of theirs.
        coarse = dates.dtype.kind == "M" and np.datetime_data(dates.dtype)[0] in "YMWDhm"
        return dates.astype("M8[s]") if coarse else dates
    return values.astype(str) if is_labels(values) else values


class _About:
    """Attributes of what a Dataset holds, from those of the data."""

    def __init__(self, post: AbstractPosterior, include_noise: bool):
        template = post.template
        self.attributes = {} if template is None else dict(template.attributes.values)
        self.name = None if template is None else template.name
        self.described = "the data" if template is None else template.described
        self.suffix = ", noise included" if include_noise else ""

    def values(self, what: str) -> dict[str, Any]:
        """Of something in the place of data."""
        return {**self.attributes, "long_name": f"{what} of {self.described}{self.suffix}"}

    def spread(self) -> dict[str, Any]:
        """Of a standard deviation: in the units of the data, but of another meaning."""
        units = {k: v for k, v in self.attributes.items() if k == "units"}
        what = f"posterior standard deviation of {self.described}{self.suffix}"
        return {**units, "long_name": what}

    def title(self) -> dict[str, Any]:
        """Of the whole."""
        return {} if self.name is None else {"title": f"posterior of {self.name}"}


def _checked_levels(quantiles: Sequence[float]) -> tuple[float, ...]:
    try:
        levels = tuple(float(level) for level in np.atleast_1d(np.asarray(quantiles, float)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"Quantiles must be numbers between 0 and 1; got {quantiles!r}.") from error
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"Quantiles must lie between 0 and 1; got {level}.")
    return levels


def check_draws_have_a_key(num_samples: int, key: PRNGKeyArray | None) -> None:
    """Refuse draws without a random key.

    Raises:
        TypeError: with how many were asked for.
    """
    if num_samples and key is None:
        raise TypeError(
            f"{num_samples} draws need a random key: pass key=jax.random.key(0), or another."
        )


def check_names(variables: Sequence[str], dims: Sequence[str], post: AbstractPosterior) -> None:
    """Refuse dimensions and coordinates that are called as a variable.

    Raises:
        ValueError: with the name.
    """
    others = () if post.template is None else [c.name for c in post.template.coordinates]
    taken = sorted(set(variables) & {*dims, *others})
    if taken:
        raise ValueError(
            f"The name {taken[0]!r} is that of a variable of the posterior; the data have a "
            "dimension or coordinate of this name. Rename it (`da.rename`) and build the model "
            "with the new name."
        )
