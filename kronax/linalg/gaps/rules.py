"""Log-determinant, solve, quadratic form and variances on a grid with gaps, with their rules.

With `M = (S⁻¹)_mm`, `log det S_oo = log det S + log det M`. From `d(S⁻¹) = −S⁻¹ dS S⁻¹`,
`d log det M = −tr(M⁻¹ Eᵀ S⁻¹ dS S⁻¹ E)`, which `gap_slopes` has in closed form: first order at any
spectrum. Every further order, and every order of what has no closed form, is the ordinary
derivative of the definition, in which all inverses are solves: of `M` from the columns `S⁻¹ E`, or,
where these are too many, of the matrix over the observed cells of the gap axes.

Everything here is for one operator and one vector; the primitives carry batches themselves.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.arrays.primitives import (
    DerivativeOrderError,
    RulePrimitive,
    by_gradient,
    gradient_along,
)
from kronax.linalg.factors.eigenbases import (
    Eigenbasis,
    SymmetricBlocks,
    eigenbases,
    full_block,
    split_blocks,
)
from kronax.linalg.factors.factorizations import CholeskyFactorization
from kronax.linalg.gaps.plan import CHUNK, EIGH
from kronax.linalg.gaps.schur import (
    GapDecomposition,
    GapSlopes,
    gap_slopes,
    observed_cells,
    solve_with_gaps,
)
from kronax.linalg.operators.gap_geometry import Gaps
from kronax.linalg.spectral.value_and_rules import (
    TwoTermSum,
    log_det_and_quadratic,
    rotate,
    spectrum,
    unrotate,
)

# A derivative without closed form may solve for so many columns, or merge so many cells.
MOST_COLUMNS = 4_000
MOST_MERGED = 6_000
# What such a derivative takes per column, in solves.
SOLVES = 10


def apply_sum(problem: TwoTermSum, x: Array) -> Array:
    """`S x` from the blocks."""
    total = jnp.zeros((), x.dtype)
    for blocks in (problem.signal, problem.noise):
        term = x
        for i, block in enumerate(blocks):
            term = block.apply(term, i - len(blocks))
        total = total + term
    return total


def solve_observed(problem: TwoTermSum, held: GapDecomposition, b: Array, *, gaps: Gaps) -> Array:
    """`S_oo⁻¹ b`, right at every order; `b` and the result are zero at the gaps."""
    cells = observed_cells(gaps)

    def mv(x: Array) -> Array:
        return jnp.where(cells, apply_sum(problem, x), 0)

    def solve(_: Any, v: Array) -> Array:
        return solve_with_gaps(gaps, held, v)

    return lax.custom_linear_solve(mv, b, solve=solve, transpose_solve=solve)


def _quadratic_value(problem, held, *, gaps):
    return jnp.sum(problem.y * solve_with_gaps(gaps, held, problem.y))


def _quadratic_derivative(problem, held, tangents, *, gaps):
    # d(yᵀ S⁻¹ y) = 2 αᵀ dy − αᵀ dS α with α = S⁻¹ y, itself right at every order.
    alpha = solve_observed(problem, held, problem.y, gaps=gaps)
    *leaves, y = jax.tree.leaves(problem)
    *moved, dy = tangents
    total = jnp.zeros((), y.dtype)
    if dy is not None:
        total = total + 2 * jnp.sum(alpha * dy)
    moving = [k for k, t in enumerate(moved) if t is not None]
    if not moving:
        return total
    tree = jax.tree.structure(problem)

    def form(*arrays):
        filled = list(leaves)
        for k, array in zip(moving, arrays, strict=True):
            filled[k] = array
        return jnp.sum(alpha * apply_sum(jax.tree.unflatten(tree, [*filled, y]), alpha))

    here = [leaves[k] for k in moving]
    return total - jax.jvp(form, here, [moved[k] for k in moving])[1]


def _log_det_value(problem, held, *, gaps):
    diagonals = jnp.diagonal(held.roots, axis1=-2, axis2=-1)
    total = -2 * jnp.sum(jnp.log(diagonals))
    for i in gaps.shared:
        if (log_abs_det := held.bases[i].log_abs_det) is not None:
            total = total + 2 * gaps.count * (gaps.num_problems // gaps.shape[i]) * log_abs_det
    return total


def _gradient_value(problem, held, *, gaps, needed):
    marks = iter(needed)
    wants = [
        [[next(marks) for _ in block.arrays] for block in blocks]
        for blocks in (problem.signal, problem.noise)
    ]
    full = tuple(
        tuple(_needs_full(blocks[i], held.bases[i], want[i]) for i in gaps.axes)
        for blocks, want in zip((problem.signal, problem.noise), wants, strict=True)
    )
    found = gap_slopes(gaps, held, full)
    slopes: list[Array] = []
    for term, (blocks, want) in enumerate(zip((problem.signal, problem.noise), wants, strict=True)):
        for i, block in enumerate(blocks):
            slopes += _block_slopes(block, held.bases[i], want[i], found, term, i, gaps)
    return slopes


def _needs_full(block: SymmetricBlocks, basis: Eigenbasis, want: Sequence[bool]) -> bool:
    return any(
        needed and ndim > 0 and w is not None
        for needed, ndim, w in zip(want, block.ndims, basis.blocks, strict=True)
    )


def _block_slopes(
    block: SymmetricBlocks,
    basis: Eigenbasis,
    want: Sequence[bool],
    found: GapSlopes,
    term: int,
    i: int,
    gaps: Gaps,
) -> list[Array]:
    """From the eigenbasis to the blocks of axis `i`; along shared axes there is a diagonal only."""
    matrix = None if i in gaps.shared else found.full[term][gaps.axes.index(i)]
    slopes, start = [], 0
    diagonals = split_blocks(found.diagonal[term][i], block.sizes, -1)
    for needed, ndim, w, size, diagonal in zip(
        want, block.ndims, basis.blocks, block.sizes, diagonals, strict=True
    ):
        part = slice(start, start + size)
        start += size
        if not needed:
            continue
        if ndim == 0 or w is None:
            slopes.append(-jnp.sum(diagonal) if ndim == 0 else -diagonal)
            continue
        turned = w * diagonal[None] if matrix is None else matmul(w, matrix[part, part])
        slopes.append(-(jnp.sum(turned * w, axis=-1) if ndim == 1 else matmul(turned, w.T)))
    return slopes


def _gradient_derivative(problem, held, tangents, *, gaps, needed):
    """The ordinary derivative of the ordinary gradient of the definition."""
    leaves, tree = jax.tree.flatten(problem)
    return gradient_along(
        lambda *moved: _log_det_by_definition(jax.tree.unflatten(tree, moved), held, gaps),
        leaves,
        [t for t in tangents if t is not None],
        given=tuple(t is not None for t in tangents),
        needed=needed,
    )


def _log_det_by_definition(problem: TwoTermSum, held: GapDecomposition, gaps: Gaps) -> Array:
    if is_by_columns(gaps):
        matrix = matrix_at_gaps(problem, held, gaps)
        root = CholeskyFactorization.of(lax.stop_gradient(matrix))
        return root.log_abs_det(matrix)
    whole = TwoTermSum(problem.signal, problem.noise, None)
    return _merged_log_det(problem, gaps) - log_det_and_quadratic(
        whole, held.bases, weights=(1.0, 0.0)
    )


def is_by_columns(gaps: Gaps) -> bool:
    """Whether a derivative by definition solves for columns, or merges the observed cells."""
    count, size, merged = gaps.num_problems * gaps.count, prod(gaps.shape), len(gaps.observed)
    if count > MOST_COLUMNS or merged > MOST_MERGED:
        return count <= MOST_COLUMNS
    return 4 * SOLVES * count * size * sum(gaps.shape) <= 3 * EIGH * merged**3


def solved(problem: TwoTermSum, held: GapDecomposition, b: Array) -> Array:
    """`S⁻¹ b` on the whole grid, right at every order."""

    def solve(_: Any, v: Array) -> Array:
        return unrotate(
            held.bases, jnp.divide(*same_rank(rotate(held.bases, v), spectrum(held.bases)))
        )

    return lax.custom_linear_solve(
        lambda x: apply_sum(problem, x), b, solve=solve, transpose_solve=solve
    )


def matrix_at_gaps(problem: TwoTermSum, held: GapDecomposition, gaps: Gaps) -> Array:
    """`M` for all gaps of the grid at once, right at every order.

    Columns are solved for in chunks, and again in a derivative, so that few are held.
    """
    flat = flat_gaps(gaps)
    places = jnp.arange(prod(gaps.shape))

    @jax.checkpoint
    def one(place: Array) -> Array:
        column = (places == place).astype(held.roots.dtype).reshape(gaps.shape)
        return solved(problem, held, column).reshape(-1)[flat]

    chunk = max(1, min(len(flat), CHUNK // prod(gaps.shape)))
    return lax.map(one, jnp.asarray(flat), batch_size=chunk)


def flat_gaps(gaps: Gaps) -> np.ndarray:
    """Every gap of the grid, shared axes included, by its index in the flattened grid."""
    return np.flatnonzero(~observed_cells(gaps))


def _merged_log_det(problem: TwoTermSum, gaps: Gaps) -> Array:
    """`log det S_oo` with the gap axes merged."""
    merged = merged_problem(problem, gaps)
    return log_det_and_quadratic(merged, merged_bases(merged), weights=(1.0, 0.0))


def merged_bases(problem: TwoTermSum) -> tuple[Eigenbasis, ...]:
    """One per axis of a merged problem."""
    return eigenbases(zip(problem.signal, problem.noise, strict=True), batched=False)


def merged_problem(problem: TwoTermSum, gaps: Gaps) -> TwoTermSum:
    """The shared axes, and in place of the gap axes one of their observed cells."""
    if len(gaps.observed) > MOST_MERGED:
        raise DerivativeOrderError(
            "This derivative of an operator with gaps has no closed form, and its definition needs "
            f"the solution of {gaps.num_problems * gaps.count} columns of {prod(gaps.shape)} "
            f"cells, or a matrix of {len(gaps.observed)} observed cells; at most {MOST_COLUMNS} "
            f"columns or {MOST_MERGED} cells are taken. Take it by finite differences of the exact "
            "order below it, or use a grid with fewer gaps."
        )
    signal, noise = (
        (*(blocks[i] for i in gaps.shared), _merged_block([blocks[i] for i in gaps.axes], gaps))
        for blocks in (problem.signal, problem.noise)
    )
    return TwoTermSum(signal, noise, None)


def _merged_block(blocks: Sequence[SymmetricBlocks], gaps: Gaps) -> SymmetricBlocks:
    count = len(gaps.observed)
    if all(set(block.ndims) == {0} for block in blocks):
        scale = jnp.prod(jnp.stack([block.arrays[0] for block in blocks]))
        return SymmetricBlocks((scale,), (0,), (count,))
    matrices = [b.apply(jnp.eye(b.size, dtype=b.arrays[0].dtype), -1) for b in blocks]
    return full_block(merged_matrix(matrices, gaps))


def merged_matrix(matrices: Sequence[Array], gaps: Gaps) -> Array:
    """`⊗matrices` of the gap axes at the observed cells, `(*batch, n, n)`."""
    total = None
    for matrix, index in zip(matrices, gaps.observed.T, strict=True):
        part = jnp.take(jnp.take(matrix, index, axis=-2), index, axis=-1)
        total = part if total is None else total * part
    assert total is not None
    return total


_log_det_gradient = RulePrimitive(
    "kronax_gap_log_det_gradient", _gradient_value, _gradient_derivative
)
log_det_gaps = RulePrimitive("kronax_gap_log_det", _log_det_value, by_gradient(_log_det_gradient))
quadratic_with_gaps = RulePrimitive("kronax_gap_quadratic", _quadratic_value, _quadratic_derivative)
