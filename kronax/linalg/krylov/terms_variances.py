"""Posterior variances of a sum of products by draws, each with a twin of known variance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.estimates.certificates import Certificate, Estimate, Iteration
from kronax.linalg.estimates.draws import Drawn, by_draws, regressed
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.square_roots import symmetric_roots
from kronax.linalg.krylov.boxed_sum import term_diagonals
from kronax.linalg.krylov.terms_preconditioner import TermsReference, solve_terms
from kronax.linalg.operators.draws import apply_roots
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal


def terms_posterior(
    held: TermsReference, op: KroneckerPlusDiagonal, iteration: Iteration, term: int | None
) -> Estimate:
    """`diag(K − K A⁻¹ K)`, or `diag(K_j − K_j A⁻¹ K_j)` of one term, with its error.

    A term draws by its symmetric root, `f_j = ⊗K_ji^½ z_j`, and its twin by that of its part of the
    reference, `Q √Λ_j Qᵀ z_j` with the diagonal `Λ_j` of `Qᵀ K_j Q`. Given noise from the same
    numbers too, the posterior draw `f_j − K_j A⁻¹ (f + ε)` goes with that of the even reference,
    whose variance is known exactly; the regression on it leaves little error where cells are even
    and terms nearly commute.

    Args:
        held: what the sum is compared with.
        op: the sum and its noise.
        iteration: how.
        term: which term; all of them for `None`.
    """
    parts = _Parts.of(held, term)

    def draw(key: Array, count: int) -> Drawn:
        here, there, solved = _draws(held, parts, key, count, iteration)
        return Drawn(here**2, there**2 - parts.known[None], solved.residual, solved.num_steps)

    return by_draws(op, iteration, op.grid_shape, draw, regressed, stream=2)


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


def _draws(
    held: TermsReference, parts: _Parts, key: Array, count: int, iteration: Iteration
) -> tuple[Array, Array, Certificate]:
    """Posterior draws of the terms that are wanted, their twins, and the certificate."""
    shape, dtype = (count, *held.precisions.shape), held.precisions.dtype
    noise_key, *keys = jax.random.split(key, len(parts.roots) + 1)
    noise = normal_numbers(noise_key, shape, dtype)
    data = jnp.sqrt(held.variances)[None] * noise
    twin_data = jnp.sqrt(held.compared.noise) * held.compared.to_spectrum(noise)
    draw, twin = jnp.zeros_like(data), jnp.zeros_like(data)
    for j, own in enumerate(keys):
        white = normal_numbers(own, shape, dtype)
        signal = apply_roots(parts.roots[j], white)
        twin_signal = jnp.sqrt(parts.spectra[j])[None] * held.compared.to_spectrum(white)
        data, twin_data = data + signal, twin_data + twin_signal
        if j in parts.wanted:
            draw, twin = draw + signal, twin + twin_signal
    solved = solve_terms(held, jnp.where((held.precisions > 0)[None], data, 0), iteration)
    spectrum = sum(parts.spectra[j] for j in parts.wanted)
    for j in parts.wanted:
        draw = draw - held.signal.terms[j].mv_grid(solved.solution)
    twin = twin - (spectrum * held.inverse_spectrum)[None] * twin_data
    return draw, held.compared.to_cells(twin), solved.certificate
