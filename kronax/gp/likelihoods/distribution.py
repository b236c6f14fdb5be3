"""Any NumPyro distribution of one latent function as a likelihood."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray

from kronax.domains import data
from kronax.gp.likelihoods.base import AbstractLikelihood, Support
from kronax.linalg.arrays.precision import where

# Among these a search looks for what suits the data of a cell best, beside the data themselves.
CANDIDATES = np.sinh(np.linspace(-7, 7, 141))
# Nats that do not tell one candidate from another.
FLAT = 0.01


class DistributionLikelihood(AbstractLikelihood):
    """What a callable from the latent function to a NumPyro distribution says.

    Averages over the function are by quadrature. Numbers inside an Equinox module that is the
    callable are parameters, frozen unless `kx.fit(domains=…)` gives their domains.

    Args:
        distribution: takes an array of the function, the grid last, and returns a distribution of
            that batch shape, each of one number.

    Raises:
        TypeError: if it is no callable, or does not return such a distribution.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx, numpyro.distributions as dist
        >>> likelihood = kx.DistributionLikelihood(lambda f: dist.Poisson(jnp.exp(f)))
        >>> likelihood.mean(jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """

    distribution: Callable[[Array], dist.Distribution] = data()

    def __check_init__(self) -> None:
        """Refuse what returns no distribution per cell."""
        if not callable(self.distribution):
            raise TypeError(
                "A likelihood must be one of kronax, such as kx.Poisson(), or a callable from the "
                f"latent function to a NumPyro distribution; got {self.distribution!r}."
            )

    def check_grid(self, grid: tuple[int, ...]) -> None:
        """Refuse a callable that does not return one distribution per cell of the grid.

        Raises:
            TypeError: with what it returned.
        """
        found = self.distribution(jnp.zeros(grid))
        is_one_each = isinstance(found, dist.Distribution) and (
            jnp.broadcast_shapes(found.batch_shape, grid) == grid and found.event_shape == ()
        )
        if not is_one_each:
            got = type(found).__name__
            if isinstance(found, dist.Distribution):
                got += f" of batch shape {found.batch_shape}, event shape {found.event_shape}"
            raise TypeError(
                "The likelihood must return a NumPyro distribution of one number for every cell "
                f"of the grid {grid}; got {got}."
            )

    @property
    def support(self) -> Support:
        """That of the distribution, as far as bounds tell."""
        constraint: Any = self.distribution(jnp.zeros(())).support
        low = getattr(constraint, "lower_bound", -jnp.inf)
        high = getattr(constraint, "upper_bound", jnp.inf)
        return Support(low, high, bool(constraint.is_discrete), f"in its support, {constraint}")

    def refused(self, y: np.ndarray) -> np.ndarray:
        """True outside the support."""
        constraint: Any = self.distribution(jnp.zeros(y.shape)).support
        return ~np.broadcast_to(np.asarray(constraint(y)), y.shape)

    def start(self, y: Array) -> Array:
        """Of many candidates one of about the largest density, cell by cell."""
        several = [jnp.full_like(y, candidate) for candidate in CANDIDATES]
        candidates = jnp.stack([*several, y])
        density = jax.vmap(lambda f: self.log_density(y, f))(candidates)
        density = where(jnp.isfinite(density), density, -jnp.inf)
        # The nearest to zero of those: a count of none is surest at a rate of zero, where its
        # distribution has no derivatives.
        is_best = density >= density.max(axis=0, keepdims=True) - FLAT
        best = jnp.argmin(where(is_best, jnp.abs(candidates), jnp.inf), axis=0)
        return jnp.take_along_axis(candidates, best[None], axis=0)[0]

    def log_density(self, y: Array, f: Array) -> Array:
        """That of the distribution."""
        return self.distribution(f).log_prob(y)

    def response(self, f: Array) -> Array:
        """The mean of an observation."""
        return self.mean(f)

    def mean(self, f: Array) -> Array:
        """That of the distribution."""
        return jnp.broadcast_to(self.distribution(f).mean, f.shape)

    def variance(self, f: Array) -> Array:
        """That of the distribution."""
        return jnp.broadcast_to(self.distribution(f).variance, f.shape)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Those of the distribution."""
        return jnp.broadcast_to(self.distribution(f).sample(key), f.shape).astype(f.dtype)

    def cdf(self, y: Array, f: Array) -> Array:
        """That of the distribution.

        Raises:
            NotImplementedError: if NumPyro does not have it.
        """
        return self.distribution(f).cdf(y)


def as_likelihood(value: Any, grid: tuple[int, ...]) -> AbstractLikelihood | None:
    """A likelihood of kronax, or one made of a callable, checked on the grid."""
    if value is None:
        return None
    if isinstance(value, type) and issubclass(value, AbstractLikelihood):
        raise TypeError(f"The likelihood must be an object; write kx.{value.__name__}().")
    found = value if isinstance(value, AbstractLikelihood) else DistributionLikelihood(value)
    found.check_grid(grid)
    return found
