"""Covariances between new points of one axis and the old ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.kernels.points import Points
from kronax.gp.structure import low_rank_rows
from kronax.linalg.modes import matmul


def amplitude(gp: Any, i: int, dtype: Any) -> Array:
    """The process' variance, which the first axis carries."""
    return gp.variance.astype(dtype) if i == 0 else jnp.ones((), dtype)


def kernel_rows(gp: Any, i: int, new: Points, dtype: Any) -> Float[Array, "m n"]:
    """`K_*i` as the kernel has it, low rank or not."""
    rows = gp.kernels[i].matrix_at(new, gp.axes[i].points(dtype))
    return amplitude(gp, i, dtype) * rows.astype(dtype)


def kernel_matrix(gp: Any, i: int, x: Points, dtype: Any) -> Float[Array, "m m"]:
    """The covariance of one axis at any points."""
    return amplitude(gp, i, dtype) * gp.kernels[i].matrix_at(x, x).astype(dtype)


def root_rows(
    gp: Any, i: int, new: Points, dtype: Any
) -> tuple[Float[Array, "m n"], Float[Array, "m r"] | None]:
    """`K_*i`, and the rows of a low-rank factor's root at the new points."""
    rank = gp.structures[i].rank
    if rank is None:
        return kernel_rows(gp, i, new, dtype), None
    scale = jnp.sqrt(amplitude(gp, i, dtype))
    rows = low_rank_rows(gp.kernels[i], new, gp.axes[i].points(dtype), rank, dtype)
    ahead, old = (scale * r for r in rows)
    return matmul(ahead, old.T), ahead


def slope_rows(gp: Any, i: int, x: Points, dtype: Any) -> Float[Array, "m n"]:
    """`∂K_*i / ∂x_*`: how each row changes with its own coordinate, one to a place."""
    kernel, old, period = gp.kernels[i], gp.axes[i].points(dtype), gp.axes[i].period
    ones, places = jnp.ones_like(x.raw), None
    if x.places is not None:
        # Round the circle, at one unit of arc length for one of the coordinate.
        assert period is not None
        angle = x.raw * jnp.asarray(2 * np.pi / period, dtype)
        places = jnp.stack([-jnp.sin(angle), jnp.cos(angle)], axis=-1)
    tangent = Points(ones, ones, places, x.origin)
    _, slope = jax.jvp(lambda p: kernel.matrix_at(p, old).astype(dtype), (x,), (tangent,))
    return amplitude(gp, i, dtype) * slope
