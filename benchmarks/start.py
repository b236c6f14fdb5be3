"""W9: seconds from `python` to a first likelihood, a fit, its summary, and predictions.

Every method runs in a process that is started for it, without a compilation cache: what counts is
the time since before that start, with imports and compilation, until the results are there. All
fit the same likelihood from the same start to the same gradient per cell, and then predict mean and
variance halfway between the places of every axis. Processes take turns.
"""

import os
from statistics import median
from time import time
from typing import Any

import numpy as np

from benchmarks import reference
from benchmarks.fitting import NUM_STEPS, TOLERANCE, model, peer_inputs
from benchmarks.markdown import digits, grid, table
from benchmarks.measure import CandidateError, save
from benchmarks.peers.environments import OURS
from benchmarks.peers.processes import Call, Worker
from benchmarks.real_data import DataSet, air_temperature, el_nino

ROUNDS = 5
LIMIT_S = 300.0
STAGES = ("likelihood", "fit", "summary", "prediction")
# By the name in tables: environment, and up to how many cells; dense ones hold N² numbers.
METHODS = {
    "kronax": (OURS, 10**9),
    "GPyTorch": ("gpytorch", 10**9),
    "tinygp": ("tinygp", 3000),
    "scikit-learn": ("sklearn", 1000),
}


def synthetic() -> DataSet:
    """A draw of a process on 200 × 150 regular places."""
    axes = tuple(np.linspace(0, 1, n) for n in (200, 150))
    kernels = [reference.KERNELS["Matérn-3/2"](x, np.log(0.2))[0] for x in axes]
    y = reference.draw(np.random.default_rng(0), kernels, 0.1)
    return DataSet(y, axes, (1.5, 1.5), (None, None))


DATA_SETS = {"El Niño": el_nino, "drawn": synthetic, "air temperature": air_temperature}


def inputs_of(data: DataSet) -> dict[str, dict[str, Any]]:
    """What every environment is given."""
    new = [x[:-1] + np.diff(x) / 2 for x in data.axes]
    settings = {"tolerance": TOLERANCE, "num_steps": NUM_STEPS}
    there = peer_inputs(data._replace(axes=tuple(new)), model(data))
    peers = peer_inputs(data, model(data).initialise(data.y)) | {"new": there["places"]}
    ours = {"kernels": data.kernels, "axes": data.axes, "periods": data.periods, "y": data.y}
    return {OURS: {**ours, "new": new, **settings}, "": peers}


def once(environment: str, inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The stages of one process, in seconds since before it was started."""
    worker = Worker(environment)
    began = time()
    call = Call(worker, 0, "start", inputs, LIMIT_S)
    try:
        call.seconds()
        stamps = call()
        versions = {} if environment == OURS else worker.ask("versions", LIMIT_S)
    finally:
        worker.stop()
    stages = {name: {**s, "seconds": s.pop("clock") - began} for name, s in stamps.items()}
    return {"stages": stages, "versions": versions}


def measure(name: str, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per method, of medians, and the versions of the other libraries."""
    data = DATA_SETS[name]()
    inputs = inputs_of(data)
    chosen = {m: e for m, (e, most) in METHODS.items() if data.y.size <= most}
    found: dict[str, list[dict]] = {method: [] for method in chosen}
    errors: dict[str, str] = {}
    versions: dict[str, Any] = {}
    for _ in range(rounds):
        for method, environment in chosen.items():
            if method in errors:
                continue
            try:
                answer = once(environment, inputs.get(environment, inputs[""]))
            except CandidateError as reason:
                errors[method] = str(reason)
                continue
            found[method].append(answer["stages"])
            versions |= {environment: answer["versions"]} if answer["versions"] else {}
    rows = [{"data": name, "shape": data.y.shape, "method": method} for method in chosen]
    for row in rows:
        error = errors.get(row["method"])
        row |= {"error": error} if error else {"stages": medians(found[row["method"]])}
    return rows, versions


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Number by number."""
    return {
        stage: {key: median(r[stage][key] for r in rounds) for key in stamp}
        for stage, stamp in rounds[0].items()
    }


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    begin = f"{row['data']}, {row['method']}: "
    if "error" in row:
        return begin + row["error"]
    last = list(row["stages"].values())[-1]
    programs = f", {last['programs']:.0f} programs" if "programs" in last else ""
    stages = (f"{name} {s['seconds']:.2f} s" for name, s in row["stages"].items())
    return (
        begin + ", ".join(stages) + f"; {last['processor_seconds']:.1f} s of processors{programs}"
    )


def start_table(rows: list[dict[str, Any]]) -> str:
    """Seconds to every stage, those of processors and programs to the last one."""
    body = []
    for row in rows:
        name = [f"{row['data']}, {grid(row)}", row["method"]]
        if "error" in row:
            body.append([*name, row["error"], *["–"] * (len(STAGES) + 1)])
            continue
        last = list(row["stages"].values())[-1]
        seconds = [row["stages"].get(stage, {}).get("seconds") for stage in STAGES]
        counts = [last["processor_seconds"], last.get("programs")]
        body.append(name + [digits(number) for number in seconds + counts])
    header = ["data", "method", *(f"{stage}, s" for stage in STAGES)]
    return table([*header, "processors, s", "programs"], body)


def run(quick: bool) -> None:
    """Measure every data set; what is done is stored as it comes."""
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    # With bytecode, as an installation has it: the first round writes that of this checkout.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    for name in ["El Niño"] if quick else DATA_SETS:
        new, found = measure(name, 1 if quick else ROUNDS)
        rows += new
        versions |= found
        for row in new:
            print(described(row), flush=True)
        save("start", rows, quick, tolerance=TOLERANCE, peers=versions)
