"""Concrete coordinates, counted from an origin without loss, and which of them are the same.

Hours since 1900, metres from the equator, nanoseconds: coordinates are far from zero more often
than not, and what counts is how far they are from each other.
"""

from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import scipy  # loads `scipy.spatial` where it is first used, which takes 0.1 s

from kronax.gp.coordinates.static_arrays import FrozenArray

# Coordinates that differ by at most this many units in the last place of their own dtype may be
# the same: that is what rounding in `linspace`, `arange` and float32 files leaves.
UNITS = 4
# And by at most this part of the distance to their neighbours: far from zero, rounding is no
# longer small against it, and what is called rounding would be a step.
SHARE = 0.01

Origin = int | float | tuple[int | float, ...]


def less(x: np.ndarray, origin: Any) -> np.ndarray:
    """`x − origin` in float64, as if it were exact and then rounded, for integers of any size."""
    (high, low), (start, rest) = _halves(x), _halves(np.asarray(origin))
    # Large parts that are near each other have an exact difference.
    return (high - start) + (low - rest)


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 numbers each, whose exact sum is `x`."""
    high = x.astype(np.float64)
    if x.dtype.kind == "f":
        return high, (x - high).astype(np.float64)
    if x.dtype.itemsize == 8:  # the largest ones round to a number that has no such integer
        high = np.minimum(high, np.nextafter(float(np.iinfo(x.dtype).max), 0))
    # What is left is small; of unsigned integers it may have gone round.
    return high, (x - high.astype(x.dtype)).astype(np.int64).astype(np.float64)


def difference(a: Any, b: Any) -> Any:
    """`a − b` of Python numbers or tuples of them, rounded once."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        pairs = np.broadcast(np.array(a, object), np.array(b, object))
        return tuple(difference(x, z) for x, z in pairs)
    a, b = (Fraction(np.asarray(x).item()) for x in (a, b))
    return float(a - b)


def origin_of(x: np.ndarray) -> Origin:
    """The first coordinate as Python numbers: integers of any size stay what they are."""
    number = int if x.dtype.kind in "iu" else float
    return number(x[0]) if x.ndim == 1 else tuple(map(number, x[0]))


def rounding(x: np.ndarray) -> np.ndarray:
    """What counts as rounding in coordinates like these, per dimension; integers have none."""
    largest = np.abs(x).max(axis=0)
    if x.dtype.kind != "f":
        return np.zeros(largest.shape)
    return UNITS * np.spacing(largest).astype(np.float64)


def spacing(x: np.ndarray) -> np.ndarray:
    """How far each coordinate is from the nearest one that differs; infinite if none does."""
    if x.ndim == 2:
        places, where = np.unique(x, axis=0, return_inverse=True)
        nearest = scipy.spatial.KDTree(places).query(places, k=[2])[0][:, 0]
        return nearest[where.reshape(-1)]
    known, where = np.unique(x, return_inverse=True)
    steps = np.concatenate([[np.inf], np.diff(known), [np.inf]])
    return np.minimum(steps[:-1], steps[1:])[where.reshape(-1)]


def are_same(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether coordinates `(n,)` are the known ones, one by one."""
    limit = np.minimum(
        np.maximum(rounding(x), rounding(known)), SHARE * spacing(less(known, known[0]))
    )
    return np.abs(less(x, known)) <= limit


def matched(x: np.ndarray, known: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest known place to each one, and whether it is the same, by the rounding `limit`."""
    new, old = (v.reshape(len(v), -1) for v in (x, known))
    where = _nearest(new, old)
    near = np.minimum(limit, SHARE * spacing(known)[where].reshape(-1, 1))
    return where, (np.abs(new - old[where]) <= near).all(axis=1)


def _nearest(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which place, of `(n, p)`, is the nearest to each one."""
    if x.shape[1] > 1:
        return scipy.spatial.KDTree(places).query(x)[1]
    order = np.argsort(places[:, 0], kind="stable")
    x, known = x[:, 0], places[order, 0]
    above = np.searchsorted(known, x).clip(max=known.size - 1)
    below = np.maximum(above - 1, 0)
    return order[np.where(np.abs(x - known[below]) <= np.abs(x - known[above]), below, above)]


class Coordinates(FrozenArray):
    """Coordinates of an axis, `(n,)` or `(n, p)`, as they are and counted from an origin.

    Args:
        values: in their own dtype.
        origin: what they count from, by default the first of them.
        counted: how far they are from it, where that is known better than `values` tells.
        is_exact: whether they stay as they are, be they regular or not.
    """

    def __init__(
        self,
        values: np.ndarray,
        origin: Origin | None = None,
        counted: np.ndarray | None = None,
        is_exact: bool = False,
    ):
        super().__init__(values)
        self.origin = origin_of(self.values) if origin is None else origin
        self.counted = less(self.values, self.origin) if counted is None else np.array(counted)
        self.counted.setflags(write=False)
        self.is_fixed = is_exact

    @cached_property
    def offsets(self) -> np.ndarray:
        """How far the coordinates that are meant are from the origin, in float64.

        Regular ones are meant without the rounding of their dtype.
        """
        if self.is_fixed or not self.is_regular:
            return self.counted
        return snapped(self.counted)

    @property
    def exact(self) -> np.ndarray:
        """The coordinates that are meant."""
        if self.offsets is self.counted:
            return self.values
        return np.asarray(self.origin, np.float64) + self.offsets

    @property
    def line(self) -> np.ndarray | None:
        """Coordinates less the origin in one dimension, `(n,)`, also where given as `(n, 1)`."""
        x = self.counted
        return x if x.ndim == 1 else x[:, 0] if x.shape[1] == 1 else None

    @cached_property
    def rounding(self) -> np.ndarray:
        """What counts as rounding, in the dtype or in the difference from the origin."""
        return np.maximum(rounding(self.values), rounding(self.counted))

    @cached_property
    def unevenness(self) -> float:
        """By which part of a step they are off a regular axis; infinite if there is none."""
        x = self.line
        if x is None or x.size < 2 or x[0] == x[-1]:
            return 0.0 if x is not None and x.size == 1 else np.inf
        return float(np.abs(x - snapped(x)).max() / step_of(x))

    @cached_property
    def is_regular(self) -> bool:
        """Whether the spacing is constant, to rounding that is small against it."""
        x = self.line
        if x is None or self.unevenness > SHARE:
            return False
        return x.size == 1 or self.unevenness * step_of(x) <= self.rounding.max()

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether the axis is symmetric about its middle, to rounding small against its steps."""
        x = self.line
        if x is None:
            return False
        steps = spacing(x)
        limit = np.minimum(2 * self.rounding.max(), SHARE * np.minimum(steps, steps[::-1]))
        return bool((np.abs(x + x[::-1] - (x[0] + x[-1])) <= limit).all())

    def __hash__(self) -> int:
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Coordinates)
            and super().__eq__(other)
            and self.origin == other.origin
            and self.is_fixed == other.is_fixed
            and np.array_equal(self.counted, other.counted)
        )


def snapped(x: np.ndarray) -> np.ndarray:
    """Regular coordinates between the same ends, in float64."""
    return np.linspace(x[0], x[-1], x.shape[0])


def step_of(x: np.ndarray) -> float:
    """The step of regular coordinates between the same ends."""
    return float(abs(x[-1] - x[0]) / (x.size - 1))


def written(x: float) -> str:
    """A coordinate in few characters: six digits, and three decimals of a large one."""
    if 1e3 <= abs(x) < 1e15:
        return f"{x:.3f}".rstrip("0").rstrip(".")
    return f"{x:.6g}"
