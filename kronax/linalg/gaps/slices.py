"""Whole slices given all the others: `C_a = ([S⁻¹]_aa)⁻¹` of a two-term sum, for every slice `a`.

With `S⁻¹ = W D⁻¹ Wᵀ`, `W = ⊗W_i`, the block of slice `a` of axis `i` is `W_{-i} diag(P_a) W_{-i}ᵀ`
with `P_a[b] = Σ_k W_i[a,k]² / D[k,b]`: diagonal in the basis of the other axes. So
`C_a = V diag(1/P_a) Vᵀ` with `V = W_{-i}^{-T}`, and all slices together cost `O(N Σ n_i)`.

The derivative is not that of frozen bases: along `dS` it is `C_a [S⁻¹ dS S⁻¹]_aa C_a`, which for a
factor of axis `i` is diagonal in that basis too, and for one of another axis `j` couples
eigenvectors that differ on `j` alone. It costs `O(N Σ n_i² + N n_i Σ n_j)`.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import along, apply_along, matmul, outer, same_rank
from kronax.linalg.arrays.primitives import (
    DerivativeOrderError,
    LinearPrimitive,
    RulePrimitive,
    by_product,
    with_value,
)
from kronax.linalg.dense_covariance import Cholesky, DenseCovariance
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.markov.lanes import KalmanLanes, markov_axis
from kronax.linalg.markov.left_out import has_places, places_given_others
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.diagonals import CHUNK, columnwise, tangent_in_basis
from kronax.linalg.spectral.low_rank import ThinBases, decomposition, is_thin, noise_factors
from kronax.linalg.spectral.value_and_rules import spectrum


class GivenOthers(NamedTuple):
    """The covariances `C_a` of all slices of one axis, each given all the other slices.

    Attributes:
        applied: `C_a x_a` for every slice of the fields that were asked for, `(*fields, *grid)`.
        diagonal: of every `C_a`, on the grid.
        log_det: of every `C_a`, `(n_i,)`.
    """

    applied: Float[Array, "..."]
    diagonal: Float[Array, "..."]
    log_det: Float[Array, " n"]


@eqx.filter_jit
def slices_given_others(
    op: KroneckerPlusNoise | DenseCovariance,
    axis: int,
    fields: Float[Array, "..."],
    data: Float[Array, "..."] | None = None,
) -> GivenOthers:
    """Covariances of whole slices of `axis` given the others, exact and never as matrices.

    Right to first order, and values only with factors of low rank; of a dense matrix, which must
    have no gaps, to every order.

    Args:
        op: the covariance of the data, without a batch.
        axis: from 0.
        fields: what the covariances are applied to, `(*fields, n_1, …, n_d)`.
        data: `S` times that, if it is known: then other axes than a Markov one take no matrix of
            that either.
    """
    if isinstance(op, DenseCovariance):
        return _dense_slices(op, axis, fields)
    if is_thin(op):
        bare = KroneckerPlusNoise(op.kronecker, op.noise)
        return GivenOthers(*_thin_slices((bare, fields), decomposition(op), axis=axis))
    found = GivenOthers(*_slices((*op.blocks(), fields), op.eigenbases(), axis=axis))
    # By the filter; their derivatives by the matrix of its axis.
    if markov_axis(op) == axis:
        values = KalmanLanes(op).times_given_others(fields)
    elif markov_axis(op) is not None and data is not None and has_places(op, axis):
        values = places_given_others(op, axis, data)
    else:
        return found
    return GivenOthers(*map(with_value, found, values))


def _dense_slices(op: DenseCovariance, axis: int, fields: Array) -> GivenOthers:
    """By Cholesky of the blocks of the inverse, one per slice."""
    grid, num = op.grid_shape, len(op.grid_shape)
    inverse = Cholesky(op).inverse().reshape(*grid, *grid)
    moved = jnp.moveaxis(inverse, (axis, num + axis), (0, 1))
    size = prod(grid) // grid[axis]
    blocks = jnp.moveaxis(jnp.diagonal(moved, axis1=0, axis2=1), -1, 0)
    roots = jnp.linalg.cholesky(blocks.reshape(-1, size, size))
    lead = fields.shape[: fields.ndim - num]
    columns = jnp.moveaxis(fields.reshape(-1, *grid), axis + 1, 0)
    shape = columns.shape
    columns = jnp.swapaxes(columns.reshape(*shape[:2], size), 1, 2)
    applied = jax.scipy.linalg.cho_solve((roots, True), columns)
    applied = jnp.moveaxis(jnp.swapaxes(applied, 1, 2).reshape(shape), 0, axis + 1)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=roots.dtype), roots.shape)
    white = jax.scipy.linalg.solve_triangular(roots, identity, lower=True)
    diagonal = jnp.sum(jnp.square(white), axis=1).reshape(shape[0], *shape[2:])
    log_det = -2 * jnp.sum(jnp.log(jnp.diagonal(roots, axis1=1, axis2=2)), axis=1)
    return GivenOthers(applied.reshape(*lead, *grid), jnp.moveaxis(diagonal, 0, axis), log_det)


class _Frame:
    """The dual bases `V_j = W_j^{-T}` of the axes other than `axis`."""

    def __init__(self, bases: Sequence[Eigenbasis], axis: int):
        self.bases, self.axis = bases, axis
        self.others = [j for j in range(len(bases)) if j != axis]
        # Orthonormal bases are their own duals, and keep their structure.
        self.general = {
            j: jnp.linalg.inv(bases[j].matrix()).T
            for j in self.others
            if bases[j].log_abs_det is not None
        }

    def inside(self, x: Array) -> Array:
        """`Vᵀ x`."""
        for j in self.others:
            axis = j - len(self.bases)
            if j in self.general:
                x = apply_along(self.general[j], x, axis, transpose=True)
            else:
                x = self.bases[j].rotate(x, axis)
        return x

    def outside(self, x: Array) -> Array:
        """`V x`."""
        for j in self.others:
            axis = j - len(self.bases)
            if j in self.general:
                x = apply_along(self.general[j], x, axis)
            else:
                x = self.bases[j].unrotate(x, axis)
        return x

    def matrix(self, j: int) -> Array | None:
        """`V_j`, with `None` for the identity."""
        if j in self.general:
            return self.general[j]
        return None if self.bases[j].is_identity else self.bases[j].matrix()

    def diagonal(self, x: Array, skip: int | None = None) -> Array:
        """The diagonal of `V diag(x) Vᵀ`."""
        for j in self.others:
            v = None if j == skip else self.matrix(j)
            if v is not None:
                x = apply_along(jnp.square(v), x, j - len(self.bases))
        return x

    def log_det(self) -> Array | float:
        """`log det V Vᵀ`."""
        sizes = [b.values.shape[-1] for b in self.bases]
        count = prod(sizes[j] for j in self.others)
        return sum(
            -2 * (count / sizes[j]) * log_abs_det
            for j in self.others
            if (log_abs_det := self.bases[j].log_abs_det) is not None
        )

    def sum_others(self, x: Array) -> Array:
        """Over every axis but `axis`."""
        return jnp.sum(x, axis=tuple(self.others))


def _slices_value(operands, bases, *, axis):
    _, _, fields = operands
    frame = _Frame(bases, axis)
    precision = apply_along(
        jnp.square(bases[axis].matrix()), 1 / spectrum(bases), axis - len(bases)
    )
    return (
        frame.outside(jnp.divide(*same_rank(frame.inside(fields), precision))),
        frame.diagonal(1 / precision),
        frame.log_det() - frame.sum_others(jnp.log(precision)),
    )


def _slices_tangent_value(coefficients, moving, *, given, axis):
    (signal, noise, fields), bases = coefficients
    frame, dim = _Frame(bases, axis), axis - len(bases)
    own = bases[axis].matrix()
    inverse_d = 1 / spectrum(bases)
    precision = apply_along(jnp.square(own), inverse_d, dim)
    held = (frame, own, inverse_d, precision, frame.inside(fields))
    tangents, marks = iter(moving), iter(given)
    inside, diagonal = jnp.zeros_like(fields), jnp.zeros_like(precision)
    log_det = jnp.zeros(precision.shape[axis], precision.dtype)
    for blocks, values in (
        (signal, [b.values for b in bases]),
        (noise, [b.noise_values for b in bases]),
    ):
        for j, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
            ts = [next(tangents) if next(marks) else None for _ in block.arrays]
            if all(t is None for t in ts):
                continue
            middle, weight = tangent_in_basis(block, basis, ts), outer(values, skip=j)
            if middle.ndim == 2 and j != axis:
                parts = _along_other(held, middle, values, j)
            else:
                if middle.ndim == 2:
                    loss = columnwise(own, own, middle, weight, inverse_d, dim)
                else:
                    scaled = (
                        along(middle, j - len(bases), weight.ndim) * weight * jnp.square(inverse_d)
                    )
                    loss = apply_along(jnp.square(own), scaled, dim)
                change = loss / jnp.square(precision)
                logs = frame.sum_others(loss / precision)
                moved = jnp.multiply(*same_rank(change, held[-1]))
                parts = moved, frame.diagonal(change), logs
            inside, diagonal, log_det = inside + parts[0], diagonal + parts[1], log_det + parts[2]
    if next(marks):
        inside = inside + jnp.divide(*same_rank(frame.inside(next(tangents)), precision))
    return frame.outside(inside), diagonal, log_det


def _along_other(held: tuple, middle: Array, values: list[Array], j: int) -> tuple:
    """What `E = W_jᵀ dK_j W_j` changes, for an axis `j` that is not the one of the slices.

    `E` itself stands on the diagonal of every slice and of every place on the rest of the axes:
    `dC[b,c] = λ_rest E[b,c] Σ_k W_i[a,k]² λ_i[k] / (D[k,b] D[k,c] P[a,b] P[a,c])`. One such matrix
    at a time, in chunks: a map over cells, not over factors.
    """
    frame, own, inverse_d, precision, fields = held
    i, ndim = frame.axis, inverse_d.ndim
    v = frame.matrix(j)
    lead = fields.shape[: fields.ndim - ndim]

    def apart(x: Array) -> Array:
        """The axes of the slices and `j` last, the rest as one in front."""
        moved = jnp.moveaxis(x, (i - ndim, j - ndim), (-2, -1))
        return moved.reshape(*x.shape[: x.ndim - ndim], -1, *moved.shape[-2:])

    weights = jnp.broadcast_to(
        outer([jnp.ones_like(u) if k in (i, j) else u for k, u in enumerate(values)]),
        inverse_d.shape,
    )
    squares = jnp.square(own) * values[i][None]
    moved_fields = jnp.moveaxis(apart(fields).reshape(-1, *apart(precision).shape), 0, -1)
    rows = (apart(inverse_d), apart(precision), apart(weights)[..., 0, 0], moved_fields)

    @jax.checkpoint  # a transpose would keep `coupling` for every slice
    def one_slice(square, d, p, weight, x):
        coupling = matmul(d.T * square[None], d)
        change = weight * middle * coupling / (p[:, None] * p[None])
        spread = change if v is None else matmul(matmul(v, change), v.T)
        return matmul(change, x), jnp.diagonal(spread), jnp.sum(jnp.diagonal(change) * p)

    def one_rest(of_rest):
        d, p, weight, x = of_rest
        chunk = max(1, min(p.shape[0], CHUNK // middle.size))
        slices = (squares, p, x)
        return lax.map(lambda s: one_slice(s[0], d, s[1], weight, s[2]), slices, batch_size=chunk)

    applied, diagonal, log_det = lax.map(one_rest, rows)

    def back(x: Array) -> Array:
        """The reverse of `apart`."""
        sizes = [n for k, n in enumerate(inverse_d.shape) if k not in (i, j)]
        x = x.reshape(*x.shape[:-3], *sizes, *x.shape[-2:])
        return jnp.moveaxis(x, (-2, -1), (i - ndim, j - ndim))

    inside = back(jnp.moveaxis(applied, -1, 0)).reshape(*lead, *inverse_d.shape)
    return inside, frame.diagonal(back(diagonal), skip=j), jnp.sum(log_det, axis=0)


def _thin_value(operands, bases: ThinBases, *, axis: int):
    """With thin axes: `C_a = N_{-i}/c_a + V (diag(1/P_a) − diag(μ)/c_a) Vᵀ`, `c_a = [N_i⁻¹]_aa`.

    `V` spans the ranges of the thin roots, `μ` is the noise there: outside of them a slice has its
    noise alone, less what it shares with that of the other slices.
    """
    op, fields = operands
    frame, dim = _ThinFrame(op, bases, axis), axis - len(op.factors)
    inverse_d = 1 / spectrum(bases.reduced)
    own, levels = bases.ranges[axis], bases.reduced[axis].noise_values
    if own is None:
        own, weight = bases.reduced[axis].matrix(), jnp.ones(op.grid_shape[axis], op.dtype)
        alone = jnp.sum(jnp.square(own) / levels[None], axis=-1)
        precision = apply_along(jnp.square(own), inverse_d, dim)
    else:
        scale = bases.scales[axis]
        weight = jnp.ones(own.shape[0], own.dtype) if scale is None else jnp.square(scale)
        alone = weight / levels[0]
        # What of each unit vector is outside the range, which only the noise of the axis fills.
        rest = jnp.maximum(1 - jnp.sum(jnp.square(own), axis=-1), 0)
        inside = apply_along(jnp.square(own), inverse_d, dim)
        precision = along(weight, dim, inside.ndim) * inside
        precision = precision + along(alone * rest, dim, inside.ndim) / frame.noise
    if not frame.has_outside:
        applied = frame.outside(jnp.divide(*same_rank(frame.inside(fields), precision)))
        log_det = frame.log_det() - frame.sum_others(jnp.log(precision))
        return applied, frame.diagonal(1 / precision), log_det
    alone_grid = along(alone, dim, precision.ndim)
    # `1/P − μ/c` without the difference: `c − μ P` is `Σ_k W[a,k]² λ / (ν D)`, `ν` of this axis.
    ndim = precision.ndim
    lacking = outer([b.values for b in bases.reduced]) * inverse_d / along(levels, dim, ndim)
    lacking = along(weight, dim, ndim) * apply_along(jnp.square(own), lacking, dim)
    change = lacking / (alone_grid * precision)
    applied = frame.outside(jnp.multiply(*same_rank(change, frame.inside(fields))))
    applied = applied + jnp.divide(*same_rank(frame.noise_of(fields), alone_grid))
    diagonal = frame.diagonal(change) + frame.noise_diagonal() / alone_grid
    count = prod(n for j, n in enumerate(op.grid_shape) if j != axis)
    log_det = frame.noise_log_det() - count * jnp.log(alone)
    log_det = log_det - frame.sum_others(jnp.log(precision * frame.noise / alone_grid))
    return applied, diagonal, log_det


class _ThinFrame(_Frame):
    """The dual bases of the reduced axes, embedded in the ranges of the thin roots."""

    def __init__(self, op: KroneckerPlusNoise, bases: ThinBases, axis: int):
        super().__init__(bases.reduced, axis)
        self.noises = noise_factors(op)
        self.sizes = op.grid_shape
        self.has_outside = any(bases.ranges[j] is not None for j in self.others)
        self.noise = outer([b.noise_values for b in bases.reduced], skip=axis)
        for j in self.others:
            u, scale = bases.ranges[j], bases.scales[j]
            if u is not None:
                self.general[j] = u if scale is None else u / scale[:, None]

    def noise_of(self, x: Array) -> Array:
        """`N_{-i} x`."""
        for j in self.others:
            x = self.noises[j].mv_along(x, j - len(self.sizes))
        return x

    def noise_diagonal(self) -> Array:
        """Of `N_{-i}`, as a grid array."""
        return outer([factor.diagonal() for factor in self.noises], skip=self.axis)

    def noise_log_det(self) -> Array | float:
        """Of `N_{-i}`."""
        count = prod(self.sizes[j] for j in self.others)
        return sum(
            count
            / self.sizes[j]
            * self.noises[j].log_abs_det(self.noises[j].factorize(positive_definite=True))
            for j in self.others
        )


def _refuse(operands: Any, constants: Any, tangents: Any, **static: Any) -> Any:
    raise DerivativeOrderError(
        "Slices that are left out of a process with low-rank factors have values only. For a "
        "derivative leave `structure` out, so that the axes are not of low rank."
    )


_slices_tangent = LinearPrimitive(
    "kronax_slices_tangent", _slices_tangent_value, "The prediction of a slice from the others"
)
_slices = RulePrimitive("kronax_slices", _slices_value, by_product(_slices_tangent))
_thin_slices = RulePrimitive("kronax_thin_slices", _thin_value, _refuse)
