"""W8: how right first and second derivatives are, at spectra where `eigh` has no derivative.

The truth is dense: the inverse of the whole covariance and traces of products with it, in closed
form and float64 (`benchmarks.reference`); up to 2000 cells it is confirmed by differentiating
through a dense Cholesky factor. Where the dense matrix does not fit, it is another closed form in
80-bit numbers (`benchmarks.extended`), for the gradient alone. Derivatives are in log-parameters,
correlations as they are.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import extended, models, reference
from benchmarks.measure import relative_error, save, worst_component

MOST_CELLS_TO_CONFIRM = 2000
MOST_DENSE_CELLS = 10_000
# Kernel, grid, parameter of each axis (log ℓ or ρ), precision.
CASES = [
    ("RBF", (30, 25), np.log((0.3, 0.4)), "float64"),
    ("RBF", (30, 25), np.log((0.3, 0.4)), "float32"),
    ("RBF", (100, 80), np.log((0.3, 0.4)), "float64"),
    ("RBF", (1000, 1000), np.log((0.3, 0.4)), "float64"),
    ("Matérn-3/2", (30, 25), np.log((0.3, 0.4)), "float64"),
    ("Matérn-3/2", (1000,), np.log((0.3,)), "float64"),
    ("exchangeable", (9, 7), np.array((0.3, 0.2)), "float64"),
    ("exchangeable", (9, 7), np.array((0.0, 0.0)), "float64"),
]
NOISE = 0.1


def measure(kernel: str, shape: tuple[int, ...], parameters: Any, dtype: str) -> list[dict]:
    """One row per method."""
    rng = np.random.default_rng(0)
    axes = [np.linspace(0, 1, n).astype(dtype) for n in shape]
    log_noise = np.log(NOISE)
    # The data come from somewhat other parameters, so that no derivative is near zero.
    elsewhere = [
        reference.KERNELS[kernel](x, t + 0.2) for x, t in zip(axes, parameters, strict=True)
    ]
    y = reference.draw(rng, [k for k, _, _ in elsewhere], 1.3 * NOISE).astype(dtype)
    theta = np.append(parameters, log_noise).astype(dtype)

    exact_axes = [x.astype(np.float64) for x in axes]
    exact = theta.astype(np.float64)
    value, gradient, hessian, truth = _truth(kernel, exact_axes, exact, y.astype(np.float64))
    inputs = jnp.asarray(theta), jnp.asarray(y)

    rows = []
    for name, method in (("kronax", models.kronax), ("naive", models.naive)):
        function = models.likelihood(method, kernel, [jnp.asarray(x) for x in axes])
        found_value, found_gradient = jax.jit(jax.value_and_grad(function))(*inputs)
        second = {}
        if hessian is not None:
            found_hessian = jax.jit(jax.hessian(function))(*inputs)
            second["hessian_error"] = relative_error(found_hessian, hessian)
        rows.append(
            {
                "kernel": kernel,
                "parameters": np.asarray(theta, np.float64).tolist(),
                "shape": list(shape),
                "dtype": dtype,
                "method": name,
                "gradient": np.asarray(found_gradient, np.float64).tolist(),
                "value_error": relative_error(found_value, value),
                "gradient_error": relative_error(found_gradient, gradient),
                "worst_component_error": worst_component(found_gradient, gradient),
                **second,
                "truth": truth,
            }
        )
    return rows


def _truth(kernel, axes, parameters, y) -> tuple[float, Any, Any, dict]:
    """Value, gradient, Hessian (or none), and what is stored about them."""
    if y.size > MOST_DENSE_CELLS:
        spectra = tuple(extended.rbf_spectrum(x, t) for x, t in zip(axes, parameters, strict=False))
        value, gradient = extended.gradient(spectra, parameters[-1], y)
        return value, gradient, None, {"value": value, "gradient": gradient.tolist()}
    kernels = [reference.KERNELS[kernel](x, t) for x, t in zip(axes, parameters, strict=False)]
    value, gradient, hessian = reference.dense_derivatives(kernels, parameters[-1], y)
    truth = {"value": value, "gradient": gradient.tolist()}
    if y.size <= MOST_CELLS_TO_CONFIRM:
        truth |= _confirm(kernel, axes, parameters, y, gradient, hessian)
    return value, gradient, hessian, truth


def _confirm(kernel, axes, parameters, y, gradient, hessian) -> dict[str, float]:
    """How far the closed form is from automatic differentiation of a dense Cholesky factor."""
    function = models.likelihood(models.dense, kernel, [jnp.asarray(x) for x in axes])
    inputs = jnp.asarray(parameters), jnp.asarray(y)
    return {
        "cholesky_gradient_difference": relative_error(jax.grad(function)(*inputs), gradient),
        "cholesky_hessian_difference": relative_error(
            jax.jit(jax.jacfwd(jax.grad(function)))(*inputs), hessian
        ),
    }


def run(quick: bool) -> None:
    """Measure every case; the quick ones leave out more than 1000 cells."""
    rows = []
    for case in CASES:
        if quick and prod(case[1]) > 1000:
            continue
        new = measure(*case)
        rows += new
        print(f"{case[0]} {'×'.join(map(str, case[1]))} {case[3]} at {np.round(case[2], 2)}")
        for row in new:
            print(
                f"  {row['method']}: gradient {row['gradient_error']:.1e} (worst component "
                f"{row['worst_component_error']:.1e}), "
                f"Hessian {row.get('hessian_error', float('nan')):.1e}"
            )
        print("  truth:", ", ".join(f"{k} {v}" for k, v in new[0]["truth"].items()))
    save("gradients", rows, quick, noise=NOISE)
