"""A covariance at the observed cells of a grid as one dense matrix: exact, for some thousand cells.

With `S = K + N = L Lᵀ` everything is plain automatic differentiation through one Cholesky
factorisation, so that every result has derivatives of every order.

A variance given data is `k** − kᵀ a` with `a = S⁻¹ k`. Its rounding is that of the prior, some
`ε k**`, and where less is left of the prior it is all rounding. The same variance is
`var(f* − aᵀ f) + aᵀ N a`: it is never below `aᵀ N a`, a sum of squares, which bounds the result
from below. At an observed cell it is `w − w² [S⁻¹]_cc` as well, which loses less where the noise
`w` is small beside the prior.
"""

from collections.abc import Sequence
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
from kronax.linalg.factors.abstract_operator import AbstractOperator, AbstractSolvable
from kronax.linalg.functions.conditioning import largest_eigenvalue
from kronax.linalg.functions.logdet import mean_of
from kronax.linalg.functions.sample import draw_normal
from kronax.linalg.krylov.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.diagnose import explain_not_finite
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import products_of
from kronax.linalg.spectral.low_rank import is_diagonal

# Numbers of a product with the factor that are held at once.
CHUNK = 4_000_000

# Per axis the covariances `(m_i, n_i)` of new coordinates with the grid; several are a sum.
Rows = Sequence[Array]


class DenseCovariance(AbstractSolvable):
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
    def grid_shape(self) -> tuple[int, ...]:
        """That of the whole grid."""
        return self.op.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the operator on the whole grid."""
        return self.op.batch_shape

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.op.dtype

    @property
    def T(self) -> "DenseCovariance":
        """Itself: it is symmetric."""
        return self

    @property
    def observed(self) -> Any:
        """True where a cell is observed."""
        if isinstance(self.op, KroneckerPlusDiagonal):
            return self.mask.array & self.op.observed
        return self.mask.array

    @property
    def cells(self) -> np.ndarray:
        """The observed cells by their index in the flattened grid."""
        return np.flatnonzero(self.mask.array)

    def mv_grid(self, x: Array) -> Array:
        """Multiply what is observed; zero at the gaps."""
        return self.held(self.op.mv_grid(self.held(x)))

    def diagonal(self) -> Array:
        """The diagonal, zero at the gaps."""
        return self.held(self.op.diagonal())

    def to_dense(self) -> Array:
        """The `(*batch, N, N)` matrix, zero in the rows and columns of gaps: for tests only."""
        cells = jnp.asarray(self.observed).ravel()
        return jnp.where(cells[:, None] & cells, self.op.to_dense(), 0)

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

    def ends(self) -> Ends | None:
        """Bounds: row sums, and the least noise; none with correlated noise."""
        noise = self.noise()
        if noise.ndim > len(self.batch_shape) + 1:
            return None
        signal = largest_eigenvalue(self.op.kronecker)
        return Ends(signal + jnp.max(noise, axis=-1), jnp.min(noise, axis=-1))

    def cholesky(self) -> Array:
        """`L`; a known one has the derivative of that of the matrix."""
        signal, noise = self.signal(), self.noise()
        if noise.ndim < signal.ndim:
            noise = noise[..., None] * jnp.eye(self.cells.size, dtype=noise.dtype)
        if self.root is None:
            return jnp.linalg.cholesky(signal + noise)
        return _known_root((signal + noise,), self.root)

    def solve(self, b: Any) -> Array:
        """See `kx.solve`."""
        grid, flat = self.vector(b, "b")
        solution = _solve(self, grid)
        explain_not_finite(solution, self.op)
        if not flat:
            return solution
        return solution.reshape(*solution.shape[: solution.ndim - len(self.grid_shape)], -1)

    def solve_grid(self, b: Array) -> Array:
        """`kx.solve` for checked vectors in the grid layout; what they hold at gaps is ignored."""
        return _solve(self, self.held(b))

    def logpdf_grid(self, residual: Array) -> Array:
        """`kx.normal_logpdf` for checked residuals in the grid layout."""
        return _logpdf(self, self.held(residual))

    def logdet(self) -> Array:
        """See `kx.logdet`."""
        value = _logdet(self)
        explain_not_finite(value, self.op)
        return value

    def inv_quad(self, b: Any) -> Array:
        """See `kx.inv_quad`."""
        value = _inv_quad(self, self.vector(b, "b")[0])
        explain_not_finite(value, self.op)
        return value

    def normal_logpdf(self, y: Any, mean: Any) -> Array:
        """See `kx.normal_logpdf`; the density of the observed cells."""
        residual = self.vector(y, "y")[0] - mean_of(mean, self)
        value = _logpdf(self, self.held(residual))
        explain_not_finite(value, self.op, covariance=True)
        return value

    def inverse_diagonal(self) -> Array:
        """See `kx.inverse_diagonal`; zero at the gaps."""
        value = _inverse_diagonal(self)
        explain_not_finite(value, self.op)
        return value

    def inverse(self) -> Array:
        """`S⁻¹` at the observed cells, `(n, n)`."""
        root = self.cholesky()
        return _solved(root, jnp.eye(root.shape[-1], dtype=root.dtype))

    def conjugated_inverse_diagonal(self, rows: Rows) -> Array:
        """`diag(C op⁻¹ Cᵀ)` for `C = ⊗rows[i]`, each `(m_i, n_i)`; grid-shaped."""
        return _explained_on(self, (tuple(rows),))

    def posterior_diagonal(self) -> Array:
        """`diag(K − K op⁻¹ K)` on the whole grid: the variance of the signal given noisy data."""
        return _posterior_diagonal(self)

    def variances_on(self, prior: Array, *products: Rows) -> Array:
        """`prior − diag(C op⁻¹ Cᵀ)` on a new grid, `C` a sum of products of rows `(m_i, n_i)`."""
        return _variances_on(self, prior, tuple(map(tuple, products)))

    def variances_at(self, prior: Array, *products: Rows) -> Array:
        """The same for places scattered over the grid, with one row per axis, `(m, n_i)`."""
        return _variances_at(self, prior, tuple(map(tuple, products)))

    def explained_at(self, *products: Rows) -> Array:
        """`C op⁻¹ Cᵀ`, `(m, m)`, for scattered places; `C` is a sum of products of rows."""
        return _between_places(self, tuple(map(tuple, products)))

    def inverse_at(self, rows: Rows, *, joint: bool) -> Array:
        """`C op⁻¹ Cᵀ`, `(m, m)`, or its diagonal, for places scattered over the grid."""
        return self.explained_at(rows) if joint else _explained_at(self, (tuple(rows),))

    def decompose(self) -> "DenseCovariance":
        """See `kx.decompose`."""
        root = _cholesky(self)
        explain_not_finite(root, self.op)
        return DenseCovariance(self.op, self.mask, root)

    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """See `kx.sample_normal`; zero at the gaps."""
        if isinstance(self.op, KroneckerPlusDiagonal):
            return self.held(self.op.draw(key, lead))
        return self.held(draw_normal(key, self.op, lead))


_cholesky = jax.jit(DenseCovariance.cholesky)


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


def _log_det(root: Array) -> Array:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)


@jax.jit
def _solve(op: DenseCovariance, b: Array) -> Array:
    return op.embedded(_solved(op.cholesky(), op.gathered(b)))


@jax.jit
def _logdet(op: DenseCovariance) -> Array:
    return _log_det(op.cholesky())


@jax.jit
def _inv_quad(op: DenseCovariance, b: Array) -> Array:
    return jnp.sum(jnp.square(_white(op.cholesky(), op.gathered(b))), axis=-1)


@jax.jit
def _logpdf(op: DenseCovariance, residual: Array) -> Array:
    root = op.cholesky()
    squares = jnp.sum(jnp.square(_white(root, op.gathered(residual))), axis=-1)
    count = jnp.sum(jnp.asarray(op.observed), dtype=root.dtype)
    return -0.5 * (squares + _log_det(root) + count * log(2 * pi))


@jax.jit
def _inverse_diagonal(op: DenseCovariance) -> Array:
    root = op.cholesky()
    identity = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
    inverse = lax.linalg.triangular_solve(root, identity, left_side=True, lower=True)
    return op.held(op.embedded(jnp.sum(jnp.square(inverse), axis=-2)))


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


@jax.jit
def _explained_on(op: DenseCovariance, products: Any) -> Array:
    shape, index = _grid_index(products)
    return _explained(op, products, index)[0].reshape(shape)


@jax.jit
def _variances_on(op: DenseCovariance, prior: Array, products: Any) -> Array:
    shape, index = _grid_index(products)
    explained, least = (x.reshape(shape) for x in _explained(op, products, index))
    return jnp.maximum(prior - explained, least)


def _place_index(products: Any) -> Any:
    return [np.arange(products[0][0].shape[0])] * len(products[0])


@jax.jit
def _explained_at(op: DenseCovariance, products: Any) -> Array:
    return _explained(op, products, _place_index(products))[0]


@jax.jit
def _variances_at(op: DenseCovariance, prior: Array, products: Any) -> Array:
    explained, least = _explained(op, products, _place_index(products))
    return jnp.maximum(prior - explained, least)


@jax.jit
def _between_places(op: DenseCovariance, products: Any) -> Array:
    held = _Weights(op, op.cholesky(), op.noise(), products)
    white = _white(held.root, held.columns(_place_index(products)))
    return matmul(white, white.T)


@jax.jit
def _posterior_diagonal(op: DenseCovariance) -> Array:
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
        by_noise = levels * (1 - levels * _inverse_diagonal(op))
        left = jnp.where(jnp.asarray(op.observed) & (levels < prior), by_noise, left)
    return jnp.maximum(left, least)
