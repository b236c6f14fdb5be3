"""Models of the same data side by side: likelihood, information criteria, leave-one-out."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from kronax.display import aligned
from kronax.domains import parameters
from kronax.fitting.result import FitResult
from kronax.gp.axes.indexes import is_labelled
from kronax.gp.grid import GridGP
from kronax.gp.labelled.data_arrays import in_order_of
from kronax.gp.means.regression import MarginalMean
from kronax.linalg.arrays.checks import check_plain, refuse_traced
from kronax.linalg.arrays.nested_lists import without_mask

# What orders the rows, and whether the largest comes first.
ORDERS = {"loo": True, "log_marginal_likelihood": True, "bic": False, "aic": False}


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """One row of `kx.compare`; all but the errors are in nats.

    Attributes:
        name: as given.
        log_marginal_likelihood: of all the data, without priors on the parameters.
        num_parameters: numbers that were trained, or that a fit would train.
        aic: `2 k − 2 log L`.
        bic: `k log N − 2 log L`, with `N` the cells of the data.
        loo: sum of the leave-one-out log predictive densities.
        loo_error: its standard error, as if the cells were independent.
        loo_difference: `loo` less that of the best model.
        difference_error: standard error of the difference, from the paired cells.
        loo_rmse: root mean squared leave-one-out error, in units of the data.
        remarks: what to know before believing the row.
    """

    name: str
    log_marginal_likelihood: float
    num_parameters: int
    aic: float
    bic: float
    loo: float
    loo_error: float
    loo_difference: float
    difference_error: float
    loo_rmse: float
    remarks: tuple[str, ...] = ()


class Comparison(tuple[ComparedModel, ...]):
    """What `kx.compare` returns: one row per model, the best first; prints as a table.

    `comparison["name"]` is a row by name, `comparison[0]` by position.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> rough = kx.GridGP((kx.Matern12(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> found = kx.compare({"smooth": gp, "rough": rough}, jnp.sin(6 * x)[:, None] * x)
        >>> len(found), found["rough"].num_parameters
        (2, 4)
    """

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for row in self:
            if row.name == key:
                return row
        raise KeyError(
            f"There is no model {key!r}. Known: {', '.join(repr(r.name) for r in self)}."
        )

    def __repr__(self) -> str:
        value = max(row.log_marginal_likelihood for row in self)
        aic, bic = min(row.aic for row in self), min(row.bic for row in self)
        table = [("model", "k", "log L", "Δ log L", "Δ AIC", "Δ BIC", "LOO", "Δ LOO", "LOO RMSE")]
        for row in self:
            table.append(
                (
                    row.name,
                    str(row.num_parameters),
                    f"{row.log_marginal_likelihood:.2f}",
                    f"{row.log_marginal_likelihood - value:.2f}",
                    f"{row.aic - aic:.2f}",
                    f"{row.bic - bic:.2f}",
                    f"{row.loo:.2f} ± {row.loo_error:.2f}",
                    f"{row.loo_difference:.2f} ± {row.difference_error:.2f}",
                    f"{row.loo_rmse:.4g}",
                )
            )
        remarks = [f"{row.name}: {remark}" for row in self for remark in row.remarks]
        return "\n".join([aligned(table), *remarks])


@dataclasses.dataclass(frozen=True)
class _Scores:
    """One model on the data, before it is set against the others."""

    value: float
    densities: np.ndarray
    rmse: float
    count: int
    remarks: tuple[str, ...]
    # The functions whose coefficients a restricted likelihood has integrated out.
    restricted: tuple[str, ...] | None


def compare(models: Mapping[str, Any], y: Any, *, by: str = "loo") -> Comparison:
    """Models of the same data in one table: marginal likelihood, AIC, BIC and leave-one-out.

    Leave-one-out predicts every cell from all the others with the parameters as they are, in closed
    form. The standard errors take the cells for independent: beside correlated residuals they are
    too small. AIC and BIC suppose that the parameters maximise the likelihood.

    Args:
        models: a `kx.FitResult` or a `kx.GridGP` by name. The parameters of a result are those that
            its fit trained; of a model, those that `kx.parameters` calls trainable.
        y: data for all of them, `(*batch, n_1, …, n_d)`, `(*batch, N)` or a DataArray; batches are
            added. A result must have been fitted to these data: to score one on others pass
            `result.model`.
        by: what the rows are ordered by, the best first: "loo", "log_marginal_likelihood", "bic" or
            "aic".

    Returns:
        The rows, which print as a table. `Δ` is the difference to the best model.

    Raises:
        TypeError: if something else than a result of a single fit or a GridGP is given.
        ValueError: if there is no model, a result belongs to other data, the data do not lie on the
            grid of a model, `by` is unknown, or rows are to be ordered by likelihoods that do not
            compare: restricted ones of different means.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0.0, 1.0, 8)
        >>> y = jnp.sin(6 * x)[:, None] * x
        >>> smooth, rough = (
        ...     kx.GridGP((k(0.3), k(0.3)), (x, x), noise=0.01) for k in (kx.RBF, kx.Matern12)
        ... )
        >>> table = kx.compare({"rough": rough, "smooth": smooth}, y)
        >>> table[0].name, table["rough"].loo_difference < 0
        ('smooth', True)
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            "models must be a dictionary of one model or more by name; got "
            f"{models if isinstance(models, Mapping) else type(models).__name__}."
        )
    if by not in ORDERS:
        raise ValueError(f"by must be one of {', '.join(map(repr, ORDERS))}; got {by!r}.")
    refuse_traced("kx.compare", "Compare outside, or use log_marginal_likelihood.", (models, y))
    y = without_mask(y)
    check_plain(y, "y")
    scores = {str(name): _scores(str(name), model, y) for name, model in models.items()}
    _check_comparable(scores, by)
    best = max(scores.values(), key=lambda one: one.densities.sum())
    rows = [_row(name, one, best) for name, one in scores.items()]
    return Comparison(sorted(rows, key=lambda row: getattr(row, by), reverse=ORDERS[by]))


def _check_comparable(scores: Mapping[str, _Scores], by: str) -> None:
    """Refuse to order by likelihoods of data that differ by what flat coefficients take out."""
    if by == "loo" or len({one.restricted for one in scores.values()}) == 1:
        return
    parts = [
        f"{name!r} has {', '.join(one.restricted) if one.restricted else 'none'}"
        for name, one in scores.items()
    ]
    raise ValueError(
        f"Models are ordered by {by!r} only where the same coefficients with flat priors are "
        f"integrated out of all of them; {'; '.join(parts)}. Order by 'loo', or give the "
        "coefficients a prior variance (kx.MarginalMean(…, variance=…))."
    )


def _scores(name: str, model: Any, y: Any) -> _Scores:
    gp, count, remarks = _opened(name, model, y)
    try:
        grid, observed, _ = gp.observations(y)
    except (TypeError, ValueError) as problem:
        raise type(problem)(f"The model {name!r} does not take these data. {problem}") from problem
    found = gp.condition(grid).leave_one_out()
    value = float(np.sum(np.asarray(gp.log_marginal_likelihood(grid))))
    error = np.asarray(grid, np.float64) - np.asarray(found.mean, np.float64)
    rmse = float(np.sqrt(np.nanmean(np.square(error))))
    # Sums over many cells are in float64, whatever the precision of the model. Cells are in C
    # order of the data, so that those of grids of other shapes belong together.
    densities = np.asarray(found.log_density(grid), np.float64)
    # Gaps are those of the data, and cells that the model says are not observed.
    missing = np.isnan(np.asarray(grid))
    missing = missing if observed is None else missing | ~observed.array
    densities = in_order_of(densities, y, gp.axis_names).ravel()
    densities = densities[~in_order_of(missing, y, gp.axis_names).ravel()]
    mean = gp.mean
    restricted = None
    if isinstance(mean, MarginalMean) and mean.variance is None:
        restricted = mean.names
    return _Scores(value, densities, rmse, count, remarks, restricted)


def _opened(name: str, model: Any, y: Any) -> tuple[GridGP, int, tuple[str, ...]]:
    """The process, how many numbers were trained, and what should be known about the fit."""
    remarks: list[str] = []
    gp = model
    table = None
    if isinstance(model, FitResult):
        problem = model.problem
        if problem.independent:
            raise TypeError(
                f"kx.compare needs single fits; {name!r} holds {len(model)} independent ones. Take "
                "one: result[i]."
            )
        gp, table = model.model, problem.table()
        if problem.y is not None:
            _check_data(name, problem.y, gp.check_data(y) if is_labelled(y) else y)
        if not model.converged:
            remarks.append(f"the fit has not converged: {model.reason}")
        if problem.priors:
            remarks.append(
                "fitted with priors: it is compared at the maximum a posteriori, their density "
                "left out; AIC and BIC suppose a maximum of the likelihood"
            )
    if not isinstance(gp, GridGP):
        raise TypeError(
            f"kx.compare needs a GridGP, or a fit of one; {name!r} is of type {type(gp).__name__}. "
            "Pass the GridGP inside it."
        )
    if gp.likelihood is not None:
        remarks.append(f"log L is its approximate evidence, {gp.approximation}")
    if isinstance(gp.mean, MarginalMean) and gp.mean.variance is None:
        remarks.append(
            "its likelihood is restricted, of coefficients with flat priors: log L, AIC and BIC "
            "compare with models of the very same mean only, leave-one-out with all"
        )
    table = parameters(gp) if table is None else table
    return gp, sum(p.value.size for p in table if p.trainable), tuple(remarks)


def _check_data(name: str, fitted: Array, y: Any) -> None:
    given = np.asarray(y)
    shapes = fitted.size == given.size
    if not shapes or not np.array_equal(np.asarray(fitted).ravel(), given.ravel(), equal_nan=True):
        differ = "of other values" if shapes else f"of shape {fitted.shape}, not {given.shape}"
        raise ValueError(
            f"Models must be compared on the data that they were fitted to; {name!r} was fitted to "
            f"data {differ}. To score it on other data pass result.model."
        )


def _row(name: str, own: _Scores, best: _Scores) -> ComparedModel:
    num_cells = own.densities.size
    if num_cells != best.densities.size:
        raise ValueError(
            f"Models must be compared on the same observations; {name!r} observes {num_cells} "
            f"cells where another one observes {best.densities.size}. Give all the same `observed`."
        )
    difference = own.densities - best.densities
    root = math.sqrt(num_cells)
    return ComparedModel(
        name=name,
        log_marginal_likelihood=own.value,
        num_parameters=own.count,
        aic=2 * own.count - 2 * own.value,
        bic=own.count * math.log(num_cells) - 2 * own.value,
        loo=float(own.densities.sum()),
        loo_error=root * float(own.densities.std()),
        loo_difference=float(difference.sum()),
        difference_error=root * float(difference.std()),
        loo_rmse=own.rmse,
        remarks=own.remarks,
    )
