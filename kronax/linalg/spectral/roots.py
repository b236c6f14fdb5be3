"""`R x` for a root `R` of a two-term sum, `R Rᵀ = S`: from independent cells to correlated ones.

Beside a multiple of the identity `R` is the symmetric root `W D^{1/2} Wᵀ`; beside a product of
covariances `N = C Cᵀ` it is `C` times the symmetric root of `C⁻¹ K C⁻ᵀ + I`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import apply_all, map_batch, outer, same_rank
from kronax.linalg.arrays.primitives import LinearPrimitive, RulePrimitive
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.value_and_rules import rotate, signal_slopes, spectrum, unrotate


def apply_root(
    op: KroneckerPlusNoise, x: Array, *, transposed: bool = False, inverted: bool = False
) -> Array:
    """`R x`, `Rᵀ x`, `R⁻¹ x` or `R⁻ᵀ x`; right to first order, raises beyond.

    `4 N Σ n_i` operations after the decomposition; a derivative takes as many entries as `N n_i`.

    Args:
        op: if its noise is a product, that is positive definite.
        x: `(*batch, n_1, …, n_d)`; the batch broadcasts against that of `op`.
        transposed: take the transpose of `R`.
        inverted: take the inverse, of the transpose if both are asked for.
    """
    num_axes = len(op.grid_shape)
    batch = jnp.broadcast_shapes(op.batch_shape, x.shape[: x.ndim - num_axes])

    def one(op: KroneckerPlusNoise, x: Array) -> Array:
        if isinstance(op.noise, Kronecker):
            return _beside_product(op, x, transposed, inverted)
        return _symmetric_root((op, x), op.eigenbases(), inverted=inverted)

    if not op.batch_shape:
        return one(op, x)
    op = op.mappable()
    return map_batch(one, batch, (op, op.event_ndims()), (x, num_axes))


def _beside_product(op: KroneckerPlusNoise, x: Array, transposed: bool, inverted: bool) -> Array:
    assert isinstance(op.noise, Kronecker)
    roots = [jnp.linalg.cholesky(factor.to_dense()) for factor in op.noise.factors]

    def white(root: Array, matrix: Array) -> Array:
        half = solve_triangular(root, matrix, lower=True)
        return solve_triangular(root, half.T, lower=True)

    pairs = zip(roots, op.kronecker.factors, strict=True)
    signal = Kronecker(*(white(root, factor.to_dense()) for root, factor in pairs))
    inner = KroneckerPlusNoise(signal.symmetrised(), jnp.ones((), op.dtype))
    matrices = roots
    if inverted:
        identities = [jnp.eye(len(root), dtype=root.dtype) for root in roots]
        matrices = [
            solve_triangular(r, i, lower=True) for r, i in zip(roots, identities, strict=True)
        ]
    if transposed:
        matrices = [matrix.T for matrix in matrices]
    # `R = C H`, so that `Rᵀ = H Cᵀ` and `R⁻¹ = H⁻¹ C⁻¹` have `H` last.
    if transposed != inverted:
        x = apply_all(matrices, x)
    x = _symmetric_root((inner, x), inner.eigenbases(), inverted=inverted)
    return x if transposed != inverted else apply_all(matrices, x)


def _value(operands: Any, bases: Any, *, inverted: bool) -> Array:
    _, x = operands
    scale = jnp.sqrt(spectrum(bases))
    turned = rotate(bases, x)
    both = same_rank(turned, scale)
    return unrotate(bases, jnp.divide(*both) if inverted else jnp.multiply(*both))


def _derivative(operands: Any, bases: Any, tangents: Any, *, inverted: bool) -> Array:
    leaves, tree = jax.tree.flatten(operands)
    moved = [
        jnp.zeros_like(leaf) if t is None else t for leaf, t in zip(leaves, tangents, strict=True)
    ]
    return _slope((operands, bases), jax.tree.unflatten(tree, moved), inverted=inverted)


def _linear(coefficients: Any, tangents: Any, *, inverted: bool) -> Array:
    """With `s = √D` an entry `(i, j)` of `Wᵀ dS W` is divided by `s_i + s_j`."""
    (_, x), bases = coefficients
    moved, dx = tangents
    scale = jnp.sqrt(spectrum(bases))
    sign, power = (-1, 3) if inverted else (1, 1)
    turned = rotate(bases, x)
    total = jnp.multiply(*same_rank(turned, sign * moved.noise / (2 * scale**power)))
    slopes = signal_slopes([basis.values for basis in bases], bases[0].adds)
    for i, (basis, factor) in enumerate(zip(bases, moved.factors, strict=True)):
        axis = i - len(bases)
        matrix = basis.rotate(basis.rotate(factor.to_dense(), -1), -2)
        weighted = jnp.multiply(*same_rank(turned, outer(slopes, skip=i)))
        weighted, s = (jnp.moveaxis(array, axis, -1) for array in (weighted, scale))
        pairs = s[..., :, None] + s[..., None, :]
        if inverted:
            pairs = -pairs * s[..., :, None] * s[..., None, :]
        slope = jnp.einsum("...j,...ij,ij->...i", weighted, 1 / pairs, matrix)
        total = total + jnp.moveaxis(slope, -1, axis)
    return unrotate(bases, total) + _value((None, dx), bases, inverted=inverted)


_slope = LinearPrimitive("kronax_symmetric_root_slope", _linear, "A draw by a symmetric root")
_symmetric_root = RulePrimitive("kronax_symmetric_root", _value, _derivative)
