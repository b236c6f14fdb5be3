"""Latent fields under NUTS: centred, or whitened in two ways, with Poisson counts on 24 × 30 cells.

The same prior, likelihood, data and sampler; only the coordinates differ. `centred` samples the
field itself, `Cholesky` is `kx.KroneckerReparam` and `latent` is `GridGP.latent`. Hyperparameters
are sampled, or held at their true values. Each runs in a process of its own, one chain per core,
compile time included. NUTS doubles a trajectory at most ten times: no draw has more than
`MOST_STEPS` leapfrog steps.
"""

import json
import os
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.apart import apart
from benchmarks.measure import CandidateError, save

SHAPE = (24, 30)
TRUTH = {"variance": 0.5, "lengthscale_1": 0.3, "lengthscale_2": 0.2}
COUNTS = (2, 50)  # at the mean of the field; its exponential is a fifth more on average
METHODS = ("centred", "Cholesky", "latent")
JITTER = 1e-6
MOST_STEPS = 1023
DRAWS = {"num_warmup": 500, "num_samples": 500}
QUICK_DRAWS = {"num_warmup": 30, "num_samples": 30}
NUM_CHAINS = 2
LIMIT_S = 1800


def matern52(x: np.ndarray, lengthscale: float) -> np.ndarray:
    """The covariance matrix of one axis."""
    s = np.sqrt(5) * np.abs(x[:, None] - x) / lengthscale
    return (1 + s + s**2 / 3) * np.exp(-s)


def data(counts: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The axes, and Poisson counts from a draw of the field at `TRUTH`."""
    rng = np.random.default_rng(0)
    axes = [np.linspace(0, 1, n) for n in SHAPE]
    lengthscales = TRUTH["lengthscale_1"], TRUTH["lengthscale_2"]
    first, second = (
        np.linalg.cholesky(matern52(x, length) + JITTER * np.eye(len(x)))
        for x, length in zip(axes, lengthscales, strict=True)
    )
    field = np.log(counts) + TRUTH["variance"] ** 0.5 * first @ rng.normal(size=SHAPE) @ second.T
    return axes, rng.poisson(np.exp(field))


def sample(
    method: str, counts: int, is_sampled: bool, num_warmup: int, num_samples: int
) -> dict[str, Any]:
    """Run NUTS in this process, which must not have used JAX before."""
    import numpyro

    numpyro.set_host_device_count(NUM_CHAINS)
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS, init_to_median

    import kronax as kx

    (x1, x2), y = data(counts)
    level = float(np.log(counts))
    priors = {
        "variance": dist.LogNormal(0.0, 1.0),
        "lengthscale_1": dist.LogNormal(-1.0, 1.0),
        "lengthscale_2": dist.LogNormal(-1.0, 1.0),
    }

    def model(y):
        p = dict(TRUTH)
        if is_sampled:
            p = {name: numpyro.sample(name, prior) for name, prior in priors.items()}
        first, second = (kx.Matern52(p[name]) for name in ("lengthscale_1", "lengthscale_2"))
        if method == "latent":
            gp = kx.GridGP((p["variance"] * first, second), (x1, x2), noise=1.0, mean=level)
            f = gp.latent("f", JITTER)
        else:
            factors = [k(x, x) + JITTER * jnp.eye(len(x)) for k, x in ((first, x1), (second, x2))]
            factors[0] = p["variance"] * factors[0]
            f = numpyro.sample("f", kx.KroneckerNormal(level, factors))
        numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(2), obs=y)

    if method == "Cholesky":
        model = numpyro.handlers.reparam(model, config={"f": kx.KroneckerReparam()})
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_median),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=NUM_CHAINS,
        chain_method="parallel",
        progress_bar=False,
    )
    start, cpu_start = perf_counter(), process_time()
    mcmc.run(jax.random.key(0), y, extra_fields=("num_steps", "diverging"))
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds, cpu_seconds = perf_counter() - start, process_time() - cpu_start
    found = summary({name: draws[name] for name in ("f", *TRUTH) if name in draws})
    extra = mcmc.get_extra_fields(group_by_chain=True)
    effective = {name: fewest(found[name]["n_eff"], NUM_CHAINS * num_samples) for name in found}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "load_average": os.getloadavg()[0],
        "r_hat": {name: float(np.max(found[name]["r_hat"])) for name in found},
        "effective_samples": effective,
        "effective_samples_per_second": min(effective.values()) / seconds,
        "effective_samples_per_cpu_second": min(effective.values()) / cpu_seconds,
        "steps_per_draw": float(jnp.mean(extra["num_steps"])),
        "share_at_most_steps": float(jnp.mean(extra["num_steps"] >= MOST_STEPS)),
        "divergences": int(jnp.sum(extra["diverging"])),
        "mean": {name: float(np.mean(draws[name])) for name in found},
    }


def fewest(effective: Any, num_draws: int) -> float:
    """The smallest of them; of draws that alternate the estimate can be negative: that is many."""
    return float(np.min(np.where(np.asarray(effective) > 0, effective, num_draws)))


def measure(method: str, counts: int, is_sampled: bool, draws: dict[str, int]) -> dict[str, Any]:
    """One row, from a process of its own."""
    case = {"method": method, "counts": counts, "is_sampled": is_sampled, **draws}
    row = {**case, "num_chains": NUM_CHAINS}
    try:
        return {**row, **apart("whitening", "sample", LIMIT_S, **case)}
    except CandidateError as reason:
        return {**row, "seconds": None, "error": str(reason)}


def run(quick: bool) -> None:
    """Measure every method on every problem."""
    rows = []
    for counts in COUNTS:
        for is_sampled in (True, False):
            for method in METHODS:
                rows.append(measure(method, counts, is_sampled, QUICK_DRAWS if quick else DRAWS))
                print(json.dumps(rows[-1]), flush=True)
    save("whitening", rows, quick, shape=SHAPE, truth=TRUTH, most_steps=MOST_STEPS)
