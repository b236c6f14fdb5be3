"""Observations of any likelihood as predicted from all the others.

The sites of the others stay. What they say of the function at a cell is its *cavity*: of the
marginal `N(m, v)` the site `N(z; f, 1/W)` is taken off, which leaves `v' = v / (1 − W v)` and
`m' = m − v' W (z − m)`. Where the site says nearly all that is known, nothing is left of `1 − W v`:
there `v' = C − 1/W`, with mean and variance `C` of its target given the others, in closed form.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.criticism.held_out import HeldOut, sum_of_observed
from kronax.gp.criticism.leave_one_out import LeaveOneOut, leave_one_out, on_cells
from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.likelihoods.predictive import log_predictive, probability
from kronax.gp.model.process import AbstractPosterior
from kronax.gp.model.solver_choice import is_iterative, iterated_axis
from kronax.gp.posterior import predict
from kronax.gp.sites.sites import Sites
from kronax.linalg.arrays.checks import check_key, is_concrete
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import uniform_numbers
from kronax.linalg.estimates.certificates import ConvergenceError, or_a_box, warn_if_uncertain


class LikelihoodLeaveOneOut(HeldOut):
    """Every observation as predicted from all the others: `means, variances = …` unpacks it.

    Attributes:
        mean: of the observation, grid-shaped; NaN at gaps.
        variance: of the observation.
        function_mean: of the latent function there.
        function_variance: of the latent function there.
        y: the observations.
        axes: of the grid.
        axis_names: of the axes.
        likelihood: of an observation given the function.
        function_variance_error: standard error of that variance where it comes from the draws of
            iterations, else `None`.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> means, variances = found = post.leave_one_out()
        >>> means.shape, found.log_density().shape, found.log_score.shape
        ((4, 4), (4, 4), ())
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    function_mean: Float[Array, "..."]
    function_variance: Float[Array, "..."]
    y: Float[Array, "..."]
    axes: tuple[Axis, ...]
    axis_names: tuple[str, ...] = eqx.field(static=True)
    likelihood: AbstractLikelihood
    function_variance_error: Float[Array, "..."] | None = None

    def log_density(self, y: Float[Array, "..."] | None = None) -> Float[Array, "..."]:
        """Log predictive density, or probability, of every cell: of the data, or of another `y`.

        Raises:
            TypeError: if `y` is a DataArray, whose dimensions may have another order.
        """
        y = self.y if y is None else on_cells(y)
        return log_predictive(self.likelihood, y, self.function_mean, self.function_variance)

    @property
    def log_score(self) -> Float[Array, "..."]:
        """Their sum, one per data set."""
        return sum_of_observed(self.log_density(), self._cells)

    def probability_integral_transform(self, key: PRNGKeyArray) -> Float[Array, "..."]:
        """Where every observation lies in its predictive distribution: uniform under the model.

        Between the probability of less and that of no more a discrete one is placed at random.

        Args:
            key: a JAX random key.

        Raises:
            NotImplementedError: if NumPyro has no distribution function of the likelihood.
        """
        check_key(key)
        like, moments = self.likelihood, (self.function_mean, self.function_variance)
        upper = probability(like, self.y, *moments)
        if not like.support.is_discrete:
            return upper
        lower = probability(like, self.y - 1, *moments)
        return lower + uniform_numbers(key, upper.shape, upper.dtype) * (upper - lower)

    def __repr__(self) -> str:
        count = int(jnp.sum(~jnp.isnan(self.mean)))
        if self.y.ndim > len(self.axes):
            return f"Leave-one-out of {count} observations in several data sets"
        return (
            f"Leave-one-out of {count} observations: log score {float(self.log_score):.2f} nats, "
            f"root mean square error {float(self.rmse):.4g}"
        )


@eqx.filter_jit
def cavity(sites: Sites) -> tuple[Array, Array]:
    """Mean and variance of the function at every cell given all other cells; NaN at gaps."""
    variance = sites.variance / (1 - sites.precision * sites.variance)
    mean = sites.mean - variance * sites.precision * (sites.target - sites.mean)
    is_site = sites.precision > 0
    return where(is_site, mean, jnp.nan), where(is_site, variance, jnp.nan)


def check_cavities(sites: Sites, variance: Array, has_box: bool = True) -> None:
    """Refuse concrete variances of cavities that rounding or draws leave without a meaning."""
    if not is_concrete(sites, variance):
        return
    bad = (np.asarray(sites.precision) > 0) & ~(np.asarray(variance) > 0)
    if bad.any():
        raise ConvergenceError(
            "Leave-one-out needs more certain variances; got sites that say more than all data at "
            f"{int(bad.sum())} cells. Take float64; by iterations raise "
            f"{or_a_box('num_draws', has_box)} of kx.Iteration, or take gaps='exact'."
        )


def left_out(post: AbstractPosterior, like: AbstractLikelihood, sites: Sites) -> tuple[Any, ...]:
    """Mean and variance of every observation given all others, those of the function, its error.

    Raises:
        ConvergenceError: if the variances are too uncertain to take the site of a cell off.
    """
    mean, variance = cavity(sites)
    error = None
    if is_iterative(post.gp):
        spread = predict.variance_estimate(post, (None,) * len(post.gp.axes)).standard_error
        error = spread / jnp.square(1 - sites.precision * sites.variance)
    else:
        mean, variance = _of_targets(leave_one_out(post), sites, mean, variance)
    has_box = iterated_axis(post.gp) is None
    check_cavities(sites, variance, has_box)
    if error is not None:
        what = "Leave-one-out variances"
        warn_if_uncertain(variance, error, post.gp.iteration, what, has_box)
    return *_moments(like, mean, variance), mean, variance, error


def _of_targets(
    found: LeaveOneOut, sites: Sites, mean: Array, variance: Array
) -> tuple[Array, Array]:
    says_most = sites.precision * sites.variance > 0.5
    own = found.variance - 1 / jnp.where(sites.precision > 0, sites.precision, 1)
    return jnp.where(says_most, found.mean, mean), jnp.where(says_most, own, variance)


@eqx.filter_jit
def _moments(like: AbstractLikelihood, mean: Array, variance: Array) -> tuple[Array, Array]:
    found = like.moments(mean, variance)
    return found.observation, found.observation_variance
