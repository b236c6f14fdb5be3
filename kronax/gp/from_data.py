"""Processes on the grid of labelled data: of DataArrays, and of tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from kronax.gp.axes.indexes import is_frame
from kronax.gp.labelled.data_arrays import grid_of_data_array, in_grid_order
from kronax.gp.labelled.tables import Table, is_column, read_table, row_labels
from kronax.gp.means.covariates import CovariateMean
from kronax.gp.model.process import AbstractProcess, with_fields
from kronax.linalg.estimates.certificates import Iteration
from kronax.paths import nearest


class FromData(AbstractProcess):
    """A process that can be made for data that know their coordinates."""

    @classmethod
    def from_xarray(
        cls,
        data: Any,
        kernels: Mapping[str, Any],
        noise: Any = None,
        mean: Any = None,
        structure: Mapping[str, str | int] | None = None,
        axes: Mapping[str, Any] | None = None,
        batch_dims: Sequence[str] = (),
        gaps: str = "auto",
        iteration: Iteration | None = None,
        likelihood: Any = None,
        approximation: str = "variational",
    ) -> Self:
        """A process on the grid of a DataArray; its values are not looked at.

        Axes have the order of the dimensions. Data may then be a DataArray with dimensions in any
        order, and `post.to_dataset()` has the same coordinates, names and units.

        Args:
            data: the DataArray.
            kernels: one per dimension, by name.
            noise: as for a GridGP; a DataArray as well. By default 0.1, where a fit begins.
            mean: as for a GridGP; a DataArray as well.
            structure: by name.
            axes: for some dimensions, what their coordinates do not show: `kx.circle`, `kx.sphere`,
                `kx.dates`, `kx.regular`, or other coordinates.
            batch_dims: dimensions without a kernel, which count replicates.
            gaps: as for a GridGP, as is `iteration`.
            iteration: settings of the iterations.
            likelihood: as for a GridGP, as is `approximation`.
            approximation: of the posterior.

        Raises:
            KeyError: if a dimension has no kernel, or a name is unknown.
            ValueError: as for a GridGP.
        """
        axes = grid_of_data_array(data, kernels, axes, batch_dims)
        noise = 0.1 if noise is None and likelihood is None else noise
        options = {"gaps": gaps, "iteration": iteration, "likelihood": likelihood}
        make: Any = cls
        return make(kernels, axes, noise, mean, structure, approximation=approximation, **options)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        index: str | Sequence[Any] | None = None,
        value: Any = None,
        kernels: Mapping[str, Any] | None = None,
        noise: Any = None,
        mean: Any = None,
        structure: Mapping[str, str | int] | None = None,
        axes: Mapping[str, Any] | None = None,
        gaps: str = "auto",
        iteration: Iteration | None = None,
        likelihood: Any = None,
        approximation: str = "variational",
    ) -> Self:
        """A process on the grid of a table of pandas, long or wide.

        A long table has a row per cell: `index` names the columns, or levels of its index, that are
        the axes, and `value` that of the data. The axes have the coordinates that occur, in
        ascending order; cells without a row are gaps. A wide table has the data of an axis along
        its rows and of another along its columns.

        The model remembers the columns: data may then be the table itself, `kx.fit(gp, frame)`, or
        others with such columns, such as some of its rows. `post.to_frame()` is a long table again.
        `print(gp)` says how full the grid is.

        Args:
            frame: a DataFrame, or a Series with one level of its index per axis.
            index: names of the axes; of a wide table those of rows and columns, if it has none.
            value: the column of the data; left out for a wide table.
            kernels: one per axis, by name.
            noise: as for a GridGP; or a column of the table, the variance of every row. By default
                0.1, where a fit begins.
            mean: as for a GridGP. A `kx.CovariateMean` may have columns of a long table:
                `kx.CovariateMean(temperature=frame["temperature"])`.
            structure: by name.
            axes: for some axes, what their labels do not show, by name: the coordinates of places
                in a DataFrame that has the labels as index; `kx.circle`, `kx.dates`, … or other
                coordinates, in the ascending order of the labels.
            gaps: as for a GridGP, as is `iteration`.
            iteration: settings of the iterations.
            likelihood: as for a GridGP, as is `approximation`.
            approximation: of the posterior.

        Raises:
            KeyError: if the table has no such column, or an axis has no kernel.
            TypeError: if it does not say what its axes and data are.
            ValueError: if several rows are of one cell, some of which are listed, or a coordinate
                is missing; or as for a GridGP.

        Examples:
            >>> import jax, pandas as pd, kronax as kx
            >>> jax.config.update("jax_enable_x64", True)  # pandas has float64
            >>> frame = pd.DataFrame(
            ...     {
            ...         "hour": [0, 0, 1, 2, 2],
            ...         "station": ["A", "B", "B", "A", "B"],
            ...         "pm25": [9.0, 7.5, 8.0, 12.0, 10.5],
            ...     }
            ... )
            >>> kernels = {"hour": kx.Matern32(2.0), "station": kx.Categorical(2, rank=1)}
            >>> gp = kx.GridGP.from_frame(frame, ["hour", "station"], "pm25", kernels)
            >>> gp.grid_shape, gp.condition(frame).to_frame().shape
            ((3, 2), (6, 7))
        """
        table, found = read_table(frame, index, value, axes)
        if not isinstance(kernels, Mapping) or list(kernels) != list(found):
            kernels = _by_axis(kernels, found)
        if table.value is not None and frame.ndim == 2:
            mean = _with_columns(mean, frame, table)
            if is_column(noise, frame):
                noise = _variances(noise, frame, table, found)
        noise = 0.1 if noise is None and likelihood is None else noise
        options = {"gaps": gaps, "iteration": iteration, "likelihood": likelihood}
        make: Any = cls
        gp = make(kernels, found, noise, mean, structure, approximation=approximation, **options)
        return with_fields(gp, table=table)


def _by_axis(kernels: Any, axes: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels in the order of the axes.

    Raises:
        TypeError: if they are not given by name.
        KeyError: if an axis has none, or there is no such axis.
    """
    names = ", ".join(map(repr, axes))
    if not isinstance(kernels, Mapping):
        raise TypeError(
            f"The kernels of GridGP.from_frame must be a dictionary by axis, {names}; got "
            f"{type(kernels).__name__}."
        )
    for name in kernels:
        if name not in axes:
            raise KeyError(f"kernels: the table has no axis {name!r}.{nearest(name, list(axes))}")
    for name in axes:
        if name not in kernels:
            raise KeyError(f"The axis {name!r} has no kernel; got kernels for {list(kernels)}.")
    return {name: kernels[name] for name in axes}


def _with_columns(mean: Any, frame: Any, table: Table) -> Any:
    """The mean with columns of a long table as covariates that go by its axes."""

    def labelled(value: Any) -> Any:
        return value.set_axis(row_labels(frame, table.index)) if is_column(value, frame) else value

    def changed(part: Any) -> Any:
        if not isinstance(part, CovariateMean):
            return part
        return part.changed(covariates={n: labelled(c) for n, c in part.covariates.items()})

    return jax.tree.map(
        changed, mean, is_leaf=lambda x: isinstance(x, CovariateMean) or is_frame(x)
    )


def _variances(noise: Any, frame: Any, table: Table, axes: Mapping[str, Any]) -> np.ndarray:
    """A noise variance of every row on the grid, infinite where there is none."""
    labelled = noise.set_axis(row_labels(frame, table.index))
    grid = in_grid_order(labelled, tuple(axes.values()), tuple(axes), "The noise")
    return np.where(np.isnan(grid), np.inf, grid)
