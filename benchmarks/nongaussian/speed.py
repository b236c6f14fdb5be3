"""Fits of counts from the data alone, and what they predict at cells that were removed.

Four parameters: a variance, two lengthscales and the mean of the logarithm of the rate; the start
is `gp.initialise(y)`. Times are those of the processor, compilation included; every case has a
process of its own.
"""

from collections.abc import Sequence
from functools import partial
from time import perf_counter, process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import kronax as kx
from benchmarks import memory
from benchmarks.apart import apart
from benchmarks.markdown import digits, grid, table
from benchmarks.measure import CandidateError
from benchmarks.nongaussian import data
from benchmarks.parts import measured
from kronax.gp.model import solver_choice

HELD_OUT = 0.1
LIMIT_S = 3000


class Case(NamedTuple):
    """A grid with its lengthscales; along time a Markov process, if there is one."""

    shape: tuple[int, int]
    lengthscales: tuple[float, float]
    is_markov: bool = False


CASES = {
    "30×40": Case((30, 40), (6.0, 8.0)),
    "100×100": Case((100, 100), (12.0, 16.0)),
    "12×10,000, Markov": Case((12, 10_000), (4.0, 50.0), True),
    "300×400": Case((300, 400), (20.0, 30.0)),
}
QUICK_CASES = {
    "12×10": Case((12, 10), (3.0, 4.0)),
    "3×200, Markov": Case((3, 200), (2.0, 20.0), True),
}
LIKELIHOOD = "Poisson"


def model(case: Case, variance: Any, scales: Any, mean: Any) -> kx.GridGP:
    """Matérn-5/2 along both axes, or Matérn-3/2 where one is a Markov process."""
    likelihood = data.KINDS[LIKELIHOOD].likelihood()
    if not case.is_markov:
        return data.process(case.shape, scales, likelihood, variance, mean)
    axes = tuple(np.arange(float(n)) for n in case.shape)
    first, second = (kx.Matern32(jnp.asarray(scale)) for scale in scales)
    structure = (None, "markov")
    kernels = (jnp.asarray(variance) * first, second)
    return kx.GridGP(kernels, axes, mean=mean, likelihood=likelihood, structure=structure)


def simulated(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The field, its counts, and which of them are held out."""
    truth = model(case, data.VARIANCE, case.lengthscales, data.MEAN)
    f, rng = np.asarray(truth.sample(jax.random.key(0))), np.random.default_rng(3)
    y = data.KINDS[LIKELIHOOD].draw(rng, f).astype(float)
    return f, y, rng.random(case.shape) < HELD_OUT


def evaluated(case: list[Any]) -> dict[str, Any]:
    """A value and gradient of the evidence at the true parameters, sites found from the data.

    The process must be new, so that its memory is counted from nothing.
    """
    own = _case(case)
    _, y, held = simulated(own)
    gp = model(own, data.VARIANCE, own.lengthscales, data.MEAN)
    gp = gp.observing(~held)
    raw, build = kx.unconstrain(gp)
    values = jnp.where(held, 0, y)
    function = jax.jit(jax.value_and_grad(lambda raw: build(raw).log_marginal_likelihood(values)))
    before, began = memory.reset_peak(), process_time()
    jax.block_until_ready(function(raw))
    first, began = process_time() - began, process_time()
    value, _ = jax.block_until_ready(function(raw))
    return {
        "way": solver_choice.choice(gp).way,
        "first_evaluation_seconds": first,
        "evaluation_seconds": process_time() - began,
        "evaluation_bytes": memory.peak() - before,
        "value": float(value),
    }


def fitted(case: list[Any]) -> dict[str, Any]:
    """The fit, predictions of every cell, and how good they are at those held out."""
    own = _case(case)
    f, y, held = simulated(own)
    given = np.where(held, np.nan, y)
    start = model(own, 1.0, (1.0, 1.0), 0.0)
    began, wall = process_time(), perf_counter()
    result = kx.fit(start.initialise(given), given, progress=False)
    between, wall = process_time(), perf_counter() - wall
    post = result.model.condition(given)
    found = np.asarray(post.mean()), np.asarray(post.variance())
    ended = process_time()
    gp = result.model
    parameters = (gp.variance, *(k.lengthscale for k in gp.kernels), gp.mean.value)
    return {
        "seconds": between - began,
        "wall_seconds": wall,
        "predict_seconds": ended - between,
        "num_steps": int(result.num_steps),
        "num_site_steps": int(post.sites.num_steps),
        "converged": bool(result.converged),
        "parameters": [float(x) for x in parameters],
        **scores(f, y, held, *found),
    }


def scores(
    f: np.ndarray, y: np.ndarray, held: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> dict[str, float]:
    """At the cells held out: log density of a count, its place, and bands of the rate."""
    kind, at = data.KINDS[LIKELIHOOD], (y[held], mean[held], variance[held])
    places = data.transforms(kind, *at, np.random.default_rng(7))
    z = np.abs(f - mean)[held] / np.sqrt(variance[held])
    return {
        "log_score": float(data.log_scores(kind, *at).mean()),
        "log_score_of_the_true_rate": float(kind.log_density(y[held], f[held]).mean()),
        "data_coverage": float(data.is_central(places).mean()),
        "rate_coverage": float((z < norm.ppf(0.975)).mean()),
        "num_held_out": int(held.sum()),
    }


def _case(given: list[Any]) -> Case:
    shape, lengthscales, is_markov = given
    return Case(tuple(shape), tuple(lengthscales), is_markov)


def measure(case: Case) -> list[dict[str, Any]]:
    """One row; what does not end in time says so."""
    row: dict[str, Any] = {"shape": list(case.shape), "lengthscales": list(case.lengthscales)}
    for function in ("evaluated", "fitted"):
        try:
            row |= apart("nongaussian.speed", function, LIMIT_S, case=list(case))
        except CandidateError as reason:
            row |= {"seconds": None, "error": str(reason)}
    return [row]


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Processor time and quality by grid."""
    body = []
    for row in rows:
        cells = [row["part"], row.get("way", "–")]
        cells += [digits(row.get(k)) for k in ("evaluation_seconds", "first_evaluation_seconds")]
        if row["seconds"] is None:
            body.append([*cells, row["error"], *["–"] * 6])
            continue
        mark = "" if row["converged"] else ", stopped"
        body.append(
            [
                *cells,
                f"{digits(row['seconds'])} ({digits(row['wall_seconds'])})",
                f"{row['num_steps']}{mark}",
                digits(row["predict_seconds"]),
                f"{row['log_score']:.3f}",
                f"{row['log_score_of_the_true_rate']:.3f}",
                f"{row['rate_coverage']:.1%}",
                f"{row['data_coverage']:.1%}",
            ]
        )
    header = ["cells", "solved by", "value and gradient, s", "the first, compiled, s"]
    header += ["fit, s of processors (on the clock)", "steps", "predict, s"]
    header += ["log density of a held-out count", "with the true rate"]
    return table([*header, "rates in the 95 % band", "counts in the middle 95 %"], body)


def run(quick: bool, only: Sequence[str] = ()) -> None:
    """Every grid."""
    cases = QUICK_CASES if quick else CASES
    parts = {name: partial(measure, case) for name, case in cases.items()}
    measured("nongaussian.speed", parts, described, quick, only, held_out=HELD_OUT, limit_s=LIMIT_S)


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    shown = {key: value for key, value in row.items() if key not in ("shape", "lengthscales")}
    return f"{grid(row)}: " + ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )
