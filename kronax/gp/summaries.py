"""What posteriors say in numbers of every place: deviations, quantiles, intervals, and tables."""

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.datasets import MEAN, SD, to_dataarray, to_dataset, to_frame
from kronax.gp.model.process import AbstractPosterior
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.square_roots import safe_sqrt

# How a report is drawn: the room of pictures, which is above this one, puts it here.
PICTURES: dict[str, Callable[..., Any]] = {}


class SummarisedPosterior(AbstractPosterior):
    """A posterior whose marginals are normal, by `mean` and `variance`.

    With a likelihood they are those of the latent function; rates and new observations have theirs
    in `response`.
    """

    def plot(
        self,
        x: str | int | None = None,
        y: str | int | None = None,
        at: Mapping[Any, Any] | None = None,
    ) -> Any:
        """A report on one page: data, mean, deviation, residuals, calibration; a figure.

        Data, posterior mean and standard deviation are maps of two axes, or of places; with one
        axis to draw they are a line with its band of new observations. Below are the errors of
        every observation as predicted from all the others, in standard deviations: on the same
        map, their distribution against a standard normal one, and how many of them are inside of
        their central intervals. Errors of neighbours are correlated, so that the bands of what
        chance allows are those of as many independent ones.

        Args:
            x: the axis from left to right, by name or number, as for `kx.plot_maps`.
            y: the axis from bottom to top.
            at: places on other axes by name, `{"time": "2000-01-16"}`; by default their middle
                cell.

        Returns:
            A matplotlib Figure: `.savefig("report.pdf")`.

        Raises:
            ImportError: if matplotlib is not installed.
            KeyError: if an axis name is unknown.
            ValueError: if the posterior is of a batch of data.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx
            >>> x = jnp.linspace(0, 1, 8)
            >>> gp = kx.GridGP({"a": kx.RBF(0.3), "b": kx.RBF(0.3)}, {"a": x, "b": x}, noise=0.1)
            >>> figure = gp.condition(jnp.sin(6 * x)[:, None] * x).plot()
            >>> [ax.get_title() for ax in figure.axes[:3]]
            ['data', 'mean', 'standard deviation']
        """
        return PICTURES["report"](self, x, y, at)

    def std(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Float[Array, "..."]:
        """Posterior standard deviation, in units of the data: the root of `variance`.

        Args:
            axes: new coordinates; by default the grid itself.
            include_noise: of a new observation: σ² is added to the variance.
            noise: as for `variance`.
            points: scattered places instead, as for `variance`.
            covariates: of the mean there, as for `variance`.

        Raises:
            KeyError: as in `variance`.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        return safe_sqrt(self.variance(axes, include_noise, noise, points, covariates))

    def quantile(
        self,
        q: Any,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Float[Array, "..."]:
        """Posterior quantiles at every place, exact: those of a normal distribution.

        Args:
            q: a probability between 0 and 1; several lead in the result, as in `numpy.quantile`.
            axes: new coordinates; by default the grid itself.
            include_noise: of a new observation.
            noise: as for `variance`.
            points: scattered places instead, as for `variance`.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: as in `variance`.
            TypeError: as in `variance`; or if `q` holds no real numbers.
            ValueError: as in `variance`; or if a probability is not between 0 and 1.
        """
        mean = self.mean(axes, points, covariates)
        return quantiles_of(q, mean, self.variance(axes, include_noise, noise, points, covariates))

    def interval(
        self,
        level: float = 0.95,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> tuple[Array, Array]:
        """The central interval that holds the value of a place with some probability.

        `lower, upper = post.interval(0.95)` are two quantiles, place by place. For places or times
        jointly take draws.

        Args:
            level: the probability, between 0 and 1.
            axes: new coordinates; by default the grid itself.
            include_noise: of a new observation.
            noise: as for `variance`.
            points: scattered places instead, as for `variance`.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: as in `variance`.
            TypeError: as in `variance`; or if `level` is no number.
            ValueError: as in `variance`; or if the level is not between 0 and 1.
        """
        ends = self.quantile(tails(level), axes, include_noise, noise, points, covariates)
        return ends[0], ends[1]

    def to_dataset(
        self,
        axes: Any = None,
        quantiles: Sequence[float] = (0.025, 0.975),
        num_samples: int = 0,
        key: PRNGKeyArray | None = None,
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
    ) -> Any:
        """The posterior as an xarray Dataset, with the coordinates, names and units of the data.

        Its variables are `mean`, `standard_deviation`, `quantiles` (those of the normal
        distribution, not of draws) and `draws`. `ds.to_netcdf(path)` writes it. Coordinates along
        a new axis are those given; others that belong to its old places are left out.

        Args:
            axes: new coordinates; by default the grid itself.
            quantiles: their probabilities; `()` for none.
            num_samples: number of joint draws.
            key: a JAX random key for them.
            include_noise: of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.
            covariates: of the mean there, as for `mean`.

        Raises:
            ImportError: if xarray is not installed.
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`; or if draws are asked for without a key.
            ValueError: as in `variance`; if a probability is not between 0 and 1, or the data have
                a dimension called as one of the variables.
        """
        drawn = (num_samples, key)
        return to_dataset(self, axes, quantiles, drawn, include_noise, noise, covariates)

    def to_frame(
        self,
        axes: Any = None,
        quantiles: Sequence[float] = (0.025, 0.975),
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
        **response: Any,
    ) -> Any:
        """The posterior as a long pandas table, a row per cell, in the names of the data.

        Its columns are the coordinates of every axis, the data themselves (NaN in gaps) where no
        axis is new, `mean`, `standard_deviation` and one for each quantile, `quantile_0.025`.

        Args:
            axes: new coordinates; by default the grid itself.
            quantiles: their probabilities; `()` for none.
            include_noise: of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.
            covariates: of the mean there, as for `mean`.
            response: with a likelihood `response=True`, and as keywords what it has at new places:
                then `mean` and the next are of the rate or probability, and behind them come those
                of new observations, with `observation_` in front of their names.

        Raises:
            ImportError: if pandas is not installed.
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`; if a probability is not between 0 and 1, or an axis or the
                data are called as one of the columns.
        """
        at = {"covariates": covariates, **response}
        columns = self._columns(axes, quantiles, (include_noise, noise), at)
        return to_frame(self, axes, columns, self._data())

    def _columns(self, axes: Any, quantiles: Sequence[float], noise: Any, at: Any) -> Any:
        """What a table has of the function or of new observations."""
        covariates = at.pop("covariates")
        if at:
            raise TypeError(
                f"{next(iter(at))!r} belongs to a likelihood; for normal data pass "
                "include_noise=True."
            )
        mean = self.mean(axes, covariates=covariates)
        include_noise, level = noise
        variance = self.variance(axes, include_noise, level, covariates=covariates)
        columns = {MEAN: mean, SD: safe_sqrt(variance)}
        for q in quantiles:
            columns[quantile_name(q)] = quantiles_of(q, mean, variance)
        return columns

    def _data(self) -> Array:
        """The data on the grid, NaN in gaps."""
        observed = self.gp.observed
        return self.y if observed is None else where(observed.array, self.y, jnp.nan)

    def to_dataarray(self, values: Any, axes: Any = None, name: str | None = None) -> Any:
        """Anything computed on the grid as an xarray DataArray, such as leave-one-out residuals.

        Args:
            values: grid-shaped; batches of the data lead, and before them an axis of draws may.
            axes: the coordinates of the values; by default the grid itself.
            name: of the DataArray.

        Raises:
            ImportError: if xarray is not installed.
            KeyError: if an axis name is unknown.
            ValueError: if the values do not lie on this grid.
        """
        return to_dataarray(self, values, axes, name)


def quantiles_of(q: Any, mean: Array, variance: Array) -> Array:
    """Those of normal distributions; several probabilities lead."""
    scores = _scores(q, mean.dtype)
    scores = scores.reshape(*scores.shape, *(1,) * mean.ndim)
    return _beyond(*same_rank(mean, scores, safe_sqrt(variance)))


@jax.jit
def _beyond(mean: Array, scores: Array, deviation: Array) -> Array:
    return mean + scores * deviation


def quantile_name(q: float) -> str:
    """What the column of a quantile is called."""
    return f"quantile_{q:.10g}"


def tails(level: Any) -> tuple[float, float]:
    """The probabilities of the two ends of a central interval."""
    if isinstance(level, bool | str) or np.ndim(level):
        raise TypeError(
            f"The level of an interval must be one number between 0 and 1; got {level!r}."
        )
    level = float(level)
    if not 0 < level < 1:
        raise ValueError(
            f"The level of an interval must lie between 0 and 1, 0.95 for 95 %; got {level:g}."
        )
    return (1 - level) / 2, (1 + level) / 2


def _scores(q: Any, dtype: Any) -> Array:
    """Standard normal quantiles, on the host where the probabilities are known."""
    if not is_concrete(q):
        return jax.scipy.special.ndtri(jnp.asarray(q, dtype))
    levels = np.asarray(q)
    if levels.dtype.kind not in "fiu":
        raise TypeError(f"Quantiles need probabilities between 0 and 1; got {q!r}.")
    if not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"Quantiles need probabilities between 0 and 1; got {q!r}.")
    scores = [NormalDist().inv_cdf(float(level)) for level in levels.flat]
    return jnp.asarray(np.array(scores).reshape(levels.shape), dtype)
