"""What a decomposition was made of: a number per parameter that no edit of the parameters leaves.

A pytree with other values in some leaves keeps the rest, a decomposition included. So that one
never serves for other factors, an operator that carries one also carries a checksum of the bits of
every array of its factors. It is compared where the decomposition is used, also where that is
traced: unless the very arrays are there that it was made of, as in the function that conditions.
"""

import weakref
from functools import partial
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.host import is_spread, numbers, on_device
from kronax.linalg.arrays.precision import where

# Odd numbers without a pattern (those of Murmur3's final mix, and 2³² over the golden ratio).
SPREAD, FIRST, SECOND = (np.uint32(n) for n in (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35))

# Which array a checksum is of, by the identity of both.
_MADE: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}

STALE = (
    "The decomposition that this operator carries was made of other factors, or of another noise: "
    "its leaves have been replaced since (eqx.tree_at, jax.tree.map, a cast to another precision, "
    "an optimiser's step). Make a new operator, or decompose this one again: kx.decompose(op) "
    "after a change, not before."
)


def fingerprint(op: Any) -> tuple[Array, ...]:
    """A checksum of every array that the decomposition of an operator depends on, `(*batch,)`."""
    return _made(_sources(op))


def is_known(op: Any) -> bool:
    """Whether the arrays of a decomposed operator are those of its fingerprint, seen without it."""
    return _are_own(_sources(op), op.made_of)


def fingerprint_of_tree(tree: Any, is_void: Any = False) -> tuple[Array, ...]:
    """A checksum of every floating-point array of a pytree.

    It is NaN, and so that of no tree, where something traced says that nothing was made of it.
    """
    found = _made(_leaves(tree))
    if is_concrete(is_void):
        return found
    return tuple(where(is_void, jnp.nan, x).astype(x.dtype) for x in found)


def held(op: Any, decomposition: Any) -> Any:
    """The decomposition that an operator carries; NaN, if traced, where it belongs to another.

    Raises:
        ValueError: if it belongs to another operator, on concrete values.
    """
    if decomposition is None or op.made_of is None:
        return decomposition
    return _own(decomposition, _sources(op), op.made_of, STALE)


def made_of_tree(result: Any, tree: Any, made_of: tuple[Array, ...] | None, refusal: str) -> Any:
    """What was made of a pytree; NaN, if traced, where that is another now.

    Raises:
        ValueError: if it is another, on concrete values.
    """
    return result if made_of is None else _own(result, _leaves(tree), made_of, refusal)


def _made(sources: list[tuple[Array, int]]) -> tuple[Array, ...]:
    found = tuple(map(on_device, _checksums(sources)))
    for checksum, (leaf, _) in zip(found, sources, strict=True):
        _remember(checksum, leaf)
    return found


def _remember(checksum: Array, leaf: Any) -> None:
    if not isinstance(leaf, jax.Array):  # NumPy's may change
        return
    key = id(checksum)
    gone = weakref.ref(checksum, lambda _: _MADE.pop(key, None))
    _MADE[key] = gone, weakref.ref(leaf)


def _are_own(sources: list[tuple[Array, int]], made_of: tuple[Array, ...]) -> bool:
    """Whether checksums are known to be of these very arrays."""

    def is_of(checksum: Array, leaf: Array) -> bool:
        pair = _MADE.get(id(checksum))
        return pair is not None and pair[0]() is checksum and pair[1]() is leaf

    return all(is_of(old, leaf) for old, (leaf, _) in zip(made_of, sources, strict=True))


def _own(
    result: Any, sources: list[tuple[Array, int]], made_of: tuple[Array, ...], refusal: str
) -> Any:
    if not is_concrete((sources, made_of)) and _are_own(sources, made_of):
        return result
    pairs = list(zip(_checksums(sources), made_of, strict=True))
    if is_concrete(pairs):
        if not all(np.array_equal(new, np.asarray(old)) for new, old in pairs):
            raise ValueError(refusal)
        return result
    is_own = jnp.all(jnp.stack([jnp.all(new == old) for new, old in pairs]))
    result = raising_if(lambda: ~is_own, result, refusal)
    return jax.tree.map(
        lambda x: where(is_own, x, jnp.nan) if eqx.is_inexact_array(x) else x, result
    )


def _checksums(sources: list[tuple[Array, int]]) -> list[Any]:
    # On the host where there are values: nothing is compiled for it.
    if not is_concrete(sources):
        return [_checksum(jnp.asarray(leaf), ndim, jnp) for leaf, ndim in sources]
    return [
        numbers(_on_devices(leaf, ndim))
        if is_spread(leaf)
        else _checksum(np.asarray(leaf), ndim, np)
        for leaf, ndim in sources
    ]


def _on_devices(array: Array, ndim: int) -> Array:
    with jax.ensure_compile_time_eval():
        return jax.jit(partial(_checksum, ndim=ndim, xp=jnp))(array)


def _leaves(tree: Any) -> list[tuple[Array, int]]:
    return [(leaf, leaf.ndim) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]


def _sources(op: Any) -> list[tuple[Array, int]]:
    """The floating-point arrays of factors and noise, with their numbers of axes but a batch."""
    op = getattr(op, "op", op)  # that of a Masked
    factors, noise = op.factors, getattr(op, "noise", None)
    pairs: list[tuple[Any, int]] = []
    if hasattr(op, "variances"):
        pairs.append((op.variances, op.variances.ndim))
    elif isinstance(noise, jax.Array | np.ndarray):
        pairs.append((noise, 0))
    elif noise is not None:
        factors = (*factors, *noise.factors)
    for factor in factors:
        leaves, ndims = jax.tree.leaves(factor), jax.tree.leaves(factor.event_ndims())
        pairs += zip(leaves, ndims, strict=True)
    return [(leaf, ndim) for leaf, ndim in pairs if eqx.is_inexact_array(leaf)]


def _checksum(array: Any, ndim: int, xp: Any) -> Any:
    """Of the bits of the last `ndim` axes, as a floating-point number like those of the array."""
    batch = array.shape[: array.ndim - ndim]
    # −0 is 0, and so is a subnormal number, which compiled programs take for zero.
    is_zero = xp.abs(array) < xp.finfo(array.dtype).tiny
    array = xp.where(is_zero, xp.zeros_like(array), array)
    words = _words(array, xp)
    places = _places(words.shape[len(batch) :], xp) * SPREAD
    mixed = (words ^ places.reshape((1,) * len(batch) + places.shape)) * FIRST
    mixed = (mixed ^ (mixed >> np.uint32(15))) * SECOND
    own = tuple(range(len(batch), words.ndim))
    total = xp.sum(mixed ^ (mixed >> np.uint32(13)), axis=own, dtype=np.uint32)
    # As many bits as a number of this precision holds exactly.
    return (total >> np.uint32(8 if array.dtype.itemsize >= 4 else 24)).astype(array.dtype)


def _places(shape: tuple[int, ...], xp: Any) -> Any:
    """`0, 1, …` in C order; not as a row, which could not be shared out over devices as a grid."""
    total = xp.zeros((1,) * len(shape), np.uint32)
    for axis, size in enumerate(shape):
        step = xp.arange(size, dtype=np.uint32) * np.uint32(prod(shape[axis + 1 :]))
        total = total + step.reshape((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
    return total


def _words(array: Any, xp: Any) -> Any:
    """The bits as 32-bit words, the lower half first."""
    word = np.uint32 if array.dtype.itemsize >= 4 else np.uint16
    words: Any
    if xp is np:
        words = np.ascontiguousarray(array)[..., None].view(word)
    else:
        words = jax.lax.bitcast_convert_type(array, word)
    return words.astype(np.uint32)
