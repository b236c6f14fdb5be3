"""Operators with thin factors, `K_i = L_i L_iᵀ` with few columns, brought to a small grid.

With `S = ⊗K_i + ⊗N_i` and the noise of every thin axis diagonal, whiten these axes, so that their
noise is the identity. Outside the range of the thin roots `S` is then the noise of the other axes,
and inside it has the determinant of the *reduced* operator, in which a thin factor is the small
Gram matrix `L_iᵀ L_i`. From the roots to the reduced operator everything is ordinary
differentiable code: the derivative rules see small blocks only.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.fingerprints import held
from kronax.linalg.arrays.lapack_order import in_sequence
from kronax.linalg.arrays.mode_products import along, apply_along, matmul, outer, same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.transforms import Identity
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, eigenbasis, expand
from kronax.linalg.factors.square_roots import symmetric_root
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.value_and_rules import spectrum


class ThinBases(eqx.Module):
    """The decomposition of an operator with thin factors.

    Args:
        reduced: eigenbases of the reduced operator, one per axis.
        ranges: `U` `(*batch, n, r)` per thin axis, an orthonormal basis of the range of its
            whitened root in which the signal is diagonal; `None` for the other axes.
        scales: `1/√ν` per thin axis with noise `diag(ν)`; `None` where the noise is one number.
    """

    reduced: tuple[Eigenbasis, ...]
    ranges: tuple[Array | None, ...]
    scales: tuple[Array | None, ...]

    @property
    def event_ndims(self) -> "ThinBases":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return ThinBases(
            tuple(b.event_ndims for b in self.reduced),
            tuple(None if u is None else 2 for u in self.ranges),  # type: ignore[misc]
            tuple(None if s is None else 1 for s in self.scales),  # type: ignore[misc]
        )

    def solve(self, b: Array) -> Array:
        """`S⁻¹ b` for a grid array `b` (no batch)."""
        return self._whiten(self._unrotate_others(self.divided(b, lambda d: d)))

    def divided(self, b: Array, function: Callable[[Array], Array]) -> Array:
        """`b` whitened, in the bases of the axes that are not thin, over `function(eigenvalues)`.

        What is outside the range is found by subtraction, twice: the noise that it is divided by
        can be small, and would magnify what one subtraction leaves of the rest.
        """
        x = self._rotate_others(self._whiten(b))
        inside = self._project(x)
        outside = x - self._embed(inside)
        outside = outside - self._embed(self._project(outside))
        values, noise = function(spectrum(self.reduced)), function(self._noise())
        inside = self._embed(jnp.divide(*same_rank(inside, values)))
        return inside + jnp.divide(*same_rank(outside, noise))

    def inverse_diagonal(self) -> Array:
        """The diagonal of `S⁻¹` as a sum of terms that are not negative (no batch).

        Outside the range it is that of the noise, times what of each unit vector is there: with
        the squared lengths `e_i` inside, `1 − ∏ e_i = Σ_i (∏_{j<i} e_j) (1 − e_i)`.
        """
        inside, outside = 1 / spectrum(self.reduced), 1 / self._noise()
        rest, inner, scale = (jnp.full((), x, inside.dtype) for x in (0, 1, 1))
        for i, (basis, u, s) in enumerate(zip(self.reduced, self.ranges, self.scales, strict=True)):
            axis = i - len(self.ranges)
            squares = jnp.square(basis.matrix() if u is None else u)
            inside = apply_along(squares, inside, axis)
            if u is None:
                outside = apply_along(squares, outside, axis)
                continue
            length = along(jnp.sum(squares, axis=-1), axis, inside.ndim)
            rest = rest + inner * jnp.maximum(1 - length, 0)
            inner = inner * length
            scale = scale if s is None else scale * along(jnp.square(s), axis, inside.ndim)
        return scale * (inside + outside * rest)

    def _noise(self) -> Array:
        """The noise in the bases of the axes that are not thin."""
        noise = outer(
            [
                basis.noise_values if u is None else basis.noise_values[:1]
                for basis, u in zip(self.reduced, self.ranges, strict=True)
            ]
        )
        return where(noise > 0, noise, jnp.nan)  # outside, the noise is all there is

    def _project(self, x: Array) -> Array:
        for i, u in enumerate(self.ranges):
            x = x if u is None else apply_along(u.T, x, i - len(self.ranges))
        return x

    def _embed(self, x: Array) -> Array:
        for i, u in enumerate(self.ranges):
            x = x if u is None else apply_along(u, x, i - len(self.ranges))
        return x

    def _whiten(self, x: Array) -> Array:
        for i, s in enumerate(self.scales):
            x = x if s is None else x * along(s, i - len(self.scales), x.ndim)
        return x

    def _rotate_others(self, x: Array) -> Array:
        for i, (basis, u) in enumerate(zip(self.reduced, self.ranges, strict=True)):
            x = basis.rotate(x, i - len(self.ranges)) if u is None else x
        return x

    def _unrotate_others(self, x: Array) -> Array:
        for i, (basis, u) in enumerate(zip(self.reduced, self.ranges, strict=True)):
            x = basis.unrotate(x, i - len(self.ranges)) if u is None else x
        return x


def thin_roots(op: KroneckerPlusNoise) -> list[Array | None]:
    """The thin roots of the axes on which the noise is diagonal; in a sum there are none."""
    if isinstance(op.kronecker, KroneckerSum):
        return [None] * len(op.factors)
    noise = op.noise.factors if isinstance(op.noise, Kronecker) else [None] * len(op.factors)
    return [
        k.thin_root() if n is None or is_diagonal(n) else None
        for k, n in zip(op.factors, noise, strict=True)
    ]


def is_thin(op: Any) -> bool:
    """Whether any axis is treated as thin; a static fact. With gaps none is."""
    if not isinstance(op, KroneckerPlusNoise):
        return False
    return any(root is not None for root in thin_roots(op))


def is_diagonal(factor: AbstractFactor) -> bool:
    """Whether the factor is made as a diagonal matrix; a static fact."""
    blocks = factor.blocks()
    return len(blocks.ndims) == 1 and blocks.ndims[0] < 2 and blocks.transform == Identity()


def noise_factors(op: KroneckerPlusNoise) -> tuple[AbstractFactor, ...]:
    """The noise as one factor per axis; the first carries a variance."""
    if isinstance(op.noise, Kronecker):
        return op.noise.factors
    one = jnp.ones((), op.dtype)
    return tuple(ScaledIdentity(one if i else op.noise, n) for i, n in enumerate(op.grid_shape))


def whitened(noise: AbstractFactor, matrix: Array) -> Array:
    """`N^{-1/2} M`, by Cholesky where the noise is not diagonal."""
    if is_diagonal(noise):
        return jnp.divide(*same_rank(matrix, jnp.sqrt(noise.diagonal())[..., None]))
    root = jnp.linalg.cholesky(noise.to_dense())
    batch = jnp.broadcast_shapes(root.shape[:-2], matrix.shape[:-2])
    root, matrix = (jnp.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (root, matrix))
    return lax.linalg.triangular_solve(root, matrix, left_side=True, lower=True)


def unwhitened(noise: AbstractFactor) -> Array:
    """`N^{1/2}`, whose inverse `whitened` applies."""
    if is_diagonal(noise):
        return jnp.sqrt(noise.diagonal())[..., None] * jnp.eye(noise.size, dtype=noise.dtype)
    return jnp.linalg.cholesky(noise.to_dense())


def _whitened_roots(op: KroneckerPlusNoise) -> tuple[list[Array | None], list[Array | None]]:
    """Thin roots of the whitened operator, and the noise variances that they were divided by."""
    roots = thin_roots(op)
    if not isinstance(op.noise, Kronecker):
        return roots, [None] * len(roots)
    variances = [
        None if root is None else noise.diagonal()
        for root, noise in zip(roots, op.noise.factors, strict=True)
    ]
    whitened = [
        None if root is None or v is None else jnp.divide(*same_rank(root, jnp.sqrt(v)[..., None]))
        for root, v in zip(roots, variances, strict=True)
    ]
    return whitened, variances


def reduced(op: KroneckerPlusNoise) -> KroneckerPlusNoise:
    """The operator on the small grid; it carries its decomposition if `op` does."""
    small = _reduced(op)
    if not isinstance(op.decomposition, ThinBases):
        return small
    bases = held(op, op.decomposition).reduced
    return KroneckerPlusNoise(small.kronecker, small.noise, decomposition=bases)


def _reduced(op: KroneckerPlusNoise) -> KroneckerPlusNoise:
    roots, _ = _whitened_roots(op)
    signal = Kronecker(
        *(
            factor if root is None else Dense(matmul(jnp.swapaxes(root, -1, -2), root))
            for factor, root in zip(op.factors, roots, strict=True)
        )
    )
    noise = op.noise
    if isinstance(noise, Kronecker):
        one = jnp.ones((), op.dtype)
        noise = Kronecker(
            *(
                factor if root is None else ScaledIdentity(one, root.shape[-1])
                for factor, root in zip(noise.factors, roots, strict=True)
            )
        )
    return KroneckerPlusNoise(signal, noise)


def rows_inside(op: KroneckerPlusNoise, rows: Sequence[tuple[Array, Array | None]]) -> list[Array]:
    """Rows `C'` for which `C' (reduced op)⁻¹ C'ᵀ` is `C op⁻¹ Cᵀ`.

    Per axis `C_i`, and for a thin axis the `M` of `C_i = M L_iᵀ` beside it. It holds because
    `Lᵀ S⁻¹ L = G^{1/2} (reduced op)⁻¹ G^{1/2}` with `G = Lᵀ L`.
    """
    inside, weighted = rows_of_reduced(op, rows)
    grams = _reduced(op).factors
    return [
        matmul(row, symmetric_root(grams[i].to_dense())) if i in weighted else row
        for i, row in enumerate(inside)
    ]


def rows_of_reduced(
    op: KroneckerPlusNoise, rows: Sequence[tuple[Array, Array | None]]
) -> tuple[list[Array], tuple[int, ...]]:
    """The same rows without `G^{1/2}`, and the axes on which it belongs between."""
    inside, weighted = [], []
    for i, (root, (row, short)) in enumerate(zip(thin_roots(op), rows, strict=True)):
        if root is None or short is None:
            inside.append(row)
        else:
            inside.append(short)
            weighted.append(i)
    return inside, tuple(weighted)


def logdet_outside(op: KroneckerPlusNoise) -> Array:
    """What `logdet S` has beside the log-determinant of the reduced operator."""
    roots, variances = _whitened_roots(op)
    sizes = op.grid_shape
    thin = [i for i, root in enumerate(roots) if root is not None]
    full = prod(sizes[i] for i in thin)
    inside = prod(root.shape[-1] for root in roots if root is not None)
    if not isinstance(op.noise, Kronecker):
        return (full - inside) * prod(sizes) / full * jnp.log(op.noise)
    total = jnp.zeros((), op.dtype)
    for i, v in enumerate(variances):
        if v is not None:
            added = prod(sizes) / sizes[i] * jnp.sum(jnp.log(v), axis=-1)
            total = jnp.add(*same_rank(total, added))
    others = [i for i in range(len(sizes)) if i not in thin]
    rest = prod(sizes[i] for i in others)
    for i in others:
        factor = op.noise.factors[i]
        value = factor.log_abs_det(factor.factorize(positive_definite=True))
        total = jnp.add(*same_rank(total, (full - inside) * rest / sizes[i] * value))
    return total


def decomposition(op: KroneckerPlusNoise) -> ThinBases:
    """The decomposition of a thin operator, held constant: computed, or the one it carries."""
    if isinstance(op.decomposition, ThinBases):
        return lax.stop_gradient(held(op, op.decomposition))
    roots, variances = _whitened_roots(op)
    terms = zip(roots, *_reduced(op).blocks(), strict=True)
    batched = bool(op.batch_shape)
    found = in_sequence(lambda term: _basis(*term), terms, batched=batched)
    scales = tuple(None if v is None else lax.stop_gradient(1 / jnp.sqrt(v)) for v in variances)
    return ThinBases(tuple(b for b, _ in found), tuple(u for _, u in found), scales)


def thin_bases_with_axis(op: KroneckerPlusNoise, bases: ThinBases, i: int) -> ThinBases:
    """The decomposition of `op`, with `bases` on every axis but `i`."""
    roots, variances = _whitened_roots(op)
    signal, noise = _reduced(op).blocks()
    basis, span = _basis(roots[i], signal[i], noise[i])
    v = variances[i]
    scale = None if v is None else lax.stop_gradient(1 / jnp.sqrt(v))

    def put(values: tuple, value: Any) -> tuple:
        return (*values[:i], value, *values[i + 1 :])

    return ThinBases(put(bases.reduced, basis), put(bases.ranges, span), put(bases.scales, scale))


def _basis(
    root: Array | None, signal: SymmetricBlocks, noise: SymmetricBlocks
) -> tuple[Eigenbasis, Array | None]:
    """The eigenbasis on one axis of the small grid, and the range of a thin root.

    By QR and the singular values of the small triangle: the eigenvectors of `L Lᵀ` made from those
    of `Lᵀ L` would lose their orthogonality.
    """
    if root is None:
        return eigenbasis(signal, noise), None
    anchor = jnp.zeros((), root.dtype) * root.ravel()[0]
    root, level = lax.stop_gradient((root, noise.arrays[0]))
    q, triangle = jnp.linalg.qr(root)
    left, singular, right = jnp.linalg.svd(triangle, full_matrices=False)
    found = Eigenbasis(
        blocks=(jnp.swapaxes(right, -1, -2),),
        values=jnp.square(singular),
        noise_values=expand(level, 0, root.shape[-1]),
        log_abs_det=None,
        anchor=anchor,
        sizes=(root.shape[-1],),
    )
    return found, matmul(q, left)
