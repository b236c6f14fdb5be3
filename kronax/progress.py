"""What calls that take long say while they run, and how long a fit may still take."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

# A call says what it does after so many seconds in a terminal, on a line that is wiped again.
SECONDS_TO_SHOW = 2.0
# Where no line can be wiped, in a file, a pipe or a notebook, it says so after so many seconds, and
# again whenever the time has grown by this factor: a log of a night has a dozen lines.
SECONDS_TO_LINE = 10.0
LINE_GROWTH = 2.0
# Between two looks at the call that runs.
SECONDS_BETWEEN = 0.25
# Steps from which a fit is extrapolated, at least: before, its gradient tells nothing.
FEWEST_STEPS = 8


def is_wanted() -> bool:
    """Whether progress is shown: not with TQDM_DISABLE in the environment, as tqdm has it."""
    return os.environ.get("TQDM_DISABLE", "") in ("", "0") and jax.process_index() == 0


class Watch:
    """One thread that looks at the call that runs; calls inside of it are part of it."""

    def __init__(self) -> None:
        self._lock, self._called = threading.Lock(), threading.Event()
        self._running: tuple[Callable[[], str], float] | None = None
        self._thread: threading.Thread | None = None
        self._is_drawn = False

    @contextlib.contextmanager
    def over(self, what: Callable[[], str]) -> Iterator[None]:
        """Watch over a call, which `what` puts into words; it costs some microseconds."""
        if self._running is not None or not is_wanted():
            yield
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        self._running = what, time.perf_counter()
        self._called.set()
        try:
            yield
        finally:
            with self._lock:
                self._running = None
                if self._is_drawn:
                    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
                    self._is_drawn = False

    def _look(self) -> None:
        while self._called.wait():
            self._called.clear()
            seen, next_line = self._running, SECONDS_TO_LINE
            while seen is not None:
                time.sleep(SECONDS_BETWEEN)
                with self._lock:
                    if self._running is not seen:
                        break
                    next_line = self._say(*seen, next_line)

    def _say(self, what: Callable[[], str], began: float, next_line: float) -> float:
        seconds = time.perf_counter() - began
        line = f"{what()}: {seconds:.0f} s"
        if sys.stderr.isatty():
            if seconds >= SECONDS_TO_SHOW:
                self._is_drawn = True
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif seconds >= next_line:
            print(line, file=sys.stderr, flush=True)
            return LINE_GROWTH * seconds
        return next_line


WATCH = Watch()


def steps_left(norms: np.ndarray, threshold: float) -> float | None:
    """Steps until a gradient norm that falls as it did in its last half is below a threshold.

    Args:
        norms: of all steps so far.
        threshold: where the fit has converged.

    Returns:
        The number, or `None` if there are few steps, or the norm does not fall.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(norms, float) / threshold)
    if len(logs) < FEWEST_STEPS or not np.isfinite(logs).all():
        return None
    last = logs[-max(FEWEST_STEPS, len(logs) // 2) :]
    slope = np.polyfit(np.arange(len(last)), last, 1)[0]
    # One step may be lucky: where the fit is, its last three say.
    return max(0.0, float(np.median(last[-3:]) / -slope)) if slope < 0 else None
