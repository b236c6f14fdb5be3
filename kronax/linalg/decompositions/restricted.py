"""Operators over the observed cells of a grid that bring their own way of solving."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.decompositions.abstract import AbstractSignalPlusNoise
from kronax.linalg.factors.abstract_operator import AbstractObserved
from kronax.linalg.operators.draws import draw_normal
from kronax.linalg.operators.gap_geometry import Mask


class AbstractRestricted(AbstractObserved):
    """Another operator at its observed cells, with the way in which it is solved there."""

    op: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def decomposed(self) -> AbstractSignalPlusNoise:
        """How it is solved."""

    @abc.abstractmethod
    def carrying(self, computed: Any) -> "AbstractRestricted":
        """The same operator with what was computed of it, `None` for nothing."""

    @property
    def factors(self) -> tuple[Any, ...]:
        """The factors of the signal, on the whole grid."""
        return self.op.factors

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """That of the whole grid."""
        return self.op.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the operator on the whole grid."""
        return self.op.batch_shape

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.op.dtype

    @property
    def T(self) -> "AbstractRestricted":
        """Itself, being symmetric."""
        return self

    def mv_grid(self, x: Array) -> Array:
        """Multiply what is observed; zero at the gaps."""
        return self.held(self.op.mv_grid(self.held(x)))

    def diagonal(self) -> Array:
        """The diagonal, zero at the gaps."""
        return self.held(self.op.diagonal())

    def to_dense(self) -> Array:
        """The `(*batch, N, N)` matrix, zero in the rows and columns of gaps: for tests only."""
        cells, matrix = jnp.asarray(self.observed).ravel(), self.op.to_dense()
        both = cells[:, None] & cells[None]
        return jnp.where(both.reshape((1,) * (matrix.ndim - 2) + both.shape), matrix, 0)


class AbstractMasked(AbstractRestricted):
    """Where a static mask says which cells are observed; the operator may have further gaps."""

    mask: eqx.AbstractVar[Mask]

    @property
    def observed(self) -> Any:
        """True where a cell is observed."""
        has_own = isinstance(self.op, AbstractObserved)
        return self.mask.array & self.op.observed if has_own else self.mask.array

    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """See `kx.sample_normal`; zero at the gaps."""
        if isinstance(self.op, AbstractObserved):
            return self.held(self.op.draw(key, lead))
        return self.held(draw_normal(key, self.op, lead))
