"""What results are that are not formed: factors of a matrix, and what is made with them."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from math import log, pi, prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.functions.logdet import inv_quad, logdet, normal_logpdf
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.roots import apply_root
from kronax.rewriting.values.matrices import Covariance, Operator, along
from kronax.rewriting.values.tensors import Tensor


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
    """`G`, `Gᵀ`, `G⁻¹` or `G⁻ᵀ` of a triangular `G` with `G Gᵀ = S`, where it is no product.

    Nothing of `G` itself is ever computed: what does not depend on its rotation is found from
    `op`, which is `S`.

    Args:
        triangle: where the entries of this one of the four are.
    """

    op: Covariance
    matrix: Tensor
    triangle: str
    transposed: bool = False
    inverted: bool = False

    def transpose(self) -> "Root":
        """The transpose."""
        triangle = "upper" if self.triangle == "lower" else "lower"
        return dataclasses.replace(self, transposed=not self.transposed, triangle=triangle)

    def inverse(self) -> "Root":
        """The inverse."""
        return dataclasses.replace(self, inverted=not self.inverted)

    @property
    def whitens(self) -> bool:
        """Whether it is `Gᵀ` or `G⁻¹`, so that the rotation of `G` acts on what it gives."""
        return self.transposed != self.inverted


@dataclass(frozen=True, eq=False)
class RootDiagonal:
    """The diagonal of a root, or its logarithm."""

    root: Root
    log: bool = False


@dataclass(frozen=True, eq=False)
class RootSquares:
    """The squares of the entries of a root."""

    root: Root


@dataclass(frozen=True, eq=False)
class Whitened:
    """`G⁻¹ b` or `Gᵀ b`, or the squares of its entries.

    Args:
        root: `G⁻¹` or `Gᵀ`.
        vectors: `b`, in the shape of the result.
        axes: those of the batch of the matrix, and last that of the vectors.
    """

    root: Root
    vectors: Array
    axes: tuple[int, ...]
    squared: bool = False

    def by_another_root(self) -> Array:
        """The same of another root of the matrix, which needs no dense array."""
        array = another_root_times(self.root, self.vectors, self.axes)
        return jnp.square(array) if self.squared else array


def another_root_times(root: Root, vectors: Array, axes: tuple[int, ...]) -> Array:
    """Vectors times another root `R` with `R Rᵀ = G Gᵀ`, or its transpose or inverse."""
    op = root.op
    assert isinstance(op, KroneckerPlusNoise), "of a product the Cholesky factor is one"
    function = partial(apply_root, op, transposed=root.transposed, inverted=root.inverted)
    return along(function, op, vectors, axes)


@dataclass(frozen=True, eq=False)
class Density:
    """`a log det S + b yᵀ S⁻¹ y + c`, a number that is computed as one: both share a derivative.

    Args:
        op: `S`, traced.
        on_logdet: `a`.
        on_form: `b`.
        y: over the grid; None where `b` is zero.
        rest: `c`.
    """

    op: Covariance
    on_logdet: float
    on_form: float
    y: Array | None = None
    rest: Any = 0.0

    def times(self, number: float) -> "Density":
        """A multiple."""
        return Density(
            self.op,
            number * self.on_logdet,
            number * self.on_form,
            self.y,
            number * self.rest,
        )

    def plus(self, other: Any) -> "Density | None":
        """With another of the same `S` and no other `y`, or with a number; None if it is none."""
        if not isinstance(other, Density):
            return dataclasses.replace(self, rest=self.rest + other)
        if self.op is not other.op or (self.y is not None and other.y is not None):
            return None
        return Density(
            self.op,
            self.on_logdet + other.on_logdet,
            self.on_form + other.on_form,
            other.y if self.y is None else self.y,
            self.rest + other.rest,
        )

    def value(self) -> Array:
        """The number; of a Gaussian density both terms at once."""
        if self.y is not None and self.on_logdet == self.on_form:
            constant = prod(self.op.grid_shape) * log(2 * pi) / 2
            found = normal_logpdf(self.y, 0.0, self.op) + constant
            return -2 * self.on_logdet * found + self.rest
        total = jnp.asarray(self.rest, self.op.dtype)
        if self.on_logdet:
            total = total + self.on_logdet * logdet(self.op)
        return total if self.y is None else total + self.on_form * inv_quad(self.op, self.y)


@dataclass(frozen=True, eq=False)
class Lu:
    """The LU factorisation of a matrix."""

    matrix: Tensor


@dataclass(frozen=True, eq=False)
class Inverse:
    """A number times the inverse of a matrix that is no product."""

    op: Operator
    matrix: Tensor
    scale: Any = None

    def transpose(self) -> "Inverse":
        """The transpose."""
        return dataclasses.replace(self, op=self.op.T)

    def times(self, array: Array) -> Array:
        """What the inverse alone gives, times the number."""
        return array if self.scale is None else array * jnp.asarray(self.scale, array.dtype)


@dataclass(frozen=True, eq=False)
class Masked:
    """A matrix times the identity, entry by entry."""

    of: Any
