"""Whole slices of data with a likelihood, each predicted from all the others.

Without a slice the sites of the others move. So they are found anew for every slice, from where
those of all data are. The joint log density of a slice given the others is the difference of two
log evidences.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from kronax.gp.criticism.held_out import axis_labels
from kronax.gp.criticism.outliers import shown
from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.model.process import AbstractProcess, with_fields
from kronax.gp.sites.evidence import evidence_at
from kronax.gp.sites.leave_one_out import LikelihoodLeaveOneOut
from kronax.gp.sites.search import OTHER_START, Hint, find
from kronax.gp.sites.sites import Sites
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import ConvergenceError


class LikelihoodLeaveSliceOut(LikelihoodLeaveOneOut):
    """Every slice along one axis as predicted from the others: `means, variances = …` unpacks it.

    All is as in a `LikelihoodLeaveOneOut`, observation by observation, and beside it:

    Attributes:
        log_scores: joint log predictive density of each slice in nats, `(n_i,)`, by the
            approximation; zero for slices without data.
        axis: the number of the axis of the slices.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> found = post.leave_slice_out(0)
        >>> found.mean.shape, found.log_scores.shape
        ((4, 4), (4,))
    """

    log_scores: Float[Array, "..."] = eqx.field(kw_only=True)
    axis: int = eqx.field(static=True, kw_only=True)

    @property
    def log_score(self) -> Float[Array, "..."]:
        """The sum of the joint log predictive densities of the slices."""
        return jnp.sum(self.log_scores, axis=-1)

    def __repr__(self) -> str:
        return (
            f"{self.axes[self.axis].size} slices along {self.axis_names[self.axis]}, each "
            f"predicted from the others: log score {float(self.log_score):.2f} nats, root mean "
            f"square error {float(self.rmse):.4g}"
        )


class _Without(eqx.Module):
    """A likelihood that says nothing of some cells; as far as a search asks."""

    likelihood: AbstractLikelihood
    kept: Array

    @property
    def is_log_concave(self) -> bool:
        """As it was."""
        return self.likelihood.is_log_concave

    def start(self, y: Array) -> Array:
        """As it was."""
        return self.likelihood.start(y)

    def log_density(self, y: Array, f: Array) -> Array:
        """Zero at those cells, as are the others."""
        return jnp.where(self.kept, self.likelihood.log_density(y, f), 0)

    def expected(self, y: Array, mean: Array, variance: Array) -> Array:
        """Its average."""
        return jnp.where(self.kept, self.likelihood.expected(y, mean, variance), 0)

    def derivatives(self, y: Array, f: Array) -> tuple[Array, Array]:
        """Its derivatives."""
        return self._kept(self.likelihood.derivatives(y, f))

    def expected_derivatives(self, y: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Their averages."""
        return self._kept(self.likelihood.expected_derivatives(y, mean, variance))

    def _kept(self, values: tuple[Array, Array]) -> tuple[Array, Array]:
        slope, bend = (jnp.where(self.kept, x, 0) for x in values)
        return slope, bend


@eqx.filter_jit
def slices_without(
    gp: AbstractProcess, y: Array, sites: Sites, axis: int
) -> tuple[Array, Array, Array, Array]:
    """Mean and variance of the function in every slice given the others, and its log density.

    Args:
        gp: with its likelihood.
        y: data, filled in the gaps.
        sites: of all of them.
        axis: of the slices.

    Returns:
        Mean and variance on the grid, log densities `(n,)`, and which searches converged.
    """
    count, hint = gp.grid_shape[axis], Hint(sites.mean, sites.variance)
    along = jnp.arange(count).reshape(-1, *(1,) * (len(gp.grid_shape) - 1 - axis))
    place = jnp.broadcast_to(along, gp.grid_shape)

    def one(k: Array) -> tuple[Array, ...]:
        assert gp.likelihood is not None
        held: Any = _Without(gp.likelihood, place != k)
        others = with_fields(gp, likelihood=held)
        found, _ = find(others, y, hint)
        own = [jnp.take(x, k, axis=axis) for x in (found.mean, found.variance)]
        return *own, evidence_at(others, y, found), found.converged

    mean, variance, without, converged = lax.map(one, jnp.arange(count))
    on_grid = [jnp.moveaxis(x, 0, axis) for x in (mean, variance)]
    scores = where(converged, evidence_at(gp, y, sites) - without, jnp.nan)
    return on_grid[0], on_grid[1], scores, converged


def leave_slice_out(post: Any, y: Array, sites: Sites, axis: int) -> LikelihoodLeaveSliceOut:
    """The predictions of a `LikelihoodPosterior`.

    Raises:
        ConvergenceError: if a search for the sites does not converge.
    """
    gp, seen = post.model, sites.precision > 0
    *function, scores, converged = slices_without(gp, y, sites, axis)
    if is_concrete(converged) and not np.all(converged):
        place = shown(gp.axes[axis].at(int(np.argmin(converged))))
        raise ConvergenceError(
            f"The search for the sites must converge without each slice; without {place} it did "
            f"not. {OTHER_START}"
        )
    mean, variance = (where(seen, x, jnp.nan) for x in function)
    own = gp.likelihood.moments(mean, variance)
    return LikelihoodLeaveSliceOut(
        mean=own.observation,
        variance=own.observation_variance,
        function_mean=mean,
        function_variance=variance,
        y=where(seen, y, jnp.nan),
        axes=gp.axes,
        axis_names=axis_labels(gp),
        likelihood=gp.likelihood,
        log_scores=scores,
        axis=axis,
    )
