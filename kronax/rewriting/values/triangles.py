"""Solves with one triangle of a product, of which the factors need not be triangular."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import map_batch
from kronax.linalg.factors.triangular import LowerTriangular
from kronax.linalg.functions.solve import solve
from kronax.linalg.operators.kronecker import Kronecker
from kronax.rewriting.values.general_sums import in_columns, when
from kronax.rewriting.values.substitution import multiplied, substituted


def triangle_solve(op: Kronecker, lower: bool, b: Array) -> Array:
    """`T⁻¹ b` in the grid layout, for the lower or upper triangle `T` of `⊗A_i`.

    The triangle of `A ⊗ B` has all of `B` off the diagonal of `A`. So it is a product where all
    factors but the first are triangular; otherwise it is solved row by row of the first.
    """
    matrices = [factor.to_dense() for factor in op.factors]
    if lower:  # turned round, a lower triangle is an upper one
        axes = tuple(range(-len(matrices), 0))
        turned = Kronecker(*(jnp.flip(matrix, (-2, -1)) for matrix in matrices))
        return jnp.flip(triangle_solve(turned, False, jnp.flip(b, axes)), axes)
    if is_concrete(matrices, b):
        return _by_rows(matrices, b)
    held = lax.stop_gradient(matrices)
    return lax.custom_linear_solve(
        partial(_times, matrices),
        b,
        lambda _, right: _solved(held, right),
        transpose_solve=lambda _, right: _transposed(held, right),
    )


def _transposed(matrices: Sequence[Array], b: Array) -> Array:
    axes = tuple(range(-len(matrices), 0))
    turned = [jnp.flip(jnp.swapaxes(matrix, -1, -2), (-2, -1)) for matrix in matrices]
    return jnp.flip(_solved(turned, jnp.flip(b, axes)), axes)


def _solved(matrices: Sequence[Array], b: Array) -> Array:
    """With the upper triangle."""
    upper = [jnp.triu(matrix) for matrix in matrices]
    holds = [jnp.all(u == m) for u, m in zip(upper[1:], matrices[1:], strict=True)]
    found = solve(Kronecker(*(LowerTriangular(u, lower=False) for u in upper)), b)
    all_hold = jnp.all(jnp.stack([jnp.ones((), bool), *holds]))
    return when(~all_hold, _by_rows, (list(matrices), b), found)


def _by_rows(matrices: Sequence[Array], b: Array) -> Array:
    return in_columns(
        lambda terms, shift, columns: substituted([(1, terms[0])], shift, columns),
        [list(matrices)],
        jnp.zeros((), b.dtype),
        b,
    )


def _times(matrices: Sequence[Array], x: Array) -> Array:
    """The upper triangle of the product, times grids."""
    num_axes = len(matrices)
    batch = jnp.broadcast_shapes(
        x.shape[: x.ndim - num_axes], *(matrix.shape[:-2] for matrix in matrices)
    )
    return map_batch(_upper_times, batch, (list(matrices), [2] * num_axes), (x, num_axes))


def _upper_times(matrices: Sequence[Array], x: Array, axis: int = 0) -> Array:
    first, *rest = matrices
    if not rest:
        return multiplied([jnp.triu(first)], x, axis)
    above = multiplied([jnp.triu(first, 1)], multiplied(rest, x, axis + 1), axis)
    own = jnp.diag(jnp.diagonal(first))
    return above + multiplied([own], _upper_times(rest, x, axis + 1), axis)
