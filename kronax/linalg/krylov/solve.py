"""Solves with gaps and uneven noise, by conjugate gradients, with a certificate."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import (
    DEFAULT,
    Certificate,
    Estimate,
    Iteration,
    settled,
)
from kronax.linalg.krylov.abstract import AbstractOneProduct, AbstractPreconditioner
from kronax.linalg.krylov.markov_reference import MarkovPreconditioner, markov_reference
from kronax.linalg.krylov.preconditioner import balanced_box, even, reference
from kronax.linalg.krylov.probes import SpectralPreconditioner
from kronax.linalg.krylov.terms_preconditioner import TermsPreconditioner
from kronax.linalg.krylov.terms_reference import terms_reference
from kronax.linalg.markov.lanes import markov_axis
from kronax.linalg.operators.diagnose import refuse_indefinite
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.sum_of_products import KroneckerTerms, products_of


def iterative_solve(
    op: KroneckerPlusDiagonal, b: Float[Array, "..."], *, iteration: Iteration = DEFAULT
) -> Estimate:
    """`op⁻¹ b` at the observed cells, zero at the gaps, with its error.

    All vectors of a batch at once, `4 N Σ n_i` operations per vector and iteration. Differentiable
    to every order, each by another solve.

    Args:
        op: the covariance.
        b: `(*batch, n_1, …, n_d)` or `(*batch, N)`.
        iteration: how.

    Returns:
        The solution in the layout of `b`, and how far to trust it.

    Raises:
        ValueError: if `b` does not lie on the grid or is not finite at an observed cell.
        ConvergenceError: if the iteration does not converge (concrete values; traced ones give
            NaN).

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), variances)
        >>> kx.iterative_solve(op, jnp.ones((2, 2))).value.round(4).tolist()
        [[0.5, 0.25], [0.5, 0.0]]
    """
    grid, flat = op.vector(b, "b")
    estimate = solve_estimate(op, grid, iteration)
    refuse_if_failed(estimate, op)
    estimate = settled(estimate, iteration, "the solve", has_box(op), is_marked=True)
    if not flat:
        return estimate
    flattened = estimate.value.reshape(*grid.shape[: grid.ndim - len(op.grid_shape)], -1)
    return Estimate(flattened, *jax.tree.leaves(estimate)[1:])


def refuse_if_failed(estimate: Estimate, op: KroneckerPlusDiagonal) -> None:
    """Blame an indefinite factor where a concrete result did not converge."""
    if not isinstance(estimate.converged, jax.core.Tracer) and not bool(estimate.converged):
        for j, product in enumerate(products_of(op.kronecker)):
            many = isinstance(op.kronecker, KroneckerTerms)
            refuse_indefinite(product, f"signal's term {j}" if many else "signal")


def has_box(op: KroneckerPlusDiagonal) -> bool:
    """Whether the preconditioner has a `box_size`: one that is filtered has none."""
    return markov_axis(op) is None


def prepared(op: KroneckerPlusDiagonal, iteration: Iteration) -> AbstractPreconditioner:
    """The preconditioner of an operator, for any number of solves: chosen here."""
    op, axis = lax.stop_gradient(op), markov_axis(op)
    if isinstance(op.kronecker, KroneckerTerms):
        of_terms = terms_reference(op.kronecker, op.variances, iteration)
        return TermsPreconditioner(op, of_terms, iteration)
    if axis is not None:
        return MarkovPreconditioner(op, markov_reference(op, axis), iteration)
    box = balanced_box(op.grid_shape, iteration.box_size)
    held = reference(even(op.kronecker, op.precisions), op.precisions, box)
    return SpectralPreconditioner(op, held, iteration)


@partial(jax.jit, static_argnums=(2, 3))
def solve_estimate(
    op: KroneckerPlusDiagonal, b: Array, iteration: Iteration, weights: bool = False
) -> Estimate:
    """`iterative_solve` for checked vectors in the grid layout; NaN, or not, if it failed.

    What is to raise is marked by NaN in here: JAX has the certificate depend on every direction of
    a Jacobian, so that a value must not depend on it.

    With `weights` it is made for products with covariances of the signal, and the error is that of
    such a product in posterior standard deviations, at most.
    """
    held = prepared(op, iteration)

    def run_columns(_: Any, v: Array) -> tuple[Array, Certificate]:
        solved = held.solve(v, refine=not weights)
        found, certificate = solved.solution, solved.certificate
        if weights and isinstance(held, AbstractOneProduct):
            found = solved.weights
            certificate = certificate._replace(error=jnp.sqrt(jnp.max(solved.errors)))
        if iteration.on_failure == "raise":
            found = where(certificate.converged, found, jnp.nan)
        return found, certificate

    def mv(x: Array) -> Array:
        # The identity at the gaps, where everything else is zero.
        return op.mv_grid(x) + jnp.where(jnp.broadcast_to(op.observed, x.shape), 0, x)

    columns = b.reshape(-1, *op.grid_shape)
    solution, certificate = lax.custom_linear_solve(
        mv, columns, solve=run_columns, transpose_solve=run_columns, has_aux=True
    )
    return Estimate(solution.reshape(b.shape), *lax.stop_gradient(certificate))
