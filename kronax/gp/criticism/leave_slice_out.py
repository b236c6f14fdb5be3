"""Whole slices of the grid, each predicted from all the others, in closed form.

With `S` the covariance of the data, `α = S⁻¹ (y − m)` and `o` the cells of a slice, the slice given
the others has covariance `C = ([S⁻¹]_oo)⁻¹` and mean `y_o − C α_o`. Where coefficients are
integrated out `S⁻¹` loses `T Tᵀ` with `T = S⁻¹ H L^{-T}`, and `C` becomes `C + C T G⁻¹ Tᵀ C` with
`G = I − Tᵀ C T`: the share of what is known of the coefficients that the other slices know.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.display import aligned
from kronax.gp.axes.axis import Axis
from kronax.gp.criticism.held_out import HeldOut, axis_labels
from kronax.gp.criticism.outliers import shown
from kronax.gp.means.gls import fitted
from kronax.gp.model.checks import refuse_gaps
from kronax.gp.model.process import AbstractPosterior
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import HIGHEST, same_rank
from kronax.linalg.dense_covariance import DenseCovariance
from kronax.linalg.gaps.slices import slices_given_others
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise

# How many slices are printed, the most surprising ones.
MOST_ROWS = 12


class LeaveSliceOut(HeldOut):
    """Every slice along one axis as predicted from the others: `means, variances = …` unpacks it.

    Attributes:
        mean: the predicted observations, grid-shaped; batches of the data lead.
        variance: of the noisy observations, cell by cell; it does not depend on the data.
        log_scores: joint log predictive density of each slice in nats, `(*batch, n_i)`.
        chi_square: of each slice, `(*batch, n_i)`: its errors, decorrelated, squared and added.
            Under the model it is chi-squared with as many degrees of freedom as a slice has cells.
        y: the observations.
        axes: of the grid.
        axis_names: of the axes, or `axis 0` and so on.
        axis: the number of the axis of the slices.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> found = post.leave_slice_out(0)
        >>> found.mean.shape, found.log_scores.shape, found.chi_square.shape
        ((4, 4), (4,), (4,))
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    log_scores: Float[Array, "... n"]
    chi_square: Float[Array, "... n"]
    y: Float[Array, "..."]
    axes: tuple[Axis, ...]
    axis_names: tuple[str, ...] = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    @property
    def log_score(self) -> Float[Array, "..."]:
        """The sum of the joint log predictive densities of the slices; one per data set."""
        return jnp.sum(self.log_scores, axis=-1)

    @property
    def cells_per_slice(self) -> int:
        """Number of cells of a slice."""
        return math.prod(self.y.shape[-len(self.axes) :]) // self.axes[self.axis].size

    def __repr__(self) -> str:
        name, count = self.axis_names[self.axis], self.axes[self.axis].size
        title = f"{count} slices along {name}, each predicted from the others"
        if not is_concrete(self.y, self.mean, self.variance) or self.y.ndim > len(self.axes):
            return title
        cells = self.cells_per_slice
        across = tuple(j for j in range(len(self.axes)) if j != self.axis)
        rmse = np.sqrt(np.mean(np.square(np.asarray(self.error, float)), axis=across))
        density, chi_square = (np.asarray(x, float) for x in (self.log_scores, self.chi_square))
        rows: list[tuple[str, ...]] = []
        rows.append((name, "root mean square error", "log density per cell", "chi-square per cell"))
        worst = sorted(np.argsort(-chi_square, kind="stable")[:MOST_ROWS])
        for k in worst:
            numbers = (rmse[k], density[k] / cells, chi_square[k] / cells)
            rows.append((shown(self.axes[self.axis].at(int(k))), *(f"{v:.4g}" for v in numbers)))
        left = count - len(worst)
        lines = [f"{title}: log score {float(self.log_score):.2f} nats", aligned(rows)]
        if left:
            lines.append(f"and {left} more, with smaller chi-squares")
        return "\n".join(lines)


def leave_slice_out(post: AbstractPosterior, i: int) -> LeaveSliceOut:
    """The slices along axis `i` of a posterior."""
    op = post.operator
    if not (isinstance(op, DenseCovariance) and op.mask.array.all()):
        refuse_gaps(post.gp, "Leaving out whole slices is")
    mean, variance, log_scores, chi_square, known = _predicted(post, i)
    if post.regression is not None:
        _check_known(post, i, known)
    return LeaveSliceOut(
        mean=mean,
        variance=variance,
        log_scores=log_scores,
        chi_square=chi_square,
        y=post.y,
        axes=post.gp.axes,
        axis_names=axis_labels(post.gp),
        axis=i,
    )


@eqx.filter_jit
def _predicted(post: AbstractPosterior, i: int) -> tuple[Array, Array, Array, Array, Array | None]:
    """Means, variances, log densities, chi-squares, and the least share that others know."""
    op, weights, grid = post.operator, post.weights, post.operator.grid_shape
    assert isinstance(op, KroneckerPlusNoise | DenseCovariance)
    fields = weights.reshape(-1, *grid)
    residual, design = _data(post)
    columns = jnp.zeros((0, *grid), op.dtype)
    if post.regression is not None:
        columns = post.regression.whitened(post.regression.solved)
        design = post.regression.whitened(design)
    data = jnp.concatenate([residual.reshape(-1, *grid), design])
    found = slices_given_others(op, i, jnp.concatenate([fields, columns]), data)
    error, log_det = found.applied[: fields.shape[0]].reshape(weights.shape), found.log_det
    variance, known = found.diagonal, None
    if post.regression is not None:
        covered = found.applied[fields.shape[0] :]
        share = jnp.eye(columns.shape[0], dtype=op.dtype)[None] - _per_slice(columns, covered, i)
        known = jnp.min(jnp.linalg.eigvalsh(jax.lax.stop_gradient(share)), axis=-1)
        root = jnp.linalg.cholesky((share + jnp.swapaxes(share, -1, -2)) / 2)
        shift = _per_slice(columns, error.reshape(-1, *grid), i)
        shift = jax.scipy.linalg.cho_solve((root, True), shift)
        error = error + _spread(shift, covered, i).reshape(weights.shape)
        identity = jnp.broadcast_to(jnp.eye(columns.shape[0], dtype=op.dtype), root.shape)
        inverse = jax.scipy.linalg.solve_triangular(root, identity, lower=True)
        added = _spread(jnp.swapaxes(inverse, -1, -2), covered, i)
        variance = variance + jnp.sum(jnp.square(added), axis=0)
        log_det = log_det - 2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)
    dims = tuple(j - len(grid) for j in range(len(grid)) if j != i)
    chi_square = jnp.sum(weights * error, axis=dims)
    count = math.prod(grid) // grid[i]
    both = jnp.add(*same_rank(chi_square, log_det))
    log_density = -(both + count * math.log(2 * math.pi)) / 2
    return post.y - error, variance, log_density, chi_square, known


def _data(post: AbstractPosterior) -> tuple[Array, Array]:
    """What the weights are of, and the functions of a marginal mean on the grid."""
    gp, grid = post.gp, post.operator.grid_shape
    residual = jnp.subtract(*same_rank(post.y, gp.mean_on((None,) * len(grid))))
    if post.regression is None:
        return residual, jnp.zeros((0, *grid), residual.dtype)
    design = gp.design_on((None,) * len(grid))
    design = jnp.broadcast_to(design, (design.shape[0], *grid))
    return residual - fitted(post.regression.estimates, design), design


def _per_slice(first: Array, second: Array, i: int) -> Array:
    """`Σ first second` over the cells of every slice: `(n_i, p, q)`."""
    flat = [
        jnp.moveaxis(x, i + 1, 0).reshape(x.shape[i + 1], x.shape[0], -1) for x in (first, second)
    ]
    return jnp.einsum("apb,aqb->apq", *flat, precision=HIGHEST)


def _spread(coefficients: Array, columns: Array, i: int) -> Array:
    """`Σ_p coefficients[a, p, q] columns[p]` on the grid, `(q, *grid)`."""
    moved = jnp.moveaxis(columns, i + 1, 1)
    product = jnp.einsum("apq,pa...->qa...", coefficients, moved, precision=HIGHEST)
    return jnp.moveaxis(product, 1, i + 1)


def _check_known(post: AbstractPosterior, i: int, known: Array | None) -> None:
    """Refuse slices without which some coefficient of the mean is not determined."""
    if post.regression is None or known is None or not is_concrete(known):
        return
    least = np.sqrt(np.finfo(np.asarray(known).dtype).eps)
    wrong = np.flatnonzero(~(np.asarray(known) > least))
    if wrong.size:
        place, name = shown(post.gp.axes[i].at(int(wrong[0]))), axis_labels(post.gp)[i]
        raise ValueError(
            f"Without slice {place} of {name} the other slices must determine every "
            f"coefficient of the mean; they do not ({', '.join(post.regression.names)}). Give "
            "kx.MarginalMean a `variance`, a mean with fewer coefficients, or leave out slices of "
            "another axis."
        )
