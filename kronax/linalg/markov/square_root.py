"""Variances of all places at all times given any data, as sums of squares.

With little noise the covariance of the state is nearly singular where there are data and large
where there are none, and `P − P R P` loses what it is asked for. Here roots are carried, `P = F Fᵀ`
of what earlier times leave and `J = Nᵀ N` of what this and later ones tell, each a triangular
factor of stacked matrices; the covariance given all is `F (I + Fᵀ J F)⁻¹ Fᵀ`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, matmul
from kronax.linalg.markov.full_state import FullState


def variances(
    state: FullState, rows: Array | None = None, part: Sequence[float] | None = None
) -> Array:
    """`diag(B V_t Bᵀ)` with the covariance `V_t` of the values at time `t` given all data.

    `O(n (m d)³)` operations and memory for `n (m d)²` numbers; a value, held constant.

    Args:
        state: with data where its precisions are positive.
        rows: `B`, `(k, m)`, the identity by default.
        part: weights of the entries of the state, of which not the first one is asked for.

    Returns:
        `(n, k)`, by sorted times.
    """

    def answer(known: Array, shown: Array, later: Array, root: Array) -> Array:
        upper = triangle(identity(shown), later, shown)
        kept = divided(known if rows is None else matmul(rows, known), upper)
        return jnp.sum(jnp.square(kept), axis=1)

    return _looking_back(state, answer, part)


def inverse_diagonal(state: FullState) -> Array:
    """The diagonal of `S⁻¹`, `(n, m)` by sorted times, zero at gaps; a value, held constant.

    It is `w (1 − h)` with what a value has to say of itself, `h`: the rest, `1 − h`, is what lies
    outside the range of the stacked matrix.
    """

    def answer(known: Array, shown: Array, later: Array, root: Array) -> Array:
        stacked = jnp.concatenate([identity(shown), later, shown])
        outside = jnp.linalg.qr(stacked, mode="complete")[0][-root.size :, shown.shape[1] :]
        return jnp.square(root) * jnp.sum(jnp.square(outside), axis=1)

    return _looking_back(state, answer)


def _looking_back(
    state: FullState, answer: Callable[..., Array], part: Sequence[float] | None = None
) -> Array:
    """What is asked at every time, of the numbers that make the values, and of what is known.

    Args:
        state: with data where its precisions are positive.
        answer: of the values `(m, q)` as they are made of `q` independent numbers, of what the data
            at this time and later ones show of these, `(m, q)` and `(d m, q)`, and of `√w`.
        part: of the state, in place of the values.
    """
    state = lax.stop_gradient(state)
    space, m = state.space, state.places.shape[-1]
    order, size = space.order, space.order * m
    places = root_of(state.places)
    noises = jnp.kron(cholesky(space.innovations), places)
    if not space.regular:
        noises = jnp.concatenate([noises, jnp.zeros((1, size, size), noises.dtype)])
    steps = (*state.steps(), None if space.regular else noises)

    def at(step: Any) -> tuple[Array, Array, Array, Array | None]:
        """`W^½`, `A`, the root of the innovations, and that of the nugget."""
        root, nugget, turns, noise = step
        own = None
        if space.nugget is not None:
            own = jnp.sqrt(space.nugget if nugget is None else nugget) * places
        return root, space.step(turns)[0], noises if noise is None else noise, own

    def values(f: Array, own: Array | None) -> Array:
        """The values at the places, of the numbers that make the state and the nugget."""
        return f[:m] if own is None else jnp.concatenate([f[:m], own], axis=1)

    def forward(f: Array, step: Any) -> tuple[Array, Array]:
        root, a, noise, own = at(step)
        shown = root[:, None] * values(f, own)
        left = divided(widened(f, shown), triangle(identity(shown), shown))
        ahead = matmul(a, left.reshape(order, -1)).reshape(size, -1)
        return triangle(ahead.T, noise.T).T, f

    def backward(told: Array, step: Any) -> tuple[Array, Array]:
        f, step = step
        root, a, noise, own = at(step)
        # Back over the step: `Aᵀ Uᵀ (I + U Q Uᵀ)⁻¹ U A`.
        spread = matmul(told, noise).T
        told = divided(told.T, triangle(identity(told), spread)).T
        told = jnp.einsum("ria,ij->rja", told.reshape(size, order, m), a, precision=HIGHEST)
        told = told.reshape(size, size)
        known = values(f, own)
        shown = root[:, None] * known
        if part is not None:
            known = sum(w * f[i * m : (i + 1) * m] for i, w in enumerate(part) if w)
            known = widened(known, shown)
        found = answer(known, shown, widened(matmul(told, f), shown), root)
        # What the values at this time tell of the state.
        data = jnp.diag(root)
        if own is not None:
            hidden = root[:, None] * own
            data = divided(data.T, triangle(identity(hidden), hidden.T)).T
        return triangle(told, widened(data, told)), found

    start = jnp.kron(cholesky(space.initial), places)
    roots = lax.scan(forward, start, steps)[1]
    return lax.scan(backward, jnp.zeros_like(start), (roots, steps), reverse=True)[1]


def triangle(*stacked: Array) -> Array:
    """`U` with `Uᵀ U = Σ xᵀ x`."""
    return jnp.linalg.qr(jnp.concatenate(stacked), mode="r")


def divided(x: Array, upper: Array) -> Array:
    """`X U⁻¹`."""
    return solve_triangular(upper, x.T, trans=1, lower=False).T


def identity(x: Array) -> Array:
    """As wide as `x`."""
    return jnp.eye(x.shape[1], dtype=x.dtype)


def widened(x: Array, like: Array) -> Array:
    """With zeros to the right, as wide as another."""
    rest = like.shape[1] - x.shape[1]
    return jnp.concatenate([x, jnp.zeros((x.shape[0], rest), x.dtype)], axis=1) if rest else x


def root_of(matrix: Array) -> Array:
    """A square root; eigenvalues below zero are rounding."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]


def cholesky(matrices: Array) -> Array:
    """Lower triangular roots of small matrices that may be singular, column by column.

    Columns of matrices whose entries are of very different size keep their digits.
    """
    size = matrices.shape[-1]
    root = jnp.zeros_like(matrices)
    for j in range(size):
        column = matrices[..., :, j] - jnp.sum(root * root[..., j : j + 1, :], axis=-1)
        pivot = column[..., j : j + 1]
        positive = pivot > 0
        column = jnp.where(positive, column / jnp.sqrt(jnp.where(positive, pivot, 1)), 0)
        below = jnp.arange(size) >= j
        root = root.at[..., :, j].set(jnp.where(below, column, 0))
    return root
