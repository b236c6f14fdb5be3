"""What probes say of an iterative log-determinant, and its derivative.

With `T = K (I + wK)⁻¹ = Q t² Qᵀ`, `E = Q t C⁻¹ t Qᵀ` and `N = (I + wK)⁻¹`, so that `dT = N dK N`,
`log det C − tr (C − I)` has the differential `−tr [E V N dK N V] + tr [(E − T) dV]`. A probe `g`
over the spectrum, with `x = M⁻¹ g`, `a = Q t L⁻ᵀ x` and `b = Q t L⁻ᵀ g`, estimates it by
`−(N V a)ᵀ dK (N V b) + Σ dV ∘ (a ∘ b − (Q t g)²)`. Two things are known of that:

- The parts of a probe in the box and outside, `g = g₁ + g₂`, are uncorrelated, and `x` is close to
  `x₁ + x₂` with `x_i = p g_i + q M g_i`, least squares over all probes. In `x gᵀ` the parts
  `x₂ g₁ᵀ + x₁ g₂ᵀ` have no mean, and a multiple of them is left out. Where `M` is close to the
  identity they are of first order and the rest is of second, and all of them are. Where cells
  hardly know of each other none is, as random signs see a diagonal exactly, but not their parts.
  The multiple is that of a regression, over the probes for `dK` (in the scale of the signal), over
  all cells too for `dV`.
- With `U` the eigenvectors of the box, the same estimate of `U Uᵀ V U Uᵀ` and `g₁` is a quadratic
  form `cᵀ (UᵀdK U) c`, `c = N UᵀV U t L⁻ᵀ g₁`. The mean of `c cᵀ` is known exactly, and takes its
  place.

Nothing is left to the probes where the box is the whole grid.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import apply_all, matmul
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.decompositions.low_rank import LowRank, signal_plus_noise
from kronax.linalg.decompositions.spectral import Spectral
from kronax.linalg.estimates.certificates import Estimate, Iteration, trace_error
from kronax.linalg.estimates.draws import Drawn, by_draws, more_certain
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.krylov.abstract import (
    AbstractLogdetDerivative,
    AbstractOneProduct,
    PosteriorDraws,
    ProbedLogdet,
    noise_logdet,
)
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.krylov.preconditioner import Reference, remainder_squares
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


class ProbeDerivative(AbstractLogdetDerivative):
    """What the differential is made of; all of it constant.

    Args:
        left: `N V a`, `(2, k, *grid)`, in the box and outside.
        right: `N V b`, likewise.
        variations: what multiplies `dV`, per probe.
        columns: `Q_i` on the box, axis by axis.
        boxed: `c`, `(k, r)`, in the coordinates of these.
        known: the mean of `c cᵀ`.
    """

    left: Array
    right: Array
    variations: Array
    columns: list[Array]
    boxed: Array
    known: Array

    def along(self, signal: Kronecker, precisions: Array) -> Array:
        """A function of signal and precisions with this differential, per probe."""
        inside = [
            matmul(u.T, factor.mv_along(u, -2))
            for u, factor in zip(self.columns, signal.factors, strict=True)
        ]
        return self.along_box(signal, reduce(jnp.kron, inside), precisions)

    def along_box(self, signal: Any, inside: Array, precisions: Array) -> Array:
        """The same for any `signal` that multiplies columns, given `Uᵀ K U`."""
        c, axes = self.boxed, tuple(range(1, precisions.ndim + 1))
        along = jnp.sum(jnp.sum(self.left * signal.mv_grid(self.right), 0), axes)
        boxed = jnp.sum(c * matmul(c, inside), -1) - jnp.sum(self.known * inside)
        return jnp.sum(precisions[None] * self.variations, axes) - (along - boxed)


def probe_derivative(held: Reference, white: Array, solution: Array) -> ProbeDerivative:
    """From probes over the spectrum and `M⁻¹` of them."""
    boxed, known, certain = _boxed(held, white)
    inside = held.only_box(white)
    sides = jnp.stack([inside, white - inside])
    others = _predicted(held, sides, solution)[::-1]
    a, b = held.filtered(solution), jnp.stack([held.filtered(side) for side in sides])
    other_a = jnp.stack([held.filtered(other) for other in others])
    plain = jnp.stack([held.to_cells(held.filter[None] * side) for side in sides])
    variations = a * jnp.sum(b, 0) - jnp.sum(plain, 0) ** 2 - certain
    crossed = jnp.sum(other_a * b, 0) - 2 * plain[0] * plain[1]
    weight = (held.excess + 1 / held.noise)[None]
    in_cells = _share(weight * variations, weight * crossed)

    def moved(x: Array) -> Array:
        return held.smoothed(held.excess[None] * x)

    right, left = jnp.stack([moved(x) for x in b]), moved(a)
    other_left = jnp.stack([moved(x) for x in other_a])
    axes = tuple(range(2, right.ndim))
    scaled = jnp.stack([held.signal(x) for x in right])
    along = jnp.sum(jnp.sum(left[None] * scaled, axes), 0) - _in_scale(held, boxed)
    in_signal = _share(along, jnp.sum(jnp.sum(other_left * scaled, axes), 0))
    return ProbeDerivative(
        left[None] - in_signal * other_left,
        right,
        variations - in_cells * crossed,
        held.box_columns,
        held.unturned(boxed),
        held.turned_back(known),
    )


def _share(forms: Array, crossed: Array) -> Array:
    """How much of `crossed`, which has no mean, to leave out of `forms`; probes come first."""
    deviation = forms - jnp.mean(forms, 0, keepdims=True)
    size = jnp.sum(crossed**2)
    share = jnp.sum(deviation * crossed) / jnp.where(size > 0, size, 1)
    return jnp.clip(share, 0, 1)


def _in_scale(held: Reference, boxed: Array) -> Array:
    """`cᵀ Λ c` per probe."""
    return jnp.sum(held.on_box(held.spectrum)[None] * boxed**2, -1)


def _predicted(held: Reference, sides: Array, solution: Array) -> Array:
    """`x_i = p g_i + q M g_i` with the `p` and `q` that come closest to `x = x₁ + x₂`."""
    moved = jnp.stack([held.mv(side) - side for side in sides])
    both = [jnp.sum(sides, 0), jnp.sum(moved, 0)]
    norms = jnp.sqrt(jnp.stack([jnp.sum(x**2) for x in both]))
    scale = jnp.where(norms > 0, norms, 1)
    both = [x / scale[k] for k, x in enumerate(both)]
    gram = jnp.stack([jnp.stack([jnp.sum(x * z) for z in both]) for x in both])
    # A ridge, for where the one is a multiple of the other.
    gram = gram + 1e3 * jnp.finfo(gram.dtype).eps * jnp.eye(2, dtype=gram.dtype)
    right = jnp.stack([jnp.sum(x * solution) for x in both])
    share = jnp.linalg.solve(gram, right) / scale
    return share[0] * sides + share[1] * moved


def _boxed(held: Reference, white: Array) -> tuple[Array, Array, Array]:
    """`c`, the mean of `c cᵀ`, and of the derivative in `V` what probes say of the box and more."""
    smooth, weight = held.on_box(held.smooth), held.on_box(held.filter)
    inside = held.in_box(white)
    b = weight[None] * matmul(inside, held.root_inverse)
    turned = smooth[:, None] * held.inside * weight[None]
    known = matmul(matmul(turned, held.box_inverse), turned.T)
    mean = _in_box(held, [basis.matrix() for basis in held.bases], held.filter)
    squares = held.box_to_cells(b) ** 2 - held.box_to_cells(weight[None] * inside) ** 2
    return smooth[None] * matmul(b, held.inside), known, squares - mean[None]


def probed_logdet(held: Reference, white: Array, krylov: Krylov) -> ProbedLogdet:
    """From probes over the spectrum and what the iteration found for each."""
    size = white[0].size
    forms = size * (krylov.log_form - (krylov.first - 1))
    error, spread = trace_error(forms, remainder_squares(held, krylov, white), size)
    return ProbedLogdet(
        forms=forms,
        error=error,
        standard_error=spread,
        left=size * jnp.mean(krylov.log_left),
        inverse=jnp.mean(jnp.sum(white * krylov.solution, tuple(range(1, white.ndim)))),
        derivative=probe_derivative(held, white, krylov.solution),
    )


def sensitivity(
    held: Reference, precisions: Array, squares: Array, trace: Array, inverse: Array
) -> tuple[Array, Array]:
    """How rounding of the matrices moves `yᵀ A⁻¹ y + log det A`, and the ratios signal over noise.

    The decomposition is that of a matrix within rounding of the signal, the product that of one
    within rounding of `M`: with `‖dK‖ = ε λ_max` it is `αᵀ dK α + tr (A⁻¹ dK)` and `tr (M⁻¹ dM)`.

    Args:
        held: the reference.
        precisions: of the noise, zero at the gaps.
        squares: `αᵀ α` per column, with `α = A⁻¹ y`.
        trace: `tr A⁻¹`.
        inverse: `tr M⁻¹`.
    """
    signal = jnp.max(held.spectrum) * (jnp.max(squares, initial=0.0) + trace)
    uneven = held.noise * jnp.max(precisions) * (inverse + jnp.sum(held.root_inverse**2))
    return signal + uneven, held.spectrum / held.noise


class SpectralPreconditioner(AbstractOneProduct):
    """One product, all axes of which are decomposed."""

    op: KroneckerPlusDiagonal
    reference: Reference
    iteration: Iteration = eqx.field(static=True)

    def known_logdet(self, op: KroneckerPlusDiagonal) -> Array:
        """`log det (I + wK) − Σ log W + tr (C − I)`, and the box."""
        held, precisions = self.reference, op.precisions
        noise, even = held.noise, self._even(op)
        variances = noise - noise**2 * even.inverse_diagonal()
        whole = even.logdet() - precisions.size * jnp.log(noise) + noise_logdet(op)
        return whole + jnp.sum((precisions - 1 / noise) * variances) + held.known_logdet

    def _even(self, op: KroneckerPlusDiagonal) -> Spectral | LowRank:
        """`S = K + I/w`, decomposed."""
        held, signal = self.reference, op.kronecker
        assert isinstance(signal, Kronecker)
        return signal_plus_noise(KroneckerPlusNoise(signal, held.noise, decomposition=held.bases))

    def probed(self, white: Array, krylov: Krylov) -> ProbedLogdet:
        """From probes over the spectrum and what the iteration found for each."""
        return probed_logdet(self.reference, white, krylov)

    def sensitivity(self, squares: Array, inverse: Array) -> tuple[Array, Array]:
        """Of the decomposition and of `M`."""
        precisions = self.op.precisions
        # The inverse of a part is below the part of the inverse.
        inverses = 1 / (self.reference.spectrum + 1 / jnp.max(precisions))
        trace = jnp.minimum(jnp.sum(precisions), jnp.sum(inverses))
        return sensitivity(self.reference, precisions, squares, trace, inverse)

    def certain_variances(self) -> Array:
        """Those of the even grid, and what uneven data explain less in the box."""
        held = self.reference
        matrices = [basis.matrix() for basis in held.bases]
        return self._even(self.op).posterior_diagonal() + _in_box(held, matrices, held.filter)

    def posterior_draws(self, key: Array, count: int) -> PosteriorDraws:
        """`A⁻¹ d = W u − W^½ g`, with the white noise `g` of the cells."""
        held, precisions = self.reference, self.op.precisions
        white, noise, krylov = self._drawn(key, count)
        fields = held.filtered(krylov.solution)
        return PosteriorDraws(
            fields=fields,
            rest=fields * (fields - held.filtered(white)),
            weights=precisions[None] * fields - jnp.sqrt(precisions)[None] * noise,
            ended=krylov.ended,
        )

    def _drawn(self, key: Array, count: int) -> tuple[Array, Array, Krylov]:
        """Draws with the covariance `M = L⁻¹ [1/(1 + wΛ) + t Qᵀ W Q t] L⁻ᵀ`; the noise in them."""
        held, precisions = self.reference, self.op.precisions
        shape = (count, *precisions.shape)
        prior, noise = (normal_numbers(k, shape, precisions.dtype) for k in jax.random.split(key))
        heard = held.filter[None] * held.to_spectrum(jnp.sqrt(precisions)[None] * noise)
        white = held.divided(jnp.sqrt(held.smooth)[None] * prior + heard)
        return white, noise, held.iterate(white, self.iteration)

    def explained(self, rows: Sequence[Array | None]) -> Estimate:
        """What data of the even grid explain, and how much less uneven ones do.

        With `G = ⊗(R_i Q_i Λ_i^-½)`, bounded as the covariance of `R` and the signal is positive,
        `diag(R (S⁻¹ − A⁻¹) Rᵀ)` is `diag(G s (C_p⁻¹ − I) s Gᵀ)` where `s² = 1/(1 + wΛ)` and
        `C_p = L M Lᵀ` is what is iterated on. A draw `x = L⁻ᵀ M⁻¹ h` has the covariance `C_p⁻¹` if
        `h` has `M`, and its covariance with `x₀ = L⁻ᵀ h` is `L⁻ᵀ L⁻¹`, known: the mean of
        `Gs x ∘ Gs (x − x₀)` is what is left. Where that is the less certain, the mean of `(Gs x)²`
        stands in, which cannot be negative.
        """
        held = self.reference
        roots = [_root(basis, row) for basis, row in zip(held.bases, rows, strict=True)]
        scale = jnp.sqrt(held.smooth)

        def to_rows(x: Array) -> Array:
            return apply_all(roots, scale[None] * held.divided(x, transpose=True))

        def draw(key: Array, count: int) -> Drawn:
            white, _, krylov = self._drawn(key, count)
            found = to_rows(krylov.solution)
            return Drawn(found * (found - to_rows(white)), found**2, krylov.ended)

        certain = apply_all([root**2 for root in roots], held.smooth)
        known = more_certain(_in_box(held, roots, scale), -certain)
        lacking = by_draws(self.op, self.iteration, certain.shape, draw, known)
        return lacking.scaled(-1.0).shifted(self._even(self.op).explained(self.rows(rows)))


def _root(basis: Eigenbasis, row: Array | None) -> Array:
    """`C_i Q_i Λ_i^-½`; eigenvalues that are rounding stand for directions without signal."""
    vectors, values = basis.matrix(), basis.values
    least = values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(values)
    has_signal = values > least
    inverse = jnp.where(has_signal, 1 / jnp.sqrt(jnp.where(has_signal, values, 1)), 0)
    if row is None:
        roots = jnp.where(has_signal, jnp.sqrt(jnp.where(has_signal, values, 0)), 0)
        return vectors * roots[None]
    return matmul(row, vectors) * inverse[None]


def _in_box(held: Reference, roots: Sequence[Array], scale: Array) -> Array:
    """`diag(G s (L⁻ᵀ L⁻¹ − I) s Gᵀ)`, axis by axis."""
    inner = held.on_box(scale)
    lacking = held.box_inverse - jnp.eye(len(inner), dtype=inner.dtype)
    return held.box_diagonal(roots, inner[:, None] * lacking * inner[None])
