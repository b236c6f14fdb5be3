"""Latent fields of NumPyro models: a process drawn whitened, and conditioned on its draws."""

from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.distributions.whitening import standard_normal
from kronax.gp.coordinates.spacing import Coordinates
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.labelled.data_arrays import in_grid_order
from kronax.gp.model.components import amplitude
from kronax.gp.model.process import AbstractProcess
from kronax.gp.summaries import quantiles_of, tails
from kronax.linalg.arrays.checks import check_key, grid_of, shape_of
from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.arrays.transforms import Transform
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.markov.factor import Markov
from kronax.linalg.operators.draws import apply_roots
from kronax.linalg.operators.kronecker import Kronecker
from kronax.priors import sample_site


def sample_latent(gp: AbstractProcess, name: str, jitter: float) -> Array:
    """The body of `GridGP.latent`."""
    check_jitter(jitter)
    roots = eqx.filter_eval_shape(latent_roots, gp, jitter)
    shape = tuple(r.size for r in roots)
    white = sample_site(white_site(name), standard_normal(shape, gp.dtype))
    return numpyro.deterministic(name, _field(gp, jitter, white))


@eqx.filter_jit
def _field(gp: AbstractProcess, jitter: float, white: Array) -> Array:
    """In one program: NumPyro runs a model step by step before it compiles it."""
    smooth = apply_roots(latent_roots(gp, jitter), white)
    return jnp.add(*same_rank(gp.mean_on((None,) * len(gp.axes)), smooth))


def white_site(name: str) -> str:
    """The name of the sample site of a latent field."""
    return f"{name}_white"


def latent_roots(gp: AbstractProcess, jitter: float) -> list[Any]:
    """What makes the field of the white one: a root of every axis' covariance, with jitter."""
    factors = gp.covariance(include_noise=False).factors
    return [_root(k, jitter, axis.static) for k, axis in zip(factors, gp.axes, strict=True)]


def latent_covariance(gp: AbstractProcess, jitter: float) -> Kronecker:
    """The covariance of the field that these roots make."""
    factors = gp.covariance(include_noise=False).factors
    return Kronecker(*(_with_jitter(k, jitter) for k in factors))


def _with_jitter(factor: AbstractFactor, jitter: float) -> AbstractFactor:
    """A low-rank factor needs none: it brings a root of its own."""
    if factor.thin_root() is not None:
        return factor
    return factor.shifted(_level(factor, jitter))


def _level(factor: AbstractFactor, jitter: float) -> Array:
    return jitter * jnp.mean(factor.diagonal())


def check_jitter(jitter: Any) -> None:
    """Refuse a jitter that is no number, or negative."""
    number = isinstance(jitter, int | float) and not isinstance(jitter, bool)
    if not number or not 0 <= jitter < float("inf"):
        raise ValueError(
            f"jitter must be a number that is not negative, and finite; got {jitter!r}. It is "
            "added to the diagonal of every axis' covariance, relative to its mean."
        )


def _root(factor: AbstractFactor, jitter: float, places: Coordinates | None) -> SymmetricBlocks:
    """`R` with `R Rᵀ = K + jitter · mean(diag K) · I`, block by block; a thin root as it is.

    `R = C L`, with the Cholesky factor `L` of `Cᵀ (K + …) C` in a fixed basis `C` of the axis, from
    smooth to rough. Stationary covariances are nearly diagonal there, whatever their parameters,
    and so is what data say of the white field: the diagonal mass matrix of a sampler fits it. In
    the basis of places the columns of `L` overlap, and no diagonal scaling helps. Of a Markov axis
    it is the recursion of the Cholesky factor, in linear time.
    """
    if factor.thin_root() is not None:
        return factor.root()
    level = _level(factor, jitter)
    if isinstance(factor, Markov):
        return factor.shifted(level).root()
    blocks = factor.blocks()

    def one(a: Array, ndim: int, basis: np.ndarray | None) -> Array:
        if ndim < 2:
            return jnp.sqrt(jnp.maximum(a, 0) + level)
        if basis is None:
            return jnp.linalg.cholesky(a + level * jnp.eye(a.shape[-1], dtype=a.dtype))
        c = jnp.asarray(basis, a.dtype)
        inside = matmul(c.T, matmul(a, c))
        return matmul(c, jnp.linalg.cholesky(inside + level * jnp.eye(len(c), dtype=a.dtype)))

    bases = _smooth_to_rough(places, blocks)
    arrays = tuple(map(one, blocks.arrays, blocks.ndims, bases))
    return SymmetricBlocks(arrays, blocks.ndims, blocks.sizes, blocks.transform)


def _smooth_to_rough(
    places: Coordinates | None, blocks: SymmetricBlocks
) -> tuple[np.ndarray | None, ...]:
    """An orthonormal basis per full block, if the places are known."""
    if places is None or 2 not in blocks.ndims:
        return (None,) * len(blocks.ndims)
    return _eigenvectors(places, blocks.ndims, blocks.sizes, blocks.transform)


@lru_cache(maxsize=8)
def _eigenvectors(
    places: Coordinates, ndims: tuple[int, ...], sizes: tuple[int, ...], transform: Transform
) -> tuple[np.ndarray | None, ...]:
    """Waves of more and more half periods: the eigenvectors of an exponential kernel.

    It is as long as the axis. Its eigenvalues decay slowly enough for all of them to be told apart.
    """
    x = places.counted.reshape(len(places.counted), -1)
    extent = np.ptp(x, axis=0)
    x = x / np.where(extent > 0, extent, 1)
    kernel = np.exp(-np.sqrt(np.sum((x[:, None] - x) ** 2, axis=-1)))
    with jax.ensure_compile_time_eval():
        rows = transform.forward(jnp.asarray(kernel), -1)
        matrix = np.asarray(transform.forward(rows, -2))
    ends = np.cumsum(sizes)
    return tuple(
        np.linalg.eigh(matrix[end - size : end, end - size : end])[1][:, ::-1] if n == 2 else None
        for n, size, end in zip(ndims, sizes, ends, strict=True)
    )


class LatentPosterior(eqx.Module):
    """What `gp.latent_condition(f)` returns: the process where `f` is known on the whole grid.

    `axes` in its methods is as for a `Posterior`. Nothing is left to know on the grid itself: its
    use is prediction at new coordinates, from draws of a latent field.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> field = gp.latent_condition(jnp.sin(6 * x)[:, None] * x, jitter=1e-4)
        >>> field.mean([x + 0.1, None]).shape
        (4, 4)
    """

    gp: AbstractProcess
    f: Array
    jitter: float = eqx.field(static=True)

    def _new(self, axes: Any) -> tuple[Points | None, ...]:
        dtype, new = self.gp.dtype, self.gp.new_axes(axes)
        return tuple(None if axis is None else axis.points(dtype) for axis in new)

    def _with(self, axes: Any, covariates: Any) -> NewPoints:
        known = self.gp.new_covariates(covariates, self.gp.new_axes(axes))
        return NewPoints(self._new(axes), known)

    def mean(self, axes: Any, covariates: Any = None) -> Float[Array, "..."]:
        """Mean of the field on a new grid.

        Args:
            axes: new coordinates; `None` for an axis, or a name left out, keeps it.
            covariates: of the mean there, by name, as for a `kx.Posterior`.

        Raises:
            KeyError: if the name of an axis or a covariate is unknown.
            ValueError: if there is not one entry per axis, coordinates have another form, or a
                covariate is not known there.
        """
        return _mean(self, self._with(axes, covariates))

    def variance(self, axes: Any) -> Float[Array, "..."]:
        """Variance of the field on a new grid, which does not depend on its mean."""
        return _variance(self, self._new(axes))

    def std(self, axes: Any) -> Float[Array, "..."]:
        """Standard deviation of the field on a new grid."""
        return safe_sqrt(self.variance(axes))

    def quantile(self, q: Any, axes: Any, covariates: Any = None) -> Float[Array, "..."]:
        """Quantiles of the field on a new grid; several probabilities lead.

        Raises:
            TypeError: if `q` holds no real numbers.
            ValueError: as in `mean`; or if a probability is not between 0 and 1.
        """
        return quantiles_of(q, self.mean(axes, covariates), self.variance(axes))

    def interval(self, level: float, axes: Any, covariates: Any = None) -> tuple[Array, Array]:
        """The central interval of the field with some probability: its lower and its upper end.

        Raises:
            TypeError: if `level` is no number.
            ValueError: as in `mean`; or if the level is not between 0 and 1.
        """
        ends = self.quantile(tails(level), axes, covariates)
        return ends[0], ends[1]

    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any,
        sample_shape: tuple[int, ...] | int = (),
        covariates: Any = None,
    ) -> Float[Array, "..."]:
        """Draws of the field on a new grid, by Matheron's rule; arguments as for `mean`."""
        check_key(key)
        shape = shape_of(sample_shape)
        return _sample(self, key, self._with(axes, covariates), shape)


def latent_condition(gp: AbstractProcess, f: Any, jitter: float) -> LatentPosterior:
    """The body of `GridGP.latent_condition`."""
    check_jitter(jitter)
    f = in_grid_order(f, gp.axes, gp.axis_names, "f")
    grid, _ = grid_of(f, gp.grid_shape, "f", gp.dtype)
    return LatentPosterior(gp, grid, jitter)


def _joint(post: LatentPosterior, i: int, new: Points | None) -> Array:
    """The covariance of one axis over old and new coordinates together, jitter included."""
    gp, dtype = post.gp, post.gp.dtype
    kernel = gp.kernels[i]
    x = gp.axes[i].points(dtype)
    if new is not None:
        x = x.joined(new)
    matrix = amplitude(gp, i, dtype) * kernel.matrix_at(x, x).astype(dtype)
    size = gp.axes[i].size
    level = post.jitter * jnp.mean(jnp.diagonal(matrix)[:size])
    return matrix + level * jnp.eye(matrix.shape[0], dtype=dtype)


def _weights(post: LatentPosterior, new: tuple[Points | None, ...]) -> list[Array]:
    """`K_*i (K_i + jitter)⁻¹` per axis, the identity for one that stays."""
    weights = []
    for i, (axis, old) in enumerate(zip(new, post.gp.axes, strict=True)):
        if axis is None:
            weights.append(jnp.eye(old.size, dtype=post.gp.dtype))
            continue
        joint = _joint(post, i, axis)
        root = jnp.linalg.cholesky(joint[: old.size, : old.size])
        weights.append(jax.scipy.linalg.cho_solve((root, True), joint[: old.size, old.size :]).T)
    return weights


@eqx.filter_jit
def _mean(post: LatentPosterior, new: tuple[Points | None, ...]) -> Array:
    residual = jnp.subtract(*same_rank(post.f, post.gp.mean_on((None,) * len(new))))
    known = Kronecker(*_weights(post, new)).mv_grid(residual)
    return jnp.add(*same_rank(post.gp.mean_on(new), known))


@eqx.filter_jit
def _variance(post: LatentPosterior, new: tuple[Points | None, ...]) -> Array:
    # `∏ p_i − ∏ e_i`, axis by axis: only what is new on one axis is a difference.
    left, explained = jnp.zeros((), post.gp.dtype), jnp.ones((), post.gp.dtype)
    for i, (axis, old) in enumerate(zip(new, post.gp.axes, strict=True)):
        joint = _joint(post, i, axis)
        if axis is None:
            known, rest = jnp.diagonal(joint), jnp.zeros(old.size, joint.dtype)
        else:
            root = jnp.linalg.cholesky(joint[: old.size, : old.size])
            white = jax.scipy.linalg.solve_triangular(
                root, joint[: old.size, old.size :], lower=True
            )
            known = jnp.sum(jnp.square(white), axis=0)
            prior = jnp.diagonal(joint)[old.size :]
            # Rounding must not let the old values tell more than there is to know.
            known = jnp.minimum(known, prior)
            rest = prior - known
        new_part = jnp.multiply(*same_rank(explained[..., None], rest))
        left = jnp.multiply(*same_rank(left[..., None], known + rest)) + new_part
        explained = jnp.multiply(*same_rank(explained[..., None], known))
    batch = post.f.shape[: post.f.ndim - len(new)]
    return jnp.broadcast_to(left, (*batch, *left.shape))


@eqx.filter_jit
def _sample(
    post: LatentPosterior, key: PRNGKeyArray, new: tuple[Points | None, ...], shape: tuple[int, ...]
) -> Array:
    gp = post.gp
    roots = [jnp.linalg.cholesky(_joint(post, i, axis)) for i, axis in enumerate(new)]
    lead = (*shape, *post.f.shape[: post.f.ndim - len(new)])
    white = normal_numbers(key, (*lead, *(r.shape[0] for r in roots)), gp.dtype)
    field = Kronecker(*roots).mv_grid(white)
    old, ahead = field, field
    for i, (axis, before) in enumerate(zip(new, gp.axes, strict=True)):
        if axis is not None:
            dim = i - len(new)
            old = jnp.split(old, [before.size], dim)[0]
            ahead = jnp.split(ahead, [before.size], dim)[1]
    given, mean, old = same_rank(post.f, gp.mean_on((None,) * len(new)), old)
    known = Kronecker(*_weights(post, new)).mv_grid(given - mean - old)
    mean, ahead, known = same_rank(gp.mean_on(new), ahead, known)
    return mean + ahead + known
