"""Concrete numbers on the host, where nothing is compiled for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def on_device(values: Any) -> Array:
    """NumPy's numbers as a JAX array, without the program that `jnp.asarray` compiles for it."""
    if not isinstance(values, np.ndarray | np.generic):
        return jnp.asarray(values)
    # In memory of its own: JAX may keep what it is given, which its owner may change.
    values = np.array(values, jax.dtypes.canonicalize_dtype(values.dtype))
    return jnp.asarray(values, values.dtype)


def on_host(function: Callable[..., Any], *arrays: Any) -> Array:
    """`function` of arrays in NumPy where all have values, so that nothing is compiled for it.

    Precisions combine as they do in JAX.
    """
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return function(*arrays)
    dtype = jnp.result_type(*arrays)
    return on_device(function(*(np.asarray(x, dtype) for x in arrays)))


def numpy_of(x: Any) -> Any:
    """The NumPy that an array is of: NumPy itself, or JAX's."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def is_finite(tree: Any) -> bool:
    """Whether no leaf is known to have NaN or infinities; traced ones pass."""
    return all(
        isinstance(leaf, jax.core.Tracer) or bool(np.isfinite(np.asarray(leaf)).all())
        for leaf in jax.tree.leaves(tree)
    )
