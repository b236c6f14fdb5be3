"""Posterior draws by Matheron's rule, compiled."""

from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.means.gls import fitted
from kronax.gp.model.components import Component, New, term, whole
from kronax.gp.model.process import AbstractPosterior, compiled
from kronax.gp.posterior.noise_levels import noisy
from kronax.gp.posterior.predict import cross_of, with_mean
from kronax.gp.posterior.prior import DRAWN_AT_ONCE, prior_fields, prior_roots
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.functions.solve import signal_weights


class Observed(NamedTuple):
    """The noise of draws of observations: the model's own at the grid, or variances."""

    key: Any
    levels: Array | None


@compiled
def function_draws(
    post: AbstractPosterior,
    key: PRNGKeyArray,
    new: New,
    shape: tuple[int, ...],
    include_noise: bool,
    levels: Array | None,
) -> Array:
    """Draws of the function, or of observations with the model's noise or other variances."""
    key, noise_key = jax.random.split(key)
    observed = Observed(noise_key, levels) if include_noise else None
    return posterior_draws(post, key, new, shape, observed)


@compiled
def posterior_draws(
    post: AbstractPosterior,
    key: PRNGKeyArray,
    new: New,
    shape: tuple[int, ...],
    observed: Observed | None,
    name: str | None = None,
) -> Array:
    """Draws of the function by Matheron's rule, of noisy observations, or of one term.

    Many draws of a large grid are made one after another, or a few at a time: beside the result
    they need memory for these few only. An additive model is drawn term by term, and `name` asks
    for that term of the same draws.
    """
    gp, op = post.gp, post.operator
    components = whole(gp) if gp.terms is None else tuple(term(gp, n) for n in gp.terms.names)
    roots = [prior_roots(post, part, new) for part in components]
    count = prod(shape)
    size = max(op.shape[-1], *(prod(r.size for r in one) for one in roots))
    at_once = DRAWN_AT_ONCE // (size * prod(post.y.shape[: post.y.ndim - len(new)]))
    drawn = _Drawn(components, roots, name)
    if count <= max(at_once, 1):
        return _draws(post, key, drawn, new, shape, observed)

    def one(pair: tuple[PRNGKeyArray, PRNGKeyArray | None]) -> Array:
        noisy = None if observed is None else Observed(pair[1], observed.levels)
        return _draws(post, pair[0], drawn, new, (), noisy)

    keys = jax.random.split(key, count)
    noise_keys = None if observed is None else jax.random.split(observed.key, count)
    draws = jax.lax.map(one, (keys, noise_keys), batch_size=max(at_once, 1))
    return draws.reshape(*shape, *draws.shape[1:])


class _Drawn(NamedTuple):
    """What is drawn: the parts of the prior with their roots, and which term is asked for."""

    components: tuple[Component, ...]
    roots: list[list[SymmetricBlocks]]
    name: str | None


def _draws(
    post: AbstractPosterior,
    key: PRNGKeyArray,
    drawn: _Drawn,
    new: New,
    shape: tuple[int, ...],
    observed: Observed | None,
) -> Array:
    """Coefficients are drawn first, then fields over old and new coordinates together."""
    gp, op, name = post.gp, post.operator, drawn.name
    signal_key, noise_key = jax.random.split(key)
    count = len(drawn.components)
    wanted = range(count) if name is None else (gp.additive.names.index(name),)
    keys = [signal_key] if gp.terms is None else jax.random.split(signal_key, count)
    lead = (*shape, *post.y.shape[: post.y.ndim - len(new)])
    fields = [
        prior_fields(post, roots, k, new, lead) for roots, k in zip(drawn.roots, keys, strict=True)
    ]
    residual = jnp.subtract(*same_rank(post.y, gp.mean_on((None,) * len(new))))
    for old, _ in fields:
        residual = jnp.subtract(*same_rank(residual, old))
    noise = gp.noise_model.draw(noise_key, residual.shape, op.dtype)
    residual = residual - noise
    coefficients = None
    if post.regression is not None:
        white = normal_numbers(
            jax.random.fold_in(key, 1), (*lead, len(gp.marginal.names)), op.dtype
        )
        coefficients = post.regression.draw(white)
        residual = residual - fitted(coefficients, gp.design_on((None,) * len(new)))
    weights, draw = signal_weights(op, residual), jnp.zeros((), op.dtype)
    for k in wanted:
        correction = cross_of(post, drawn.components[k], new, exact=False).mv_grid(weights)
        draw = jnp.add(*same_rank(draw, fields[k][1] + correction))
    if name is None:
        draw = with_mean(
            post, new, draw, jnp.subtract(*same_rank(post.y, noise)), weights, coefficients
        )
    if observed is None:
        return draw
    if observed.levels is None:
        return draw + gp.noise_model.draw(observed.key, draw.shape, op.dtype)
    return noisy(draw, observed.key, observed.levels)
