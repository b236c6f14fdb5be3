"""Products with `C = (c_1 ⊗ … ⊗ c_d)` row by row (Khatri–Rao): places scattered over a grid.

A scattered place has one row `c_i`, `(n_i,)`, per axis. Neither `C`, `(m, N)`, nor anything else of
that size is built: places are handled in chunks.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import HIGHEST, matmul, outer
from kronax.linalg.arrays.primitives import DerivativeOrderError, RulePrimitive
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import (
    AxisModes,
    Places,
    lifted,
    new_shares,
    noise_shares,
    over_axes,
    swapped,
    unexplained,
)

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


def variance_at(op: KroneckerPlusNoise, *parts: Sequence[Places]) -> Float[Array, " m"]:
    """The variances of places given data, `2 m N` operations; differentiating raises.

    Args:
        op: the covariance of the data, without a batch.
        parts: what is known of the places: of the signal, or of the signal and of the term that
            stands where the noise does, of which the function is the sum.
    """
    held = [list(part) for part in parts]
    return _values_only((op, held), over_axes(op, _variances, *held))


def covariance_at(
    op: KroneckerPlusNoise, *parts: tuple[Sequence[Places], Sequence[Array]]
) -> Float[Array, "m m"]:
    """The covariance of places given data, `2 m² N` operations; differentiating raises.

    Args:
        op: the covariance of the data, without a batch.
        parts: as in `variance_at`, each with the prior covariances of the places on every axis.
    """
    held = [list(part) for part, _ in parts]
    priors = lax.stop_gradient([list(prior) for _, prior in parts])

    def one(axes: list[AxisModes], *parts: list[Places]) -> Array:
        return _covariances(axes, parts, priors)

    return _values_only((op, held), over_axes(op, one, *held))


def _turned(axes: list[AxisModes], parts: Any) -> tuple[list[AxisModes], list[list[Array]]]:
    """The axes with small eigenvalues raised, and the rows of every part in their bases."""
    for _ in parts:  # once more for the term in place of the noise
        axes = [swapped(lifted(axis)) for axis in axes]
    if len(parts) == 1:
        axes = list(map(swapped, axes))
    rows = [
        [axis.right(place.rows) for axis, place in zip(axes, part, strict=True)] for part in parts
    ]
    return axes, rows


def _values(axes: list[AxisModes]) -> list[list[Array]]:
    """The eigenvalues of the signal, and of the noise."""
    return [[a.basis.values for a in axes], [a.basis.noise_values for a in axes]]


def _variances(axes: list[AxisModes], *parts: list[Places]) -> Array:
    axes, turned = _turned(axes, parts)
    total: Any = 0
    for part, rows, values in zip(parts, turned, _values(axes), strict=False):
        priors: list[Any] = [place.prior for place in part]
        shares = list(map(new_shares, rows, priors, values))
        total = total + unexplained(shares, scattered=True)
    if len(parts) == 1:
        return total + mv_rows([share.modes for share in shares], noise_shares(axes))
    weights = _weights(axes)

    def one(place: Any) -> Array:
        return jnp.sum(jnp.square(_difference(place)) * weights)

    ratios = _ratios(axes, turned)
    chunk = max(1, min(turned[0][0].shape[0], CHUNK // weights.size))
    return total + lax.map(one, ratios, batch_size=chunk)


def _weights(axes: list[AxisModes]) -> Array:
    """`λ μ / D`."""
    return outer([a.basis.values for a in axes]) * noise_shares(axes)


def _ratios(axes: list[AxisModes], turned: list[list[Array]]) -> list[list[Array]]:
    """`Wᵀk / λ` for the signal, and `Wᵀk / μ` for the term in place of the noise."""
    return [
        [row / v[None] for row, v in zip(rows, values, strict=True)]
        for rows, values in zip(turned, _values(axes), strict=False)
    ]


def _difference(place: list[list[Array]]) -> Array:
    """What the signal and the other term of one place differ by, per eigenvector.

    `a²/λ + b²/μ − (a + b)²/(λ + μ)` is `(a/λ − b/μ)² λ μ / D`.
    """
    first, *rest = map(outer, place)
    return first - rest[0] if rest else first


def _covariances(
    axes: list[AxisModes], parts: Sequence[list[Places]], priors: list[list[Array]]
) -> Array:
    axes, turned = _turned(axes, parts)
    ratios, weights = _ratios(axes, turned), _weights(axes)
    total: Any = 0
    for known, rows, ratio in zip(priors, turned, ratios, strict=True):
        left, explained = jnp.zeros((), weights.dtype), jnp.ones((), weights.dtype)
        for prior, row, other in zip(known, rows, ratio, strict=True):
            found = matmul(row, other.T)
            left = left * prior + explained * (prior - found)
            explained = explained * found
        total = total + left
    batch_size = max(1, min(turned[0][0].shape[0], CHUNK // weights.size, MOST_COLUMNS))

    def column(place: Any) -> Array:
        weighted = weights * _difference(place)
        first, *rest = (mv_rows(rows, weighted, CHUNK // batch_size) for rows in ratios)
        return first - rest[0] if rest else first

    found = total + lax.map(column, ratios, batch_size=batch_size)
    return (found + found.T) / 2


def _refuse(operands, constants, tangents, **static) -> NoReturn:
    raise DerivativeOrderError(
        "Variances and covariances at scattered places have values only. On a grid they can be "
        "differentiated once (pass `axes=`); the mean can be at scattered places too."
    )


_values_only = RulePrimitive("kronax_at_places", lambda operands, found: found, _refuse)
