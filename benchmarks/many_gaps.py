"""Many gaps along a long axis with many places: iterations from a filtered or decomposed grid.

Value and gradient of the marginal likelihood in the logarithms of both lengthscales, variance and
noise, by iterations that start from the complete grid: along the axis it is filtered, or
decomposed. Seconds are those of the processor, without compiling.
"""

from functools import partial
from time import process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks.markdown import digits, table
from benchmarks.markov import OFFSET, TRUE, Case, axes_of, process
from benchmarks.measure import alternate, save

# Cells, noise, the length of an outage or one for single cells, and what is measured.
CASES = [
    ((1000, 100), 0.1, 1, ("markov", "dense")),
    ((1000, 100), 0.1, 168, ("markov", "dense")),
    ((2000, 150), 0.01, 1, ("markov", "dense")),
    ((10_000, 100), 0.1, 1, ("markov",)),
]
QUICK_CASES = [((120, 12), 0.1, 20, ("markov", "dense"))]
MISSING = 0.2
NAMES = {"markov": "filtered", "dense": "decomposed"}
ROUNDS, BUDGET_S = 2, 30.0


def data_of(shape: tuple[int, int], noise: float, outage: int) -> tuple[Any, np.ndarray]:
    """Axes and a draw; a twentieth is missing here and there, the rest in outages."""
    axes, rng = axes_of(Case(shape)), np.random.default_rng(2)
    at = np.append(TRUE[:3], np.log(noise))
    y = np.array(
        process(at, axes, {"time": "markov"}).sample(jax.random.key(0), include_noise=True)
    )
    seen = rng.random(shape) >= (MISSING if outage == 1 else MISSING / 4)
    while seen.mean() > 1 - MISSING:
        begin, place = rng.integers(shape[0]), rng.integers(shape[1])
        seen[begin : begin + outage, place] = False
    return axes, np.where(seen, y, np.nan)


def measure(
    shape: tuple[int, int], noise: float, outage: int, structures: tuple[str, ...], rounds: int
) -> list[dict[str, Any]]:
    """One row for each way."""
    axes, y = data_of(shape, noise, outage)
    at = jnp.asarray(np.append(TRUE[:3], np.log(noise)) + OFFSET)
    seen, data = np.isfinite(y), jnp.asarray(np.nan_to_num(y))
    calls: dict[str, Any] = {}
    answers: dict[str, Any] = {}

    def kept(structure: str, function: Any) -> Any:
        # Another call for what it found would take minutes.
        answers[structure] = function(at, data)
        return answers[structure]

    for structure in structures:

        def value(logarithms: Any, data: Any, structure: str = structure) -> Any:
            gp = process(
                logarithms,
                axes,
                {"time": structure},
                observed=seen,
                gaps="iterative",
                iteration=kx.Iteration(on_failure="flag"),
            )
            found = gp.log_marginal_likelihood_estimate(data)
            return found.value, found

        function = jax.jit(jax.value_and_grad(value, has_aux=True)).lower(at, data).compile()
        calls[structure] = partial(kept, structure, function)
    taken = alternate(calls, rounds, BUDGET_S, process_time)
    rows = []
    for structure, found in taken.items():
        (_, estimate), _ = answers[structure]
        row = {"shape": list(shape), "noise": noise, "outage": outage, "method": NAMES[structure]}
        steps, error = int(estimate.num_steps), float(estimate.error)
        rows.append({**row, **found, "steps": steps, "error": error})
    return rows


def many_gaps_table(rows: list[dict[str, Any]]) -> str:
    """By grid and way."""
    body = [
        [
            "{1} × {0:,}".format(*row["shape"]),
            "single cells" if row["outage"] == 1 else f"outages of {row['outage']}",
            f"{row['noise']:g}",
            row["method"],
            str(row["steps"]),
            digits(row["seconds"]),
            f"{row['error']:.2g}",
        ]
        for row in rows
    ]
    header = ["grid", "missing", "noise", "complete grid", "iterations", "seconds", "error, nats"]
    return table(header, body)


def run(quick: bool) -> None:
    """Every case; what is done is stored as it comes."""
    rows: list[dict[str, Any]] = []
    for case in QUICK_CASES if quick else CASES:
        rows += measure(*case, 1 if quick else ROUNDS)
        save("many_gaps", rows, quick)
        print(many_gaps_table(rows).splitlines()[-1], flush=True)
