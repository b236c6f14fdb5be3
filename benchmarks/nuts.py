"""The models of `benchmarks.mcmc` in NumPyro: one prior, several likelihoods, in this process."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import reference
from benchmarks.chains import TimedChains, cpu_seconds

TRUTH = {"variance": 1.0, "lengthscale_1": 0.3, "lengthscale_2": 0.4, "sigma": 0.1**0.5}


def data(kernel: str, shape: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """The axes, and a draw from the model at `TRUTH`."""
    axes = [np.linspace(0, 1, n) for n in shape]
    lengthscales = TRUTH["lengthscale_1"], TRUTH["lengthscale_2"]
    factors = [
        reference.KERNELS[kernel](x, np.log(length))[0]
        for x, length in zip(axes, lengthscales, strict=True)
    ]
    factors[0] = TRUTH["variance"] * factors[0]
    return axes, reference.draw(np.random.default_rng(0), factors, TRUTH["sigma"] ** 2)


def sample(
    method: str,
    kernel: str,
    shape: tuple[int, ...],
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    seed: int,
) -> dict[str, Any]:
    """Run NUTS, compile time included; this process must not have used JAX before."""
    import numpyro

    numpyro.set_host_device_count(num_chains)
    import jax
    from numpyro.infer import MCMC, NUTS

    model = model_of(method, kernel, *data(kernel, shape))
    chains = TimedChains()
    mcmc = MCMC(
        NUTS(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chains,
        progress_bar=False,
    )
    start, cpu = perf_counter(), cpu_seconds()
    mcmc.run(jax.random.key(seed), extra_fields=("num_steps", "diverging"))
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = perf_counter() - start
    extra = mcmc.get_extra_fields(group_by_chain=True)
    return {
        "seconds": seconds,
        "sampling_seconds": chains.sampling_seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "draws": {name: np.asarray(draw).tolist() for name, draw in draws.items()},
        "num_steps": np.asarray(extra["num_steps"]).tolist(),
        "diverging": np.asarray(extra["diverging"]).tolist(),
    }


def model_of(method: str, kernel: str, axes: list[np.ndarray], y: np.ndarray) -> Callable:
    """A NumPyro model without arguments."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    import kronax as kx
    from benchmarks import models

    make_kernel = models.STATIONARY[kernel]
    x1, x2 = (jnp.asarray(x) for x in axes)
    y = jnp.asarray(y)

    def model() -> None:
        variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
        lengthscale_1 = numpyro.sample("lengthscale_1", dist.LogNormal(-1.0, 1.0))
        lengthscale_2 = numpyro.sample("lengthscale_2", dist.LogNormal(-1.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        kernels = variance * make_kernel(lengthscale_1), make_kernel(lengthscale_2)
        factors = kernels[0](x1, x1), kernels[1](x2, x2)
        if method == "kronax":
            numpyro.sample("y", kx.KroneckerNormal(0.0, factors, sigma**2), obs=y)
        elif method == "regular":
            gp = kx.GridGP(kernels, axes, noise=sigma**2)
            numpyro.sample("y", gp.numpyro_dist(), obs=y)
        else:
            likelihood = {"naive": models.naive, "dense": models.dense}[method]
            numpyro.factor("y", likelihood(y, factors, sigma**2))

    return model
