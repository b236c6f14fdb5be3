"""The symmetric square root of a positive semidefinite matrix, right to first order.

Cholesky gives NaN for a squared-exponential matrix of size 20 already; the symmetric root exists
at every positive semidefinite matrix. Its derivative `X` solves `R X + X R = dK`: in the
eigenbasis a division by `√λ_a + √λ_c`, which needs no gap between eigenvalues.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import map_batch, matmul
from kronax.linalg.arrays.primitives import LinearPrimitive, RulePrimitive
from kronax.linalg.factors.eigenbases import SymmetricBlocks, eigenbasis, full_block, split_blocks


def symmetric_root(matrix: Array) -> Array:
    """`R = Rᵀ` with `R R = K` for `K` `(*batch, n, n)`; NaN if `K` is indefinite.

    On the null space of `K` the derivative is taken as zero.
    """
    return symmetric_roots(full_block(matrix)).arrays[0]


def symmetric_roots(blocks: SymmetricBlocks) -> SymmetricBlocks:
    """The symmetric root of every block; what is rounding is judged on the whole axis."""
    one = jnp.ones((), blocks.arrays[0].dtype)
    count = len(blocks.sizes)
    unit = SymmetricBlocks((one,) * count, (0,) * count, blocks.sizes, blocks.transform)
    basis = lax.stop_gradient(eigenbasis(blocks, unit))
    pieces = split_blocks(basis.values, blocks.sizes, -1)
    roots = []
    for a, ndim, w, values in zip(blocks.arrays, blocks.ndims, basis.blocks, pieces, strict=True):
        if ndim == 2:
            held = (w, jnp.sqrt(values))
            roots.append(map_batch(_root, a.shape[:-2], (a, 2), (held, (2, 1))))
        else:
            settled = values[..., 0] if ndim == 0 else values
            roots.append(safe_sqrt(jnp.where(settled > 0, a, settled)))
    return SymmetricBlocks(tuple(roots), blocks.ndims, blocks.sizes, blocks.transform)


def safe_sqrt(x: Array) -> Array:
    """`√x` with a zero derivative at zero; NaN below, and of NaN."""
    positive = x > 0
    return jnp.where(
        positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.where(x < 0, jnp.nan, 0 * x)
    )


def _root_value(matrix, pair):
    vectors, roots = pair
    return matmul(vectors * roots[None], vectors.T)


def _root_derivative(matrix, pair, tangents):
    return _root_tangent((matrix, pair), tangents[0])


def _root_tangent_value(coefficients, tangent):
    _, (vectors, roots) = coefficients
    inside = matmul(matmul(vectors.T, (tangent + tangent.T) / 2), vectors)
    total = roots[:, None] + roots[None]
    ratio = jnp.where(total > 0, inside / jnp.where(total > 0, total, 1), 0)
    return matmul(matmul(vectors, ratio), vectors.T)


_root_tangent = LinearPrimitive("kronax_root_tangent", _root_tangent_value, "A symmetric root")
_root = RulePrimitive("kronax_symmetric_root", _root_value, _root_derivative)
