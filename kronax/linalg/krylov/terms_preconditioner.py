"""Conjugate gradients for a sum of products, with a preconditioner that is itself iterated."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.estimates.certificates import (
    Certificate,
    Estimate,
    Iteration,
    Solved,
    skew_quantile,
)
from kronax.linalg.estimates.draws import Drawn, by_draws, regressed
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.square_roots import symmetric_roots
from kronax.linalg.krylov.abstract import AbstractPreconditioner, Evaluation, ratio
from kronax.linalg.krylov.conjugate_gradients import Krylov, conjugate_gradients
from kronax.linalg.krylov.probes import sensitivity
from kronax.linalg.krylov.terms_probes import probed_terms, terms_probes
from kronax.linalg.krylov.terms_reference import INNER, TermsReference, term_diagonals
from kronax.linalg.operators.draws import apply_roots
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal


class TermsPreconditioner(AbstractPreconditioner):
    """A sum of products `K = Σ_j K_j`, beside `A_r = K_r + D`."""

    op: KroneckerPlusDiagonal
    reference: TermsReference
    iteration: Iteration = eqx.field(static=True)

    def known_logdet(self, op: KroneckerPlusDiagonal) -> Array:
        """Nothing: how much is taken of what is known depends on the probes."""
        return jnp.zeros((), op.dtype)

    def inverse(self, x: Array) -> tuple[Array, Array]:
        """`A_r⁻¹` for columns that are zero at the gaps, and the largest relative residual."""
        held = self.reference
        compared, weighted = held.compared, held.precisions[None] * x

        def uneven() -> tuple[Array, Array]:
            krylov = compared.iterate(
                compared.filtered_transpose(weighted),
                self.iteration,
                energy=jnp.sum(weighted * x, tuple(range(1, x.ndim))),
                num_solves=x.shape[0],
                share=INNER,
            )
            smooth = compared.filtered(krylov.solution)
            return held.precisions[None] * (x - smooth), jnp.max(krylov.relative_residual)

        exact = lambda: (held.even_inverse(x), jnp.zeros((), x.dtype))  # noqa: E731
        return lax.cond(held.is_even, exact, uneven)

    def iterate(self, columns: Array, num_solves: int) -> tuple[Krylov, Array, Array]:
        """Conjugate gradients for `A` with `A_r`, `A_r⁻¹ columns`, the largest inner residual."""
        held, (prepared, inner) = self.reference, self.inverse(columns)
        krylov = conjugate_gradients(
            self.op.mv_grid,
            columns,
            energy=jnp.sum(columns * prepared, tuple(range(1, columns.ndim))),
            num_solves=num_solves,
            falls=False,
            tolerance=self.iteration.tolerance_of(columns.dtype),
            max_steps=self.iteration.max_steps,
            bound=held.bound,
            least=held.least,
            precondition=lambda r: self.inverse(r)[0],
            preconditioned=prepared,
        )
        return krylov, prepared, inner

    def quadratics(self, columns: Array, weights: Array) -> Array:
        """`bᵀ A⁻¹ b` from below: off by what is of second order in the residual."""
        rest = 2 * columns - self.op.mv_grid(weights)
        return jnp.sum(weights * rest, tuple(range(1, columns.ndim)))

    def evaluate(self, y: Array) -> tuple[Evaluation, Certificate]:
        """One pass for the data and the probes, and one for those of the reference."""
        held, num, axes = self.reference, y.shape[0], tuple(range(1, y.ndim))
        probes = terms_probes(held, self.iteration)
        krylov, prepared, inner = self.iterate(jnp.concatenate([y, probes.columns]), num)
        weights, left, right = krylov.solution[:num], krylov.solution[num:], prepared[num:]
        of_probes = jax.tree.map(lambda a: a[num:], krylov)
        probed, residual = probed_terms(held, probes, of_probes, right, self.iteration)
        below = self.quadratics(y, weights)
        trace = jnp.maximum(jnp.mean(jnp.sum(left * right, axes)), 0)
        squares = jnp.sum(weights**2, axes)
        moved = sensitivity(held.compared, held.precisions, squares, trace, probed.inverse)
        rounding = self.rounding(y, below, *moved)
        # `y − f`
        rest = held.variances[None] * weights
        found = Evaluation(below, weights, rest, probed.forms, probed.derivative)
        inner = jnp.maximum(inner, residual)
        return found, self.certificate(krylov, num, probed, rounding, inner)

    def solve(self, columns: Array, *, refine: bool = False) -> Solved:
        """Solve for columns `(k, *grid)` that are zero at the gaps.

        The iteration is in the norm of the operator: there is nothing to refine.
        """
        num = columns.shape[0]
        krylov, _, inner = self.iterate(columns, num)
        quadratics = self.quadratics(columns, krylov.solution) + krylov.left
        rounding = self.rounding_of_solves(columns, quadratics)
        error = jnp.max(jnp.sqrt(ratio(krylov.left, quadratics)) + rounding)
        return Solved(
            solution=krylov.solution,
            weights=krylov.solution,
            quadratics=quadratics,
            errors=krylov.left + rounding * quadratics,
            certificate=self.ended(krylov, num, inner)._replace(error=error),
        )

    def posterior(self, term: int | None = None) -> Estimate:
        """`diag(K − K A⁻¹ K)`, or `diag(K_j − K_j A⁻¹ K_j)` of one term.

        A term draws by its symmetric root, `f_j = ⊗K_ji^½ z_j`, and its twin by that of its part of
        the reference, `Q √Λ_j Qᵀ z_j` with the diagonal `Λ_j` of `Qᵀ K_j Q`. Given noise from the
        same numbers too, the posterior draw `f_j − K_j A⁻¹ (f + ε)` goes with that of the even
        reference, whose variance is known exactly; the regression on it leaves little error where
        cells are even and terms nearly commute.
        """
        parts = _Parts.of(self.reference, term)

        def draw(key: Array, count: int) -> Drawn:
            here, there, solved = self._drawn(parts, key, count)
            ended = solved.residual, solved.num_steps
            return Drawn(here**2, there**2 - parts.known[None], ended)

        return by_draws(self.op, self.iteration, self.op.grid_shape, draw, regressed, stream=2)

    def _drawn(self, parts: "_Parts", key: Array, count: int) -> tuple[Array, Array, Certificate]:
        """Posterior draws of the terms that are wanted, their twins, and the certificate."""
        held, compared = self.reference, self.reference.compared
        shape, dtype = (count, *held.precisions.shape), held.precisions.dtype
        noise_key, *keys = jax.random.split(key, len(parts.roots) + 1)
        noise = normal_numbers(noise_key, shape, dtype)
        data = jnp.sqrt(held.variances)[None] * noise
        twin_data = jnp.sqrt(compared.noise) * compared.to_spectrum(noise)
        draw, twin = jnp.zeros_like(data), jnp.zeros_like(data)
        for j, own in enumerate(keys):
            white = normal_numbers(own, shape, dtype)
            signal = apply_roots(parts.roots[j], white)
            twin_signal = jnp.sqrt(parts.spectra[j])[None] * compared.to_spectrum(white)
            data, twin_data = data + signal, twin_data + twin_signal
            if j in parts.wanted:
                draw, twin = draw + signal, twin + twin_signal
        solved = self.solve(self.op.held(data))
        spectrum = sum(parts.spectra[j] for j in parts.wanted)
        for j in parts.wanted:
            draw = draw - held.signal.terms[j].mv_grid(solved.solution)
        twin = twin - (spectrum * held.inverse_spectrum)[None] * twin_data
        return draw, compared.to_cells(twin), solved.certificate

    def inverse_diagonal(self) -> Estimate:
        """`W − W² diag(K − K A⁻¹ K)` or the mean of `(A⁻¹ d)²`, the more certain of the two."""
        iteration, precisions, found = self.iteration, self.op.precisions, self.posterior()
        key = jax.random.fold_in(jax.random.key(iteration.seed), 2)
        solution, *_, certificate = self.solve(self.op.draw(key, (iteration.num_draws,)))
        squares = jnp.square(solution)
        plain = jnp.std(squares, axis=0) / jnp.sqrt(iteration.num_draws - 1.0).astype(squares.dtype)
        standard_error = precisions**2 * found.standard_error
        is_plain = plain < standard_error
        standard_error = jnp.where(is_plain, plain, standard_error)
        value = precisions - precisions**2 * found.value
        return Estimate(
            value=jnp.where(is_plain, jnp.mean(squares, axis=0), value),
            error=skew_quantile(iteration.num_draws) * standard_error,
            standard_error=standard_error,
            residual=jnp.maximum(found.residual, certificate.residual),
            num_steps=jnp.maximum(found.num_steps, certificate.num_steps),
            converged=found.converged & certificate.converged,
        )


class _Parts(NamedTuple):
    """What draws are made of.

    Args:
        roots: `K_ji^½`, per term and axis.
        spectra: `Λ_j`, per term.
        wanted: the terms whose variance is asked for.
        known: the variance of the twins of these, in every cell.
    """

    roots: list[list[SymmetricBlocks]]
    spectra: list[Array]
    wanted: tuple[int, ...]
    known: Array

    @classmethod
    def of(cls, held: TermsReference, term: int | None) -> "_Parts":
        spectra = [jnp.maximum(d, 0) for d in term_diagonals(held.compared, held.signal)]
        wanted = tuple(range(len(spectra))) if term is None else (term,)
        own = sum(spectra[j] for j in wanted)
        return cls(
            [[symmetric_roots(f.blocks()) for f in t.factors] for t in held.signal.terms],
            spectra,
            wanted,
            held.compared.diagonal_of(own - own**2 * held.inverse_spectrum),
        )
