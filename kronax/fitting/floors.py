"""The floor of the noise in a fit: what the precision carries, said at the start and at the end."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from kronax.fitting.problem import Problem, is_at_floor
from kronax.fitting.result import FitResult
from kronax.linalg.arrays.precision import FELT, LOST, warn_of_ratio


def warn_of_start(problem: Problem) -> None:
    """Warn of a start where rounding is felt, unless it is double's, which the floor keeps from."""
    noise = problem.noise_level(problem.model)
    if noise is None:
        return
    if not (problem.has_floor and noise.level.dtype == np.float64):
        warn_of_ratio(noise.ends, "At its start the fit sees a loss that is off", FELT)


def told_of_floor(found: FitResult) -> FitResult:
    """The result, whose reason says where the noise ended at its floor."""
    problem = found.problem
    if not problem.has_floor:
        return found
    reason: Any
    if not problem.independent:
        noise = problem.noise_level(found.model)
        reason = _told(found.reason, noise, found.losses.dtype)
        # Bounds on the eigenvalues are loose: at the floor of double precision nothing is lost.
        warn_of_ratio(noise.ends, "Where the fit ended its loss may be wrong", 2 * LOST)
    else:
        levels = jax.tree.map(np.asarray, eqx.filter_vmap(problem.noise_level)(found.model))
        reason = tuple(
            _told(own, jax.tree.map(lambda x, i=i: x[i], levels), found.losses.dtype)
            for i, own in enumerate(found.reason)
        )
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return FitResult(**{**kept, "reason": reason})


def _told(reason: str, noise: Any, dtype: np.dtype) -> str:
    if not is_at_floor(noise):
        return reason
    return (
        f"{reason}; the noise is at its floor, {float(noise.least):.2g}, the least that {dtype} "
        "carries here"
    )
