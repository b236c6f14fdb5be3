"""The compiled loop of a fit, and the state that it carries from step to step."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from kronax.fitting.problem import Problem, Raw, precision

# L-BFGS that moves the loss by less than rounding this often in a row makes no further progress.
STALLED_STEPS = 5

# So many more steps whose gain is below what rounding does to the loss than others end a fit.
LOST_STEPS = 5

RUNNING, CONVERGED, NOT_FINITE, STALLED, ROUNDED = range(5)


class State(NamedTuple):
    """One fit, or several with a leading axis on every array.

    `losses[k]` and `norms[k]` belong to the point after `k` steps; `step` counts the points that
    were judged, and `grad` is the gradient at the last of them. `fresh` is the loss at which a
    stuck line search was last started afresh. `move` is the last step, `slope` the derivative of
    the loss along it, and `gain` what the optimiser's whole step would have gained. `lost` counts
    gains below `rounding`, by which losses miss what their gradients say, less those above.
    """

    raw: Raw
    optimizer: Any
    best: Raw
    best_loss: Array
    fresh: Array
    losses: Array
    norms: Array
    step: Array
    stalled: Array
    status: Array
    bad: dict[str, Array]
    member: Array
    move: Raw
    slope: Array
    gain: Array
    lost: Array
    rounding: Array
    grad: Raw


def start(starts: Raw, members: Array, optimizer: Any, num_steps: int) -> State:
    """The state of several fits, `(num_fits, …)` per parameter, before the first step."""
    dtype = precision(starts)
    count = members.size
    state = State(
        raw=starts,
        optimizer=jax.vmap(optimizer.init)(starts),
        best=starts,
        best_loss=jnp.full(count, jnp.inf, dtype),
        fresh=jnp.full(count, jnp.inf, dtype),
        losses=jnp.full((count, num_steps + 1), jnp.nan, dtype),
        norms=jnp.full((count, num_steps + 1), jnp.nan, dtype),
        step=jnp.zeros(count, jnp.int32),
        stalled=jnp.zeros(count, jnp.int32),
        status=jnp.full(count, RUNNING, jnp.int32),
        bad={path: jnp.zeros(count, bool) for path in starts},
        member=members,
        move=jax.tree.map(jnp.zeros_like, starts),
        slope=jnp.zeros(count, dtype),
        gain=jnp.full(count, jnp.inf, dtype),
        lost=jnp.zeros(count, jnp.int32),
        rounding=jnp.zeros(count, dtype),
        grad=jax.tree.map(jnp.zeros_like, starts),
    )
    # No buffer is shared with the model of the caller, nor one leaf with another: the compiled
    # loop takes them over.
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)


@eqx.filter_jit(donate="all-except-first")
def advance(
    fixed: tuple[Problem, optax.GradientTransformation, Array], states: State, until: Array
) -> State:
    """Steps of every fit until a count, convergence or a fault; the buffers are used again.

    On a CPU the fits go one after another: there is nothing to gain from a batch of
    decompositions, and each stops at its own step. Elsewhere they go side by side.
    """

    def one(state: State) -> State:
        return _one(*fixed, state, until)

    if states.step.size == 1:
        alone = one(jax.tree.map(lambda x: x[0], states))
        return jax.tree.map(lambda x: x[None], alone)
    return jax.vmap(one)(states) if side_by_side() else jax.lax.map(one, states)


class Loop(NamedTuple):
    """What tells one compiled loop from others of the same problem."""

    optimizer: Any
    num_fits: int
    num_steps: int

    def __reduce__(self) -> Any:
        """Nothing in a pickle: optimisers are closures, and no program goes with them."""
        return type(None), ()


def gradients_by(loop: Loop, problem: Problem, raw: Raw) -> Any:
    """Losses and gradients at points `(num_points, p)`: what fits that start there see first.

    The loop is that of a fit which was run: nothing is compiled.
    """
    ends = np.cumsum([raw[path].size for path in sorted(raw)])
    anything = jnp.full((), jnp.inf, precision(raw))  # converged wherever it starts
    members = jnp.zeros(loop.num_fits, jnp.int32)

    def several(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = zip(sorted(raw), np.split(points, ends[:-1], axis=1), strict=True)
        starts = {path: jnp.array(part.reshape(-1, *raw[path].shape)) for path, part in parts}
        states = start(starts, members, loop.optimizer, loop.num_steps)
        seen = advance((problem, loop.optimizer, anything), states, jnp.asarray(1, jnp.int32))
        flat = [np.asarray(seen.grad[path]).reshape(len(points), -1) for path in sorted(raw)]
        return np.asarray(seen.losses)[:, 0], np.concatenate(flat, axis=1)

    def gradients(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = len(points)
        batches = np.resize(points, (-(-count // loop.num_fits), loop.num_fits, points.shape[1]))
        losses, found = zip(*map(several, batches), strict=True)
        return np.concatenate(losses)[:count], np.concatenate(found)[:count]

    return gradients


def side_by_side() -> bool:
    """Whether several fits go in one batch here."""
    return jax.default_backend() != "cpu"


def _one(problem: Problem, optimizer: Any, threshold: Array, state: State, until: Array) -> State:
    num_steps = state.losses.size - 1
    update = optax.with_extra_args_support(optimizer).update

    def loss(raw: Raw) -> Array:
        return problem.value(raw, state.member)

    held = [optax.tree_utils.tree_get(state.optimizer, k, default=None) for k in ("value", "grad")]
    searches = all(h is not None for h in held)

    def evaluate(state: State) -> tuple[Array, Raw]:
        if not searches:
            return jax.value_and_grad(loss)(state.raw)
        # A line search has evaluated the point that it chose.
        return optax.value_and_grad_from_state(loss)(state.raw, state=state.optimizer)

    def move(operands: tuple[State, Array, Raw]) -> tuple[Raw, Any, Raw]:
        state, value, grad = operands
        # optax mixes integer types, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, new = update(
                grad, state.optimizer, state.raw, value=value, grad=grad, value_fn=loss
            )
        return optax.apply_updates(state.raw, updates), new, updates

    def rest(operands: tuple[State, Array, Raw]) -> tuple[Raw, Any, Raw]:
        return operands[0].raw, operands[0].optimizer, operands[0].move

    def step(state: State) -> State:
        value, grad = evaluate(state)
        new = _judge(state, value, grad, threshold, searches)
        going = (new.status == RUNNING) & (state.step < num_steps)
        raw, optimizer_state, moved = jax.lax.cond(going, move, rest, (state, value, grad))
        new = new._replace(raw=raw, optimizer=optimizer_state)
        return _afresh(_announced(new, moved, grad), optimizer) if searches else new

    def going(state: State) -> Array:
        return (state.status == RUNNING) & (state.step < until)

    return jax.lax.while_loop(going, step, state)


def _judge(state: State, value: Array, grad: Raw, threshold: Array, searches: bool) -> State:
    """Record a point, and say whether to go on from it.

    Only a line search that no longer moves is stuck: other optimisers may rest on purpose.
    """
    norm = jnp.max(jnp.stack([jnp.max(jnp.abs(g), initial=0.0) for g in grad.values()]))
    bad = {path: ~jnp.all(jnp.isfinite(g)) for path, g in grad.items()}
    failed = ~jnp.isfinite(value) | jnp.any(jnp.stack(list(bad.values())))
    previous = jnp.where(state.step > 0, state.losses[state.step - 1], jnp.inf)
    tiny = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    still = searches & (jnp.abs(previous - value) <= tiny)
    stalled = jnp.where(still, state.stalled + 1, 0)
    lost, rounding = _lost(state, value - previous, grad)
    status = jnp.where(stalled >= STALLED_STEPS, STALLED, RUNNING)
    # A search that is stuck where rounding, more than that of one number, hides what a step would
    # gain has come as far.
    hidden = (stalled >= STALLED_STEPS) & (state.gain <= rounding) & (rounding > tiny)
    status = jnp.where((lost >= LOST_STEPS) | hidden, ROUNDED, status)
    status = jnp.where(norm <= threshold, CONVERGED, status)
    status = jnp.where(failed, NOT_FINITE, status).astype(jnp.int32)
    # The point whose gradient is small is the one to return, even where rounding hides that its
    # loss is the lowest.
    ended = (status == CONVERGED) | (status == ROUNDED)
    level = ended & (value <= state.best_loss + 25 * tiny + 2 * rounding)
    better = ~failed & ((value < state.best_loss) | level)
    return state._replace(
        best=jax.tree.map(lambda new, old: jnp.where(better, new, old), state.raw, state.best),
        best_loss=jnp.where(better, value, state.best_loss),
        losses=state.losses.at[state.step].set(value),
        norms=state.norms.at[state.step].set(norm),
        step=state.step + 1,
        stalled=stalled.astype(jnp.int32),
        status=status,
        bad=bad,
        lost=lost.astype(jnp.int32),
        rounding=rounding,
        grad=jax.tree.map(lambda g, old: g.astype(old.dtype), grad, state.grad),
    )


def _announced(state: State, moved: Raw, grad: Raw) -> State:
    """With what the gradient promises of a step, and of the whole step that a search shortened."""
    slope = optax.tree_utils.tree_vdot(moved, grad).astype(state.slope.dtype)
    share = optax.tree_utils.tree_get(state.optimizer, "learning_rate", default=None)
    gain = jnp.abs(slope) / (jnp.ones_like(slope) if share is None else share.astype(slope.dtype))
    return state._replace(move=moved, slope=slope, gain=gain)


def _lost(state: State, change: Array, grad: Raw) -> tuple[Array, Array]:
    """How much more often than not the gain of a step was less than rounding, and that rounding.

    The trapezoidal rule is right to third order in the step, and gradients keep digits where
    losses, sums of many large numbers, have lost them. A step that was not taken tells nothing.
    """
    along = optax.tree_utils.tree_vdot(state.move, grad).astype(change.dtype)
    missed = jnp.abs(change - (state.slope + along) / 2)
    is_lost = (state.gain <= missed) & (state.step > 0)
    is_idle = (missed == 0) | ~jnp.isfinite(missed)
    count = jnp.where(is_lost, state.lost + 1, jnp.maximum(state.lost - 1, 0))
    is_seen = is_lost & ~is_idle
    return jnp.where(is_idle, state.lost, count), jnp.where(is_seen, missed, state.rounding)


def _afresh(state: State, optimizer: Any) -> State:
    """A stuck line search may have stale curvature: it forgets, as long as that gains something."""
    again = (state.status == STALLED) & (state.best_loss < state.fresh)
    new = state._replace(
        raw=state.best,
        optimizer=optimizer.init(state.best),
        fresh=state.best_loss,
        stalled=jnp.zeros((), jnp.int32),
        status=jnp.asarray(RUNNING, jnp.int32),
    )
    return jax.tree.map(lambda a, b: jnp.where(again, a, b), new, state)
