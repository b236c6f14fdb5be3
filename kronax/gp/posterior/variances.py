"""Variances of a posterior on a grid: of the function, and of its terms.

They are values from sums of terms that are not negative, with the derivatives of the definition,
prior less explained.
"""

import dataclasses
from itertools import combinations_with_replacement
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.points import Points
from kronax.gp.model.components import (
    Component,
    New,
    amplitude,
    axis_with_variance,
    cross_rows,
    factor_of,
    part_of_state,
    parts,
    prior_variances,
    process_ahead,
    root_rows,
    term,
    whole,
)
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.linalg.arrays.mode_products import along, apply_along, outer, same_rank
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.decompositions.spectral import AbstractOnGrid
from kronax.linalg.factors.diagonal import Diagonal
from kronax.linalg.functions.choice import DataCovariance, decomposition_of
from kronax.linalg.gaps.masked import AbstractAtObserved
from kronax.linalg.markov.factor import MarkovPart
from kronax.linalg.markov.kalman import AbstractKalman
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import (
    AxisModes,
    Places,
    Shares,
    applied,
    axis_shares,
    lifted,
    new_shares,
    noise_shares,
    over_axes,
    swapped,
    turned_about,
    unexplained,
)
from kronax.linalg.spectral.value_and_rules import spectrum


def exact_variance(post: AbstractPosterior, new: New, name: str | None) -> Array:
    """Of the function or of a term, with an exact decomposition and known coefficients."""
    gp, op = post.gp, post.operator
    if name is None and gp.joined is None:
        if not any(new):
            return decomposition_of(op).posterior_diagonal()
        (part,) = whole(gp)
        places, found = signal_places(post, part, new), decomposition_of(op)
        ahead = found.variance_ahead(places) if isinstance(found, AbstractKalman) else None
        like = _definition(post, new, None) if ahead is None else ahead
        return with_value(like, _given(op, places))
    like = _definition(post, new, name)
    if name is None:
        return with_value(like, _with_joined(post, new) if any(new) else _joined_at_data(post))
    part = term(gp, name)
    if name not in gp.additive.joined:
        places = signal_places(post, part, new, axis_with_variance(gp, name))
        return with_value(like, _given(op, places))
    # The term stands where the noise does: the roles change.
    return with_value(like, _given(turned_about(post.on_grid), _joined_places(post, part, new)))


def _given(op: DataCovariance, places: list[Places]) -> Array:
    found = decomposition_of(op)
    assert isinstance(found, AbstractOnGrid | AbstractAtObserved | AbstractKalman)
    return found.variance_given(places)


def root_pairs(post: AbstractPosterior, new: New) -> list[tuple[Array, Array | None]]:
    """Per axis the covariances of new coordinates with the old, and the rows of a thin root."""
    dtype = post.operator.dtype
    return [
        (factor.to_dense(), factor.thin_root())
        if axis is None
        else root_rows(post.gp, i, axis, dtype)
        for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True))
    ]


def _definition(post: AbstractPosterior, new: New, name: str | None) -> Array:
    """Prior less explained, which has the derivatives."""
    gp, op = post.gp, post.operator
    if name is None and not any(new):
        # At the data the function is these less the noise, and has the variance of that.
        levels = gp.noise_model.levels(gp.dtype)
        nothing: list[Array | None] = [None] * len(new)
        return levels - jnp.square(levels) * decomposition_of(op).explained(nothing)
    components = parts(gp, name)
    total = jnp.zeros((), op.dtype)
    for part in components:
        total = total + prior_variances(gp, part, new, op.dtype)
    if name is None and gp.joined is None:
        return total - decomposition_of(op).explained_by_roots(root_pairs(post, new))
    rows = [cross_rows(gp, part, new, op.dtype) for part in components]
    found = decomposition_of(op)
    for a, b in combinations_with_replacement(range(len(components)), 2):
        scale = components[a].variance * components[b].variance * (1 if a == b else 2)
        others = None if a == b else rows[b]
        total = total - scale.astype(op.dtype) * found.explained(rows[a], others)
    return total


def signal_places(
    post: AbstractPosterior, part: Component, new: New, scaled: int = 0
) -> list[Places]:
    """What is known of new coordinates, of a part of the signal; its variance goes to one axis."""
    gp, op = post.gp, post.operator
    by_filter = decomposition_of(op).is_filtered
    places = []
    for i, (kernel, x, own) in enumerate(zip(part.kernels, new, op.factors, strict=True)):
        scale = part.variance.astype(op.dtype) if i == scaled else jnp.ones((), op.dtype)
        old = gp.axes[i].points(op.dtype)
        prior = scale * kernel.variances_at(old if x is None else x).astype(op.dtype)
        is_own = kernel is gp.kernels[i]
        if x is None and is_own:
            places.append(Places(None, None if own.thin_root() is None else prior))
        elif is_own:
            assert x is not None
            process = process_ahead(gp, kernel, i, x, op.dtype) if by_filter else None
            rows: Any
            if process is not None:
                rows = process.scaled(amplitude(gp, i, op.dtype))
            else:
                rows = root_rows(gp, i, x, op.dtype)[0]
            places.append(Places(rows, prior))
        elif by_filter and (rows := _part_of_process(gp, kernel, i, x, op.dtype)) is not None:
            places.append(Places(rows, prior))
        elif x is None:
            places.append(Places(scale * factor_of(gp, kernel, i, op.dtype).to_dense(), prior))
        else:
            rows = kernel.matrix_at(x, old).astype(op.dtype)
            places.append(Places(scale * rows, prior))
    return places


def _part_of_process(
    gp: AbstractProcess, kernel: Kernel, i: int, x: Points | None, dtype: Any
) -> MarkovPart | None:
    """A term as a part of the state along a Markov axis, at its places or at new ones."""
    weights = part_of_state(gp, kernel, i, x is not None)
    if weights is None and x is None:
        # What is white has a state beside places that may be the same: those of the axis again.
        x, weights = gp.axes[i].points(dtype), part_of_state(gp, kernel, i, True)
    if weights is None:
        return None
    ahead = None if x is None else process_ahead(gp, gp.kernels[i], i, x, dtype)
    return MarkovPart(weights, ahead)


def _joined_places(post: AbstractPosterior, part: Component, new: New) -> list[Places]:
    """The same of terms that are added to the noise: white on every axis but one."""
    gp, dtype = post.gp, post.operator.dtype
    places = []
    for i, (kernel, axis, row, x) in enumerate(
        zip(part.kernels, gp.axes, cross_rows(gp, part, new, dtype), new, strict=True)
    ):
        if i != gp.additive.joined_axis and row is None:
            places.append(Places(None))
            continue
        scale = part.variance.astype(dtype) if i == gp.additive.joined_axis else 1
        row = jnp.eye(axis.size, dtype=dtype) if row is None else row
        prior = kernel.variances_at(axis.points(dtype) if x is None else x).astype(dtype)
        places.append(Places(scale * row, scale * prior))
    return places


def _joined_at_data(post: AbstractPosterior) -> Array:
    """Of a function of the signal and terms `B` beside the noise `N`, at the data.

    It is `N − N S⁻¹ N`. With `T = B + N = V diag(μ) Vᵀ` that is `N − N T⁻¹ N`, the variance of `B`
    alone given noisy data, and `N W diag(λ / (μ D)) Wᵀ N`.
    """
    gp, op = lax.stop_gradient((post.gp, post.on_grid))
    i = gp.additive.joined_axis
    levels = jnp.broadcast_to(gp.noise_model.along(i, gp.dtype), op.grid_shape[i : i + 1])
    assert gp.joined is not None
    added = factor_of(gp, gp.joined, i, op.dtype)
    one_axis = KroneckerPlusNoise(Kronecker(added), Kronecker(Diagonal(levels)))
    alone = decomposition_of(one_axis).posterior_diagonal()

    def one(axes: list[AxisModes]) -> Array:
        bases = [a.basis for a in axes]
        w = [b.matrix() for b in bases]
        # Along the axis of the terms, `μ` is never less than what the noise alone has of it.
        least = jnp.sum(levels[:, None] * jnp.square(w[i]), axis=0)
        values = jnp.maximum(bases[i].noise_values, least)
        bases[i] = dataclasses.replace(bases[i], noise_values=values)
        x = outer([b.values for b in bases]) / spectrum(tuple(bases))
        x = x / outer([b.noise_values for b in bases])
        for j, matrix in enumerate(w):
            x = apply_along(jnp.square(matrix), x, j - len(w))
        return x

    axis = i - len(op.grid_shape)
    rest = over_axes(op, one)
    squares = along(jnp.square(levels), axis, rest.ndim)
    return along(alone, axis, rest.ndim) + squares * rest


def _with_joined(post: AbstractPosterior, new: New) -> Array:
    """Of a function of the signal and terms beside the noise, at new coordinates.

    The terms are white on all axes but one: where a coordinate of another axis is new, they are
    known by nothing. Elsewhere both covariances with the data are the same along the other axes,
    and what the two explain together is `a²/λ + b²/μ − (a/λ − b/μ)² λ μ / D`.
    """
    gp, op = post.gp, post.on_grid
    signal, beside = whole(gp)
    i = gp.additive.joined_axis
    joined = _joined_places(post, beside, new)

    def one(axes: list[AxisModes], places: list[Places], joined: list[Places]) -> Array:
        raised = [a if p.rows is None else lifted(a) for a, p in zip(axes, places, strict=True)]
        raised[i] = swapped(lifted(swapped(raised[i])))
        shares = list(map(axis_shares, raised, axes, places))
        left, weights = unexplained(shares), noise_shares(raised)
        basis = raised[i].basis
        b = basis.right(joined[i].rows)
        rows = places[i].rows
        signal, noise = basis.values[None], basis.noise_values[None]
        ratio = raised[i].dual.matrix() if rows is None else basis.right(rows) / signal
        square = jnp.square(ratio - b / noise) * signal * noise
        prior = joined[i].prior
        assert prior is not None
        rest = new_shares(b, prior, basis.noise_values).rest
        common, known = list(shares), jnp.ones((), op.dtype)
        for j, (place, axis) in enumerate(zip(joined, raised, strict=True)):
            known = known[..., None]
            if j == i:
                common[j] = Shares(square, rest)
            elif place.rows is not None:
                turned = jnp.square(axis.right(place.rows)) * axis.basis.values[None]
                common[j] = Shares(turned, jnp.zeros((), op.dtype))
                is_old = jnp.any(place.rows != 0, axis=-1).astype(op.dtype)
                known = jnp.multiply(*same_rank(known, is_old))
        d = spectrum(tuple(a.basis for a in raised))
        at = i - len(axes), len(axes)
        together = left + along(rest, *at) + applied(common, 1 / d)
        alone = left + applied(shares, weights) + along(prior, *at)
        return jnp.where(known > 0, together, alone)

    return over_axes(op, one, signal_places(post, signal, new), joined)
