"""`tr(S⁻¹ ⊗A_i)` of a two-term sum with a Kronecker product, right to first order.

In the eigenbasis of `S`, with `Ã_i = W_iᵀ A_i W_i`, it is the sum of `⊗diag(Ã_i) / D`. It is linear
in every `A_i`, and along `dK_i` its derivative is not that of frozen bases: it takes
`−Σ_ac E[a,c] Ã_i[c,a] Σ_b λ_{-i}[b] Ã_{-i}[b,b] / (D[a,b] D[c,b])` with `E = W_iᵀ dK_i W_i`.
Value and gradient cost `O(N Σ n_i)` after the decomposition, and no root of `A_i` is needed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import gram, map_batch, matmul, outer, sum_others
from kronax.linalg.arrays.primitives import LinearPrimitive, RulePrimitive, by_product
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, expand
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import is_thin, noise_factors, whitened
from kronax.linalg.spectral.value_and_rules import spectrum


@jax.jit
def trace_of_solve(
    op: KroneckerPlusNoise, matrices: Sequence[Float[Array, "..."]]
) -> Float[Array, "*batch"]:
    """`tr(op⁻¹ ⊗A_i)` for symmetric `A_i`, each `(*batch, n_i, n_i)`.

    Raises:
        DerivativeOrderError: if it is differentiated twice.
    """
    if is_thin(op):
        return _by_woodbury(op, matrices)
    signal, noise = op.blocks()
    bases = op.eigenbases()
    batch = jnp.broadcast_shapes(op.batch_shape, *(a.shape[:-2] for a in matrices))
    ndims = (
        tuple(b.event_ndims for b in signal),
        tuple(b.event_ndims for b in noise),
        [2] * len(matrices),
    )
    return map_batch(
        _trace,
        batch,
        ((signal, noise, list(matrices)), ndims),
        (bases, tuple(b.event_ndims for b in bases)),
    )


def _by_woodbury(op: KroneckerPlusNoise, matrices: Sequence[Array]) -> Array:
    """Thin axes on the small grid: `S⁻¹ = I − U (I + V U)⁻¹ V` after whitening every axis.

    `U` is the root on a thin axis and the identity on another, `V` its transpose and the signal; so
    `V U` and `V A U` are Gram matrices on thin axes, `K` and `K A` on others. The trace of a
    symmetric matrix with `K A` is that with its symmetric part.
    """
    outside = jnp.ones((), op.dtype)
    small, inside = [], []
    for factor, noise, matrix in zip(op.factors, noise_factors(op), matrices, strict=True):
        a = _whitened_twice(noise, matrix)
        outside = outside * jnp.trace(a, axis1=-2, axis2=-1)
        root = factor.thin_root()
        if root is None:
            k = _whitened_twice(noise, factor.to_dense())
            small.append(k)
            inside.append(_symmetrised(matmul(k, a)))
        else:
            u = whitened(noise, root)
            small.append(_symmetrised(matmul(_transposed(u), u)))
            inside.append(matmul(_transposed(u), matmul(a, u)))
    return outside - trace_of_solve(KroneckerPlusNoise(Kronecker(*small), 1.0), inside)


def _whitened_twice(noise: AbstractFactor, matrix: Array) -> Array:
    """`N^{-1/2} M N^{-1/2}`."""
    return _symmetrised(whitened(noise, _transposed(whitened(noise, matrix))))


def _transposed(matrix: Array) -> Array:
    return jnp.swapaxes(matrix, -1, -2)


def _symmetrised(matrix: Array) -> Array:
    return (matrix + _transposed(matrix)) / 2


def _rotated(matrix: Array, basis: Eigenbasis) -> Array:
    """`Wᵀ M W`."""
    if basis.is_identity:
        return matrix
    w = basis.matrix()
    return matmul(w.T, matmul(matrix, w))


def _trace_value(operands, bases):
    _, _, matrices = operands
    diagonals = [jnp.diagonal(_rotated(a, b)) for a, b in zip(matrices, bases, strict=True)]
    return jnp.sum(outer(diagonals) / spectrum(bases))


def _trace_tangent_value(coefficients, moving, *, given):
    (signal, noise, matrices), bases = coefficients
    rotated = [_rotated(a, b) for a, b in zip(matrices, bases, strict=True)]
    diagonals = [jnp.diagonal(a) for a in rotated]
    inverse_d = 1 / spectrum(bases)
    tangents, marks = iter(moving), iter(given)
    total = jnp.zeros((), inverse_d.dtype)
    for blocks, values in (
        (signal, [b.values for b in bases]),
        (noise, [b.noise_values for b in bases]),
    ):
        for i, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
            ts = [next(tangents) if next(marks) else None for _ in block.arrays]
            if any(t is not None for t in ts):
                weight = outer([v * d for v, d in zip(values, diagonals, strict=True)], skip=i)
                slope = gram(inverse_d * weight, inverse_d, i - len(bases))
                total = total - _contracted(block, basis, ts, slope * _symmetrised(rotated[i]))
    for i, basis in enumerate(bases):
        if next(marks):
            slope = sum_others(inverse_d * outer(diagonals, skip=i), i - len(bases))
            total = total + jnp.sum(slope * jnp.diagonal(_rotated(next(tangents), basis)))
    return total


def _contracted(block: SymmetricBlocks, basis: Eigenbasis, tangents, slope: Array) -> Array:
    """`⟨Wᵀ dK W, slope⟩` for the tangents of one factor's blocks."""
    total, start = jnp.zeros((), slope.dtype), 0
    for t, ndim, w, size in zip(tangents, block.ndims, basis.blocks, block.sizes, strict=True):
        part = slope[start : start + size, start : start + size]
        start += size
        if t is None:
            continue
        if ndim == 0 or w is None:
            # In coordinates where it is diagonal; W_kᵀ (t I) W_k for an orthonormal W_k likewise.
            total = total + jnp.sum(expand(t, ndim, size) * jnp.diagonal(part))
        else:
            full = jnp.diag(t) if ndim == 1 else t
            total = total + jnp.sum(matmul(matmul(w.T, full), w) * part)
    return total


_trace_tangent = LinearPrimitive(
    "kronax_trace_tangent", _trace_tangent_value, "The trace of a solve"
)
_trace = RulePrimitive("kronax_trace", _trace_value, by_product(_trace_tangent))
