"""One long axis by itself: a filter beside celerite2, which is made for it.

Value of the marginal likelihood, and value with gradient, in the logarithms of scale, variance
and noise; irregular times. celerite2 has its interface to JAX, compiled as ours is. Its Matérn-3/2
is an approximation, its oscillator is exact. Times are those of the processor.
"""

from functools import partial
from time import process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks.markdown import digits, table, times
from benchmarks.measure import alternate, relative_error, save
from benchmarks.peers.processes import Peers

ROUNDS, BUDGET_S = 5, 5.0
SIZES = (1000, 10_000, 100_000)
QUICK_SIZES = (300,)
AT = np.log([8.0, 1.2, 0.15])
WHATS = ("value and gradient",)
OURS, PEER = "kronax", "celerite2"
KERNELS = {
    "Matérn-3/2": kx.Matern32,
    "oscillator": lambda scale: kx.SHO(omega0=1 / scale, quality=2.0),
}


def log_likelihood(kernel: str, x: np.ndarray, logarithms: Any, y: Any) -> Any:
    """As a user writes it; the structure is asked for, so that short axes are filtered too."""
    scale, variance, noise = jnp.exp(logarithms)
    kernels = {"time": variance * KERNELS[kernel](scale)}
    gp = kx.GridGP(kernels, {"time": x}, noise=noise, structure={"time": "markov"})
    return gp.log_marginal_likelihood(y)


def measure(kernel: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """Both libraries in turn, with the error of the other beside ours."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, size, size))
    y = np.sin(0.1 * x) + 0.4 * rng.normal(size=size)
    at, data = jnp.asarray(AT), jnp.asarray(y)
    about = {"kernel": kernel, "shape": [size]}
    rows: list[dict[str, Any]] = []
    for what in WHATS:
        with_gradient = what != "value"
        function: Any = partial(log_likelihood, kernel, x)
        function = jax.value_and_grad(function) if with_gradient else function
        compiled = jax.jit(function).lower(at, data).compile()
        calls: dict[str, Any] = {OURS: partial(compiled, at, data)}
        inputs = {"kernel": kernel, "x": x, "parameters": AT, "y": y}
        with Peers() as peers:
            calls[PEER] = peers.call(PEER, "one axis", with_gradient=with_gradient, **inputs)
            calls[PEER].clock = "process_time"
            taken = alternate(calls, rounds, BUDGET_S, process_time)
            answer = calls[PEER]() if taken[PEER]["seconds"] is not None else None
            versions = peers.versions()
        for method, found in taken.items():
            rows.append({**about, "what": what, "method": method, **found})
        if answer is not None:
            ours = calls[OURS]()
            pairs = zip(answer, ours, strict=True) if with_gradient else [(answer, ours)]
            rows[-1] |= {"difference": max(relative_error(*p) for p in pairs), "versions": versions}
    return rows


def lines_table(rows: list[dict[str, Any]]) -> str:
    """Both by kernel and size, celerite2 beside ours."""
    body = []
    pairs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        pairs.setdefault((row["kernel"], row["what"], *row["shape"]), {})[row["method"]] = row
    for (kernel, what, size), pair in pairs.items():
        ours, other = pair[OURS], pair[PEER]
        cells = [f"{size:,}, {kernel}", what, digits(1e3 * ours["seconds"])]
        if other["seconds"] is None:
            body.append([*cells, other["error"], "–", "–"])
            continue
        ratio = times(other["seconds"] / ours["seconds"])
        other_ms = digits(1e3 * other["seconds"])
        body.append([*cells, other_ms, ratio, f"{other['difference']:.0e}"])
    header = ["times", "what", "kronax, ms", "celerite2, ms", "celerite2 over kronax"]
    return table([*header, "difference"], body)


def run(quick: bool) -> None:
    """Every kernel and size; what is done is stored as it comes."""
    rows: list[dict[str, Any]] = []
    for kernel in KERNELS:
        for size in QUICK_SIZES if quick else SIZES:
            rows += (new := measure(kernel, size, 3 if quick else ROUNDS))
            print("\n".join(lines_table(new).splitlines()[2:]), flush=True)
            save("markov_lines", rows, quick)
