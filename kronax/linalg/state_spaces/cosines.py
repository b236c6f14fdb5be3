"""The periodic kernel as a sum of waves: `exp((cos θ − 1) κ) = Σ_j w_j cos(jθ)`, `w_j ≥ 0`.

The weights are `w_0 = exp(−κ) I_0(κ)` and `w_j = 2 exp(−κ) I_j(κ)`, of sum one. Cut off after some
terms, the kernel is wrong by at most the sum of the weights left out, which is what it loses of its
variance.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array
from scipy.special import ive

from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import RulePrimitive
from kronax.linalg.state_spaces.state_space import StateSpace

# Ratios of Bessel functions are found downwards from so many orders above the last one wanted.
_BEYOND = 24
# No series is longer than this one.
_MOST_TERMS = 1000
# What the waves left out may have of the variance, in units of its rounding.
_ROUNDINGS = 1e3


def cosine_series(cycles: Array, kappa: Array, num_terms: int) -> StateSpace:
    """The periodic process; NaN if so many terms leave out more than rounding, or nearly that."""
    kept, left = weights(kappa, num_terms)
    # A factor, so that the derivative is NaN as well.
    kept = kept * where(left <= _tolerance(kappa.dtype), jnp.ones_like(left), jnp.nan)
    lead = (1,) * cycles.ndim
    orders = np.arange(1, num_terms + 1, dtype=cycles.dtype).reshape(*lead, num_terms)
    turns = cycles[..., None] * orders
    angle = 2 * np.pi * (turns - jnp.round(turns))  # a large angle keeps its digits
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    # The sum, then a value and a slope of every wave: written down at once, so that the program
    # does not grow with the number of waves.
    size = 2 * num_terms + 1
    first, eye = (np.eye(size, k, dtype=cycles.dtype).reshape(*lead, size, k) for k in (1, size))
    swap = np.zeros((size, size), cycles.dtype)
    swap[range(1, size, 2), range(2, size, 2)], swap[range(2, size, 2), range(1, size, 2)] = 1, -1
    steps = _pairs(1, cosine, cosine)[..., None] * eye
    steps = steps + _pairs(0, sine, sine)[..., None] * swap.reshape(eye.shape)
    steps = steps + first * _pairs(0, cosine - 1, sine)[..., None, :]
    waves = kept[1:]
    across = first.reshape(size, 1) * _pairs(0, waves, 0 * waves)[None]
    initial = jnp.diag(_pairs(jnp.sum(kept), waves, waves)) + across + across.T
    return StateSpace(steps, jnp.zeros_like(steps), initial, regular=cycles.ndim == 0)


def _pairs(first: Any, a: Array, b: Array) -> Array:
    """`first, a_1, b_1, a_2, b_2, …` along the last axis."""
    rest = jnp.stack([a, b], axis=-1).reshape(*a.shape[:-1], 2 * a.shape[-1])
    return jnp.concatenate([jnp.full_like(rest[..., :1], first), rest], axis=-1)


def _tolerance(dtype: Any) -> float:
    return _ROUNDINGS * float(jnp.finfo(dtype).eps)


def weights(kappa: Array, num_terms: int) -> tuple[Array, Array]:
    """The weights `w_0 … w_J`, and a bound on the sum of all others.

    The ratios of two that follow each other fall.
    """
    found = _weights(kappa, last=num_terms + _BEYOND)
    first, second = found[num_terms + 1], found[num_terms + 2]
    ratio = second / jnp.where(first > 0, first, 1)
    return found[: num_terms + 1], first / (1 - ratio)


def _weights_value(kappa: Array, _: Any, last: int) -> Array:
    """`w_0 … w_last` by the ratios `I_j / I_{j−1} = κ / (2j + κ I_{j+1} / I_j)`.

    They have no differences and do not overflow; an error in the first one dies out on the way
    down.
    """
    beyond = kappa / (last + 1 + jnp.sqrt((last + 1.0) ** 2 + kappa**2))

    def body(ratio: Array, j: Array) -> tuple[Array, Array]:
        ratio = kappa / (2 * j + kappa * ratio)
        return ratio, ratio

    orders = jnp.arange(1, last + 1, dtype=kappa.dtype)
    relative = 2 * jnp.cumprod(lax.scan(body, beyond, orders, reverse=True)[1])
    total = 1 + jnp.sum(relative)
    return jnp.concatenate([jnp.ones(1, kappa.dtype), relative]) / total


def _weights_slope(kappa: Array, _: Any, tangents: list, last: int) -> Array:
    """`w_j' = (w_{j−1} + w_{j+1}) / 2 − w_j`, with twice `w_0` in place of it for `j = 1`."""
    found = _weights(kappa, last=last)
    before = jnp.concatenate([jnp.zeros(1, found.dtype), found[:-1]]).at[1].multiply(2)
    after = jnp.concatenate([found[1:], jnp.zeros(1, found.dtype)])
    return tangents[0] * ((before + after) / 2 - found)


_weights = RulePrimitive("kronax_cosine_weights", _weights_value, _weights_slope)


def enough_terms(kappa: float, dtype: Any) -> int:
    """How many terms leave out no more than `cosine_series` bears; at most `_MOST_TERMS`."""
    left = 2 * ive(np.arange(_MOST_TERMS + 2), kappa)
    sums = np.cumsum(left[::-1])[::-1]
    return int(np.argmax(np.append(sums[1:] <= _tolerance(dtype), True)))
