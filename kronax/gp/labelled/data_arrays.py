"""Labelled and masked arrays as data of a grid: what they say of their cells is what counts.

The dimensions of a DataArray go by name and its coordinates must be the model's; rows and columns
of a pandas object go by their labels, in any order; what is masked is missing. Nothing here imports
xarray or pandas: whoever passes such an object has it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import permutations
from math import prod
from typing import Any

import numpy as np

from kronax.gp.axes.axis import Axis, as_axis
from kronax.gp.axes.dates import is_dates, word_of
from kronax.gp.axes.dates import plain as plain_dates
from kronax.gp.axes.indexes import (
    Index,
    check_units,
    coordinate_values,
    index_of,
    is_frame,
    is_labelled,
)
from kronax.gp.axes.labels import is_labels
from kronax.gp.coordinates.spacing import are_same
from kronax.gp.coordinates.static_arrays import FrozenAttributes
from kronax.gp.labelled.tables import Table, long_series
from kronax.linalg.arrays.checks import plain
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.paths import nearest


def in_grid_order(
    y: Any,
    axes: Sequence[Axis],
    names: tuple[str, ...] | None,
    what: str = "y",
    table: Table | None = None,
) -> Any:
    """Values of a DataArray or pandas object in the order of the axes, NaN where `y` is masked.

    Batches of a DataArray come first. Other arrays stay as they are. The table of the process says
    which column of a long one has the data.

    Raises:
        TypeError: if a DataArray meets a model without names for its axes, or `y` is a Dataset.
        ValueError: if a dimension is missing, or coordinates are not those of the model.
    """
    if is_frame(y):
        return _by_labels(long_series(y, names, what, table), axes, names, what)
    if not is_labelled(y):
        return plain(without_mask(y), what)
    _check_is_data_array(y, what)
    if names is None:
        raise TypeError(
            f"{what} names its dimensions, {', '.join(map(repr, y.dims))}, and the axes of this "
            "model have no names. Name them (kx.GridGP.from_xarray, or kernels= and axes= as "
            "dictionaries), or pass the values in the order of the axes."
        )
    missing = [name for name in names if name not in y.dims]
    if missing:
        raise ValueError(
            f"{what} must have the dimensions of the model, {', '.join(map(repr, names))}; got "
            f"{', '.join(map(repr, y.dims)) or 'none'}, without {missing[0]!r}."
        )
    for name, axis in zip(names, axes, strict=True):
        check_coordinates(y, name, axis, what)
    batch = [dim for dim in y.dims if dim not in names]
    return plain(y.transpose(*batch, *names).values, what)


def _by_labels(y: Any, axes: Sequence[Axis], names: tuple[str, ...] | None, what: str) -> Any:
    """The values of a pandas object, each row and column at the place that its label names."""
    is_long = y.ndim == 1 and y.index.nlevels > 1
    labels = [y.index, y.columns] if y.ndim == 2 else [y.index]
    if is_long:
        labels = [y.index.get_level_values(k) for k in range(y.index.nlevels)]
    if len(labels) != len(axes):
        raise ValueError(
            f"{what} is a {type(y).__name__} with labels along {len(labels)} "
            f"{'axis' if len(labels) == 1 else 'axes'}; the model has {len(axes)}. Give a Series "
            "one level of its index per axis (`frame.set_index([…])[column]`, `frame.stack()`), or "
            f"pass an array in the order of the axes, such as {_values_of(what)}."
        )
    called = names or tuple(f"axis {i}" for i in range(len(axes)))
    find = _cells if is_long else _places
    refused: list[ValueError] = []
    for order in permutations(range(len(labels))):
        own = [labels[k].name for k in order]
        if any(name in called and name != at for name, at in zip(own, called, strict=True)):
            continue
        try:
            places = [find(labels[k], axes[i], called[i], what) for i, k in enumerate(order)]
        except ValueError as error:
            refused.append(error)
            continue
        if is_long:
            return _scattered(y, places, tuple(axis.size for axis in axes), what)
        return np.transpose(_numbers_of(y, what), order)[np.ix_(*places)]
    raise ValueError(
        f"{refused[0]} The labels of a {type(y).__name__} say which cell is which; where they do "
        f"not, pass {_values_of(what)}; of a long table, with a row per cell, the column of the "
        "data by its axes: `frame.set_index([…])[column]`."
    ) from refused[0]


def _values_of(what: str) -> str:
    """How to write the values of a pandas object."""
    return f"`{what}.to_numpy()`" if what.isidentifier() else "its `.to_numpy()`"


def _numbers_of(y: Any, what: str) -> np.ndarray:
    """The values of a pandas object, column by column where their types differ."""
    if y.ndim == 1:
        return np.asarray(plain(y, what))
    return np.stack([np.asarray(plain(y.iloc[:, k], what)) for k in range(y.shape[1])], axis=1)


def _places(labels: Any, axis: Axis, name: str, what: str) -> np.ndarray:
    """Where the label of each place of an axis stands; as they come if the axis is traced.

    Raises:
        ValueError: if they are not the labels of the axis.
    """
    got, wanted = np.asarray(labels), _reference(axis)
    if wanted is None and len(got) == axis.size:
        return np.arange(axis.size)
    if wanted is None or got.shape != wanted.shape or _kind(got) != _kind(wanted):
        raise ValueError(_other_labels(got, wanted, name, what))
    if is_dates(got):
        got, wanted = plain_dates(got, name), plain_dates(wanted, name)
    places = np.empty(axis.size, int)
    places[np.argsort(wanted, kind="stable")] = np.argsort(got, kind="stable")
    if not _equal(got[places], wanted).all():
        raise ValueError(_other_labels(got, wanted, name, what))
    return places


def _cells(labels: Any, axis: Axis, name: str, what: str) -> np.ndarray:
    """The place on an axis of each row of a long table.

    Raises:
        ValueError: if a label is none of the axis.
    """
    got, wanted = np.asarray(labels.infer_objects()), _reference(axis)
    if wanted is None or wanted.ndim > 1 or _kind(got) != _kind(wanted):
        raise ValueError(_other_labels(got, wanted, name, what))
    if is_dates(got):
        got, wanted = plain_dates(got, name), plain_dates(wanted, name)
    known, row = np.unique(got, return_inverse=True)
    order = np.argsort(wanted, kind="stable")
    place = np.searchsorted(wanted[order], known).clip(max=len(wanted) - 1)
    if known.dtype.kind in "fiu":  # rounding may have moved it across
        before = np.maximum(place - 1, 0)
        far, near = (np.abs(wanted[order[k]] - known) for k in (place, before))
        place = np.where(near < far, before, place)
    if not _equal(known, wanted[order[place]]).all():
        raise ValueError(_other_labels(known, wanted, name, what))
    return order[place][row]


def _scattered(
    y: Any, places: Sequence[np.ndarray], shape: tuple[int, ...], what: str
) -> np.ndarray:
    """The grid of a long table, NaN in the cells that it does not have."""
    cells, values = np.ravel_multi_index(tuple(places), shape), _numbers_of(y, what)
    twice = np.flatnonzero(np.bincount(cells) > 1)
    if twice.size:
        label = y.index[int(np.argmax(cells == twice[0]))]
        raise ValueError(
            f"{what} must have one value per cell; got several at {', '.join(map(_word, label))}. "
            "Take their mean: `y.groupby(level=list(range(y.index.nlevels))).mean()`."
        )
    if len(cells) < prod(shape) and values.dtype.kind != "f":
        values = values.astype(float)
    grid = np.full(shape, np.nan if values.dtype.kind == "f" else 0, values.dtype)
    grid.flat[cells] = values
    return grid


def _other_labels(got: np.ndarray, wanted: np.ndarray | None, name: str, what: str) -> str:
    of_model = "unknown" if wanted is None else f"{_kind(wanted)}, {len(wanted)}, {_shown(wanted)}"
    odd = ""
    if wanted is not None and _kind(got) == _kind(wanted):
        lacking = [_word(label) for label in wanted if label not in got]
        surplus = [_word(label) for label in got if label not in wanted]
        double = [_word(label) for k, label in enumerate(got) if label in got[:k]]
        kinds = {"missing": lacking, "not of the model": surplus, "twice": double}
        odd = "".join(f"; {kind}: {', '.join(some[:3])}" for kind, some in kinds.items() if some)
    return (
        f"The labels of {what.replace('The ', 'the ')} along {name} must be the coordinates of the "
        f"model, in any order ({of_model}); got {_kind(got)}, {len(got)}, {_shown(got)}{odd}."
    )


def along_axis(value: Any, axes: Sequence[Axis], names: tuple[str, ...] | None, key: Any) -> Any:
    """Numbers along one axis in its order: a DataArray or Series by its labels."""
    known: tuple = names or tuple(range(len(axes)))
    if is_labelled(value):
        return _part_of_grid(value, axes, names, "The noise")[0]
    if is_frame(value) and key in known:
        return _by_labels(value, (axes[known.index(key)],), (str(key),), "The noise")
    return value


def in_order_of(values: np.ndarray, y: Any, names: tuple[str, ...] | None) -> np.ndarray:
    """An array in the grid layout, batches first, in the order in which `y` came."""
    if not is_labelled(y):
        return values
    layout = [dim for dim in y.dims if dim not in (names or ())] + list(names or ())
    return values.transpose([layout.index(dim) for dim in y.dims])


def _check_is_data_array(value: Any, what: str) -> None:
    if hasattr(value, "data_vars"):
        names = ", ".join(map(repr, value.data_vars)) or "none"
        raise TypeError(
            f"{what} must be one DataArray; got a Dataset. Pass one of its variables ({names})."
        )
    if not is_labelled(value):
        raise TypeError(f"{what} must be an xarray DataArray; got {type(value).__name__}.")


def check_coordinates(y: Any, dim: str, axis: Axis, what: str) -> None:
    """Refuse data whose coordinates along a dimension are not those of the axis."""
    wanted = _reference(axis)
    if wanted is None:  # those of a traced axis are unknown
        return _check_size(y, dim, axis, what)
    if dim not in y.coords:
        if np.array_equal(wanted, np.arange(axis.size)):
            return _check_size(y, dim, axis, what)
        raise ValueError(
            f"{what} has no coordinates along {dim!r}, so that its cells cannot be matched with "
            f"those of the model. Give it some (`assign_coords`), or pass the values in the order "
            "of the axes."
        )
    coordinate = y.coords[dim]
    check_units(FrozenAttributes(coordinate.attrs), axis.index, f"{what} along {dim!r}")
    _check_same(coordinate_values(coordinate), wanted, dim, what)


def _check_size(y: Any, dim: str, axis: Axis, what: str) -> None:
    if y.sizes[dim] != axis.size:
        raise ValueError(
            f"{what} must have {axis.size} places along {dim!r}, as the model; got {y.sizes[dim]}."
        )


def _reference(axis: Axis) -> np.ndarray | None:
    """What the coordinates of data along an axis must be; `None` where that is unknown."""
    if axis.index is not None:
        # Cells of a dimension without coordinates count from zero, as in xarray.
        return np.arange(axis.size) if axis.index.values is None else axis.index.values.values
    if axis.given is not None:
        return axis.given.values
    return None if axis.static is None else axis.static.values


def _check_same(got: np.ndarray, wanted: np.ndarray, dim: str, what: str) -> None:
    what = what.replace("The ", "the ", 1)  # in the middle of a sentence
    kinds = _kind(got), _kind(wanted)
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"The coordinates of {what} along {dim!r} must be those of the model, {kinds[1]}; got "
            f"{kinds[0]}."
        )
    if kinds[0] == "dates":
        got, wanted = plain_dates(got, dim), plain_dates(wanted, dim)
    if got.shape == wanted.shape:
        same = _equal(got, wanted)
        if same.all():
            return
        sortable = got.ndim == 1 and not kinds[0].startswith("of dtype")
        if sortable and _equal(np.sort(got), np.sort(wanted)).all():
            raise ValueError(
                f"The coordinates of {what} along {dim!r} are those of the model in another order, "
                f"{_shown(got)} instead of {_shown(wanted)}. Sort them, for example with "
                f"`.sortby({dim!r})`."
            )
        place = int(np.argmin(same.reshape(len(got), -1).all(axis=1)))
        raise ValueError(
            f"The coordinates of {what} along {dim!r} must be those of the model; got "
            f"{_word(got[place])} instead of {_word(wanted[place])} at index {place}. Select or "
            "interpolate them first; elsewhere the model predicts (`axes=` of the posterior)."
        )
    raise ValueError(
        f"The coordinates of {what} along {dim!r} must be those of the model; got {len(got)}, "
        f"{_shown(got)}, instead of {len(wanted)}, {_shown(wanted)}. Select them first; elsewhere "
        "the model predicts (`axes=` of the posterior)."
    )


def _kind(values: np.ndarray) -> str:
    if is_dates(values):
        calendar = getattr(values.flat[0], "calendar", None)
        return "dates" if calendar is None else f"dates of the calendar {calendar!r}"
    if is_labels(values):
        return "labels"
    return "numbers" if values.dtype.kind in "fiu" else f"of dtype {values.dtype}"


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Entry by entry, numbers up to the rounding of the coarser of the two."""
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        columns = (v.reshape(len(v), -1).T for v in (a, b))
        pairs = zip(*columns, strict=True)
        return np.stack([are_same(*pair) for pair in pairs], axis=-1).reshape(a.shape)
    return np.asarray(a == b)


def _shown(values: np.ndarray) -> str:
    first, last = _word(values[0]), _word(values[-1])
    return first if len(values) == 1 else f"{first} … {last}"


def _word(value: Any) -> str:
    return word_of(value.tolist() if isinstance(value, np.ndarray) else value)


def grid_of_data_array(
    data: Any,
    kernels: Any,
    axes: Mapping[str, Any] | None,
    batch_dims: Sequence[str],
) -> dict[str, Axis]:
    """The axes of a model on the grid of a DataArray, by name, in the order of its dimensions."""
    _check_is_data_array(data, "The data of GridGP.from_xarray")
    if not isinstance(kernels, Mapping):
        raise TypeError(
            "The kernels of GridGP.from_xarray must be a dictionary by dimension; got "
            f"{type(kernels).__name__}."
        )
    if isinstance(batch_dims, str):
        batch_dims = (batch_dims,)
    dims = [dim for dim in data.dims if dim not in batch_dims]
    for given, known, role in (
        (kernels, dims, "kernels"),
        (batch_dims, data.dims, "batch_dims"),
        (axes or {}, dims, "axes"),
    ):
        for name in given:
            if name not in known:
                raise KeyError(
                    f"{role}: the data have no dimension {name!r} to model."
                    f"{nearest(name, list(known))}"
                )
    without = [dim for dim in dims if dim not in kernels]
    if without:
        raise KeyError(
            f"The dimension {without[0]!r} has no kernel; got kernels for "
            f"{', '.join(map(repr, kernels)) or 'none'}. Give it one, or say that it counts "
            f"replicates which share one grid: batch_dims=({without[0]!r},)."
        )
    return {dim: _axis(data, dim, (axes or {}).get(dim)) for dim in dims}


def _axis(data: Any, dim: str, override: Any) -> Axis:
    """The axis of one dimension, with the index under which its cells are found."""
    size, has_coordinates = data.sizes[dim], dim in data.coords
    if override is not None:
        axis = as_axis(override, dim)
    else:
        axis = as_axis(data.coords[dim] if has_coordinates else np.arange(size), dim)
    if axis.size != size:
        raise ValueError(
            f"The axis of {dim!r} must have one place per cell, {size}; got {axis.size}."
        )
    index = index_of(data.coords[dim]) if has_coordinates else Index(None)
    assert index is not None
    columns = index.columns or _columns(data, dim, axis)
    return dataclasses.replace(axis, index=dataclasses.replace(index, columns=columns))


def _columns(data: Any, dim: str, axis: Axis) -> tuple[str, ...]:
    """What the columns of places are called: as the coordinates that they are, if there are."""
    if axis.num_dimensions is None or axis.static is None:
        return ()
    along = {
        str(name): coordinate.values
        for name, coordinate in data.coords.items()
        if coordinate.dims == (dim,) and coordinate.dtype.kind in "fiu"
    }
    names = tuple(
        next((name for name, values in along.items() if np.array_equal(values, column)), None)
        for column in axis.static.values.T
    )
    if None not in names and len(set(names)) == len(names):
        return tuple(name for name in names if name is not None)
    if axis.radius is not None:
        return "latitude", "longitude"
    return tuple(f"{dim}_{i}" for i in range(axis.num_dimensions))


def by_axis(
    value: Any, axes: Sequence[Axis], names: tuple[str, ...] | None, what: str = "The mean"
) -> Any:
    """What has labels along some of the axes as an array that broadcasts to the grid."""
    if is_frame(value):
        named = names or ()
        if value.ndim > 1 or value.index.name not in named or len(axes) == 1:
            return in_grid_order(value, axes, names, what)
        i = named.index(value.index.name)
        numbers = _by_labels(value, (axes[i],), (named[i],), what)
        return numbers.reshape([-1 if k == i else 1 for k in range(len(axes))])
    if not is_labelled(value):
        return value
    values, dims = _part_of_grid(value, axes, names, what)
    lengths = dict(zip(dims, values.shape, strict=True))
    return values.reshape([lengths.get(name, 1) for name in names or ()])


def noise_by_axis(value: Any, axes: Sequence[Axis], names: tuple[str, ...] | None) -> Any:
    """Noise variances that are a DataArray along one axis, as a dictionary by name."""
    if isinstance(value, dict):
        return {key: along_axis(v, axes, names, key) for key, v in value.items()}
    if is_frame(value):
        return in_grid_order(value, axes, names, "The noise")
    if not is_labelled(value):
        return value
    values, dims = _part_of_grid(value, axes, names, "The noise")
    return {dims[0]: values} if len(dims) == 1 else values


def _part_of_grid(
    value: Any, axes: Sequence[Axis], names: tuple[str, ...] | None, what: str
) -> tuple[np.ndarray, list[str]]:
    """The values of a DataArray of some of the axes, in their order, and which they are."""
    _check_is_data_array(value, what)
    unknown = [dim for dim in value.dims if dim not in (names or ())]
    if unknown:
        raise ValueError(
            f"{what} must have dimensions of the grid; got {unknown[0]!r}."
            f"{nearest(unknown[0], names or ())}"
        )
    along = {n: axis for n, axis in zip(names or (), axes, strict=False) if n in value.dims}
    for dim, axis in along.items():
        check_coordinates(value, dim, axis, what)
    return value.transpose(*along).values, list(along)
