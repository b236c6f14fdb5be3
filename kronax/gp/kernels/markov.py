"""When a kernel has no state space, and what it must be given where it has one."""

from typing import Any

import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete


class NotMarkovError(ValueError):
    """A kernel has no state of finite length that tells its future.

    Args:
        message: what must hold and what was got.
        reason: why, in a few words.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def not_markov(kernel: Any, reason: str) -> NotMarkovError:
    """The error for a kernel and a reason."""
    name = type(kernel).__name__
    return NotMarkovError(
        f"A kernel must be Markov to have a state space; got {name}: {reason}.", f"{name}: {reason}"
    )


def checked_gaps(gaps: Any) -> Any:
    """The gaps between sorted places, if they can be some."""
    if np.ndim(gaps) > 1:
        raise ValueError(
            "The gaps between sorted places must have shape (n - 1,), or be one number for equal "
            f"steps; got shape {np.shape(gaps)}."
        )
    if is_concrete(gaps) and not (np.asarray(gaps) >= 0).all():
        raise ValueError(
            f"The gaps between sorted places must not be negative; got {np.min(gaps):.6g}. Sort "
            "the places first."
        )
    return gaps


def single(value: Array, what: str, kernel: Any) -> Array:
    """A parameter of a kernel on one dimension as one number."""
    if np.shape(value) not in ((), (1,)):
        raise not_markov(kernel, f"it has one {what} per dimension, and several have no order")
    return value.reshape(())


def are_apart(gaps: Any) -> bool:
    """Whether no gap is known to be zero."""
    return is_concrete(gaps) and bool((np.asarray(gaps) > 0).all())
