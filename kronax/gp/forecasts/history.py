"""The filter of a posterior: one pass over its data."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.markov import beginning, why_not_markov
from kronax.gp.forecasts import recursion
from kronax.gp.forecasts.recursion import Evidence, Regressors, State, Values
from kronax.gp.forecasts.times import split
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.markov import NotMarkovError
from kronax.gp.kernels.points import NewPoints
from kronax.gp.means.covariates import covariates_of, with_covariates
from kronax.gp.means.regression import MarginalMean
from kronax.gp.model.components import New, factor_of, whole
from kronax.gp.model.process import AbstractPosterior, AbstractProcess, with_fields
from kronax.gp.model.solver_choice import own_structures
from kronax.gp.noise.abstract import AbstractNoise, NoiseInTime
from kronax.gp.noise.variances import NoNoise
from kronax.linalg.arrays.precision import where
from kronax.linalg.operators.kronecker import Kronecker


def markov_axis(gp: AbstractProcess, names: tuple[str, ...]) -> int:
    """The axis along which a process is filtered, if there is one and no doubt.

    Raises:
        NotMarkovError: if there is none, with a reason for each axis.
        ValueError: if there are several.
    """
    asked = [i for i, s in enumerate(own_structures(gp)) if s.kind == "markov"]
    reasons = [why_not(gp, i) for i in range(len(gp.axes))]
    able = [i for i, reason in enumerate(reasons) if reason is None]
    found = asked if len(asked) == 1 else able
    if len(found) == 1:
        return found[0]
    if not found:
        listed = "; ".join(f"{n}: {reason}" for n, reason in zip(names, reasons, strict=True))
        raise NotMarkovError(
            f"A filter needs an axis along which the process is Markov; got none ({listed}).",
            listed,
        )
    raise ValueError(
        "The process is Markov along several axes, "
        f"{', '.join(repr(names[i]) for i in found)}: say which one is the time, as in "
        f"`post.filter({names[found[0]]!r})`."
    )


def why_not(gp: AbstractProcess, i: int) -> str | None:
    """Why a process cannot be filtered along an axis; `None` if it can."""
    axis = gp.axes[i]
    if axis.period is not None:
        return "on a circle what lies ahead also lies behind"
    reasons = (why_not_markov(part.kernels[i], axis) for part in whole(gp))
    return next((reason for reason in reasons if reason is not None), None)


def check_axis(gp: AbstractProcess, i: int, name: str) -> None:
    """Refuse an axis along which a process is not Markov, or its noise correlated."""
    reason = why_not(gp, i)
    if reason is not None:
        raise NotMarkovError(
            f"A filter needs a process that is Markov along its time; that along {name} is not: "
            f"{reason}.",
            reason,
        )
    if not gp.noise_model.is_independent_along(i):
        raise ValueError(
            f"A filter needs noise without correlation along {name}; got a covariance. Put it "
            "into the process, as a term."
        )


def one_slice(gp: AbstractProcess, i: int) -> AbstractProcess:
    """The process with a single time, which does not count: nothing of it grows with the data."""
    axis = dataclasses.replace(beginning(gp.axes[i], 1), given=None, shift=None)
    if axis.index is not None:
        axis = dataclasses.replace(axis, index=dataclasses.replace(axis.index, values=None))
    axes = (*gp.axes[:i], axis, *gp.axes[i + 1 :])
    known = {name: one.forgetting(i) for name, one in covariates_of(gp.mean).items()}
    mean = with_covariates(gp.mean, known)
    return with_fields(gp, axes=axes, mean=mean, noise=NoNoise(), observed=None, measured=None)


def places_of(gp: AbstractProcess, i: int) -> Array:
    """The covariance of the other axes for every part of the function, `(c, m, m)`."""

    def one(part: Any) -> Array:
        factors = [
            factor_of(gp, kernel, j, gp.dtype) for j, kernel in enumerate(part.kernels) if j != i
        ]
        one = jnp.ones((1, 1), gp.dtype)
        return part.variance.astype(gp.dtype) * (Kronecker(*factors).to_dense() if factors else one)

    return jnp.stack([one(part) for part in whole(gp)])


def kernels_in_time(gp: AbstractProcess, i: int) -> list[Kernel]:
    """The kernel along the times for every part of the function."""
    return [part.kernels[i] for part in whole(gp)]


def front(x: Array, i: int, num_axes: int) -> Array:
    """`(*batch, …)` on a grid as `(k, *batch, m)`, the times first."""
    moved = jnp.moveaxis(x, i - num_axes, 0)
    lead = moved.ndim - num_axes + 1
    return moved.reshape(*moved.shape[:lead], -1)


def mean_of(gp: AbstractProcess, i: int, new: New) -> tuple[Array, Array | None]:
    """The mean function `(k, m)` at some times and the functions of a marginal one, `(k, p, m)`."""
    grid = tuple(n if x is None else x.size for x, n in zip(new, gp.grid_shape, strict=True))
    mean = front(jnp.broadcast_to(gp.mean_on(new), grid), i, len(grid))
    if not isinstance(gp.mean, MarginalMean):
        return mean, None
    design = gp.design_on(new)
    design = jnp.broadcast_to(design, (design.shape[0], *grid))
    return mean, front(design, i, len(grid))


def gaps_between(halves: Array) -> Array:
    """From time to time; both parts of near ones have an exact difference."""
    steps = jnp.diff(halves, axis=0)
    return steps[:, 0] + steps[:, 1]


def absorbed(
    gp: AbstractProcess,
    i: int,
    places: Array,
    state: State,
    halves: Array,
    new: New,
    y: Array,
    noise: NoiseInTime,
    seen: Array,
) -> tuple[State, Evidence]:
    """The state after some times, and the forecast of the values at each.

    Args:
        gp: the process of one slice.
        i: its Markov axis.
        places: those of the parts.
        state: at the last time.
        halves: that time and the new ones, `(k + 1, 2)`.
        new: the new ones as points, with the covariates of the mean then.
        y: their values, `(k, *batch, m)`.
        noise: of them.
        seen: where there are values, `(k, m)`.
    """
    gaps = gaps_between(halves)
    kernels = kernels_in_time(gp, i)
    steps = jax.vmap(lambda gap: recursion.step_of(kernels, gap))(gaps)
    # No step leads back: what is told of a traced one is NaN.
    steps = steps._replace(transition=steps.transition + nan_before(gaps)[:, None, None])
    mean, design = mean_of(gp, i, new)

    def body(state: State, each: Any) -> tuple[State, Evidence]:
        step, y, mean, design, level, seen = each
        state = recursion.moved(state, step, places)
        own = recursion.at_places(step.nuggets, places)
        own = own + noise.at(level)
        values = y - jnp.broadcast_to(mean, y.shape)
        state, found = recursion.told(state, Values(values, design, own, seen))
        return state, found._replace(mean=found.mean + jnp.broadcast_to(mean, y.shape))

    return jax.lax.scan(body, state, (steps, y, mean, design, noise.levels, seen))


def nan_before(gaps: Array) -> Array:
    """Zero, and NaN where a gap is negative."""
    return where(gaps >= 0, jnp.zeros_like(gaps), jnp.nan)


def prior(gp: AbstractProcess, i: int, places: Array, batch: tuple) -> State:
    """The state before any data."""
    dtype = gp.dtype
    step = recursion.step_of(kernels_in_time(gp, i), jnp.zeros((), dtype))
    order, m = step.transition.shape[-1], places.shape[-1]
    covariance = recursion.at_places(step.initial, places)
    found = None
    if isinstance(gp.mean, MarginalMean):
        num, variance = len(gp.mean.names), gp.mean.variance
        precision = jnp.zeros((num, num), dtype)
        if variance is not None:
            precision = jnp.eye(num, dtype=dtype) / variance.astype(dtype)
        states = jnp.zeros((num, order, m), dtype)
        found = Regressors(states, precision, jnp.zeros((*batch, num), dtype))
    return State(jnp.zeros((*batch, order, m), dtype), covariance, found)


def state_given(post: AbstractPosterior, i: int, small: AbstractProcess) -> tuple:
    """The last time of a posterior, the places, the state and the shape of noise to come."""
    gp, axis = post.gp, post.gp.axes[i]
    offsets = axis.offsets.reshape(-1)
    order = np.argsort(offsets, kind="stable")
    times = split(offsets[order], gp.dtype)
    observed = np.ones(gp.grid_shape, bool) if gp.observed is None else gp.observed.array
    new = _history(gp, i, order)
    places, state, noise = _pass(small, i, gp.noise_model, post.y, observed, order, times, new)
    return jnp.asarray(times[-1]), places, state, noise.shape if noise.is_known else None


def _history(gp: AbstractProcess, i: int, order: np.ndarray) -> NewPoints:
    """The times of the data, with the covariates then; where these are not known, nothing is."""
    times = gp.axes[i].points(gp.dtype)[order]
    known = gp.new_covariates(None, (None,) * len(gp.axes))
    return NewPoints(
        [times if j == i else None for j in range(len(gp.axes))],
        {
            name: jnp.nan_to_num(x if x.shape[i] == 1 else jnp.take(x, order, axis=i))
            for name, x in known.items()
        },
    )


@eqx.filter_jit
def _pass(
    gp: AbstractProcess,
    i: int,
    noise: AbstractNoise,
    y: Array,
    observed: Any,
    order: Any,
    halves: Any,
    new: NewPoints,
) -> tuple[Array, State, NoiseInTime]:
    num_axes, shape = len(gp.axes), observed.shape
    seen = front(observed, i, num_axes)[order]
    own = noise.in_time(i, shape, gp.dtype)
    if noise.observed is not None:
        seen = seen & front(jnp.asarray(noise.observed), i, num_axes)[order]
    own = NoiseInTime(own.levels[order], own.shape, own.is_known)
    places = places_of(gp, i)
    state = prior(gp, i, places, y.shape[: y.ndim - num_axes])
    halves = jnp.concatenate([halves[:1], halves])
    values = front(y, i, num_axes)[order]
    return places, absorbed(gp, i, places, state, halves, new, values, own, seen)[0], own
