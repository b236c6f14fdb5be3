"""A covariance at the observed cells of a grid as one dense matrix: exact, for some thousand cells.

With `S = K + N = L Lᵀ` everything is plain automatic differentiation through one Cholesky
factorisation, so that every result has derivatives of every order.

A variance given data is `k** − kᵀ a` with `a = S⁻¹ k`. Its rounding is that of the prior, some
`ε k**`, and where less is left of the prior it is all rounding. The same variance is
`var(f* − aᵀ f) + aᵀ N a`: it is never below `aᵀ N a`, a sum of squares, which bounds the result
from below. At an observed cell it is `w − w² [S⁻¹]_cc` as well, which loses less where the noise
`w` is small beside the prior.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from math import log, pi, prod
from operator import add, mul
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.arrays.primitives import RulePrimitive
from kronax.linalg.decompositions.abstract import AbstractSignalPlusNoise
from kronax.linalg.decompositions.abstract import Rows as AnyRows
from kronax.linalg.decompositions.restricted import AbstractMasked
from kronax.linalg.estimates.certificates import Estimate, exact_estimate
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import products_of
from kronax.linalg.spectral.conditional_variances import Places, priors_of, rows_of
from kronax.linalg.spectral.low_rank import is_diagonal

# Numbers of a product with the factor that are held at once.
CHUNK = 4_000_000
# Powers of a matrix that show its largest eigenvalue to some ten per cent.
POWERS = 6

# Per axis the covariances `(m_i, n_i)` of new coordinates with the grid; several are a sum.
Rows = Sequence[Array]


class DenseCovariance(AbstractMasked):
    """Signal plus noise at the observed cells of a grid, as one dense matrix.

    Args:
        op: Kronecker products, one or a sum, with any noise.
        mask: where cells are observed; infinite variances of `op`, also traced ones, are gaps too.
        root: the Cholesky factor, if it is known.
    """

    op: KroneckerPlusNoise | KroneckerPlusDiagonal
    mask: Mask = eqx.field(static=True)
    root: Array | None = None

    @property
    def factors(self) -> tuple[Any, ...]:
        """The factors of the signal, on the whole grid; of a sum those of the first product."""
        return products_of(self.op.kronecker)[0].factors

    @property
    def cells(self) -> np.ndarray:
        """The observed cells by their index in the flattened grid."""
        return np.flatnonzero(self.mask.array)

    def scaled(self, scalar: Array) -> "DenseCovariance":
        """`scalar * self`."""
        return DenseCovariance(self.op.scaled(scalar), self.mask)

    def __add__(self, other: Any) -> AbstractOperator:
        raise TypeError(
            "Nothing can be added to a dense covariance: add to the operator that it is made of."
        )

    __radd__ = __add__

    def gathered(self, x: Array) -> Array:
        """Grid arrays at the observed cells, `(*lead, n)`."""
        flat = x.reshape(*x.shape[: x.ndim - len(self.grid_shape)], prod(self.grid_shape))
        return flat if self.cells.size == flat.shape[-1] else flat[..., self.cells]

    def embedded(self, x: Array) -> Array:
        """`(*lead, n)` at the observed cells as grid arrays with zeros elsewhere."""
        size = prod(self.grid_shape)
        if self.cells.size < size:
            x = jnp.zeros((*x.shape[:-1], size), x.dtype).at[..., self.cells].set(x)
        return x.reshape(*x.shape[:-1], *self.grid_shape)

    def signal(self) -> Array:
        """`K` at the observed cells, zero at traced gaps."""
        whole = reduce(add, (self._between(p) for p in products_of(self.op.kronecker)))
        if not isinstance(self.op, KroneckerPlusDiagonal):
            return whole
        seen = self.gathered(self.op.observed)
        return jnp.where(seen[:, None] & seen[None], whole, 0)

    def _between(self, product: Kronecker) -> Array:
        if self.mask.array.all():
            return product.to_dense()
        places = np.unravel_index(self.cells, self.grid_shape)
        parts = [
            f.to_dense()[..., k[:, None], k] for f, k in zip(product.factors, places, strict=True)
        ]
        return reduce(mul, parts)

    def noise(self) -> Array:
        """`N` at the observed cells: variances `(n,)`, one at traced gaps, or a matrix."""
        if isinstance(self.op, KroneckerPlusDiagonal):
            variances = self.gathered(self.op.variances)
            return jnp.where(jnp.isposinf(variances), 1, variances)
        noise: Any = self.op.noise
        if not isinstance(noise, Kronecker):
            return jnp.broadcast_to(noise[..., None], (*noise.shape, self.cells.size))
        if all(map(is_diagonal, noise.factors)):
            return self.gathered(noise.diagonal())
        return self._between(noise)

    def cholesky(self) -> Array:
        """`L`; a known one has the derivative of that of the matrix."""
        signal, noise = self.signal(), self.noise()
        if noise.ndim < signal.ndim:
            noise = noise[..., None] * jnp.eye(self.cells.size, dtype=noise.dtype)
        if self.root is None:
            return jnp.linalg.cholesky(signal + noise)
        return _known_root((signal + noise,), self.root)

    def decomposed(self) -> "Cholesky":
        """By its Cholesky factor."""
        return Cholesky(self)

    def carrying(self, computed: Any) -> "DenseCovariance":
        """The same operator with its Cholesky factor."""
        return DenseCovariance(self.op, self.mask, computed)


class Cholesky(AbstractSignalPlusNoise):
    """The covariance of some thousand observed cells as one dense matrix; every order is right."""

    op: DenseCovariance

    def solve(self, b: Array) -> Array:
        """By substitution."""
        op = self.op
        return op.embedded(_solved(op.cholesky(), op.gathered(op.held(b))))

    def logdet(self) -> Array:
        """From the diagonal of the factor."""
        return _log_det(self.op.cholesky())

    def inv_quad(self, b: Array) -> Array:
        """A sum of squares."""
        white = _white(self.op.cholesky(), self.op.gathered(self.op.held(b)))
        return jnp.sum(jnp.square(white), axis=-1)

    def logpdf(self, residual: Array) -> Array:
        """Both from one factor."""
        op, root = self.op, self.op.cholesky()
        squares = jnp.sum(jnp.square(_white(root, op.gathered(op.held(residual)))), axis=-1)
        count = jnp.sum(jnp.asarray(op.observed), dtype=root.dtype)
        return -0.5 * (squares + _log_det(root) + count * log(2 * pi))

    def inverse_diagonal(self) -> Array:
        """A sum of squares."""
        root = self.op.cholesky()
        identity = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
        inverse = lax.linalg.triangular_solve(root, identity, left_side=True, lower=True)
        return self.op.held(self.op.embedded(jnp.sum(jnp.square(inverse), axis=-2)))

    def inverse(self) -> Array:
        """`S⁻¹` at the observed cells, `(n, n)`."""
        root = self.op.cholesky()
        return _solved(root, jnp.eye(root.shape[-1], dtype=root.dtype))

    def explained(self, rows: AnyRows, others: AnyRows | None = None) -> Array:
        """`diag(C S⁻¹ Cᵀ)` on the grid of the rows."""
        assert others is None, "two sides are for terms beside the noise"
        products = (tuple(row for row in rows if row is not None),)
        shape, index = _grid_index(products)
        return _explained(self.op, products, index)[0].reshape(shape)

    def posterior_diagonal(self) -> Array:
        """`diag(K − K S⁻¹ K)`, of two differences the smaller one, never below `aᵀ N a`."""
        op = self.op
        products = tuple(
            tuple(factor.to_dense() for factor in product.factors)
            for product in products_of(op.op.kronecker)
        )
        _, index = _grid_index(products)
        explained, least = (x.reshape(op.grid_shape) for x in _explained(op, products, index))
        prior = op.op.kronecker.diagonal()
        left, noise = prior - explained, op.noise()
        if noise.ndim == 1:  # the smaller difference, which loses fewer digits
            levels = op.embedded(noise)
            by_noise = levels * (1 - levels * self.inverse_diagonal())
            left = jnp.where(jnp.asarray(op.observed) & (levels < prior), by_noise, left)
        return jnp.maximum(left, least)

    def variances_on(self, prior: Array, *products: Rows) -> Array:
        """`prior − diag(C op⁻¹ Cᵀ)` on a new grid, `C` a sum of products of rows `(m_i, n_i)`."""
        shape, index = _grid_index(products)
        explained, least = (x.reshape(shape) for x in _explained(self.op, products, index))
        return jnp.maximum(prior - explained, least)

    def variance_at(self, *parts: Sequence[Places]) -> Estimate:
        """For places scattered over the grid."""
        products, prior = rows_of(parts), priors_of(parts)
        explained, least = _explained(self.op, products, _place_index(products))
        return exact_estimate(jnp.maximum(prior - explained, least))

    def covariance_at(self, *parts: tuple[Sequence[Places], Sequence[Array]]) -> Array:
        """For places scattered over the grid."""
        products = rows_of([places for places, _ in parts])
        held = _Weights(self.op, self.op.cholesky(), self.op.noise(), products)
        white = _white(held.root, held.columns(_place_index(products)))
        return reduce(add, (reduce(mul, priors) for _, priors in parts)) - matmul(white, white.T)

    def computed(self) -> Array:
        """The Cholesky factor."""
        return self.op.cholesky()

    def ends(self) -> Ends:
        """Estimates from inside, by some powers of the matrix and of its inverse."""
        root = lax.stop_gradient(self.op.cholesky())
        vector = np.random.default_rng(0).standard_normal(root.shape[-1])
        start = jnp.broadcast_to(jnp.asarray(vector, root.dtype), root.shape[:-1])
        largest = _stretched(lambda x: _multiplied(root, x), start)
        return Ends(largest, 1 / _stretched(lambda x: _solved(root, x), start))


def _root_derivative(operands: Any, known: Array, tangents: list) -> Array:
    return jax.jvp(jnp.linalg.cholesky, operands, tuple(tangents))[1]


_known_root = RulePrimitive(
    "kronax_known_cholesky", lambda operands, known: known, _root_derivative
)


def _white(root: Array, b: Array) -> Array:
    """`L⁻¹ b` for vectors `(*batch, n)`, of which the factor may have a batch as well."""
    batch = jnp.broadcast_shapes(root.shape[:-2], b.shape[:-1])
    if root.ndim == 2:  # all vectors are columns of one right-hand side
        columns = solve_triangular(root, b.reshape(-1, b.shape[-1]).T, lower=True)
        return columns.T.reshape(b.shape)
    root = jnp.broadcast_to(root, (*batch, *root.shape[-2:]))
    b = jnp.broadcast_to(b, (*batch, b.shape[-1]))
    return lax.linalg.triangular_solve(root, b[..., None], left_side=True, lower=True)[..., 0]


def _solved(root: Array, b: Array) -> Array:
    """`S⁻¹ b` for vectors `(*batch, n)`."""
    white = _white(root, b)
    if root.ndim == 2:
        columns = solve_triangular(root, white.reshape(-1, b.shape[-1]).T, lower=True, trans=1)
        return columns.T.reshape(b.shape)
    root = jnp.broadcast_to(root, (*white.shape[:-1], *root.shape[-2:]))
    return lax.linalg.triangular_solve(
        root, white[..., None], left_side=True, lower=True, transpose_a=True
    )[..., 0]


def _multiplied(root: Array, x: Array) -> Array:
    """`S x` for vectors `(*batch, n)`."""
    return matmul(root, matmul(jnp.swapaxes(root, -1, -2), x[..., None]))[..., 0]


def _stretched(apply: Callable[[Array], Array], x: Array) -> Array:
    """How much a few powers of a matrix stretch a vector in the end: its largest eigenvalue."""
    for _ in range(POWERS):
        x = apply(x / jnp.linalg.norm(x, axis=-1, keepdims=True))
    return jnp.linalg.norm(x, axis=-1)


def _log_det(root: Array) -> Array:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)


class _Weights(NamedTuple):
    """What is needed for the weights `a = S⁻¹ k` of any cells."""

    op: DenseCovariance
    root: Array
    noise: Array
    products: tuple[tuple[Array, ...], ...]

    def columns(self, index: Sequence[Array]) -> Array:
        """`k` for cells by their index in the rows of every axis, `(m, n)`."""
        places = np.unravel_index(self.op.cells, self.op.grid_shape)
        total: Any = 0
        for rows in self.products:
            pairs = zip(rows, index, places, strict=True)
            total = total + reduce(mul, (row[k][:, cells] for row, k, cells in pairs))
        if isinstance(self.op.op, KroneckerPlusDiagonal):
            return jnp.where(self.op.gathered(self.op.op.observed), total, 0)
        return total

    def explained(self, index: Sequence[Array]) -> tuple[Array, Array]:
        """`kᵀ S⁻¹ k`, and `aᵀ N a`."""
        columns = self.columns(index)
        weights = _solved(self.root, columns)
        if self.noise.ndim == 1:
            noise = matmul(jnp.square(weights), self.noise)
        else:
            noise = jnp.sum(matmul(weights, self.noise) * weights, axis=-1)
        return jnp.sum(columns * weights, axis=-1), noise


def _explained(op: DenseCovariance, products: Any, index: Any) -> tuple[Array, Array]:
    """`_Weights.explained`, chunk by chunk."""
    held = _Weights(op, op.cholesky(), op.noise(), products)
    count, chunk = len(index[0]), max(1, CHUNK // op.cells.size)
    if count <= chunk:
        return held.explained([jnp.asarray(k) for k in index])
    padded = -(-count // chunk) * chunk
    chunks = [jnp.asarray(np.resize(k, padded).reshape(-1, chunk)) for k in index]
    found = lax.map(held.explained, chunks)
    return found[0].ravel()[:count], found[1].ravel()[:count]


def _grid_index(products: Any) -> Any:
    shape = tuple(row.shape[0] for row in products[0])
    return shape, np.indices(shape).reshape(len(shape), -1)


def _place_index(products: Any) -> Any:
    return [np.arange(products[0][0].shape[0])] * len(products[0])
