"""Flat places of a loss, which look like its minimum to an optimiser."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from kronax.fitting.problem import Problem, Raw, losses_at
from kronax.fitting.result import FitResult

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


def doubted(found: FitResult, begin: dict[str, np.ndarray]) -> FitResult:
    """The result, or if it converged on a plateau, the result that says so.

    Only parameters that are still where a fit started are looked at: eight values of the loss each.
    """
    if found.problem.independent or not found.converged:
        return found
    still = _unmoved(found.raw, begin)
    if not still or len(still) > MOST_PATHS:
        return found
    try:
        rise, values = _around(found.problem, found.raw, found.loss, still)
    except (Exception, KeyboardInterrupt):  # a loss may refuse to be evaluated so far away
        return found
    rounding = ROUNDINGS * float(np.finfo(found.losses.dtype).eps) * abs(found.loss)
    near = rise[:, :2]
    flat = [k for k in range(len(still)) if np.max(np.abs(near[k])) <= FLAT + rounding]
    falls = [k for k in range(len(still)) if np.min(near[k]) < -LOWER - rounding]
    if not flat and not falls:
        return found
    which = " and ".join(still[k] for k in flat or falls)
    reason = f"the gradient is below the tolerance, but {which} did not move, and the loss is "
    reason += "flat there" if flat else "no minimum there"
    lowest = np.unravel_index(np.argmin(rise), rise.shape)
    if rise[lowest] < -LOWER - rounding:
        reason += f": with {still[lowest[0]]} = {values[lowest]} it is {-rise[lowest]:.3g} lower"
    reason += ". Start from other values (kx.replace), or give restarts="
    warnings.warn(f"The fit did not converge: {reason}.", RuntimeWarning, stacklevel=3)
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return FitResult(**{**kept, "converged": False, "reason": reason})


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
    problem: Problem, raw: Raw, loss: float, paths: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the loss rises, and the value in print, `(num_paths, num_probes)` each."""
    moves = [(path, probe) for path in paths for probe in PROBES]
    points = {
        path: jnp.stack(
            [value + jnp.asarray(by if path == moved else 0.0, value.dtype) for moved, by in moves]
        )
        for path, value in raw.items()
    }
    losses = np.asarray(losses_at(problem, points))
    rise = np.where(np.isfinite(losses), losses, np.inf) - loss
    build = problem.unconstrained()[1]
    values = np.empty(len(moves), object)
    for k, (path, _) in enumerate(moves):
        there = problem.table(build(jax.tree.map(lambda v, k=k: v[k], points)))
        value = next(p.value for p in there if p.path == path)
        values[k] = np.array2string(np.asarray(value), precision=3)
    shape = len(paths), len(PROBES)
    return rise.reshape(shape), values.reshape(shape)
