"""Variances with gaps and uneven noise: exact by solves at chosen places, by draws everywhere."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.diagonals import conjugated_inverse_diagonal
from kronax.linalg.estimates import DEFAULT, Estimate, Iteration, quantile, settled
from kronax.linalg.iterative_solve import prepared, refuse_if_failed, solve_columns
from kronax.linalg.reference import even
from kronax.linalg.rules import DerivativeOrderError, RulePrimitive
from kronax.linalg.sample import draw_normal
from kronax.linalg.scattered import CHUNK
from kronax.linalg.solve import solve_grid
from kronax.linalg.uneven import KroneckerPlusDiagonal


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
    estimate = _inverse_at(op, tuple(rows), iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the solves at scattered places")


def iterative_posterior_variances(
    op: KroneckerPlusDiagonal, *, iteration: Iteration = DEFAULT
) -> Estimate:
    """The variance of the signal at every cell given noisy data, `diag(K − K op⁻¹ K)`.

    From `iteration.num_probes` draws of the posterior, all solved at once. Each comes with a draw
    of the posterior on an even grid without gaps, made of the same random numbers, whose variance
    is known exactly; the regression on it leaves little error where data are as dense as there. In
    the middle of a gap the relative standard error is `√(2 / num_probes)`. Values only:
    differentiating raises.

    Args:
        op: the covariance of the data.
        iteration: how; 64 probes or more are advised.

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
    estimate = _posterior_variances(op, iteration)
    refuse_if_failed(estimate, op)
    return settled(estimate, iteration, "the draws")


@partial(jax.jit, static_argnums=2)
def _inverse_at(
    op: KroneckerPlusDiagonal, rows: tuple[Array, ...], iteration: Iteration
) -> Estimate:
    return _at_places((op, rows), iteration=iteration)


def _at_places_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    op, rows = operands
    held = prepared(op, iteration)

    def one(place: tuple[Array, ...]) -> Any:
        c = place[0]
        for row in place[1:]:
            c = c[..., None] * row
        solved = solve_columns(held, op, op.held(c)[None], iteration)
        return (solved.quadratics[0], solved.errors[0]), solved.certificate

    chunk = max(1, min(rows[0].shape[0], CHUNK // (4 * prod(op.grid_shape))))
    (values, errors), certificate = lax.map(one, rows, batch_size=chunk)
    return Estimate(
        value=values,
        error=jnp.max(errors),
        standard_error=jnp.zeros((), op.dtype),
        residual=jnp.max(certificate.residual),
        num_steps=jnp.max(certificate.num_steps),
        converged=jnp.all(certificate.converged),
    )


@partial(jax.jit, static_argnums=1)
def _posterior_variances(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    return _by_draws((op,), iteration=iteration)


def _by_draws_value(operands: Any, _: Any, *, iteration: Iteration) -> Estimate:
    (op,) = operands
    num = iteration.num_probes
    smooth = even(op.kronecker, op.precisions)
    noise: Any = smooth.noise
    signal_key, noise_key = jax.random.split(jax.random.key(iteration.seed))
    signal = draw_normal(signal_key, op.kronecker, (num,))
    white = jax.random.normal(noise_key, signal.shape, op.dtype)
    scale = jnp.sqrt(jnp.where(op.observed, op.variances, 0))
    solved = solve_columns(prepared(op, iteration), op, op.held(signal + scale * white), iteration)
    even_solution = solve_grid(smooth, signal + jnp.sqrt(noise) * white)
    draw = signal - op.kronecker.mv_grid(solved.solution)
    even_draw = signal - op.kronecker.mv_grid(even_solution)
    none = [None] * len(op.grid_shape)
    known = noise - noise**2 * conjugated_inverse_diagonal(smooth, none)
    value, standard_error = _regressed(draw**2, even_draw**2, known)
    return Estimate(
        value=value,
        error=quantile(num - 1) * standard_error,
        standard_error=standard_error,
        residual=solved.certificate.residual,
        num_steps=solved.certificate.num_steps,
        converged=solved.certificate.converged,
    )


def _regressed(x: Array, control: Array, known: Array) -> tuple[Array, Array]:
    """The mean of `x` by regression on `control` of known mean, and its standard error."""
    num = x.shape[0]
    x_mean, control_mean = jnp.mean(x, 0), jnp.mean(control, 0)
    x_rest, control_rest = x - x_mean, control - control_mean
    spread = jnp.sum(control_rest**2, 0)
    slope = jnp.sum(x_rest * control_rest, 0) / jnp.where(spread > 0, spread, 1)
    left = jnp.sum((x_rest - slope * control_rest) ** 2, 0) / (num - 2)
    # Along the control too the mean is off: its distance enters as in any regression.
    distance = (known - control_mean) ** 2 / jnp.where(spread > 0, spread, 1)
    return x_mean + slope * (known - control_mean), jnp.sqrt(left * (1 / num + distance))


def _refuse(operands: Any, constants: Any, tangents: Any, **static: Any) -> NoReturn:
    raise DerivativeOrderError(
        "Variances with gaps or uneven noise are values only; got a derivative of them. "
        "Differentiate kx.iterative_logpdf instead, or kx.iterative_solve."
    )


_at_places = RulePrimitive("kronax_iterative_inverse_at", _at_places_value, _refuse)
_by_draws = RulePrimitive("kronax_iterative_variances", _by_draws_value, _refuse)
