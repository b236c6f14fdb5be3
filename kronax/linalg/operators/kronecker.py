"""The Kronecker product of one factor per axis, and the Kronecker sum."""

from math import prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fingerprints import fingerprint, held
from kronax.linalg.arrays.lapack_order import in_sequence
from kronax.linalg.arrays.mode_products import apply_all, best_order, map_batch, matmul, same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor, cast
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.factorizations import AbstractFactorization
from kronax.linalg.lineax_factor import lineax_operator


class Kronecker(AbstractOperator):
    """`A ⊗ B ⊗ …`, applied axis by axis in a static loop: `2 N Σ n_i` operations, never `N²`.

    Rectangular factors go in the order of the fewest operations; small neighbours go as one matrix.

    Args:
        *factors: operators on one axis, or arrays (an array means `kx.Dense`), in the order of
            the axes; leading batch axes broadcast. A Kronecker product among them is flattened.
            Operators of lineax are taken with the structure that they are known to have.

    Raises:
        ValueError: without factors, or if their batch shapes do not broadcast.
        TypeError: if a factor is no operator on one axis and no array.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.Kronecker(jnp.eye(3), jnp.ones((2, 4)))
        >>> op.shape, op.mv(jnp.ones((3, 4))).shape
        ((6, 12), (3, 2))
    """

    factors: tuple[AbstractFactor, ...]
    decomposition: tuple[AbstractFactorization, ...] | None
    made_of: tuple[Array, ...] | None

    def __init__(self, *factors: Any, decomposition: Any = None, made_of: Any = None):
        if len(factors) == 1 and isinstance(factors[0], tuple | list):
            raise TypeError(
                f"kx.Kronecker takes its factors one by one; got a {type(factors[0]).__name__} of "
                f"{len(factors[0])}. Write kx.Kronecker(*factors)."
            )
        if not factors:
            raise ValueError("kx.Kronecker needs at least one factor; got none.")
        flattened: list[AbstractFactor] = []
        for k, factor in enumerate(factors):
            flattened += _as_factors(factor, k)
        # A multiple of the identity made with a Python number takes the precision of the others.
        firm = [f for f in flattened if not (isinstance(f, ScaledIdentity) and f.scale.weak_type)]
        # Not `result_type`: it raises where the user forbids implicit promotion.
        dtype = max((f.dtype for f in firm or flattened), key=lambda d: jnp.finfo(d).bits)
        self.factors = tuple(f if f.dtype == dtype else cast(f, dtype) for f in flattened)
        self.decomposition, self.made_of = decomposition, made_of
        checks.check_broadcast([f.batch_shape for f in self.factors], "the Kronecker factors")

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return tuple(f.size for f in self.factors)

    @property
    def output_grid_shape(self) -> tuple[int, ...]:
        """`(m_1, …, m_d)`."""
        return tuple(f.output_grid_shape[0] for f in self.factors)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast batch of the factors."""
        return jnp.broadcast_shapes(*(f.batch_shape for f in self.factors))

    @property
    def dtype(self) -> Any:
        """Floating-point type of the factors."""
        return self.factors[0].dtype

    @property
    def T(self) -> "Kronecker":
        """The transpose, that of every factor."""
        return Kronecker(*(f.T for f in self.factors))

    def mv_grid(self, x: Array) -> Array:
        """Multiply vectors in the grid layout."""
        num_axes = len(self.factors)
        if not self.batch_shape:
            return _mv(self.factors, x)
        batch = checks.check_broadcast(
            [self.batch_shape, x.shape[: x.ndim - num_axes]], "the operator and the vector"
        )
        factors = self.mappable().factors
        ndims = tuple(f.event_ndims() for f in factors)
        return map_batch(_mv, batch, (factors, ndims), (x, num_axes))

    def carrying(self, computed: Any) -> "Kronecker":
        """The same product with the factorisations that were computed of it."""
        return Kronecker(*self.factors, decomposition=computed, made_of=fingerprint(self))

    def mappable(self) -> "Kronecker":
        """The same product without its decomposition, every leaf with the batch axes in front."""
        return Kronecker(
            *(
                f if f.leaves_have_batch or not f.batch_shape else Dense(f.to_dense())
                for f in self.factors
            )
        )

    def event_ndims(self) -> "Kronecker":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return _unchecked(tuple(f.event_ndims() for f in self.factors), None)

    def diagonal(self) -> Array:
        """The diagonal, `(*batch, *grid)`."""
        self.check_square("diagonal")
        result = jnp.ones((), self.dtype)
        num_axes = len(self.factors)
        for i, factor in enumerate(self.factors):
            values = factor.diagonal()
            shape = (*values.shape[:-1], *(1,) * i, values.shape[-1], *(1,) * (num_axes - i - 1))
            result = jnp.multiply(*same_rank(result, values.reshape(shape)))
        return result

    def to_dense(self) -> Array:
        """The `(*batch, M, N)` matrix: for tests and small grids only."""
        result = self.factors[0].to_dense()
        for factor in self.factors[1:]:
            right = factor.to_dense()
            left, right = same_rank(result, right)
            product = left[..., :, None, :, None] * right[..., None, :, None, :]
            rows, columns = (
                a * b for a, b in zip(result.shape[-2:], right.shape[-2:], strict=True)
            )
            result = product.reshape(*product.shape[:-4], rows, columns)
        return result

    def scaled(self, scalar: Array) -> "Kronecker":
        """`scalar * self`: the first factor carries the number."""
        return Kronecker(self.factors[0].scaled(scalar), *self.factors[1:])

    def __matmul__(self, x: Any) -> Any:
        """A product with a vector, with columns `(*batch, N, k)`, or with another `Kronecker`."""
        if not isinstance(x, Kronecker):
            return super().__matmul__(x)
        if self.grid_shape != x.output_grid_shape:
            raise ValueError(
                "The product of two Kronecker operators needs matching grids; got columns "
                f"{self.grid_shape} and rows {x.output_grid_shape}. Give both the same axes."
            )
        return Kronecker(
            *(
                matmul(a.to_dense(), b.to_dense())
                for a, b in zip(self.factors, x.factors, strict=True)
            )
        )

    def check_square(self, what: str) -> None:
        """Refuse rectangular factors where a square operator is needed."""
        for k, factor in enumerate(self.factors):
            rows, columns = factor.output_grid_shape[0], factor.size
            if rows != columns:
                raise ValueError(
                    f"Kronecker factor {k} must be square for {what}; got shape ({rows}, "
                    f"{columns}). Pass a covariance matrix, not a cross-covariance."
                )

    def check_covariance(self, what: str) -> None:
        """Refuse factors that cannot be covariances."""
        self.check_square(what)
        for k, factor in enumerate(self.factors):
            factor.check_covariance(f"Kronecker factor {k}")

    def symmetrised(self) -> "Kronecker":
        """The product of the symmetric parts of traced factors."""
        factors = tuple(f.symmetrised() for f in self.factors)
        same = all(a is b for a, b in zip(factors, self.factors, strict=True))
        return self if same else Kronecker(*factors)

    def factorize(self, positive_definite: bool = False) -> tuple[AbstractFactorization, ...]:
        """One factorisation per axis, or the ones that the operator carries."""

        def one(pair: tuple[AbstractFactor, Any]) -> AbstractFactorization:
            factor, own = pair
            usable = own is not None and (own.needs_definite or not positive_definite)
            return own if usable else factor.factorize(positive_definite)

        helds = held(self, self.decomposition) or (None,) * len(self.factors)
        pairs = zip(self.factors, helds, strict=True)
        return tuple(in_sequence(one, pairs, batched=bool(self.batch_shape)))


class KroneckerSum(AbstractOperator):
    """`A ⊕ B = A ⊗ I + I ⊗ B`: what acts along each axis alone, added up.

    The eigenvalues of the factors add up where those of a product multiply, so that everything is
    exact, derivatives included: `kx.KroneckerSum(A, B) + 0.1` is a `kx.KroneckerPlusNoise`, and
    `kx.solve`, `kx.logdet` and the rest take the sum on its own as well. Its factors are used as
    covariances then: symmetric and positive semidefinite, at least one of them definite where
    there is no noise.

    Args:
        *factors: two or more square operators on one axis, or arrays, in the order of the axes;
            leading batch axes broadcast.

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
        """The transpose, that of every factor."""
        return KroneckerSum(*(f.T for f in self.factors))

    def mv_grid(self, x: Array) -> Array:
        """Multiply along each axis, and add: `2 N Σ n_i` operations."""
        num_axes = len(self.factors)
        if not self.batch_shape:
            return _mv_sum(self.factors, x)
        batch = checks.check_broadcast(
            [self.batch_shape, x.shape[: x.ndim - num_axes]], "the operator and the vector"
        )
        factors = self.mappable().factors
        ndims = tuple(f.event_ndims() for f in factors)
        return map_batch(_mv_sum, batch, (factors, ndims), (x, num_axes))

    def mappable(self) -> "KroneckerSum":
        """The same sum, every leaf with the batch axes in front."""
        return KroneckerSum(*Kronecker(*self.factors).mappable().factors)

    def event_ndims(self) -> "KroneckerSum":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        op = object.__new__(KroneckerSum)
        object.__setattr__(op, "factors", tuple(f.event_ndims() for f in self.factors))
        return op

    def check_covariance(self, what: str) -> None:
        """Refuse factors that cannot be covariances."""
        Kronecker(*self.factors).check_covariance(what)

    def symmetrised(self) -> "KroneckerSum":
        """The sum of the symmetric parts of traced factors."""
        return KroneckerSum(*Kronecker(*self.factors).symmetrised().factors)

    def diagonal(self) -> Array:
        """The diagonal, `(*batch, *grid)`: sums of one entry per axis."""
        num_axes = len(self.factors)
        total = jnp.zeros((), self.dtype)
        for i, factor in enumerate(self.factors):
            values = factor.diagonal()
            shape = (*values.shape[:-1], *(1,) * i, values.shape[-1], *(1,) * (num_axes - i - 1))
            total = jnp.add(*same_rank(total, values.reshape(shape)))
        return total

    def trace(self) -> Array:
        """`Σ (N / n_i) tr A_i`."""
        num_cells = self.shape[-1]
        total = jnp.zeros((), self.dtype)
        for factor in self.factors:
            trace = num_cells // factor.size * jnp.sum(factor.diagonal(), axis=-1)
            total = jnp.add(*same_rank(total, trace))
        return total

    def to_dense(self) -> Array:
        """The `(*batch, N, N)` matrix: for tests and small grids only."""
        total = jnp.zeros((), self.dtype)
        for i, factor in enumerate(self.factors):
            one = jnp.ones((), self.dtype)
            parts = [ScaledIdentity(one, n) for n in self.grid_shape]
            term = Kronecker(*parts[:i], factor, *parts[i + 1 :]).to_dense()
            total = jnp.add(*same_rank(total, term))
        return total

    def scaled(self, scalar: Array) -> "KroneckerSum":
        """`scalar * self`: every factor is scaled."""
        return KroneckerSum(*(f.scaled(scalar) for f in self.factors))


def as_kronecker(op: Any, name: str = "op") -> Kronecker:
    """A factor as a Kronecker product of one; anything else than an operator is refused."""
    if isinstance(op, Kronecker):
        return op
    if isinstance(op, AbstractFactor):
        return Kronecker(op)
    if isinstance(op, AbstractOperator):
        raise TypeError(
            f"{name} must be a Kronecker product; got {type(op).__name__}, for which there is no "
            "exact rule here. Multiply by it (`mv`, `@`), or take to_dense() where that fits."
        )
    raise TypeError(
        f"{name} must be a kronax operator; got {type(op).__name__}. "
        "Wrap matrices as kx.Kronecker(A, B) or kx.Dense(A)."
    )


def _mv(factors: tuple[AbstractFactor, ...], x: Array) -> Array:
    """Apply every factor along its axis, in the order of the fewest operations."""
    num_axes = len(factors)
    if all(isinstance(f, Dense) for f in factors):
        return apply_all([f.to_dense() for f in factors], x)
    for i in best_order([(f.output_grid_shape[0], f.size) for f in factors]):
        x = factors[i].mv_along(x, i - num_axes)
    return x


def _mv_sum(factors: tuple[AbstractFactor, ...], x: Array) -> Array:
    """Apply every factor along its axis, and add."""
    num_axes = len(factors)
    total = factors[0].mv_along(x, -num_axes)
    for i, factor in enumerate(factors[1:], 1):
        total = total + factor.mv_along(x, i - num_axes)
    return total


def _as_factors(value: Any, k: int) -> list[AbstractFactor]:
    value = lineax_operator(value) or value
    if isinstance(value, AbstractFactor):
        return [value]
    if isinstance(value, Kronecker):
        return list(value.factors)
    if isinstance(value, AbstractOperator):
        raise TypeError(
            f"Kronecker factor {k} must be an operator on one axis; got "
            f"{type(value).__name__}. Add noise to the whole product: kx.Kronecker(…) + noise."
        )
    try:
        return [Dense(checks.matrix(value, f"Kronecker factor {k}"))]
    except TypeError as error:
        raise TypeError(f"{error} Factors are operators or arrays.") from error


def _unchecked(factors: Any, decomposition: Any) -> Kronecker:
    op = object.__new__(Kronecker)
    object.__setattr__(op, "factors", factors)
    object.__setattr__(op, "decomposition", decomposition)
    object.__setattr__(op, "made_of", None)
    return op


def num_cells(op: AbstractOperator) -> int:
    """Number of cells of the grid."""
    return prod(op.grid_shape)
