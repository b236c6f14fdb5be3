"""A box of a grid, a few indices of every axis, read and written where its cells are.

On several devices each of them reads and writes what it has of the box, whose numbers are few, and
known to all.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.fibres import Fibrewise
from kronax.linalg.arrays.mode_products import left_product
from kronax.linalg.devices.partition import Part


def in_box(x: Array, box: Sequence[Array]) -> Array:
    """What columns `(…, *grid)` hold on the box, `(…, r)`."""
    return _read(None, x, *box, grids=(0,), results=(False,))[0]


def with_box(x: Array, box: Sequence[Array], values: Array) -> Array:
    """Columns `(…, *grid)` with other values on the box, `(…, r)`."""
    return _written(None, x, values, *box, grids=(0,))[0]


def outside_box(x: Array, box: Sequence[Array]) -> Array:
    """A grid array, zero on the box."""
    size = prod(len(chosen) for chosen in box)
    return with_box(x, box, jnp.zeros(size, x.dtype))


def times_on_box(matrix: Array, x: Array, box: Sequence[Array], *, transpose: bool) -> Array:
    """A matrix over the box, or its transpose, times columns `(…, *grid)`; elsewhere the identity.

    One program of a device, so that it sends what it has of the box and nothing of the product; no
    derivatives.
    """
    return _multiplied(None, matrix, x, *box, grids=(1,), transpose=transpose)[0]


def _places(part: Part, x: Array, box: Sequence[Array]) -> tuple[Array, Array, Any]:
    """Flat columns, where the box stands in them, `(r,)`, and which of its cells are there."""
    shape = x.shape[x.ndim - len(box) :]
    place: Any = None
    is_here: Any = None
    for axis, (chosen, size) in enumerate(zip(box, shape, strict=True), -len(shape)):
        own = chosen - part.start(axis, size)
        inside = (own >= 0) & (own < size)
        place = own if place is None else (place[:, None] * size + own[None]).ravel()
        is_here = inside if is_here is None else (is_here[:, None] & inside[None]).ravel()
    return x.reshape(-1, prod(shape)), place, None if part.is_whole else is_here


def _read_of(part: Part, x: Array, *box: Array) -> list[Array]:
    flat, place, is_here = _places(part, x, box)
    found = jnp.take(flat, place, axis=1, mode="clip")
    if is_here is not None:
        found = jnp.where(is_here[None], found, 0)
    return [found.reshape(*x.shape[: x.ndim - len(box)], -1)]


def _written_to(part: Part, x: Array, values: Array, *box: Array) -> list[Array]:
    flat, place, is_here = _places(part, x, box)
    known: Any = {"mode": "promise_in_bounds"}
    if is_here is not None:
        # What other devices hold is dropped, by places beyond the last that differ as others do.
        beyond = flat.shape[1] + jnp.arange(place.size, dtype=place.dtype)
        place, known = jnp.where(is_here, place, beyond), {"mode": "drop"}
    lead = x.shape[: x.ndim - len(box)]
    values = jnp.broadcast_to(values, (*lead, place.size)).reshape(-1, place.size)
    there = flat.at[:, place]
    moved = there.set(values, unique_indices=True, wrap_negative_indices=False, **known)
    return [moved.reshape(x.shape)]


def _times(part: Part, matrix: Array, x: Array, *box: Array, transpose: bool) -> list[Array]:
    held = part.total(_read_of(part, x, *box)[0])
    found = left_product(matrix, held.reshape(-1, held.shape[-1]).T, transpose=transpose)
    return _written_to(part, x, found.T.reshape(held.shape), *box)


_read = Fibrewise("kronax_in_box", _read_of)
_written = Fibrewise("kronax_with_box", _written_to)
_multiplied = Fibrewise("kronax_on_box", _times)
