"""The periodic kernel as a sum of waves: `exp((cos θ − 1) κ) = Σ_j w_j cos(jθ)`, `w_j ≥ 0`.

The weights are `w_0 = exp(−κ) I_0(κ)` and `w_j = 2 exp(−κ) I_j(κ)`, of sum one. Cut off after some
terms, the kernel is wrong by at most the sum of the weights left out, which is what it loses of its
variance.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import ive

from kronax.linalg.markov.algebra import added, level, wave
from kronax.linalg.markov.state_space import StateSpace

# Ratios of Bessel functions are found downwards from so many orders above the last one wanted.
_BEYOND = 24
# No series is longer than this one.
_MOST_TERMS = 1000
# What the waves left out may have of the variance, in units of its rounding.
_ROUNDINGS = 1e3


def cosine_series(cycles: Array, kappa: Array, num_terms: int) -> StateSpace:
    """The periodic process; NaN if so many terms leave out more than rounding, or nearly that."""
    kept, left = weights(kappa, num_terms)
    kept = jnp.where(left <= _tolerance(kappa.dtype), kept, jnp.nan)
    waves = (wave(j * cycles, kept[j]) for j in range(1, num_terms + 1))
    return added(level(cycles, kept[0]), *waves)


def _tolerance(dtype: Any) -> float:
    return _ROUNDINGS * float(jnp.finfo(dtype).eps)


def weights(kappa: Array, num_terms: int) -> tuple[Array, Array]:
    """The weights `w_0 … w_J`, and a bound on the sum of all others.

    The ratios `I_j / I_{j−1} = κ / (2j + κ I_{j+1} / I_j)` have no differences and do not
    overflow; an error in the first one dies out on the way down.
    """
    last = num_terms + _BEYOND
    ratio = kappa / (last + 1 + jnp.sqrt((last + 1.0) ** 2 + kappa**2))
    ratios = []
    for j in range(last, 0, -1):
        ratio = kappa / (2 * j + kappa * ratio)
        ratios.insert(0, ratio)
    relative = jnp.cumprod(jnp.stack(ratios))
    total = 1 + 2 * jnp.sum(relative)
    left = 2 * relative[num_terms] / total / (1 - ratios[num_terms + 1])
    kept = jnp.concatenate([jnp.ones(1, relative.dtype), 2 * relative[:num_terms]])
    return kept / total, left


def enough_terms(kappa: float, dtype: Any) -> int:
    """How many terms leave out no more than `cosine_series` bears; at most `_MOST_TERMS`."""
    left = 2 * ive(np.arange(_MOST_TERMS + 2), kappa)
    sums = np.cumsum(left[::-1])[::-1]
    return int(np.argmax(np.append(sums[1:] <= _tolerance(dtype), True)))
