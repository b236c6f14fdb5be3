"""The state of all places at one time, moved ahead and told of values: arrays alone.

A function that is a sum of parts `c`, each a process in time with a covariance `K_c` over `m`
places, has one state `(D, m)`: its first entry is the value, the others are what the future
depends on besides. Coefficients of the mean that are integrated out are estimated beside it: the
filter runs over their functions as over the data.
"""

from collections.abc import Sequence
from math import log, pi
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array

from kronax.gp.kernels.base import Kernel
from kronax.linalg.arrays.mode_products import HIGHEST, matmul, same_rank
from kronax.linalg.state_spaces import algebra
from kronax.linalg.state_spaces.state_space import StateSpace


class Regressors(NamedTuple):
    """What the data have told of the coefficients of a mean.

    Args:
        states: what the filter makes of each function, `(p, D, m)`.
        precision: of the coefficients, `(p, p)`.
        projected: the precision times their estimates, `(*batch, p)`.
    """

    states: Array
    precision: Array
    projected: Array


class State(NamedTuple):
    """The function given all data so far, less the mean.

    Args:
        mean: `(*batch, D, m)`.
        covariance: `(D, D, m, m)`.
        regressors: with a `kx.MarginalMean`.
    """

    mean: Array
    covariance: Array
    regressors: Regressors | None


class Step(NamedTuple):
    """From one time to the next.

    Args:
        transition: `A`, `(D, D)`, the same for all parts.
        innovations: `Q` of every part, `(c, D, D)`.
        initial: the covariance of the state before any data, alike.
        nuggets: variances of independent values of every part, `(c,)`.
    """

    transition: Array
    innovations: Array
    initial: Array
    nuggets: Array


class Values(NamedTuple):
    """What is seen at one time.

    Args:
        values: less the mean, `(*batch, m)`.
        design: the functions of the regressors, `(p, m)`.
        noise: the covariance of what is no part of the state, `(m, m)`.
        seen: where there are values, `(m,)`.
    """

    values: Array
    design: Array | None
    noise: Array
    seen: Array


class Evidence(NamedTuple):
    """What was forecast of the values, and how far off they were.

    Args:
        mean: `(*batch, m)`.
        variance: `(m,)`.
        log_density: of all values together, `(*batch,)`.
        distance: their squared distance from the mean in units of their covariance, alike.
    """

    mean: Array
    variance: Array
    log_density: Array
    distance: Array


def step_of(kernels: Sequence[Kernel], gap: Array) -> Step:
    """The step over a gap, which may be traced: its kernels are those of the parts in time."""
    spaces = [_space(kernel, gap) for kernel in kernels]
    if len(spaces) > 1:  # the others of each at zero: one state for all
        zero, one = jnp.zeros((), gap.dtype), jnp.ones((), gap.dtype)
        parts = range(len(spaces))
        spaces = [
            algebra.added(*(s.scaled(one if i == j else zero) for j, s in enumerate(spaces)))
            for i in parts
        ]
    order = spaces[0].order
    innovations = jnp.stack([s.innovations.reshape(order, order) for s in spaces])
    nuggets = [jnp.zeros(1, gap.dtype) if s.nugget is None else s.nugget.ravel() for s in spaces]
    return Step(
        spaces[0].transitions.reshape(order, order),
        innovations,
        jnp.stack([s.initial for s in spaces]),
        jnp.stack([nugget[-1] for nugget in nuggets]),
    )


def _space(kernel: Kernel, gap: Array) -> StateSpace:
    space = algebra.with_state(kernel.state_space(gap))
    return jax.tree.map(lambda x: x.astype(gap.dtype), space)


def at_places(parts: Array, places: Array) -> Array:
    """`Σ_c Q_c ⊗ K_c`, `(…, m, m)` for `(c, …)`."""
    return jnp.einsum("c...,cab->...ab", parts, places, precision=HIGHEST)


def moved(state: State, step: Step, places: Array) -> State:
    """The state at the next time; `places` are the `K_c`, `(c, m, m)`."""
    a, p, found = step.transition, state.covariance, state.regressors
    p = jnp.einsum("ik,jl,klab->ijab", a, a, p, precision=HIGHEST, optimize="optimal")
    p = p + at_places(step.innovations, places)
    if found is not None:
        found = found._replace(states=_through(a, found.states))
    return State(_through(a, state.mean), (p + p.transpose(1, 0, 3, 2)) / 2, found)


def _through(a: Array, mean: Array) -> Array:
    return jnp.einsum("ij,...jm->...im", a, mean, precision=HIGHEST)


def told(state: State, given: Values) -> tuple[State, Evidence]:
    """The state once the values are known, and how they compare with what was forecast.

    Where values are seen, `P_0j` becomes `N S⁻¹ P_0j` with the noise `N`, which is no difference.
    """
    p, (values, design, noise, seen) = state.covariance, given
    order, m = p.shape[0], p.shape[-1]
    pair = seen[:, None] & seen[None]
    total = p[0, 0] + noise
    lower = _root(total, pair)
    # L⁻¹ P_0j of the values that are seen, (m, D·m).
    white = solve_triangular(lower, jnp.where(seen[:, None], _rows(p[0]), 0), lower=True)
    gain = solve_triangular(lower, white, lower=True, trans=1)
    square = matmul(white.T, white).reshape(order, m, order, m)
    left = p - jnp.moveaxis(square, 1, 2)
    known = matmul(jnp.where(pair, noise, 0), gain)
    first = jnp.where(seen[:, None], known, _rows(left[0])).reshape(m, order, m)
    first = jnp.moveaxis(first, 1, 0)
    left = left.at[0].set(first).at[:, 0].set(jnp.swapaxes(first, -1, -2))
    left = left.at[0, 0].set(_symmetric(first[0], seen))

    error = _less(values, state.mean[..., 0, :])
    v = _whitened(lower, jnp.where(_like(seen, error), error, 0))
    mean = state.mean + matmul(v, white).reshape(state.mean.shape)
    found = state.regressors
    if found is None:
        evidence = _evidence(state.mean[..., 0, :], total, v, lower, seen)
        return State(mean, left, None), evidence
    assert design is not None
    forecast, whole = expected(state, design, total)
    root = _root(whole, pair)
    miss = jnp.where(_like(seen, values), _less(values, forecast), 0)
    evidence = _evidence(forecast, whole, _whitened(root, miss), root, seen)
    w = _whitened(lower, jnp.where(seen[None], design - found.states[:, 0], 0))
    found = Regressors(
        found.states + matmul(w, white).reshape(found.states.shape),
        found.precision + matmul(w, w.T),
        found.projected + matmul(v, w.T),
    )
    return State(mean, left, found), evidence


def forecast(
    state: State, step: Step, places: Array, design: Array | None, noise: Array
) -> tuple[Array, Array]:
    """Mean `(*batch, m)` and variance `(m,)` of values after a step; the noise is `(m,)`."""
    a, found = step.transition[0], state.regressors
    own = jnp.diagonal(state.covariance, axis1=-2, axis2=-1)
    variance = jnp.einsum("i,j,ijm->m", a, a, own, precision=HIGHEST)
    added = jnp.diagonal(places, axis1=-2, axis2=-1)
    variance = variance + jnp.sum(step.innovations[:, 0, 0, None] * added, axis=0) + noise
    mean = jnp.einsum("i,...im->...m", a, state.mean, precision=HIGHEST)
    if found is None:
        return mean, variance
    assert design is not None
    beyond = design - jnp.einsum("i,pim->pm", a, found.states, precision=HIGHEST)
    estimates, spread = _coefficients(found, beyond)
    return mean + matmul(estimates, beyond), variance + jnp.sum(jnp.square(spread), axis=0)


def expected(state: State, design: Array | None, total: Array) -> tuple[Array, Array]:
    """Mean and covariance of values with what is not known of coefficients, if there are some.

    Args:
        state: at their time.
        design: the functions of the regressors.
        total: their covariance without that.
    """
    found = state.regressors
    if found is None:
        return state.mean[..., 0, :], total
    assert design is not None
    beyond = design - found.states[:, 0]
    estimates, spread = _coefficients(found, beyond)
    return state.mean[..., 0, :] + matmul(estimates, beyond), total + matmul(spread.T, spread)


def _coefficients(found: Regressors, beyond: Array) -> tuple[Array, Array]:
    """Estimates `(*batch, p)`, and `L⁻¹ D` for the functions `D` with `L Lᵀ` the precision."""
    root, projected = jnp.linalg.cholesky(found.precision), found.projected
    estimates = cho_solve((root, True), projected.reshape(-1, root.shape[0]).T).T
    return estimates.reshape(projected.shape), solve_triangular(root, beyond, lower=True)


def _evidence(mean: Array, total: Array, v: Array, lower: Array, seen: Array) -> Evidence:
    distance = jnp.sum(jnp.square(v), axis=-1)
    count = jnp.sum(seen, dtype=v.dtype)
    scale = 2 * jnp.sum(jnp.log(jnp.diagonal(lower))) + count * log(2 * pi)
    return Evidence(mean, jnp.diagonal(total), -(distance + scale) / 2, distance)


def _root(total: Array, pair: Array) -> Array:
    """The Cholesky factor among the values that are seen, the identity beside."""
    return jnp.linalg.cholesky(jnp.where(pair, total, jnp.eye(len(total), dtype=total.dtype)))


def _rows(p: Array) -> Array:
    """`(D, m, m)` as `(m, D·m)`."""
    return jnp.moveaxis(p, 0, 1).reshape(p.shape[-1], -1)


def _symmetric(p: Array, seen: Array) -> Array:
    """Entries between values, from the rows that are seen where only one of two is."""
    mine, other = seen[:, None], seen[None]
    both = (p + p.T) / 2
    return jnp.where(mine == other, both, jnp.where(mine, p, p.T))


def _whitened(lower: Array, x: Array) -> Array:
    """`L⁻¹ x` along the last axis."""
    flat = solve_triangular(lower, x.reshape(-1, x.shape[-1]).T, lower=True)
    return flat.T.reshape(x.shape)


def _less(x: Array, y: Array) -> Array:
    return jnp.subtract(*same_rank(x, y))


def _like(seen: Array, x: Array) -> Any:
    return jnp.broadcast_to(seen, x.shape)
