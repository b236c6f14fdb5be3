"""The approximate evidence of a process with a likelihood, and its gradient.

*Variational*: `ELBO = log N(z; m, K + 1/W) + Σ_c E_q[log p(y|f) − log N(z; f, 1/W)]`, a lower
bound, is stationary in the sites, so that its derivative in the parameters is that with `z`, `W`
and `q` held fixed. *Laplace*: the same with `log p(y|f) − log N(z; f, 1/W)` at the mode `f`, which
moves with the parameters: one Newton step from the mode found has the mode's derivative.
"""

from math import log, pi
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.gp.model import marginal_likelihood
from kronax.gp.model.process import AbstractProcess
from kronax.gp.posterior import predict
from kronax.gp.sites.search import Hint, expected_log_density, filled, find, no_hint, site_of
from kronax.gp.sites.sites import Sites, gaussian, given
from kronax.linalg.arrays.primitives import once_differentiable


def evidence(gp: AbstractProcess, y: Array) -> Array:
    """The log evidence of checked data, one number per entry of a leading batch.

    NaN where the search for the sites does not converge.
    """
    return evidence_from(gp, y, first_hints(gp, y.shape))[0]


def first_hints(gp: AbstractProcess, shape: tuple[int, ...]) -> Hint:
    """Nothing to start from, for data of a shape."""
    return no_hint(shape, gp.dtype)


def evidence_from(gp: AbstractProcess, y: Array, hints: Hint) -> tuple[Array, Hint]:
    """The same by a search that starts from another one's end, and the end of this one."""
    values, rest = eqx.partition(gp, eqx.is_inexact_array)
    values = jax.tree.map(once_differentiable, values)
    return _evidence_from(eqx.combine(values, rest), y, hints)


@eqx.filter_jit
def _evidence_from(gp: AbstractProcess, y: Array, hints: Hint) -> tuple[Array, Hint]:
    lead = y.shape[: y.ndim - len(gp.axes)]
    if not lead:
        return _of_one(gp, y, hints)
    flat = jax.tree.map(lambda x: x.reshape(-1, *gp.grid_shape), (y, hints))
    values, found = lax.map(lambda one: _of_one(gp, *one), flat)
    return values.reshape(lead), jax.tree.map(lambda x: x.reshape(y.shape), found)


def _of_one(gp: AbstractProcess, y: Array, hint: Hint) -> tuple[Array, Hint]:
    y = filled(gp, y)
    sites, found = find(gp, y, hint)
    return jnp.where(sites.converged, evidence_at(gp, y, sites), jnp.nan), found


def evidence_at(gp: AbstractProcess, y: Array, sites: Sites) -> Array:
    """The evidence at given sites, right to first order in the parameters."""
    sites = lax.stop_gradient(sites)
    if gp.approximation == "variational":
        marginals: Any = (sites.mean, sites.variance)
        target, precision = sites.target, sites.precision
    else:
        post = given(gp, sites.target, sites.precision)
        mode = predict.mean(post, (None,) * len(gp.axes))
        prior = gp.covariance(include_noise=False).diagonal()
        marginals = (mode, None)
        target, precision = site_of(gp, y, mode, None, lax.stop_gradient(prior))
    process = gaussian(gp, precision)
    density = marginal_likelihood.log_density_traced(process, target)
    fit = expected_log_density(gp, y, *marginals) - _of_sites(target, precision, *marginals)
    return density + jnp.sum(fit)


def _of_sites(target: Array, precision: Array, mean: Array, variance: Array | None) -> Array:
    """`E log N(z; f, 1/W)` at every cell, zero at gaps."""
    is_site = precision > 0
    square = jnp.square(target - mean) + (0 if variance is None else variance)
    value = (jnp.log(jnp.where(is_site, precision, 1)) - precision * square - log(2 * pi)) / 2
    return jnp.where(is_site, value, 0)


evidence_given = eqx.filter_jit(evidence_at)
