"""The function of a grid GP in parts that have a Kronecker covariance each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.kernel_gradients import is_known
from kronax.gp.axes.markov import has_nugget, markov_ahead, slope_of_state, state_length
from kronax.gp.axes.structure import Structure, choose, factor, low_rank_joint, low_rank_rows
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.points import Points
from kronax.gp.kernels.stationary import Indicator
from kronax.gp.kernels.terms import TermSum
from kronax.gp.model.process import AbstractProcess
from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.factors.square_roots import symmetric_root
from kronax.linalg.markov.factor import MarkovAhead, MarkovCross
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.sum_of_products import KroneckerTerms

# New points per axis, `None` for one that stays: arrays, so that other coordinates, if as many,
# need no new compilation.
New = tuple[Points | None, ...]


class Component(eqx.Module):
    """A part of the function: `variance · k_1 ⊗ … ⊗ k_d`."""

    kernels: tuple[Kernel, ...]
    variance: Array


def whole(gp: AbstractProcess) -> tuple[Component, ...]:
    """The function in as few components as have a Kronecker covariance each."""
    if not are_exact(gp):
        return tuple(term(gp, name) for name in gp.additive.names)
    variance = jnp.ones((), gp.dtype) if gp.variance is None else gp.variance
    signal = Component(gp.kernels, variance)
    if gp.joined is None:
        return (signal,)
    return signal, Component(_white_but(gp, gp.joined), jnp.ones((), gp.dtype))


def term(gp: AbstractProcess, name: str) -> Component:
    """One term of an additive model."""
    if not are_exact(gp):
        place = gp.additive.names.index(name)
        variances: Any = gp.variance
        sums: tuple[Any, ...] = gp.kernels  # of several kernels, where the terms have some
        kernels = tuple(
            kernel if len(set(owner)) == 1 else kernel.terms[owner[place]]
            for kernel, owner in zip(sums, gp.additive.owners, strict=True)
        )
        return Component(kernels, variances[name])
    if gp.joined is not None and name in gp.additive.joined:
        kernels = _white_but(gp, gp.joined.terms[name])
        beside: Any = gp.joined.variances
        return Component(kernels, beside[name])
    i = gp.additive.axis
    total: Any = gp.kernels[i]  # a sum of terms
    kernels = (*gp.kernels[:i], total.terms[name], *gp.kernels[i + 1 :])
    return Component(kernels, total.variances[name])


def are_exact(gp: AbstractProcess) -> bool:
    """Whether the function and the noise have an exact decomposition on a grid without gaps."""
    return gp.terms is None or gp.terms.are_exact


def terms_covariance(gp: AbstractProcess) -> KroneckerTerms:
    """The covariance of a function whose terms have no exact decomposition."""
    stay = (None,) * len(gp.axes)
    return KroneckerTerms([prior_covariance(gp, part, stay, gp.dtype) for part in whole(gp)])


def parts(gp: AbstractProcess, name: str | None) -> tuple[Component, ...]:
    """Those of the whole function, or the one of a term."""
    return whole(gp) if name is None else (term(gp, name),)


def axis_with_variance(gp: AbstractProcess, name: str | None) -> int:
    """The axis whose factor the variance of the function, or of a term, belongs to."""
    if name is None or gp.terms is None:
        return 0
    return gp.additive.joined_axis if name in gp.additive.joined else gp.additive.axis


def _white_but(gp: AbstractProcess, kernel: Kernel) -> tuple[Kernel, ...]:
    i = gp.additive.joined_axis
    return tuple(kernel if j == i else Indicator() for j in range(len(gp.axes)))


def joined_noise(gp: AbstractProcess, include_noise: bool) -> Kronecker:
    """`I ⊗ … (B + N) … ⊗ I`: the terms that join the noise, with the noise or alone."""
    dtype = gp.dtype
    one = jnp.ones((), dtype)
    i = gp.additive.joined_axis
    assert gp.joined is not None
    assert gp.joined_structure is not None
    added: AbstractFactor = factor(gp.joined, gp.axes[i], gp.joined_structure, dtype)
    if include_noise:
        level = gp.noise_model.along(i, dtype)
        added = Dense(added.to_dense() + jnp.diag(level)) if level.ndim else added.shifted(level)
    return Kronecker(
        *(added if j == i else ScaledIdentity(one, axis.size) for j, axis in enumerate(gp.axes))
    )


def cross_covariance(
    gp: AbstractProcess, part: Component, new: New, dtype: Any, along: int | None = None
) -> Kronecker:
    """The covariance of a part on a new grid with itself on the old one.

    With `along` it is the derivative along that axis of the new grid.
    """
    factors: list[Any] = []
    for i, (kernel, axis) in enumerate(zip(part.kernels, gp.axes, strict=True)):
        x = new[i]
        if i == along:
            factors.append(slope_factor(gp, kernel, i, x or axis.points(dtype), dtype))
        elif x is None:
            factors.append(factor_of(gp, kernel, i, dtype))
        else:
            factors.append(cross_factor(gp, kernel, i, x, dtype))
    return Kronecker(*factors).scaled(part.variance.astype(dtype))


def cross_factor(gp: AbstractProcess, kernel: Kernel, i: int, new: Points, dtype: Any) -> Any:
    """The covariances of new points with the old axis: `(m, n)`, in linear time if it is Markov."""
    joint = process_ahead(gp, kernel, i, new, dtype)
    if joint is None:
        return kernel.matrix_at(new, gp.axes[i].points(dtype)).astype(dtype)
    return MarkovCross(joint, gp.axes[i].size)


def slope_factor(gp: AbstractProcess, kernel: Kernel, i: int, new: Points, dtype: Any) -> Any:
    """How `cross_factor` changes with the new points, each with its own; alike in linear time."""
    is_smooth = all(term.has_slope and is_known(term) for term in kernel.all_terms())
    joint = process_ahead(gp, kernel, i, new, dtype) if is_smooth else None
    if joint is None:
        return slope_matrix(kernel, gp.axes[i], new, dtype)
    return MarkovCross(joint, gp.axes[i].size, part=slope_of_state(kernel, dtype))


def process_ahead(
    gp: AbstractProcess, kernel: Kernel, i: int, new: Points, dtype: Any
) -> MarkovAhead | None:
    """The process of a kernel at old and new points, where it is solved as a Markov process."""
    if _structure(gp, kernel, i).kind != "markov":
        return None
    return markov_ahead(kernel, gp.axes[i], new, dtype)


def part_of_state(
    gp: AbstractProcess, kernel: Kernel, i: int, is_ahead: bool
) -> tuple[float, ...] | None:
    """Which entries of the state of a sum of terms make one of them, if the axis is Markov.

    Args:
        gp: the process.
        kernel: of the term.
        i: the axis.
        is_ahead: whether it is of old and new places together.
    """
    total: Any = gp.kernels[i]
    if gp.structures[i].kind != "markov" or not isinstance(total, TermSum):
        return None
    terms = [total.terms[name] for name in total.names]
    place = next((k for k, own in enumerate(terms) if own is kernel), None)
    are_apart = gp.axes[i].is_distinct and not is_ahead
    if place is None or has_nugget(kernel, are_apart):
        return None
    lengths = [state_length(term, are_apart) or 0 for term in terms]
    starts = np.cumsum([0, *lengths])
    weights = np.zeros(starts[-1])
    # The first entry is the sum of all terms; every later one has an entry of its own.
    weights[starts[place]] = 1
    if starts[place] == 0:
        weights[[start for start, n in zip(starts, lengths, strict=False) if n and start]] = -1
    return tuple(weights.tolist())


def cross_rows(gp: AbstractProcess, part: Component, new: New, dtype: Any) -> list[Array | None]:
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
    gp: AbstractProcess, part: Component, places: tuple[Points, ...], dtype: Any
) -> list[Float[Array, "m _"]]:
    """The covariances of scattered places with every axis; those of the first have the variance."""
    rows = [
        kernel.matrix_at(x, axis.points(dtype)).astype(dtype)
        for kernel, x, axis in zip(part.kernels, places, gp.axes, strict=True)
    ]
    return [part.variance.astype(dtype) * rows[0], *rows[1:]]


def prior_covariance(gp: AbstractProcess, part: Component, new: New, dtype: Any) -> Kronecker:
    """The covariance of a part on a grid, some of whose axes are new."""
    factors: list[Any] = []
    for i, (kernel, x) in enumerate(zip(part.kernels, new, strict=True)):
        if x is None:
            factors.append(factor_of(gp, kernel, i, dtype))
        else:
            factors.append(kernel.matrix_at(x, x).astype(dtype))
    return Kronecker(*factors).scaled(part.variance.astype(dtype))


def prior_variances(
    gp: AbstractProcess, part: Component, new: New, dtype: Any
) -> Float[Array, "..."]:
    """The diagonal of `prior_covariance`."""
    total = part.variance.astype(dtype)
    for kernel, x, axis in zip(part.kernels, new, gp.axes, strict=True):
        values = kernel.variances_at(axis.points(dtype) if x is None else x)
        total = jnp.multiply(*same_rank(total[..., None], values.astype(dtype)))
    return total


def joint_root(
    gp: AbstractProcess, kernel: Kernel, i: int, new: Points | None, variance: Array, dtype: Any
) -> Any:
    """A root of `variance · k` on one axis over old and new coordinates together."""
    rank = gp.structures[i].rank
    x = gp.axes[i].points(dtype)
    if new is None and _structure(gp, kernel, i).kind == "markov":
        return factor_of(gp, kernel, i, dtype).scaled(variance).root()
    if new is not None and (process := process_ahead(gp, kernel, i, new, dtype)) is not None:
        return process.scaled(variance).root()
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
    _, slope = jax.jvp(lambda p: kernel.matrix_at(p, old).astype(dtype), (x.alone,), (tangent,))
    if kernel.has_slope:
        return slope
    # A kink or a jump: traced places cannot be refused.
    return where(x.raw[:, None] == old.raw[None], jnp.nan, slope)


def factor_of(gp: AbstractProcess, kernel: Kernel, i: int, dtype: Any) -> AbstractFactor:
    """The covariance of a kernel on the old axis."""
    return factor(kernel, gp.axes[i], _structure(gp, kernel, i), dtype)


def _structure(gp: AbstractProcess, kernel: Kernel, i: int) -> Structure:
    """That of a kernel on the old axis: as the model has it, or chosen for a term alone.

    Terms that are solved together by iterations share the structure that all of them have.
    """
    if kernel is gp.kernels[i] or gp.structures[i].rank is not None or not are_exact(gp):
        return gp.structures[i]
    chosen, held = choose(kernel, gp.axes[i]), gp.structures[i]
    # The terms of a process that is Markov are so as well.
    return held if held.kind == "markov" and chosen.kind != "diagonal" else chosen


def amplitude(gp: AbstractProcess, i: int, dtype: Any) -> Array:
    """The process' variance, which the first axis carries; terms have variances of their own."""
    if i > 0 or gp.terms is not None:
        return jnp.ones((), dtype)
    return gp.variance.astype(dtype)


def kernel_rows(gp: AbstractProcess, i: int, new: Points, dtype: Any) -> Float[Array, "m n"]:
    """`K_*i` as the kernel has it, low rank or not."""
    rows = gp.kernels[i].matrix_at(new, gp.axes[i].points(dtype))
    return amplitude(gp, i, dtype) * rows.astype(dtype)


def kernel_matrix(gp: AbstractProcess, i: int, x: Points, dtype: Any) -> Float[Array, "m m"]:
    """The covariance of one axis at any points."""
    return amplitude(gp, i, dtype) * gp.kernels[i].matrix_at(x, x).astype(dtype)


def root_rows(
    gp: AbstractProcess, i: int, new: Points, dtype: Any
) -> tuple[Float[Array, "m n"], Float[Array, "m r"] | None]:
    """`K_*i`, and the rows of a low-rank factor's root at the new points."""
    rank = gp.structures[i].rank
    if rank is None:
        return kernel_rows(gp, i, new, dtype), None
    scale = jnp.sqrt(amplitude(gp, i, dtype))
    rows = low_rank_rows(gp.kernels[i], new, gp.axes[i].points(dtype), rank, dtype)
    ahead, old = (scale * r for r in rows)
    return matmul(ahead, old.T), ahead
