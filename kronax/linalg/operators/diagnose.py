"""Say why a result on concrete values is not finite."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.early_errors import raising_unless_finite
from kronax.linalg.arrays.fingerprints import held
from kronax.linalg.arrays.host import is_finite
from kronax.linalg.arrays.precision import to_have_float64
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum

NOT_FINITE = (
    "The result must be finite, and is not: a factor is indefinite or singular, or what the "
    "operator or the data hold is not finite. The same call outside of jax.jit says which."
)


def explained(result: Array, op: Any, *, covariance: bool = False) -> Array:
    """The result; raises if a concrete one is not finite.

    Traced ones pass, unless they are to raise at run time: NaN lets a sampler reject a proposal.
    """
    explain_not_finite(result, op, covariance=covariance)
    return raising_unless_finite(result, NOT_FINITE)


def explain_not_finite(result: Any, op: Any, *, covariance: bool = False) -> None:
    """Raise if concrete results have NaN or infinities, with the factor that is to blame."""
    if is_finite(result) or not is_concrete(result, op):
        return
    whole = getattr(op, "op", op)  # that of a Masked
    for one in (op, whole):
        held(one, getattr(one, "decomposition", None))  # raises if it belongs to other factors
    op = whole
    signal, noise = getattr(op, "kronecker", None), getattr(op, "noise", None)
    if signal is not None:
        refuse_indefinite(signal, "signal")
        if isinstance(noise, Kronecker):
            refuse_indefinite(noise, "noise")
        eps = np.finfo(op.dtype).eps
        double = f"To have float64, {to_have_float64()}; or add"
        raise np.linalg.LinAlgError(
            "The operator must be positive definite; signal plus noise has an eigenvalue that is "
            f"not above zero in {op.dtype}. {double if eps > 1e-10 else 'Add'} noise, a variance "
            f"above {eps:.0e} times the largest eigenvalue of the signal; or take a rougher "
            "kernel, or fewer places."
        )
    if covariance:
        # An indefinite factor is to blame before one that is merely singular.
        refuse_indefinite(op, "covariance")
        refuse_indefinite(op, "covariance", definite=True)
    for k, factor in enumerate(op.factors):
        if getattr(factor, "positive_definite", False):
            _blame_factor(factor, f"Kronecker factor {k}", definite=True)
        condition = _condition(factor)
        if not condition < 1 / np.finfo(op.dtype).eps:
            raise np.linalg.LinAlgError(
                f"Kronecker factor {k} must be invertible; got condition number {condition:.3g}. "
                "Remove repeated rows, or add noise to the operator: `op + variance`."
            )
    raise np.linalg.LinAlgError(
        f"The result overflows {op.dtype}: rescale the operator or the data."
    )


def refuse_indefinite(
    kronecker: Kronecker | KroneckerSum, what: str, definite: bool = False
) -> None:
    """Raise if a concrete factor is not positive semidefinite (or not positive definite)."""
    for k, factor in enumerate(kronecker.factors):
        if is_concrete(factor):
            _blame_factor(factor, f"Kronecker factor {k} of the {what}", definite)


def _blame_factor(factor: AbstractFactor, name: str, definite: bool) -> None:
    """By its blocks, so that it costs no more than their decomposition."""
    blocks = _numbers_of(factor)
    relative = factor.size * np.finfo(factor.dtype).eps
    # What is rounding is judged on the whole axis.
    shift = relative * max(np.abs(array).max() for array, _ in blocks)
    if all(_is_plainly_positive(array, ndim, shift, definite) for array, ndim in blocks):
        return
    values = [np.linalg.eigvalsh(array) if ndim == 2 else array for array, ndim in blocks]
    smallest = float(min(v.min() for v in values))
    largest = float(max(np.abs(v).max() for v in values))
    slack = relative * largest
    if smallest < -slack or (definite and smallest <= slack):
        kind = "definite" if definite else "semidefinite"
        advice = "or add noise: `op + variance`" if definite else "which noise does not repair"
        raise np.linalg.LinAlgError(
            f"{name} must be positive {kind}; its smallest eigenvalue is {smallest:.3g} (largest "
            f"{largest:.3g}). Check the kernel or matrix, {advice}."
        )


@eqx.filter_jit
def _blocks(factor: AbstractFactor) -> SymmetricBlocks:
    """In one program, instead of one for every operation."""
    return factor.blocks()


def _numbers_of(factor: AbstractFactor) -> list[tuple[np.ndarray, int]]:
    """The blocks in double precision, and the number of axes of each without its batch.

    Of a thin root those of its Gram matrix, and a zero.
    """
    root = factor.thin_root()
    if root is not None and np.isfinite(np.asarray(root)).all():
        columns = np.asarray(root, np.float64)
        return [(np.swapaxes(columns, -1, -2) @ columns, 2), (np.zeros(1), 1)]
    blocks = factor.blocks() if isinstance(factor, Dense) else _blocks(factor)
    arrays = (np.asarray(a, np.float64) for a in blocks.arrays)
    return list(zip(arrays, blocks.ndims, strict=True))


def _condition(factor: AbstractFactor) -> float:
    """The largest singular value over the smallest; infinite, or NaN, where there is none."""
    values = [
        np.linalg.svd(array, compute_uv=False) if ndim == 2 else np.abs(array)
        for array, ndim in _numbers_of(factor)
    ]
    smallest = min(v.min() for v in values)
    return float(max(v.max() for v in values) / smallest) if smallest else np.inf


def _is_plainly_positive(array: np.ndarray, ndim: int, shift: float, definite: bool) -> bool:
    """Whether a Cholesky factorisation, ten times as fast as `eigvalsh`, already shows it."""
    if ndim < 2:
        return bool((array > shift if definite else array >= -shift).all())
    if definite:
        shift = -shift * array.shape[-1]
    try:
        np.linalg.cholesky(array + shift * np.eye(array.shape[-1]))
    except np.linalg.LinAlgError:
        return False
    return True
