"""W2: `solve(kron(A, B), b)` for general, positive definite and triangular factors.

`dense` builds the Kronecker product and solves with the same kind of factorisation; `NumPy` is what
one writes by hand: `A⁻¹ B⁻ᵀ` applied to the grid with one solve per axis. "columns" are 16 vectors
with one operator, "batch" is 16 operators with a vector each. A batch of dense solves that would
take minutes and the memory is put down as so many times the one that was measured.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import scipy.linalg as sl

import kronax as kx
from benchmarks.apart import apart
from benchmarks.measure import ROUNDS, CandidateError, alternate, relative_error, save, shown
from benchmarks.peers.processes import Peers

SIZES = (10, 50, 100)
COUNT = 16
# Of one kind, size and form. Batched LAPACK calls of JAX 0.10 on CPU may wait for each other for
# ever (`kronax.linalg.arrays.lapack_order`): such a case is reported, and the others go on.
LIMIT_S = 400
# In all matrices of a batch together: more would take minutes, or the memory.
MOST_DENSE_NUMBERS = 1.01e8
# Of a rewrite of `solve(kron(A, B), b)` that was proposed for PyTensor and not merged, and of its
# dense solve, on its author's machine: seconds at the three sizes, one vector.
PUBLISHED = {
    "rewrite": dict(zip(SIZES, (19e-6, 66e-6, 183e-6), strict=True)),
    "dense": dict(zip(SIZES, (17e-6, 93.5e-3, 3.25), strict=True)),
}
# By the name in tables, the environment and the kinds of factors that it has a solve for.
PEERS = {
    "PyTensor": ("pymc", ("general", "positive definite", "triangular")),
    "GPyTorch": ("gpytorch", ("positive definite", "triangular")),
}

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
    if a.size * b.size <= MOST_DENSE_NUMBERS * (len(a) if a.ndim == 3 else 1):
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


def measure(kind: str, size: int, form: str, rounds: int, dense_s: float | None) -> dict[str, Any]:
    """One row per method; `dense_s` is the time of one dense solve, if that is known."""
    rng = np.random.default_rng(0)
    batch = (COUNT,) if form == "batch" else ()
    a, b = (matrices(rng, kind, size, batch) for _ in range(2))
    y = rng.standard_normal((*(() if form == "vector" else (COUNT,)), size, size))
    calls = candidates(kind, a, b, y)
    with Peers() as peers:
        for name, (environment, kinds) in PEERS.items():
            if form == "vector" and kind in kinds:
                calls[name] = peers.call(environment, "solve", kind=kind, a=a, b=b, y=y)
        times = alternate(calls, rounds)
        if "dense" not in times and dense_s is not None:
            times["dense"] = {"seconds": COUNT * dense_s, "extrapolated": True}
        dense_s = times["dense"]["seconds"] if "dense" in times else None
        rows = []
        for name, timing in times.items():
            taken = timing["seconds"]
            row = {"kind": kind, "size": size, "form": form, "method": name, **timing}
            row["dense_over_this"] = dense_s / taken if dense_s and taken else None
            if name in calls and taken is not None and (name in PEERS or taken < 2):
                x = np.asarray(calls[name]())
                row["residual"] = relative_error(a @ x @ np.swapaxes(b, -1, -2), y)
            rows.append(row)
        return {"rows": rows, "peers": peers.versions()}


def run(quick: bool) -> None:
    """Measure every kind, size and form, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    for kind, size in product(FACTORS, SIZES[:1] if quick else SIZES):
        dense_s = None
        for form in ("vector", "columns", "batch"):
            case = {"kind": kind, "size": size, "form": form}
            try:
                rounds = 3 if quick else ROUNDS
                found = apart("solve", "measure", LIMIT_S, **case, rounds=rounds, dense_s=dense_s)
            except CandidateError as reason:
                error = {"seconds": None, "error": str(reason), "dense_over_this": None}
                found = {"rows": [{**case, "method": "kronax", **error}], "peers": {}}
            rows += found["rows"]
            versions |= found["peers"]
            dense = [r for r in found["rows"] if r["method"] == "dense"]
            dense_s = dense[0]["seconds"] if form == "vector" and dense else dense_s
            print(
                f"{kind} {size}×{size}, {form}: "
                + ", ".join(f"{r['method']} {shown(r, 1e-6, 'µs')}" for r in found["rows"]),
                flush=True,
            )
            save("solve", rows, quick, count=COUNT, published=PUBLISHED, peers=versions)
