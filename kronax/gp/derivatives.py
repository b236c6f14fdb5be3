"""Whether kernels that users bring have derivatives where two points coincide."""

import sys
import traceback
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np

from kronax.gp.axes import Axis
from kronax.gp.kernels.adapters import name_of
from kronax.gp.kernels.base import FunctionKernel, Kernel, dtype_of
from kronax.gp.kernels.dims import ActiveDims
from kronax.gp.kernels.points import Points
from kronax.linalg.checks import is_concrete


def warn_of_nan_gradient(kernel: Kernel, axis: Axis, name: str) -> None:
    """Warn if the gradient of a variance is NaN: every likelihood's gradient would be.

    The usual reason is the square root of a distance that is zero. One pair of equal points is
    enough to see it. Kernels of this library, and those without parameters, need no look.
    """
    if not is_concrete(kernel, axis):
        return
    for term in kernel.all_terms():
        if _is_known(term) or not any(map(eqx.is_inexact_array, jax.tree.leaves(term))):
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


def level_of_caller() -> int:
    """How far up the stack the code lies that built the model."""
    inside = ("kronax", "equinox")
    stack = enumerate(traceback.walk_stack(sys._getframe(1)), start=1)
    names = ((level, frame.f_globals.get("__name__", "")) for level, (frame, _) in stack)
    return next((i for i, name in names if name.partition(".")[0] not in inside), 1)


def _is_known(term: Kernel) -> bool:
    if isinstance(term, ActiveDims):
        return all(map(_is_known, term.kernel.all_terms()))
    return type(term).__module__.startswith("kronax.") and not isinstance(term, FunctionKernel)


@eqx.filter_jit
def _slope(kernel: Kernel, x: Points) -> Any:
    """The gradient of one variance in the parameters, as of an entry of the matrix."""
    return eqx.filter_grad(lambda k: k.matrix_at(x, x)[0, 0])(kernel)
