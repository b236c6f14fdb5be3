"""Noise of a grid GP: one variance, variances along some axes, or one per cell."""

from operator import mul
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.linalg.arrays.checks import array_of_reals, is_concrete, plain, whole
from kronax.linalg.arrays.host import on_device, on_host
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.krylov.plus_diagonal import check_variances
from kronax.linalg.operators.kronecker import Kronecker
from kronax.parameters import as_parameter, data, parameter
from kronax.paths import nearest


class AxisNoise(eqx.Module):
    """Independent noise whose variance is a product of one variance per place along some axes.

    Args:
        grid_shape: shape of the grid.
        variances: one entry per axis: `(n_i,)` variances, or `None` where the noise is the same.
    """

    grid_shape: tuple[int, ...] = eqx.field(static=True)
    variances: tuple[Array | None, ...] = parameter(constraints.positive)

    def operator(self, dtype: Any) -> Kronecker:
        """The noise covariance."""
        return Kronecker(
            *(
                ScaledIdentity(jnp.ones((), dtype), n) if v is None else Diagonal(v.astype(dtype))
                for v, n in zip(self.variances, self.grid_shape, strict=True)
            )
        )


class CellNoise(eqx.Module):
    """Independent noise with a variance of its own at every cell, `scale · variances`.

    The variances are data, such as squared standard errors of measurements; a fit trains their
    common scale. Infinity marks a gap.

    Args:
        variances: on the grid.
        scale: a number.
    """

    variances: Array = data()
    scale: Any = parameter(constraints.positive, default=None)

    def operator(self, dtype: Any) -> Array:
        """The variances on the grid: a product over the axes or not."""
        variances, scale = self.variances.astype(dtype), self.scale.astype(dtype)
        is_gap = jnp.isposinf(variances)
        return jnp.where(is_gap, jnp.inf, scale * jnp.where(is_gap, 1, variances))

    @property
    def observed(self) -> np.ndarray | None:
        """True where the variance is finite; `None` if they are traced."""
        return np.isfinite(np.asarray(self.variances)) if is_concrete(self.variances) else None


class SiteNoise(CellNoise):
    """Noise of a process with a likelihood: one variance per cell, which its sites bring."""

    def __init__(self):
        self.variances, self.scale = None, None

    def operator(self, dtype: Any) -> Array:
        """There is none before there are data."""
        raise TypeError(
            "A process with a likelihood has no noise: ask for the latent function, or for new "
            "observations by `post.response` and `post.sample(key, response=True)`."
        )

    @property
    def observed(self) -> None:
        """Not known by the noise."""
        return None


class FullNoise(eqx.Module):
    """A Kronecker noise covariance with full factors: its entries are data, not parameters."""

    kronecker: Kronecker = data()

    def operator(self, dtype: Any) -> Kronecker:
        """The noise covariance."""
        return self.kronecker


class NoNoise(eqx.Module):
    """None at all, for interpolation: there is nothing to train."""

    def operator(self, dtype: Any) -> Array:
        """A variance of zero."""
        return jnp.zeros((), dtype)


def as_noise(
    value: Any, grid_shape: tuple[int, ...], names: tuple[str, ...] | None, dtype: Any = None
) -> Any:
    """A variance, or a module that makes a noise covariance; plain numbers take the dtype."""
    if isinstance(value, AxisNoise | CellNoise | FullNoise | NoNoise):
        return value
    if isinstance(value, dict):
        return _by_axis(value, grid_shape, names)
    if isinstance(value, Kronecker):
        if value.grid_shape != grid_shape:
            raise ValueError(
                f"The noise must be over the grid {grid_shape}; got {value.grid_shape}. Give one "
                "noise factor per axis, kx.ScaledIdentity(1.0, n) where it does not vary."
            )
        if all(isinstance(f, Diagonal | ScaledIdentity) for f in value.factors):
            return _from_diagonals(value)
        return FullNoise(value)
    if isinstance(value, AbstractOperator):
        raise TypeError(
            f"The noise must be a variance, a dictionary by axis, or a kx.Kronecker; got "
            f"{type(value).__name__}."
        )
    value = whole(plain(value, "The noise"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = np.asarray(value, dtype or float)
    if isinstance(value, int | float | jax.Array) or hasattr(value, "dtype"):
        if jnp.ndim(value) != 0:
            return _by_cell(value, grid_shape)
        is_number = not isinstance(value, bool | np.bool_)
        if is_concrete(value) and is_number and bool(np.asarray(value) == 0):
            return NoNoise()
        return as_parameter(value, constraints.positive, "noise")
    raise TypeError(
        "The noise must be a variance, an array with one per cell, a dictionary by axis, or a "
        f"kx.Kronecker; got {value!r}."
    )


def _by_cell(value: Any, grid_shape: tuple[int, ...]) -> CellNoise:
    if jnp.shape(value) != grid_shape:
        raise ValueError(
            f"The noise must be one variance, or one per cell of the grid {grid_shape}; got shape "
            f"{jnp.shape(value)}. For variances along an axis pass a dictionary such as "
            "{'task': variances}."
        )
    if isinstance(value, np.ma.MaskedArray):
        value = value.filled(np.inf)
    array = array_of_reals(value, "The noise variances", finite=False)
    one = on_device(np.ones((), array.dtype))
    if not is_concrete(array):
        return CellNoise(array, one)
    variances = np.asarray(array)
    check_variances(variances)
    return CellNoise(array, one)


def _from_diagonals(value: Kronecker) -> Any:
    """Multiples of the identity are one number in all: they join the first varying axis."""
    scale: Array = on_device(np.ones((), value.dtype))
    variances: list[Array | None] = []
    for factor in value.factors:
        variances.append(factor.values if isinstance(factor, Diagonal) else None)
        if isinstance(factor, ScaledIdentity):
            scale = on_host(mul, scale, factor.scale)
    for i, own in enumerate(variances):
        if own is not None:
            variances[i] = on_host(mul, scale, own)
            return AxisNoise(value.grid_shape, tuple(variances))
    return scale


def _by_axis(value: dict, grid_shape: tuple[int, ...], names: tuple[str, ...] | None) -> AxisNoise:
    known: tuple = names or tuple(range(len(grid_shape)))
    for key in value:
        if key not in known:
            raise KeyError(f"There is no axis {key!r} for the noise.{nearest(key, known)}")
    variances = []
    for key, n in zip(known, grid_shape, strict=True):
        given = value.get(key)
        if given is not None:
            given = as_parameter(given, constraints.positive, f"The noise variance along {key!r}")
        if given is not None and jnp.shape(given) not in ((), (n,)):
            raise ValueError(
                f"The noise variances along {key!r} must have shape ({n},); got shape "
                f"{jnp.shape(given)}."
            )
        if given is not None and not jnp.shape(given):
            given = on_host(lambda v, n=n: v * np.ones(n, v.dtype), given)
        variances.append(given)
    return AxisNoise(grid_shape, tuple(variances))
