"""Fit the parameters of a model with optax, in unconstrained space."""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from kronax.domains import Model
from kronax.fitting.checkpoint import Checkpoint
from kronax.fitting.doubts import doubted, told_of_floor, warn_of_end, warn_of_start
from kronax.fitting.driver import drive
from kronax.fitting.lbfgs import LBFGS
from kronax.fitting.problem import Problem, default_tolerance, make_problem, precision
from kronax.fitting.result import FitResult, Restart, RestartTable, model_at
from kronax.fitting.starts import starting_points
from kronax.fitting.steps import (
    CONVERGED,
    NOT_FINITE,
    ROUNDED,
    RUNNING,
    STALLED,
    Loop,
    State,
    start,
)
from kronax.linalg.arrays.checks import refuse_traced
from kronax.linalg.arrays.host import on_device
from kronax.paths import named

# One object, so that every fit with the default shares its compiled loop.
_LBFGS = LBFGS()


def fit(
    model: Model,
    y: Any = None,
    *,
    loss: Callable[[Any], Array] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 200,
    tolerance: float | None = None,
    priors: Mapping[str, Any] | None = None,
    freeze: Any = (),
    domains: Mapping[str, Any] | None = None,
    share: Any = (),
    restarts: int | Sequence[Any] = 0,
    key: PRNGKeyArray | None = None,
    independent: bool = False,
    progress: bool = True,
    callback: Callable[[FitResult[Model]], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
) -> FitResult[Model]:
    """Maximise the marginal likelihood of a `GridGP`, or minimise any loss of a module.

    Parameters move in unconstrained space, so that a positive one stays positive. The best point
    seen is returned, whatever happens later: Ctrl-C ends a fit and returns it too, a second Ctrl-C
    raises.

    Args:
        model: a `kx.GridGP`, or any Equinox module with `loss`.
        y: data for a GridGP, `(n_1, …, n_d)` or `(N,)`; losses of a leading batch are added.
        loss: `loss(model)`, a scalar to be minimised, instead of `y`. The loop is compiled once
            per function: pass the same one again, not a new `lambda` in each call.
        optimizer: any optax transformation; by default L-BFGS with a line search. Pass
            the same object again, so that nothing is compiled anew.
        num_steps: at most this many steps.
        tolerance: converged when the largest entry of the unconstrained gradient, per cell for a
            GridGP, is below this; by default 1e-6 in float64 and 1e-5 in float32.
        priors: NumPyro distributions by path; their log density, in natural units, is added to the
            likelihood, so that the maximum a posteriori is found.
        freeze: what stays as it is, as for `kx.parameters`: paths, functions from the model to its
            nodes, or a tree of booleans.
        domains: NumPyro constraints by path, for numbers without a declared domain.
        share: groups of parameters that have one value, as for `kx.parameters`.
        restarts: number of further fits from random starts, or a sequence of models to start at;
            the best end is returned.
        key: of the random starts; by default `jax.random.key(0)`.
        independent: one fit for each entry of the leading axis of `y`, each with parameters of
            its own, in one compiled loop.
        progress: show a bar in a terminal or notebook, if the fit takes over a tenth of a second;
            elsewhere write a line to the standard error after 10 s, and at growing intervals.
        callback: called about four times a second with the `FitResult` so far; the fit ends if it
            returns a true boolean.
        checkpoint: path of a file that holds the running fit. If it is there already, the fit goes
            on from it, to the same numbers as without an interruption.
        checkpoint_every: steps between two savings.

    Returns:
        A `FitResult`.

    Raises:
        ValueError: if nothing is trainable, a parameter starts outside its domain, or the
            checkpoint is of another fit or not whole.
        KeyError: if a path is unknown; the nearest is suggested.
        FloatingPointError: if loss or gradient is not finite at the start; it names which.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> kx.fit(gp, jnp.sin(6 * x)[:, None] * x, num_steps=3, progress=False).num_steps
        3
    """
    began = time.perf_counter()
    refuse_traced(
        "kx.fit",
        "One fit for each data set of a batch is kx.fit(model, y, independent=True); for a loop of "
        "your own, that compiles, take kx.unconstrain(model).",
        (model, y, priors, key),
    )
    settings = {"freeze": freeze, "domains": domains, "share": share}
    problem = make_problem(model, y, loss, priors, independent, settings)
    problem = problem.measured_at(problem.unconstrained()[0])
    if optimizer is None:
        optimizer = _LBFGS
    else:
        _check_optimizer(optimizer)
    _check_count(num_steps, "num_steps")
    _check_count(checkpoint_every, "checkpoint_every")
    at_start = warn_of_start(problem)
    starts, members = starting_points(problem, restarts, key)
    _check_tolerance(tolerance)
    if tolerance is None:
        tolerance = default_tolerance(precision(starts))
    threshold = np.asarray(tolerance * problem.num_cells, precision(starts))

    states = start(starts, members, optimizer, int(num_steps), problem.first_hints)
    saved = None if checkpoint is None else Checkpoint(checkpoint, problem, states, optimizer)

    def result(
        problem: Problem, states: State, seconds: float, stopped: str | None = None
    ) -> FitResult:
        loop = Loop(optimizer, states.step.size, int(num_steps))
        return _result(problem, states, tolerance, seconds, stopped, loop)

    def report(problem: Problem, states: State, seconds: float) -> Any:
        return None if callback is None else callback(result(problem, states, seconds))

    problem, states, stopped, seconds = drive(
        (problem, optimizer, threshold),
        states,
        progress=progress,
        checkpoint=saved,
        every=int(checkpoint_every),
        report=report,
        began=began,
    )
    _check_finite_start(states, problem)
    found = told_of_floor(result(problem, states, seconds, stopped))
    warn_of_end(found, at_start)
    _warn_of_faults(found.restarts if found.problem.independent else (found.restarts,))
    return doubted(found, starts)


def _check_optimizer(optimizer: Any) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"The optimizer must be an optax transformation; got {optimizer!r}. Pass an instance, "
            "for example optax.adam(1e-2)."
        )


def _check_count(number: Any, name: str) -> None:
    if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{name} must be a positive integer; got {number!r}.")


def _check_tolerance(tolerance: Any) -> None:
    if tolerance is None:
        return
    is_number = np.ndim(tolerance) == 0 and not isinstance(tolerance, str)
    if not is_number or not 0 <= float(tolerance) < np.inf:
        raise ValueError(
            f"tolerance must be a finite number that is not negative; got {tolerance!r}."
        )


def _result(
    problem: Problem,
    states: State,
    tolerance: float,
    wall_time: float,
    stopped: str | None,
    loop: Loop,
) -> FitResult:
    """The best fit of every member, and how all of them ended."""
    # Many small pieces are read: on the host, where that is cheap.
    host: Any = jax.tree.map(np.asarray, states._replace(optimizer=None))
    ends = [_ending(host, k, problem, tolerance, stopped) for k in range(host.step.size)]
    count = problem.num_members
    loss = np.array([end.loss for end in ends]).reshape(-1, count)
    chosen = np.argmin(loss, axis=0) * count + np.arange(count)
    many = problem.independent
    raw = host.layout.raws(host.best[chosen if many else chosen[0]])
    raw = {path: on_device(value) for path, value in raw.items()}
    tables = [RestartTable(ends[i::count]) for i in range(count)]
    best = [ends[k] for k in chosen]
    end = max(b.num_steps for b in best) + 1
    losses = host.losses[chosen, :end]
    norms = host.norms[chosen, :end] / problem.num_cells
    model = model_at(problem, raw)
    return FitResult(
        model=model,
        losses=losses if many else losses[0],
        gradient_norms=norms if many else norms[0],
        converged=np.array([b.converged for b in best]) if many else best[0].converged,
        reason=tuple(b.reason for b in best) if many else best[0].reason,
        num_steps=np.array([b.num_steps for b in best]) if many else best[0].num_steps,
        wall_time=wall_time,
        parameters=problem.table(model),
        restarts=tuple(tables) if many else tables[0],
        problem=problem,
        raw=raw,
        loop=loop,
    )


def _ending(
    states: State,
    k: int,
    problem: Problem,
    tolerance: float,
    stopped: str | None,
) -> Restart:
    status, count = int(states.status[k]), int(states.step[k])
    num_steps = states.losses.shape[1] - 1
    per_cell = " per cell" if problem.num_cells != 1 else ""
    limit = f"the limit of {num_steps} steps was reached"
    reason = {
        RUNNING: limit if count > num_steps else stopped or "it is still running",
        CONVERGED: f"the unconstrained gradient{per_cell} is below {tolerance:g}",
        STALLED: "the loss no longer changes at this precision",
        ROUNDED: f"a step would gain less than rounding does to the loss, "
        f"{float(states.rounding[k]):.1g}",
        NOT_FINITE: _fault(states, k, problem),
    }[status]
    # Steps that a fault cuts short look as if nothing were left to gain.
    at_edge = bool(states.blocked[k]) and status in (STALLED, ROUNDED)
    return Restart(
        loss=float(states.best_loss[k]),
        converged=status in (CONVERGED, ROUNDED) and not at_edge,
        reason=_edge(states, k, problem) if at_edge else reason,
        num_steps=max(count - 1, 0),
        failed=status == NOT_FINITE,
    )


def _fault(states: State, k: int, problem: Problem) -> str:
    """What went non-finite, by parameter name."""
    last = max(int(states.step[k]) - 1, 0)
    value = float(states.losses[k, last])
    grad = states.layout.raws(np.asarray(states.grad[k]))
    gradients = [named(problem.model, path) for path, g in grad.items() if not np.isfinite(g).all()]
    parts = [] if np.isfinite(value) else [f"the loss is {value}"]
    if gradients:
        parts.append(f"the gradient is not finite in {', '.join(gradients)}")
    return f"{' and '.join(parts)} at step {last}"


def _edge(states: State, k: int, problem: Problem) -> str:
    """Where a loss ends that still falls, by the parameter in which it falls most."""
    grad = states.layout.raws(np.asarray(states.grad[k]))
    steepest = max(grad, key=lambda path: np.max(np.abs(grad[path]), initial=0.0))
    return (
        f"the loss still falls in {named(problem.model, steepest)}, but is not finite a step "
        "further: the model has no value there"
    )


def _check_finite_start(states: State, problem: Problem) -> None:
    """Refuse a call of which no fit could start."""
    hopeless = (np.asarray(states.status) == NOT_FINITE) & (np.asarray(states.step) == 1)
    if hopeless.all():
        if problem.is_estimated:  # iterations that do not converge say so themselves
            problem.seen(problem.model).log_marginal_likelihood_estimate(problem.y)
        raise FloatingPointError(
            f"The fit cannot start: {_fault(states, 0, problem)}. Start from other values "
            "(kx.replace), or check the data and the model there."
        )


def _warn_of_faults(tables: Sequence[RestartTable]) -> None:
    best = [min(table, key=lambda end: end.loss) for table in tables]
    failed = [end.reason for end in best if end.failed]
    if not failed:
        return
    which = "The fit" if len(best) == 1 else f"{len(failed)} of {len(best)} fits"
    warnings.warn(
        f"{which} stopped: {failed[0]}. The best point before it is returned.",
        RuntimeWarning,
        stacklevel=3,
    )
