"""Gradients of estimates, with the error that their probes leave."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from kronax.linalg.estimates.certificates import Estimate, skew_quantile

# By how much a derivative may magnify rounding: that in the logarithm of a lengthscale does.
MAGNIFIED = 32


class GradientEstimate(NamedTuple):
    """A gradient with its certificate.

    Args:
        value: like the parameters, `None` where one has no derivative.
        error: half the width of a 99 % interval around every entry of `value`.
        standard_error: of the random probes, likewise.
        estimate: of the function itself.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> signal = kx.Kronecker(jnp.eye(2), jnp.eye(2))
        >>> def density(scale):
        ...     op = kx.KroneckerPlusDiagonal(scale * signal, variances)
        ...     return kx.iterative_logpdf(jnp.ones((2, 2)), 0.0, op)
        >>> value, error, standard_error, estimate = kx.gradient_estimate(density, 1.0)
        >>> value.shape, bool(error >= standard_error), bool(estimate.converged)
        ((), True, True)
    """

    value: Any
    error: Any
    standard_error: Any
    estimate: Estimate


def gradient_estimate(function: Callable[[Any], Estimate], parameters: Any) -> GradientEstimate:
    """The gradient of an estimate, and how far to trust it.

    It is the gradient that `jax.grad` gives; the spread of what the single probes say of it comes
    with it. One evaluation, and for every number among the parameters a product with the
    operator's derivative: meant for a look at the end of a fit, not for every step.

    Args:
        function: of the parameters, a scalar `kx.iterative_logpdf`, `kx.iterative_logdet` or
            `gp.log_marginal_likelihood_estimate`.
        parameters: a pytree, such as a model.

    Returns:
        Pytrees like the parameters.

    Raises:
        TypeError: if the function returns no estimate of a scalar.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> signal = kx.Kronecker(jnp.eye(2), jnp.eye(2))
        >>> def density(scale):
        ...     op = kx.KroneckerPlusDiagonal(scale * signal, variances)
        ...     return kx.iterative_logpdf(jnp.ones((2, 2)), 0.0, op)
        >>> found = kx.gradient_estimate(density, 1.0)
        >>> round(found.value.item(), 2), found.error.item() < 0.01
        (-0.34, True)
    """
    moving, fixed = eqx.partition(jax.tree.map(_as_array, parameters), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(moving)

    def split(flat: Array) -> tuple[Any, Estimate]:
        estimate = function(eqx.combine(unravel(flat), fixed))
        if not isinstance(estimate, Estimate) or estimate.value.ndim:
            raise TypeError(
                "kx.gradient_estimate differentiates a function that returns the kx.Estimate of a "
                f"scalar; got {estimate!r}."
            )
        probes = jnp.zeros(0, flat.dtype) if estimate.probes is None else estimate.probes
        return (estimate.value, probes), estimate

    (value, probes), estimate = jax.jacfwd(split, has_aux=True)(flat)
    spread, error = _spread(value, probes)
    error = error + _lost(value, probes, flat, estimate)
    return GradientEstimate(unravel(value), unravel(error), unravel(spread), estimate)


def _spread(value: Array, probes: Array) -> tuple[Array, Array]:
    """The standard error of the mean of `(k, p)`, and half of a 99 % interval."""
    num = probes.shape[0]
    if num == 0:
        return jnp.zeros_like(value), jnp.zeros_like(value)
    spread = jnp.std(probes, axis=0, ddof=1) / num**0.5
    return spread, skew_quantile(num) * spread


def _lost(value: Array, probes: Array, parameters: Array, estimate: Estimate) -> Array:
    """What iterations and rounding leave.

    Data and determinant may cancel; of either, iterations leave a share like their residual. A
    value that is rounded in some nats has a derivative that is, for a change of a parameter by
    itself or by one.
    """
    if estimate.rounding is None:
        return jnp.zeros_like(value)
    mean = jnp.mean(probes, axis=0)
    size = jnp.abs(parameters)
    rounding = MAGNIFIED * estimate.rounding / jnp.where(size > 0, jnp.minimum(size, 1), 1)
    return estimate.residual * (jnp.abs(mean) + jnp.abs(value - mean)) + rounding


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, float) else leaf
