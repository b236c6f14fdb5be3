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

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, apply_all, matmul
from kronax.linalg.estimates.certificates import ROUNDING, trace_error
from kronax.linalg.krylov.boxed_sum import BoxedSum
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.krylov.markov_reference import (
    MarkovReference,
    markov_derivative,
)
from kronax.linalg.krylov.preconditioner import Reference, remainder_squares
from kronax.linalg.operators.kronecker import Kronecker


class ProbeDerivative(NamedTuple):
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
    lacking = held.box_inverse - jnp.eye(len(weight), dtype=weight.dtype)
    roots = [basis.matrix() for basis in held.bases]
    mean = held.box_diagonal(roots, weight[:, None] * lacking * weight[None])
    squares = held.box_to_cells(b) ** 2 - held.box_to_cells(weight[None] * inside) ** 2
    return smooth[None] * matmul(b, held.inside), known, squares - mean[None]


def trace_surrogate(
    signal: Kronecker | BoxedSum, precisions: Array, found: ProbeDerivative
) -> Array:
    """A function of the operands with the right derivative, per probe."""
    axes = tuple(range(1, precisions.ndim + 1))
    along = jnp.sum(jnp.sum(found.left * signal.mv_grid(found.right), 0), axes)
    if isinstance(signal, BoxedSum):
        c = found.boxed
        boxed = jnp.sum(c * matmul(c, signal.inside), -1) - jnp.sum(found.known * signal.inside)
    else:
        boxed = _in_box(signal, found)
    return jnp.sum(precisions[None] * found.variations, axes) - (along - boxed)


def _in_box(kronecker: Kronecker, found: ProbeDerivative) -> Array:
    """`cᵀ (UᵀK U) c` per probe, less its mean."""
    matrices = [
        matmul(u.T, factor.mv_along(u, -2))
        for u, factor in zip(found.columns, kronecker.factors, strict=True)
    ]
    sizes = [m.shape[0] for m in matrices]
    c = found.boxed.reshape(-1, *sizes)
    forms = jnp.sum(c * apply_all(matrices, c), tuple(range(1, c.ndim)))
    mean = found.known.reshape(*sizes, *sizes)
    for matrix in matrices:
        pairs = jnp.moveaxis(mean, mean.ndim // 2, 1)
        mean = jnp.tensordot(matrix, pairs, axes=2, precision=HIGHEST)
    return forms - mean


class ProbedLogdet(NamedTuple):
    """`tr [log M − (M − I)]` by probes, where `M` is the reference's `L⁻¹ C L⁻ᵀ`.

    Args:
        forms: what each probe says.
        error: half of a 99 % interval around their mean.
        standard_error: of their mean.
        left: what the iterations leave, at most.
        inverse: `tr M⁻¹`, likewise by probes.
        derivative: what the differential is made of.
    """

    forms: Array
    error: Array
    standard_error: Array
    left: Array
    inverse: Array
    derivative: Any


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


def probed_along(held: MarkovReference, white: Array, krylov: Krylov) -> ProbedLogdet:
    """`log det C` less the known trace of `C − I`, from probes at the cells that lack something.

    The logarithm is compared with the multiple of `C − I` that is closest over the spectrum that
    the probes saw: all of it lies below one.
    """
    size = jnp.sum(white[0] ** 2)
    cross, second = jnp.sum(krylov.cross), jnp.sum(krylov.second)
    seen = second > jnp.finfo(white.dtype).eps ** 0.5
    share = jnp.where(seen, jnp.maximum(cross / jnp.where(seen, second, 1), 1), 1)
    forms = size * (krylov.log_form - share * (krylov.first - 1))
    squares = krylov.log_square - 2 * share * krylov.cross + share**2 * krylov.second
    squares = size * jnp.where(seen, jnp.maximum(squares, 0), krylov.second)
    error, spread = trace_error(forms, squares, size)
    return ProbedLogdet(
        forms=forms + (share - 1) * held.known_logdet,
        error=error,
        standard_error=spread,
        left=size * jnp.mean(krylov.log_left),
        inverse=jnp.mean(jnp.sum(white * krylov.solution, tuple(range(1, white.ndim)))),
        derivative=markov_derivative(held, white, krylov.solution),
    )


def rounding_of(
    held: Reference, precisions: Array, y: Array, quadratics: Array, sizes: tuple[Array, ...]
) -> Array:
    """By how much rounding may move `yᵀ A⁻¹ y + log det A`, for the worst of the columns.

    The decomposition is that of a matrix within rounding of the signal, the product that of one
    within rounding of `M`: with `‖dK‖ = ε λ_max` it is `αᵀ dK α + tr (A⁻¹ dK)` and `tr (M⁻¹ dM)`.

    Args:
        held: the reference.
        precisions: of the noise, zero at the gaps.
        y: the columns.
        quadratics: `yᵀ A⁻¹ y`.
        sizes: `αᵀ α` per column, `tr A⁻¹` and `tr M⁻¹`.
    """
    weights, trace, inverse = sizes
    spectrum, most = held.spectrum, jnp.max(precisions)
    signal = jnp.max(spectrum) * (jnp.max(weights, initial=0.0) + trace)
    uneven = held.noise * most * (inverse + jnp.sum(held.root_inverse**2))
    scale = jnp.sum(precisions[None] * y**2, tuple(range(1, y.ndim)))
    data = jnp.max(scale * jnp.abs(quadratics), initial=0.0)
    logs = jnp.sum(jnp.abs(jnp.log(jnp.where(precisions > 0, precisions, 1))))
    sums = logs + jnp.sum(jnp.log1p(spectrum / held.noise)) + precisions.size
    return ROUNDING * jnp.finfo(y.dtype).eps * (signal + uneven + jnp.sqrt(data) + sums)
