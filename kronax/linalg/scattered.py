"""Products with `C = (c_1 ⊗ … ⊗ c_d)` row by row (Khatri–Rao): places scattered over a grid.

A scattered place has one row `c_i`, `(n_i,)`, per axis. Neither `C`, `(m, N)`, nor anything else of
that size is built: places are handled in chunks.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, NoReturn

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.diagonals import rotated_rows
from kronax.linalg.modes import HIGHEST, along
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.operators import AbstractSolvable
from kronax.linalg.rules import DerivativeOrderError, RulePrimitive
from kronax.linalg.spectral import spectrum

# What a chunk of places holds, in numbers.
CHUNK = 4_000_000
# Columns of a matrix that are handled at once.
MOST_COLUMNS = 16


def mv_rows(
    rows: Sequence[Float[Array, "m _"]], x: Float[Array, "*batch _"], chunk: int | None = None
) -> Float[Array, "*batch m"]:
    """`C x` for `x` on the grid; `2 m N` operations.

    The longest axis goes first, as one matrix product for a chunk of places; what it leaves,
    `N / n_max` numbers a place, is all that is held.
    """
    num_axes, num_places = len(rows), rows[0].shape[0]
    lead = x.ndim - num_axes
    order = sorted(range(num_axes), key=lambda i: rows[i].shape[1])
    x = jnp.transpose(x, (*range(lead), *(lead + i for i in order)))
    ordered = tuple(rows[i] for i in order)

    def one(place: tuple[Array, ...]) -> Array:
        value = x
        for row in reversed(place):
            value = jnp.einsum("...n,n->...", value, row, precision=HIGHEST)
        return value

    held = max(1, x.size // max(1, x.shape[-1]))
    batch_size = max(1, min(num_places, (chunk or CHUNK) // held))
    return jnp.moveaxis(lax.map(one, ordered, batch_size=batch_size), 0, -1)


def inverse_at(
    op: KroneckerPlusNoise | AbstractSolvable,
    *products: Sequence[Float[Array, "m _"]],
    joint: bool,
) -> Float[Array, "..."]:
    """`C op⁻¹ Cᵀ`, `(m, m)`, or its diagonal `(m,)`; `2 m N` operations per column.

    `C` is the sum of one or more products of rows. Values only: differentiating raises.
    """
    if isinstance(op, AbstractSolvable):
        (rows,) = products
        return op.inverse_at(rows, joint=joint)
    signal, noise = op.blocks()
    return _inverse_at((signal, noise, tuple(map(tuple, products))), op.eigenbases(), joint=joint)


def _inverse_at_value(operands, bases, *, joint):
    rotated: list[Any] = [
        [rotated_rows(row, basis) for row, basis in zip(rows, bases, strict=True)]
        for rows in operands[2]
    ]
    inverse = 1 / spectrum(bases)
    if not joint:
        pairs = combinations_with_replacement(range(len(rotated)), 2)
        return sum(
            (1 if a == b else 2)
            * mv_rows([u * v for u, v in zip(rotated[a], rotated[b], strict=True)], inverse)
            for a, b in pairs
        )

    def column(place: tuple[tuple[Array, ...], ...]) -> Array:
        weighted = jnp.zeros_like(inverse)
        for rows in place:
            part = inverse
            for i, row in enumerate(rows):
                part = part * along(row, i - len(rows), len(rows))
            weighted = weighted + part
        first, *rest = (mv_rows(rows, weighted, CHUNK // batch_size) for rows in rotated)
        return sum(rest, first)

    batch_size = max(1, min(rotated[0][0].shape[0], CHUNK // inverse.size, MOST_COLUMNS))
    return lax.map(column, tuple(map(tuple, rotated)), batch_size=batch_size)


def _refuse(operands, constants, tangents, **static) -> NoReturn:
    raise DerivativeOrderError(
        "Variances and covariances at scattered places have values only. On a grid they can be "
        "differentiated once (pass `axes=`); the mean can be at scattered places too."
    )


_inverse_at = RulePrimitive("kronax_inverse_at", _inverse_at_value, _refuse)
