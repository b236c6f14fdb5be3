"""The Kronecker sum `A ⊕ B = A ⊗ I + I ⊗ B`, and what of it has an exact decomposition."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg import checks
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.modes import map_batch
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.operators import AbstractOperator


class KroneckerSum(AbstractOperator):
    """`A ⊕ B = A ⊗ I + I ⊗ B`: what acts along each axis alone, added up.

    It is a Kronecker product plus another one, so that everything is exact, derivatives included:
    `kx.KroneckerSum(A, B) + 0.1` is `A ⊗ I + I ⊗ (B + 0.1 I)`, a `kx.KroneckerPlusNoise`, and
    `kx.solve`, `kx.logdet` and the rest take the sum on its own as well. Its factors are used as
    covariances then: symmetric and positive semidefinite, one of them at least definite where
    there is no noise.

    Args:
        *factors: two or more square operators on one axis, or arrays, in the order of the axes;
            leading batch axes broadcast. With three or more it multiplies (`mv`, `@`) and knows its
            diagonal; decompositions take two.

    Raises:
        ValueError: with fewer than two factors, or if one is not square.
        TypeError: if a factor is no operator on one axis and no array.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.KroneckerSum(2.0 * jnp.eye(3), jnp.eye(2))
        >>> op.mv(jnp.ones((3, 2))).sum().item()
        18.0
        >>> round(kx.logdet(op + 1.0).item(), 4)  # six eigenvalues of 2 + 1 + 1
        8.3178
    """

    factors: tuple[AbstractFactor, ...]

    def __init__(self, *factors: Any):
        if len(factors) == 1 and isinstance(factors[0], tuple | list):
            raise TypeError(
                f"kx.KroneckerSum takes its factors one by one; got a {type(factors[0]).__name__} "
                f"of {len(factors[0])}. Write kx.KroneckerSum(*factors)."
            )
        product = Kronecker(*factors)
        product.check_square("a Kronecker sum")
        if len(product.factors) < 2:
            raise ValueError("kx.KroneckerSum needs two factors or more, one per axis; got one.")
        self.factors = product.factors

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return tuple(f.size for f in self.factors)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast batch of the factors."""
        return jnp.broadcast_shapes(*(f.batch_shape for f in self.factors))

    @property
    def dtype(self) -> Any:
        """Floating-point type of the factors."""
        return self.factors[0].dtype

    @property
    def T(self) -> "KroneckerSum":
        """The transpose: that of every factor."""
        return KroneckerSum(*(f.T for f in self.factors))

    def mv_grid(self, x: Array) -> Array:
        """Multiply along each axis, and add: `2 N Σ n_i` operations."""
        num_axes = len(self.factors)
        if not self.batch_shape:
            return _mv(self.factors, x)
        batch = checks.check_broadcast(
            [self.batch_shape, x.shape[: x.ndim - num_axes]], "the operator and the vector"
        )
        factors = Kronecker(*self.factors).mappable().factors
        ndims = tuple(f.event_ndims() for f in factors)
        return map_batch(_mv, batch, (factors, ndims), (x, num_axes))

    def diagonal(self) -> Array:
        """The diagonal, `(*batch, *grid)`: sums of one entry per axis."""
        num_axes = len(self.factors)
        total = jnp.zeros((), self.dtype)
        for i, factor in enumerate(self.factors):
            values = factor.diagonal()
            shape = (*values.shape[:-1], *(1,) * i, values.shape[-1], *(1,) * (num_axes - i - 1))
            total = total + values.reshape(shape)
        return total

    def trace(self) -> Array:
        """`Σ (N / n_i) tr A_i`."""
        num_cells = self.shape[-1]
        total = jnp.zeros((), self.dtype)
        for factor in self.factors:
            total = total + num_cells // factor.size * jnp.sum(factor.diagonal(), axis=-1)
        return total

    def to_dense(self) -> Array:
        """The `(*batch, N, N)` matrix: for tests and small grids only."""
        total = jnp.zeros((), self.dtype)
        for i, factor in enumerate(self.factors):
            total = total + Kronecker(*_identities(self, {i: factor})).to_dense()
        return total

    def scaled(self, scalar: Array) -> "KroneckerSum":
        """`scalar * self`: every factor is scaled."""
        return KroneckerSum(*(f.scaled(scalar) for f in self.factors))

    def plus(self, noise: Any) -> KroneckerPlusNoise:
        """`A ⊗ I + I ⊗ (B + σ² I)`, the exact sum of two Kronecker products.

        Raises:
            NotImplementedError: with three factors or more.
        """
        if len(self.factors) > 2:
            raise NotImplementedError(
                "The decomposition of a Kronecker sum needs exactly two factors; got "
                f"{len(self.factors)}, whose sum with noise is more than two Kronecker products. "
                "Put neighbouring axes into one factor, kx.KroneckerSum(A, kx.Dense(matrix)); "
                "products (`mv`, `@`), diagonal and trace work as it is."
            )
        first, last = self.factors
        if not (isinstance(noise, int | float) and noise == 0):
            # Only its check is wanted here: the same words as for any other noise.
            level = KroneckerPlusNoise(Kronecker(*self.factors), noise).noise
            assert not isinstance(level, Kronecker)
            last = last.shifted(level)
        return KroneckerPlusNoise(
            Kronecker(*_identities(self, {0: first})), Kronecker(*_identities(self, {1: last}))
        )

    def __add__(self, other: Any) -> KroneckerPlusNoise:
        if isinstance(other, AbstractOperator):
            raise TypeError(
                "A sum of more than two Kronecker products has no exact decomposition; got a "
                f"KroneckerSum plus {type(other).__name__}. Add a variance, `op + 0.1`, or put the "
                "terms into its factors: kx.KroneckerSum(A + C, B)."
            )
        return self.plus(other)

    __radd__ = __add__


def two_terms(op: Any) -> Any:
    """A Kronecker sum as the sum of two products that it is; other operators as they are."""
    return op.plus(0) if isinstance(op, KroneckerSum) else op


def _identities(op: KroneckerSum, given: dict[int, AbstractFactor]) -> list[AbstractFactor]:
    """Identities over the grid of `op`, except for some factors."""
    one = jnp.ones((), op.dtype)
    return [given.get(k, ScaledIdentity(one, n)) for k, n in enumerate(op.grid_shape)]


def _mv(factors: tuple[AbstractFactor, ...], x: Array) -> Array:
    num_axes = len(factors)
    total = factors[0].mv_along(x, -num_axes)
    for i, factor in enumerate(factors[1:], 1):
        total = total + factor.mv_along(x, i - num_axes)
    return total
