"""What results are that are not formed: factors of a matrix, and what is made with them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from kronax.rewrite.matrices import Operator
from kronax.rewrite.tensors import Tensor


@dataclass(frozen=True, eq=False)
class Index:
    """The row or the column of every entry, plus a number."""

    dimension: int
    offset: int = 0

    def moved(self, shift: int) -> "Index":
        """Plus another number."""
        return Index(self.dimension, self.offset + shift)


@dataclass(frozen=True, eq=False)
class TriangleMask:
    """True on a triangle with its diagonal."""

    kept: str


@dataclass(frozen=True, eq=False)
class Root:
    """The Cholesky factor `L` of a matrix, or its transpose, where it is no product.

    Nothing of `L` itself is ever computed: what does not depend on its rotation is found from
    `op`.
    """

    op: Operator
    matrix: Tensor
    transposed: bool = False

    def transpose(self) -> "Root":
        """`Lᵀ` of `L`, and the other way round."""
        return dataclasses.replace(self, transposed=not self.transposed)

    @property
    def triangle(self) -> str:
        """Where its entries are."""
        return "upper" if self.transposed else "lower"


@dataclass(frozen=True, eq=False)
class RootDiagonal:
    """The diagonal of `L`, or its logarithm."""

    root: Root
    log: bool = False


@dataclass(frozen=True, eq=False)
class Whitened:
    """`L⁻¹ b` along one axis, or the squares of its entries."""

    root: Root
    vectors: Array
    axis: int
    squared: bool = False


@dataclass(frozen=True, eq=False)
class Lu:
    """The LU factorisation of a matrix."""

    matrix: Tensor


@dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a symmetric matrix that is no product."""

    op: Operator
    matrix: Tensor


@dataclass(frozen=True, eq=False)
class Masked:
    """A matrix times the identity, entry by entry."""

    of: Any
