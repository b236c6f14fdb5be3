"""The rows and columns of a factor at some indices of its axis, in the structure that is left."""

import jax.numpy as jnp
import numpy as np

from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.lowrank import LowRank
from kronax.linalg.factors.structured import Circulant, Toeplitz


def restricted(factor: AbstractFactor, kept: np.ndarray) -> AbstractFactor:
    """`factor[kept, kept]` for ascending indices `kept`; itself where nothing is left out.

    Diagonal and low-rank factors keep their form, and so do equal steps along a Toeplitz or
    circulant axis; anything else becomes the dense matrix of what is kept.
    """
    if len(kept) == factor.size:
        return factor
    if isinstance(factor, ScaledIdentity):
        return ScaledIdentity(factor.scale, len(kept))
    if isinstance(factor, Diagonal):
        return Diagonal(factor.values[..., kept])
    if isinstance(factor, LowRank):
        return LowRank(factor.columns[..., kept, :])
    distances = kept - kept[0]
    if isinstance(factor, Toeplitz) and len(set(np.diff(kept))) <= 1:
        return Toeplitz(factor.column[..., distances])
    if isinstance(factor, Circulant) and len(set(np.diff(kept))) <= 1:
        return Toeplitz(factor.column[..., np.minimum(distances, factor.size - distances)])
    matrix = factor.to_dense()
    return Dense(jnp.take(jnp.take(matrix, kept, axis=-2), kept, axis=-1))
