"""A grid GP given data: mean, variance and draws, at the grid and on a new one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.axes import Axis, new_axes
from kronax.gp.covariance import PosteriorCovariance
from kronax.gp.cross import amplitude, kernel_rows, root_rows, slope_rows
from kronax.gp.density import check_number, log_density, log_density_at
from kronax.gp.predictive import PosteriorNormal
from kronax.gp.scattered import mean_at, sample_at, scattered_axes, variance_at
from kronax.gp.structure import low_rank_joint
from kronax.gp.structure import points as points_of
from kronax.linalg.checks import array_of_reals, check_finite, grid_of, is_concrete
from kronax.linalg.diagonals import conjugated_inverse_diagonal, posterior_diagonal
from kronax.linalg.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.factors.dense import Dense
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.roots import safe_sqrt, symmetric_root
from kronax.linalg.sample import apply_roots
from kronax.linalg.sequence import in_sequence
from kronax.linalg.thin import is_diagonal, is_thin, reduced, rows_inside
from kronax.paths import nearest


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

    def mean(self, axes: Any = None, points: Any = None) -> Float[Array, "..."]:
        """Posterior mean of the function, grid-shaped; `2 N Σ m_i` operations.

        Args:
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, `(m, d)` or one array of `m` per axis; the result is
                `(*batch, m)`, at `2 m N` operations.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if there is not one entry per axis, or coordinates have another form.
        """
        if points is not None:
            return mean_at(self, self._scattered(axes, points))
        return _mean(self, self._new_axes(axes))

    def mean_derivative(self, axis: int | str, axes: Any = None) -> Float[Array, "..."]:
        """The derivative of the mean along one axis, in units of the data per unit of the axis.

        Args:
            axis: its name or number.
            axes: new coordinates; by default the grid itself.

        Raises:
            KeyError: if an axis name is unknown.
            ValueError: if the axis has places in several dimensions or labels, or the mean function
                is known on the grid only.
        """
        i = self._axis_number(axis)
        return _mean_derivative(self, self._new_axes(axes), i)

    def variance(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
    ) -> Float[Array, "..."]:
        """Posterior variance, grid-shaped; right to first order, raises beyond.

        Args:
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`; values only, differentiating raises.
            include_noise: the variance of a new observation: σ² is added.
            noise: the noise variance there, where the model's is not defined on new coordinates;
                a number, or an array that broadcasts to the new grid.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if `noise` is given without `include_noise=True`, or both `axes` and `points`.
            ValueError: if there is not one entry per axis, or if noise that varies along an axis is
                asked for at new coordinates of it.
        """
        _check_used(noise, include_noise)
        if points is not None:
            places = self._scattered(axes, points)
            variance = variance_at(self, places)
            return variance + self._noise_at(places, noise) if include_noise else variance
        new = self._new_axes(axes)
        variance = _variance(self, new)
        return variance + self.noise_diagonal(new, noise) if include_noise else variance

    def covariance(
        self, axes: Any = None, include_noise: bool = False, noise: Any = None
    ) -> PosteriorCovariance:
        """Posterior covariance on a grid, as an operator: it multiplies, and knows its diagonal.

        Args:
            axes: new coordinates; by default the grid itself.
            include_noise: of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`; or if noise that is correlated is to be included.
        """
        _check_used(noise, include_noise)
        new = self._new_axes(axes)
        levels = None
        if include_noise:
            _check_independent(self.operator.noise, noise)
            levels = self.noise_diagonal(new, noise)
        return _covariance(self, new, levels)

    def log_prob(
        self, y_new: Float[Array, "..."], axes: Any = None, points: Any = None, noise: Any = None
    ) -> Array:
        """Joint log density in nats of new observations, given the data.

        With at most one new axis it is the difference of two marginal likelihoods, one `eigh` per
        axis. With several new axes, at scattered points, or with `noise=` it takes the dense
        covariance of the new observations: `2 m² N + m³` operations, for up to 5 000 of them.

        Args:
            y_new: on the grid of the prediction; one further observation of every cell by default.
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`; then `y_new` is `(*batch, m)`.
            noise: the noise variance there, where the model's is not defined on new coordinates.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given, or `y_new` is not real.
            ValueError: if `y_new` has another shape, or there are too many for a dense covariance.
        """
        if points is not None:
            places = self._scattered(axes, points)
            flat, _ = grid_of(y_new, (places[0].size,), "y_new", self.operator.dtype)
            check_number(places[0].size)
            return log_density_at(self, flat, places, self._noise_at(places, noise))
        new = self._new_axes(axes)
        grid, _ = grid_of(y_new, self.grid_shape(axes), "y_new", self.operator.dtype)
        return log_density(self, grid, new, noise)

    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
    ) -> Float[Array, "..."]:
        """Posterior draws by Matheron's rule: a prior draw, corrected by what the data say.

        One root per axis, jointly over old and new coordinates, then structured products only.

        Args:
            key: a JAX random key.
            axes: new coordinates; by default the grid itself.
            sample_shape: leading axes of the draws.
            include_noise: draws of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.
            points: scattered places instead, as for `mean`: from their dense joint covariance,
                `2 m² N + m³` operations; values only.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        _check_used(noise, include_noise)
        shape = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        key, noise_key = jax.random.split(key)
        if points is not None:
            places = self._scattered(axes, points)
            draws = sample_at(self, key, places, shape)
            levels = self._noise_at(places, noise) if include_noise else None
            return draws if levels is None else _noisy(draws, noise_key, levels)
        new = self._new_axes(axes)
        draws = _sample(self, key, new, shape)
        if any(s.rank for s in self.gp.structures) and is_concrete(draws):
            check_finite(draws, "Draws with low-rank factors (raise the rank of `structure`)")
        if not include_noise:
            return draws
        if noise is None and not any(new):
            return draws + _noise_draw(self.operator, noise_key, draws.shape)
        return _noisy(draws, noise_key, self.noise_diagonal(new, noise))

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

    def _scattered(self, axes: Any, points: Any) -> tuple[Axis, ...]:
        if axes is not None:
            raise TypeError(
                "Give `axes`, for a grid of new coordinates, or `points`, for scattered places; got "
                "both."
            )
        return scattered_axes(self.gp, points)

    def _axis_number(self, axis: int | str) -> int:
        names: Any = self.gp.axis_names or ()
        known = (*names, *range(len(self.gp.axes)))
        if axis not in known or isinstance(axis, bool):
            raise KeyError(f"There is no axis {axis!r}.{nearest(axis, known)}")
        return axis if isinstance(axis, int) else names.index(axis)

    def _noise_at(self, places: tuple[Axis, ...], noise: Any) -> Array:
        if noise is not None:
            return _given_noise(noise, (places[0].size,), self.operator.dtype)
        if isinstance(self.operator.noise, Kronecker):
            raise ValueError(
                "Noise that varies over the grid is not defined at scattered points. Pass `noise=` "
                "with the variance there."
            )
        return self.operator.noise

    def noise_diagonal(self, new: tuple[Axis | None, ...], noise: Any) -> Array:
        """The noise variances on the grid of a prediction; they broadcast to it."""
        if noise is not None:
            shape = tuple((axis or old).size for axis, old in zip(new, self.gp.axes, strict=True))
            return _given_noise(noise, shape, self.operator.dtype)
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


def _given_noise(noise: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    value = array_of_reals(float(noise) if isinstance(noise, int) else noise, "noise")
    if not isinstance(value, jax.core.Tracer) and bool((np.asarray(value) < 0).any()):
        raise ValueError(f"The noise variance must not be negative; got {value}.")
    if value.ndim > len(shape) or any(
        m not in (1, n) for m, n in zip(value.shape[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(
            "The noise must be one variance, or variances that broadcast to the shape of "
            f"the prediction, {shape}; got shape {value.shape}."
        )
    return value.astype(dtype)


def _check_independent(model: Any, noise: Any) -> None:
    correlated = isinstance(model, Kronecker) and not all(is_diagonal(f) for f in model.factors)
    if noise is None and correlated:
        raise ValueError(
            "The noise of this model is correlated from cell to cell, and new observations of a "
            "posterior covariance must have independent noise. Leave it out, or pass `noise=`."
        )


def _noisy(draws: Array, key: PRNGKeyArray, levels: Array) -> Array:
    return draws + safe_sqrt(levels) * jax.random.normal(key, draws.shape, draws.dtype)


@eqx.filter_jit
def _covariance(
    post: Posterior, new: tuple[Axis | None, ...], levels: Array | None
) -> PosteriorCovariance:
    gp, dtype = post.gp, post.operator.dtype
    prior = []
    for i, (factor, axis) in enumerate(zip(post.operator.factors, new, strict=True)):
        if axis is None:
            prior.append(factor)
            continue
        x = points_of(gp.kernels[i], axis, dtype)
        prior.append(Dense(amplitude(gp, i, dtype) * gp.kernels[i](x, x).astype(dtype)))
    return PosteriorCovariance(
        Kronecker(*prior), _signal(post, new), post.operator, _variance(post, new), levels
    )


@eqx.filter_jit
def _mean_derivative(post: Posterior, new: tuple[Axis | None, ...], along: int) -> Array:
    gp, op = post.gp, post.operator
    factors: list[Any] = []
    for i, (factor, axis) in enumerate(zip(op.factors, new, strict=True)):
        if i == along:
            factors.append(slope_rows(gp, i, axis or gp.axes[i], op.dtype))
        else:
            factors.append(factor if axis is None else kernel_rows(gp, i, axis, op.dtype))
    return gp.mean_slope(new, along) + Kronecker(*factors).mv_grid(post.weights)


def _signal(post: Posterior, new: tuple[Axis | None, ...]) -> Kronecker:
    """The covariance between the new grid and the old."""
    return Kronecker(
        *(
            factor if axis is None else root_rows(post.gp, i, axis, post.operator.dtype)[0]
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
        factors.append(kernel_rows(gp, i, axis, op.dtype))
    return gp.mean_on(new) + Kronecker(*factors).mv_grid(post.weights)


@eqx.filter_jit
def _variance(post: Posterior, new: tuple[Axis | None, ...]) -> Array:
    if not any(new):
        return posterior_diagonal(post.operator)
    prior = post.gp.variance
    dtype = post.operator.dtype
    for kernel, axis, old in zip(post.gp.kernels, new, post.gp.axes, strict=True):
        prior = prior[..., None] * kernel.diagonal(points_of(kernel, axis or old, dtype))
    op = post.operator
    pairs = [
        (factor.to_dense(), factor.thin_root()) if axis is None else root_rows(post.gp, i, axis, dtype)
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
    x = points_of(kernel, gp.axes[i], dtype)
    ahead = None if new is None else points_of(kernel, new, dtype)
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
