"""Solves with gaps and uneven noise, by conjugate gradients, with a certificate."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.estimates.certificates import (
    DEFAULT,
    Certificate,
    Estimate,
    Iteration,
    Solved,
    settled,
)
from kronax.linalg.krylov.conjugate_gradients import Krylov, conjugate_gradients
from kronax.linalg.krylov.markov_reference import MarkovReference, markov_reference
from kronax.linalg.krylov.preconditioner import Reference, balanced_box, even, reference
from kronax.linalg.krylov.terms_preconditioner import TermsReference, solve_terms, terms_reference
from kronax.linalg.markov.lanes import markov_axis
from kronax.linalg.operators.diagnose import refuse_indefinite
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal, draw_signal
from kronax.linalg.operators.sum_of_products import KroneckerTerms, products_of

# Solves for what a solve has left, at most.
MOST_REFINEMENTS = 4
# Probes are solved to this share of the tolerance: their residuals do not average in a gradient.
PROBES = 0.1


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
    estimate = settled(estimate, iteration, "the solve", has_box(op))
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


def prepared(
    op: KroneckerPlusDiagonal, iteration: Iteration
) -> Reference | MarkovReference | TermsReference:
    """The reference of an operator, for any number of solves."""
    if isinstance(op.kronecker, KroneckerTerms):
        return terms_reference(op.kronecker, op.variances, iteration)
    axis = markov_axis(op)
    if axis is not None:
        return markov_reference(op, axis)
    box = balanced_box(op.grid_shape, iteration.box_size)
    return reference(even(op.kronecker, op.precisions), op.precisions, box)


def solve_columns(
    held: Reference | MarkovReference | TermsReference,
    op: KroneckerPlusDiagonal,
    columns: Array,
    iteration: Iteration,
    *,
    refine: bool = False,
) -> Solved:
    """Solve for columns `(k, *grid)` that are zero at the gaps; no derivatives.

    The iteration finds the signal `f` with an error that is small beside its posterior. In the norm
    of the operator the solution `W (b − f)` may be off by more, by the root of signal over noise;
    with `refine` what it leaves is solved for again until it is not.
    """
    if isinstance(held, TermsReference):
        return solve_terms(held, columns, iteration)
    precisions = op.precisions
    none = jnp.zeros((0, *op.grid_shape), op.dtype)
    krylov = run(held, precisions, columns, none, iteration)
    smooth, weights, quadratics = held.finished(precisions, columns, krylov.solution)
    # The entries of `W b` round independently, and so reach every eigenvector of the operator.
    spread = jnp.sum(
        (precisions[None] * columns) ** 2 * op.diagonal()[None], tuple(range(1, columns.ndim))
    )
    rounding = 8 * jnp.finfo(op.dtype).eps * jnp.sqrt(_ratio(spread, quadratics))
    residual = jnp.max(krylov.relative_residual)
    solution = precisions[None] * (columns - smooth)
    steps = jnp.max(krylov.num_steps)
    error = _error(op, columns, solution, quadratics)
    converged = krylov.has_converged(columns.shape[0], iteration.tolerance_of(op.dtype))
    if refine:
        solution, error, steps = _refined(
            held, op, columns, iteration, quadratics, (solution, error, steps), converged
        )
    certificate = Certificate(
        error=jnp.max(error),
        standard_error=jnp.zeros((), op.dtype),
        residual=residual,
        num_steps=steps,
        converged=converged,
    )
    return Solved(
        solution=solution,
        weights=weights,
        quadratics=quadratics,
        errors=krylov.left + rounding * quadratics,
        certificate=certificate,
    )


def _error(op: KroneckerPlusDiagonal, columns: Array, solution: Array, quadratics: Array) -> Array:
    """Per column the error in the norm of the operator, relative to the solution, from above.

    `rᵀ op⁻¹ r ≤ rᵀ W r` for what is left, `r`, since the operator exceeds its noise.
    """
    left = columns - op.mv_grid(solution)
    axes = tuple(range(1, columns.ndim))
    return jnp.sqrt(_ratio(jnp.sum(op.precisions[None] * left**2, axes), quadratics))


def _refined(
    held: Reference | MarkovReference,
    op: KroneckerPlusDiagonal,
    columns: Array,
    iteration: Iteration,
    quadratics: Array,
    found: tuple[Array, Array, Array],
    converged: Array,
) -> tuple[Array, Array, Array]:
    """Solve again for what is left, as long as the error halves and is above the tolerance."""
    none = jnp.zeros((0, *op.grid_shape), op.dtype)

    def going(state: Any) -> Array:
        _, error, _, before, count = state
        is_off = jnp.max(error) > iteration.tolerance_of(op.dtype)
        return converged & is_off & (jnp.max(error) < before / 2) & (count < MOST_REFINEMENTS)

    def again(state: Any) -> Any:
        solution, error, steps, _, count = state
        left = columns - op.mv_grid(solution)
        krylov = run(held, op.precisions, left, none, iteration)
        smooth = held.finished(op.precisions, left, krylov.solution)[0]
        moved = solution + op.precisions[None] * (left - smooth)
        new = _error(op, columns, moved, quadratics)
        better = new < error
        solution = jnp.where(better.reshape(-1, *(1,) * (columns.ndim - 1)), moved, solution)
        steps = steps + jnp.max(krylov.num_steps)
        return solution, jnp.minimum(new, error), steps, jnp.max(error), count + 1

    start = (*found, jnp.asarray(jnp.inf, op.dtype), jnp.zeros((), jnp.int32))
    return lax.while_loop(going, again, start)[:3]


def _ratio(a: Array, b: Array) -> Array:
    return a / jnp.where(b > 0, b, 1)


def run(
    held: Reference | MarkovReference,
    precisions: Array,
    y: Array,
    white: Array,
    iteration: Iteration,
) -> Krylov:
    """One pass for all columns: data over the cells, probes in the coordinates of `held.mv`."""
    started, energy = held.started(precisions, y)
    columns = jnp.concatenate([started, white])
    squares = jnp.sum(white**2, tuple(range(1, white.ndim)))
    is_solve = jnp.arange(columns.shape[0]) < y.shape[0]
    share = where(is_solve, jnp.ones((), y.dtype), PROBES)
    return conjugate_gradients(
        held.mv,
        columns,
        energy=jnp.concatenate([energy, squares]),
        num_solves=y.shape[0],
        tolerance=iteration.tolerance_of(y.dtype) * share,
        max_steps=iteration.max_steps,
        bound=held.bound,
        least=held.least,
    )


class Twins(NamedTuple):
    """Fields given data with gaps and uneven noise, and given twins of these without.

    Args:
        weights: `A⁻¹ d`, `(count, *grid)`.
        smooth: `K A⁻¹ d`, likewise.
        even_weights: `S⁻¹ d'`, likewise.
        even_smooth: `K S⁻¹ d'`, likewise.
        residual: relative ones of the iterations.
        num_steps: of these.
    """

    weights: Array
    smooth: Array
    even_weights: Array
    even_smooth: Array
    residual: Array
    num_steps: Array


def twins(
    held: MarkovReference, precisions: Array, fields: Array, noise: Array, iteration: Iteration
) -> Twins:
    """Of draws `(count, *grid)` of the signal and of white noise."""
    seen = precisions > 0
    scale = jnp.where(seen, 1 / jnp.sqrt(jnp.where(seen, precisions, 1)), 0)
    data = jnp.where(seen[None], fields + scale[None] * noise, 0)
    columns, energy = held.started(precisions, data)
    krylov = conjugate_gradients(
        held.mv,
        columns,
        energy=energy,
        num_solves=0,
        tolerance=iteration.tolerance_of(columns.dtype),
        max_steps=iteration.max_steps,
        bound=held.bound,
        least=held.least,
    )
    smooth, weights, _ = held.finished(precisions, data, krylov.solution)
    even = held.given(held.whole[None] * fields + jnp.sqrt(held.whole)[None] * noise)
    return Twins(weights, smooth, *even, krylov.relative_residual, krylov.num_steps)


def drawn_twins(
    held: MarkovReference, op: KroneckerPlusDiagonal, iteration: Iteration, key: Array, count: int
) -> tuple[Array, Array, Twins]:
    """Fields, noise, and what data say of them."""
    field_key, noise_key = jax.random.split(key)
    fields = draw_signal(field_key, op.kronecker, (count,))
    noise = normal_numbers(noise_key, fields.shape, fields.dtype)
    return fields, noise, twins(held, op.precisions, fields, noise, iteration)


@partial(jax.jit, static_argnums=(2, 3))
def solve_estimate(
    op: KroneckerPlusDiagonal, b: Array, iteration: Iteration, weights: bool = False
) -> Estimate:
    """`iterative_solve` for checked vectors in the grid layout, whether it converged or not.

    With `weights` it is made for products with covariances of the signal, and the error is that of
    such a product in posterior standard deviations, at most.
    """
    held = prepared(op, iteration)
    constant = lax.stop_gradient(op)

    def run_columns(_: Any, v: Array) -> tuple[Array, Certificate]:
        solved = solve_columns(held, constant, v, iteration, refine=not weights)
        if not weights or isinstance(held, TermsReference):
            return solved.solution, solved.certificate
        error = jnp.sqrt(jnp.max(solved.errors))
        return solved.weights, solved.certificate._replace(error=error)

    def mv(x: Array) -> Array:
        # The identity at the gaps, where everything else is zero.
        return op.mv_grid(x) + jnp.where(jnp.broadcast_to(op.observed, x.shape), 0, x)

    columns = b.reshape(-1, *op.grid_shape)
    solution, certificate = lax.custom_linear_solve(
        mv, columns, solve=run_columns, transpose_solve=run_columns, has_aux=True
    )
    return Estimate(solution.reshape(b.shape), *lax.stop_gradient(certificate))
