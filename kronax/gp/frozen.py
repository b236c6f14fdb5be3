"""Arrays and attributes that can be static metadata of a pytree: hashable, compared by value."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Coordinates that differ from regular ones by at most this many units in the last place are
# regular: that is what rounding in `linspace`, `arange` and float32 files leaves.
UNITS = 4


def slack(x: np.ndarray) -> float:
    """What counts as rounding for coordinates like these."""
    kind = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    return float(UNITS * np.spacing(np.abs(x).max().astype(kind)))


def snapped(x: np.ndarray) -> np.ndarray:
    """Regular coordinates between the same ends, in float64."""
    return np.linspace(x[0].astype(np.float64), x[-1].astype(np.float64), x.shape[0])


class FrozenArray:
    """A NumPy array that can be static metadata of a pytree: hashable, compared by value."""

    def __init__(self, values: np.ndarray, is_exact: bool = False):
        self.values = np.array(values)
        self.values.setflags(write=False)
        self._is_exact = is_exact
        self._is_regular: bool | None = None
        self._is_symmetric: bool | None = None
        # Objects (dates of cftime) have no bytes of their own, and those of two calendars refuse
        # to be compared.
        objects = self.values.dtype == object
        self._objects = tuple(map(repr, self.values.flat)) if objects else None
        content = self._objects if objects else self.values.tobytes()
        self._hash = hash((self.values.shape, str(self.values.dtype), content))

    @property
    def exact(self) -> np.ndarray:
        """The coordinates that are meant: regular ones without the rounding of their dtype."""
        return self.values if self._is_exact or not self.is_regular else snapped(self.values)

    @property
    def line(self) -> np.ndarray | None:
        """Coordinates in one dimension, `(n,)`, also where given as `(n, 1)`; else `None`."""
        x = self.values
        return x if x.ndim == 1 else x[:, 0] if x.shape[1] == 1 else None

    @property
    def is_regular(self) -> bool:
        """Whether the spacing is constant, to units in the last place of the own dtype."""
        if self._is_regular is None:
            x = self.line
            self._is_regular = x is not None and bool(
                np.abs(x - snapped(x)).max() <= slack(x) and (x.size == 1 or x[0] != x[-1])
            )
        return self._is_regular

    @property
    def is_symmetric(self) -> bool:
        """Whether the axis is symmetric about its middle, to units in the last place."""
        if self._is_symmetric is None:
            x = self.line
            self._is_symmetric = x is not None and bool(
                np.abs(x + x[::-1].astype(np.float64) - (np.float64(x[0]) + x[-1])).max()
                <= 2 * slack(x)
            )
        return self._is_symmetric

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, FrozenArray)
            and self._hash == other._hash
            and self.values.dtype == other.values.dtype
            and self._is_exact == other._is_exact
            and self._objects == other._objects
            and (self._objects is not None or np.array_equal(self.values, other.values))
        )

    def __repr__(self) -> str:
        return f"FrozenArray({self.values.dtype}{list(self.values.shape)})"


class FrozenAttributes:
    """What a DataArray says about itself besides its numbers: units, long names and the like."""

    def __init__(self, values: Mapping[Any, Any]):
        self.values = dict(values)
        self._key = tuple((name, _key(value)) for name, value in self.values.items())
        self._hash = hash(self._key)

    @property
    def units(self) -> str | None:
        """The units, if they are known."""
        units = self.values.get("units")
        return None if units is None else str(units)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenAttributes) and self._key == other._key

    def __repr__(self) -> str:
        return f"FrozenAttributes({self.values})"


def _key(value: Any) -> Any:
    """Something hashable that tells values apart; NaN, such as a fill value, is like itself."""
    if isinstance(value, np.ndarray):
        return FrozenArray(value)
    return type(value).__name__, repr(value)
