"""Rows and columns of a covariance at the observed cells of a grid: exact, for any static mask."""

from collections.abc import Callable, Sequence
from math import log, pi
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fingerprints import fingerprint, held
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.arrays.precision import Conditioning, Ends
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.decompositions.abstract import AbstractSignalPlusNoise, Rows
from kronax.linalg.decompositions.low_rank import signal_plus_noise
from kronax.linalg.decompositions.restricted import AbstractMasked
from kronax.linalg.decompositions.spectral import AbstractOnGrid
from kronax.linalg.dense_covariance import DenseCovariance
from kronax.linalg.estimates.certificates import Estimate, exact_estimate
from kronax.linalg.factors.abstract_operator import AbstractOperator
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
from kronax.linalg.operators.gap_geometry import Gaps, Mask
from kronax.linalg.operators.kronecker import as_kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, as_products
from kronax.linalg.spectral.conditional_variances import Places
from kronax.linalg.spectral.conditioning import ends_on_grid
from kronax.linalg.spectral.low_rank import is_thin
from kronax.linalg.spectral.value_and_rules import TwoTermSum, log_det_and_quadratic


class Masked(AbstractMasked):
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
    def observed(self) -> np.ndarray:
        """The mask, true where a cell is observed."""
        return self.mask.array

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

    def decomposed(self) -> AbstractSignalPlusNoise:
        """By the method of its plan; with a variance per cell as one dense matrix."""
        if isinstance(self.op, KroneckerPlusDiagonal):
            return DenseCovariance(self.op, self.mask, held(self, self.decomposition)).decomposed()
        return SchurComplement(self) if self.plan.method == "gaps" else Merged(self)

    def carrying(self, computed: Any) -> "Masked":
        """The same operator with what was computed of it."""
        return Masked(
            self.op,
            self.mask,
            method=self.plan.method,
            decomposition=computed,
            made_of=fingerprint(self),
        )

    @property
    def gaps(self) -> Gaps:
        """The gaps that dropping whole slabs leaves."""
        return self.grid.gaps

    @property
    def grid(self) -> InnerGrid:
        """The smaller grid that is computed with."""
        return InnerGrid(self.mask, self.plan.method == "merged")

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


class AbstractAtObserved(AbstractSignalPlusNoise):
    """What the exact ways with gaps share: variances, which are sums of non-negative terms."""

    op: Masked

    def posterior_diagonal(self) -> Array:
        """Prior less explained, of which the value is a sum of non-negative terms."""
        whole = self.op.op.kronecker
        rows = [factor.to_dense() for factor in self.op.factors]
        like = jnp.subtract(*same_rank(whole.diagonal(), self.explained(rows)))
        return with_value(like, self.variance_given([Places(None)] * len(rows)))

    def variance_given(self, places: Sequence[Places]) -> Array:
        """Of places on a grid; a value, held constant."""
        return observed_variance(self.op, list(places))

    def variance_at(self, *parts: Sequence[Places]) -> Estimate:
        """Of one part: other terms have no structured way with gaps."""
        (places,) = parts
        return exact_estimate(observed_variance_at(self.op, list(places)))

    def covariance_at(self, *parts: tuple[Sequence[Places], Sequence[Array]]) -> Array:
        """Of one part."""
        ((places, priors),) = parts
        return observed_covariance_at(self.op, list(places), list(priors))


class Merged(AbstractAtObserved):
    """On a smaller grid without gaps: whole slabs dropped, the axes of the gaps merged into one."""

    op: Masked

    @property
    def inner(self) -> AbstractOnGrid:
        """The way on the smaller grid."""
        return signal_plus_noise(self.op.inner())

    def _squeezed(self, x: Array) -> Array:
        return self.op.grid.squeezed(self.op.held(x))

    def solve(self, b: Array) -> Array:
        """That of the smaller grid."""
        return self.op.grid.embedded(self.inner.solve(self._squeezed(b)))

    def logdet(self) -> Array:
        """That of the smaller grid."""
        return self.inner.logdet()

    def inv_quad(self, b: Array) -> Array:
        """That of the smaller grid."""
        return self.inner.inv_quad(self._squeezed(b))

    def logpdf(self, residual: Array) -> Array:
        """That of the smaller grid."""
        return self.inner.logpdf(self._squeezed(residual))

    def inverse_diagonal(self) -> Array:
        """That of the smaller grid."""
        return self.op.held(self.op.grid.embedded(self.inner.inverse_diagonal()))

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """Rows at the cells of the smaller grid."""
        assert others is None, "two sides are for terms beside the noise"
        value = self.inner.explained(self.op.grid.rows(rows))
        if self.op.plan.method == "slabs":
            return value
        pairs = zip(rows, self.op.grid_shape, strict=True)
        return on_places(self.op, value, tuple(n if r is None else r.shape[-2] for r, n in pairs))

    def computed(self) -> Any:
        """Bases of the smaller grid."""
        return self.inner.computed()

    def ends(self) -> Conditioning | None:
        """Those of the smaller grid."""
        return self.inner.ends()


class SchurComplement(AbstractAtObserved):
    """The whole grid, less what its `m` gaps would have told: `O(m³)` operations."""

    op: Masked

    def solve(self, b: Array) -> Array:
        """By the values at the gaps that leave no residual there."""
        op, gaps = self.op, self.op.gaps

        def one(problem: Any, held: Any) -> Array:
            return solve_observed(problem, held, problem.y, gaps=gaps)

        return op.grid.embedded(op.map_gaps(one, op.inner(), op.grid.squeezed(op.held(b))))

    def logdet(self) -> Array:
        """Of the whole grid, and of its inverse at the gaps."""

        def one(problem: Any, held: Any) -> Array:
            return self._log_det(problem, held)

        return self.op.map_gaps(one, self.op.inner(), None)

    def inv_quad(self, b: Array) -> Array:
        """Of the whole grid, less what the gaps have of it."""
        op, gaps = self.op, self.op.gaps

        def one(problem: Any, held: Any) -> Array:
            return quadratic_with_gaps(problem, held, gaps=gaps)

        return op.map_gaps(one, op.inner(), op.grid.squeezed(op.held(b)))

    def logpdf(self, residual: Array) -> Array:
        """Both from one decomposition."""
        op, gaps = self.op, self.op.gaps

        def one(problem: Any, held: Any) -> Array:
            log_det = self._log_det(problem._replace(y=None), held)
            return -0.5 * (log_det + quadratic_with_gaps(problem, held, gaps=gaps))

        value = op.map_gaps(one, op.inner(), op.grid.squeezed(op.held(residual)))
        return value - op.plan.num_observed * log(2 * pi) / 2

    def inverse_diagonal(self) -> Array:
        """Of the whole grid, less what the gaps have of it."""
        op, inner = self.op, self.op.inner()
        none: list[Array | None] = [None] * len(inner.grid_shape)
        whole = signal_plus_noise(inner).explained(none)
        value = jnp.subtract(*same_rank(whole, added_by_gaps(op, inner, none)))
        # What is left of the inverse cannot be less than if no other cell told anything.
        value = with_value(value, jnp.maximum(value, 1 / inner.diagonal()))
        return op.held(op.grid.embedded(value))

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """By all cells, less what the gaps would have explained; two solves per gap to derive."""
        assert others is None, "two sides are for terms beside the noise"
        inner, on_inner = self.op.inner(), self.op.grid.rows(rows)
        value = signal_plus_noise(inner).explained(on_inner)
        return jnp.subtract(*same_rank(value, added_by_gaps(self.op, inner, on_inner)))

    def posterior_diagonal(self) -> Array:
        """The variance without gaps, and what they add."""
        op = self.op
        if any(op.plan.dropped):
            return super().posterior_diagonal()
        inner, rows = op.inner(), [factor.to_dense() for factor in op.factors]
        own = tuple(tuple(range(n)) for n in inner.grid_shape)
        whole = signal_plus_noise(inner).posterior_diagonal()
        return jnp.add(*same_rank(whole, added_by_gaps(op, inner, rows, own)))

    def computed(self) -> GapDecomposition:
        """Bases of the whole grid, and the Cholesky factor of the inverse at the gaps."""
        return self.op.gap_decomposition(self.op.inner())

    def ends(self) -> Ends:
        """Those of the whole grid, between which taking out cells keeps the eigenvalues."""
        carried = self.op.decomposition
        is_known = isinstance(carried, GapDecomposition)
        inner = self.op.inner()
        return ends_on_grid(inner, carried.bases if is_known else inner.eigenbases())

    def _log_det(self, problem: Any, held: Any) -> Array:
        whole = log_det_and_quadratic(problem, held.bases, weights=(1.0, 0.0))
        return whole + log_det_gaps(problem, held, gaps=self.op.gaps)
