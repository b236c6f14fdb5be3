"""The loop of a fit outside of compiled code: progress, interruption, checkpoints."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from kronax.fitting.checkpoint import Checkpoint
from kronax.fitting.problem import Problem
from kronax.fitting.steps import CONVERGED, RUNNING, State, advance, begun, owned
from kronax.linalg.arrays.host import everywhere, is_shared, of_all_processes
from kronax.progress import LINE_GROWTH, SECONDS_TO_LINE, is_wanted, steps_left

# Between two looks at a running fit (for the progress bar, Ctrl-C and callbacks) pass about this
# many seconds; the steps in between are one compiled loop.
SECONDS_PER_CHUNK = 0.25
# A fit that is over sooner shows no bar: drawing it would take longer than some fits.
SECONDS_TO_BAR = 0.1
# Without the time that is left by the limit of steps, which few fits come to.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
INTERRUPTED = "it was interrupted"

Fixed = tuple[Problem, Any, Any]


class Interruption:
    """Ctrl-C asks the fit to stop; a second one stops it at once.

    Outside the main thread Python delivers no signals, and nothing is caught.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old: Any = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Bar:
    """The progress bar of a fit that takes its time; in a file or a pipe lines, ever fewer."""

    def __init__(self, num_steps: int, wanted: bool, threshold: Any = 0.0) -> None:
        # Processes that work together are at the same step.
        self.num_steps, self.wanted = num_steps, wanted and is_wanted()
        self.threshold = float(np.min(np.asarray(threshold)))
        self.began = time.perf_counter()
        self._first: tuple[int, float] | None = None
        self._drawn: Any = None
        self._next_line = SECONDS_TO_LINE
        self._compiling = threading.Timer(SECONDS_TO_LINE, self._announce)
        self._compiling.daemon = True

    def __enter__(self) -> "Bar":
        if self.wanted and not sys.stderr.isatty():
            self._compiling.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._compiling.cancel()
        if self._drawn is not None:
            self._drawn.close()

    def show(self, states: State) -> None:
        """Draw ten times a second at most, and once more at the end."""
        self._compiling.cancel()
        if self._first is None:  # what comes before has been compiling as well
            self._first = _furthest(states), time.perf_counter()
        if not self.wanted or time.perf_counter() - self.began < SECONDS_TO_BAR:
            return
        if self._drawn is None:
            self._drawn = tqdm(total=self.num_steps, desc="fit", disable=None, bar_format=BAR)
            if not self._drawn.disable:
                self._drawn.start_t -= time.perf_counter() - self.began
        if self._drawn.disable:
            return self._write_line(states)
        shown = {"loss": f"{float(np.asarray(states.best_loss).min()):.6g}"}
        if states.step.size > 1:
            running = int(np.sum(np.asarray(states.status) == RUNNING))
            shown = {"running": f"{running} of {states.step.size}", **shown}
        if left := self._left(states):
            shown["left"] = left
        self._drawn.set_postfix(shown, refresh=False)
        self._drawn.update(min(_furthest(states), self.num_steps) - self._drawn.n)

    def _write_line(self, states: State) -> None:
        seconds = time.perf_counter() - self.began
        if seconds < self._next_line:
            return
        self._next_line = LINE_GROWTH * seconds
        loss = float(np.asarray(states.best_loss).min())
        step = min(_furthest(states), self.num_steps)
        line = f"fit: step {step} of at most {self.num_steps}, loss {loss:.6g}, {seconds:.0f} s"
        left = self._left(states)
        print(f"{line}, {left} left" if left else line, file=sys.stderr, flush=True)

    def _left(self, states: State) -> str:
        """How long it may still take, by how the gradients have fallen; of the slowest start."""
        first, since = self._first or (0, self.began)
        step, ends = _furthest(states), np.asarray(states.step)
        going = np.flatnonzero(np.asarray(states.status) == RUNNING)
        if step <= first or not going.size:
            return ""
        per_step = (time.perf_counter() - since) / (step - first)
        norms = np.asarray(states.norms)
        found = [steps_left(norms[k, : ends[k]], self.threshold) for k in going]
        most = float(self.num_steps - step)
        known = [most if left is None else left for left in found]
        if max(known) >= most:
            return f"at most {_duration(most * per_step)}"
        return f"about {_duration(max(known) * per_step)}"

    def _announce(self) -> None:
        seconds = time.perf_counter() - self.began
        line = f"fit: compiling, or in its first step, for {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def drive(
    fixed: Fixed,
    states: State,
    *,
    progress: bool,
    checkpoint: Checkpoint | None,
    every: int,
    report: Callable[[Problem, State, float], Any] | None,
    began: float,
) -> tuple[Problem, State, str | None, float]:
    """Run chunk after chunk.

    Returns the problem as it was solved in the end, the states, why they were stopped from outside
    if they were, and the seconds since `began`, with those of an earlier run that is continued.
    """
    loaded = checkpoint.load(states, fixed[0]) if checkpoint is not None else None
    before = 0.0
    if loaded is not None:
        problem, states, before = loaded
        fixed = (problem, *fixed[1:])
        states = _awake(states, fixed[2])

    def elapsed() -> float:
        return before + time.perf_counter() - began

    def save(states: State) -> None:
        if checkpoint is not None:
            checkpoint.save(states, elapsed())

    num_steps = states.losses.shape[1] - 1
    chunk, stopped, measure_at = 1, None, 1
    with (
        Bar(num_steps, progress, fixed[2]) as bar,
        Interruption() as interruption,
        _saved_at_the_end(lambda: save(states)),
    ):
        while (at := _position(states)) is not None:
            until = min(at + chunk, num_steps + 1)
            if checkpoint is not None:
                until = min(until, (at // every + 1) * every)
            until = _agreed(states, until)[0]
            since = time.perf_counter()
            states = jax.block_until_ready(
                _as_begun(advance(fixed, states, np.asarray(until, np.int32)))
            )
            seconds = (time.perf_counter() - since) / max(1, _furthest(states) - at)
            if until % every == 0:
                save(states)
            bar.show(states)
            if report is not None and _asks_to_stop(report(fixed[0], states, elapsed())):
                stopped = "the callback asked to stop"
            if interruption.asked:
                stopped = INTERRUPTED
            if _agreed(states, stopped is not None).any():
                stopped = stopped or "another process asked to stop"
                break
            if _furthest(states) > measure_at or _position(states) is None:
                measure_at = 2 * _furthest(states)
                fixed, states = remeasured(fixed, states)
            chunk = max(1, min(2 * chunk, int(SECONDS_PER_CHUNK / max(seconds, 1e-9))))
    return fixed[0], states, stopped, elapsed()


def _as_begun(states: State) -> State:
    """States where those of the start are: left on several devices they take another program."""
    arrays = [x for x in jax.tree.leaves(states) if isinstance(x, jax.Array)]
    if all(len(x.sharding.device_set) == 1 for x in arrays):
        return states
    return owned(_everywhere(states))


def _everywhere(states: State) -> State:
    """States that every process can read, where several work together."""
    shared = [x for x in jax.tree.leaves(states) if is_shared(x) and not x.is_fully_replicated]
    if not shared:
        return states
    return jax.jit(_itself, out_shardings=everywhere(shared[0]))(states)


def _itself(states: State) -> State:
    return states  # one function, so that one program is compiled for all steps


def _agreed(states: State, value: int | bool) -> np.ndarray:
    """A number of every process that works on these states, that of the first one first."""
    return of_all_processes(value) if is_shared(states.step) else np.asarray([value])


def remeasured(fixed: Fixed, states: State) -> tuple[Fixed, State]:
    """A loss by iterations where the fit has come to: another one if they serve no more.

    The best points so far then start afresh, since the losses of the two ways are not compared.
    """
    problem, optimizer, threshold = fixed
    best = int(np.asarray(states.best_loss).argmin())
    has_room = bool(np.all(np.asarray(states.step) < states.losses.shape[1]))
    if not (problem.is_estimated and problem.measured is not None and has_room):
        return fixed, states
    raw = states.layout.raws(np.asarray(states.best)[best])
    moved = problem.measured_at(raw, int(states.member[best]))
    if moved is problem:
        return fixed, states
    none: Any = np.full_like(states.best_loss, np.inf)
    zeros: Any = np.zeros_like(states.stalled)
    afresh = states._replace(
        raw=states.best,
        optimizer=begun(states.layout, np.asarray(states.best), optimizer),
        best_loss=none,
        fresh=none,
        stalled=zeros,
        status=zeros + RUNNING,
    )
    return (moved, optimizer, threshold), owned(afresh)


@contextlib.contextmanager
def _saved_at_the_end(save: Callable[[], None]) -> Iterator[None]:
    """Save whatever there is, also when a callback raises."""
    try:
        yield
    finally:
        save()


def _asks_to_stop(answer: Any) -> bool:
    if answer is None:
        return False
    if not isinstance(answer, bool | np.bool_ | jax.Array):
        raise TypeError(
            f"A callback must return None, or a boolean that ends the fit if true; got {answer!r}."
        )
    return bool(answer)


def _position(states: State) -> int | None:
    """The step of the fit that is furthest behind, or nothing if all have ended."""
    step, status = np.asarray(states.step), np.asarray(states.status)
    going = (status == RUNNING) & (step < states.losses.shape[1])
    return int(step[going].min()) if going.any() else None


def _furthest(states: State) -> int:
    return int(np.asarray(states.step).max())


def _awake(states: State, threshold: Array) -> State:
    """Saved states, where those that another tolerance had stopped judge their point again."""
    last = jnp.take_along_axis(states.norms, jnp.maximum(states.step - 1, 0)[:, None], axis=1)[:, 0]
    again = ((states.status == CONVERGED) & (last > threshold)).astype(jnp.int32)
    return states._replace(
        status=jnp.where(again == 1, RUNNING, states.status),
        step=states.step - again,
        stalled=jnp.maximum(states.stalled - again, 0),
    )
