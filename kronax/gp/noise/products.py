"""Noise whose covariance is a Kronecker product: variances along axes, or full factors."""

from functools import reduce
from operator import mul
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.domains import data, parameter
from kronax.gp.noise.abstract import AbstractProduct, Slices
from kronax.linalg.arrays.checks import array_of_reals, is_concrete
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.spectral.low_rank import is_diagonal


class AxisNoise(AbstractProduct):
    """Independent noise whose variance is a product of one variance per place along some axes.

    Args:
        grid_shape: shape of the grid.
        variances: one entry per axis: `(n_i,)` variances, or `None` where the noise is the same.
    """

    grid_shape: tuple[int, ...] = eqx.field(static=True)
    variances: tuple[Array | None, ...] = parameter(constraints.positive)

    @property
    def _varying(self) -> list[tuple[int, Array]]:
        return [(i, v) for i, v in enumerate(self.variances) if v is not None]

    def operator(self, dtype: Any) -> Kronecker:
        """The noise covariance."""
        return Kronecker(
            *(
                ScaledIdentity(jnp.ones((), dtype), n) if v is None else Diagonal(v.astype(dtype))
                for v, n in zip(self.variances, self.grid_shape, strict=True)
            )
        )

    def varies_along(self, i: int) -> bool:
        """Along some axes."""
        return self.variances[i] is not None

    def is_white_beside(self, i: int) -> bool:
        """Where it varies along this axis only."""
        return all(j == i for j, _ in self._varying)

    def longer(self, slices: Slices, dtype: Any) -> "AxisNoise":
        """With the variances given for the new places, if it varies along their axis."""
        i, own = slices.axis, self.variances[slices.axis]
        if own is None:
            slices.refuse_noise()
        else:
            own = slices.beside(own, _checked(slices, dtype))
        shape = (*self.grid_shape[:i], self.grid_shape[i] + slices.size, *self.grid_shape[i + 1 :])
        return AxisNoise(shape, (*self.variances[:i], own, *self.variances[i + 1 :]))

    @property
    def level_parameter(self) -> tuple[str, Array] | None:
        """The variances of the first axis along which it varies."""
        return next(((f".variances[{i}]", v) for i, v in self._varying), None)

    def level(self, dtype: Any) -> Array:
        """The product of the smallest variances."""
        return reduce(mul, [jnp.min(v) for _, v in self._varying]).astype(dtype)

    def shares(self) -> list[Array]:
        """Typical variances of the other axes."""
        return [jnp.median(v) for _, v in self._varying[1:]]

    def at_level(self, level: float) -> dict[str, Any]:
        """The first axis has the level, the others a mean of one."""
        found = {}
        for i, variances in self._varying:
            pattern = np.asarray(variances, np.float64)
            found[f".variances[{i}]"] = level * pattern / np.mean(pattern)
            level = 1.0
        return found


class FullNoise(AbstractProduct):
    """A Kronecker noise covariance with full factors: its entries are data, not parameters."""

    kronecker: Kronecker = data()

    def operator(self, dtype: Any) -> Kronecker:
        """The noise covariance."""
        return self.kronecker

    @property
    def is_independent(self) -> bool:
        """Not where a factor has entries beside its diagonal."""
        return all(map(is_diagonal, self.kronecker.factors))

    def is_independent_along(self, i: int) -> bool:
        """Where the factor is diagonal."""
        return is_diagonal(self.kronecker.factors[i])

    def longer(self, slices: Slices, dtype: Any) -> "FullNoise":
        """Along an axis on which it is a multiple of the identity."""
        slices.refuse_noise()
        i, factors = slices.axis, self.kronecker.factors
        own = factors[i]
        if not isinstance(own, ScaledIdentity):
            raise ValueError(
                f"The noise is correlated along {slices.name} and not defined at its new "
                "coordinates. Condition a new kx.GridGP with noise over all of them."
            )
        longer = ScaledIdentity(own.scale, own.size + slices.size)
        return FullNoise(Kronecker(*factors[:i], longer, *factors[i + 1 :]))


def _checked(slices: Slices, dtype: Any) -> Array:
    """The variances of new places along an axis."""
    if slices.noise is None:
        raise ValueError(
            f"The noise varies along {slices.name} and is not defined at its new coordinates. Pass "
            f"`noise=` with the variance there, one number or {slices.size}."
        )
    value = array_of_reals(slices.noise, "noise")
    if value.shape not in ((), (slices.size,)):
        raise ValueError(
            f"The noise of new slices along {slices.name} must be one variance, or one for each of "
            f"them, ({slices.size},); got shape {value.shape}."
        )
    if is_concrete(value) and not bool(np.all(np.asarray(value) > 0)):
        raise ValueError(f"The noise variances must be positive; got {value}.")
    return jnp.broadcast_to(value, (slices.size,)).astype(dtype)
