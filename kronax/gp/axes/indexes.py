"""What the cells along a dimension of a DataArray are called: its coordinates and their units.

Nothing here imports xarray: whoever passes a DataArray has it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kronax.gp.coordinates.static_arrays import FrozenArray, FrozenAttributes


@dataclass(frozen=True)
class Index:
    """The coordinates of one dimension as their user has them, to be matched and given back.

    Args:
        values: `(n,)`, or `(n, p)` for the levels of a MultiIndex; `None` for a dimension without
            coordinates.
        attributes: units and the like.
        columns: what the p columns of places are called.
    """

    values: FrozenArray | None
    attributes: FrozenAttributes = field(default_factory=lambda: FrozenAttributes({}))
    columns: tuple[str, ...] = ()


def is_labelled(value: Any) -> bool:
    """Whether it is a DataArray, or something that names its dimensions in the same way."""
    return all(hasattr(value, part) for part in ("dims", "coords", "attrs", "transpose"))


def is_frame(value: Any) -> bool:
    """Whether it is a pandas DataFrame or Series, or something that labels its rows likewise."""
    return all(hasattr(value, part) for part in ("index", "iloc", "to_numpy"))


def index_of(coordinate: Any) -> Index | None:
    """The index that a coordinate `(n,)` of a DataArray makes; `None` for anything else."""
    if not is_labelled(coordinate) or coordinate.ndim != 1:
        return None
    levels = levels_of(coordinate)
    return Index(
        FrozenArray(coordinate_values(coordinate)),
        FrozenAttributes(coordinate.attrs),
        () if levels is None else tuple(map(str, levels)),
    )


def coordinate_values(coordinate: Any) -> np.ndarray:
    """The values of a coordinate; one column per level of a MultiIndex."""
    levels = levels_of(coordinate)
    if levels is not None:
        return np.stack(list(levels.values()), axis=-1)
    values = np.asarray(coordinate.values)
    # Text of variable width holds references, which say nothing about their content.
    return values.astype(object) if values.dtype.kind == "T" else values


def levels_of(coordinate: Any) -> dict[Any, np.ndarray] | None:
    """The levels of a coordinate that is a MultiIndex, by name; `None` for any other."""
    values = coordinate.values
    if values.ndim != 1 or not values.size or not isinstance(values[0], tuple):
        return None
    names = coordinate.indexes[coordinate.dims[0]].names
    return {name: np.asarray(coordinate.coords[name].values) for name in names}


def check_units(new: FrozenAttributes, old: Index | None, name: str) -> None:
    """Refuse coordinates that say to be in other units than the axis."""
    known = None if old is None else old.attributes.units
    if known is not None and new.units is not None and known != new.units:
        raise ValueError(
            f"The coordinates of {name} must be in the units of the model, {known!r}; got "
            f"{new.units!r}. Convert them, or correct their attribute `units`."
        )
