"""tinygp: dense, one row per cell, compiled by JAX."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.optimize
import tinygp

from benchmarks.peers.stages import Stages, programs_compiled

MATERN = {0.5: tinygp.kernels.Exp, 1.5: tinygp.kernels.Matern32, 2.5: tinygp.kernels.Matern52}


def start(
    kernels: tuple[float, ...],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    new: list[np.ndarray],
    tolerance: float,
    num_steps: int,
) -> Callable:
    """A likelihood, SciPy's L-BFGS-B on its compiled gradient, and predictions of the function."""
    stages, rows, data = Stages(programs_compiled()), _rows(places), y.ravel()
    columns = np.cumsum([0] + [x.shape[1] for x in places])

    def process(parameters: Any) -> tinygp.GaussianProcess:
        *scales, variance, noise = (jax.numpy.exp(t) for t in parameters)
        product: Any = tinygp.kernels.Constant(variance)
        for i, (nu, scale) in enumerate(zip(kernels, scales, strict=True)):
            own = slice(columns[i], columns[i + 1])
            distance = tinygp.kernels.distance.L2Distance()
            kernel = MATERN[nu](scale, distance=distance)
            product = product * tinygp.transforms.Transform(lambda x, own=own: x[own], kernel)
        return tinygp.GaussianProcess(product, rows, diag=noise)

    def predicted(parameters: Any) -> Any:
        there = process(parameters).condition(data, _rows(new)).gp
        return there.mean, there.variance

    def call() -> dict[str, Any]:
        value = jax.jit(lambda p: -process(p).log_probability(data) / data.size)
        float(value(start))
        stages.reached("likelihood")
        found = scipy.optimize.minimize(
            jax.jit(jax.value_and_grad(value)),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"gtol": tolerance, "ftol": 0.0, "maxiter": num_steps},
        )
        stages.reached("fit")
        jax.block_until_ready(jax.jit(predicted)(found.x))
        stages.reached("prediction")
        return stages.found

    return call


def _rows(places: list[np.ndarray]) -> np.ndarray:
    """One row per cell."""
    index = np.indices([len(x) for x in places]).reshape(len(places), -1)
    return np.hstack([x[i] for x, i in zip(places, index, strict=True)])


TASKS = {"start": start}
