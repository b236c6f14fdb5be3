"""How well conditioned an operator is: the largest and smallest eigenvalue, or bounds on them."""

from collections.abc import Iterable
from functools import reduce
from operator import add, mul
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, mean_diagonal
from kronax.linalg.operators.kronecker import KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import products_of
from kronax.linalg.spectral.low_rank import ThinBases


def ends_of(held: tuple[Eigenbasis, ...] | ThinBases) -> Ends:
    """From the eigenvalues of signal and noise on every axis."""
    bases = held.reduced if isinstance(held, ThinBases) else held
    join = add if bases[0].adds else mul

    def joined(of: Any, values: list[Array], join: Any = mul) -> Array:
        return reduce(lambda a, b: join(*same_rank(a, b)), [of(v, -1) for v in values])

    ends = (jnp.max, jnp.min)
    top, bottom = (joined(end, [b.values for b in bases], join) for end in ends)
    most, least = (joined(end, [b.noise_values for b in bases]) for end in ends)
    if isinstance(held, ThinBases):  # outside of the range there is noise alone
        bottom = jnp.zeros_like(bottom)
    return Ends(jnp.add(*same_rank(top, most)), jnp.add(*same_rank(bottom, least)))


def ends_on_grid(op: KroneckerPlusNoise, bases: tuple[Eigenbasis, ...]) -> Ends:
    """The same, and what was lost when two general terms were whitened: no eigenvalue shows it."""
    found = ends_of(bases)
    signal, noise = lax.stop_gradient(op.blocks())
    for pair in zip(bases, signal, noise, strict=True):
        if pair[0].log_abs_det is not None:
            least = jnp.divide(*same_rank(found.largest, _whitening_condition(*pair)))
            found = Ends(found.largest, jnp.minimum(*same_rank(found.smallest, least)))
    return found


def _whitening_condition(
    basis: Eigenbasis, signal: SymmetricBlocks, noise: SymmetricBlocks
) -> Array:
    """The condition number of the sum that two terms were whitened by, about."""
    scaled = [largest_row(blocks) / mean_diagonal(blocks) for blocks in (signal, noise)]
    # `W Wᵀ` is the inverse of the sum.
    inverse = [jnp.max(jnp.sum(jnp.square(w), -1), -1) for w in basis.blocks if w is not None]
    return jnp.multiply(*same_rank(jnp.add(*same_rank(*scaled)), reduce(jnp.maximum, inverse)))


def largest_eigenvalue(signal: Any) -> Array:
    """A bound from above for a product or a sum: row sums, which are tight for positive entries.

    No decomposition is made: it costs what the matrices of the axes do.
    """
    if isinstance(signal, KroneckerPlusNoise):
        noise = signal.noise
        level = largest_eigenvalue(noise) if hasattr(noise, "factors") else noise
        return largest_eigenvalue(signal.kronecker) + level
    if isinstance(signal, KroneckerSum):
        return _joined(signal.factors, add)
    return reduce(add, [_joined(product.factors, mul) for product in products_of(signal)])


def _joined(factors: Iterable[AbstractFactor], join: Any) -> Array:
    return reduce(join, [row_sum(factor) for factor in factors])


def row_sum(factor: AbstractFactor) -> Array:
    """The largest sum of absolute values in a row of any block."""
    root = factor.thin_root()
    if root is not None:  # the other eigenvalues are zero
        gram = matmul(jnp.swapaxes(root, -1, -2), root)
        return jnp.max(jnp.sum(jnp.abs(gram), axis=-1), axis=-1)
    return largest_row(factor.blocks())


def largest_row(blocks: SymmetricBlocks) -> Array:
    """The largest sum of absolute values in a row."""
    sums = [
        jnp.abs(a) if n == 0 else jnp.max(jnp.sum(jnp.abs(a), -1) if n == 2 else jnp.abs(a), -1)
        for a, n in zip(blocks.arrays, blocks.ndims, strict=True)
    ]
    return reduce(jnp.maximum, sums)
