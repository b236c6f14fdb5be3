"""Pivoted Cholesky of a kernel: the places that carry the covariance, and what they leave out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import where

# A place whose variance is explained up to this many `k · eps` of the largest after k columns has
# nothing to add: every column subtracts with a rounding error of its own.
EXHAUSTED = 4.0
# One that is below zero by more than this many `k · eps` is no rounding.
INDEFINITE = 100.0


class Pivots(NamedTuple):
    """Places in the order in which they were chosen, and the trace that is left after each.

    Args:
        places: `(rank,)` indices of points; -1 from where nothing but rounding was left.
        remainders: `(rank + 1,)`, an upper bound on `tr(K − L Lᵀ) / tr K` for the first
            `0, 1, …, rank` places, rounding included; NaN from where a variance is negative.
    """

    places: Array
    remainders: Array


@eqx.filter_jit
def choose_pivots(
    kernel: Callable[[Any, Any], Array], points: Array, rank: int, scale: Array | None = None
) -> Pivots:
    """The places that pivoted Cholesky takes first; `O(n rank²)`, no `n × n` array.

    Each step takes the place of the largest variance that is not yet explained. The choice has no
    derivative. What is rounding is judged by the largest variance, or by `scale` where the kernel
    is what another one leaves; then remainders are relative to `n · scale`.
    """
    kernel_of = lambda x, z: lax.stop_gradient(kernel(x, z))  # noqa: E731
    variances = jax.vmap(lambda p: kernel_of(p[None], p[None])[0, 0])(points)
    size, eps = points.shape[0], jnp.finfo(variances.dtype).eps
    unit = eps * (jnp.max(variances) if scale is None else scale)
    trace = jnp.sum(variances) if scale is None else size * scale

    def step(k: Array, state: tuple) -> tuple:
        root, left, places, remainders = state
        place = jnp.argmax(left)
        top = left[place]
        column = kernel_of(points, points[place][None])[:, 0] - matmul(root, root[place])
        count = (k + 1).astype(top.dtype)
        useful = top > EXHAUSTED * count * unit
        column = jnp.where(useful, column / jnp.sqrt(jnp.where(useful, top, 1)), 0)
        left = left - jnp.square(column)
        left = left.at[place].set(jnp.where(useful, 0, top))
        # A variance that is truly negative: no covariance, and no error that could be certified.
        # (What another kernel leaves can be below zero by the rounding of that one.)
        indefinite = (scale is None) & (jnp.min(left) < -INDEFINITE * count * unit)
        left = where(indefinite, jnp.nan, jnp.maximum(left, 0))
        places = places.at[k].set(jnp.where(useful, place, -1))
        rounding = eps * jnp.sum(places >= 0, dtype=variances.dtype)
        remainders = remainders.at[k + 1].set(jnp.sum(left) / trace + rounding)
        return root.at[:, k].set(column), left, places, remainders

    start = (
        jnp.zeros((size, rank), variances.dtype),
        variances,
        jnp.full(rank, -1),
        jnp.ones(rank + 1, variances.dtype),
    )
    _, _, places, remainders = lax.fori_loop(0, rank, step, start)
    return Pivots(places, remainders)


def root_at(
    kernel: Callable[[Any, Any], Array], points: Array, places: Array, at: Array | None = None
) -> Array:
    """`L` `(n, rank)` with `L Lᵀ = K_xz K_zz⁻¹ K_zx`, `z` the points at `places`.

    The same numbers as the columns of pivoted Cholesky, by code that is differentiable in the
    kernel at fixed places. Columns of places that are -1 are zero. `at` are other points `x` than
    the ones that the places are from: the rows there.
    """
    useful = places >= 0
    chosen = points[jnp.where(useful, places, 0)]
    inner = kernel(chosen, chosen)
    identity = jnp.eye(places.shape[0], dtype=inner.dtype)
    triangle = jnp.linalg.cholesky(jnp.where(useful[:, None] & useful[None], inner, identity))
    columns = jnp.where(useful, kernel(points if at is None else at, chosen), 0)
    return lax.linalg.triangular_solve(
        triangle, columns, left_side=False, lower=True, transpose_a=True
    )


class Residual(eqx.Module):
    """What the points at `places` leave of a kernel: `k(x, x′) − K_xz K_zz⁻¹ K_zx′`."""

    kernel: Callable[[Any, Any], Array]
    points: Array
    places: Array

    def __call__(self, x: Array, z: Array) -> Array:
        """`(n, m)` for points `x` and `z`."""
        left, right = (root_at(self.kernel, self.points, self.places, at) for at in (x, z))
        return self.kernel(x, z) - matmul(left, right.T)


def joint_root(
    kernel: Callable[[Any, Any], Array], points: Array, places: Array, new: Array, rank: int
) -> tuple[Array, Array]:
    """A root over old and new points together, `[[L, 0], [L_*, E]]`, and what `E` leaves out.

    Its old rows are `root_at` of the same places. `E` has `rank` columns for what these places do
    not carry at the new points; the second result is the trace that is then left, relative to the
    prior one.
    """
    old, ahead = root_at(kernel, points, places), root_at(kernel, points, places, new)
    rest = Residual(kernel, points, places)
    scale = jnp.max(jax.vmap(lambda p: kernel(p[None], p[None])[0, 0])(new))
    pivots = choose_pivots(rest, new, rank, lax.stop_gradient(scale))
    extra = root_at(rest, new, pivots.places)
    none = jnp.zeros((old.shape[0], rank), old.dtype)
    joint = jnp.concatenate(
        [jnp.concatenate([old, none], axis=1), jnp.concatenate([ahead, extra], axis=1)]
    )
    return joint, pivots.remainders[-1]
