"""Errors from inside compiled programs, for whoever asks for them.

A compiled program has no exceptions: what is wrong with traced values makes results NaN, and no
program calls back to the host. Inside `debug_nans` it does, and raises.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

# Part of the key of every compiled program: one that was compiled without stays without.
_WANTED = jax.make_user_context(False)


def debug_nans(enabled: bool = True) -> AbstractContextManager[None]:
    """A context in which compiled programs raise where values that are wrong would give NaN.

    Such are data with NaN where the model takes them for observed, iterations that do not converge,
    a covariance that is not positive definite. Outside of `jax.jit` such values raise anyway, and
    inside it they are NaN by default, so that a sampler can reject them and no program waits for
    the host. Programs are compiled anew inside the context, call back to the host, and cannot be
    exported: it is for finding out. `eqx.filter_jit` has a shorter traceback than `jax.jit`.

    `jax.debug_nans` does not serve here: it takes any NaN for wrong, those that mark gaps included.

    Args:
        enabled: false for the default again, inside another such context.

    Examples:
        >>> import equinox as eqx, jax, jax.numpy as jnp, kronax as kx
        >>> gp = kx.GridGP((kx.RBF(0.5),), (jnp.arange(3.0),), noise=0.1)
        >>> y = jnp.array([0.1, jnp.nan, 0.3])
        >>> value = eqx.filter_jit(gp.log_marginal_likelihood)
        >>> value(y).item()
        nan
        >>> with kx.debug_nans():
        ...     try:
        ...         value(y)
        ...     except RuntimeError as error:
        ...         print("y must have a value at every cell" in str(error))
        True
    """
    return _WANTED(bool(enabled))


def raising_if(is_wrong: Callable[[], Any], tree: Any, message: str) -> Any:
    """`tree`, and inside `debug_nans` an error at run time where something traced is wrong."""
    if not _WANTED.value:
        return tree
    found = is_wrong()
    return eqx.error_if(tree, found, message) if isinstance(found, jax.core.Tracer) else tree


def raising_unless_finite(result: Array, message: str) -> Array:
    """The same for a traced result that has NaN or infinities.

    By a factor, so that a gradient raises as well, of which the value itself is no part.
    """
    if not _WANTED.value:
        return result
    return result * raising_if(lambda: ~jnp.isfinite(result), jnp.ones((), result.dtype), message)
