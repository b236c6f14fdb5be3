"""Diagonal matrices on one axis."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import along, same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import SymmetricBlocks


class Diagonal(AbstractFactor):
    """A diagonal matrix on one axis: independent places, or noise that differs along the axis.

    Args:
        diagonal: `(*batch, n)`.

    Raises:
        ValueError: if it is a scalar, is empty, or has NaN or infinite entries.
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Diagonal(jnp.ones(3)).mv(jnp.ones(3)).shape
        (3,)
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    values: Float[Array, "*batch n"]

    def __init__(self, diagonal: Any):
        values = checks.array_of_reals(diagonal, "The diagonal of Diagonal")
        if values.ndim == 0 or values.shape[-1] == 0:
            raise ValueError(
                "The diagonal of Diagonal must be a vector (*batch, n) with n ≥ 1; got shape "
                f"{values.shape}. A multiple of the identity is kx.ScaledIdentity(scale, size)."
            )
        self.values = values

    @property
    def size(self) -> int:
        """Length of the diagonal."""
        return self.values.shape[-1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the diagonal."""
        return self.values.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the diagonal."""
        return self.values.shape[:-1]

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`."""
        return x * along(self.values, axis, x.ndim)

    def to_dense(self) -> Array:
        """The diagonal matrix."""
        return jnp.multiply(
            *same_rank(self.values[..., None], jnp.eye(self.size, dtype=self.dtype))
        )

    def diagonal(self) -> Array:
        """The diagonal."""
        return self.values

    def scaled(self, scalar: Array) -> "Diagonal":
        """`scalar * self`."""
        return Diagonal(scalar * self.values)

    def blocks(self) -> SymmetricBlocks:
        """One diagonal block: no decomposition is needed."""
        return SymmetricBlocks((self.values,), (1,), (self.size,))


class ScaledIdentity(AbstractFactor):
    """`scale · I` on one axis.

    Args:
        scale: the number, `(*batch,)`.
        size: length of the axis.

    Raises:
        ValueError: if `size` is not positive, or the scale is NaN or infinite.
        TypeError: if `size` is no integer.

    Examples:
        >>> import kronax as kx
        >>> kx.ScaledIdentity(2.0, 3).trace().item()
        6.0
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    scale: Float[Array, "*batch"]
    size: int = eqx.field(static=True)

    def __init__(self, scale: Any, size: int):
        scale, size = checks.whole(scale), checks.whole(size)
        self.scale = checks.array_of_reals(scale, "The scale of ScaledIdentity")
        if isinstance(scale, int | float) and not isinstance(scale, bool):
            self.scale = jax.device_put(float(scale))  # weakly typed: it has any precision
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(
                f"The size of ScaledIdentity must be an integer; got {size!r}. Pass (scale, size)."
            )
        if size < 1:
            raise ValueError(f"The size of ScaledIdentity must be at least 1; got {size}.")
        self.size = size

    @property
    def dtype(self) -> Any:
        """Floating-point type of the scale."""
        return self.scale.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the scale."""
        return self.scale.shape

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis` of `x`."""
        return x * self.scale

    def to_dense(self) -> Array:
        """The matrix."""
        identity = jnp.eye(self.size, dtype=self.dtype)
        return jnp.multiply(*same_rank(self.scale[..., None, None], identity))

    def diagonal(self) -> Array:
        """The diagonal."""
        return jnp.broadcast_to(self.scale[..., None], (*self.scale.shape, self.size))

    def scaled(self, scalar: Array) -> "ScaledIdentity":
        """`scalar * self`."""
        return ScaledIdentity(scalar * self.scale, self.size)

    def blocks(self) -> SymmetricBlocks:
        """One multiple of the identity."""
        return SymmetricBlocks((self.scale,), (0,), (self.size,))
