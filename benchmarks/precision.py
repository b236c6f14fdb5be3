"""How far single and double precision carry a grid process: errors beside `ε λmax / σ²`.

Random models on a grid, conditioned on data drawn of them; the truth is a dense Cholesky
factorisation of the same numbers in extended precision (64 bits of mantissa), which NumPy has no
linear algebra for.
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

import kronax as kx
from benchmarks.markdown import table
from benchmarks.measure import save

SHAPE = (18, 13)
NUM_CASES, QUICK_NUM_CASES = 30, 1
LENGTHSCALES = (0.1, 1.0)
RATIOS = (1e-5, 10.0)
PERIOD = 0.7
DECADES = (1e-5, 1e-3, 1e-2, 0.1, 1.0, 10.1)
ERRORS = {
    "value": "log likelihood, nats",
    "grid mean": "mean on the grid, deviations",
    "grid variance": "its variance, relative",
    "new mean": "mean between, deviations",
    "new variance": "its variance, relative",
}
Wide = np.longdouble


def _scaled(x: np.ndarray, lengthscale: Any, root: float) -> np.ndarray:
    return np.abs(x) / lengthscale * np.sqrt(Wide(root))


KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., np.ndarray]]] = {
    "Matern12": (kx.Matern12, lambda x, s: np.exp(-_scaled(x, s, 1))),
    "Matern32": (kx.Matern32, lambda x, s: (1 + (r := _scaled(x, s, 3))) * np.exp(-r)),
    "Matern52": (kx.Matern52, lambda x, s: (1 + (r := _scaled(x, s, 5)) + r * r / 3) * np.exp(-r)),
    "RBF": (kx.RBF, lambda x, s: np.exp(-((x / s) ** 2) / 2)),
    "Periodic": (
        lambda s: kx.Periodic(s.dtype.type(PERIOD), s),
        lambda x, s: np.exp(
            -2 * (np.sin(np.arctan(Wide(1)) * 4 * x / s.dtype.type(PERIOD)) / s) ** 2
        ),
    ),
}


def draw_case(kernel: str, dtype: Any, seed: int) -> dict[str, Any]:
    """A model in its own precision, and data of its own, as extended numbers."""
    rng = np.random.default_rng([seed, sorted(KERNELS).index(kernel)])
    axes = [np.sort(rng.uniform(0, 1, n)).astype(dtype) for n in SHAPE]
    if seed % 2:  # regular axes have a structure of their own
        axes = [np.arange(n).astype(dtype) / n for n in map(dtype, SHAPE)]
    scales = np.exp(rng.uniform(*np.log(LENGTHSCALES), 2)).astype(dtype)
    ratio = float(np.exp(rng.uniform(*np.log(RATIOS))))
    factors = [_matrix(kernel, x, x, s) for x, s in zip(axes, scales, strict=True)]
    top = np.prod([np.linalg.eigvalsh(f.astype(float))[-1] for f in factors])
    noise = dtype(np.finfo(dtype).eps * top / ratio)
    root = [np.linalg.eigh(f.astype(float)) for f in factors]
    white = rng.normal(size=SHAPE)
    for axis, (values, vectors) in enumerate(root):
        spread = vectors * np.sqrt(np.maximum(values, 0))
        white = np.moveaxis(np.tensordot(spread, white, (1, axis)), 0, axis)
    y = (white + np.sqrt(float(noise)) * rng.normal(size=SHAPE)).astype(dtype)
    new = [((x[1:] + x[:-1]) / 2).astype(dtype)[::4] for x in axes]
    return {"axes": axes, "scales": scales, "noise": noise, "y": y, "new": new, "ratio": ratio}


def _matrix(kernel: str, x: np.ndarray, z: np.ndarray, scale: Any) -> np.ndarray:
    return KERNELS[kernel][1](x.astype(Wide)[:, None] - z.astype(Wide), scale)


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """The lower factor, column by column, in the precision of the matrix."""
    root = matrix.copy()
    for k in range(len(root)):
        root[k:, k] /= np.sqrt(root[k, k])
        root[k + 1 :, k + 1 :] -= np.outer(root[k + 1 :, k], root[k + 1 :, k])
    return np.tril(root)


def forward(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`L⁻¹ b` of a lower triangle."""
    x = b.copy()
    for k in range(len(root)):
        x[k] /= root[k, k]
        x[k + 1 :] -= np.multiply.outer(root[k + 1 :, k], x[k])
    return x


def truth(kernel: str, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Log density, and means and variances on the grid and between, in extended precision."""
    old, new = case["axes"], case["new"]
    joined = lambda a, b: np.kron(  # noqa: E731
        *(_matrix(kernel, x, z, s) for x, z, s in zip(a, b, case["scales"], strict=True))
    )
    whole = joined(old, old)
    root = cholesky(whole + Wide(case["noise"]) * np.eye(len(whole)))
    weights = forward(root, case["y"].astype(Wide).ravel())
    count = len(whole)
    found = {
        "value": -(weights @ weights) / 2
        - np.sum(np.log(np.diagonal(root)))
        - count / 2 * np.log(2 * np.pi)
    }
    for name, cross in (("grid", whole), ("new", joined(old, new))):
        half = forward(root, cross)
        found[f"{name} mean"] = half.T @ weights
        found[f"{name} variance"] = 1 - np.sum(half**2, axis=0)
    return found


def measure(kernel: str, dtype: Any, seed: int) -> dict[str, Any]:
    """Errors of one case: nats, means over deviations, and shares of variances."""
    case = draw_case(kernel, dtype, seed)
    exact = truth(kernel, case)
    make = KERNELS[kernel][0]
    gp = kx.GridGP(tuple(make(s) for s in case["scales"]), tuple(case["axes"]), noise=case["noise"])
    post = gp.condition(case["y"])
    new = tuple(case["new"])
    given = {
        "grid mean": post.mean(),
        "grid variance": post.variance(),
        "new mean": post.mean(new),
        "new variance": post.variance(new),
    }
    row = {
        "kernel": kernel,
        "precision": np.dtype(dtype).name,
        "ratio": case["ratio"],
        "cells": int(np.prod(SHAPE)),
        "value": _largest(gp.log_marginal_likelihood(case["y"]), exact["value"], 1.0),
    }
    for place in ("grid", "new"):
        variance = exact[f"{place} variance"]
        mean, deviation = exact[f"{place} mean"], np.sqrt(variance)
        row[f"{place} mean"] = _largest(given[f"{place} mean"], mean, deviation)
        row[f"{place} variance"] = _largest(given[f"{place} variance"], variance, variance)
    return row


def _largest(given: Any, exact: np.ndarray, unit: Any) -> float:
    """The largest error, in units."""
    error = np.abs(np.asarray(given).astype(Wide).ravel() - np.ravel(exact)) / np.ravel(unit)
    return float(np.max(error))


def precision_table(rows: list[dict[str, Any]]) -> str:
    """The largest error of every kind, by kernel and by decade of the ratio."""
    body = []
    for precision, kernel in dict.fromkeys((r["precision"], r["kernel"]) for r in rows):
        own = [r for r in rows if (r["precision"], r["kernel"]) == (precision, kernel)]
        for low, high in pairwise(DECADES):
            some = [r for r in own if low <= r["ratio"] < high]
            if some:
                worst = [max(_number(r[name]) for r in some) for name in ERRORS]
                cells = [precision, kernel, f"{low:g} to {high:g}", str(len(some))]
                body.append([*cells, *(f"{w:.1g}" for w in worst)])
    header = ["precision", "kernel", "ratio", "cases", *ERRORS.values()]
    return table(header, body)


def _number(value: float | None) -> float:
    return np.inf if value is None else value


def run(quick: bool) -> None:
    """All kernels in both precisions."""
    count = QUICK_NUM_CASES if quick else NUM_CASES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kx.PrecisionWarning)  # errors are what is measured
        rows = [
            measure(kernel, dtype, seed)
            for dtype in (np.float32, np.float64)
            for kernel in KERNELS
            for seed in range(count)
        ]
    save("precision", rows, quick)
    print(precision_table(rows))
