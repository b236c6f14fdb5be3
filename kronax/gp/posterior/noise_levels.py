"""The noise variances of predicted observations."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.points import Points
from kronax.gp.model.noise import AxisNoise, CellNoise, FullNoise
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.linalg.arrays.checks import array_of_reals
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.spectral.low_rank import is_diagonal


def noise_at(post: AbstractPosterior, places: tuple[Points, ...], noise: Any) -> Array:
    """The noise variances at scattered places; they broadcast to them."""
    if noise is not None:
        return _given_noise(noise, (places[0].raw.shape[0],), post.operator.dtype)
    model = post.gp.noise_term()
    if isinstance(model, Kronecker) or model.ndim:
        raise ValueError(
            "Noise that varies over the grid is not defined at scattered points. Pass `noise=` "
            "with the variance there."
        )
    return model


def noise_on(post: AbstractPosterior, new: tuple[Axis | None, ...], noise: Any) -> Array:
    """The noise variances on the grid of a prediction; they broadcast to it."""
    if noise is not None:
        shape = tuple((axis or old).size for axis, old in zip(new, post.gp.axes, strict=True))
        return _given_noise(noise, shape, post.operator.dtype)
    own = post.gp.noise
    if not isinstance(own, AxisNoise | CellNoise | FullNoise):
        return post.gp.noise_term()
    varying = own.variances if isinstance(own, AxisNoise) else (True,) * len(new)
    for i, (axis, values) in enumerate(zip(new, varying, strict=True)):
        if axis is not None and values is not None:
            name = post.gp.axis_names[i] if post.gp.axis_names else f"axis {i}"
            raise ValueError(
                f"The noise varies along {name} and is not defined at its new coordinates. "
                "Pass `noise=` with the variance there."
            )
    return _levels(post.gp, tuple(None if axis is None else axis.size for axis in new))


@eqx.filter_jit
def _levels(gp: AbstractProcess, new_sizes: tuple[int | None, ...]) -> Array:
    """The noise variances where some axes have new places, on which they do not depend."""
    model = gp.noise_term()
    if not isinstance(model, Kronecker):
        return model
    grid = jnp.ones((), model.dtype)
    for factor, size in zip(model.factors, new_sizes, strict=True):
        values = factor.diagonal() if size is None else jnp.ones(size, factor.dtype)
        grid = jnp.multiply(*same_rank(grid[..., None], values))
    return grid


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


def check_independent(model: Any, noise: Any) -> None:
    """Refuse correlated noise where only variances can be used."""
    correlated = isinstance(model, Kronecker) and not all(is_diagonal(f) for f in model.factors)
    if noise is None and correlated:
        raise ValueError(
            "The noise of this model is correlated from cell to cell, and new observations of a "
            "posterior covariance must have independent noise. Leave it out, or pass `noise=`."
        )


def noisy(draws: Array, key: PRNGKeyArray, levels: Array) -> Array:
    """Draws with independent noise added."""
    white = normal_numbers(key, draws.shape, draws.dtype)
    return draws + jnp.multiply(*same_rank(safe_sqrt(levels), white))
