"""The compiled loop of a fit, and the state that it carries from step to step."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kronax.fitting.lbfgs import LBFGS, afresh, looked, narrower, turned
from kronax.fitting.problem import Problem, Raw
from kronax.linalg.arrays.host import numpy_of
from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import where

# L-BFGS that moves the loss by less than rounding this often in a row makes no further progress.
STALLED_STEPS = 5

# So many more steps whose gain is below what rounding does to the loss than others end a fit.
LOST_STEPS = 5

RUNNING, CONVERGED, NOT_FINITE, STALLED, ROUNDED = range(5)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the numbers of every parameter stand in one vector: in the order of their paths."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Layout":
        """That of raw values."""
        return cls(tuple((path, tuple(np.shape(raw[path]))) for path in sorted(raw)))

    def vectors(self, raws: Mapping[str, Any]) -> Any:
        """`(…, p)`, from `(…, *shape)` for every parameter."""
        parts = []
        for path, shape in self.shapes:
            batch = raws[path].shape[: raws[path].ndim - len(shape)]
            parts.append(raws[path].reshape((*batch, math.prod(shape))))
        return numpy_of(parts[0]).concatenate(parts, axis=-1)

    def raws(self, vectors: Any) -> dict[str, Any]:
        """And back."""
        found, begin = {}, 0
        for path, shape in self.shapes:
            end = begin + math.prod(shape)
            found[path] = vectors[..., begin:end].reshape((*vectors.shape[:-1], *shape))
            begin = end
        return found


class Promise(NamedTuple):
    """The last step, the derivative of the loss along it, and what the whole step would gain."""

    move: Array
    slope: Array
    gain: Array


class State(NamedTuple):
    """One fit, or several with a leading axis on every array.

    Points and gradients are vectors, by `layout`. `losses[k]` and `norms[k]` belong to the point
    after `k` steps; `step` counts the points that were judged, and `grad` is the gradient at the
    last of them. `fresh` is the loss at which a stuck line search was last started afresh. `lost`
    counts gains below `rounding`, by which losses miss what their gradients say, less those above.
    `promise` is that of an optimiser of optax, which moves before the loss is seen. `hints` is what
    the loss found on the way at the last point, from where it goes on at the next.
    `blocked` says whether the last line search met a loss that is not finite.
    """

    layout: Layout
    raw: Array
    optimizer: Any
    promise: Any
    best: Array
    best_loss: Array
    fresh: Array
    losses: Array
    norms: Array
    step: Array
    stalled: Array
    status: Array
    member: Array
    lost: Array
    rounding: Array
    grad: Array
    blocked: Array
    hints: Any


def start(
    starts: Mapping[str, np.ndarray],
    members: np.ndarray,
    optimizer: Any,
    num_steps: int,
    hints: Any = None,
) -> State:
    """The state of several fits, `(num_fits, …)` per parameter, before the first step."""
    layout = Layout.of({path: value[0] for path, value in starts.items()})
    points: Any = layout.vectors(starts)
    count = members.size
    unknown: Any = np.full(count, np.inf, points.dtype)
    room: Any = np.full((count, num_steps + 1), np.nan, points.dtype)
    zeros: Any = np.zeros(count, np.int32)
    never: Any = np.zeros(count, bool)
    promise = Promise(np.zeros_like(points), np.zeros_like(unknown), unknown)
    state = State(
        layout=layout,
        raw=points,
        optimizer=begun(layout, points, optimizer),
        promise=None if isinstance(optimizer, LBFGS) else promise,
        best=points,
        best_loss=unknown,
        fresh=unknown,
        losses=room,
        norms=room,
        step=zeros,
        stalled=zeros,
        status=np.full_like(zeros, RUNNING),
        member=zeros + members.astype(np.int32),
        lost=zeros,
        rounding=np.zeros_like(unknown),
        grad=np.zeros_like(points),
        blocked=never,
        hints=jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), hints),
    )
    return owned(state)


def begun(layout: Layout, points: np.ndarray, optimizer: Any) -> Any:
    """The state of an optimiser at points `(num_fits, p)`."""
    if isinstance(optimizer, LBFGS):
        return optimizer.init(points)
    return jax.vmap(lambda point: optimizer.init(layout.raws(point)))(jnp.asarray(points))


def owned(state: State) -> State:
    """With buffers of its own, none of them twice: the compiled loop takes them over."""

    def copied(x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jnp.array(x) if is_key else jax.device_put(np.array(x))

    return jax.tree.map(copied, state)


@eqx.filter_jit(donate="all-except-first")
def advance(fixed: tuple[Problem, Any, Any], states: State, until: Any) -> State:
    """Steps of every fit until a count, convergence or a fault; the buffers are used again.

    On a CPU the fits go one after another: there is nothing to gain from a batch of
    decompositions, and each stops at its own step. Elsewhere they go side by side. Fits of data
    that are shared out over devices go where their data are.
    """
    if fixed[0].fits_per_device is None:
        return _advanced(fixed, states, until)
    return _advanced_by_device(fixed, states, until)


def _advanced_by_device(fixed: tuple[Problem, Any, Any], states: State, until: Any) -> State:
    """Every device has some of the independent data sets, all fits of these, and no other."""
    problem, optimizer, threshold = fixed
    mesh, names = problem.fits_per_device
    count = problem.num_members
    arrays, rest = eqx.partition(eqx.tree_at(lambda p: p.y, problem, None), eqx.is_array)

    def local(y: Array, arrays: Any, threshold: Any, states: State, until: Any) -> State:
        here = eqx.combine(arrays, rest)
        here = dataclasses.replace(here, y=y, fits_per_device=None)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
        own = flat._replace(member=flat.member % len(y))
        new = _advanced((here, optimizer, threshold), own, until)._replace(member=flat.member)
        return jax.tree.map(lambda x: x.reshape(-1, len(y), *x.shape[1:]), new)

    everywhere, by_data, by_member = P(), P(names), P(None, names)
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_data, everywhere, everywhere, by_member, everywhere),
        out_specs=by_member,
        check_vma=False,
    )
    grouped = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), states)
    data: Any = problem.y
    moved = run(data, arrays, threshold, grouped, until)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moved)


def _advanced(fixed: tuple[Problem, Any, Any], states: State, until: Any) -> State:
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
    layout = Layout.of(raw)
    members = np.zeros(loop.num_fits, np.int32)

    def several(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states = start(
            layout.raws(points), members, loop.optimizer, loop.num_steps, problem.first_hints
        )
        anything = np.asarray(np.inf, points.dtype)  # converged wherever it starts
        seen = advance((problem, loop.optimizer, anything), states, np.asarray(1, np.int32))
        return np.asarray(seen.losses)[:, 0], np.asarray(seen.grad)

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
    def loss(point: Array, hints: Any) -> tuple[Array, Any]:
        return problem.value_from(state.layout.raws(point), state.member, hints)

    def going(state: State) -> Array:
        return (state.status == RUNNING) & (state.step < until)

    if isinstance(optimizer, LBFGS):
        return jax.lax.while_loop(going, _turns(loss, threshold), state)
    # A line search of optax looks at many points a step, each by itself.
    plain = partial(_without_hints, loss, state.hints)
    return jax.lax.while_loop(going, _steps(plain, optimizer, state, threshold), state)


def _without_hints(loss: Any, hints: Any, point: Array) -> Array:
    return loss(point, hints)[0]


def _turns(loss: Any, threshold: Array) -> Any:
    """One look at the loss, and a step if the search along its line ends there."""

    def turn(state: State) -> State:
        evaluated = jax.value_and_grad(loss, has_aux=True)
        (value, hints), grad = evaluated(state.raw, state.hints)
        value, state = value.astype(grad.dtype), state._replace(hints=hints)
        search, is_taken = looked(state.optimizer, _previous(state), value, grad)

        def step(state: State) -> State:
            promise = Promise(
                search.share * search.direction,
                search.share * search.slope,
                jnp.abs(search.slope),
            )
            new = _judge(state, promise, value, grad, threshold, search.is_stuck)
            new, is_stale = _forgiven(new)
            goes_on = (new.status == RUNNING) & (state.step < state.losses.size - 1)
            memory = state.optimizer.memory
            ways = (
                lambda: (state.raw, search._replace(trials=jnp.zeros_like(search.trials))),
                lambda: _begun(turned(memory, state.raw, grad)),
                lambda: (new.best, afresh(memory)),
            )
            which = jnp.where(is_stale, 2, goes_on.astype(jnp.int32))
            raw, optimizer = jax.lax.switch(which, ways)
            return new._replace(raw=raw, optimizer=optimizer, blocked=state.blocked & ~goes_on)

        def again(state: State) -> State:
            onward, blocked = narrower(search), state.blocked | ~jnp.isfinite(value)
            return state._replace(raw=onward.point, optimizer=onward, blocked=blocked)

        return jax.lax.cond(is_taken, step, again, state)

    def _begun(search: Any) -> tuple[Array, Any]:
        return search.point, search

    return turn


def _steps(loss: Any, optimizer: Any, state: State, threshold: Array) -> Any:
    """A step of an optimiser of optax, whose line search, if any, looks at the loss itself."""
    layout, num_steps = state.layout, state.losses.size - 1
    update = optax.with_extra_args_support(optimizer).update
    held = [optax.tree_utils.tree_get(state.optimizer, k, default=None) for k in ("value", "grad")]
    searches = all(h is not None for h in held)

    def loss_of(raw: Raw) -> Array:
        return loss(layout.vectors(raw))

    def evaluate(state: State) -> tuple[Array, Array]:
        if not searches:
            return jax.value_and_grad(loss)(state.raw)
        # A line search has evaluated the point that it chose.
        evaluated = optax.value_and_grad_from_state(loss_of)
        value, grad = evaluated(layout.raws(state.raw), state=state.optimizer)
        return value, layout.vectors(grad)

    def move(operands: tuple[State, Array, Array]) -> tuple[Array, Any, Promise]:
        state, value, grad = operands
        raw, tree = layout.raws(state.raw), layout.raws(grad)
        # optax mixes integer types, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, new = update(
                tree, state.optimizer, raw, value=value, grad=tree, value_fn=loss_of
            )
        moved = layout.vectors(updates)
        there = layout.vectors(optax.apply_updates(raw, updates))
        return there, new, _promised(new, moved, grad) if searches else state.promise

    def rest(operands: tuple[State, Array, Array]) -> tuple[Array, Any, Promise]:
        return operands[0].raw, operands[0].optimizer, operands[0].promise

    def step(state: State) -> State:
        value, grad = evaluate(state)
        new = _judge(state, state.promise, value, grad, threshold, searches=searches)
        going = (new.status == RUNNING) & (state.step < num_steps)
        raw, state_of, promise = jax.lax.cond(going, move, rest, (state, value, grad))
        new = new._replace(raw=raw, optimizer=state_of, promise=promise)
        return _afresh(new, optimizer) if searches else new

    return step


def _previous(state: State) -> Array:
    """The loss at the point that was judged last."""
    return where(state.step > 0, state.losses[state.step - 1], jnp.inf)


def _judge(
    state: State,
    promise: Promise,
    value: Array,
    grad: Array,
    threshold: Array,
    is_stuck: Array | bool = False,
    searches: bool = True,
) -> State:
    """Record a point, and say whether to go on from it.

    Only a line search that no longer moves is stuck: other optimisers may rest on purpose.
    """
    norm = jnp.max(jnp.abs(grad), initial=0.0)
    failed = ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(grad)))
    previous = _previous(state)
    tiny = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    still = searches & (jnp.abs(previous - value) <= tiny)
    stalled = jnp.where(is_stuck, STALLED_STEPS, jnp.where(still, state.stalled + 1, 0))
    lost, rounding = _lost(state, promise, value - previous, grad)
    status = jnp.where(stalled >= STALLED_STEPS, STALLED, RUNNING)
    # A search that is stuck where rounding, more than that of one number, hides what a step would
    # gain has come as far.
    hidden = (stalled >= STALLED_STEPS) & (promise.gain <= rounding) & (rounding > tiny)
    status = jnp.where((lost >= LOST_STEPS) | hidden, ROUNDED, status)
    status = jnp.where(norm <= threshold, CONVERGED, status)
    status = jnp.where(failed, NOT_FINITE, status).astype(jnp.int32)
    # The point whose gradient is small is the one to return, even where rounding hides that its
    # loss is the lowest.
    ended = (status == CONVERGED) | (status == ROUNDED)
    level = ended & (value <= state.best_loss + 25 * tiny + 2 * rounding)
    better = ~failed & ((value < state.best_loss) | level)
    return state._replace(
        best=jnp.where(better, state.raw, state.best),
        best_loss=jnp.where(better, value, state.best_loss),
        losses=state.losses.at[state.step].set(value),
        norms=state.norms.at[state.step].set(norm),
        step=state.step + 1,
        stalled=stalled.astype(jnp.int32),
        status=status,
        lost=lost.astype(jnp.int32),
        rounding=rounding,
        grad=grad.astype(state.grad.dtype),
    )


def _promised(optimizer: Any, moved: Array, grad: Array) -> Promise:
    """What the gradient promises of a step, and of the whole step that a search shortened."""
    slope = matmul(moved, grad)
    share = optax.tree_utils.tree_get(optimizer, "learning_rate", default=None)
    gain = jnp.abs(slope) / (jnp.ones_like(slope) if share is None else share.astype(slope.dtype))
    return Promise(moved, slope, gain)


def _lost(state: State, promise: Promise, change: Array, grad: Array) -> tuple[Array, Array]:
    """How much more often than not the gain of a step was less than rounding, and that rounding.

    The trapezoidal rule is right to third order in the step, and gradients keep digits where
    losses, sums of many large numbers, have lost them. A step that was not taken tells nothing.
    """
    along = matmul(promise.move, grad).astype(change.dtype)
    missed = jnp.abs(change - (promise.slope + along) / 2)
    is_lost = (promise.gain <= missed) & (state.step > 0)
    is_idle = (missed == 0) | ~jnp.isfinite(missed)
    count = jnp.where(is_lost, state.lost + 1, jnp.maximum(state.lost - 1, 0))
    is_seen = is_lost & ~is_idle
    return jnp.where(is_idle, state.lost, count), jnp.where(is_seen, missed, state.rounding)


def _forgiven(state: State) -> tuple[State, Array]:
    """A stuck line search may have stale curvature: it forgets, as long as that gains something."""
    again = (state.status == STALLED) & (state.best_loss < state.fresh)
    forgiven = state._replace(
        fresh=jnp.where(again, state.best_loss, state.fresh),
        stalled=jnp.where(again, 0, state.stalled),
        status=jnp.where(again, RUNNING, state.status),
    )
    return forgiven, again


def _afresh(state: State, optimizer: Any) -> State:
    """The same for an optimiser of optax."""
    new, again = _forgiven(state)
    start = state.best, optimizer.init(state.layout.raws(state.best))
    raw, own = jax.tree.map(
        lambda a, b: jnp.where(again, a, b), start, (state.raw, state.optimizer)
    )
    return new._replace(raw=raw, optimizer=own)
