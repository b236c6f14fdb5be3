"""Rows of a table as cells of a grid."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from kronax.paths import nearest

# Grids are filled at least so far: of a sparser one the rows alone are the smaller problem.
LEAST_FILLED = 0.25
# Rows of which the dense covariance is decomposed, in some seconds.
MOST_ROWS = 5_000
# Cells of a grid that rows may ask for.
MOST_CELLS = 50_000_000


class Rows(NamedTuple):
    """Rows on the grid of the coordinates that occur.

    Attributes:
        axes: ascending coordinates `(n_i,)` or `(n_i, p_i)` per axis.
        cells: of every row, which of these it has.
    """

    axes: tuple[np.ndarray, ...]
    cells: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def places(self) -> tuple[np.ndarray, ...]:
        """Coordinates of every row, axis by axis."""
        return tuple(axis[at] for axis, at in zip(self.axes, self.cells, strict=True))

    @property
    def num_cells(self) -> int:
        """Of the grid."""
        return prod(self.shape)

    @property
    def fill_a_grid(self) -> bool:
        """Whether the rows are at least a quarter of its cells."""
        return len(self.cells[0]) >= LEAST_FILLED * self.num_cells

    def with_replicates(self) -> "Rows":
        """With one more axis, which counts the rows of a cell, if some have several."""
        cell = np.ravel_multi_index(self.cells, self.shape)
        order = np.argsort(cell, kind="stable")
        ahead = cell[order]
        first = np.searchsorted(ahead, ahead)  # where the rows of this cell begin
        number = np.empty(len(cell), int)
        number[order] = np.arange(len(cell)) - first
        if not number.any():
            return self
        return Rows((*self.axes, np.arange(number.max() + 1.0)), (*self.cells, number))


def rows_of(X: np.ndarray, groups: Sequence[Sequence[int]]) -> Rows:
    """The grid of the coordinates that occur in each group of columns."""
    axes, index = [], []
    for group in groups:
        columns = X[:, group[0]] if len(group) == 1 else X[:, group]
        found, inverse = np.unique(columns, axis=0, return_inverse=True)
        axes.append(found)
        index.append(inverse.reshape(-1))
    return Rows(tuple(axes), tuple(index))


def column_groups(
    axes: Any, kernels: Any, names: Sequence[str] | None, count: int
) -> tuple[list[str], list[list[int]]]:
    """Names of the axes, and the columns that are the coordinates of each.

    Raises:
        KeyError: if there is no column of a name.
        TypeError: if columns are given neither by name nor by number.
        ValueError: if a column is used twice, or not at all.
    """
    labels = [str(name) for name in names] if names is not None else [f"x{k}" for k in range(count)]
    if axes is None:
        axes = {label: k for k, label in enumerate(labels)}
        if isinstance(kernels, Mapping) and set(kernels) == set(labels):
            axes = {label: axes[label] for label in kernels}
    elif not isinstance(axes, Mapping):
        parts = [_numbers(part, labels) for part in axes]
        axes = {", ".join(labels[k] for k in part): part for part in parts}
    groups = [_numbers(part, labels) for part in axes.values()]
    used = sorted(k for group in groups for k in group)
    if used != list(range(count)):
        raise ValueError(
            f"Every one of the {count} columns of X must be in one axis; got axes={dict(axes)!r}."
        )
    return [str(name) for name in axes], groups


def _numbers(part: Any, labels: Sequence[str]) -> list[int]:
    parts = [part] if isinstance(part, str | int | np.integer) else list(part)
    return [_number(one, labels) for one in parts]


def _number(column: Any, labels: Sequence[str]) -> int:
    if isinstance(column, str):
        if column not in labels:
            raise KeyError(f"axes: X has no column {column!r}.{nearest(column, labels)}")
        return labels.index(column)
    if isinstance(column, int | np.integer) and not isinstance(column, bool):
        if not 0 <= column < len(labels):
            raise KeyError(f"axes: X has {len(labels)} columns, counted from 0; got {column}.")
        return int(column)
    raise TypeError(f"axes must name columns of X by name or number; got {column!r}.")


def per_axis(kernels: Any, names: Sequence[str]) -> list[Any] | None:
    """The kernels in the order of the axes; `None` where there are none.

    Raises:
        KeyError: if they are given by name, and the names are not those of the axes.
        ValueError: if there is not one per axis.
    """
    if kernels is None:
        return None
    if isinstance(kernels, Mapping):
        if set(kernels) != set(names):
            raise KeyError(
                f"The kernels must be by the names of the axes, {list(names)}; got {list(kernels)}."
            )
        return [kernels[name] for name in names]
    given = list(kernels) if isinstance(kernels, list | tuple) else [kernels]
    if len(given) != len(names):
        raise ValueError(
            f"There must be one kernel per axis, {len(names)}: {', '.join(names)}; got "
            f"{len(given)}. Several columns are one axis by axes=[[0, 1], 2]."
        )
    return given
