"""Tables of pandas as grids: long ones with a row per cell, wide ones with a row per place.

Nothing here imports pandas but what makes a table: whoever passes one has it.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from kronax.gp.axes.axis import Axis, as_axis
from kronax.gp.axes.dates import word_of
from kronax.gp.axes.indexes import Index, is_frame
from kronax.gp.coordinates.static_arrays import FrozenArray
from kronax.paths import nearest

# A grid with so many cells for every row is hardly meant.
SPARSE = 20
# A message lists so many cells.
SHOWN = 5


@dataclass(frozen=True)
class Table:
    """What a process remembers of the table that it was made for.

    Args:
        index: the columns, or levels of its index, that are the axes; of a wide one the names of
            its rows and columns.
        value: the column of the data; `None` if it is wide.
        num_values: how many data it had.
    """

    index: tuple[Hashable, ...]
    value: Hashable | None
    # Which is no part of what it is: models of equal grids share their compiled programs.
    num_values: int = field(default=0, compare=False)

    def describe(self, num_cells: int) -> str:
        """How full the grid is, in words."""
        what = "a wide table" if self.value is None else f"{self.value!r} of a long table"
        share = 100 * self.num_values / num_cells
        return f"{what}: {self.num_values} values in {num_cells} cells ({share:.3g} %)"


def read_table(
    frame: Any, index: Any, value: Any, axes: Mapping[str, Any] | None
) -> tuple[Table, dict[str, Axis]]:
    """The table and the axes of its grid by name, coordinates in ascending order.

    Raises:
        TypeError: if it is no table of pandas.
        KeyError: if it has no such column.
        ValueError: if a coordinate is missing, or several rows are of one cell.
    """
    if not is_frame(frame):
        raise TypeError(
            f"GridGP.from_frame needs a pandas DataFrame or Series; got {type(frame).__name__}."
        )
    if frame.ndim == 1 and frame.index.nlevels > 1:
        index = list(frame.index.names) if index is None else index
        value, frame = frame.name, frame.to_frame(frame.name)
    names = None if index is None else tuple([index] if isinstance(index, str) else index)
    if value is None:
        labels = _wide(frame, names)
        table = Table(tuple(labels), None, int(frame.notna().to_numpy().sum()))
    else:
        columns = _long(frame, names, value)
        labels = {name: _coordinates(column, name) for name, column in columns.items()}
        _check_cells(columns, labels, value)
        table = Table(tuple(labels), value, int(frame[value].notna().sum()))
    found = {str(name): _axis(x, str(name), axes or {}) for name, x in labels.items()}
    for name in axes or {}:
        if name not in found:
            raise KeyError(f"axes: the table has no axis {name!r}.{nearest(name, list(found))}")
    _warn_if_sparse(table, [axis.size for axis in found.values()])
    return table, found


def _wide(frame: Any, names: tuple[Hashable, ...] | None) -> dict[Hashable, np.ndarray]:
    """The labels of rows and columns of a wide table, by the names of their axes."""
    if frame.ndim != 2 or frame.index.nlevels > 1 or frame.columns.nlevels > 1:
        raise ValueError(
            "A wide table has one level of labels for its rows and one for its columns. Make it "
            'long, with a row per cell, and pass index=["time", …] and value="…".'
        )
    names = names or (frame.index.name, frame.columns.name)
    columns = [name for name in names if name is not None and name in frame.columns]
    if len(names) != 2 or columns:
        raise TypeError(
            "Of a long table say which column has the data: value=, one of "
            f"{_listed([c for c in frame.columns if c not in names])}."
        )
    if None in names:
        raise TypeError(
            "The rows and the columns of a wide table need names, which are those of its kernels: "
            'pass index=["time", "station"], say, rows first; or name them '
            '(`frame.rename_axis(index="time", columns="station")`). Of a long table, with a row '
            "per cell, say value= as well."
        )
    found = {}
    for name, labels in zip(names, (frame.index, frame.columns), strict=True):
        if not labels.is_unique:
            double = labels[labels.duplicated()]
            raise ValueError(
                f"The labels of {name!r} must be different; got {_word(double[0])} more than once. "
                "Take the mean of such rows or columns first."
            )
        found[name] = _ascending(np.asarray(labels))
    return found


def _long(frame: Any, names: tuple[Hashable, ...] | None, value: Any) -> dict[Hashable, Any]:
    """The columns of a long table that are axes, by name."""
    if not names:
        raise TypeError(
            'The axes of a long table are columns: pass index=["time", "station"], say, the names '
            f"of some of {_listed(frame.columns)}."
        )
    known = [*frame.columns, *(name for name in frame.index.names if name is not None)]
    for name in (*names, value):
        if name not in known:
            raise KeyError(f"The table has no column {name!r}.{nearest(name, known)}")
    if value in names:
        raise ValueError(f"The data must be no axis; got {value!r} for both.")
    if len(set(names)) < len(names):
        raise ValueError(f"The axes must be different columns; got {_listed(names)}.")
    return {name: column_of(frame, name) for name in names}


def column_of(frame: Any, name: Hashable) -> Any:
    """A column of a table, or a level of its index."""
    return frame[name] if name in frame.columns else frame.index.get_level_values(name)


def _coordinates(column: Any, name: Hashable) -> np.ndarray:
    """The different entries of a column in ascending order; categories in theirs."""
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(
            f"Every row must have a coordinate of every axis; {missing} of {len(column)} rows have "
            f"none of {name!r}. Leave them out: `frame.dropna(subset=[{name!r}])`."
        )
    categories = getattr(column.dtype, "categories", None)
    if categories is not None:
        used = set(column.unique())
        return np.asarray([x for x in categories if x in used])
    return _ascending(np.asarray(column.unique()))


def _ascending(values: np.ndarray) -> np.ndarray:
    try:
        return np.sort(values)
    except TypeError:  # of several kinds, which an axis refuses in words
        return values


def _check_cells(
    columns: Mapping[Hashable, Any], labels: Mapping[Hashable, np.ndarray], value: Hashable
) -> None:
    """Refuse several rows of one cell."""
    names = list(columns)
    codes = [_places(column, labels[name]) for name, column in columns.items()]
    cells = np.ravel_multi_index(codes, [len(labels[name]) for name in names])
    found, counts = np.unique(cells, return_counts=True)
    double = found[counts > 1]
    if not double.size:
        return
    places = np.unravel_index(double[:SHOWN], [len(labels[name]) for name in names])
    shown = [
        f"{', '.join(_word(labels[n][k]) for n, k in zip(names, cell, strict=True))} ({count} rows)"
        for cell, count in zip(zip(*places, strict=True), counts[counts > 1], strict=False)
    ]
    more = f"; and {double.size - SHOWN} more" if double.size > SHOWN else ""
    raise ValueError(
        f"A long table must have one row per cell of {_listed(names)}; {double.size} cells have "
        f"several: {'; '.join(shown)}{more}. Take their mean, "
        f"`frame.groupby({names!r}, as_index=False)[{value!r}].mean()`, or name the column that "
        "tells them apart in index=."
    )


def _places(column: Any, labels: np.ndarray) -> np.ndarray:
    """The place of every entry of a column among its labels."""
    place = {label: k for k, label in enumerate(labels.tolist())}
    return np.array([place[x] for x in np.asarray(column).tolist()])


def _axis(labels: np.ndarray, name: str, given: Mapping[str, Any]) -> Axis:
    """An axis whose cells go by the labels, with other coordinates if some are given."""
    if given.get(name) is None:
        return as_axis(labels, name)
    other = given[name]
    if is_frame(other):  # of places, by their labels
        missing = [x for x in labels if x not in other.index]
        if missing:
            raise KeyError(
                f"The coordinates of {name!r} must be given for all its labels; got none of "
                f"{_listed(missing[:SHOWN])}."
            )
        other = other.loc[list(labels)].to_numpy()
    axis = as_axis(other, name)
    if axis.size != len(labels):
        raise ValueError(
            f"The axis of {name!r} must have one place per label, {len(labels)}, in ascending "
            f"order of the labels; got {axis.size}."
        )
    return replace(axis, index=Index(FrozenArray(labels)))


def _warn_if_sparse(table: Table, sizes: Sequence[int]) -> None:
    cells = prod(sizes)
    if cells <= SPARSE * max(table.num_values, 1):
        return
    shape = " × ".join(map(str, sizes))
    name = table.index[int(np.argmax(sizes))]
    warnings.warn(
        f"The table fills {100 * table.num_values / cells:.2g} % of its grid of {shape} cells, "
        f"which is hardly one. If {name!r} are times or places that differ a little, round them "
        f"first, for example `frame[{name!r}].dt.floor('h')` or `.round(1)`.",
        UserWarning,
        stacklevel=5,
    )


def long_series(frame: Any, names: tuple[str, ...] | None, what: str, table: Table | None) -> Any:
    """The data of a long table as a Series that goes by the axes; anything else as it is.

    Raises:
        ValueError: if it does not say which column has the data.
    """
    index = list(names or ()) if table is None else list(table.index)
    if frame.ndim != 2 or not index:
        return frame
    known = [*frame.columns, *frame.index.names]
    if any(name not in known for name in index):
        return frame
    others = [name for name in frame.columns if name not in index]
    value = None if table is None else table.value
    if value is None and len(others) == 1:
        value = others[0]
    if value not in others:
        which = f"{what}.set_index({index!r})[column]" if what.isidentifier() else "one column"
        raise ValueError(
            f"{what} is a long table, with a row per cell of {_listed(index)}; say which of its "
            f"columns {_listed(others)} has the data: pass {which}, or build the model by "
            "kx.GridGP.from_frame(frame, index=…, value=…), which remembers it."
        )
    return frame[value].set_axis(row_labels(frame, index, names))


def row_labels(frame: Any, index: Sequence[Hashable], names: Sequence[str] | None = None) -> Any:
    """The cell of every row of a long table, as the index of a Series."""
    levels = [name for name in index if name not in frame.columns]
    frame = frame.reset_index(levels) if levels else frame
    labels = frame.set_index(list(index)).index
    return labels.set_names(list(names)) if names else labels


def is_column(values: Any, frame: Any) -> bool:
    """Whether it is a column of a table: a Series with its rows."""
    return is_frame(values) and values.ndim == 1 and values.index.equals(frame.index)


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _word(value: Any) -> str:
    return word_of(value)
