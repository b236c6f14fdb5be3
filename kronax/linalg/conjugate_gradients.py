"""Conjugate gradients for many right-hand sides, which say what they know about the spectrum.

The coefficients of conjugate gradients are those of Lanczos' method: with `b = ‖b‖ e₁` they hold a
tridiagonal matrix `T` whose quadrature gives `bᵀ f(A) b ≈ ‖b‖² (f(T))₁₁`. Libraries of solvers
return the solution alone, and libraries of Lanczos' method keep every basis vector and run again
for the solution. Here one pass of `O(N)` memory a column gives the solution, the quadrature of the
logarithm and a bound of the smallest eigenvalue, by recurrences in the pivots of `T + s`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# log x = ∫ [1/(1 + eᵘ) − 1/(x + eᵘ)] eᵘ du. The integrand is analytic for |Im u| < π and decays
# like e^-|u|: the trapezoid rule with this step is right to 1e-12 for x in [1e-6, 1e2].
STEP = 0.7
NODES = np.exp(np.arange(-42, 34, STEP))
# Shifts that look for the smallest eigenvalue: T − s is positive definite just below it.
TRIALS = np.geomspace(1e-8, 1, 49)


class Krylov(NamedTuple):
    """What the iteration found, one entry per column.

    Args:
        solution: `(k, *space)`.
        residual: the norm of `b − A x`, computed from the solution.
        scale: what the residual is measured against.
        num_steps: iterations.
        log_form: `bᵀ log(A) b / bᵀ b`, for what is left of `A` by the preconditioner.
        first: `bᵀ A b / bᵀ b`, likewise.
        smallest: the smallest eigenvalue that was seen, from below to the next of `TRIALS`.
    """

    solution: Float[Array, "k *space"]
    residual: Float[Array, " k"]
    scale: Float[Array, " k"]
    num_steps: Float[Array, " k"]
    log_form: Float[Array, " k"]
    first: Float[Array, " k"]
    smallest: Float[Array, " k"]

    @property
    def relative_residual(self) -> Array:
        """The residual over its scale; zero where both are."""
        return self.residual / jnp.where(self.scale > 0, self.scale, 1)


class _State(NamedTuple):
    step: Any
    x: Any
    r: Any
    p: Any
    gamma: Any
    energy: Any
    num_steps: Any
    active: Any
    recurrence: "_Recurrence"


class _Recurrence(NamedTuple):
    """Pivots of `T + s` for every shift `s`, and `((T + s)⁻¹)₁₁` summed up from them."""

    pivots: Any
    weights: Any
    inverses: Any
    first: Any
    beta_over_alpha: Any
    coupling: Any


def conjugate_gradients(
    mv: Callable[[Array], Array],
    b: Float[Array, "k *space"],
    *,
    energy: Float[Array, " k"],
    is_solve: Float[Array, " k"],
    tolerance: float,
    max_steps: int,
    precondition: Callable[[Array], Array] = lambda r: r,
    preconditioned: Float[Array, "k *space"] | None = None,
) -> Krylov:
    """Solve `A x = b` for every column, for a symmetric positive definite `A`.

    A column is done once its residual is below `tolerance` times the root of its energy. With a
    preconditioner `M` norms and forms are those of `M^-½ r`, and the spectrum is that of
    `M^-½ A M^-½`.

    Args:
        mv: multiplies columns `(k, *space)`.
        b: the columns.
        energy: what the residual of each column is measured against, squared.
        is_solve: 1 where the energy is `c − bᵀ A⁻¹ b` with `c` given in `energy`, and falls during
            the iteration to what the solution leaves; else 0.
        tolerance: relative to the root of the energy.
        max_steps: at most.
        precondition: multiplies columns by `M⁻¹`, symmetric positive definite.
        preconditioned: `M⁻¹ b`, where it is known.
    """
    ndim = b.ndim - 1

    def dot(u: Array, v: Array) -> Array:
        return jnp.sum(u * v, axis=tuple(range(1, ndim + 1)))

    def column(v: Array) -> Array:
        return v.reshape(-1, *(1,) * ndim)

    # What an energy that falls leaves is rounded to this.
    least = jnp.finfo(b.dtype).eps * energy

    def unfinished(gamma: Array, energy: Array) -> Array:
        return gamma > tolerance**2 * jnp.maximum(energy, least)

    def body(s: _State) -> _State:
        q = mv(s.p)
        alpha = jnp.where(s.active, s.gamma / jnp.where(s.active, dot(s.p, q), 1), 0)
        x = s.x + column(alpha) * s.p
        r = s.r - column(alpha) * q
        z = precondition(r)
        gamma = jnp.where(s.active, dot(r, z), s.gamma)
        beta = jnp.where(s.active, gamma / jnp.where(s.active, s.gamma, 1), 0)
        energy = s.energy - is_solve * alpha * s.gamma
        return _State(
            step=s.step + 1,
            x=x,
            r=r,
            p=z + column(beta) * s.p,
            gamma=gamma,
            energy=energy,
            num_steps=s.num_steps + s.active.astype(jnp.int32),
            active=s.active & unfinished(gamma, energy),
            recurrence=_advance(s.recurrence, alpha, beta, s.active),
        )

    z = precondition(b) if preconditioned is None else preconditioned
    gamma = dot(b, z)
    start = _State(
        step=jnp.zeros((), jnp.int32),
        x=jnp.zeros_like(b),
        r=b,
        p=z,
        gamma=gamma,
        energy=energy,
        num_steps=jnp.zeros(b.shape[0], jnp.int32),
        active=unfinished(gamma, energy),
        recurrence=_first(b),
    )
    end = lax.while_loop(lambda s: (s.step < max_steps) & jnp.any(s.active), body, start)
    residual = b - mv(end.x)
    return Krylov(
        solution=end.x,
        residual=jnp.sqrt(jnp.maximum(dot(residual, precondition(residual)), 0)),
        scale=jnp.sqrt(jnp.maximum(end.energy, least)),
        num_steps=end.num_steps,
        **_quadrature(end.recurrence),
    )


def _first(b: Array) -> _Recurrence:
    shifts = len(NODES) + len(TRIALS)
    one = jnp.ones((b.shape[0], shifts), b.dtype)
    zero = jnp.zeros(b.shape[0], b.dtype)
    return _Recurrence(
        pivots=one,
        weights=one,
        inverses=0 * one,
        first=zero + 1,
        beta_over_alpha=zero,
        coupling=zero,
    )


def _advance(s: _Recurrence, alpha: Array, beta: Array, active: Array) -> _Recurrence:
    """One more row of `T`: `1/α_k + β_{k−1}/α_{k−1}`, and `√β_k / α_k` beside it."""
    shifts = jnp.asarray(np.concatenate([NODES, -TRIALS]), alpha.dtype)
    inverse = 1 / jnp.where(active, alpha, 1)
    entry = inverse + s.beta_over_alpha
    begins = s.coupling == 0
    ratio = s.coupling[:, None] / s.pivots
    pivots = entry[:, None] + shifts[None] - ratio
    # A pivot that was not positive stays so: T − s is indefinite from there on.
    lost = (s.pivots <= 0) & (jnp.arange(len(shifts)) >= len(NODES))[None]
    pivots = jnp.where(lost, -1.0, pivots)
    weights = jnp.where(begins[:, None], 1.0, s.weights * ratio / s.pivots)
    new = _Recurrence(
        pivots=pivots,
        weights=weights,
        inverses=s.inverses + weights / pivots,
        first=jnp.where(begins, entry, s.first),
        beta_over_alpha=beta * inverse,
        coupling=beta * inverse**2,
    )
    return _Recurrence(
        *(
            jnp.where(active.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
            for a, b in zip(new, s, strict=True)
        )
    )


def _quadrature(s: _Recurrence) -> dict[str, Array]:
    count = len(NODES)
    nodes = jnp.asarray(NODES, s.first.dtype)
    terms = (nodes / (1 + nodes))[None] - nodes[None] * s.inverses[:, :count]
    held = s.pivots[:, count:] > 0
    trials = jnp.asarray(TRIALS, s.first.dtype)
    return {
        "log_form": STEP * jnp.sum(terms, axis=-1),
        "first": s.first,
        "smallest": jnp.max(jnp.where(held, trials[None], trials[0]), axis=-1),
    }
