"""W4: NUTS on Gaussian processes over grids: effective samples per second of the same posterior.

One model, with amplitude, two lengthscales and noise; the likelihood differs, and with PyMC the
sampler. Each runs in a process of its own, one chain per core. Draws come back, and the same
estimators (those of NumPyro) are applied to all. A run that takes longer than `LIMIT_S` is ended:
what PyMC's own sampler had drawn by then counts; NumPyro's has nothing to show.
"""

import json
import os
from typing import Any

import numpy as np
from numpyro.diagnostics import summary

from benchmarks.apart import apart
from benchmarks.chains import cpu_seconds
from benchmarks.measure import CandidateError, save
from benchmarks.nuts import TRUTH, data
from benchmarks.peers.processes import Peers
from benchmarks.tables import has_converged

Row = dict[str, Any]
SHAPES = ((30, 25), (100, 80))
QUICK_SHAPES = ((12, 10),)
# The order of running: what is over soon comes first. PyMC's wrong gradient takes longest.
METHODS = ("kronax", "regular", "dense", "naive", "PyMC, NumPyro", "PyMC", "PyMC, dense")
PYMC = {
    "PyMC": {"likelihood": "kronecker", "sampler": "pymc"},
    "PyMC, NumPyro": {"likelihood": "kronecker", "sampler": "numpyro"},
    "PyMC, dense": {"likelihood": "dense", "sampler": "pymc"},
}
DRAWS = {"num_warmup": 300, "num_samples": 300, "num_chains": 2}
QUICK_DRAWS = {"num_warmup": 50, "num_samples": 50, "num_chains": 2}
# So that the time limit leaves something to measure: trajectories on a wrong gradient are a
# thousand steps long, and with many cells or a dense matrix a step of PyMC is slow.
FEWER_DRAWS = {
    ("PyMC", "RBF", (30, 25)): {"num_warmup": 100, "num_samples": 100},
    ("PyMC", "Matérn-3/2", (100, 80)): {"num_warmup": 150, "num_samples": 150},
    ("PyMC, dense", "RBF", (30, 25)): {"num_warmup": 150, "num_samples": 150},
    ("dense", "RBF", (30, 25)): {"num_warmup": 150, "num_samples": 150},
}
LIMIT_S = 600
# PyMC is asked to stop this long before it is ended: a long trajectory has to end first.
GRACE_S = 30
# What takes less time than this is run with several seeds, and the median one stands.
SHORT_S = 30
SEEDS = 3
FEWEST_DRAWS = 10
PICTURED = ("RBF", (30, 25), ("kronax", "naive", "PyMC"))


def runs_dense(kernel: str, shape: tuple[int, ...]) -> bool:
    """A dense covariance of 8000 cells takes seconds a gradient; one kernel says it all."""
    return kernel == "RBF" and np.prod(shape) <= 1000


def sampled(method: str, case: dict[str, Any], peers: Peers) -> dict[str, Any]:
    """Draws and times from a process of its own."""
    if method not in PYMC:
        return apart("nuts", "sample", LIMIT_S, method=method, **case)
    axes, y = data(case["kernel"], case.pop("shape"))
    inputs = case | PYMC[method] | {"axes": axes, "y": y, "stop_after_s": LIMIT_S - GRACE_S}
    call = peers.call("pymc", "nuts", LIMIT_S, **inputs)
    call.seconds()
    return call()


def described(found: dict[str, Any]) -> dict[str, Any]:
    """Times, and what the draws come to, by the estimators of NumPyro."""
    draws = {name: np.asarray(found["draws"][name]) for name in found["draws"]}
    num_draws = next((d.shape[1] for d in draws.values()), 0)
    row = {k: found[k] for k in ("seconds", "sampling_seconds", "cpu_seconds")}
    row |= {"draws_done": num_draws, "warmup_done": found.get("warmup_done")}
    if num_draws < FEWEST_DRAWS:
        return row
    table = summary(draws)
    effective = {name: float(table[name]["n_eff"]) for name in TRUTH}
    least = min(effective.values())
    per_sampling = least / row["sampling_seconds"] if row["sampling_seconds"] else None
    return row | {
        "r_hat": {name: float(table[name]["r_hat"]) for name in TRUTH},
        "effective_samples": effective,
        "mean": {name: float(table[name]["mean"]) for name in TRUTH},
        "standard_error": {
            name: float(table[name]["std"]) / effective[name] ** 0.5 for name in TRUTH
        },
        "effective_samples_per_second": least / row["seconds"],
        "effective_samples_per_second_of_sampling": per_sampling,
        "effective_samples_per_cpu_second": least / row["cpu_seconds"],
        "steps_per_draw": float(np.mean(found["num_steps"])),
        "divergences": int(np.sum(found["diverging"])),
    }


def measure(
    method: str, kernel: str, shape: tuple[int, ...], draws: dict[str, int], versions: dict
) -> Row:
    """One row; the one with the median rate of several seeds, if a run is short.

    `versions` collects those of the peers.
    """
    draws = draws | FEWER_DRAWS.get((method, kernel, shape), {})
    row = {"kernel": kernel, "shape": list(shape), "method": method, **draws}
    row["limit_s"] = LIMIT_S
    cpu = cpu_seconds()
    found: list[Row] = []
    for seed in range(SEEDS):
        case = {"kernel": kernel, "shape": shape, "seed": seed, **draws}
        try:
            # A fresh process each: PyMC forks, which must not happen after JAX was used.
            with Peers() as peers:
                samples = sampled(method, case, peers)
                versions |= peers.versions()
        except CandidateError as reason:
            # The chains of PyMC's own sampler are processes that nobody has waited for.
            has_chains_of_its_own = PYMC.get(method, {}).get("sampler") == "pymc"
            used = None if has_chains_of_its_own else cpu_seconds() - cpu
            row |= {"seconds": None, "error": str(reason), "cpu_seconds": used}
            return row | {"load_average": os.getloadavg()[0]}
        found.append({"seed": seed, **described(samples), "load_average": os.getloadavg()[0]})
        if (kernel, shape) == PICTURED[:2] and method in PICTURED[2] and samples["draws"]:
            found[-1]["trace"] = np.round(samples["draws"]["lengthscale_1"], 4).tolist()
        if found[0]["seconds"] > SHORT_S:
            break
    rates = [r.get("effective_samples_per_second", 0.0) for r in found]
    chosen = found[int(np.argsort(rates)[len(rates) // 2])]
    if chosen["draws_done"] < draws["num_samples"]:
        chosen["error"] = unfinished(chosen, draws)
    return row | chosen | {"rates": rates}


def unfinished(row: Row, draws: dict[str, int]) -> str:
    """How far a run came that was stopped."""
    reached = f"{row['warmup_done']} of {draws['num_warmup']} warm-up draws"
    if row["draws_done"]:
        reached = f"{row['draws_done']} of {draws['num_samples']} draws"
    return f"unfinished after {row['seconds']:.0f} s: {reached}"


def compared(rows: list[Row]) -> list[Row]:
    """Each row beside kronax on the same problem: how many times slower, and how far its means.

    A run without draws has a bound: one effective sample per draw that it was asked for, had it
    finished when it was ended. Means are compared where a sampler converged, in their standard
    errors.
    """
    ours = {(r["kernel"], *r["shape"]): r for r in rows if r["method"] == "kronax"}

    def beside(row: Row) -> Row:
        found = ours.get((row["kernel"], *row["shape"]))
        return row if found is None or found is row else row | _beside(row, found)

    return [beside(row) for row in rows]


def _beside(row: Row, ours: Row) -> Row:
    rate, cpu = ours["effective_samples_per_second"], "effective_samples_per_cpu_second"
    if "r_hat" not in row:
        draws = row["num_chains"] * row["num_samples"]
        most = draws / (row["seconds"] or row["limit_s"])
        found = {
            "effective_samples_per_second_at_most": most,
            "kronax_over_this_at_least": rate / most,
        }
        if row["cpu_seconds"]:
            found["kronax_over_this_of_cpu_at_least"] = ours[cpu] / draws * row["cpu_seconds"]
        return found
    found = {
        "kronax_over_this": rate / row["effective_samples_per_second"],
        "kronax_over_this_of_cpu": ours[cpu] / row[cpu],
    }
    if not has_converged(row):
        return found
    found["deviation"] = {
        name: abs(row["mean"][name] - ours["mean"][name])
        / np.hypot(row["standard_error"][name], ours["standard_error"][name])
        for name in TRUTH
    }
    return found


def run(quick: bool) -> None:
    """Measure every method on every problem that it may end on."""
    rows: list[Row] = []
    versions: dict[str, Any] = {}
    for method in METHODS:
        for kernel in ("RBF", "Matérn-3/2"):
            for shape in QUICK_SHAPES if quick else SHAPES:
                if "dense" in method and not runs_dense(kernel, shape):
                    continue
                row = measure(method, kernel, shape, QUICK_DRAWS if quick else DRAWS, versions)
                rows.append(row)
                shown = {k: v for k, v in row.items() if k != "trace"}
                print(json.dumps(shown), flush=True)
                notes = {"truth": TRUTH, "peers": versions}
                save("mcmc", compared(rows), quick, **notes)
