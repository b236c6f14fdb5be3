"""Time candidates side by side, measure errors, and store both with where and when."""

import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 9
SHORTEST_ROUND_S = 0.01
PACKAGES = ("jax", "jaxlib", "numpyro", "numpy", "scipy")


class CandidateError(RuntimeError):
    """A candidate has no result, for a reason that goes into the tables."""


def seconds(
    call: Callable[[], Any], repeats: int = 1, clock: Callable[[], float] = perf_counter
) -> float:
    """Time of one call, from the mean of `repeats` in a row, until the results are there.

    A call in another process has its own `seconds`: it is timed there, without the way to it, and
    by a clock of its own.
    """
    if hasattr(call, "seconds"):
        return call.seconds(repeats)
    start = clock()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (clock() - start) / repeats


def alternate(
    candidates: dict[str, Callable[[], Any]],
    rounds: int = ROUNDS,
    budget_s: float = 15.0,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, dict[str, Any]]:
    """Median times of candidates that take turns, round by round, each in its own process.

    Short calls are repeated within a round. A candidate that would take longer than `budget_s` in
    all gets fewer rounds; one whose first call takes a third of that is not called again. One that
    raises `CandidateError` has no seconds but the reason.
    """
    failed: dict[str, str] = {}

    def timed(name: str, repeats: int = 1) -> float:
        try:
            return seconds(candidates[name], repeats, clock)
        except CandidateError as reason:
            failed[name] = str(reason)
            return float("nan")

    first = {name: timed(name) for name in candidates}
    slow = {name for name, taken in first.items() if taken > budget_s / 3}
    warm = {name: timed(name) for name in candidates if name not in slow | failed.keys()}
    times: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in first}
    for turn in range(rounds):
        for name, t in warm.items():
            if name not in failed and (turn == 0 or turn < budget_s / t):
                times[name].append(timed(name, max(1, round(SHORTEST_ROUND_S / t))))
    return {
        name: {"seconds": None, "error": failed[name]}
        if name in failed
        else {
            "seconds": median(taken),
            "quartiles": [float(q) for q in np.quantile(taken, (0.25, 0.75))],
            "rounds": len(taken),
            "first_call_seconds": first[name],
        }
        for name, taken in times.items()
    }


def shown(timing: dict[str, Any], unit: float = 1e-3, name: str = "ms") -> str:
    """A time for the log, or why there is none."""
    taken = timing["seconds"]
    return timing["error"] if taken is None else f"{taken / unit:.3g} {name}"


def relative_error(value: Any, truth: Any) -> float:
    """Norm of the difference over the norm of the truth."""
    value, truth = (np.asarray(v, np.float64) for v in (value, truth))
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


def worst_component(value: Any, truth: Any) -> float:
    """The largest relative error of any component: nothing hides behind a large neighbour."""
    value, truth = (np.asarray(v, np.float64) for v in (value, truth))
    return float(np.max(np.abs(value - truth) / np.abs(truth)))


def surroundings() -> dict[str, Any]:
    """Commit, versions, hardware and date of a run."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "python": platform.python_version(),
            "kronax": _kronax_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "device": jax.devices()[0].device_kind,
        },
        "load_average": round(os.getloadavg()[0], 1),
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS"),
    }


def results_folder(quick: bool) -> Path:
    """Where results go; quick ones are kept apart and out of version control."""
    return RESULTS / "quick" if quick else RESULTS


def save(workload: str, rows: list[dict[str, Any]], quick: bool, **notes: Any) -> Path:
    """Write one workload's rows with the surroundings of the run."""
    path = results_folder(quick) / f"{workload}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"workload": workload, **surroundings(), **notes, "rows": rows}
    path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    return path


def _commit() -> str:
    """The commit that was measured, marked if the code differs from it."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "kronax", "benchmarks/*.py")
    return (commit or "unknown") + ("-modified" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _finite(value: Any) -> Any:
    """Standard JSON has no NaN and no infinity: they are written as null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _kronax_version() -> str:
    """From the source tree, which is what runs here, installed or not."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
