"""Independent noise: of one variance, of one per cell, or none."""

from math import prod
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.annotations import ParameterArray
from kronax.domains import data, parameter
from kronax.gp.noise.abstract import AbstractVariances, NoiseInTime, Slices
from kronax.linalg.arrays.checks import array_of_reals, is_concrete
from kronax.linalg.arrays.precision import where
from kronax.linalg.operators.plus_diagonal import check_variances


class AbstractWhite(AbstractVariances):
    """Independent noise of one variance."""

    is_white: ClassVar[bool] = True

    def varies_along(self, i: int) -> bool:
        """It does not."""
        return False

    def is_white_beside(self, i: int) -> bool:
        """It is."""
        return True

    def in_time(self, i: int, grid_shape: tuple[int, ...], dtype: Any) -> NoiseInTime:
        """The variance, at all times."""
        num_places = prod(n for j, n in enumerate(grid_shape) if j != i)
        shape = jnp.broadcast_to(self.operator(dtype), (num_places,))
        return NoiseInTime(jnp.ones((grid_shape[i], 1), dtype), shape)

    def longer(self, slices: Slices, dtype: Any) -> "AbstractWhite":
        """Itself."""
        slices.refuse_noise()
        return self


class NoNoise(AbstractWhite):
    """None at all, for interpolation: there is nothing to train."""

    is_none: ClassVar[bool] = True

    def operator(self, dtype: Any) -> Array:
        """A variance of zero."""
        return jnp.zeros((), dtype)


class ScalarNoise(AbstractWhite):
    """One variance for all cells; a model has the array alone."""

    variance: Array

    def operator(self, dtype: Any) -> Array:
        """The variance."""
        return self.variance.astype(dtype)

    @property
    def one_variance(self) -> Array | None:
        """The variance, unless it is that of several models."""
        return None if self.variance.ndim else self.variance

    @property
    def level_parameter(self) -> tuple[str, Array]:
        """The variance."""
        return "", self.variance

    def level(self, dtype: Any) -> Array:
        """The variance."""
        return self.operator(dtype)

    def at_level(self, level: float) -> dict[str, Any]:
        """The level."""
        return {"": level}


class AbstractPerCell(AbstractVariances):
    """Independent noise with a variance of its own at every cell."""

    is_per_cell: ClassVar[bool] = True

    def in_time(self, i: int, grid_shape: tuple[int, ...], dtype: Any) -> NoiseInTime:
        """The variances of every time; those of gaps do not count."""
        levels = self.operator(dtype)
        levels = jnp.where(jnp.isposinf(levels), 1, levels)
        levels = jnp.moveaxis(levels, i, 0).reshape(grid_shape[i], -1)
        return NoiseInTime(levels, jnp.ones(levels.shape[1], dtype), False)


class CellNoise(AbstractPerCell):
    """Independent noise with a variance of its own at every cell, `scale · variances`.

    The variances are data, such as squared standard errors of measurements; a fit trains their
    common scale. Infinity marks a gap.

    Args:
        variances: on the grid.
        scale: a number.
    """

    variances: Array = data()
    scale: ParameterArray = parameter(constraints.positive)

    def operator(self, dtype: Any) -> Array:
        """The variances on the grid: a product over the axes or not."""
        variances, scale = self.variances.astype(dtype), self.scale.astype(dtype)
        is_gap = jnp.isposinf(variances)
        return where(is_gap, jnp.inf, scale * where(is_gap, 1, variances))

    @property
    def observed(self) -> Array | np.ndarray:
        """True where the variance is finite."""
        if is_concrete(self.variances):
            return np.isfinite(np.asarray(self.variances))
        return ~jnp.isposinf(self.variances)

    def longer(self, slices: Slices, dtype: Any) -> "CellNoise":
        """Those of the new slices beside the old ones."""
        grid, i = self.variances.shape, slices.axis
        shape = (*grid[:i], slices.size, *grid[i + 1 :])
        if slices.noise is None:
            raise ValueError(
                "The noise has a variance of its own at every cell. Pass `noise=` with those of "
                f"the new slices, one or {shape}."
            )
        value = array_of_reals(slices.noise, "noise", finite=False)
        if value.shape not in ((), shape):
            raise ValueError(
                f"The noise of the new slices must be one variance, or one per cell, {shape}; got "
                f"shape {value.shape}."
            )
        ahead = jnp.broadcast_to(value, shape).astype(dtype) / self.scale
        both = slices.beside(self.variances, ahead, i)
        return CellNoise(checked_cells(both), self.scale)

    @property
    def level_parameter(self) -> tuple[str, Array]:
        """The scale."""
        return ".scale", self.scale

    def level(self, dtype: Any) -> Array:
        """The scale times the typical one."""
        return (self.scale * self._typical).astype(dtype)

    def shares(self) -> list[Array]:
        """The typical one."""
        return [self._typical]

    @property
    def _typical(self) -> Array:
        """A few precise cells do not make the covariance singular, and gaps do not count."""
        return jnp.nanmedian(where(jnp.isposinf(self.variances), jnp.nan, self.variances))

    def at_level(self, level: float) -> dict[str, Any]:
        """By the mean of the cells that have data."""
        cells = np.asarray(self.variances, np.float64)
        return {".scale": level / np.mean(cells[np.isfinite(cells)])}


class SiteNoise(AbstractPerCell):
    """What the sites of a likelihood bring: a precision per cell, zero at gaps.

    Args:
        precisions: on the grid; `None` in a model, before there are data.
    """

    precisions: Array | None = data(default=None)

    def operator(self, dtype: Any) -> Array:
        """The variances on the grid."""
        if self.precisions is None:
            raise TypeError(
                "A process with a likelihood has no noise: ask for the latent function, or for new "
                "observations by post.response() and post.sample(key, response=True)."
            )
        precisions = self.precisions.astype(dtype)
        is_site = precisions > 0
        return where(is_site, 1 / where(is_site, precisions, 1), jnp.inf)

    @property
    def observed(self) -> Array | None:
        """True where there is a site; not known before there are data."""
        return None if self.precisions is None else self.precisions > 0

    def longer(self, slices: Slices, dtype: Any) -> "SiteNoise":
        """Nothing is known of it: further data move all sites."""
        slices.refuse_noise()
        return SiteNoise()


def checked_cells(value: Any) -> Array:
    """Variances as an array, positive where they are concrete."""
    array = array_of_reals(value, "The noise variances", finite=False)
    if is_concrete(array):
        check_variances(np.asarray(array))
    return array
