"""What a posterior remembers of the DataArray that it was given, and how compilation forgets it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from kronax.gp.axes.indexes import is_labelled
from kronax.gp.coordinates.static_arrays import FrozenArray, FrozenAttributes
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.fingerprints import held


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
    """

    name: str | None
    attributes: FrozenAttributes
    batch_dims: tuple[str, ...]
    coordinates: tuple[Coordinate, ...]


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


def check_data_units(y: Any, template: Template | None, what: str) -> None:
    """Refuse data in other units than those that the posterior was given."""
    known = None if template is None else template.attributes.units
    units = FrozenAttributes(y.attrs).units if is_labelled(y) else None
    if known is not None and units is not None and units != known:
        raise ValueError(
            f"{what} must be in the units of the data, {known!r}; got {units!r}. Convert it, or "
            "correct its attribute `units`."
        )


def compiled(function: Callable[..., Any], *, returns_operator: bool = False) -> Callable[..., Any]:
    """`eqx.filter_jit` for a function of a posterior, whose template is left out.

    Posteriors of a hundred variables or dates then share one compiled program. The checksum of a
    concrete decomposition is compared before: to do it inside would take half the compilation.
    """
    jitted = eqx.filter_jit(function)

    @functools.wraps(function)
    def call(post: Any, *args: Any) -> Any:
        if post.template is not None:
            post = dataclasses.replace(post, template=None)
        if not returns_operator:
            post = _compared(post)
        return jitted(post, *args)

    return call


def _compared(post: Any) -> Any:
    """A concrete posterior without checksums, of which that of the decomposition was right."""
    op = post.operator
    if not is_concrete(post) or getattr(op, "made_of", None) is None:
        return post
    held(op, op.decomposition)
    op = eqx.tree_at(lambda o: o.made_of, op, None)
    return dataclasses.replace(post, operator=op, made_of=None)
