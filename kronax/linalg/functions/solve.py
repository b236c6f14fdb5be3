"""Solve with an operator, right at every order of derivative.

`custom_linear_solve` differentiates `S x = b` as an implicit equation in `op.mv`, with the
decomposition held constant: `dx = S⁻¹ (db − dS x)`, and so on for every further order.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator, AbstractSolvable
from kronax.linalg.functions.conditioning import watched
from kronax.linalg.operators.diagnose import explain_not_finite
from kronax.linalg.operators.kronecker import Kronecker, as_kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, with_noise
from kronax.linalg.spectral.low_rank import decomposition, is_thin
from kronax.linalg.spectral.value_and_rules import rotate, spectrum, unrotate

WRONG = "The solution may be wrong"


def solve(op: AbstractOperator, b: Float[Array, "..."]) -> Array:
    """`op⁻¹ b`, exact.

    With noise: one `eigh` per dense factor and `4 N Σ n_i` operations. Without: LU of general
    square factors, Cholesky of those known to be positive definite, substitution for triangular
    ones. Differentiable to every order at any spectrum.

    Args:
        op: a kronax operator with square factors.
        b: `(*batch, n_1, …, n_d)` or `(*batch, N)`; the batch broadcasts against the operator's.

    Returns:
        The solution, in the layout of `b`.

    Raises:
        ValueError: if `b` does not lie on the grid, a factor is not square, or the operator is
            singular or indefinite (concrete values; traced ones give NaN).
        TypeError: if `b` is not real, or of higher precision than the operator.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.solve(2.0 * kx.Kronecker(jnp.eye(3), jnp.eye(2)), jnp.ones((3, 2))).sum().item()
        3.0
    """
    if isinstance(op, AbstractSolvable):
        return op.solve(b)
    op = with_noise(op)
    if not isinstance(op, KroneckerPlusNoise):
        op = as_kronecker(op)
        op.check_square("solve")
    grid, flat = checks.grid_of(b, op.grid_shape, "b", op.dtype)
    solution = watched(solve_grid, WRONG, op, grid)
    explain_not_finite(solution, op)
    if not flat:
        return solution
    return solution.reshape(*solution.shape[: solution.ndim - len(op.grid_shape)], op.shape[-1])


@jax.jit
def solve_grid(op: Kronecker | KroneckerPlusNoise | AbstractSolvable, b: Array) -> Array:
    """`solve` for a checked operator and vectors in the grid layout."""
    if isinstance(op, AbstractSolvable):
        return op.solve_grid(b)
    pieces: Any
    one: Any
    if isinstance(op, KroneckerPlusNoise) and is_thin(op):
        pieces, one = (decomposition(op),), _solve_thin
    elif isinstance(op, KroneckerPlusNoise):
        pieces, one = op.eigenbases(), _solve_noisy
    else:
        pieces, one = lax.stop_gradient(op.factorize()), _solve_factors
    if not op.batch_shape:
        return one(op, pieces, b)
    num_axes = len(op.grid_shape)
    batch = checks.check_broadcast(
        [op.batch_shape, b.shape[: b.ndim - num_axes]], "the operator and b"
    )
    bare = _without_decomposition(op)
    ndims = tuple(p.event_ndims for p in pieces)
    return map_batch(one, batch, (bare, bare.event_ndims()), (pieces, ndims), (b, num_axes))


def _solve_noisy(op, bases, b):
    def solve(_, v):
        return unrotate(bases, jnp.divide(*same_rank(rotate(bases, v), spectrum(bases))))

    # The operator is symmetric, its tangent need not be: so not `symmetric=True`.
    return lax.custom_linear_solve(op.mv_grid, b, solve=solve, transpose_solve=solve)


def _solve_thin(op, bases, b):
    solve = lambda _, v: bases[0].solve(v)  # noqa: E731
    return lax.custom_linear_solve(op.mv_grid, b, solve=solve, transpose_solve=solve)


def _solve_factors(op, factorizations, b):
    def along_axes(v, transpose):
        for i, factorization in enumerate(factorizations):
            v = factorization.solve_along(v, i - len(factorizations), transpose)
        return v

    return lax.custom_linear_solve(
        op.mv_grid,
        b,
        solve=lambda _, v: along_axes(v, False),
        transpose_solve=lambda _, v: along_axes(v, True),
    )


def _without_decomposition(op: Any) -> Any:
    if not isinstance(op, KroneckerPlusNoise):
        return op.mappable()
    noise = op.noise.mappable() if isinstance(op.noise, Kronecker) else op.noise
    return KroneckerPlusNoise(op.kronecker.mappable(), noise)


class Inverse(AbstractOperator):
    """`op⁻¹`, lazy: every product is a solve."""

    op: Kronecker | KroneckerPlusNoise | AbstractSolvable

    @property
    def factors(self) -> tuple:
        """Not available: an inverse of a sum is no Kronecker product."""
        raise AttributeError("kx.inverse(op) has no factors; use kx.inverse(op).op.factors.")

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """That of the operator."""
        return self.op.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the operator."""
        return self.op.batch_shape

    @property
    def dtype(self) -> Any:
        """That of the operator."""
        return self.op.dtype

    @property
    def T(self) -> "Inverse":
        """The inverse of the transpose."""
        transposed = self.op.T
        assert isinstance(transposed, Kronecker | KroneckerPlusNoise | AbstractSolvable)
        return Inverse(transposed)

    def mv_grid(self, x: Array) -> Array:
        """Solve."""
        if isinstance(self.op, AbstractSolvable):
            return self.op.solve(x)
        solution = watched(solve_grid, WRONG, self.op, x)
        explain_not_finite(solution, self.op)
        return solution

    def diagonal(self) -> Array:
        """Use `kx.inverse_diagonal(op)`, which needs no inverse."""
        raise NotImplementedError("Use kx.inverse_diagonal(op) for the diagonal of the inverse.")

    def to_dense(self) -> Array:
        """The matrix: for tests and small grids only."""
        return self @ jnp.eye(self.shape[-1], dtype=self.dtype)

    def scaled(self, scalar: Array) -> "Inverse":
        """`scalar * op⁻¹`."""
        scaled = (1 / scalar) * self.op
        assert isinstance(scaled, Kronecker | KroneckerPlusNoise | AbstractSolvable)
        return Inverse(scaled)


def inverse(op: AbstractOperator) -> Inverse:
    """`op⁻¹` as a lazy operator: `kx.inverse(op) @ X` solves for the columns of `X` `(N, k)`.

    Raises:
        ValueError: if a factor is not square.
        TypeError: if `op` is no kronax operator.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> (kx.inverse(kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0) @ jnp.ones((6, 4))).shape
        (6, 4)
    """
    op = with_noise(op)
    if not isinstance(op, KroneckerPlusNoise | AbstractSolvable):
        op = as_kronecker(op)
        op.check_square("an inverse")
    assert isinstance(op, Kronecker | KroneckerPlusNoise | AbstractSolvable)
    return Inverse(op)
