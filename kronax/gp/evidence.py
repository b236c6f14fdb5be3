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
from kronax.linalg.operators import AbstractSolvable
from kronax.linalg.solve import solve_grid

# The covariance of the data: on the whole grid, or at the cells that have some.
DataCovariance = KroneckerPlusNoise | AbstractSolvable


@eqx.filter_jit
def log_marginal_likelihood(gp: Any, y: Array) -> Array:
    """Log density of checked data on the grid."""
    stay = (None,) * len(gp.axes)
    covariance = gp.data_covariance()
    residual = _residual(gp, covariance, y)
    if isinstance(gp.mean, MarginalMean):
        return marginal_logpdf(covariance, gp.design_on(stay), residual, gp.mean.variance)
    return normal_logpdf_grid(residual, covariance)


@eqx.filter_jit
def weights(gp: Any, operator: DataCovariance, y: Array) -> tuple[Array, Regression | None]:
    """`S⁻¹ (y − mean)`, and the coefficients of a mean that has them integrated out."""
    stay = (None,) * len(gp.axes)
    residual = _residual(gp, operator, y)
    if not isinstance(gp.mean, MarginalMean):
        return solve_grid(operator, residual), None
    design = gp.design_on(stay)
    found = regress(operator, design, residual, gp.mean.variance, gp.mean.names)
    return solve_grid(operator, residual - fitted(found.coefficients, design)), found


def _residual(gp: Any, operator: DataCovariance, y: Array) -> Array:
    """The data less their mean, and zero in gaps."""
    residual = y - gp.mean_on((None,) * len(gp.axes))
    return operator.held(residual) if isinstance(operator, AbstractSolvable) else residual


def failed(value: Any) -> bool:
    """Whether a concrete value is not finite."""
    return not isinstance(value, jax.core.Tracer) and not bool(jnp.isfinite(value).all())
