"""What pictures of a process with a likelihood show: its function, or new observations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kronax.gp.model.process import AbstractPosterior
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.gp.sites.response import Response
from kronax.plotting.cuts import Cut


def is_function(post: AbstractPosterior, include_noise: bool) -> bool:
    """Whether what is drawn is a latent function, on another scale than the data."""
    return isinstance(post, LikelihoodPosterior) and not include_noise


def response_on(
    post: LikelihoodPosterior,
    found: Cut,
    probabilities: Sequence[float],
    covariates: Any,
    given: Mapping[str, Any] | None,
) -> Response:
    """New observations on a cut, with the exposures of its cells or those given."""
    fields = {**_known_fields(post, found), **(given or {})}
    return post.response(found.axes, probabilities, covariates=covariates, **fields)


def quantiles_on(found: Response) -> np.ndarray:
    """Quantiles of new observations.

    Raises:
        ValueError: if their distribution function is not known.
    """
    seen = found.observation_quantiles
    if seen is None:
        raise ValueError(
            "A band of new observations needs their distribution function, which NumPyro does not "
            "have here. Pass include_noise=False for the latent function."
        )
    return np.asarray(seen)


def _known_fields(post: LikelihoodPosterior, found: Cut) -> dict[str, Any]:
    """What the likelihood has at the cells that are drawn."""
    likelihood = post.model.likelihood
    is_new = any(found.axes[i] is not None for i in found.drawn)
    if likelihood is None or is_new or not found.on_grid:
        return {}
    index = tuple(slice(None) if k is None else slice(k, k + 1) for k in found.indices)
    fields = {name: getattr(likelihood, name) for name in likelihood.cell_fields}
    shape = post.gp.grid_shape
    return {
        name: np.broadcast_to(value, shape)[index]
        for name, value in fields.items()
        if value is not None and np.ndim(value)
    }
