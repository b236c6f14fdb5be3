"""Attach a decomposition to an operator, for reuse outside jit."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.fingerprints import fingerprint
from kronax.linalg.arrays.fingerprints import held as of_operator
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import eigenbasis
from kronax.linalg.functions.choice import Solvable, decomposition_of, solvable
from kronax.linalg.markov.lanes import OtherBases, markov_axis
from kronax.linalg.operators.diagnose import explain_not_finite
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import ThinBases, is_thin, thin_bases_with_axis


def decompose(op: AbstractOperator) -> Any:
    """The same operator carrying its decomposition, so that later calls need none.

    Inside one `jit` this is not needed: identical decompositions are merged there. Gradients flow
    to the factors as before. The decomposition belongs to these factors and this noise: where they
    are replaced in a decomposed operator, every function raises, or gives NaN if traced.

    Args:
        op: with noise, one eigenbasis per axis is attached; without, Cholesky factors where a
            concrete factor is positive definite, else LU.

    Raises:
        ValueError: if a factor is not square, or the operator is singular or indefinite.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.decompose(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0)
        >>> round(kx.logdet(op).item(), 4)
        4.1589
    """
    op = solvable(op, "a decomposition")
    if isinstance(op, Kronecker):
        factorizations = tuple(f.factorize(_is_positive_definite(f)) for f in op.factors)
        pairs = zip(op.factors, factorizations, strict=True)
        explain_not_finite([f.log_abs_det(h) for f, h in pairs], op)
        return op.carrying(factorizations)
    op = op.carrying(None)  # without what it may carry
    computed = _computed(op)
    explain_not_finite(computed, op)
    return op.carrying(computed)


def without_checksum(op: Any) -> Any:
    """A decomposed operator inside the program that made it, where nobody can replace a leaf."""
    if getattr(op, "made_of", None) is None:
        return op
    return eqx.tree_at(lambda o: o.made_of, op, None)


def with_checksum(op: Any) -> Any:
    """The same outside of that program."""
    if not hasattr(op, "made_of") or op.decomposition is None:
        return op
    return eqx.tree_at(lambda o: o.made_of, op, fingerprint(op), is_leaf=lambda x: x is None)


def decompose_axis(op: KroneckerPlusNoise, held: KroneckerPlusNoise, i: int) -> KroneckerPlusNoise:
    """`op` with the decomposition that `held` carries, of which axis `i` alone is made anew.

    Signal and noise of every other axis must be those of `held`. A grid that has its first axis of
    low rank, or no more any, is decomposed as a whole.
    """
    axis = markov_axis(op)
    if isinstance(held.decomposition, OtherBases) and axis == i == markov_axis(held):
        return op.carrying(of_operator(held, held.decomposition))
    is_alike = axis == markov_axis(held) and is_thin(op) == is_thin(held)
    if not isinstance(held.decomposition, tuple | ThinBases) or not is_alike:
        whole = decompose(op)
        assert isinstance(whole, KroneckerPlusNoise)
        return whole
    bases = _with_axis(op, of_operator(held, held.decomposition), i)
    explain_not_finite(bases, op)
    return op.carrying(bases)


@eqx.filter_jit
def _computed(op: Solvable) -> Any:
    return decomposition_of(op).computed()


@eqx.filter_jit
def _with_axis(op: KroneckerPlusNoise, held: Any, i: int) -> Any:
    if isinstance(held, ThinBases):
        return thin_bases_with_axis(op, held, i)
    signal, noise = op.blocks()
    return (*held[:i], eigenbasis(signal[i], noise[i]), *held[i + 1 :])


def _is_positive_definite(factor: AbstractFactor) -> bool:
    if not is_concrete(factor):
        return False
    dense = factor.to_dense()
    if not is_concrete(dense):  # a factor without leaves, inside of a trace
        return False
    matrix = np.asarray(dense)
    symmetric = np.array_equal(matrix, np.swapaxes(matrix, -1, -2))
    return symmetric and bool(jnp.isfinite(jnp.linalg.cholesky(matrix)).all())
