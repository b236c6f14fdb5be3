"""Iterative log densities of random small grids beside the exact ones, in units of their error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

import kronax as kx
from benchmarks.measure import save

NUM_CASES = 200
SHAPES = ((14, 15), (8, 30), (6, 7, 8))
MOST_MISSING, NOISES, LENGTHSCALES = 0.7, (1e-3, 1.0), (0.05, 1.0)
# Eigenvectors that the preconditioner takes exactly: few, so that the iterations have work left.
BOX = 12
NUM_SEEDS = 10


def draw_case(seed: int) -> dict[str, Any]:
    """Shape, mask, noise and lengthscales at random, and data drawn of the model."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    if seed % 2:
        share = rng.uniform(0, MOST_MISSING)
        observed = rng.random(shape) >= share
    else:
        # A block with a corner and sides at random.
        observed = np.ones(shape, bool)
        sides = [rng.integers(1, n) for n in shape]
        corner = [rng.integers(n - side + 1) for n, side in zip(shape, sides, strict=True)]
        observed[tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))] = False
    observed.flat[0] = True
    noise, *scales = (
        np.exp(rng.uniform(*np.log(span))) for span in (NOISES, *[LENGTHSCALES] * len(shape))
    )
    factors = [_matern(n, scale) for n, scale in zip(shape, scales, strict=True)]
    whole = kx.Kronecker(*factors) + noise
    y = kx.sample_normal(jax.random.key(seed), whole)
    return {"shape": shape, "observed": observed, "noise": noise, "factors": factors, "y": y}


def measure(seed: int) -> dict[str, Any]:
    """The two log densities, the reported error, and what the case was."""
    case = draw_case(seed)
    signal, observed = kx.Kronecker(*case["factors"]), case["observed"]
    exact = kx.normal_logpdf(case["y"], 0.0, kx.Masked(signal + case["noise"], observed))
    op = kx.KroneckerPlusDiagonal(signal, case["noise"], observed=observed)
    iteration = kx.Iteration(box_size=BOX, seed=seed % NUM_SEEDS)
    found = kx.iterative_logpdf(case["y"], 0.0, op, iteration=iteration)
    return {
        "shape": case["shape"],
        "num_missing": int((~observed).sum()),
        "gaps": "scattered" if seed % 2 else "block",
        "noise": float(case["noise"]),
        "exact": float(exact),
        "iterative": float(found.value),
        "error": float(found.error),
        "num_steps": int(found.num_steps),
        "converged": bool(found.converged),
    }


def run(quick: bool) -> None:
    """All cases."""
    num_cases = 4 if quick else NUM_CASES
    # Every mask is a program of its own, and its time is of no interest.
    with _compiled_quickly():
        rows = [measure(seed) for seed in range(num_cases)]
    ratios = [abs(r["iterative"] - r["exact"]) / r["error"] for r in rows]
    print(
        f"{np.mean(np.array(ratios) <= 1):.1%} of {num_cases} within the reported error, "
        f"median of error over reported error {np.median(ratios):.2f}"
    )
    save("certificates", rows, quick, box_size=BOX)


@contextmanager
def _compiled_quickly() -> Iterator[None]:
    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, False)


def _matern(size: int, lengthscale: float) -> np.ndarray:
    x = np.linspace(0, 1, size)
    r = np.abs(x[:, None] - x) * np.sqrt(3) / lengthscale
    return (1 + r) * np.exp(-r)
