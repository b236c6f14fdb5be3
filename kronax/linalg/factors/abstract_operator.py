"""What every operator over a grid can do, and how operators are added."""

import abc
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.linalg.arrays.checks import (
    array_of_reals,
    check_finite,
    check_not_square,
    check_precision,
    grid_of,
    is_concrete,
)


class AbstractOperator(eqx.Module):
    """A linear operator on vectors over a grid, `(*batch, n_1, …, n_d)` or `(*batch, N)`."""

    # Keep NumPy from treating an operator as an object array: `np.float64(2) * op` comes to us.
    __array_ufunc__ = None

    if TYPE_CHECKING:  # type checkers do not know that a property may fill an AbstractVar

        @property
        def factors(self) -> tuple[Any, ...]:
            """One factor per axis."""
    else:
        factors: eqx.AbstractVar[tuple[Any, ...]]

    @property
    @abc.abstractmethod
    def grid_shape(self) -> tuple[int, ...]:
        """Shape of the grid that the operator acts on."""

    @property
    def output_grid_shape(self) -> tuple[int, ...]:
        """Shape of the grid of the result; another one only for rectangular factors."""
        return self.grid_shape

    @property
    @abc.abstractmethod
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes, with one operator per entry."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """Floating-point type of the entries."""

    @property
    @abc.abstractmethod
    def T(self) -> "AbstractOperator":
        """The transpose."""

    @abc.abstractmethod
    def mv_grid(self, x: Array) -> Array:
        """Multiply one or more vectors in the grid layout, already checked."""

    @abc.abstractmethod
    def diagonal(self) -> Array:
        """The diagonal, as a grid array."""

    @abc.abstractmethod
    def to_dense(self) -> Array:
        """The `(*batch, M, N)` matrix: for tests and small grids only."""

    @abc.abstractmethod
    def scaled(self, scalar: Array) -> "AbstractOperator":
        """`scalar * self`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(*batch, M, N)`."""
        return (*self.batch_shape, prod(self.output_grid_shape), prod(self.grid_shape))

    def held(self, x: Array) -> Array:
        """`x` with zeros where the operator has no cells; here it has all."""
        return x

    def vector(self, x: Any, name: str) -> tuple[Array, bool]:
        """A checked vector in the grid layout, and whether it came flat."""
        return grid_of(x, self.grid_shape, name, self.dtype)

    def mean_vector(self, mean: Any, name: str = "mean") -> Array:
        """A number or an array as one that broadcasts against vectors in the grid layout."""
        if isinstance(mean, int | float):
            mean = np.asarray(mean, self.dtype)
            check_finite(mean, name)
            return jnp.asarray(mean)
        check_precision(mean, name, self.dtype)
        array = array_of_reals(mean, name).astype(self.dtype)
        check_not_square(array.shape, self.grid_shape, name)
        trailing = array.shape[-len(self.grid_shape) :]
        fits = len(trailing) <= len(self.grid_shape) and all(
            m in (1, n) for m, n in zip(trailing[::-1], self.grid_shape[::-1], strict=False)
        )
        return array if fits else grid_of(array, self.grid_shape, name, self.dtype)[0]

    def mv(self, x: Float[Array, "..."]) -> Array:
        """Multiply vectors, in the layout (grid or flat) that they come in.

        Args:
            x: `(*batch, n_1, …, n_d)` or `(*batch, N)`.

        Raises:
            ValueError: if `x` does not lie on the grid.
            TypeError: if it is not real, or of higher precision than the operator.
        """
        grid, flat = grid_of(x, self.grid_shape, "x", self.dtype)
        result = self.mv_grid(grid)
        if not flat:
            return result
        return result.reshape(
            *result.shape[: result.ndim - len(self.output_grid_shape)], self.shape[-2]
        )

    def trace(self) -> Array:
        """Sum of the diagonal."""
        diagonal = self.diagonal()
        return jnp.sum(diagonal, axis=tuple(range(-len(self.grid_shape), 0)))

    def __matmul__(self, x: Any) -> Any:
        """`op @ x` as NumPy's matmul: `(N,)` is a vector, `(*batch, N, k)` has k columns."""
        if isinstance(x, AbstractOperator):
            return NotImplemented
        check_precision(x, "x", self.dtype)
        x = array_of_reals(x, "x").astype(self.dtype)
        rows = x.shape[0] if x.ndim == 1 else x.shape[-2] if x.ndim else None
        if rows != self.shape[-1]:
            raise ValueError(
                f"`op @ x` needs x of shape ({self.shape[-1]},) or (*batch, {self.shape[-1]}, k), "
                f"as NumPy's matmul; got shape {x.shape}. Use `op.mv(x)` for grid arrays."
            )
        if x.ndim == 1:
            return self.mv(x)
        columns = jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], *x.shape[:-2], *self.grid_shape)
        if self.batch_shape:
            lead = (1,) * max(len(self.batch_shape) - (x.ndim - 2), 0)
            columns = columns.reshape(x.shape[-1], *lead, *columns.shape[1:])
        product = self.mv_grid(columns)
        batch = product.shape[: product.ndim - len(self.output_grid_shape)]
        return jnp.moveaxis(product.reshape(*batch, self.shape[-2]), 0, -1)

    def __rmatmul__(self, x: Any) -> Any:
        raise TypeError(
            "An operator multiplies from the left, `op @ x`; got x @ op. Take `op.T @ x`, for rows "
            "`(op.T @ x.T).T`."
        )

    def __mul__(self, scalar: Any) -> "AbstractOperator":
        if isinstance(scalar, AbstractOperator):
            raise TypeError(
                "`*` scales an operator by a number; for the product of two operators use `@`."
            )
        is_number = isinstance(scalar, int | float) and not isinstance(scalar, bool)
        value = scalar if is_number else array_of_reals(scalar, "scalar")
        if jnp.ndim(value) != 0:
            raise ValueError(
                "An operator can be multiplied by a single number; got shape "
                f"{jnp.shape(value)}. Use "
                "`op.mv(x)` or `op @ x` for a product with a vector, and jax.vmap for batches."
            )
        return self.scaled(jnp.asarray(value, self.dtype))

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> "AbstractOperator":
        return self * (1 / scalar)

    def __add__(self, other: Any) -> "AbstractOperator":
        return _sums[-1](self, other)

    __radd__ = __add__


class AbstractObserved(AbstractOperator):
    """An operator over the observed cells of a grid.

    Vectors stay grid arrays: what they hold at gaps is ignored (NaN included), and results are
    zero there.
    """

    @property
    @abc.abstractmethod
    def observed(self) -> Any:
        """True where a cell is observed."""

    @abc.abstractmethod
    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """Draws from `N(0, op)`, one per entry of `lead`, which the batch broadcasts to."""

    def held(self, x: Array) -> Array:
        """`x` with zeros at the gaps, also where it is NaN there."""
        cells = jnp.asarray(self.observed)
        cells = cells.reshape((1,) * (x.ndim - cells.ndim) + cells.shape)
        return jnp.where(cells, x, jnp.zeros((), x.dtype))

    def vector(self, x: Any, name: str) -> tuple[Array, bool]:
        """A checked vector in the grid layout, zero at the gaps, and whether it came flat."""
        grid, flat = grid_of(x, self.grid_shape, name, self.dtype, finite=False)
        grid = self.held(grid)
        if is_concrete(grid):
            check_finite(grid, f"{name} at the observed cells")
        return grid, flat


def _no_sum(first: Any, second: Any) -> AbstractOperator:
    raise NotImplementedError(
        "kronax.linalg.operators.plus_noise defines sums of operators; import kronax."
    )


_sums: list[Callable[[Any, Any], AbstractOperator]] = [_no_sum]


def define_sums(rule: Callable[[Any, Any], AbstractOperator]) -> None:
    """Set what `a + b` does: sums make a class of a higher layer than the operators here."""
    _sums.append(rule)
