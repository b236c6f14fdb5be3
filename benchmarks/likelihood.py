"""W1: value and gradient of the marginal likelihood in (ℓ₁, ℓ₂, σ²), 20 × 20 to 1000 × 1000 cells.

`eigh` is the bare decomposition of each factor, jitted, timed by itself and summed: the floor of
a method that decomposes dense factors. It uses one core where the rest may use all, so the ratio
means something on a quiet machine only. Errors are those of the gradient against a closed form in
NumPy. A further method is one more entry in `candidates`.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import models, reference
from benchmarks.measure import ROUNDS, alternate, relative_error, save, worst_component

SHAPES = [(20, n) for n in (20, 100, 200, 500, 1000)] + [(n, n) for n in (100, 200, 500, 1000)]
QUICK_SHAPES = [(20, 20), (20, 100), (100, 100)]
LENGTHSCALES = (0.3, 0.4)
NOISE = 0.1
MOST_DENSE_CELLS = 2000


def candidates(kernel: str, axes: list, parameters: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Calls that return value and gradient, and the bare decompositions."""
    methods = {"kronax": models.kronax, "naive": models.naive}
    if prod(y.shape) <= MOST_DENSE_CELLS:
        methods["dense"] = models.dense
    calls: dict[str, Callable[[], Any]] = {}
    for name, method in methods.items():
        function = jax.jit(jax.value_and_grad(models.likelihood(method, kernel, axes)))
        calls[name] = lambda function=function: function(parameters, y)
    regular = jax.jit(jax.value_and_grad(models.structured(kernel, axes)))
    calls["regular"] = lambda: regular(parameters, y)
    eigh = jax.jit(jnp.linalg.eigh)
    for i, x in enumerate(axes):
        factor = models.KERNELS[kernel](x, parameters[i])
        calls[f"eigh {i}"] = lambda factor=factor: eigh(factor)
    return calls


def measure(kernel: str, shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """One row per method."""
    axes = [np.linspace(0, 1, n) for n in shape]
    parameters = np.log([*LENGTHSCALES, NOISE])
    kernels = [reference.KERNELS[kernel](x, t) for x, t in zip(axes, parameters, strict=False)]
    y = reference.draw(np.random.default_rng(0), [k for k, _, _ in kernels], NOISE)
    # Away from the parameters of the data, where no component of the gradient is near zero.
    parameters = parameters + np.array([0.2, -0.2, 0.3])
    kernels = [reference.KERNELS[kernel](x, t) for x, t in zip(axes, parameters, strict=False)]
    value, gradient = reference.kronecker_gradient(kernels, parameters[-1], y)

    calls = candidates(
        kernel, [jnp.asarray(x) for x in axes], jnp.asarray(parameters), jnp.asarray(y)
    )
    times = alternate(calls, rounds)
    decompositions = [times.pop(name) for name in list(times) if name.startswith("eigh")]
    floor = sum(t["seconds"] for t in decompositions)
    rows = [
        {"kernel": kernel, "shape": list(shape), "method": "eigh", "seconds": floor},
    ]
    for name, timing in times.items():
        found_value, found_gradient = calls[name]()
        rows.append(
            {
                "kernel": kernel,
                "shape": list(shape),
                "method": name,
                **timing,
                "over_eigh": timing["seconds"] / floor,
                "value_error": relative_error(found_value, value),
                "gradient_error": relative_error(found_gradient, gradient),
                "worst_component_error": worst_component(found_gradient, gradient),
            }
        )
    return rows


def run(quick: bool) -> None:
    """Measure every shape and kernel."""
    rows = []
    for kernel in ("Matérn-3/2", "RBF"):
        for shape in QUICK_SHAPES if quick else SHAPES:
            new = measure(kernel, shape, 3 if quick else ROUNDS)
            rows += new
            print(
                f"{kernel} {shape[0]}×{shape[1]}: "
                + ", ".join(
                    f"{r['method']} {1e3 * r['seconds']:.3g} ms"
                    + (f" ({r['gradient_error']:.0e})" if "gradient_error" in r else "")
                    for r in new
                )
            )
    save("likelihood", rows, quick, lengthscales=LENGTHSCALES, noise=NOISE)
