"""Priors on the parameters of any Equinox module, as sample sites of a NumPyro model."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from kronax.domains import parameters, replace
from kronax.parameter_table import Parameter, describe_domain
from kronax.paths import nearest, numbered

Model = TypeVar("Model")
# Unconstrained values that show whether the support of a prior leaves a domain.
PROBES = (-5.0, -0.5, 0.0, 0.5, 5.0)


def sample_parameters(name: str, model: Model, priors: Mapping[str, Any]) -> Model:
    """The model with some parameters drawn from priors; one sample site each, `name.path`.

    For use inside a NumPyro model. Parameters without a prior keep their values. A prior for one
    number serves an array of any shape: its entries are then independent.

    Args:
        name: prefix of the sites: the lengthscale of the first kernel is
            `name.kernels[0].lengthscale`.
        model: a `kx.GridGP`, or any Equinox module.
        priors: NumPyro distributions by path, as `kx.parameters(model)` lists them.

    Raises:
        KeyError: if a path is unknown; the nearest is suggested.
        TypeError: if the name is no string, the priors are no dictionary, or one of them is no
            NumPyro distribution.
        ValueError: if a prior has another shape than its parameter, or its support leaves the
            parameter's domain.
        RuntimeError: outside a model, where there is no random key.

    Examples:
        >>> import jax, kronax as kx, numpyro, numpyro.distributions as dist
        >>> kernel = kx.Matern32(lengthscale=1.0)
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     drawn = kx.sample_parameters("k", kernel, {"lengthscale": dist.LogNormal(0.0, 1.0)})
        >>> drawn.lengthscale.shape, bool(drawn.lengthscale > 0)
        ((), True)
    """
    if not isinstance(name, str) or not isinstance(priors, Mapping):
        raise TypeError(
            "kx.sample_parameters takes a name, a model and a dictionary of priors by path, as in "
            "kx.sample_parameters('gp', gp, {'noise': dist.HalfNormal(1.0)}); got "
            f"{', '.join(type(given).__name__ for given in (name, model, priors))}."
        )
    rows = {p.path: p for p in parameters(model)}
    prepared = prepare(rows, {numbered(model, path): prior for path, prior in priors.items()})
    drawn: dict[str, Any] = {
        path: sample_site(f"{name}.{path}", prior) for path, prior in prepared.items()
    }
    for path, value in drawn.items():
        if jnp.shape(value) != rows[path].value.shape:
            raise ValueError(
                f"The draw of {path} must have shape {rows[path].value.shape}; got "
                f"{jnp.shape(value)}. A plate around kx.sample_parameters adds axes: draw outside "
                "it, or vmap the model."
            )
    return replace(model, drawn)


def prepare(
    rows: Mapping[str, Parameter], priors: Mapping[str, Any]
) -> dict[str, dist.Distribution]:
    """Priors with the shapes of their parameters as events, or a clear error."""
    prepared = {}
    for path, prior in priors.items():
        if path not in rows:
            raise KeyError(f"There is no parameter {path!r}.{nearest(path, rows)}")
        prepared[path] = _fitted(path, prior, rows[path])
    return prepared


def sample_site(name: str, distribution: dist.Distribution) -> Any:
    """`numpyro.sample`, with an error that says what to do where there is no random key."""
    try:
        return numpyro.sample(name, distribution)
    except AssertionError as error:  # NumPyro's, about the key, and empty
        raise RuntimeError(
            f"The site {name!r} must be drawn inside a NumPyro model, where a random key is; got "
            "none. Run the model under MCMC, SVI or Predictive, or try it out inside "
            "`with numpyro.handlers.seed(rng_seed=0):`."
        ) from error


def _fitted(path: str, prior: Any, parameter: Any) -> dist.Distribution:
    """The prior with the shape of its parameter as one event."""
    if not isinstance(prior, dist.Distribution):
        raise TypeError(
            f"The prior of {path} must be a NumPyro distribution; got {type(prior).__name__}. "
            "Leave a parameter out to keep its value."
        )
    shape = parameter.value.shape
    own = prior.batch_shape + prior.event_shape
    if own != shape:
        try:
            fits = not prior.event_shape and jnp.broadcast_shapes(own, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"The prior of {path} must have shape {shape}, or be for one number; got batch "
                f"shape {prior.batch_shape} and event shape {prior.event_shape}."
            )
        prior = prior.expand(shape)
    _check_support(path, prior, parameter)
    return prior.to_event(len(prior.batch_shape)) if prior.batch_shape else prior


def _check_support(path: str, prior: dist.Distribution, parameter: Any) -> None:
    """Refuse a prior that can leave the domain, where that shows without drawing."""
    if parameter.domain is None:
        return
    try:
        with jax.ensure_compile_time_eval():
            transform = biject_to(prior.support)
            raw = transform.inverse_shape(prior.batch_shape + prior.event_shape)
            inside = [np.all(parameter.domain(transform(jnp.full(raw, probe)))) for probe in PROBES]
    except (NotImplementedError, jax.errors.TracerBoolConversionError):
        return  # no bijection is known, or the bounds of the support are traced
    if not all(inside):
        raise ValueError(
            f"The prior of {path} must lie in its domain, {describe_domain(parameter.domain)}; got "
            f"{type(prior).__name__} with support {prior.support}. Use LogNormal or HalfNormal, or "
            "truncate it."
        )
