"""What a posterior remembers of the DataArray that it was given."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from kronax.gp.axes.indexes import is_labelled
from kronax.gp.coordinates.static_arrays import FrozenArray, FrozenAttributes


class Coordinate(NamedTuple):
    """One coordinate of a DataArray, of any number of its dimensions."""

    name: str
    dims: tuple[str, ...]
    values: FrozenArray
    attributes: FrozenAttributes


@dataclasses.dataclass(frozen=True)
class Template:
    """What a DataArray has besides its values and the axes of a model.

    Args:
        name: of the data.
        attributes: of the data: units and the like.
        batch_dims: dimensions that are no axes of the model; they lead in the grid layout.
        coordinates: all but those that the axes hold.
        data: that of the data, where this one is of a function behind them.
    """

    name: str | None
    attributes: FrozenAttributes
    batch_dims: tuple[str, ...]
    coordinates: tuple[Coordinate, ...]
    data: "Template | None" = None

    @property
    def described(self) -> str:
        """What this is, in words."""
        return str(self.attributes.values.get("long_name", self.name) or "the data")


UNLABELLED = Template(None, FrozenAttributes({}), (), ())


def of_function(template: Template | None) -> Template:
    """The template of the latent function behind data, to which their units do not belong."""
    data = UNLABELLED if template is None else template
    words = FrozenAttributes({"long_name": f"latent function of {data.described}"})
    name = None if data.name is None else f"latent function of {data.name}"
    return dataclasses.replace(data, name=name, attributes=words, data=data)


def template_of(y: Any, names: tuple[str, ...] | None) -> Template | None:
    """The template of checked data; `None` for a plain array."""
    if not is_labelled(y) or names is None:
        return None
    found = [
        Coordinate(
            name, tuple(c.dims), FrozenArray(np.asarray(c.values)), FrozenAttributes(c.attrs)
        )
        for name, c in y.coords.items()
        # The levels of a MultiIndex come by themselves.
        if name not in names and not (c.size and isinstance(c.values.flat[0], tuple))
    ]
    batch_dims = tuple(dim for dim in y.dims if dim not in names)
    name = None if y.name is None else str(y.name)
    return Template(name, FrozenAttributes(y.attrs), batch_dims, tuple(found))


def without_axis(template: Template | None, name: str) -> Template | None:
    """The template where the places of an axis are others: what was known of them is left out."""
    if template is None:
        return None
    kept = tuple(c for c in template.coordinates if name not in c.dims)
    return dataclasses.replace(template, coordinates=kept)


def without_batches(template: Template | None) -> Template | None:
    """The template of one data set of a batch."""
    if template is None:
        return None
    batches = set(template.batch_dims)
    kept = tuple(c for c in template.coordinates if not batches.intersection(c.dims))
    return dataclasses.replace(template, batch_dims=(), coordinates=kept)


def check_data_units(y: Any, template: Template | None, what: str) -> None:
    """Refuse data in other units than those that the posterior was given."""
    known = None if template is None else template.attributes.units
    units = FrozenAttributes(y.attrs).units if is_labelled(y) else None
    if known is not None and units is not None and units != known:
        raise ValueError(
            f"{what} must be in the units of the data, {known!r}; got {units!r}. Convert it, or "
            "correct its attribute `units`."
        )
