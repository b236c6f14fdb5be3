"""Rows and columns of a covariance at the observed cells of a grid: exact, for any static mask."""

from collections.abc import Callable, Sequence
from math import log, pi
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fingerprints import fingerprint, held
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.dense_covariance import DenseCovariance
from kronax.linalg.factors.abstract_operator import AbstractOperator, AbstractSolvable
from kronax.linalg.functions.conditional_variances import Places
from kronax.linalg.functions.conditioning import ends_of, watched
from kronax.linalg.functions.decompose import decompose
from kronax.linalg.functions.diagonals import conjugated_inverse_diagonal, posterior_diagonal
from kronax.linalg.functions.logdet import (
    inv_quad,
    logdet,
    mean_of,
    normal_logpdf_grid,
    watched_logpdf,
)
from kronax.linalg.functions.sample import draw_normal
from kronax.linalg.functions.solve import WRONG, solve_grid
from kronax.linalg.gaps.inner_grid import InnerGrid
from kronax.linalg.gaps.masked_variances import (
    added_by_gaps,
    observed_covariance_at,
    observed_variance,
    observed_variance_at,
    on_places,
)
from kronax.linalg.gaps.plan import GapPlan, plan_gaps, plan_uneven
from kronax.linalg.gaps.rules import log_det_gaps, quadratic_with_gaps, solve_observed
from kronax.linalg.gaps.schur import GapDecomposition, gap_roots
from kronax.linalg.krylov.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.diagnose import explain_not_finite
from kronax.linalg.operators.gap_geometry import Gaps, Mask
from kronax.linalg.operators.kronecker import as_kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, as_products
from kronax.linalg.spectral.low_rank import is_thin
from kronax.linalg.spectral.value_and_rules import TwoTermSum, log_det_and_quadratic


class Masked(AbstractSolvable):
    """The rows and columns of `op` at the observed cells of a grid with gaps.

    Vectors stay grid arrays: what they hold at the gaps is ignored (NaN included), and results are
    zero there. `kx.solve`, `logdet`, `inv_quad`, `normal_logpdf`, `inverse_diagonal`,
    `sample_normal` and `decompose` take it like any other operator, with derivatives of the same
    orders, and are exact: whole missing slabs are dropped from their axis, and the rest is handled
    by the cheaper of two methods. `plan` tells which, why, and what it costs. Factors of low rank
    count as full matrices here.

    Args:
        op: a Kronecker product, with noise or without. Of a `kx.KroneckerPlusDiagonal`, with a
            variance per cell, the observed cells are taken as one dense matrix.
        observed: a boolean array of the grid's shape, true where a cell is observed. It is static:
            not a parameter, not traced, one for a whole batch.
        method: `"gaps"` takes `O(m³)` operations for `m` gaps, `"merged"` `O(n³)` for `n` observed
            cells, both counted on the axes along which the gaps are not all the same; `"auto"`
            takes the cheaper one.

    Raises:
        TypeError: if the mask is traced or not boolean, or `op` is no Kronecker product.
        NotImplementedError: for a `kx.KroneckerSum` of three factors or more.
        ValueError: if the mask has another shape than the grid, no cell is observed, or the method
            does not fit the mask.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0
        >>> observed = jnp.array([[True, False], [True, True], [False, True]])
        >>> part = kx.Masked(op, observed)
        >>> round(kx.logdet(part).item(), 4), part.plan.num_observed
        (2.7726, 4)
        >>> kx.solve(part, jnp.ones((3, 2))).tolist()
        [[0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]
    """

    op: KroneckerPlusNoise | KroneckerPlusDiagonal
    mask: Mask = eqx.field(static=True)
    plan: GapPlan = eqx.field(static=True)
    decomposition: Any
    made_of: Any

    def __init__(
        self,
        op: AbstractOperator,
        observed: Bool[Any, "..."] | Mask,
        *,
        method: str = "auto",
        decomposition: Any = None,
        made_of: Any = None,
    ):
        if not isinstance(op, KroneckerPlusDiagonal):
            op = as_products(op)
            if not isinstance(op, KroneckerPlusNoise):
                op = KroneckerPlusNoise(as_kronecker(op), 0.0)
        self.op = op
        self.mask = Mask.of(observed, op.grid_shape)
        plan = plan_uneven if isinstance(op, KroneckerPlusDiagonal) else plan_gaps
        self.plan = plan(self.mask, jnp.dtype(op.dtype).itemsize, method)
        self.decomposition, self.made_of = decomposition, made_of

    @property
    def factors(self) -> tuple[Any, ...]:
        """The factors of the signal, on the whole grid."""
        return self.op.factors

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
    def T(self) -> "Masked":
        """Itself: it is symmetric."""
        return self

    @property
    def observed(self) -> np.ndarray:
        """The mask, true where a cell is observed."""
        return self.mask.array

    def mv_grid(self, x: Array) -> Array:
        """Multiply what is observed; zero at the gaps."""
        return self.held(self.op.mv_grid(self.held(x)))

    def diagonal(self) -> Array:
        """The diagonal, zero at the gaps."""
        return self.held(self.op.diagonal())

    def to_dense(self) -> Array:
        """The `(*batch, N, N)` matrix, zero in the rows and columns of gaps: for tests only."""
        cells = jnp.asarray(self.observed.ravel())
        return _at_both(cells, self.op.to_dense())

    def scaled(self, scalar: Array) -> "Masked":
        """`scalar * self`."""
        return Masked(self.op.scaled(scalar), self.mask, method=self.plan.method)

    def __add__(self, other: Any) -> "Masked":
        if isinstance(other, AbstractOperator):
            raise TypeError(
                "An operator with gaps takes more noise as a number; got "
                f"{type(other).__name__}. Add the operators first: kx.Masked(a + b, observed)."
            )
        return Masked(self.op + other, self.mask, method=self.plan.method)

    def solve(self, b: Any) -> Array:
        """See `kx.solve`."""
        grid, flat = self.vector(b, "b")
        solution = watched(solve_masked, WRONG, self, grid)
        explain_not_finite(solution, self)
        if not flat:
            return solution
        return solution.reshape(*solution.shape[: solution.ndim - len(self.grid_shape)], -1)

    def solve_grid(self, b: Array) -> Array:
        """`kx.solve` for checked vectors in the grid layout; what they hold at gaps is ignored."""
        return solve_masked(self, self.held(b))

    def logpdf_grid(self, residual: Array) -> Array:
        """`kx.normal_logpdf` for checked residuals in the grid layout."""
        return masked_logpdf_grid(self.held(residual), self)

    def logdet(self) -> Array:
        """See `kx.logdet`."""
        value = watched(_logdet, "The log-determinant may be wrong", self)
        explain_not_finite(value, self)
        return value

    def inv_quad(self, b: Any) -> Array:
        """See `kx.inv_quad`."""
        b = self.vector(b, "b")[0]
        value = watched(_inv_quad, "The quadratic form may be wrong", self, b)
        explain_not_finite(value, self)
        return value

    def normal_logpdf(self, y: Any, mean: Any) -> Array:
        """See `kx.normal_logpdf`; the density of the observed cells."""
        residual = jnp.subtract(*same_rank(self.vector(y, "y")[0], mean_of(mean, self)))
        value = watched_logpdf(self.held(residual), self)
        explain_not_finite(value, self, covariance=True)
        return value

    def inverse_diagonal(self) -> Array:
        """See `kx.inverse_diagonal`; zero at the gaps."""
        value = _inverse_diagonal(self)
        explain_not_finite(value, self)
        return value

    def conjugated_inverse_diagonal(self, rows: Sequence[Array]) -> Array:
        """`diag(C op⁻¹ Cᵀ)` for `C = ⊗rows[i]`, each `(*batch, m_i, n_i)`; grid-shaped.

        Right to first order. The derivative takes two solves per gap.
        """
        return _conjugated_inverse_diagonal(self, list(rows))

    def posterior_diagonal(self) -> Array:
        """`diag(K − K op⁻¹ K)` on the whole grid: the variance of the signal given noisy data.

        A sum of terms that are not negative: the variance without gaps, and what they add.
        """
        return _posterior_diagonal(self)

    def variance_given(self, places: Sequence[Places]) -> Array:
        """`variance_given` of the observed cells, for a grid of places; a value, held constant."""
        return observed_variance(self, list(places))

    def variance_at(self, places: Sequence[Places]) -> Array:
        """The same for places scattered over the grid, one row per axis each; no batch."""
        return observed_variance_at(self, list(places))

    def covariance_at(self, places: Sequence[Places], priors: Sequence[Array]) -> Array:
        """Their covariance, from the prior ones between them on every axis, `(m, m)`."""
        return observed_covariance_at(self, list(places), list(priors))

    def decompose(self) -> "Masked":
        """See `kx.decompose`."""
        held = _decomposition(Masked(self.op, self.mask, method=self.plan.method))
        explain_not_finite(held, self)
        return Masked(
            self.op,
            self.mask,
            method=self.plan.method,
            decomposition=held,
            made_of=fingerprint(self),
        )

    def ends(self) -> Ends | None:
        """Those of the inner grid, between which taking out cells keeps the eigenvalues."""
        if self.dense is not None:
            return self.dense.ends()
        held = self.decomposition
        held = held.bases if isinstance(held, GapDecomposition) else held
        return ends_of(self.inner().eigenbases() if held is None else held)

    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """See `kx.sample_normal`; zero at the gaps."""
        if isinstance(self.op, KroneckerPlusDiagonal):
            return self.held(self.op.draw(key, lead))
        return self.held(draw_normal(key, self.op, lead))

    @property
    def gaps(self) -> Gaps:
        """The gaps that dropping whole slabs leaves."""
        return self.grid.gaps

    @property
    def grid(self) -> InnerGrid:
        """The smaller grid that is computed with."""
        return InnerGrid(self.mask, self.plan.method == "merged")

    @property
    def dense(self) -> DenseCovariance | None:
        """What stands for an operator with a variance per cell, which has no smaller grid."""
        if not isinstance(self.op, KroneckerPlusDiagonal):
            return None
        return DenseCovariance(self.op, self.mask, held(self, self.decomposition))

    def inner(self) -> KroneckerPlusNoise:
        """The operator on the smaller grid, with the decomposition that there is."""
        whole: Any = self.op
        inner = self.grid.operator(whole)
        bases = held(self, self.decomposition)
        if isinstance(bases, GapDecomposition):
            bases = None if is_thin(inner) else bases.bases
        elif bases is None and self.plan.method != "merged" and not any(self.plan.dropped):
            bases = held(whole, getattr(whole, "decomposition", None))
        return KroneckerPlusNoise(inner.kronecker, inner.noise, decomposition=bases)

    def gap_decomposition(self, inner: KroneckerPlusNoise) -> GapDecomposition:
        """The one that it carries, or a new one; held constant."""
        if isinstance(self.decomposition, GapDecomposition):
            return lax.stop_gradient(held(self, self.decomposition))
        bases = lax.stop_gradient(inner.eigenbases())
        roots = map_batch(
            lambda held: gap_roots(self.gaps, held),
            inner.batch_shape,
            (bases, tuple(b.event_ndims for b in bases)),
        )
        return GapDecomposition(bases, roots)

    def map_gaps(self, function: Callable, inner: KroneckerPlusNoise, y: Array | None) -> Array:
        """`function(problem, held)` of the method in the gaps, over batches."""
        held = self.gap_decomposition(inner)
        signal, noise = inner.blocks()
        num_axes = len(inner.grid_shape)
        lead = () if y is None else y.shape[: y.ndim - num_axes]
        batch = checks.check_broadcast([inner.batch_shape, lead], "the operator and the vector")
        ndims = TwoTermSum(
            tuple(b.event_ndims for b in signal),
            tuple(b.event_ndims for b in noise),
            None if y is None else num_axes,
        )
        problem = (TwoTermSum(signal, noise, y), ndims)
        return map_batch(function, batch, problem, (held, held.event_ndims))


@jax.jit
def solve_masked(op: Masked, b: Array) -> Array:
    """`kx.solve` for a vector in the grid layout, zero at the gaps."""
    if op.dense is not None:
        return op.dense.solve_grid(b)
    inner, b = op.inner(), op.grid.squeezed(b)
    if op.plan.method != "gaps":
        return op.grid.embedded(solve_grid(inner, b))

    def one(problem, held):
        return solve_observed(problem, held, problem.y, gaps=op.gaps)

    return op.grid.embedded(op.map_gaps(one, inner, b))


@jax.jit
def _logdet(op: Masked) -> Array:
    if op.dense is not None:
        return op.dense.logdet()
    inner = op.inner()
    if op.plan.method != "gaps":
        return logdet(inner)

    def one(problem, held):
        whole = log_det_and_quadratic(problem, held.bases, weights=(1.0, 0.0))
        return whole + log_det_gaps(problem, held, gaps=op.gaps)

    return op.map_gaps(one, inner, None)


@jax.jit
def _inv_quad(op: Masked, b: Array) -> Array:
    if op.dense is not None:
        return op.dense.inv_quad(b)
    inner, b = op.inner(), op.grid.squeezed(b)
    if op.plan.method != "gaps":
        return inv_quad(inner, b)
    one = lambda problem, held: quadratic_with_gaps(problem, held, gaps=op.gaps)  # noqa: E731
    return op.map_gaps(one, inner, b)


@jax.jit
def masked_logpdf_grid(residual: Array, op: Masked) -> Array:
    """`kx.normal_logpdf` for a checked residual in the grid layout, zero at the gaps."""
    if op.dense is not None:
        return op.dense.logpdf_grid(residual)
    inner, y = op.inner(), op.grid.squeezed(residual)
    if op.plan.method != "gaps":
        return normal_logpdf_grid(y, inner)

    def one(problem, held):
        without = problem._replace(y=None)
        log_det = log_det_and_quadratic(without, held.bases, weights=(1.0, 0.0))
        log_det = log_det + log_det_gaps(without, held, gaps=op.gaps)
        return -0.5 * (log_det + quadratic_with_gaps(problem, held, gaps=op.gaps))

    return op.map_gaps(one, inner, y) - op.plan.num_observed * log(2 * pi) / 2


@jax.jit
def _inverse_diagonal(op: Masked) -> Array:
    if op.dense is not None:
        return op.dense.inverse_diagonal()
    inner = op.inner()
    none = [None] * len(inner.grid_shape)
    value = conjugated_inverse_diagonal(inner, none)
    if op.plan.method == "gaps":
        value = jnp.subtract(*same_rank(value, added_by_gaps(op, inner, none)))
        # What is left of the inverse cannot be less than if no other cell told anything.
        value = with_value(value, jnp.maximum(value, 1 / inner.diagonal()))
    return op.held(op.grid.embedded(value))


@jax.jit
def _conjugated_inverse_diagonal(op: Masked, rows: Sequence[Array]) -> Array:
    if op.dense is not None:
        return op.dense.conjugated_inverse_diagonal(rows)
    inner, on_inner = op.inner(), op.grid.rows(rows)
    value = conjugated_inverse_diagonal(inner, on_inner)
    if op.plan.method == "gaps":
        return jnp.subtract(*same_rank(value, added_by_gaps(op, inner, on_inner)))
    if op.plan.method == "slabs":
        return value
    return on_places(op, value, tuple(row.shape[-2] for row in rows))


@jax.jit
def _posterior_diagonal(op: Masked) -> Array:
    if op.dense is not None:
        return op.dense.posterior_diagonal()
    rows = [factor.to_dense() for factor in op.factors]
    if op.plan.method == "gaps" and not any(op.plan.dropped):
        inner = op.inner()
        own = tuple(tuple(range(n)) for n in inner.grid_shape)
        added = added_by_gaps(op, inner, rows, own)
        return jnp.add(*same_rank(posterior_diagonal(inner), added))
    explained = _conjugated_inverse_diagonal(op, rows)
    like = jnp.subtract(*same_rank(op.op.kronecker.diagonal(), explained))
    return with_value(like, observed_variance(op, [Places(None)] * len(rows)))


def _at_both(cells: Array, matrix: Array) -> Array:
    """A matrix `(*batch, N, N)`, zero but where both row and column are among the cells."""
    both, matrix = same_rank(cells[:, None] & cells[None], matrix)
    return jnp.where(both, matrix, 0)


@jax.jit
def _decomposition(op: Masked) -> Any:
    if op.dense is not None:
        return op.dense.cholesky()
    inner = op.inner()
    if op.plan.method == "gaps":
        return op.gap_decomposition(inner)
    return decompose(inner).decomposition
