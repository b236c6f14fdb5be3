"""celerite2: semiseparable solvers of one axis, by its interface to JAX."""

from collections.abc import Callable
from typing import Any

import celerite2.jax
import jax
import jax.numpy as jnp
import numpy as np
from celerite2.jax import terms


def matern32(scale: Any, sigma: Any) -> terms.Term:
    """An oscillator a little above critical damping, by its default `eps` of 0.01."""
    return terms.Matern32Term(sigma=sigma, rho=scale)


def oscillator(scale: Any, sigma: Any) -> terms.Term:
    """A quality of 2; the scale is the inverse of the angular frequency."""
    return terms.UnderdampedSHOTerm(sigma=sigma, w0=1 / scale, Q=2.0)


TERMS = {"Matérn-3/2": matern32, "oscillator": oscillator}


def one_axis(
    kernel: str, x: np.ndarray, parameters: np.ndarray, y: np.ndarray, with_gradient: bool
) -> Callable:
    """Value, with its gradient or not, in the logarithms of scale, variance and noise."""
    times, data, at = jnp.asarray(x), jnp.asarray(y), jnp.asarray(parameters)

    def value(logarithms: jax.Array) -> jax.Array:
        scale, variance, noise = jnp.exp(logarithms)
        term = TERMS[kernel](scale, jnp.sqrt(variance))
        gp = celerite2.jax.GaussianProcess(term, mean=0.0)
        gp.compute(times, diag=noise * jnp.ones_like(times))
        return gp.log_likelihood(data)

    function = jax.value_and_grad(value) if with_gradient else value
    compiled = jax.jit(function).lower(at).compile()
    return lambda: jax.block_until_ready(compiled(at))


TASKS = {"one axis": one_axis}
