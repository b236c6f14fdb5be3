"""Rules of single primitives on tensors: what keeps the structure of a Kronecker product."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from kronax.linalg.arrays.checks import is_concrete
from kronax.rewriting.interpreter import Deferred, Equation, Run, is_number, settled
from kronax.rewriting.masks import MASK_RULES, is_identity, summed_mask
from kronax.rewriting.roots import (
    asked,
    deferred_times,
    summed,
    whitened_arithmetic,
    whitened_moved,
    whitened_product,
)
from kronax.rewriting.values.algebra import add, apart, contract, multiply
from kronax.rewriting.values.covariances import covariance_of
from kronax.rewriting.values.matrices import describe
from kronax.rewriting.values.meanings import (
    Index,
    Inverse,
    Masked,
    Root,
    RootDiagonal,
    TriangleMask,
    Whitened,
)
from kronax.rewriting.values.tensors import LARGE, Tensor, Unstructured, lift

# Asked also where no value has structure yet: products begin here.
STARTERS = frozenset({"iota", "broadcast_in_dim", "dot_general", "cond", "scan", "while"})


def _broadcast_in_dim(run: Run, eqn: Any, value: Any, *dynamic: Any) -> Any:
    shape, dimensions = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if dynamic:
        return None
    if isinstance(value, Deferred):
        if isinstance(value.meaning, Whitened):
            return whitened_moved(eqn, value, lambda axis: dimensions[axis])
        return _repeated(eqn, value, tuple(dimensions))
    tensor = value if isinstance(value, Tensor) else lift(value)
    return [tensor.broadcast(shape, dimensions)]


def _repeated(eqn: Any, value: Deferred, dimensions: tuple[int, ...]) -> Any:
    """What has a meaning in its last axes, with others in front."""
    ahead = len(_shape(eqn)) - len(value.shape)
    own = 2 - isinstance(value.meaning, RootDiagonal)
    if ahead < 0 or dimensions != tuple(range(ahead, ahead + len(value.shape))):
        return None
    if _shape(eqn)[-own:] != value.shape[-own:]:
        return None
    if not isinstance(value.meaning, TriangleMask | Root | RootDiagonal | Inverse):
        return None
    return [Deferred(Equation(eqn, [value]), value.meaning)]


def _squeeze(run: Run, eqn: Any, value: Any) -> Any:
    gone = eqn.params["dimensions"]
    if isinstance(value, Tensor):
        return [value.reshape(_shape(eqn))]
    if isinstance(value.meaning, Whitened):
        return whitened_moved(eqn, value, lambda axis: axis - sum(d < axis for d in gone))
    return _same_matrix(eqn, value)


def _same_matrix(eqn: Any, value: Deferred) -> Any:
    """What has a meaning in its last axes, of which the batch is reshaped."""
    shape, meaning = _shape(eqn), value.meaning
    if shape[-2:] != value.shape[-2:]:
        return None
    ahead = len(shape) - len(value.shape)
    if ahead >= 0 and shape == (*(1,) * ahead, *value.shape):
        return _repeated(eqn, value, tuple(range(ahead, len(shape))))
    if not isinstance(meaning, Root):
        return None
    matrix = meaning.matrix
    places = range(len(value.shape) - len(matrix.groups), len(value.shape))
    return [_root_of(eqn, value, meaning, matrix.broadcast(value.shape, places).reshape(shape))]


def _reshaped(eqn: Any, value: Any, axis: int) -> int:
    old, new = value.shape, eqn.params["new_sizes"]
    for k, size in enumerate(new):
        if size == old[axis] and prod(new[:k]) == prod(old[:axis]):
            return k
    raise Unstructured("vectors that are cut")


def _transpose(run: Run, eqn: Any, value: Any) -> Any:
    permutation = eqn.params["permutation"]
    if isinstance(value, Tensor):
        return [value.transpose(permutation)]
    meaning, rank = value.meaning, len(permutation)
    swaps = tuple(permutation) == (*range(rank - 2), rank - 1, rank - 2)
    if isinstance(meaning, Root) and swaps:
        return [Deferred(Equation(eqn, [value]), meaning.transpose())]
    if isinstance(meaning, Inverse) and swaps:
        return [Deferred(Equation(eqn, [value]), meaning.transpose())]
    return whitened_moved(eqn, value, permutation.index)


def _rev(run: Run, eqn: Any, value: Any) -> Any:
    dimensions, rank = eqn.params["dimensions"], len(_shape(eqn))
    if isinstance(value, Tensor):
        return [value.reverse(dimensions)] if value.has_structure else None
    meaning = value.meaning
    if not isinstance(meaning, Root) or {*dimensions} != {rank - 2, rank - 1}:
        return None
    turned = meaning.matrix.reverse([len(meaning.matrix.groups) - k for k in (2, 1)])
    triangle = "upper" if meaning.triangle == "lower" else "lower"
    root = replace(meaning, triangle=triangle)
    return [_root_of(eqn, value, root, turned)]


def _root_of(eqn: Any, value: Deferred, root: Root, matrix: Tensor) -> Deferred:
    """The same root of the matrix in another shape."""
    op, matrix = asked(covariance_of, matrix)
    return Deferred(Equation(eqn, [value]), replace(root, op=op, matrix=matrix))


def _same(run: Run, eqn: Any, value: Any) -> Any:
    return [value]


def _stop_gradient(run: Run, eqn: Any, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    terms = tuple(
        tuple(
            part if part.array is None else type(part)(lax.stop_gradient(part.array), part.axes)
            for part in term
        )
        for term in value.terms
    )
    return [Tensor(value.groups, terms, value.dtype, value.triangle)]


def _convert(run: Run, eqn: Any, value: Any) -> Any:
    dtype = eqn.params["new_dtype"]
    if not isinstance(value, Tensor):
        return None
    if dtype == value.dtype:
        return [value]
    pure = all(part.array is None for term in value.terms for part in term)
    floats = jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating)
    return [value.cast(dtype)] if pure or floats else None


def _negative(run: Run, eqn: Any, value: Any) -> Any:
    if isinstance(value, Deferred):
        return whitened_arithmetic(run, eqn, value)
    if not (value.has_structure or value.is_apart):
        return None
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    return [value.scaled(np.asarray(-1, value.dtype))]


def _number(value: Any) -> Any:
    """A scalar that multiplies every entry, if a value is one."""
    if not isinstance(value, Tensor):
        return jnp.reshape(value, ()) if is_number(value) else None
    if any(p.axes or p.array is None for t in value.terms for p in t) or len(value.terms) > 1:
        return None
    return (
        Tensor((), value.terms, value.dtype).dense
        if len(value.terms[0]) > 1
        else (value.terms[0][0].array)
    )


def _mul(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    dtype = eqn.outvars[0].aval.dtype
    deferred = [v for v in (first, second) if isinstance(v, Deferred)]
    if deferred:
        return _mul_deferred(run, eqn, first, second)
    if not any(isinstance(v, Tensor) for v in (first, second)):
        return None
    for tensor, other in ((first, second), (second, first)):
        number = _number(other)
        if isinstance(tensor, Tensor) and number is not None and tensor.shape == _shape(eqn):
            return [tensor.scaled(number)]
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return [multiply(first, second, dtype)]
    tensor, other = (first, second) if isinstance(first, Tensor) else (second, first)
    thin = sum(n != 1 for n in jnp.shape(other)) < 2
    if tensor.has_structure and (thin or not tensor.is_product):
        return [multiply(tensor, lift(other), dtype)]
    return None


def _mul_deferred(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    for value, other in ((first, second), (second, first)):
        if not isinstance(value, Deferred):
            continue
        if isinstance(value.meaning, Root | Inverse) and is_identity(other):
            return [Deferred(Equation(eqn, [first, second]), Masked(value.meaning))]
    return whitened_arithmetic(run, eqn, first, second)


def _shape(eqn: Any) -> tuple[int, ...]:
    return eqn.outvars[0].aval.shape


def _div(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    if isinstance(first, Deferred):
        return whitened_arithmetic(run, eqn, first, second)
    number = _number(second)
    if not isinstance(first, Tensor) or not first.has_structure or number is None:
        return None
    if not jnp.issubdtype(first.dtype, jnp.inexact):  # integers are divided with a remainder
        return None
    return [first.scaled(1 / number)] if first.shape == _shape(eqn) else None


def _add(sign: int) -> Callable[..., Any]:
    def rule(run: Run, eqn: Any, first: Any, second: Any) -> Any:
        dtype = eqn.outvars[0].aval.dtype
        if isinstance(first, Deferred) or isinstance(second, Deferred):
            if isinstance(first, Deferred) and isinstance(first.meaning, Index):
                if is_concrete(second) and is_number(second):
                    shift = sign * int(np.asarray(second).item())
                    return [Deferred(Equation(eqn, [first, second]), first.meaning.moved(shift))]
                return None
            return whitened_arithmetic(run, eqn, first, second)
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return None
        if not all(t.has_structure or t.is_apart for t in (first, second)):
            return None
        if not jnp.issubdtype(dtype, jnp.floating):
            return None
        return [add(first, second if sign > 0 else second.scaled(np.asarray(-1, dtype)), dtype)]

    return rule


def _reduce_sum(run: Run, eqn: Any, value: Any) -> Any:
    axes = tuple(eqn.params["axes"])
    if isinstance(value, Deferred):
        if isinstance(value.meaning, Masked):
            return summed_mask(run, eqn, value, axes)
        return summed(run, eqn, value, axes)
    if not axes:
        return [value]
    if not (value.has_structure or value.is_apart):
        return None
    kept = [k for k in range(len(value.groups)) if k not in axes]
    result = settled(contract([(value, range(len(value.groups)))], kept))
    if value.is_product:
        cost = prod(value.shape)
        run.log.note(run.here, describe(value), "factor by factor", cost, sum(value.sizes))
    return [result]


def _pad(run: Run, eqn: Any, value: Any, fill: Any) -> Any:
    return [value] if not any(any(each) for each in eqn.params["padding_config"]) else None


class _Labels(NamedTuple):
    left: list[Any]
    right: list[Any]
    result: list[Any]


def _labels(eqn: Any, first: Any, second: Any) -> _Labels:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left: list[Any] = [("l", k) for k in range(len(first.shape))]
    right: list[Any] = [("r", k) for k in range(len(second.shape))]
    for i, j in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        right[j] = left[i]
    free_left = [a for k, a in enumerate(left) if k not in (*left_sum, *left_batch)]
    free_right = [a for k, a in enumerate(right) if k not in (*right_sum, *right_batch)]
    return _Labels(left, right, [*(left[k] for k in left_batch), *free_left, *free_right])


def _dot_general(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    deferred = [v.meaning if isinstance(v, Deferred) else None for v in (first, second)]
    if all(isinstance(m, Whitened) for m in deferred):
        return whitened_product(run, eqn, first, second)
    if any(deferred):
        return deferred_times(run, eqn, first, second)
    tensors = [v if isinstance(v, Tensor) else lift(v) for v in (first, second)]
    labels = _labels(eqn, *tensors)
    begins = not set(labels.left) & set(labels.right) and min(len(t.groups) for t in tensors) > 1
    if not (begins or any(t.has_structure or t.is_apart for t in tensors)):
        return _apart(eqn, tensors, labels)
    options = {"precision": eqn.params["precision"]}
    pairs = [(tensors[0], labels.left), (tensors[1], labels.right)]
    result = contract(pairs, labels.result, **options)
    products = [t for t in tensors if t.is_product]
    if products:
        sizes = prod(_shape(eqn)) * prod(products[0].shape[-1:])
        fine = sum(products[0].sizes) * prod(products[0].shape) ** 0.5
        other = prod(_shape(eqn)) / products[0].shape[0]
        found = " @ ".join(describe(t) for t in products)
        run.log.note(run.here, found, "axis by axis", 2.0 * sizes, fine * other)
    # Of an outer product the parts are kept: its axes may be merged yet.
    return [result if begins else settled(result)]


def _reshape(run: Run, eqn: Any, value: Any, *dynamic: Any) -> Any:
    if dynamic or eqn.params["dimensions"] is not None:
        return None
    if not isinstance(value, Tensor):
        if not isinstance(value.meaning, Whitened):
            return _same_matrix(eqn, value)
        return whitened_moved(eqn, value, lambda axis: _reshaped(eqn, value, axis))
    result = value.reshape(eqn.params["new_sizes"])
    if result.is_product and not value.is_product:
        run.log.note(run.here, describe(result), "kept as its factors", 0.0, 0.0)
    return [result]


def _apart(eqn: Any, tensors: list[Tensor], labels: _Labels) -> Any:
    """A large product of thin arrays, as gradients have: what is done with it may need no array."""
    dtype, entries = eqn.outvars[0].aval.dtype, sum(prod(t.shape) for t in tensors)
    batch = eqn.params["dimension_numbers"][1][0]
    plain = all(len(t.terms) == 1 and not t.sums for t in tensors)
    if batch or not plain or not jnp.issubdtype(dtype, jnp.floating):
        return None
    if prod(_shape(eqn)) <= LARGE * entries:
        return None
    pairs = [(tensors[0], labels.left), (tensors[1], labels.right)]
    whole = apart(pairs, labels.result, dtype)
    return [Deferred(Equation(eqn, [t.dense for t in tensors]), whole)]


TENSOR_RULES: dict[str, Any] = {
    **MASK_RULES,
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "rev": _rev,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "copy": _same,
    "copy_p": _same,
    "stop_gradient": _stop_gradient,
    "convert_element_type": _convert,
    "neg": _negative,
    "mul": _mul,
    "div": _div,
    "add": _add(1),
    "add_any": _add(1),
    "sub": _add(-1),
    "reduce_sum": _reduce_sum,
    "pad": _pad,
    "dot_general": _dot_general,
}
