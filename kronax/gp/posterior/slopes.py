"""Derivatives of a posterior mean along an axis, on a grid and at scattered places."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.kernel_gradients import check_slope as check_kernel_slope
from kronax.gp.axes.labels import Labels
from kronax.gp.criticism.held_out import axis_number
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.means.gls import fitted
from kronax.gp.means.means import values_at
from kronax.gp.means.new_covariates import check_slope
from kronax.gp.model.components import New, parts, rows_at, slope_matrix
from kronax.gp.model.process import AbstractPosterior, AbstractProcess, compiled
from kronax.gp.posterior.predict import as_points, explained
from kronax.gp.posterior.scattered import (
    at_places,
    design_of_place,
    mean_of_place,
    points_of,
    scattered_axes,
)
from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.spectral.khatri_rao import mv_rows


def slope_of_mean(
    post: AbstractPosterior,
    axis: int | str,
    axes: Any,
    points: Any,
    name: str | None = None,
    covariates: Any = None,
) -> Float[Array, "..."]:
    """The derivative of the mean of the function, or of the term of that name, along an axis."""
    gp = post.gp
    new: Any = gp.new_axes(axes) if points is None else scattered_axes(gp, points, axes)
    i = axis_with_slope(gp, axis, new, name)
    if name is not None:
        if points is None:
            return mean_derivative(post, as_points(post, new), i, name)
        return mean_derivative_at(post, points_of(gp, new), i, name)
    known = gp.new_covariates(covariates, new, points is not None)
    check_slope(gp.mean, known, i, axis)
    if points is None:
        return mean_derivative(post, NewPoints(as_points(post, new), known), i)
    return mean_derivative_at(post, NewPoints(points_of(gp, new), known), i)


def axis_with_slope(
    gp: AbstractProcess, axis: int | str, new: tuple[Axis | None, ...], name: str | None = None
) -> int:
    """The number of an axis along which the mean, or that of a term, has a derivative at `new`."""
    i = axis_number(gp, axis)
    along = gp.axes[i]
    if along.num_dimensions is not None or isinstance(along.coding, Labels):
        what = "labels" if along.coding is not None else "places in several dimensions"
        raise ValueError(
            f"The mean has a derivative along axes with coordinates (n,); {axis!r} has {what}."
        )
    if gp.joined is not None and gp.additive.joined_axis != i:
        rough = [n for n in gp.additive.joined if name in (None, n)]
        if rough:
            raise ValueError(
                f"The mean has no derivative along {axis!r}, on which {', '.join(map(repr, rough))}"
                " is white. Take that of the other terms: post.terms[name].mean_derivative."
            )
    check_kernel_slope([part.kernels[i] for part in parts(gp, name)], along, new[i], repr(axis))
    return i


@compiled
def mean_derivative(post: AbstractPosterior, new: New, i: int, name: str | None = None) -> Array:
    """The derivative of the mean along axis `i`."""
    gp = post.gp
    value = explained(post, new, name, post.weights, i)
    if name is not None:
        return value
    mean: Any = gp.mean_ahead(new)
    slope = _slope(gp, lambda *x: values_at(mean, x), new, i)
    value = jnp.add(*same_rank(slope, value))
    if post.regression is None:
        return value
    return value + fitted(post.regression.estimates, _slope(gp, mean.design_at, new, i))


@compiled
def mean_derivative_at(
    post: AbstractPosterior, new: tuple[Points, ...], i: int, name: str | None = None
) -> Float[Array, "*batch m"]:
    """The same at scattered places."""
    gp, dtype = post.gp, post.operator.dtype
    value = jnp.zeros((), dtype)
    for part in parts(gp, name):
        rows = rows_at(gp, part, new, dtype)
        scale = part.variance.astype(dtype) if i == 0 else 1
        rows[i] = scale * slope_matrix(part.kernels[i], gp.axes[i], new[i], dtype)
        value = jnp.add(*same_rank(value, mv_rows(rows, post.weights)))
    if name is not None:
        return value
    value = jnp.add(*same_rank(_slope_at(mean_of_place(gp), new, i), value))
    if post.regression is None:
        return value
    return value + matmul(post.regression.estimates, _slope_at(design_of_place(gp), new, i))


def _slope(gp: AbstractProcess, function: Any, new: New, i: int) -> Array:
    """The derivative of a function of the coordinates along axis `i`; it broadcasts to the grid."""
    x = gp.points_on(new)

    def moved(points: Points) -> Array:
        return function(*x[:i], points, *x[i + 1 :]).astype(gp.dtype)

    return _along(moved, x[i])


def _slope_at(function: Callable[..., Array], new: tuple[Points, ...], i: int) -> Array:
    """The same of a function of one place, for many of them, which come last."""

    def one(covariates: Any, *place: Points) -> Array:
        return _along(lambda x: function(covariates, *place[:i], x, *place[i + 1 :]), place[i])

    return at_places(one, new)


def _along(function: Callable[[Points], Array], x: Points) -> Array:
    # Means do not see places on a circle.
    places = None if x.places is None else jnp.zeros_like(x.places)
    ones = jnp.ones_like(x.raw)
    return jax.jvp(function, (x.alone,), (Points(ones, ones, places, x.origin),))[1]
