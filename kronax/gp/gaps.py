"""Cells without data: where they are, and models that know it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.checks import is_concrete
from kronax.linalg.gaps import Mask, plan_gaps


def with_observed(gp: Any, observed: Mask | None) -> Any:
    """The same process, observed at other cells."""
    if observed == gp.observed:
        return gp
    other = object.__new__(type(gp))
    for field in dataclasses.fields(gp):
        value = observed if field.name == "observed" else getattr(gp, field.name)
        object.__setattr__(other, field.name, value)
    return other


def gaps_of(gp: Any, y: Array) -> Mask | None:
    """Which cells have data: as the model was told, or as NaN in concrete data say."""
    if not is_concrete(y):
        return gp.observed
    missing = np.isnan(np.asarray(y))
    if not missing.any():
        return gp.observed
    if missing.all():
        raise ValueError(
            f"y must have a value in some cell; got NaN in all {missing.size}. Without data there "
            "is the prior: gp.sample, gp.covariance."
        )
    sets = missing.reshape(-1, *gp.grid_shape)
    if gp.observed is not None:
        beyond = sets & gp.observed.array
        if beyond.any():
            raise ValueError(
                f"y must have values at all cells that `observed` marks; got NaN at "
                f"{int(beyond.any(axis=0).sum())} of them. Leave `observed` out, and gaps are read "
                "from y."
            )
        return gp.observed
    if (sets != sets[0]).any():
        other = int(np.flatnonzero((sets != sets[0]).any(axis=tuple(range(1, sets.ndim))))[0])
        raise ValueError(
            "All data sets of a batch must have the same missing cells; number 0 and number "
            f"{other} differ. Take those with the same gaps together, or one at a time."
        )
    return Mask.of(~sets[0], gp.grid_shape)


def described(gp: Any) -> list[str]:
    """How gaps are handled, in words."""
    if gp.observed is None:
        return []
    plan = plan_gaps(gp.observed, jnp.dtype(gp.dtype).itemsize, "auto")
    share = plan.num_missing / (plan.num_missing + plan.num_observed)
    return [f"  {plan.num_missing} cells missing ({share:.0%}), exact: {plan.reason}"]
