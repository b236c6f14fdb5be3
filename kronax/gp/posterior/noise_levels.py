"""The noise variances of predicted observations."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.points import Points
from kronax.gp.labelled.data_arrays import by_axis
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.gp.noise.abstract import AbstractNoise
from kronax.linalg.arrays.checks import array_of_reals
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.square_roots import safe_sqrt


def noise_at(post: AbstractPosterior, places: tuple[Points, ...], noise: Any) -> Array:
    """The noise variances at scattered places; they broadcast to them."""
    if noise is not None:
        return _given_noise(noise, (places[0].raw.shape[0],), post.operator.dtype)
    if not post.gp.noise_model.is_white:
        raise ValueError(
            "Noise that varies over the grid is not defined at scattered points. Pass `noise=` "
            "with the variance there."
        )
    return post.gp.noise_model.levels(post.gp.dtype)


def noise_on(post: AbstractPosterior, new: tuple[Axis | None, ...], noise: Any) -> Array:
    """The noise variances on the grid of a prediction; they broadcast to it."""
    if noise is not None:
        axes = [axis or old for axis, old in zip(new, post.gp.axes, strict=True)]
        noise = by_axis(noise, axes, post.gp.axis_names, "The noise")
        return _given_noise(noise, tuple(axis.size for axis in axes), post.operator.dtype)
    own, dtype = post.gp.noise_model, post.gp.dtype
    check_defined(post.gp, new)
    if own.is_white:  # nothing to compile
        return own.levels(dtype)
    return _levels(own, tuple(None if axis is None else axis.size for axis in new), dtype)


@eqx.filter_jit
def _levels(noise: AbstractNoise, new_sizes: tuple[int | None, ...], dtype: Any) -> Array:
    return noise.on(new_sizes, dtype)


def check_defined(gp: AbstractProcess, new: Sequence[Axis | None]) -> None:
    """Refuse new coordinates of an axis along which the noise varies."""
    for i, axis in enumerate(new):
        if axis is not None and gp.noise_model.varies_along(i):
            name = gp.axis_names[i] if gp.axis_names else f"axis {i}"
            raise ValueError(
                f"The noise varies along {name} and is not defined at its new coordinates. "
                "Pass `noise=` with the variance there."
            )


def check_used(noise: Any, include_noise: bool) -> None:
    """Refuse a noise that nothing uses."""
    if noise is not None and not include_noise:
        raise TypeError(
            f"`noise` is used with include_noise=True only; got noise={noise!r} without it."
        )


def _given_noise(noise: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    value = array_of_reals(noise, "noise")
    if not isinstance(value, jax.core.Tracer) and bool((np.asarray(value) < 0).any()):
        raise ValueError(f"The noise variance must not be negative; got {value}.")
    if value.ndim > len(shape) or any(
        m not in (1, n) for m, n in zip(value.shape[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(
            "The noise must be one variance, or variances that broadcast to the grid of the "
            f"prediction, {shape}; got shape {value.shape}."
        )
    return value.astype(dtype)


def check_independent(gp: AbstractProcess, noise: Any) -> None:
    """Refuse correlated noise where only variances can be used."""
    if noise is None and not gp.noise_model.is_independent:
        raise ValueError(
            "The noise of this model is correlated from cell to cell, and new observations of a "
            "posterior covariance must have independent noise. Leave it out, or pass `noise=`."
        )


def noisy(draws: Array, key: PRNGKeyArray, levels: Array) -> Array:
    """Draws with independent noise added."""
    white = normal_numbers(key, draws.shape, draws.dtype)
    return draws + jnp.multiply(*same_rank(safe_sqrt(levels), white))
