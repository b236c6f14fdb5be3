"""Observations predicted from others: scores, standardised errors, coverage, outliers."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.axes.axis import Axis
from kronax.gp.criticism.outliers import Outlier, Outliers, coordinates_at, most_surprising
from kronax.gp.model.process import AbstractProcess
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.paths import nearest


class HeldOut(eqx.Module):
    """Means and variances of observations that were left out, beside the observations.

    It unpacks to two: `means, variances = …`. Batches of the data lead. Where a cell has no data
    there is nothing to leave out: these are NaN, and no score or share counts them.
    """

    mean: eqx.AbstractVar[Array]
    variance: eqx.AbstractVar[Array]
    y: eqx.AbstractVar[Array]
    axes: eqx.AbstractVar[tuple[Axis, ...]]
    axis_names: eqx.AbstractVar[tuple[str, ...]]

    def __iter__(self) -> Any:
        return iter((self.mean, self.variance))

    @property
    def error(self) -> Float[Array, "..."]:
        """What was observed less what was predicted."""
        return self.y - self.mean

    @property
    def standardised(self) -> Float[Array, "..."]:
        """The errors in standard deviations, standard normal, one by one, under the model.

        They are correlated. For independent ones see `post.diagnostics().decorrelated`.
        """
        return jnp.divide(*same_rank(self.error, jnp.sqrt(self.variance)))

    @property
    def rmse(self) -> Float[Array, "..."]:
        """The root mean square error, in units of the data; one per data set."""
        return jnp.sqrt(jnp.nanmean(jnp.square(self.error), axis=self._cells))

    def coverage(self, level: float | Sequence[float]) -> Float[Array, "..."]:
        """The share of observations inside their central intervals, one per data set.

        Under the model it is `level`, give or take: the errors are correlated.

        Args:
            level: between 0 and 1, or several; these are the last axis of the result.

        Raises:
            ValueError: if a level is not between 0 and 1.
        """
        return covered(self.standardised, level, len(self.axes))

    def outliers(self, threshold: float = 3.0, number: int | None = None) -> Outliers:
        """The observations that the others predict worst, the worst first.

        Args:
            threshold: list the errors beyond so many standard deviations.
            number: list so many, whatever their size.

        Raises:
            TypeError: inside a transformation of JAX, where there is no list.
            ValueError: if the threshold or the number is negative.
        """
        if threshold < 0 or (number is not None and number < 0):
            raise ValueError(
                "A threshold is in standard deviations and not negative, as is a number of "
                f"outliers; got threshold={threshold}, number={number}."
            )
        if not is_concrete(self.y, self.mean, self.variance):
            raise TypeError(
                "Outliers are a list of concrete observations; these are traced. Use "
                "`.standardised`, an array, inside of jit."
            )
        z, y, mean = (np.asarray(x, float) for x in (self.standardised, self.y, self.mean))
        sd = np.broadcast_to(np.sqrt(np.asarray(self.variance, float)), y.shape)
        found = []
        for flat in most_surprising(z, threshold, number):
            index = tuple(int(k) for k in np.unravel_index(flat, y.shape))
            cell = index[len(index) - len(self.axes) :]
            where = coordinates_at(self.axes, self.axis_names, cell)
            values = (float(x[index]) for x in (y, mean, sd, z))
            found.append(Outlier(index, where, *values))
        return Outliers(found)

    @property
    def _cells(self) -> tuple[int, ...]:
        """The axes of the grid."""
        return tuple(range(-len(self.axes), 0))


def sum_of_observed(values: Array, axes: tuple[int, ...] | None = None) -> Array:
    """The sum over the cells with data; NaN if there is none, as when the posterior is NaN."""
    missing = jnp.isnan(values)
    return where(missing.all(axes), jnp.nan, jnp.sum(where(missing, 0, values), axes))


def covered(z: Array, level: float | Sequence[float], num_axes: int) -> Float[Array, "..."]:
    """The share of standardised errors inside the central interval of a standard normal."""
    levels = np.asarray(level, float)
    if levels.size == 0 or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(
            f"A level of coverage must be between 0 and 1, such as 0.95; got {level!r}."
        )
    cells = tuple(range(-num_axes, 0))
    size = jnp.abs(z)
    inside = [(size <= quantile(one)).astype(z.dtype) for one in levels.ravel()]
    # A cell without data is neither inside nor outside.
    shares = [jnp.nanmean(jnp.where(jnp.isnan(z), z, one), axis=cells) for one in inside]
    return jnp.stack(shares, axis=-1).reshape(*shares[0].shape, *levels.shape)


def quantile(level: float) -> float:
    """Half the width of the central interval of a standard normal."""
    return NormalDist().inv_cdf((1 + float(level)) / 2)


def axis_labels(gp: AbstractProcess) -> tuple[str, ...]:
    """The names of the axes, made up where there are none."""
    return gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))


def axis_number(gp: AbstractProcess, axis: int | str) -> int:
    """The number of an axis that is given by its name or number."""
    names: Any = gp.axis_names or ()
    known = (*names, *range(len(gp.axes)))
    if axis not in known or isinstance(axis, bool):
        raise KeyError(f"There is no axis {axis!r}.{nearest(axis, known)}")
    return names.index(axis) if axis in names else int(axis)
