"""Gaps anywhere beside a Markov axis: likelihood, fit and predictions by a filter of all places.

Beside it BoTorch's `LatentKroneckerGP`: the same kernels, the same start (`gp.initialise(y)`), each
with its own optimiser to its own tolerance and in a process of its own. Times are those of the
processor, with one thread of BLAS or PyTorch; the first fit counts what it compiles. Scores are of
cells that are held out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gap_data
from benchmarks.gaps import ENVIRONMENT, NUM_SAMPLES, exactly, scores, start_of
from benchmarks.markdown import digits, table
from benchmarks.measure import CandidateError, alternate
from benchmarks.parts import measured
from benchmarks.peers.environments import OURS
from benchmarks.peers.processes import Call, Worker
from benchmarks.peers.with_kronax import model

ROUNDS, BUDGET_S = 3, 10.0
# Of BoTorch's fit, on the clock; and of any call.
FIT_LIMIT_S, CALL_LIMIT_S = 200.0, 300.0
FILTER, ITERATIVE, BOTORCH = "kronax, Markov", "kronax, iterative", "BoTorch"
# By the name in tables: along the Markov axis, along others, and how gaps are taken.
WAYS = {
    FILTER: ("markov", None, "exact"),
    "kronax, gaps eliminated": ("dense", "dense", "exact"),
    ITERATIVE: ("dense", "dense", "iterative"),
}
FITTED = (FILTER, BOTORCH)


class Case(NamedTuple):
    """Data, which of their axes is Markov, and the ways to a value and gradient."""

    make: Callable[[], gap_data.Case]
    axis: int
    ways: tuple[str, ...] = tuple(WAYS)


CASES = {
    "elevation 96×96, 50 % in blocks": Case(lambda: gap_data.heights(96, 0.5, 12), 0),
    "learning curves 200×52, 47 % cut off": Case(
        lambda: gap_data.curves(200, 52), 1, (FILTER, ITERATIVE)
    ),
}
QUICK_CASES = {
    "elevation 24×24, 50 % in blocks": Case(lambda: gap_data.heights(24, 0.5, 6), 0),
    "learning curves 20×12, 47 % cut off": Case(lambda: gap_data.curves(20, 12), 1),
}


def structure_of(way: str, data: gap_data.Case, axis: int) -> tuple[str | None, ...]:
    """What is asked for along every axis."""
    along, others, _ = WAYS[way]
    return tuple(along if i == axis else others for i in range(data.y.ndim))


def evaluated(
    data: gap_data.Case, case: Case, start: np.ndarray, rounds: int
) -> dict[str, dict[str, Any]]:
    """Seconds of a value and gradient of the likelihood where the fits begin, by way."""
    at, y = jnp.asarray(start), jnp.asarray(np.nan_to_num(data.y))

    def value(logarithms: Any, y: Any, way: str) -> Any:
        structure = structure_of(way, data, case.axis)
        gp = model(data.kernels, data.axes, data.periods, logarithms, WAYS[way][2], structure)
        return gp.observing(np.isfinite(data.y)).log_marginal_likelihood(y)

    def compiled(way: str) -> Callable:
        function = jax.jit(jax.value_and_grad(partial(value, way=way)))
        return partial(function.lower(at, y).compile(), at, y)

    return alternate({way: compiled(way) for way in case.ways}, rounds, BUDGET_S, process_time)


def prepared(method: str, data: gap_data.Case, axis: int, start: np.ndarray) -> Call:
    """A fit with predictions in a process that is started for it."""
    inputs = {"kernels": data.kernels, "y": data.y, "start": start, "clock": "process_time"}
    if method == BOTORCH:
        inputs |= {"places": data.places(), "num_samples": NUM_SAMPLES, "limit_s": FIT_LIMIT_S}
        return Call(Worker(ENVIRONMENT), 0, "latent Kronecker", inputs, CALL_LIMIT_S)
    along, gaps = structure_of(method, data, axis), WAYS[method][2]
    inputs |= {"axes": data.axes, "periods": data.periods, "structure": along, "gaps": gaps}
    return Call(Worker(OURS), 0, "grid GP", inputs, CALL_LIMIT_S)


def fitted(call: Call, data: gap_data.Case) -> dict[str, Any]:
    """A first fit and another one, predictions, and how good they are."""
    is_ours = call.worker.name == OURS
    try:
        call.seconds()
        first = answer = call()
        if is_ours:  # the other compiles nothing
            call.seconds()
            answer = call()
        versions = {} if is_ours else call.worker.ask("versions", CALL_LIMIT_S)
    except CandidateError as reason:
        return {"error": str(reason)}
    finally:
        call.worker.stop()
    kept = ("fit_seconds", "predict_seconds", "is_stopped", "steps")
    return {
        **{key: answer[key] for key in kept},
        "first_fit_seconds": first["fit_seconds"],
        "first_predict_seconds": first["predict_seconds"],
        "log_parameters": np.round(answer["log_parameters"], 6).tolist(),
        **scores(data, answer),
        **exactly(data, answer["log_parameters"]),
        "versions": versions,
    }


def measure(name: str, case: Case, rounds: int) -> list[dict[str, Any]]:
    """Value and gradient in every way of kronax, and fits."""
    data = case.make()
    start, missing = start_of(data), float(np.isnan(data.y).mean())
    rows = evaluated(data, case, start, rounds)
    for method in FITTED:
        found = fitted(prepared(method, data, case.axis, start), data)
        rows[method] = rows.get(method, {}) | found
    about = {"data": name, "shape": list(data.y.shape), "missing": missing}
    return [{**about, "method": method, **row} for method, row in rows.items()]


QUALITY = {
    "rmse": ".3f",
    "negative_log_density": ".3f",
    "coverage": ".1%",
    "log_likelihood": ",.1f",
}


def gaps_table(rows: list[dict[str, Any]]) -> str:
    """Times, and scores of what was fitted; kronax predicts at the parameters of BoTorch too."""
    body = []
    for row in rows:
        if "error" in row:
            body.append([row["data"], row["method"], row["error"], *["–"] * 7])
            continue
        spent = ("seconds", "first_fit_seconds", "fit_seconds", "predict_seconds")
        times = [digits(row.get(key)) for key in spent]
        body.append([row["data"], row["method"], *times, *_quality(row)])
        if row["method"] == BOTORCH and "by_kronax" in row:
            there = _quality(row["by_kronax"] | {"log_likelihood": row["log_likelihood"]})
            body.append([row["data"], "kronax, where BoTorch's fit ended", *["–"] * 4, *there])
    header = ["data", "method", "value and gradient, s", "first fit, s", "fit, s", "predict, s"]
    return table([*header, "RMSE", "negative log density", "inside 95 %", "log likelihood"], body)


def _quality(row: dict[str, Any]) -> list[str]:
    return [format(row[key], f) if key in row else "–" for key, f in QUALITY.items()]


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    return "\n".join(gaps_table([row]).splitlines()[2:])


def run(quick: bool, only: Sequence[str] = ()) -> None:
    """Every case, or those that are named; what is done is stored as it comes."""
    cases = QUICK_CASES if quick else CASES
    parts = {
        name: partial(measure, name, case, 1 if quick else ROUNDS) for name, case in cases.items()
    }
    measured("markov_gaps", parts, described, quick, only)
