"""W3: a Kronecker product times a vector, 2 to 10 factors, square and rectangular, one and many.

`product` is the faster of two square matrix products of this machine in the same rounds, at full
precision: its rate is what the others are held against. Operations are counted for the cheapest
order of the axes, so that a detour lowers the rate. `einsum` has its path found by dynamic
programming beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import permutations
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks.measure import ROUNDS, alternate, relative_error, save, shown
from benchmarks.peers.processes import Peers

PRODUCT_SIZES = (500, 1000)
MOST_DENSE_CELLS = 5000
PEERS = {
    "pykronecker, NumPy": "pykronecker",
    "pykronecker, JAX": "pykronecker-jax",
    "GPyTorch": "gpytorch",
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Case:
    """Shapes of the factors, and how many vectors; 0 is one without a batch axis."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    count: int = 0

    @property
    def batch(self) -> tuple[int, ...]:
        return (self.count,) if self.count else ()


def square(*sizes: int) -> tuple[tuple[int, int], ...]:
    """The shapes of square factors."""
    return tuple((n, n) for n in sizes)


CASES = [
    Case("50 ⊗ 60", square(50, 60)),
    Case("400 ⊗ 500", square(400, 500)),
    Case("100 ⊗ 150 ⊗ 200", square(100, 150, 200)),
    Case("6 factors of 10", square(*[10] * 6)),
    Case("10 factors of 4", square(*[4] * 10)),
    Case("300×40 ⊗ 40×300", ((300, 40), (40, 300))),
    Case("32 vectors, 400 ⊗ 500", square(400, 500), 32),
]
QUICK_CASES = [
    Case("50 ⊗ 60", square(50, 60)),
    Case("6 factors of 4", square(*[4] * 6)),
    Case("30×4 ⊗ 4×30", ((30, 4), (4, 30))),
    Case("5 vectors, 50 ⊗ 60", square(50, 60), 5),
]


def operations(case: Case) -> int:
    """Multiplications and additions in the cheapest order of the axes."""
    steps: Callable[[tuple[int, ...]], int] = lambda order: _steps(case.shapes, order)  # noqa: E731
    # Square factors cost the same in any order, and ten of them have millions.
    if all(m == n for m, n in case.shapes):
        best = steps(tuple(range(len(case.shapes))))
    else:
        best = min(map(steps, permutations(range(len(case.shapes)))))
    return best * max(1, case.count)


def _steps(shapes: tuple[tuple[int, int], ...], order: tuple[int, ...]) -> int:
    sizes, total = [n for _, n in shapes], 0
    for axis in order:
        total += 2 * prod(sizes) * shapes[axis][0]
        sizes[axis] = shapes[axis][0]
    return total


def candidates(case: Case, factors: list[np.ndarray], x: np.ndarray) -> dict[str, Any]:
    """Calls in this process that return `(*batch, *grid)`."""
    on_device, vector = [jnp.asarray(f) for f in factors], jnp.asarray(x)
    ours = jax.jit(lambda factors, x: kx.Kronecker(*factors).mv(x))
    einsum = jax.jit(lambda factors, x: _einsum(factors, x))
    calls = {
        "kronax": lambda: ours(on_device, vector),
        "einsum": lambda: einsum(on_device, vector),
    }
    if max(prod(m for m, _ in case.shapes), prod(n for _, n in case.shapes)) <= MOST_DENSE_CELLS:
        matrix = jnp.asarray(reduce(np.kron, factors))
        grid = tuple(m for m, _ in case.shapes)

        @jax.jit
        def dense(matrix, x):
            flat = x.reshape(*case.batch, -1)
            product = jnp.matmul(flat, matrix.T, precision=jax.lax.Precision.HIGHEST)
            return product.reshape(*case.batch, *grid)

        calls["dense"] = lambda: dense(matrix, vector)
    return calls


def _einsum(factors: list[Any], x: Any) -> Any:
    inner = LETTERS[: len(factors)]
    outer = LETTERS[len(factors) : 2 * len(factors)]
    pairs = ",".join(f"{o}{i}" for o, i in zip(outer, inner, strict=True))
    formula = f"{pairs},...{inner}->...{outer}"
    return jnp.einsum(formula, *factors, x, optimize="dp", precision=jax.lax.Precision.HIGHEST)


def _product(matrix: np.ndarray) -> Callable[[], Any]:
    on_device = jnp.asarray(matrix)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    return lambda: multiply(on_device)


def truth(factors: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """NumPy, one axis after another from the last."""
    for axis in range(-1, -len(factors) - 1, -1):
        x = np.moveaxis(np.tensordot(factors[axis], x, axes=(1, axis)), 0, axis)
    return x


def measure(case: Case, rounds: int, peers: Peers) -> list[dict[str, Any]]:
    """One row per method."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in case.shapes]
    x = rng.standard_normal((*case.batch, *(n for _, n in case.shapes)))
    calls = candidates(case, factors, x)
    for name, environment in PEERS.items():
        calls[name] = peers.call(environment, "matvec", factors=factors, x=x)
    products = {f"product {n}": _product(rng.standard_normal((n, n))) for n in PRODUCT_SIZES}
    times = alternate(products | calls, rounds)
    rate = max(2 * n**3 / times.pop(f"product {n}")["seconds"] for n in PRODUCT_SIZES)
    correct, rows = truth(factors, x), []
    for name, timing in times.items():
        row = {"case": case.name, "method": name, **timing}
        row |= {"operations": operations(case), "product_rate": rate}
        if timing["seconds"] is not None:
            row["error_of_result"] = relative_error(calls[name](), correct)
            row["rate"] = row["operations"] / timing["seconds"]
            row["over_kronax"] = timing["seconds"] / times["kronax"]["seconds"]
        rows.append(row)
    peers.forget()
    return rows


def run(quick: bool) -> None:
    """Measure every case."""
    rows: list[dict[str, Any]] = []
    with Peers() as peers:
        for case in QUICK_CASES if quick else CASES:
            new = measure(case, 3 if quick else ROUNDS, peers)
            rows += new
            print(f"{case.name}: machine {new[0]['product_rate'] / 1e9:.0f} Gflop/s, ", end="")
            print(", ".join(f"{r['method']} {shown(r)}" for r in new), flush=True)
            notes = {"product_sizes": PRODUCT_SIZES, "peers": peers.versions()}
            save("matvec", rows, quick, **notes)
