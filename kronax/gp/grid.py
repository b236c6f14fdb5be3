"""A Gaussian process on a grid: one kernel per axis, a mean, and noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.distributions import KroneckerNormal
from kronax.gp.axes import Axis, ordered
from kronax.gp.kernels import Kernel, as_kernel, dtype_of, split_scale
from kronax.gp.latent import LatentPosterior, latent_condition, sample_latent
from kronax.gp.means import Mean, as_mean
from kronax.gp.noise import AxisNoise, FullNoise, as_noise
from kronax.gp.posterior import Posterior
from kronax.gp.structure import Structure, check_rank, check_structure, choose, factor
from kronax.linalg.checks import grid_of, is_concrete
from kronax.linalg.decompose import decompose
from kronax.linalg.diagnose import explain_not_finite
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.logdet import normal_logpdf_grid
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.sample import sample_normal
from kronax.linalg.solve import solve_grid
from kronax.parameters import nearest, parameter, parameters


class GridGP(eqx.Module):
    """`y ~ N(mean, variance · k_1(x_1, x_1) ⊗ … ⊗ k_d(x_d, x_d) + noise)` on the grid of the axes.

    The kernels' outermost scales are gathered in one amplitude `variance`, so that it is
    identifiable. Concrete coordinates are static: they are never trained.

    Args:
        kernels: one per axis, a sequence, or a dictionary by name.
        axes: coordinates per axis, `(n_i,)` or `(n_i, p_i)`, in the form of `kernels`.
        noise: the variance σ² (not σ) of independent noise; or a dictionary from an axis to
            variances along it; or a `kx.Kronecker` covariance.
        mean: a number, an array that broadcasts to the grid, a kronax mean, or a callable of the
            axes.
        structure: by default each axis gets the fastest factor that is exact for every value of
            the parameters; one of "dense", "toeplitz", "circulant" and "centrosymmetric" per axis
            overrides that. A whole number is the rank of a `kx.LowRank` factor for a smooth kernel
            on many places: where that many columns do not carry the covariance to 1000 times the
            machine precision, values raise, and traced ones are NaN.

    Raises:
        ValueError: if kernels and axes do not match, coordinates are not finite, or a variance is
            not positive.
        TypeError: if something is not of the kinds above.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> gp = kx.GridGP(
        ...     kernels=(kx.Matern32(0.5), 2.0 * kx.RBF(0.2)),
        ...     axes=(jnp.linspace(0, 1, 6), jnp.linspace(0, 1, 4)),
        ...     noise=0.1,
        ... )
        >>> gp.variance.item(), gp.log_marginal_likelihood(jnp.zeros((6, 4))).shape
        (2.0, ())
    """

    kernels: tuple[Kernel, ...]
    axes: tuple[Axis, ...]
    mean: Mean
    axis_names: tuple[str, ...] | None = eqx.field(static=True)
    structures: tuple[Structure, ...] = eqx.field(static=True)
    variance: Array = parameter(constraints.positive)
    noise: Any = parameter(constraints.positive)

    def __init__(
        self,
        kernels: Sequence[Any] | Mapping[str, Any],
        axes: Sequence[Any] | Mapping[str, Any],
        noise: Any,
        mean: Any = None,
        structure: Sequence[str | int | None] | Mapping[str, str | int] | None = None,
    ):
        kernels, axes, self.axis_names = _aligned(kernels, axes)
        labels = self.axis_names or tuple(f"axis {i}" for i in range(len(axes)))
        self.axes = tuple(Axis(x, name) for x, name in zip(axes, labels, strict=True))
        _refuse_mesh(self.axes)
        split = [
            split_scale(as_kernel(k, f"The kernel of {n} must be"))
            for k, n in zip(kernels, labels, strict=True)
        ]
        self.kernels = tuple(kernel for kernel, _ in split)
        # Numbers that are not arrays follow the precision of the kernels.
        dtype = dtype_of([kernel for kernel, _ in split] + [scale for _, scale in split])
        variance: Any = jnp.ones((), dtype)
        for _, scale in split:
            variance = variance if scale is None else variance * scale.astype(dtype)
        self.variance = variance
        if isinstance(noise, int | float) and not isinstance(noise, bool):
            noise = jnp.asarray(noise, dtype)
        self.noise = as_noise(noise, self.grid_shape, self.axis_names)
        self.mean = as_mean(mean, dtype)
        jax.eval_shape(lambda: self.mean_on((None,) * len(self.axes)))
        self.structures = self._choose(structure, labels)

    def _choose(self, structure: Any, labels: tuple[str, ...]) -> tuple[Structure, ...]:
        num_axes = len(self.axes)
        asked = (None,) * num_axes
        if structure is not None:
            asked = ordered(structure, self.axis_names, num_axes, "structure")
        chosen = tuple(map(choose, self.kernels, self.axes, asked))
        for kernel, axis, one, name in zip(self.kernels, self.axes, chosen, labels, strict=True):
            check_structure(kernel, axis, one, name)
        return chosen

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return tuple(axis.size for axis in self.axes)

    @property
    def dtype(self) -> Any:
        """Precision of the parameters, and so of every result."""
        return dtype_of((self.kernels, self.variance, self.noise, self.mean))

    def covariance(self, include_noise: bool = True) -> Kronecker | KroneckerPlusNoise:
        """The prior covariance on the grid, as an operator."""
        dtype = self.dtype
        first, *rest = (
            factor(kernel, axis, structure, dtype)
            for kernel, axis, structure in zip(
                self.kernels, self.axes, self.structures, strict=True
            )
        )
        signal = Kronecker(self.variance.astype(dtype) * first, *rest)
        return signal + self._noise_term() if include_noise else signal

    def log_marginal_likelihood(self, y: Float[Array, "..."]) -> Array:
        """Log density of the data in nats, right to second order in every parameter.

        One `eigh` per axis and `2 N Σ n_i` operations; one value per entry of a leading batch.

        Args:
            y: `(*batch, n_1, …, n_d)` or `(*batch, N)`.

        Raises:
            ValueError: if `y` does not lie on the grid, or has NaN or infinite cells.
            TypeError: if `y` is not real, or of higher precision than the parameters.
        """
        value = _log_marginal_likelihood(self, self.check_data(y))
        if _failed(value):
            self._check_ranks()
            explain_not_finite(value, self.covariance())
        return value

    def condition(self, y: Float[Array, "..."]) -> Posterior:
        """The posterior given data on the whole grid; one `eigh` per axis.

        Args:
            y: `(*batch, n_1, …, n_d)` or `(*batch, N)`.

        Raises:
            ValueError: if `y` does not lie on the grid, or has NaN or infinite cells.
            TypeError: if `y` is not real, or of higher precision than the parameters.
        """
        grid = self.check_data(y)
        self._check_ranks()
        operator = decompose(self.covariance())
        assert isinstance(operator, KroneckerPlusNoise)
        return Posterior(self, grid, operator, _weights(self, operator, grid))

    def sample(
        self,
        key: PRNGKeyArray,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
    ) -> Float[Array, "..."]:
        """Prior draws on the grid, of the function or of noisy observations."""
        self._check_ranks()
        draws = sample_normal(key, self.covariance(include_noise), sample_shape)
        return draws + self.mean_on((None,) * len(self.axes))

    def numpyro_dist(self) -> KroneckerNormal:
        """Noisy data on the grid as a NumPyro distribution: the likelihood of a model.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx
            >>> gp = kx.GridGP((kx.RBF(0.3),), (jnp.linspace(0, 1, 5),), noise=0.1)
            >>> gp.numpyro_dist().event_shape
            (5,)
        """
        loc = jnp.broadcast_to(self.mean_on((None,) * len(self.axes)), self.grid_shape)
        return KroneckerNormal(loc, self.covariance())

    def latent(self, name: str, jitter: float = 1e-6) -> Float[Array, "..."]:
        """The process without noise as a latent field of a NumPyro model, for any likelihood.

        The sample site is the whitened field, `name_white`, of independent standard normals; the
        field itself is recorded as the deterministic site `name`. Samplers then see a geometry
        that does not depend on the lengthscales. The whitened numbers go from smooth to rough along
        each axis, so that they are nearly independent in the posterior too. Low-rank axes take as
        many of them as they have columns.

        Args:
            name: of the field.
            jitter: added to the diagonal of every axis' covariance, relative to its mean, so that
                its Cholesky factor exists.

        Returns:
            The field on the grid.

        Raises:
            ValueError: if the jitter is negative.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx, numpyro
            >>> gp = kx.GridGP((kx.RBF(0.3),), (jnp.linspace(0, 1, 5),), noise=0.1)
            >>> with numpyro.handlers.seed(rng_seed=0):
            ...     gp.latent("f").shape
            (5,)
        """
        return sample_latent(self, name, jitter)

    def latent_condition(self, f: Float[Array, "..."], jitter: float = 1e-6) -> LatentPosterior:
        """The process given its values `f` on the whole grid, such as a draw of `latent`.

        Args:
            f: `(*batch, n_1, …, n_d)` or `(*batch, N)`.
            jitter: as for `latent`.

        Raises:
            ValueError: if `f` does not lie on the grid, or the jitter is negative.
        """
        return latent_condition(self, f, jitter)

    def mean_on(self, new: Sequence[Axis | None]) -> Array:
        """The mean on a grid where some axes are replaced; it broadcasts to that grid."""
        dtype = self.dtype
        points = [
            (old if axis is None else axis).coordinates(dtype)
            for axis, old in zip(new, self.axes, strict=True)
        ]
        return self.mean(*points).astype(dtype)

    @staticmethod
    def solve(operator: KroneckerPlusNoise, b: Array) -> Array:
        """`operator⁻¹ b` in the grid layout."""
        return solve_grid(operator, b)

    def describe(self) -> str:
        """Axes with their kernels and structure, and the parameters with values and domains."""
        labels = self.axis_names or tuple(f"axis {i}" for i in range(len(self.axes)))
        width = max(len(label) for label in labels)
        lines = [f"GridGP on {' × '.join(map(str, self.grid_shape))} cells, {self.dtype}"]
        for label, kernel, axis, structure in zip(
            labels, self.kernels, self.axes, self.structures, strict=True
        ):
            moved = "" if axis.shift is None else f", snapped by at most {axis.shift:.3g}"
            lines.append(
                f"  {label:<{width}}  {axis.size:>5}  {type(kernel).__name__}  "
                f"{structure.kind} ({structure.reason}{moved})"
            )
        table = repr(parameters(self)).splitlines()
        return "\n".join(lines + [f"  {row}" for row in table])

    def __repr__(self) -> str:
        return self.describe()

    def _check_ranks(self) -> None:
        """Refuse concrete parameters that a low-rank axis cannot carry."""
        names = self.axis_names or tuple(f"axis {i}" for i in range(len(self.axes)))
        for kernel, axis, structure, name in zip(
            self.kernels, self.axes, self.structures, names, strict=True
        ):
            check_rank(kernel, axis, structure, name, self.dtype)

    def _noise_term(self) -> Any:
        if isinstance(self.noise, AxisNoise | FullNoise):
            return self.noise.operator(self.dtype)
        return self.noise.astype(self.dtype)

    def check_data(self, y: Any) -> Array:
        """`y` in the grid layout and the precision of the parameters, or a clear error."""
        if is_concrete(y) and np.asarray(y).dtype.kind == "f" and np.isnan(y).any():
            raise ValueError(
                f"y must have a value in every cell; got {int(np.isnan(y).sum())} NaN of "
                f"{np.size(y)}. Missing cells are not supported yet: leave out whole slices of an "
                "axis, or fill the gaps."
            )
        grid, _ = grid_of(y, self.grid_shape, "y", self.dtype)
        return grid


@eqx.filter_jit
def _log_marginal_likelihood(gp: GridGP, y: Array) -> Array:
    return normal_logpdf_grid(y - gp.mean_on((None,) * len(gp.axes)), gp.covariance())


@eqx.filter_jit
def _weights(gp: GridGP, operator: KroneckerPlusNoise, y: Array) -> Array:
    return solve_grid(operator, y - gp.mean_on((None,) * len(gp.axes)))


def _refuse_mesh(axes: tuple[Axis, ...]) -> None:
    shapes = {(axis.size, axis.num_dimensions) for axis in axes}
    if len(axes) == 2 and len(shapes) == 1 and axes[0].num_dimensions not in (None, 1, 2, 3):
        raise ValueError(
            f"Every axis has coordinates of shape {next(iter(shapes))}, as np.meshgrid gives them. "
            "Pass the coordinates of each axis alone, (n_1,) and (n_2,)."
        )


def _failed(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer) and not bool(jnp.isfinite(value).all())


def _aligned(kernels: Any, axes: Any) -> tuple[tuple, tuple, tuple[str, ...] | None]:
    """Kernels and axes in one order, and the names if they came by name."""
    if isinstance(kernels, Mapping) != isinstance(axes, Mapping):
        raise TypeError(
            "kernels and axes must both be sequences or both be dictionaries by axis name; got "
            f"{type(kernels).__name__} and {type(axes).__name__}."
        )
    if isinstance(axes, Mapping):
        names = tuple(axes)
        for name in kernels:
            if name not in names:
                raise KeyError(
                    f"The kernel {name!r} has no axis: no coordinates of that name were given."
                    f"{nearest(name, names)}"
                )
        missing = [name for name in names if name not in kernels]
        if missing:
            raise KeyError(
                f"The axis {missing[0]!r} has no kernel; got kernels for "
                f"{', '.join(map(repr, kernels)) or 'none'}. Give one kernel per axis."
            )
        return ordered(dict(kernels), names, len(names), "kernels"), tuple(axes.values()), names
    kernels, axes = ((tuple(v) if isinstance(v, Sequence) else (v,)) for v in (kernels, axes))
    if len(kernels) != len(axes) or not axes:
        raise ValueError(
            f"A GridGP needs one kernel per axis and at least one axis; got {len(kernels)} "
            f"kernels and {len(axes)} axes."
        )
    return kernels, axes, None
