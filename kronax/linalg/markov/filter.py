"""Kalman filter and smoother of many lanes at once, and the adjoint of the filter.

A lane is one mode of the other axes: its covariance is `S = λ K + μ diag(ν)` with `K` that of the
state space. States have unit scale, `f = λ x[0]`, so that nothing divides by `λ`. At a place, with
`p = P[:, 0]`, the noise `n = μ ν + λ nugget`, `D = λ p_0 + n` and `v = y − λ m_0`,

    m ← m + p v / D,    P ← P − λ p pᵀ / D,    P[0] ← p n / D  (the same, without a difference),

and on to the next place `m ← A m`, `P ← A P Aᵀ + Q`. A place that is not observed leaves both as
they are. `log det S = Σ log D` and `yᵀ S⁻¹ y = Σ v² / D`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.precision import where
from kronax.linalg.state_spaces.state_space import (
    StateSpace,
    applied,
    product,
    sandwich,
    times,
    times_right,
)


class Lanes(NamedTuple):
    """The two terms of all lanes.

    Args:
        signal: `λ`, `(lanes,)`.
        noise: `μ`, `(lanes,)`.
        levels: `ν`, `(n,)` or `()`.
        observed: where there are data, `(n,)`; `None` for everywhere.
    """

    signal: Array
    noise: Array
    levels: Array
    observed: Array | None = None


class Filtered(NamedTuple):
    """What a filter found at every place before it saw the value there.

    Args:
        means: `m`, `(n, d, lanes)`.
        covariances: `P`, `(n, d, d, lanes)`.
    """

    means: Array
    covariances: Array


class Gain(NamedTuple):
    """One place: `p`, `1 / D` (zero where nothing is observed) and `n / D` (one there)."""

    first: Array
    precision: Array
    left: Array


def per_place(space: StateSpace, lanes: Lanes) -> Any:
    """What a scan runs over beside the data: levels, nugget, observed, where they vary; steps."""
    return (
        lanes.levels if lanes.levels.ndim else None,
        space.nugget if space.nugget_varies else None,
        lanes.observed,
        space.steps(),
    )


def own_noise(space: StateSpace, lanes: Lanes, place: Any) -> tuple[Array, Array]:
    """`ν` and the nugget at one place."""
    levels, nugget = place[:2]
    levels = lanes.levels if levels is None else levels
    if space.nugget is None:
        return levels, jnp.zeros((), levels.dtype)
    return levels, space.nugget if nugget is None else nugget


def noise_at(space: StateSpace, lanes: Lanes, place: Any) -> Array:
    """`n` of all lanes at one place."""
    levels, nugget = own_noise(space, lanes, place)
    return lanes.noise * levels + lanes.signal * nugget


def gain(space: StateSpace, lanes: Lanes, p: Array, place: Any) -> Gain:
    """From the covariance `P` of the state at one place; NaN where `D` is not positive."""
    first, observed, noise = p[0], place[2], noise_at(space, lanes, place)
    total = lanes.signal * first[0] + noise
    precision = 1 / where(total > 0, total, jnp.nan)
    left = noise * precision
    if observed is not None:
        precision, left = jnp.where(observed, precision, 0), jnp.where(observed, left, 1)
    return Gain(first, precision, left)


def updated(p: Array, at: Gain, signal: Array) -> Array:
    """`P` given the value at this place as well."""
    scaled = (signal * at.precision)[None] * at.first
    own = at.first * at.left[None]
    rest = p[1:, 1:] - scaled[1:, None] * at.first[None, 1:]
    rows = jnp.concatenate([own[1:, None], rest], axis=1)
    return jnp.concatenate([own[None], rows], axis=0)


def filtered(space: StateSpace, lanes: Lanes, y: Array) -> tuple[Array, Array, Filtered]:
    """`Σ log D` and `Σ v² / D` per lane for data `(n, lanes)`, and what was found on the way.

    The terms are added up at the end: one after another the rounding of equal ones is a bias.
    """

    def body(carry: Any, step: Any) -> tuple[Any, Any]:
        m, p = carry
        value, place = step
        at = gain(space, lanes, p, place)
        v = value - lanes.signal * m[0]
        precision = at.precision
        counted = precision if place[2] is None else jnp.where(place[2], precision, 1)
        a, q = space.step(place[3])
        ahead = times(a, m + at.first * (v * precision)[None])
        spread = sandwich(a, updated(p, at, lanes.signal)) + q[:, :, None]
        return (ahead, spread), (-jnp.log(counted), v * v * precision, Filtered(m, p))

    p = jnp.broadcast_to(space.initial[:, :, None], (*space.initial.shape, y.shape[1]))
    start = (jnp.zeros((space.order, y.shape[1]), y.dtype), p)
    logs, squares, found = lax.scan(body, start, (y, per_place(space, lanes)))[1]
    return jnp.sum(logs, axis=0), jnp.sum(squares, axis=0), found


class Slopes(NamedTuple):
    """The derivative of `a Σ log D + b Σ v² / D`, summed over the lanes, and what it is made of.

    Args:
        space: in the leaves of the state space.
        signal: in `λ`, `(lanes,)`, the data of the lane held.
        noise: in `μ`, `(lanes,)`.
        levels: in `ν`.
        data: in the data, `2 b α` with `α = S⁻¹ y`, `(n, lanes)`.
        explained: `2 b K α`.
    """

    space: StateSpace
    signal: Array
    noise: Array
    levels: Array
    data: Array
    explained: Array


def slopes(
    space: StateSpace, lanes: Lanes, y: Array, found: Filtered, weights: tuple[float, float]
) -> Slopes:
    """The filter backward, in closed form (modified Bryson-Frazier).

    `r` and `L` are the derivatives in `m` and `P`, over `λ`: nothing divides by it.
    """
    on_logdet, on_quadratic = weights
    signal = lanes.signal

    def body(carry: Any, step: Any) -> tuple[Any, Any]:
        r, ell = carry
        value, m, p, place = step
        at = gain(space, lanes, p, place)
        first, g = at.first, at.precision
        v = value - signal * m[0]
        a, _ = space.step(place[3])
        # Back over the step to the next place.
        half, after = times_right(ell, a.T), updated(p, at, signal)
        mean = m + first * (v * g)[None]
        by_step = 2 * product(half, after) + r[:, None] * mean[None]
        by_spread, r, ell = ell, times(a.T, r), times(a.T, half)
        # Back over the update by the value.
        s = signal * jnp.sum(first * r, axis=0)
        q = signal * jnp.sum(first * applied(ell, first), axis=0)
        by_value = g * (s + 2 * on_quadratic * v)
        by_score = g * (on_logdet - g * v * (on_quadratic * v + s))
        by_noise = by_score + g * g * signal * q
        levels, nugget = own_noise(space, lanes, place)
        by_signal = first[0] * by_score - g * at.left * q - m[0] * by_value + nugget * by_noise
        r, ell = unseen(at, signal, r, ell)
        by_first = (g * v / 2)[None] * r
        ell = ell.at[0].add(by_first).at[:, 0].add(by_first)
        ell = ell.at[0, 0].add(g * (on_logdet - g * on_quadratic * v * v))
        r = r.at[0].add(-2 * on_quadratic * g * v)
        explained = 2 * on_quadratic * m[0] - jnp.sum(first * r, axis=0) + nugget * by_value
        sums = [over_lanes(x, signal) for x in (by_step, by_spread)]
        sums += [jnp.sum(lanes.noise * by_noise), jnp.sum(signal * by_noise)]
        return (r, ell), (by_value, explained, by_signal, levels * by_noise, *sums)

    r = jnp.zeros((space.order, y.shape[1]), y.dtype)
    start = (r, jnp.zeros((space.order, *r.shape), y.dtype))
    steps = (y, *found, per_place(space, lanes))
    (_, ell), out = lax.scan(body, start, steps, reverse=True)
    data, explained, by_signal, by_noise, by_step, by_spread, by_levels, by_nugget = out
    by_space = StateSpace(
        jnp.sum(by_step, axis=0) if space.regular else by_step[:-1],
        jnp.sum(by_spread, axis=0) if space.regular else by_spread[:-1],
        over_lanes(ell, signal),
        None if space.nugget is None else by_nugget if space.nugget_varies else jnp.sum(by_nugget),
        space.regular,
        space.stationary,
    )
    levels = by_levels if lanes.levels.ndim else jnp.sum(by_levels)
    by_lane = (jnp.sum(by_signal, axis=0), jnp.sum(by_noise, axis=0))
    return Slopes(by_space, *by_lane, levels, data, explained)


def unseen(at: Gain, signal: Array, r: Array, ell: Array) -> tuple[Array, Array]:
    """`Tᵀ r` and `Tᵀ L T` with `T = I − λ p eᵀ / D`, by which a value changes the state.

    The first entry of its first column is `n / D`: of a difference from one, little noise leaves
    nothing, and `L` is as large as the noise is small.
    """
    column = (-signal * at.precision)[None] * at.first
    column = column.at[0].set(at.left)
    turned = applied(ell, column)
    ell = ell.at[0].set(turned).at[:, 0].set(turned)
    corner = jnp.sum(column * turned, axis=0)
    return r.at[0].set(jnp.sum(column * r, axis=0)), ell.at[0, 0].set(corner)


def over_lanes(x: Array, weights: Array) -> Array:
    """`Σ w x` over the lanes."""
    return jnp.sum(x * weights[None, None], axis=-1)
