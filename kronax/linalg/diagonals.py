"""`diag(C S⁻¹ Cᵀ)` of a two-term sum: variances and leave-one-out, right to first order.

In the eigenbasis, with `U_i = C_i W_i`, it is `U_i ∘ U_i` along every axis, applied to `1/D`. Its
derivative is not that of frozen bases: along `dK_i` it takes
`−Σ_b λ_{-i}[b] Σ_ac U[p,a] U[p,c] E[a,c] / (D[a,b] D[c,b])` with `E = W_iᵀ dK_i W_i`, at a cost of
`O(N Σ n_i²)`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.diagnose import explain_not_finite
from kronax.linalg.eigenbases import Eigenbasis, SymmetricBlocks, expand
from kronax.linalg.factorizations import inverse_matrix
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.kronecker import Kronecker, as_kronecker
from kronax.linalg.modes import along, apply_along, map_batch, matmul, outer
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.operators import AbstractOperator, AbstractSolvable
from kronax.linalg.roots import symmetric_roots
from kronax.linalg.rules import LinearPrimitive, RulePrimitive
from kronax.linalg.spectral import spectrum
from kronax.linalg.thin import is_thin, noise_factors, whitened

# Columns of a rotation that are handled at once hold at most about this many numbers.
CHUNK = 4_000_000


def inverse_diagonal(op: AbstractOperator) -> Float[Array, "..."]:
    """The diagonal of `op⁻¹`, grid-shaped; right to first order, raises beyond (with noise).

    `2 N Σ n_i` operations after the decomposition; a gradient takes `O(N Σ n_i²)`.

    Args:
        op: a kronax operator with square factors.

    Raises:
        ValueError: if a factor is not square, or the operator is singular or indefinite.
        DerivativeOrderError: if it is differentiated twice (with noise).

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.inverse_diagonal(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0).sum().item()
        3.0
    """
    if isinstance(op, AbstractSolvable):
        return op.inverse_diagonal()
    if not isinstance(op, KroneckerPlusNoise):
        op = as_kronecker(op)
        op.check_square("inverse_diagonal")
    value = _inverse_diagonal(op)
    explain_not_finite(value, op)
    return value


@jax.jit
def _inverse_diagonal(op: Kronecker | KroneckerPlusNoise) -> Array:
    if isinstance(op, KroneckerPlusNoise):
        return conjugated_inverse_diagonal(op, [None] * len(op.grid_shape))
    inverses = [
        map_batch(_inverse_factor, f.batch_shape, (f.to_dense(), 2), (held, held.event_ndims))
        for f, held in zip(op.factors, op.factorize(), strict=True)
    ]
    return Kronecker(*inverses).diagonal()


def _inverse_factor(matrix, factorization):
    return inverse_matrix(matrix, factorization)


def conjugated_inverse_diagonal(
    op: KroneckerPlusNoise | AbstractSolvable, rows: Sequence[Array | None]
) -> Float[Array, "..."]:
    """`diag(C op⁻¹ Cᵀ)` for `C = ⊗ rows[i]`, each `(*batch, m_i, n_i)` or `None` for identity."""
    if isinstance(op, AbstractSolvable):
        return op.conjugated_inverse_diagonal(rows)
    if is_thin(op):
        return _by_woodbury(op, rows)
    signal, noise = op.blocks()
    bases = op.eigenbases()
    ndims = (
        tuple(b.event_ndims for b in signal),
        tuple(b.event_ndims for b in noise),
        [None if c is None else 2 for c in rows],
    )
    batch = jnp.broadcast_shapes(op.batch_shape, *(c.shape[:-2] for c in rows if c is not None))
    return map_batch(
        blockwise_diagonal,
        batch,
        ((signal, noise, list(rows)), ndims),
        (bases, tuple(b.event_ndims for b in bases)),
    )


def posterior_diagonal(op: KroneckerPlusNoise | AbstractSolvable) -> Float[Array, "..."]:
    """`diag(K − K op⁻¹ K)` for `op = K + N`: the variance of the signal given noisy data.

    With a root `R Rᵀ = K` it is `diag(R (I + Rᵀ N⁻¹ R)⁻¹ Rᵀ)`, a sum of squares; only noise that
    is a Kronecker product without thin factors beside it needs the subtraction.
    """
    if isinstance(op, AbstractSolvable):
        return op.posterior_diagonal()
    if is_thin(op):
        small, _, roots = _woodbury(op)
        return conjugated_inverse_diagonal(small, roots)
    if isinstance(op.noise, Kronecker):
        rows = [f.to_dense() for f in op.factors]
        return op.kronecker.diagonal() - conjugated_inverse_diagonal(op, rows)
    # For the symmetric root, I + RᵀR / σ² is op / σ².
    diagonal = conjugated_inverse_diagonal(op, [_symmetric_root(f) for f in op.factors])
    return op.noise.reshape(*op.noise.shape, *(1,) * len(op.grid_shape)) * diagonal


def _by_woodbury(op: KroneckerPlusNoise, rows: Sequence[Array | None]) -> Array:
    """`op⁻¹ = N⁻¹ − N⁻¹ R (I + Rᵀ N⁻¹ R)⁻¹ Rᵀ N⁻¹`, on the grid of the columns of `R`."""
    small, whiten, roots = _woodbury(op)
    outside = jnp.ones((), op.dtype)
    inside = []
    for i, (row, one, root) in enumerate(zip(rows, whiten, roots, strict=True)):
        matrix = jnp.eye(root.shape[-2], dtype=op.dtype) if row is None else row
        white = jnp.swapaxes(one(jnp.swapaxes(matrix, -1, -2)), -1, -2)
        inside.append(matmul(white, one(root)))
        lengths = jnp.sum(jnp.square(white), axis=-1)
        outside = outside * along(lengths, i - len(rows))
    return outside - conjugated_inverse_diagonal(small, inside)


def _woodbury(op: KroneckerPlusNoise) -> tuple[KroneckerPlusNoise, list, list[Array]]:
    """`Rᵀ N⁻¹ R + I`, what takes a matrix `M_i` to `N_i^{-1/2} M_i`, and `R`, per axis."""
    roots = [
        _symmetric_root(factor) if thin is None else thin
        for factor, thin in zip(op.factors, (f.thin_root() for f in op.factors), strict=True)
    ]
    whiten = [partial(whitened, factor) for factor in noise_factors(op)]
    white = [one(root) for one, root in zip(whiten, roots, strict=True)]
    small = Kronecker(*(matmul(jnp.swapaxes(w, -1, -2), w) for w in white))
    return KroneckerPlusNoise(small, 1.0), whiten, roots


def _symmetric_root(factor: AbstractFactor) -> Array:
    """`R` as a matrix, `R = Rᵀ`."""
    blocks = symmetric_roots(factor.blocks())
    identity = jnp.eye(factor.size, dtype=factor.dtype)
    return map_batch(
        lambda b: b.apply(identity, -1), blocks.batch_shape, (blocks, blocks.event_ndims)
    )


def rotated_rows(row: Array | None, basis: Eigenbasis) -> Array | None:
    """`C W`, with `None` for the identity."""
    if basis.is_identity:
        return row
    return basis.matrix() if row is None else basis.right(row)


def _apply_squares(rotated: Sequence[Array | None], x: Array, skip: int | None = None) -> Array:
    for i, u in enumerate(rotated):
        if u is not None and i != skip:
            x = apply_along(jnp.square(u), x, i - len(rotated))
    return x


def _diagonal_value(operands, bases):
    _, _, rows = operands
    rotated = [rotated_rows(c, b) for c, b in zip(rows, bases, strict=True)]
    return _apply_squares(rotated, 1 / spectrum(bases))


def _diagonal_derivative(operands, bases, tangents):
    given = tuple(t is not None for t in tangents)
    return _diagonal_tangent((operands, bases), [t for t in tangents if t is not None], given=given)


def _diagonal_tangent_value(coefficients, moving, *, given):
    (signal, noise, rows), bases = coefficients
    rotated = [rotated_rows(c, b) for c, b in zip(rows, bases, strict=True)]
    inverse_d = 1 / spectrum(bases)
    tangents = iter(moving)
    marks = iter(given)
    total = jnp.zeros((), inverse_d.dtype)
    for blocks, values in (
        (signal, [b.values for b in bases]),
        (noise, [b.noise_values for b in bases]),
    ):
        for i, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
            ts = [next(tangents) if next(marks) else None for _ in block.arrays]
            if any(t is not None for t in ts):
                weight = outer(values, skip=i)
                inside = _along_factor(block, basis, ts, rotated[i], weight, inverse_d, i)
                total = total - _apply_squares(rotated, inside, skip=i)
    for i, (row, basis) in enumerate(zip(rows, bases, strict=True)):
        if row is not None and next(marks):
            product = basis.right(next(tangents)) * basis.right(row)
            part = apply_along(2 * product, inverse_d, i - len(bases))
            total = total + _apply_squares(rotated, part, skip=i)
    return total


def _along_factor(block: SymmetricBlocks, basis, tangents, u, weight, inverse_d, i) -> Array:
    """`Σ_ac U_pa U_pc E_ac λ / (D_a D_c)` along axis `i`, for the tangents of one factor."""
    axis = i - inverse_d.ndim
    pieces = []
    for t, ndim, w, size in zip(tangents, block.ndims, basis.blocks, block.sizes, strict=True):
        if t is None:
            pieces.append(jnp.zeros(size, inverse_d.dtype))
        elif ndim == 0 or w is None:
            pieces.append(expand(t, ndim, size))
        else:
            full = jnp.diag(t) if ndim == 1 else (t + t.T) / 2
            pieces.append(matmul(matmul(w.T, full), w))
    if all(p.ndim == 1 for p in pieces):
        scaled = along(jnp.concatenate(pieces), axis) * weight * jnp.square(inverse_d)
        return scaled if u is None else apply_along(jnp.square(u), scaled, axis)
    middle = jax.scipy.linalg.block_diag(*(jnp.diag(p) if p.ndim == 1 else p for p in pieces))
    assert u is not None
    return _columnwise(u, middle, weight, inverse_d, axis)


def _columnwise(u: Array, middle: Array, weight: Array, inverse_d: Array, axis: int) -> Array:
    """One product per place on the other axes, in chunks: a map over cells, not over factors."""
    columns = jnp.moveaxis(inverse_d, axis, -1)
    weights = jnp.broadcast_to(jnp.moveaxis(weight, axis, -1), (*columns.shape[:-1], 1))

    def one(pair):
        d, scale = pair
        product = matmul(u * d, middle) * (u * d)
        return scale[0] * jnp.sum(product, axis=-1)

    flat = (columns.reshape(-1, columns.shape[-1]), weights.reshape(-1, 1))
    chunk = max(1, min(flat[0].shape[0], CHUNK // max(1, u.size)))
    result = lax.map(one, flat, batch_size=chunk)
    return jnp.moveaxis(result.reshape(*columns.shape[:-1], u.shape[0]), -1, axis)


_diagonal_tangent = LinearPrimitive(
    "kronax_diagonal_tangent", _diagonal_tangent_value, "The diagonal of an inverse"
)
blockwise_diagonal = RulePrimitive("kronax_diagonal", _diagonal_value, _diagonal_derivative)
