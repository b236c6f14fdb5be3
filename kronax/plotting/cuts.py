"""Lines and planes through a posterior: what is drawn, and where on the other axes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.dates import word_of
from kronax.gp.coordinates.spacing import written
from kronax.gp.datasets import grid_dims, values_of
from kronax.gp.model.process import AbstractPosterior
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.paths import nearest


class Cut(NamedTuple):
    """A grid with one place on every axis that is not drawn.

    Attributes:
        axes: the new coordinates, one entry per axis, for the methods of a posterior.
        places: the coordinates per axis, as users write them.
        indices: per axis, where on the old grid its place is; `None` for one that is drawn or new.
        drawn: numbers of the axes that are drawn.
        title: where it is.
    """

    axes: list[Any]
    places: list[np.ndarray]
    indices: list[int | None]
    drawn: tuple[int, ...]
    title: str

    @property
    def on_grid(self) -> bool:
        """Whether the data of the cut are known."""
        fixed = (k for i, k in enumerate(self.indices) if i not in self.drawn)
        return all(k is not None for k in fixed)


def cut(
    post: AbstractPosterior,
    drawn: tuple[int, ...],
    at: Mapping[Any, Any] | None,
    coordinates: Mapping[int, Any],
) -> Cut:
    """The part of a posterior that a picture shows.

    Args:
        post: the posterior.
        drawn: numbers of the axes along which it is drawn.
        at: places on others, by name or number; by default their middle cell.
        coordinates: new ones of the drawn axes, by number; by default those of the grid.
    """
    gp, dims = post.gp, grid_dims(post.gp)
    num_axes = len(gp.axes)
    if post.y.ndim > num_axes:
        raise ValueError(
            "A picture shows the posterior of one data set; got a batch of shape "
            f"{post.y.shape[: post.y.ndim - num_axes]}. Condition on one of them."
        )
    wanted = {number_of(post, key): value for key, value in (at or {}).items()}
    for i in drawn:
        if i in wanted:
            raise ValueError(f"The picture is drawn along {dims[i]!r}; `at` must not fix it.")
    axes: list[Any] = [None] * num_axes
    for i in range(num_axes):
        if i in drawn:
            axes[i] = coordinates.get(i)
        else:
            middle = gp.axes[i].size // 2
            known = _concrete(gp.axes[i], dims[i])
            axes[i] = [wanted[i]] if i in wanted else known[middle : middle + 1]
    new = gp.new_axes(axes)
    indices = [
        None if i in drawn else _index(new[i], gp.axes[i]) if i in wanted else gp.axes[i].size // 2
        for i in range(num_axes)
    ]
    places = [_concrete(new[i] or gp.axes[i], dims[i]) for i in range(num_axes)]
    words = [f"{dims[i]} {_word(places[i][0])}" for i in range(num_axes) if i not in drawn]
    return Cut(axes, places, indices, drawn, ", ".join(words))


def number_of(post: AbstractPosterior, axis: Any) -> int:
    """The number of an axis by name or number."""
    dims = grid_dims(post.gp)
    known = (*dims, *range(len(dims)))
    if axis not in known or isinstance(axis, bool):
        raise KeyError(f"There is no axis {axis!r}.{nearest(axis, known)}")
    return dims.index(axis) if axis in dims else int(axis)


def levels(post: AbstractPosterior, found: Cut, noise: Any) -> Any:
    """The noise on a cut: where it varies, that of the cells that are drawn."""
    model = post.gp.noise_model
    if noise is not None or model.is_white or not found.on_grid:
        return noise
    if any(found.axes[i] is not None for i in found.drawn):
        return noise
    index = (slice(None) if k is None else slice(k, k + 1) for k in found.indices)
    return np.asarray(model.levels(post.gp.dtype))[tuple(index)]


def observed(post: AbstractPosterior, found: Cut) -> np.ndarray | None:
    """The data on a cut along the drawn axes, if it goes through cells of the grid."""
    if not found.on_grid:
        return None
    index = tuple(slice(None) if i in found.drawn else k for i, k in enumerate(found.indices))
    seen, y = post.gp.observed, post.data if isinstance(post, LikelihoodPosterior) else post.y
    return (np.asarray(y) if seen is None else np.where(seen.array, y, np.nan))[index]


def on_own_grid(post: AbstractPosterior, found: Cut) -> Cut:
    """The same cut with the drawn axes at the coordinates of the data."""
    dims = grid_dims(post.gp)
    places = [
        _concrete(post.gp.axes[i], dims[i]) if i in found.drawn else place
        for i, place in enumerate(found.places)
    ]
    return found._replace(places=places)


def _concrete(axis: Axis, name: str) -> np.ndarray:
    values = values_of(axis)
    if values is None:
        raise TypeError(f"Pictures need concrete coordinates; those of {name!r} are traced.")
    return values


def _index(new: Axis | None, old: Axis) -> int | None:
    if new is None or new.static is None or old.static is None:
        return None
    same = new.offsets == old.offsets
    same = same if same.ndim == 1 else same.all(axis=1)
    return int(same.argmax()) if same.any() else None


def _word(place: Any) -> str:
    if isinstance(place, np.ndarray):
        return "(" + ", ".join(_word(x) for x in place) + ")"
    if isinstance(place, float | np.floating):
        return written(float(place))
    return str(place) if isinstance(place, str) else word_of(place)
