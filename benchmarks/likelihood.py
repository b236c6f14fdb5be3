"""W1: value and gradient of the marginal likelihood in (ℓ₁, ℓ₂, σ²), 20 × 20 to 1000 × 1000 cells.

`eigh` is the bare decomposition of each factor, jitted, timed by itself and summed: the floor of
a method that decomposes dense factors. It uses one core where the rest may use all, so the ratio
means something on a quiet machine only. About eight matrix products of each factor's size come to
it in a value and gradient, and machines differ in how fast these are beside their `eigh`: they are
timed in the same turns, and the second ratio is to both. Errors are those of the gradient against a
closed form in NumPy. A further method is one more entry in `candidates`, another library one more
in `PEERS`.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks import models, reference
from benchmarks.measure import ROUNDS, alternate, relative_error, save, shown, worst_component
from benchmarks.peers.processes import Peers

SHAPES = [(20, n) for n in (20, 100, 200, 500, 1000)] + [(n, n) for n in (100, 200, 500, 1000)]
QUICK_SHAPES = [(20, 20), (20, 100), (100, 100)]
LOW_RANK_SHAPE = (2000, 2000)
LENGTHSCALES = (0.3, 0.4)
NOISE = 0.1
MOST_DENSE_CELLS = 2000
NUM_PRODUCTS = 8
# By the name in tables, the environment that it runs in.
PEERS = {"PyMC": "pymc", "GPyTorch": "gpytorch", "luas": "luas"}


def candidates(kernel: str, axes: list, parameters: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Calls in this process that return value and gradient."""
    methods = {"kronax": models.kronax, "naive": models.naive}
    if prod(y.shape) <= MOST_DENSE_CELLS:
        methods["dense"] = models.dense
    calls: dict[str, Callable[[], Any]] = {}
    for name, method in methods.items():
        function = jax.jit(jax.value_and_grad(models.likelihood(method, kernel, axes)))
        calls[name] = lambda function=function: function(parameters, y)
    regular = jax.jit(jax.value_and_grad(models.structured(kernel, axes)))
    calls["regular"] = lambda: regular(parameters, y)
    return calls


def decompositions(kernel: str, axes: list, parameters: Any) -> dict[str, Callable[[], Any]]:
    """The bare decomposition of each factor, and its product with itself."""
    factors = [models.KERNELS[kernel](x, t) for x, t in zip(axes, parameters, strict=False)]
    bare = {"eigh": jax.jit(jnp.linalg.eigh), "product": jax.jit(jnp.matmul)}
    return {
        f"{name} {i}": lambda call=call, given=(f,) * (2 if name == "product" else 1): call(*given)
        for name, call in bare.items()
        for i, f in enumerate(factors)
    }


def problem(kernel: str, shape: tuple[int, ...]) -> tuple[list, np.ndarray, np.ndarray, Any]:
    """Axes, parameters, data, and the value and gradient there."""
    axes = [np.linspace(0, 1, n) for n in shape]
    parameters = np.log([*LENGTHSCALES, NOISE])
    kernels = [reference.KERNELS[kernel](x, t) for x, t in zip(axes, parameters, strict=False)]
    y = reference.draw(np.random.default_rng(0), [k for k, _, _ in kernels], NOISE)
    # Away from the parameters of the data, where no component of the gradient is near zero.
    parameters = parameters + np.array([0.2, -0.2, 0.3])
    kernels = [reference.KERNELS[kernel](x, t) for x, t in zip(axes, parameters, strict=False)]
    return axes, parameters, y, reference.kronecker_gradient(kernels, parameters[-1], y)


def rows_of(
    kernel: str, shape: tuple[int, ...], calls: dict[str, Any], times: dict, truth: Any
) -> list[dict[str, Any]]:
    """One row per method, with what its numbers are worth."""
    value, gradient = truth
    case = {"kernel": kernel, "shape": list(shape)}
    floor, products = (
        sum(times[name]["seconds"] for name in times if name.startswith(kind))
        for kind in ("eigh", "product")
    )
    rate = sum(2.0 * n**3 for n in shape) / products / 1e9
    rows: list[dict[str, Any]] = [
        {**case, "method": "eigh", "seconds": floor, "product_gigaflops": rate}
    ]
    for name in calls:
        row = {**case, "method": name, **times[name]}
        if row["seconds"] is not None:
            found_value, found_gradient = calls[name]()
            row |= {
                "over_eigh": row["seconds"] / floor,
                "over_eigh_and_products": row["seconds"] / (floor + NUM_PRODUCTS * products),
                "value_error": relative_error(found_value, value),
                "gradient_error": relative_error(found_gradient, gradient),
                "worst_component_error": worst_component(found_gradient, gradient),
            }
        rows.append(row)
    return with_fastest_peer(rows)


def with_fastest_peer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every timed row with the fastest of `PEERS` and how many times longer that one takes."""
    peers = [r for r in rows if r["method"] in PEERS and r["seconds"] is not None]
    if not peers:
        return rows
    fastest = min(peers, key=lambda r: r["seconds"])
    return [
        r
        if r["seconds"] is None
        else {
            **r,
            "fastest_peer": fastest["method"],
            "fastest_peer_over_this": fastest["seconds"] / r["seconds"],
        }
        for r in rows
    ]


def measure(kernel: str, shape: tuple[int, ...], rounds: int, peers: Peers) -> list[dict[str, Any]]:
    """One row per method."""
    axes, parameters, y, truth = problem(kernel, shape)
    on_device = [jnp.asarray(x) for x in axes], jnp.asarray(parameters), jnp.asarray(y)
    calls = candidates(kernel, *on_device)
    inputs = {"kernel": kernel, "axes": axes, "parameters": parameters, "y": y}
    for name, environment in PEERS.items():
        calls[name] = peers.call(environment, "likelihood", **inputs)
    times = alternate(decompositions(kernel, *on_device[:2]) | calls, rounds)
    rows = rows_of(kernel, shape, calls, times, truth)
    peers.forget()
    return rows


def measure_low_rank(kernel: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """A factor of low rank where the kernel is smooth, beside one call of each decomposition."""
    axes, parameters, y, truth = problem(kernel, shape)
    on_device = [jnp.asarray(x) for x in axes], jnp.asarray(parameters), jnp.asarray(y)
    function = jax.jit(jax.value_and_grad(models.low_rank(kernel, on_device[0])))
    calls = {"low rank": lambda: function(*on_device[1:])}
    times = alternate(decompositions(kernel, *on_device[:2]), budget_s=1.0)
    return rows_of(kernel, shape, calls, times | alternate(calls), truth)


def run(quick: bool) -> None:
    """Measure every shape and kernel."""
    rows: list[dict[str, Any]] = []

    def add(new: list[dict[str, Any]]) -> None:
        rows.extend(new)
        print(f"{new[0]['kernel']} {'×'.join(map(str, new[0]['shape']))}: ", end="")
        print(
            ", ".join(
                f"{r['method']} {shown(r)}"
                + (f" ({r['product_gigaflops']:.0f} Gflop/s)" if r["method"] == "eigh" else "")
                + (f" ({r['gradient_error']:.0e})" if "gradient_error" in r else "")
                for r in new
            ),
            flush=True,
        )
        notes = {"lengthscales": LENGTHSCALES, "noise": NOISE, "peers": peers.versions()}
        save("likelihood", rows, quick, **notes)

    with Peers() as peers:
        for kernel in ("Matérn-3/2", "RBF"):
            for shape in QUICK_SHAPES if quick else SHAPES:
                add(measure(kernel, shape, 3 if quick else ROUNDS, peers))
        if hasattr(kx, "LowRank") and not quick:
            add(measure_low_rank("RBF", LOW_RANK_SHAPE))
