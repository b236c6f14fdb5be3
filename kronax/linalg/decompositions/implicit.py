"""Solve with an operator, right at every order of derivative.

`custom_linear_solve` differentiates `S x = b` as an implicit equation in `op.mv`, with what was
computed of `S` held constant: `dx = S⁻¹ (db − dS x)`, and so on for every further order.
"""

from collections.abc import Callable
from typing import Any

from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import map_batch


def implicit_solve(
    op: Any,
    pieces: tuple[Any, ...],
    apply: Callable[[tuple[Any, ...], Array, bool], Array],
    b: Array,
) -> Array:
    """`op⁻¹ b` for checked vectors in the grid layout, over batches.

    Args:
        op: what is solved with: a product, with noise or without, or its observed cells.
        pieces: of its decomposition, held constant.
        apply: `apply(pieces, v, transpose)` is `op⁻¹ v` or `op⁻ᵀ v`, without a batch.
        b: `(*batch, n_1, …, n_d)`.
    """

    def one(op: Any, pieces: Any, b: Array) -> Array:
        # The operator may be symmetric, its tangent need not be: so not `symmetric=True`.
        return lax.custom_linear_solve(
            op.mv_grid,
            b,
            solve=lambda _, v: apply(pieces, v, False),
            transpose_solve=lambda _, v: apply(pieces, v, True),
        )

    if not op.batch_shape:
        return one(op, pieces, b)
    num_axes = len(op.grid_shape)
    batch = checks.check_broadcast(
        [op.batch_shape, b.shape[: b.ndim - num_axes]], "the operator and b"
    )
    bare = op.mappable()
    ndims = tuple(p.event_ndims for p in pieces)
    return map_batch(one, batch, (bare, bare.event_ndims()), (pieces, ndims), (b, num_axes))
