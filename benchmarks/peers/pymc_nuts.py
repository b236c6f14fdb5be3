"""PyMC's NUTS on the models of `benchmarks.mcmc`: its own sampler, or NumPyro's through JAX."""

from collections.abc import Callable
from multiprocessing import active_children
from time import perf_counter
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from benchmarks.chains import TimedChains, cpu_seconds

PARAMETERS = ("variance", "lengthscale_1", "lengthscale_2", "sigma")
# Written with the distances as constants. The kernels of `pm.gp.cov` compute them as differences
# of squares; compiled by JAX these do not cancel on the diagonal, and the gradient of Matérn-3/2
# is wrong.
KERNELS = {
    "RBF": lambda r: pt.exp(-pt.square(r) / 2),
    "Matérn-3/2": lambda r: (1 + np.sqrt(3) * r) * pt.exp(-np.sqrt(3) * r),
}


class Recorder:
    """Keeps every draw of PyMC's sampler as it comes, and ends the run at a time limit."""

    def __init__(self, num_chains: int, limit_s: float) -> None:
        self.draws: list[list[list[float]]] = [[] for _ in range(num_chains)]
        self.stats: list[list[tuple[int, bool]]] = [[] for _ in range(num_chains)]
        self.num_warmup = [0] * num_chains
        self.end = perf_counter() + limit_s
        self.is_stopped = False

    def __call__(self, trace: Any, draw: Any) -> None:
        """PyMC's callback, in its main process; a `KeyboardInterrupt` ends its sampling."""
        if draw.tuning:
            self.num_warmup[draw.chain] += 1
        else:
            # All four are positive, and sampled as logarithms.
            point = [float(np.exp(draw.point[f"{name}_log__"])) for name in PARAMETERS]
            self.draws[draw.chain].append(point)
            stats = draw.stats[0]
            self.stats[draw.chain].append((int(stats["tree_size"]), bool(stats["diverging"])))
        if perf_counter() > self.end and not draw.is_last:
            self.is_stopped = True
            raise KeyboardInterrupt

    def result(self) -> dict[str, Any]:
        """What all chains have: the longer ones are cut."""
        length = min(map(len, self.draws))
        draws = np.array([chain[:length] for chain in self.draws])
        stats = np.array([chain[:length] for chain in self.stats])
        return {
            "warmup_done": min(self.num_warmup),
            "draws": {name: draws[..., i] for i, name in enumerate(PARAMETERS)} if length else {},
            "num_steps": stats[..., 0] if length else [],
            "diverging": stats[..., 1] if length else [],
        }


def nuts(
    kernel: str,
    axes: list[np.ndarray],
    y: np.ndarray,
    likelihood: str,
    sampler: str,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    seed: int,
    stop_after_s: float,
) -> Callable[[], dict[str, Any]]:
    """A call that builds the model, compiles and samples; PyMC's own sampler stops in time."""
    options: dict[str, Any] = {
        "tune": num_warmup,
        "draws": num_samples,
        "chains": num_chains,
        "cores": num_chains,
        "random_seed": seed,
        "progressbar": False,
        "compute_convergence_checks": False,
    }

    def in_pymc() -> dict[str, Any]:
        recorder = Recorder(num_chains, stop_after_s)
        start, cpu = perf_counter(), cpu_seconds()
        with model_of(kernel, axes, y, likelihood):
            try:
                found = pm.sample(**options, callback=recorder)
                sampling = found.posterior.attrs["sampling_time"]
            except Exception:
                # A run that was stopped before its first draw after warm-up has nothing to return.
                if not recorder.is_stopped:
                    raise
                sampling = None
        seconds = perf_counter() - start
        # The time of a process counts once it was waited for.
        for process in active_children():
            process.join(timeout=5)
        times = {"seconds": seconds, "sampling_seconds": sampling}
        return {**times, "cpu_seconds": cpu_seconds() - cpu, **recorder.result()}

    def in_numpyro() -> dict[str, Any]:
        import numpyro

        numpyro.set_host_device_count(num_chains)
        chains = TimedChains()
        start, cpu = perf_counter(), cpu_seconds()
        with model_of(kernel, axes, y, likelihood):
            how = {"nuts_sampler": "numpyro", "nuts_sampler_kwargs": {"chain_method": chains}}
            found = pm.sample(**options, **how)
        return {
            "seconds": perf_counter() - start,
            "sampling_seconds": chains.sampling_seconds,
            "cpu_seconds": cpu_seconds() - cpu,
            "warmup_done": num_warmup,
            "draws": {name: found.posterior[name].to_numpy() for name in PARAMETERS},
            "num_steps": np.asarray(found.sample_stats["n_steps"]),
            "diverging": np.asarray(found.sample_stats["diverging"]),
        }

    return {"pymc": in_pymc, "numpyro": in_numpyro}[sampler]


def model_of(kernel: str, axes: list[np.ndarray], y: np.ndarray, likelihood: str) -> pm.Model:
    """The model of `benchmarks.nuts`; PyMC's noise is a standard deviation."""
    distances = [np.abs(x[:, None] - x[None, :]) for x in axes]
    with pm.Model() as model:
        variance = pm.LogNormal("variance", 0.0, 1.0)
        lengthscales = [pm.LogNormal(f"lengthscale_{i}", -1.0, 1.0) for i in (1, 2)]
        sigma = pm.HalfNormal("sigma", 1.0)
        factors = [KERNELS[kernel](r / t) for r, t in zip(distances, lengthscales, strict=True)]
        factors[0] = variance * factors[0]
        mean = np.zeros(y.size)
        if likelihood == "dense":
            covariance = pt.linalg.kron(*factors) + sigma**2 * pt.eye(y.size)
            pm.MvNormal("y", mu=mean, cov=covariance, observed=y.ravel())
        else:
            pm.KroneckerNormal("y", mu=mean, covs=factors, sigma=sigma, observed=y.ravel())
    return model
