"""What a precision carries, and the warning where an answer is beyond it."""

import math
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array

# Rounding times the condition number: about the error of a posterior mean in units of its
# deviation, for smooth kernels; the others stay below it (`python -m benchmarks precision`). At 1
# an answer is lost, and at a hundredth a fit begins to see other numbers than in exact arithmetic.
LOST = 1.0
FELT = 1e-2
# Where fits of data without noise end. Single precision needs what there is: on real fields, rough
# and on several axes, a fit is right to some nats at a ratio of 50.
FLOOR = {32: 100.0, 64: 1.0}

# Between the caller and this package these call on their behalf.
_INSIDE = (
    str(Path(__file__).resolve().parents[2]),
    *(str(Path(str(package.__file__)).parent) for package in (equinox, jax, numpyro)),
)


def where(condition: Any, x: Any, y: Any) -> Any:
    """`jnp.where`, in which a Python number has the precision of the array beside it.

    JAX hands such a number over as one of float64, wherever that is enabled.
    """
    if isinstance(x, float) == isinstance(y, float):
        return jnp.where(condition, x, y)
    kind = jax.typeof(y if isinstance(x, float) else x)
    if kind.weak_type or not jnp.issubdtype(kind.dtype, jnp.inexact):
        return jnp.where(condition, x, y)
    x, y = (kind.dtype.type(v) if isinstance(v, float) else v for v in (x, y))
    return jnp.where(condition, x, y)


class PrecisionWarning(UserWarning):
    """The covariance is so ill-conditioned that an answer is lost in its precision."""


class Ends(NamedTuple):
    """The largest and the smallest eigenvalue of a covariance, or what has their ratio."""

    largest: Array
    smallest: Array

    def ratio(self) -> np.ndarray:
        """Rounding times the condition number, of concrete eigenvalues."""
        largest, smallest = np.asarray(self.largest), np.asarray(self.smallest)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.asarray(np.finfo(largest.dtype).eps * largest / smallest)


class Conditioning(Protocol):
    """What tells rounding times a condition number: eigenvalues, or factorisations."""

    @property
    def largest(self) -> Array:
        """An array in the precision that was computed in."""

    def ratio(self) -> np.ndarray:
        """Rounding times the condition number, of concrete values."""


def least_noise(largest: Array, dtype: Any) -> Array:
    """The noise variance that a precision carries beside a largest eigenvalue."""
    info = jnp.finfo(dtype)
    return float(info.eps) / FLOOR.get(info.bits, 1.0) * largest


def worst_ratio(ends: Conditioning | None) -> float:
    """The largest finite ratio of a batch; zero where none is known, or it is traced."""
    if ends is None or isinstance(ends.largest, jax.core.Tracer):
        return 0.0
    ratios = ends.ratio()
    return float(np.max(ratios, where=np.isfinite(ratios), initial=0.0))


def warn_of_ratio(
    ends: Conditioning | None,
    what: str,
    limit: float = LOST,
    of: str = "the covariance",
    note: str = "",
) -> None:
    """Warn where concrete eigenvalues say that an answer is lost; traced ones pass.

    Python shows a warning once per line and text: the text has the order of magnitude alone.

    Args:
        ends: of the covariance, `None` where they are not known.
        what: may be wrong, for the text.
        limit: of the ratio.
        of: whose eigenvalues they are.
        note: what stands at the end of the text.
    """
    ratio = worst_ratio(ends)
    if ends is None or ratio <= limit:
        return
    dtype = np.dtype(ends.largest.dtype)
    warnings.warn(
        f"{what} in {dtype}: rounding times the condition number of {of} is of order "
        f"{_magnitude(ratio)}, and must be below {limit:g}. {_advice(dtype)}{note}",
        PrecisionWarning,
        stacklevel=level_of_caller(),
    )


def _magnitude(ratio: float) -> str:
    return f"{10.0 ** round(math.log10(ratio)):g}"


def _advice(dtype: Any) -> str:
    if dtype.itemsize < 8:
        return f"To have float64, {to_have_float64()}."
    return (
        "Double precision carries no more: give more noise, a rougher kernel such as a Matérn, "
        "shorter lengthscales, or take fewer places; and take out the mean of the data."
    )


def to_have_float64() -> str:
    """What is to be done; float32 parameters stay float32 where JAX admits float64 as well."""
    if jax.config.read("jax_enable_x64"):
        return "make the parameters float64 arrays (jax_enable_x64 is set already)"
    return 'set jax.config.update("jax_enable_x64", True) before any array is made'


def level_of_caller() -> int:
    """How many frames up the caller's own code begins, as `stacklevel` counts them."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    return level
