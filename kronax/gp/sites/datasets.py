"""Rates, probabilities and new observations as an xarray Dataset."""

from typing import Any

import numpy as np
from jaxtyping import Array

from kronax.gp.datasets import (
    DRAWS,
    MEAN,
    QUANTILES,
    SD,
    batch_dims,
    check_names,
    coordinates_of,
    grid_dims,
)
from kronax.gp.labelled.packages import xarray
from kronax.gp.labelled.templates import UNLABELLED
from kronax.gp.model.process import AbstractPosterior
from kronax.gp.sites.response import Response
from kronax.gp.summaries import quantile_name


def response_columns(found: Response) -> dict[str, Array]:
    """The columns of a long table."""
    columns = {MEAN: found.mean, SD: found.std}
    own = {MEAN: found.observation_mean, SD: found.observation_std}
    seen = found.observation_quantiles
    for k, q in enumerate(found.probabilities):
        columns[quantile_name(q)] = found.quantiles[k]
        if seen is not None:
            own[quantile_name(q)] = seen[k]
    return {**columns, **{f"observation_{name}": values for name, values in own.items()}}


def response_dataset(
    post: AbstractPosterior, found: Response, axes: Any, draws: Array | None
) -> Any:
    """Of a response on the grid of some axes, with draws of observations or without.

    New observations have the attributes of the data, units included; a rate has other units.
    """
    package, dims = xarray(), (*batch_dims(post), *grid_dims(post.gp))
    data = (post.template and post.template.data) or UNLABELLED
    coordinates = coordinates_of(post, post.gp.new_axes(axes))

    def rate(values: Array, what: str, *lead: str) -> tuple[Any, ...]:
        words = f"posterior {what} of the {found.name} of {data.described}"
        return (*lead, *dims), np.asarray(values), {"long_name": words}

    def new(values: Array, what: str, *lead: str) -> tuple[Any, ...]:
        words = f"{what} of new observations of {data.described}"
        return (*lead, *dims), np.asarray(values), {**data.attributes.values, "long_name": words}

    variables = {
        MEAN: rate(found.mean, "mean"),
        SD: rate(found.std, "standard deviation"),
        f"observation_{MEAN}": new(found.observation_mean, "mean"),
        f"observation_{SD}": new(found.observation_std, "standard deviation"),
    }
    if found.probabilities:
        levels = np.array(found.probabilities)
        coordinates["quantile"] = ("quantile", levels, {"long_name": "probability"})
        variables[QUANTILES] = rate(found.quantiles, "quantiles", "quantile")
        seen = found.observation_quantiles
        if seen is not None:
            variables[f"observation_{QUANTILES}"] = new(seen, "quantiles", "quantile")
    if draws is not None:
        variables[DRAWS] = new(draws, "draws", "draw")
        coordinates["draw"] = ("draw", np.arange(len(draws)))
    check_names((*variables, "quantile", "draw"), dims, post)
    title = {} if data.name is None else {"title": f"prediction of {data.name}"}
    return package.Dataset(variables, coordinates, title)
