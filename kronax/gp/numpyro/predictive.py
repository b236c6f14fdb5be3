"""A posterior as a NumPyro distribution."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.gp.model.process import AbstractPosterior


class PosteriorNormal(dist.Distribution):
    """The posterior of a `kx.GridGP` on a grid: what `post.numpyro_dist(…)` returns.

    It draws by Matheron's rule, without the covariance of the new grid.

    Args:
        posterior: what `gp.condition(y)` returns.
        axes: new coordinates; by default the grid itself.
        include_noise: of new observations.
        noise: the noise variance there, where the model's is not defined on new coordinates.
        covariates: of the mean there, by name.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    pytree_data_fields = ("posterior", "axes", "noise", "covariates")
    pytree_aux_fields = ("include_noise",)

    def __init__(
        self,
        posterior: AbstractPosterior,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
        *,
        validate_args: bool | None = None,
    ):
        self.posterior, self.axes = posterior, axes
        self.include_noise, self.noise, self.covariates = include_noise, noise, covariates
        num_axes = len(posterior.gp.axes)
        shape = posterior.grid_shape(axes)
        batch = posterior.y.shape[: posterior.y.ndim - num_axes]
        super().__init__(batch, shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Real arrays of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws on the grid."""
        options = {"noise": self.noise, "covariates": self.covariates}
        return self.posterior.sample(key, self.axes, sample_shape, self.include_noise, **options)

    def log_prob(self, value: Array) -> Array:
        """Not available: the posterior on a grid has no Kronecker covariance.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The density of a posterior on a grid is not available: its covariance is no Kronecker "
            "product. Draw from it (in Predictive, or with handlers.seed); to observe further "
            "data put them into gp.condition."
        )

    @property
    def mean(self) -> Array:
        """Posterior mean."""
        return self.posterior.mean(self.axes, covariates=self.covariates)

    @property
    def variance(self) -> Array:
        """Posterior variance, the same for every data set of a batch."""
        options = {"noise": self.noise, "covariates": self.covariates}
        variance = self.posterior.variance(self.axes, self.include_noise, **options)
        return jnp.broadcast_to(variance, self.shape())
