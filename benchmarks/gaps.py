"""W6: real data with missing cells, fitted and predicted; scores of held-out cells.

Every method has the same kernels, a zero mean, the same starting values (`gp.initialise(y)`) and
the same data of mean zero and variance one; each fits by its own optimiser to its own tolerance,
and predicts every cell. Each has a process of its own, kronax too, so that what a first call and
its memory are is the same for all. Where a fit ended says the exact log likelihood there; what
kronax predicts at the parameters of the others tells another model from another optimum.
"""

from statistics import median
from typing import Any

import numpy as np

from benchmarks.gap_data import CASES, QUICK_CASES, Case
from benchmarks.measure import CandidateError, save
from benchmarks.peers.environments import OURS
from benchmarks.peers.processes import Call, Worker
from benchmarks.peers.with_kronax import model

# Calls after the first, until `BUDGET_S` are spent: none where the first took longer than this,
# of which compilation may be much.
AGAIN_S, AGAIN_COMPILED_S, BUDGET_S, ROUNDS = 15.0, 60.0, 15.0, 7
# Fits of other libraries are told to stop after this; a call that is not done then is ended.
FIT_LIMIT_S, LARGE_FIT_LIMIT_S, CALL_LIMIT_S = 45.0, 90.0, 300.0
LARGE = 50_000
NUM_SAMPLES = 64
# By the name in tables: environment, task, further inputs.
OWN: dict[str, dict[str, str]] = {
    "kronax": {"gaps": "auto"},
    "kronax, exact": {"gaps": "exact"},
    "kronax, iterative": {"gaps": "iterative"},
}
ENVIRONMENT = "botorch"
PEERS = {
    "BoTorch": "latent Kronecker",
    "GPyTorch, observed cells": "observed cells",
    "GPyTorch, mask": "masked grid",
}
SMALL = ("kronax, exact", "kronax, iterative", *PEERS)
MIDDLE = ("kronax, exact", "kronax, iterative", "BoTorch")
METHODS: dict[str, tuple[str, ...]] = {
    "elevation 48×48, 10 % at random": SMALL,
    "CO₂ by week and year": SMALL,
    "sea surface, one month": ("kronax", "BoTorch"),
    "sea surface, 54 months": ("kronax",),
    "elevation 344×403, 10 % at random": ("kronax", "BoTorch"),
}


def start_of(case: Case) -> np.ndarray:
    """Logarithms of lengthscales, variance and noise where every method begins."""
    gp = model(case.kernels, case.axes, case.periods, np.zeros(len(case.axes) + 2))
    found = gp.initialise(case.y)
    return np.log(
        [float(v) for v in (*(k.lengthscale for k in found.kernels), found.variance, found.noise)]
    )


def scores(case: Case, answer: dict[str, Any]) -> dict[str, float]:
    """Root mean square error, negative log density and coverage at the held-out cells."""
    held = case.is_held_out
    error = (case.truth - answer["mean"])[held]
    variance = answer["variance"][held]
    density = 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "negative_log_density": float(np.mean(density)),
        "coverage": float(np.mean(np.abs(error) < 1.96 * np.sqrt(variance))),
    }


def exactly(case: Case, log_parameters: np.ndarray) -> dict[str, Any]:
    """The log likelihood at parameters that a method found, and what kronax predicts there."""
    gp = model(case.kernels, case.axes, case.periods, log_parameters, "exact")
    post = gp.condition(case.y)
    variance = np.asarray(post.variance(include_noise=True))
    found = scores(case, {"mean": np.asarray(post.mean()), "variance": variance})
    return {"log_likelihood": float(gp.log_marginal_likelihood(case.y)), "by_kronax": found}


def prepared(method: str, case: Case, start: np.ndarray) -> Call:
    """A call of a method in a process that is started for it."""
    inputs: dict[str, Any] = {"kernels": case.kernels, "y": case.y, "start": start}
    if method in OWN:
        inputs |= {"axes": case.axes, "periods": case.periods, **OWN[method]}
        return Call(Worker(OURS), 0, "grid GP", inputs, CALL_LIMIT_S)
    limit_s = LARGE_FIT_LIMIT_S if case.y.size > LARGE else FIT_LIMIT_S
    inputs |= {"places": case.places(), "num_samples": NUM_SAMPLES, "limit_s": limit_s}
    return Call(Worker(ENVIRONMENT), 0, PEERS[method], inputs, CALL_LIMIT_S)


def in_turns(calls: dict[str, Call]) -> dict[str, dict[str, Any]]:
    """First calls, then rounds in which the methods take turns as far as their budget goes."""
    rows: dict[str, dict[str, Any]] = {}
    later: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 + ROUNDS):
        for name, call in calls.items():
            if turn and not _is_called_again(name, rows[name], later[name]):
                continue
            try:
                taken = call.seconds()
            except CandidateError as reason:
                rows[name] = {"seconds": None, "error": str(reason)}
                continue
            if turn:
                later[name].append(taken)
            else:
                rows[name] = {"first_call_seconds": taken}
    for name, row in rows.items():
        if "error" not in row:
            row["seconds"] = median(later[name] or [row["first_call_seconds"]])
            row["rounds"] = len(later[name])
    return rows


def _is_called_again(name: str, row: dict[str, Any], later: list[float]) -> bool:
    most = AGAIN_COMPILED_S if name in OWN else AGAIN_S
    is_quick = row.get("first_call_seconds", np.inf) <= most
    return is_quick and sum(later) + min(later, default=0.0) <= BUDGET_S


def measure(name: str, case: Case, methods: tuple[str, ...]) -> tuple[list[dict], dict[str, str]]:
    """One row per method, and the versions of the other libraries."""
    start = start_of(case)
    calls = {method: prepared(method, case, start) for method in methods}
    versions: dict[str, str] = {}
    rows = []
    try:
        for method, row in in_turns(calls).items():
            found = {
                "case": name,
                "shape": case.y.shape,
                "num_missing": int(np.isnan(case.y).sum()),
                "num_held_out": int(case.is_held_out.sum()),
                "method": method,
                **row,
            }
            if "error" not in row:
                answer = calls[method]()
                kept = ("fit_seconds", "predict_seconds", "is_stopped", "steps")
                found |= {key: answer[key] for key in kept} | scores(case, answer)
                found["log_parameters"] = np.round(answer["log_parameters"], 6).tolist()
                if case.y.size <= LARGE:
                    found |= exactly(case, answer["log_parameters"])
                found["bytes"] = calls[method].worker.ask("peak", CALL_LIMIT_S)
                if method in PEERS:
                    versions |= calls[method].worker.ask("versions", CALL_LIMIT_S)
            rows.append(found)
    finally:
        for call in calls.values():
            call.worker.stop()
    return rows, versions


def run(quick: bool) -> None:
    """Measure every case; what is done is stored as it comes."""
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for name, make in (QUICK_CASES if quick else CASES).items():
        methods = SMALL if quick else METHODS.get(name, MIDDLE)
        new, found = measure(name, make(), methods)
        rows += new
        versions |= found
        for row in new:
            print(described(row), flush=True)
        limits = {"fit": FIT_LIMIT_S, "large fit": LARGE_FIT_LIMIT_S, "call": CALL_LIMIT_S}
        notes = {"num_samples": NUM_SAMPLES, "limits": limits, "peers": {ENVIRONMENT: versions}}
        save("gaps", rows, quick, **notes)


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    if "error" in row:
        return f"{row['case']}: {row['method']}: {row['error']}"
    return (
        f"{row['case']}: {row['method']}: {row['seconds']:.3g} s ({row['first_call_seconds']:.3g} "
        f"at first, fit {row['fit_seconds']:.3g}), {row['bytes'] / 2**20:,.0f} MiB, "
        f"RMSE {row['rmse']:.4g}, NLPD {row['negative_log_density']:.3f}, {row['coverage']:.1%}"
        + (f", log likelihood {row['log_likelihood']:.1f}" if "log_likelihood" in row else "")
        + (f", by kronax there {row['by_kronax']['rmse']:.4g}" if "by_kronax" in row else "")
        + (", stopped" if row["is_stopped"] else "")
    )
