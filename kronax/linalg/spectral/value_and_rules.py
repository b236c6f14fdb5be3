"""`a · log det S + b · yᵀ S⁻¹ y` of a two-term sum `S = ⊗K_i + ⊗N_i`, right to second order.

The signal may be a Kronecker sum `⊕K_i` as well, whose eigenvalues add up: only what `D` is, and
its derivative in `λ_i`, one in place of `⊗_{j≠i} λ_j`, are different then.

Automatic differentiation of `eigh` divides by differences of eigenvalues; nothing here does. The
value comes from the eigenbasis. Its gradient in the blocks is known in closed form. The
derivative of that gradient is the ordinary derivative of the gradient of a *surrogate*: a
function of `B_i = W_iᵀ K_i W_i` and `M_i = W_iᵀ N_i W_i` with the bases `W_i` frozen, which agrees
with the true function to second order. A third order raises.

Everything here is for one operator and one vector; the primitives carry batches themselves.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.fibres import shared_like
from kronax.linalg.arrays.mode_products import (
    along,
    apart,
    apply_along,
    gram,
    matmul,
    outer,
    sum_others,
)
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import (
    LinearPrimitive,
    RulePrimitive,
    by_gradient,
    by_product,
    gradient_along,
)
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, expand, split_blocks

Weights = tuple[float, float]
# Grids of at least this many cells are handled block after block: half the memory, for at most a
# tenth more time (2 cores).
LARGE = 2_000_000


class TwoTermSum(NamedTuple):
    """What is differentiated: the blocks of both terms per axis, and the vector."""

    signal: tuple[SymmetricBlocks, ...]
    noise: tuple[SymmetricBlocks, ...]
    y: Any


def spectrum(bases: tuple[Eigenbasis, ...]) -> Array:
    """`D = ⊗λ + ⊗μ`, the eigenvalues of `S` as a grid array; NaN where it is not positive."""
    signal = _signal([b.values for b in bases], bases[0].adds)
    total = signal + outer([b.noise_values for b in bases])
    return where(total > 0, total, jnp.nan)


def _signal(values: list[Array], adds: bool) -> Array:
    """`⊗λ`, or `⊕λ`, as a grid array."""
    if not adds:
        return outer(values)
    first, *rest = (along(v, i - len(values), len(values)) for i, v in enumerate(values))
    return sum(rest, first)


def signal_slopes(values: list[Array], adds: bool) -> list[Array]:
    """What the derivative of `D` in `λ_i` is the outer product of, over the other axes."""
    return [jnp.ones_like(v) for v in values] if adds else values


def rotate(bases: tuple[Eigenbasis, ...], x: Array) -> Array:
    """`Wᵀ` along every axis."""
    for i, basis in enumerate(bases):
        x = basis.rotate(x, i - len(bases))
    return x


def unrotate(bases: tuple[Eigenbasis, ...], x: Array) -> Array:
    """`W` along every axis."""
    for i, basis in enumerate(bases):
        x = basis.unrotate(x, i - len(bases))
    return x


def log_det_basis(bases: tuple[Eigenbasis, ...]) -> Array | float:
    """`log det (⊗W_i)²`: zero for orthonormal bases."""
    num_cells = prod(b.values.shape[-1] for b in bases)
    return sum(
        2 * (num_cells / b.values.shape[-1]) * b.log_abs_det
        for b in bases
        if b.log_abs_det is not None
    )


def _value(problem: TwoTermSum, bases: tuple[Eigenbasis, ...], *, weights: Weights) -> Array:
    on_logdet, on_quadratic = weights
    d = spectrum(bases)
    total = jnp.zeros((), d.dtype)
    if on_logdet:
        total += on_logdet * (jnp.sum(jnp.log(d)) - log_det_basis(bases))
    if on_quadratic:
        total += on_quadratic * jnp.sum(jnp.square(rotate(bases, problem.y)) / d)
    return total


def _gradient(
    problem: TwoTermSum,
    bases: tuple[Eigenbasis, ...],
    *,
    weights: Weights,
    needed: tuple[bool, ...],
) -> list[Array]:
    """The gradient of `_value` in the leaves of `problem` that are `needed`.

    With `A = Wᵀy / D`, `λ_{-i}` the product over the other axes, and `f_i` the sum of
    `λ_{-i} / D` over them: `K_i` has `W_i [a diag(f_i) − b A_(i) diag(λ_{-i}) A_(i)ᵀ] W_iᵀ`, `N_i`
    the same with `μ`, and `y` has `2 b W A`.
    """
    on_quadratic = weights[1]
    d = spectrum(bases)
    a = rotate(bases, problem.y) / d if on_quadratic else None
    wanted = iter(needed)
    slopes: list[Array] = []
    for blocks, values in (
        (problem.signal, signal_slopes([b.values for b in bases], bases[0].adds)),
        (problem.noise, [b.noise_values for b in bases]),
    ):
        for i, block in enumerate(blocks):
            want = [next(wanted) for _ in block.arrays]
            if any(want):
                slopes += _axis_gradients(block, bases, i, want, values, d, a, weights, slopes)
    if a is not None and next(wanted):
        slopes.append(2 * on_quadratic * unrotate(bases, a))
    return slopes


def _axis_gradients(block, bases, i, want, values, d, a, weights, earlier):
    """The gradient in the blocks of axis `i`; `values` of the others make its weights."""
    on_logdet, on_quadratic = weights
    axis, basis = i - len(bases), bases[i]

    def others(done: list[Array]) -> Array:
        return outer(_after(values, done, d.size), skip=i)

    diagonal = jnp.zeros(d.shape[axis], d.dtype)
    if on_logdet:
        diagonal += on_logdet * sum_others(others(earlier) / d, axis)
    slopes: list[Array] = []
    a_parts = [None] * len(block.sizes) if a is None else split_blocks(a, block.sizes, axis)
    for ndim, w, wanted, diagonal_k, a_k in zip(
        block.ndims,
        basis.blocks,
        want,
        split_blocks(diagonal, block.sizes, -1),
        a_parts,
        strict=True,
    ):
        if not wanted:
            continue
        weight = others([*earlier, diagonal, *slopes])
        if ndim == 0 or w is None:
            if a_k is not None:
                diagonal_k -= on_quadratic * sum_others(weight * jnp.square(a_k), axis)
            slopes.append(jnp.sum(diagonal_k) if ndim == 0 else diagonal_k)
        elif ndim == 1:
            slope = jnp.diag(diagonal_k)
            if a_k is not None:
                slope -= on_quadratic * _weighted_gram(weight, a_k, axis)
            slopes.append(jnp.sum(matmul(w, slope) * w, axis=-1))
        else:
            slopes.append(_full_gradient(w, diagonal_k, weight, a_k, axis, on_quadratic))
    return slopes


def _after(values: list[Array], done: list[Array], num_cells: int) -> list[Array]:
    """`values`, on a large grid not before the last of `done`.

    XLA would make the unfolded copies of several blocks at once. Zero times a number is not
    simplified away (it might be NaN), so that the order holds.
    """
    if not done or num_cells < LARGE:
        return values
    token = 0 * done[-1].ravel()[0]
    return [v + token for v in values]


def _full_gradient(w, diagonal, others, a, axis, on_quadratic):
    """`W [diag − b A_(i) diag(λ_{-i}) A_(i)ᵀ] Wᵀ`, the quadratic part in the cheaper order."""
    size = w.shape[0]
    if a is None:
        return apart(matmul(w * diagonal[None], w.T))
    if a.size >= size * size:
        slope = jnp.diag(diagonal) - on_quadratic * _weighted_gram(others, a, axis)
        return apart(matmul(matmul(w, slope), w.T))
    # Few other cells: their part has low rank, and needs no product of two n × n matrices.
    turned = apply_along(w, a, axis)
    return apart(
        matmul(w * diagonal[None], w.T) - on_quadratic * _weighted_gram(others, turned, axis)
    )


def _weighted_gram(weights: Array, a: Array, axis: int) -> Array:
    """`A_(i) diag(w) A_(i)ᵀ` for weights that are not negative: one scaled copy of `A`."""
    scaled = jnp.sqrt(weights) * a
    return gram(scaled, scaled, axis)


def _hessian_product(
    coefficients: tuple[TwoTermSum, tuple[Eigenbasis, ...]],
    moving: list[Array],
    *,
    weights: Weights,
    needed: tuple[bool, ...],
    given: tuple[bool, ...],
) -> list[Array]:
    """The derivative of `_gradient` along `moving`, the tangents of the `given` leaves."""
    problem, bases = coefficients
    here, treedef = jax.tree.flatten(in_basis(problem, bases))
    to_basis, from_basis = rotations(problem, bases)
    turns = [turn for turn, is_given in zip(to_basis, given, strict=True) if is_given]
    tangents = [turn(t) for turn, t in zip(turns, moving, strict=True)]
    start = rotate(bases, problem.y) / spectrum(bases) if weights[1] else None

    def value(*leaves: Array) -> Array:
        moved = jax.tree.unflatten(treedef, leaves)
        return _surrogate(moved, spectrum(bases), start, weights, bases[0].adds)

    turned = gradient_along(value, here, tangents, given=given, needed=needed)
    backs = [back for back, is_needed in zip(from_basis, needed, strict=True) if is_needed]
    return [back(t) for back, t in zip(backs, turned, strict=True)]


def in_basis(problem: TwoTermSum, bases: tuple[Eigenbasis, ...]) -> TwoTermSum:
    """The problem as the surrogate sees it: exactly diagonal blocks, the rotated vector."""

    def turned(block, basis, values):
        arrays = []
        pieces = split_blocks(values, block.sizes, -1)
        for ndim, w, own, piece in zip(
            block.ndims, basis.blocks, block.arrays, pieces, strict=True
        ):
            full = w is not None and ndim > 0
            arrays.append(own if ndim == 0 else jnp.diag(piece) if full else piece)
        ndims = tuple(
            2 if w is not None and ndim > 0 else ndim
            for ndim, w in zip(block.ndims, basis.blocks, strict=True)
        )
        return SymmetricBlocks(tuple(arrays), ndims, block.sizes)

    return TwoTermSum(
        tuple(turned(k, b, b.values) for k, b in zip(problem.signal, bases, strict=True)),
        tuple(turned(n, b, b.noise_values) for n, b in zip(problem.noise, bases, strict=True)),
        None if problem.y is None else rotate(bases, problem.y),
    )


def rotations(problem: TwoTermSum, bases: tuple[Eigenbasis, ...]):
    """Per leaf of `problem`: its tangent taken to the eigenbasis, and a gradient taken back."""
    to_basis: list[Callable] = []
    from_basis: list[Callable] = []
    for blocks in (problem.signal, problem.noise):
        for block, basis in zip(blocks, bases, strict=True):
            for ndim, w in zip(block.ndims, basis.blocks, strict=True):
                if w is None or ndim == 0:
                    to_basis.append(lambda t: t)
                    from_basis.append(lambda g: g)
                elif ndim == 1:
                    to_basis.append(lambda t, w=w: matmul(w.T, t[:, None] * w))
                    from_basis.append(lambda g, w=w: jnp.sum(matmul(w, g) * w, axis=-1))
                else:
                    to_basis.append(lambda t, w=w: _congruence(w.T, (t + t.T) / 2))
                    from_basis.append(lambda g, w=w: _congruence(w, (g + g.T) / 2))
    if problem.y is not None:
        to_basis.append(lambda t: rotate(bases, t))
        from_basis.append(lambda g: unrotate(bases, g))
    return to_basis, from_basis


def _congruence(w: Array, m: Array) -> Array:
    return matmul(matmul(w, m), w.T)


def _surrogate(
    problem: TwoTermSum, d0: Array, start: Array | None, weights: Weights, adds: bool
) -> Array:
    """Agrees with `_value` to second order around diagonal blocks, with frozen bases.

    `log det (D + O) = Σ log D − ½ tr(D⁻¹ O D⁻¹ O) + …` for an off-diagonal `O`, in which
    off-diagonal parts of different axes do not meet. For the quadratic form one step of
    refinement, `a₁ = a₀ + D⁻¹ (ŷ − S a₀)`, leaves an error of fourth order in `2 a₁ᵀŷ − a₁ᵀ S a₁`.
    """
    on_logdet, on_quadratic = weights
    signal, noise = ([diagonal_of(b) for b in blocks] for blocks in (problem.signal, problem.noise))
    total = jnp.zeros((), d0.dtype)
    if on_logdet:
        d = _signal(signal, adds) + outer(noise)
        d = d if start is None else shared_like(d, start)
        total += on_logdet * jnp.sum(jnp.log(d))
        slopes = signal_slopes(signal, adds)
        for i in range(len(signal)):
            total -= on_logdet / 2 * _coupling(problem, i, slopes, noise, d)
    if start is not None:

        def apply(x):
            return apply_blocks(problem.signal, x, adds) + apply_blocks(problem.noise, x)

        refined = start + (problem.y - apply(start)) / d0
        total += on_quadratic * jnp.sum(refined * (2 * problem.y - apply(refined)))
    return total


def _coupling(problem: TwoTermSum, i: int, signal, noise, d: Array) -> Array:
    """`Σ O_ac² / (D_a D_c)` over the off-diagonal entries along axis `i`."""
    axis = i - len(signal)
    k_block, n_block = problem.signal[i], problem.noise[i]
    k_others, n_others = outer(signal, skip=i), outer(noise, skip=i)
    total = jnp.zeros((), d.dtype)
    for k, k_ndim, n, n_ndim, d_k in zip(
        k_block.arrays,
        k_block.ndims,
        n_block.arrays,
        n_block.ndims,
        split_blocks(d, k_block.sizes, axis),
        strict=True,
    ):
        if k_ndim == 2:
            share = k_others / d_k
            total += jnp.sum(jnp.square(off_diagonal(k)) * gram(share, share, axis))
        if n_ndim == 2:
            share = n_others / d_k
            total += jnp.sum(jnp.square(off_diagonal(n)) * gram(share, share, axis))
        if k_ndim == n_ndim == 2:
            both = off_diagonal(k) * off_diagonal(n)
            total += 2 * jnp.sum(both * gram(k_others / d_k, n_others / d_k, axis))
    return total


def off_diagonal(matrix: Array) -> Array:
    """The matrix with zeros on its diagonal."""
    return matrix - jnp.diag(jnp.diagonal(matrix))


def diagonal_of(block: SymmetricBlocks) -> Array:
    """The diagonal of the blocks, in their coordinates."""
    pieces = [
        jnp.diagonal(a) if ndim == 2 else expand(a, ndim, size)
        for a, ndim, size in zip(block.arrays, block.ndims, block.sizes, strict=True)
    ]
    return jnp.concatenate(pieces)


def apply_blocks(blocks: tuple[SymmetricBlocks, ...], x: Array, adds: bool = False) -> Array:
    """`⊗`, or `⊕`, of block-diagonal matrices applied to a grid."""
    if adds:
        first, *rest = (block.apply(x, i - len(blocks)) for i, block in enumerate(blocks))
        return sum(rest, first)
    for i, block in enumerate(blocks):
        x = block.apply(x, i - len(blocks))
    return x


hessian_product = LinearPrimitive(
    "kronax_hessian_product", _hessian_product, "A log-determinant or quadratic form"
)
gradient = RulePrimitive("kronax_gradient", _gradient, by_product(hessian_product))
log_det_and_quadratic = RulePrimitive("kronax_value", _value, by_gradient(gradient))
