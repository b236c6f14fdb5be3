"""Prediction at places scattered over the grid, not on a grid of their own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.components import Component, parts, rows_at
from kronax.gp.cross import root_rows
from kronax.gp.kernels.points import Points
from kronax.gp.means import values_of
from kronax.gp.templates import compiled
from kronax.linalg.estimates import Estimate, exact_estimate
from kronax.linalg.iterative_operator import Iterative
from kronax.linalg.modes import matmul, same_rank
from kronax.linalg.scattered import inverse_at, mv_rows
from kronax.linalg.thin import is_thin, reduced, rows_inside

# Eigenvalues of a posterior covariance that are this many roundings below zero are wrong.
ROUNDINGS = 100


def scattered_points(gp: Any, points: Any, axes: Any) -> tuple[Points, ...]:
    """The coordinates of scattered places: one entry of `m` per axis.

    Args:
        gp: the process.
        points: `(m, d)` where every axis has coordinates `(n_i,)`; or one array of `m` per axis, a
            sequence or a dictionary by name.
        axes: of a grid, which must not be given as well.
    """
    if axes is not None:
        raise TypeError(
            "Give `axes`, for a grid of new coordinates, or `points`, for scattered places; "
            "got both."
        )
    given = points
    if not isinstance(points, Mapping | list | tuple):
        array = points if isinstance(points, jax.Array) else np.asarray(points)
        if array.ndim != 2 or array.shape[1] != len(gp.axes):
            raise ValueError(
                f"points must have shape (m, {len(gp.axes)}), one column per axis, or be one array "
                f"of m per axis; got shape {tuple(array.shape)}."
            )
        given = [array[:, i] for i in range(array.shape[1])]
    axes = gp.new_axes(given)
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
    return tuple(axis.points(gp.dtype) for axis in found)


@compiled
def mean_at(
    post: Any, new: tuple[Points, ...], name: str | None = None
) -> Float[Array, "*batch m"]:
    """Posterior mean of the function, or of the term of that name; `2 m N` operations."""
    value = _explained(post, new, parts(post.gp, name), post.weights)
    if name is not None:
        return value
    value = jnp.add(*same_rank(_prior_mean(post.gp, new), value))
    if post.regression is None:
        return value
    return value + matmul(post.regression.estimates, _design(post.gp, new))


def _explained(
    post: Any, new: tuple[Points, ...], components: tuple[Component, ...], x: Array
) -> Array:
    """`K_* x` for grid arrays `x`, over all components."""
    dtype = post.operator.dtype
    first, *rest = (mv_rows(rows_at(post.gp, part, new, dtype), x) for part in components)
    return sum(rest, first)


def _prior_mean(gp: Any, new: tuple[Points, ...]) -> Float[Array, " m"]:
    """The mean function, place by place."""

    def one(*place: Array) -> Array:
        value = values_of(gp.mean, [x[None] for x in place])
        return jnp.broadcast_to(value, (1,) * len(place)).reshape(()).astype(gp.dtype)

    return jax.vmap(one)(*(p.raw for p in new))


def _design(gp: Any, new: tuple[Points, ...]) -> Float[Array, "p m"]:
    """The functions of a marginal mean, place by place."""

    def one(*place: Array) -> Array:
        return gp.mean.design(*(x[None] for x in place)).reshape(-1).astype(gp.dtype)

    return jax.vmap(one, out_axes=1)(*(p.raw for p in new))


def _regressed(
    post: Any, new: tuple[Points, ...], name: str | None = None
) -> Float[Array, "p m"] | None:
    """The root of what not knowing the coefficients adds to the covariance."""
    if post.regression is None:
        return None
    explained = _explained(post, new, parts(post.gp, name), post.regression.solved)
    design = _design(post.gp, new) if name is None else jnp.zeros_like(explained)
    return post.regression.whitened(design - explained)


@compiled
def variance_at(post: Any, new: tuple[Points, ...], name: str | None = None) -> Estimate:
    """Posterior variance of the function or a term; values only, differentiating raises.

    With its certificate, whether it converged or not.
    """
    prior = _prior_variances(post, new, name)
    op, products = _rows(post, new, name)
    root = _regressed(post, new, name)
    added = prior if root is None else prior + jnp.sum(jnp.square(root), axis=0)
    if isinstance(op, Iterative):
        return op.explained_at(*products).scaled(-1.0).shifted(added)
    return exact_estimate(added - inverse_at(op, *products, joint=False))


def _prior_variances(
    post: Any, new: tuple[Points, ...], name: str | None = None
) -> Float[Array, " m"]:
    dtype = post.operator.dtype
    total = jnp.zeros((), dtype)
    for part in parts(post.gp, name):
        prior = part.variance.astype(dtype)
        for kernel, place in zip(part.kernels, new, strict=True):
            prior = prior * kernel.variances_at(place).astype(dtype)
        total = total + prior
    return total


@compiled
def covariance_at(post: Any, new: tuple[Points, ...]) -> Float[Array, "m m"]:
    """Posterior covariance between all places; `2 m² N` operations, values only."""
    gp, dtype = post.gp, post.operator.dtype
    total = jnp.zeros((), dtype)
    for part in parts(gp, None):
        prior = part.variance.astype(dtype)
        for kernel, place in zip(part.kernels, new, strict=True):
            prior = prior * kernel.matrix_at(place, place).astype(dtype)
        total = total + prior
    op, products = _rows(post, new)
    if isinstance(op, Iterative):
        covariance = total - op.covariance_at(*products)
    else:
        covariance = total - inverse_at(op, *products, joint=True)
    root = _regressed(post, new)
    if root is not None:
        covariance = covariance + matmul(root.T, root)
    return (covariance + covariance.T) / 2


@compiled
def sample_at(
    post: Any, key: PRNGKeyArray, new: tuple[Points, ...], shape: tuple[int, ...]
) -> Float[Array, "*shape m"]:
    """Joint draws of the function."""
    mean, covariance = mean_at(post, new), covariance_at(post, new)
    # The covariance is a difference of two: its rounding is of the size of the first.
    values, vectors = jnp.linalg.eigh(covariance)
    prior = jnp.max(_prior_variances(post, new))
    slack = ROUNDINGS * mean.size * jnp.finfo(mean.dtype).eps * prior
    root = jnp.sqrt(jnp.where(values < -slack, jnp.nan, jnp.maximum(values, 0)))
    root = vectors * root[None]
    white = jax.random.normal(key, (*shape, *mean.shape), mean.dtype)
    return jnp.add(*same_rank(mean, matmul(white, root.T)))


def _rows(
    post: Any, new: tuple[Points, ...], name: str | None = None
) -> tuple[Any, list[list[Array]]]:
    """The operator to be inverted and the rows of every place on it, low-rank axes reduced."""
    gp, op = post.gp, post.operator
    if not is_thin(op):
        return op, [rows_at(gp, part, new, op.dtype) for part in parts(gp, name)]
    if name is not None:
        raise NotImplementedError(
            "The variance of a term at scattered places is not available with low-rank axes. Pass "
            "`axes=` for a grid, or leave `structure` out."
        )
    pairs = [root_rows(gp, i, place, op.dtype) for i, place in enumerate(new)]
    return reduced(op), [rows_inside(op, pairs)]
