"""Flat places of a loss, which look like its minimum to an optimiser."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from kronax.fitting.problem import Problem, Raw, losses_at
from kronax.fitting.result import FitResult
from kronax.linalg.arrays.host import is_shared
from kronax.paths import named

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
