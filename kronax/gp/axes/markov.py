"""Kernels as Markov processes along an axis: where that is so, and the factor."""

import dataclasses
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.labels import Labels
from kronax.gp.coordinates.spacing import Coordinates, step_of
from kronax.gp.kernels.base import Exchangeable, Kernel, dtype_of
from kronax.gp.kernels.markov import NotMarkovError
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.precision import where
from kronax.linalg.markov.factor import Markov, MarkovAhead
from kronax.linalg.state_spaces.algebra import with_state
from kronax.linalg.state_spaces.state_space import StateSpace


def why_not_markov(kernel: Kernel, axis: Axis) -> str | None:
    """Why a kernel has no state space on an axis, `None` if it has one; nothing is compiled."""
    if reason := why_unordered(kernel, axis):
        return reason
    try:
        jax.eval_shape(lambda: kernel.state_space(np.ones(1, dtype_of(kernel))).initial)
    except NotMarkovError as error:
        return error.reason
    return None


def why_unordered(kernel: Kernel, axis: Axis) -> str | None:
    """Why the places of an axis, as a kernel sees them, have no order; `None` if they have one."""
    if axis.static is None:
        return "its coordinates are traced, and cannot be sorted"
    if isinstance(axis.coding, Labels):
        return "labels have no order"
    if axis.radius is not None or axis.static.line is None:
        return "places in several dimensions have no order"
    if axis.period is not None and any(_sees_chords(term, axis) for term in kernel.all_terms()):
        return "on a circle what lies ahead also lies behind"
    return None


def state_length(kernel: Kernel, are_apart: bool = True) -> int | None:
    """How many numbers the state of a kernel has, `None` if it has none; nothing is compiled.

    Args:
        kernel: of one axis.
        are_apart: whether no two places are known to be the same: what is white is no state then.
    """
    shapes = _shapes(kernel, are_apart)
    return None if shapes is None else shapes.order


def has_nugget(kernel: Kernel, are_apart: bool = True) -> bool:
    """Whether a part of a Markov kernel is white, beside its state or in it."""
    shapes = _shapes(kernel, are_apart)
    return shapes is not None and shapes.nugget is not None


def _shapes(kernel: Kernel, are_apart: bool) -> StateSpace | None:
    leaves, tree = jax.tree.flatten(kernel)
    return _shapes_of(tree, tuple((np.shape(x), jnp.result_type(x)) for x in leaves), are_apart)


@lru_cache(maxsize=256)
def _shapes_of(
    tree: Any, leaves: tuple[tuple[tuple[int, ...], Any], ...], are_apart: bool
) -> StateSpace | None:
    """Of a kernel with leaves of these shapes and precisions: tracing takes milliseconds."""
    kernel = tree.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    one = np.ones(1, dtype_of(kernel))
    try:
        if are_apart:
            return jax.eval_shape(lambda kernel: kernel.state_space(one), kernel)
        return jax.eval_shape(lambda kernel, gaps: kernel.state_space(gaps), kernel, one)
    except NotMarkovError:
        return None


def _sees_chords(term: Kernel, axis: Axis) -> bool:
    """Whether it goes round a circle: not one that only asks which places are the same."""
    return term.isotropic and not (isinstance(term, Exchangeable) and axis.is_distinct)


def markov_factor(kernel: Kernel, axis: Axis, dtype: Any) -> Markov:
    """The covariance on an axis from the gaps between its sorted places.

    Gaps are known before they are rounded to the precision of the parameters. They stay in NumPy,
    so that a kernel sees which places are the same.
    """
    assert axis.static is not None
    places = axis.offsets.reshape(axis.size)
    order = np.argsort(places, kind="stable")
    gaps: Any = np.diff(places[order])
    if axis.static.is_regular and kernel.stationary and axis.size > 1:
        gaps = np.asarray(step_of(places))
    space = kernel.state_space(gaps.astype(dtype))
    space = jax.tree.map(lambda x: x.astype(dtype), space)
    return Markov(space, axis.size, order)


def markov_ahead(kernel: Kernel, axis: Axis, new: Points, dtype: Any) -> MarkovAhead:
    """The process on an axis and at new places, which may be traced: in linear time."""
    old = axis.points(dtype)
    both = jnp.concatenate([old.centred.reshape(-1), new.centred.reshape(-1)])
    begun = jnp.min(new.centred) >= jnp.min(old.centred)
    # Behind a barrier: XLA would sort constants while it compiles, at a crawl.
    sorting = jnp.argsort(lax.optimization_barrier(both), stable=True)
    space = kernel.state_space(jnp.diff(both[sorting]))
    space = jax.tree.map(lambda x: x.astype(dtype), space)
    if not space.stationary:  # its first covariance is that of the first place
        space = dataclasses.replace(space, initial=where(begun, space.initial, jnp.nan))
    cell, is_old = new.found_in(old)
    own, ahead = (jnp.arange(points.size, dtype=cell.dtype) for points in (old, new))
    places = jnp.concatenate([own, jnp.where(is_old, cell, old.size + ahead)])
    back = jnp.zeros_like(sorting).at[sorting].set(jnp.arange(both.size))
    return MarkovAhead(with_state(space), sorting, back, back[places], old.size)


def check_begun(kernel: Kernel, axis: Axis, new: Axis, name: str) -> None:
    """Refuse new places before the first, where a process begins; traced ones make NaN."""
    shapes = _shapes(kernel, axis.is_distinct)
    if new.static is None or shapes is None or shapes.stationary:
        return
    first, least = (float(np.min(x.offsets)) for x in (axis, new))
    if least < first:
        raise ValueError(
            f"New coordinates of {name} must not lie before the first one: the state space of "
            f"{type(kernel).__name__} begins there, as it is not stationary. Got one "
            f"{first - least:.6g} before it."
        )


def slope_of_state(kernel: Kernel, dtype: Any) -> Array:
    """The slope of a differentiable process by the entries of its state, `F₀` with `A' = F A`."""

    def transition(gap: Array) -> Array:
        return with_state(kernel.state_space(gap)).transitions

    zero = jnp.zeros((), dtype)
    return jax.jvp(transition, (zero,), (jnp.ones_like(zero),))[1][0].astype(dtype)


def beginning(axis: Axis, size: int) -> Axis:
    """At most so many of the first places of an axis."""
    assert axis.static is not None
    if axis.size <= size:
        return axis
    values, counted = axis.static.values[:size], axis.static.counted[:size]
    return dataclasses.replace(axis, static=Coordinates(values, axis.origin, counted), given=None)
