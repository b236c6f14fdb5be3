"""The approximate evidence of a process with a likelihood, and its gradient.

*Variational*: `ELBO = log N(z; m, K + 1/W) + Σ_c E_q[log p(y|f) − log N(z; f, 1/W)]`, a lower
bound, is stationary in the sites, so that its derivative in the parameters is that with `z`, `W`
and `q` held fixed. *Laplace*: the same with `log p(y|f) − log N(z; f, 1/W)` at the mode `f`, which
moves with the parameters: one Newton step from the mode found has the mode's derivative.

Where a log density bends upwards its site is not its own bend, and the bound is not stationary:
then sites are followed for more steps from where they were found.
"""

from math import log, pi

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.gp.model import marginal_likelihood
from kronax.gp.model.process import AbstractProcess, Process, with_fields
from kronax.gp.model.solver_choice import is_iterative
from kronax.gp.model.trial import measured_by
from kronax.gp.posterior import predict
from kronax.gp.sites.search import (
    OTHER_START,
    Hint,
    expected_log_density,
    filled,
    find,
    first_sites,
    no_hint,
    site_of,
)
from kronax.gp.sites.sites import Sites, gaussian, given
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.early_errors import raising_unless_finite
from kronax.linalg.arrays.host import is_finite
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import once_differentiable
from kronax.linalg.estimates.certificates import ConvergenceError, Estimate
from kronax.linalg.sharing.data_sets import of_each

# Each step leaves about a third of what the one before left of the derivative of the sites.
FOLLOWED = 12

MUST_CONVERGE = (
    "The search for the sites of a likelihood must converge; it did not, or the covariance is not "
    "finite"
)


def evidence(gp: AbstractProcess, y: Array) -> Array:
    """The log evidence of checked data, one number per entry of a leading batch.

    NaN where the search for the sites of traced data does not converge.

    Raises:
        ConvergenceError: if that of concrete ones does not.
    """
    value, _ = evidence_from(gp, y, no_hint(y.shape, gp.dtype))
    value = raising_unless_finite(value, f"{MUST_CONVERGE}. {OTHER_START}")
    if is_concrete(value) and not is_finite(value):
        gp.check_model()  # says what is wrong with the model, if that is it
        raise ConvergenceError(
            f"{MUST_CONVERGE}. gp.condition(y) tells how far it came. {OTHER_START}"
        )
    return value


@eqx.filter_jit
def estimate(gp: AbstractProcess, y: Array) -> Estimate:
    """The same of one data set, with the certificate of its density, if that is by iterations."""
    y = filled(gp, y)
    sites, _ = find(gp, y, no_hint(y.shape, gp.dtype))
    process = gaussian(gp, sites.precision)
    density = marginal_likelihood.unsettled_estimate(process, sites.target)
    value = where(sites.converged, evidence_at(gp, y, sites), jnp.nan)
    return density.shifted(value - density.value)


class SearchedEvidence(AbstractProcess):
    """What a fit asks of a process whose likelihood is found by a search."""

    def first_hints(self, shape: tuple[int, ...]) -> Hint | None:
        """What a search may start from, for data of a shape; `None` for normal data."""
        return None if self.likelihood is None else no_hint(shape, self.dtype)

    def log_likelihood_from(self, grid: Array, hints: Hint) -> tuple[Array, Hint]:
        """`checked_log_likelihood` by a search from another one's end, and the end of this one."""
        return evidence_from(self, grid, hints)


def measured(gp: Process, y: Array) -> Process:
    """The process that is solved as a trial says; of a likelihood one with the first sites."""
    if gp.likelihood is None:
        return measured_by(gp, y)
    if not is_concrete(gp, y):
        return gp
    one = y.reshape(-1, *gp.grid_shape)[0]  # a batch has the same gaps, and is solved alike
    target, precision = first_sites(gp, one)
    return with_fields(gp, measured=measured_by(gaussian(gp, precision), target).measured)


def measured_evidence(gp: Process, y: Array) -> Array:
    """The evidence, in the way that a trial says."""
    return evidence(measured(gp, y), y)


def evidence_from(gp: AbstractProcess, y: Array, hints: Hint) -> tuple[Array, Hint]:
    """The same by a search that starts from another one's end, and the end of this one."""
    values, rest = eqx.partition(gp, eqx.is_inexact_array)
    values = jax.tree.map(once_differentiable, values)
    return _evidence_from(eqx.combine(values, rest), y, hints)


@eqx.filter_jit
def _evidence_from(gp: AbstractProcess, y: Array, hints: Hint) -> tuple[Array, Hint]:
    lead = y.shape[: y.ndim - len(gp.axes)]
    if not lead:
        return _of_one(gp, (y, hints))
    flat = jax.tree.map(lambda x: x.reshape(-1, *gp.grid_shape), (y, hints))
    values, found = of_each(_of_one, gp, flat)
    return values.reshape(lead), jax.tree.map(lambda x: x.reshape(y.shape), found)


def _of_one(gp: AbstractProcess, given: tuple[Array, Hint]) -> tuple[Array, Hint]:
    y, hint = given
    y = filled(gp, y)
    sites, found = find(gp, y, hint)
    return where(sites.converged, evidence_at(gp, y, sites), jnp.nan), found


def evidence_at(gp: AbstractProcess, y: Array, sites: Sites) -> Array:
    """The evidence at given sites, right to first order in the parameters."""
    assert gp.likelihood is not None
    sites = lax.stop_gradient(sites)
    is_variational = gp.approximation == "variational"
    held = sites.target, sites.precision, sites.mean, sites.variance
    if not is_variational:
        held = _followed(gp, y, sites, 1)
    if not gp.likelihood.is_log_concave and not is_iterative(gp):
        is_clipped = _bends_upwards(gp, y, sites)
        held = lax.cond(is_clipped, lambda: _followed(gp, y, sites, FOLLOWED), lambda: held)
    target, precision, mean, variance = held
    marginals = (mean, variance if is_variational else None)
    density = marginal_likelihood.log_density_traced(gaussian(gp, precision), target)
    of_sites = log_density_of_sites(target, precision, *marginals)
    return density + jnp.sum(expected_log_density(gp, y, *marginals) - of_sites)


def _followed(
    gp: AbstractProcess, y: Array, sites: Sites, num_steps: int
) -> tuple[Array, Array, Array, Array]:
    """Sites and marginals after further steps, with their derivatives in the parameters."""
    prior = lax.stop_gradient(gp.covariance(include_noise=False).diagonal())
    is_variational = gp.approximation == "variational"

    def sites_at(mean: Array, variance: Array) -> tuple[Array, Array]:
        return site_of(gp, y, mean, variance if is_variational else None, prior)

    def step(at: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        post = given(gp, *sites_at(*at))
        stay = (None,) * len(gp.axes)
        mean = predict.mean(post, stay)
        if not is_variational:
            return (mean, at[1]), None
        return (mean, jnp.broadcast_to(predict.variance(post, stay), mean.shape)), None

    at = sites.mean, sites.variance
    if num_steps == 1:
        at, _ = step(at, None)
    else:
        at, _ = lax.scan(step, at, length=num_steps)
    return *sites_at(*at), *at


def _bends_upwards(gp: AbstractProcess, y: Array, sites: Sites) -> Array:
    """Whether the log density of a cell bends upwards, so that its site is not its own bend."""
    assert gp.likelihood is not None
    if gp.approximation == "variational":
        _, bend = gp.likelihood.expected_derivatives(y, sites.mean, sites.variance)
    else:
        _, bend = gp.likelihood.derivatives(y, sites.mean)
    return jnp.any((bend < sites.precision / 2) & (sites.precision > 0))


def log_density_of_sites(
    target: Array, precision: Array, mean: Array, variance: Array | None
) -> Array:
    """`E log N(z; f, 1/W)` at every cell, zero at gaps."""
    is_site = precision > 0
    square = jnp.square(target - mean) + (0 if variance is None else variance)
    value = (jnp.log(jnp.where(is_site, precision, 1)) - precision * square - log(2 * pi)) / 2
    return jnp.where(is_site, value, 0)


def bound_at(gp: AbstractProcess, y: Array, sites: Sites) -> Array:
    """`log N(z; m, K + 1/W)` and the mean of the log weights that the sites leave.

    The variational evidence is that; Laplace's has the log weights at the mode instead.
    """
    marginals = sites.mean, sites.variance
    density = marginal_likelihood.log_density_traced(gaussian(gp, sites.precision), sites.target)
    of_sites = log_density_of_sites(sites.target, sites.precision, *marginals)
    return density + jnp.sum(expected_log_density(gp, y, *marginals) - of_sites)


evidence_given = eqx.filter_jit(evidence_at)
bound_given = eqx.filter_jit(bound_at)
