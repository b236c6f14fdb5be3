"""The function of a grid GP in parts that have a Kronecker covariance each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.structure import Structure, choose, factor, low_rank_joint
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.points import Points
from kronax.gp.kernels.stationary import Indicator
from kronax.gp.model.noise import AxisNoise
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.factors.square_roots import symmetric_root
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.sum_of_products import KroneckerTerms

# New points per axis, `None` for one that stays: arrays, so that other coordinates, if as many,
# need no new compilation.
New = tuple[Points | None, ...]


class Component(eqx.Module):
    """A part of the function: `variance · k_1 ⊗ … ⊗ k_d`."""

    kernels: tuple[Kernel, ...]
    variance: Array


def whole(gp: Any) -> tuple[Component, ...]:
    """The function in as few components as have a Kronecker covariance each."""
    if not are_exact(gp):
        return tuple(term(gp, name) for name in gp.terms.names)
    variance = jnp.ones((), gp.dtype) if gp.variance is None else gp.variance
    signal = Component(gp.kernels, variance)
    if gp.joined is None:
        return (signal,)
    return signal, Component(_white_but(gp, gp.joined), jnp.ones((), gp.dtype))


def term(gp: Any, name: str) -> Component:
    """One term of an additive model."""
    if not are_exact(gp):
        place = gp.terms.names.index(name)
        kernels = tuple(
            kernel if len(set(owner)) == 1 else kernel.terms[owner[place]]
            for kernel, owner in zip(gp.kernels, gp.terms.owners, strict=True)
        )
        return Component(kernels, gp.variance[name])
    if name in gp.terms.joined:
        kernels = _white_but(gp, gp.joined.terms[name])
        return Component(kernels, gp.joined.variances[name])
    i = gp.terms.axis
    total = gp.kernels[i]
    kernels = (*gp.kernels[:i], total.terms[name], *gp.kernels[i + 1 :])
    return Component(kernels, total.variances[name])


def are_exact(gp: Any) -> bool:
    """Whether the function and the noise have an exact decomposition on a grid without gaps."""
    return gp.terms is None or gp.terms.are_exact


def terms_covariance(gp: Any) -> KroneckerTerms:
    """The covariance of a function whose terms have no exact decomposition."""
    stay = (None,) * len(gp.axes)
    return KroneckerTerms([prior_covariance(gp, part, stay, gp.dtype) for part in whole(gp)])


def parts(gp: Any, name: str | None) -> tuple[Component, ...]:
    """Those of the whole function, or the one of a term."""
    return whole(gp) if name is None else (term(gp, name),)


def axis_with_variance(gp: Any, name: str | None) -> int:
    """The axis whose factor the variance of the function, or of a term, belongs to."""
    if name is None or gp.terms is None:
        return 0
    return gp.terms.joined_axis if name in gp.terms.joined else gp.terms.axis


def _white_but(gp: Any, kernel: Kernel) -> tuple[Kernel, ...]:
    i = gp.terms.joined_axis
    return tuple(kernel if j == i else Indicator() for j in range(len(gp.axes)))


def joined_noise(gp: Any, include_noise: bool) -> Kronecker:
    """`I ⊗ … (B + N) … ⊗ I`: the terms that join the noise, with the noise or alone."""
    dtype = gp.dtype
    one = jnp.ones((), dtype)
    i = gp.terms.joined_axis
    added: AbstractFactor = factor(gp.joined, gp.axes[i], gp.joined_structure, dtype)
    variances = gp.noise.variances[i] if isinstance(gp.noise, AxisNoise) else None
    if include_noise and variances is not None:
        added = Dense(added.to_dense() + jnp.diag(variances.astype(dtype)))
    elif include_noise:
        added = added.shifted(one if isinstance(gp.noise, AxisNoise) else gp.noise_term())
    return Kronecker(
        *(added if j == i else ScaledIdentity(one, axis.size) for j, axis in enumerate(gp.axes))
    )


def cross_covariance(
    gp: Any, part: Component, new: New, dtype: Any, along: int | None = None
) -> Kronecker:
    """The covariance of a part on a new grid with itself on the old one.

    With `along` it is the derivative along that axis of the new grid.
    """
    factors: list[Any] = []
    for i, (kernel, axis) in enumerate(zip(part.kernels, gp.axes, strict=True)):
        x = new[i]
        if i == along:
            factors.append(slope_matrix(kernel, axis, x or axis.points(dtype), dtype))
        elif x is None:
            factors.append(factor_of(gp, kernel, i, dtype))
        else:
            factors.append(kernel.matrix_at(x, axis.points(dtype)).astype(dtype))
    return Kronecker(*factors).scaled(part.variance.astype(dtype))


def cross_rows(gp: Any, part: Component, new: New, dtype: Any) -> list[Array | None]:
    """The matrices of `cross_covariance` without the variance, `None` for an identity."""
    rows: list[Array | None] = []
    for i, (kernel, axis) in enumerate(zip(part.kernels, gp.axes, strict=True)):
        x = new[i]
        if x is None and isinstance(kernel, Indicator) and axis.is_distinct:
            rows.append(None)
        elif x is None:
            rows.append(factor_of(gp, kernel, i, dtype).to_dense())
        else:
            rows.append(kernel.matrix_at(x, axis.points(dtype)).astype(dtype))
    return rows


def rows_at(
    gp: Any, part: Component, places: tuple[Points, ...], dtype: Any
) -> list[Float[Array, "m _"]]:
    """The covariances of scattered places with every axis; those of the first have the variance."""
    rows = [
        kernel.matrix_at(x, axis.points(dtype)).astype(dtype)
        for kernel, x, axis in zip(part.kernels, places, gp.axes, strict=True)
    ]
    return [part.variance.astype(dtype) * rows[0], *rows[1:]]


def prior_covariance(gp: Any, part: Component, new: New, dtype: Any) -> Kronecker:
    """The covariance of a part on a grid, some of whose axes are new."""
    factors: list[Any] = []
    for i, (kernel, x) in enumerate(zip(part.kernels, new, strict=True)):
        if x is None:
            factors.append(factor_of(gp, kernel, i, dtype))
        else:
            factors.append(kernel.matrix_at(x, x).astype(dtype))
    return Kronecker(*factors).scaled(part.variance.astype(dtype))


def prior_variances(gp: Any, part: Component, new: New, dtype: Any) -> Float[Array, "..."]:
    """The diagonal of `prior_covariance`."""
    total = part.variance.astype(dtype)
    for kernel, x, axis in zip(part.kernels, new, gp.axes, strict=True):
        values = kernel.variances_at(axis.points(dtype) if x is None else x)
        total = jnp.multiply(*same_rank(total[..., None], values.astype(dtype)))
    return total


def joint_root(
    gp: Any, kernel: Kernel, i: int, new: Points | None, variance: Array, dtype: Any
) -> SymmetricBlocks:
    """A root of `variance · k` on one axis over old and new coordinates together."""
    rank = gp.structures[i].rank
    x = gp.axes[i].points(dtype)
    if rank is not None:
        root = jnp.sqrt(variance) * low_rank_joint(kernel, x, new, rank, dtype)
        return SymmetricBlocks((root,), (2,), (root.shape[-1],))
    joint = x if new is None else x.joined(new)
    return full_block(symmetric_root(variance * kernel.matrix_at(joint, joint).astype(dtype)))


def slope_matrix(kernel: Kernel, axis: Axis, x: Points, dtype: Any) -> Float[Array, "m n"]:
    """`∂k(x, axis) / ∂x`: how each row changes with its own coordinate, one to a place."""
    old, period = axis.points(dtype), axis.period
    ones, places = jnp.ones_like(x.raw), None
    if x.places is not None:
        # Round the circle, at one unit of arc length for one of the coordinate.
        assert period is not None
        angle = x.centred * jnp.asarray(2 * np.pi / period, dtype)
        places = jnp.stack([-jnp.sin(angle), jnp.cos(angle)], axis=-1)
    tangent = Points(ones, ones, places, x.origin)
    _, slope = jax.jvp(lambda p: kernel.matrix_at(p, old).astype(dtype), (x,), (tangent,))
    if kernel.has_slope:
        return slope
    # A kink or a jump: traced places cannot be refused.
    return jnp.where(x.raw[:, None] == old.raw[None], jnp.nan, slope)


def factor_of(gp: Any, kernel: Kernel, i: int, dtype: Any) -> AbstractFactor:
    """The covariance of a kernel on the old axis."""
    return factor(kernel, gp.axes[i], _structure(gp, kernel, i), dtype)


def _structure(gp: Any, kernel: Kernel, i: int) -> Structure:
    """That of a kernel on the old axis: as the model has it, or chosen for a term alone.

    Terms that are solved together by iterations share the structure that all of them have.
    """
    if kernel is gp.kernels[i] or gp.structures[i].rank is not None or not are_exact(gp):
        return gp.structures[i]
    return choose(kernel, gp.axes[i])
