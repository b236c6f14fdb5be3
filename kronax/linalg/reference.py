"""The even grid that an uneven one is compared with, and what is left between the two.

Let `A = K + diag(1/W)` at the observed cells, with `W = 0` at gaps, and let `w` be the mean of `W`
over the whole grid. `S = K + I/w` is the *reference*: exact, cheap, no gaps. With `K = Q Λ Qᵀ`,
`t = √(Λ / (1 + wΛ))` and `V = W − w`,

    log det A = log det (I + w K) − Σ_observed log W + log det C,   C = I + t Qᵀ V Q t,
    A⁻¹ b = W (b − Q t C⁻¹ t Qᵀ W b).

`t` keeps only what the signal can tell from noise, and there the mean of `W` is a good stand-in
for `W` itself: for scattered gaps and for noise that varies from cell to cell the eigenvalues of
`C` are within a factor of a few. Long gaps leave small ones, whose vectors are smooth: on the top
of the spectrum, a box of `r_1 × … × r_d` eigenvectors, `C` is therefore built and factorised.
"""

from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.eigenbases import Eigenbasis
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.modes import HIGHEST, left_product, outer
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.sequence import matrix_by_matrix
from kronax.linalg.spectral import rotate, unrotate

# Products of two eigenvectors of an axis, cells times pairs, that are held at once.
MOST_PAIRS = 20_000_000


class Reference(eqx.Module):
    """The reference of an uneven grid, held constant, and the preconditioned `C`.

    Args:
        bases: of the signal, one per axis.
        noise: `1 / w`.
        filter: `t`, a grid array over the spectrum.
        smooth: `1 / (1 + w Λ)`, likewise.
        excess: `V`, a grid array.
        box: per axis the indices of the largest eigenvalues, over whose product `C` is exact.
        root: the Cholesky factor `L` of `C` there.
        root_inverse: `L⁻¹`; a triangular solve in every iteration would be slower.
    """

    bases: tuple[Eigenbasis, ...]
    noise: Array
    filter: Array
    smooth: Array
    excess: Array
    box: tuple[Array, ...]
    root: Array
    root_inverse: Array

    def to_spectrum(self, x: Array) -> Array:
        """`Qᵀ` for columns `(k, *grid)`."""
        return jax.vmap(lambda v: rotate(self.bases, v))(x)

    def to_cells(self, x: Array) -> Array:
        """`Q` for columns `(k, *grid)`."""
        return jax.vmap(lambda v: unrotate(self.bases, v))(x)

    def smoothed(self, x: Array) -> Array:
        """`(I + w K)⁻¹`, which leaves what the signal cannot explain."""
        return self.to_cells(self.smooth[None] * self.to_spectrum(x))

    def mv(self, x: Array) -> Array:
        """`L⁻¹ C L⁻ᵀ`: close to the identity."""
        y = self.filter[None] * self.divided(x, transpose=True)
        y = self.filter[None] * self.to_spectrum(self.excess[None] * self.to_cells(y))
        return self.divided(self.divided(x, transpose=True) + y)

    def divided(self, x: Array, *, transpose: bool = False) -> Array:
        """`L⁻¹` or `L⁻ᵀ` on the box, the identity elsewhere."""
        place = (slice(None), *jnp.ix_(*self.box))
        inside = x[place]
        columns = inside.reshape(x.shape[0], -1).T
        solved = left_product(self.root_inverse, columns, transpose=transpose)
        return x.at[place].set(solved.T.reshape(inside.shape))

    def filtered(self, x: Array) -> Array:
        """`Q t L⁻ᵀ`: from the coordinates of `mv` to cells."""
        return self.to_cells(self.filter[None] * self.divided(x, transpose=True))

    def weighted(self, x: Array) -> Array:
        """`K⁻¹ Q t L⁻ᵀ`; eigenvalues that are rounding stand for directions without signal."""
        spectrum = outer([b.values for b in self.bases])
        least = sum(spectrum.shape) * jnp.finfo(spectrum.dtype).eps * jnp.max(spectrum)
        has_signal = spectrum > least
        over = jnp.where(has_signal, self.filter / jnp.where(has_signal, spectrum, 1), 0)
        return self.to_cells(over[None] * self.divided(x, transpose=True))

    def filtered_transpose(self, x: Array) -> Array:
        """`L⁻¹ t Qᵀ`: from cells to the coordinates of `mv`."""
        return self.divided(self.filter[None] * self.to_spectrum(x))

    @property
    def box_logdet(self) -> Array:
        """`log det C` on the box, without the trace of `C − I` there."""
        diagonal = jnp.diagonal(self.root)
        trace = jnp.sum(self.root**2)
        return 2 * jnp.sum(jnp.log(diagonal)) - (trace - diagonal.shape[0])


def even(kronecker: Kronecker, precisions: Array) -> KroneckerPlusNoise:
    """`S = K + I/w`; the mean precision `w` is a choice, held constant."""
    return KroneckerPlusNoise(kronecker, lax.stop_gradient(1 / jnp.mean(precisions)))


def reference(even: KroneckerPlusNoise, precisions: Array, box: tuple[int, ...]) -> Reference:
    """The reference and the exact box of `C`, all of it constant."""
    even, precisions = lax.stop_gradient((even, precisions))
    bases = even.eigenbases()
    noise: Any = even.noise
    spectrum = outer([b.values for b in bases])
    weight, smooth = filters(spectrum, noise)
    excess = precisions - 1 / noise
    top = top_of(bases, box)
    root, root_inverse = box_roots(bases, weight, excess, top)
    return Reference(bases, noise, weight, smooth, excess, top, root, root_inverse)


def filters(spectrum: Array, noise: Array) -> tuple[Array, Array]:
    """`t` and `1 / (1 + w Λ)`."""
    smooth = noise / (spectrum + noise)
    return jnp.sqrt(spectrum * smooth), smooth


def top_of(bases: tuple[Eigenbasis, ...], box: tuple[int, ...]) -> tuple[Array, ...]:
    """Per axis the indices of as many largest eigenvalues as the box holds."""
    return tuple(jnp.argsort(-b.values)[:r] for b, r in zip(bases, box, strict=True))


def box_roots(
    bases: tuple[Eigenbasis, ...], weight: Array, excess: Array, top: tuple[Array, ...]
) -> tuple[Array, Array]:
    """The Cholesky factor of `C` on the box, and its inverse."""
    inside = _coarse(bases, excess, top)
    scale = weight[jnp.ix_(*top)].ravel()
    identity = jnp.eye(scale.size, dtype=excess.dtype)
    root = jnp.linalg.cholesky(identity + scale[:, None] * inside * scale[None])
    return root, _inverse(root, identity)


@matrix_by_matrix
def _inverse(root: Array, identity: Array) -> Array:
    return lax.linalg.triangular_solve(root, identity, left_side=True, lower=True)


def _coarse(bases: tuple[Eigenbasis, ...], excess: Array, top: tuple[Array, ...]) -> Array:
    """`Qᵀ V Q` for the eigenvectors of the box, axis by axis: no `N × r` array."""
    x = excess
    for basis, chosen in zip(bases, top, strict=True):
        columns = basis.matrix()[:, chosen]
        pairs = (columns[:, :, None] * columns[:, None]).reshape(columns.shape[0], -1)
        x = jnp.einsum("i...,ip->...p", x, pairs, precision=HIGHEST)
    sizes = [len(chosen) for chosen in top]
    x = x.reshape([r for size in sizes for r in (size, size)])
    order = [*range(0, x.ndim, 2), *range(1, x.ndim, 2)]
    return x.transpose(order).reshape(prod(sizes), prod(sizes))


def balanced_box(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """As many eigenvectors on every axis as it has and memory bears, at most `size` in all."""
    box = [1] * len(shape)
    most = [min(n, max(1, int((MOST_PAIRS / n) ** 0.5))) for n in shape]
    while True:
        for i in sorted(range(len(shape)), key=lambda i: box[i]):
            if box[i] < most[i] and prod(box) // box[i] * (box[i] + 1) <= size:
                box[i] += 1
                break
        else:
            return tuple(box)
