"""Conjugate gradients for many right-hand sides, which say what they know about the spectrum.

The coefficients of conjugate gradients are those of Lanczos' method: with `b = ‖b‖ e₁` they hold a
tridiagonal matrix `T` whose quadrature gives `bᵀ f(A) b ≈ ‖b‖² (f(T))₁₁`. Libraries of solvers
return the solution alone, and libraries of Lanczos' method keep every basis vector and run again
for the solution. Here one pass of `O(N)` memory a column gives the solution and quadratures of the
logarithm, by recurrences in the pivots of `T + s`.

Of the spectrum a bound from below is given, never taken from what was seen: an eigenvalue that the
iteration has not met is smaller than any it has. Gauss' quadrature of the logarithm is then right
from above and that of Gauss and Radau, with a node at the bound, from below; what a column has of
eigenvalues not met yet is at most its relative residual, squared.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import SLACK

# log x = ∫ [1/(1 + eᵘ) − 1/(x + eᵘ)] eᵘ du. The integrand is analytic for |Im u| < π and decays
# like e^-|u|: the trapezoid rule with this step is right to 1e-12 for x in [1e-6, 1e2].
STEP = 0.7
NODES = np.exp(np.arange(-42, 34, STEP))
# What a solve may leave of its energy, as a share of the tolerance.
LEFT = 0.1


class Krylov(NamedTuple):
    """What the iteration found, one entry per column.

    Args:
        solution: `(k, *space)`.
        residual: the norm of `b − A x`, computed from the solution.
        scale: what the residual is measured against.
        left: what the solution lacks of `bᵀ A⁻¹ b`, at most.
        num_steps: iterations.
        log_form: `bᵀ log(A) b / bᵀ b` from above, for what the preconditioner leaves of `A`.
        log_left: by how much at most.
        log_square: `bᵀ log(A)² b / bᵀ b`, likewise.
        remainder_square: `bᵀ (log A − (A − I))² b / bᵀ b`, likewise.
        first: `bᵀ A b / bᵀ b`, likewise.
        cross: `bᵀ log(A) (A − I) b / bᵀ b`, likewise.
        second: `bᵀ (A − I)² b / bᵀ b`, likewise.
    """

    solution: Float[Array, "k *space"]
    residual: Float[Array, " k"]
    scale: Float[Array, " k"]
    left: Float[Array, " k"]
    num_steps: Float[Array, " k"]
    log_form: Float[Array, " k"]
    log_left: Float[Array, " k"]
    log_square: Float[Array, " k"]
    remainder_square: Float[Array, " k"]
    first: Float[Array, " k"]
    cross: Float[Array, " k"]
    second: Float[Array, " k"]

    @property
    def relative_residual(self) -> Array:
        """The residual over its scale; zero where both are."""
        return self.residual / jnp.where(self.scale > 0, self.scale, 1)

    @property
    def ended(self) -> tuple[Array, Array]:
        """The relative residual and the number of steps."""
        return self.relative_residual, self.num_steps

    def has_converged(self, num_solves: int, tolerance: float) -> Array:
        """Whether every column is near its tolerance, and what solves leave is."""
        is_small = jnp.max(self.relative_residual, initial=0.0) <= SLACK * tolerance
        left = self.left[:num_solves] <= SLACK * LEFT * tolerance * self.scale[:num_solves] ** 2
        return is_small & jnp.all(left)


class _State(NamedTuple):
    step: Any
    x: Any
    r: Any
    p: Any
    gamma: Any
    energy: Any
    num_steps: Any
    active: Any
    has_ended: Any
    recurrence: "_Recurrence"


class _Recurrence(NamedTuple):
    """Pivots of `T + s` for every shift `s`, and `((T + s)⁻¹)₁₁` summed up from them."""

    pivots: Any
    weights: Any
    inverses: Any
    first: Any
    second: Any
    beta_over_alpha: Any
    coupling: Any


def conjugate_gradients(
    mv: Callable[[Array], Array],
    b: Float[Array, "k *space"],
    *,
    energy: Float[Array, " k"],
    num_solves: int,
    falls: bool = True,
    tolerance: float | Float[Array, " k"],
    max_steps: int,
    bound: Callable[[Array], Array],
    least: Float[Array, ""],
    precondition: Callable[[Array], Array] = lambda r: r,
    preconditioned: Float[Array, "k *space"] | None = None,
) -> Krylov:
    """Solve `A x = b` for every column, for a symmetric positive definite `A`.

    A column is done once its residual is below `tolerance` times the root of its energy; a solve
    also has to leave less than a tenth of `tolerance` of it. With a preconditioner `M` norms and
    forms are those of `M^-½ r`, and the spectrum is that of `M^-½ A M^-½`.

    Args:
        mv: multiplies columns `(k, *space)`.
        b: the columns.
        energy: what the residual of each column is measured against, squared.
        num_solves: as many columns, the first ones, are solves.
        falls: whether the energy of solves is `c − bᵀ A⁻¹ b` with `c` given in `energy`, and falls
            during the iteration to what the solution leaves.
        tolerance: relative to the root of the energy, one for all or one per column.
        max_steps: at most.
        bound: of `rᵀ A⁻¹ r` per column, from above.
        least: a bound of the spectrum from below.
        precondition: multiplies columns by `M⁻¹`, symmetric positive definite.
        preconditioned: `M⁻¹ b`, where it is known.
    """
    # What an energy that falls leaves is rounded to this.
    rounded = jnp.finfo(b.dtype).eps * energy
    falling = (jnp.arange(b.shape[0]) < (num_solves if falls else 0)).astype(b.dtype)

    def unfinished(r: Array, gamma: Array, energy: Array) -> Array:
        energy = jnp.maximum(energy, rounded)
        is_large = gamma > tolerance**2 * energy
        if num_solves == 0:
            return is_large
        is_left = bound(r[:num_solves]) > (LEFT * tolerance * energy)[:num_solves]
        return is_large.at[:num_solves].max(is_left)

    def body(s: _State) -> _State:
        # The last turn finds what is truly left: inside the loop, a program holds `A` and `M` once.
        is_last = ~(jnp.any(s.active) & (s.step < max_steps))
        active = s.active & ~is_last
        q = mv(jnp.where(is_last, s.x, s.p))
        alpha = jnp.where(active, s.gamma / jnp.where(active, _dot(s.p, q), 1), 0)
        x = s.x + _beside(alpha, b) * s.p
        r = jnp.where(is_last, b - q, s.r - _beside(alpha, b) * q)
        z = precondition(r)
        gamma = jnp.where(active | is_last, _dot(r, z), s.gamma)
        beta = jnp.where(active, gamma / jnp.where(active, s.gamma, 1), 0)
        energy = s.energy - falling * alpha * s.gamma
        return _State(
            step=s.step + 1,
            x=x,
            r=r,
            p=z + _beside(beta, b) * s.p,
            gamma=gamma,
            energy=energy,
            num_steps=s.num_steps + active.astype(jnp.int32),
            active=active & unfinished(r, gamma, energy),
            has_ended=is_last,
            recurrence=_advance(s.recurrence, alpha, beta, active, least),
        )

    z = precondition(b) if preconditioned is None else preconditioned
    gamma = _dot(b, z)
    start = _start(b, z, gamma, energy, unfinished(b, gamma, energy), least)
    end = lax.while_loop(lambda s: ~s.has_ended, body, start)
    return Krylov(
        solution=end.x,
        residual=jnp.sqrt(jnp.maximum(end.gamma, 0)),
        scale=jnp.sqrt(jnp.maximum(end.energy, rounded)),
        left=bound(end.r),
        num_steps=end.num_steps,
        **_quadrature(end.recurrence, least),
    )


def _start(b: Array, z: Array, gamma: Array, energy: Array, active: Array, least: Array) -> _State:
    return _State(
        step=jnp.zeros((), jnp.int32),
        x=jnp.zeros_like(b),
        r=b,
        p=z,
        gamma=gamma,
        energy=energy,
        num_steps=jnp.zeros(b.shape[0], jnp.int32),
        active=active,
        has_ended=jnp.zeros((), bool),
        recurrence=_first(b, least),
    )


def _dot(u: Array, v: Array) -> Array:
    """Per column."""
    return jnp.sum(u * v, axis=tuple(range(1, u.ndim)))


def _beside(numbers: Array, columns: Array) -> Array:
    """One number per column, to multiply it by."""
    return numbers.reshape(-1, *(1,) * (columns.ndim - 1))


def _shifts(least: Array) -> Array:
    return jnp.append(jnp.asarray(NODES, least.dtype), -least)


def _first(b: Array, least: Array) -> _Recurrence:
    one = jnp.ones((b.shape[0], _shifts(least).size), b.dtype)
    zero = jnp.zeros(b.shape[0], b.dtype)
    return _Recurrence(
        pivots=one,
        weights=one,
        inverses=0 * one,
        first=zero + 1,
        second=zero,
        beta_over_alpha=zero,
        coupling=zero,
    )


def _advance(s: _Recurrence, alpha: Array, beta: Array, active: Array, least: Array) -> _Recurrence:
    """One more row of `T`: `1/α_k + β_{k−1}/α_{k−1}`, and `√β_k / α_k` beside it."""
    inverse = 1 / jnp.where(active, alpha, 1)
    entry = inverse + s.beta_over_alpha
    begins = s.coupling == 0
    ratio = s.coupling[:, None] / s.pivots
    pivots = entry[:, None] + _shifts(least)[None] - ratio
    weights = where(begins[:, None], 1.0, s.weights * ratio / s.pivots)
    coupling = beta * inverse**2
    new = _Recurrence(
        pivots=pivots,
        weights=weights,
        inverses=s.inverses + weights / pivots,
        first=jnp.where(begins, entry, s.first),
        second=jnp.where(begins, (entry - 1) ** 2 + coupling, s.second),
        beta_over_alpha=beta * inverse,
        coupling=coupling,
    )
    return _Recurrence(*(jnp.where(_beside(active, a), a, b) for a, b in zip(new, s, strict=True)))


def _quadrature(s: _Recurrence, least: Array) -> dict[str, Array]:
    """Of what `1/(1 + s) − ((T + s)⁻¹)₁₁` integrates to over the shifts `s = eᵘ`.

    With it `log² x` is the integral of `2u`, and `x log x` that of `(x − 1)/(1 + s) − s` times it:
    close to `x (x − 1)/s²` where `s` is large and the difference would be rounding.
    """
    count = len(NODES)
    nodes = jnp.asarray(NODES, s.first.dtype)[None]
    deviation = 1 / (1 + nodes) - s.inverses[:, :count]

    def integral(f: Array) -> Array:
        return STEP * jnp.sum(nodes * f, axis=-1)

    log = integral(deviation)
    square = integral(2 * jnp.log(nodes) * deviation)
    first = s.first[:, None] - 1
    product = first / (1 + nodes) - nodes * deviation
    far = (s.second[:, None] + first) / (1 + nodes) ** 2
    product = integral(jnp.where(nodes > jnp.finfo(nodes.dtype).eps ** -0.25, far, product))
    return {
        "log_form": log,
        "log_left": integral(_radau(s, least, count)),
        "log_square": jnp.maximum(square, 0),
        "remainder_square": jnp.maximum(square - 2 * (product - log) + s.second, 0),
        "first": s.first,
        "cross": product - log,
        "second": s.second,
    }


def _radau(s: _Recurrence, least: Array, count: int) -> Array:
    """What one more row of `T` adds to `((T + s)⁻¹)₁₁` if it makes `least` an eigenvalue."""
    ratio = s.coupling[:, None] / s.pivots
    pivots = least + ratio[:, count:] + jnp.asarray(NODES, s.first.dtype)[None] - ratio[:, :count]
    return (s.weights * ratio / s.pivots)[:, :count] / pivots
