"""Operators on one axis: what a Kronecker product is made of.

A factor says how it multiplies, and which fixed transform and symmetric blocks it is. Solving,
determinants, sampling and every derivative follow from that.
"""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fibres import on_fibres
from kronax.linalg.arrays.mode_products import apply_along, map_batch, same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.factors.factorizations import AbstractFactorization, BlockFactorization
from kronax.linalg.factors.square_roots import safe_sqrt, symmetric_roots


class AbstractFactor(AbstractOperator):
    """An operator on one axis. Subclass it with `size`, `mv` and `to_dense`.

    Everything else follows, derivatives included; override `blocks`, `mv_along`, `root` or
    `factorize` where the structure allows something faster.

    Examples:
        >>> import equinox as eqx, jax.numpy as jnp, kronax as kx
        >>> class Exchangeable(kx.AbstractFactor):
        ...     rho: jnp.ndarray
        ...     size: int = eqx.field(static=True)
        ...
        ...     def mv(self, x):
        ...         return (1 - self.rho) * x + self.rho * x.sum(-1, keepdims=True)
        ...
        ...     def to_dense(self):
        ...         return (1 - self.rho) * jnp.eye(self.size) + self.rho
        >>> factor = Exchangeable(jnp.array(0.5), 3)
        >>> kx.logdet(kx.Kronecker(factor, jnp.eye(2)) + 0.1).shape
        ()
    """

    # Whether every leaf has the batch axes in front; else batches go through the dense matrix.
    leaves_have_batch: ClassVar[bool] = False
    # Whether it is symmetric by construction; else concrete matrices are looked at.
    is_symmetric: ClassVar[bool] = False

    if TYPE_CHECKING:  # type checkers do not know that a property may fill an AbstractVar

        @property
        def size(self) -> int:
            """Length of the axis."""
    else:
        size: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        """Refuse a `size` that is a leaf."""
        field = next((f for f in dataclasses.fields(self) if f.name == "size"), None)
        if field is not None and not field.metadata.get("static", False):
            raise TypeError(
                f"The field `size` of {type(self).__name__} must be static; got a leaf, which jit "
                "would trace. Declare it as `size: int = eqx.field(static=True)`."
            )

    @abc.abstractmethod
    def mv(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch m"]:
        """Multiply along the last axis of `x`."""

    @abc.abstractmethod
    def to_dense(self) -> Float[Array, "*batch m n"]:
        """The factor as a matrix."""

    @property
    def factors(self) -> tuple["AbstractFactor", ...]:
        """The factor itself."""
        return (self,)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(size,)`."""
        return (self.size,)

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return jax.eval_shape(self.to_dense).dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the parameters."""
        return jax.eval_shape(self.to_dense).shape[:-2]

    @property
    def T(self) -> "AbstractFactor":
        """The transpose; a factor of your own is taken to be symmetric unless it overrides this."""
        return self

    def mv_grid(self, x: Array) -> Array:
        """Multiply along the last axis, batches included."""
        if not self.batch_shape:
            return self.mv_along(x, -1)
        batch = checks.check_broadcast([self.batch_shape, x.shape[:-1]], "the factor and x")
        if not self.leaves_have_batch:
            matrix = (self.to_dense(), 2)
            return map_batch(lambda m, v: apply_along(m, v, -1), batch, matrix, (x, 1))
        return map_batch(
            lambda factor, v: factor.mv_along(v, -1), batch, (self, self.event_ndims()), (x, 1)
        )

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`; the factor has no batch here."""
        return on_fibres(AbstractFactor._by_last_axis, self, x, axis)

    def _by_last_axis(self, x: Array, axis: int) -> Array:
        moved = jnp.moveaxis(x, axis, -1)
        product = self.mv(moved)
        expected = (*moved.shape[:-1], self.output_grid_shape[0])
        if product.shape != expected:
            raise ValueError(
                f"`mv` of {type(self).__name__} must multiply along the last axis of x, here of "
                f"shape {moved.shape}, and return shape {expected}; got shape {product.shape}."
            )
        return jnp.moveaxis(product, -1, axis)

    def check_covariance(self, name: str) -> None:
        """Refuse a factor that cannot be a covariance: one that is concrete and not symmetric."""
        if not self.is_symmetric and checks.is_concrete(self):
            checks.check_symmetric(self.to_dense(), name)

    def symmetrised(self) -> "AbstractFactor":
        """What a covariance is made of: itself, or the symmetric part of a traced matrix."""
        return self

    def shifted(self, scalar: Array) -> "AbstractFactor":
        """`self + scalar · I`, which keeps its blocks."""
        return Shifted(self, scalar)

    def event_ndims(self) -> Any:
        """The number of axes of every leaf without its batch, as a matching pytree."""
        batch = len(self.batch_shape)
        return jax.tree.map(lambda leaf: max(jnp.ndim(leaf) - batch, 0), self)

    def diagonal(self) -> Array:
        """The diagonal, `(*batch, n)`."""
        return jnp.diagonal(self.to_dense(), axis1=-2, axis2=-1)

    def scaled(self, scalar: Array) -> "AbstractFactor":
        """`scalar * self`, which keeps its structure."""
        return Scaled(self, scalar)

    def blocks(self) -> SymmetricBlocks:
        """The symmetric blocks, by ordinary differentiable code from the parameters."""
        matrix = self.to_dense()
        if matrix.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"`to_dense` of {type(self).__name__} must return a matrix (*batch, {self.size}, "
                f"{self.size}), as its `size` says; got shape {matrix.shape}."
            )
        return full_block(matrix)

    def factorize(self, positive_definite: bool = False) -> AbstractFactorization:
        """LU or Cholesky of the blocks, held constant: the functions carry the derivative."""
        return BlockFactorization.of(self.blocks(), positive_definite)

    def log_abs_det(self, factorization: AbstractFactorization) -> Array:
        """`log|det|`, right at every order."""
        assert isinstance(factorization, BlockFactorization)
        return factorization.log_abs_det_of(self.blocks())

    def root(self) -> SymmetricBlocks:
        """Blocks of a matrix `R` with `R Rᵀ` equal to this one, if it is positive semidefinite.

        A single block may have fewer columns than rows; `size` is then their number.
        """
        return symmetric_roots(self.blocks())

    def as_dtype(self, dtype: Any) -> "AbstractFactor":
        """The factor with its parameters in another floating-point type."""
        return jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            self,
        )

    def thin_root(self) -> Array | None:
        """`L` `(*batch, n, r)` with `L Lᵀ` equal to this one and `r < n`, where there is one."""
        return None


class Scaled(AbstractFactor):
    """A number times a factor that has no cheaper way to scale."""

    factor: AbstractFactor
    scalar: Array

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.factor.size

    @property
    def output_grid_shape(self) -> tuple[int, ...]:
        """That of the factor."""
        return self.factor.output_grid_shape

    @property
    def T(self) -> "Scaled":
        """The transpose."""
        return Scaled(self.factor.T, self.scalar)

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return self.scalar * self.factor.mv(x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`."""
        return self.scalar * self.factor.mv_along(x, axis)

    def to_dense(self) -> Array:
        """The matrix."""
        return self.scalar * self.factor.to_dense()

    def diagonal(self) -> Array:
        """The diagonal."""
        return self.scalar * self.factor.diagonal()

    def blocks(self) -> SymmetricBlocks:
        """The blocks of the factor, scaled."""
        return self.factor.blocks().map_blocks(lambda a, _: self.scalar * a)

    def check_covariance(self, name: str) -> None:
        """That of the factor."""
        self.factor.check_covariance(name)

    def factorize(self, positive_definite: bool = False) -> AbstractFactorization:
        """That of the scaled blocks; a factor of low rank refuses."""
        if self.factor.thin_root() is not None:
            return self.factor.factorize(positive_definite)
        return super().factorize(positive_definite)

    def root(self) -> SymmetricBlocks:
        """The root of the factor times `√scalar`; NaN where that is negative."""
        return self.factor.root().map_blocks(lambda a, _: safe_sqrt(self.scalar) * a)

    def thin_root(self) -> Array | None:
        """The thin root of the factor times `√scalar`; NaN where that is negative."""
        root = self.factor.thin_root()
        return None if root is None else safe_sqrt(self.scalar) * root

    def as_dtype(self, dtype: Any) -> "Scaled":
        """That of the factor and the number."""
        return Scaled(self.factor.as_dtype(dtype), self.scalar.astype(dtype))


class Shifted(AbstractFactor):
    """A factor plus a multiple of the identity: the same in the coordinates of its blocks."""

    factor: AbstractFactor
    scalar: Array

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.factor.size

    @property
    def T(self) -> "Shifted":
        """The transpose."""
        return Shifted(self.factor.T, self.scalar)

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return self.factor.mv(x) + self.scalar * x

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`."""
        return self.factor.mv_along(x, axis) + self.scalar * x

    def to_dense(self) -> Array:
        """The matrix."""
        return jnp.add(*same_rank(self.factor.to_dense(), _multiple(self.scalar, 2, self.size)))

    def diagonal(self) -> Array:
        """The diagonal."""
        return jnp.add(*same_rank(self.factor.diagonal(), self.scalar[..., None]))

    def blocks(self) -> SymmetricBlocks:
        """The blocks of the factor, shifted: the transform is orthonormal."""
        blocks = self.factor.blocks()
        arrays = tuple(
            a + _multiple(self.scalar, ndim, size)
            for a, ndim, size in zip(blocks.arrays, blocks.ndims, blocks.sizes, strict=True)
        )
        return SymmetricBlocks(arrays, blocks.ndims, blocks.sizes, blocks.transform)

    def check_covariance(self, name: str) -> None:
        """That of the factor."""
        self.factor.check_covariance(name)

    def as_dtype(self, dtype: Any) -> "Shifted":
        """That of the factor and the number."""
        return Shifted(self.factor.as_dtype(dtype), self.scalar.astype(dtype))


def _multiple(scalar: Array, ndim: int, size: int) -> Array:
    """`scalar · I` as a block with `ndim` axes."""
    if ndim < 2:
        return scalar[..., None] if ndim else scalar
    return jnp.multiply(*same_rank(scalar[..., None, None], jnp.eye(size, dtype=scalar.dtype)))


def cast(factor: AbstractFactor, dtype: Any) -> AbstractFactor:
    """The factor with its parameters in another floating-point type."""
    return factor.as_dtype(dtype)
