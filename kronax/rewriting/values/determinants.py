"""Determinants of sums that need be neither symmetric nor definite."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import outer, same_rank
from kronax.linalg.functions.logdet import logdet
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.rewriting.values.general_sums import (
    GeneralSum,
    Terms,
    definite_bases,
    over_batches,
    when,
)
from kronax.rewriting.values.pencils import Pencil, pencils_of
from kronax.rewriting.values.substitution import eigenvalues


def general_slogdet(op: GeneralSum) -> tuple[Array, Array]:
    """Sign and logarithm of the determinant, `(*batch,)` each."""
    if is_concrete(op):
        try:
            found = logdet(op.covariance())
            return jnp.ones_like(found), found
        except ValueError:
            return over_batches(_slogdet, *op.terms)
    bases, holds = definite_bases(lax.stop_gradient(op))
    # Where it is no covariance, numbers that are finite take the place of those that are not.
    covariance, bases = _safe(holds, (op.covariance(), bases))
    held = KroneckerPlusNoise(covariance.kronecker, covariance.noise, decomposition=bases)
    sign, log = _other_slogdet(~holds, *op.terms)
    return jnp.where(holds, 1, sign), jnp.where(holds, logdet(held), log)


def _safe(holds: Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(holds, x, 1), tree)


@jax.custom_jvp
def _other_slogdet(wanted: Array, terms: Terms, shift: Array | None) -> tuple[Array, Array]:
    """Sign and logarithm of the determinant of another sum; zeros where they are not wanted."""
    return when(wanted, partial(over_batches, _slogdet), (terms, shift))


@_other_slogdet.defjvp
def _(primals: Any, tangents: Any) -> Any:
    sign, log = _other_slogdet(*primals)
    slopes = _slopes(*primals)
    pairs = zip(*map(jax.tree.leaves, (slopes, tangents[1:])), strict=True)
    total = jnp.zeros_like(log)
    for slope, moved in pairs:
        axes = tuple(range(log.ndim - slope.ndim, 0))
        total = total + jnp.sum(jnp.multiply(*same_rank(slope, moved)), axis=axes)
    return (sign, log), (jnp.zeros_like(sign), total)


@jax.custom_jvp
def _slopes(wanted: Array, terms: Terms, shift: Array | None) -> Any:
    return when(wanted, partial(over_batches, _gradient), (terms, shift))


@_slopes.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Of a sum that is no covariance there is no second derivative: NaN."""
    found = _slopes(*primals)
    unknown = jnp.where(primals[0], jnp.nan, 0.0).astype(jax.tree.leaves(found)[0].dtype)
    moved = sum(jnp.sum(tangent) for tangent in jax.tree.leaves(tangents[1:]))
    return found, jax.tree.map(lambda slope: jnp.full_like(slope, 1) * (unknown * moved), found)


def _slogdet(terms: Terms, shift: Array | None) -> tuple[Array, Array]:
    """From the eigenvalues of the factors, which are those of all products together."""
    pencils = pencils_of(terms)
    values = _joined(_values_of(pencils), shift)
    sizes = jnp.abs(values)
    phase = jnp.prod(jnp.where(sizes > 0, values / sizes, 0))
    sign, total = jnp.sign(phase.real), jnp.sum(jnp.log(sizes))
    for divisor in (p.divisor for p in pencils if p.divisor is not None):
        own, log = jnp.linalg.slogdet(divisor)
        times = values.size // len(divisor)
        sign, total = sign * own ** (1 if times % 2 else 2), total + times * log
    return sign, total


def _gradient(terms: Terms, shift: Array | None) -> Any:
    """Of the logarithm: the determinant is the product of those of combinations along an axis.

    As `det(A ⊗ B + c I)` is that of all `det(μ A + c I)`: no eigenvector is needed.
    """
    values = _values_of(pencils_of(terms))
    slopes: list[list[Any]] = [[None] * len(values) for _ in terms]
    for k in range(len(values)):
        weights = [_product(own[:k] + own[k + 1 :]) for own in zip(*values, strict=True)]
        found = iter(_slopes_along([factors[k] for factors in terms], weights, shift))
        for own, factors in zip(slopes, terms, strict=True):
            own[k] = None if factors[k] is None else next(found)
    return slopes, None if shift is None else jnp.sum((1 / _joined(values, shift)).real)


def _slopes_along(factors: list[Any], weights: list[Array], shift: Array | None) -> list[Array]:
    """For every `F` the sum of all `w (Σ w F + c I)⁻ᵀ`, over what the other axes weigh it with."""
    size = next(len(factor) for factor in factors if factor is not None)
    one = jnp.eye(size, dtype=weights[0].dtype)
    number = jnp.zeros((), one.dtype) if shift is None else shift

    def inverses(own: list[Array]) -> list[Array]:
        parts = [w * (one if f is None else f) for w, f in zip(own, factors, strict=True)]
        inverse = jnp.linalg.inv(sum(parts, number * one))
        pairs = zip(own, factors, strict=True)
        return [(w * inverse).real.T for w, factor in pairs if factor is not None]

    return [jnp.sum(each, axis=0) for each in lax.map(inverses, weights)]


def _values_of(pencils: list[Pencil]) -> list[list[Array]]:
    """Eigenvalues per axis, and there of every product, `(n_i,)`."""
    found = []
    for pencil in pencils:
        values = eigenvalues(pencil.matrix)
        one = jnp.ones_like(values)
        found.append([one if own is None else own for own in pencil.of(values, one)])
    return found


def _joined(values: list[list[Array]], shift: Array | None) -> Array:
    """Those of the sum, `(N,)`."""
    parts = [_product(own) for own in zip(*values, strict=True)]
    return sum(parts, jnp.zeros((), parts[0].dtype) if shift is None else shift)


def _product(values: Sequence[Array]) -> Array:
    """All products of one from each, `(n_1 … n_d,)`."""
    return outer(values).reshape(-1)
