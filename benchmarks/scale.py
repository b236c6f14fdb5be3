"""W7: value and gradient of the marginal likelihood on four axes, 10⁵ to 10⁸ cells.

Every case has a process of its own. Memory is the most that was resident from before the data were
there until two calls were done, and beside it what XLA plans for the compiled call; both in arrays
of N numbers, the data among them. An allocation fails before the machine runs out. What several
devices hold and send, up to 10¹⁰ cells, is planned by `benchmarks.devices`, which this runs last.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import devices, memory, models, reference
from benchmarks.apart import apart
from benchmarks.measure import CandidateError, alternate, relative_error, save, shown
from benchmarks.peers.processes import Peers

# The third is where an issue of GPyTorch reports that it ran out of memory.
SHAPES = [(10, 20, 100, 5), (40, 50, 100, 5), (100, 200, 210, 5), (200, 250, 400, 5)]
QUICK_SHAPES = [(10, 20, 10, 5), (10, 20, 100, 5)]
DTYPES = ("float64", "float32")
KERNEL = "Matérn-3/2"
LENGTHSCALES = (0.3, 0.4, 0.2, 0.5)
NOISE = 0.1
MEMORY_SHARE = 0.85
LIMIT_S = 600
BUDGET_S = 30.0
# NumPy needs about eight arrays of float64 for the closed form.
MOST_CELLS_TO_CHECK = 3e7
METHODS: dict[str, Callable] = {
    "kronax": lambda axes: models.likelihood(models.kronax, KERNEL, axes),
    "regular": lambda axes: models.structured(KERNEL, axes),
}
PEERS = {"GPyTorch": "gpytorch"}


def problem(shape: tuple[int, ...]) -> tuple[list, np.ndarray, np.ndarray, Any]:
    """Axes, parameters, data, and value and gradient there if that is feasible."""
    axes = [np.linspace(0, 1, n) for n in shape]
    parameters = np.log([*LENGTHSCALES, NOISE])
    kernels = [reference.KERNELS[KERNEL](x, t) for x, t in zip(axes, parameters, strict=False)]
    y = reference.draw(np.random.default_rng(0), [k for k, _, _ in kernels], NOISE)
    parameters = parameters + np.array([0.2, -0.2, 0.1, -0.1, 0.3])
    kernels = [reference.KERNELS[KERNEL](x, t) for x, t in zip(axes, parameters, strict=False)]
    is_checked = prod(shape) <= MOST_CELLS_TO_CHECK
    truth = reference.kronecker_gradient(kernels, parameters[-1], y) if is_checked else None
    return axes, parameters, y, truth


def in_this_process(
    method: str, axes: list[list[float]], parameters: list[float], path: str
) -> dict[str, Any]:
    """Compile, then take the data and call; the process must be new."""
    memory.limit(MEMORY_SHARE)
    data = np.load(path, mmap_mode="r")
    points = [jnp.asarray(x, data.dtype) for x in axes]
    theta = jnp.asarray(parameters, data.dtype)
    function = jax.jit(jax.value_and_grad(METHODS[method](points)))
    compiled = function.lower(theta, jax.ShapeDtypeStruct(data.shape, data.dtype)).compile()
    planned = compiled.memory_analysis()
    baseline = memory.reset_peak()
    y = jnp.array(np.load(path))
    times = alternate({method: lambda: compiled(theta, y)}, budget_s=BUDGET_S)[method]
    held = memory.peak() - baseline
    value, gradient = compiled(theta, y)
    return {
        **times,
        "bytes": held,
        "planned_bytes": planned.temp_size_in_bytes
        + planned.argument_size_in_bytes
        + planned.output_size_in_bytes,
        "value": float(value),
        "gradient": np.asarray(gradient, np.float64).tolist(),
    }


def in_peer(environment: str, **inputs: Any) -> dict[str, Any]:
    """The same by another library, in its process."""
    with Peers() as peers:
        call = peers.call(environment, "stored likelihood", kernel=KERNEL, **inputs)
        times = alternate({"peer": call}, budget_s=BUDGET_S)["peer"]
        if times["seconds"] is None:
            raise CandidateError(times["error"])
        value, gradient = call()
        held = call.worker.ask("peak", LIMIT_S)
        return {
            **times,
            "bytes": held,
            "value": float(value),
            "gradient": np.asarray(gradient, np.float64).tolist(),
            "versions": peers.versions()[environment],
        }


def measure(shape: tuple[int, ...], dtype: str) -> list[dict[str, Any]]:
    """One row per method."""
    axes, parameters, y, truth = problem(shape)
    rows = []
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "y.npy")
        np.save(path, y.astype(dtype))
        del y
        for name in (*METHODS, *PEERS):
            row = {"shape": list(shape), "dtype": dtype, "method": name}
            try:
                row |= _one(name, axes, parameters, path, dtype)
            except CandidateError as reason:
                rows.append({**row, "seconds": None, "error": str(reason)})
                continue
            one_array = prod(shape) * np.dtype(dtype).itemsize
            row["arrays"] = row["bytes"] / one_array
            if "planned_bytes" in row:
                row["planned_arrays"] = row["planned_bytes"] / one_array
            if truth is not None:
                row["value_error"] = relative_error(row["value"], truth[0])
                row["gradient_error"] = relative_error(row["gradient"], truth[1])
            rows.append(row)
    return rows


def _one(name: str, axes: list, parameters: Any, path: str, dtype: str) -> dict[str, Any]:
    if name in PEERS:
        typed = [x.astype(dtype) for x in axes]
        return in_peer(PEERS[name], axes=typed, parameters=parameters, path=path)
    given = {"axes": [x.tolist() for x in axes], "parameters": parameters.tolist()}
    return apart("scale", "in_this_process", LIMIT_S, method=name, path=path, **given)


def run(quick: bool) -> None:
    """Measure every size and precision, smallest first."""
    rows: list[dict[str, Any]] = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        for dtype in DTYPES:
            new = measure(shape, dtype)
            rows += new
            print(f"{prod(shape):,} cells, {dtype}: ", end="")
            print(
                ", ".join(
                    f"{r['method']} {shown(r, 1, 's')}"
                    + (f", {r['arrays']:.1f} arrays" if "arrays" in r else "")
                    for r in new
                ),
                flush=True,
            )
            versions = {PEERS[r["method"]]: r["versions"] for r in rows if "versions" in r}
            notes = {"kernel": KERNEL, "lengthscales": LENGTHSCALES, "noise": NOISE}
            save("scale", rows, quick, **notes, peers=versions)
    devices.run(quick)
