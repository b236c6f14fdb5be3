"""Gaussian sites: what stands for a likelihood that is not normal.

The posterior of the latent function `f` is approximated by the normal distribution

    q(f) ∝ N(f; m, K) Π_c N(z_c; f_c, 1/W_c),

which is that of the same process given data `z` with a noise variance `1/W` of every cell. So every
way of solving that serves a variance per cell serves any likelihood.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kronax.gp.model.marginal_likelihood import conditioned_traced
from kronax.gp.model.process import AbstractProcess, with_fields
from kronax.gp.noise.variances import SiteNoise
from kronax.gp.posterior import predict
from kronax.gp.posterior.posterior import Posterior


class Sites(eqx.Module):
    """One Gaussian site per cell, and the distribution of `f` there that they lead to.

    Attributes:
        target: `z`, the data that stand for those of the cell; zero at gaps.
        precision: `W`; zero at gaps.
        mean: of `f` at every cell, given all sites.
        variance: of `f` at every cell, given all sites.
        num_steps: how many steps found them.
        change: of the last step, in standard deviations of `f` or shares of its variance.
        converged: whether that is below the tolerance.
    """

    target: Array
    precision: Array
    mean: Array
    variance: Array
    num_steps: Array
    change: Array
    converged: Array


def gaussian(gp: AbstractProcess, precision: Array) -> Any:
    """The process whose noise has a precision per cell, zero at gaps."""
    return with_fields(gp, likelihood=None, noise=SiteNoise(precision))


def given(gp: AbstractProcess, target: Array, precision: Array) -> Posterior:
    """The posterior of the latent function given sites; inside `jit`."""
    process = gaussian(gp, precision)
    operator, found, _ = conditioned_traced(process, target)
    return Posterior(process, target, operator, found.value, found.regression, None, found.estimate)


def moments(post: Posterior) -> tuple[Array, Array]:
    """Mean and variance of the latent function at every cell."""
    stay = (None,) * len(post.gp.axes)
    mean, variance = predict.mean(post, stay), predict.variance(post, stay)
    return mean, jnp.broadcast_to(variance, mean.shape)
