"""Prediction on a grid, compiled: mean, variance, covariance, draws."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.covariance import PosteriorCovariance
from kronax.gp.cross import amplitude, kernel_matrix, kernel_rows, root_rows, slope_rows
from kronax.gp.gls import fitted
from kronax.gp.kernels.points import Points
from kronax.gp.means import ArrayMean
from kronax.gp.structure import low_rank_joint
from kronax.gp.templates import compiled
from kronax.linalg.diagonals import conjugated_inverse_diagonal, posterior_diagonal
from kronax.linalg.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.factors.dense import Dense
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.roots import safe_sqrt, symmetric_root
from kronax.linalg.sample import apply_roots
from kronax.linalg.sequence import in_sequence
from kronax.linalg.solve import solve_grid
from kronax.linalg.thin import is_thin, reduced, rows_inside

# New points per axis, `None` for one that stays: arrays, so that other coordinates, if as many,
# need no new compilation.
New = tuple[Points | None, ...]


def _exact_rows(post: Any, new: New, along: int | None = None) -> Kronecker:
    """`K_*` by the kernels themselves; the derivative along one axis if asked for.

    Rows of a low-rank root would be off by the root of the trace error.
    """
    gp, dtype = post.gp, post.operator.dtype
    factors: list[Any] = []
    for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True)):
        if i == along:
            factors.append(slope_rows(gp, i, axis or gp.axes[i].points(dtype), dtype))
        elif axis is None:
            factors.append(factor)
        else:
            factors.append(kernel_rows(gp, i, axis, dtype))
    return Kronecker(*factors)


def _root_pairs(post: Any, new: New) -> list[tuple[Array, Array | None]]:
    dtype = post.operator.dtype
    return [
        (factor.to_dense(), factor.thin_root())
        if axis is None
        else root_rows(post.gp, i, axis, dtype)
        for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True))
    ]


def _signal(post: Any, new: New) -> Kronecker:
    """The covariance between the new grid and the old, as the operator has it."""
    dtype = post.operator.dtype
    return Kronecker(
        *(
            factor if axis is None else root_rows(post.gp, i, axis, dtype)[0]
            for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True))
        )
    )


@compiled
def mean(post: Any, new: New) -> Array:
    """The posterior mean of the function."""
    value = post.gp.mean_on(new) + _exact_rows(post, new).mv_grid(post.weights)
    if post.regression is None:
        return value
    return value + fitted(post.regression.coefficients, post.gp.design_on(new))


@compiled
def mean_derivative(post: Any, new: New, i: int) -> Array:
    """The derivative of the mean along axis `i`."""
    gp = post.gp
    if any(isinstance(part, ArrayMean) for part in gp.mean.summands()):
        raise ValueError(
            "A mean given as an array is known on the grid only and has no derivative. Use a "
            "mean that is a function of the axes."
        )
    value = _slope(gp, gp.mean, new, i) + _exact_rows(post, new, i).mv_grid(post.weights)
    if post.regression is None:
        return value
    return value + fitted(post.regression.coefficients, _slope(gp, gp.mean.design, new, i))


def _slope(gp: Any, function: Any, new: New, i: int) -> Array:
    """The derivative of a function of the coordinates along axis `i`; it broadcasts to the grid."""
    x = gp.coordinates_on(new)

    def moved(coordinates: Array) -> Array:
        return function(*x[:i], coordinates, *x[i + 1 :]).astype(gp.dtype)

    return jax.jvp(moved, (x[i],), (jnp.ones_like(x[i]),))[1]


def _regressed(post: Any, new: New) -> Array | None:
    """`L⁻¹ (H_* − K_* S⁻¹ H)`, the root of what not knowing the coefficients adds."""
    if post.regression is None:
        return None
    explained = _exact_rows(post, new).mv_grid(post.regression.solved)
    return post.regression.whitened(post.gp.design_on(new) - explained)


@compiled
def variance(post: Any, new: New) -> Array:
    """The posterior variance of the function."""
    root = _regressed(post, new)
    added = 0.0 if root is None else jnp.sum(jnp.square(root), axis=0)
    return _variance(post, new) + added


def _variance(post: Any, new: New) -> Array:
    """That with known coefficients."""
    if not any(new):
        return posterior_diagonal(post.operator)
    op = post.operator
    prior = post.gp.variance.astype(op.dtype)
    for kernel, axis, old in zip(post.gp.kernels, new, post.gp.axes, strict=True):
        prior = prior[..., None] * kernel.variances_at(axis or old.points(op.dtype))
    pairs = _root_pairs(post, new)
    if not is_thin(op):
        return prior - conjugated_inverse_diagonal(op, [row for row, _ in pairs])
    return prior - conjugated_inverse_diagonal(reduced(op), rows_inside(op, pairs))


@compiled
def covariance(post: Any, new: New, levels: Array | None) -> PosteriorCovariance:
    """The posterior covariance as an operator."""
    dtype = post.operator.dtype
    prior = [
        factor if axis is None else Dense(kernel_matrix(post.gp, i, axis, dtype))
        for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True))
    ]
    return PosteriorCovariance(
        prior=Kronecker(*prior),
        cross=_signal(post, new),
        operator=post.operator,
        regressed=_regressed(post, new),
        variances=variance(post, new),
        noise=levels,
    )


@compiled
def sample(post: Any, key: PRNGKeyArray, new: New, shape: tuple[int, ...]) -> Array:
    """Draws of the function by Matheron's rule; coefficients are drawn first."""
    gp, op = post.gp, post.operator
    signal_key, noise_key = jax.random.split(key)
    roots = in_sequence(
        lambda i: _joint_root(gp, i, new[i], op.dtype), range(len(new)), batched=False
    )
    lead = (*shape, *post.y.shape[: post.y.ndim - len(new)])
    white = jax.random.normal(signal_key, (*lead, *(r.size for r in roots)), op.dtype)
    field = apply_roots(roots, white)
    old, ahead = field, field
    for i, (axis, before) in enumerate(zip(new, gp.axes, strict=True)):
        if axis is not None:
            dim = i - len(new)
            old = jnp.take(old, jnp.arange(before.size), axis=dim)
            ahead = jnp.take(ahead, jnp.arange(before.size, before.size + axis.size), axis=dim)
    noise = noise_draw(op, noise_key, old.shape)
    residual = post.y - gp.mean_on((None,) * len(new)) - old - noise
    if post.regression is not None:
        white = jax.random.normal(jax.random.fold_in(key, 1), (*lead, len(gp.mean.names)), op.dtype)
        coefficients = post.regression.draw(white)
        residual = residual - fitted(coefficients, gp.design_on((None,) * len(new)))
        ahead = ahead + fitted(coefficients, gp.design_on(new))
    correction = _signal(post, new).mv_grid(solve_grid(op, residual))
    return gp.mean_on(new) + ahead + correction


def _joint_root(gp: Any, i: int, new: Points | None, dtype: Any) -> SymmetricBlocks:
    """A root of the covariance of one axis over old and new coordinates together."""
    kernel, rank = gp.kernels[i], gp.structures[i].rank
    x = gp.axes[i].points(dtype)
    if rank is None:
        joint = x if new is None else x.joined(new)
        return full_block(symmetric_root(kernel_matrix(gp, i, joint, dtype)))
    root = jnp.sqrt(amplitude(gp, i, dtype)) * low_rank_joint(kernel, x, new, rank, dtype)
    return SymmetricBlocks((root,), (2,), (root.shape[-1],))


def noise_draw(op: KroneckerPlusNoise, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Noise on the grid."""
    white = jax.random.normal(key, shape, op.dtype)
    if not isinstance(op.noise, Kronecker):
        return safe_sqrt(op.noise) * white
    return apply_roots([f.root() for f in op.noise.factors], white)
