"""The covariance of data at any cells of a grid with a Markov axis: one filter of all places.

The state is that of every place of the other axes at once, `(d, m)` for `m` places, and a step
in time takes `O(m³ d²)` operations whatever is missing. Precisions `w` are carried, zero at gaps:
with `W = diag(w)` the innovation has `I + W^½ (P_00 + nugget K_s) W^½ = L Lᵀ`. The covariance `K_s`
of the places is never decomposed, and everything is ordinary differentiable code.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, matmul
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.markov.factor import Markov
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import is_diagonal
from kronax.linalg.state_spaces.state_space import StateSpace


def by_times(x: Array, factor: Markov, axis: int) -> Array:
    """A grid as sorted times of the Markov axis by places, `(n, m)`."""
    moved = factor.sorted(jnp.moveaxis(x, axis, 0))
    return moved.reshape(moved.shape[0], -1)


def on_grid(x: Array, factor: Markov, axis: int, grid_shape: tuple[int, ...]) -> Array:
    """The same back."""
    shape = [n for i, n in enumerate(grid_shape) if i != axis]
    return jnp.moveaxis(factor.unsorted(x).reshape(-1, *shape), 0, axis)


def of_grid(factors: Sequence[AbstractFactor], axis: int, precisions: Array) -> "FullState":
    """That of a grid, with a precision for every cell."""
    factor: Any = factors[axis]
    others = [f for i, f in enumerate(factors) if i != axis]
    one = jnp.ones((1, 1), precisions.dtype)
    places = Kronecker(*others).to_dense() if others else one
    return FullState(factor.space, places, by_times(precisions, factor, axis))


class FullState(NamedTuple):
    """A process over places and times, with a precision for every value.

    Args:
        space: along the sorted times.
        places: `K_s`, `(m, m)`.
        precisions: `w`, `(n, m)`; zero where nothing is known.
    """

    space: StateSpace
    places: Array
    precisions: Array

    @property
    def size(self) -> int:
        """Number of times."""
        return self.precisions.shape[0]

    def roots(self) -> Array:
        """`√w`, whose derivative at zero counts as zero."""
        known = self.precisions > 0
        return jnp.where(known, jnp.sqrt(jnp.where(known, self.precisions, 1)), 0)

    def start(self) -> Array:
        """`P` before the first value, `(d, d, m, m)`."""
        return self.space.initial[:, :, None, None] * self.places[None, None]

    def steps(self) -> Any:
        """What a scan over the times runs over."""
        space = self.space
        return self.roots(), space.nugget if space.nugget_varies else None, space.steps()

    def innovation(self, p: Array, root: Array, nugget: Array | None) -> Array:
        """`L` at one time."""
        own = p[0, 0]
        if self.space.nugget is not None:
            own = own + (self.space.nugget if nugget is None else nugget) * self.places
        eye = jnp.eye(own.shape[-1], dtype=own.dtype)
        return jnp.linalg.cholesky(eye + root[:, None] * own * root[None])

    def ahead(self, p: Array, steps: Any) -> Array:
        """`P` at the next time."""
        a, q = self.space.step(steps)
        order, m = p.shape[0], p.shape[-1]
        flat = matmul(a, p.reshape(order, -1)).reshape(p.shape)
        flat = jnp.moveaxis(flat, 1, 0).reshape(order, -1)
        turned = jnp.moveaxis(matmul(a, flat).reshape(order, order, m, m), 0, 1)
        return turned + q[:, :, None, None] * self.places[None, None]


class Update(NamedTuple):
    """By what the values at one time change the state.

    Args:
        inverse: `L⁻¹`, `(m, m)`.
        white: `L⁻¹ W^½ P_0j`, `(m, d·m)`.
        half: `(L Lᵀ)⁻¹ W^½ P_0j`, alike.
    """

    inverse: Array
    white: Array
    half: Array


def updated(
    state: FullState, p: Array, root: Array, lower: Array, nugget: Array | None
) -> tuple[Array, Update]:
    """`P` given the values at this time as well.

    Where there are data, rows of values are `W^-½ (L Lᵀ)⁻¹ W^½ P_0j` in place of a difference, of
    which little noise leaves nothing. It is felt where a place is repeated, or nearly so: a step
    adds much more. Equal steps are none of that, and take two thirds of the time without.
    """
    order, m = p.shape[0], p.shape[-1]
    rows = root[:, None] * jnp.moveaxis(p[0], 0, 1).reshape(m, order * m)
    # One solve in place of two, of which each has more of them in its derivative.
    inverse = solve_triangular(lower, jnp.eye(m, dtype=p.dtype), lower=True)
    white = matmul(inverse, rows)
    update = Update(inverse, white, matmul(inverse.T, white))
    square = matmul(white.T, white).reshape(order, m, order, m)
    rest = p - jnp.moveaxis(square, 1, 2)
    if state.space.regular:
        return rest, update
    known = root > 0
    kept = update.half / jnp.where(known, root, 1)[:, None]
    if state.space.nugget is not None:
        own = (state.space.nugget if nugget is None else nugget) * state.places
        kept = kept + matmul(own, root[:, None] * update.half)
    kept = jnp.moveaxis(kept.reshape(m, order, m), 1, 0)
    first = jnp.where(known[None, :, None], kept, rest[0])
    # What rounding leaves unsymmetric would grow; gaps have it from the cells with data.
    values = first[0]
    even = jnp.where(known[:, None], (values + values.T) / 2, values.T)
    values = jnp.where(known[None], even, values)
    first = first.at[0].set(values)
    return rest.at[0].set(first).at[:, 0].set(jnp.swapaxes(first, 1, 2)), update


class Filtered(NamedTuple):
    """What is needed at every time to solve and to look back.

    Args:
        lower: `L`, `(n, m, m)`.
        first: `P_j0`, `(n, d, m, m)`.
    """

    lower: Array
    first: Array


def filtered(state: FullState) -> Filtered:
    """Of the values at all times; nothing depends on what they are."""

    def body(p: Array, step: Any) -> tuple[Array, Filtered]:
        root, nugget, steps = step
        lower = state.innovation(p, root, nugget)
        after, _ = updated(state, p, root, lower, nugget)
        return state.ahead(after, steps), Filtered(lower, p[:, 0])

    return lax.scan(jax.checkpoint(body), state.start(), state.steps())[1]


def _inverse(lower: Array, root: Array, b: Array) -> Array:
    """`W^½ (L Lᵀ)⁻¹ W^½ b` for `b` `(m,)` or `(m, k)`."""
    scale = root if b.ndim == 1 else root[:, None]
    white = solve_triangular(lower, scale * b, lower=True)
    return scale * solve_triangular(lower, white, lower=True, trans=1)


def solved(state: FullState, found: Filtered, b: Array) -> Array:
    """`S⁻¹ b` for `(n, m)`, zero at gaps."""
    order, m = state.space.order, state.places.shape[-1]

    def forward(mean: Array, step: Any) -> tuple[Array, Array]:
        value, lower, first, (root, _, steps) = step
        weight = _inverse(lower, root, value - mean[0])
        mean = mean + jnp.einsum("jab,b->ja", first, weight, precision=HIGHEST)
        return matmul(state.space.step(steps)[0], mean), weight

    def backward(r: Array, step: Any) -> tuple[Array, Array]:
        weight, lower, first, (root, _, steps) = step
        r = matmul(state.space.step(steps)[0].T, r)
        later = jnp.einsum("jba,jb->a", first, r, precision=HIGHEST)
        weight = weight - _inverse(lower, root, later)
        return r.at[0].add(weight), weight

    zero, steps = jnp.zeros((order, m), b.dtype), state.steps()
    weights = lax.scan(forward, zero, (b, *found, steps))[1]
    return lax.scan(backward, zero, (weights, *found, steps), reverse=True)[1]


class Smoothed(NamedTuple):
    """At every time: the diagonal of `S⁻¹`, and the variances of the values given all data.

    Args:
        inverse: `(n, m)`.
        variances: `(n, m)`.
    """

    inverse: Array
    variances: Array


def smoothed(state: FullState) -> Smoothed:
    """Looking back over all times; variances lose digits at little noise, see `square_root`."""
    found = filtered(state)
    order, m = state.space.order, state.places.shape[-1]

    def body(information: Array, step: Any) -> tuple[Array, Smoothed]:
        lower, first, (root, nugget, steps) = step
        a, _ = state.space.step(steps)
        whole = jnp.kron(a, jnp.eye(m, dtype=a.dtype))
        later = matmul(matmul(whole.T, information), whole)
        column = first.reshape(order * m, m)
        inverse = _inverse(lower, root, jnp.eye(m, dtype=a.dtype))
        gain = matmul(column, inverse)
        turned = matmul(later, gain)
        both = inverse + matmul(gain.T, turned)
        # `Tᵀ Λ T` with `T = I − gain e₀ᵀ`, one side after the other: as a sum of three, what
        # rounding leaves unsymmetric would grow from step to step.
        information = later.at[:, :m].add(-turned)
        information = information.at[:m].add(-matmul(gain.T, information))
        information = information.at[:m, :m].add(inverse)
        own = first[0]
        if state.space.nugget is not None:
            own = own + (state.space.nugget if nugget is None else nugget) * state.places
        # What the values at this time leave, and then what later ones tell of it.
        kept = matmul(own, inverse)
        beyond = column.T - matmul(kept, column.T)
        left = own - matmul(kept, own) - matmul(matmul(beyond, later), beyond.T)
        return information, Smoothed(jnp.diagonal(both), jnp.diagonal(left))

    start = jnp.zeros((order * m, order * m), state.places.dtype)
    return lax.scan(jax.checkpoint(body), start, (*found, state.steps()), reverse=True)[1]


def of_operator(op: KroneckerPlusNoise, axis: int, observed: Any) -> FullState | None:
    """That of an operator on a grid, whose smoother takes no matrix of its Markov axis.

    `None` where such a matrix is not larger than the states of all places, for noise that is
    correlated, and for a batch.

    Args:
        op: signal plus noise.
        axis: its Markov axis.
        observed: true where there are data.
    """
    noise: Any = op.noise
    factor: Any = op.factors[axis]
    if op.batch_shape or factor.size < factor.space.order * prod(op.grid_shape) // factor.size:
        return None
    if isinstance(noise, Kronecker):
        if not all(map(is_diagonal, noise.factors)):
            return None
        noise = noise.diagonal()
    precisions = jnp.where(observed, jnp.broadcast_to(1 / noise, op.grid_shape), 0)
    return of_grid(op.factors, axis, precisions)
