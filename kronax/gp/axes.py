"""Coordinates of one axis: data, never parameters.

Concrete coordinates are static: they are no pytree leaves, so no optimiser, weight decay or prior
can move them. Traced coordinates (a warped axis) are leaves.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.checks import check_finite, is_concrete
from kronax.parameters import nearest

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

    def __init__(self, values: np.ndarray):
        self.values = np.array(values)
        self.values.setflags(write=False)
        self._is_regular: bool | None = None
        self._is_symmetric: bool | None = None
        self._hash = hash((self.values.shape, str(self.values.dtype), self.values.tobytes()))

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
            and np.array_equal(self.values, other.values)
        )

    def __repr__(self) -> str:
        return f"FrozenArray({self.values.dtype}{list(self.values.shape)})"


class Axis(eqx.Module):
    """The coordinates of one axis, `(n,)` or `(n, p)`."""

    static: FrozenArray | None = eqx.field(static=True)
    traced: Array | None
    period: float | None = eqx.field(static=True)
    shift: float | None = eqx.field(static=True)
    origin: float = eqx.field(static=True)

    def __init__(
        self,
        coordinates: Any,
        name: str,
        *,
        period: float | None = None,
        shift: float | None = None,
        origin: float | None = None,
    ):
        if isinstance(coordinates, Axis):
            self.static, self.traced = coordinates.static, coordinates.traced
            self.period, self.shift = coordinates.period, coordinates.shift
            self.origin = coordinates.origin if origin is None else origin
            return
        self.period, self.shift = period, shift
        concrete = is_concrete(coordinates)
        values = _checked(_as_numpy(coordinates, name) if concrete else coordinates, name)
        self.static = FrozenArray(values) if concrete else None
        self.traced = None if concrete else values
        line = None if self.static is None else self.static.line
        first = 0.0 if line is None else float(line[0])
        self.origin = first if origin is None else origin

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

    def coordinates(self, dtype: Any, *, centred: bool = False) -> Array:
        """The coordinates in the precision of the parameters.

        `centred` takes off `origin` before rounding to that precision: a float32 model then sees
        seconds since 1970 as well as it sees seconds since the first observation.
        """
        origin = self.origin if centred else 0.0
        if self.static is None:
            assert self.traced is not None
            return self.traced.astype(dtype) - origin
        x = self.static.values
        exact = snapped(x) if self.static.is_regular else x
        return jnp.asarray((exact - origin if centred else exact).astype(dtype))

    def places(self, dtype: Any) -> Array:
        """The coordinates; those of a circle as places `(n, 2)` on it, in units of the axis."""
        x = self.coordinates(dtype)
        if self.period is None:
            return x
        radius = self.period / (2 * np.pi)
        angle = x / radius
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    @property
    def is_full_circle(self) -> bool:
        """Whether it is regular and its last place is one step before its first again."""
        if self.period is None or self.static is None or not self.static.is_regular:
            return False
        x = self.static.values.astype(np.float64)
        step = self.period / x.size
        reach = abs(x[-1] - x[0]) - step * (x.size - 1)
        return bool(abs(reach) <= slack(self.static.values) + 4 * np.spacing(self.period))


def circle(axis: Any, period: float) -> Axis:
    """Declare that an axis goes round a circle: longitude, hour of the day, day of the year.

    Isotropic kernels (Matérn, squared exponential, rational quadratic and what they make up) then
    see the chord between two places, in units of the axis: `(p/π) sin(π |x − x'| / p)`, which is
    positive definite at every lengthscale. A regular axis all the way round needs no `eigh`.

    Args:
        axis: coordinates `(n,)`, or what `kx.regular` returns.
        period: the length of the circle in units of the axis, such as 360.0 degrees.

    Raises:
        ValueError: if the period is not positive and finite, or the axis is longer than it, or a
            circle already.
        TypeError: if the coordinates are traced.

    Examples:
        >>> import numpy as np, kronax as kx
        >>> kx.circle(np.arange(0, 360, 5), period=360.0).is_full_circle
        True
    """
    if not isinstance(period, int | float) or not 0 < period < float("inf"):
        raise ValueError(f"The period of a circle must be a positive number; got {period!r}.")
    shift = None
    if isinstance(axis, Axis) and axis.static is not None:
        if axis.period is not None:
            raise ValueError(
                f"The axis is a circle already, of period {axis.period}; got period {period} as "
                "well. Give the coordinates."
            )
        axis, shift = axis.static.values, axis.shift
    result = Axis(axis, "a circle", period=float(period), shift=shift)
    if result.static is None:
        raise TypeError("The coordinates of a circle must be concrete; got traced ones.")
    x = result.static.values
    if x.ndim != 1:
        raise ValueError(f"The coordinates of a circle must have shape (n,); got {x.shape}.")
    if x.size > 1 and abs(float(x.max() - x.min()) - period) <= slack(x):
        raise ValueError(
            f"The first and the last coordinate of a circle must be different places; got {x[0]} "
            f"and {x[-1]} with period {period}. Leave out the last one."
        )
    if float(x.max() - x.min()) > period:
        raise ValueError(
            f"A circle must not be shorter than its axis; got period {period} for coordinates from "
            f"{x.min()} to {x.max()}."
        )
    return result


def regular(axis: Any) -> Axis:
    """Snap an almost regular axis to a regular one; the largest shift is kept and shown.

    Args:
        axis: coordinates `(n,)`.

    Raises:
        ValueError: if some coordinate would move by more than a tenth of a step.
        TypeError: if the coordinates are traced.

    Examples:
        >>> import numpy as np, kronax as kx
        >>> round(kx.regular(np.array([0.0, 1.0, 2.01, 3.0])).shift, 3)
        0.01
    """
    given = Axis(axis, "a regular axis")
    if given.static is None:
        raise TypeError("The coordinates of a regular axis must be concrete; got traced ones.")
    x = given.static.values
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"A regular axis must have shape (n,) with n ≥ 2; got {x.shape}.")
    fitted = snapped(x)
    shift = float(np.abs(fitted - x).max())
    step = abs(fitted[1] - fitted[0])
    if shift > 0.1 * step:
        place = int(np.abs(fitted - x).argmax())
        raise ValueError(
            f"kx.regular moves no coordinate by more than a tenth of the step {step:.4g}; "
            f"coordinate {place} would move from {x[place]} to {fitted[place]:.6g}. Leave the axis "
            "as it is, or put the data on a regular one first."
        )
    return Axis(fitted, "a regular axis", period=given.period, shift=shift)


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
                f"sequence of {num_axes}, with None to leave an axis as it is."
            )
        unknown = [k for k in values if k not in names]
        if unknown:
            raise KeyError(f"{what}: there is no axis {unknown[0]!r}.{nearest(unknown[0], names)}")
        return tuple(values.get(name) for name in names)
    if not isinstance(values, list | tuple) or len(values) != num_axes:
        got = f"{len(values)}" if isinstance(values, list | tuple) else type(values).__name__
        raise ValueError(
            f"{what} must have one entry per axis, {num_axes} in all; got {got}. "
            "Pass None to leave an axis as it is."
        )
    return tuple(values)


def new_axes(
    given: Any, old_axes: Sequence[Axis], names: tuple[str, ...] | None
) -> tuple[Axis | None, ...]:
    """New coordinates for some of the axes, in the same form; `None` for those that stay."""
    if given is None:
        return (None,) * len(old_axes)
    labels = names or tuple(f"axis {i}" for i in range(len(old_axes)))
    values = ordered(given, names, len(old_axes), "The new axes")
    new = tuple(
        None if x is None else Axis(x, f"new {name}", period=old.period, origin=old.origin)
        for x, name, old in zip(values, labels, old_axes, strict=True)
    )
    for old, axis, name in zip(old_axes, new, labels, strict=True):
        if axis is not None and axis.num_dimensions != old.num_dimensions:
            form = "(m,)" if old.num_dimensions is None else f"(m, {old.num_dimensions})"
            size = axis.size
            got = (size,) if axis.num_dimensions is None else (size, axis.num_dimensions)
            raise ValueError(
                f"The new coordinates of {name} must have shape {form}, as the old ones; got "
                f"shape {got}."
            )
    return new
