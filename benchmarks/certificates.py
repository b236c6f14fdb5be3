"""Iterative log densities and their gradients beside the exact ones, in units of their errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks.certificate_cases import Cases, Shape, draw_cases, exact
from benchmarks.measure import save

# By the number of terms: as sums take longer to compile and to run.
NUM_CASES, NUM_CASES_OF_SUMS, CHUNK = 324, 64, 27
GRIDS = ((7, 6), (5, 9), (3, 4, 4))
# Eigenvectors that the preconditioner takes exactly: few, or all that there are.
BOXES, PROBES, MOST_STEPS = (4, 12, 900), (4, 8, 16, 64), 400
PARAMETERS = ("lengthscale", "signal", "noise")


def shapes() -> list[Shape]:
    """Sixty: one product on two grids, sums of two to four products on one."""
    both = list(product(BOXES, PROBES))
    one = [Shape(1, GRIDS[k], box, num) for k in (0, 2) for box, num in both]
    grids = {2: GRIDS[1], 3: GRIDS[0], 4: GRIDS[1]}
    many = [Shape(terms, grid, box, num) for terms, grid in grids.items() for box, num in both]
    return one + many


def measure(shape: Shape, num_cases: int, seed: int) -> list[dict[str, Any]]:
    """Values, gradients and their errors beside the exact ones, one row per case."""
    cases, kinds = draw_cases(shape, num_cases, seed)
    run_chunk = jax.jit(jax.vmap(partial(_evaluate, shape, seed % 10)))
    pieces = []
    # In order of the signal over noise: a chunk goes on until the last of it has converged.
    for start in range(0, num_cases, CHUNK):
        chunk = jax.tree.map(lambda a, s=start: jnp.asarray(a[s : s + CHUNK]), cases)
        pieces.append(jax.tree.map(np.asarray, run_chunk(chunk)))
    found = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
    value, gradient = exact(cases)
    estimate = found.estimate
    ratios = np.abs(estimate.value - value) / estimate.error
    slopes = np.abs(found.value - gradient) / found.error
    return [
        {
            "terms": shape.num_terms,
            "box": shape.box_size,
            "probes": shape.num_probes,
            **kinds[k],
            "converged": bool(estimate.converged[k]),
            "error": float(estimate.error[k]),
            "of_error": float(ratios[k]),
            "of_gradient_error": [float(r) for r in slopes[k]],
            "gradient_error": [float(e) for e in found.error[k]],
            "num_steps": int(estimate.num_steps[k]),
        }
        for k in range(num_cases)
    ]


def _evaluate(shape: Shape, seed: int, case: Cases) -> kx.GradientEstimate:
    iteration = kx.Iteration(
        box_size=shape.box_size,
        num_probes=shape.num_probes,
        max_steps=MOST_STEPS,
        seed=seed,
        on_failure="flag",
    )
    observed = ~jnp.isinf(case.variances)

    def density(p: jax.Array) -> kx.Estimate:
        first, *others = case.factors
        first = [first[0] + p[0] * case.slope, *first[1:]]
        terms = tuple((1 + p[1]) * kx.Kronecker(*factors) for factors in (first, *others))
        variances = (1 + p[2]) * jnp.where(observed, case.variances, 1)
        op = kx.KroneckerPlusDiagonal(terms, variances, observed=observed)
        return kx.iterative_logpdf(case.y, 0.0, op, iteration=iteration)

    return kx.gradient_estimate(density, jnp.zeros(3))


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per stratum: how many converged, and how many of these lie within their errors."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        decade = 3 * int(np.log10(row["ratio"]) // 3)
        levels = {
            "terms": str(row["terms"]),
            "box": str(row["box"]),
            "probes": str(row["probes"]),
            "gaps": row["gaps"],
            "signal over noise": f"1e{decade} to 1e{decade + 3}",
            "all": "",
        }
        for item in levels.items():
            groups.setdefault(item, []).append(row)
    kinds = [kind for kind, _ in groups]

    def place(item: tuple[tuple[str, str], Any]) -> tuple[int, int, str]:
        (kind, level), _ = item
        return kinds.index(kind) if kind != "all" else len(kinds), len(level), level

    ordered = sorted(groups.items(), key=place)
    return [{"kind": kind, "level": level, **_counted(g)} for (kind, level), g in ordered]


def _counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    known = [r for r in rows if r["converged"]]
    slopes = np.array([r["of_gradient_error"] for r in known]).reshape(-1, len(PARAMETERS))
    return {
        "num_cases": len(rows),
        "num_converged": len(known),
        "num_within": sum(r["of_error"] <= 1 for r in known),
        "num_within_gradient": int((slopes <= 1).sum()),
        "num_gradient": slopes.size,
        "median_error": float(np.median([r["error"] for r in known])),
        "median_of_error": float(np.median([r["of_error"] for r in known])),
        "median_gradient_error": float(np.median([r["gradient_error"] for r in known])),
        "most_steps": max(r["num_steps"] for r in known),
    }


def run(quick: bool) -> None:
    """All shapes."""
    chosen = shapes()[::16] if quick else shapes()
    rows: list[dict[str, Any]] = []
    # Every shape is a program of its own, and its time is of no interest.
    with _compiled_quickly():
        for seed, shape in enumerate(chosen):
            full = NUM_CASES if shape.num_terms == 1 else NUM_CASES_OF_SUMS
            rows += measure(shape, CHUNK if quick else full, seed)
            print(f"{shape}: {len(rows)} cases")
    found = summarised(rows)
    for row in found:
        print(row)
    save("certificates", found, quick, num_shapes=len(chosen))


@contextmanager
def _compiled_quickly() -> Iterator[None]:
    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, False)
