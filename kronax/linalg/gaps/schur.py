"""`M = (S⁻¹)_mm` at the gaps of a grid, and what is contracted with its inverse.

In the eigenbasis of `S = ⊗K_i + ⊗N_i`, `S⁻¹ = W diag(1/D) Wᵀ` with `W = ⊗W_i`. Along the shared
axes `M` is block-diagonal in that basis: one block per eigenvalue `t`, `M_t = W_m diag(1/D_t) W_mᵀ`
with the rows `W_m` of the gap axes at the gaps. A row of `W_m` is a Kronecker product `u_a ⊗ z` of
the row of one axis and those of the others, so that with `w_ab = (u_a ∘ u_b)ᵀ (1/D_t)`

    M[p, q] = Σ_b z_p[b] w_{a(p) a(q)}[b] z_q[b],

which takes `O(r² N + m² N / n)` operations for `r` indices `a` that occur, not `O(m² N)`. The loops
here are over eigenvalues and over pieces of fibres, all of one size; never over factors.

Everything is for one operator (no batch), constant: derivative rules call it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.lapack_order import matrix_by_matrix
from kronax.linalg.arrays.mode_products import HIGHEST, matmul, outer
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.gaps.plan import CHUNK, build_axis
from kronax.linalg.operators.gap_geometry import Gaps
from kronax.linalg.spectral.value_and_rules import rotate, spectrum, unrotate

# Below this size a triangle is inverted by LAPACK, above it by halves with products between them.
INVERTED_SIZE = 128
# How often a solve fills the gaps and begins again: each time what is left of the error is the last
# one times rounding times the condition number.
FILLINGS = 2


class GapDecomposition(eqx.Module):
    """What is held constant of an operator with gaps.

    Args:
        bases: one per axis.
        roots: `(*batch, T, m, m)`, the inverse of the Cholesky factor of every `M_t`.
    """

    bases: tuple[Eigenbasis, ...]
    roots: Array

    @property
    def event_ndims(self) -> "GapDecomposition":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return GapDecomposition(tuple(b.event_ndims for b in self.bases), 3)  # type: ignore


class Rows(NamedTuple):
    """The rows of `W` at the gaps, seen along gap axis `k`: `u` of it and `z` of the others."""

    u: Array
    z: Array


def gap_roots(gaps: Gaps, bases: tuple[Eigenbasis, ...]) -> Array:
    """The inverse Cholesky factor of every `M_t`; NaN where it is not positive definite."""
    k = build_axis(gaps)
    rows = rows_at_gaps(gaps, bases, k)

    def one(inverse_d: Array) -> Array:
        return _inverse_triangle(_cholesky(_gap_matrix(gaps, k, rows, inverse_d)))

    return lax.map(one, problems(gaps, 1 / spectrum(bases)))


def _gap_matrix(gaps: Gaps, k: int, rows: Rows, inverse_d: Array) -> Array:
    """`M_t`, one group of pieces after another."""
    fibres = gaps.fibres[k]
    inverse_d = unfolded(inverse_d, k)
    held = max(len(fibres.rows), gaps.count) * inverse_d.shape[1]
    padded_z = _with_zero(rows.z)

    def group(pieces: tuple[Any, Any]) -> Array:
        row, table = pieces
        found = weights_between(rows.u, rows.u[row], inverse_d)[fibres.row_of_gap]
        found = found * rows.z[:, None, :]
        return jnp.einsum("acb,qab->acq", padded_z[table], found, precision=HIGHEST)

    groups = _groups((fibres.row_of_piece, fibres.table), held, gaps.count)
    blocks = lax.map(group, groups) if len(groups[0]) > 1 else group(_only(groups))
    matrix = blocks.reshape(-1, gaps.count)[fibres.slots]
    return (matrix + matrix.T) / 2


def weights_between(u: Array, v: Array, inverse_d: Array) -> Array:
    """`Σ_l u[r, l] v[a, l] / D[l, b]`, `(r, a, b)`."""
    scaled = v.T[:, :, None] * inverse_d[:, None, :]
    product = matmul(u, scaled.reshape(u.shape[1], -1))
    return product.reshape(u.shape[0], *scaled.shape[1:])


def rows_at_gaps(gaps: Gaps, bases: tuple[Eigenbasis, ...], k: int) -> Rows:
    """The rows of the gap axes' `W` where gaps are, along axis `k` and along the others."""
    found = [_rows_of(bases[i], f.rows) for i, f in zip(gaps.axes, gaps.fibres, strict=True)]
    z = jnp.ones((gaps.count, 1), found[0].dtype)
    for j, (u, fibres) in enumerate(zip(found, gaps.fibres, strict=True)):
        if j != k:
            z = (z[:, :, None] * u[fibres.row_of_gap][:, None, :]).reshape(gaps.count, -1)
    return Rows(found[k], z)


def _rows_of(basis: Eigenbasis, indices: np.ndarray) -> Array:
    size = basis.values.shape[-1]
    return basis.right(jnp.asarray(np.eye(size)[indices], basis.values.dtype))


def problems(gaps: Gaps, grid: Array) -> Array:
    """A grid array with the shared axes flattened in front: `(T, *sizes)`."""
    return jnp.transpose(grid, (*gaps.shared, *gaps.axes)).reshape(gaps.num_problems, *gaps.sizes)


def from_problems(gaps: Gaps, array: Array) -> Array:
    """The inverse of `problems`."""
    order = (*gaps.shared, *gaps.axes)
    grid = array.reshape(tuple(gaps.shape[i] for i in order))
    return jnp.transpose(grid, tuple(int(i) for i in np.argsort(order)))


def unfolded(array: Array, k: int) -> Array:
    """Axis `k` in front of all others, flattened: `(n_k, N / n_k)`."""
    return jnp.moveaxis(array, k, 0).reshape(array.shape[k], -1)


def solve_with_gaps(gaps: Gaps, held: GapDecomposition, b: Array) -> Array:
    """`S_oo⁻¹ b` for `b` that is zero at the gaps, zero there as well.

    `x = S⁻¹ (b + E g)` with the values `g = −M⁻¹ (S⁻¹ b)_m` at the gaps that make `x` vanish there.
    Zeros at the gaps are far from what a smooth field has there: under little noise `S⁻¹ b` is then
    huge, and so is its rounding. So the gaps are filled with what was found, and it begins again.
    """
    for i in gaps.shared:
        b = held.bases[i].rotate(b, i - b.ndim)
    for _ in range(FILLINGS):
        x = _along_gap_axes(gaps, held, b) / spectrum(held.bases)
        b = b - _placed(gaps, held, _at_gaps(gaps, held, x))
    x = _along_gap_axes(gaps, held, b) / spectrum(held.bases)
    x = x - _from_gaps(gaps, held, _at_gaps(gaps, held, x))
    return jnp.where(observed_cells(gaps), unrotate(held.bases, x), 0)


def solved_at_gaps(gaps: Gaps, held: GapDecomposition, b: Array) -> Array:
    """`M^{-1/2} Eᵀ S⁻¹ b`, `(T, m)`: its squares are what the gaps add to `−bᵀ S⁻¹ b`."""
    return _at_gaps(gaps, held, rotate(held.bases, b) / spectrum(held.bases))


def from_gaps(gaps: Gaps, held: GapDecomposition, white: Array) -> Array:
    """The transpose of `solved_at_gaps`."""
    return unrotate(held.bases, _from_gaps(gaps, held, white))


def _at_gaps(gaps: Gaps, held: GapDecomposition, x: Array) -> Array:
    """`M^{-1/2} Eᵀ` of a vector in the eigenbasis."""
    for i in gaps.axes:
        x = held.bases[i].unrotate(x, i - len(held.bases))
    found = problems(gaps, x).reshape(gaps.num_problems, -1)[:, gaps.flat_places]
    return jnp.einsum("tpq,tq->tp", held.roots, found, precision=HIGHEST)


def _from_gaps(gaps: Gaps, held: GapDecomposition, white: Array) -> Array:
    """`S⁻¹ E M^{-T/2}`, in the eigenbasis."""
    return _along_gap_axes(gaps, held, _placed(gaps, held, white)) / spectrum(held.bases)


def _placed(gaps: Gaps, held: GapDecomposition, white: Array) -> Array:
    """`E M^{-T/2}`, in the eigenbasis along shared axes only."""
    values = jnp.einsum("tpq,tp->tq", held.roots, white, precision=HIGHEST)
    filled = jnp.zeros((gaps.num_problems, prod(gaps.sizes)), values.dtype)
    return from_problems(gaps, filled.at[:, gaps.flat_places].set(values))


def _along_gap_axes(gaps: Gaps, held: GapDecomposition, x: Array) -> Array:
    """`x`, which is in the eigenbasis along shared axes, in that of all."""
    for i in gaps.axes:
        x = held.bases[i].rotate(x, i - len(held.bases))
    return x


def observed_cells(gaps: Gaps) -> np.ndarray:
    """True at the observed cells of the grid."""
    shape = tuple(1 if i in gaps.shared else n for i, n in enumerate(gaps.shape))
    return ~np.broadcast_to(gaps.missing.array.reshape(shape), gaps.shape)


class GapSlopes(NamedTuple):
    """The parts of `tr(M⁻¹ Eᵀ S⁻¹ dS S⁻¹ E)` in the eigenbasis; both terms, signal and noise.

    Args:
        full: per gap axis `(n_k, n_k)`, or `None` where it was not wanted.
        diagonal: per axis of the grid the diagonal of that matrix, `(n_i,)`. Along a shared axis
            there is no more to it.
    """

    full: tuple[tuple[Array | None, ...], ...]
    diagonal: tuple[tuple[Array, ...], ...]


def gap_slopes(
    gaps: Gaps, held: GapDecomposition, wanted: tuple[tuple[bool, ...], ...]
) -> GapSlopes:
    """Contract `M⁻¹` with the derivative of `M` along every factor.

    With `c_ab = Σ_{p∈a, q∈b} z_p M⁻¹[p,q] z_q` the matrix of axis `k` is
    `H[l, l'] = Σ_b λ_{-k}[b] Σ_ab u_a[l] u_b[l'] c_ab[b] / (D[l,b] D[l',b])`.

    Args:
        gaps: where they are.
        held: the decomposition.
        wanted: for signal and noise, per gap axis, whether the full matrix is needed.
    """
    bases = held.bases
    values = ([b.values for b in bases], [b.noise_values for b in bases])
    on_axes = [[v[i] for i in gaps.axes] for v in values]
    on_shared = [
        outer([v[i] for i in gaps.shared]).reshape(-1) if gaps.shared else jnp.ones(1, v[0].dtype)
        for v in values
    ]
    loops = [k for k in range(len(gaps.axes)) if wanted[0][k] or wanted[1][k]] or [0]
    rows = {k: rows_at_gaps(gaps, bases, k) for k in loops}

    def one(inputs):
        inverse_d, root, *scales = inputs
        inverse = matmul(root.T, root)
        full: list[list[Array | None]] = [[], []]
        squares = None
        for k in range(len(gaps.axes)):
            want = [w[k] for w in wanted]
            if k not in loops:
                full[0].append(None)
                full[1].append(None)
                continue
            others = [
                scale * outer(v, skip=k).reshape(-1) if needed else None
                for scale, v, needed in zip(scales, on_axes, want, strict=True)
            ]
            found, own = _axis_slopes(gaps, k, rows[k], unfolded(inverse_d, k), inverse, others)
            full[0].append(found[0])
            full[1].append(found[1])
            if squares is None:
                shape = (gaps.sizes[k], *(n for j, n in enumerate(gaps.sizes) if j != k))
                squares = jnp.moveaxis(own.reshape(shape), 0, k)
        return full, squares

    inputs = (problems(gaps, 1 / spectrum(bases)), held.roots, *on_shared)
    shapes = jax.eval_shape(one, jax.tree.map(lambda a: a[0], inputs))[0]
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def step(total, inputs):
        full, squares = one(inputs)
        return jax.tree.map(jnp.add, total, full), squares

    full, squares = lax.scan(step, start, inputs)
    grid = from_problems(gaps, squares)
    diagonal = tuple(
        tuple(
            jnp.sum(outer(v, skip=i) * grid, axis=tuple(j for j in range(grid.ndim) if j != i))
            for i in range(grid.ndim)
        )
        for v in values
    )
    return GapSlopes((tuple(full[0]), tuple(full[1])), diagonal)


def _axis_slopes(
    gaps: Gaps,
    k: int,
    rows: Rows,
    inverse_d: Array,
    inverse: Array,
    others: Sequence[Array | None],
) -> tuple[list[Array | None], Array]:
    """`H` of one axis for each of the weights `others`, and `(W_mᵀ M⁻¹ W_m)_cc / D_c²`."""
    fibres = gaps.fibres[k]
    pieces, length = fibres.table.shape
    n, rest = inverse_d.shape
    flat = jnp.asarray(fibres.table.ravel())
    padded_z = _with_zero(rows.z)
    columns = jnp.pad(inverse, ((0, 1), (0, 1)))[:, flat].reshape(-1, pieces, length)
    z_of_piece = padded_z[fibres.table]
    u_of_piece = rows.u[fibres.row_of_piece]

    def group(held: tuple[Any, Any]) -> Any:
        row, table = held
        size = row.shape[0]
        u = rows.u[row]
        left = columns[table.ravel()].transpose(1, 0, 2)
        product = matmul(left, z_of_piece).reshape(pieces, size, length, rest)
        c = jnp.sum(product * padded_z[table][None], axis=2)
        q = matmul(u_of_piece.T, c.reshape(pieces, -1)).reshape(n, size, rest)
        q = q * inverse_d[:, None, :]
        scaled = u.T[:, :, None] * inverse_d[:, None, :]
        squares = jnp.sum(scaled * q, axis=1)
        full = [
            None
            if weight is None
            else jnp.einsum("lab,kab->lk", scaled * weight[None, None], q, precision=HIGHEST)
            for weight in others
        ]
        return full, squares

    held = rest * max(length * pieces, n)
    full, squares = sum_of_groups(group, (fibres.row_of_piece, fibres.table), held, gaps.count)
    return [None if h is None else (h + h.T) / 2 for h in full], squares


def sum_of_groups(function: Any, pieces: tuple[np.ndarray, np.ndarray], held: int, count: int):
    """The sum of `function` over groups of pieces that hold about `CHUNK` numbers."""
    groups = _groups(pieces, held, count)
    if len(groups[0]) == 1:
        return function(_only(groups))
    shapes = jax.eval_shape(function, _only(groups))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    step = lambda total, group: (jax.tree.map(jnp.add, total, function(group)), None)  # noqa: E731
    return lax.scan(step, start, groups)[0]


def _groups(
    pieces: tuple[np.ndarray, np.ndarray], held: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces in groups of one size; the last is filled with pieces that have no gap."""
    row, table = pieces
    number = -(-len(row) // max(1, min(len(row), CHUNK // held)))
    size = -(-len(row) // number)
    missing = number * size - len(row)
    row = np.pad(row, (0, missing)).reshape(number, size)
    table = np.pad(table, ((0, missing), (0, 0)), constant_values=count)
    return row, table.reshape(number, size, -1)


def _only(groups: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return groups[0][0], groups[1][0]


def _with_zero(rows: Array) -> Array:
    """One row of zeros more, for the places of a table where there is no gap."""
    return jnp.pad(rows, ((0, 1), (0, 0)))


_cholesky = matrix_by_matrix(jnp.linalg.cholesky)


def _inverse_triangle(root: Array) -> Array:
    """`L⁻¹` by halves: a third of the operations of a substitution, most of them products."""
    size = root.shape[0]
    if size <= INVERTED_SIZE:
        return _substituted(root)
    half = size // 2
    first, second = _inverse_triangle(root[:half, :half]), _inverse_triangle(root[half:, half:])
    corner = -matmul(matmul(second, root[half:, :half]), first)
    top = jnp.pad(first, ((0, 0), (0, size - half)))
    return jnp.concatenate([top, jnp.concatenate([corner, second], axis=1)])


@matrix_by_matrix
def _substituted(root: Array) -> Array:
    identity = jnp.eye(root.shape[0], dtype=root.dtype)
    return lax.linalg.triangular_solve(root, identity, left_side=True, lower=True)
