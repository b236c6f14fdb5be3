"""What all pictures share: matplotlib, and how axes are labelled."""

import textwrap
from typing import Any

import numpy as np

from kronax.gp.axes.dates import Dates
from kronax.gp.axes.labels import Labels
from kronax.gp.datasets import grid_dims
from kronax.gp.labelled.templates import Template
from kronax.gp.model.process import AbstractPosterior, AbstractProcess

# Calendars without a day that ours does not have.
WITHIN_OURS = ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day")

# A legend is not narrower than so many letters.
MIN_LETTERS = 18


def pyplot() -> Any:
    """Matplotlib's interface.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Pictures need matplotlib, which is not installed: pip install "kronax[plot]".'
        ) from error
    return plt


def panels(ax: Any, count: int, width: float = 4.2, height: float = 3.4) -> np.ndarray:
    """As many Axes as are needed: the given ones, or those of a new figure.

    Raises:
        ValueError: if another number is given.
    """
    if ax is None:
        size = (width * count, height)
        return pyplot().subplots(1, count, figsize=size, layout="constrained", squeeze=False)[1][0]
    given = np.atleast_1d(np.asarray(ax, object)).ravel()
    if len(given) != count:
        raise ValueError(f"ax must be {count} Axes, one per panel; got {len(given)}.")
    return given


def legend_above(ax: Any, **options: Any) -> None:
    """A legend between the picture and its title, where it covers nothing, nor a neighbour."""
    handles, names = ax.get_legend_handles_labels()
    if not names:
        return
    # A letter takes some 6 points, what stands before a name as much as six, a row 16 points.
    width = ax.bbox.width / ax.figure.dpi * 72
    letters = max(MIN_LETTERS, int(width / 6))
    names = [textwrap.fill(name, letters - 6) for name in names]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(len(names), letters // (longest + 6)))
    lines = -(-len(names) // columns) + max(name.count("\n") for name in names)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    ax.legend(handles, names, ncols=columns, **place, **options)
    ax.set_title(ax.get_title(), pad=6 + 16 * lines)


def colour_limits(*fields: np.ndarray) -> dict[str, float]:
    """From the lowest to the highest number of all fields; gaps have no colour and no say."""
    numbers = np.concatenate([field[np.isfinite(field)] for field in fields])
    return {"vmin": numbers.min(), "vmax": numbers.max()} if numbers.size else {}


def axis_label(gp: AbstractProcess, i: int) -> str:
    """Name and units of an axis."""
    axis, name = gp.axes[i], grid_dims(gp)[i]
    attributes = {} if axis.index is None else axis.index.attributes.values
    name = str(attributes.get("long_name", name))
    first = None if axis.given is None else axis.given.values[0]
    calendar = getattr(first, "calendar", None)
    if isinstance(axis.coding, Dates) and calendar:
        return name if calendar in WITHIN_OURS else f"{name} (year)"
    if axis.coding is not None:
        return name
    return f"{name} ({attributes['units']})" if "units" in attributes else name


def unit_of(axis: Any) -> str:
    """The unit of an axis, lengths in one spelling; empty where it is unknown."""
    unit = "" if axis.index is None else str(axis.index.attributes.units or "").strip()
    for name, short in (("kilomet", "km"), ("met", "m")):
        if unit.lower() in (f"{name}{end}" for end in ("re", "res", "er", "ers")):
            return short
    return unit


def distance_label(gp: AbstractProcess, i: int) -> str:
    """Name and units of differences along an axis."""
    axis = gp.axes[i]
    unit = None if axis.index is None else axis.index.attributes.units
    if isinstance(axis.coding, Dates):
        unit = axis.coding.unit
    return f"distance ({unit})" if unit else "distance"


def data_name(post: AbstractPosterior, of_data: bool = False) -> str:
    """The name of what is predicted, or of the data, if it is known."""
    template = _template(post, of_data)
    name = None if template is None else template.attributes.values.get("long_name", template.name)
    return "" if name is None else str(name)


def data_units(post: AbstractPosterior, of_data: bool = False) -> str:
    """The units likewise."""
    template = _template(post, of_data)
    return (None if template is None else template.attributes.units) or ""


def data_label(post: AbstractPosterior, of_data: bool = False) -> str:
    """Name and units likewise."""
    name, units = data_name(post, of_data), data_units(post, of_data)
    return f"{name} ({units})" if name and units else name or units


def _template(post: AbstractPosterior, of_data: bool) -> Template | None:
    """With a likelihood what is predicted is not in the units of the data."""
    template = post.template
    return template.data if of_data and template is not None and template.data else template


def drawable(values: np.ndarray) -> np.ndarray:
    """Coordinates that matplotlib can draw: dates of other calendars as dates or as years."""
    if values.dtype != object:
        return values
    if values[0].calendar in WITHIN_OURS:
        return np.array([np.datetime64(value.isoformat()) for value in values])
    return np.array([_year(value) for value in values])


def shorten_dates(ax: Any, which: str, values: np.ndarray, axis: Any) -> None:
    """Dates on one side of a picture without what is the same for all of them; years in full."""
    side = getattr(ax, f"{which}axis")
    if values.dtype.kind == "M":
        from matplotlib import dates

        locator = dates.AutoDateLocator()
        side.set_major_locator(locator)
        side.set_major_formatter(dates.ConciseDateFormatter(locator))
    elif isinstance(axis.coding, Dates):
        side.get_major_formatter().set_useOffset(False)


def _year(date: Any) -> float:
    start = date.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
    end = start.replace(year=date.year + 1)
    return float(date.year + (date - start) / (end - start))


def is_labels(axis: Any) -> bool:
    """Whether the axis holds categories, which have no order."""
    return isinstance(axis.coding, Labels)


def name_categories(ax: Any, which: str, labels: np.ndarray) -> None:
    """Names at the places 0, 1, … of one side of a picture; long ones are turned."""
    long = sum(len(label) for label in labels) > 24 and which == "x"
    turned = {"rotation": 30, "ha": "right"} if long else {}
    (ax.set_xticks if which == "x" else ax.set_yticks)(np.arange(len(labels)), labels, **turned)
