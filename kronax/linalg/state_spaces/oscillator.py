"""The damped oscillator driven by white noise, at every damping.

In units of the undamped frequency a step `s = ω₀ · gap` has no units. With `b = 1 / (2Q)`,
`a = b s` and `z = s² (b² − 1)`, where `C = cosh √z` and `S = sinh √z / √z` are smooth across
`z = 0`, the state `(f, f'/ω₀)` of variance one has

    A = exp(−a) [[C + aS, sS], [−sS, C − aS]],   Q = 1 − A Aᵀ,   k(s) = A₀₀
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.precision import where
from kronax.linalg.state_spaces.state_space import StateSpace

# So far away a phase has no digits left in float32, and few in float64.
FURTHEST = 1e8
# Of the series of `C` and `S` below `|z| = 1`.
_TERMS = 11
# More damping than this, and the two decays are apart enough to be told by their exponentials.
_APART = 1.5
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(9)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def oscillation(s: Array, quality: Array) -> Array:
    """The correlation at distances `s ≥ 0`."""
    damping = 1 / (2 * quality)
    cosine, sine = _damped(s, damping)
    return cosine + damping * s * sine


def oscillator(s: Array, quality: Array) -> StateSpace:
    """The process at steps `s`, `(n - 1,)` or one for all."""
    damping = 1 / (2 * quality)
    a = damping * s
    cosine, sine = _damped(s, damping)
    above, below = cosine + a * sine, cosine - a * sine
    # With `C² = 1 + z S²` what is left of `1 − A Aᵀ` is a difference in one entry only.
    forgotten = -jnp.expm1(-2 * a)
    across = 2 * a * s * sine**2
    last = forgotten + 2 * a * sine * below
    first = _first_innovation(s, damping, forgotten - 2 * a * sine * above)
    return StateSpace(
        _matrix(above, s * sine, -s * sine, below),
        _matrix(first, across, across, last),
        jnp.eye(2, dtype=s.dtype),
        regular=jnp.ndim(s) == 0,
    )


def _matrix(a: Array, b: Array, c: Array, d: Array) -> Array:
    return jnp.stack([jnp.stack([a, b], axis=-1), jnp.stack([c, d], axis=-1)], axis=-2)


def _damped(s: Array, damping: Array) -> tuple[Array, Array]:
    """`exp(−a) C` and `exp(−a) S`."""
    a, z = damping * s, (damping**2 - 1) * s**2
    near, over = jnp.abs(z) < 1, z > 0
    small = jnp.where(near, z, 0)
    root = jnp.sqrt(jnp.where(near, 1, jnp.abs(z)))
    decay = jnp.exp(-a)
    # `a − √z` by its inverse, so that the slow one of two decays keeps its digits.
    slow = jnp.exp(-(s**2) / (a + root))
    fast = jnp.exp(-a - root)
    cosine = jnp.where(over, (slow + fast) / 2, decay * jnp.cos(root))
    sine = jnp.where(over, (slow - fast) / 2, decay * jnp.sin(root)) / root
    return (
        jnp.where(near, decay * _series(small, 0), cosine),
        jnp.where(near, decay * _series(small, 1), sine),
    )


def _series(z: Array, odd: int) -> Array:
    """`cosh √z`, or `sinh √z / √z`, for `|z| < 1`."""
    total = jnp.ones_like(z)
    for j in range(_TERMS, 0, -1):
        total = 1 + total * z / ((2 * j + odd) * (2 * j + odd - 1))
    return total


def _first_innovation(s: Array, damping: Array, difference: Array) -> Array:
    """`Q₀₀ = 4b ∫₀^s (u S exp(−bu))² du`, which is of order `s³` at small steps.

    There by quadrature, of positive terms; with much damping from the exponentials of its two
    decays; else as the difference that it is.
    """
    wide = s * jnp.maximum(1, damping)
    small, apart = wide < 1, damping > _APART
    inside = jnp.where(small, s, 0)
    nodes, weights = (
        jnp.asarray(v.reshape((1,) * s.ndim + v.shape), s.dtype) for v in (_NODES, _WEIGHTS)
    )
    u = inside[..., None] * nodes
    values = u * jnp.exp(-damping * u) * _series((damping**2 - 1) * u**2, 1)
    near = 4 * damping * inside * jnp.sum(weights * values**2, axis=-1)
    b = where(apart, damping, 2.0)
    beyond = jnp.where(small, 1, s)
    width = jnp.sqrt(b**2 - 1)
    slow, fast = 1 / (b + width), b + width
    both = -jnp.expm1(-2 * slow * beyond) / slow - jnp.expm1(-2 * fast * beyond) / fast
    both = both / 2 + jnp.expm1(-2 * b * beyond) / b
    return jnp.where(small, near, jnp.where(apart, b / width**2 * both, difference))
