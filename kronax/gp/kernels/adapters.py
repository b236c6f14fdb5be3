"""Kernels of other libraries as functions of two lists of points, known by what they can do."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class CrossCovariance(eqx.Module):
    """A kernel that makes matrices by `cross_covariance(x1, x2)`, as those of GPJax do.

    Such kernels are called on one pair of points, and take coordinates `(n, p)` only.
    """

    kernel: Any

    def __call__(self, x1: Array, x2: Array) -> Float[Array, "n1 n2"]:
        """The matrix of covariances."""
        return self.kernel.cross_covariance(*(x[:, None] if x.ndim == 1 else x for x in (x1, x2)))


def matrix_function(value: Any) -> Callable[[Array, Array], Array] | None:
    """A function from two lists of points to a matrix, if `value` is a kernel of any kind."""
    if isinstance(value, type) or not callable(value):
        return None
    return CrossCovariance(value) if callable(getattr(value, "cross_covariance", None)) else value


def name_of(function: Any) -> str:
    """What errors call a kernel."""
    kernel = function.kernel if isinstance(function, CrossCovariance) else function
    return getattr(kernel, "__name__", type(kernel).__name__)


def call(function: Callable[[Array, Array], Any], x1: Array, x2: Array) -> Array:
    """The matrix of a kernel of another library, or of a plain function, with its shape checked."""
    name = name_of(function)
    try:
        result = function(x1, x2)
    except Exception as error:
        error.add_note(
            f"This happened in the kernel {name}, called with points of shape {x1.shape} and "
            f"{x2.shape}. A callable kernel takes two lists of points and returns their matrix; "
            "for a formula on one pair of points subclass kx.Kernel."
        )
        raise
    expected, shape = (x1.shape[0], x2.shape[0]), getattr(result, "shape", None)
    if shape != expected:
        got = type(result).__name__ if shape is None else shape
        raise ValueError(
            f"A callable kernel must return an array of shape {expected} for {expected[0]} and "
            f"{expected[1]} points; got {got} from {name}. For a formula on one pair of points "
            "subclass kx.Kernel."
        )
    if not jnp.issubdtype(getattr(result, "dtype", object), jnp.floating):
        raise TypeError(
            f"A callable kernel must return an array of real floating-point numbers; {name} "
            f"returned {getattr(result, 'dtype', type(result).__name__)}."
        )
    return jnp.asarray(result)
