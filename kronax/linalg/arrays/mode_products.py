"""Apply a matrix along one axis of a grid, the two layouts of a vector, and batches."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.fibres import Fibrewise

HIGHEST = lax.Precision.HIGHEST
# Neighbouring matrices whose Kronecker product has at most this size are one matrix: a pass over
# the array costs more than the operations that it saves (2 cores, float32 and float64).
MERGED_SIZE = 36
# Up to so many runs of neighbours are copied one by one rather than gathered.
MOST_RUNS = 8
# Passing the axes round saves the copies of middle axes; worth this much more arithmetic.
ROUND_COST = 1.1


def matmul(a: Array, b: Array) -> Array:
    """`a @ b` in full precision: on recent GPUs float32 products otherwise run in TF32."""
    return jnp.matmul(a, b, precision=HIGHEST)


def apply_along(matrix: Array, x: Array, axis: int, *, transpose: bool = False) -> Array:
    """Contract the columns of `matrix` `(m, n)` with `axis < 0` of `x`; cost `2 m x.size`.

    The last axis is a right product, the first a left one, any other a batched left one. With
    `transpose` the rows are contracted instead, faster than with `matrix.T`.
    """
    return _along(axis, matrix, x, grids=(1,), transpose=transpose)[0]


def _apply_along(axis: int, matrix: Array, x: Array, *, transpose: bool) -> list[Array]:
    if axis == -1:
        return [matmul(x, matrix if transpose else matrix.T)]
    lead, size, trail = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    shape = (size, prod(trail)) if prod(lead) == 1 else (prod(lead), size, prod(trail))
    product = left_product(matrix, x.reshape(shape), transpose=transpose)
    return [product.reshape(*lead, matrix.shape[1 if transpose else 0], *trail)]


_along = Fibrewise("kronax_along", _apply_along)


def apply_all(matrices: Sequence[Array], x: Array) -> Array:
    """Contract the columns of one matrix per trailing axis of `x` with that axis.

    With three axes or more each product takes the last axis and puts the result in front, so that
    after a full round every axis is back in its place: no middle axis and no copy.
    """
    batch, rows = x.shape[: x.ndim - len(matrices)], tuple(m.shape[0] for m in matrices)
    if jax.device_count() > 1:  # an axis that is shared out must not change its place
        for i in best_order([m.shape for m in matrices]):
            x = apply_along(matrices[i], x, i - len(matrices))
        return x
    merged = _merge_small(matrices)
    shapes = [m.shape for m in merged]
    order = best_order(shapes)
    round_cost = ROUND_COST * _cost(shapes, order)
    if len(merged) > 2 and _cost(shapes, range(len(merged))[::-1]) <= round_cost:
        for matrix in reversed(merged):
            x = x.reshape(-1, matrix.shape[1])
            x = jnp.einsum("mn,rn->mr", matrix, x, precision=HIGHEST)
        return x.reshape(prod(rows), prod(batch)).T.reshape(*batch, *rows)
    x = x.reshape(*batch, *(n for _, n in shapes))
    for i in order:
        x = apply_along(merged[i], x, i - len(merged))
    return x.reshape(*batch, *rows)


def best_order(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The order of the axes in which matrices of these shapes take the fewest operations.

    Before `j`, a matrix `(m_i, n_i)` costs `m_i + (m_i/n_i) m_j` per entry, after it
    `m_j + (m_j/n_j) m_i`; the first is less just where `1/n_i − 1/m_i < 1/n_j − 1/m_j`. So any
    other order than the sorted one has two neighbours that gain by changing places.
    """
    return sorted(range(len(shapes)), key=lambda i: 1 / shapes[i][1] - 1 / shapes[i][0])


def _cost(shapes: Sequence[tuple[int, ...]], order: Iterable[int]) -> float:
    """Operations per entry of the array."""
    total, entries = 0.0, 1.0
    for i in order:
        rows, columns = shapes[i]
        total += entries * rows
        entries *= rows / columns
    return total


def _merge_small(matrices: Sequence[Array]) -> list[Array]:
    merged = list(matrices[:1])
    for matrix in matrices[1:]:
        last = merged[-1]
        rows, columns = (a * b for a, b in zip(last.shape, matrix.shape, strict=True))
        if max(rows, columns) <= MERGED_SIZE:
            merged[-1] = (last[:, None, :, None] * matrix[None, :, None]).reshape(rows, columns)
        else:
            merged.append(matrix)
    return merged


def left_product(a: Array, b: Array, *, transpose: bool = False) -> Array:
    """`a @ b`, or `aᵀ @ b`, for a matrix `a` and one or more matrices `b`.

    XLA on CPU contracts the first axis of both matrices at half speed in float64; cutting that
    axis in two makes it copy `a` into the right order and takes the fast path.
    """
    if not transpose:
        return matmul(a, b)
    size = a.shape[0]
    if size % 2 or a.dtype != jnp.float64:
        return matmul(a.T, b)
    cut_a = a.reshape(2, size // 2, a.shape[1])
    cut_b = b.reshape(*b.shape[:-2], 2, size // 2, b.shape[-1])
    return jnp.einsum("pqi,...pqj->...ij", cut_a, cut_b, precision=HIGHEST)


def apart(x: Array) -> Array:
    """`x`, kept out of the reduction that consumes it.

    XLA on CPU fuses a product with that reduction, and then runs a chain of products several times
    slower.
    """
    bits = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, exponent_bits=bits.nexp, mantissa_bits=bits.nmant)


def taken(x: Array, index: np.ndarray, axis: int) -> Array:
    """`jnp.take` at known places; runs of neighbours are copied whole.

    XLA on CPU gathers number by number, and fuses what makes the numbers into that.
    """
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    if not index.size or len(runs) > MOST_RUNS:
        return jnp.take(x, index, axis=axis)
    pieces = [lax.slice_in_dim(x, int(r[0]), int(r[-1]) + 1, axis=axis) for r in runs]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=axis)


def along(vector: Array, axis: int, ndim: int) -> Array:
    """`vector` `(n,)` with `ndim` axes, so that it broadcasts along `axis < 0` of a grid."""
    return vector.reshape(*(1,) * (ndim + axis), *vector.shape, *(1,) * (-axis - 1))


def same_rank(*arrays: Array) -> tuple[Array, ...]:
    """Arrays with axes of size one in front, so that all but numbers have equally many.

    JAX adds these itself, unless its user forbids it: `jax_numpy_rank_promotion="raise"`.
    """
    ndim = max(x.ndim for x in arrays)
    return tuple(x.reshape((1,) * (ndim - x.ndim) + x.shape) if x.ndim else x for x in arrays)


def outer(vectors: Sequence[Array], skip: int | None = None) -> Array:
    """The outer product `v_1 ⊗ … ⊗ v_d` as a grid array; axis `skip` (from 0) has size one."""
    result = None
    for i, vector in enumerate(vectors):
        values = jnp.ones(1, vector.dtype) if i == skip else vector
        factor = along(values, i - len(vectors), len(vectors))
        result = factor if result is None else result * factor
    assert result is not None
    return result


def gram(x: Array, y: Array, axis: int) -> Array:
    """`X_(i) Y_(i)ᵀ` of the two unfoldings along `axis < 0`: `(n, n)`, cost `2 n x.size`.

    With `x` and `y` the same array there is one unfolded copy, else two.
    """
    operands = (x,) if y is x else (x, y)
    return _gram(axis, *operands, grids=tuple(range(len(operands))), results=(False,))[0]


def _gram_of(axis: int, x: Array, *others: Array) -> list[Array]:
    (y,) = others or (x,)
    if axis == -1 and x.ndim == 2:
        return [left_product(x, y, transpose=True)]
    unfolded = [jnp.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in (x, y)]
    return [jnp.einsum("am,bm->ab", *unfolded, precision=HIGHEST)]


_gram = Fibrewise("kronax_gram", _gram_of)


def sum_others(x: Array, axis: int) -> Array:
    """The sum of `x` over every axis but `axis`."""
    return jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a != axis % x.ndim))


def map_batch(function: Callable, batch_shape: tuple[int, ...], *args: tuple[Any, Any]) -> Any:
    """`function` of unbatched pytrees, mapped over broadcasting leading batch axes.

    Args:
        function: takes one pytree per entry of `args`, without batch axes.
        batch_shape: the broadcast batch.
        args: pairs of a pytree and a matching pytree of ints, the number of axes each leaf has
            without its batch. A leaf whose batch lacks an axis, or has size 1 there, is not copied.
    """
    leaves, tree = jax.tree.flatten([t for t, _ in args])
    ndims = jax.tree.leaves([n for _, n in args])

    def mapped(*flat):
        return function(*jax.tree.unflatten(tree, flat))

    for level in reversed(range(-len(batch_shape), 0)):  # the innermost batch axis first
        in_axes = [
            0
            if leaf.ndim - ndim + level >= 0 and leaf.shape[leaf.ndim - ndim + level] != 1
            else None
            for leaf, ndim in zip(leaves, ndims, strict=True)
        ]
        mapped = jax.vmap(mapped, in_axes=tuple(in_axes), axis_size=batch_shape[level])
    squeezed = [
        jnp.squeeze(leaf, tuple(a for a in range(leaf.ndim - ndim) if leaf.shape[a] == 1))
        for leaf, ndim in zip(leaves, ndims, strict=True)
    ]
    return mapped(*squeezed)
