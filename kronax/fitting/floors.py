"""The floor of the noise in a fit: what the precision carries, said at the start and at the end."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from kronax.fitting.problem import Problem, is_at_floor, sees_double
from kronax.fitting.result import FitResult
from kronax.linalg.arrays.precision import FELT, LOST, warn_of_ratio, worst_ratio

# A second warning tells something new where the ratio has grown by so much.
WORSE = 10.0


def warn_of_start(problem: Problem) -> float:
    """Warn of a start where rounding is felt, unless it is double's, which the floor keeps from.

    Returns:
        The ratio that was warned of, zero for none.
    """
    ends = problem.conditioning(problem.model)
    if ends is None or (problem.has_floor and ends.largest.dtype == np.float64):
        return 0.0
    what = "At its start the fit sees a loss that is off"
    warn_of_ratio(ends, what, FELT, note=_seen_in_double(problem))
    ratio = worst_ratio(ends)
    return ratio if ratio > FELT else 0.0


def warn_of_end(found: FitResult, at_start: float) -> None:
    """Warn where the fit ended, unless the start was about as bad and has been warned of."""
    if found.problem.independent:
        return
    ends = found.problem.conditioning(found.model)
    if worst_ratio(ends) > WORSE * at_start:
        # Bounds on the eigenvalues are loose: at the floor of double precision nothing is lost.
        what = ", by far more than at its start," if at_start else ""
        what = f"Where the fit ended its loss may be wrong{what}"
        warn_of_ratio(ends, what, 2 * LOST, note=_seen_in_double(found.problem))


def _seen_in_double(problem: Problem) -> str:
    """What softens a warning of a float32 model, if its loss is computed in float64."""
    model = problem.model
    is_single = problem.loss is None and getattr(model, "dtype", None) == np.float32
    if not is_single or not sees_double(problem.seen(model)):
        return ""
    return (
        " The fit itself computes in float64; what is off are the likelihood, means and variances "
        "of the float32 model."
    )


def told_of_floor(found: FitResult) -> FitResult:
    """The result, whose reason says where the noise ended at its floor."""
    problem = found.problem
    if not problem.has_floor:
        return found
    reason: Any
    if not problem.independent:
        noise = jax.tree.map(np.asarray, problem.noise_level(found.model))
        reason = _told(found.reason, noise, found.losses.dtype)
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
