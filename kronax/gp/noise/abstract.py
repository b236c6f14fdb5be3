"""What everything asks of the noise of a grid GP."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.operators.draws import apply_roots
from kronax.linalg.operators.kronecker import Kronecker


class Slices(NamedTuple):
    """Further places along one axis of a grid.

    Attributes:
        axis: its number.
        name: its name.
        size: of the new places.
        in_front: whether they come before the old ones.
        noise: their variances, as users give them; `None` if they gave none.
    """

    axis: int
    name: str
    size: int
    in_front: bool
    noise: Any

    def beside(self, old: Array, new: Array, axis: int = 0) -> Array:
        """Both in one array, in the order of the longer axis."""
        return jnp.concatenate([new, old] if self.in_front else [old, new], axis=axis)

    def refuse_noise(self) -> None:
        """Refuse variances of the new places where the model says what they are."""
        if self.noise is not None:
            raise TypeError(
                f"`noise` is for a model whose noise varies along {self.name}, and this one's does "
                f"not; got noise={self.noise!r}. Leave it out."
            )


class NoiseInTime(eqx.Module):
    """Noise along the times: `level · shape` at each.

    Args:
        levels: `(n, 1)`, or `(n, m)` for a variance per cell.
        shape: variances `(m,)` or a covariance `(m, m)`.
        is_known: whether it is the same at times to come.
    """

    levels: Array
    shape: Array
    is_known: bool = eqx.field(static=True, default=True)

    @property
    def variances(self) -> Array:
        """The variances, `(m,)`."""
        return jnp.diagonal(self.shape) if self.shape.ndim == 2 else self.shape

    def at(self, level: Array) -> Array:
        """The covariance at a time of a level, `(m, m)`."""
        if self.shape.ndim == 2:
            return jnp.broadcast_to(level, self.shape.shape[:1])[:, None] * self.shape
        return jnp.diag(level * self.shape)


class AbstractNoise(eqx.Module):
    """The noise of a process on a grid: one final class for each kind.

    Attributes:
        is_none: whether there is none.
        is_white: whether it is independent and of one variance.
        is_per_cell: whether every cell has a variance of its own, so that it is no product.
    """

    is_none: ClassVar[bool] = False
    is_white: ClassVar[bool] = False
    is_per_cell: ClassVar[bool] = False

    @abc.abstractmethod
    def operator(self, dtype: Any) -> Array | Kronecker:
        """The noise covariance: variances that broadcast to the grid, or a Kronecker product."""

    @abc.abstractmethod
    def levels(self, dtype: Any) -> Array:
        """The variances, which broadcast to the grid; infinity marks a gap."""

    @abc.abstractmethod
    def on(self, new_sizes: Sequence[int | None], dtype: Any) -> Array:
        """They where some axes, along which they do not vary, have that many new places."""

    @abc.abstractmethod
    def along(self, i: int, dtype: Any) -> Array:
        """Those of an axis beside which the noise is white: one, or `(n_i,)`."""

    @abc.abstractmethod
    def in_time(self, i: int, grid_shape: tuple[int, ...], dtype: Any) -> NoiseInTime:
        """The noise along an axis on which it is independent, in the order of the grid."""

    @abc.abstractmethod
    def times(self, x: Array, dtype: Any) -> Array:
        """The covariance times `x` on the grid; zero at gaps."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        """Noise of that shape, whose last axes are the grid; NaN at gaps."""

    @abc.abstractmethod
    def longer(self, slices: Slices, dtype: Any) -> "AbstractNoise":
        """The noise on a grid with further places, or an error where it is not defined there."""

    @property
    def observed(self) -> Array | np.ndarray | None:
        """True where the variance is finite, traced if they are; `None` if the kind says all."""
        return None

    @property
    def one_variance(self) -> Array | None:
        """The variance, where it is one number that can train."""
        return None

    @property
    def is_independent(self) -> bool:
        """Whether it is independent from cell to cell."""
        return True

    def is_independent_along(self, i: int) -> bool:
        """Whether it is independent from place to place of an axis."""
        return True

    def varies_along(self, i: int) -> bool:
        """Whether it is defined at the places of an axis only."""
        return True

    def is_white_beside(self, i: int) -> bool:
        """Whether it is a multiple of the identity on all axes but one, whatever its values."""
        return False

    @property
    def level_parameter(self) -> tuple[str, Array] | None:
        """The path, behind `noise`, and the value of what sets its level, if something does.

        The methods below are asked where there is one.
        """
        return None

    def level(self, dtype: Any) -> Array:
        """The smallest variance, or the typical one where every cell has its own."""
        return jnp.min(self.levels(dtype))

    def shares(self) -> list[Array]:
        """By what the level rises as that parameter does, in factors."""
        return []

    def at_level(self, level: float) -> dict[str, Any]:
        """Parameters by path, behind `noise`, at which it has a level and its own pattern."""
        return {}


class AbstractVariances(AbstractNoise):
    """Independent noise that is given as variances."""

    @abc.abstractmethod
    def operator(self, dtype: Any) -> Array:
        """The variances."""

    def levels(self, dtype: Any) -> Array:
        """The variances."""
        return self.operator(dtype)

    def on(self, new_sizes: Sequence[int | None], dtype: Any) -> Array:
        """The same: there is one variance, or no new place."""
        return self.operator(dtype)

    def along(self, i: int, dtype: Any) -> Array:
        """The variance."""
        return self.operator(dtype)

    def times(self, x: Array, dtype: Any) -> Array:
        """Cell by cell: infinity times zero would be NaN."""
        levels, observed = self.operator(dtype), self.observed
        levels = levels if observed is None else jnp.where(observed, levels, 0)
        return jnp.multiply(*same_rank(levels, x))

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        """Cell by cell."""
        white, levels = normal_numbers(key, shape, dtype), self.operator(dtype)
        levels, white = same_rank(levels, white)
        return where(jnp.isposinf(levels), jnp.nan, safe_sqrt(levels) * white)


class AbstractProduct(AbstractNoise):
    """Noise whose covariance is a Kronecker product."""

    @abc.abstractmethod
    def operator(self, dtype: Any) -> Kronecker:
        """The product."""

    def levels(self, dtype: Any) -> Array:
        """The diagonal."""
        return self.operator(dtype).diagonal()

    def on(self, new_sizes: Sequence[int | None], dtype: Any) -> Array:
        """The product of the diagonals, with ones at new places."""
        grid = jnp.ones((), dtype)
        for factor, size in zip(self.operator(dtype).factors, new_sizes, strict=True):
            values = factor.diagonal() if size is None else jnp.ones(size, dtype)
            grid = jnp.multiply(*same_rank(grid[..., None], values))
        return grid

    def along(self, i: int, dtype: Any) -> Array:
        """The diagonal of one factor."""
        values = self.operator(dtype).factors[i].diagonal()
        return values if self.varies_along(i) else values[0]

    def in_time(self, i: int, grid_shape: tuple[int, ...], dtype: Any) -> NoiseInTime:
        """The other axes, at all times or at a level for each."""
        factors, one = self.operator(dtype).factors, jnp.eye(1, dtype=dtype)
        mine, others = factors[i], Kronecker(*factors[:i], one, *factors[i + 1 :])
        shape = others.diagonal().reshape(-1) if self.is_independent else others.to_dense()
        if isinstance(mine, ScaledIdentity):
            return NoiseInTime(jnp.ones((grid_shape[i], 1), dtype), mine.scale * shape)
        return NoiseInTime(mine.diagonal()[:, None], shape, False)

    def times(self, x: Array, dtype: Any) -> Array:
        """Axis by axis."""
        return self.operator(dtype).mv_grid(x)

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        """By a root of every factor."""
        roots = [factor.root() for factor in self.operator(dtype).factors]
        return apply_roots(roots, normal_numbers(key, shape, dtype))
