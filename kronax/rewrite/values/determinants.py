"""Determinants of sums that need be neither symmetric nor definite."""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import outer
from kronax.linalg.functions.logdet import logdet
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.rewrite.values.general_sums import (
    GeneralSum,
    are_symmetric,
    definite_bases,
    mapped,
    pencil_of,
)


def general_slogdet(op: GeneralSum) -> tuple[Array, Array]:
    """Sign and logarithm of the determinant, `(*batch,)` each."""
    if is_concrete(op):
        try:
            found = logdet(op.covariance())
            return jnp.ones_like(found), found
        except ValueError:
            return mapped(_slogdet, op)
    bases, holds = definite_bases(lax.stop_gradient(op))
    covariance = op.covariance()
    held = KroneckerPlusNoise(covariance.kronecker, covariance.noise, decomposition=bases)

    def definite() -> tuple[Array, Array]:
        found = logdet(held)
        return jnp.ones_like(found), found

    return lax.cond(holds, definite, lambda: mapped(_slogdet, op))


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
    values = _joined(adds, [_eigenvalues_of(matrix) for matrix in matrices]) + shift
    sizes = jnp.abs(values)
    phase = jnp.prod(jnp.where(sizes > 0, values / sizes, 0))
    return jnp.sign(phase.real).astype(shift.dtype), jnp.sum(jnp.log(sizes))


@_shifted_slogdet.defjvp
def _(adds: bool, primals: Any, tangents: Any) -> Any:
    """`det(A ⊗ B + c I)` is the product of all `det(μ A + c I)`: no eigenvector is needed.

    So it is right where eigenvalues are repeated, and its derivative needs theirs alone.
    """
    (matrices, shift), (moved, moved_shift) = primals, tangents
    values = [_eigenvalues_of(matrix) for matrix in matrices]
    total = moved_shift * jnp.sum((1 / (_joined(adds, values) + shift)).real)
    for k, (matrix, tangent) in enumerate(zip(matrices, moved, strict=True)):
        others = _joined(adds, values[:k] + values[k + 1 :]).reshape(-1, 1, 1)
        one = jnp.eye(len(matrix), dtype=others.dtype)
        if adds:
            slope = jnp.linalg.inv(matrix + (others + shift) * one)
        else:
            slope = others * jnp.linalg.inv(others * matrix + shift * one)
        total = total + jnp.sum(jnp.sum(slope, axis=0).real.T * tangent)
    sign, log = _shifted_slogdet(adds, matrices, shift)
    return (sign, log), (jnp.zeros_like(sign), total)


def _joined(adds: bool, values: list[Array]) -> Array:
    """`⊗λ` or `⊕λ` of all axes; of none one or zero."""
    if not adds:
        return outer(values) if values else jnp.ones(())
    total = jnp.zeros((), values[0].dtype) if values else jnp.zeros(())
    for own in values:
        total = total[..., None] + own
    return total


@jax.custom_jvp
def _eigenvalues_of(matrix: Array) -> Array:
    """All eigenvalues, complex numbers."""
    dtype = jnp.result_type(matrix.dtype, jnp.complex64)
    return lax.cond(
        are_symmetric(matrix),
        lambda m: jnp.linalg.eigvalsh(m).astype(dtype),
        lambda m: jnp.linalg.eigvals(m).astype(dtype),
        matrix,
    )


@_eigenvalues_of.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """`diag(V⁻¹ dA V)`; NaN where that is lost to rounding, as for a matrix without a basis `V`."""
    (matrix,), (moved,) = primals, tangents
    dtype = jnp.result_type(matrix.dtype, jnp.complex64)
    values, vectors = lax.cond(
        are_symmetric(matrix),
        lambda m: tuple(x.astype(dtype) for x in jnp.linalg.eigh(m)),
        lambda m: tuple(x.astype(dtype) for x in jnp.linalg.eig(m)),
        matrix,
    )
    inverse = jnp.linalg.inv(vectors)
    condition = jnp.linalg.norm(vectors) * jnp.linalg.norm(inverse) / len(matrix)
    is_known = condition < 0.1 / jnp.finfo(matrix.dtype).eps ** 0.5
    slopes = jnp.sum(inverse * (moved @ vectors).T, axis=-1)
    return values, jnp.where(is_known, slopes, jnp.nan)
