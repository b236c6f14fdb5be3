"""Three real data sets on grids that come with Python packages, brought to one scale."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import iris_sample_data
import numpy as np
import statsmodels.api as sm
import xarray as xr
from matplotlib import cbook


class DataSet(NamedTuple):
    """Data of mean zero and variance one, and the coordinates of their axes.

    `kernels` are Matérn kernels by their smoothness ν, `periods` those of axes that are circles.
    """

    y: np.ndarray
    axes: tuple[np.ndarray, ...]
    kernels: tuple[float, ...]
    periods: tuple[float | None, ...]


def el_nino() -> DataSet:
    """Sea-surface temperature off Peru, 61 years × 12 months, less the mean of each month."""
    table = sm.datasets.elnino.load_pandas().data.to_numpy()
    months = np.arange(12.0)
    temperature = table[:, 1:] - table[:, 1:].mean(axis=0)
    return DataSet(_scaled(temperature), (table[:, 0], months), (1.5, 1.5), (None, 12.0))


def elevation() -> DataSet:
    """Height of the land at the Jacksboro fault, 344 × 403 places, three seconds of arc apart."""
    file = np.load(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))
    height = file["elevation"].astype(float)
    axes = tuple(np.arange(float(n)) for n in height.shape)
    return DataSet(_scaled(height), axes, (1.5, 1.5), (None, None))


def air_temperature() -> DataSet:
    """Annual means over North America, 240 years × 37 latitudes × 49 longitudes.

    Less the mean of each place, in units of the spread of its changes from year to year.
    """
    file = Path(iris_sample_data.path) / "A1B_north_america.nc"
    air = xr.open_dataset(file).air_temperature.astype("float64")
    years = air.time.dt.year.to_numpy().astype(float)
    anomaly = (air - air.mean("time")) / air.diff("time").std("time")
    axes = (years, air.latitude.to_numpy(), air.longitude.to_numpy())
    return DataSet(
        _scaled(anomaly.to_numpy()),
        tuple(np.asarray(x, float) for x in axes),
        (1.5, 2.5, 2.5),
        (None, None, None),
    )


def _scaled(y: np.ndarray) -> np.ndarray:
    return (y - y.mean()) / y.std()


DATA_SETS: dict[str, Callable[[], DataSet]] = {
    "El Niño": el_nino,
    "elevation": elevation,
    "air temperature": air_temperature,
}
