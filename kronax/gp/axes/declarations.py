"""What coordinates alone do not show: circles, spheres, units of dates, regular spacing."""

import dataclasses
from typing import Any

import numpy as np

from kronax.gp.axes.axis import Axis, as_axis, check_places
from kronax.gp.axes.dates import Dates
from kronax.gp.axes.labels import Labels
from kronax.gp.coordinates.spacing import SHARE, Coordinates, snapped, spacing, step_of
from kronax.linalg.arrays.checks import whole

# The mean radius of the Earth in kilometres.
EARTH_RADIUS = 6371.0088


def circle(axis: Any, period: float) -> Axis:
    """Declare that an axis goes round a circle: longitude, hour of the day, day of the year.

    Isotropic kernels (Matérn, squared exponential, rational quadratic and what they make up) then
    see the chord between two places, in units of the axis: `(p/π) sin(π |x − x'| / p)`, which is
    positive definite at every lengthscale. A regular axis all the way round needs no `eigh`.

    Args:
        axis: coordinates or dates `(n,)`, or what `kx.regular` or `kx.dates` returns.
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
    _check_positive(period, "The period of a circle")
    given = _concrete(axis, "a circle")
    if given.period is not None:
        raise ValueError(
            f"The axis is a circle already, of period {given.period}; got period {period} as "
            "well. Give the coordinates."
        )
    assert given.static is not None
    x = given.static.values
    if x.ndim != 1:
        raise ValueError(f"The coordinates of a circle must have shape (n,); got {x.shape}.")
    length = float(np.ptp(given.static.counted))
    slack = min(float(given.static.rounding), SHARE * float(spacing(given.static.counted).min()))
    if x.size > 1 and abs(length - period) <= slack:
        raise ValueError(
            f"The first and the last coordinate of a circle must be different places; got {x[0]} "
            f"and {x[-1]} with period {period}. Leave out the last one."
        )
    if length > period:
        raise ValueError(
            f"A circle must not be shorter than its axis; got period {period} for coordinates from "
            f"{x.min()} to {x.max()}."
        )
    return dataclasses.replace(given, period=float(period))


def regular(axis: Any) -> Axis:
    """Snap an almost regular axis to a regular one; the largest shift is kept and shown.

    Args:
        axis: coordinates or dates `(n,)`.

    Raises:
        ValueError: if some coordinate would move by more than a tenth of a step.
        TypeError: if the coordinates are traced.

    Examples:
        >>> import numpy as np, kronax as kx
        >>> round(kx.regular(np.array([0.0, 1.0, 2.01, 3.0])).shift, 3)
        0.01
    """
    given = _concrete(axis, "a regular axis")
    assert given.static is not None
    x = given.static.counted
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"A regular axis must have shape (n,) with n ≥ 2; got {x.shape}.")
    fitted, step = snapped(x), step_of(x)
    shift = float(np.abs(fitted - x).max())
    if shift > 0.1 * step:
        place = int(np.abs(fitted - x).argmax())
        was, moved = given.static.values[place], fitted[place] - x[place]
        raise ValueError(
            f"kx.regular moves no coordinate by more than a tenth of the step {step:.4g}; "
            f"coordinate {place}, {was}, would move by {moved:.6g}. Leave the axis as it is, or "
            "put the data on a regular one first."
        )
    values = np.asarray(given.origin, np.float64) + fitted if shift else given.static.values
    static = Coordinates(values, given.origin, fitted)
    return dataclasses.replace(given, static=static, shift=shift)


def sphere(places: Any, radius: float = EARTH_RADIUS) -> Axis:
    """Declare that places lie on a sphere: one axis of latitudes and longitudes.

    Isotropic kernels (Matérn, squared exponential, rational quadratic and what they make up) then
    see the chord between two places, in units of the radius, `2 R sin(d / 2R)` for a great-circle
    distance `d`. That is positive definite at every lengthscale, which the same kernels of the
    great-circle distance are not, and nothing happens at the poles or at longitude 180°.

    Args:
        places: latitudes and longitudes in degrees, `(n, 2)`.
        radius: in the units of the lengthscale; by default the Earth's, in kilometres.

    Raises:
        ValueError: if the radius is not positive and finite, or a latitude or longitude is outside
            its range.
        TypeError: if the coordinates are traced.

    Examples:
        >>> import kronax as kx
        >>> places = [[52.5, 13.4], [48.9, 2.4], [-33.9, 151.2]]  # Berlin, Paris, Sydney
        >>> gp = kx.GridGP((kx.Matern32(1000.0),), (kx.sphere(places),), noise=0.1)
        >>> gp.covariance(include_noise=False).to_dense().round(2).tolist()[0][1] > 0.5
        True
    """
    _check_positive(radius, "The radius of a sphere")
    given = _concrete(places, "places")
    result = dataclasses.replace(given, radius=float(radius))
    check_places(result, "places")
    return result


def dates(values: Any, unit: str = "days") -> Axis:
    """Choose the unit of an axis of dates; lengthscales and periods are then in this unit.

    The coordinates count from the first date. Dates of NumPy, pandas, xarray, Python and cftime
    (any calendar) are dates without this function too, in days. Seconds to weeks have a fixed
    length. Months and years are counted by the calendar, so that monthly or yearly dates are
    equally spaced and their axis is regular.

    Args:
        values: dates `(n,)`.
        unit: "seconds", "minutes", "hours", "days", "weeks", "months" or "years".

    Raises:
        ValueError: if the unit is unknown, or a date is missing.
        TypeError: if they are no dates.

    Examples:
        >>> import numpy as np, kronax as kx
        >>> months = np.arange("2000-01", "2001-01", dtype="datetime64[M]")
        >>> kx.dates(months, unit="months").coordinates(float)[:3].tolist()
        [0.0, 1.0, 2.0]
    """
    if isinstance(values, Axis) and values.given is not None:
        values = values.given.values
    result = as_axis(values, "dates", unit)
    if not isinstance(result.coding, Dates):
        got = "labels" if result.coding else "numbers"
        raise TypeError(f"kx.dates takes dates; got {got}. Leave numbers as they are.")
    return result


def _concrete(axis: Any, what: str) -> Axis:
    given = as_axis(axis, what)
    if given.static is None:
        raise TypeError(f"The coordinates of {what} must be concrete; got traced ones.")
    if isinstance(given.coding, Labels):
        raise TypeError(f"The coordinates of {what} must be numbers or dates; got labels.")
    return given


def _check_positive(value: Any, name: str) -> None:
    if not isinstance(whole(value), int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number; got {value!r}.")
