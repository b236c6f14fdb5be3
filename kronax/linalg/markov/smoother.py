"""What a filter that looks back knows of every place: solves, diagonals, traces of pairs of lanes.

With `g = 1 / D` and `R` the information that later places have of the state, `R ← Aᵀ R A` over a
step and `R ← (I − λ g e pᵀ) R (I − λ g p eᵀ) + g e eᵀ` over a value, `e` the first unit vector,
everything about `S⁻¹` of a lane is a sum of a few products, none of them a difference of large
numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST
from kronax.linalg.markov.filter import Gain, Lanes, gain, per_place, updated
from kronax.linalg.state_spaces.state_space import StateSpace, applied, sandwich, sum_of, times


def gains(space: StateSpace, lanes: Lanes, size: int) -> Gain:
    """What a value tells, at every place; leaves `(n, …)`."""
    return _forward(space, lanes, size, lambda p, at: at)


def predicted(space: StateSpace, lanes: Lanes, size: int) -> Array:
    """`P` before every value, `(n, d, d, lanes)`."""
    return _forward(space, lanes, size, lambda p, at: p)


def _forward(space: StateSpace, lanes: Lanes, size: int, out: Callable[[Array, Gain], Any]) -> Any:
    def body(p: Array, place: Any) -> tuple[Array, Any]:
        at = gain(space, lanes, p, place)
        a, q = space.step(place[3])
        return sandwich(a, updated(p, at, lanes.signal)) + q[:, :, None], out(p, at)

    return lax.scan(body, initial(space, lanes), per_place(space, lanes), length=size)[1]


def initial(space: StateSpace, lanes: Lanes) -> Array:
    """`P` of all lanes before the first value, `(d, d, lanes)`."""
    shape = (*space.initial.shape, *lanes.signal.shape)
    return jnp.broadcast_to(space.initial[:, :, None], shape)


def solved(space: StateSpace, lanes: Lanes, at: Gain, b: Array) -> Array:
    """`S⁻¹ b` for `(n, lanes)`, linear in `b`; zero at places that are not observed."""
    first, precision, signal = at.first, at.precision, lanes.signal
    zero = jnp.zeros(first.shape[1:], b.dtype)
    steps = space.steps()

    def forward(m: Array, step: Any) -> tuple[Array, Array]:
        value, p, g, steps = step
        white = (value - signal * m[0]) * g
        return times(space.step(steps)[0], m + p * white[None]), white

    def backward(r: Array, step: Any) -> tuple[Array, Array]:
        white, p, g, steps = step
        r = times(space.step(steps)[0].T, r)
        weight = white - signal * g * jnp.sum(p * r, axis=0)
        return r.at[0].add(weight), weight

    white = lax.scan(forward, zero, (b, first, precision, steps))[1]
    return lax.scan(backward, zero, (white, first, precision, steps), reverse=True)[1]


def solved_columns(space: StateSpace, lanes: Lanes, at: Gain, b: Array) -> tuple[Array, Array]:
    """`S⁻¹ b` and `λ K S⁻¹ b`, which comes with it, for columns `(n, k, lanes)`."""
    signal, zero = lanes.signal[None], jnp.zeros((space.order, *b.shape[1:]), b.dtype)
    nugget = jnp.zeros((), b.dtype) if space.nugget is None else space.nugget
    over = (at.first[:, :, None], at.precision[:, None], space.steps())

    def forward(m: Array, step: Any) -> tuple[Array, tuple[Array, Array]]:
        value, (p, g, steps) = step
        white = (value - signal * m[0]) * g
        return times(space.step(steps)[0], m + p * white[None]), (white, m[0])

    def backward(r: Array, step: Any) -> tuple[Array, tuple[Array, Array]]:
        (white, mean), nugget, (p, g, steps) = step
        r = times(space.step(steps)[0].T, r)
        weight = white - signal * g * jnp.sum(p * r, axis=0)
        r = r.at[0].add(weight)
        return r, (weight, signal * (mean + jnp.sum(p * r, axis=0) + nugget * weight))

    found = lax.scan(forward, zero, (b, over))[1]
    steps = (found, jnp.broadcast_to(nugget, len(b)), over)
    return lax.scan(backward, zero, steps, reverse=True)[1]


class Smoothed(NamedTuple):
    """Diagonals of all lanes, `(n, lanes)`, and what the entries beside them are made of.

    With `c`, `q` and `T` the entry of `S⁻¹` at places `i > j` is `−λ c_iᵀ T_{i-1} … T_{j+1} q_j`.

    Args:
        inverse: of `S⁻¹`.
        shares: of `K S⁻¹`, without the nugget.
        variances: of the state's first entry, or of a part of the state, given the data, over `λ`.
            Those of the first entry lose digits where there are data: there `shares` tell.
        ends: `c`, `(n, d, lanes)`.
        starts: `q`, alike.
    """

    inverse: Array
    shares: Array
    variances: Array
    ends: Array
    starts: Array


def smoothed(
    space: StateSpace, lanes: Lanes, before: Array, part: Sequence[float] | None = None
) -> Smoothed:
    """All of it in one pass backward.

    Args:
        space: along the places.
        lanes: of which.
        before: `P` before every value, `(n, d, d, lanes)`.
        part: the weights of the entries of the state that make a part, `None` for the first one.
    """
    signal = lanes.signal
    weights = (1.0, *(0.0,) * (space.order - 1)) if part is None else part

    def body(information: Array, step: Any) -> tuple[Array, Smoothed]:
        p, place = step
        at = gain(space, lanes, p, place)
        first, g = at.first, at.precision
        a, _ = space.step(place[3])
        information = sandwich(a.T, information)
        turned = applied(information, first)
        length = jnp.sum(first * turned, axis=0)
        scaled = signal * g
        row = -scaled[None] * turned
        ends = row.at[0].add(g + scaled * scaled * length)
        # (I − λ g e pᵀ) R (I − λ g p eᵀ) + g e eᵀ changes the first row and column alone.
        information = information.at[0].add(row).at[:, 0].add(row)
        information = information.at[0, 0].add(scaled * scaled * length + g)
        asked = sum_of(w * p[i] for i, w in enumerate(weights) if w)
        variance = sum_of(w * asked[i] for i, w in enumerate(weights) if w)
        after = applied(information, asked)
        found = Smoothed(
            inverse=g + scaled * scaled * length,
            shares=g * (first[0] - signal * at.left * length),
            variances=variance - signal * jnp.sum(asked * after, axis=0),
            ends=ends,
            starts=times(a, first) * g[None],
        )
        return information, found

    start = jnp.zeros_like(before[0])
    steps = (before, per_place(space, lanes))
    return lax.scan(body, start, steps, reverse=True)[1]


def pair_sums(space: StateSpace, lanes: Lanes, at: Gain, found: Smoothed, size: int) -> Array:
    """`Σ_{i>j} ν_i ν_j (S_a⁻¹)_ij (S_c⁻¹)_ij / (λ_a λ_c)` for lanes `a`, `c` of one group.

    The lanes come in groups of `size` neighbours; the result is `(groups, size, size)`. Cost
    `O(n lanes size d²)`.
    """

    def grouped(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], -1, size)

    def body(carry: Any, step: Any) -> tuple[Any, None]:
        x, total = carry
        ends, starts, first, precision, (levels, _, _, steps) = step
        level = lanes.levels if levels is None else levels
        c, q = grouped(ends), grouped(starts)
        total = total + level * jnp.einsum("iga,ijgac,jgc->gac", c, x, c, precision=HIGHEST)
        # T = A (I − λ g p eᵀ)
        a, _ = space.step(steps)
        pull = grouped((lanes.signal * precision)[None] * first)
        x = x - pull[:, None, :, :, None] * x[0][None]
        x = x - pull[None, :, :, None, :] * x[:, 0][:, None]
        x = sandwich(a, x)
        return (x + level * q[:, None, :, :, None] * q[None, :, :, None, :], total), None

    groups = lanes.signal.shape[0] // size
    pairs = (groups, size, size)
    zero = jnp.zeros(pairs, found.inverse.dtype)
    start = jnp.zeros((space.order, space.order, *pairs), zero.dtype)
    steps = (found.ends, found.starts, at.first, at.precision, per_place(space, lanes))
    (_, total), _ = lax.scan(body, (start, zero), steps)
    return total
