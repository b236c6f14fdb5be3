"""Draws from the prior of a grid GP."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kronax.linalg.sample import sample_normal
from kronax.linalg.terms import KroneckerTerms
from kronax.linalg.uneven import KroneckerPlusDiagonal, draw_signal


def prior_draws(
    gp: Any, key: PRNGKeyArray, sample_shape: tuple[int, ...] | int, include_noise: bool
) -> Array:
    """Of the function or of noisy observations; these are NaN where the noise is infinite."""
    shape = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
    covariance = gp.covariance(include_noise)
    mean = gp.mean_on((None,) * len(gp.axes))
    if isinstance(covariance, KroneckerTerms):
        return draw_signal(key, covariance, shape) + mean
    if not isinstance(covariance, KroneckerPlusDiagonal):
        return sample_normal(key, covariance, shape) + mean
    return jnp.where(covariance.observed, covariance.draw(key, shape) + mean, jnp.nan)
