"""kronax in a process of its own, so that first calls and memory are counted as for the others."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks.peers.stages import Stages, programs_compiled

MATERN = {0.5: kx.Matern12, 1.5: kx.Matern32, 2.5: kx.Matern52}


def model(
    kernels: tuple[float, ...],
    axes: tuple[np.ndarray, ...],
    periods: tuple[float | None, ...],
    start: np.ndarray | jax.Array,
    gaps: str = "auto",
    structure: tuple[str | None, ...] | None = None,
) -> kx.GridGP:
    """One Matérn kernel per axis, one amplitude, noise, by the logarithms of their parameters."""
    is_traced = isinstance(start, jax.Array)
    *lengthscales, variance, noise = jnp.exp(start) if is_traced else map(float, np.exp(start))
    first, *rest = (MATERN[nu](s) for nu, s in zip(kernels, lengthscales, strict=True))
    points = [
        x if period is None else kx.circle(x, period)
        for x, period in zip(axes, periods, strict=True)
    ]
    chosen: dict[str, Any] = {} if gaps == "auto" else {"gaps": gaps}
    kernels = [variance * first, *rest]
    return kx.GridGP(kernels, points, noise=noise, structure=structure, **chosen)


def grid_gp(
    gaps: str,
    kernels: tuple[float, ...],
    axes: tuple[np.ndarray, ...],
    periods: tuple[float | None, ...],
    y: np.ndarray,
    start: np.ndarray,
    structure: tuple[str | None, ...] | None = None,
    clock: str = "perf_counter",
) -> Callable:
    """Fit and predict: mean and predictive variance in every cell; `clock` is one of `time`."""
    now = getattr(time, clock)

    def call() -> dict[str, Any]:
        gp = model(kernels, axes, periods, start, gaps, structure)
        began = now()
        result = kx.fit(gp, y, progress=False)
        between = now()
        posterior = result.model.condition(y)
        mean = np.asarray(posterior.mean())
        spread = np.asarray(posterior.variance(include_noise=True))
        ended = now()
        return {
            "mean": mean,
            "variance": spread,
            "fit_seconds": between - began,
            "predict_seconds": ended - between,
            "is_stopped": not bool(result.converged),
            "steps": int(result.num_steps),
            "log_parameters": _log_parameters(result.model),
        }

    return call


def _log_parameters(gp: kx.GridGP) -> np.ndarray:
    values = [k.lengthscale for k in gp.kernels] + [gp.variance, gp.noise]
    return np.log([float(v) for v in values])


def start(
    kernels: tuple[float, ...],
    axes: tuple[np.ndarray, ...],
    periods: tuple[float | None, ...],
    y: np.ndarray,
    new: list[np.ndarray],
    tolerance: float,
    num_steps: int,
) -> Callable:
    """As somebody writes it who has just installed it."""
    stages = Stages(programs_compiled())

    def call() -> dict[str, Any]:
        gp = model(kernels, axes, periods, np.zeros(len(axes) + 2))
        stages.reached("model")
        float(gp.log_marginal_likelihood(y))
        stages.reached("likelihood")
        first = gp.initialise(y)
        stages.reached("start")
        result = kx.fit(first, y, tolerance=tolerance, num_steps=num_steps, progress=False)
        stages.reached("fit")
        str(result.summary())
        stages.reached("summary")
        posterior = result.model.condition(y)
        stages.reached("condition")
        np.asarray(posterior.mean(new)), np.asarray(posterior.variance(new))
        stages.reached("prediction")
        return stages.found

    return call


TASKS = {"grid GP": grid_gp, "start": start}
