"""Covariances between new points of one axis and the old ones."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.gp.axes.structure import low_rank_rows
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.mode_products import matmul


def amplitude(gp: Any, i: int, dtype: Any) -> Array:
    """The process' variance, which the first axis carries; terms have variances of their own."""
    if i > 0 or gp.terms is not None:
        return jnp.ones((), dtype)
    return gp.variance.astype(dtype)


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
