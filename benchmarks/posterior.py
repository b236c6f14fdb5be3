"""What a posterior costs on a million cells, in values of the likelihood, and the memory of draws.

Each call is compiled with parameters and data as arguments, and what is asked of the posterior
begins at these: "mean and variance" decomposes, solves and predicts. Draws are counted in a process
of its own, from the posterior to the result: by how much it held more at its peak.
"""

import json
from math import prod
from typing import Any

import numpy as np

from benchmarks import memory
from benchmarks.apart import apart
from benchmarks.measure import CandidateError, alternate, save, shown

SHAPES = ((1000, 1000), (100, 100, 100))
QUICK_SHAPES = ((60, 50),)
LENGTHSCALE, NOISE = 0.3, 0.1
NUM_DRAWS = 100
LIMIT_S = 600
LIKELIHOOD = "one likelihood value"


def model(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A Matérn-5/2 process over regular axes, and data."""
    import jax.numpy as jnp

    import kronax as kx

    axes = [np.linspace(0, 1, n) for n in shape]
    gp = kx.GridGP([kx.Matern52(LENGTHSCALE)] * len(shape), axes, noise=NOISE)
    return gp, jnp.asarray(np.random.default_rng(0).normal(size=shape))


def times(shape: list[int]) -> list[dict[str, Any]]:
    """One row per question, in turns."""
    import jax

    gp, y = model(tuple(shape))

    def between(x):
        return x[:-1] + np.diff(x) / 2

    new = [between(np.linspace(0, 1, n)) for n in shape]
    asked = {
        LIKELIHOOD: lambda gp, y: gp.log_marginal_likelihood(y),
        "mean and variance at the grid": lambda gp, y: _both(gp.condition(y), None),
        "mean and variance on a grid between": lambda gp, y: _both(gp.condition(y), new),
        "leave-one-out": lambda gp, y: tuple(gp.condition(y).leave_one_out()),
        "leave-slice-out, first axis": lambda gp, y: _slices(gp.condition(y)),
        "one draw": lambda gp, y: gp.condition(y).sample(jax.random.key(0)),
    }
    calls = {name: _call(jax.jit(function), gp, y) for name, function in asked.items()}
    found = alternate(calls)
    one = found[LIKELIHOOD]["seconds"]
    return [
        {"shape": shape, "what": name, **timing, "ratio": timing["seconds"] / one}
        for name, timing in found.items()
    ]


def _both(post: Any, axes: Any) -> tuple[Any, Any]:
    return post.mean(axes), post.variance(axes)


def _slices(post: Any) -> tuple[Any, ...]:
    found = post.leave_slice_out(0)
    return (*found, found.log_scores)


def _call(function: Any, *arguments: Any) -> Any:
    return lambda: function(*arguments)


def draws(shape: list[int]) -> dict[str, Any]:
    """Seconds and bytes of draws of new observations, in this process; the first call compiles."""
    import jax

    gp, y = model(tuple(shape))
    post = jax.block_until_ready(gp.condition(y))
    baseline = memory.reset_peak()

    def drawn():
        return post.sample(jax.random.key(0), sample_shape=NUM_DRAWS, include_noise=True)

    timing = alternate({"draws": drawn}, rounds=1, budget_s=60.0)["draws"]
    held = memory.peak() - baseline
    return {**timing, "bytes": held, "bytes_of_result": 8 * NUM_DRAWS * prod(shape)}


def run(quick: bool) -> None:
    """Measure every grid."""
    rows: list[dict[str, Any]] = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        rows += apart("posterior", "times", LIMIT_S, shape=list(shape))
        row: dict[str, Any] = {"shape": list(shape), "what": f"{NUM_DRAWS} draws of observations"}
        try:
            row |= apart("posterior", "draws", LIMIT_S, shape=list(shape))
            one = next(r for r in rows if r["shape"] == row["shape"] and r["what"] == LIKELIHOOD)
            row["ratio"] = row["seconds"] / one["seconds"]
        except CandidateError as reason:
            row |= {"seconds": None, "error": str(reason)}
        rows.append(row)
        for row in rows[-7:]:
            print(f"{'×'.join(map(str, shape))} {row['what']}: {shown(row)}", flush=True)
            print(json.dumps(row), flush=True)
    save("posterior", rows, quick, lengthscale=LENGTHSCALE, noise=NOISE, num_draws=NUM_DRAWS)
