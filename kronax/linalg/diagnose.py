"""Say why a result on concrete values is not finite."""

from typing import Any

import jax
import numpy as np

from kronax.linalg.checks import is_concrete
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.kronecker import Kronecker, KroneckerSum


def explain_not_finite(result: Any, op: Any, *, covariance: bool = False) -> None:
    """Raise if a concrete result has NaN or infinities, with the factor that is to blame.

    Traced values pass: there NaN lets a sampler reject a proposal.
    """
    if not is_concrete(result, op):
        return
    if all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(result)):
        return
    signal, noise = getattr(op, "kronecker", None), getattr(op, "noise", None)
    if signal is not None:
        refuse_indefinite(signal, "signal")
        if isinstance(noise, Kronecker):
            refuse_indefinite(noise, "noise")
        raise np.linalg.LinAlgError(
            "The operator must be positive definite; signal plus noise has an eigenvalue that is "
            f"not above zero in {op.dtype}. Add noise, a variance above "
            f"{np.finfo(op.dtype).eps:.0e} times the largest eigenvalue of the signal; or take a "
            "rougher kernel, or fewer places."
        )
    if covariance:
        # An indefinite factor is to blame before one that is merely singular.
        refuse_indefinite(op, "covariance")
        refuse_indefinite(op, "covariance", definite=True)
    for k, factor in enumerate(op.factors):
        if getattr(factor, "positive_definite", False):
            _blame_factor(factor, f"Kronecker factor {k}", definite=True)
        condition = np.linalg.cond(np.asarray(factor.to_dense())).max()
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
    matrix = np.asarray(factor.to_dense(), dtype=np.float64)
    if _is_plainly_positive(matrix, factor.size * np.finfo(factor.dtype).eps, definite):
        return
    values = np.linalg.eigvalsh(matrix)
    smallest, largest = float(values.min()), float(np.abs(values).max())
    slack = factor.size * np.finfo(factor.dtype).eps * largest
    if smallest < -slack or (definite and smallest <= slack):
        kind = "definite" if definite else "semidefinite"
        advice = "or add noise: `op + variance`" if definite else "which noise does not repair"
        raise np.linalg.LinAlgError(
            f"{name} must be positive {kind}; its smallest eigenvalue is {smallest:.3g} (largest "
            f"{largest:.3g}). Check the kernel or matrix, {advice}."
        )


def _is_plainly_positive(matrix: np.ndarray, relative: float, definite: bool) -> bool:
    """Whether a Cholesky factorisation, ten times as fast as `eigvalsh`, already shows it."""
    if definite:
        shift = -relative * np.abs(matrix).sum(-1).max(-1)
    else:
        shift = relative * np.diagonal(matrix, axis1=-2, axis2=-1).max(-1)
    try:
        np.linalg.cholesky(matrix + shift[..., None, None] * np.eye(matrix.shape[-1]))
    except np.linalg.LinAlgError:
        return False
    return True
