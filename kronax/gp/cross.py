"""Covariances between new coordinates of one axis and the old ones."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.gp.axes import Axis
from kronax.gp.structure import low_rank_rows, points, wraps
from kronax.linalg.modes import matmul


def amplitude(gp: Any, i: int, dtype: Any) -> Array:
    """The process' variance, which the first axis carries."""
    return gp.variance.astype(dtype) if i == 0 else jnp.ones((), dtype)


def kernel_rows(gp: Any, i: int, new: Axis, dtype: Any) -> Float[Array, "m n"]:
    """`K_*i` as the kernel has it, low rank or not."""
    kernel = gp.kernels[i]
    rows = kernel(points(kernel, new, dtype), points(kernel, gp.axes[i], dtype))
    return amplitude(gp, i, dtype) * rows.astype(dtype)


def root_rows(
    gp: Any, i: int, new: Axis, dtype: Any
) -> tuple[Float[Array, "m n"], Float[Array, "m r"] | None]:
    """`K_*i`, and the rows of a low-rank factor's root at the new coordinates."""
    rank = gp.structures[i].rank
    if rank is None:
        return kernel_rows(gp, i, new, dtype), None
    kernel = gp.kernels[i]
    x, z = (points(kernel, axis, dtype) for axis in (new, gp.axes[i]))
    scale = jnp.sqrt(amplitude(gp, i, dtype))
    ahead, old = (scale * r for r in low_rank_rows(kernel, x, z, rank, dtype))
    return matmul(ahead, old.T), ahead


def slope_rows(gp: Any, i: int, new: Axis, dtype: Any) -> Float[Array, "m n"]:
    """`∂K_*i / ∂x_*`: how each row changes with its own coordinate, one to a place."""
    kernel = gp.kernels[i]
    old, x = points(kernel, gp.axes[i], dtype), points(kernel, new, dtype)
    along = jnp.ones_like(x)
    if wraps(kernel, new):
        # Round the circle, at one unit of arc length for one of the coordinate.
        assert new.period is not None
        along = jnp.stack([-x[:, 1], x[:, 0]], axis=-1) * (2 * math.pi / new.period)
    _, slope = jax.jvp(lambda places: kernel(places, old).astype(dtype), (x,), (along,))
    return amplitude(gp, i, dtype) * slope
