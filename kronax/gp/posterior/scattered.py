"""Prediction at places scattered over the grid, not on a grid of their own."""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.columns import columns_of
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.means.means import values_at
from kronax.gp.model.components import Component, axis_with_variance, parts, root_rows, rows_at
from kronax.gp.model.process import AbstractPosterior, AbstractProcess, compiled
from kronax.gp.posterior.predict import are_known, at_data_among, exact_value, mean_of_data
from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.estimates.certificates import Estimate, exact_estimate
from kronax.linalg.functions.choice import DataCovariance, decomposition_of
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import Places, priors_of, turned_about
from kronax.linalg.spectral.khatri_rao import mv_rows

# Eigenvalues of a posterior covariance that are this many roundings below zero are wrong.
ROUNDINGS = 100


def scattered_points(gp: AbstractProcess, points: Any, axes: Any) -> tuple[Points, ...]:
    """The coordinates of scattered places: one entry of `m` per axis."""
    return points_of(gp, scattered_axes(gp, points, axes))


def with_covariates(gp: AbstractProcess, found: tuple[Axis, ...], covariates: Any) -> Any:
    """The points of scattered axes, with the covariates of the mean there."""
    return NewPoints(points_of(gp, found), gp.new_covariates(covariates, found, True))


def points_of(gp: AbstractProcess, found: tuple[Axis, ...]) -> tuple[Points, ...]:
    """The same of their axes."""
    pairs = zip(found, gp.axes, strict=True)
    return tuple(axis.points_among(old, gp.dtype) for axis, old in pairs)


def scattered_axes(gp: AbstractProcess, points: Any, axes: Any) -> tuple[Axis, ...]:
    """One axis of `m` coordinates per axis of the process.

    Args:
        gp: the process.
        points: rows `(m, d)`, in an array or a nested list; or one array of `m` per axis, in a
            tuple or a dictionary by name.
        axes: of a grid, which must not be given as well.
    """
    if axes is not None:
        raise TypeError(
            "Give `axes`, for a grid of new coordinates, or `points`, for scattered places; "
            "got both."
        )
    axes = gp.new_axes(columns_of(points, gp.axes))
    names = gp.axis_names or tuple(f"axis {i}" for i in range(len(axes)))
    missing = [name for name, axis in zip(names, axes, strict=True) if axis is None]
    if missing:
        raise ValueError(
            f"Scattered points need coordinates on every axis; got none for {missing[0]}."
        )
    found = tuple(axis for axis in axes if axis is not None)
    sizes = [axis.size for axis in found]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Scattered points need as many coordinates on every axis; got {sizes}. For a grid of "
            "new coordinates pass `axes=`."
        )
    return found


@compiled
def mean_at(
    post: AbstractPosterior, new: tuple[Points, ...], name: str | None = None
) -> Float[Array, "*batch m"]:
    """Posterior mean of the function, or of the term of that name; `2 m N` operations."""
    value = _explained(post, new, parts(post.gp, name), post.weights)
    if name is not None:
        return value
    mean = _mean_at(post, new)
    if not getattr(new, "covariates", {}):
        return at_data_among(post, new, jnp.add(*same_rank(mean, value)), post.y, post.weights)
    less = jnp.subtract(*same_rank(post.y, mean_of_data(post)))
    return jnp.add(*same_rank(mean, at_data_among(post, new, value, less, post.weights)))


def _mean_at(post: AbstractPosterior, new: tuple[Points, ...]) -> Array:
    """The mean at scattered places, the coefficients of a marginal one estimated."""
    mean = at_places(mean_of_place(post.gp), new)
    if post.regression is None:
        return mean
    return jnp.add(*same_rank(mean, matmul(post.regression.estimates, _design(post.gp, new))))


def _explained(
    post: AbstractPosterior, new: tuple[Points, ...], components: tuple[Component, ...], x: Array
) -> Array:
    """`K_* x` for grid arrays `x`, over all components."""
    dtype = post.operator.dtype
    first, *rest = (mv_rows(rows_at(post.gp, part, new, dtype), x) for part in components)
    return sum(rest, first)


Covariates = Mapping[str, Array]


def at_places(function: Callable[..., Array], new: tuple[Points, ...]) -> Array:
    """A function of the covariates of a place and of that place at many, which come last."""
    return jax.vmap(function, out_axes=-1)(getattr(new, "covariates", {}), *new)


def mean_of_place(gp: AbstractProcess) -> Callable[..., Array]:
    """The mean function, of the covariates of one place and of that place."""

    def one(covariates: Covariates, *place: Points) -> Array:
        points = _grid_of_one(covariates, place)
        value = values_at(gp.mean_ahead(points), points)
        return jnp.broadcast_to(value, (1,) * len(place)).reshape(()).astype(gp.dtype)

    return one


def design_of_place(gp: AbstractProcess) -> Callable[..., Array]:
    """The functions of a marginal mean, `(p,)`, likewise."""

    def one(covariates: Covariates, *place: Points) -> Array:
        return gp.design_on(_grid_of_one(covariates, place)).reshape(-1)

    return one


def _grid_of_one(covariates: Covariates, place: tuple[Points, ...]) -> Any:
    shape = (1,) * len(place)
    return NewPoints(
        (x[None] for x in place), {name: x.reshape(shape) for name, x in covariates.items()}
    )


def _design(gp: AbstractProcess, new: tuple[Points, ...]) -> Float[Array, "p m"]:
    return at_places(design_of_place(gp), new)


def _regressed(
    post: AbstractPosterior, new: tuple[Points, ...], name: str | None = None
) -> Float[Array, "p m"] | None:
    """The root of what not knowing the coefficients adds to the covariance."""
    if post.regression is None:
        return None
    solved = post.regression.solved
    known = _explained(post, new, parts(post.gp, name), solved)
    if name is not None:
        return post.regression.whitened(-known)
    own = post.gp.design_on((None,) * len(new))
    left = _design(post.gp, new) + at_data_among(post, new, -known, -own, -solved)
    return post.regression.whitened(left)


@compiled
def variance_at(
    post: AbstractPosterior, new: tuple[Points, ...], name: str | None = None
) -> Estimate:
    """Posterior variance of the function or a term; values only, differentiating raises.

    With its certificate, whether it converged or not.
    """
    found = decomposition_of(_operator(post, name)).variance_at(*_places(post, new, name))
    root = _regressed(post, new, name)
    if decomposition_of(post.operator).is_exact and are_known(new):
        on_grid = exact_value(post, (None,) * len(new), name)
        cells = tuple(x.cells for x in new if x.cells is not None)
        is_old = reduce(and_, (k >= 0 for k in cells))
        found = exact_estimate(jnp.where(is_old, on_grid[(..., *cells)], found.value))
    return found if root is None else found.shifted(jnp.sum(jnp.square(root), axis=0))


def _operator(post: AbstractPosterior, name: str | None) -> DataCovariance:
    """The covariance of the data, with the function or a term in the place of the signal."""
    op = post.operator
    is_joined = name is not None and post.gp.joined is not None and name in post.gp.additive.joined
    if is_joined and isinstance(op, KroneckerPlusNoise):  # the term stands where the noise does
        return turned_about(op)
    return op


def _places(
    post: AbstractPosterior, new: tuple[Points, ...], name: str | None = None
) -> list[list[Places]]:
    """What is known of scattered places, part by part, each with one row per axis."""
    gp, dtype = post.gp, post.operator.dtype
    found, scaled = [], axis_with_variance(gp, name)
    for part in parts(gp, name):
        places = []
        for i, (kernel, place) in enumerate(zip(part.kernels, new, strict=True)):
            scale = part.variance.astype(dtype) if i == scaled else jnp.ones((), dtype)
            if gp.structures[i].rank is not None and kernel is gp.kernels[i]:
                rows = root_rows(gp, i, place, dtype)[0]
            else:
                rows = scale * kernel.matrix_at(place, gp.axes[i].points(dtype)).astype(dtype)
            places.append(Places(rows, scale * kernel.variances_at(place).astype(dtype)))
        found.append(places)
    return found


@compiled
def covariance_at(
    post: AbstractPosterior,
    new: tuple[Points, ...],
    name: str | None = None,
    levels: Array | None = None,
) -> Float[Array, "m m"]:
    """Posterior covariance between all places; `2 m² N` operations, values only.

    Its diagonal is that of `variance_at`, plus the noise `levels` of new observations.
    """
    decomposition = decomposition_of(_operator(post, name))
    priors = [_prior_matrices(post, part, new, name) for part in parts(post.gp, name)]
    pairs = zip(_places(post, new, name), priors, strict=True)
    covariance = decomposition.covariance_at(*pairs)
    root = _regressed(post, new, name)
    if root is not None:
        covariance = covariance + matmul(root.T, root)
    own = jnp.arange(covariance.shape[0])
    if decomposition.is_exact:  # by iterations, variances have a solve each as well
        covariance = covariance.at[own, own].set(variance_at(post, new, name).value)
    covariance = (covariance + covariance.T) / 2
    return covariance if levels is None else covariance.at[own, own].add(levels)


def _prior_matrices(
    post: AbstractPosterior, part: Component, new: tuple[Points, ...], name: str | None
) -> list[Array]:
    """The prior covariances between all places, axis by axis, scaled as the rows of `_places`."""
    dtype, scaled = post.operator.dtype, axis_with_variance(post.gp, name)
    pairs = zip(part.kernels, new, strict=True)
    matrices = [kernel.matrix_at(place, place).astype(dtype) for kernel, place in pairs]
    matrices[scaled] = part.variance.astype(dtype) * matrices[scaled]
    return matrices


@compiled
def sample_at(
    post: AbstractPosterior, key: PRNGKeyArray, new: tuple[Points, ...], shape: tuple[int, ...]
) -> Float[Array, "*shape m"]:
    """Joint draws of the function."""
    mean, covariance = mean_at(post, new), covariance_at(post, new)
    # The covariance is a difference of two: its rounding is of the size of the first.
    values, vectors = jnp.linalg.eigh(covariance)
    prior = jnp.max(priors_of(_places(post, new)))
    slack = ROUNDINGS * mean.size * jnp.finfo(mean.dtype).eps * prior
    root = jnp.sqrt(where(values < -slack, jnp.nan, jnp.maximum(values, 0)))
    root = vectors * root[None]
    white = normal_numbers(key, (*shape, *mean.shape), mean.dtype)
    return jnp.add(*same_rank(mean, matmul(white, root.T)))
