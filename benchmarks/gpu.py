"""W1, W5 and W7 on the device that JAX finds, a GPU where there is one, in both precisions.

One call fills the table: `python -m benchmarks gpu`. Accuracy is against a closed form in NumPy's
float64, on the host. Every call waits until its results are there, after one that compiles. Memory
is what XLA plans for the program of a likelihood, and for a fit, in a process of its own, the
high-water mark of the device's allocator, which a CPU has not. Every row names the device it was
on: peers that find no GPU run on the CPU. Processes share the device, so that none of them may take
all of its memory beforehand.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import fitting, likelihood, models, scale
from benchmarks.apart import apart
from benchmarks.markdown import digits, grid, table
from benchmarks.measure import CandidateError, alternate, relative_error, save, shown
from benchmarks.peers.processes import Peers
from benchmarks.real_data import DATA_SETS

SHAPES = [(20, 1000), (100, 100), (200, 200), (500, 500), (1000, 1000), (2000, 2000)]
QUICK_SHAPES = [(20, 20), (100, 100)]
DTYPES = ("float32", "float64")
QUICK_DATA = ["El Niño"]
ROUNDS, QUICK_ROUNDS = 9, 3
FIT_LIMIT_S = 900
PEERS = {"GPyTorch": "gpytorch", "luas": "luas"}
METHODS: dict[str, Callable[[str, list], Callable]] = {
    "kronax": lambda kernel, axes: models.likelihood(models.kronax, kernel, axes),
    "regular": models.structured,
    "naive": lambda kernel, axes: models.likelihood(models.naive, kernel, axes),
}


def memory_held() -> int | None:
    """The most bytes that were in use on the device, where it counts them."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def device() -> str:
    """What JAX finds here."""
    return jax.devices()[0].device_kind


def compiled(method: str, kernel: str, axes: list, parameters: Any, y: Any) -> Any:
    """Value and gradient as one program for this device."""
    function = jax.jit(jax.value_and_grad(METHODS[method](kernel, axes)))
    return function.lower(parameters, y).compile()


def _attempted(program: Any, *given: Any) -> Any:
    """A call, of which the others go on where the device has no memory for it."""
    try:
        return jax.block_until_ready(program(*given))
    except jax.errors.JaxRuntimeError as error:
        raise CandidateError(str(error).splitlines()[0][:200]) from error


def planned_bytes(program: Any) -> int:
    """What XLA plans for a program, its data among it."""
    plan = program.memory_analysis()
    sizes = plan.temp_size_in_bytes, plan.argument_size_in_bytes, plan.output_size_in_bytes
    return sum(sizes)


def measure(
    case: dict[str, Any], problem: tuple, methods: list[str], peers: Peers, rounds: int
) -> list[dict[str, Any]]:
    """One row per method of one likelihood, in each precision."""
    axes, parameters, y, truth = problem
    kernel, rows = scale.KERNEL, []
    for dtype in DTYPES:
        points = [jnp.asarray(x, dtype) for x in axes]
        given = jnp.asarray(parameters, dtype), jnp.asarray(y, dtype)
        programs = {name: compiled(name, kernel, points, *given) for name in methods}
        calls: dict[str, Any] = {
            name: partial(_attempted, program, *given) for name, program in programs.items()
        }
        for name, environment in PEERS.items():
            typed = {"axes": [x.astype(dtype) for x in axes], "y": y.astype(dtype)}
            inputs = {"kernel": kernel, "parameters": parameters.astype(dtype), **typed}
            calls[name] = peers.call(environment, "likelihood", **inputs)
        times = alternate(calls, rounds)
        for name, call in calls.items():
            row = {**case, "dtype": dtype, "method": name, **times[name]}
            if row["seconds"] is not None:
                row |= _worth(call(), truth)
            if name in programs:
                row |= {"planned_bytes": planned_bytes(programs[name]), "device": device()}
            elif row["seconds"] is not None:
                row["device"] = peers.device(PEERS[name])
            rows.append(row)
        peers.forget()
    return rows


def _worth(found: Any, truth: Any) -> dict[str, float]:
    if truth is None:
        return {}
    pairs = zip(("value_error", "gradient_error"), found, truth, strict=True)
    return {name: relative_error(one, exact) for name, one, exact in pairs}


def measure_fit(name: str, dtype: str) -> dict[str, Any]:
    """A row of what `fitted` finds in a process of its own."""
    case = {"workload": "W5", "data": name, "dtype": dtype, "method": "kronax"}
    try:
        return case | apart("gpu", "fitted", FIT_LIMIT_S, name=name, dtype=dtype)
    except CandidateError as reason:
        shape = list(DATA_SETS[name]().y.shape)
        return {**case, "shape": shape, "seconds": None, "error": str(reason)}


def fitted(name: str, dtype: str) -> dict[str, Any]:
    """A fit to convergence from `initialise`, compiling and then again."""
    data = DATA_SETS[name]()
    with jax.enable_x64(dtype == "float64"):
        y = data.y.astype(dtype)
        start = fitting.model(data._replace(axes=tuple(x.astype(dtype) for x in data.axes)))
        start = start.initialise(y)
        began = perf_counter()
        first = fitting.fit(start, y)
        between = perf_counter()
        fitting.fit(start, y)
        return {
            "shape": list(y.shape),
            "device": device(),
            "seconds": perf_counter() - between,
            "first_call_seconds": between - began,
            "loss": float(first.losses.min()),
            "num_steps": int(first.num_steps),
            "converged": bool(first.converged),
            "peak_bytes": memory_held(),
        }


def measure_peer_fits(name: str, peers: Peers) -> list[dict[str, Any]]:
    """The same by other libraries, in float64 and from the same start."""
    data = DATA_SETS[name]()
    inputs = fitting.peer_inputs(data, fitting.model(data).initialise(data.y))
    rows = []
    for method, (environment, more, most_cells) in fitting.PEERS.items():
        if environment not in PEERS.values() or data.y.size > most_cells:
            continue
        call = peers.call(environment, "fit", **inputs, **more)
        row = {"workload": "W5", "data": name, "shape": list(data.y.shape), "dtype": "float64"}
        row |= {"method": method, **alternate({method: call}, rounds=1)[method]}
        if row["seconds"] is not None:
            row |= {"loss": float(min(call()[1])), "device": peers.device(environment)}
        rows.append(row)
        peers.forget()
    return rows


def gpu_table(rows: list[dict[str, Any]]) -> str:
    """Time, error and memory of each method.

    The error of a likelihood is that of its gradient; that of a fit, in nats, is how far its loss
    is above the least that any method found for the same data.
    """
    fits = [row for row in rows if row.get("loss") is not None]
    least = {data: min(r["loss"] for r in fits if r["data"] == data) for data in _data_of(fits)}
    body = []
    for row in rows:
        error = row.get("gradient_error")
        if row.get("loss") is not None:
            error = row["loss"] - least[row["data"]]
        memory = row.get("planned_bytes") or row.get("peak_bytes")
        seconds = row.get("seconds")
        body.append(
            [
                f"{row['workload']} {row.get('data', '')}".strip(),
                grid(row),
                row["dtype"],
                row["method"],
                row.get("device", "–"),
                digits(None if seconds is None else 1e3 * seconds),
                "–" if error is None else f"{error:.1g}",
                "–" if memory is None else f"{memory / 2**20:,.0f}",
            ]
        )
    header = ["workload", "grid", "precision", "method", "device", "ms", "error", "MiB"]
    return table(header, body)


def _data_of(rows: list[dict[str, Any]]) -> set[str]:
    return {row["data"] for row in rows}


def run(quick: bool) -> None:
    """All three workloads."""
    # Read where a process first asks for its device, the processes of fits and peers among them.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    rows: list[dict[str, Any]] = []
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with Peers() as peers:
        for case in _cases(quick, rounds, peers):
            rows += _said(case)
            save("gpu", rows, quick, peers=peers.versions())


def _cases(quick: bool, rounds: int, peers: Peers) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case after another."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        case = {"workload": "W1", "shape": list(shape)}
        yield measure(case, likelihood.problem(scale.KERNEL, shape), [*METHODS], peers, rounds)
    for name in QUICK_DATA if quick else DATA_SETS:
        yield [measure_fit(name, dtype) for dtype in DTYPES]
        yield measure_peer_fits(name, peers)
    for shape in scale.QUICK_SHAPES if quick else scale.SHAPES[:3]:
        case = {"workload": "W7", "shape": list(shape)}
        yield measure(case, scale.problem(shape), ["kronax", "regular"], peers, rounds)


def _said(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, which the log shows."""
    for row in rows:
        error = f", gradient {row['gradient_error']:.1g}" if "gradient_error" in row else ""
        where = f"{row['workload']} {prod(row['shape']):,} cells, {row['dtype']}"
        print(f"{where}, {row['method']}: {shown(row)}{error}", flush=True)
    return rows
