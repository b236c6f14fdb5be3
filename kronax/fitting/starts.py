"""Where the fits of one call start."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.domains import parameters, replace
from kronax.fitting.problem import Problem, Raw, precision
from kronax.linalg.arrays.checks import check_key


def starting_points(
    problem: Problem, restarts: Any, key: PRNGKeyArray | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Unconstrained starts, `(num_fits, …)`, and the independent problem that each belongs to.

    The model as it is comes first, for every member; then the restarts.
    """
    first, _ = problem.unconstrained()
    count = problem.num_members
    raws = [first] * count + _others(problem, restarts, key, first)
    # In one precision: optimisers mix what they move. On the host, where nothing is compiled.
    dtype = precision(first)
    starts = {path: np.stack([np.asarray(raw[path], dtype) for raw in raws]) for path in first}
    return starts, np.tile(np.arange(count), len(raws) // count)


def _others(problem: Problem, restarts: Any, key: PRNGKeyArray | None, first: Raw) -> list[Raw]:
    """For every further start one for each member."""
    count = problem.num_members
    if isinstance(restarts, int | np.integer) and not isinstance(restarts, bool) and restarts >= 0:
        if key is not None:
            check_key(key)
        if not restarts:
            return []
        key = jax.random.key(0) if key is None else key
        keys = jax.random.split(key, (int(restarts), count))
        return [_random(problem, k, first, i) for row in keys for i, k in enumerate(row)]
    if isinstance(restarts, Sequence) and not isinstance(restarts, str):
        return [raw for model in restarts for raw in [_given(problem, model, first)] * count]
    raise ValueError(
        "restarts must be the number of further random starts, 0 or more, or a sequence of models "
        f"to start at; got {restarts!r}."
    )


def _given(problem: Problem, model: Any, first: Raw) -> Raw:
    forms: Any = jax.tree.structure(model), jax.tree.structure(problem.model)
    if forms[0] != forms[1]:
        raise ValueError(
            "Every model in restarts must have the form of the model that is fitted; got "
            f"{type(model).__name__} of another structure. Make them by kx.replace."
        )
    for p, q in zip(problem.table(), problem.table(model), strict=True):
        if not p.trainable and p.source is None and not np.array_equal(p.value, q.value):
            raise ValueError(
                "Models in restarts must agree with the fitted one in what does not train; "
                f"{p.path} differs. Let it train, or give it one value."
            )
    raw = problem.raw_of(model)
    return {path: value.astype(first[path].dtype) for path, value in raw.items()}


def _random(problem: Problem, key: PRNGKeyArray, first: Raw, member: int) -> Raw:
    """What the model thinks a random start is, or steps of one unit in unconstrained space."""
    if problem.y is not None and hasattr(problem.model, "random_start"):
        y = problem.y[member] if problem.independent else problem.y
        drawn = problem.model.random_start(key, y)
        outside = _outside(problem, drawn)
        raw = problem.raw_of(replace(drawn, outside))
        near = {path: _moved(raw[path], key) for path in outside if path in raw}
        return {path: value.astype(first[path].dtype) for path, value in {**raw, **near}.items()}
    domains = {p.path: p.domain for p in problem.table()}
    keys = dict(zip(first, jax.random.split(key, len(first)), strict=True))
    return {
        path: value
        + _unit(value, domains[path]) * jax.random.normal(keys[path], value.shape, value.dtype)
        for path, value in first.items()
    }


def _outside(problem: Problem, drawn: Any) -> dict[str, Array]:
    """The model's own values for what a random start puts outside the support of a prior."""
    own = {p.path: p.value for p in parameters(problem.model)}
    domains = {path: domain.constraint for path, domain in problem.domains}
    rows = [p for p in parameters(drawn) if p.path in domains]
    return {p.path: own[p.path] for p in rows if not bool(jnp.all(domains[p.path](p.value)))}


def _moved(raw: Array, key: PRNGKeyArray) -> Array:
    return raw + jax.random.normal(key, raw.shape, raw.dtype)


def _unit(raw: Array, domain: Any) -> Array:
    """One, for what is a logarithm; a real number is moved in proportion to its size."""
    if domain is constraints.real:
        return jnp.maximum(jnp.abs(raw), jnp.ones((), raw.dtype))
    return jnp.ones((), raw.dtype)
