"""Scattered places axis by axis, from rows or from columns: the container says which they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.labels import Labels
from kronax.linalg.arrays.checks import is_concrete

FORMS = (
    "points must have shape (m, {0}), rows in an array or a nested list, or be one array of m per "
    "axis, in a tuple or a dictionary"
)
NUMBERS = int | float | np.generic | np.ndarray | jax.Array


def columns_of(points: Any, axes: Sequence[Axis]) -> Any:
    """One entry of `m` per axis, by position or by name.

    Args:
        points: rows `(m, d)` in an array or a nested list, which may hold labels and dates beside
            numbers; or columns, in a tuple or a dictionary.
        axes: the d axes.

    Raises:
        TypeError: if it is of another kind, or an array of text where axes have other coordinates.
        ValueError: if a row has another number of entries.
    """
    num_axes = len(axes)
    if isinstance(points, Mapping):
        return dict(points)
    if isinstance(points, tuple):
        return _checked_columns(points, num_axes)
    if isinstance(points, list) and not is_concrete(points):
        points = jnp.asarray(points)
    if isinstance(points, list):
        return _columns_of_rows(points, num_axes)
    if not isinstance(points, np.ndarray | jax.Array):
        raise TypeError(
            f"{FORMS.format(num_axes)}; got {type(points).__name__}. Of a table take the columns "
            "by the names of the axes, in a dictionary, or its numbers in the order of the axes."
        )
    if points.ndim != 2 or points.shape[1] != num_axes:
        raise ValueError(f"{FORMS.format(num_axes)}; got shape {tuple(points.shape)}.")
    if points.dtype.kind in "UST" and not all(isinstance(x.coding, Labels) for x in axes):
        raise TypeError(
            "An array has one dtype: beside labels the other coordinates became text. Pass points "
            "as a nested list of rows, or as a tuple with one array of m per axis."
        )
    columns = [points[:, i] for i in range(num_axes)]
    return [x.tolist() if x.dtype.kind == "O" else x for x in columns]


def _checked_columns(columns: tuple[Any, ...], num_axes: int) -> tuple[Any, ...]:
    """A tuple, refused where it cannot hold one array per axis."""
    if len(columns) != num_axes:
        raise ValueError(
            f"{FORMS.format(num_axes)}; got a tuple of {len(columns)}. A tuple has one array per "
            "axis: put rows, one per place, into a list or an array."
        )
    if any(np.ndim(x) == 0 for x in columns if isinstance(x, NUMBERS)):
        raise ValueError(
            f"{FORMS.format(num_axes)}; got a tuple of numbers. One place is a row of its own: "
            f"[{list(columns)!r}]."
        )
    return columns


def _columns_of_rows(rows: list[Any], num_axes: int) -> list[list[Any]]:
    """The columns of a nested list; entries may be places themselves."""
    for k, row in enumerate(rows):
        is_array = isinstance(row, np.ndarray | jax.Array) and row.ndim > 0
        if not (is_array or isinstance(row, list | tuple)) or len(row) != num_axes:
            raise ValueError(
                f"{FORMS.format(num_axes)}; row {k} of the list is {row!r}. Put one array per axis "
                "into a tuple."
            )
    return [[row[i] for row in rows] for i in range(num_axes)]
