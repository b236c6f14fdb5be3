"""W2: `solve(kron(A, B), b)` for general, positive definite and triangular factors.

`dense` builds the Kronecker product and solves with the same kind of factorisation; `NumPy` is what
one writes by hand: `A⁻¹ B⁻ᵀ` applied to the grid with one solve per axis. "columns" are 16 vectors
with one operator, "batch" is 16 operators with a vector each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import scipy.linalg as sl

import kronax as kx
from benchmarks.measure import ROUNDS, alternate, relative_error, save

SIZES = (10, 50, 100)
COUNT = 16
# A dense solve of more numbers than this is left out: it would take minutes, or the memory.
MOST_DENSE_NUMBERS = 1.01e8

FACTORS: dict[str, Callable[[Any], kx.AbstractFactor]] = {
    "general": kx.Dense,
    "positive definite": lambda m: kx.Dense(m, positive_definite=True),
    "triangular": kx.LowerTriangular,
}
DENSE: dict[str, Callable[[Any, Any], Any]] = {
    "general": jnp.linalg.solve,
    "positive definite": lambda s, b: jsl.cho_solve(jsl.cho_factor(s), b),
    "triangular": lambda s, b: jsl.solve_triangular(s, b, lower=True),
}
BY_HAND: dict[str, Callable[[Any, Any], Any]] = {
    "general": np.linalg.solve,
    "positive definite": lambda a, b: sl.cho_solve(sl.cho_factor(a), b),
    "triangular": lambda a, b: sl.solve_triangular(a, b, lower=True),
}


def matrices(rng: np.random.Generator, kind: str, size: int, batch: tuple[int, ...]) -> np.ndarray:
    """Well-conditioned matrices of one kind."""
    matrix = rng.standard_normal((*batch, size, size)) / np.sqrt(size)
    if kind == "positive definite":
        return matrix @ np.swapaxes(matrix, -1, -2) + np.eye(size)
    return np.tril(matrix) + 2 * np.eye(size) if kind == "triangular" else matrix + 2 * np.eye(size)


def candidates(kind: str, a: Any, b: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Calls that return the solution; `dense` takes its vectors as columns."""

    def operator(a, b):
        return kx.Kronecker(FACTORS[kind](a), FACTORS[kind](b))

    solve = jax.jit(lambda a, b, y: kx.solve(operator(a, b), y))
    on_device = jnp.asarray(a), jnp.asarray(b), jnp.asarray(y)
    held = operator(*on_device[:2])
    calls = {
        "kronax": lambda: solve(*on_device),
        "kronax, not jitted": lambda: kx.solve(held, on_device[2]),
        "NumPy": lambda: _by_hand(BY_HAND[kind], a, b, y),
    }
    numbers = a.size * b.size / (a.shape[0] if a.ndim == 3 else 1)
    if numbers <= MOST_DENSE_NUMBERS:
        dense = jax.jit(_dense(DENSE[kind], batched=a.ndim == 3))
        calls["dense"] = lambda: dense(*on_device)
    return calls


def _dense(solve: Callable, batched: bool) -> Callable:
    def one(a, b, y):
        columns = y.reshape(-1, a.shape[-1] * b.shape[-1]).T
        return solve(jnp.kron(a, b), columns).T.reshape(y.shape)

    return jax.vmap(one) if batched else one


def _by_hand(solve: Callable, a: Any, b: Any, y: Any) -> Any:
    if a.ndim == 3 and solve is np.linalg.solve:
        return np.swapaxes(solve(b, np.swapaxes(solve(a, y), -1, -2)), -1, -2)
    if a.ndim == 3:
        return np.stack([_by_hand(solve, *one) for one in zip(a, b, y, strict=True)])
    for matrix, axis in ((a, -2), (b, -1)):
        front = np.moveaxis(y, axis, 0)
        y = np.moveaxis(solve(matrix, front.reshape(len(matrix), -1)).reshape(front.shape), 0, axis)
    return y


def measure(kind: str, size: int, form: str, rounds: int) -> list[dict[str, Any]]:
    """One row per method."""
    rng = np.random.default_rng(0)
    batch = (COUNT,) if form == "batch" else ()
    a, b = (matrices(rng, kind, size, batch) for _ in range(2))
    y = rng.standard_normal((*(() if form == "vector" else (COUNT,)), size, size))
    calls = candidates(kind, a, b, y)
    times = alternate(calls, rounds)
    rows = []
    for name, timing in times.items():
        x = np.asarray(calls[name]()) if timing["seconds"] < 2 else None
        residual = None if x is None else relative_error(a @ x @ np.swapaxes(b, -1, -2), y)
        rows.append(
            {
                "kind": kind,
                "size": size,
                "form": form,
                "method": name,
                **timing,
                "dense_over_this": times["dense"]["seconds"] / timing["seconds"]
                if "dense" in times
                else None,
                "residual": residual,
            }
        )
    return rows


def run(quick: bool) -> None:
    """Measure every kind, size and form."""
    rows = []
    for kind in FACTORS:
        for size in SIZES[:1] if quick else SIZES:
            for form in ("vector", "columns", "batch"):
                new = measure(kind, size, form, 3 if quick else ROUNDS)
                rows += new
                print(
                    f"{kind} {size}×{size}, {form}: "
                    + ", ".join(f"{r['method']} {1e6 * r['seconds']:.4g} µs" for r in new)
                )
    save("solve", rows, quick, count=COUNT)
