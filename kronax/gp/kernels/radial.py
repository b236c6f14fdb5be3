"""Distances in lengthscales, and functions of their squares that keep their digits.

Automatic differentiation of `(1 + s) exp(−s)` takes the difference of two numbers near one where
`s` is small: of the derivative `−s exp(−s)` nothing is left once `s` is below the machine
precision. In `u = s²` the derivatives of these functions are simple, and of one another; they are
rules here, right at every order. Far away everything is zero and not zero times infinity.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import RulePrimitive

# Where a distance in lengthscales has no covariance left in any precision: exp(−10 000) is zero.
FAR = 1e4
# Below this `v` a series gives what the derivative of `α log(1 + v)` in `α` leaves.
SMALL = 0.05
TERMS = 14


def mismatch(what: str, got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What to say of a parameter that is not one number, or one per dimension."""
    places = f"places in {shape[0]} dimensions" if shape else "coordinates (n,)"
    return (
        f"The {what} must be one number, or one per dimension of coordinates (n, p); got "
        f"shape {got} for {places}."
    )


def ratio(x: Array, z: Array, unit: Array, what: str) -> Array:
    """`(x − z) / unit`; the unit is a number, or one per dimension."""
    if jnp.shape(unit) not in ((), jnp.shape(x)):
        raise ValueError(mismatch(what, jnp.shape(unit), jnp.shape(x)))
    return (x - z) / unit


def bounded(x: Array, z: Array, unit: Array, most: float = FAR) -> Array:
    """The same for a lengthscale, constant beyond `most`: nothing overflows, derivatives included.

    The difference is set to zero there before it is divided: in a derivative a number that
    overflows would meet a zero.
    """
    ratio(x, z, unit, "lengthscale")
    difference = x - z
    far = jnp.abs(difference) > most * jnp.abs(unit)
    return where(far, most, where(far, 0, difference) / unit)


def squared_distance(x: Array, z: Array, lengthscale: Array) -> Array:
    """`Σ ((x − z) / ℓ)²`, each term at most `FAR²`; `ℓ` is a number, or one per dimension."""
    return jnp.sum(jnp.square(bounded(x, z, lengthscale)))


def distance(x: Array, z: Array, lengthscale: Array) -> Array:
    """The Euclidean distance in lengthscales, with a finite derivative where points coincide."""
    r = bounded(x, z, lengthscale)
    if jnp.ndim(r) == 0:
        return jnp.abs(r)
    # In units of the largest, so that small ones keep their direction where squares underflow.
    largest = lax.stop_gradient(jnp.max(jnp.abs(r)))
    apart = largest != 0
    unit = jnp.where(apart, largest, 1)
    length = unit * jnp.sqrt(jnp.sum(jnp.square(jnp.where(apart, r, 1) / unit)))
    return jnp.where(apart, length, 0)


def rational_quadratic(x: Array, z: Array, lengthscale: Array, alpha: Array) -> Array:
    """`(1 + r²/(2α))^(−α)`, whose tail has no end: where `r²` might overflow, by logarithms."""
    largest = float(jnp.finfo(jnp.result_type(lengthscale)).max)
    r = jnp.atleast_1d(bounded(x, z, lengthscale, largest / 4))
    far = jnp.max(jnp.abs(r)) > largest**0.125
    near = _rational((jnp.sum(jnp.square(jnp.where(far, 0, r))), alpha))
    away = jnp.where(far, r, 1)
    scale = lax.stop_gradient(jnp.max(jnp.abs(away)))
    log_square = 2 * jnp.log(scale) + jnp.log(jnp.sum(jnp.square(away / scale)))
    # Here the one beside `r²/(2α)` is nothing.
    return jnp.exp(jnp.where(far, -alpha * (log_square - jnp.log(2 * alpha)), near))


def matern12(u: Array) -> Array:
    """`exp(−s)` for `u = s²`; its derivative at zero, which multiplies zeros, is zero."""
    return jnp.exp(-_root(u))


def _root(u: Array) -> Array:
    apart = u > 0
    return where(apart, jnp.sqrt(where(apart, u, 1)), where(u < 0, jnp.nan, 0 * u))


def _matern32(u: Array, _: Any) -> Array:
    s = _root(u)
    return (1 + s) * jnp.exp(-s)


def _matern52(u: Array, _: Any) -> Array:
    s = _root(u)
    return (1 + s + u / 3) * jnp.exp(-s)


# `(1 + s) exp(−s)` and `(1 + s + s²/3) exp(−s)` for `u = s²`.
matern32 = RulePrimitive("kronax_matern32", _matern32, lambda u, _, t: -matern12(u) / 2 * t[0])
matern52 = RulePrimitive("kronax_matern52", _matern52, lambda u, _, t: -matern32(u) / 6 * t[0])


def _rational_value(operands: Any, _: Any) -> Array:
    square, alpha = operands
    return -alpha * jnp.log1p(square / (2 * alpha))


def _rational_derivative(operands: Any, _: Any, tangents: Any) -> Array:
    square, alpha = operands
    v = square / (2 * alpha)
    slopes = (-0.5 / (1 + v), -_left(v))
    moving = (slope * t for slope, t in zip(slopes, tangents, strict=True) if t is not None)
    return sum(moving, jnp.zeros_like(v))


def _left(v: Array) -> Array:
    """`log(1 + v) − v/(1 + v)`, which begins with `v²/2`."""
    small = v < SMALL
    inside, outside = jnp.where(small, v, 0), jnp.where(small, 1, v)
    series = jnp.zeros_like(v)
    for k in range(TERMS, 1, -1):
        series = (k - 1) / k * (-1) ** k + series * inside
    series = series * inside * inside
    return jnp.where(small, series, jnp.log1p(outside) - outside / (1 + outside))


_rational = RulePrimitive("kronax_rational", _rational_value, _rational_derivative)
