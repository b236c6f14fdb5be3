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

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.lapack_order import matrix_by_matrix
from kronax.linalg.arrays.mode_products import apply_all, matmul, outer
from kronax.linalg.estimates.certificates import Iteration
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.krylov.abstract import AbstractReference
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.sharing.boxes import in_box, outside_box, times_on_box, with_box
from kronax.linalg.spectral.value_and_rules import rotate, unrotate

# Products of two eigenvectors of an axis, cells times pairs, that are held at once.
MOST_PAIRS = 20_000_000


class Reference(AbstractReference):
    """The reference of an uneven grid, held constant, and the preconditioned `C`.

    Args:
        bases: of the signal, one per axis.
        noise: `1 / w`.
        spectrum: `Λ`, a grid array without what rounding leaves below zero.
        filter: `t`, likewise.
        smooth: `1 / (1 + w Λ)`, likewise.
        excess: `V`, a grid array.
        box: per axis the indices of the largest eigenvalues, over whose product `C` is exact.
        turn: for a sum of products, an orthogonal matrix `Z` on the box: `Q` is `⊗Q_i` times it.
        inside: `Qᵀ V Q` there.
        root: a root `L` of `C = L Lᵀ` there.
        root_inverse: `L⁻¹`; a triangular solve in every iteration would be slower.
        root_logdet: `log det L`.
    """

    bases: tuple[Eigenbasis, ...]
    noise: Array
    spectrum: Array
    filter: Array
    smooth: Array
    excess: Array
    box: tuple[Array, ...]
    turn: Array | None
    inside: Array
    root: Array
    root_inverse: Array
    root_logdet: Array

    def to_spectrum(self, x: Array) -> Array:
        """`Qᵀ` for columns `(k, *grid)`."""
        x = jax.vmap(lambda v: rotate(self.bases, v))(x)
        return x if self.turn is None else self._on_box(self.turn, x, transpose=True)

    def to_cells(self, x: Array) -> Array:
        """`Q` for columns `(k, *grid)`."""
        x = x if self.turn is None else self._on_box(self.turn, x)
        return jax.vmap(lambda v: unrotate(self.bases, v))(x)

    def signal(self, x: Array) -> Array:
        """`K` for columns `(k, *grid)`."""
        return self.to_cells(self.spectrum[None] * self.to_spectrum(x))

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
        return self._on_box(self.root_inverse, x, transpose=transpose)

    def _on_box(self, matrix: Array, x: Array, *, transpose: bool = False) -> Array:
        return _multiplied(matrix, x, self.box, transpose=transpose)

    def in_box(self, x: Array) -> Array:
        """What columns over the spectrum hold on the box, `(k, r)`."""
        return in_box(x, self.box)

    def only_box(self, x: Array) -> Array:
        """Columns over the spectrum, zero outside the box."""
        return with_box(jnp.zeros_like(x), self.box, self.in_box(x))

    def box_to_cells(self, x: Array) -> Array:
        """`Q` for columns `(k, r)` on the box."""
        sizes = [len(chosen) for chosen in self.box]
        return apply_all(self.box_columns, self.unturned(x).reshape(-1, *sizes))

    @property
    def box_columns(self) -> list[Array]:
        """`Q_i` on the box, axis by axis."""
        return [b.matrix()[:, chosen] for b, chosen in zip(self.bases, self.box, strict=True)]

    def unturned(self, x: Array) -> Array:
        """`(…, r)` on the box in the coordinates of `⊗Q_i`."""
        return x if self.turn is None else matmul(x, self.turn.T)

    def turned_back(self, matrix: Array) -> Array:
        """A matrix over the box in the coordinates of `⊗Q_i`."""
        return self.unturned(self.unturned(matrix).T).T

    def on_box_of(self, spectrum: Array) -> Array:
        """`Q diag(spectrum) Qᵀ` on the box, in these coordinates."""
        values = self.on_box(spectrum)
        if self.turn is None:
            return jnp.diag(values)
        return matmul(self.turn * values[None], self.turn.T)

    def diagonal_of(self, spectrum: Array) -> Array:
        """The diagonal of `Q diag(spectrum) Qᵀ`, a grid array."""
        roots = [basis.matrix() for basis in self.bases]
        if self.turn is None:
            return apply_all([root**2 for root in roots], spectrum)
        outside = outside_box(spectrum, self.box)
        known = diagonal_between(self.box_columns, self.on_box_of(spectrum), self.box_columns)
        return apply_all([root**2 for root in roots], outside) + known

    def on_box(self, spectrum: Array) -> Array:
        """A grid array over the spectrum, at the box, `(r,)`."""
        return in_box(spectrum, self.box)

    def bound(self, r: Array) -> Array:
        """`rᵀ M⁻¹ r` per column from above, as `C` exceeds `1/(1 + wΛ)`."""
        axes = tuple(range(1, r.ndim))
        return jnp.sum(self._on_box(self.root, r) ** 2 / self.smooth[None], axes)

    @property
    def least(self) -> Array:
        """A bound of the eigenvalues of `M` from below, for the same reason."""
        return jnp.min(self.smooth) / jnp.maximum(jnp.sum(self.root**2), 1)

    @property
    def box_inverse(self) -> Array:
        """`C⁻¹` on the box."""
        return matmul(self.root_inverse.T, self.root_inverse)

    def box_diagonal(self, roots: Sequence[Array], matrix: Array) -> Array:
        """`diag(R X Rᵀ)` for a matrix `X` over the box, and `R` in place of `⊗Q_i`."""
        columns = [root[:, chosen] for root, chosen in zip(roots, self.box, strict=True)]
        return diagonal_between(columns, self.turned_back(matrix), columns)

    def filtered(self, x: Array) -> Array:
        """`Q t L⁻ᵀ`: from the coordinates of `mv` to cells."""
        return self.to_cells(self.filter[None] * self.divided(x, transpose=True))

    def weighted(self, x: Array, rest: Array) -> Array:
        """`K⁻¹ f` with `f = Q t L⁻ᵀ x`, the solution for data `y`.

        Eigenvalues that are rounding stand for directions with hardly a signal. There it is taken
        from `rest = W y − V f`, of which it is `(I + wK)⁻¹`: their derivatives are not that small.
        """
        spectrum = self.spectrum
        least = sum(spectrum.shape) * jnp.finfo(spectrum.dtype).eps * jnp.max(spectrum)
        has_signal = spectrum > least
        over = jnp.where(has_signal, self.filter / jnp.where(has_signal, spectrum, 1), 0)
        solved = over[None] * self.divided(x, transpose=True)
        without = jnp.where(has_signal, 0, self.smooth[None] * self.to_spectrum(rest))
        return self.to_cells(solved + without)

    def started(self, precisions: Array, y: Array) -> tuple[Array, Array]:
        """What data are in the coordinates of `mv`, and `yᵀ W y`, which is iterated from."""
        energy = jnp.sum(precisions[None] * y**2, tuple(range(1, y.ndim)))
        return self.filtered_transpose(precisions[None] * y), energy

    def finished(self, precisions: Array, y: Array, solution: Array) -> tuple[Array, Array, Array]:
        """`f`, `K⁻¹ f`, and `(y − f)ᵀ W (y − f) + fᵀ K⁻¹ f`, one number per column.

        The sum is a minimum at the solution, so that its error is of second order, and a sum of
        squares: nothing cancels.
        """
        axes = tuple(range(1, y.ndim))
        smooth, prior = self.filtered(solution), self.divided(solution, transpose=True)
        weights = self.weighted(solution, precisions[None] * y - self.excess[None] * smooth)
        squares = jnp.sum(precisions[None] * (y - smooth) ** 2, axes)
        return smooth, weights, squares + jnp.sum(self.smooth[None] * prior**2, axes)

    def filtered_transpose(self, x: Array) -> Array:
        """`L⁻¹ t Qᵀ`: from cells to the coordinates of `mv`."""
        return self.divided(self.filter[None] * self.to_spectrum(x))

    def probes(self, signs: Array) -> Array:
        """Random signs in the cells, in the coordinates of `mv`."""
        return self.to_spectrum(signs)

    @property
    def known_logdet(self) -> Array:
        """`log det C` on the box, without the trace of `C − I` there."""
        return 2 * self.root_logdet - (jnp.sum(self.root**2) - self.root.shape[0])


@partial(jax.jit, static_argnames="transpose")
def _multiplied(
    matrix: Array, x: Array, box: tuple[Array, ...], *, transpose: bool = False
) -> Array:
    """A matrix over the box, times columns `(k, *grid)`; the identity elsewhere.

    A program calls it dozens of times, and traces it once.
    """
    return times_on_box(matrix, x, box, transpose=transpose)


def remainder_squares(held: Reference, krylov: Krylov, white: Array) -> Array:
    """`gᵀ [log M − (M − I)]² g` per probe.

    Close to the identity the quadrature is rounding; there it is at most `‖(M − I)² g‖²`.
    """
    axes = tuple(range(1, white.ndim))
    once = held.mv(white) - white
    twice = held.mv(once) - once
    size = jnp.sum(white**2, axes)
    # Where no probe sees more than this, an eigenvalue below a third would escape each by chance.
    is_close = jnp.max(jnp.sum(once**2, axes)) < 1e-3
    squares = size * krylov.remainder_square[-white.shape[0] :]
    return jnp.where(is_close, jnp.sum(twice**2, axes), squares)


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
    roots = box_roots(bases, weight, excess, top, None)
    spectrum = jnp.maximum(spectrum, 0)
    return Reference(bases, noise, spectrum, weight, smooth, excess, top, None, *roots)


def filters(spectrum: Array, noise: Array) -> tuple[Array, Array]:
    """`t` and `1 / (1 + w Λ)`."""
    smooth = noise / (spectrum + noise)
    return jnp.sqrt(spectrum * smooth), smooth


def top_of(bases: tuple[Eigenbasis, ...], box: tuple[int, ...]) -> tuple[Array, ...]:
    """Per axis the indices of as many largest eigenvalues as the box holds."""
    return tuple(jnp.argsort(-b.values)[:r] for b, r in zip(bases, box, strict=True))


def box_roots(
    bases: tuple[Eigenbasis, ...],
    weight: Array,
    excess: Array,
    top: tuple[Array, ...],
    turn: Array | None,
) -> tuple[Array, Array, Array, Array]:
    """`Qᵀ V Q` on the box, a root of `C` there, its inverse and its log-determinant.

    The root is a Cholesky factor in the coordinates of `⊗Q_i`: those of `turn` change their order
    with the parameters, and with it the factor, and what probes say.
    """
    inside = _coarse(bases, excess, top)
    scale = in_box(weight, top)
    identity = jnp.eye(scale.size, dtype=excess.dtype)
    if turn is not None:
        inside = _congruent(turn, inside)
    scaled = scale[:, None] * inside * scale[None]
    root = jnp.linalg.cholesky(identity + (scaled if turn is None else _congruent(turn.T, scaled)))
    inverse, logdet = _inverse(root, identity), jnp.sum(jnp.log(jnp.diagonal(root)))
    if turn is not None:
        root, inverse = _congruent(turn, root), _congruent(turn, inverse)
    return inside, root, inverse, logdet


def _congruent(turn: Array, matrix: Array) -> Array:
    """`Zᵀ X Z`."""
    return matmul(turn.T, matmul(matrix, turn))


def diagonal_between(left: Sequence[Array], matrix: Array, right: Sequence[Array]) -> Array:
    """`diag(L X Rᵀ)` for `L = ⊗left[i]` and `R = ⊗right[i]`, axis by axis: a grid array."""
    sizes = [columns.shape[1] for columns in left]
    ndim = len(sizes)
    order = [k for i in range(ndim) for k in (i, i + ndim)]
    x = matrix.reshape(*sizes, *sizes).transpose(order).reshape([r * r for r in sizes])
    pairs = [
        (a[:, :, None] * b[:, None]).reshape(a.shape[0], -1)
        for a, b in zip(left, right, strict=True)
    ]
    return apply_all(pairs, x)


@matrix_by_matrix
def _inverse(root: Array, identity: Array) -> Array:
    return lax.linalg.triangular_solve(root, identity, left_side=True, lower=True)


def _coarse(bases: tuple[Eigenbasis, ...], excess: Array, top: tuple[Array, ...]) -> Array:
    """`Qᵀ V Q` for the eigenvectors of the box, axis by axis: no `N × r` array."""
    pairs = []
    for basis, chosen in zip(bases, top, strict=True):
        columns = basis.matrix()[:, chosen]
        pairs.append((columns[:, :, None] * columns[:, None]).reshape(columns.shape[0], -1).T)
    x = apply_all(pairs, excess)
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


def held_numbers(shape: tuple[int, ...], iteration: Iteration, num_terms: int = 1) -> float:
    """Numbers that a value and gradient hold at once, of one product or of a sum, about.

    By the plans that XLA made for grids of 4 800 to 1 000 000 cells, six of one product and eight
    of two and three, which it is within a fifth of: vectors of every probe, the inside and the
    outside of the box apart, and matrices on it. That was with the default `box_size`; with one of
    100 XLA planned 1.6 times as much for one product.
    """
    cells, probes = prod(shape), iteration.num_probes
    box = prod(balanced_box(shape, iteration.box_size))
    if num_terms == 1:
        return float(cells * (21 + 31 * probes) + 7 * box**2)
    vectors = 60 * num_terms - 30 + (39 + 3 * num_terms) * probes
    return float(cells * vectors + 19 * box**2)
