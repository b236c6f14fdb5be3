"""Log densities of single observations, for ArviZ: each given all others, draw by draw."""

from collections.abc import Callable, Mapping
from math import log, pi, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers

from kronax.distributions.grids import GridDistribution
from kronax.distributions.masked import MaskedKroneckerNormal
from kronax.distributions.normal import GridNormal
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.functions.decompose import decompose
from kronax.linalg.functions.diagonals import inverse_diagonal
from kronax.linalg.functions.solve import solve


def pointwise_log_likelihood(
    model: Callable[..., Any],
    samples: Mapping[str, Any],
    *args: Any,
    batch_ndims: int = 1,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    """The log density of every observation of a NumPyro model, for each posterior draw.

    Observations of a `kx.KroneckerNormal` depend on each other, and NumPyro has one number for all
    of them: `az.loo` would see a single observation. Here it is `log p(y_i | y_-i, θ)`, of each
    given all others and the parameters, in closed form: one decomposition
    per draw. Importance weights by these are right for leaving out one cell. Other sites have what
    NumPyro says.

    Args:
        model: the NumPyro model.
        samples: of its latent sites, `mcmc.get_samples(group_by_chain=True)` or without chains.
        args: of the model, its data included.
        batch_ndims: leading axes of the samples: 2 with chains.
        kwargs: of the model.

    Returns:
        By site an array, the axes of the samples and then those of the observations; of masked
        cells the observed ones, in their order.

    Raises:
        NotImplementedError: for a `kx.KroneckerStudentT`.

    Examples:
        >>> import jax, jax.numpy as jnp, kronax as kx, numpyro, numpyro.distributions as dist
        >>> x = jnp.linspace(0, 1, 4)
        >>> def model(y):
        ...     scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     factors = kx.RBF(scale)(x, x), kx.RBF(0.3)(x, x)
        ...     numpyro.sample("y", kx.KroneckerNormal(0.0, factors, 0.1), obs=y)
        >>> samples = {"scale": jnp.array([0.5, 0.7, 1.1])}
        >>> kx.pointwise_log_likelihood(model, samples, jnp.zeros((4, 4)))["y"].shape
        (3, 4, 4)
    """
    kept = {name: jnp.asarray(value) for name, value in samples.items()}
    lead = next(iter(kept.values())).shape[:batch_ndims]
    flat = {n: x.reshape(prod(lead), *x.shape[batch_ndims:]) for n, x in kept.items()}

    def one(values: dict[str, Array]) -> dict[str, Array]:
        seeded = handlers.seed(handlers.substitute(model, values), jax.random.key(0))
        sites = handlers.trace(seeded).get_trace(*args, **kwargs)
        return {
            name: pointwise_log_prob(site["fn"], site["value"])
            for name, site in sites.items()
            if site["type"] == "sample" and site["is_observed"]
        }

    found = jax.jit(lambda draws: jax.lax.map(one, draws))(flat)
    return {n: np.asarray(x).reshape(*lead, *x.shape[1:]) for n, x in found.items()}


def pointwise_log_prob(fn: dist.Distribution, value: Any) -> Array:
    """Of every observation of one site, given all others of it."""
    if not isinstance(fn, GridDistribution):
        return fn.log_prob(value)
    if not isinstance(fn, GridNormal):
        raise NotImplementedError(
            f"Single observations of a {type(fn).__name__} have no densities here; those of "
            "kx.KroneckerNormal and kx.MaskedKroneckerNormal have."
        )
    is_masked = isinstance(fn, MaskedKroneckerNormal)
    op = decompose(fn.part() if is_masked else fn.covariance)
    precision, weights = same_rank(inverse_diagonal(op), solve(op, fn.residual(value)))
    density = (jnp.log(precision) - log(2 * pi) - jnp.square(weights) / precision) / 2
    if not is_masked:
        return density.reshape(*density.shape[: -len(fn.grid_shape)], *fn.event_shape)
    flat = density.reshape(*density.shape[: -len(fn.grid_shape)], -1)
    return flat[..., np.flatnonzero(fn.observed)]
