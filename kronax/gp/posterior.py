"""A grid GP given data: mean, variance and draws, at the grid and on a new one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.axes import Axis, new_axes
from kronax.gp.leave_one_out import LeaveOneOut, leave_one_out
from kronax.gp.predictive import PosteriorNormal
from kronax.gp.structure import low_rank_joint, low_rank_rows, points
from kronax.linalg.checks import array_of_reals, check_finite, is_concrete
from kronax.linalg.diagonals import conjugated_inverse_diagonal, posterior_diagonal
from kronax.linalg.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.modes import matmul
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.roots import safe_sqrt, symmetric_root
from kronax.linalg.sample import apply_roots
from kronax.linalg.sequence import in_sequence
from kronax.linalg.thin import is_thin, reduced, rows_inside


class Posterior(eqx.Module):
    """What `gp.condition(y)` returns; it carries the decomposition that predictions need.

    `axes` in its methods is a list with one entry per axis, or a dictionary by name: new
    coordinates, or `None` (or left out) for an axis that stays. Batches of `y` lead.
    """

    gp: Any
    y: Array
    operator: KroneckerPlusNoise
    weights: Array

    def __repr__(self) -> str:
        return f"Posterior given data of shape {self.y.shape}:\n{self.gp!r}"

    def mean(self, axes: Any = None) -> Float[Array, "..."]:
        """Posterior mean of the function, grid-shaped; `2 N Σ m_i` operations.

        Args:
            axes: new coordinates; by default the grid itself.

        Raises:
            KeyError: if an axis name is unknown.
            ValueError: if there is not one entry per axis, or coordinates have another form.
        """
        return _mean(self, self._new_axes(axes))

    def variance(
        self, axes: Any = None, include_noise: bool = False, noise: Any = None
    ) -> Float[Array, "..."]:
        """Posterior variance, grid-shaped; right to first order, raises beyond.

        Args:
            axes: new coordinates; by default the grid itself.
            include_noise: the variance of a new observation: σ² is added.
            noise: the noise variance there, where the model's is not defined on new coordinates;
                a number, or an array that broadcasts to the new grid.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if `noise` is given without `include_noise=True`.
            ValueError: if there is not one entry per axis, or if noise that varies along an axis is
                asked for at new coordinates of it.
        """
        _check_used(noise, include_noise)
        new = self._new_axes(axes)
        variance = _variance(self, new)
        return variance + self._noise_diagonal(new, noise) if include_noise else variance

    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
        noise: Any = None,
    ) -> Float[Array, "..."]:
        """Posterior draws by Matheron's rule: a prior draw, corrected by what the data say.

        One root per axis, jointly over old and new coordinates, then structured products only.

        Args:
            key: a JAX random key.
            axes: new coordinates; by default the grid itself.
            sample_shape: leading axes of the draws.
            include_noise: draws of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        _check_used(noise, include_noise)
        new = self._new_axes(axes)
        shape = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        key, noise_key = jax.random.split(key)
        draws = _sample(self, key, new, shape)
        if any(s.rank for s in self.gp.structures) and is_concrete(draws):
            check_finite(draws, "Draws with low-rank factors (raise the rank of `structure`)")
        if not include_noise:
            return draws
        if noise is None and not any(new):
            return draws + _noise_draw(self.operator, noise_key, draws.shape)
        scale = safe_sqrt(self._noise_diagonal(new, noise))
        return draws + scale * jax.random.normal(noise_key, draws.shape, draws.dtype)

    def leave_one_out(self) -> LeaveOneOut:
        """Every noisy observation as predicted from all the others, with the same parameters.

        `means, variances = post.leave_one_out()`; exact, from the diagonal of the inverse, at
        `2 N Σ n_i` operations. Right to first order, raises beyond.
        """
        return leave_one_out(self.operator, self.y, self.weights)

    def _new_axes(self, axes: Any) -> tuple[Axis | None, ...]:
        return new_axes(axes, self.gp.axes, self.gp.axis_names)

    def grid_shape(self, axes: Any = None) -> tuple[int, ...]:
        """Shape of the grid with new coordinates on some axes."""
        new = self._new_axes(axes)
        return tuple((axis or old).size for axis, old in zip(new, self.gp.axes, strict=True))

    def numpyro_dist(
        self, axes: Any = None, include_noise: bool = False, noise: Any = None
    ) -> PosteriorNormal:
        """The posterior as a NumPyro distribution, to be drawn from in a model or `Predictive`.

        Args:
            axes: new coordinates; by default the grid itself.
            include_noise: of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        _check_used(noise, include_noise)
        return PosteriorNormal(self, axes, include_noise, noise)

    def _noise_diagonal(self, new: tuple[Axis | None, ...], noise: Any) -> Array:
        if noise is not None:
            value = array_of_reals(float(noise) if isinstance(noise, int) else noise, "noise")
            if not isinstance(value, jax.core.Tracer) and bool((np.asarray(value) < 0).any()):
                raise ValueError(f"The noise variance must not be negative; got {value}.")
            shape = tuple((axis or old).size for axis, old in zip(new, self.gp.axes, strict=True))
            if value.ndim > len(shape) or any(
                m not in (1, n) for m, n in zip(value.shape[::-1], shape[::-1], strict=False)
            ):
                raise ValueError(
                    "The noise must be one variance, or variances that broadcast to the grid of "
                    f"the prediction, {shape}; got shape {value.shape}."
                )
            return value.astype(self.operator.dtype)
        model = self.operator.noise
        if not isinstance(model, Kronecker):
            return model
        varying = getattr(self.gp.noise, "variances", (True,) * len(new))
        for i, (axis, values) in enumerate(zip(new, varying, strict=True)):
            if axis is not None and values is not None:
                name = self.gp.axis_names[i] if self.gp.axis_names else f"axis {i}"
                raise ValueError(
                    f"The noise varies along {name} and is not defined at its new coordinates. "
                    "Pass `noise=` with the variance there."
                )
        sizes = [
            f.diagonal() if axis is None else jnp.ones(axis.size, f.dtype)
            for f, axis in zip(model.factors, new, strict=True)
        ]
        grid = jnp.ones((), model.dtype)
        for values in sizes:
            grid = grid[..., None] * values
        return grid


def _check_used(noise: Any, include_noise: bool) -> None:
    if noise is not None and not include_noise:
        raise TypeError(
            f"`noise` is used with include_noise=True only; got noise={noise!r} without it."
        )


def _cross(post: Posterior, i: int, new: Axis) -> tuple[Array, Array | None]:
    """`K_*i`, and the rows of a low-rank factor's root at the new coordinates."""
    gp, dtype = post.gp, post.operator.dtype
    kernel, rank = gp.kernels[i], gp.structures[i].rank
    x, z = (points(kernel, axis, dtype) for axis in (new, gp.axes[i]))
    amplitude = gp.variance.astype(dtype) if i == 0 else jnp.ones((), dtype)
    if rank is None:
        return amplitude * kernel(x, z), None
    ahead, old = (jnp.sqrt(amplitude) * r for r in low_rank_rows(kernel, x, z, rank, dtype))
    return matmul(ahead, old.T), ahead


def _signal(post: Posterior, new: tuple[Axis | None, ...]) -> Kronecker:
    """The covariance between the new grid and the old."""
    return Kronecker(
        *(
            factor if axis is None else _cross(post, i, axis)[0]
            for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True))
        )
    )


@eqx.filter_jit
def _mean(post: Posterior, new: tuple[Axis | None, ...]) -> Array:
    # The kernel itself: rows of a low-rank root would be off by the root of the trace error.
    gp, op = post.gp, post.operator
    factors: list[Any] = []
    for i, (factor, axis) in enumerate(zip(op.factors, new, strict=True)):
        if axis is None:
            factors.append(factor)
            continue
        kernel = gp.kernels[i]
        row = kernel(points(kernel, axis, op.dtype), points(kernel, gp.axes[i], op.dtype))
        factors.append(gp.variance * row if i == 0 else row)
    return gp.mean_on(new) + Kronecker(*factors).mv_grid(post.weights)


@eqx.filter_jit
def _variance(post: Posterior, new: tuple[Axis | None, ...]) -> Array:
    if not any(new):
        return posterior_diagonal(post.operator)
    prior = post.gp.variance
    dtype = post.operator.dtype
    for kernel, axis, old in zip(post.gp.kernels, new, post.gp.axes, strict=True):
        prior = prior[..., None] * kernel.diagonal(points(kernel, axis or old, dtype))
    op = post.operator
    pairs = [
        (factor.to_dense(), factor.thin_root()) if axis is None else _cross(post, i, axis)
        for i, (factor, axis) in enumerate(zip(op.factors, new, strict=True))
    ]
    if not is_thin(op):
        return prior - conjugated_inverse_diagonal(op, [row for row, _ in pairs])
    return prior - conjugated_inverse_diagonal(reduced(op), rows_inside(op, pairs))


@eqx.filter_jit
def _sample(
    post: Posterior, key: PRNGKeyArray, new: tuple[Axis | None, ...], shape: tuple[int, ...]
) -> Array:
    gp, op = post.gp, post.operator
    signal_key, noise_key = jax.random.split(key)
    roots = in_sequence(
        lambda i: _joint_root(gp, i, new[i], op.dtype), range(len(new)), batched=False
    )
    lead = (*shape, *post.y.shape[: post.y.ndim - len(new)])
    white = jax.random.normal(signal_key, (*lead, *(r.size for r in roots)), op.dtype)
    field = apply_roots(roots, white)
    old, ahead = field, field
    for i, (axis, before) in enumerate(zip(new, gp.axes, strict=True)):
        if axis is not None:
            dim = i - len(new)
            old = jnp.take(old, jnp.arange(before.size), axis=dim)
            ahead = jnp.take(ahead, jnp.arange(before.size, before.size + axis.size), axis=dim)
    noise = _noise_draw(op, noise_key, old.shape)
    residual = post.y - gp.mean_on((None,) * len(new)) - old - noise
    correction = _signal(post, new).mv_grid(gp.solve(op, residual))
    return gp.mean_on(new) + ahead + correction


def _joint_root(gp: Any, i: int, new: Axis | None, dtype: Any) -> SymmetricBlocks:
    """A root of the covariance of one axis over old and new coordinates together."""
    kernel, rank = gp.kernels[i], gp.structures[i].rank
    amplitude = gp.variance.astype(dtype) if i == 0 else jnp.ones((), dtype)
    x = points(kernel, gp.axes[i], dtype)
    ahead = None if new is None else points(kernel, new, dtype)
    if rank is None:
        joint = x if ahead is None else jnp.concatenate([x, ahead])
        return full_block(symmetric_root(amplitude * kernel(joint, joint)))
    root = jnp.sqrt(amplitude) * low_rank_joint(kernel, x, ahead, rank, dtype)
    return SymmetricBlocks((root,), (2,), (root.shape[-1],))


def _noise_draw(op: KroneckerPlusNoise, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    white = jax.random.normal(key, shape, op.dtype)
    if not isinstance(op.noise, Kronecker):
        return safe_sqrt(op.noise) * white
    return apply_roots([f.root() for f in op.noise.factors], white)
