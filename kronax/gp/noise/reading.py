"""The noise of a grid GP from what users give, and from what a model holds."""

from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.domains import as_parameter
from kronax.gp.noise.abstract import AbstractNoise
from kronax.gp.noise.products import AxisNoise, FullNoise
from kronax.gp.noise.variances import CellNoise, NoNoise, ScalarNoise, checked_cells
from kronax.linalg.arrays.checks import is_concrete, plain, whole
from kronax.linalg.arrays.host import on_device, on_host
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.operators.kronecker import Kronecker
from kronax.paths import nearest


def noise_of(stored: Any) -> AbstractNoise:
    """The noise from what a model has as such: an array there is one variance."""
    return stored if isinstance(stored, AbstractNoise) else ScalarNoise(stored)


def as_noise(
    value: Any, grid_shape: tuple[int, ...], names: tuple[str, ...] | None, dtype: Any = None
) -> Any:
    """A variance, or noise of another kind, for a model; plain numbers take the dtype."""
    if isinstance(value, AbstractNoise):
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
    array = checked_cells(value)
    return CellNoise(array, on_device(np.ones((), array.dtype)))


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
