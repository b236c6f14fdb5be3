"""Draws from the prior of a grid GP."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.model.components import Component, New, joint_root
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.linalg.arrays.checks import check_key, shape_of
from kronax.linalg.arrays.host import is_finite
from kronax.linalg.arrays.lapack_order import in_sequence
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.functions.sample import sample_normal
from kronax.linalg.operators.draws import apply_roots
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal, draw_signal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import KroneckerTerms

# Draws that are made together hold at most this many numbers each time.
DRAWN_AT_ONCE = 2_000_000


def prior_draws(
    gp: AbstractProcess, key: PRNGKeyArray, sample_shape: tuple[int, ...] | int, include_noise: bool
) -> Array:
    """Of the function or of noisy observations; these are NaN where the noise is infinite."""
    check_key(key)
    shape = shape_of(sample_shape)
    draws = _drawn(gp, key, shape, include_noise)
    if not is_finite(draws):
        covariance = gp.covariance(include_noise)
        if isinstance(covariance, Kronecker | KroneckerPlusNoise):
            sample_normal(key, covariance, shape)  # raises if it is to blame
    return draws


@eqx.filter_jit
def _drawn(
    gp: AbstractProcess, key: PRNGKeyArray, shape: tuple[int, ...], include_noise: bool
) -> Array:
    covariance = gp.covariance(include_noise)
    mean = gp.mean_on((None,) * len(gp.axes))
    mean = mean.reshape((1,) * (len(shape) + len(gp.axes) - mean.ndim) + mean.shape)
    if isinstance(covariance, KroneckerTerms):
        return draw_signal(key, covariance, shape) + mean
    if not isinstance(covariance, KroneckerPlusDiagonal):
        return sample_normal(key, covariance, shape) + mean
    return where(covariance.observed, covariance.draw(key, shape) + mean, jnp.nan)


def prior_roots(post: AbstractPosterior, part: Component, new: New) -> list[SymmetricBlocks]:
    """Roots of the covariances of one component over old and new coordinates, axis by axis."""
    gp, dtype = post.gp, post.operator.dtype

    def root(i: int) -> SymmetricBlocks:
        if new[i] is None and part.kernels is gp.kernels and gp.structures[i].rank is None:
            return post.operator.factors[i].root()
        scale = jnp.ones((), dtype) if i else part.variance.astype(dtype)
        return joint_root(gp, part.kernels[i], i, new[i], scale, dtype)

    return in_sequence(root, range(len(new)), batched=False)


def prior_fields(
    post: AbstractPosterior,
    roots: list[SymmetricBlocks],
    key: PRNGKeyArray,
    new: New,
    lead: tuple[int, ...],
) -> tuple[Array, Array]:
    """One component at the old and at the new coordinates, drawn together."""
    gp, dtype = post.gp, post.operator.dtype
    white = normal_numbers(key, (*lead, *(r.size for r in roots)), dtype)
    old = ahead = apply_roots(roots, white)
    for i, (axis, before) in enumerate(zip(new, gp.axes, strict=True)):
        if axis is not None:
            dim = i - len(new)
            old = jnp.take(old, jnp.arange(before.size), axis=dim)
            ahead = jnp.take(ahead, jnp.arange(before.size, before.size + axis.size), axis=dim)
    return old, ahead
