"""Variances as means over draws, which are made and solved in chunks, with their certificate.

Of one product a draw less its even twin is what is left to estimate. Of several the twin goes with
the draw only in part, as far as the terms share a basis: there it is regressed out.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.estimates.certificates import SLACK, Estimate, Iteration, skew_quantile
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal

# Draws that are solved together hold at most this many numbers in one array.
MOST_NUMBERS = 20_000_000


# Relative residuals and steps of the iterations behind draws.
Ended = tuple[Array, Array]


class Drawn(NamedTuple):
    """Two numbers per draw and cell, `(count, *shape)`, and how the iterations ended."""

    x: Array
    y: Array
    ended: Ended


class Moments(NamedTuple):
    """Sums or means over draws, per cell."""

    x: Array
    y: Array
    xx: Array
    yy: Array
    xy: Array


# Of means over so many draws: a value, its standard error, and how many numbers per cell besides
# the value were taken from the draws.
Estimator = Callable[[Moments, int], tuple[Array, Array, int]]


def by_draws(
    op: KroneckerPlusDiagonal,
    iteration: Iteration,
    shape: tuple[int, ...],
    draw: Callable[[Array, int], Drawn],
    estimator: Estimator,
    stream: int = 1,
) -> Estimate:
    """What `more_certain` or `regressed` make of `iteration.num_draws` draws.

    Args:
        op: what is solved for them.
        iteration: how.
        shape: of what is estimated.
        draw: as many as asked for, from a key.
        estimator: one of the two.
        stream: of random numbers.
    """
    size = max(prod(shape), prod(op.grid_shape))
    num_chunks = -(-iteration.num_draws * size // MOST_NUMBERS)
    count = -(-iteration.num_draws // num_chunks)

    def one(total: Moments, key: Array) -> Any:
        x, y, ended = draw(key, count)
        sums = Moments(*(jnp.sum(v, 0) for v in (x, y, x * x, y * y, x * y)))
        return jax.tree.map(jnp.add, total, sums), jax.tree.map(jnp.max, ended)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(iteration.seed), stream), num_chunks)
    zero = Moments(*(jnp.zeros(shape, op.dtype),) * 5)
    total, (residuals, steps) = lax.scan(one, zero, keys)
    num = num_chunks * count
    value, standard_error, taken = estimator(jax.tree.map(lambda v: v / num, total), num)
    residual = jnp.max(residuals)
    return Estimate(
        value=value,
        error=skew_quantile(num - taken) * standard_error,
        standard_error=standard_error,
        residual=residual,
        num_steps=jnp.max(steps),
        converged=residual <= SLACK * iteration.tolerance_of(op.dtype),
    )


def more_certain(x: Array | float, y: Array | float) -> Estimator:
    """The mean of the one or of the other, each added to what is known of it: cell by cell."""

    def estimator(m: Moments, num: int) -> tuple[Array, Array, int]:
        errors = [
            jnp.sqrt(jnp.maximum(square - mean**2, 0) / (num - 1))
            for mean, square in ((m.x, m.xx), (m.y, m.yy))
        ]
        is_x = errors[0] <= errors[1]
        return jnp.where(is_x, x + m.x, y + m.y), jnp.where(is_x, errors[0], errors[1]), 0

    return estimator


def regressed(m: Moments, num: int) -> tuple[Array, Array, int]:
    """The mean of `x` by regression on a control `y` of mean zero."""
    spread = jnp.maximum(m.yy - m.y**2, 0)
    safe = jnp.where(spread > 0, spread, 1)
    slope = jnp.where(spread > 0, (m.xy - m.x * m.y) / safe, 0)
    left = jnp.maximum(m.xx - m.x**2 - slope**2 * spread, 0) / (num - 2)
    # Along the control too the mean is off: its distance enters as in any regression.
    return m.x - slope * m.y, jnp.sqrt(left * (1 + m.y**2 / safe)), 1
