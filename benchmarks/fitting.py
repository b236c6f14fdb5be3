"""W5: hyperparameters of Gaussian processes on three real data sets, fitted to convergence.

Every method maximises the same marginal likelihood in the logarithms of the same parameters, from
the same start (`gp.initialise(y)`), and ends where the largest entry of the gradient per cell is
below `TOLERANCE`. Then kronax alone: how many random starts reach the best value, and what the
progress bar costs.
"""

import io
import json
import sys
from time import perf_counter
from typing import Any

import jax
import numpy as np

import kronax as kx
from benchmarks.apart import apart
from benchmarks.measure import ROUNDS, CandidateError, alternate, save, shown
from benchmarks.peers.processes import Peers
from benchmarks.real_data import DATA_SETS, DataSet

TOLERANCE = 1e-6
NUM_STEPS = 200
# A method is near the optimum where it is within this many nats per cell of the best value found.
NEAR = 1e-3
# Two fits have the same value where they differ by at most this per cell, and this in all.
SAME_PER_CELL, SAME = 1e-6, 0.01
NUM_STARTS = 20
NUM_CALLS, RESTARTS = 5, 5
COLD_LIMIT_S = FIT_LIMIT_S = 300
BUDGET_S = 60.0
MATERN = {0.5: kx.Matern12, 1.5: kx.Matern32, 2.5: kx.Matern52}
# By the name in tables: environment, further inputs, and up to how many cells.
PEERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "GPyTorch, torch's L-BFGS": ("gpytorch", {"optimizer": "torch"}, 10**9),
    "GPyTorch, SciPy's L-BFGS-B": ("gpytorch", {"optimizer": "SciPy"}, 10**9),
    "scikit-learn": ("sklearn", {}, 1000),
}


def model(data: DataSet) -> kx.GridGP:
    """One Matérn kernel per axis, one amplitude, noise."""
    kernels = [MATERN[nu](lengthscale=1.0) for nu in data.kernels]
    return kx.GridGP(kernels, _axes(data), noise=1.0)


def two_scales(data: DataSet) -> kx.GridGP:
    """The same with two lengthscales on the first axis: a likelihood of several optima."""
    first, *others = (MATERN[nu](lengthscale=1.0) for nu in data.kernels)
    long = kx.Matern52(lengthscale=10.0)
    return kx.GridGP([long + 1.0 * first, *others], _axes(data), noise=1.0)


def _axes(data: DataSet) -> list[Any]:
    return [
        x if period is None else kx.circle(x, period)
        for x, period in zip(data.axes, data.periods, strict=True)
    ]


def fit(gp: kx.GridGP, y: Any, **options: Any) -> kx.FitResult:
    """With the settings of this page."""
    settings = {"tolerance": TOLERANCE, "num_steps": NUM_STEPS, "progress": False}
    return kx.fit(gp, y, **settings | options)


def cold(name: str) -> dict[str, float]:
    """Seconds of start and fit in a process that has compiled nothing yet."""
    data = DATA_SETS[name]()
    gp = model(data)
    began = perf_counter()
    started = gp.initialise(data.y)
    between = perf_counter()
    fit(started, data.y)
    return {"start_seconds": between - began, "first_call_seconds": perf_counter() - between}


def peer_inputs(data: DataSet, start: kx.GridGP) -> dict[str, Any]:
    """The same problem in numbers; a circle is places in the plane, as kronax sees it."""
    values = [k.lengthscale for k in start.kernels] + [start.variance, start.noise]
    places = []
    for x, period in zip(data.axes, data.periods, strict=True):
        angle = 2 * np.pi * x / (period or 1)
        circle = (period or 1) / (2 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        places.append(x[:, None] if period is None else circle)
    return {
        "kernels": data.kernels,
        "places": places,
        "y": data.y,
        "start": np.log([float(v) for v in values]),
        "tolerance": TOLERANCE,
        "num_steps": NUM_STEPS,
    }


def measure(name: str, rounds: int, peers: Peers) -> list[dict[str, Any]]:
    """One row per method; every other library takes turns with kronax."""
    data = DATA_SETS[name]()
    start = model(data).initialise(data.y)
    paths = list(kx.unconstrain(start)[0])
    result = fit(start, data.y)

    def ours(num_steps: int = NUM_STEPS) -> Any:
        return fit(start, data.y, num_steps=num_steps).raw

    # Seconds of evaluations (ours are not known), losses, parameters, steps.
    raw = np.array([result.raw[path].item() for path in paths])
    traces: dict[str, Any] = {"kronax": (None, result.losses, raw, result.num_steps)}
    times = {"kronax": alternate({"kronax": ours}, rounds, BUDGET_S)["kronax"]}
    for peer, (environment, inputs, most) in PEERS.items():
        if data.y.size > most:
            continue
        # A new process, so that its first call is one.
        peers.workers[environment].stop()
        inputs = {**peer_inputs(data, start), **inputs}
        call = peers.call(environment, "fit", FIT_LIMIT_S, **inputs)
        pair = alternate({"kronax": ours, peer: call}, rounds, BUDGET_S)
        times[peer] = pair[peer]
        if pair[peer]["seconds"] is not None:
            times[peer]["kronax_seconds"] = pair["kronax"]["seconds"]
            traces[peer] = call()
    best = min(float(np.min(losses)) for _, losses, *_ in traces.values())
    rows = [{"data": name, "shape": data.y.shape, "method": m, **times[m]} for m in times]
    for row in rows:
        if row["method"] in traces:
            row |= ending(traces[row["method"]], best, data, start)
    # Of ours the steps are known, not when they were taken: the fit is run up to there.
    last = max(1, int(np.flatnonzero(result.losses <= best + NEAR * data.y.size)[0]))
    timed = alternate({"": lambda: ours(last)}, rounds, BUDGET_S)[""]
    rows[0]["seconds_to_near"] = timed["seconds"]
    try:
        rows[0] |= apart("fitting", "cold", COLD_LIMIT_S, name=name)
    except CandidateError as reason:
        rows[0]["cold_error"] = str(reason)
    return rows


def ending(trace: Any, best: float, data: DataSet, start: kx.GridGP) -> dict[str, Any]:
    """How a fit ended, and when it was near the best value of all."""
    seconds, losses, raw, steps = trace
    reached = np.flatnonzero(losses <= best + NEAR * data.y.size)
    found = {
        "steps": int(steps),
        "loss": float(np.min(losses)),
        "above_best_per_cell": (float(np.min(losses)) - best) / data.y.size,
        "gradient_per_cell": gradient(start, data.y, raw),
        "log_parameters": np.round(raw, 6).tolist(),
    }
    if seconds is None:
        return found
    near = float(seconds[reached[0]]) if reached.size else None
    return {**found, "evaluations": len(losses), "seconds_to_near": near}


def gradient(start: kx.GridGP, y: np.ndarray, raw: np.ndarray) -> float:
    """The largest entry of the gradient per cell at the end of a method, by kronax for all."""
    values, build = kx.unconstrain(start)
    at = {path: jax.numpy.asarray(value) for path, value in zip(values, raw, strict=True)}
    slope = jax.jit(jax.grad(lambda r: build(r).log_marginal_likelihood(jax.numpy.asarray(y))))(at)
    return max(abs(v.item()) for v in slope.values()) / y.size


def measure_starts(name: str, kind: str, num_starts: int) -> dict[str, Any]:
    """How many random starts, and calls with restarts, reach the best value that any found."""
    data = DATA_SETS[name]()
    gp = (model if kind == "one scale" else two_scales)(data)
    keys = jax.random.split(jax.random.key(0), num_starts)
    first, *others = (gp.random_start(key, data.y) for key in keys)
    began = perf_counter()
    alone = fit(first, data.y, restarts=others)
    seconds = perf_counter() - began
    given = gp.initialise(data.y)
    calls = [
        fit(given, data.y, restarts=RESTARTS, key=jax.random.key(k + 1)) for k in range(NUM_CALLS)
    ]
    losses = np.array([end.loss for end in alone.restarts])
    called = np.array([c.loss for c in calls])
    best = min(losses.min(), called.min())
    most = best + SAME + SAME_PER_CELL * data.y.size
    return {
        "data": name,
        "shape": data.y.shape,
        "method": "starts",
        "kernels": kind,
        "num_starts": num_starts,
        "num_reached": int(np.sum(losses <= most)),
        "initialised_reaches": bool(calls[0].restarts[0].loss <= most),
        "restarts": RESTARTS,
        "num_calls": NUM_CALLS,
        "num_calls_reached": int(np.sum(called <= most)),
        "num_converged": int(sum(end.converged for end in alone.restarts)),
        "most_steps": max(end.num_steps for end in alone.restarts),
        "seconds": seconds,
        "losses": np.sort(losses).round(3).tolist(),
        "best": float(best),
    }


class Terminal(io.StringIO):
    """Looks like a terminal to the progress bar, and draws nothing."""

    def isatty(self) -> bool:
        return True


def measure_bar(name: str, rounds: int) -> dict[str, Any]:
    """What the progress bar adds to a fit: medians of fits that take turns."""
    data = DATA_SETS[name]()
    start = model(data).initialise(data.y)

    def shown_bar() -> Any:
        kept, sys.stderr = sys.stderr, Terminal()
        try:
            return fit(start, data.y, progress=True).raw
        finally:
            sys.stderr = kept

    times = alternate({"bar": shown_bar, "none": lambda: fit(start, data.y).raw}, rounds, BUDGET_S)
    bar, none = times["bar"]["seconds"], times["none"]["seconds"]
    row = {"data": name, "shape": data.y.shape, "method": "progress bar"}
    return {**row, "seconds": bar, "seconds_without": none, "overhead": bar / none - 1}


def run(quick: bool) -> None:
    """Measure every data set."""
    names = ["El Niño"] if quick else list(DATA_SETS)
    rounds = 3 if quick else ROUNDS
    rows: list[dict[str, Any]] = []

    def keep(new: list[dict[str, Any]]) -> None:
        rows.extend(new)
        notes = {"tolerance": TOLERANCE, "near": NEAR, "peers": peers.versions()}
        save("fitting", rows, quick, **notes)

    with Peers() as peers:
        for name in names:
            new = measure(name, rounds, peers)
            for row in new:
                print(name, row["method"], shown(row), json.dumps(row.get("loss")), flush=True)
            keep(new)
        for name in names:
            for kind in ("one scale", "two scales"):
                keep([measure_starts(name, kind, 5 if quick else NUM_STARTS)])
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "losses"}), flush=True)
        for name in names:
            keep([measure_bar(name, rounds)])
            print(json.dumps(rows[-1]), flush=True)
