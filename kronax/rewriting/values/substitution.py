"""Triangular matrices that are made of products, solved row by row of the first factor."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array


def schur(matrix: Array) -> list[Array]:
    """`T` and `Q` with the matrix `Q T Qᴴ`, `T` upper triangular and `Q` unitary, both complex."""
    given = matrix.astype(jnp.result_type(matrix.dtype, jnp.complex64))
    return lax.platform_dependent(
        given, cpu=lambda x: list(lax.linalg.schur(x)), default=lambda x: [_unknown(x)] * 2
    )


def eigenvalues(matrix: Array) -> Array:
    """Those of a square matrix, complex."""
    return lax.platform_dependent(
        matrix, cpu=jnp.linalg.eigvals, default=lambda x: _unknown(jnp.diagonal(x))
    )


def _unknown(x: Array) -> Array:
    """NaN: GPUs have no decomposition of a general matrix that a program can be exported with."""
    return jnp.full_like(x, jnp.nan, jnp.result_type(x.dtype, jnp.complex64))


def multiplied(matrices: Sequence[Array], x: Array, first: int = 0) -> Array:
    """Matrices along the axes of `x` that begin with `first`."""
    for axis, matrix in enumerate(matrices, first):
        x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision="highest"), 0, axis)
    return x


def substituted(factors: Sequence[Array], shift: Any, b: Array, adds: bool = False) -> Array:
    """`x` with `U x = b` for the upper triangle `U` of `⊗F_i + c I`, or of `⊕F_i + c I`.

    Row by row of the first axis from below, `O(N Σ n_i)` operations. Below the diagonal the first
    factor is not read; what the others have there stands above the diagonal of the product.

    Args:
        factors: `F_i`, `(n_i, n_i)`.
        shift: `c`.
        b: `(n_1, …, n_d, k)`, columns over the grid.
        adds: whether it is `⊕F_i`.
    """
    first, *rest = factors
    if not rest:
        return solve_triangular(first + shift * jnp.eye(len(first), dtype=first.dtype), b)

    def row(step: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        x, known = found
        i = len(first) - 1 - step
        right = b[i] - jnp.tensordot(first[i], known, 1, precision="highest")
        if adds:
            own = substituted(rest, shift + first[i, i], right, adds)
        else:
            own = substituted([first[i, i] * rest[0], *rest[1:]], shift, right)
        return x.at[i].set(own), known.at[i].set(own if adds else multiplied(rest, own))

    empty = jnp.zeros_like(b)
    return lax.fori_loop(0, len(first), row, (empty, empty))[0]
