"""What a fit says of itself: where rounding is felt, noise at its floor, and flat places.

Rounding counts at the start and at the end. A flat place looks like a minimum to an optimiser.
"""

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from kronax.fitting.problem import Problem, Raw, is_at_floor, losses_at, sees_double
from kronax.fitting.result import FitResult
from kronax.linalg.arrays.host import is_shared
from kronax.linalg.arrays.precision import FELT, LOST, warn_of_ratio, worst_ratio
from kronax.paths import named

# A second warning tells something new where the ratio has grown by so much.
WORSE = 10.0

# Where the loss is looked at from a place that may be flat, in unconstrained units: for what is
# positive, logarithms. The two smallest steps say whether it is flat, the others where it is lower.
PROBES = (-0.5, 0.5, -10.0, -3.0, -1.0, 1.0, 3.0, 10.0)
# Parameters with more numbers, such as weights of a network, are not looked at.
MOST_NUMBERS = 10
MOST_PATHS = 50
# What counts as flat and as lower, in nats and in roundings of the loss; and as not moved, in
# unconstrained units.
FLAT = 1e-6
LOWER = 1e-3
ROUNDINGS = 32
MOVED = 1e-3
# Noise below this share of the data's mean square may be on its way up a slope too flat to be seen
# in logarithms: the loss is looked at where it is one of these shares.
FAINT = 1e-4
SHARES = (1e-3, 1e-2, 0.1, 1.0)


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


def doubted(found: FitResult, begin: dict[str, np.ndarray]) -> FitResult:
    """The result, or if it converged on a plateau, the result that says so.

    Looked at are parameters that are still where a fit started, by eight values of the loss each,
    and noise that is next to nothing, by four.
    """
    if found.problem.independent or not found.converged:
        return found
    still = _unmoved(found.raw, begin)
    still = still if len(still) <= MOST_PATHS else []
    moves = [(path, probe) for path in still for probe in PROBES]
    rises = _rises(found)
    moves += rises
    if not moves:
        return found
    try:
        rise, values = _around(found.problem, found.raw, found.loss, moves)
    except (Exception, KeyboardInterrupt):  # a loss may refuse to be evaluated so far away
        return found
    rounding = ROUNDINGS * float(np.finfo(found.losses.dtype).eps) * abs(found.loss)
    near = rise[: len(still) * len(PROBES)].reshape(len(still), len(PROBES))[:, :2]
    flat = [k for k in range(len(still)) if np.max(np.abs(near[k])) <= FLAT + rounding]
    falls = [k for k in range(len(still)) if np.min(near[k]) < -LOWER - rounding]
    lowest = int(np.argmin(rise))
    is_lower = rise[lowest] < -LOWER - rounding
    faint = is_lower and moves[lowest] in rises
    lowered = named(found.model, moves[lowest][0])
    if not flat and not falls and not faint:
        return found
    if flat or falls:
        which = " and ".join(named(found.model, still[k]) for k in flat or falls)
        reason = f"the gradient is below the tolerance, but {which} did not move, and the loss is "
        reason += "flat there" if flat else "no minimum there"
    else:
        reason = f"the gradient is below the tolerance, but {lowered} is next to nothing, "
        reason += "where it always is"
    if is_lower:
        reason += f": with {lowered} = {values[lowest]} it is {-rise[lowest]:.3g} lower"
    reason += ". Start from other values (kx.replace, gp.initialise), or give restarts="
    warnings.warn(f"The fit did not converge: {reason}.", RuntimeWarning, stacklevel=3)
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return FitResult(**{**kept, "converged": False, "reason": reason})


def _rises(found: FitResult) -> list[tuple[str, float]]:
    """How far faint noise would go up, in logarithms, to be a share of the data."""
    if found.problem.y is None or "noise" not in found.raw:
        return []
    noise = next((p for p in found.parameters if p.path == "noise"), None)
    if noise is None or noise.value.shape != () or noise.domain is not constraints.positive:
        return []
    y = found.problem.y
    xp: Any = jnp if is_shared(y) else np  # nothing is compiled for what is here
    level, share = float(noise.value), float(xp.nanmean(xp.square(y)))
    if not 0 < level < FAINT * share:
        return []
    # From where the optimiser has it, which is the logarithm of what is above the floor.
    return [("noise", float(np.log(k * share)) - float(found.raw["noise"])) for k in SHARES]


def _unmoved(raw: Raw, begin: dict[str, np.ndarray]) -> list[str]:
    return [
        path
        for path, value in raw.items()
        if 0 < value.size <= MOST_NUMBERS
        and any(
            np.max(np.abs(np.asarray(value) - start), initial=0.0) <= MOVED for start in begin[path]
        )
    ]


def _around(
    problem: Problem, raw: Raw, loss: float, moves: list[tuple[str, float]]
) -> tuple[np.ndarray, list[str]]:
    """By how much the loss rises by every move, and the value of what was moved, in print."""
    points = {
        path: jnp.stack(
            [value + jnp.asarray(by if path == moved else 0.0, value.dtype) for moved, by in moves]
        )
        for path, value in raw.items()
    }
    losses = np.asarray(losses_at(problem, points))
    rise = np.where(np.isfinite(losses), losses, np.inf) - loss
    build = problem.unconstrained()[1]
    values = []
    for k, (path, _) in enumerate(moves):
        there = problem.table(build(jax.tree.map(lambda v, k=k: v[k], points)))
        value = np.asarray(next(p.value for p in there if p.path == path))
        values.append(f"{value:.3g}" if value.ndim == 0 else np.array2string(value, precision=3))
    return rise, values
