"""What nested lists hold: NumPy drops the masks and the labels of arrays in a list."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def parts(value: Any) -> Iterator[Any]:
    """A value and, of a list, all that it holds."""
    yield value
    if isinstance(value, list | tuple):
        for part in value:
            yield from parts(part)


def without_mask(y: Any) -> Any:
    """A masked array as a plain one: NaN, or false in a mask of cells, where it is masked.

    A list may hold masked rows.
    """
    if isinstance(y, list | tuple) and any(isinstance(x, np.ma.MaskedArray) for x in parts(y)):
        y = _stacked(y)
    if isinstance(y, np.ma.MaskedArray) and y.dtype.kind in "fb":
        return y.filled(False if y.dtype.kind == "b" else np.nan)
    return y


def _stacked(y: Any) -> Any:
    return np.ma.stack([_stacked(row) for row in y]) if isinstance(y, list | tuple) else y
