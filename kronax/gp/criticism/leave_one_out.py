"""Leave-one-out prediction in closed form.

With `S` the covariance of the data and `α = S⁻¹ (y − m)`, the distribution of a cell given all the
others has mean `y_c − α_c / [S⁻¹]_cc` and variance `1 / [S⁻¹]_cc`: the last row of the inverse of
`S`, with the cell moved last, holds both.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.indexes import is_labelled
from kronax.gp.criticism.held_out import HeldOut, axis_labels, sum_of_observed
from kronax.gp.model.process import AbstractPosterior, compiled
from kronax.linalg.arrays.checks import check_plain, is_concrete
from kronax.linalg.arrays.fibres import shared_like
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import ConvergenceError, or_a_box, warn_if_uncertain
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.functions.diagonals import inverse_diagonal
from kronax.linalg.krylov.operator import Iterations


class LeaveOneOut(HeldOut):
    """Every observation as predicted from all the others: `means, variances = …` unpacks it.

    Attributes:
        mean: the predicted observations, grid-shaped; batches of the data lead.
        variance: of the noisy observations; it does not depend on the data.
        y: the observations.
        axes: of the grid.
        axis_names: of the axes, or `axis 0` and so on.
        variance_error: standard error of the variance where it comes from iterations, else `None`.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> means, variances = found = post.leave_one_out()
        >>> means.shape, found.standardised.shape, found.log_score.shape
        ((4, 4), (4, 4), ())
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    y: Float[Array, "..."]
    axes: tuple[Axis, ...]
    axis_names: tuple[str, ...] = eqx.field(static=True)
    variance_error: Float[Array, "..."] | None = None

    def log_density(self, y: Float[Array, "..."] | None = None) -> Float[Array, "..."]:
        """Log predictive density of every cell, in nats: of the data, or of another `y`.

        Raises:
            TypeError: if `y` is a DataArray, whose dimensions may have another order.
        """
        error = self.error if y is None else jnp.subtract(*same_rank(on_cells(y), self.mean))
        return _log_normal(*same_rank(error, self.variance))

    @property
    def mean_error(self) -> Float[Array, "..."] | None:
        """Standard error of the mean where variances come from iterations, else `None`.

        The mean is `y − α v`, so that the error of `v` comes in by the weight `α = (y − mean) / v`.
        """
        if self.variance_error is None:
            return None
        error, own, variance = same_rank(self.error, self.variance_error, self.variance)
        return jnp.abs(error) * own / variance

    @property
    def log_score(self) -> Float[Array, "..."]:
        """The sum of the log predictive densities, in nats; one per data set."""
        return sum_of_observed(self.log_density(), self._cells)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.y.shape))
        if is_concrete(self.mean) and bool(jnp.isnan(self.mean).any()):
            shape = f"{int((~jnp.isnan(self.mean)).sum())} of {shape}"
        if not is_concrete(self.y, self.mean, self.variance) or self.y.ndim > len(self.axes):
            return f"LeaveOneOut of {shape} observations"
        return (
            f"LeaveOneOut of {shape} observations: log score {float(self.log_score):.2f} nats, "
            f"root mean square error {float(self.rmse):.4g}, "
            f"{float(self.coverage(0.95)):.1%} inside their 95% intervals"
        )


@jax.jit
def _log_normal(error: Array, variance: Array) -> Array:
    square = jnp.square(error) / variance
    return -(square + jnp.log(variance) + math.log(2 * math.pi)) / 2


def leave_one_out(post: AbstractPosterior) -> LeaveOneOut:
    """The predictions of a posterior.

    Coefficients that are integrated out are estimated without the cell as well: then it is the
    inverse `S⁻¹ − S⁻¹ H A⁻¹ Hᵀ S⁻¹` that has a diagonal.
    """
    way, error = decomposition_of(post.operator), None
    if isinstance(way, Iterations):
        found = way.settled(way.inverse_estimate(), "the draws")
        weights = way.data_weights(post.residual(), post.weights)
        mean, variance, diagonal = _predicted(post, found.value, weights)
        _check_positive(diagonal, way)
        error = found.standard_error * jnp.square(variance)
        what = "Leave-one-out variances"
        warn_if_uncertain(variance, error, way.op.iteration, what, way.has_box)
    else:
        mean, variance, _ = _predicted(post, None, post.weights)
    return LeaveOneOut(mean, variance, post.y, post.gp.axes, axis_labels(post.gp), error)


@compiled
def _predicted(
    post: AbstractPosterior, estimate: Array | None, weights: Array
) -> tuple[Array, Array, Array]:
    """Mean and variance, and the diagonal of the inverse that they come from."""
    diagonal = inverse_diagonal(post.operator) if estimate is None else estimate
    diagonal = shared_like(diagonal, post.y)
    regression = post.regression
    if regression is not None:
        diagonal = diagonal - jnp.sum(jnp.square(regression.whitened(regression.solved)), axis=0)
    if post.gp.observed is not None:
        diagonal = where(post.gp.observed.array, diagonal, jnp.nan)
    variance = 1 / diagonal
    return post.y - jnp.multiply(*same_rank(weights, variance)), variance, diagonal


def _check_positive(diagonal: Array, way: Iterations) -> None:
    """Refuse estimates of the inverse's diagonal that leave no variance."""
    if not is_concrete(diagonal):
        return
    seen = np.broadcast_to(way.op.observed, diagonal.shape)
    bad = seen & ~(np.asarray(diagonal) > 0)
    if bad.any():
        more = or_a_box("num_draws", way.has_box)
        raise ConvergenceError(
            f"Leave-one-out by iterations needs more certain variances; got {int(bad.sum())} that "
            f"are not positive. Raise {more} of kx.Iteration, or take gaps='exact'."
        )


def on_cells(y: Any) -> Array:
    """Values in the order of the cells: labels would say another one, which nobody here reads."""
    if is_labelled(y):
        raise TypeError(
            "y must be an array in the order of the model's axes; got a DataArray. Pass "
            "gp.check_data(y), which puts it into this order."
        )
    y = without_mask(y)
    check_plain(y, "y")
    return jnp.asarray(y)
