"""Real data on grids with missing cells, some of them known: those predictions are scored on."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import iris_sample_data
import numpy as np
import statsmodels.api as sm
import xarray as xr

from benchmarks.real_data import elevation

# Every other month of the ocean would do as well; the first has no ice.
MONTH = 0
WEEKS = 52


class Case(NamedTuple):
    """A grid with missing cells.

    `y` is NaN where a method sees nothing, of mean zero and variance one elsewhere; `truth` is in
    the same units, and `is_held_out` marks the missing cells where it is known. Linear axes go from
    0 to 1, one of places in a plane is `(n, 2)`; `periods` are those of axes that are circles,
    `kernels` Matérn kernels by smoothness ν.
    """

    y: np.ndarray
    truth: np.ndarray
    is_held_out: np.ndarray
    axes: tuple[np.ndarray, ...]
    kernels: tuple[float, ...]
    periods: tuple[float | None, ...]

    def places(self) -> list[np.ndarray]:
        """Coordinates as rows; a circle is places in the plane, as kronax sees it."""
        found = []
        for x, period in zip(self.axes, self.periods, strict=True):
            if period is None:
                found.append(x.reshape(len(x), -1))
                continue
            angle = 2 * np.pi * x / period
            found.append(period / (2 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        return found


def heights(size: int | None, share: float, block: int | None) -> Case:
    """Elevation, the whole map or a square from its middle, less single cells or square blocks."""
    y = elevation().y
    if size is not None:
        top, left = ((n - size) // 2 for n in y.shape)
        y = y[top : top + size, left : left + size]
    rng = np.random.default_rng(0)
    single = rng.random(y.shape) < share
    missing = single if block is None else _blocks(rng, y.shape, share, block)
    return _case(y, missing, missing, [_unit(n) for n in y.shape], (1.5, 1.5), (None, None))


def carbon_dioxide() -> Case:
    """Carbon dioxide over Mauna Loa, weeks × years, less a parabola through what is left of it.

    A tenth of the weeks is held out one by one, and twenty spells of a quarter.
    """
    table = sm.datasets.co2.load_pandas().data["co2"]
    years = table.index.year.to_numpy()
    weeks = (table.index.dayofyear.to_numpy() - 1) // 7
    y = np.full((WEEKS, np.ptp(years) + 1), np.nan)
    is_whole = weeks < WEEKS
    y[weeks[is_whole], years[is_whole] - years.min()] = table.to_numpy()[is_whole]
    rng = np.random.default_rng(0)
    held = rng.random(y.shape) < 0.1
    for _ in range(20):
        week, year = rng.integers(WEEKS - 13), rng.integers(y.shape[1])
        held[week : week + 13, year] = True
    held &= ~np.isnan(y)
    missing = np.isnan(y) | held
    time = np.arange(y.shape[1]) + np.arange(WEEKS)[:, None] / WEEKS
    trend = np.polynomial.Polynomial.fit(time[~missing], y[~missing], 2)
    axes = [np.arange(WEEKS) / WEEKS, _unit(y.shape[1])]
    return _case(y - trend(time), missing, held, axes, (2.5, 1.5), (1.0, None))


def curves(num_settings: int, num_epochs: int) -> Case:
    """Validation errors of a sweep while it runs: settings × epochs, less what lies ahead.

    Simulated, and not from a Gaussian process, as in `examples/learning_curves.py`: an error falls
    as a power of the epoch and as an exponential. Curves end from epoch 3 to the last. The second
    axis is the logarithm of the epoch.
    """
    rng = np.random.default_rng(0)
    epochs = np.arange(1.0, num_epochs + 1)
    settings = rng.uniform(-1, 1, (num_settings, 2))
    rate, width = settings.T
    luck = rng.normal(size=(3, num_settings))
    floor = (0.05 + 0.12 * (rate - 0.2) ** 2 + 0.05 * (width - 0.5) ** 2) * np.exp(0.15 * luck[0])
    scale = np.exp(0.8 - rate + 0.3 * luck[1])[:, None]
    power = (0.8 + 0.3 * width + 0.1 * luck[2])[:, None]
    share = rng.uniform(0.3, 0.9, (num_settings, 1))
    fall = share * (1 + epochs / scale) ** -power + (1 - share) * np.exp(-epochs / (4 * scale))
    error = floor[:, None] + (0.9 - floor[:, None]) * fall
    error += 0.006 * rng.standard_normal(error.shape)
    ends = rng.permutation(np.linspace(3, num_epochs, num_settings).round())
    ahead = epochs > ends[:, None]
    axes = [settings, np.log(epochs) / np.log(num_epochs)]
    return _case(error, ahead, ahead, axes, (1.5, 1.5), (None, None))


def one_month() -> Case:
    """Sea-surface temperature along the equator in one month: land, and a tenth of the sea."""
    _, latitude, longitude, y = _ocean()
    y = y[MONTH].T
    sea = ~np.isnan(y)
    held = sea & (np.random.default_rng(0).random(y.shape) < 0.1)
    axes = [longitude, latitude]
    return _case(y, ~sea | held, held, axes, (1.5, 1.5), (1.0, None))


def all_months() -> Case:
    """The same in every month: land, and a tenth of the places at sea, which no month has seen."""
    time, latitude, longitude, y = _ocean()
    sea = ~np.isnan(y).any(axis=0)
    unseen = sea & (np.random.default_rng(0).random(sea.shape) < 0.1)
    missing = np.broadcast_to(~sea | unseen, y.shape)
    held = np.broadcast_to(unseen, y.shape)
    axes = [time, latitude, longitude]
    return _case(y, missing, held, axes, (1.5, 1.5, 1.5), (None, None, 1.0))


def _ocean() -> tuple[np.ndarray, ...]:
    file = Path(iris_sample_data.path) / "ostia_monthly.nc"
    temperature = xr.open_dataset(file).surface_temperature.astype("float64")
    months, rows, columns = temperature.shape
    # Regular, but stored in float32, of which rounding is left.
    longitude = np.arange(columns) / columns
    return _unit(months), _unit(rows), longitude, temperature.to_numpy()


def _unit(size: int) -> np.ndarray:
    return np.linspace(0, 1, size)


def _blocks(rng: np.random.Generator, shape: tuple, share: float, block: int) -> np.ndarray:
    missing = np.zeros(shape, bool)
    while missing.mean() < share:
        top, left = (rng.integers(n - block + 1) for n in shape)
        missing[top : top + block, left : left + block] = True
    return missing


def _case(
    y: np.ndarray,
    missing: np.ndarray,
    held: np.ndarray,
    axes: list[np.ndarray],
    kernels: tuple[float, ...],
    periods: tuple[float | None, ...],
) -> Case:
    truth = (y - y[~missing].mean()) / y[~missing].std()
    seen = np.where(missing, np.nan, truth)
    return Case(seen, truth, held, tuple(axes), kernels, periods)


CASES: dict[str, Callable[[], Case]] = {
    "elevation 48×48, 10 % at random": lambda: heights(48, 0.1, None),
    "CO₂ by week and year": carbon_dioxide,
    "elevation 96×96, 10 % at random": lambda: heights(96, 0.1, None),
    "elevation 96×96, 50 % at random": lambda: heights(96, 0.5, None),
    "elevation 96×96, 10 % in blocks": lambda: heights(96, 0.1, 12),
    "elevation 96×96, 50 % in blocks": lambda: heights(96, 0.5, 12),
    "sea surface, one month": one_month,
    "sea surface, 54 months": all_months,
    "elevation 344×403, 10 % at random": lambda: heights(None, 0.1, None),
}
QUICK_CASES: dict[str, Callable[[], Case]] = {
    "elevation 20×20, 10 % at random": lambda: heights(20, 0.1, None),
}
