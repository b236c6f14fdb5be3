"""What is neither a number nor a module: dates, dtypes, and the objects of NumPyro."""

import base64
import datetime
from typing import Any

import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

from kronax.gp.labelled.packages import cftime, pandas

# Constraints of which there is one object, by name: some are compared by identity.
SINGLETONS = {
    name: value
    for name, value in vars(constraints).items()
    if isinstance(value, constraints.Constraint) and not name.startswith("_")
}
KINDS: dict[str, tuple[Any, Any]] = {
    "distribution": (dist.Distribution, dist),
    "constraint": (constraints.Constraint, constraints),
    "transform": (transforms.Transform, transforms),
}


def date_parts(value: Any) -> dict[str, Any] | None:
    """A date as JSON; `None` for anything else."""
    if hasattr(value, "calendar") and hasattr(value, "timetuple"):
        clock = [getattr(value, p) for p in ("hour", "minute", "second", "microsecond")]
        day = [value.year, value.month, value.day]
        kind = type(value).__name__
        return {"cftime": [kind, value.calendar, value.has_year_zero, *day, *clock]}
    if isinstance(value, datetime.datetime):
        kind = "timestamp" if hasattr(value, "nanosecond") else "datetime"
        zone = None if value.tzinfo is None else str(value.tzinfo)
        return {kind: [value.isoformat(), zone]}
    if isinstance(value, datetime.date):
        return {"date": value.isoformat()}
    return None


def date_of(kind: str, parts: Any) -> Any:
    """And back."""
    if kind == "date":
        return datetime.date.fromisoformat(parts)
    if kind == "cftime":
        name, calendar, has_year_zero, *numbers = parts
        base = cftime().datetime
        if name == base.__name__:
            return base(*numbers, calendar=calendar, has_year_zero=has_year_zero)
        found = getattr(cftime(), str(name), None)
        if not isinstance(found, type) or not issubclass(found, base):
            raise TypeError(f"The file names {name!r} as a date of cftime, which it is not.")
        return found(*numbers, has_year_zero=has_year_zero)
    text, zone = parts
    if kind == "datetime":
        return datetime.datetime.fromisoformat(text)
    stamp = pandas().Timestamp(text)
    return stamp if zone is None else stamp.tz_convert(zone)


DATES = ("date", "datetime", "timestamp", "cftime")


def plain_parts(value: Any) -> dict[str, Any] | None:
    """Numbers that JSON does not have, bytes and dtypes; `None` for anything else."""
    if isinstance(value, float):
        return {"float": repr(float(value))}
    if isinstance(value, complex):
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.dtype):
        return {"dtype": value.str}
    return date_parts(value)


def plain_of(kind: str, parts: Any) -> Any:
    """And back."""
    if kind == "float":
        return float(parts)
    if kind == "complex":
        return complex(*map(float, parts))
    if kind == "bytes":
        return base64.b64decode(parts)
    return np.dtype(parts) if kind == "dtype" else date_of(kind, parts)


PLAIN = ("float", "complex", "bytes", "dtype", *DATES)


def numpyro_parts(value: Any) -> tuple[str, Any] | None:
    """The kind of an object of NumPyro, and its name and parts; `None` for anything else."""
    single = [name for name, known in SINGLETONS.items() if known is value]
    if single:
        return "singleton", single[0]
    for kind, (base, room) in KINDS.items():
        if isinstance(value, base) and getattr(room, type(value).__name__, None) is type(value):
            children, static = value.tree_flatten()
            return kind, [type(value).__name__, list(children), static]
    return None


def numpyro_of(kind: str, parts: Any) -> Any:
    """And back.

    Raises:
        TypeError: if it names another object.
    """
    if kind == "singleton":
        return SINGLETONS[parts]
    base, room = KINDS[kind]
    name, children, static = parts
    found: Any = getattr(room, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"The file names {name!r} as a {kind} of NumPyro, which it is not.")
    made: Any = found
    return made.tree_unflatten(static, tuple(children))


NUMPYRO = ("singleton", *KINDS)
