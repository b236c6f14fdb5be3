"""Variances with gaps and uneven noise: exact by solves at chosen places, by draws everywhere."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import apply_all, matmul, outer, same_rank
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
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.krylov.markov_reference import MarkovReference
from kronax.linalg.krylov.preconditioner import Reference, even, solve_white
from kronax.linalg.krylov.solve import (
    drawn_twins,
    has_box,
    prepared,
    refuse_if_failed,
    solve_columns,
)
from kronax.linalg.krylov.terms_preconditioner import TermsReference
from kronax.linalg.krylov.terms_variances import terms_posterior
from kronax.linalg.markov.lanes import markov_axis
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.sum_of_products import KroneckerTerms
from kronax.linalg.spectral.khatri_rao import CHUNK, mv_rows

# One array per axis, `(m, n_i)`: `m` places with a covariance that is a product.
Rows = tuple[Array, ...]
# Draws that are solved together hold at most this many numbers in one array.
MOST_NUMBERS = 20_000_000


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


@partial(jax.jit, static_argnums=1)
def posterior_estimate(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`iterative_posterior_variances`, whether it converged or not."""
    if isinstance(op.kronecker, KroneckerTerms):
        return _by_twins((op,), iteration=iteration, term=None)
    if markov_axis(op) is not None:
        return _along((op, None), iteration=iteration)
    lacking = _lacking((op, [None] * len(op.grid_shape)), iteration=iteration)
    return _moved(
        lacking, signal_plus_noise(even(op.kronecker, op.precisions)).posterior_diagonal(), 1
    )


@partial(jax.jit, static_argnums=(1, 2))
def term_posterior_estimate(op: KroneckerPlusDiagonal, term: int, iteration: Iteration) -> Estimate:
    """The posterior variance of one term of a signal of several, converged or not."""
    return _by_twins((op,), iteration=iteration, term=term)


@partial(jax.jit, static_argnums=2)
def explained_estimate(
    op: KroneckerPlusDiagonal, rows: Sequence[Array | None], iteration: Iteration
) -> Estimate:
    """`diag(C op⁻¹ Cᵀ)` for `C = ⊗rows[i]`, whether it converged or not.

    `rows[i]` are covariances `(m_i, n_i)` with the coordinates of the axis, those of the signal
    itself for `None`.
    """
    assert not isinstance(op.kronecker, KroneckerTerms)
    if markov_axis(op) is not None:
        return _along((op, list(rows)), iteration=iteration)
    smooth = even(op.kronecker, op.precisions)
    full = [f.to_dense() if c is None else c for f, c in zip(op.factors, rows, strict=True)]
    lacking = _lacking((op, list(rows)), iteration=iteration)
    return _moved(lacking, signal_plus_noise(smooth).explained(full), -1)


@partial(jax.jit, static_argnums=1)
def inverse_estimate(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`diag(op⁻¹)`, zero at the gaps, whether it converged or not."""
    if markov_axis(op) is not None:
        return _inverse_along((op,), iteration=iteration)
    return _inverse((op,), iteration=iteration)


def _moved(estimate: Estimate, known: Array, sign: int) -> Estimate:
    return eqx.tree_at(
        lambda e: e.value, estimate, jnp.add(*same_rank(known, sign * estimate.value))
    )


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


def _at_places_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    op, products = operands
    return _by_places(op, products, iteration, lambda solved: solved.quadratics[0])


def _between_places_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    op, products = operands

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


def _lacking_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    """`diag(C (S⁻¹ − op⁻¹) Cᵀ)`: how much less uneven data explain than those of the even grid.

    With `G = ⊗(C_i Q_i Λ_i^-½)`, bounded as the covariance of `C` and the signal is positive, this
    is `diag(G s (C_p⁻¹ − I) s Gᵀ)` where `s² = 1/(1 + wΛ)` and `C_p = L M Lᵀ` is what is iterated
    on. A draw `x = L⁻ᵀ M⁻¹ h` has the covariance `C_p⁻¹` if `h` has `M`, and its covariance with
    `x₀ = L⁻ᵀ h` is `L⁻ᵀ L⁻¹`, known exactly: the mean of `Gs x ∘ Gs (x − x₀)` is what is left.
    Where that is the less certain, the mean of `(Gs x)²` stands in, which cannot be negative.
    """
    op, rows = operands
    held = prepared(op, iteration)
    assert isinstance(held, Reference)
    roots = [_root(basis, row) for basis, row in zip(held.bases, rows, strict=True)]
    scale = jnp.sqrt(held.smooth)

    def to_rows(x: Array) -> Array:
        return apply_all(roots, scale[None] * held.divided(x, transpose=True))

    def terms(drawn: _Drawn) -> Array:
        found = to_rows(drawn.solution)
        return jnp.stack([found * (found - to_rows(drawn.white)), found**2])

    shape = tuple(root.shape[0] for root in roots)
    certain = apply_all([root**2 for root in roots], held.smooth)
    known = jnp.stack([_box_diagonal(held, roots, scale), -certain])
    return by_draws(op, iteration, shape, _from_spectrum(held, op, iteration, terms), known)


def _inverse_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    """`diag(op⁻¹)` at the observed cells: `W − W² diag(E)`, or the mean square of `op⁻¹ d`.

    `E` is the posterior covariance of the signal. A draw `d` of the data from the same numbers has
    `op⁻¹ d = W u − W^½ g`, with `u` the draw of `E` and `g` the white noise of the cells.
    """
    (op,) = operands
    held = prepared(op, iteration)
    assert isinstance(held, Reference)
    precisions = op.precisions
    roots = [_root(basis, None) for basis in held.bases]
    scale = jnp.sqrt(held.smooth)

    def terms(drawn: _Drawn) -> Array:
        found = held.filtered(drawn.solution)
        rest = found * (found - held.filtered(drawn.white))
        weights = precisions[None] * found - jnp.sqrt(precisions)[None] * drawn.noise
        return jnp.stack([-(precisions**2)[None] * rest, weights**2])

    even_variance = signal_plus_noise(even(op.kronecker, precisions)).posterior_diagonal()
    variance = even_variance + _box_diagonal(held, roots, scale)
    first = precisions - precisions**2 * variance
    known = jnp.stack([first, jnp.zeros_like(first)])
    draw = _from_spectrum(held, op, iteration, terms)
    return by_draws(op, iteration, op.grid_shape, draw, known)


def _along_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    """The posterior variances along a Markov axis, or what data explain of places with `rows`.

    Those of the even grid are exact. What gaps and uneven noise change is the mean difference of
    the squares of twins; where that is the less certain, the mean square itself stands in.
    """
    op, rows = operands
    held = prepared(op, iteration)
    assert isinstance(held, MarkovReference)

    def draw(key: Array, count: int) -> tuple[Array, Krylov]:
        fields, _, found = drawn_twins(held, op, iteration, key, count)
        if rows is None:
            here, there = fields - found.smooth, fields - found.even_smooth
        else:
            here, there = (apply_all(full, x) for x in (found.weights, found.even_weights))
        return jnp.stack([here**2 - there**2, here**2]), found.krylov

    if rows is None:
        certain = held.variances()
    else:
        full = [f.to_dense() if c is None else c for f, c in zip(op.factors, rows, strict=True)]
        certain = held.even.explained(full)
    known = jnp.stack([certain, jnp.zeros_like(certain)])
    return by_draws(op, iteration, certain.shape, draw, known)


def _inverse_along_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    """`diag(op⁻¹)` as `W − W² diag(E)` by twins as above, or as the mean of `(op⁻¹ d)²`."""
    (op,) = operands
    held = prepared(op, iteration)
    assert isinstance(held, MarkovReference)
    precisions = op.precisions

    def draw(key: Array, count: int) -> tuple[Array, Krylov]:
        fields, noise, found = drawn_twins(held, op, iteration, key, count)
        here, there = fields - found.smooth, fields - found.even_smooth
        # `W (d − f)`, which is no difference of large numbers.
        weights = precisions[None] * here + jnp.sqrt(precisions)[None] * noise
        squares = (precisions**2)[None] * (there**2 - here**2)
        return jnp.stack([squares, weights**2]), found.krylov

    first = precisions - precisions**2 * held.variances()
    known = jnp.stack([first, jnp.zeros_like(first)])
    return by_draws(op, iteration, op.grid_shape, draw, known)


class _Drawn(NamedTuple):
    """Draws with the covariance `M`, the noise in them, and `M⁻¹` of them."""

    white: Array
    noise: Array
    solution: Array


def _from_spectrum(
    held: Reference,
    op: KroneckerPlusDiagonal,
    iteration: Iteration,
    terms: Callable[[_Drawn], Array],
) -> Callable[[Array, int], tuple[Array, Krylov]]:
    """`terms` of draws with the covariance `M`."""

    def draw(key: Array, count: int) -> tuple[Array, Krylov]:
        white, noise = _with_covariance(held, op.precisions, key, count)
        krylov = solve_white(held, white, iteration)
        return terms(_Drawn(white, noise, krylov.solution)), krylov

    return draw


def by_draws(
    op: KroneckerPlusDiagonal,
    iteration: Iteration,
    shape: tuple[int, ...],
    draw: Callable[[Array, int], tuple[Array, Krylov]],
    known: Array,
) -> Estimate:
    """`known` plus the mean of draws, `(2, count, *shape)`: of two ways the more certain."""
    size = max(prod(shape), prod(op.grid_shape))
    num_chunks = -(-iteration.num_draws * size // MOST_NUMBERS)
    count = -(-iteration.num_draws // num_chunks)

    def one(total: tuple[Array, Array], key: Array) -> Any:
        found, krylov = draw(key, count)
        total = (total[0] + jnp.sum(found, 1), total[1] + jnp.sum(found**2, 1))
        return total, (jnp.max(krylov.relative_residual), jnp.max(krylov.num_steps))

    keys = jax.random.split(jax.random.fold_in(jax.random.key(iteration.seed), 1), num_chunks)
    zero = jnp.zeros((2, *shape), op.dtype)
    (total, squares), (residuals, steps) = lax.scan(one, (zero, zero), keys)
    num = num_chunks * count
    mean = total / num
    errors = jnp.sqrt(jnp.maximum(squares / num - mean**2, 0) / (num - 1))
    value, is_first = known + mean, errors[0] <= errors[1]
    standard_error = jnp.where(is_first, errors[0], errors[1])
    residual = jnp.max(residuals)
    return Estimate(
        value=jnp.where(is_first, value[0], value[1]),
        error=skew_quantile(num) * standard_error,
        standard_error=standard_error,
        residual=residual,
        num_steps=jnp.max(steps),
        converged=residual <= 10 * iteration.tolerance_of(op.dtype),
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


def _by_twins_value(operands: Any, _: Any, *, iteration: Iteration, term: int | None) -> Estimate:
    (op,) = operands
    held = prepared(op, iteration)
    assert isinstance(held, TermsReference)
    return terms_posterior(held, iteration, term, MOST_NUMBERS)


def _refuse(operands: Any, constants: Any, tangents: Any, **static: Any) -> NoReturn:
    raise DerivativeOrderError(
        "Variances with gaps or uneven noise are values only; got a derivative of them. "
        "Differentiate kx.iterative_logpdf instead, or kx.iterative_solve."
    )


# `values_only(x)` is `x`; a derivative of it raises.
values_only = RulePrimitive("kronax_values_only", lambda operands, _: operands, _refuse)
_at_places = RulePrimitive("kronax_iterative_inverse_at", _at_places_value, _refuse)
_between_places = RulePrimitive("kronax_iterative_between_places", _between_places_value, _refuse)
_lacking = RulePrimitive("kronax_iterative_variances", _lacking_value, _refuse)
_inverse = RulePrimitive("kronax_iterative_inverse_diagonal", _inverse_value, _refuse)
_along = RulePrimitive("kronax_iterative_variances_along", _along_value, _refuse)
_inverse_along = RulePrimitive("kronax_iterative_inverse_along", _inverse_along_value, _refuse)
_by_twins = RulePrimitive("kronax_terms_variances", _by_twins_value, _refuse)
