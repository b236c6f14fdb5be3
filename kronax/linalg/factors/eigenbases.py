"""Symmetric blocks, and the basis in which both terms of a two-term sum are diagonal.

One axis of a Kronecker product is a *fixed* orthonormal transform around symmetric blocks. From a
factor's own parameters to its blocks everything is ordinary automatic differentiation; the
derivative rules see blocks only, so a new structure needs no derivative code.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.fibres import on_fibres
from kronax.linalg.arrays.lapack_order import in_sequence
from kronax.linalg.arrays.mode_products import along, apply_along, matmul, same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.primitives import DerivativeOrderError, RulePrimitive
from kronax.linalg.arrays.transforms import Identity, Transform

# Eigenvalues below zero by at most this many `n · eps · λ_max` are rounding, and count as zero.
ROUNDING = 4.0


class SymmetricBlocks(eqx.Module):
    """A symmetric matrix along one axis: a direct sum of blocks.

    Args:
        arrays: one per block: `(*batch, m, m)` a full block, `(*batch, m)` a diagonal one, or
            `(*batch,)` a multiple of the identity.
        ndims: the number of axes of each block without its batch: 2, 1 or 0.
        sizes: the size `m` of each block; they add up to the size of the axis.
        transform: takes vectors to the coordinates in which the matrix has these blocks.
    """

    arrays: tuple[Array, ...]
    ndims: tuple[int, ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)
    transform: Transform = eqx.field(static=True, default=Identity())

    @property
    def size(self) -> int:
        """Size of the axis."""
        return sum(self.sizes)

    @property
    def event_ndims(self) -> "SymmetricBlocks":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return SymmetricBlocks(self.ndims, self.ndims, self.sizes, self.transform)  # type: ignore

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes shared by the blocks."""
        shapes = (a.shape[: a.ndim - n] for a, n in zip(self.arrays, self.ndims, strict=True))
        return jnp.broadcast_shapes(*shapes)

    def map_blocks(self, function: Callable[[Array, int], Array]) -> "SymmetricBlocks":
        """Blocks `function(array, ndim)` in the same coordinates."""
        arrays = tuple(function(a, n) for a, n in zip(self.arrays, self.ndims, strict=True))
        return SymmetricBlocks(arrays, self.ndims, self.sizes, self.transform)

    def apply(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x` (no batch)."""
        return on_fibres(SymmetricBlocks._applied, self, x, axis)

    def _applied(self, x: Array, axis: int) -> Array:
        pieces = []
        x = self.transform.forward(x, axis)
        for a, ndim, piece in zip(
            self.arrays, self.ndims, split_blocks(x, self.sizes, axis), strict=True
        ):
            if ndim == 2:
                pieces.append(apply_along(a, piece, axis))
            else:
                pieces.append(piece * (a if ndim == 0 else along(a, axis, piece.ndim)))
        joined = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
        return self.transform.backward(joined, axis)


def full_block(matrix: Array) -> SymmetricBlocks:
    """A matrix `(*batch, n, n)` as one block."""
    return SymmetricBlocks((matrix,), (2,), (matrix.shape[-1],))


class Eigenbasis(eqx.Module):
    """`Wᵀ K W = diag(values)` and `Wᵀ N W = diag(noise_values)` along one axis.

    `W` is a block-diagonal matrix, followed by the transform back: `blocks[k]` is one block's
    matrix, or `None` for the identity. It is orthonormal unless both terms are general; then
    `log_abs_det` is `log|det W|`. The arrays are held constant: the derivative rules contain what
    depends on them. `vectors` hands them out guarded, so that a derivative through eigenvectors
    raises and never returns a wrong number. With `adds` the signal is a Kronecker sum: the `values`
    of all axes are added, not multiplied.
    """

    blocks: tuple[Array | None, ...]
    values: Array
    noise_values: Array
    log_abs_det: Array | None
    anchor: Array
    sizes: tuple[int, ...] = eqx.field(static=True)
    transform: Transform = eqx.field(static=True, default=Identity())
    adds: bool = eqx.field(static=True, default=False)

    @property
    def vectors(self) -> tuple[Array | None, ...]:
        """The blocks of `W`; differentiating through them raises."""
        return tuple(None if w is None else _guard(self.anchor, w) for w in self.blocks)

    @property
    def event_ndims(self) -> "Eigenbasis":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return Eigenbasis(
            blocks=tuple(None if w is None else 2 for w in self.blocks),  # type: ignore[misc]
            values=1,  # type: ignore[arg-type]
            noise_values=1,  # type: ignore[arg-type]
            log_abs_det=None if self.log_abs_det is None else 0,  # type: ignore[arg-type]
            anchor=0,  # type: ignore[arg-type]
            sizes=self.sizes,
            transform=self.transform,
            adds=self.adds,
        )

    def rotate(self, x: Array, axis: int) -> Array:
        """`Wᵀ` along `axis < 0` of `x` (no batch)."""
        return self._turned(x, axis, transpose=True)

    def unrotate(self, x: Array, axis: int) -> Array:
        """`W` along `axis < 0` of `x` (no batch)."""
        return self._turned(x, axis, transpose=False)

    @property
    def is_identity(self) -> bool:
        """Whether `W` is the identity matrix."""
        return self.transform == Identity() and all(w is None for w in self.blocks)

    def right(self, rows: Array) -> Array:
        """`C W` for a matrix `C` `(m, n)` (no batch)."""
        return self.rotate(rows, -1)

    def matrix(self) -> Array:
        """`W` as a matrix (no batch)."""
        if self.transform == Identity() and len(self.blocks) == 1 and self.blocks[0] is not None:
            return self.blocks[0]
        return self.right(jnp.eye(self.values.shape[-1], dtype=self.values.dtype))

    def _turned(self, x: Array, axis: int, *, transpose: bool) -> Array:
        held = {"sizes": self.sizes, "transform": self.transform, "transpose": transpose}
        return x if self.is_identity else on_fibres(_turned, self.blocks, x, axis, **held)


def _turned(
    blocks: Any, x: Array, axis: int, *, sizes: Any, transform: Transform, transpose: bool
) -> Array:
    x = transform.forward(x, axis) if transpose else x
    if any(w is not None for w in blocks):
        turn = functools.partial(apply_along, axis=axis, transpose=transpose)
        parts = split_blocks(x, sizes, axis)
        pieces = [p if w is None else turn(w, p) for w, p in zip(blocks, parts, strict=True)]
        x = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
    return x if transpose else transform.backward(x, axis)


def split_blocks(x: Array, sizes: tuple[int, ...], axis: int) -> list[Array]:
    """The pieces of `x` that belong to the blocks of one axis."""
    if len(sizes) == 1:
        return [x]
    return jnp.split(x, [sum(sizes[:k]) for k in range(1, len(sizes))], axis)


def expand(array: Array, ndim: int, size: int) -> Array:
    """The diagonal of a block that is diagonal (1) or a multiple of the identity (0)."""
    return jnp.broadcast_to(array[..., None], (*array.shape, size)) if ndim == 0 else array


def eigenbasis(signal: SymmetricBlocks, noise: SymmetricBlocks) -> Eigenbasis:
    """Diagonalise both terms of one axis together."""
    batched = bool(signal.batch_shape or noise.batch_shape)
    return eigenbases([(signal, noise)], batched=batched)[0]


def eigenbases(
    pairs: Iterable[tuple[SymmetricBlocks, SymmetricBlocks]], *, batched: bool
) -> tuple[Eigenbasis, ...]:
    """Diagonalise signal and noise of every axis: one `eigh` per block that is not diagonal.

    A block whose term is indefinite beyond rounding gets NaN values. On a GPU, where a batched
    `eigh` is truly one, blocks of equal shape on any axes are decomposed in one call.

    Args:
        pairs: the blocks of signal and noise per axis.
        batched: some of them have batch axes.
    """
    pairs = list(pairs)
    held = lax.stop_gradient(pairs)
    blocks = [block for signal, noise in held for block in _Block.of(signal, noise)]
    found = iter(_decomposed(blocks, batched))
    return tuple(_assembled(*pair, [next(found) for _ in pair[0].arrays]) for pair in pairs)


class _Block(NamedTuple):
    """One block of both terms, and what tells blocks apart that cannot share a call.

    Where both are general, `scales` holds the mean diagonals of both terms on the whole axis.
    """

    signal: Array
    noise: Array
    scales: tuple[Array, Array] | None
    signal_ndim: int
    noise_ndim: int
    size: int

    @classmethod
    def of(cls, signal: SymmetricBlocks, noise: SymmetricBlocks) -> "list[_Block]":
        found = []
        for k, n, k_ndim, n_ndim, size in zip(
            signal.arrays, noise.arrays, signal.ndims, noise.ndims, signal.sizes, strict=True
        ):
            general = min(k_ndim, n_ndim) > 0 and max(k_ndim, n_ndim) == 2
            scales = (mean_diagonal(signal), mean_diagonal(noise)) if general else None
            found.append(cls(k, n, scales, k_ndim, n_ndim, size))
        return found

    @property
    def form(self) -> tuple:
        arrays = (self.signal.shape, self.noise.shape, self.signal.dtype)
        return (*arrays, self.signal_ndim, self.noise_ndim)

    @property
    def needs_decomposition(self) -> bool:
        return 2 in (self.signal_ndim, self.noise_ndim)

    @property
    def arrays(self) -> tuple[Array, Array, tuple[Array, Array] | None]:
        return self.signal, self.noise, self.scales

    def basis(self, arrays: tuple) -> tuple:
        signal, noise, scales = arrays
        return _block_basis(self._replace(signal=signal, noise=noise, scales=scales))


def _decomposed(blocks: list[_Block], batched: bool) -> list[tuple]:
    """By what the program is compiled for, which need not be where it was traced."""
    groups = _alike(blocks)
    in_turn = functools.partial(_decompose_in_turn, blocks, batched)
    arrays = [block.arrays for block in blocks]
    if len(groups) == len(blocks):
        return in_turn(arrays)
    together = functools.partial(_decompose_together, blocks, groups)
    return lax.platform_dependent(arrays, cpu=in_turn, default=together)


def _alike(blocks: list[_Block]) -> list[list[int]]:
    """The numbers of the blocks that can share a call, group by group."""
    groups: dict[tuple, list[int]] = {}
    for i, block in enumerate(blocks):
        groups.setdefault(block.form if block.needs_decomposition else (i,), []).append(i)
    return list(groups.values())


def _decompose_in_turn(blocks: list[_Block], batched: bool, arrays: list[tuple]) -> list[tuple]:
    items = list(enumerate(arrays))
    return in_sequence(lambda item: blocks[item[0]].basis(item[1]), items, batched=batched)


def _decompose_together(
    blocks: list[_Block], groups: list[list[int]], arrays: list[tuple]
) -> list[tuple]:
    found: dict[int, tuple] = {}
    for members in groups:
        first = blocks[members[0]]
        if len(members) == 1:
            found[members[0]] = first.basis(arrays[members[0]])
            continue
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(arrays[i] for i in members))
        together = jax.vmap(first.basis)(stacked)
        for place, i in enumerate(members):
            found[i] = tuple(None if part is None else part[place] for part in together)
    return [found[i] for i in range(len(blocks))]


def _assembled(signal: SymmetricBlocks, noise: SymmetricBlocks, found: list[tuple]) -> Eigenbasis:
    """The basis of one axis from those of its blocks."""
    vectors, values, noise_values, log_abs_dets = (list(part) for part in zip(*found, strict=True))
    general = [v for v in log_abs_dets if v is not None]
    if general:
        values = _settled_by_length(values, vectors, signal)
        noise_values = _settled_by_length(noise_values, vectors, noise)
    else:
        values, noise_values = _settled(values), _settled(noise_values)
    return Eigenbasis(
        blocks=tuple(vectors),
        values=_concatenate(values),
        noise_values=_concatenate(noise_values),
        log_abs_det=sum(general[1:], general[0]) if general else None,
        anchor=_zero_of(signal) + _zero_of(noise),
        sizes=signal.sizes,
        transform=signal.transform,
    )


def _block_basis(block: "_Block"):
    """`(W, λ, μ, log|det W|)` of one block; `None` for an identity and for a zero."""
    k, n, scales, k_ndim, n_ndim, size = block
    if k_ndim < 2 and n_ndim < 2:
        return None, expand(k, k_ndim, size), expand(n, n_ndim, size), None
    if n_ndim == 0:
        values, vectors = jnp.linalg.eigh(k)
        return vectors, values, expand(n, 0, size), None
    if k_ndim == 0:
        values, vectors = jnp.linalg.eigh(n)
        return vectors, expand(k, 0, size), values, None
    assert scales is not None
    return _whitened(_full(k, k_ndim), _full(n, n_ndim), *scales)


def _whitened(k: Array, n: Array, k_scale: Array, n_scale: Array):
    """Diagonalise two general terms, whitening by their trace-balanced sum.

    For positive semidefinite terms that sum is positive definite whenever the two-term operator
    is, so neither term is singled out and either may be singular. The scales are those of the whole
    axis: the odd half of a smooth kernel may be nothing but rounding, which must not be magnified.
    """
    k, n = jnp.broadcast_arrays(k, n)
    k_scale, n_scale = (scale[..., None, None] for scale in (k_scale, n_scale))
    k, n, k_scale, n_scale = same_rank(k, n, k_scale, n_scale)
    root = jnp.linalg.cholesky(k / k_scale + n / n_scale)
    half = lax.linalg.triangular_solve(root, k / k_scale, left_side=True, lower=True)
    white = lax.linalg.triangular_solve(root, half, left_side=False, lower=True, transpose_a=True)
    share, vectors = jnp.linalg.eigh(white)
    w = lax.linalg.triangular_solve(root, vectors, left_side=True, lower=True, transpose_a=True)
    log_abs_det = -jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), -1)
    return w, share * k_scale[..., 0], (1 - share) * n_scale[..., 0], log_abs_det


def mean_diagonal(blocks: SymmetricBlocks) -> Array:
    """The mean of the diagonal, `(*batch,)`; one where it is not positive."""
    traces = [
        jnp.trace(a, axis1=-2, axis2=-1) if ndim == 2 else jnp.sum(expand(a, ndim, size), axis=-1)
        for a, ndim, size in zip(blocks.arrays, blocks.ndims, blocks.sizes, strict=True)
    ]
    mean = functools.reduce(jnp.add, traces) / blocks.size
    return jnp.where(mean > 0, mean, 1)


def _full(array: Array, ndim: int) -> Array:
    if ndim == 2:
        return array
    return jnp.multiply(*same_rank(array[..., None], jnp.eye(array.shape[-1], dtype=array.dtype)))


def dual(basis: Eigenbasis, signal: SymmetricBlocks, noise: SymmetricBlocks) -> Eigenbasis:
    """`V = W^{-T}` in place of `W`: `K = V diag(values) Vᵀ` and `N = V diag(noise_values) Vᵀ`.

    An orthonormal basis is its own dual. Another has been whitened by the trace-balanced sum, so
    that `V` is that sum times `W`, without an inverse (no batch).
    """
    if basis.log_abs_det is None:
        return basis
    k_scale, n_scale = mean_diagonal(signal), mean_diagonal(noise)
    blocks = [
        w
        if w is None or min(k_ndim, n_ndim) == 0
        else matmul(_full(k, k_ndim) / k_scale + _full(n, n_ndim) / n_scale, w)
        for w, k, k_ndim, n, n_ndim in zip(
            basis.blocks, signal.arrays, signal.ndims, noise.arrays, noise.ndims, strict=True
        )
    ]
    return dataclasses.replace(basis, blocks=tuple(blocks))


def raised(basis: Eigenbasis) -> Eigenbasis:
    """Eigenvalues of the signal below the rounding of the largest, raised to it.

    They are not known any better, and what divides by them must not take rounding for a signal.
    """
    top = jnp.max(basis.values, axis=-1, keepdims=True)
    bits = jnp.finfo(top.dtype)
    least = jnp.maximum(ROUNDING * bits.eps * top, bits.tiny)
    return dataclasses.replace(basis, values=jnp.maximum(basis.values, least))


def _settled(pieces: list[Array]) -> list[Array]:
    """Negative rounding set to zero, and NaN where an eigenvalue is truly negative.

    What counts as rounding is measured by the largest eigenvalue of the whole axis: the odd half
    of a smooth kernel can be a difference of large numbers.
    """
    largest = [jnp.max(jnp.abs(p), axis=-1, keepdims=True) for p in pieces]
    top = functools.reduce(jnp.maximum, largest)
    size = sum(p.shape[-1] for p in pieces)
    slack = ROUNDING * size * jnp.finfo(top.dtype).eps * top
    return [_above(p, slack) for p in pieces]


def _settled_by_length(
    pieces: list[Array], vectors: list[Array | None], blocks: SymmetricBlocks
) -> list[Array]:
    """The same where a basis need not be orthonormal: `λ = wᵀ K w` grows with `|w|²`.

    What counts as rounding is that of the matrix, measured by its norm on the whole axis, times
    `|w|²`, and that of a share of the trace-balanced sum.
    """
    blocks = lax.stop_gradient(blocks)
    norms = [
        jnp.sqrt(jnp.sum(jnp.square(a), (-2, -1))) if ndim == 2 else jnp.max(jnp.abs(p), axis=-1)
        for a, ndim, p in zip(blocks.arrays, blocks.ndims, pieces, strict=True)
    ]
    top = functools.reduce(jnp.maximum, norms)[..., None]
    unit = ROUNDING * blocks.size * jnp.finfo(top.dtype).eps
    squares = [1.0 if w is None else jnp.sum(jnp.square(w), axis=-2) for w in vectors]
    share = mean_diagonal(blocks)[..., None]
    slacks = []
    for square in squares:
        times, length, added = same_rank(top, jnp.asarray(square, top.dtype), share)
        slacks.append(unit * (times * length + added))
    return [_above(*same_rank(p, slack)) for p, slack in zip(pieces, slacks, strict=True)]


def _above(values: Array, slack: Any) -> Array:
    return where(values < -slack, jnp.nan, jnp.maximum(values, 0))


def _concatenate(pieces: list[Array]) -> Array:
    if len(pieces) == 1:
        return pieces[0]
    batch = jnp.broadcast_shapes(*(p.shape[:-1] for p in pieces))
    return jnp.concatenate([jnp.broadcast_to(p, (*batch, p.shape[-1])) for p in pieces], -1)


def _zero_of(blocks: SymmetricBlocks) -> Array:
    """A zero that carries the derivative of the blocks: what the guard watches."""
    return 0 * blocks.arrays[0].ravel()[0]


def _refuse(operands, constants, tangents) -> NoReturn:
    raise DerivativeOrderError(
        "The eigenvectors of a decomposition cannot be differentiated: where eigenvalues repeat "
        "their derivative does not exist. Differentiate kx.solve, kx.logdet, kx.inv_quad or "
        "kx.normal_logpdf of the operator instead; these are exact at any spectrum."
    )


_guard = RulePrimitive("kronax_guarded_basis", lambda anchor, vectors: vectors, _refuse)
