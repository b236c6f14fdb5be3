"""Signal plus noise by one eigenbasis per axis, in which both are diagonal."""

from collections.abc import Sequence
from math import log, pi
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.checks import check_broadcast
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.decompositions.abstract import AbstractSignalPlusNoise, Rows
from kronax.linalg.decompositions.implicit import implicit_solve
from kronax.linalg.estimates.certificates import Estimate, exact_estimate
from kronax.linalg.operators.kronecker import num_cells
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import Own, Places, variance_given
from kronax.linalg.spectral.conditioning import ends_on_grid
from kronax.linalg.spectral.diagonals import explained_diagonal, posterior_diagonal
from kronax.linalg.spectral.khatri_rao import covariance_at, variance_at
from kronax.linalg.spectral.value_and_rules import (
    TwoTermSum,
    Weights,
    log_det_and_quadratic,
    rotate,
    spectrum,
    unrotate,
)


class AbstractOnGrid(AbstractSignalPlusNoise):
    """Signal plus noise on a whole grid."""

    op: eqx.AbstractVar[KroneckerPlusNoise]

    def variance_given(self, places: Sequence[Places], own: Own | None = None) -> Array:
        """Of places on a grid; a value, held constant."""
        return variance_given(self.op, places, own)

    def variance_at(self, *parts: Sequence[Places]) -> Estimate:
        """Row by row."""
        return exact_estimate(variance_at(self.op, *parts))

    def covariance_at(self, *parts: tuple[Sequence[Places], Sequence[Array]]) -> Array:
        """Column by column."""
        return covariance_at(self.op, *parts)


class Spectral(AbstractOnGrid):
    """`⊗K_i + ⊗N_i`, or `⊕K_i + σ² I`: one `eigh` per axis that is not diagonal."""

    op: KroneckerPlusNoise

    def solve(self, b: Array) -> Array:
        """`W (Wᵀ b / D)`."""
        return implicit_solve(self.op, self.op.eigenbases(), _apply, b)

    def logdet(self) -> Array:
        """`Σ log D`, less what the bases have."""
        return self._two_terms(None, (1.0, 0.0))

    def inv_quad(self, b: Array) -> Array:
        """Half the products of a solve."""
        return self._two_terms(b, (0.0, 1.0))

    def logpdf(self, residual: Array) -> Array:
        """Both from one rotation."""
        return self._two_terms(residual, (-0.5, -0.5)) - num_cells(self.op) * log(2 * pi) / 2

    def inverse_diagonal(self) -> Array:
        """`diag(W D⁻¹ Wᵀ)`."""
        return self.explained([None] * len(self.op.grid_shape))

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """Rotated rows, squared, on `1/D`."""
        return explained_diagonal(self.op, rows, others or ())

    def posterior_diagonal(self) -> Array:
        """A sum of squares of the dual bases."""
        return posterior_diagonal(self.op)

    def computed(self) -> Any:
        """One eigenbasis per axis."""
        return self.op.eigenbases()

    def ends(self) -> Ends:
        """From the eigenvalues, and what was lost before these are known."""
        return ends_on_grid(self.op, self.op.eigenbases())

    def _two_terms(self, y: Array | None, weights: Weights) -> Array:
        signal, noise = self.op.blocks()
        bases = self.op.eigenbases()
        num_axes = len(self.op.grid_shape)
        lead = () if y is None else y.shape[: y.ndim - num_axes]
        batch = check_broadcast([self.op.batch_shape, lead], "the operator and the vector")
        ndims = TwoTermSum(
            tuple(b.event_ndims for b in signal),
            tuple(b.event_ndims for b in noise),
            None if y is None else num_axes,
        )
        return map_batch(
            lambda problem, held: log_det_and_quadratic(problem, held, weights=weights),
            batch,
            (TwoTermSum(signal, noise, y), ndims),
            (bases, tuple(b.event_ndims for b in bases)),
        )


def _apply(bases: Any, v: Array, transpose: bool) -> Array:
    return unrotate(bases, jnp.divide(*same_rank(rotate(bases, v), spectrum(bases))))
