"""What probes say of the log-determinant of a sum of products plus uneven noise.

With the reference `A_r = K_r + D` of `terms_reference`,

    log det A = log det A_r + tr log (A_r^-½ A A_r^-½).

The first part is that of one product: the box exact, the rest by probes. `K_r` moves with the
terms in a basis that is held constant, which is its derivative as well.

The second part is estimated by probes `b` with covariance `A_r`: a draw of `K_r` plus noise. The
same random numbers make a probe `b_e` of the even grid, where `F = S_r^-½ (K − K_r) S_r^-½` has
exactly known `tr F = 0` and `tr F²`; their estimates from `b_e` are regressed out. On an even grid
that leaves the logarithm without the quadratic that comes closest to it. For its derivative, with
`x = A⁻¹ b` and `z = A_r⁻¹ b`, the mean of `xᵀ dA z` is `tr (A⁻¹ dA)` and that of `zᵀ dA_r z` is
`tr (A_r⁻¹ dA_r)`: the difference is of first order in `K − K_r` and the `dK − dK_r` beyond the box.
Where that is not small, only a share of `zᵀ dA_r z` and of `d log det A_r` is taken.
With `a = S_r⁻¹ b_e`, `aᵀ (dK − dK_r) a − aᵀ (K − K_r) S_r⁻¹ dK a` is the same to first order on the
even grid, and its mean `−½ d tr F²` is known: a share of it is taken off.
Nothing is left to probes where the box is the whole grid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import random_signs
from kronax.linalg.estimates.certificates import Iteration, skew_quantile, trace_quantile
from kronax.linalg.krylov.abstract import AbstractLogdetDerivative, ProbedLogdet
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.krylov.preconditioner import Reference
from kronax.linalg.krylov.probes import ProbeDerivative, probed_logdet
from kronax.linalg.krylov.terms_reference import (
    INNER,
    ExactDerivative,
    TermsReference,
    boxed_sum,
    known_trace,
)
from kronax.linalg.operators.sum_of_products import KroneckerTerms

# Fewer probes do not tell how strongly the known traces go with what is estimated.
FEWEST_FOR_REGRESSION = 8


class TermsDerivative(AbstractLogdetDerivative):
    """What the differential is made of, per probe; all of it constant.

    Args:
        left: `x`.
        right: `z`.
        even: `a`.
        twice: `S_r⁻¹ (K − K_r) a`.
        shares: how much of `log det A_r` is taken by itself, in `dK` and in `dW`.
        slopes: how much of `aᵀ dK a − aᵀ dK_r a` and of `tr F²` is taken off.
        variations: what multiplies `dW`, per probe, beside that of `log det A_r`.
        compared: the reference.
        exact: what is known of the derivative of `log det A_r`.
        probed: what probes say of the rest.
    """

    left: Array
    right: Array
    even: Array
    twice: Array
    shares: Array
    slopes: Array
    variations: Array
    compared: Reference
    exact: ExactDerivative
    probed: ProbeDerivative

    def along(self, signal: KroneckerTerms, precisions: Array) -> Array:
        """A function of signal and precisions with this differential, per probe."""
        axes = tuple(range(1, self.left.ndim))
        kept = boxed_sum(signal, self.compared.bases, self.compared.box)
        in_signal, in_noise = self.shares
        part, known = kept.scaled(in_signal), in_noise * precisions
        reference = self.exact.along(part, known)
        reference = reference + self.probed.along_box(part, part.inside, known)
        first, second = self.slopes
        towards = first * self.even + 2 * second * self.twice
        along = jnp.sum(self.left * signal.mv_grid(self.right), axes)
        along = along - jnp.sum(self.even * signal.mv_grid(towards), axes)
        right, back = kept.mv_grid(jnp.stack([self.right, self.even]))
        along = along - in_signal * jnp.sum(self.right * right, axes)
        along = along + first * jnp.sum(self.even * back, axes)
        along = along + second * known_trace(self.compared, signal)
        return reference + along + jnp.sum(precisions[None] * self.variations, axes)


class TermsProbes(NamedTuple):
    """Probes of the observed cells, and what they know of the even grid.

    Args:
        columns: `b`, zero at the gaps.
        even: `a = S_r⁻¹ b_e`.
        twice: `S_r⁻¹ (K − K_r) a`.
        first: `aᵀ (K − K_r) a`, of mean `tr F = 0`.
        second: of mean `tr F²`.
    """

    columns: Array
    even: Array
    twice: Array
    first: Array
    second: Array


def terms_probes(held: TermsReference, iteration: Iteration) -> TermsProbes:
    """The same ones at every call."""
    shape = (iteration.num_probes, *held.signal.grid_shape)
    axes = tuple(range(1, len(shape)))
    keys = jax.random.split(jax.random.key(iteration.seed))
    signal, noise = (random_signs(key, shape, held.signal.dtype) for key in keys)
    # By the symmetric root: it is smooth in the parameters where eigenvectors change their signs.
    drawn = held.compared.to_cells(
        jnp.sqrt(held.compared.spectrum)[None] * held.compared.to_spectrum(signal)
    )
    observed = held.precisions > 0
    even = held.even_inverse(drawn + jnp.sqrt(held.compared.noise) * noise)
    rest = held.signal.mv_grid(even) - held.compared.signal(even)
    twice = held.even_inverse(rest)
    return TermsProbes(
        columns=jnp.where(observed[None], drawn + jnp.sqrt(held.variances)[None] * noise, 0),
        even=even,
        twice=twice,
        first=jnp.sum(even * rest, axes),
        second=jnp.sum(rest * twice, axes),
    )


def probed_terms(
    held: TermsReference, probes: TermsProbes, krylov: Krylov, right: Array, iteration: Iteration
) -> tuple[ProbedLogdet, Array]:
    """`log det A` from its probes, and the largest residual for those of `log det A_r`.

    Args:
        held: the reference.
        probes: `b`.
        krylov: what the iteration found for each.
        right: `A_r⁻¹ b`.
        iteration: how.
    """
    known, residual, probed = _reference_logdet(held, iteration)
    energy = jnp.sum(probes.columns * right, tuple(range(1, right.ndim)))
    count = jnp.sum((held.precisions > 0).astype(right.dtype))
    second = probes.second - known_trace(held.compared, held.signal)
    controls = jnp.stack([probes.first, second, energy - count], axis=-1)
    squares = energy * krylov.log_square
    forms, spread, error = _log_forms(energy * krylov.log_form, squares, controls)
    # Even noise needs no inner solves.
    inner = jnp.where(held.is_even, 0, INNER * iteration.tolerance_of(right.dtype) * count)
    found = ProbedLogdet(
        forms=forms + probed.forms + known,
        error=jnp.hypot(error, probed.error),
        standard_error=jnp.hypot(spread, probed.standard_error),
        left=jnp.mean(energy * krylov.log_left) + probed.left + inner,
        inverse=probed.inverse,
        derivative=_derivative(held, probes, krylov.solution, right, probed.derivative),
    )
    return found, residual


def _log_forms(forms: Array, squares: Array, controls: Array) -> tuple[Array, Array, Array]:
    """What probes say with what is known regressed out, the standard error of its mean, its error.

    Args:
        forms: of `log M`, one per probe.
        squares: of `(log M)²`, likewise.
        controls: `(k, c)` of mean zero.
    """
    num, count = controls.shape
    if num < FEWEST_FOR_REGRESSION:
        spread = jnp.sqrt(2 * jnp.mean(squares) / num)
        return forms, spread, trace_quantile(num) * spread
    _, slopes, spread = _regressed(forms, controls)
    return forms - matmul(controls, slopes), spread, skew_quantile(num - count) * spread


def _derivative(
    held: TermsReference, probes: TermsProbes, left: Array, right: Array, probed: ProbeDerivative
) -> TermsDerivative:
    """How much of `log det A_r`, in `dK` and `dW`, and of the twins to take.

    Any shares and slopes are right; these are best for the derivative in the scale of the signal,
    and in that of the noise of the cells.
    """
    axes = tuple(range(1, left.ndim))
    explained, twice = jnp.split(held.signal.mv_grid(jnp.concatenate([right, probes.even])), 2)
    whole, kept = (
        jnp.sum(left * explained, axes),
        jnp.sum(right * held.compared.signal(right), axes),
    )
    signal = boxed_sum(held.signal, held.compared.bases, held.compared.box)
    share = _share(whole, kept, probed.along_box(signal, signal.inside, 0 * held.precisions))
    # On an even grid this is all that is of first order, and its mean is known.
    control = probes.first - jnp.sum(probes.twice * twice, axes)
    slope = _share(whole - share * kept, control, 0 * control)
    slopes = jnp.stack([slope, -0.5 * slope])
    noise = held.variances[None]
    in_cells = _share(
        noise * left * right, noise * right**2, held.precisions[None] * probed.variations
    )
    own = (left - in_cells * right) * right
    # In even noise the derivative is `tr (S_r⁻¹ (K − K_r) S_r⁻¹)` to first order, which is zero.
    spread = held.precisions * held.compared.noise / held.precisions.size
    total = jnp.sum(probes.twice * probes.even, axes)
    _, (slope,), _ = _regressed(jnp.sum(noise * own, axes), (total - jnp.mean(total))[:, None])
    own = own - slope * spread[None] * total.reshape(-1, *(1,) * len(axes))
    return TermsDerivative(
        left=left,
        right=right,
        even=probes.even,
        twice=probes.twice,
        shares=jnp.stack([share, in_cells]),
        slopes=slopes,
        # One after the other: the square of a large variance overflows.
        variations=-noise * (noise * own),
        compared=held.compared,
        exact=ExactDerivative.of(held.compared, held.precisions),
        probed=probed,
    )


def _share(forms: Array, kept: Array, rest: Array) -> Array:
    """How much of `kept` to take off `forms`, if its mean is known but for the spread of `rest`."""
    forms, kept, rest = (x - jnp.mean(x, 0, keepdims=True) for x in (forms, kept, rest))
    size = jnp.sum(kept**2) + jnp.sum(rest**2)
    return jnp.clip(jnp.sum(forms * kept) / jnp.where(size > 0, size, 1), 0, 1)


def _reference_logdet(
    held: TermsReference, iteration: Iteration
) -> tuple[Array, Array, ProbedLogdet]:
    """`log det A_r`: what is known, what probes say of the rest, and their largest residual."""
    compared, precisions = held.compared, held.precisions
    whole = jnp.sum(jnp.log1p(compared.spectrum / compared.noise))
    # Gaps have no variance here.
    noise = jnp.sum(jnp.log(jnp.where(held.variances == 0, 1, held.variances)))
    trace = jnp.sum(compared.excess * compared.diagonal_of(compared.filter**2))
    shape = (iteration.num_probes, *precisions.shape)
    key = jax.random.fold_in(jax.random.key(iteration.seed), 1)
    white = compared.to_spectrum(random_signs(key, shape, precisions.dtype))
    krylov = compared.iterate(white, iteration)
    known = whole + noise + trace + compared.known_logdet
    return known, jnp.max(krylov.relative_residual), probed_logdet(compared, white, krylov)


def _regressed(forms: Array, controls: Array) -> tuple[Array, Array, Array]:
    """The mean of `forms` by regression on controls `(k, c)` of mean zero, slopes and error."""
    num, count = controls.shape
    if num < FEWEST_FOR_REGRESSION:
        slopes = jnp.zeros(count, forms.dtype)
        spread = jnp.std(forms, ddof=1) / jnp.sqrt(jnp.asarray(num, forms.dtype))
        return jnp.mean(forms), slopes, spread
    means = jnp.mean(controls, 0)
    centred = controls - means[None]
    # Controls that do not vary, where all terms commute, say nothing.
    norms = jnp.sqrt(jnp.sum(centred**2, 0))
    least = jnp.finfo(forms.dtype).eps * num * (1 + jnp.max(jnp.abs(controls)))
    scale = where(norms > least, norms, jnp.inf)
    scaled = centred / scale[None]
    ridge = 16 * jnp.finfo(forms.dtype).eps * jnp.eye(count, dtype=forms.dtype)
    identity = jnp.diag(jnp.where(jnp.isinf(scale), 1, 0).astype(forms.dtype))
    gram = matmul(scaled.T, scaled) + ridge + identity
    coefficients = jnp.linalg.solve(gram, matmul(scaled.T, forms - jnp.mean(forms)))
    rest = forms - jnp.mean(forms) - matmul(scaled, coefficients)
    variance = jnp.sum(rest**2) / (num - 1 - count)
    # Along the controls the mean is off as well: their distance enters as in any regression.
    distance = matmul(means / scale, jnp.linalg.solve(gram, means / scale))
    mean = jnp.mean(forms) - matmul(means / scale, coefficients)
    return mean, coefficients / scale, jnp.sqrt(variance * (1 / num + distance))
