"""`diag(C S⁻¹ Bᵀ)` of a two-term sum: variances and leave-one-out, right to first order.

In the eigenbasis, with `U_i = C_i W_i` and `V_i = B_i W_i`, it is `U_i ∘ V_i` along every axis,
applied to `1/D`. Its derivative is not that of frozen bases: along `dK_i` it takes
`−Σ_b λ_{-i}[b] Σ_ac U[p,a] V[p,c] E[a,c] / (D[a,b] D[c,b])` with `E = W_iᵀ dK_i W_i`, at a cost of
`O(N Σ n_i²)`. Mostly `B` is `C`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.fibres import Fibrewise
from kronax.linalg.arrays.mode_products import (
    along,
    apply_along,
    map_batch,
    matmul,
    outer,
    same_rank,
)
from kronax.linalg.arrays.primitives import LinearPrimitive, RulePrimitive, by_product
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, dual, expand
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import noise_factors, unwhitened, whitened
from kronax.linalg.spectral.value_and_rules import signal_slopes, spectrum

# Columns of a rotation that are handled at once hold at most about this many numbers.
CHUNK = 4_000_000


def explained_diagonal(
    op: KroneckerPlusNoise, rows: Sequence[Array | None], others: Sequence[Array | None] = ()
) -> Float[Array, "..."]:
    """`diag(C op⁻¹ Bᵀ)` for `C = ⊗ rows[i]`, each `(*batch, m_i, n_i)` or `None` for identity.

    `B = ⊗ others[i]` is `C` unless given.
    """
    signal, noise = op.blocks()
    bases = op.eigenbases()
    ndims = (
        tuple(b.event_ndims for b in signal),
        tuple(b.event_ndims for b in noise),
        *([None if c is None else 2 for c in side] for side in (rows, others)),
    )
    given = [c for c in (*rows, *others) if c is not None]
    batch = jnp.broadcast_shapes(op.batch_shape, *(c.shape[:-2] for c in given))
    return map_batch(
        blockwise_diagonal,
        batch,
        ((signal, noise, list(rows), list(others)), ndims),
        (bases, tuple(b.event_ndims for b in bases)),
    )


def posterior_diagonal(op: KroneckerPlusNoise) -> Float[Array, "..."]:
    """`diag(K − K op⁻¹ K)` for `op = K + N`: the variance of the signal given noisy data.

    With the dual basis `V = W^{-T}` it is `diag(V (λ μ / D) Vᵀ)`, a sum of squares whatever the
    noise.
    """
    signal, noise = op.blocks()
    bases = op.eigenbases()
    ndims = (tuple(b.event_ndims for b in signal), tuple(b.event_ndims for b in noise))
    held = (bases, tuple(b.event_ndims for b in bases))
    return map_batch(_posterior, op.batch_shape, ((signal, noise), ndims), held)


def posterior_by_woodbury(op: KroneckerPlusNoise) -> Float[Array, "..."]:
    """The same of a thin operator, as the sum of squares of `explained_by_woodbury`."""
    small, full = _small(op)
    pairs = zip((f.thin_root() for f in op.factors), noise_factors(op), strict=True)
    roots = [unwhitened(noise) if root is None else root for root, noise in pairs]
    return diagonal_within(small, roots, full)


def explained_by_woodbury(op: KroneckerPlusNoise, rows: Sequence[Array | None]) -> Array:
    """`op⁻¹ = N⁻¹ − N^{-½} U F Uᵀ N^{-½}`, on the grid of the columns of `U`.

    `U` is the whitened root on a thin axis and the identity on another, where whitening leaves
    `A = N^{-½} K N^{-½}`; and `F` is `(I + ⊗A)⁻¹` times these `A`, the thin ones being the Gram
    matrices of the roots. No root of a full factor is taken: where it is singular that root has no
    derivative, though the result has one.
    """
    small, full = _small(op)
    outside = jnp.ones((), op.dtype)
    inside = []
    for i, (row, factor, noise) in enumerate(zip(rows, op.factors, noise_factors(op), strict=True)):
        matrix = jnp.eye(factor.size, dtype=op.dtype) if row is None else row
        white = jnp.swapaxes(whitened(noise, jnp.swapaxes(matrix, -1, -2)), -1, -2)
        root = factor.thin_root()
        inside.append(white if root is None else matmul(white, whitened(noise, root)))
        lengths = jnp.sum(jnp.square(white), axis=-1)
        lengths = lengths.reshape(*lengths.shape, *(1,) * (len(rows) - i - 1))
        outside = jnp.multiply(*same_rank(outside, lengths))
    return jnp.subtract(*same_rank(outside, diagonal_within(small, inside, full)))


def _small(op: KroneckerPlusNoise) -> tuple[KroneckerPlusNoise, tuple[int, ...]]:
    """`I + ⊗A` of a thin operator, whitened on every axis, and the axes that are not thin."""
    grams, full = [], []
    for i, (factor, noise) in enumerate(zip(op.factors, noise_factors(op), strict=True)):
        root = factor.thin_root()
        if root is None:
            full.append(i)
            half = whitened(noise, factor.to_dense())
            grams.append(whitened(noise, jnp.swapaxes(half, -1, -2)))
        else:
            white = whitened(noise, root)
            grams.append(matmul(jnp.swapaxes(white, -1, -2), white))
    return KroneckerPlusNoise(Kronecker(*grams), 1.0), tuple(full)


def diagonal_within(
    op: KroneckerPlusNoise, rows: Sequence[Array], weighted: tuple[int, ...]
) -> Float[Array, "..."]:
    """`diag(C K_w^½ op⁻¹ K_w^½ Cᵀ)`, where `K_w` is the signal on the axes `weighted` alone.

    The noise of these axes must be a multiple of the identity. In the eigenbasis it is a sum of
    squares with the weights `⊗λ_w / D`, a smooth function of the signal wherever that is singular.
    """
    signal, noise = op.blocks()
    bases = op.eigenbases()
    ndims: tuple = (
        tuple(b.event_ndims for b in signal),
        tuple(b.event_ndims for b in noise),
        [2] * len(rows),
        [],
    )
    batch = jnp.broadcast_shapes(op.batch_shape, *(c.shape[:-2] for c in rows))
    return map_batch(
        partial(blockwise_diagonal, weighted=weighted),
        batch,
        ((signal, noise, list(rows), []), ndims),
        (bases, tuple(b.event_ndims for b in bases)),
    )


def rotated_rows(row: Array | None, basis: Eigenbasis) -> Array | None:
    """`C W`, with `None` for the identity."""
    if basis.is_identity:
        return row
    return basis.matrix() if row is None else basis.right(row)


def _products(
    rows: Sequence[Array | None], others: Sequence[Array | None], bases: tuple[Eigenbasis, ...]
) -> list[tuple[Array | None, Array | None]]:
    """`U_i` and `V_i` per axis; `None` for the identity."""
    left = [rotated_rows(c, b) for c, b in zip(rows, bases, strict=True)]
    if not others:
        return [(u, u) for u in left]
    right = [rotated_rows(c, b) for c, b in zip(others, bases, strict=True)]
    return list(zip(left, right, strict=True))


def _hadamard(u: Array | None, v: Array | None) -> Array | None:
    """`U ∘ V`; `None` for the identity."""
    if u is None or v is None:
        only = v if u is None else u
        return None if only is None else jnp.diag(jnp.diagonal(only))
    return u * v


def _apply_products(
    pairs: Sequence[tuple[Array | None, Array | None]], x: Array, skip: int | None = None
) -> Array:
    for i, pair in enumerate(pairs):
        both = None if i == skip else _hadamard(*pair)
        if both is not None:
            x = apply_along(both, x, i - len(pairs))
    return x


def _diagonal_value(operands, bases, *, weighted=()):
    _, _, rows, others = operands
    weights = outer(_weights(bases, weighted))
    return _apply_products(_products(rows, others, bases), weights / spectrum(bases))


def _weights(bases: tuple[Eigenbasis, ...], weighted: tuple[int, ...]) -> list[Array]:
    """`λ` on the axes that are weighted, one on the others."""
    return [b.values if i in weighted else jnp.ones_like(b.values) for i, b in enumerate(bases)]


def _diagonal_tangent_value(coefficients, moving, *, given, weighted=()):
    (signal, noise, rows, others), bases = coefficients
    pairs = _products(rows, others, bases)
    inverse_d, weights = 1 / spectrum(bases), _weights(bases, weighted)
    tangents = iter(moving)
    marks = iter(given)
    total = jnp.zeros((), inverse_d.dtype)
    for blocks, is_signal in ((signal, True), (noise, False)):
        for i, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
            ts = [next(tangents) if next(marks) else None for _ in block.arrays]
            if any(t is not None for t in ts):
                weight = _slope(bases, weights, i, is_signal, i in weighted)
                inside = _along_factor(block, basis, ts, pairs[i], weight, inverse_d, i)
                total = total + _apply_products(pairs, inside, skip=i)
    # Where both sides are the same rows, the two derivatives are equal.
    sides = ((rows, 1, 2.0),) if not others else ((rows, 1, 1.0), (others, 0, 1.0))
    for side, opposite, times in sides:
        for i, (row, basis) in enumerate(zip(side, bases, strict=True)):
            if row is not None and next(marks):
                product: Any = _hadamard(basis.right(next(tangents)), pairs[i][opposite])
                part = apply_along(times * product, outer(weights) * inverse_d, i - len(bases))
                total = total + _apply_products(pairs, part, skip=i)
    return total


def _slope(bases, weights, i: int, is_signal: bool, is_weighted: bool) -> Array:
    """What stands before `E_ac / (D_a D_c)` in the derivative of `⊗w / D` along axis `i`.

    That of `1/(λ_a u + μ_a v)` has `−u` or `−v`. Of `λ_a / (λ_a u + μ v)` with one `μ`, on a
    weighted axis, it is `μ v` for the signal: the divided difference, without a gap between
    eigenvalues; and `−λ_a v` for the noise, which moves with `μ` alone.
    """
    signal = signal_slopes([b.values for b in bases], bases[0].adds)
    noise = [b.noise_values for b in bases]
    if not is_weighted:
        return -outer(weights, skip=i) * outer(signal if is_signal else noise, skip=i)
    if is_signal:
        return noise[i][0] * outer(weights, skip=i) * outer(noise, skip=i)
    return -outer(weights) * outer(noise, skip=i)


def _along_factor(block: SymmetricBlocks, basis, tangents, pair, weight, inverse_d, i) -> Array:
    """`Σ_ac U_pa V_pc E_ac λ / (D_a D_c)` along axis `i`, for the tangents of one factor.

    `inverse_d` may be any grid array in place of `1/D`.
    """
    axis = i - inverse_d.ndim
    middle = tangent_in_basis(block, basis, tangents)
    if middle.ndim == 1:
        scaled = along(middle, axis, weight.ndim) * weight * jnp.square(inverse_d)
        both = _hadamard(*pair)
        return scaled if both is None else apply_along(both, scaled, axis)
    u, v = pair
    return columnwise(u, v, middle, weight, inverse_d, axis)


def tangent_in_basis(block: SymmetricBlocks, basis: Eigenbasis, tangents: Sequence) -> Array:
    """`E = Wᵀ dK W` for the tangents of one factor's blocks, or its diagonal if it has no more."""
    pieces = []
    for t, ndim, w, size in zip(tangents, block.ndims, basis.blocks, block.sizes, strict=True):
        if t is None:
            pieces.append(jnp.zeros(size, basis.values.dtype))
        elif ndim == 0 or w is None:
            pieces.append(expand(t, ndim, size))
        else:
            full = jnp.diag(t) if ndim == 1 else (t + t.T) / 2
            pieces.append(matmul(matmul(w.T, full), w))
    if all(p.ndim == 1 for p in pieces):
        return jnp.concatenate(pieces)
    return jax.scipy.linalg.block_diag(*(jnp.diag(p) if p.ndim == 1 else p for p in pieces))


def columnwise(
    u: Array, v: Array, middle: Array, weight: Array, inverse_d: Array, axis: int
) -> Array:
    """`Σ_ac U_pa V_pc E_ac λ / (D_a D_c)` along `axis < 0` for a full `E`; `λ` is one along it."""
    return weight * _columnwise(axis, u, v, middle, inverse_d, grids=(3,))[0]


def _by_columns(axis: int, u: Array, v: Array, middle: Array, inverse_d: Array) -> list[Array]:
    """One product per place on the other axes, in chunks: a map over cells, not over factors.

    A transpose would keep what is scaled for every place, `n` times as large as the grid, unless
    told to scale again.
    """
    columns = jnp.moveaxis(inverse_d, axis, -1)

    @jax.checkpoint
    def one(d: Array) -> Array:
        return jnp.sum(matmul(u * d[None], middle) * (v * d[None]), axis=-1)

    flat = columns.reshape(-1, columns.shape[-1])
    chunk = max(1, min(flat.shape[0], CHUNK // max(1, u.size)))
    result = lax.map(one, flat, batch_size=chunk)
    return [jnp.moveaxis(result.reshape(*columns.shape[:-1], u.shape[0]), -1, axis)]


_columnwise = Fibrewise("kronax_columnwise", _by_columns)


def _dual_squares(operands, bases):
    """`V_i` twice per axis, and `⊗λ`, `⊗μ` and `D`."""
    duals = tuple(map(dual, bases, *operands))
    signal, noise = (outer([getattr(b, v) for b in bases]) for v in ("values", "noise_values"))
    return _products([None] * len(bases), [], duals), signal, noise, spectrum(bases)


def _posterior_value(operands, bases):
    pairs, signal, noise, d = _dual_squares(operands, bases)
    return _apply_products(pairs, signal * (noise / d))


def _posterior_tangent_value(coefficients, moving, *, given):
    """`(K⁻¹ + N⁻¹)⁻¹` moves by `N S⁻¹ dK S⁻¹ N + K S⁻¹ dN S⁻¹ K`: `V` and `μ/D`, `λ/D` again."""
    operands, bases = coefficients
    pairs, signal, noise, d = _dual_squares(operands, bases)
    tangents, marks = iter(moving), iter(given)
    total = jnp.zeros((), d.dtype)
    for blocks, values, share in (
        (operands[0], [b.values for b in bases], noise / d),
        (operands[1], [b.noise_values for b in bases], signal / d),
    ):
        for i, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
            ts = [next(tangents) if next(marks) else None for _ in block.arrays]
            if any(t is not None for t in ts):
                weight = outer(values, skip=i)
                inside = _along_factor(block, basis, ts, pairs[i], weight, share, i)
                total = total + _apply_products(pairs, inside, skip=i)
    return total


_posterior_tangent = LinearPrimitive(
    "kronax_posterior_diagonal_tangent", _posterior_tangent_value, "A posterior variance"
)
_posterior = RulePrimitive(
    "kronax_posterior_diagonal", _posterior_value, by_product(_posterior_tangent)
)
_diagonal_tangent = LinearPrimitive(
    "kronax_diagonal_tangent", _diagonal_tangent_value, "The diagonal of an inverse"
)
blockwise_diagonal = RulePrimitive(
    "kronax_diagonal", _diagonal_value, by_product(_diagonal_tangent)
)
