"""Covariates at new places: as given, or as the grid knows them; else they are asked for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.axis import Axis
from kronax.gp.coordinates.spacing import matched
from kronax.gp.means.covariates import (
    Covariate,
    aligned,
    check_fits,
    covariate_of,
    covariates_of,
    numbers_of,
    with_covariates,
)
from kronax.gp.means.means import ArrayMean, Mean
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.host import numpy_of, on_device
from kronax.paths import nearest


class Move(NamedTuple):
    """From the grid of a process to new places.

    Args:
        old: the axes of the process.
        new: new coordinates, `None` for an axis that stays.
        names: of the axes, if they have some.
        are_scattered: whether all new axes have one entry per place.
    """

    old: tuple[Axis, ...]
    new: tuple[Axis | None, ...]
    names: tuple[str, ...] | None
    are_scattered: bool = False

    @property
    def axes(self) -> list[Axis]:
        """Those of the new grid."""
        return [new or old for new, old in zip(self.new, self.old, strict=True)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the new grid, or the number of places."""
        sizes = tuple(axis.size for axis in self.axes)
        return sizes[:1] if self.are_scattered else sizes

    def cells(self, i: int) -> np.ndarray | None:
        """Which old place each new one of an axis is; `None` unless all are some."""
        new, old = self.new[i], self.old[i]
        if new is None:
            return np.arange(old.size)
        if new.static is None or old.static is None:
            return None
        where, are_same = matched(new.offsets, old.offsets, np.zeros(()))
        return where if are_same.all() else None


def new_covariates(mean: Mean, given: Any, move: Move, dtype: Any) -> dict[str, Array]:
    """All covariates of a mean at new places, by name.

    On a grid they broadcast to it, with one axis per axis; those of scattered places are `(m,)`.

    Args:
        mean: bound to the grid of the process.
        given: values at the new places, by name.
        move: where these are.
        dtype: of the process.

    Raises:
        KeyError: if a name is unknown.
        TypeError: if `given` is no dictionary, or holds no real numbers.
        ValueError: if a covariate has no value at the new places, or one of another shape.
    """
    known = {n: c for n, c in covariates_of(mean).items() if c.function is None}
    given = _checked(given, known)
    _check_arrays(mean, move)
    found, missing = {}, []
    for name, covariate in known.items():
        value = _taken(covariate, move) if name not in given else _given(given[name], move, name)
        if value is None:
            missing.append(name)
        else:
            found[name] = on_device(value).astype(dtype)
    if missing:
        raise ValueError(_asking(missing, known[missing[0]], move))
    return found


def _checked(given: Any, known: Mapping[str, Covariate]) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            "covariates must be a dictionary by name, such as {'temperature': values}; got "
            f"{type(given).__name__}."
        )
    for name in given:
        if name not in known:
            has = ", ".join(map(repr, known)) or "none"
            raise KeyError(
                f"The mean has no covariate {name!r} that takes values at new places (it has "
                f"{has}).{nearest(name, list(known))}"
            )
    return dict(given)


def _given(value: Any, move: Move, name: str) -> Any:
    """Values as users give them, in the layout of the new places."""
    if not move.are_scattered:
        return aligned(value, move.axes, move.names, name)
    numbers = numbers_of(value, name)
    check_fits(numbers.shape, move.shape, name)
    xp: Any = numpy_of(numbers)
    return xp.broadcast_to(numbers, move.shape)


def _taken(covariate: Covariate, move: Move) -> Any:
    """What the grid knows of a covariate at the new places; `None` if it does not."""
    values = covariate.values
    cells = {i: move.cells(i) for i in covariate.varying}
    if covariate.unknown or any(k is None for k in cells.values()):
        return None
    xp: Any = numpy_of(values)
    if move.are_scattered:
        index = tuple(cells.get(i, 0) for i in range(values.ndim))
        return xp.broadcast_to(values[index], move.shape)
    for i, k in cells.items():
        values = values if move.new[i] is None else xp.take(values, k, axis=i)
    return values


def _asking(missing: Sequence[str], first: Covariate, move: Move) -> str:
    labels = move.names or tuple(f"axis {i}" for i in range(len(move.old)))
    along = [labels[i] for i in first.varying if i in first.unknown or move.cells(i) is None]
    names = ", ".join(map(repr, missing))
    values = ", ".join(f"{name!r}: values" for name in missing)
    shape = "one per point" if move.are_scattered else "that broadcast to the grid there"
    has = "covariate" if len(missing) == 1 else "covariates"
    return (
        f"The mean has the {has} {names}, known on the grid of the data only, and {missing[0]!r} "
        f"varies along {', '.join(along)}, where coordinates are new. Pass "
        f"covariates={{{values}}}, {shape}, {move.shape}."
    )


def array_means(mean: Mean) -> list[ArrayMean]:
    """The parts of a mean that are arrays."""
    leaves = jax.tree.leaves(mean, is_leaf=lambda part: isinstance(part, ArrayMean))
    return [part for part in leaves if isinstance(part, ArrayMean)]


def _check_arrays(mean: Mean, move: Move) -> None:
    """Refuse an array in place of a mean at coordinates of which it says nothing."""
    for part in array_means(mean):
        shape = part.values.values.shape
        lead = len(move.old) - len(shape)
        for i in (i + lead for i, n in enumerate(shape) if n > 1):
            cells = move.cells(i)
            same = np.arange(move.old[i].size)
            if move.new[i] is None or (cells is not None and np.array_equal(cells, same)):
                continue
            grid = tuple(axis.size for axis in move.axes)
            raise ValueError(
                f"A mean given as an array must broadcast to the grid {grid}; got shape {shape}, "
                "known at the coordinates of the data only. On a new grid use a mean that is a "
                "function of the axes, or a kx.CovariateMean."
            )


def check_stays(mean: Mean, moved: Sequence[bool]) -> None:
    """Refuse new coordinates along which a covariate varies, where none can be given."""
    if not any(moved):
        return
    for name, covariate in covariates_of(mean).items():
        if any(moved[i] for i in covariate.varying) or covariate.gaps is not None:
            raise ValueError(
                f"The covariate {name!r} is known on the grid of the data only, and not at all new "
                "coordinates. The methods of a posterior that take covariates={…} predict there, "
                "and `post.append` takes in new slices with theirs."
            )


def check_slope(mean: Mean, covariates: Mapping[str, Array], i: int, name: Any) -> None:
    """Refuse the derivative along an axis of a mean that is not known between its places."""
    if array_means(mean):
        raise ValueError(
            "A mean given as an array is known on the grid only and has no derivative. Use a "
            "mean that is a function of the axes."
        )
    for which, covariate in covariates_of(mean).items():
        new = covariates.get(which)
        is_new = new is not None and new.ndim == covariate.values.ndim and new.shape[i] > 1
        if i in covariate.varying or is_new:
            raise ValueError(
                f"The covariate {which!r} varies along {name!r} and is known at places only: the "
                "mean has no derivative there. Give it as a function of the axes, as in "
                f"kx.CovariateMean({which}=function)."
            )


def continued(
    mean: Mean,
    ahead: Mapping[str, Array],
    given: Any,
    i: int,
    sizes: tuple[int, int],
    in_front: bool,
) -> Mean:
    """A mean whose covariates go on along one axis.

    Args:
        mean: bound to the shorter grid.
        ahead: all covariates on the grid of the new slices.
        given: which of them were given; others that are the same along the axis stay so.
        i: the axis.
        sizes: its length so far, and the number of new slices.
        in_front: whether the new slices come first.
    """
    known = {}
    for name, one in covariates_of(mean).items():
        if name not in ahead or (i not in one.varying and name not in (given or {})):
            continue
        pair: Any = one.values, ahead[name]
        xp: Any = jnp
        if all(map(is_concrete, pair)):
            xp, pair = np, tuple(map(np.asarray, pair))
        parts = [x.astype(pair[1].dtype) for x in pair]
        across = jnp.broadcast_shapes(*((*x.shape[:i], 1, *x.shape[i + 1 :]) for x in parts))
        parts = [
            xp.broadcast_to(x, (*across[:i], n, *across[i + 1 :]))
            for x, n in zip(parts, sizes, strict=True)
        ]
        whole = xp.concatenate(parts[::-1] if in_front else parts, axis=i)
        known[name] = covariate_of(whole, name)
    return with_covariates(mean, known)
