"""The marginal likelihood of a grid GP and the weights of its posterior, compiled."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.gp.gls import Regression, fitted, marginal_logpdf, regress
from kronax.gp.regression import MarginalMean
from kronax.linalg.logdet import normal_logpdf_grid
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.solve import solve_grid


@eqx.filter_jit
def log_marginal_likelihood(gp: Any, y: Array) -> Array:
    """Log density of checked data on the grid."""
    stay = (None,) * len(gp.axes)
    residual = y - gp.mean_on(stay)
    covariance = gp.covariance()
    if isinstance(gp.mean, MarginalMean):
        assert isinstance(covariance, KroneckerPlusNoise)
        return marginal_logpdf(covariance, gp.design_on(stay), residual, gp.mean.variance)
    return normal_logpdf_grid(residual, covariance)


@eqx.filter_jit
def weights(gp: Any, operator: KroneckerPlusNoise, y: Array) -> tuple[Array, Regression | None]:
    """`S⁻¹ (y − mean)`, and the coefficients of a mean that has them integrated out."""
    stay = (None,) * len(gp.axes)
    residual = y - gp.mean_on(stay)
    if not isinstance(gp.mean, MarginalMean):
        return solve_grid(operator, residual), None
    design = gp.design_on(stay)
    found = regress(operator, design, residual, gp.mean.variance, gp.mean.names)
    return solve_grid(operator, residual - fitted(found.coefficients, design)), found


def failed(value: Any) -> bool:
    """Whether a concrete value is not finite."""
    return not isinstance(value, jax.core.Tracer) and not bool(jnp.isfinite(value).all())
