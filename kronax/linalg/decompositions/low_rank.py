"""Signal plus noise with factors of low rank, on a small grid of their columns."""

from collections.abc import Sequence
from math import log, pi
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.decompositions.abstract import Rows
from kronax.linalg.decompositions.implicit import implicit_solve
from kronax.linalg.decompositions.spectral import AbstractOnGrid, Spectral
from kronax.linalg.operators.kronecker import num_cells
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditioning import ends_of
from kronax.linalg.spectral.diagonals import (
    diagonal_within,
    explained_by_woodbury,
    posterior_by_woodbury,
)
from kronax.linalg.spectral.low_rank import (
    ThinBases,
    decomposition,
    is_thin,
    logdet_outside,
    reduced,
    rows_of_reduced,
)


class LowRank(AbstractOnGrid):
    """`⊗K_i + ⊗N_i` with thin roots on some axes: the noise outside their range, `eigh` inside."""

    op: KroneckerPlusNoise

    def solve(self, b: Array) -> Array:
        """Inside and outside the range apart."""
        return implicit_solve(self.op, (decomposition(self.op),), _apply, b)

    def logdet(self) -> Array:
        """Of the small grid, and of the noise outside."""
        inside = Spectral(reduced(self.op)).logdet()
        return jnp.add(*same_rank(inside, logdet_outside(self.op)))

    def inv_quad(self, b: Array) -> Array:
        """By a solve."""
        product = jnp.multiply(*same_rank(b, self.solve(b)))
        return jnp.sum(product, axis=tuple(range(-len(self.op.grid_shape), 0)))

    def logpdf(self, residual: Array) -> Array:
        """From one decomposition."""
        op = self.op
        if op.decomposition is None:
            op = KroneckerPlusNoise(op.kronecker, op.noise, decomposition=decomposition(op))
        one = LowRank(op)
        both = jnp.add(*same_rank(one.logdet(), one.inv_quad(residual)))
        return -0.5 * both - num_cells(op) * log(2 * pi) / 2

    def inverse_diagonal(self) -> Array:
        """A sum of squares, with the derivative of Woodbury's formula."""
        held = decomposition(self.op)
        value = map_batch(ThinBases.inverse_diagonal, self.op.batch_shape, (held, held.event_ndims))
        return with_value(self.explained([None] * len(self.op.grid_shape)), value)

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """By Woodbury's formula."""
        assert others is None, "two sides are for terms beside the noise, which have no low rank"
        return explained_by_woodbury(self.op, rows)

    def explained_by_roots(self, pairs: Sequence[tuple[Array, Array | None]]) -> Array:
        """On the small grid, without a root of a Gram matrix."""
        return diagonal_within(reduced(self.op), *rows_of_reduced(self.op, pairs))

    def posterior_diagonal(self) -> Array:
        """A sum of squares."""
        return posterior_by_woodbury(self.op)

    def computed(self) -> ThinBases:
        """Bases of the ranges, and of the small grid."""
        return decomposition(self.op)

    def ends(self) -> Ends:
        """From the eigenvalues inside, and the noise."""
        return ends_of(decomposition(self.op))


def signal_plus_noise(op: KroneckerPlusNoise) -> Spectral | LowRank:
    """The way for an operator on a whole grid."""
    return LowRank(op) if is_thin(op) else Spectral(op)


def _apply(pieces: Any, v: Array, transpose: bool) -> Array:
    return pieces[0].solve(v)
