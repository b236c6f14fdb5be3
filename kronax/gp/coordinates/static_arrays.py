"""Arrays and attributes that can be static metadata of a pytree: hashable, compared by value."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class FrozenArray:
    """A NumPy array that can be static metadata of a pytree: hashable, compared by value."""

    def __init__(self, values: np.ndarray):
        self.values = np.array(values)
        self.values.setflags(write=False)
        # Objects (dates of cftime) have no bytes of their own, and those of two calendars refuse
        # to be compared.
        objects = self.values.dtype == object
        self._objects = tuple(map(repr, self.values.flat)) if objects else None
        content = self._objects if objects else self.values.tobytes()
        self._hash = hash((self.values.shape, str(self.values.dtype), content))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, FrozenArray)
            and self._hash == other._hash
            and self.values.dtype == other.values.dtype
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
