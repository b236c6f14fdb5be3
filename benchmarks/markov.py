"""W10: a long axis as a Markov process, beside other structures and tinygp's solver per mode.

Grids of times × places, Matérn-3/2 on both; value and gradient of the marginal likelihood in the
logarithms of both lengthscales, variance and noise. Times are those of the processor: a filter is
one thread, and on a busy machine the clock on the wall counts the neighbours. Long axes have a
process of their own, so that their memory is counted from nothing.
"""

from collections.abc import Callable
from math import prod
from time import process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks import memory, reference
from benchmarks.apart import apart
from benchmarks.markdown import digits, table, times
from benchmarks.markov_accuracy import measure_accuracy
from benchmarks.measure import CandidateError, alternate, relative_error, save, shown
from benchmarks.peers.processes import Peers

ROUNDS = 7
BUDGET_S = 10.0
LIMIT_S = 600
# Logarithms of lengthscales in steps and in places, of variance and noise; and where they are
# when the likelihood is measured.
TRUE = np.log([10.0, 3.0, 1.0, 0.1])
OFFSET = np.array([0.2, -0.2, 0.1, 0.3])
MARKOV = "kronax, Markov"
OTHER = "kronax, another structure"
PEER = "tinygp"


class Case(NamedTuple):
    """A grid, and what it is measured with.

    `missing` is the share of its cells, half of it in outages of two weeks of hours. The others
    take turns with the filter.
    """

    shape: tuple[int, int]
    is_regular: bool = False
    missing: float = 0.0
    others: tuple[str, ...] = ()


BOTH = (OTHER, PEER)
CASES = [
    Case((1000, 20), others=BOTH),
    Case((1000, 20), True, others=BOTH),
    Case((500, 500), others=(OTHER,)),
    Case((500, 500), True, others=(OTHER,)),
    Case((10_000, 20), others=(PEER,)),
    Case((100_000, 20), others=(PEER,)),
    Case((1_000_000, 5)),
    Case((35_064, 12), True, 0.1),
]
QUICK_CASES = [Case((300, 5), others=BOTH), Case((2000, 5), True, 0.1)]
OUTAGE = 24 * 14
# Up to here the closed form is computed in NumPy.
MOST_TIMES_TO_CHECK = 1000


def axes_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Sorted times, a step apart on average, and regular places."""
    size, places = case.shape
    irregular = np.sort(np.random.default_rng(0).uniform(0, size, size))
    return np.arange(float(size)) if case.is_regular else irregular, np.arange(float(places))


def process(
    logarithms: Any, axes: tuple[np.ndarray, np.ndarray], structure: Any = None, **options: Any
) -> kx.GridGP:
    """The model that all methods share."""
    along, across, variance, noise = jnp.exp(jnp.asarray(logarithms))
    kernels = {"time": variance * kx.Matern32(along), "place": kx.Matern32(across)}
    named = dict(zip(kernels, axes, strict=True))
    return kx.GridGP(kernels, named, noise=noise, structure=structure, **options)


def structure_of(method: str, case: Case) -> Any:
    """What is asked for along time: the filter, or what it stands in for."""
    if method == MARKOV:
        return {"time": "markov"}
    return {"time": "toeplitz" if case.is_regular else "dense"}


def data_of(case: Case) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Axes, a draw, and where it is seen."""
    axes, rng = axes_of(case), np.random.default_rng(1)
    truth = process(TRUE, axes, {"time": "markov"})
    y = np.asarray(truth.sample(jax.random.key(0), include_noise=True))
    seen = rng.random(case.shape) >= case.missing / 2
    while seen.mean() > 1 - case.missing:
        begin, place = rng.integers(case.shape[0]), rng.integers(case.shape[1])
        seen[begin : begin + OUTAGE, place] = False
    return axes, y, seen


def likelihood(method: str, case: Case, axes: Any, seen: np.ndarray, y: Any) -> Callable:
    """`(logarithms, y) -> value, gradient`, compiled."""
    options = {} if seen.all() else {"observed": seen, "gaps": "exact"}

    def value(logarithms: Any, y: Any) -> Any:
        gp = process(logarithms, axes, structure_of(method, case), **options)
        return gp.log_marginal_likelihood(y)

    return compiled(value, y)


def compiled(value: Callable, y: Any) -> Callable:
    """With its gradient in the first argument, ahead of the first call."""
    return jax.jit(jax.value_and_grad(value)).lower(jnp.asarray(TRUE), jnp.asarray(y)).compile()


def in_this_process(case: list[Any]) -> dict[str, Any]:
    """Compile, then count time and memory of the calls; the process must be new."""
    own = Case(*case)
    axes, y, seen = data_of(own)
    at, data = jnp.asarray(TRUE + OFFSET), jnp.asarray(y)
    function = likelihood(MARKOV, own, axes, seen, y)
    held = memory.reset_peak()
    taken = alternate({"": lambda: function(at, data)}, ROUNDS, BUDGET_S, process_time)[""]
    value, gradient = function(at, data)
    found = {"value": float(value), "gradient": np.asarray(gradient).tolist()}
    return {**taken, **found, "bytes": memory.peak() - held, "missing": 1 - float(seen.mean())}


def measure(case: Case, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per method, with errors beside a closed form or else the first other method."""
    row = {"shape": list(case.shape), "spacing": "regular" if case.is_regular else "irregular"}
    alone: dict[str, Any] = {}
    if case.shape[0] > MOST_TIMES_TO_CHECK:
        try:
            alone = apart("markov", "in_this_process", LIMIT_S, case=list(case))
        except CandidateError as reason:
            alone = {"seconds": None, "error": str(reason)}
    if not case.others:
        return [{**row, "method": MARKOV, **alone}], {}
    axes, y, seen = data_of(case)
    at, data = jnp.asarray(TRUE + OFFSET), jnp.asarray(y)
    calls: dict[str, Callable[[], Any]] = {}
    for method in (MARKOV, *(m for m in case.others if m != PEER)):
        function = likelihood(method, case, axes, seen, y)
        calls[method] = lambda function=function: function(at, data)
    with Peers() as peers:
        if PEER in case.others:
            inputs = {"axes": axes, "parameters": TRUE + OFFSET, "y": y}
            calls[PEER] = call = peers.call("tinygp", "by modes", LIMIT_S, **inputs)
            call.clock = "process_time"
        taken = alternate(calls, rounds, BUDGET_S, process_time)
        answers = {m: calls[m]() for m, t in taken.items() if t["seconds"] is not None}
        versions = peers.versions()
    truth = _truth(case, axes, y)
    if truth is None and MARKOV in answers:
        truth = answers.pop(next((m for m in case.others if m in answers), MARKOV))
    rows = []
    for method, found in taken.items():
        rows.append({**row, "method": method, **found})
        if method == MARKOV and "bytes" in alone:
            rows[-1]["bytes"] = alone["bytes"]
        if method in answers and truth is not None:
            errors = [relative_error(*pair) for pair in zip(answers[method], truth, strict=True)]
            rows[-1] |= dict(zip(("value_error", "gradient_error"), errors, strict=True))
    return rows, versions


def _truth(case: Case, axes: Any, y: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Value and gradient in closed form; that in the variance follows from the scale of all."""
    if case.shape[0] > MOST_TIMES_TO_CHECK:
        return None
    along, across, variance, noise = TRUE + OFFSET
    kernels = [reference.matern32(axes[0], along), reference.matern32(axes[1], across)]
    kernels[0] = tuple(np.exp(variance) * k for k in kernels[0])
    value, gradient = reference.kronecker_gradient(kernels, noise, y)
    # Scaling signal and noise together by c: d log p / d log c = (yᵀ S⁻¹ y − N) / 2.
    values, vectors = zip(*(np.linalg.eigh(k[0]) for k in kernels), strict=True)
    turned = vectors[0].T @ y @ vectors[1]
    whole = 0.5 * np.sum(turned**2 / (np.multiply.outer(*values) + np.exp(noise)) - 1)
    return value, np.array([*gradient[:2], whole - gradient[2], gradient[2]])


def markov_table(rows: list[dict[str, Any]]) -> str:
    """Value and gradient by grid and method, beside those of the filter."""
    own = [row for row in rows if "spacing" in row]
    filtered = {_key(row): row["seconds"] for row in own if row["method"] == MARKOV}
    body = []
    for row in own:
        cells = [_grid(row), row["method"]]
        if row["seconds"] is None:
            body.append([*cells, row["error"], *["–"] * 5])
            continue
        base = None if row["method"] == MARKOV else filtered.get(_key(row))
        held = row.get("bytes")
        errors = (row.get("value_error"), row.get("gradient_error"))
        body.append(
            [
                *cells,
                digits(1e3 * row["seconds"]),
                digits(1e9 * row["seconds"] / prod(row["shape"])),
                times(None if base is None else row["seconds"] / base),
                "–" if held is None else f"{held / 1e6:,.0f} MB",
                *("–" if e is None else f"{e:.0e}" for e in errors),
            ]
        )
    header = ["grid", "method", "ms", "ns per cell", "over the filter", "memory"]
    return table([*header, "error of the value", "of the gradient"], body)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*row["shape"], row["spacing"])


def _grid(row: dict[str, Any]) -> str:
    size, places = row["shape"]
    gaps = f", {row['missing']:.0%} missing" if row.get("missing") else ""
    return f"{places} × {size:,} {row['spacing']}{gaps}"


def run(quick: bool) -> None:
    """Accuracy, then every grid; what is done is stored as it comes."""
    rounds = 3 if quick else ROUNDS
    rows: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}

    def keep(new: list[dict[str, Any]], found: dict[str, Any]) -> None:
        rows.extend(new)
        versions.update(found)
        for row in new:
            print(described(row), flush=True)
        save("markov", rows, quick, peers=versions)

    keep(measure_accuracy(quick), {})
    for case in QUICK_CASES if quick else CASES:
        keep(*measure(case, rounds))


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    if "case" in row:
        return f"{row['precision']}, {row['case']}: " + ", ".join(
            f"{name} {error:.1e}" for name, error in row["errors"].items()
        )
    held = f", {row['bytes'] / 1e6:,.0f} MB" if "bytes" in row else ""
    return f"{_grid(row)}: {row['method']}: {shown(row)}{held}"
