"""A Kronecker product by one LU or Cholesky factorisation per axis."""

from math import log, pi
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.decompositions.abstract import AbstractDecomposition
from kronax.linalg.decompositions.conditions import FactorCondition, FactorConditions
from kronax.linalg.decompositions.implicit import implicit_solve
from kronax.linalg.factors.factorizations import inverse_matrix
from kronax.linalg.operators.kronecker import Kronecker, num_cells


class Factorized(AbstractDecomposition):
    """A product of square factors: LU, Cholesky where a factor is definite, or substitution."""

    op: Kronecker

    def solve(self, b: Array) -> Array:
        """`S⁻¹ b`, factor by factor."""
        return implicit_solve(self.op, lax.stop_gradient(self.op.factorize()), _apply, b)

    def logdet(self) -> Array:
        """`log|det S|`."""
        op, size = self.op, num_cells(self.op)
        parts = [
            size / factor.size * factor.log_abs_det(factorization)
            for factor, factorization in zip(op.factors, op.factorize(), strict=True)
        ]
        parts = list(same_rank(*parts))
        return sum(parts[1:], parts[0])

    def inv_quad(self, b: Array) -> Array:
        """`bᵀ S⁻¹ b`."""
        product = jnp.multiply(*same_rank(b, self.solve(b)))
        return jnp.sum(product, axis=tuple(range(-len(self.op.grid_shape), 0)))

    def as_covariance(self) -> "Factorized":
        """By Cholesky factors alone."""
        roots = self.op.factorize(positive_definite=True)
        return Factorized(Kronecker(*self.op.factors, decomposition=roots))

    def logpdf(self, residual: Array) -> Array:
        """Log density of `N(0, S)`: factors are used as covariances."""
        both = self.as_covariance()
        constant = num_cells(self.op) * log(2 * pi) / 2
        return -0.5 * (both.logdet() + both.inv_quad(residual)) - constant

    def inverse_diagonal(self) -> Array:
        """From the inverse of every factor."""
        op = self.op
        inverses = [
            map_batch(inverse_matrix, f.batch_shape, (f.to_dense(), 2), (own, own.event_ndims))
            for f, own in zip(op.factors, op.factorize(), strict=True)
        ]
        return Kronecker(*inverses).diagonal()

    def computed(self) -> Any:
        """One factorisation per axis."""
        return self.op.factorize()

    def ends(self) -> FactorConditions:
        """What tells the condition number of every factor."""
        pairs = lax.stop_gradient(list(zip(self.op.factors, self.op.factorize(), strict=True)))
        return FactorConditions(tuple(FactorCondition.of(*pair) for pair in pairs))


def _apply(factorizations: Any, v: Array, transpose: bool) -> Array:
    for i, factorization in enumerate(factorizations):
        v = factorization.solve_along(v, i - len(factorizations), transpose)
    return v
