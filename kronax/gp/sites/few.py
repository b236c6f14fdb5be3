"""Sites of observations at a few places, whose function has a dense joint normal distribution.

With `B = I + W^½ K W^½` neither gaps, where `W` is zero, nor a singular `K` are special cases:

    (K + 1/W)⁻¹ = W^½ B⁻¹ W^½,   log det(K + 1/W) = log det B − Σ log W.
"""

import warnings
from math import log, pi
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.model.process import AbstractPosterior, compiled
from kronax.gp.posterior.scattered import covariance_at, mean_at
from kronax.gp.sites.evidence import log_density_of_sites
from kronax.gp.sites.search import (
    Search,
    expected_log_density,
    no_hint,
    tolerance_for,
)
from kronax.gp.sites.sites import Sites
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import level_of_caller, where
from kronax.linalg.estimates.certificates import ConvergenceError

# A log density that is known worse than this, in nats, moves comparisons.
UNCERTAIN = 0.1


class Seen(NamedTuple):
    """Where there are observations.

    Args:
        array: true where there is one, in the shape of the places.
    """

    array: Array


class FewCells(NamedTuple):
    """Observations at a few places.

    Args:
        likelihood: of each given the function, with its fields at the places.
        approximation: "variational" or "laplace".
        observed: where there are some.
    """

    likelihood: AbstractLikelihood
    approximation: str
    observed: Seen


class Joint(NamedTuple):
    """A normal distribution of the function at `m` places.

    Args:
        mean: in the shape of the places.
        covariance: `(m, m)`.
    """

    mean: Array
    covariance: Array


class _Given(NamedTuple):
    """A joint distribution given sites; all is flat.

    Args:
        root: `W^½`, `(m,)`.
        lower: the Cholesky factor of `B`.
        weights: `(K + 1/W)⁻¹ (z − m)`, zero at gaps.
    """

    root: Array
    lower: Array
    weights: Array

    @classmethod
    def of(cls, joint: Joint, target: Array, precision: Array) -> "_Given":
        """For targets and precisions."""
        root, residual = jnp.sqrt(precision).reshape(-1), (target - joint.mean).reshape(-1)
        inner = root[:, None] * joint.covariance * root[None]
        lower = jnp.linalg.cholesky(jnp.eye(len(root), dtype=root.dtype) + inner)
        weights = root * cho_solve((lower, True), root * residual)
        return cls(root, lower, weights)

    def half(self, covariance: Array) -> Array:
        """`L⁻¹ W^½ K`."""
        return solve_triangular(self.lower, self.root[:, None] * covariance, lower=True)

    def log_density(self, target: Array, joint: Joint) -> Array:
        """`log N(z; m, K + 1/W)` of the places with sites."""
        is_site = self.root > 0
        logs = jnp.sum(jnp.log(jnp.where(is_site, self.root, 1)))
        log_det = 2 * (jnp.sum(jnp.log(jnp.diagonal(self.lower))) - logs)
        count = jnp.sum(is_site, dtype=target.dtype)
        square = jnp.sum(self.weights * (target - joint.mean).reshape(-1))
        return -(square + log_det + count * log(2 * pi)) / 2


def sites_given(cells: FewCells, y: Array, joint: Joint) -> tuple[Sites, Array]:
    """The sites of observations whose gaps are filled, and their approximate log evidence."""
    prior = jnp.diagonal(joint.covariance).reshape(y.shape)

    def conditioned(target: Array, precision: Array) -> tuple[Array, Array, Array]:
        found = _Given.of(joint, target, precision)
        moved = matmul(joint.covariance, found.weights)
        spread = jnp.sum(jnp.square(found.half(joint.covariance)), axis=0)
        shaped = [x.reshape(y.shape) for x in (moved, spread, found.weights)]
        return joint.mean + shaped[0], prior - shaped[1], shaped[2]

    search = Search(cells, y, joint.mean, prior, tolerance_for(y.dtype), conditioned)
    sites, _ = search.run(no_hint(y.shape, y.dtype))
    mean, variance = sites.mean, sites.variance
    averaged = variance if cells.approximation == "variational" else None
    fit = expected_log_density(cells, y, mean, averaged)
    of_sites = log_density_of_sites(sites.target, sites.precision, mean, averaged)
    density = _Given.of(joint, sites.target, sites.precision).log_density(sites.target, joint)
    return sites, density + jnp.sum(fit - of_sites)


class Weighted(NamedTuple):
    """A log evidence by weighted draws.

    Args:
        value: the log of their mean.
        standard_error: of that.
        share: of the draws that the weights leave.
    """

    value: Array
    standard_error: Array
    share: Array


def weighted_evidence(
    cells: FewCells, y: Array, joint: Joint, key: PRNGKeyArray, num_draws: int
) -> Weighted:
    """The log evidence by draws given the sites, each with the weight of what they left out."""
    sites, _ = sites_given(cells, y, joint)
    found = _Given.of(joint, sites.target, sites.precision)
    values, vectors = jnp.linalg.eigh(joint.covariance)
    scale = jnp.sqrt(jnp.maximum(values, 0))
    seen = cells.observed.array

    def log_weight(key: PRNGKeyArray) -> Array:
        # A draw without the observations, and what noisy sites would say of it.
        field, noise = jax.random.normal(key, (2, y.size), y.dtype)
        moved = matmul(vectors, scale * field)
        white = found.root * ((sites.target - joint.mean).reshape(-1) - moved) - noise
        known = found.root * cho_solve((found.lower, True), white)
        f = joint.mean + (moved + matmul(joint.covariance, known)).reshape(y.shape)
        of_sites = log_density_of_sites(sites.target, sites.precision, f, None)
        return jnp.sum(jnp.where(seen, cells.likelihood.log_density(y, f) - of_sites, 0))

    logs = jax.lax.map(log_weight, jax.random.split(key, num_draws))
    weights = jnp.exp(logs - jnp.max(logs))
    mean = jnp.mean(weights)
    share = jnp.square(mean) / jnp.mean(jnp.square(weights))
    value = found.log_density(sites.target, joint) + jnp.log(mean) + jnp.max(logs)
    error = jnp.std(weights) / mean / jnp.sqrt(jnp.asarray(num_draws, mean.dtype))
    value = where(sites.converged, value, jnp.nan)
    return Weighted(value, error, share)


@compiled
def joint_evidence(
    post: AbstractPosterior,
    cells: FewCells,
    y: Array,
    places: Any,
    key: PRNGKeyArray,
    num_draws: int,
) -> Weighted:
    """That of observations at a list of places, given a posterior of the function."""
    covariance = covariance_at(post, places)
    mean = mean_at(post, places).reshape(y.shape)
    joint = Joint(mean, (covariance + covariance.T) / 2)
    return weighted_evidence(cells, y, joint, key, num_draws)


def certain_evidence(found: Weighted, num_draws: int) -> Array:
    """Its value; where it is concrete, with a warning if it is not well known.

    Raises:
        ConvergenceError: if the search for the sites did not converge.
    """
    if not is_concrete(found):
        return found.value
    if not np.isfinite(found.value):
        raise ConvergenceError(
            "The sites of new observations must be found; the search did not converge. Take "
            "pointwise=True, or fewer observations."
        )
    if float(found.standard_error) > UNCERTAIN:
        warnings.warn(
            f"The joint log density is known to {float(found.standard_error):.2g} nats only (one "
            f"standard error): of {num_draws} draws the weights leave {float(found.share):.1%}. "
            "Raise `num_draws`, take fewer observations, or pointwise=True.",
            stacklevel=level_of_caller(),
        )
    return found.value
