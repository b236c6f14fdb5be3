"""Coordinates of one axis: data, never parameters.

Concrete coordinates are static: they are no pytree leaves, so no optimiser, weight decay or prior
can move them. Traced coordinates (a warped axis) are leaves.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.dates import Dates, dates_from, is_dates
from kronax.gp.axes.indexes import Index, check_units, coordinate_values, index_of, is_labelled
from kronax.gp.axes.labels import Labels, is_labels, labels_from
from kronax.gp.coordinates.spacing import SHARE, UNITS, Coordinates, Origin, less, matched
from kronax.gp.coordinates.static_arrays import FrozenArray, FrozenAttributes
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.checks import check_finite, is_concrete
from kronax.linalg.arrays.host import on_device
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.paths import nearest


class Axis(eqx.Module):
    """The coordinates of one axis, `(n,)` or `(n, p)`.

    Args:
        static: concrete coordinates.
        traced: traced ones, if there are no concrete ones.
        origin: what concrete coordinates, and new ones beside them, count from.
        start: what new ones count from beside traced ones: the first of those.
        period: the length of a declared circle.
        radius: that of a declared sphere.
        shift: how far `kx.regular` moved a coordinate at most.
        coding: how dates or labels became coordinates.
        given: these dates or labels.
        index: under what the cells are found in a DataArray, if the axis comes from one.
    """

    static: Coordinates | None = eqx.field(static=True)
    traced: Array | None
    origin: Origin | None = eqx.field(static=True, default=None)
    start: Array | None = None
    period: float | None = eqx.field(static=True, default=None)
    radius: float | None = eqx.field(static=True, default=None)
    shift: float | None = eqx.field(static=True, default=None)
    coding: Dates | Labels | None = eqx.field(static=True, default=None)
    given: FrozenArray | None = eqx.field(static=True, default=None)
    index: Index | None = eqx.field(static=True, default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n,)` or `(n, p)`."""
        values = self.traced if self.static is None else self.static.values
        assert values is not None
        return values.shape

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.shape[0]

    @property
    def num_dimensions(self) -> int | None:
        """`None` for `(n,)` coordinates, else `p`."""
        return self.shape[1] if len(self.shape) == 2 else None

    def coordinates(self, dtype: Any) -> Array:
        """The coordinates in the precision of the parameters."""
        if self.static is None:
            assert self.traced is not None
            return self.traced.astype(dtype)
        return on_device(self.exact.astype(dtype))

    def points(self, dtype: Any) -> Points:
        """The coordinates in every form that a kernel may want.

        They count from the origin before they are rounded to the precision of the parameters: a
        float32 model then sees seconds since 1970 as well as seconds since the first observation.
        """
        is_known = self.static is not None and self.start is None
        wide: Any = self.offsets if is_known else self._traced_offsets()
        places: Any = None
        if self.period is not None:
            places = _on_circle(wide, self.period)
        elif self.radius is not None:
            # The nearer the places are to zero, the more float32 keeps of their distances.
            first = self._on_sphere(np.array([self.origin], np.float64))
            x = self.coordinates(dtype) if self.static is None else self.exact.astype(np.float64)
            places = self._on_sphere(x) - first.astype(x.dtype)
        if places is not None:
            places = on_device(places.astype(dtype))
        centred = on_device(wide.astype(dtype))
        return Points(self.coordinates(dtype), centred, places, self.origin)

    def points_among(self, old: "Axis", dtype: Any) -> Points:
        """`points` that know which coordinates of the old axis they are."""
        found = self.points(dtype)
        if self.static is None or old.static is None:
            return found
        where, are_same = matched(self.offsets, old.offsets, np.zeros(()))
        if not are_same.any():
            new, known = (x.offsets.astype(dtype).reshape(x.size, -1) for x in (self, old))
            is_apart = not matched(new, known, np.zeros(()))[1].any()
            return dataclasses.replace(found, is_apart=is_apart)
        cells = on_device(np.where(are_same, where, -1).astype(np.int32))
        return dataclasses.replace(found, cells=cells)

    def _traced_offsets(self) -> Array:
        """Differences from the origin, in the dtype of the coordinates: before they are rounded."""
        x = jnp.asarray(self.exact) if self.static is not None else self.traced
        assert x is not None
        if self.origin is not None:
            return _less_traced(x, np.asarray(self.origin)[None])
        start = x[0] if self.start is None else self.start
        dtype = jnp.promote_types(x.dtype, start.dtype)
        return x.astype(dtype) - start[None].astype(dtype)

    def _on_sphere(self, x: Any) -> Any:
        """Places `(n, 3)` on the sphere."""
        xp: Any = np if isinstance(x, np.ndarray) else jnp
        latitude = xp.deg2rad(x[:, 0])
        longitude = xp.deg2rad(xp.mod(x[:, 1], 360))
        across = xp.cos(latitude)
        unit = [across * xp.cos(longitude), across * xp.sin(longitude), xp.sin(latitude)]
        return self.radius * xp.stack(unit, axis=-1)

    @property
    def offsets(self) -> np.ndarray:
        """How far the concrete coordinates that are meant are from the origin, in float64."""
        assert self.static is not None
        x = self.static.offsets
        if self.period is None or not self.is_full_circle:
            return x
        # The step of a full circle is known from its period: the last coordinate, as rounded, would
        # leave a circle that does not quite close.
        return x[0] + np.sign(x[-1] - x[0]) * self.period / x.size * np.arange(x.size)

    @property
    def exact(self) -> np.ndarray:
        """The concrete coordinates that are meant, without the rounding of their dtype."""
        assert self.static is not None
        if self.period is None or not self.is_full_circle:
            return self.static.exact
        return np.asarray(self.origin, np.float64) + self.offsets

    @property
    def is_distinct(self) -> bool:
        """Whether no place is known to occur twice."""
        if self.static is None:
            return False
        x = self.offsets
        if self.period is not None:
            x = np.mod(x, self.period)
        elif self.radius is not None:
            x = self._on_sphere(self.exact.astype(np.float64))
        return len(np.unique(x, axis=0)) == self.size

    @property
    def is_full_circle(self) -> bool:
        """Whether it is regular and its last place is one step before its first again."""
        if self.period is None or self.static is None or not self.static.is_regular:
            return False
        x = self.static.counted
        step = self.period / x.size
        reach = abs(x[-1] - x[0]) - step * (x.size - 1)
        rounding = float(self.static.rounding) + UNITS * np.spacing(self.period)
        return bool(abs(reach) <= min(rounding, SHARE * step))

    def at(self, k: int) -> Any:
        """One coordinate as it was given: a number, a tuple of them, a date or a label."""
        if self.given is not None:
            return self.given.values[k]
        values = self.traced if self.static is None else self.static.values
        place = np.asarray(values)[k].tolist()
        return tuple(place) if isinstance(place, list) else place

    def describe(self) -> str:
        """What the coordinates alone do not show."""
        words = []
        if self.coding is not None and self.given is not None:
            words.append(f"{self.coding.what} {self.coding.describe(self.given.values)}")
        if self.period is not None:
            words.append(f"circle of period {self.period:.6g}")
        if self.radius is not None:
            words.append(f"sphere of radius {self.radius:.6g}")
        if self.shift is not None:
            words.append(f"snapped by at most {self.shift:.3g}")
        if self.coding is None and self.index is not None and self.index.attributes.units:
            words.append(f"in {self.index.attributes.units}")
        return ", ".join(words)


def as_axis(coordinates: Any, name: str, unit: str = "days") -> Axis:
    """An axis from coordinates, dates or labels.

    Args:
        coordinates: `(n,)` or `(n, p)`; or an axis, which stays as it is.
        name: what errors call it.
        unit: of dates.

    Raises:
        ValueError: if they are not finite, or of another shape.
        TypeError: if they are neither real numbers nor dates nor labels.
    """
    if isinstance(coordinates, Axis):
        return coordinates
    if not is_concrete(coordinates):
        return Axis(None, _checked(coordinates, name))
    values = _as_numpy(coordinates, name)
    coding: Dates | Labels | None = None
    if is_dates(values):
        coding = dates_from(values, unit, name)
    elif is_labels(values):
        coding = labels_from(values, name)
    numbers = _checked(values if coding is None else coding.encode(values, name), name)
    static = Coordinates(numbers)
    return Axis(
        static,
        None,
        origin=static.origin,
        coding=coding,
        given=None if coding is None else FrozenArray(values),
        index=index_of(coordinates),
    )


def _like(coordinates: Any, old: Axis, name: str) -> Axis:
    """New coordinates of an axis: in its units, from its origin, on its circle or sphere."""
    index = coordinates.index if isinstance(coordinates, Axis) else index_of(coordinates)
    if index is not None:
        check_units(index.attributes, old.index, name)
    if isinstance(coordinates, Axis):
        coordinates = next(
            x if isinstance(x, jax.Array) else x.values
            for x in (coordinates.given, coordinates.static, coordinates.traced)
            if x is not None
        )
    static, traced, given = None, None, None
    if not is_concrete(coordinates):
        traced = _checked(coordinates, name)
        _check_kind(None, old, name)
        _check_dimensions(traced, old, name)
    else:
        values = _as_numpy(coordinates, name)
        _check_kind(values, old, name)
        numbers = values
        if old.coding is not None:
            numbers, given = old.coding.encode(values, name), FrozenArray(values)
        numbers = _checked(numbers, name)
        _check_dimensions(numbers, old, name)
        static = Coordinates(numbers, old.origin)
        index = Index(FrozenArray(values) if index is None else index.values, *_called(index, old))
    start = old.traced[0] if old.traced is not None and old.origin is None else None
    new = dataclasses.replace(
        old, static=static, traced=traced, start=start, shift=None, given=given, index=index
    )
    check_places(new, name)
    return _aligned(new, old)


def _called(index: Index | None, old: Axis) -> tuple[FrozenAttributes, tuple[str, ...]]:
    """The attributes and the columns of new coordinates: their own, else those of the axis."""
    attributes = FrozenAttributes({})
    columns: tuple[str, ...] = ()
    for known in (old.index, index):
        if known is not None:
            attributes = FrozenAttributes({**attributes.values, **known.attributes.values})
            columns = known.columns or columns
    return attributes, columns


def _check_dimensions(numbers: Any, old: Axis, name: str) -> None:
    """Refuse coordinates in another number of dimensions than the old ones have."""
    if numbers.shape[1:] != old.shape[1:]:
        form = "(m,)" if old.num_dimensions is None else f"(m, {old.num_dimensions})"
        raise ValueError(
            f"The new coordinates of {name.removeprefix('new ')} must have shape {form}, as the "
            f"old ones; got shape {numbers.shape}."
        )


def _check_kind(values: np.ndarray | None, old: Axis, name: str) -> None:
    """Refuse numbers for dates or labels, and the reverse."""
    wanted = "numbers" if old.coding is None else old.coding.what
    got = "numbers"
    if values is not None and (is_dates(values) or is_labels(values)):
        got = "dates" if is_dates(values) else "labels"
    if got != wanted:
        raise TypeError(f"The coordinates of {name} must be {wanted}, as the old ones; got {got}.")


def _aligned(new: Axis, old: Axis) -> Axis:
    """New coordinates that are old ones but for rounding become the same numbers."""
    if new.static is None or old.static is None:
        return new
    limit = np.maximum(new.static.rounding, old.static.rounding)
    where, same = matched(new.offsets, old.offsets, limit)
    if not same.any():
        return new
    same = same.reshape(-1, *(1,) * (new.static.values.ndim - 1))
    values, offsets = (
        np.where(same, known[where], own)
        for own, known in ((new.exact, old.exact), (new.offsets, old.offsets))
    )
    static = Coordinates(values, old.origin, offsets, is_exact=True)
    return dataclasses.replace(new, static=static)


def _less_traced(x: Array, origin: np.ndarray) -> Array:
    """`x − origin` in the dtype of `x`: what that holds of the origin first, then the rest."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        whole, limits = np.rint(origin), np.iinfo(x.dtype)
        if (whole < limits.min).any() or (whole > limits.max).any():
            return _less_traced(x.astype(float), origin)
        whole = (whole if origin.dtype.kind == "f" else origin).astype(x.dtype)
        near = (x - whole).astype(float)
        return near - less(origin, whole).astype(near.dtype)
    high = origin.astype(x.dtype)
    return (x - high) - less(origin, high).astype(x.dtype)


def _on_circle(x: Any, period: float) -> Any:
    """Places `(n, 2)` on a circle, less the one where the angle is zero."""
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    radius = period / (2 * np.pi)
    angle = xp.mod(x, period) / radius
    return radius * xp.stack([-2 * xp.sin(angle / 2) ** 2, xp.sin(angle)], axis=-1)


def check_places(axis: Axis, name: str) -> None:
    """Refuse coordinates that are no places on a declared sphere."""
    if axis.radius is None:
        return
    if axis.shape[1:] != (2,):
        raise ValueError(
            f"The coordinates of {name} on a sphere must be latitudes and longitudes in degrees, "
            f"(n, 2); got shape {axis.shape}."
        )
    x = np.zeros((1, 2)) if axis.static is None else axis.static.values
    wrong = (np.abs(x) > (90, 360)).any(axis=1)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"The coordinates of {name} on a sphere must be latitudes from -90 to 90 and "
            f"longitudes from -360 to 360 degrees, in this order; got {x[place].tolist()} at index "
            f"{place}."
        )


def _as_numpy(coordinates: Any, name: str) -> np.ndarray:
    if is_labelled(coordinates):
        return coordinate_values(coordinates)
    if isinstance(coordinates, list | tuple):
        coordinates = without_mask(coordinates)
    if np.ma.is_masked(coordinates):
        place = np.argwhere(np.ma.getmaskarray(coordinates))[0].tolist()
        raise ValueError(
            f"The coordinates of {name} must not be missing; entry {place[0]} is masked. Leave out "
            "its cells."
        )
    try:
        values = np.asarray(coordinates)
    except ValueError as error:
        raise ValueError(
            f"The coordinates of {name} must form a rectangular array; got {coordinates!r}."
        ) from error
    # NumPy makes text of numbers that stand among labels.
    mixed = isinstance(coordinates, list | tuple) and values.dtype.kind == "U"
    return np.array(coordinates, object) if mixed else values


def _checked(values: Any, name: str) -> Any:
    if values.dtype.kind == "m":
        raise TypeError(
            f"The coordinates of {name} must be numbers, dates or labels; got durations, whose "
            "unit the lengthscales would share. Divide them by one, such as "
            "`durations / numpy.timedelta64(1, 'h')`."
        )
    if values.dtype == object and values.size and hasattr(values.flat[0], "to_timestamp"):
        raise TypeError(
            f"The coordinates of {name} must be numbers, dates or labels; got periods, which last. "
            "Take their starts, `periods.to_timestamp()`, or `periods.to_timestamp(how='end')`."
        )
    if values.dtype.kind not in "fiu":
        raise TypeError(
            f"The coordinates of {name} must be real numbers, dates or labels; got dtype "
            f"{values.dtype}. Convert them first, for example with `.astype(float)`."
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
        # Axes without names go by their numbers.
        known: tuple[Any, ...] = tuple(range(num_axes)) if names is None else names
        unknown = [k for k in values if k not in known or isinstance(k, bool)]
        if unknown and names is None and isinstance(unknown[0], str):
            raise TypeError(
                f"{what} by name needs a GridGP with named axes; this one has none. Use their "
                f"numbers, 0 to {num_axes - 1}, for example {{0: …}}."
            )
        if unknown:
            raise KeyError(f"{what}: there is no axis {unknown[0]!r}.{nearest(unknown[0], known)}")
        return tuple(values.get(name) for name in known)
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
    return tuple(
        None if x is None else _like(x, old, f"new {name}")
        for x, name, old in zip(values, labels, old_axes, strict=True)
    )
