"""Whole slices across a Markov axis, each given all others, in time linear in that axis.

The cells `a` of one place of another axis given those of all other places have the covariance
`C_a = S_aa − S_ab S_bb⁻¹ S_ba`, and `log det C_a = log det S − log det S_bb`. `S_bb` is of the same
kind with one place less: a few modes less to filter.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.markov.lanes import KalmanLanes
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import Places


def has_places(op: KroneckerPlusNoise, axis: int) -> bool:
    """Whether the noise of the places of an axis, of which there are some, is independent."""
    noise: Any = op.noise.factors[axis] if isinstance(op.noise, Kronecker) else None
    return op.grid_shape[axis] > 1 and isinstance(noise, Diagonal | ScaledIdentity | None)


def places_given_others(
    op: KroneckerPlusNoise, axis: int, data: Array
) -> tuple[Array, Array, Array]:
    """`x_a − E[x_a | x_b]` of data `x`, the diagonals of all `C_a`, and `log det C_a`.

    Values, held constant, without a batch; `O(N d³)` operations for every place.

    Args:
        op: with a Markov axis, and noise that is independent on `axis`.
        axis: another one, whose places are left out one by one.
        data: `(*fields, n_1, …, n_d)`.
    """
    op, data = lax.stop_gradient((op, data))
    size, places = op.grid_shape[axis], axis - len(op.grid_shape)
    matrix, whole = op.factors[axis].to_dense(), KalmanLanes(op).logdet()
    own: Any = op.noise.factors[axis].diagonal() if isinstance(op.noise, Kronecker) else None

    def one(a: Array) -> tuple[Array, Array, Array]:
        rest = jnp.arange(size - 1, dtype=a.dtype)
        rest = rest + (rest >= a).astype(a.dtype)
        inner = _with_axis(op, axis, matrix[rest][:, rest], None if own is None else own[rest])
        found, row = KalmanLanes(inner), matrix[a][rest][None]
        weights = found.solve(jnp.take(data, rest, axis=places))
        cross = [Dense(row) if i == axis else f for i, f in enumerate(op.factors)]
        known = jnp.squeeze(Kronecker(*cross).mv_grid(weights), places)
        new = [
            Places(row, matrix[a, a][None]) if i == axis else Places(None)
            for i in range(len(op.factors))
        ]
        variance = jnp.squeeze(found.variance_given(new), places)
        return jnp.take(data, a, axis=places) - known, variance, whole - found.logdet()

    error, variance, log_det = lax.map(one, jnp.arange(size))
    noise = op.noise.diagonal() if isinstance(op.noise, Kronecker) else op.noise
    return jnp.moveaxis(error, 0, places), jnp.moveaxis(variance, 0, places) + noise, log_det


def _with_axis(
    op: KroneckerPlusNoise, axis: int, signal: Array, noise: Array | None
) -> KroneckerPlusNoise:
    """The operator with another matrix, and other variances of the noise, on one axis."""

    def other(factors: Any, own: AbstractFactor) -> Kronecker:
        return Kronecker(*(own if i == axis else f for i, f in enumerate(factors)))

    kronecker, own = other(op.factors, Dense(signal)), op.noise
    if noise is None or not isinstance(own, Kronecker):
        return KroneckerPlusNoise(kronecker, own)
    return KroneckerPlusNoise(kronecker, other(own.factors, Diagonal(noise)))
