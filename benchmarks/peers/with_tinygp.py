"""tinygp: dense, one row per cell; and its quasiseparable solver, compiled by JAX."""

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


def by_modes(axes: tuple[np.ndarray, ...], parameters: np.ndarray, y: np.ndarray) -> Callable:
    """Value and gradient on times × places: a quasiseparable solver per mode of the places.

    The parameters are logarithms: two lengthscales of Matérn-3/2, variance, noise.
    """
    times, places = map(jax.numpy.asarray, axes)
    given, data = jax.numpy.asarray(parameters), jax.numpy.asarray(y)

    def value(logarithms: jax.Array) -> jax.Array:
        along, across, variance, noise = jax.numpy.exp(logarithms)
        s = np.sqrt(3) * jax.numpy.abs(places[:, None] - places) / across
        scales, vectors = jax.numpy.linalg.eigh(variance * (1 + s) * jax.numpy.exp(-s))

        def one(scale: jax.Array, series: jax.Array) -> jax.Array:
            kernel = tinygp.kernels.quasisep.Matern32(along, sigma=jax.numpy.sqrt(scale))
            gp = tinygp.GaussianProcess(kernel, times, diag=noise, assume_sorted=True)
            return gp.log_probability(series)

        return jax.numpy.sum(jax.vmap(one)(scales, (data @ vectors).T))

    compiled = jax.jit(jax.value_and_grad(value)).lower(given).compile()
    return lambda: jax.block_until_ready(compiled(given))


TASKS = {"start": start, "by modes": by_modes}
