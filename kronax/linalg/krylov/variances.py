"""Variances with gaps and uneven noise: exact by solves at chosen places, by draws everywhere."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from math import prod
from typing import Any, NoReturn, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import outer
from kronax.linalg.arrays.primitives import DerivativeOrderError, RulePrimitive
from kronax.linalg.estimates.certificates import DEFAULT, Estimate, Iteration, Solved, settled
from kronax.linalg.krylov.abstract import AbstractOneProduct
from kronax.linalg.krylov.solve import has_box, prepared, refuse_if_failed
from kronax.linalg.krylov.terms_preconditioner import TermsPreconditioner
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.spectral.khatri_rao import CHUNK, mv_rows

# One array per axis, `(m, n_i)`: `m` places with a covariance that is a product.
Rows = tuple[Array, ...]
P = ParamSpec("P")


def _refuse(operands: Any, constants: Any, tangents: Any, **static: Any) -> NoReturn:
    raise DerivativeOrderError(
        "Variances with gaps or uneven noise are values only; got a derivative of them. "
        "Differentiate kx.iterative_logpdf instead, or kx.iterative_solve."
    )


# `values_only(x)` is `x`; a derivative of it raises.
values_only = RulePrimitive("kronax_values_only", lambda operands, _: operands, _refuse)


def _compiled(answer: Callable[P, Estimate]) -> Callable[P, Estimate]:
    """Compiled for settings, which are given by name; a derivative in the others raises."""
    primitive = RulePrimitive(
        f"kronax_{answer.__name__}",
        lambda operands, _, **named: answer(*operands, **named),
        _refuse,
    )

    @partial(jax.jit, static_argnames=("iteration", "term"))
    def run(*operands: Any, **named: Any) -> Estimate:
        return primitive(operands, **named)

    return wraps(answer)(lambda *operands, **named: run(*operands, **named))


def iterative_inverse_at(
    op: KroneckerPlusDiagonal,
    rows: Sequence[Float[Array, "m _"]],
    *,
    iteration: Iteration = DEFAULT,
) -> Estimate:
    """`diag(C op⁻¹ Cᵀ)` for places scattered over the grid: what data explain of a variance there.

    One solve per place, in chunks. Values only: differentiating raises.

    Args:
        op: the covariance of the data.
        rows: per axis the covariances between the places and the coordinates of the axis.
        iteration: how.

    Returns:
        One value per place, to the tolerance of the solves, with the largest error among them.

    Raises:
        ConvergenceError: if a solve does not converge (concrete values; traced ones give NaN).
        DerivativeOrderError: if it is differentiated.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), jnp.ones((2, 2)))
        >>> kx.iterative_inverse_at(op, (jnp.eye(2), jnp.eye(2))).value.round(6).tolist()
        [0.5, 0.5]
    """
    estimate = places_estimate(op, (tuple(rows),), iteration=iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the solves at scattered places", has_box(op))


def iterative_posterior_variances(
    op: KroneckerPlusDiagonal, *, iteration: Iteration = DEFAULT
) -> Estimate:
    """The variance of the signal at every cell given noisy data, `diag(K − K op⁻¹ K)`.

    From `iteration.num_draws` draws of the posterior, solved together. What the preconditioner
    knows, the whole of an even grid and the box of the largest eigenvalues, is exact; only what it
    leaves is estimated, so that the standard error is a small part of that of plain draws. Values
    only: differentiating raises.

    Args:
        op: the covariance of the data.
        iteration: how.

    Returns:
        Grid-shaped value, error and standard error.

    Raises:
        ConvergenceError: if a solve does not converge (concrete values; traced ones give NaN).
        DerivativeOrderError: if it is differentiated.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), jnp.ones((2, 2)))
        >>> kx.iterative_posterior_variances(op).value.round(4).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    estimate = posterior_estimate(op, iteration=iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the draws", has_box(op))


@_compiled
def posterior_estimate(
    op: KroneckerPlusDiagonal, *, iteration: Iteration, term: int | None = None
) -> Estimate:
    """`iterative_posterior_variances`, of one term of several if given, converged or not."""
    held = prepared(op, iteration)
    if term is None:
        return held.posterior()
    assert isinstance(held, TermsPreconditioner)
    return held.posterior(term)


@_compiled
def explained_estimate(
    op: KroneckerPlusDiagonal, rows: Sequence[Array | None], *, iteration: Iteration
) -> Estimate:
    """`diag(C op⁻¹ Cᵀ)` for `C = ⊗rows[i]`, whether it converged or not.

    `rows[i]` are covariances `(m_i, n_i)` with the coordinates of the axis, those of the signal
    itself for `None`.
    """
    held = prepared(op, iteration)
    assert isinstance(held, AbstractOneProduct)
    return held.explained(rows)


@_compiled
def inverse_estimate(op: KroneckerPlusDiagonal, *, iteration: Iteration) -> Estimate:
    """`diag(op⁻¹)`, zero at the gaps, whether it converged or not."""
    return prepared(op, iteration).inverse_diagonal()


@_compiled
def places_estimate(
    op: KroneckerPlusDiagonal, products: tuple[Rows, ...], *, iteration: Iteration
) -> Estimate:
    """`iterative_inverse_at` for a sum of products of rows, whether it converged or not."""
    return _by_places(op, products, iteration, lambda solved: solved.quadratics[0])


@_compiled
def covariance_estimate(
    op: KroneckerPlusDiagonal, products: tuple[Rows, ...], *, iteration: Iteration
) -> Estimate:
    """`C op⁻¹ Cᵀ`, `(m, m)`, for places scattered over the grid, whether it converged or not."""

    def explained(solved: Solved) -> Array:
        first, *rest = (mv_rows(rows, solved.weights[0]) for rows in products)
        return sum(rest, first)

    return _by_places(op, products, iteration, explained)


def _by_places(
    op: KroneckerPlusDiagonal,
    products: tuple[Rows, ...],
    iteration: Iteration,
    result: Callable[[Solved], Array],
) -> Estimate:
    """One solve per place, in chunks."""
    held = prepared(op, iteration)

    def one(place: tuple[Rows, ...]) -> Any:
        first, *rest = (outer(rows) for rows in place)
        c = sum(rest, first)
        solved = held.solve(op.held(c)[None])
        return (result(solved), solved.errors[0]), solved.certificate

    chunk = max(1, min(products[0][0].shape[0], CHUNK // (4 * prod(op.grid_shape))))
    (values, errors), certificate = lax.map(one, products, batch_size=chunk)
    return Estimate(
        value=values,
        error=jnp.max(errors),
        standard_error=jnp.zeros((), op.dtype),
        residual=jnp.max(certificate.residual),
        num_steps=jnp.max(certificate.num_steps),
        converged=jnp.all(certificate.converged),
    )
