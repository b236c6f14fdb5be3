"""What gaps add to variances: `diag(C S⁻¹ E M⁻¹ Eᵀ S⁻¹ Cᵀ)` for `C = ⊗C_i`.

`S_oo⁻¹`, with zeros at the gaps, is `S⁻¹ − S⁻¹ E M⁻¹ Eᵀ S⁻¹`. The last term is a sum of squares, of
`M^{-1/2} Eᵀ S⁻¹ Cᵀ` column by column, and is built from the same weights as `M` itself. Its first
derivative is that of the definition.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import apply_along, matmul
from kronax.linalg.arrays.primitives import RulePrimitive
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, dual
from kronax.linalg.factors.factorizations import CholeskyFactorization, inverse_matrix
from kronax.linalg.gaps.plan import CHUNK, build_axis
from kronax.linalg.gaps.rules import (
    flat_gaps,
    is_by_columns,
    matrix_at_gaps,
    merged_bases,
    merged_problem,
    solved,
)
from kronax.linalg.gaps.schur import (
    GapDecomposition,
    problems,
    rows_at_gaps,
    unfolded,
    weights_between,
)
from kronax.linalg.operators.gap_geometry import Gaps
from kronax.linalg.spectral.diagonals import blockwise_diagonal, rotated_rows
from kronax.linalg.spectral.value_and_rules import TwoTermSum, spectrum


def _value(operands, held: GapDecomposition, *, gaps: Gaps, own: tuple) -> Array:
    bases = held.bases
    turned = list(map(_turned, *operands, bases, own))
    k = build_axis(gaps)
    at_rows = rows_at_gaps(gaps, bases, k)
    fibres = gaps.fibres[k]
    others = [i for j, i in enumerate(gaps.axes) if j != k]
    sizes = [n for j, n in enumerate(gaps.sizes) if j != k]
    new_rows = turned[gaps.axes[k]]
    new_sizes = tuple(turned[i].shape[0] for i in others)
    held_numbers = gaps.count * max(int(np.prod(sizes)), int(np.prod(new_sizes)))
    together = max(1, min(new_rows.shape[0], CHUNK // held_numbers))

    def one(inputs: tuple[Array, Array]) -> Array:
        inverse_d, root = inputs
        inverse_d = unfolded(inverse_d, k)

        def at(row: Array) -> Array:
            found = weights_between(at_rows.u, row[None], inverse_d)[:, 0][fibres.row_of_gap]
            z = (found * at_rows.z).reshape(-1, *sizes)
            for j, i in enumerate(others):
                z = apply_along(turned[i], z, j - len(others))
            return jnp.sum(jnp.square(matmul(root, z.reshape(gaps.count, -1))), axis=0)

        return lax.map(at, new_rows, batch_size=together)

    found = lax.map(one, (problems(gaps, 1 / spectrum(bases)), held.roots))
    found = found.reshape(*gaps.shared_sizes, new_rows.shape[0], *new_sizes)
    for j, i in enumerate(gaps.shared):
        found = apply_along(jnp.square(turned[i]), found, j - found.ndim)
    order = [*gaps.shared, gaps.axes[k], *others]
    return jnp.transpose(found, tuple(int(i) for i in np.argsort(order)))


def _turned(
    signal: SymmetricBlocks,
    noise: SymmetricBlocks,
    row: Array | None,
    basis: Eigenbasis,
    own: tuple[int, ...] | None,
) -> Array:
    """`C W`. The rows that are the axis' own are those of `K W = V diag(λ)`, without a product."""
    turned = rotated_rows(row, basis)
    if turned is None:
        turned = jnp.eye(basis.values.shape[-1], dtype=basis.values.dtype)
    if own is None:
        return turned
    exact = dual(basis, signal, noise).matrix() * basis.values[None]
    return turned.at[np.array(own)].set(exact)


def _derivative(operands, held, tangents, *, gaps, own):
    leaves, tree = jax.tree.flatten(operands)
    moving = [k for k, t in enumerate(tangents) if t is not None]

    def moved(*arrays):
        filled = list(leaves)
        for k, array in zip(moving, arrays, strict=True):
            filled[k] = array
        return _by_definition(jax.tree.unflatten(tree, filled), held, gaps)

    return jax.jvp(moved, [leaves[k] for k in moving], [tangents[k] for k in moving])[1]


def _by_definition(operands: Any, held: GapDecomposition, gaps: Gaps) -> Array:
    signal, noise, rows = operands
    problem = TwoTermSum(signal, noise, None)
    if is_by_columns(gaps):
        return _by_columns(problem, rows, held, gaps)
    whole = blockwise_diagonal((signal, noise, rows, []), held.bases)
    merged = merged_problem(problem, gaps)
    on_merged = [*(rows[i] for i in gaps.shared), merged_rows(rows, gaps, whole.dtype)]
    blocks: Any = (merged.signal, merged.noise, on_merged, [])
    part = blockwise_diagonal(blocks, merged_bases(merged))
    return whole - unmerged(part, gaps, tuple(whole.shape))


def _by_columns(
    problem: TwoTermSum, rows: Sequence[Array | None], held: GapDecomposition, gaps: Gaps
) -> Array:
    """`Σ_p (C S⁻¹ E)_p ∘ (C S⁻¹ E M⁻¹)_p`, one gap after another, so that no two are held."""
    matrix = matrix_at_gaps(problem, held, gaps)
    root = CholeskyFactorization.of(lax.stop_gradient(matrix))
    inverse = inverse_matrix(matrix, root)
    flat = flat_gaps(gaps)

    @jax.checkpoint
    def one(own: Array, others: Array) -> Array:
        columns = jnp.zeros((2, math.prod(gaps.shape)), own.dtype)
        columns = columns.at[:, flat].set(jnp.stack([own, others]))
        x = jax.vmap(lambda b: solved(problem, held, b))(columns.reshape(2, *gaps.shape))
        for i, row in enumerate(rows):
            x = x if row is None else apply_along(row, x, i - len(rows))
        return x[0] * x[1]

    pairs = (jnp.eye(len(flat), dtype=inverse.dtype), inverse)
    shape = jax.eval_shape(one, *(p[0] for p in pairs))
    step = lambda total, pair: (total + one(*pair), None)  # noqa: E731
    return lax.scan(step, jnp.zeros(shape.shape, shape.dtype), pairs)[0]


def merged_rows(rows: Sequence[Array | None], gaps: Gaps, dtype: Any) -> Array:
    """`⊗C_i` of the gap axes, `(*batch, cells, n)`, at the `n` observed cells."""
    whole: Any = jnp.ones((1, len(gaps.observed)), dtype)
    for i, index in zip(gaps.axes, gaps.observed.T, strict=True):
        row = rows[i]
        part = (jnp.eye(gaps.shape[i], dtype=dtype) if row is None else row)[..., index]
        product = whole[..., :, None, :] * part[..., None, :, :]
        whole = product.reshape(*product.shape[:-3], -1, len(index))
    return whole


def unmerged(array: Array, gaps: Gaps, shape: tuple[int, ...]) -> Array:
    """`(*shared, cells of the gap axes)` as a grid of `shape`."""
    order = [*gaps.shared, *gaps.axes]
    array = array.reshape(tuple(shape[i] for i in order))
    return jnp.transpose(array, tuple(int(i) for i in np.argsort(order)))


gap_variances = RulePrimitive("kronax_gap_variances", _value, _derivative)
