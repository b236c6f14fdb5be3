"""Log density of further data given the data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.means.gls import marginal_logpdf
from kronax.gp.model.components import amplitude, kernel_matrix, process_ahead
from kronax.gp.model.process import AbstractPosterior, compiled
from kronax.gp.posterior.noise_levels import check_defined, noise_on
from kronax.gp.posterior.scattered import covariance_at, mean_at
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import Conditioning, warn_of_ratio
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.functions.decompose import decompose
from kronax.linalg.functions.logdet import normal_logpdf_grid
from kronax.linalg.markov.factor import Markov
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise

# A grid with several new axes is a list of places for its density: m² N operations, m³ more.
MOST_PLACES = 5_000


def log_density(
    post: AbstractPosterior,
    y_new: Array,
    new: tuple[Axis | None, ...],
    noise: Any,
    covariates: Mapping[str, Array],
) -> Array:
    """Of new observations on a grid.

    With at most one new axis the old and the new data lie on one longer grid, and the log density
    is the difference of two of them. With several, with gaps or uneven noise, or where terms join
    the noise, it is that of a dense normal distribution. Concrete values that are lost warn.
    """
    value, found = _with_ends(post, y_new, new, noise, covariates)
    warn_of_ratio(found, "The log density may be wrong")
    return value


Density = tuple[Array, Conditioning | None]


def _with_ends(
    post: AbstractPosterior,
    y_new: Array,
    new: tuple[Axis | None, ...],
    noise: Any,
    covariates: Mapping[str, Array],
) -> Density:
    moved = [i for i, axis in enumerate(new) if axis is not None]
    gp = post.gp
    is_whole = isinstance(post.operator, KroneckerPlusNoise)
    if len(moved) > 1 or noise is not None or gp.joined is not None or not is_whole:
        return _on_places(post, y_new, new, noise, covariates)
    dtype = post.operator.dtype
    ahead = NewPoints((None if x is None else x.points(dtype) for x in new), covariates)
    if not moved:
        return _again(post, y_new, ahead)
    check_defined(gp, new)
    return _longer(post, y_new, ahead, moved[0])


@compiled
def _again(post: AbstractPosterior, y_new: Array, new: tuple[Points | None, ...]) -> Density:
    """A second observation of every cell: one more axis, of two that share the function."""
    op = post.on_grid
    both = jnp.ones((2, 2), op.dtype)
    noise = op.noise
    if isinstance(noise, Kronecker):
        noise = Kronecker(jnp.eye(2, dtype=op.dtype), *noise.factors)
    joint = KroneckerPlusNoise(Kronecker(both, *op.factors), noise)
    return _difference(post, y_new, joint, -len(op.factors) - 1, new, stack=True)


@compiled
def _longer(
    post: AbstractPosterior, y_new: Array, new: tuple[Points | None, ...], i: int
) -> Density:
    """The grid with one axis made longer."""
    gp, op = post.gp, post.on_grid
    ahead = new[i]
    assert ahead is not None
    size = gp.axes[i].size + ahead.size
    factors: list[Any] = list(op.factors)
    process, order = process_ahead(gp, gp.kernels[i], i, ahead, op.dtype), None
    if process is not None:
        scaled = process.scaled(amplitude(gp, i, op.dtype))
        factors[i], order = Markov(scaled.space, size), process.sorting
    else:
        x = gp.axes[i].points(op.dtype).joined(ahead)
        factors[i] = kernel_matrix(gp, i, x, op.dtype)
    noise = op.noise
    if isinstance(noise, Kronecker):
        parts: list[Any] = list(noise.factors)
        parts[i] = ScaledIdentity(jnp.ones((), op.dtype), size)
        noise = Kronecker(*parts)
    joint = KroneckerPlusNoise(Kronecker(*factors), noise)
    return _difference(post, y_new, joint, i - len(factors), new, order=order)


def _difference(
    post: AbstractPosterior,
    y_new: Array,
    joint: KroneckerPlusNoise,
    axis: int,
    new: tuple[Points | None, ...],
    *,
    stack: bool = False,
    order: Array | None = None,
) -> Density:
    """`log p(y, y_new) − log p(y)`, and the ends of the first covariance.

    `order` is that in which the joint covariance has the old places and then the new ones.
    """
    gp, op = post.gp, post.operator
    joint = decompose(joint)
    found = decomposition_of(lax.stop_gradient(joint)).ends()
    stay = (None,) * len(gp.axes)
    grid = tuple(a.size for a in gp.axes)
    old = jnp.subtract(*same_rank(post.y, gp.mean_on(stay)))
    ahead = jnp.subtract(*same_rank(y_new, gp.mean_on(new)))
    lead = jnp.broadcast_shapes(
        old.shape[: old.ndim - len(grid)], ahead.shape[: ahead.ndim - len(grid)]
    )
    both = [
        jnp.broadcast_to(part, (*lead, *part.shape[part.ndim - len(grid) :]))
        for part in (old, ahead)
    ]

    def join(parts: Any, axis: int) -> Array:
        whole = (jnp.stack if stack else jnp.concatenate)(parts, axis=axis)
        return whole if order is None else jnp.take(whole, order, axis=axis)

    whole = join(both, axis=axis)
    if post.regression is None:
        return normal_logpdf_grid(whole, joint) - normal_logpdf_grid(old, op), found
    design = gp.design_on(stay)
    longer = join([design, gp.design_on(new)], axis=axis)
    variance = gp.marginal.variance
    value = marginal_logpdf(joint, longer, whole, variance)
    return value - marginal_logpdf(op, design, old, variance), found


def check_number(count: int) -> None:
    """Refuse a dense covariance of too many observations."""
    if count > MOST_PLACES:
        raise ValueError(
            "The joint density of new data on several new axes, at scattered points or with noise "
            f"of their own needs a dense covariance; got {count} observations, more than "
            f"{MOST_PLACES}. Move one axis at a time, or take the density of parts."
        )


def places_on(
    post: AbstractPosterior, new: tuple[Axis | None, ...], covariates: Mapping[str, Array]
) -> tuple[tuple[int, ...], Any]:
    """The shape of a grid, and its cells as a list of places.

    Raises:
        ValueError: if there are too many for a dense covariance.
    """
    axes = tuple(axis or old for axis, old in zip(new, post.gp.axes, strict=True))
    shape = tuple(axis.size for axis in axes)
    indices = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    check_number(indices[0].size)
    lines = [k.reshape(-1) for k in indices]
    each = (axis.points(post.gp.dtype)[k] for axis, k in zip(axes, lines, strict=True))
    known = {name: jnp.broadcast_to(x, shape).reshape(-1) for name, x in covariates.items()}
    return shape, NewPoints(each, known)


def _on_places(
    post: AbstractPosterior,
    y_new: Array,
    new: tuple[Axis | None, ...],
    noise: Any,
    covariates: Mapping[str, Array],
) -> Density:
    shape, places = places_on(post, new, covariates)
    levels = noise_on(post, new, noise)
    if is_concrete(levels) and bool(jnp.isposinf(levels).any()):
        count = int(jnp.isposinf(levels).sum())
        raise ValueError(
            f"New observations need a finite noise variance; that of {count} cells is infinite. "
            "Pass `noise=` with the variances of the new observations."
        )
    flat = y_new.reshape(*y_new.shape[: y_new.ndim - len(shape)], -1)
    return _at(post, flat, places, jnp.broadcast_to(levels, shape).reshape(-1))


def log_density_at(
    post: AbstractPosterior, y_new: Array, new: tuple[Points, ...], levels: Array
) -> Array:
    """Of new observations at scattered places with noise of the variances `levels`."""
    value, found = _at(post, y_new, new, levels)
    warn_of_ratio(found, "The log density may be wrong")
    return value


@compiled
def _at(post: AbstractPosterior, y_new: Array, new: tuple[Points, ...], levels: Array) -> Density:
    # Those of the data: what they leave of the function is better conditioned.
    found = decomposition_of(lax.stop_gradient(post.operator)).ends()
    covariance = covariance_at(post, new) + jnp.diag(jnp.broadcast_to(levels, y_new.shape[-1:]))
    root = jnp.linalg.cholesky(covariance)
    residual = jnp.subtract(*same_rank(y_new, mean_at(post, new)))
    flat = residual.reshape(-1, residual.shape[-1]).T
    white = jax.scipy.linalg.solve_triangular(root, flat, lower=True).T.reshape(residual.shape)
    count = residual.shape[-1]
    logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    constant = jnp.asarray(count * jnp.log(2 * jnp.pi), residual.dtype)
    return -(jnp.sum(jnp.square(white), axis=-1) + logdet + constant) / 2, found
