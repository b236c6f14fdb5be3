"""A process on a grid as a regressor of scikit-learn."""

import warnings
from functools import reduce
from operator import mul
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from kronax.fitting import fit
from kronax.gp.grid import GridGP
from kronax.gp.kernels.dims import ActiveDims
from kronax.gp.kernels.stationary import Constant, Matern52
from kronax.gp.means.means import ConstantMean
from kronax.sklearn.rows import (
    MOST_CELLS,
    MOST_ROWS,
    Rows,
    column_groups,
    per_axis,
    rows_of,
)

LAYOUTS = ("auto", "grid", "points")


class GridRegressor(RegressorMixin, BaseEstimator):
    """A Gaussian process with a kernel for each column of `X`, or each group of columns.

    Its covariance is the product of the kernels. Where the rows are cells of a grid, which no order
    has to show, it is a `kx.GridGP` on that grid: cells without a row are gaps, as the folds of a
    cross-validation make them. Rows that are scattered are one axis of places with the same
    covariance, one dense matrix; the way changes the cost and not the answer. Several rows of one
    cell are replicates.

    Numbers are taken in the precision of JAX: float32, unless `jax_enable_x64` is switched on.

    Args:
        kernels: one per axis, a list, or a dictionary by the name of the axis, which for a table
            with names is that of its column. By default a `kx.Matern52` each.
        axes: columns of each axis, by number or name: `[[0, 1], 2]`, `{"place": ["x", "y"],
            "time": "t"}`. By default every column is an axis.
        noise: the variance σ² of the noise, where the fit begins.
        mean: a number, or `None` for a constant that is fitted.
        layout: "grid", "points", or "auto": the grid if its rows are at least a quarter of it, or
            are more than 5 000.
        optimize: maximise the marginal likelihood; else kernels and noise are as given.
        num_steps: of the fit, at most.
        restarts: further fits from random starts.
        random_state: of these.

    Attributes:
        gp_: the `kx.GridGP`, fitted.
        posterior_: given the rows.
        result_: the `kx.FitResult`, or `None` where nothing was fitted: without `optimize`, or if
            `y` is constant.
        layout_: "grid" or "points".
        axis_names_: names of the axes.

    Examples:
        >>> import numpy as np
        >>> from kronax.sklearn import GridRegressor
        >>> X = np.array([[a, b] for a in range(6) for b in range(4)], float)
        >>> y = np.sin(X[:, 0]) * X[:, 1]
        >>> model = GridRegressor(num_steps=20).fit(X[2:], y[2:])
        >>> model.layout_, model.predict(X[:2], return_std=True)[1].shape
        ('grid', (2,))
    """

    def __init__(
        self,
        kernels: Any = None,
        *,
        axes: Any = None,
        noise: float = 0.1,
        mean: float | None = None,
        layout: str = "auto",
        optimize: bool = True,
        num_steps: int = 200,
        restarts: int = 0,
        random_state: Any = None,
    ):
        self.kernels = kernels
        self.axes = axes
        self.noise = noise
        self.mean = mean
        self.layout = layout
        self.optimize = optimize
        self.num_steps = num_steps
        self.restarts = restarts
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the parameters to rows `X`, `(n, d)`, with the values `y`, `(n,)`, and condition.

        Raises:
            ValueError: if there are more than 5 000 scattered rows, `layout` is unknown, or kernels
                and columns do not match.
            KeyError: if a column or the kernel of an axis is unknown.
        """
        X, y = validate_data(self, X, y, y_numeric=True, ensure_min_samples=2)
        X, y = np.asarray(X, float), np.asarray(y, float)
        names = getattr(self, "feature_names_in_", None)
        self.axis_names_, self.groups_ = column_groups(self.axes, self.kernels, names, X.shape[1])
        kernels = per_axis(self.kernels, self.axis_names_)
        if kernels is None:
            kernels = [_by_default(X[:, group]) for group in self.groups_]
        rows = rows_of(X, self.groups_)
        if rows.num_cells <= MOST_CELLS:
            rows = rows.with_replicates()
        self.layout_ = self._layout(rows)
        if self.layout_ == "grid":
            gp, data = self._on_grid(rows, kernels, y)
        else:
            gp, data = self._at_points(X, kernels), jnp.asarray(y)
        self.result_ = None
        if self.optimize and np.ptp(y) > 0:
            self.result_ = self._fitted(gp, data)
            gp = self.result_.model
        elif self.mean is None:
            gp = self._model(gp.kernels, gp.axes, float(np.mean(y)))
        self.gp_ = gp
        self.posterior_ = gp.condition(data)
        return self

    def _layout(self, rows: Rows) -> str:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}; got {self.layout!r}.")
        count, cells = len(rows.cells[0]), rows.num_cells
        chosen = self.layout
        if chosen == "auto":
            can_be_grid = rows.fill_a_grid or (count > MOST_ROWS and cells <= MOST_CELLS)
            chosen = "grid" if can_be_grid else "points"
        shape = " × ".join(map(str, rows.shape))
        if chosen == "grid" and cells > MOST_CELLS:
            raise ValueError(
                f"The {count} rows have {shape} different coordinates, a grid of {cells:.3g} "
                f"cells; there must be at most {MOST_CELLS:.0e}. Round the coordinates, or take "
                "layout='points'."
            )
        if chosen == "points" and count > MOST_ROWS:
            raise ValueError(
                f"The {count} rows are scattered: they have {shape} different coordinates along "
                f"the axes {', '.join(self.axis_names_)}. Without a grid there must be at most "
                f"{MOST_ROWS}. Round coordinates that are nearly the same, or take fewer rows."
            )
        return chosen

    def _model(self, kernels: Any, axes: Any, mean: float) -> GridGP:
        return GridGP(kernels, axes, noise=float(self.noise), mean=ConstantMean(mean))

    def _on_grid(self, rows: Rows, kernels: list[Any], y: np.ndarray) -> tuple[GridGP, jax.Array]:
        """The process on the grid of the rows, and the data there."""
        if len(rows.axes) > len(kernels):
            kernels = [*kernels, Constant()]
        data = np.full(rows.shape, np.nan)
        data[rows.cells] = y
        return self._model(kernels, rows.axes, self.mean or 0.0), jnp.asarray(data)

    def _at_points(self, X: np.ndarray, kernels: list[Any]) -> GridGP:
        """The process at the rows, one axis of them."""
        if len(kernels) == 1:
            return self._model(kernels, (_columns(X, self.groups_[0]),), self.mean or 0.0)
        parts = [
            ActiveDims(kernel, group[0] if len(group) == 1 else tuple(group))
            for kernel, group in zip(kernels, self.groups_, strict=True)
        ]
        return self._model((reduce(mul, parts),), (X,), self.mean or 0.0)

    def _fitted(self, gp: GridGP, data: jax.Array) -> Any:
        freeze = () if self.mean is None else ("mean.value",)
        key = jax.random.key(check_random_state(self.random_state).randint(2**31 - 1))
        keys = jax.random.split(key, self.restarts) if self.restarts else ()
        others = [gp.random_start(one, data) for one in keys]
        if self.layout_ == "points":
            # Correlation by distance tells little of many columns: also from kernels as given.
            others.append(gp.initialise(data, freeze=(lambda gp: gp.kernels, *freeze)))
        found = fit(
            gp.initialise(data, freeze=freeze),
            data,
            num_steps=self.num_steps,
            freeze=freeze,
            restarts=others,
            progress=False,
        )
        if not found.converged:
            warnings.warn(
                f"The fit has not converged: {found.reason}. Raise num_steps, or look at result_.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return found

    def predict(
        self,
        X: Any,
        return_std: bool = False,
        return_cov: bool = False,
        include_noise: bool = False,
    ) -> Any:
        """The mean of the function at rows `X`, `(m,)`.

        Args:
            X: rows, on the grid or off it.
            return_std: the standard deviation as well.
            return_cov: the covariance `(m, m)` as well, of at most 5 000 rows.
            include_noise: of new observations, with σ² in both.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if both are asked for, or the columns are not those of `fit`.
        """
        if return_std and return_cov:
            raise ValueError("At most one of return_std and return_cov can be asked for.")
        places = self._places(X)
        post = self.posterior_
        mean = places.of(lambda **at: post.mean(**at))
        if return_std:
            found = places.of(lambda **at: post.variance(include_noise=include_noise, **at))
            return mean, np.sqrt(found)
        if return_cov:
            dense = post.covariance(include_noise=include_noise, points=places.points)
            return mean, np.asarray(dense.to_dense())
        return mean

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draws of the function at rows `X`, `(m, n_samples)`; at most 5 000 scattered ones.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if there are too many rows.
        """
        places = self._places(X)
        key = jax.random.key(check_random_state(random_state).randint(2**31 - 1))
        draws = places.of(lambda **at: self.posterior_.sample(key, sample_shape=(n_samples,), **at))
        return draws.T

    def _places(self, X: Any) -> "Places":
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, reset=False), float)
        rows = rows_of(X, self.groups_)
        if self.layout_ == "points":
            return Places(None, (X if len(self.groups_) > 1 else rows.places[0],))
        replicates = len(self.gp_.axes) - len(rows.axes)
        return Places(
            rows if rows.fill_a_grid else None,
            (*rows.places, *[np.zeros(len(X))] * replicates),
            (*rows.axes, *[np.zeros(1)] * replicates),
        )


class Places:
    """Rows to predict at: scattered, or cells of a grid of their own."""

    def __init__(self, rows: Rows | None, points: tuple[Any, ...], axes: tuple[Any, ...] = ()):
        self.rows, self.points, self.axes = rows, points, axes

    def of(self, ask: Any) -> np.ndarray:
        """What a method of the posterior says, one number per row in the last axis."""
        if self.rows is None:
            return np.asarray(ask(points=self.points))
        grid = np.asarray(ask(axes=self.axes))
        grid = grid.reshape(*grid.shape[: grid.ndim - len(self.axes)], *self.rows.shape)
        index: Any = (..., *self.rows.cells)
        return grid[index]


def _columns(X: np.ndarray, group: list[int]) -> np.ndarray:
    return X[:, group[0]] if len(group) == 1 else X[:, group]


def _by_default(columns: np.ndarray) -> Matern52:
    """With the deviations of the columns as lengthscales."""
    spread = np.std(columns, axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return Matern52(float(spread[0]) if len(spread) == 1 else jnp.asarray(spread))
