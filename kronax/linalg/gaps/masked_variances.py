"""Variances given the observed cells of a grid with gaps: sums of terms that are not negative.

They are those of the full inner grid, and what its gaps add to them. An operator with gaps is
known here by what it has: its plan, its inner grid and its decomposition.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import map_batch, outer, same_rank
from kronax.linalg.gaps.schur import from_gaps, solved_at_gaps
from kronax.linalg.gaps.variances import gap_variances, unmerged
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import Places, variance_given
from kronax.linalg.spectral.khatri_rao import CHUNK, covariance_at, mv_rows, variance_at


@jax.jit
def observed_variance(op: Any, places: list[Places]) -> Array:
    """`variance_given` of the observed cells, for a grid of places."""
    inner = op.inner()
    inside, own = op.grid.places(op.factors, places)
    value = variance_given(inner, inside, own)
    if op.plan.method == "slabs":
        return value
    if op.plan.method == "merged":
        pairs = zip(op.factors, places, strict=True)
        shape = tuple(k.size if p.rows is None else p.rows.shape[-2] for k, p in pairs)
        return on_places(op, value, shape)
    inner, rows = lax.stop_gradient((inner, [p.rows for p in inside]))
    positions = tuple(
        tuple(range(n)) if row is None else None if k is None else tuple(k.tolist())
        for n, row, k in zip(inner.grid_shape, rows, own, strict=True)
    )
    pairs = zip(inner.factors, rows, strict=True)
    rows = [k.to_dense() if row is None else row for k, row in pairs]
    return jnp.add(*same_rank(value, added_by_gaps(op, inner, rows, positions)))


def on_places(op: Any, value: Array, shape: tuple[int, ...]) -> Array:
    """What the merged method finds, on the grid of the places."""
    ndim = len(op.inner().grid_shape)
    lead = value.shape[: value.ndim - ndim]
    return map_batch(lambda v: unmerged(v, op.gaps, shape), lead, (value, ndim))


def added_by_gaps(
    op: Any,
    inner: KroneckerPlusNoise,
    rows: Sequence[Array | None],
    own: tuple[tuple[int, ...] | None, ...] | None = None,
) -> Array:
    """`gap_variances` for `C = ⊗rows[i]`; `own` are the rows of the signal's factors themselves."""
    signal, noise = inner.blocks()
    held = op.gap_decomposition(inner)
    own = own or (None,) * len(rows)
    ndims = (
        tuple(b.event_ndims for b in signal),
        tuple(b.event_ndims for b in noise),
        [None if row is None else 2 for row in rows],
    )
    batch = jnp.broadcast_shapes(
        inner.batch_shape, *(row.shape[:-2] for row in rows if row is not None)
    )
    return map_batch(
        lambda operands, held: gap_variances(operands, held, gaps=op.gaps, own=own),
        batch,
        ((signal, noise, list(rows)), ndims),
        (held, held.event_ndims),
    )


@jax.jit
def observed_variance_at(op: Any, places: list[Places]) -> Array:
    """For scattered places; with gaps one solve per place, in chunks. No batch."""
    inner = op.inner()
    inside, _ = op.grid.places(op.factors, places, scattered=True)
    value = variance_at(inner, inside)
    if op.plan.method != "gaps":
        return value
    held, rows = lax.stop_gradient((op.gap_decomposition(inner), [p.rows for p in inside]))

    def one(place: list[Array]) -> Array:
        return jnp.sum(jnp.square(solved_at_gaps(op.gaps, held, outer(place))))

    return value + lax.map(one, rows, batch_size=_chunk(op, rows))


@jax.jit
def observed_covariance_at(op: Any, places: list[Places], priors: list[Array]) -> Array:
    """Between scattered places; `priors` are those between them on every axis."""
    inner = op.inner()
    inside, _ = op.grid.places(op.factors, places, scattered=True)
    if op.plan.method == "merged":
        along = [priors[i] for i in op.gaps.axes]
        merged = along[0]
        for prior in along[1:]:
            merged = merged * prior
        priors = [*(priors[i] for i in op.gaps.shared), merged]
    value = covariance_at(inner, (inside, priors))
    if op.plan.method != "gaps":
        return value
    held, rows = lax.stop_gradient((op.gap_decomposition(inner), [p.rows for p in inside]))

    def one(place: list[Array]) -> Array:
        white = solved_at_gaps(op.gaps, held, outer(place))
        return mv_rows(rows, from_gaps(op.gaps, held, white))

    added = lax.map(one, rows, batch_size=_chunk(op, rows))
    return value + (added + added.T) / 2


def _chunk(op: Any, rows: Sequence[Array]) -> int:
    return max(1, min(rows[0].shape[0], CHUNK // op.shape[-1]))
