"""Matrices that are used as positive definite ones, of which a triangle may be all that is read."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.operators.kronecker import Kronecker
from kronax.rewriting.values.general_sums import are_symmetric
from kronax.rewriting.values.matrices import (
    Covariance,
    multiplied,
    products_of,
    scaled,
    sum_of,
    times,
)
from kronax.rewriting.values.tensors import Part, Tensor, Term, Unstructured

NOT_SYMMETRIC = (
    "A Kronecker product that is used as a symmetric matrix must have symmetric factors; got two "
    "that are not, or one of which a triangle of the product does not tell. Symmetrise them, or "
    "call the rewritten function outside of jax.jit, where it computes densely then."
)


def covariance_of(tensor: Tensor, read: str = "both") -> tuple[Covariance, Tensor]:
    """The operator of a matrix that is used as a positive definite one, and what is read of it.

    Args:
        tensor: the matrix.
        read: the triangle of it that is, `"lower"` or `"upper"`; or `"both"`, of which the mean.
            So one factor need not be symmetric. Where the matrix that is read is no product,
            traced factors become NaN.

    Raises:
        Unstructured: if it is none, with the reason.
    """
    products = [_read(product, read) for product in products_of(tensor)]
    symmetric = _tensor_of(products, tensor)
    definite = [_definite(product) for product in products]
    if len(products) == 1:
        return Kronecker(*definite[0]), symmetric
    found = sum_of(definite)
    return (found if isinstance(found, Kronecker) else found.covariance()), symmetric


def _read(product: Sequence[AbstractFactor], read: str) -> list[AbstractFactor]:
    """Symmetric factors of the matrix that is read of a product.

    The symmetric part is a product where all factors but one are symmetric; what a triangle tells
    is one where that factor moreover comes first, but for diagonal ones.

    Raises:
        Unstructured: if concrete ones are not.
    """
    dense = [k for k, factor in enumerate(product) if isinstance(factor, Dense)]
    symmetric = {k: are_symmetric(product[k].to_dense()) for k in dense}
    found = list(product)
    if is_concrete(symmetric) and all(map(np.all, symmetric.values())):
        return found
    for k in dense:
        holds = symmetric[k]
        if read == "both" or k == dense[0]:
            others: Any = [symmetric[j] for j in dense if j != k]
            holds = jnp.logical_or(*same_rank(holds, reduce(_both, others, jnp.ones((), bool))))
        if is_concrete(holds) and not bool(jnp.all(holds)):
            raise Unstructured("a factor that is not symmetric")
        matrix = product[k].to_dense()
        matrix = jnp.where(symmetric[k][..., None, None], matrix, _mirrored(matrix, read))
        if not is_concrete(holds):
            matrix = raising_if(partial(_is_missed, holds), matrix, NOT_SYMMETRIC)
            known, matrix = same_rank(holds[..., None, None], matrix)
            matrix = where(known, matrix, jnp.nan)
        found[k] = Dense(matrix)
    return found


def _is_missed(holds: Array) -> Array:
    return ~jnp.all(holds)


def _both(first: Array, second: Array) -> Array:
    return jnp.logical_and(*same_rank(first, second))


def _mirrored(matrix: Array, read: str) -> Array:
    """The symmetric matrix of what is read of another."""
    turned = jnp.swapaxes(matrix, -1, -2)
    if read == "both":
        return (matrix + turned) / 2
    lower, upper = (matrix, turned) if read == "lower" else (turned, matrix)
    return jnp.tril(lower) + jnp.triu(upper, 1)


def _definite(product: Sequence[AbstractFactor]) -> list[AbstractFactor]:
    """Factors that are all positive definite if their product is.

    Two negative definite factors have a positive definite product: signs go to the first.
    """
    first = [_first_entry(factor) for factor in product]
    if is_concrete(first) and not any((value < 0).any() for value in first):
        return list(product)
    signs: list[Any] = [
        lax.stop_gradient(jnp.where(value < 0, -1, 1).astype(value.dtype)) for value in first
    ]
    total = multiplied(signs)
    scales = [times(signs[0], total), *signs[1:]]
    return [scaled(factor, scale) for factor, scale in zip(product, scales, strict=True)]


def _first_entry(factor: AbstractFactor) -> Any:
    """Of the diagonal."""
    entries: Any = factor.matrix if isinstance(factor, Dense) else factor.diagonal()
    entries = np.asarray(entries) if is_concrete(entries) else entries
    return entries[..., 0, 0] if isinstance(factor, Dense) else entries[..., 0]


def _tensor_of(products: Sequence[Sequence[AbstractFactor]], like: Tensor) -> Tensor:
    """A sum of products in the shape of the matrix that they were made of."""
    lead = like.shape[:-2]
    batch = tuple(a for k in range(len(like.groups) - 2) for a in like.axes_of(k))
    fine = tuple(like.sizes[a] for a in batch)
    sizes = tuple(factor.size for factor in products[0])

    def part(array: Array, own: tuple[int, ...]) -> Part:
        shape = array.shape[array.ndim - len(own) :]
        if array.ndim == len(own):
            return Part(array, own)
        array = jnp.broadcast_to(array, (*lead, *shape)).reshape(*fine, *shape)
        return Part(array, (*batch, *own))

    def parts_of(factor: AbstractFactor, row: int, column: int) -> Term:
        if isinstance(factor, ScaledIdentity):
            return Part(None, (row, column)), part(factor.scale, ())
        if isinstance(factor, Diagonal):
            return Part(None, (row, column)), part(factor.values, (row,))
        return (part(factor.to_dense(), (row, column)),)

    def term(product: Sequence[AbstractFactor]) -> Term:
        start, count = len(batch), len(sizes)
        parts: list[Any] = []
        for k, factor in enumerate(product):
            parts += parts_of(factor, start + k, start + count + k)
        return tuple(parts)

    groups = (*like.groups[:-2], sizes, sizes)
    return Tensor(groups, tuple(map(term, products)), like.dtype)
