"""Apply a matrix along one axis of a grid, the two layouts of a vector, and batches."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

HIGHEST = lax.Precision.HIGHEST


def matmul(a: Array, b: Array) -> Array:
    """`a @ b` in full precision: on recent GPUs float32 products otherwise run in TF32."""
    return jnp.matmul(a, b, precision=HIGHEST)


def apply_along(matrix: Array, x: Array, axis: int) -> Array:
    """Contract the columns of `matrix` `(m, n)` with `axis < 0` of `x`; cost `2 m x.size`.

    The last axis is a right product, the first a left one, any other a batched left one: there is
    no explicit transpose.
    """
    if axis == -1:
        return matmul(x, matrix.T)
    lead, size, trail = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    if prod(lead) == 1:
        product = left_product(matrix, x.reshape(size, prod(trail)))
    else:
        product = matmul(matrix, x.reshape(prod(lead), size, prod(trail)))
    return product.reshape(*lead, matrix.shape[0], *trail)


def left_product(a: Array, b: Array) -> Array:
    """`a @ b` for two matrices.

    XLA on CPU runs the product of a transposed matrix with another, which contracts the first axis
    of both, at half speed; cutting that axis in two keeps it on the fast path.
    """
    size = a.shape[1]
    if size % 2:
        return matmul(a, b)
    left, right = a.T.reshape(2, size // 2, -1), b.reshape(2, size // 2, -1)
    return jnp.einsum("pqi,pqj->ij", left, right, precision=HIGHEST)


def along(vector: Array, axis: int) -> Array:
    """`vector` `(n,)` shaped so that it broadcasts along `axis < 0` of a grid."""
    return vector.reshape(*vector.shape, *(1,) * (-axis - 1))


def outer(vectors: Sequence[Array], skip: int | None = None) -> Array:
    """The outer product `v_1 ⊗ … ⊗ v_d` as a grid array; axis `skip` (from 0) has size one."""
    result = None
    for i, vector in enumerate(vectors):
        factor = along(jnp.ones(1, vector.dtype) if i == skip else vector, i - len(vectors))
        result = factor if result is None else result * factor
    assert result is not None
    return result


def gram(x: Array, y: Array, axis: int) -> Array:
    """`X_(i) Y_(i)ᵀ` of the two unfoldings along `axis`: `(n, n)`, cost `2 n x.size`."""
    others = [a for a in range(x.ndim) if a != axis % x.ndim]
    if others == [0]:
        return left_product(x.T, y)
    return jnp.tensordot(x, y, axes=(others, others), precision=HIGHEST)


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
