"""What counts of operations cannot tell: whether iterations serve at the noise at hand.

Where iterations are planned and an exact way is within reach, the first use of concrete numbers
runs the iterations once, for no more steps than the exact way would be worth. If they converge, to
an error that does not matter, they stay; else the exact way stands in. `describe` and traced code
measure nothing.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from kronax.gp.model import marginal_likelihood
from kronax.gp.model.process import AbstractProcess, Process, with_fields
from kronax.gp.model.solver_choice import Choice, choice, iterative_flops, settled
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.estimates.certificates import Estimate

# An error of the log likelihood beyond this many nats moves comparisons of models.
MOST_ERROR = 1.0
# A trial has at least this many steps, whatever the count of operations says.
FEWEST_STEPS = 32


class Trial(NamedTuple):
    """The choice that a trial led to, and what it found."""

    choice: Choice
    estimate: Estimate


def trial(gp: AbstractProcess, y: Array) -> Trial | None:
    """A trial at the present parameters, with checked data; `None` where nothing is open."""
    planned = choice(gp)
    if planned.exact is None or not is_concrete(gp, y):
        return None
    steps = min(gp.iteration.max_steps, _worthwhile_steps(gp, planned))
    iteration = dataclasses.replace(gp.iteration, max_steps=steps, on_failure="flag")
    found = marginal_likelihood.unsettled_estimate(with_fields(gp, iteration=iteration), y)
    return Trial(_judged(planned, found, steps), found)


def log_likelihood(gp: AbstractProcess, y: Array) -> Array:
    """Of checked data, in the way that a trial says; iterations that serve are not run again."""
    found = trial(gp, y)
    if found is not None and found.choice.way == "iterative":
        return found.estimate.value
    seen = gp if found is None else solved_by(gp, found.choice)
    return seen.checked_log_likelihood(y)


def measured_by(gp: Process, y: Array) -> Process:
    """The process that is solved as a trial says."""
    found = trial(gp, y)
    return gp if found is None else solved_by(gp, found.choice)


def solved_by(gp: Process, measured: Choice | None) -> Process:
    """The process solved in a way that was measured, with the structures for that."""
    return settled(with_fields(gp, measured=measured))


def _worthwhile_steps(gp: AbstractProcess, planned: Choice) -> int:
    """As many iterations as cost what the exact way does, a power of two."""
    steps = max(FEWEST_STEPS, planned.flops / iterative_flops(gp, 1))
    return 2 ** int(np.ceil(np.log2(steps)))


def _judged(planned: Choice, found: Estimate, most_steps: int) -> Choice:
    """The plan, or the exact way where iterations do not converge or leave too large an error."""
    steps, error = int(found.num_steps), float(np.max(np.asarray(found.error)))
    is_done = bool(np.all(np.asarray(found.converged))) and bool(np.isfinite(found.value).all())
    if is_done and error <= MOST_ERROR:
        words = f"measured: {steps} iterations, log likelihood within {error:.2g} nats"
        return dataclasses.replace(planned, reason=f"{planned.reason}; {words}", exact=None)
    words = f"iterations leave an error of {error:.2g} nats"
    if not is_done:
        words = f"iterations do not converge within {most_steps} steps"
    assert planned.exact is not None
    reason = f"{planned.exact.reason}; measured: {words}"
    return dataclasses.replace(planned.exact, reason=reason)
