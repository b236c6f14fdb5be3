"""Coordinates of one axis: data, never parameters.

Concrete coordinates are static: they are no pytree leaves, so no optimiser, weight decay or prior
can move them. Traced coordinates (a warped axis) are leaves.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.checks import check_finite, is_concrete
from kronax.parameters import nearest


class FrozenArray:
    """A NumPy array that can be static metadata of a pytree: hashable, compared by value."""

    def __init__(self, values: np.ndarray):
        self.values = np.array(values)
        self.values.setflags(write=False)
        self._hash = hash((self.values.shape, str(self.values.dtype), self.values.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, FrozenArray)
            and self._hash == other._hash
            and self.values.dtype == other.values.dtype
            and np.array_equal(self.values, other.values)
        )

    def __repr__(self) -> str:
        return f"FrozenArray({self.values.dtype}{list(self.values.shape)})"


class Axis(eqx.Module):
    """The coordinates of one axis, `(n,)` or `(n, p)`."""

    static: FrozenArray | None = eqx.field(static=True)
    traced: Array | None

    def __init__(self, coordinates: Any, name: str):
        if isinstance(coordinates, Axis):
            self.static, self.traced = coordinates.static, coordinates.traced
            return
        concrete = is_concrete(coordinates)
        values = _checked(_as_numpy(coordinates, name) if concrete else coordinates, name)
        self.static = FrozenArray(values) if concrete else None
        self.traced = None if concrete else values

    @property
    def size(self) -> int:
        """Number of coordinates."""
        values = self.traced if self.static is None else self.static.values
        assert values is not None
        return values.shape[0]

    @property
    def num_dimensions(self) -> int | None:
        """`None` for `(n,)` coordinates, else `p`."""
        values = self.traced if self.static is None else self.static.values
        assert values is not None
        return values.shape[1] if values.ndim == 2 else None

    def coordinates(self, dtype: Any) -> Array:
        """The coordinates in the precision of the parameters."""
        if self.static is None:
            assert self.traced is not None
            return self.traced.astype(dtype)
        return jnp.asarray(self.static.values.astype(dtype))


def _as_numpy(coordinates: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(coordinates)
    except ValueError as error:
        raise ValueError(
            f"The coordinates of {name} must form a rectangular array; got {coordinates!r}."
        ) from error


def _checked(values: Any, name: str) -> Any:
    if values.dtype.kind not in "fiu":
        raise TypeError(
            f"The coordinates of {name} must be real numbers; got dtype {values.dtype}. Convert "
            "dates or labels first, for example to decimal years."
        )
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(
            f"The coordinates of {name} must have shape (n,), or (n, p) for places in p "
            f"dimensions; got shape {tuple(values.shape)}."
        )
    if not isinstance(values, jax.core.Tracer):
        check_finite(values, f"The coordinates of {name}")
    return values


def ordered(values: Any, names: tuple[str, ...] | None, num_axes: int, what: str) -> tuple:
    """One entry per axis, from a sequence or from a dictionary by name; left out means `None`."""
    if isinstance(values, dict):
        if names is None:
            raise TypeError(
                f"{what} by name needs a GridGP with named axes; this one has none. Pass a "
                f"sequence of {num_axes}, with None for an axis that stays."
            )
        unknown = [k for k in values if k not in names]
        if unknown:
            raise KeyError(f"{what}: there is no axis {unknown[0]!r}.{nearest(unknown[0], names)}")
        return tuple(values.get(name) for name in names)
    if not isinstance(values, list | tuple) or len(values) != num_axes:
        got = f"{len(values)}" if isinstance(values, list | tuple) else type(values).__name__
        raise ValueError(
            f"{what} must have one entry per axis, {num_axes} in all; got {got}. "
            "Pass None for an axis that stays."
        )
    return tuple(values)
