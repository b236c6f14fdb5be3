"""luas: two axes, JAX, closed-form first derivatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from luas import GP, LuasKernel, kernels

KERNELS = {"RBF": kernels.squared_exp, "Matérn-3/2": kernels.matern32}


def device() -> str:
    """What JAX finds."""
    return jax.devices()[0].device_kind


def likelihood(
    kernel: str, axes: list[np.ndarray], parameters: np.ndarray, y: np.ndarray
) -> Callable:
    """Value and gradient of the log density in `(log ℓ_1, log ℓ_2, log σ²)`."""
    function = KERNELS[kernel]

    def first(p, x1, x2, wn=True):
        return function(x1, x2, jnp.exp(p["t"][0]))

    def second(p, x1, x2, wn=True):
        return function(x1, x2, jnp.exp(p["t"][1]))

    def noise(p, x1, x2, wn=True):
        return jnp.exp(p["t"][2]) * jnp.eye(x1.shape[-1])

    def ones(p, x1, x2, wn=True):
        return jnp.eye(x1.shape[-1])

    # As luas documents for white noise: no decomposition of what is diagonal already.
    noise.decomp = ones.decomp = "diag"
    model = LuasKernel(Kl=first, Kt=second, Sl=noise, St=ones, use_stored_values=False)
    gp = GP(model, *(jnp.asarray(x) for x in axes))
    compiled = jax.jit(jax.value_and_grad(gp.logL))
    p, data = {"t": jnp.asarray(parameters)}, jnp.asarray(y)

    def call() -> tuple:
        value, gradient = jax.block_until_ready(compiled(p, data))
        return value, gradient["t"]

    return call


TASKS = {"likelihood": likelihood}
