"""Random numbers of any shape: those of JAX, drawn in one row.

Every round of JAX's generator asks for the place of a number in its array. In a row that is a
count; with more axes it is a division for each of them, and takes three times as long to compile.
But a row cannot be shared out over devices as any axis may be.
"""

from math import prod
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray


def normal_numbers(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """`jax.random.normal`, number by number."""
    return jax.random.normal(key, _drawn_as(shape), dtype).reshape(shape)


def random_signs(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """`jax.random.rademacher`, number by number, from uniform numbers of the same precision.

    JAX draws those in float64 wherever that is enabled.
    """
    is_plus = uniform_numbers(key, _drawn_as(shape), dtype) < 0.5
    return (2 * is_plus.astype(dtype) - 1).reshape(shape)


def uniform_numbers(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """`jax.random.uniform`, whose own ends are numbers of float64 wherever that is enabled."""
    ends = np.array([0, 1], dtype)
    return jax.random.uniform(key, shape, dtype, ends[0], ends[1])


def _drawn_as(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (prod(shape),) if jax.device_count() == 1 else shape
