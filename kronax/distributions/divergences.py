"""Kullback-Leibler divergences, registered with NumPyro's `kl_divergence`."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions.kl import kl_divergence

from kronax.distributions.forms import AbstractForm
from kronax.distributions.normal import KroneckerNormal
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import noise_factors
from kronax.linalg.spectral.traces import trace_of_solve


@kl_divergence.register(KroneckerNormal, KroneckerNormal)
def kl_of_normals(p: KroneckerNormal, q: KroneckerNormal) -> Array:
    """`KL(p ‖ q)` in nats, exact: two log-determinants, a quadratic form, a trace per term of `p`.

    `O(N Σ n_i)` after one `eigh` per dense factor; no `N × N` array. Right to first order where `q`
    has noise, raises beyond.

    Raises:
        ValueError: if the two lie on different grids, or their batches do not broadcast.
        DerivativeOrderError: if it is differentiated twice and `q` has noise.
    """
    if (p.grid_shape, p.event_shape) != (q.grid_shape, q.event_shape):
        raise ValueError(
            "The KL divergence needs two distributions over one grid with events of one shape; got "
            f"grids {p.grid_shape} and {q.grid_shape}, events {p.event_shape} and {q.event_shape}. "
            "Give both the same axes in the same order, and the same `flatten`."
        )
    shape = jnp.broadcast_shapes(p._lead(), q._lead())
    logdets = jnp.subtract(*same_rank(q.form.logdet(), p.form.logdet()))
    shift = jnp.subtract(*same_rank(q.loc, p.loc))
    value = jnp.add(*same_rank(_divergence(p.form, q.form, shift), logdets / 2))
    return jnp.broadcast_to(value, shape)


@jax.jit
def _divergence(p: AbstractForm, q: AbstractForm, shift: Array) -> Array:
    """`½ [tr(S_q⁻¹ S_p) + shiftᵀ S_q⁻¹ shift − N]`."""
    inverses = q.inverse_factors()
    covariance = q.covariance()
    trace = jnp.zeros((), q.dtype)
    for term in _terms(p.covariance()):
        if isinstance(covariance, KroneckerPlusNoise):
            trace = jnp.add(*same_rank(trace, trace_of_solve(covariance, term)))
        else:
            assert inverses is not None
            pairs = zip(inverses, term, strict=True)
            traces: Any = [jnp.sum(jnp.multiply(*same_rank(k, a)), axis=(-2, -1)) for k, a in pairs]
            product: Any = prod(same_rank(*traces))
            trace = jnp.add(*same_rank(trace, product))
    trace, quadratic = same_rank(trace, q.inv_quad(shift))
    return 0.5 * (trace + quadratic - prod(q.grid_shape))


def _terms(covariance: Kronecker | KroneckerPlusNoise) -> list[list[Array]]:
    """The matrices of every Kronecker product that the covariance is a sum of."""
    signal = [f.to_dense() for f in covariance.factors]
    if isinstance(covariance, Kronecker):
        return [signal]
    return [signal, [f.to_dense() for f in noise_factors(covariance)]]
