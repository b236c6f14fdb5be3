"""pykronecker's matrix-vector product: NumPy, or JAX where that is installed."""

from collections.abc import Callable

import numpy as np
from pykronecker import KroneckerProduct, fast_math


def matvec(factors: list[np.ndarray], x: np.ndarray) -> Callable:
    """The Kronecker product times a vector of grid shape, or columns for a batch."""
    if any(f.shape[0] != f.shape[1] for f in factors):
        raise NotImplementedError("square factors only")
    shape = tuple(len(f) for f in factors)
    operator = KroneckerProduct([fast_math.mod.asarray(f) for f in factors])
    if x.shape == shape:
        vector = fast_math.mod.asarray(x)
        call = lambda: operator @ vector  # noqa: E731
    else:
        columns = fast_math.mod.asarray(np.ascontiguousarray(x.reshape(len(x), -1).T))
        call = lambda: (operator @ columns).T.reshape(x.shape)  # noqa: E731
    if not fast_math.use_jax:
        return call
    return lambda: call().block_until_ready()


TASKS = {"matvec": matvec}
