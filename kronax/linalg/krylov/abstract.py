"""What every preconditioner answers, and how all of one product do.

A *reference* is a matrix that is solved exactly: an even grid in place of an uneven one, one basis
in place of those of several terms. A *preconditioner* is an operator with its reference; conjugate
gradients that start from the one answer what is asked of the other: solves, densities, variances.
It is one final class for every kind of signal, and `prepared` chooses.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import random_signs
from kronax.linalg.estimates.certificates import (
    ROUNDING,
    SLACK,
    Certificate,
    Estimate,
    Iteration,
    Solved,
)
from kronax.linalg.estimates.draws import Drawn, Ended, by_draws, more_certain
from kronax.linalg.krylov.conjugate_gradients import Krylov, conjugate_gradients
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal

# Solves for what a solve has left, at most.
MOST_REFINEMENTS = 4
# Probes are solved to this share of the tolerance: their residuals do not average in a gradient.
PROBES = 0.1


class AbstractLogdetDerivative(eqx.Module):
    """What the differential of an estimated log-determinant is made of, per probe; all constant."""

    @abc.abstractmethod
    def along(self, signal: Any, precisions: Array) -> Array:
        """A function of signal and precisions with this differential, per probe."""


class ProbedLogdet(NamedTuple):
    """A log-determinant but for what is known of it, by probes.

    Args:
        forms: what each probe says.
        error: half of a 99 % interval around their mean.
        standard_error: of their mean.
        left: what the iterations leave, at most.
        inverse: the trace of the inverse of what is iterated, likewise by probes.
        derivative: an `AbstractLogdetDerivative`, that of the forms.
    """

    forms: Array
    error: Array
    standard_error: Array
    left: Array
    inverse: Array
    derivative: Any


class Evaluation(NamedTuple):
    """What is found in one pass for data `y` and probes, and held constant.

    Args:
        quadratics: `yᵀ A⁻¹ y`, per column.
        weights: `K⁻¹ f`, with the signal `f` in the data.
        residuals: `y − f`.
        logdets: `log det A` but for what is known of it, per probe.
        derivative: their differential.
    """

    quadratics: Array
    weights: Array
    residuals: Array
    logdets: Array
    derivative: AbstractLogdetDerivative


class AbstractPreconditioner(eqx.Module):
    """An operator `A = K + diag(1/W)` beside what it is compared with; all of it held constant.

    Args:
        op: the operator.
        reference: what it is compared with.
        iteration: how.
    """

    op: eqx.AbstractVar[KroneckerPlusDiagonal]
    reference: eqx.AbstractVar[Any]
    iteration: eqx.AbstractVar[Iteration]

    @abc.abstractmethod
    def solve(self, columns: Array, *, refine: bool = False) -> Solved:
        """Solve for columns `(k, *grid)` that are zero at the gaps.

        With `refine` until the error in the norm of the operator is small, too.
        """

    @abc.abstractmethod
    def evaluate(self, y: Array) -> tuple[Evaluation, Certificate]:
        """What a density of columns is made of, and the certificate of `yᵀ A⁻¹ y + log det A`."""

    @abc.abstractmethod
    def known_logdet(self, op: KroneckerPlusDiagonal) -> Array:
        """What is known of `log det A`, with its derivatives in `op`."""

    @abc.abstractmethod
    def posterior(self) -> Estimate:
        """`diag(K − K A⁻¹ K)`, by draws."""

    @abc.abstractmethod
    def inverse_diagonal(self) -> Estimate:
        """`diag(A⁻¹)`, zero at the gaps, by draws."""

    def certificate(
        self,
        krylov: Krylov,
        num_solves: int,
        probed: ProbedLogdet,
        rounding: Array,
        inner: Array | float = 0.0,
    ) -> Certificate:
        """Of `yᵀ A⁻¹ y + log det A` for the worst of the columns."""
        certificate = self.ended(krylov, num_solves, inner)
        left = jnp.max(krylov.left[:num_solves], initial=0.0) + probed.left
        # Rounding of a nat per cell leaves nothing of a density.
        is_known = rounding <= jnp.sum(self.op.observed, dtype=rounding.dtype)
        return certificate._replace(
            error=probed.error + left + rounding,
            standard_error=probed.standard_error,
            converged=certificate.converged & is_known,
            rounding=rounding,
        )

    def ended(self, krylov: Krylov, num_solves: int, inner: Array | float = 0.0) -> Certificate:
        """How the iteration ended, without an error; `inner` is the residual of one inside."""
        tolerance, zero = self.iteration.tolerance_of(self.op.dtype), jnp.zeros((), self.op.dtype)
        converged = krylov.has_converged(num_solves, tolerance) & (inner <= SLACK * tolerance)
        return Certificate(
            error=zero,
            standard_error=zero,
            residual=jnp.maximum(inner, jnp.max(krylov.relative_residual)),
            num_steps=jnp.max(krylov.num_steps),
            converged=converged,
        )

    def rounding(self, y: Array, quadratics: Array, matrix: Array, ratios: Array) -> Array:
        """By how much rounding may move `yᵀ A⁻¹ y + log det A`, for the worst of the columns.

        Args:
            y: the columns.
            quadratics: `yᵀ A⁻¹ y`.
            matrix: by how much a relative change of the matrices may, in the worst direction.
            ratios: of signal over noise, the logarithms of which are added up.
        """
        precisions = self.op.precisions
        scale = jnp.sum(precisions[None] * y**2, tuple(range(1, y.ndim)))
        data = jnp.max(scale * jnp.abs(quadratics), initial=0.0)
        logs = jnp.sum(jnp.abs(jnp.log(jnp.where(precisions > 0, precisions, 1))))
        sums = logs + jnp.sum(jnp.log1p(ratios)) + precisions.size
        return ROUNDING * jnp.finfo(y.dtype).eps * (matrix + jnp.sqrt(data) + sums)

    def rounding_of_solves(self, columns: Array, quadratics: Array) -> Array:
        """By how much rounding moves solutions in the norm of the operator, relative to them.

        The entries of `W b` round independently, and so reach every eigenvector of the operator.
        """
        squares = (self.op.precisions[None] * columns) ** 2 * self.op.diagonal()[None]
        spread = jnp.sum(squares, tuple(range(1, columns.ndim)))
        return 8 * jnp.finfo(columns.dtype).eps * jnp.sqrt(ratio(spread, quadratics))


class AbstractReference(eqx.Module):
    """A complete grid, and the `C` that turns it into an operator of one product; all constant."""

    @abc.abstractmethod
    def mv(self, x: Array) -> Array:
        """`C` for columns `(k, *grid)`: symmetric, and close to the identity."""

    @abc.abstractmethod
    def bound(self, r: Array) -> Array:
        """`rᵀ C⁻¹ r` per column from above."""

    @property
    @abc.abstractmethod
    def least(self) -> Array:
        """A bound of the eigenvalues of `C` from below."""

    @abc.abstractmethod
    def started(self, precisions: Array, y: Array) -> tuple[Array, Array]:
        """What data are in the coordinates of `C`, and the energy that is iterated from."""

    @abc.abstractmethod
    def finished(self, precisions: Array, y: Array, solution: Array) -> tuple[Array, Array, Array]:
        """`f`, `K⁻¹ f`, and `(y − f)ᵀ W (y − f) + fᵀ K⁻¹ f`, one number per column."""

    @abc.abstractmethod
    def probes(self, signs: Array) -> Array:
        """Random signs in the cells, in the coordinates of `C`."""

    def iterate(
        self,
        b: Array,
        iteration: Iteration,
        *,
        energy: Array | None = None,
        num_solves: int = 0,
        share: Array | float = 1.0,
    ) -> Krylov:
        """`C⁻¹ b`, to a share of the tolerance; see `conjugate_gradients`."""
        squares = jnp.sum(b**2, tuple(range(1, b.ndim)))
        return conjugate_gradients(
            self.mv,
            b,
            energy=squares if energy is None else energy,
            num_solves=num_solves,
            tolerance=iteration.tolerance_of(b.dtype) * share,
            max_steps=iteration.max_steps,
            bound=self.bound,
            least=self.least,
        )


class PosteriorDraws(NamedTuple):
    """Draws of the signal less its mean given data.

    Args:
        fields: `u`, with the posterior covariance `E`, `(count, *grid)`.
        rest: likewise, of the mean `diag(E)` less what is certain of it.
        weights: `A⁻¹ d` for draws `d` of data, from the same numbers.
        ended: how the iterations did.
    """

    fields: Array
    rest: Array
    weights: Array
    ended: Ended


class AbstractOneProduct(AbstractPreconditioner):
    """Of one product: the iteration finds the signal `f` in the data, and `A⁻¹ b = W (b − f)`."""

    reference: eqx.AbstractVar[AbstractReference]

    @abc.abstractmethod
    def probed(self, white: Array, krylov: Krylov) -> ProbedLogdet:
        """From probes in the coordinates of `C`, and what the iteration found for each."""

    @abc.abstractmethod
    def sensitivity(self, squares: Array, inverse: Array) -> tuple[Array, Array]:
        """`matrix` and `ratios` of `rounding`, from the squares of `A⁻¹ y` and that of probes."""

    @abc.abstractmethod
    def certain_variances(self) -> Array:
        """What is certain of the posterior variances."""

    @abc.abstractmethod
    def posterior_draws(self, key: Array, count: int) -> PosteriorDraws:
        """So many, solved together."""

    @abc.abstractmethod
    def explained(self, rows: Sequence[Array | None]) -> Estimate:
        """`diag(R A⁻¹ Rᵀ)` for `R = ⊗rows[i]`, by draws; `None` for those of the signal itself."""

    def posterior(self) -> Estimate:
        """What is certain and the rest, or the mean of `u²`, which cannot be negative."""

        def draw(key: Array, count: int) -> Drawn:
            fields, rest, _, ended = self.posterior_draws(key, count)
            return Drawn(rest, fields**2, ended)

        known = more_certain(self.certain_variances(), 0.0)
        return by_draws(self.op, self.iteration, self.op.grid_shape, draw, known)

    def inverse_diagonal(self) -> Estimate:
        """`W − W² diag(E)`, or the mean of `(A⁻¹ d)²`."""
        precisions = self.op.precisions

        def draw(key: Array, count: int) -> Drawn:
            _, rest, weights, ended = self.posterior_draws(key, count)
            return Drawn(-(precisions**2)[None] * rest, weights**2, ended)

        known = more_certain(precisions - precisions**2 * self.certain_variances(), 0.0)
        return by_draws(self.op, self.iteration, self.op.grid_shape, draw, known)

    def rows(self, rows: Sequence[Array | None]) -> list[Array]:
        """With the covariances of the signal itself in place of `None`."""
        pairs = zip(self.op.factors, rows, strict=True)
        return [factor.to_dense() if row is None else row for factor, row in pairs]

    def run(self, y: Array, white: Array) -> Krylov:
        """One pass for all columns: data over the cells, probes in the coordinates of `C`."""
        started, energy = self.reference.started(self.op.precisions, y)
        is_solve = jnp.arange(y.shape[0] + white.shape[0]) < y.shape[0]
        return self.reference.iterate(
            jnp.concatenate([started, white]),
            self.iteration,
            energy=jnp.concatenate([energy, jnp.sum(white**2, tuple(range(1, white.ndim)))]),
            num_solves=y.shape[0],
            share=where(is_solve, jnp.ones((), y.dtype), PROBES),
        )

    def evaluate(self, y: Array) -> tuple[Evaluation, Certificate]:
        """One pass for the data and the probes."""
        num, precisions = y.shape[0], self.op.precisions
        shape = (self.iteration.num_probes, *self.op.grid_shape)
        signs = random_signs(jax.random.key(self.iteration.seed), shape, self.op.dtype)
        white = self.reference.probes(signs)
        krylov = self.run(y, white)
        smooth, weights, quadratics = self.reference.finished(precisions, y, krylov.solution[:num])
        probed = self.probed(white, jax.tree.map(lambda a: a[num:], krylov))
        squares = jnp.sum((precisions[None] * (y - smooth)) ** 2, tuple(range(1, y.ndim)))
        rounding = self.rounding(y, quadratics, *self.sensitivity(squares, probed.inverse))
        found = Evaluation(quadratics, weights, y - smooth, probed.forms, probed.derivative)
        return found, self.certificate(krylov, num, probed, rounding)

    def solve(self, columns: Array, *, refine: bool = False) -> Solved:
        """Solve for columns `(k, *grid)` that are zero at the gaps.

        The iteration finds the signal with an error that is small beside its posterior. In the norm
        of the operator the solution `W (b − f)` may be off by more, by the root of signal over
        noise; with `refine` what it leaves is solved for again until it is not.
        """
        krylov, (solution, weights, quadratics) = self._pass(columns)
        ended = self.ended(krylov, columns.shape[0])
        found = solution, self._error(columns, solution, quadratics), ended.num_steps
        if refine:
            found = self._refined(columns, quadratics, found, ended.converged)
        solution, error, steps = found
        return Solved(
            solution=solution,
            weights=weights,
            quadratics=quadratics,
            errors=krylov.left + self.rounding_of_solves(columns, quadratics) * quadratics,
            certificate=ended._replace(error=jnp.max(error), num_steps=steps),
        )

    def _pass(self, columns: Array) -> tuple[Krylov, tuple[Array, Array, Array]]:
        """`A⁻¹ b`, `K⁻¹ f` and `bᵀ A⁻¹ b`."""
        precisions = self.op.precisions
        krylov = self.run(columns, jnp.zeros((0, *columns.shape[1:]), columns.dtype))
        smooth, weights, squares = self.reference.finished(precisions, columns, krylov.solution)
        return krylov, (precisions[None] * (columns - smooth), weights, squares)

    def _error(self, columns: Array, solution: Array, quadratics: Array) -> Array:
        """Per column the error in the norm of the operator, relative to the solution, from above.

        `rᵀ A⁻¹ r ≤ rᵀ W r` for what is left, `r`, since the operator exceeds its noise.
        """
        left = columns - self.op.mv_grid(solution)
        axes = tuple(range(1, columns.ndim))
        return jnp.sqrt(ratio(jnp.sum(self.op.precisions[None] * left**2, axes), quadratics))

    def _refined(
        self,
        columns: Array,
        quadratics: Array,
        found: tuple[Array, Array, Array],
        converged: Array,
    ) -> tuple[Array, Array, Array]:
        """Solve again for what is left, as long as the error halves and is above the tolerance."""

        def going(state: Any) -> Array:
            _, error, _, before, count = state
            is_off = jnp.max(error) > self.iteration.tolerance_of(columns.dtype)
            return converged & is_off & (jnp.max(error) < before / 2) & (count < MOST_REFINEMENTS)

        def again(state: Any) -> Any:
            solution, error, steps, _, count = state
            krylov, (moved, *_) = self._pass(columns - self.op.mv_grid(solution))
            moved = solution + moved
            new = self._error(columns, moved, quadratics)
            better = new < error
            solution = jnp.where(better.reshape(-1, *(1,) * (columns.ndim - 1)), moved, solution)
            steps = steps + jnp.max(krylov.num_steps)
            return solution, jnp.minimum(new, error), steps, jnp.max(error), count + 1

        start = (*found, jnp.asarray(jnp.inf, columns.dtype), jnp.zeros((), jnp.int32))
        return lax.while_loop(going, again, start)[:3]


def noise_logdet(op: KroneckerPlusDiagonal) -> Array:
    """The logarithms of the variances of the observed cells, added up.

    Not those of the precisions, which are zero where a variance is close to overflow.
    """
    return jnp.sum(jnp.where(op.observed, jnp.log(jnp.where(op.observed, op.variances, 1)), 0))


def ratio(a: Array, b: Array) -> Array:
    """`a / b`, and `a` where `b` is not positive."""
    return a / jnp.where(b > 0, b, 1)
