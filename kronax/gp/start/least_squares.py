"""Coefficients of a mean by ordinary least squares: where a fit may begin."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from kronax.domains import replace
from kronax.gp.means.coefficients import RegressionMean
from kronax.gp.means.covariates import CovariateMean
from kronax.gp.means.means import ConstantMean, Mean, SumMean
from kronax.gp.means.regression import MarginalMean
from kronax.gp.model.process import AbstractProcess

# Directions of the functions that are smaller than this share of the largest have no say.
SMALLEST = 1e-10


class Column(NamedTuple):
    """One function of a mean on the grid, and the parameter that its coefficient belongs to."""

    path: str
    values: np.ndarray


def least_squares(
    gp: AbstractProcess, y: np.ndarray, frozen: Collection[str]
) -> tuple[dict[str, Any], np.ndarray]:
    """The coefficients that a fit trains, by path, and the fit of those that are integrated out.

    Args:
        gp: the process.
        y: the data, NaN in gaps; a batch is pooled.
        frozen: paths of parameters that stay.
    """
    if isinstance(gp.mean, MarginalMean):
        functions = _on_grid(gp, gp.design_on((None,) * len(gp.axes)))
        found = _solved(gp, y, functions)
        return {}, np.tensordot(found, functions, 1)
    nothing = np.zeros(())
    parts = list(_summands(gp.mean, "mean"))
    if not any(isinstance(part, RegressionMean) for part, _ in parts):
        return {}, nothing
    columns = [c for part, path in parts for c in _columns(gp, part, path) if c.path not in frozen]
    if not columns:
        return {}, nothing
    paths = list(dict.fromkeys(column.path for column in columns))
    free = {path: sum(column.path == path for column in columns) for path in paths}
    rest = replace(gp, {path: _shaped(np.zeros(n), path, gp) for path, n in free.items()})
    found = _solved(rest, y, np.stack([column.values for column in columns]))
    values: dict[str, Any] = {}
    for path in paths:
        own = [k for k, column in enumerate(columns) if column.path == path]
        values[path] = _shaped(found[own], path, gp)
    return values, nothing


def _solved(gp: AbstractProcess, y: np.ndarray, functions: np.ndarray) -> np.ndarray:
    """The coefficients of functions of what the mean of the process leaves of the data."""
    residual = y - np.asarray(gp.mean_on((None,) * len(gp.axes)), np.float64)
    pooled = residual.reshape(-1, *gp.grid_shape).mean(axis=0)
    seen = np.isfinite(pooled)
    design = functions[:, seen]
    size = np.sqrt(np.sum(np.square(design), axis=1))
    size = np.where(size > 0, size, 1)
    return np.linalg.lstsq((design / size[:, None]).T, pooled[seen], rcond=SMALLEST)[0] / size


def _summands(mean: Mean, path: str) -> Iterator[tuple[Mean, str]]:
    if isinstance(mean, SumMean):
        yield from _summands(mean.first, f"{path}.first")
        yield from _summands(mean.second, f"{path}.second")
    else:
        yield mean, path


def _columns(gp: AbstractProcess, part: Mean, path: str) -> Iterator[Column]:
    """The functions of a part with coefficients."""
    if isinstance(part, ConstantMean):
        yield Column(f"{path}.value", np.ones(gp.grid_shape))
    if not isinstance(part, RegressionMean):
        return
    functions = _on_grid(gp, part.design_at(*gp.points_on((None,) * len(gp.axes))))
    names = [f"{path}.coefficients"] * len(functions)
    if isinstance(part, CovariateMean):
        names = [f"{path}.coefficients[{name!r}]" for name in part.order]
    yield from map(Column, names, functions)


def _on_grid(gp: AbstractProcess, functions: Any) -> np.ndarray:
    values = np.asarray(functions, np.float64)
    return np.broadcast_to(values, (len(values), *gp.grid_shape))


def _shaped(values: np.ndarray, path: str, gp: AbstractProcess) -> np.ndarray:
    """One number where a path is of one, else the vector."""
    is_one = path.endswith(("]", ".value"))
    return (values[0] if is_one else values).astype(gp.dtype)
