"""Fit the parameters of a model with optax, in unconstrained space."""

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from tqdm.auto import tqdm

from kronax.parameters import ParameterTable, parameters, unconstrain

# Between two looks at a running fit (for the progress bar, Ctrl-C and faults) pass about this
# many seconds; the steps in between are one compiled loop.
SECONDS_PER_CHUNK = 0.25
# L-BFGS that moves the loss by less than rounding this often in a row makes no further progress.
STALLED_STEPS = 5

RUNNING, CONVERGED, NOT_FINITE, STALLED = range(4)

# One object, so that every fit with the default shares its compiled loop.
_LBFGS = optax.lbfgs()


class FitResult(eqx.Module):
    """What `kx.fit` returns.

    Attributes:
        model: the model at the best parameters found.
        losses: the loss at every step, in total nats for a GP.
        gradient_norms: the largest unconstrained gradient entry per cell, at every step.
        converged: the last of these is below the tolerance.
        reason: why the fit stopped, in words.
        num_steps: number of steps taken.
        wall_time: seconds, compilation included.
        parameters: table of the parameters at the best point.
    """

    model: Any
    losses: np.ndarray
    gradient_norms: np.ndarray
    converged: bool
    reason: str
    num_steps: int
    wall_time: float
    parameters: ParameterTable

    def summary(self) -> str:
        """A readable account: how it ended, and the parameters."""
        state = "converged" if self.converged else "not converged"
        start = (
            f"{state} after {self.num_steps} steps in {self.wall_time:.1f} s: {self.reason}\n"
            f"loss {self.losses[0]:.6g} → {np.nanmin(self.losses):.6g}"
        )
        return f"{start}\n{self.parameters!r}"

    def __repr__(self) -> str:
        return self.summary()


class _State(NamedTuple):
    raw: dict[str, Array]
    optimizer: Any
    best: dict[str, Array]
    best_loss: Array
    losses: Array
    norms: Array
    step: Array
    stalled: Array
    status: Array
    bad: dict[str, Array]


def fit(
    model: Any,
    y: Any = None,
    *,
    loss: Callable[[Any], Array] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 200,
    tolerance: float | None = None,
    freeze: Collection[str] = (),
    domains: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FitResult:
    """Maximise the marginal likelihood of a `GridGP`, or minimise any loss of a module.

    Parameters move in unconstrained space, so that a positive one stays positive. The best point
    seen is returned, whatever happens later.

    Args:
        model: a `kx.GridGP`, or any Equinox module with `loss`.
        y: data for a GridGP, `(n_1, …, n_d)` or `(N,)`; losses of a leading batch are added.
        loss: `loss(model)`, a scalar to be minimised, instead of `y`.
        optimizer: any optax transformation; by default `optax.lbfgs()` with its line search.
        num_steps: at most this many steps.
        tolerance: converged when the largest entry of the unconstrained gradient, per cell for a
            GridGP, is below this; by default 1e-6 in float64 and 1e-5 in float32.
        freeze: parameter paths, or beginnings of paths, that stay as they are.
        domains: NumPyro constraints by path, for numbers without a declared domain.
        progress: show a bar in a terminal or notebook.

    Returns:
        A `FitResult`.

    Raises:
        ValueError: if nothing is trainable, or a parameter starts outside its domain.
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
    problem, scale = _problem(model, y, loss, freeze, domains)
    raw, build = problem.unconstrained()
    _check_trainable(model, raw, freeze, domains)
    optimizer = _LBFGS if optimizer is None else optimizer
    _check_optimizer(optimizer)
    _check_steps(num_steps)
    if tolerance is None:
        tolerance = 1e-6 if jnp.finfo(_precision(raw)).bits == 64 else 1e-5

    state = _start(raw, optimizer, num_steps)
    threshold = jnp.asarray(tolerance * scale, _precision(raw))
    state = _drive(problem, optimizer, state, threshold, progress)
    wall_time = time.perf_counter() - began
    return _result(state, build, scale, num_steps, tolerance, wall_time, (freeze, domains))


class _Problem(eqx.Module):
    """What is minimised: a pytree, so that fits of one form share one compiled loop."""

    model: Any
    y: Array | None
    loss: Callable[[Any], Array] | None = eqx.field(static=True)
    freeze: tuple[str, ...] = eqx.field(static=True)
    domains: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def unconstrained(self) -> tuple[dict[str, Array], Callable]:
        return unconstrain(self.model, freeze=self.freeze, domains=dict(self.domains))

    def value(self, raw: dict[str, Array]) -> Array:
        model = self.unconstrained()[1](raw)
        if self.loss is not None:
            return self.loss(model)
        return -jnp.sum(model.log_marginal_likelihood(self.y))


def _problem(model: Any, y: Any, loss: Any, freeze: Any, domains: Any) -> tuple[_Problem, float]:
    """The problem, and the number of cells that its gradient is judged by."""
    if (y is None) == (loss is None):
        raise TypeError(
            "kx.fit needs either data `y` (for a GridGP) or a `loss` of the model; got "
            f"{'neither' if y is None else 'both'}."
        )
    # A single string is refused later, with its own message.
    frozen: Any = freeze if isinstance(freeze, str) else tuple(freeze)
    given = tuple((domains or {}).items())
    if loss is not None:
        _check_loss(model, loss)
        return _Problem(model, None, loss, frozen, given), 1.0
    if not hasattr(model, "log_marginal_likelihood") or isinstance(model, type):
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"kx.fit(model, y) needs a GridGP; got {name}{' itself' * isinstance(model, type)}. "
            "For another module pass `loss=`, a function of the model."
        )
    grid = model.check_data(y)
    return _Problem(model, grid, None, frozen, given), float(grid.size)


def _check_trainable(model: Any, raw: dict, freeze: Any, domains: Any) -> None:
    if not raw:
        table = parameters(model, freeze=freeze, domains=domains)
        raise ValueError(
            "Nothing is trainable: every parameter is frozen, has no known domain, or is a plain "
            "number rather than an array. Unfreeze one, give `domains=`, or declare fields with "
            f"kx.parameter.\n{table!r}"
        )


def _check_loss(model: Any, loss: Any) -> None:
    if not callable(loss):
        raise TypeError(f"The loss must be a function of the model; got {loss!r}.")
    shape = getattr(eqx.filter_eval_shape(loss, model), "shape", ())
    if shape != ():
        raise ValueError(
            f"The loss must be a scalar; got shape {shape}. Reduce it, for example by jnp.sum."
        )


def _check_optimizer(optimizer: Any) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"The optimizer must be an optax transformation; got {optimizer!r}. Pass an instance, "
            "for example optax.adam(1e-2)."
        )


def _check_steps(num_steps: Any) -> None:
    if not isinstance(num_steps, int | np.integer) or isinstance(num_steps, bool) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer; got {num_steps!r}.")


def _precision(raw: dict[str, Array]) -> Any:
    return jnp.result_type(*(v.dtype for v in raw.values()))


def _start(raw: dict[str, Array], optimizer: Any, num_steps: int) -> _State:
    dtype = _precision(raw)
    state = _State(
        raw=raw,
        optimizer=optimizer.init(raw),
        best=raw,
        best_loss=jnp.asarray(jnp.inf, dtype),
        losses=jnp.full(num_steps + 1, jnp.nan, dtype),
        norms=jnp.full(num_steps + 1, jnp.nan, dtype),
        step=jnp.zeros((), jnp.int32),
        stalled=jnp.zeros((), jnp.int32),
        status=jnp.asarray(RUNNING, jnp.int32),
        bad={path: jnp.zeros((), bool) for path in raw},
    )
    return _own_buffers(state)


def _own_buffers(state: _State) -> _State:
    """A copy that shares no buffer with the model of the caller, nor one leaf with another."""
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)


@eqx.filter_jit(donate="all-except-first")
def _run(fixed: tuple[_Problem, Any, Array], state: _State, until: Array) -> _State:
    """Steps until a count, convergence or a fault; the buffers of `state` are used again."""
    problem, optimizer, threshold = fixed
    num_steps = state.losses.size - 1
    update = optax.with_extra_args_support(optimizer).update

    held = [optax.tree_utils.tree_get(state.optimizer, k, default=None) for k in ("value", "grad")]
    searches = all(h is not None for h in held)

    def evaluate(state: _State):
        if not searches:
            return jax.value_and_grad(problem.value)(state.raw)
        # A line search has evaluated the point that it chose.
        return optax.value_and_grad_from_state(problem.value)(state.raw, state=state.optimizer)

    def advance(operands):
        state, value, grad = operands
        # optax mixes integer types, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, new = update(
                grad, state.optimizer, state.raw, value=value, grad=grad, value_fn=problem.value
            )
        return optax.apply_updates(state.raw, updates), new

    def step(state: _State) -> _State:
        value, grad = evaluate(state)
        new = _judge(state, value, grad, threshold, searches)
        going = (new.status == RUNNING) & (state.step < num_steps)
        raw, optimizer_state = jax.lax.cond(
            going, advance, lambda o: (o[0].raw, o[0].optimizer), (state, value, grad)
        )
        return new._replace(raw=raw, optimizer=optimizer_state)

    def going(state: _State) -> Array:
        return (state.status == RUNNING) & (state.step < until)

    return jax.lax.while_loop(going, step, state)


def _judge(
    state: _State, value: Array, grad: dict[str, Array], threshold: Array, searches: bool
) -> _State:
    """Record a point, and say whether to go on from it.

    Only a line search that no longer moves is stuck: other optimisers may rest on purpose.
    """
    norm = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in grad.values()]))
    bad = {path: ~jnp.all(jnp.isfinite(g)) for path, g in grad.items()}
    failed = ~jnp.isfinite(value) | jnp.any(jnp.stack(list(bad.values())))
    previous = jnp.where(state.step > 0, state.losses[state.step - 1], jnp.inf)
    tiny = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    still = searches & (jnp.abs(previous - value) <= tiny)
    stalled = jnp.where(still, state.stalled + 1, 0)
    status = jnp.where(stalled >= STALLED_STEPS, STALLED, RUNNING)
    status = jnp.where(norm <= threshold, CONVERGED, status)
    status = jnp.where(failed, NOT_FINITE, status).astype(jnp.int32)
    better = ~failed & (value < state.best_loss)
    return state._replace(
        best=jax.tree.map(lambda new, old: jnp.where(better, new, old), state.raw, state.best),
        best_loss=jnp.where(better, value, state.best_loss),
        losses=state.losses.at[state.step].set(value),
        norms=state.norms.at[state.step].set(norm),
        step=state.step + 1,
        stalled=stalled.astype(jnp.int32),
        status=status,
        bad=bad,
    )


def _drive(
    problem: _Problem, optimizer: Any, state: _State, threshold: Array, progress: bool
) -> _State:
    """Run chunk after chunk, sized so that the bar moves and Ctrl-C is heard."""
    chunk, num_steps = 1, state.losses.size - 1
    fresh = float("inf")
    bar = tqdm(total=num_steps, desc="fit", disable=None if progress else True, leave=True)
    with bar:
        while int(state.status) == RUNNING and int(state.step) <= num_steps:
            before, began = int(state.step), time.perf_counter()
            until = jnp.asarray(min(before + chunk, num_steps + 1), jnp.int32)
            state = jax.block_until_ready(_run((problem, optimizer, threshold), state, until))
            if int(state.status) == STALLED and float(state.best_loss) < fresh:
                # A line search can be stuck with a stale curvature: start it afresh from here, as
                # long as that gains something.
                fresh = float(state.best_loss)
                state = _afresh(state, optimizer)
            seconds = (time.perf_counter() - began) / max(1, int(state.step) - before)
            bar.update(min(int(state.step), num_steps) - bar.n)
            bar.set_postfix(loss=f"{float(state.losses[int(state.step) - 1]):.6g}")
            chunk = max(1, min(2 * chunk, int(SECONDS_PER_CHUNK / max(seconds, 1e-9))))
    return state


def _afresh(state: _State, optimizer: Any) -> _State:
    """The state at the best point, with nothing remembered."""
    again = state._replace(
        raw=state.best,
        optimizer=optimizer.init(state.best),
        stalled=jnp.zeros((), jnp.int32),
        status=jnp.asarray(RUNNING, jnp.int32),
    )
    return _own_buffers(again)


def _result(state, build, scale, num_steps, tolerance, wall_time, settings) -> FitResult:
    count = int(state.step)
    status = int(state.status)
    losses = np.asarray(state.losses)[:count]
    norms = np.asarray(state.norms)[:count] / scale
    per_cell = " per cell" if scale != 1 else ""
    reason = {
        RUNNING: f"the limit of {num_steps} steps was reached",
        CONVERGED: f"the unconstrained gradient{per_cell} is below {tolerance:g}",
        STALLED: "the loss no longer changes at this precision",
        NOT_FINITE: _fault(state, count),
    }[status]
    if status == NOT_FINITE:
        if count == 1:
            raise FloatingPointError(
                f"The fit cannot start: {reason}. Start from other values (kx.replace), or check "
                "the data and the model there."
            )
        warnings.warn(
            f"The fit stopped: {reason}. The best point before it is returned.",
            RuntimeWarning,
            stacklevel=3,
        )
    model = build(state.best)
    freeze, domains = settings
    return FitResult(
        model=model,
        losses=losses,
        gradient_norms=norms,
        converged=status == CONVERGED,
        reason=reason,
        num_steps=count - 1,
        wall_time=wall_time,
        parameters=parameters(model, freeze=freeze, domains=domains),
    )


def _fault(state: _State, count: int) -> str:
    """What went non-finite, by parameter name."""
    value = float(state.losses[count - 1])
    gradients = [path for path, bad in state.bad.items() if bool(bad)]
    parts = [] if np.isfinite(value) else [f"the loss is {value}"]
    if gradients:
        parts.append(f"the gradient is not finite in {', '.join(gradients)}")
    return f"{' and '.join(parts)} at step {count - 1}"
