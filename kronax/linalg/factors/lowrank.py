"""A covariance of low rank on one axis, given by its root."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import apply_along, matmul
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.factorizations import AbstractFactorization
from kronax.linalg.factors.pivoted_cholesky import choose_pivots, root_at

# Ranks that are tried when none is given: this one, then twice as many, and so on.
FIRST_RANK = 32
# The trace error that is asked for when none is given, in units of the machine precision.
DEFAULT_TOLERANCE = 1e3


def default_tolerance(dtype: Any) -> float:
    """The relative trace error that is asked for when none is given."""
    return DEFAULT_TOLERANCE * float(jnp.finfo(dtype).eps)


class LowRank(AbstractFactor):
    """`L Lᵀ` on one axis, for a root `L` with few columns: a smooth kernel on many places.

    With noise everything happens in `r` dimensions: `O(n r²)` for the decomposition in place of
    `O(n³)`, and `4 N r` operations for a product. What is outside the range of `L` contributes the
    noise, exactly. On its own it is singular: `solve` and `logdet` need noise, whose factor on this
    axis is diagonal and positive (else both terms meet as full matrices). A root with as many
    columns as rows is treated as the dense matrix that it makes.

    Args:
        root: `L`, `(*batch, n, r)`.
        trace_error: upper bound on `tr(K − L Lᵀ) / tr K`, where `L Lᵀ` stands for a larger
            covariance `K`; `from_kernel` sets it.

    Raises:
        ValueError: if it is not a matrix, is empty, or has NaN or infinite entries.
        TypeError: if it is not of real floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.Kronecker(kx.LowRank(jnp.ones((4, 1))), jnp.eye(2)) + 1.0
        >>> round(kx.logdet(op).item(), 4)  # two eigenvalues of 5, six of 1
        3.2189
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    columns: Float[Array, "*batch n r"]
    trace_error: Float[Array, "*batch"] | None

    def __init__(self, root: Any, trace_error: Any = None):
        self.columns = checks.matrix(
            root,
            "The root of LowRank",
            of_kernel="For a kernel call kx.LowRank.from_kernel(kernel, points).",
            of_vector="A root of one column has shape (n, 1).",
        )
        self.trace_error = None if trace_error is None else jnp.asarray(trace_error, self.dtype)

    @classmethod
    def from_kernel(
        cls,
        kernel: Callable[[Any, Any], Array],
        points: Any,
        *,
        tolerance: float | None = None,
        rank: int | None = None,
    ) -> "LowRank":
        """The covariance `kernel(points, points)` to a certified trace error.

        Pivoted Cholesky chooses places until `tr(K − L Lᵀ) ≤ tolerance · tr K`; `K − L Lᵀ` is
        positive semidefinite, so this bounds its largest eigenvalue as well. The bound that was
        reached, rounding included, is the field `trace_error`. Derivatives in the kernel's
        parameters are exact for `L Lᵀ` at the places chosen; as approximations to those of `K`
        they are less precise than the values (measured: 1e-6 where the trace error is 6e-11), so
        keep the default where gradients matter. Cost `O(n r²)`; no `n × n` array.

        Args:
            kernel: any `k(x1, x2) -> (n1, n2)`, positive semidefinite.
            points: coordinates `(n,)` or `(n, p)`.
            tolerance: relative trace error; by default 1000 times the machine precision.
            rank: number of columns. Needed where the kernel is traced (jit, grad): there the
                places are chosen anew for every value of the parameters, and a rank that does not
                reach the tolerance gives NaN. By default the smallest that reaches it.

        Raises:
            ValueError: if the tolerance is not reached (concrete values), is no positive number,
                or `rank` is missing under jit, or the kernel is seen not to be positive
                semidefinite.
            TypeError: if `rank` is no integer.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx
            >>> factor = kx.LowRank.from_kernel(kx.RBF(0.3), jnp.linspace(0, 1, 500))
            >>> factor.shape, factor.rank < 20, bool(factor.trace_error < 2e-4)
            ((500, 500), True, True)
        """
        points = checks.array_of_reals(points, "The points of LowRank")
        if points.ndim not in (1, 2) or 0 in points.shape:
            raise ValueError(
                "The points of LowRank must have shape (n,) or (n, p) with n ≥ 1; got shape "
                f"{points.shape}."
            )
        tolerance = _checked_tolerance(tolerance, kernel, points)
        if rank is None:
            places, error = _fewest_places(kernel, points, tolerance)
        else:
            pivots = choose_pivots(kernel, points, _checked_rank(rank, points.shape[0]))
            places, error = pivots.places, pivots.remainders[-1]
        root = root_at(kernel, points, places)
        error = jnp.maximum(error, lax.stop_gradient(_left_out(kernel, points, root)))
        if not checks.is_concrete(error):
            # A factor, not a choice: so the gradient is NaN as well.
            root = root * where(error <= tolerance, jnp.ones_like(error), jnp.nan)
        elif not error <= tolerance:
            raise ValueError(_not_reached(float(error), tolerance, places.shape[0], points))
        return cls(root, lax.stop_gradient(error))

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.columns.shape[-2]

    @property
    def rank(self) -> int:
        """Number of columns of the root."""
        return self.columns.shape[-1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the root."""
        return self.columns.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the root."""
        return self.columns.shape[:-2]

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`; `4 r` operations per entry."""
        return AbstractOperator.mv(self, x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`."""
        if self.rank >= self.size:
            return apply_along(self.to_dense(), x, axis)
        return apply_along(self.columns, apply_along(self.columns.T, x, axis), axis)

    def to_dense(self) -> Array:
        """The matrix."""
        return matmul(self.columns, jnp.swapaxes(self.columns, -1, -2))

    def diagonal(self) -> Array:
        """Row by row the squared length of the root."""
        return jnp.sum(jnp.square(self.columns), axis=-1)

    def thin_root(self) -> Array | None:
        """The root, if it has fewer columns than rows."""
        return self.columns if self.rank < self.size else None

    def root(self) -> SymmetricBlocks:
        """The root itself."""
        return SymmetricBlocks((self.columns,), (2,), (self.rank,))

    def factorize(self, positive_definite: bool = False) -> AbstractFactorization:
        """Only where the rank is full."""
        if self.rank < self.size:
            raise ValueError(
                f"A LowRank factor must have full rank to be inverted; got rank {self.rank} for "
                f"size {self.size}. Add noise to the operator: `op + variance`."
            )
        return super().factorize(positive_definite)


def _left_out(kernel: Any, points: Array, root: Array) -> Array:
    """The relative trace that the root leaves: what a kernel that changes its mind cannot pass."""
    variances = jax.vmap(lambda p: kernel(p[None], p[None])[0, 0])(points)
    return jnp.sum(variances - jnp.sum(jnp.square(root), axis=-1)) / jnp.sum(variances)


def _checked_tolerance(tolerance: Any, kernel: Any, points: Array) -> float:
    one = points[:1]
    dtype = jax.eval_shape(kernel, one, one).dtype
    value = default_tolerance(dtype) if tolerance is None else float(tolerance)
    if not value > 0:
        raise ValueError(
            f"The tolerance of LowRank must be a positive number; got {tolerance!r}. It is the "
            "part of the trace that may be left out, 1e-6 for example."
        )
    return value


def _checked_rank(rank: Any, size: int) -> int:
    rank = checks.whole(rank)
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"The rank of LowRank must be an integer; got {rank!r}.")
    if rank < 1:
        raise ValueError(f"The rank of LowRank must be at least 1; got {rank}.")
    return min(rank, size)


def _fewest_places(kernel: Any, points: Array, tolerance: float) -> tuple[Array, Array]:
    """The fewest places that reach the tolerance, and the error that they leave."""
    size = points.shape[0]
    rank = min(FIRST_RANK, size)
    while True:
        pivots = choose_pivots(kernel, points, rank)
        if not checks.is_concrete(pivots):
            raise ValueError(
                "The rank of LowRank must be given where the kernel is traced (under jit, grad or "
                "vmap): shapes cannot depend on values there. Pass `rank=`, found once outside."
            )
        remainders = np.asarray(pivots.remainders)
        reached = np.flatnonzero(remainders[1:] <= tolerance)
        # Once a place is -1, more of them change nothing.
        if reached.size or rank == size or bool((pivots.places < 0).any()):
            count = int(reached[0]) + 1 if reached.size else rank
            return pivots.places[:count], pivots.remainders[count]
        rank = min(2 * rank, size)


def _not_reached(error: float, tolerance: float, rank: int, points: Array) -> str:
    if np.isnan(error):
        return (
            "The kernel must be positive semidefinite; a variance that its first columns leave, of "
            f"{points.shape[0]} places, is negative. Check the kernel."
        )
    if rank == points.shape[0]:
        return (
            f"The covariance of {rank} places must be reached to a relative trace error of "
            f"{tolerance:.3g}; rounding alone leaves {error:.3g}. Give a larger `tolerance`."
        )
    return (
        f"The covariance of {points.shape[0]} places must be of rank {rank} to a relative trace "
        f"error of {tolerance:.3g}; got {error:.3g}. Raise `rank` or `tolerance`, or use kx.Dense."
    )
