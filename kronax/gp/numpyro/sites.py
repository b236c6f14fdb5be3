"""A grid GP inside NumPyro models: likelihoods and latent fields."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.distributions import KroneckerNormal, MaskedKroneckerNormal
from kronax.gp.model import checks
from kronax.gp.model.components import are_exact
from kronax.gp.model.process import AbstractProcess
from kronax.gp.model.solver_choice import is_iterative
from kronax.gp.numpyro.latent import LatentPosterior, latent_condition, sample_latent


class NumpyroSites(AbstractProcess):
    """What a grid GP is to a NumPyro model."""

    def numpyro_dist(self, *, flatten: bool = False) -> KroneckerNormal | MaskedKroneckerNormal:
        """Noisy data on the grid as a NumPyro distribution: the likelihood of a model.

        The whole grid is one event: it needs no `numpyro.plate` over its axes. With `observed=` it
        is the density of these cells, and data may be NaN elsewhere.

        Args:
            flatten: events are `(N,)` instead of grid-shaped.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx
            >>> gp = kx.GridGP((kx.RBF(0.3),), (jnp.linspace(0, 1, 5),), noise=0.1)
            >>> gp.numpyro_dist().event_shape
            (5,)
        """
        checks.refuse_marginal(self, "gp.numpyro_dist() is")
        if self.noise_model.is_per_cell or not are_exact(self) or is_iterative(self):
            raise NotImplementedError(
                "gp.numpyro_dist() is not available by iterations, for terms without an exact "
                "decomposition or with one noise variance per cell. Add the likelihood to the "
                "model as numpyro.factor('y', gp.log_marginal_likelihood(y))."
            )
        loc, covariance = _moments(self)
        if self.observed is None:
            return KroneckerNormal(loc, covariance, flatten=flatten)
        return MaskedKroneckerNormal(loc, covariance, observed=self.observed.array, flatten=flatten)

    def latent(self, name: str, jitter: float = 1e-6) -> Float[Array, "..."]:
        """The process without noise on the grid, latent in a NumPyro model, for any likelihood.

        The sample site is the whitened field, `name_white`, of independent standard normals; the
        field itself is recorded as the deterministic site `name`. Samplers then see a geometry
        that does not depend on the lengthscales. The whitened numbers go from smooth to rough along
        each axis, so that they are nearly independent in the posterior too. Low-rank axes take as
        many of them as they have columns.

        Args:
            name: of the field.
            jitter: added to the diagonal of every axis' covariance, relative to its mean, so that
                its Cholesky factor exists.

        Raises:
            ValueError: if the jitter is negative.
            RuntimeError: outside a model, where there is no random key.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx, numpyro
            >>> gp = kx.GridGP((kx.RBF(0.3),), (jnp.linspace(0, 1, 5),), noise=0.1)
            >>> with numpyro.handlers.seed(rng_seed=0):
            ...     gp.latent("f").shape
            (5,)
        """
        checks.refuse_marginal(self, "gp.latent() is")
        checks.refuse_sums(self, "gp.latent() is")
        return sample_latent(self, name, jitter)

    def latent_condition(self, f: Any, jitter: float = 1e-6) -> LatentPosterior:
        """The process given its values `f` on the whole grid, such as a draw of `latent`.

        Args:
            f: `(*batch, n_1, …, n_d)` or `(*batch, N)`.
            jitter: as for `latent`.

        Raises:
            ValueError: if `f` does not lie on the grid, or the jitter is negative.
        """
        checks.refuse_marginal(self, "gp.latent_condition() is")
        checks.refuse_sums(self, "gp.latent_condition() is")
        return latent_condition(self, f, jitter)


@eqx.filter_jit
def _moments(gp: AbstractProcess) -> tuple[Array, Any]:
    """In one program: NumPyro runs a model step by step before it compiles it."""
    return jnp.broadcast_to(gp.mean_on((None,) * len(gp.axes)), gp.grid_shape), gp.covariance()
