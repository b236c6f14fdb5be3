"""The symmetric square root of a positive semidefinite matrix, right to first order.

Cholesky gives NaN for a squared-exponential matrix of size 20 already; the symmetric root exists
at every positive semidefinite matrix. Its derivative `X` solves `R X + X R = dK`: in the
eigenbasis `E` of `dK` a division by `√λ_a + √λ_c`, which needs no gap between eigenvalues.

Where `K` is singular there is no derivative along a `dK` that reaches from the null space into
itself, and so raises the rank: the root of `t` has none at zero. Forward mode is NaN along such a
`dK`. Reverse mode does not see along what it is taken: it gives the derivative along all that keep
the rank, which is what parameters of a covariance of low rank do, and leaves the others out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import map_batch, matmul
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import LinearPrimitive, RulePrimitive
from kronax.linalg.arrays.transforms import Identity
from kronax.linalg.factors.eigenbases import (
    ROUNDING,
    Eigenbasis,
    SymmetricBlocks,
    eigenbasis,
    full_block,
    split_blocks,
)


def symmetric_root(matrix: Array) -> Array:
    """`R = Rᵀ` with `R R = K` for `K` `(*batch, n, n)`; NaN if `K` is indefinite.

    Along what raises the rank of `K` the derivative is NaN in forward mode, and left out in reverse
    mode.
    """
    return symmetric_roots(full_block(matrix)).arrays[0]


def symmetric_roots(blocks: SymmetricBlocks) -> SymmetricBlocks:
    """The symmetric root of every block; what is rounding is judged on the whole axis."""
    one = jnp.ones((), blocks.arrays[0].dtype)
    count = len(blocks.sizes)
    unit = SymmetricBlocks((one,) * count, (0,) * count, blocks.sizes, blocks.transform)
    basis = lax.stop_gradient(eigenbasis(blocks, unit))
    pieces = split_blocks(basis.values, blocks.sizes, -1)
    # Eigenvalues that stand in the matrix itself are exact.
    is_exact = max(blocks.ndims) < 2 and blocks.transform == Identity()
    arrays = blocks.arrays if is_exact else _watched_blocks(blocks, basis)
    roots = []
    for a, ndim, w, values in zip(arrays, blocks.ndims, basis.blocks, pieces, strict=True):
        if ndim == 2:
            held = (w, jnp.sqrt(values))
            roots.append(map_batch(_root, a.shape[:-2], (a, 2), (held, (2, 1))))
        else:
            settled = values[..., 0] if ndim == 0 else values
            is_rounding = settled <= 0 if not is_exact else (settled <= 0) & (a < 0)
            roots.append(safe_sqrt(jnp.where(is_rounding, settled, a)))
    return SymmetricBlocks(tuple(roots), blocks.ndims, blocks.sizes, blocks.transform)


@jax.jit
def safe_sqrt(x: Array) -> Array:
    """`√x`; NaN below zero, and of NaN.

    Its derivative at zero is NaN in forward mode, along all that moves `x`, and zero in reverse.
    """
    x = _watched_entries((x,), (x,))[0]
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(where(positive, x, 1)), where(x < 0, jnp.nan, 0 * x))


def _watched_blocks(blocks: SymmetricBlocks, basis: Eigenbasis) -> tuple[Array, ...]:
    """The blocks, whose tangents are NaN where they raise the rank of the axis."""
    held = (basis.blocks, basis.values)
    ndims = (basis.event_ndims.blocks, 1)
    return map_batch(
        lambda arrays, held: _watched_axis(arrays, held, sizes=blocks.sizes),
        blocks.batch_shape,
        (blocks.arrays, blocks.ndims),
        (held, ndims),
    )


def _without_raised(held: Any, tangents: tuple[Array, ...], *, sizes: tuple[int, ...]) -> Any:
    """The tangents of the blocks of an axis, NaN if they raise its rank.

    Eigenvalues below rounding may as well be rounding. What their part of the derivative is then,
    rounding decides: at least the entry of `E` over twice the root of rounding. Where that is more
    than all the rest, there is no derivative.
    """
    vectors, values = held
    slack = jnp.sqrt(ROUNDING * values.size * jnp.finfo(values.dtype).eps * jnp.max(values))
    known, unknown = jnp.zeros_like(slack), jnp.zeros_like(slack)
    for t, w, piece in zip(tangents, vectors, split_blocks(values, sizes, -1), strict=True):
        roots = jnp.sqrt(piece)
        if w is None:
            inside, total, largest = jnp.abs(t), 2 * roots, roots
        else:
            inside = jnp.abs(matmul(matmul(w.T, (t + t.T) / 2), w))
            total = roots[:, None] + roots[None]
            largest = jnp.maximum(roots[:, None], roots[None])
        is_null = largest <= slack
        rest = jnp.where(is_null, 0, inside / jnp.where(is_null, 1, total))
        known = jnp.maximum(known, jnp.max(rest))
        unknown = jnp.maximum(unknown, jnp.max(jnp.where(is_null, inside, 0)))
    is_raised = unknown > 2 * slack * known
    return tuple(where(is_raised, jnp.nan, t) for t in tangents)


def _without_zeros(held: tuple[Array], tangents: tuple[Array]) -> tuple[Array]:
    """The tangents of numbers, NaN where they move a zero."""
    (x,), (t,) = held, tangents
    return (where((x == 0) & (t != 0), jnp.nan, t),)


def _watched(name: str, checked: Any) -> RulePrimitive:
    """Arrays as they are, whose tangents are `checked` in forward mode alone."""
    tangent = LinearPrimitive(
        f"{name}_tangent", lambda held, tangents, **static: tangents, "A root", checked
    )

    def derivative(arrays: Any, held: Any, tangents: list, **static: Any) -> Any:
        pairs = zip(arrays, tangents, strict=True)
        filled = tuple(jnp.zeros_like(a) if t is None else t for a, t in pairs)
        return tangent(lax.stop_gradient(held), filled, **static)

    return RulePrimitive(name, lambda arrays, held, **static: arrays, derivative)


def _root_value(matrix, pair):
    vectors, roots = pair
    return matmul(vectors * roots[None], vectors.T)


def _root_derivative(matrix, pair, tangents):
    return _root_tangent((matrix, pair), tangents[0])


def _root_tangent_value(coefficients, tangent):
    _, (vectors, roots) = coefficients
    inside = matmul(matmul(vectors.T, (tangent + tangent.T) / 2), vectors)
    total = roots[:, None] + roots[None]
    # Zero along what raises the rank; NaN stays NaN.
    ratio = jnp.where(total > 0, inside / jnp.where(total > 0, total, 1), 0 * inside)
    return matmul(matmul(vectors, ratio), vectors.T)


_root_tangent = LinearPrimitive("kronax_root_tangent", _root_tangent_value, "A symmetric root")
_root = RulePrimitive("kronax_symmetric_root", _root_value, _root_derivative)
_watched_axis = _watched("kronax_root_of_axis", _without_raised)
_watched_entries = _watched("kronax_root_of_entries", _without_zeros)
