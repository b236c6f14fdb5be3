"""Matérn processes of order 1/2, 3/2 and 5/2 as recursions of a value and its derivatives.

In units of `c = √(2ν) / ℓ` the state `(f, f'/c, f''/c²)` and a step `τ = c · gap` have no units,
and all entries are of order one for every lengthscale. `F` drives the state and `a(s)` is the last
column of `exp(F s)`:

    A(τ) = exp(F τ),   F = N − I,   N nilpotent,   Q(τ) = q ∫₀^τ a(s) a(s)ᵀ ds
"""

from math import factorial, sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import RulePrimitive
from kronax.linalg.state_spaces.state_space import StateSpace

# By the length of the state, `ν + 1/2`.
RATES = {1: 1.0, 2: sqrt(3.0), 3: sqrt(5.0)}
_NILPOTENT = {
    1: np.zeros((1, 1)),
    2: np.array([[1.0, 1.0], [-1.0, -1.0]]),
    3: np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [-1.0, -3.0, -2.0]]),
}
_STATIONARY = {
    1: np.eye(1),
    2: np.eye(2),
    3: np.array([[1, 0, -1 / 3], [0, 1 / 3, 0], [-1 / 3, 0, 1]]),
}
_DIFFUSION = {1: 2.0, 2: 4.0, 3: 16 / 3}
# The polynomials of `exp(s) a(s)`, lowest power first.
_COLUMNS = {1: ([1.0],), 2: ([0.0, 1.0], [1.0, -1.0]), 3: ([0, 0, 0.5], [0, 1, -0.5], [1, -2, 0.5])}
# Below this `2τ` a series of positive terms gives what the closed form would cancel; so many terms
# of it are enough in float64.
_SERIES = 6.0
_TERMS = 38


def matern(order: int, tau: Array) -> StateSpace:
    """The process of smoothness `order − 1/2` at steps `tau`, `(n - 1,)` or one for all."""
    initial = jnp.asarray(_STATIONARY[order], tau.dtype)
    transitions, innovations = transition(tau, order=order), innovation(tau, order=order)
    return StateSpace(transitions, innovations, initial, regular=jnp.ndim(tau) == 0)


def _transition(tau: Array, _: Any, order: int) -> Array:
    power, total = np.eye(order), jnp.zeros((*tau.shape, order, order), tau.dtype)
    for k in range(order):
        total = total + _along(tau**k, power / factorial(k))
        power = power @ _NILPOTENT[order]
    return jnp.exp(-tau)[..., None, None] * total


def _along(steps: Array, matrix: np.ndarray) -> Array:
    """A matrix times every step."""
    wide = matrix.reshape((1,) * steps.ndim + matrix.shape)
    return steps[..., None, None] * jnp.asarray(wide, steps.dtype)


def _transition_slope(tau: Array, _: Any, tangents: list, order: int) -> Array:
    """`F A`: of the derivative of `(1 + τ) exp(−τ)` autodiff would leave nothing at small `τ`."""
    drift = jnp.asarray(_NILPOTENT[order] - np.eye(order), tau.dtype)
    moved = jnp.einsum("ij,...jk->...ik", drift, transition(tau, order=order), precision=HIGHEST)
    return tangents[0][..., None, None] * moved


def _innovation(tau: Array, _: Any, order: int) -> Array:
    """`Q` to full relative accuracy at every step, which `P − A P Aᵀ` has at large ones only."""
    moments = _moments(tau, 2 * (order - 1))

    def entry(i: int, j: int) -> Array:
        powers = enumerate(np.convolve(_COLUMNS[order][i], _COLUMNS[order][j]))
        return sum((_DIFFUSION[order] * float(c) * moments[k] for k, c in powers if c), 0 * tau)

    rows = [jnp.stack([entry(i, j) for j in range(order)], axis=-1) for i in range(order)]
    return jnp.stack(rows, axis=-2)


def _innovation_slope(tau: Array, _: Any, tangents: list, order: int) -> Array:
    column = transition(tau, order=order)[..., -1]
    outer = column[..., :, None] * column[..., None, :]
    return (_DIFFUSION[order] * tangents[0])[..., None, None] * outer


def _moments(tau: Array, top: int) -> list[Array]:
    """`∫₀^τ s^k exp(−2s) ds` for `k = 0 … top`, of sums of positive numbers only.

    The last one by a series or in closed form, the others by `(k+1) g_k = 2 g_{k+1} + τ^{k+1}
    exp(−2τ)`.
    """
    x = 2 * tau
    small = x < _SERIES
    inside, outside = jnp.where(small, x, 1), where(small, _SERIES, x)
    series = jnp.zeros_like(x)
    for j in range(_TERMS, -1, -1):  # Σ_j x^j / ((top+1) … (top+1+j))
        series = (1 + inside * series) / (top + 1 + j)
    series = jnp.exp(-inside) * series * (inside / 2) ** (top + 1)
    tail = jnp.exp(-outside) * sum(outside**k / factorial(k) for k in range(1, top + 1))
    closed = factorial(top) / 2 ** (top + 1) * (-jnp.expm1(-outside) - tail)
    moments = [jnp.where(small, series, closed)]
    decay = jnp.exp(-x)
    for k in range(top - 1, -1, -1):
        moments.insert(0, (2 * moments[0] + tau ** (k + 1) * decay) / (k + 1))
    return moments


transition = RulePrimitive("kronax_matern_transition", _transition, _transition_slope)
innovation = RulePrimitive("kronax_matern_innovation", _innovation, _innovation_slope)
