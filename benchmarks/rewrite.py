"""W12: dense user code under `kx.rewrite`, beside what one writes with kronax, and as it is.

`solve(kron(A, B), b)` is the table of a rewrite that was proposed for PyTensor and not merged.
"columns" are 16 vectors as a matrix, "batch" is 16 pairs of factors with a vector each, mapped over
by `jax.vmap`. The density is `MultivariateNormal(0, kron(K1, K2) + noise * eye(N)).log_prob(y)`
of NumPyro, with its gradient in both lengthscales and the noise. Both are compiled; "not jitted"
is the call as a user makes it at the prompt, where the rewriting is done every time. Times are
those of processors: other programs on the machine do not count.
"""

from collections.abc import Callable
from itertools import product
from time import process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import kronax as kx
from benchmarks.markdown import digits, table, times
from benchmarks.measure import alternate, relative_error, save, shown
from benchmarks.solve import COUNT, PUBLISHED, SIZES, matrices

GRIDS = ((30, 25), (100, 80))
# What dense code of that many cells holds at once is some gigabytes.
MOST_DENSE_CELLS = 10_000
GOAL = 1.2
ROUNDS = 25


def dense_solve(a: Any, b: Any, y: Any) -> Any:
    """What a user has; vectors are columns."""
    return jnp.linalg.solve(jnp.kron(a, b), y)


def kronax_solve(a: Any, b: Any, y: Any) -> Any:
    """The same by hand."""
    op = kx.Kronecker(a, b)
    return kx.solve(op, y) if y.ndim == 1 else kx.inverse(op) @ y


def covariances(shape: tuple[int, int], lengthscales: Any) -> list[Any]:
    """One RBF matrix per axis."""
    axes = (np.linspace(0, 1, n) for n in shape)
    pairs = zip(axes, lengthscales, strict=True)
    return [jnp.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) for x, scale in pairs]


def dense_density(shape: tuple[int, int], y: Any, lengthscales: Any, noise: Any) -> Any:
    """What a user has."""
    covariance = jnp.kron(*covariances(shape, lengthscales)) + noise * jnp.eye(y.size)
    return dist.MultivariateNormal(0.0, covariance).log_prob(y)


def kronax_density(shape: tuple[int, int], y: Any, lengthscales: Any, noise: Any) -> Any:
    """The same by hand."""
    factors = covariances(shape, lengthscales)
    return kx.KroneckerNormal(0.0, factors, noise, flatten=True).log_prob(y)


def solve_calls(size: int, form: str) -> dict[str, Callable[[], Any]]:
    """Calls of one size and form, by method."""
    rng = np.random.default_rng(0)
    batch = (COUNT,) if form == "batch" else ()
    a, b = (jnp.asarray(matrices(rng, "general", size, batch)) for _ in range(2))
    shape = {"vector": (size**2,), "columns": (size**2, COUNT), "batch": (COUNT, size**2)}[form]
    y = jnp.asarray(rng.standard_normal(shape))
    methods = {"rewrite": kx.rewrite(dense_solve), "kronax": kronax_solve, "dense": dense_solve}
    if form == "batch":
        methods = {name: jax.vmap(method) for name, method in methods.items()}
    if size**2 * (COUNT if form == "batch" else 1) > MOST_DENSE_CELLS:
        del methods["dense"]
    calls = {name: (jax.jit(method), (a, b, y)) for name, method in methods.items()}
    if form == "vector":
        calls |= {f"{m}, not jitted": (methods[m], (a, b, y)) for m in ("rewrite", "kronax")}
    return {name: lambda f=f, args=args: f(*args) for name, (f, args) in calls.items()}


def density_calls(shape: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Value and gradient of the density, by method."""
    y = jnp.asarray(np.random.default_rng(0).standard_normal(shape[0] * shape[1]))
    args = jnp.array([0.2, 0.3]), jnp.asarray(0.1)

    def compiled(density: Callable[..., Any]) -> Callable[[], Any]:
        both = jax.jit(jax.value_and_grad(density, (0, 1)))
        return lambda: both(*args)

    def dense(lengthscales: Any, noise: Any) -> Any:
        return dense_density(shape, y, lengthscales, noise)

    def by_hand(lengthscales: Any, noise: Any) -> Any:
        return kronax_density(shape, y, lengthscales, noise)

    methods = {"rewrite": kx.rewrite(dense), "kronax": by_hand, "dense": dense}
    return {name: compiled(method) for name, method in methods.items()}


def measure(case: dict[str, Any], calls: dict[str, Callable[[], Any]], rounds: int) -> list[dict]:
    """One row per method, with its time over that of kronax by hand and how far it is from it."""
    for name in calls.keys() - {"dense"}:  # compiled before: seconds of that are no time of a call
        jax.block_until_ready(calls[name]())
    timings = alternate(calls, rounds, clock=process_time)
    rows = []
    for name, timing in timings.items():
        reference = "kronax, not jitted" if "not jitted" in name else "kronax"
        over = timing["seconds"] / timings[reference]["seconds"]
        difference = None
        if name == "rewrite":
            pairs = zip(*(jax.tree.leaves(calls[n]()) for n in ("rewrite", "kronax")), strict=True)
            difference = max(relative_error(*pair) for pair in pairs)
        rows.append({**case, "method": name, **timing, "over": over, "difference": difference})
    return rows


def rewrite_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of the three, what the rewriting costs, and what it saves."""
    body = []
    for case in dict.fromkeys((row["what"], row["case"]) for row in rows):
        found = {r["method"]: r for r in rows if (r["what"], r["case"]) == case}
        ours, theirs, dense = (found.get(name) for name in ("rewrite", "kronax", "dense"))
        assert ours is not None
        assert theirs is not None
        eager = found.get("rewrite, not jitted")
        saved = times(dense["seconds"] / ours["seconds"]) if dense else "–"
        body.append(
            [
                f"{case[0]}, {case[1]}",
                digits(1e3 * ours["seconds"]),
                digits(1e3 * theirs["seconds"]),
                f"{ours['over']:.2f}",
                digits(1e3 * dense["seconds"]) if dense else "–",
                saved,
                digits(1e3 * eager["seconds"]) if eager else "–",
                digits(1e3 * ours["published"]) if ours.get("published") else "–",
            ]
        )
    header = ["", "`kx.rewrite`, ms", "by hand, ms", "rewrite / by hand", "dense, ms"]
    header += ["dense / rewrite", "rewrite, not jitted, ms", "published rewrite, ms"]
    return table(header, body)


def run(quick: bool) -> None:
    """Measure every case; what is done is stored as it comes."""
    rows: list[dict[str, Any]] = []
    rounds = 3 if quick else ROUNDS
    for size, form in product(SIZES[:1] if quick else SIZES, ("vector", "columns", "batch")):
        case = {"what": f"solve, {size}²", "case": form}
        if form == "vector":
            case["published"] = PUBLISHED["rewrite"][size]
        rows += _logged(measure(case, solve_calls(size, form), rounds))
        save("rewrite", rows, quick, count=COUNT, goal=GOAL)
    for shape in GRIDS[:1] if quick else GRIDS:
        case = {"what": "log density and gradient", "case": "×".join(map(str, shape))}
        rows += _logged(measure(case, density_calls(shape), rounds))
        save("rewrite", rows, quick, count=COUNT, goal=GOAL)


def _logged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    taken = ", ".join(f"{row['method']} {shown(row)}" for row in rows)
    print(f"{rows[0]['what']}, {rows[0]['case']}: {taken}", flush=True)
    return rows
