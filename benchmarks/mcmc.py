"""W4: NUTS on an RBF Gaussian process over 30 × 25 cells, with a right and a wrong gradient.

One NumPyro model with amplitude, two lengthscales and noise; only the likelihood differs: kronax's
distribution, or the textbook formula through `eigh` left to automatic differentiation. Each runs in
a process of its own, one chain per core, compile time included; one that takes longer than
`LIMIT_S` is ended and reported as unfinished.
"""

import json
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import reference
from benchmarks.apart import apart
from benchmarks.measure import CandidateError, save

SHAPE = (30, 25)
TRUTH = {"variance": 1.0, "lengthscale_1": 0.3, "lengthscale_2": 0.4, "sigma": 0.1**0.5}
METHODS = ("kronax", "naive")
DRAWS = {"num_warmup": 300, "num_samples": 300}
QUICK_DRAWS = {"num_warmup": 30, "num_samples": 30}
NUM_CHAINS = 2
LIMIT_S = 900


def data() -> tuple[list[np.ndarray], np.ndarray]:
    """The axes, and a draw from the model at `TRUTH`."""
    axes = [np.linspace(0, 1, n) for n in SHAPE]
    lengthscales = TRUTH["lengthscale_1"], TRUTH["lengthscale_2"]
    factors = [
        reference.rbf(x, np.log(length))[0] for x, length in zip(axes, lengthscales, strict=True)
    ]
    factors[0] = TRUTH["variance"] * factors[0]
    return axes, reference.draw(np.random.default_rng(0), factors, TRUTH["sigma"] ** 2)


def sample(method: str, num_warmup: int, num_samples: int) -> dict[str, Any]:
    """Run NUTS in this process, which must not have used JAX before."""
    import numpyro

    numpyro.set_host_device_count(NUM_CHAINS)
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS

    import kronax as kx
    from benchmarks import models

    axes, y = data()
    x1, x2 = (jnp.asarray(x) for x in axes)
    y = jnp.asarray(y)

    def model(y):
        variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
        lengthscale_1 = numpyro.sample("lengthscale_1", dist.LogNormal(-1.0, 1.0))
        lengthscale_2 = numpyro.sample("lengthscale_2", dist.LogNormal(-1.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        factors = variance * kx.RBF(lengthscale_1)(x1, x1), kx.RBF(lengthscale_2)(x2, x2)
        if method == "kronax":
            numpyro.sample("y", kx.KroneckerNormal(0.0, factors, sigma**2), obs=y)
        else:
            numpyro.factor("y", models.naive(y, factors, sigma**2))

    mcmc = MCMC(
        NUTS(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=NUM_CHAINS,
        chain_method="parallel",
        progress_bar=False,
    )
    start = perf_counter()
    mcmc.run(jax.random.key(0), y, extra_fields=("num_steps", "diverging"))
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = perf_counter() - start
    found = summary(draws)
    extra = mcmc.get_extra_fields(group_by_chain=True)
    effective = {name: float(found[name]["n_eff"]) for name in TRUTH}
    return {
        "seconds": seconds,
        "r_hat": {name: float(found[name]["r_hat"]) for name in TRUTH},
        "effective_samples": effective,
        "effective_samples_per_second": min(effective.values()) / seconds,
        "steps_per_draw": float(jnp.mean(extra["num_steps"])),
        "divergences": int(jnp.sum(extra["diverging"])),
        "lengthscale_1": np.asarray(draws["lengthscale_1"]).round(5).tolist(),
    }


def measure(method: str, draws: dict[str, int]) -> dict[str, Any]:
    """One row, from a process of its own."""
    row = {"method": method, **draws, "num_chains": NUM_CHAINS}
    try:
        return {**row, **apart("mcmc", "sample", LIMIT_S, method=method, **draws)}
    except CandidateError as reason:
        return {**row, "seconds": None, "error": str(reason)}


def run(quick: bool) -> None:
    """Measure both methods."""
    rows = []
    for method in METHODS:
        row = measure(method, QUICK_DRAWS if quick else DRAWS)
        rows.append(row)
        shown = {k: v for k, v in row.items() if k != "lengthscale_1"}
        print(json.dumps(shown))
    save("mcmc", rows, quick, shape=SHAPE, truth=TRUTH)
