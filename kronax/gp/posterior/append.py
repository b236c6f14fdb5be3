"""A posterior given further slices along one axis: the other axes are not decomposed again."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.axis import Axis, new_axes, ordered
from kronax.gp.axes.labels import Labels
from kronax.gp.axes.structure import check_kernel, check_structure, choose
from kronax.gp.coordinates.spacing import SHARE, Coordinates, less, spacing
from kronax.gp.coordinates.static_arrays import FrozenArray
from kronax.gp.criticism.held_out import axis_labels
from kronax.gp.labelled.data_arrays import by_axis
from kronax.gp.labelled.templates import Template, without_axis
from kronax.gp.means.new_covariates import continued
from kronax.gp.model import marginal_likelihood
from kronax.gp.model.additive import joined_structure
from kronax.gp.model.observations import mask_of, new_data
from kronax.gp.model.process import AbstractPosterior, AbstractProcess, with_fields
from kronax.gp.model.solver_choice import settled
from kronax.gp.noise.abstract import Slices
from kronax.linalg.arrays.fingerprints import fingerprint_of_tree
from kronax.linalg.arrays.precision import where
from kronax.linalg.functions.decompose import decompose_axis
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


class Longer(NamedTuple):
    """A process and data with further slices.

    Args:
        gp: the process on the longer grid, with the likelihood that it had.
        y: the data there.
        template: what is remembered of the data.
        slices: the new ones.
    """

    gp: AbstractProcess
    y: Array
    template: Template | None
    slices: Slices


def longer(
    gp: AbstractProcess, y: Array, template: Template | None, y_new: Any, at: Mapping[str, Any]
) -> Longer:
    """The same process on a grid with further slices, and old and new data on it.

    Args:
        gp: the process.
        y: its data, NaN at gaps.
        template: of which new ones must have the units.
        y_new: as users give them.
        at: their `axes`, `noise` and `covariates`, likewise.
    """
    i, new = _new_axis(gp, at["axes"])
    old = gp.axes[i] if new.coding is None else dataclasses.replace(gp.axes[i], coding=new.coding)
    in_front = _is_in_front(new, old)
    axes = _with(gp.axes, i, new)
    ahead = new_data(gp, y_new, axes, template, finite=False)
    _check_batches(y, ahead, len(gp.axes))
    axis = joined(old, new, in_front, axis_labels(gp)[i])
    noise = at["noise"]
    if np.ndim(noise) > 1:
        noise = by_axis(noise, axes, gp.axis_names, "The noise")
    slices = Slices(i, axis_labels(gp)[i], new.size, in_front, noise)
    further = _longer(gp, axis, slices)
    covariates = at["covariates"]
    known = gp.new_covariates(covariates, [new if j == i else None for j in range(len(gp.axes))])
    mean = continued(gp.mean, known, covariates, i, (old.size, new.size), in_front)
    further = with_fields(further, mean=mean)
    both = slices.beside(y, ahead, i - len(gp.axes))
    return Longer(further, both, without_axis(template, axis_labels(gp)[i]), slices)


def append(post: AbstractPosterior, y_new: Any, axes: Any, noise: Any, covariates: Any) -> Any:
    """The posterior of the same process on the longer grid."""
    gp, at = post.gp, {"axes": axes, "noise": noise, "covariates": covariates}
    old_y = post.y if gp.observed is None else where(gp.observed.array, post.y, jnp.nan)
    further, y, template, slices = longer(gp, old_y, post.template, y_new, at)
    y, observed, _ = further.observations(y)
    if observed is not None or not isinstance(post.operator, KroneckerPlusNoise):
        return dataclasses.replace(further.condition(y), template=template)
    further.check_model()
    operator = decompose_axis(_covariance(further), post.operator, slices.axis)
    found = marginal_likelihood.weights(further, operator, y)
    made_of = fingerprint_of_tree((further, y))
    return dataclasses.replace(
        post,
        gp=further,
        y=y,
        operator=operator,
        weights=found.value,
        regression=found.regression,
        template=template,
        estimate=None,
        made_of=made_of,
    )


@eqx.filter_jit
def _covariance(gp: AbstractProcess) -> Any:
    """In one program, where kernels would be evaluated operation by operation."""
    return gp.covariance()


def append_observed(
    post: Any, y_new: Any, axes: Any, covariates: Any, given: Mapping[str, Any]
) -> Any:
    """The posterior of a process with a likelihood on the longer grid, from scratch.

    Args:
        post: with its `model` and `data`.
        y_new: on the grid of the new slices.
        axes: their coordinates.
        covariates: of the mean there.
        given: fields of the likelihood there.
    """
    gp = post.model
    y = post.data if gp.observed is None else where(gp.observed.array, post.data, jnp.nan)
    template = None if post.template is None else post.template.data
    at = {"axes": axes, "noise": None, "covariates": covariates}
    further, y, _, slices = longer(gp, y, template, y_new, at)
    shape, i = gp.grid_shape, slices.axis
    sizes = shape, (*shape[:i], slices.size, *shape[i + 1 :])
    likelihood = gp.likelihood.longer(given, i, sizes, slices.in_front)
    found = with_fields(further, likelihood=likelihood).condition(y)
    return dataclasses.replace(found, template=without_axis(post.template, slices.name))


def _new_axis(gp: AbstractProcess, axes: Any) -> tuple[int, Axis]:
    """Which axis is continued, and its new coordinates in its own units."""
    names = axis_labels(gp)
    given = ordered(axes, gp.axis_names, len(gp.axes), "The new coordinates")
    moved = [i for i, x in enumerate(given) if x is not None]
    if len(moved) != 1:
        raise ValueError(
            "Slices are appended along one axis at a time; got new coordinates for "
            f"{', '.join(names[i] for i in moved) or 'none'}. Append the others afterwards."
        )
    i = moved[0]
    old = list(gp.axes)
    coding = old[i].coding
    if isinstance(coding, Labels):
        # Labels that the data did not hold so far are the next ones; kernels without a number of
        # categories take them.
        fresh = dict.fromkeys([*coding.categories, *np.asarray(given[i]).tolist()])
        old[i] = dataclasses.replace(old[i], coding=Labels(tuple(fresh)))
    new = new_axes(given, old, gp.axis_names)[i]
    assert new is not None
    return i, new


def _is_in_front(new: Axis, old: Axis) -> bool:
    """Whether all new coordinates come before the first one, in the direction of the axis."""
    if new.static is None or old.static is None or isinstance(old.coding, Labels):
        return False
    first, line = new.static.line, old.static.line
    if first is None or line is None or line.size < 2:
        return first is not None and line is not None and bool(first.max() < line[0])
    rising = line[-1] > line[0]
    return bool(first.max() < line.min() if rising else first.min() > line.max())


def joined(old: Axis, new: Axis, in_front: bool, name: str) -> Axis:
    """Both coordinates on one axis: in the units, from the origin, on the circle of the old one."""
    if old.static is None or new.static is None:
        parts = [jnp.asarray(x.traced if x.static is None else x.exact) for x in (old, new)]
        dtype = jnp.promote_types(parts[0].dtype, parts[1].dtype)
        traced = jnp.concatenate([x.astype(dtype) for x in parts])
        return dataclasses.replace(old, static=None, traced=traced, given=None)
    known, shift = old.static, old.shift
    ahead = _in_precision_of(known, new.static)
    if shift is not None:
        ahead, moved = _continued(known, new.static, name)
        shift = max(shift, moved)
    order = slice(None, None, -1 if in_front else 1)
    given = None
    if old.given is not None and new.given is not None:
        given = FrozenArray(np.concatenate([old.given.values, new.given.values][order]))
    both = [known, ahead][order]
    static = Coordinates(
        np.concatenate([x.values for x in both]),
        known.origin,
        np.concatenate([x.counted for x in both]),
    )
    index = old.index
    added = None if new.index is None else new.index.values
    if index is not None and index.values is not None and added is not None:
        values = [index.values.values, added.values][order]
        index = dataclasses.replace(index, values=FrozenArray(np.concatenate(values)))
    return dataclasses.replace(old, static=static, given=given, shift=shift, index=index)


def _in_precision_of(known: Coordinates, ahead: Coordinates) -> Coordinates:
    """New coordinates in the dtype of the old ones, in which regular ones stay so, if it does."""
    dtype, x = known.values.dtype, ahead.values
    with np.errstate(all="ignore"):  # of numbers that are too large for the dtype
        cast = (np.rint(x) if dtype.kind != "f" and x.dtype.kind == "f" else x).astype(dtype)
        moved = np.abs(less(cast, x))
    steps = spacing(np.concatenate([known.counted, ahead.counted]))[known.values.shape[0] :]
    share = SHARE * steps.reshape(-1, *(1,) * (x.ndim - 1))
    limit = np.minimum(np.maximum(ahead.rounding, known.rounding), share)
    return Coordinates(cast, known.origin) if (moved <= limit).all() else ahead


def _continued(known: Coordinates, ahead: Coordinates, name: str) -> tuple[Coordinates, float]:
    """New coordinates of an axis that `kx.regular` snapped, in its own steps."""
    x, first = ahead.counted, known.counted[0]
    step = (known.counted[-1] - first) / (known.counted.size - 1)
    snapped = first + step * np.round((x - first) / step)
    away = np.abs(snapped - x)
    if away.max() > 0.1 * abs(step):
        place = int(away.argmax())
        raise ValueError(
            f"The new coordinates of {name} must continue the regular axis, within a tenth of its "
            f"step {abs(step):.4g}; coordinate {place}, {ahead.values[place]}, would move by "
            f"{snapped[place] - x[place]:.6g}. Condition a new kx.GridGP on all of the data."
        )
    values = np.asarray(known.origin, np.float64) + snapped
    return Coordinates(values, known.origin, snapped), float(away.max())


def _longer(gp: AbstractProcess, axis: Axis, slices: Slices) -> AbstractProcess:
    """The process with another axis: its structure is chosen anew, its parameters stay."""
    i, name = slices.axis, slices.name
    kernel, held = gp.kernels[i], gp.structures[i]
    asked = held.rank or (held.kind if held.is_asked else None)
    check_kernel(kernel, axis, name)
    structure = choose(kernel, axis, asked)
    check_structure(kernel, axis, structure, name)
    axes, structures = _with(gp.axes, i, axis), _with(gp.structures, i, structure)
    joined = gp.joined_structure
    if gp.joined is not None:
        joined = joined_structure(gp.additive, gp.joined, axes, axis_labels(gp), structures)
    noise = gp.noise_model.longer(slices, gp.dtype)
    further = with_fields(
        gp,
        measured=None,
        axes=axes,
        structures=structures,
        joined_structure=joined,
        noise=gp.noise if noise.is_white else noise,
        observed=mask_of(None, noise, tuple(x.size for x in axes)),
    )
    return settled(further)


def _check_batches(y: Array, ahead: Array, num_axes: int) -> None:
    lead, own = (x.shape[: x.ndim - num_axes] for x in (y, ahead))
    if lead != own:
        raise ValueError(
            f"y_new must have as many data sets as y, of batch shape {lead}; got {own}."
        )


def _with(values: tuple, i: int, value: Any) -> tuple:
    return (*values[:i], value, *values[i + 1 :])
