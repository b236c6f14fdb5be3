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


def multiplied(matrices: Sequence[Array | None], x: Array, first: int = 0) -> Array:
    """Matrices along the axes of `x` that begin with `first`; None for an identity."""
    for axis, matrix in enumerate(matrices, first):
        if matrix is not None:
            product = jnp.tensordot(matrix, x, (1, axis), precision="highest")
            x = jnp.moveaxis(product, 0, axis)
    return x


def substituted(terms: Sequence[tuple[Any, Sequence[Array | None]]], shift: Any, b: Array) -> Array:
    """`x` with `U x = b` for the upper triangle `U` of a sum of products `s ⊗F_i`, and `c I`.

    Row by row of the first axis from below, `O(N Σ n_i)` operations. Below the diagonal the first
    factors are not read; what the others have there stands above the diagonal of the product.

    Args:
        terms: `s` and the `F_i`, `(n_i, n_i)` or None for an identity, of every product.
        shift: `c`.
        b: `(n_1, …, n_d, k)`, columns over the grid.
    """
    if b.ndim == 2:
        one = jnp.eye(len(b), dtype=b.dtype)
        parts = [scale * (one if own is None else own) for scale, (own,) in terms]
        return solve_triangular(sum(parts, shift * one), b)
    coupled = [(s, own, rest) for s, (own, *rest) in terms if own is not None]

    def row(step: Array, found: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        x, known = found
        i = len(b) - 1 - step
        right = b[i]
        for (scale, first, _), product in zip(coupled, known, strict=True):
            right = right - scale * jnp.tensordot(first[i], product, 1, precision="highest")
        inside = [(s if own is None else s * own[i, i], rest) for s, (own, *rest) in terms]
        own = substituted(inside, shift, right)
        products = [multiplied(rest, own) for _, _, rest in coupled]
        known = [k.at[i].set(product) for k, product in zip(known, products, strict=True)]
        return x.at[i].set(own), known

    empty = jnp.zeros_like(b)
    return lax.fori_loop(0, len(b), row, (empty, [empty] * len(coupled)))[0]
