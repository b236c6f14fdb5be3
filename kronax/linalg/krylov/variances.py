"""Variances with gaps and uneven noise: exact by solves at chosen places, by draws everywhere."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import apply_all, matmul, outer
from kronax.linalg.arrays.primitives import DerivativeOrderError, RulePrimitive
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.decompositions.low_rank import signal_plus_noise
from kronax.linalg.estimates.certificates import (
    DEFAULT,
    Estimate,
    Iteration,
    Solved,
    settled,
    skew_quantile,
)
from kronax.linalg.estimates.draws import Drawn, by_draws, more_certain
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.krylov.markov_reference import MarkovReference
from kronax.linalg.krylov.preconditioner import Reference, solve_white
from kronax.linalg.krylov.solve import (
    drawn_twins,
    has_box,
    prepared,
    refuse_if_failed,
    solve_columns,
)
from kronax.linalg.krylov.terms_preconditioner import TermsReference, solve_terms
from kronax.linalg.krylov.terms_variances import terms_posterior
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.khatri_rao import CHUNK, mv_rows

# One array per axis, `(m, n_i)`: `m` places with a covariance that is a product.
Rows = tuple[Array, ...]


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
    estimate = places_estimate(op, (tuple(rows),), iteration)
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
    estimate = posterior_estimate(op, iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the draws", has_box(op))


@partial(jax.jit, static_argnums=(1, 2))
def posterior_estimate(
    op: KroneckerPlusDiagonal, iteration: Iteration, term: int | None = None
) -> Estimate:
    """`iterative_posterior_variances`, of one term of several if given, converged or not."""
    return _posterior((op,), iteration=iteration, term=term)


@partial(jax.jit, static_argnums=2)
def explained_estimate(
    op: KroneckerPlusDiagonal, rows: Sequence[Array | None], iteration: Iteration
) -> Estimate:
    """`diag(C op⁻¹ Cᵀ)` for `C = ⊗rows[i]`, whether it converged or not.

    `rows[i]` are covariances `(m_i, n_i)` with the coordinates of the axis, those of the signal
    itself for `None`.
    """
    return _explained((op, list(rows)), iteration=iteration)


@partial(jax.jit, static_argnums=1)
def inverse_estimate(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`diag(op⁻¹)`, zero at the gaps, whether it converged or not."""
    return _inverse((op,), iteration=iteration)


@partial(jax.jit, static_argnums=2)
def places_estimate(
    op: KroneckerPlusDiagonal, products: tuple[Rows, ...], iteration: Iteration
) -> Estimate:
    """`iterative_inverse_at` for a sum of products of rows, whether it converged or not."""
    return _at_places((op, products), iteration=iteration)


@partial(jax.jit, static_argnums=2)
def covariance_estimate(
    op: KroneckerPlusDiagonal, products: tuple[Rows, ...], iteration: Iteration
) -> Estimate:
    """`C op⁻¹ Cᵀ`, `(m, m)`, for places scattered over the grid, whether it converged or not."""
    return _between_places((op, products), iteration=iteration)


def _at_places_value(
    op: KroneckerPlusDiagonal, products: tuple[Rows, ...], *, iteration: Iteration
) -> Estimate:
    return _by_places(op, products, iteration, lambda solved: solved.quadratics[0])


def _between_places_value(
    op: KroneckerPlusDiagonal, products: tuple[Rows, ...], *, iteration: Iteration
) -> Estimate:
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
        solved = solve_columns(held, op, op.held(c)[None], iteration)
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


def _posterior_value(
    op: KroneckerPlusDiagonal, *, iteration: Iteration, term: int | None
) -> Estimate:
    held = prepared(op, iteration)
    if isinstance(held, TermsReference):
        return terms_posterior(held, op, iteration, term)
    if isinstance(held, MarkovReference):
        return _along(held, op, None, iteration)
    lacking = _lacking(held, op, [None] * len(op.grid_shape), iteration)
    return lacking.shifted(_even(held, op).posterior_diagonal())


def _explained_value(
    op: KroneckerPlusDiagonal, rows: Sequence[Array | None], *, iteration: Iteration
) -> Estimate:
    held = prepared(op, iteration)
    assert not isinstance(held, TermsReference)
    full = [f.to_dense() if c is None else c for f, c in zip(op.factors, rows, strict=True)]
    if isinstance(held, MarkovReference):
        return _along(held, op, full, iteration)
    lacking = _lacking(held, op, rows, iteration)
    return lacking.scaled(-1.0).shifted(_even(held, op).explained(full))


def _inverse_value(op: KroneckerPlusDiagonal, *, iteration: Iteration) -> Estimate:
    held = prepared(op, iteration)
    if isinstance(held, TermsReference):
        return _inverse_of_terms(held, op, iteration)
    if isinstance(held, MarkovReference):
        return _inverse_along(held, op, iteration)
    return _inverse_of_one(held, op, iteration)


def _even(held: Reference, op: KroneckerPlusDiagonal) -> Any:
    assert isinstance(op.kronecker, Kronecker)
    return signal_plus_noise(KroneckerPlusNoise(op.kronecker, held.noise, decomposition=held.bases))


def _lacking(
    held: Reference,
    op: KroneckerPlusDiagonal,
    rows: Sequence[Array | None],
    iteration: Iteration,
) -> Estimate:
    """`diag(C (S⁻¹ − op⁻¹) Cᵀ)`: how much less uneven data explain than those of the even grid.

    With `G = ⊗(C_i Q_i Λ_i^-½)`, bounded as the covariance of `C` and the signal is positive, this
    is `diag(G s (C_p⁻¹ − I) s Gᵀ)` where `s² = 1/(1 + wΛ)` and `C_p = L M Lᵀ` is what is iterated
    on. A draw `x = L⁻ᵀ M⁻¹ h` has the covariance `C_p⁻¹` if `h` has `M`, and its covariance with
    `x₀ = L⁻ᵀ h` is `L⁻ᵀ L⁻¹`, known: the mean of `Gs x ∘ Gs (x − x₀)` is what is left.
    Where that is the less certain, the mean of `(Gs x)²` stands in, which cannot be negative.
    """
    roots = [_root(basis, row) for basis, row in zip(held.bases, rows, strict=True)]
    scale = jnp.sqrt(held.smooth)

    def to_rows(x: Array) -> Array:
        return apply_all(roots, scale[None] * held.divided(x, transpose=True))

    def draw(key: Array, count: int) -> Drawn:
        white, _ = _with_covariance(held, op.precisions, key, count)
        krylov = solve_white(held, white, iteration)
        found = to_rows(krylov.solution)
        rest = found * (found - to_rows(white))
        return Drawn(rest, found**2, krylov.relative_residual, krylov.num_steps)

    shape = tuple(root.shape[0] for root in roots)
    certain = apply_all([root**2 for root in roots], held.smooth)
    known = more_certain(_box_diagonal(held, roots, scale), -certain)
    return by_draws(op, iteration, shape, draw, known)


def _inverse_of_one(held: Reference, op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`diag(op⁻¹)` at the observed cells: `W − W² diag(E)`, or the mean square of `op⁻¹ d`.

    `E` is the posterior covariance of the signal. A draw `d` of the data from the same numbers has
    `op⁻¹ d = W u − W^½ g`, with `u` the draw of `E` and `g` the white noise of the cells.
    """
    precisions = op.precisions
    roots = [_root(basis, None) for basis in held.bases]

    def draw(key: Array, count: int) -> Drawn:
        white, noise = _with_covariance(held, precisions, key, count)
        krylov = solve_white(held, white, iteration)
        found = held.filtered(krylov.solution)
        rest = found * (found - held.filtered(white))
        weights = precisions[None] * found - jnp.sqrt(precisions)[None] * noise
        squares = -(precisions**2)[None] * rest, weights**2
        return Drawn(*squares, krylov.relative_residual, krylov.num_steps)

    lacking = _box_diagonal(held, roots, jnp.sqrt(held.smooth))
    variance = _even(held, op).posterior_diagonal() + lacking
    known = more_certain(precisions - precisions**2 * variance, 0.0)
    return by_draws(op, iteration, op.grid_shape, draw, known)


def _along(
    held: MarkovReference,
    op: KroneckerPlusDiagonal,
    rows: Sequence[Array] | None,
    iteration: Iteration,
) -> Estimate:
    """The posterior variances along a Markov axis, or what data explain of places with `rows`.

    Those of the even grid are exact. What gaps and uneven noise change is the mean difference of
    the squares of twins; where that is the less certain, the mean square itself stands in.
    """

    def draw(key: Array, count: int) -> Drawn:
        fields, _, found = drawn_twins(held, op, iteration, key, count)
        if rows is None:
            here, there = fields - found.smooth, fields - found.even_smooth
        else:
            here, there = (apply_all(rows, x) for x in (found.weights, found.even_weights))
        return Drawn(here**2 - there**2, here**2, found.residual, found.num_steps)

    certain = held.variances() if rows is None else held.even.explained(rows)
    return by_draws(op, iteration, certain.shape, draw, more_certain(certain, 0.0))


def _inverse_along(
    held: MarkovReference, op: KroneckerPlusDiagonal, iteration: Iteration
) -> Estimate:
    """`diag(op⁻¹)` as `W − W² diag(E)` by twins as above, or as the mean of `(op⁻¹ d)²`."""
    precisions = op.precisions

    def draw(key: Array, count: int) -> Drawn:
        fields, noise, found = drawn_twins(held, op, iteration, key, count)
        here, there = fields - found.smooth, fields - found.even_smooth
        # `W (d − f)`, which is no difference of large numbers.
        weights = precisions[None] * here + jnp.sqrt(precisions)[None] * noise
        squares = (precisions**2)[None] * (there**2 - here**2)
        return Drawn(squares, weights**2, found.residual, found.num_steps)

    known = more_certain(precisions - precisions**2 * held.variances(), 0.0)
    return by_draws(op, iteration, op.grid_shape, draw, known)


def _inverse_of_terms(
    held: TermsReference, op: KroneckerPlusDiagonal, iteration: Iteration
) -> Estimate:
    """`diag(op⁻¹)` of a signal of several terms: of two ways the more certain, as for one."""
    found, precisions = terms_posterior(held, op, iteration, None), op.precisions
    key = jax.random.fold_in(jax.random.key(iteration.seed), 2)
    solved = solve_terms(held, op.draw(key, (iteration.num_draws,)), iteration)
    squares = jnp.square(solved.solution)
    plain = jnp.std(squares, axis=0) / jnp.sqrt(iteration.num_draws - 1.0).astype(op.dtype)
    standard_error = precisions**2 * found.standard_error
    is_plain = plain < standard_error
    value = precisions - precisions**2 * found.value
    standard_error = jnp.where(is_plain, plain, standard_error)
    return Estimate(
        value=jnp.where(is_plain, jnp.mean(squares, axis=0), value),
        error=skew_quantile(iteration.num_draws) * standard_error,
        standard_error=standard_error,
        residual=jnp.maximum(found.residual, solved.certificate.residual),
        num_steps=jnp.maximum(found.num_steps, solved.certificate.num_steps),
        converged=found.converged & solved.certificate.converged,
    )


def _root(basis: Eigenbasis, row: Array | None) -> Array:
    """`C_i Q_i Λ_i^-½`; eigenvalues that are rounding stand for directions without signal."""
    vectors, values = basis.matrix(), basis.values
    least = values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(values)
    has_signal = values > least
    inverse = jnp.where(has_signal, 1 / jnp.sqrt(jnp.where(has_signal, values, 1)), 0)
    if row is None:
        roots = jnp.where(has_signal, jnp.sqrt(jnp.where(has_signal, values, 0)), 0)
        return vectors * roots[None]
    return matmul(row, vectors) * inverse[None]


def _with_covariance(
    held: Reference, precisions: Array, key: Array, count: int
) -> tuple[Array, Array]:
    """Draws with the covariance `M = L⁻¹ [1/(1 + wΛ) + t Qᵀ W Q t] L⁻ᵀ`, and the noise in them."""
    prior_key, noise_key = jax.random.split(key)
    shape = (count, *precisions.shape)
    prior = normal_numbers(prior_key, shape, precisions.dtype)
    noise = normal_numbers(noise_key, shape, precisions.dtype)
    heard = held.filter[None] * held.to_spectrum(jnp.sqrt(precisions)[None] * noise)
    return held.divided(jnp.sqrt(held.smooth)[None] * prior + heard), noise


def _box_diagonal(held: Reference, roots: Sequence[Array], scale: Array) -> Array:
    """`diag(G s (L⁻ᵀ L⁻¹ − I) s Gᵀ)`, axis by axis."""
    inner = held.on_box(scale)
    lacking = held.box_inverse - jnp.eye(len(inner), dtype=inner.dtype)
    return held.box_diagonal(roots, inner[:, None] * lacking * inner[None])


def _refuse(operands: Any, constants: Any, tangents: Any, **static: Any) -> NoReturn:
    raise DerivativeOrderError(
        "Variances with gaps or uneven noise are values only; got a derivative of them. "
        "Differentiate kx.iterative_logpdf instead, or kx.iterative_solve."
    )


def _values_only(name: str, answer: Callable[..., Any]) -> RulePrimitive:
    """A function of the operands and settings, a derivative of which raises."""
    return RulePrimitive(
        f"kronax_{name}", lambda operands, _, **static: answer(*operands, **static), _refuse
    )


# `values_only(x)` is `x`; a derivative of it raises.
values_only = RulePrimitive("kronax_values_only", lambda operands, _: operands, _refuse)
_at_places = _values_only("iterative_inverse_at", _at_places_value)
_between_places = _values_only("iterative_between_places", _between_places_value)
_posterior = _values_only("iterative_variances", _posterior_value)
_explained = _values_only("iterative_explained", _explained_value)
_inverse = _values_only("iterative_inverse_diagonal", _inverse_value)
