"""A process with a likelihood given data."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kronax.gp.labelled.templates import Template
from kronax.gp.model.marginal_likelihood import conditioned
from kronax.gp.model.process import AbstractProcess
from kronax.gp.posterior.posterior import Posterior
from kronax.gp.sites.search import MOST_STEPS, filled, find
from kronax.gp.sites.sites import Sites, gaussian
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.fingerprints import fingerprint_of_tree
from kronax.linalg.estimates.certificates import ConvergenceError


class LikelihoodPosterior(Posterior):
    """What `gp.condition(y)` returns where `gp` has a likelihood.

    The latent function has a normal distribution, that of the same process given Gaussian sites:
    `mean`, `variance`, `covariance`, `sample` and the terms are of it, as for any posterior. New
    observations are asked for by `response`.
    """

    model: Any = None
    data: Array | None = None
    sites: Sites | None = None

    def __repr__(self) -> str:
        return f"Posterior of the function given data of shape {self.y.shape}:\n{self.model!r}"


def approximated(gp: AbstractProcess, y: Array, template: Template | None) -> LikelihoodPosterior:
    """The approximate posterior of checked data.

    Raises:
        ValueError: for a batch of data sets.
        ConvergenceError: if the search for the sites does not converge.
    """
    if y.ndim > len(gp.axes):
        raise ValueError(
            "With a likelihood every data set has sites of its own; got a batch of shape "
            f"{y.shape[: y.ndim - len(gp.axes)]}. Condition on one at a time."
        )
    y = filled(gp, y)
    sites, _ = _find(gp, y)
    if is_concrete(sites) and not bool(sites.converged):
        raise ConvergenceError(
            f"The search for the sites must converge; after {int(sites.num_steps)} of {MOST_STEPS} "
            f"steps a step still moved the function by {float(sites.change):.2g} standard "
            "deviations. Start at other parameters: gp.initialise(y)."
        )
    target = jnp.where(sites.converged, sites.target, jnp.nan)
    process = gaussian(gp, sites.precision)
    operator, found = conditioned(process, target)
    made_of = fingerprint_of_tree((process, target))
    parts = (found.value, found.regression, template, found.estimate, made_of)
    return LikelihoodPosterior(process, target, operator, *parts, gp, y, sites)


_find = eqx.filter_jit(find)
