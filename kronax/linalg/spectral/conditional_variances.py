"""Variances of a signal given noisy data, as sums of terms that are not negative.

In the basis of `S = K + N`, with `Wᵀ K W = diag(λ)`, `Wᵀ N W = diag(μ)` and `D = λ + μ`, a place
with the variance `p` and the covariances `k` with the data has the variance

    p − kᵀ S⁻¹ k = [p − Σ_a u_a] + Σ_a u_a μ_a / D_a,    u = (Wᵀ k)² / λ:

what data without noise would leave, and what the noise hides of the rest. Over the axes of a grid
`p` and `u` are products, and with `e_i = Σ u_i` and `p_i = e_i + c_i` the bracket, `∏ p_i − ∏ e_i`,
is `Σ_i (∏_{j<i} e_j) c_i (∏_{j>i} p_j)`. So `p − kᵀ S⁻¹ k` is never subtracted; only `c_i` is, on
one axis, and for a coordinate of the axis itself it is zero. Its rounding is some `eps · p_i`.

Eigenvalues below the rounding of the largest are raised to it. That is `S` with more noise in
directions that are known no better, `eps λ_max` of it, and changes the variance by a share of
`(eps λ_max / μ)²`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import (
    along,
    apart,
    apply_along,
    map_batch,
    matmul,
    outer,
    same_rank,
    taken,
)
from kronax.linalg.factors.eigenbases import Eigenbasis, dual, raised
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import decomposition, is_thin, reduced
from kronax.linalg.spectral.value_and_rules import spectrum

# Which of the places along an axis are the axis' own coordinates, in its order; `None` for none.
Own = Sequence[np.ndarray | None]


class Places(NamedTuple):
    """Coordinates along one axis: of a grid, or one for each scattered place.

    Args:
        rows: their covariances with the axis, `(m, n)`; `None` where they are the axis itself.
            Of a Markov axis they may be the process at both.
        prior: their variances, `(m,)`; `None` where these are the diagonal of the factor.
    """

    rows: Any
    prior: Array | None = None

    @property
    def event_ndims(self) -> "Places":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        own = getattr(self.rows, "event_ndims", None)
        return Places(
            None if self.rows is None else own() if own else 2,
            None if self.prior is None else 1,  # type: ignore[arg-type]
        )


def rows_of(parts: Sequence[Sequence[Places]]) -> tuple[tuple[Array, ...], ...]:
    """The rows of scattered places, part by part."""
    return tuple(tuple(p.rows for p in part if p.rows is not None) for part in parts)


def priors_of(parts: Sequence[Sequence[Places]]) -> Array:
    """The prior variances of scattered places, all parts together."""
    products = ([p.prior for p in part if p.prior is not None] for part in parts)
    return reduce(add, (reduce(mul, priors) for priors in products))


class Shares(NamedTuple):
    """The variance of places along one axis, shared out: none is negative.

    Args:
        modes: what each eigenvector of the axis has of it, `(m, r)`; `(n,)` if that is a diagonal.
        rest: what none of them has, `(m,)`.
    """

    modes: Array
    rest: Array

    @property
    def explained(self) -> Array:
        """What all eigenvectors have of it, `(m,)`."""
        return self.modes if self.modes.ndim == 1 else jnp.sum(self.modes, axis=-1)


class AxisModes(eqx.Module):
    """What makes signal and noise of one axis diagonal.

    Args:
        basis: `W`; on an axis with a thin root that of the reduced operator.
        dual: `V = W^{-T}`.
        span: of a thin root, `(n, r)`; see `ThinBases`.
        scale: what rows are multiplied by before they meet the span.
    """

    basis: Eigenbasis
    dual: Eigenbasis
    span: Array | None = None
    scale: Array | None = None

    def right(self, rows: Array) -> Array:
        """`C W` for rows `C`, `(m, n)`."""
        if self.span is None:
            return self.basis.right(rows)
        return matmul(rows if self.scale is None else rows * self.scale[None], self.span)

    def own(self) -> Array | None:
        """`V`; `None` for the identity."""
        if self.span is None:
            return None if self.dual.is_identity else self.dual.matrix()
        return self.span if self.scale is None else self.span / self.scale[:, None]


def variance_given(
    op: KroneckerPlusNoise, places: Sequence[Places], own: Own | None = None
) -> Array:
    """`diag(K_** − K_* S⁻¹ K_*ᵀ)` on a grid of places; a value, held constant.

    Two products per new axis and one per axis, `2 N Σ m_i` operations. Thin factors are treated as
    such; a batch may lead.
    """
    places = list(places)

    def one(axes: list[AxisModes], places: list[Places]) -> Array:
        held = [a if p.rows is None else lifted(a) for a, p in zip(axes, places, strict=True)]
        shares = list(map(axis_shares, held, axes, places, own or [None] * len(axes)))
        return unexplained(shares) + applied(shares, noise_shares(held))

    return over_axes(op, one, places)


def over_axes(
    op: KroneckerPlusNoise, function: Callable[..., Array], *places: list[Places]
) -> Array:
    """`function(modes of every axis, *places)`, mapped over batches, everything held constant."""
    op, places = lax.stop_gradient((op, places))
    spans: list[tuple] = [(None, None)] * len(op.grid_shape)
    if is_thin(op):
        thin = decomposition(op)
        spans = list(zip(thin.ranges, thin.scales, strict=True))
        op = reduced(op)
    held = (op.eigenbases(), *op.blocks(), spans)
    span_ndims = [
        tuple(None if s is None else n for s, n in zip(pair, (2, 1), strict=True)) for pair in spans
    ]
    ndims = (*(tuple(x.event_ndims for x in part) for part in held[:3]), span_ndims)

    def one(held: Any, *places: list[Places]) -> Array:
        bases, signal, noise, spans = held
        duals = map(dual, bases, signal, noise)
        axes = [AxisModes(b, v, *s) for b, v, s in zip(bases, duals, spans, strict=True)]
        return function(axes, *places)

    given = [(part, [p.event_ndims for p in part]) for part in places]
    pairs = zip(*(jax.tree.leaves(x) for x in zip(*given, strict=True)), strict=True)
    batches = (x.shape[: x.ndim - ndim] for x, ndim in pairs)
    batch = jnp.broadcast_shapes(op.batch_shape, *batches)
    return map_batch(one, batch, (held, ndims), *given)


def lifted(axis: AxisModes) -> AxisModes:
    """The axis with the smallest eigenvalues raised to what is rounding, for new places on it."""
    return dataclasses.replace(axis, basis=raised(axis.basis))


def swapped(axis: AxisModes) -> AxisModes:
    """The axis with signal and noise in each other's place."""
    return dataclasses.replace(
        axis, basis=reversed_roles(axis.basis), dual=reversed_roles(axis.dual)
    )


def reversed_roles(basis: Eigenbasis) -> Eigenbasis:
    """The basis with signal and noise in each other's place."""
    return dataclasses.replace(basis, values=basis.noise_values, noise_values=basis.values)


def turned_about(op: KroneckerPlusNoise) -> KroneckerPlusNoise:
    """The same sum of two products, with signal and noise in each other's place."""
    assert isinstance(op.noise, Kronecker)
    bases = tuple(map(reversed_roles, op.eigenbases()))
    return KroneckerPlusNoise(op.noise, op.kronecker, decomposition=bases)


def noise_shares(axes: Sequence[AxisModes]) -> Array:
    """`μ / D`: what is noise in every direction."""
    bases = tuple(a.basis for a in axes)
    return outer([b.noise_values for b in bases]) / spectrum(bases)


def axis_shares(
    axis: AxisModes, exact: AxisModes, places: Places, own: np.ndarray | None = None
) -> Shares:
    """The shares of places along one axis, `exact` before its eigenvalues were raised."""
    if places.rows is None:
        alone = own_shares(axis, exact)
        if places.prior is None:
            return alone
        return Shares(alone.modes, jnp.maximum(places.prior - alone.explained, 0))
    rows, prior = places.rows, places.prior
    assert prior is not None
    if own is None:
        return new_shares(axis.right(rows), prior, axis.basis.values)
    others = np.setdiff1d(np.arange(rows.shape[0]), own)
    rows, prior = taken(rows, others, 0), taken(prior, others, 0)
    found = new_shares(axis.right(rows), prior, axis.basis.values)
    alone = own_shares(axis, exact)
    modes = jnp.diag(alone.modes) if alone.modes.ndim == 1 else alone.modes
    order = np.argsort(np.concatenate([own, others]))
    return Shares(
        taken(jnp.concatenate([modes, found.modes]), order, 0),
        taken(jnp.concatenate([alone.rest, found.rest]), order, 0),
    )


def new_shares(turned: Array, prior: Array, values: Array) -> Shares:
    """Of new places with the covariances `turned = k W`, relative to a term with these `values`."""
    modes = jnp.square(apart(turned)) / values[None]
    total = jnp.sum(modes, axis=-1)
    # Rounding must not let the data tell more than there is to know.
    least = jnp.where(total > prior, prior / total, 1)
    return Shares(modes * least[..., None], jnp.maximum(prior - total, 0))


def own_shares(axis: AxisModes, exact: AxisModes) -> Shares:
    """Of the coordinates of the axis: `λ V²`, and nothing is left but by raised eigenvalues."""
    values = exact.basis.values
    v = axis.own()
    squares = values if v is None else apart(values[None] * jnp.square(v))
    size = squares.shape[0]
    if axis is exact:
        return Shares(squares, jnp.zeros(size, squares.dtype))
    share = values / axis.basis.values
    share = share if v is None else share[None]
    rest = squares * (1 - share)
    return Shares(squares * share, rest if v is None else jnp.sum(rest, axis=-1))


def unexplained(shares: Sequence[Shares], *, scattered: bool = False) -> Array:
    """`∏ p_i − ∏ e_i` by telescoping, on the grid of the places or place by place."""
    zero = jnp.zeros((), shares[0].rest.dtype)
    left, explained = zero, zero + 1
    for share in shares:
        if not scattered:
            left, explained = left[..., None], explained[..., None]
        known, rest, whole = share.explained, share.rest, share.explained + share.rest
        added = jnp.multiply(*same_rank(explained, rest))
        left = jnp.multiply(*same_rank(left, whole)) + added
        explained = jnp.multiply(*same_rank(explained, known))
    return left


def applied(shares: Sequence[Shares], x: Array) -> Array:
    """`Σ_a u_a x_a` on the grid of the places."""
    for i, share in enumerate(shares):
        axis = i - len(shares)
        if share.modes.ndim == 1:
            x = x * along(share.modes, axis, x.ndim)
        else:
            x = apart(apply_along(share.modes, x, axis))
    return x
