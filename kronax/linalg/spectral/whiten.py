"""`S^{-1/2} x` of a two-term sum: cells that are correlated as `S` says become independent.

With `S⁻¹ = W D⁻¹ Wᵀ` any `R = O D^{-1/2} Wᵀ` with an orthonormal `O` has `R S Rᵀ = I`. With `O` the
orthonormal factor of `W`, axis by axis, an entry of the result is as near to its own cell as it can
be, and for orthonormal `W` it is the symmetric root.
"""

from typing import Any, NoReturn

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import apply_along, matmul, same_rank
from kronax.linalg.arrays.primitives import DerivativeOrderError, RulePrimitive
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.low_rank import ThinBases, decomposition, is_thin
from kronax.linalg.spectral.value_and_rules import rotate, spectrum


@eqx.filter_jit
def decorrelate(op: KroneckerPlusNoise, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`S^{-1/2} x`, of covariance one where `x` has the covariance `S`; values only.

    `4 N Σ n_i` operations after the decomposition, and one singular value decomposition per axis
    on which both terms are general.

    Args:
        op: without a batch.
        x: `(*batch, n_1, …, n_d)`.
    """
    bases = decomposition(op) if is_thin(op) else op.eigenbases()
    bare = KroneckerPlusNoise(op.kronecker, op.noise)
    return _decorrelate((bare, x), bases)


def _value(operands: Any, bases: Any) -> Array:
    _, x = operands
    if isinstance(bases, ThinBases):
        white = bases.divided(x, jnp.sqrt)
        turned = [
            b if u is None else None for b, u in zip(bases.reduced, bases.ranges, strict=True)
        ]
    else:
        white, turned = jnp.divide(*same_rank(rotate(bases, x), jnp.sqrt(spectrum(bases)))), bases
    for i, basis in enumerate(turned):
        white = white if basis is None else _turned_back(basis, white, i - len(turned))
    return white


def _turned_back(basis: Eigenbasis, x: Array, axis: int) -> Array:
    """The orthonormal factor of `W` along `axis < 0`."""
    if basis.log_abs_det is None:
        return basis.unrotate(x, axis)
    left, _, right = jnp.linalg.svd(basis.matrix())
    return apply_along(matmul(left, right), x, axis)


def _refuse(operands: Any, constants: Any, tangents: Any) -> NoReturn:
    raise DerivativeOrderError(
        "Decorrelated residuals have values only: they are to be looked at. For a loss take the "
        "marginal likelihood or the leave-one-out log score, which have exact derivatives."
    )


_decorrelate = RulePrimitive("kronax_decorrelate", _value, _refuse)
