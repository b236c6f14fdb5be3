"""The way in which an operator is solved: chosen here, and nowhere else."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, overload

import jax

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import Conditioning, warn_of_ratio
from kronax.linalg.decompositions.abstract import AbstractDecomposition, AbstractSignalPlusNoise
from kronax.linalg.decompositions.factorized import Factorized
from kronax.linalg.decompositions.low_rank import signal_plus_noise
from kronax.linalg.decompositions.restricted import AbstractRestricted
from kronax.linalg.markov.lanes import KalmanLanes, markov_axis
from kronax.linalg.operators.kronecker import Kronecker, as_kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, with_noise

# A covariance of noisy data: on a whole grid, or at the cells that have some.
DataCovariance = KroneckerPlusNoise | AbstractRestricted
# What has a decomposition.
Solvable = Kronecker | DataCovariance


@overload
def decomposition_of(op: DataCovariance) -> AbstractSignalPlusNoise: ...
@overload
def decomposition_of(op: Kronecker) -> Factorized: ...
def decomposition_of(op: Solvable) -> AbstractDecomposition:
    """The way of a checked operator; nothing is computed yet."""
    if isinstance(op, AbstractRestricted):
        return op.decomposed()
    if isinstance(op, KroneckerPlusNoise):
        return signal_plus_noise(op) if markov_axis(op) is None else KalmanLanes(op)
    return Factorized(op)


def solvable(op: Any, what: str) -> Solvable:
    """An operator that has a decomposition, or a clear error.

    Raises:
        TypeError: if it is none.
        ValueError: if a factor is not square.
    """
    op = with_noise(op)
    if isinstance(op, KroneckerPlusNoise | AbstractRestricted):
        return op
    op = as_kronecker(op)
    op.check_square(what)
    return op


def asked(question: Callable[..., Any], op: Solvable, *args: Any) -> Any:
    """`question(decomposition, *args)` as one compiled program.

    Iterations are not compiled as a whole: what they did not reach is to raise outside.
    """
    found = decomposition_of(op)
    return _compiled(question, op, *args) if found.is_exact else question(found, *args)


def watched(
    question: Callable[..., Any], what: str, op: Solvable, *args: Any, is_covariance: bool = False
) -> Any:
    """`asked`, with a warning of what may be wrong where concrete values are ill-conditioned."""
    if not is_concrete(op, args):
        return asked(question, op, *args)
    value, found = asked(_with_ends(question, is_covariance), op, *args)
    warn_of_ratio(found, what, of="a factor" if isinstance(op, Kronecker) else "the covariance")
    return value


@cache
def _with_ends(question: Callable[..., Any], is_covariance: bool) -> Callable[..., Any]:
    """One object for each question, since it is compiled once for each."""

    def both(found: AbstractDecomposition, *args: Any) -> tuple[Any, Conditioning | None]:
        way = found.as_covariance() if is_covariance else found
        return question(way, *args), way.ends()

    return both


@partial(jax.jit, static_argnums=0)
def _compiled(question: Callable[..., Any], op: Solvable, *args: Any) -> Any:
    return question(decomposition_of(op), *args)
