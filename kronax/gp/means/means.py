"""Mean functions over the grid."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.annotations import ParameterArray
from kronax.display import Shown
from kronax.domains import data, parameter, refuse_plain_numbers
from kronax.gp.coordinates.static_arrays import FrozenArray
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.checks import check_finite, check_plain, plain, whole
from kronax.linalg.arrays.host import on_device


class Mean(Shown, eqx.Module):
    """A mean function: called with the coordinates of every axis, it broadcasts to the grid."""

    def __check_init__(self) -> None:
        """Refuse Python numbers in fields that are neither parameters nor static."""
        refuse_plain_numbers(self)

    @abc.abstractmethod
    def __call__(self, *axes: Array) -> Array:
        """An array that broadcasts to `(n_1, …, n_d)`."""

    def at(self, *axes: Points) -> Array:
        """The same at points of the axes, in the form that suits it."""
        return self(*(x.raw for x in axes))

    def __add__(self, other: Any) -> "Mean":
        return SumMean(self, as_mean(other, None))

    __radd__ = __add__

    def summands(self) -> tuple["Mean", ...]:
        """What it is the sum of."""
        return (self,)

    def bound(self, axes: Sequence[Any], names: tuple[str, ...] | None, dtype: Any) -> "Mean":
        """The mean of a process with these axes, which may depend on them."""
        return self


class ZeroMean(Mean):
    """Zero everywhere, the default.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.ZeroMean()(jnp.arange(3.0)).item()
        0.0
    """

    def __call__(self, *axes: Array) -> Array:
        """Zero."""
        return on_device(np.zeros((), axes[0].dtype))


class ConstantMean(Mean):
    """One number everywhere.

    Args:
        value: in units of the data.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.ConstantMean(0.5)(jnp.arange(3.0)).item()
        0.5
    """

    value: ParameterArray = parameter(constraints.real, start="mean")

    def __call__(self, *axes: Array) -> Array:
        """The number."""
        return self.value


class ArrayMean(Mean):
    """A given array that broadcasts to the grid: data, not a parameter."""

    values: FrozenArray = eqx.field(static=True)

    def __call__(self, *axes: Array) -> Array:
        """The array; it is known on its own grid only."""
        grid = tuple(a.shape[0] for a in axes)
        shape = self.values.values.shape
        if not fits(shape, grid):
            raise ValueError(
                f"A mean given as an array must broadcast to the grid {grid}; got shape {shape}. "
                "On a new grid use a mean that is a function of the axes."
            )
        return on_device(self.values.values.astype(axes[0].dtype))


class FunctionMean(Mean):
    """Any callable of the axes; its numbers have no known domain, so a fit freezes them."""

    function: Callable[..., Array] = data()

    def __call__(self, *axes: Array) -> Array:
        """The callable's result."""
        values = jnp.asarray(self.function(*axes))
        grid = tuple(a.shape[0] for a in axes)
        if not fits(values.shape, grid):
            raise ValueError(
                f"A callable mean must return an array that broadcasts to the grid {grid}; got "
                f"shape {values.shape}. Add axes of size one, as in `x[:, None]`."
            )
        return values


class SumMean(Mean):
    """The sum of two means: what `+` makes."""

    first: Mean
    second: Mean

    def __call__(self, *axes: Array) -> Array:
        """Both, added."""
        return self.first(*axes) + self.second(*axes)

    def at(self, *axes: Points) -> Array:
        """Both, added."""
        return self.first.at(*axes) + self.second.at(*axes)

    def summands(self) -> tuple[Mean, ...]:
        """Those of both."""
        return (*self.first.summands(), *self.second.summands())

    def bound(self, axes: Sequence[Any], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """Both bound."""
        return SumMean(self.first.bound(axes, names, dtype), self.second.bound(axes, names, dtype))


def values_at(mean: Mean, axes: Sequence[Points]) -> Array:
    """What a mean returns at points of every axis, its shape checked."""
    values, grid = jnp.asarray(mean.at(*axes)), tuple(x.size for x in axes)
    if not fits(values.shape, grid):
        raise ValueError(
            f"A mean must return an array that broadcasts to the grid of the coordinates that it "
            f"is called with, {grid}; got shape {values.shape} from {type(mean).__name__}. Compute "
            "it from the coordinates; what is known on one grid only cannot be predicted elsewhere."
        )
    return values


def fits(shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether an array of that shape broadcasts to a grid."""
    return len(shape) <= len(grid) and all(
        m in (1, n) for m, n in zip(shape[::-1], grid[::-1], strict=False)
    )


def as_mean(value: Any, dtype: Any) -> Mean:
    """A mean from a number, an array, a callable, or a mean; numbers take the dtype."""
    if isinstance(value, Mean):
        return value
    if value is None:
        return ZeroMean()
    value = whole(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        number: Any = np.asarray(value, dtype)
        return ConstantMean(number)
    check_plain(value, "The mean")
    value = plain(value, "The mean")
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.dtype.kind in "fiu":
        if value.ndim == 0:
            return ConstantMean(on_device(value))
        if not isinstance(value, jax.core.Tracer):
            check_finite(value, "The mean")
            return ArrayMean(FrozenArray(np.asarray(value)))
    if callable(value) and not isinstance(value, type | Kernel):
        return FunctionMean(value)
    raise TypeError(
        "The mean must be a number, a concrete array of real numbers, a kronax mean such as "
        f"kx.ConstantMean(0.5), or a callable of the axes; got {value!r}."
    )
