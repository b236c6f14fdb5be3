"""Dates as numbers: how many units have passed since the first date of an axis."""

import datetime
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from kronax.gp.coordinates.spacing import written
from kronax.paths import nearest

SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400, "weeks": 604_800}
# Counted by the calendar, whatever their lengths: months and years that follow each other are
# equally spaced.
COUNTED = {"months": 1, "years": 12}
UNITS = (*SECONDS, *COUNTED)
_CLOCK = re.compile(r"[T ](\d\d)(?::(\d\d))?(?::(\d\d))?")


def is_dates(values: np.ndarray) -> bool:
    """Whether they are dates: of NumPy, of Python, of pandas or of cftime."""
    return values.dtype.kind == "M" or (values.dtype == object and any(map(_is_date, values.flat)))


def _is_date(value: Any) -> bool:
    return isinstance(value, datetime.date) or all(
        hasattr(value, part) for part in ("calendar", "year", "month", "timetuple")
    )


@dataclass(frozen=True, eq=False)
class Dates:
    """How dates become numbers: the unit, and the date that is zero.

    Args:
        unit: one of `UNITS`.
        reference: a NumPy or a cftime date.
    """

    unit: str
    reference: Any

    @property
    def _key(self) -> tuple[str, str, str]:
        # Dates of two calendars refuse to be compared.
        return self.unit, _calendar(self.reference), repr(self.reference)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dates) and self._key == other._key

    @property
    def what(self) -> str:
        """What the axis holds."""
        return "dates"

    def describe(self, given: np.ndarray) -> str:
        """The dates in words."""
        numbers = self.encode(given, "the axis")
        steps = np.abs(np.diff(numbers))
        days = (
            np.ptp(numbers) / max(len(numbers) - 1, 1) * SECONDS.get(self.unit, 0) / SECONDS["days"]
        )
        first, last = (word_of(date, 0 < days < 1) for date in (given.min(), given.max()))
        words = f"{first} to {last} in {self.unit}"
        if not steps.size or np.ptp(steps) > 1e-6 * steps.max():
            return words
        step = readable(float(steps[0]), self.unit)
        return words if step.endswith(self.unit) else f"{words}, {step} apart"

    def encode(self, values: np.ndarray, name: str) -> np.ndarray:
        """Numbers of units since the reference, in float64.

        Raises:
            TypeError: if they are no dates, or of another calendar.
            ValueError: if one is missing.
        """
        dates = plain(values, name)
        if (dates.dtype == object) != (not isinstance(self.reference, np.datetime64)) or (
            dates.dtype == object and dates[0].calendar != self.reference.calendar
        ):
            raise TypeError(
                f"The dates of {name} must be of one calendar; got {_calendar(dates[0])} and "
                f"{_calendar(self.reference)}."
            )
        start = _array(self.reference)
        if self.unit in COUNTED:
            (whole, part), (whole0, part0) = _months(dates), _months(start)
            return ((whole - whole0) + (part - part0)) / COUNTED[self.unit]
        if dates.dtype == object:
            unit = datetime.timedelta(seconds=SECONDS[self.unit])
            return np.array([(date - self.reference) / unit for date in dates])
        # Whole days apart from the rest: dates of unequal resolution do not overflow. Both are
        # differences of integers, and of one sign, so that none of them cancels.
        (day, rest), (day0, rest0) = _split(dates), _split(start)
        days, rest = day - day0, rest - rest0
        none = np.timedelta64(0, "s")
        turn = np.where(rest < none, days > 0, 0) - np.where(rest > none, days < 0, 0)
        days, rest = days - turn, rest + turn * np.timedelta64(1, "D")
        seconds = rest / np.timedelta64(1, "s")
        return days * (86_400 / SECONDS[self.unit]) + seconds / SECONDS[self.unit]


def word_of(date: Any, with_time: bool = True) -> str:
    """A date in words, with its time of day if that is asked for and not midnight."""
    text = str(date)
    clock = _CLOCK.search(text)
    if clock is None or not with_time:
        return text if clock is None else text[: clock.start()]
    parts = [part or "00" for part in clock.groups()]
    while len(parts) > 2 and parts[-1] == "00":
        parts.pop()
    time = ":".join(parts)
    return text[: clock.start()] + (f" {time}" if time != "00:00" else "")


def readable(count: float, unit: str) -> str:
    """A number of units, or of finer ones where it has fewer digits: 23.5 hours, not 0.979 days."""
    for finer in reversed(SECONDS):
        seconds = SECONDS.get(unit, 0)
        number = count * seconds / SECONDS[finer]
        short = round(number, 2)
        if SECONDS[finer] <= seconds and abs(short) >= 1 and abs(number - short) < 1e-6:
            return f"{short:.10g} {finer.removesuffix('s') if short == 1 else finer}"
    return f"{count:.6g} {unit}"


def place_of(x: float, coding: Any) -> str:
    """A coordinate in words, in units of its axis."""
    if isinstance(coding, Dates):
        return f"{readable(x, coding.unit)} after {word_of(coding.reference)}"
    return written(x)


def dates_from(values: np.ndarray, unit: str, name: str) -> Dates:
    """The way from dates to numbers that counts from the first of them.

    Raises:
        TypeError: if they are no dates.
        ValueError: if the unit is unknown, or a date is missing.
    """
    if unit not in UNITS:
        raise ValueError(f"The unit of dates is unknown; got {unit!r}.{nearest(unit, UNITS)}")
    return Dates(unit, plain(values, name)[0])


def plain(values: np.ndarray, name: str) -> np.ndarray:
    """Dates `(n,)` as NumPy or as cftime dates; aware ones in coordinated universal time."""
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"The dates of {name} must have shape (n,) with n ≥ 1; got shape {values.shape}."
        )
    if values.dtype == object:
        for place, value in enumerate(values):
            if not _is_date(value) or value != value:
                raise TypeError(
                    f"The dates of {name} must all be dates; entry {place} is {value!r}."
                )
        if all(isinstance(value, datetime.date) for value in values):
            values = np.array([_naive(value) for value in values], "M8[us]")
        elif any(isinstance(value, datetime.date) for value in values):
            raise TypeError(
                f"The dates of {name} must be of one kind; got {values[0]!r} and others."
            )
    if values.dtype.kind == "M" and np.isnat(values).any():
        place = int(np.isnat(values).argmax())
        raise ValueError(f"The dates of {name} must not be missing; entry {place} is NaT.")
    return values


def _naive(value: Any) -> Any:
    aware = isinstance(value, datetime.datetime) and value.tzinfo is not None
    return value.astimezone(datetime.UTC).replace(tzinfo=None) if aware else value


def _array(date: Any) -> np.ndarray:
    result = np.empty(1, date.dtype if isinstance(date, np.datetime64) else object)
    result[0] = date
    return result


def _calendar(date: Any) -> str:
    return "numpy's" if isinstance(date, np.datetime64) else date.calendar


def _split(dates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Days since 1970, and the time since midnight."""
    days = dates.astype("M8[D]")
    return days.astype("i8"), dates - days


def _months(dates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Months of the calendar, and the part of the last one that has passed."""
    if dates.dtype != object:
        month = dates.astype("M8[M]")
        days, rest = _split(dates)
        following = month + np.timedelta64(1, "M")
        first, after = (m.astype("M8[D]").astype("i8") for m in (month, following))
        passed = days - first + rest / np.timedelta64(1, "D")
        return month.astype("i8"), passed / (after - first)
    months, parts = zip(*map(_months_of, dates), strict=True)
    return np.array(months), np.array(parts)


def _months_of(date: Any) -> tuple[int, float]:
    first = date.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    year, month = divmod(12 * date.year + date.month, 12)
    after = first.replace(year=year, month=month + 1)
    return 12 * date.year + date.month - 1, (date - first) / (after - first)
