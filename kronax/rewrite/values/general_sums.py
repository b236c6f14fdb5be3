"""Sums of products whose factors need be neither symmetric nor definite, as LU takes them."""

from collections.abc import Sequence
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.factors.dense import Dense
from kronax.linalg.functions.diagonals import inverse_diagonal
from kronax.linalg.functions.solve import solve
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.value_and_rules import rotate, spectrum, unrotate
from kronax.rewrite.values.substitution import multiplied, schur, substituted

# Steps of refinement after a solve by Schur forms, which cost little beside these.
REFINEMENTS = 2


class GeneralSum(eqx.Module):
    """`⊗A_i + c I`, `⊗A_i + ⊗C_i` or `⊕A_i + c I` of square factors.

    Where it is a covariance, it is solved as one. Otherwise by Schur forms of the factors, with no
    more operations than a few decompositions of them and some products.

    Args:
        signal: `⊗A_i` or `⊕A_i`.
        noise: `c`, a number for each entry of the batch, or, beside a product, `⊗C_i`.
    """

    signal: Kronecker | KroneckerSum
    noise: Array | Kronecker

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.signal.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast batch of both terms."""
        noise = self.noise
        own = noise.batch_shape if isinstance(noise, Kronecker) else noise.shape
        return jnp.broadcast_shapes(self.signal.batch_shape, own)

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.signal.dtype

    @property
    def T(self) -> "GeneralSum":
        """The transpose."""
        noise = self.noise.T if isinstance(self.noise, Kronecker) else self.noise
        return GeneralSum(self.signal.T, noise)

    def mv_grid(self, x: Array) -> Array:
        """Both terms, added."""
        if isinstance(self.noise, Kronecker):
            other = self.noise.mv_grid(x)
        else:
            ones = (1,) * len(self.grid_shape)
            other = jnp.multiply(*same_rank(self.noise.reshape(*self.noise.shape, *ones), x))
        return jnp.add(*same_rank(self.signal.mv_grid(x), other))

    def covariance(self) -> KroneckerPlusNoise:
        """The same as a covariance; of traced factors the symmetric parts.

        Raises:
            ValueError: if concrete factors are not symmetric, or the noise is negative.
        """
        return KroneckerPlusNoise(self.signal, self.noise)

    @property
    def is_symmetric(self) -> Array:
        """Whether all factors of the whole batch are symmetric."""
        noise = self.noise.factors if isinstance(self.noise, Kronecker) else ()
        factors = [f for f in (*self.signal.factors, *noise) if isinstance(f, Dense)]
        return jnp.all(jnp.stack([jnp.all(are_symmetric(f.matrix)) for f in factors]))

    @property
    def matrices(self) -> tuple[list[Array], Any]:
        """Those of all factors of the signal, and the number or matrices of the noise."""
        signal = [factor.to_dense() for factor in self.signal.factors]
        if not isinstance(self.noise, Kronecker):
            return signal, jnp.asarray(self.noise, self.dtype)
        return signal, [factor.to_dense() for factor in self.noise.factors]


def are_symmetric(matrix: Array) -> Array:
    """Whether matrices are symmetric up to rounding, `(*batch,)`."""
    gap = jnp.max(jnp.abs(matrix - jnp.swapaxes(matrix, -1, -2)), axis=(-2, -1))
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1))
    return gap <= 64 * jnp.finfo(matrix.dtype).eps * largest


def general_solve(op: GeneralSum, b: Array) -> Array:
    """`op⁻¹ b` in the grid layout, right at every order of derivative."""
    if is_concrete(op, b):
        try:
            return solve(op.covariance(), b)
        except ValueError:
            return _by_schur(op, b)
    here = lax.stop_gradient(op)
    pieces = _eigenbases(here)

    def solved(which: GeneralSum, right: Array) -> Array:
        by_basis, holds = pieces
        return lax.cond(holds, by_basis, lambda r: _by_schur(which, r), right)

    return lax.custom_linear_solve(
        op.mv_grid,
        b,
        lambda _, right: solved(here, right),
        transpose_solve=lambda _, right: solved(here.T, right),
    )


def _eigenbases(op: GeneralSum) -> Any:
    """A solve by eigenbases of both terms, and whether it holds."""
    if isinstance(op.noise, Kronecker):
        found, holds = definite_bases(op)

        def by_bases(b: Array) -> Array:
            batch = jnp.broadcast_shapes(op.batch_shape, b.shape[: b.ndim - len(op.grid_shape)])
            ndims = tuple(basis.event_ndims for basis in found)
            return map_batch(_in_bases, batch, (found, ndims), (b, len(op.grid_shape)))

        return by_bases, holds
    matrices, noise = op.matrices
    pairs = [jnp.linalg.eigh(matrix) for matrix in matrices]
    basis = Kronecker(*(Dense(vectors) for _, vectors in pairs))
    values = eigenvalues(op.signal, [values for values, _ in pairs])
    values = jnp.add(*same_rank(values, noise[..., None]))
    grid = values.reshape(*values.shape[:-1], *op.grid_shape)

    def by_eigenvectors(b: Array) -> Array:
        result = basis.mv_grid(jnp.divide(*same_rank(basis.T.mv_grid(b), grid)))
        return result.astype(b.dtype)

    return by_eigenvectors, op.is_symmetric


def definite_bases(op: GeneralSum) -> tuple[Any, Array]:
    """What makes both terms diagonal, and whether they are covariances."""
    bases = op.covariance().eigenbases()
    ndims = tuple(basis.event_ndims for basis in bases)
    values = map_batch(spectrum, op.batch_shape, (bases, ndims))
    return bases, op.is_symmetric & jnp.all(jnp.isfinite(values))


def _in_bases(bases: Any, b: Array) -> Array:
    return unrotate(bases, rotate(bases, b) / spectrum(bases))


def eigenvalues(signal: Kronecker | KroneckerSum, own: Sequence[Array]) -> Array:
    """Of a product or a Kronecker sum, from those of its factors: `(*batch, N)`, not sorted."""
    values = own[0]
    for each in own[1:]:
        left, right = same_rank(values[..., :, None], each[..., None, :])
        values = left + right if isinstance(signal, KroneckerSum) else left * right
        values = values.reshape(*values.shape[:-2], -1)
    return values


def mapped(function: Any, op: GeneralSum, *args: Any) -> Any:
    """A function of the matrices of both terms and of grids, over batches."""
    signal, noise = op.matrices
    adds = isinstance(op.signal, KroneckerSum)
    num_axes = len(op.grid_shape)
    held = (signal, [2] * num_axes), (noise, [2] * num_axes if isinstance(noise, list) else 0)
    lead = [arg.shape[: arg.ndim - num_axes] for arg in args]
    batch = jnp.broadcast_shapes(op.batch_shape, *lead)

    def one(signal: Any, noise: Any, *args: Any) -> Any:
        return function(signal, noise, adds, *args)

    return map_batch(one, batch, *held, *((arg, num_axes) for arg in args))


def _by_schur(op: GeneralSum, b: Array) -> Array:
    return mapped(_schur_solve, op, b)


def _schur_solve(signal: list[Array], noise: Any, adds: bool, b: Array) -> Array:
    """By Schur forms, in which both terms are triangular, and refined."""
    dtype = b.dtype
    if isinstance(noise, list):
        pencil, divisor = pencil_of(signal, noise)
        shift = jnp.ones((), dtype)
    else:
        pencil, divisor, shift = signal, None, noise
    forms, bases = zip(*map(schur, pencil), strict=True)
    turned = [jnp.conj(basis.T) for basis in bases]
    inverses = None if divisor is None else [jnp.linalg.inv(matrix) for matrix in divisor]

    def once(right: Array) -> Array:
        right = right if inverses is None else multiplied(inverses, right)
        inside = multiplied(turned, right)
        return multiplied(bases, substituted(list(forms), shift, inside, adds)).real.astype(dtype)

    def times(x: Array) -> Array:
        terms = [multiplied([m], x, k) for k, m in enumerate(signal)] if adds else None
        first = sum(terms[1:], terms[0]) if terms else multiplied(signal, x)
        return first + (multiplied(noise, x) if isinstance(noise, list) else noise * x)

    x = once(b)
    for _ in range(REFINEMENTS):
        x = x + once(b - times(x))
    return x


def pencil_of(signal: list[Array], noise: list[Array]) -> tuple[list[Array], list[Array]]:
    """The better conditioned of two products, and factor by factor its inverse times the other."""
    worst, other = (sum(jnp.log(jnp.linalg.cond(m)) for m in ms) for ms in (noise, signal))
    swap = other < worst
    first = [jnp.where(swap, n, s) for s, n in zip(signal, noise, strict=True)]
    second = [jnp.where(swap, s, n) for s, n in zip(signal, noise, strict=True)]
    return [jnp.linalg.solve(n, s) for s, n in zip(first, second, strict=True)], second


def general_inverse_diagonal(op: GeneralSum) -> Array:
    """The diagonal of the inverse, `(*batch, *grid)`.

    Of a covariance in the time of a few products; of another sum by as many solves as it has rows.
    """
    if is_concrete(op):
        try:
            return inverse_diagonal(op.covariance())
        except ValueError:
            return _by_columns(op)
    _, holds = definite_bases(lax.stop_gradient(op))
    return lax.cond(
        holds, lambda: inverse_diagonal(op.covariance()), lambda: _by_columns(op)
    )


def _by_columns(op: GeneralSum) -> Array:
    shape = op.grid_shape
    num_cells = prod(shape)

    @jax.checkpoint
    def entry(cell: Array) -> Array:
        column = jnp.zeros(num_cells, op.dtype).at[cell].set(1)
        solved = general_solve(op, jnp.broadcast_to(column.reshape(shape), (*op.batch_shape, *shape)))
        return solved.reshape(*op.batch_shape, num_cells)[..., cell]

    entries = lax.map(entry, jnp.arange(num_cells))
    return jnp.moveaxis(entries, 0, -1).reshape(*op.batch_shape, *shape)
