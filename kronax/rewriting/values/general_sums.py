"""Sums of products whose factors need be neither symmetric nor definite, as LU takes them."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.lapack_order import matrix_by_matrix
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.dense import Dense
from kronax.linalg.functions.diagonals import inverse_diagonal
from kronax.linalg.functions.solve import solve
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.value_and_rules import rotate, spectrum, unrotate
from kronax.rewriting.values.pencils import pencils_of
from kronax.rewriting.values.substitution import multiplied, schur, substituted

# Steps of refinement after a solve by Schur forms, which cost little beside these.
REFINEMENTS = 2
# The factors of every product, `(*batch, n_i, n_i)`, or None for an identity.
Terms = list[list[Any]]


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
    def terms(self) -> tuple[Terms, Array | None]:
        """The factors of every product, None for an identity, and `c` where it is a number."""
        signal = [factor.to_dense() for factor in self.signal.factors]
        if isinstance(self.noise, Kronecker):
            return [signal, [factor.to_dense() for factor in self.noise.factors]], None
        shift = jnp.asarray(self.noise, self.dtype)
        if not isinstance(self.signal, KroneckerSum):
            return [signal], shift
        axes = range(len(signal))
        return [[m if i == k else None for i in axes] for k, m in enumerate(signal)], shift


def are_symmetric(matrix: Array) -> Array:
    """Whether matrices are symmetric up to rounding, `(*batch,)`."""
    xp: Any = np if is_concrete(matrix) else jnp
    matrix = xp.asarray(matrix)
    gap = xp.max(xp.abs(matrix - xp.swapaxes(matrix, -1, -2)), axis=(-2, -1))
    largest = xp.max(xp.abs(matrix), axis=(-2, -1))
    return gap <= 64 * jnp.finfo(matrix.dtype).eps * largest


def general_solve(op: GeneralSum, b: Array) -> Array:
    """`op⁻¹ b` in the grid layout, right at every order of derivative."""
    if is_concrete(op, b):
        try:
            return solve(op.covariance(), b)
        except ValueError:
            found = _by_schur(op, b)
        if not bool(jnp.all(jnp.isfinite(found))):
            raise ValueError("a singular matrix")
        return found
    here = lax.stop_gradient(op)
    bases, holds = definite_bases(here)
    ndims = tuple(basis.event_ndims for basis in bases)
    num_axes = len(op.grid_shape)
    lead = jnp.broadcast_shapes(op.batch_shape, b.shape[: b.ndim - num_axes])
    b = jnp.broadcast_to(b, (*lead, *op.grid_shape))

    def solved(which: GeneralSum, right: Array) -> Array:
        batch = jnp.broadcast_shapes(op.batch_shape, right.shape[: right.ndim - num_axes])
        found = map_batch(_in_bases, batch, (bases, ndims), (right, num_axes))
        return when(~holds, _by_schur, (which, right), found)

    return lax.custom_linear_solve(
        op.mv_grid,
        b,
        lambda _, right: solved(here, right),
        transpose_solve=lambda _, right: solved(here.T, right),
    )


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


def over_batches(function: Any, terms: Terms, shift: Array | None, *columns: Array) -> Any:
    """A function of `GeneralSum.terms` and of columns over the grid, over the batch of both.

    One after another: batched decompositions could wait for each other.
    """
    num_axes = len(terms[0])
    ndims = jax.tree.map(lambda _: 2, terms), None if shift is None else 0
    own = [*(x.shape[:-2] for x in jax.tree.leaves(terms)), () if shift is None else shift.shape]
    batch = jnp.broadcast_shapes(*own, *(c.shape[: c.ndim - num_axes - 1] for c in columns))
    one = matrix_by_matrix(lambda both, *columns: function(*both, *columns))
    grids = ((each, num_axes + 1) for each in columns)
    return map_batch(one, batch, ((terms, shift), ndims), *grids)


def when(wanted: Array, function: Callable[..., Any], args: Any, otherwise: Any = None) -> Any:
    """What a function returns where that is wanted; otherwise zeros, or what is given.

    A loop of one step or none. Unlike a branch it runs for none of a batch that is mapped where it
    is not wanted for any. It has no derivative in reverse mode.
    """
    if otherwise is None:
        shapes = jax.eval_shape(function, *args)
        otherwise = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def once(state: Any) -> Any:
        # What does not depend on the state is moved out of the loop, and runs always.
        inside = jax.tree.map(lambda x: jnp.where(state[0], x, 1), args)
        return jnp.zeros((), bool), function(*inside)

    return lax.while_loop(lambda state: state[0], once, (wanted, otherwise))[1]


def _by_schur(op: GeneralSum, b: Array) -> Array:
    return in_columns(_schur_solve, *op.terms, b)


def in_columns(function: Any, terms: Terms, shift: Array | None, b: Array) -> Array:
    """`over_batches` of grids `(…, *batch, *grid)`; those with the same matrices are columns."""
    num_axes = len(terms[0])
    scalar = () if shift is None else shift.shape
    own = jnp.broadcast_shapes(scalar, *(x.shape[:-2] for x in jax.tree.leaves(terms)))
    grid = b.shape[b.ndim - num_axes :]
    lead = jnp.broadcast_shapes(b.shape[: b.ndim - num_axes], own)
    others = lead[: len(lead) - len(own)]
    columns = jnp.broadcast_to(b, (*lead, *grid)).reshape(prod(others), *own, *grid)
    found = over_batches(function, terms, shift, jnp.moveaxis(columns, 0, -1))
    return jnp.moveaxis(found, -1, 0).reshape(*lead, *grid)


def _schur_solve(terms: Terms, shift: Array | None, b: Array) -> Array:
    """By Schur forms, in which all products are triangular, and refined; `b` is `(*grid, k)`."""
    pencils = pencils_of(terms)
    forms, bases = zip(*(schur(pencil.matrix) for pencil in pencils), strict=True)
    turned = [jnp.conj(basis.T) for basis in bases]
    divisors = [pencil.divisor for pencil in pencils]
    inverses = [None if matrix is None else jnp.linalg.inv(matrix) for matrix in divisors]
    ones = [jnp.eye(len(form), dtype=form.dtype) for form in forms]
    triangles = [p.of(*pair) for p, *pair in zip(pencils, forms, ones, strict=True)]
    upper = [(1, factors) for factors in zip(*triangles, strict=True)]
    number = jnp.zeros((), b.dtype) if shift is None else shift

    def once(right: Array) -> Array:
        inside = multiplied(turned, multiplied(inverses, right))
        return multiplied(bases, substituted(upper, number, inside)).real.astype(b.dtype)

    def times(x: Array) -> Array:
        return sum((multiplied(factors, x) for factors in terms), number * x)

    x = once(b)
    for _ in range(REFINEMENTS):
        x = x + once(b - times(x))
    return x


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
    return _unless(holds, inverse_diagonal(op.covariance()), op)


@jax.custom_jvp
def _unless(holds: Array, diagonal: Array, op: GeneralSum) -> Array:
    """The diagonal of the inverse of a covariance, or else of another sum."""
    return when(~holds, _by_columns, (op,), diagonal)


@_unless.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """Of another sum there is no derivative: NaN."""
    holds, moved = primals[0], tangents[1]
    return _unless(*primals), where(holds, moved, jnp.nan)


def _by_columns(op: GeneralSum) -> Array:
    shape = op.grid_shape
    num_cells = prod(shape)

    def entry(cell: Array) -> Array:
        column = jnp.zeros(num_cells, op.dtype).at[cell].set(1)
        grid = jnp.broadcast_to(column.reshape(shape), (*op.batch_shape, *shape))
        solved = general_solve(op, grid)
        return solved.reshape(*op.batch_shape, num_cells)[..., cell]

    entries = lax.map(entry, jnp.arange(num_cells))
    return jnp.moveaxis(entries, 0, -1).reshape(*op.batch_shape, *shape)
