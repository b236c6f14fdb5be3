"""The search for the sites of a likelihood.

*Variational*: of all normal distributions the one nearest to the posterior by the divergence
`KL(q ‖ p)`. At cell marginals `(m, v)` its sites are `W = E[−∂² log p(y|f)]` and
`z = m + E[∂ log p(y|f)] / W`. *Laplace*: the same with the log density's own derivatives at the
mode, without averages.

For fixed variances the mean maximises `Σ E log p(y|f) − ½ aᵀ K a` with `m = K a`, and conditioning
on the sites is its Newton step: a search along the line between two means costs nothing but the
likelihood, and makes it safe from any start. The variances follow one step behind, by all of their
change or, where that swings, by the share that Aitken's relaxation finds from the last two changes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.gp.model.process import AbstractProcess
from kronax.gp.sites.sites import Sites, given, moments

MOST_STEPS = 100
# Halvings of a step along the line.
MOST_HALVINGS = 12
# The least share of their change by which the variances move.
LEAST_SHARE = 0.05


class _Search(NamedTuple):
    """Where the search is: marginals, weights `a`, and the sites that led there."""

    mean: Array
    variance: Array
    weights: Array
    target: Array
    precision: Array
    given_mean: Array
    given_variance: Array
    share: Array
    spread: Array
    change: Array
    count: Array


class Hint(NamedTuple):
    """Where a search may start: the end of one at other parameters. NaN says that there is none."""

    mean: Array
    variance: Array


def no_hint(shape: tuple[int, ...], dtype: Any) -> Hint:
    """Nothing to start from."""
    return Hint(*[np.full(shape, np.nan, dtype)] * 2)


def find(gp: AbstractProcess, y: Array, hint: Hint | None = None) -> tuple[Sites, Hint]:
    """The sites of a process given data, held constant, and where another search may start."""
    return _found(*lax.stop_gradient((gp, y, hint)))


def filled(gp: AbstractProcess, y: Array) -> Array:
    """Data with a possible observation in the gaps."""
    assert gp.likelihood is not None
    return y if gp.observed is None else jnp.where(gp.observed.array, y, gp.likelihood.filler)


def tolerance_of(dtype: Any) -> float:
    """Changes of a step, in deviations, below which sites are found.

    The evidence is stationary in them: its error is the square of this.
    """
    return 1e-6 if jnp.finfo(dtype).eps < 1e-10 else 1e-3


def site_of(gp: AbstractProcess, y: Array, mean: Array, variance: Array | None, prior: Array) -> Any:
    """Targets and precisions of the sites, zero at gaps.

    A precision is at least a tiny share of that of the prior and of the squared slope: the target
    keeps the slope whatever the precision, and stays where numbers carry it. A log density that
    bends upwards, as of an outlier, so has a site that only pulls.
    """
    assert gp.likelihood is not None
    if variance is None:
        slope, bend = gp.likelihood.derivatives(y, mean)
    else:
        slope, bend = gp.likelihood.expected_derivatives(y, mean, variance)
    least = jnp.sqrt(jnp.finfo(mean.dtype).eps) * (jnp.square(slope) + 1 / prior)
    precision = jnp.maximum(bend, least)
    target = mean + slope / precision
    seen = _seen(gp)
    return jnp.where(seen, target, 0), jnp.where(seen, precision, 0)


def expected_log_density(
    gp: AbstractProcess, y: Array, mean: Array, variance: Array | None
) -> Array:
    """`E log p(y|f)` at every cell, zero at gaps."""
    assert gp.likelihood is not None
    if variance is None:
        value = gp.likelihood.log_density(y, mean)
    else:
        value = gp.likelihood.expected(y, mean, variance)
    return jnp.where(_seen(gp), value, 0)


def _seen(gp: AbstractProcess) -> Any:
    return True if gp.observed is None else jnp.asarray(gp.observed.array)


def _found(gp: AbstractProcess, y: Array, hint: Hint | None) -> tuple[Sites, Hint]:
    is_variational = gp.approximation == "variational"
    prior_mean = gp.mean_on((None,) * len(gp.axes))
    prior = jnp.broadcast_to(gp.covariance(include_noise=False).diagonal(), gp.grid_shape)
    tolerance = tolerance_of(y.dtype)

    def conditioned(target: Array, precision: Array) -> tuple[Array, Array, Array]:
        post = given(gp, target, precision)
        mean, variance = moments(post)
        return mean, variance, post.weights

    def averaged(variance: Array) -> Array | None:
        return variance if is_variational else None

    def objective(mean: Array, weights: Array, variance: Array) -> Array:
        fit = jnp.sum(expected_log_density(gp, y, mean, averaged(variance)))
        return fit - jnp.sum(weights * (mean - prior_mean)) / 2

    def first() -> _Search:
        start = jnp.where(_seen(gp), gp.likelihood.start(y), 0)
        sites = site_of(gp, y, start, None, prior)
        if hint is not None:
            is_known = jnp.isfinite(hint.mean).all()
            others = site_of(gp, y, hint.mean, averaged(hint.variance), prior)
            sites = jax.tree.map(lambda a, b: jnp.where(is_known, a, b), others, sites)
        mean, variance, weights = conditioned(*sites)
        one, far = jnp.ones((), y.dtype), jnp.asarray(jnp.inf, y.dtype)
        none, zero = jnp.zeros_like(mean), jnp.zeros((), jnp.int32)
        return _Search(mean, variance, weights, *sites, mean, variance, one, none, far, zero)

    def step(at: _Search) -> _Search:
        target, precision = site_of(gp, y, at.mean, averaged(at.variance), prior)
        mean, variance, weights = conditioned(target, precision)

        def along(t: Array) -> tuple[Array, Array]:
            return at.mean + t * (mean - at.mean), at.weights + t * (weights - at.weights)

        t = _step_size(lambda t: objective(*along(t), at.variance))
        spread = jnp.where(_seen(gp), jnp.log(variance / at.variance), 0)
        moved = _largest((mean - at.mean) / jnp.sqrt(variance), gp)
        share = _relaxed(at.share, at.spread, spread)
        new_mean, new_weights = along(t)
        return _Search(
            new_mean,
            at.variance * (variance / at.variance) ** share,
            new_weights,
            target,
            precision,
            mean,
            variance,
            share,
            spread,
            jnp.maximum(moved, _largest(spread, gp)) if is_variational else moved,
            at.count + 1,
        )

    def going(at: _Search) -> Array:
        is_sound = jnp.isfinite(at.change) | (at.count == 0)
        return is_sound & (at.change > tolerance) & (at.count < MOST_STEPS)

    end = lax.while_loop(going, step, first())
    converged = end.change <= tolerance
    known = Hint(end.mean, end.variance)
    before = no_hint(gp.grid_shape, y.dtype) if hint is None else hint
    hint = jax.tree.map(lambda new, old: jnp.where(converged, new, old), known, before)
    sites = Sites(
        target=end.target,
        precision=end.precision,
        mean=end.given_mean,
        variance=end.given_variance,
        num_steps=end.count,
        change=end.change,
        converged=converged,
    )
    return sites, hint


def _largest(x: Array, gp: AbstractProcess) -> Array:
    """The largest absolute value at cells with data."""
    return jnp.max(jnp.where(_seen(gp), jnp.abs(x), 0))


def _relaxed(share: Array, before: Array, now: Array) -> Array:
    """Aitken's relaxation: the share at which the last change would have led to none now."""
    difference = now - before
    square = jnp.sum(jnp.square(difference))
    found = -share * jnp.sum(before * difference) / jnp.where(square > 0, square, 1)
    is_first = jnp.sum(jnp.square(before)) == 0
    return jnp.where(is_first, 1.0, jnp.clip(found, LEAST_SHARE, 1))


def _step_size(objective: Any) -> Array:
    """The largest of 1, ½, ¼, … that does not lower the objective."""
    start = objective(0.0)
    rounding = 100 * jnp.finfo(start.dtype).eps * jnp.abs(start)

    def too_long(state: tuple[Array, Array]) -> Array:
        t, value = state
        is_lower = ~(value >= start - rounding)
        return is_lower & (t > 0.5**MOST_HALVINGS)

    def halved(state: tuple[Array, Array]) -> tuple[Array, Array]:
        t = state[0] / 2
        return t, objective(t)

    one = jnp.ones((), start.dtype)
    return lax.while_loop(too_long, halved, (one, objective(one)))[0]
