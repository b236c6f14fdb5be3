"""Whether kernels have derivatives where two points coincide."""

import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.adapters import name_of
from kronax.gp.kernels.base import FunctionKernel, Kernel, dtype_of
from kronax.gp.kernels.dims import ActiveDims
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import level_of_caller


def warn_of_nan_gradient(kernel: Kernel, axis: Axis, name: str) -> None:
    """Warn if the gradient of a variance is NaN: every likelihood's gradient would be.

    The usual reason is the square root of a distance that is zero. One pair of equal points is
    enough to see it. Kernels of this library, and those without parameters, need no look.
    """
    if not is_concrete(kernel, axis):
        return
    for term in kernel.all_terms():
        if is_known(term) or not any(map(eqx.is_inexact_array, jax.tree.leaves(term))):
            continue
        with jax.ensure_compile_time_eval():
            slope = _slope(term, axis.points(dtype_of(kernel))[:1])
        if not is_concrete(slope):  # a function that closes over something traced
            continue
        paths = [
            jax.tree_util.keystr(path).removeprefix(".")
            for path, leaf in jax.tree_util.tree_leaves_with_path(slope)
            if not np.isfinite(leaf).all()
        ]
        if paths:
            kind = name_of(term.function if isinstance(term, FunctionKernel) else term)
            warnings.warn(
                f"The kernel of {name}, {kind}, must have a gradient where two points coincide; "
                f"that of its variance is NaN or infinite in {', '.join(paths)}, and so will be "
                "the likelihood's. If it takes the square root of a squared distance r2, write "
                "`jnp.where(r2 > 0, jnp.sqrt(jnp.where(r2 > 0, r2, 1.0)), 0.0)`.",
                UserWarning,
                stacklevel=level_of_caller(),
            )


def check_slope(kernels: Sequence[Kernel], old: Axis, new: Axis | None, name: str) -> None:
    """Refuse the slope of a mean at places of the data where it has a kink or a jump."""
    rough = [term for kernel in kernels for term in kernel.all_terms() if not term.has_slope]
    if not rough:
        return
    place = _first_shared(old, new)
    if place is not None:
        kinds = ", ".join(dict.fromkeys(name_of(term) for term in rough))
        raise ValueError(
            f"The mean has no derivative along {name} at places of the data: with {kinds} it has a "
            f"kink or a jump there; got {place}. Pass `axes=` with places between the data, or "
            "take a smoother kernel such as kx.Matern32."
        )


def _first_shared(old: Axis, new: Axis | None) -> Any:
    """The first of the new places that is an old one; `None` if there is none that is known."""
    if new is None:
        return old.at(0) if is_concrete(old) else None
    if new.static is None or old.static is None:
        return None
    x, known = (axis.offsets for axis in (new, old))
    if old.period is not None:
        # Round the circle, in steps that are wider than the rounding of a remainder.
        steps = 2.0**40
        x, known = (np.round(np.mod(v / old.period, 1) * steps) % steps for v in (x, known))
    shared = np.isin(x, known)
    return new.at(int(shared.argmax())) if shared.any() else None


def is_known(term: Kernel) -> bool:
    """Whether it is a kernel of this library, and no callable of the user's."""
    if isinstance(term, ActiveDims):
        return all(map(is_known, term.kernel.all_terms()))
    return type(term).__module__.startswith("kronax.") and not isinstance(term, FunctionKernel)


@eqx.filter_jit
def _slope(kernel: Kernel, x: Points) -> Any:
    """The gradient of one variance in the parameters, as of an entry of the matrix."""
    return eqx.filter_grad(lambda k: k.matrix_at(x, x)[0, 0])(kernel)
