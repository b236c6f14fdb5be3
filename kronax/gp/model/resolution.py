"""Whether the precision of the parameters tells the coordinates of an axis apart."""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.labels import Labels
from kronax.gp.coordinates.spacing import SHARE, less, spacing
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.dims import ActiveDims
from kronax.gp.kernels.linear import Linear
from kronax.gp.means.means import FunctionMean
from kronax.gp.model.process import AbstractProcess
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import level_of_caller, to_have_float64

# Of the coordinates. Some pairs of irregular ones are always close, and none the worse for it.
TENTH = 0.1


def warn_of_lost_digits(gp: AbstractProcess) -> None:
    """Warn where rounding to the precision of the parameters moves coordinates by a hundredth step.

    Kernels of differences see coordinates less the first one; callables see them as they are.
    """
    if not is_concrete(gp):
        return
    names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
    for i, (kernel, axis, name) in enumerate(zip(gp.kernels, gp.axes, names, strict=True)):
        if axis.static is None or isinstance(axis.coding, Labels):
            continue
        lost = _lost(axis.offsets.astype(gp.dtype), axis)
        advice = f"{to_have_float64()}, or fit its parts apart"
        if lost is None and _sees_zero(gp, kernel, i):
            lost = _lost(less(axis.exact.astype(gp.dtype), axis.origin), axis)
            advice = "let the function count from a nearer zero, with coordinates less an origin"
        if lost is not None:
            first, last = axis.at(0), axis.at(axis.size - 1)
            warnings.warn(
                f"The coordinates of {name}, from {first} to {last}, lose digits in "
                f"{np.dtype(gp.dtype)}, the precision of the parameters, which moves some by "
                f"{lost[0]:.3g} where neighbours are {lost[1]:.3g} apart. To keep their "
                f"differences {advice}.",
                UserWarning,
                stacklevel=level_of_caller(),
            )


def _lost(seen: np.ndarray, axis: Axis) -> tuple[float, float] | None:
    """How far rounding moves places whose neighbours are how far; `None` if it is little."""
    moved = np.abs(seen - axis.offsets).reshape(len(seen), -1).max(axis=1)
    if not moved.any():
        return None
    steps = spacing(axis.offsets)
    wrong = moved > SHARE * steps
    if wrong.mean() <= TENTH:
        return None
    return float(np.median(moved[wrong])), float(np.median(steps[wrong]))


def _sees_zero(gp: AbstractProcess, kernel: Kernel, i: int) -> bool:
    """Whether a kernel, or a callable mean, sees the coordinates of an axis as they are."""
    if any(not (term.stationary or isinstance(term, Linear)) for term in _terms(kernel)):
        return True
    axes = [x.coordinates(gp.dtype) for x in gp.axes]
    return any(
        isinstance(mean, FunctionMean) and _reads(mean, axes, i) for mean in gp.mean.summands()
    )


def _terms(kernel: Kernel) -> Iterator[Kernel]:
    for term in kernel.all_terms():
        if isinstance(term, ActiveDims):
            yield from _terms(term.kernel)
        else:
            yield term


def _reads(function: Any, axes: list[Any], i: int) -> bool:
    """Whether a function does anything with its argument `i`."""
    program = jax.make_jaxpr(function)(*axes).jaxpr
    given = program.invars[i]
    read = [v for equation in program.eqns for v in equation.invars] + program.outvars
    return any(v is given for v in read)
