"""Prediction on a grid, compiled: mean, variance, covariance."""

from collections.abc import Sequence
from functools import partial, reduce
from math import prod
from operator import and_
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.means.gls import fitted
from kronax.gp.model.components import (
    Component,
    New,
    amplitude,
    are_exact,
    axis_with_variance,
    cross_covariance,
    cross_factor,
    kernel_matrix,
    parts,
    prior_covariance,
    prior_variances,
    root_rows,
    slope_factor,
    whole,
)
from kronax.gp.model.process import AbstractPosterior, AbstractProcess, compiled
from kronax.gp.posterior.covariance import PosteriorCovariance
from kronax.gp.posterior.prior import DRAWN_AT_ONCE, prior_fields, prior_roots
from kronax.gp.posterior.variances import exact_variance, signal_places
from kronax.linalg.arrays.fibres import shared_like, take_along
from kronax.linalg.arrays.mode_products import along, same_rank
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.dense_covariance import Cholesky
from kronax.linalg.estimates.certificates import Estimate, exact_estimate, skew_quantile
from kronax.linalg.estimates.draws import Drawn, by_draws, more_certain
from kronax.linalg.factors.dense import Dense
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.krylov.operator import Iterations
from kronax.linalg.krylov.variances import values_only
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import draw_signal

# How many plain draws are as certain as one with a twin of known variance, or more.
PLAIN = 8


def new_points(post: AbstractPosterior, axes: Any) -> New:
    """New coordinates, in the form that users give them in, as points."""
    return as_points(post, post.gp.new_axes(axes))


def as_points(post: AbstractPosterior, new: Sequence[Axis | None]) -> New:
    """New axes as points."""
    dtype = post.operator.dtype
    pairs = zip(new, post.gp.axes, strict=True)
    return tuple(None if axis is None else axis.points_among(old, dtype) for axis, old in pairs)


def with_covariates(
    post: AbstractPosterior, new: Sequence[Axis | None], covariates: Any
) -> NewPoints:
    """The same with the covariates of the mean there, where it is asked for."""
    return NewPoints(as_points(post, new), post.gp.new_covariates(covariates, new))


def cross_of(
    post: AbstractPosterior,
    part: Component,
    new: New,
    along: int | None = None,
    *,
    exact: bool = True,
) -> Kronecker:
    """`K_*` of one component; the derivative along one axis if asked for.

    By the kernels themselves if `exact`: rows of a low-rank root are off by the root of the trace
    error. Else as the operator has it.
    """
    gp, dtype = post.gp, post.operator.dtype
    if part.kernels is not gp.kernels:
        return cross_covariance(gp, part, new, dtype, along)
    factors: list[Any] = []
    for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True)):
        scale = amplitude(gp, i, dtype)
        if i == along:
            x = axis or gp.axes[i].points(dtype)
            slope = Kronecker(slope_factor(gp, gp.kernels[i], i, x, dtype))
            factors.append(slope.scaled(scale).factors[0])
        elif axis is None:
            factors.append(factor)
        elif exact or gp.structures[i].rank is None:
            cross = Kronecker(cross_factor(gp, gp.kernels[i], i, axis, dtype))
            factors.append(cross.scaled(scale).factors[0])
        else:
            factors.append(root_rows(gp, i, axis, dtype)[0])
    return Kronecker(*factors)


def explained(
    post: AbstractPosterior, new: New, name: str | None, x: Array, along: int | None = None
) -> Array:
    """`K_* x` for grid arrays `x`, of the function or of a term."""
    first, *rest = (cross_of(post, part, new, along).mv_grid(x) for part in parts(post.gp, name))
    return sum(rest, first)


@compiled
def mean(post: AbstractPosterior, new: New, name: str | None = None) -> Array:
    """The posterior mean of the function, or of the term of that name."""
    value = explained(post, new, name, post.weights)
    if name is not None:
        return value
    coefficients = None if post.regression is None else post.regression.estimates
    return with_mean(post, new, value, post.y, post.weights, coefficients)


def with_mean(
    post: AbstractPosterior,
    new: New,
    value: Array,
    y: Array,
    weights: Array,
    coefficients: Array | None,
) -> Array:
    """`value` of the function less its mean, and that mean; as `y` has it at observed cells."""
    mean = _mean_on(post.gp, new, coefficients)
    if not getattr(new, "covariates", {}):
        return at_data(post, new, jnp.add(*same_rank(mean, value)), y, weights)
    own = _mean_on(post.gp, (None,) * len(new), coefficients)  # there may be others at the cells
    less = jnp.subtract(*same_rank(y, own))
    return jnp.add(*same_rank(mean, at_data(post, new, value, less, weights)))


def mean_of_data(post: AbstractPosterior) -> Array:
    """The mean on the grid of the data, the coefficients of a marginal one estimated."""
    estimates = None if post.regression is None else post.regression.estimates
    return _mean_on(post.gp, (None,) * len(post.gp.axes), estimates)


def _mean_on(gp: AbstractProcess, new: New, coefficients: Array | None) -> Array:
    mean = gp.mean_on(new)
    if coefficients is None:
        return mean
    return jnp.add(*same_rank(mean, fitted(coefficients, gp.design_on(new))))


def at_data(post: AbstractPosterior, new: New, value: Array, y: Array, weights: Array) -> Array:
    """`value`, at observed cells by what the data are less their noise: `y − N S⁻¹ r`.

    The weights are large where the noise is small, and `K` times them loses what cancels there.
    So it is where new coordinates are those of observed cells. Traced ones may move away from
    there: only their values are these, and derivatives are of `value`.
    """
    if not decomposition_of(post.operator).is_exact:
        return value
    less, has_data = _less_noise(post.gp, y, weights)
    if not any(new) and has_data is True:
        return less
    if not any(new):
        has_data, less, value = same_rank(has_data, less, value)
        return jnp.where(has_data, less, value)
    if any(x is not None and x.is_apart for x in new):
        return value
    has_data = jnp.broadcast_to(has_data, post.gp.grid_shape)
    for i, (x, axis) in enumerate(zip(new, post.gp.axes, strict=True), -len(new)):
        if x is None:
            continue
        cell, is_old = x.found_in(axis.points(post.operator.dtype))
        less, has_data = (take_along(grid, cell, i) for grid in (less, has_data))
        has_data = has_data & along(is_old, i, len(new))
    has_data, less, value = same_rank(has_data, less, value)
    found = jnp.where(has_data, less, value)
    return found if are_known(new) else with_value(value, found)


def are_known(new: New) -> bool:
    """Whether every new axis has coordinates of the old one, and which is known."""
    return any(new) and all(x is None or x.cells is not None for x in new)


def at_data_among(
    post: AbstractPosterior, new: tuple[Points, ...], value: Array, y: Array, weights: Array
) -> Array:
    """The same at scattered places."""
    if not decomposition_of(post.operator).is_exact or any(x.is_apart for x in new):
        return value
    less, has_data = _less_noise(post.gp, y, weights)
    axes = (axis.points(post.operator.dtype) for axis in post.gp.axes)
    cells, are_old = zip(*(x.found_in(old) for x, old in zip(new, axes, strict=True)), strict=True)
    has_data = reduce(and_, are_old, jnp.broadcast_to(has_data, post.gp.grid_shape)[cells])
    has_data, less, value = same_rank(has_data, less[(..., *cells)], value)
    found = jnp.where(has_data, less, value)
    return found if are_known(new) else with_value(value, found)


def _less_noise(gp: AbstractProcess, y: Array, weights: Array) -> tuple[Array, Any]:
    """`y − N S⁻¹ r` on the grid, and which of its cells have data."""
    noise = gp.noise_model
    has_data: Any = True if gp.observed is None else jnp.asarray(gp.observed.array)
    if noise.observed is not None:
        has_data = noise.observed & has_data
    if noise.is_per_cell:  # where it is more than the prior the difference would cancel
        prior = gp.covariance(include_noise=False).diagonal()
        has_data = (noise.levels(gp.dtype) <= prior) & has_data
    return y - noise.times(weights, gp.dtype), has_data


def _regressed(post: AbstractPosterior, new: New, name: str | None) -> Array | None:
    """`L⁻¹ (H_* − K_* S⁻¹ H)`, the root of what not knowing the coefficients adds."""
    if post.regression is None:
        return None
    solved = post.regression.solved
    known = explained(post, new, name, solved)
    if name is not None:
        return post.regression.whitened(-known)
    design = post.gp.design_on(new)
    if not getattr(new, "covariates", {}):  # N S⁻¹ H at the data, which is no difference
        left = at_data(post, new, design - known, jnp.zeros_like(solved), -solved)
        return post.regression.whitened(left)
    own = post.gp.design_on((None,) * len(new))
    return post.regression.whitened(design + at_data(post, new, -known, -own, -solved))


@compiled
def variance_estimate(
    post: AbstractPosterior, new: New, name: str | None = None, levels: Array | None = None
) -> Estimate:
    """The posterior variance with its certificate, whether it converged or not; plus noise."""
    found = _variance_estimate(post, new, name)
    # Data share out what is computed from them; this is not.
    found = jax.tree.map(lambda x: shared_like(x, post.y) if x.ndim == len(new) else x, found)
    return found if levels is None else found.shifted(levels)


def _variance_estimate(post: AbstractPosterior, new: New, name: str | None) -> Estimate:
    found, added = decomposition_of(post.operator), _variance_of_coefficients(post, new, name)
    if not isinstance(found, Iterations):
        value = exact_value(post, new, name)
        value = _or_on_grid(post, new, name, value) if are_known(new) else value
        return exact_estimate(value + added)
    if not are_exact(post.gp):
        return _variance_of_terms(post, new, name, found).shifted(added)
    if name is None and not any(new):
        return found.posterior().shifted(added)
    if found.is_filtered:
        return _variance_along(post, new, name, found).shifted(added)
    (part,) = parts(post.gp, name)
    rows = [factor.to_dense() for factor in cross_of(post, part, new).factors]
    prior = prior_variances(post.gp, part, new, found.op.dtype)
    return found.explained_estimate(rows).scaled(-1.0).shifted(prior + added)


def exact_value(post: AbstractPosterior, new: New, name: str | None) -> Array:
    """By an exact decomposition, the coefficients of the mean known."""
    found = decomposition_of(post.operator)
    if isinstance(found, Cholesky):
        return _dense_variance(post, new, name, found)
    return exact_variance(post, new, name)


def _or_on_grid(post: AbstractPosterior, new: New, name: str | None, value: Array) -> Array:
    """`value`, at cells of the grid by what is known there, which loses fewer digits."""
    found, is_old = exact_value(post, (None,) * len(new), name), jnp.ones((), bool)
    for i, x in enumerate(new, -len(new)):
        if x is not None:
            assert x.cells is not None
            found = take_along(found, x.cells, i)
            is_old = is_old & along(x.cells >= 0, i, len(new))
    is_old, found, value = same_rank(is_old, found, value)
    return jnp.where(is_old, found, value)


def _variance_along(
    post: AbstractPosterior, new: New, name: str | None, found: Iterations
) -> Estimate:
    """Where iterations start from a filter: exact for the even grid, the rest by draws with twins.

    The function is drawn at new coordinates as well; of a term, what data explain of it is drawn.
    """
    (part,) = parts(post.gp, name)
    held = found.filtered()
    op = held.op
    cross = cross_of(post, part, new)
    certain = held.reference.even.variance_given(
        signal_places(post, part, new, axis_with_variance(post.gp, name))
    )
    roots = prior_roots(post, part, new) if name is None else None

    def draw(key: PRNGKeyArray, count: int) -> Drawn:
        field_key, noise_key = jax.random.split(key)
        if roots is None:
            old, ahead = draw_signal(field_key, op.kronecker, (count,)), None
        else:
            old, ahead = prior_fields(post, roots, field_key, new, (count,))
        noise = normal_numbers(noise_key, old.shape, op.dtype)
        pair = held.twins(old, noise)
        here, there = (cross.mv_grid(x) for x in (pair.weights, pair.even_weights))
        if ahead is None:
            return Drawn(there**2 - here**2, -(here**2), pair.ended)
        here, there = ahead - here, ahead - there
        return Drawn(here**2 - there**2, here**2, pair.ended)

    prior = prior_variances(post.gp, part, new, op.dtype)
    known = more_certain(certain, 0.0 if name is None else prior)
    estimate = by_draws(op, held.iteration, certain.shape, draw, known)
    return eqx.tree_at(lambda e: e.value, estimate, values_only(estimate.value))


def _variance_of_terms(
    post: AbstractPosterior, new: New, name: str | None, found: Iterations
) -> Estimate:
    """Of terms without an exact decomposition, by draws, their coefficients known.

    On the grid itself draws have twins of known variance; at new coordinates they are plain.
    """
    gp, op = post.gp, found.op
    if not any(new):
        return found.posterior(None if name is None else gp.additive.names.index(name))
    components, num = whole(gp), PLAIN * op.iteration.num_draws
    roots = [prior_roots(post, part, new) for part in components]
    wanted = [k for k, n in enumerate(gp.additive.names) if name in (None, n)]
    size = max(prod(r.size for r in one) for one in roots)
    at_once = min(num, max(1, DRAWN_AT_ONCE // size))

    def drawn(sums: Any, key: PRNGKeyArray) -> Any:
        noise_key, *keys = jax.random.split(key, len(components) + 1)
        pairs = zip(roots, keys, strict=True)
        fields = [prior_fields(post, root, own, new, (at_once,)) for root, own in pairs]
        shape = (at_once, *gp.grid_shape)
        data = gp.noise_model.draw(noise_key, shape, op.dtype)
        solved = found.weights(sum((old for old, _ in fields), data))
        draw = sum(
            fields[k][1] - cross_of(post, components[k], new).mv_grid(solved.value) for k in wanted
        )
        sums = tuple(total + jnp.sum(draw**p, 0) for total, p in zip(sums, (2, 4), strict=True))
        return sums, (solved.residual, solved.num_steps, solved.converged)

    keys = jax.random.split(jax.random.key(op.iteration.seed), -(-num // at_once))
    shape = tuple(n if x is None else x.size for n, x in zip(gp.grid_shape, new, strict=True))
    zero = jnp.zeros(shape, op.dtype)
    (squares, fourths), (residuals, steps, converged) = jax.lax.scan(drawn, (zero, zero), keys)
    count = len(keys) * at_once
    value = squares / count
    standard_error = jnp.sqrt(jnp.maximum(fourths / count - value**2, 0) / (count - 1))
    return Estimate(
        value=value,
        error=skew_quantile(count) * standard_error,
        standard_error=standard_error,
        residual=jnp.max(residuals),
        num_steps=jnp.max(steps),
        converged=jnp.all(converged),
    )


@compiled
def variance(post: AbstractPosterior, new: New, name: str | None = None) -> Array:
    """The posterior variance of the function, or of the term of that name."""
    estimate = variance_estimate(post, new, name)
    return decomposition_of(post.operator).settled(estimate, "the variances").value


def _dense_variance(post: AbstractPosterior, new: New, name: str | None, found: Cholesky) -> Array:
    """Of the function or a term where the data are one dense matrix, the coefficients known."""
    op = found.op
    if name is None and not any(new):
        return found.posterior_diagonal()
    components = parts(post.gp, name)
    prior: Any = sum(prior_variances(post.gp, part, new, op.dtype) for part in components)
    products = [cross_of(post, part, new, exact=False).factors for part in components]
    return found.variances_on(prior, *([f.to_dense() for f in factors] for factors in products))


def _variance_of_coefficients(post: AbstractPosterior, new: New, name: str | None) -> Array:
    """What not knowing the coefficients of the mean adds."""
    root = _regressed(post, new, name)
    return jnp.zeros((), post.operator.dtype) if root is None else jnp.sum(jnp.square(root), axis=0)


@partial(compiled, returns_operator=True)
def covariance(
    post: AbstractPosterior, new: New, levels: Array | None, name: str | None = None
) -> PosteriorCovariance:
    """The posterior covariance of the function or of a term, as an operator."""
    gp = post.gp
    return PosteriorCovariance(
        prior=tuple(_prior(post, part, new) for part in parts(gp, name)),
        cross=tuple(cross_of(post, part, new, exact=False) for part in parts(gp, name)),
        operator=post.operator,
        regressed=_regressed(post, new, name),
        variances=variance(post, new, name),
        noise=levels,
    )


def _prior(post: AbstractPosterior, part: Component, new: New) -> Kronecker:
    gp, dtype = post.gp, post.operator.dtype
    if part.kernels is not gp.kernels:
        return prior_covariance(gp, part, new, dtype)
    return Kronecker(
        *(
            factor if axis is None else Dense(kernel_matrix(gp, i, axis, dtype))
            for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True))
        )
    )
