"""Posterior variances of a sum of products by draws, each with a twin of known variance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.estimates.certificates import Estimate, Iteration, skew_quantile
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.square_roots import symmetric_roots
from kronax.linalg.krylov.boxed_sum import term_diagonals
from kronax.linalg.krylov.terms_preconditioner import TermsReference, solve_terms
from kronax.linalg.operators.draws import apply_roots


def terms_posterior(
    held: TermsReference, iteration: Iteration, term: int | None, most_numbers: int
) -> Estimate:
    """`diag(K − K A⁻¹ K)`, or `diag(K_j − K_j A⁻¹ K_j)` of one term, with its error.

    A term draws by its symmetric root, `f_j = ⊗K_ji^½ z_j`, and its twin by that of its part of the
    reference, `Q √Λ_j Qᵀ z_j` with the diagonal `Λ_j` of `Qᵀ K_j Q`. Given noise from the same
    numbers too, the posterior draw `f_j − K_j A⁻¹ (f + ε)` goes with that of the even reference,
    whose variance is known exactly; the regression on it leaves little error where cells are even
    and terms nearly commute.

    Args:
        held: what the sum is compared with.
        iteration: how.
        term: which term; all of them for `None`.
        most_numbers: that draws solved together may hold in one array.
    """
    parts = _Parts.of(held, term)
    size = held.precisions.size
    num_chunks = -(-iteration.num_draws * size // most_numbers)
    count = -(-iteration.num_draws // num_chunks)

    def drawn(total: Array, key: Array) -> Any:
        draw, twin, certificate = _draws(held, parts, key, count, iteration)
        x, c = draw**2, twin**2 - parts.known[None]
        sums = jnp.stack([jnp.sum(v, 0) for v in (x, c, x * x, c * c, x * c)])
        return total + sums, (certificate.residual, certificate.num_steps)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(iteration.seed), 2), num_chunks)
    zero = jnp.zeros((5, *held.precisions.shape), held.precisions.dtype)
    total, (residuals, steps) = lax.scan(drawn, zero, keys)
    num = num_chunks * count
    value, standard_error = _regressed(total / num, num)
    residual = jnp.max(residuals)
    return Estimate(
        value=value,
        error=skew_quantile(num - 1) * standard_error,
        standard_error=standard_error,
        residual=residual,
        num_steps=jnp.max(steps),
        converged=residual <= 10 * iteration.tolerance_of(held.precisions.dtype),
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


def _draws(
    held: TermsReference, parts: _Parts, key: Array, count: int, iteration: Iteration
) -> tuple[Array, Array, Any]:
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


def _regressed(means: Array, num: int) -> tuple[Array, Array]:
    """The mean of `x` by regression on a control `c` of mean zero, and its standard error.

    Args:
        means: of `x`, `c`, `x²`, `c²` and `x c`.
        num: draws.
    """
    x, c, xx, cc, xc = means
    spread = jnp.maximum(cc - c**2, 0)
    slope = jnp.where(spread > 0, (xc - x * c) / jnp.where(spread > 0, spread, 1), 0)
    left = jnp.maximum(xx - x**2 - slope**2 * spread, 0) / (num - 2)
    # Along the control too the mean is off: its distance enters as in any regression.
    distance = c**2 / jnp.where(spread > 0, spread, 1)
    return x - slope * c, jnp.sqrt(left * (1 + distance))
