"""Tensors as kronax operators."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.triangular import LowerTriangular
from kronax.linalg.functions.solve import solve
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.rewriting.values.algebra import einsum
from kronax.rewriting.values.general_sums import GeneralSum, general_solve
from kronax.rewriting.values.tensors import Groups, Part, Tensor, Term, Unstructured

Covariance = Kronecker | KroneckerPlusNoise
Operator = Covariance | GeneralSum


def operator_of(tensor: Tensor) -> Kronecker | GeneralSum:
    """The operator of a tensor whose last two axes are a square matrix; others are a batch.

    Args:
        tensor: a product, or a sum of two, or of one and multiples of the identity.

    Raises:
        Unstructured: if it is none, with the reason.
    """
    products = products_of(tensor)
    return Kronecker(*products[0]) if len(products) == 1 else sum_of(products)


def products_of(tensor: Tensor) -> list[list[AbstractFactor]]:
    """The factors of every term over the same grid."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise Unstructured(f"entries of type {tensor.dtype}")
    if tensor.sums:
        raise Unstructured("a product that is still to be summed")
    axes = _grid_axes(tensor)
    if len(axes) < 2:
        raise Unstructured("nothing that is a product on the whole grid")
    for rows, columns in axes:
        m, n = (prod(tensor.sizes[a] for a in each) for each in (rows, columns))
        if m != n:
            raise Unstructured(f"a factor of {m}×{n}, which is not square")
    return [_product(tensor, term, axes) for term in tensor.terms]


def sum_of(products: list[list[AbstractFactor]]) -> Kronecker | GeneralSum:
    """A sum of products as one operator.

    Raises:
        Unstructured: if it is none.
    """
    identities = [product for product in products if _is_identity(product)]
    signals = [product for product in products if not _is_identity(product)]
    noise = _added([_scale(product) for product in identities]) if identities else None
    sizes = [factor.size for factor in products[0]]
    if not signals:
        one = jnp.ones((), products[0][0].dtype)
        return Kronecker(
            *(ScaledIdentity(noise if k == 0 else one, n) for k, n in enumerate(sizes))
        )
    if len(signals) == 1:
        assert noise is not None
        return GeneralSum(Kronecker(*signals[0]), noise)
    own = [[k for k, f in enumerate(p) if not isinstance(f, ScaledIdentity)] for p in signals]
    if all(len(axes) == 1 for axes in own):
        zero = jnp.zeros((), products[0][0].dtype)
        signal = _along_axes(signals, [k for (k,) in own], sizes)
        return GeneralSum(signal, zero if noise is None else noise)
    if len(signals) == 2 and noise is None:
        first, second = signals
        return GeneralSum(Kronecker(*first), Kronecker(*second))
    raise Unstructured(f"a sum of {len(signals) + (noise is not None)} products")


def _along_axes(products: Any, own: list[int], sizes: list[int]) -> KroneckerSum:
    """`A ⊗ I + I ⊗ B + …`, of which the terms `own` along the same axis are one matrix."""
    factors: list[AbstractFactor] = []
    for k, size in enumerate(sizes):
        parts = []
        for product, axis in zip(products, own, strict=True):
            if axis == k:
                scale = _scale(product)
                parts.append(scaled(product[k], scale).to_dense())
        zero = jnp.zeros((), products[0][0].dtype)
        factors.append(Dense(_added(parts)) if parts else ScaledIdentity(zero, size))
    return KroneckerSum(*factors)


def _grid_axes(tensor: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The fine axes of rows and of columns on every axis of the grid.

    Rows and columns that share a part, in any term, are on one axis.
    """
    last = len(tensor.groups)
    rows, columns = tensor.axes_of(last - 2), tensor.axes_of(last - 1)
    label = {axis: axis for axis in (*rows, *columns)}
    for part in (part for term in tensor.terms for part in term):
        own = [axis for axis in part.axes if axis in label]
        for axis in own[1:]:
            old, new = label[axis], label[own[0]]
            label = {a: new if b == old else b for a, b in label.items()}
    rows_of, columns_of = ([*map(label.__getitem__, each)] for each in (rows, columns))
    names = list(dict.fromkeys(rows_of))
    if names != list(dict.fromkeys(columns_of)):
        raise Unstructured("rows and columns that do not match")
    in_order = all(sorted(each, key=names.index) == each for each in (rows_of, columns_of))
    if not in_order:
        raise Unstructured("axes that are interleaved")
    return [
        (
            tuple(a for a in rows if label[a] == name),
            tuple(a for a in columns if label[a] == name),
        )
        for name in names
    ]


def _product(tensor: Tensor, term: Term, axes: Sequence[Any]) -> list[AbstractFactor]:
    """One factor per axis of the grid; parts that lie on none scale the first."""
    batch = [a for k in range(len(tensor.groups) - 2) for a in tensor.axes_of(k)]
    lead = tuple(tensor.sizes[a] for a in batch)
    on_grid = {axis for pair in axes for each in pair for axis in each}
    scalars = [part for part in term if not on_grid & set(part.axes)]
    factors = []
    for rows, columns in axes:
        own = [part for part in term if set(part.axes) & {*rows, *columns}]
        factors.append(_factor(own, batch, rows, columns, tensor))
    if scalars:
        scale = _over(scalars, batch, lead)
        first = factors[0]
        if isinstance(first, ScaledIdentity):
            factors[0] = ScaledIdentity(times(first.scale, scale), first.size)
        elif isinstance(first, Diagonal):
            factors[0] = Diagonal(times(first.values, _wide(scale, 1)))
        else:
            factors[0] = Dense(times(first.to_dense(), _wide(scale, 2)))
    dtype = tensor.dtype
    if lead:
        size = prod(lead)
        shaped = tuple(n for g in tensor.groups[:-2] for n in ((prod(g),) if g else (1,)))
        factors = [_reshaped(f, lead, shaped) for f in factors] if size else factors
    for factor in factors:
        if factor.dtype != dtype:
            raise Unstructured(f"factors of type {factor.dtype} in a product of type {dtype}")
    return factors


def _reshaped(factor: AbstractFactor, lead: tuple, batch: tuple) -> AbstractFactor:
    """A factor with the visible batch axes."""

    def one(array: Array) -> Array:
        return array.reshape(*batch, *array.shape[len(lead) :])

    if not factor.batch_shape:
        return factor
    if isinstance(factor, ScaledIdentity):
        return ScaledIdentity(one(factor.scale), factor.size)
    if isinstance(factor, Diagonal):
        return Diagonal(one(factor.values))
    return Dense(one(factor.to_dense()))


def _factor(
    own: list[Part], batch: list[int], rows: tuple, columns: tuple, tensor: Tensor
) -> AbstractFactor:
    sizes, dtype = tensor.sizes, tensor.dtype
    size = prod(sizes[a] for a in columns)
    ties = [part for part in own if part.array is None]
    arrays = [part for part in own if part.array is not None]
    batched = any(a in part.axes for part in arrays for a in batch)
    lead = batch if batched else []
    whole = (*(sizes[a] for a in lead), prod(sizes[a] for a in rows), size)
    tied = {frozenset(part.axes) for part in ties} == {
        frozenset(pair) for pair in zip(rows, columns, strict=False)
    } and len(rows) == len(columns)
    if tied and not arrays:
        return ScaledIdentity(jnp.ones((), dtype), size)
    if tied:
        # On the diagonal a column's index is that of its row.
        place = dict(zip(columns, rows, strict=True))
        arrays = [Part(p.array, tuple(place.get(a, a) for a in p.axes)) for p in arrays]
        values = _gathered(arrays, [*lead, *rows], sizes)
        return Diagonal(jnp.asarray(values, dtype).reshape(whole[:-1]))
    arrays += [Part(jnp.eye(sizes[p.axes[0]], dtype=dtype), p.axes) for p in ties]
    matrix = _gathered(arrays, [*lead, *rows, *columns], sizes)
    return Dense(jnp.asarray(matrix, dtype).reshape(whole))


def _gathered(arrays: list[Part], axes: list[int], sizes: Sequence[int]) -> Array:
    """The product of parts over all of these axes."""
    if len(arrays) == 1 and list(arrays[0].axes) == axes:
        return arrays[0].array
    have = {a for part in arrays for a in part.axes}
    array = einsum(arrays, [a for a in axes if a in have]).array
    array = array.reshape([sizes[a] if a in have else 1 for a in axes])
    return jnp.broadcast_to(array, [sizes[a] for a in axes])


def _over(scalars: list[Part], batch: list[int], lead: tuple[int, ...]) -> Array:
    if not any(part.axes for part in scalars):
        return multiplied([part.array for part in scalars])
    return _gathered(scalars, batch, dict(zip(batch, lead, strict=True)))  # type: ignore[arg-type]


def multiplied(scalars: Sequence[Any]) -> Array:
    """Numbers, or batches of them, multiplied."""
    total = jnp.asarray(scalars[0])
    for scalar in scalars[1:]:
        total = times(total, jnp.asarray(scalar))
    return total


def times(first: Array, second: Array) -> Array:
    """The product, entry by entry."""
    return jnp.multiply(*same_rank(first, second))


def _wide(scale: Array, axes: int) -> Array:
    """With axes behind those of its batch; one number needs none."""
    return scale.reshape(*scale.shape, *(1,) * axes) if scale.ndim else scale


def _scale(product: Sequence[AbstractFactor]) -> Array:
    """The numbers of all multiples of the identity in a product, multiplied."""
    return multiplied([f.scale for f in product if isinstance(f, ScaledIdentity)])


def _added(arrays: Sequence[Array]) -> Array:
    total = arrays[0]
    for array in arrays[1:]:
        total = jnp.add(*same_rank(total, array))
    return total


def _is_identity(product: Sequence[AbstractFactor]) -> bool:
    return all(isinstance(factor, ScaledIdentity) for factor in product)


def scaled(factor: AbstractFactor, scale: Array) -> AbstractFactor:
    """A multiple of a factor, which stays diagonal where it is."""
    if isinstance(factor, ScaledIdentity):
        return ScaledIdentity(times(factor.scale, scale), factor.size)
    if isinstance(factor, Diagonal):
        return Diagonal(times(factor.values, _wide(scale, 1)))
    return Dense(times(factor.to_dense(), _wide(scale, 2)))


def per_factor(tensor: Tensor, op: Kronecker, function: Callable[[Array], Array]) -> Tensor:
    """`⊗ function(K_i)` in the shape of a matrix that `op` was made of."""
    lead = tensor.shape[:-2]
    start = sum(len(group) for group in tensor.groups[:-2])
    batch = [a for k in range(len(tensor.groups) - 2) for a in tensor.axes_of(k)]
    sizes = op.grid_shape
    count = len(sizes)
    parts = []
    for k, factor in enumerate(op.factors):
        array = function(factor.to_dense())
        fine = tuple(tensor.sizes[a] for a in batch) if array.ndim > 2 else ()
        if array.ndim > 2:
            array = jnp.broadcast_to(array, (*lead, *array.shape[-2:]))
            array = array.reshape(*fine, *array.shape[-2:])
        own = (start + k, start + count + k)
        parts.append(Part(array, (*(batch if fine else ()), *own)))
    groups: Groups = (*tensor.groups[:-2], sizes, sizes)
    return Tensor(groups, (tuple(parts),), tensor.dtype)


def along(function: Callable[[Array], Array], op: Operator, b: Array, axes: Sequence[int]) -> Array:
    """A function of vectors on the grid of `op`, along the last of `axes`.

    The other axes are those of the batch of `op`; more may be anywhere.
    """
    places = range(-len(axes), 0)
    vectors = jnp.moveaxis(b, axes, places)
    result = function(vectors.reshape(*vectors.shape[:-1], *op.grid_shape))
    return jnp.moveaxis(result.reshape(vectors.shape), places, axes)


def solved_along(op: Operator, b: Array, axes: Sequence[int], transpose: bool = False) -> Array:
    """`op⁻¹ b` along the last of `axes`."""
    op = op.T if transpose else op
    if isinstance(op, GeneralSum):
        return along(partial(general_solve, op), op, b, axes)
    return along(partial(solve, op), op, b, axes)


def are_triangular(op: Kronecker, tensor: Tensor, triangle: str) -> bool:
    """Whether factors are known to be triangular, by how they were made or by their values."""
    if tensor.triangle == triangle:
        return True
    matrices = [f.matrix for f in op.factors if isinstance(f, Dense)]
    if not is_concrete(matrices):
        return False
    kept = np.tril if triangle == "lower" else np.triu
    return all(np.array_equal(kept(matrix), matrix) for matrix in map(np.asarray, matrices))


def triangular_of(op: Kronecker, tensor: Tensor, triangle: str) -> Kronecker:
    """The product of triangular factors that a tensor is; of a traced one that is not, NaN.

    Raises:
        Unstructured: if concrete factors are not triangular.
    """
    known = are_triangular(op, tensor, triangle)
    lower = triangle == "lower"

    def one(factor: AbstractFactor) -> AbstractFactor:
        if not isinstance(factor, Dense):
            return factor
        kept = jnp.tril(factor.matrix) if lower else jnp.triu(factor.matrix)
        if not known:
            holds = jnp.all(kept == factor.matrix, axis=(-2, -1))
            if is_concrete(holds):
                raise Unstructured("a factor that is not triangular")
            kept = where(holds[..., None, None], kept, jnp.nan)
        return LowerTriangular(kept, lower=lower)

    return Kronecker(*map(one, op.factors))


def cost_of(op: Operator) -> float:
    """Operations of a decomposition and a solve, in round numbers."""
    sizes = op.grid_shape
    return float(sum(10.0 * n**3 for n in sizes) + 4 * prod(sizes) * sum(sizes))


def describe(tensor: Tensor) -> str:
    """What it is, for people: `kron(30×30, 25×25) + c·I`."""
    try:
        axes = _grid_axes(tensor)
        products = [_sizes(tensor, term, axes) for term in tensor.terms]
    except Unstructured:
        return "a Kronecker product"
    return " + ".join(dict.fromkeys(products)) if len(products) > 1 else products[0]


def _sizes(tensor: Tensor, term: Term, axes: Sequence[Any]) -> str:
    if all(part.array is None or not part.axes for part in term):
        return "c·I"
    sizes = ["×".join(str(prod(tensor.sizes[a] for a in each)) for each in pair) for pair in axes]
    return f"kron({', '.join(sizes)})" if len(sizes) > 1 else f"a matrix {sizes[0]}"


def is_number(value: Any) -> bool:
    """Whether it is one number."""
    return np.size(value) == 1 if not hasattr(value, "shape") else prod(value.shape) == 1
