"""L-BFGS with a line search that looks at one point a turn, so that a loop holds its loss once.

A search lies between `low`, where the loss still falls, and `high`, where it rises or is more than
at the origin. It ends where the loss fell enough and got flatter (the strong Wolfe conditions), or
where the slopes alone say so while the loss is what it was but for a small share: the approximate
conditions of Hager and Zhang (2006), as in `optax.scale_by_zoom_linesearch`, which rounding and
random probes spoil less.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import where

DECREASE, CURVATURE = 1e-4, 0.9
# Below this share of the loss the search goes by slopes.
NEAR = 1e-4
MOST_TRIALS = 20
GROWTH = 4.0
# A trial keeps this share of the interval away from its ends; every third one halves it.
MARGIN, HALVED = 0.1, 3
# An interval this narrow, in steps, is as good as its lower end.
NARROW = 1e-5

_DIRECTION = optax.scale_by_lbfgs(memory_size=10)


class Search(NamedTuple):
    """A search along a line between two turns, from the last point in `memory`.

    With `trials = 0` the next point is taken as it is: a start, or one from which the search did
    not go on.
    """

    memory: Any
    direction: Array
    slope: Array
    share: Array
    low: Array
    slope_low: Array
    high: Array
    slope_high: Array
    trials: Array

    @property
    def point(self) -> Array:
        """Where the loss is looked at next."""
        return self.memory.params + self.share * self.direction

    @property
    def is_stuck(self) -> Array:
        """Whether nothing was found along the whole line."""
        return self.share == 0


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """The optimiser of a fit that names none."""

    def init(self, points: np.ndarray) -> Search:
        """Before anything is known of the loss, at points `(num_fits, p)`; on the host."""
        shapes = jax.eval_shape(jax.vmap(_DIRECTION.init), points)
        memory = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        nowhere: Any = np.zeros_like(points)
        none: Any = np.zeros(len(points), np.int32)
        slope: Any = np.full(len(points), -np.inf, points.dtype)
        return Search(
            memory=memory,
            direction=nowhere,
            slope=slope,
            share=np.ones_like(slope),
            low=np.zeros_like(slope),
            slope_low=slope,
            high=-slope,
            slope_high=-slope,
            trials=none,
        )


def _along(direction: Array, slope: Array, memory: Any, trials: int) -> Search:
    """A search that starts with the whole step."""
    none = jnp.zeros_like(slope)
    return Search(
        memory=memory,
        direction=direction,
        slope=slope,
        share=none + 1,
        low=none,
        slope_low=slope,
        high=none + jnp.inf,
        slope_high=none + jnp.inf,
        trials=jnp.asarray(trials, jnp.int32),
    )


def looked(search: Search, before: Array, value: Array, grad: Array) -> tuple[Search, Array]:
    """The search after its point was evaluated, and whether that point is taken.

    `before` is the loss at the origin of the line.
    """
    slope = matmul(grad, search.direction)
    falls = value <= before + DECREASE * search.share * search.slope
    is_near = value <= before + NEAR * jnp.abs(before)
    seems_to_fall = is_near & (slope <= (2 * DECREASE - 1) * search.slope)
    is_finite = jnp.isfinite(value) & jnp.isfinite(slope)
    is_flatter = jnp.abs(slope) <= -CURVATURE * search.slope
    taken = (is_finite & is_flatter & (falls | seems_to_fall)) | (search.trials == 0)
    rises = ~is_finite | (slope >= 0) | ~(falls | is_near)
    unknown = jnp.where(is_finite, slope, -jnp.ones_like(slope))
    narrowed = search._replace(
        low=jnp.where(rises, search.low, search.share),
        slope_low=jnp.where(rises, search.slope_low, slope),
        high=jnp.where(rises, search.share, search.high),
        slope_high=jnp.where(rises, unknown, search.slope_high),
        trials=search.trials + 1,
    )
    return narrowed, taken


def narrower(search: Search) -> Search:
    """Where to look next; at the lower end, as it is, if looking has taken long enough."""
    low, high = search.low, search.high
    width = high - low
    secant = low - search.slope_low * width / (search.slope_high - search.slope_low)
    inside = jnp.clip(secant, low + MARGIN * width, high - MARGIN * width)
    by_halves = (search.slope_high <= 0) | (search.trials % HALVED == 0)
    inside = jnp.where(by_halves | ~jnp.isfinite(inside), low + width / 2, inside)
    share = jnp.where(jnp.isfinite(high), inside, GROWTH * search.share)
    ends = (search.trials > MOST_TRIALS) | ((width <= NARROW) & (low > 0))
    return search._replace(
        share=jnp.where(ends, low, share), trials=jnp.where(ends, 0, search.trials)
    )


def turned(memory: Any, point: Array, grad: Array) -> Search:
    """A new search from the point that was taken."""
    # optax mixes integer types, which a user's strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        step, memory = _DIRECTION.update(grad, memory, point)
        direction = -step.astype(grad.dtype)
        falls = matmul(grad, direction) < 0
        # Stale or rounded curvature may point upwards: it is forgotten.
        steepest = -grad * jnp.minimum(1.0, 1.0 / jnp.linalg.norm(grad))
        weights = where(falls, memory.weights_memory, 0.0)
    direction = jnp.where(falls, direction, steepest)
    return _along(direction, matmul(grad, direction), memory._replace(weights_memory=weights), 1)


def afresh(memory: Any) -> Search:
    """A search that takes its next point as it is, and has forgotten all before."""
    forgotten = memory._replace(
        count=jnp.zeros_like(memory.count), weights_memory=jnp.zeros_like(memory.weights_memory)
    )
    nowhere = jnp.zeros_like(memory.params)
    return _along(nowhere, jnp.full((), -jnp.inf, nowhere.dtype), forgotten, 0)
