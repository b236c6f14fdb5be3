"""Determinants of sums that need be neither symmetric nor definite."""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import outer, same_rank
from kronax.linalg.functions.logdet import logdet
from kronax.linalg.operators.kronecker import KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.rewriting.values.general_sums import (
    GeneralSum,
    definite_bases,
    mapped,
    over_batches,
    pencil_of,
    when,
)
from kronax.rewriting.values.substitution import eigenvalues


def general_slogdet(op: GeneralSum) -> tuple[Array, Array]:
    """Sign and logarithm of the determinant, `(*batch,)` each."""
    if is_concrete(op):
        try:
            found = logdet(op.covariance())
            return jnp.ones_like(found), found
        except ValueError:
            return mapped(_slogdet, op)
    bases, holds = definite_bases(lax.stop_gradient(op))
    # Where it is no covariance, numbers that are finite take the place of those that are not.
    covariance, bases = _safe(holds, (op.covariance(), bases))
    held = KroneckerPlusNoise(covariance.kronecker, covariance.noise, decomposition=bases)
    sign, log = _other_slogdet(isinstance(op.signal, KroneckerSum), ~holds, *op.matrices)
    return jnp.where(holds, 1, sign), jnp.where(holds, logdet(held), log)


def _safe(holds: Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(holds, x, 1), tree)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _other_slogdet(adds: bool, wanted: Array, signal: Any, noise: Any) -> tuple[Array, Array]:
    """Sign and logarithm of the determinant of another sum; zeros where they are not wanted."""
    return when(wanted, partial(over_batches, _slogdet, adds), (signal, noise))


@_other_slogdet.defjvp
def _(adds: bool, primals: Any, tangents: Any) -> Any:
    sign, log = _other_slogdet(adds, *primals)
    slopes = _slopes(adds, *primals)
    pairs = zip(*map(jax.tree.leaves, (slopes, tangents[1:])), strict=True)
    total = jnp.zeros_like(log)
    for slope, moved in pairs:
        axes = tuple(range(log.ndim - slope.ndim, 0))
        total = total + jnp.sum(jnp.multiply(*same_rank(slope, moved)), axis=axes)
    return (sign, log), (jnp.zeros_like(sign), total)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slopes(adds: bool, wanted: Array, signal: Any, noise: Any) -> Any:
    return when(wanted, partial(over_batches, _gradient, adds), (signal, noise))


@_slopes.defjvp
def _(adds: bool, primals: Any, tangents: Any) -> Any:
    """Of a sum that is no covariance there is no second derivative: NaN."""
    found = _slopes(adds, *primals)
    unknown = jnp.where(primals[0], jnp.nan, 0.0).astype(jax.tree.leaves(found)[0].dtype)
    moved = sum(jnp.sum(tangent) for tangent in jax.tree.leaves(tangents[1:]))
    return found, jax.tree.map(lambda slope: jnp.full_like(slope, 1) * (unknown * moved), found)


def _gradient(signal: list[Array], noise: Any, adds: bool) -> Any:
    return jax.grad(lambda s, n: _slogdet(s, n, adds)[1], (0, 1))(signal, noise)


def _slogdet(signal: list[Array], noise: Any, adds: bool) -> tuple[Array, Array]:
    if not isinstance(noise, list):
        return _shifted_slogdet(adds, signal, noise)
    pencil, divisor = pencil_of(signal, noise)
    sign, total = _shifted_slogdet(False, pencil, jnp.ones((), pencil[0].dtype))
    num_cells = prod(len(matrix) for matrix in divisor)
    for matrix in divisor:
        own, log = jnp.linalg.slogdet(matrix)
        times = num_cells // len(matrix)
        sign, total = sign * own ** (1 if times % 2 else 2), total + times * log
    return sign, total


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted_slogdet(adds: bool, matrices: list[Array], shift: Array) -> tuple[Array, Array]:
    """Of `⊗A_i + c I`, or of `⊕A_i + c I`, from the eigenvalues of the factors."""
    values = _joined(adds, [eigenvalues(matrix) for matrix in matrices]) + shift
    sizes = jnp.abs(values)
    phase = jnp.prod(jnp.where(sizes > 0, values / sizes, 0))
    return jnp.sign(phase.real).astype(shift.dtype), jnp.sum(jnp.log(sizes))


@_shifted_slogdet.defjvp
def _(adds: bool, primals: Any, tangents: Any) -> Any:
    """`det(A ⊗ B + c I)` is the product of all `det(μ A + c I)`: no eigenvector is needed."""
    (matrices, shift), (moved, moved_shift) = primals, tangents
    values = [eigenvalues(matrix) for matrix in matrices]
    total = moved_shift * jnp.sum((1 / (_joined(adds, values) + shift)).real)
    for k, (matrix, tangent) in enumerate(zip(matrices, moved, strict=True)):
        others = _joined(adds, values[:k] + values[k + 1 :]).reshape(-1)
        total = total + jnp.sum(_slope(adds, matrix, shift, others).T * tangent)
    sign, log = _shifted_slogdet(adds, matrices, shift)
    return (sign, log), (jnp.zeros_like(sign), total)


def _slope(adds: bool, matrix: Array, shift: Array, others: Array) -> Array:
    """The sum of all `(A + (μ + c) I)⁻¹`, or of all `μ (μ A + c I)⁻¹`."""
    one = jnp.eye(len(matrix), dtype=others.dtype)

    def inverse(other: Array) -> Array:
        if adds:
            return jnp.linalg.inv(matrix + (other + shift) * one).real
        return (other * jnp.linalg.inv(other * matrix + shift * one)).real

    return jnp.sum(lax.map(inverse, others), axis=0)


def _joined(adds: bool, values: list[Array]) -> Array:
    """`⊗λ` or `⊕λ` of all axes; of none one or zero."""
    if not adds:
        return outer(values) if values else jnp.ones(1)
    total = jnp.zeros(())
    for own in values:
        total = jnp.add(*same_rank(total[..., None], own))
    return total
