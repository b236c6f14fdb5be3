"""A Gaussian process on a grid: one kernel per axis, a mean, and noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.domains import parameter
from kronax.gp.axes.alignment import refuse_mesh
from kronax.gp.axes.axis import Axis, as_axis, new_axes, ordered
from kronax.gp.axes.structure import Structure, check_kernel, factor
from kronax.gp.from_data import FromData
from kronax.gp.kernels.base import dtype_of
from kronax.gp.kernels.named import Kernels
from kronax.gp.kernels.terms import TermSum
from kronax.gp.labelled.data_arrays import by_axis, in_grid_order, noise_by_axis
from kronax.gp.labelled.tables import Table
from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.likelihoods.distribution import as_likelihood
from kronax.gp.means.means import Mean, as_mean
from kronax.gp.means.regression import described
from kronax.gp.model import checks, marginal_likelihood, solver_choice
from kronax.gp.model.additive import Terms, joined_structure, merge, read_kernels
from kronax.gp.model.components import amplitude, are_exact, joined_noise, terms_covariance
from kronax.gp.model.description import description
from kronax.gp.model.least_noise import LeastNoise
from kronax.gp.model.marginal_likelihood import watched
from kronax.gp.model.observations import (
    Observations,
    mask_of,
    observations,
    observing,
    with_observed,
    without_unknown_gaps,
)
from kronax.gp.model.resolution import warn_of_lost_digits
from kronax.gp.model.solver_choice import Choice, settled, with_noise_of
from kronax.gp.model.trial import log_likelihood, solved_by
from kronax.gp.noise.reading import as_noise
from kronax.gp.noise.variances import SiteNoise
from kronax.gp.numpyro.sites import NumpyroSites
from kronax.gp.posterior.posterior import Posterior, posterior_of
from kronax.gp.posterior.prior import prior_draws
from kronax.gp.sites import evidence
from kronax.gp.sites.conditioned import posteriors
from kronax.gp.start.starts import initialise, random_start
from kronax.linalg.estimates.certificates import Estimate, Iteration
from kronax.linalg.functions.choice import DataCovariance
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import KroneckerTerms


class GridGP(FromData, NumpyroSites, LeastNoise, evidence.SearchedEvidence):
    """`y ~ N(mean, variance · k_1(x_1, x_1) ⊗ … ⊗ k_d(x_d, x_d) + noise)` on the grid of the axes.

    The kernels' outermost scales are gathered in one amplitude `variance`, so that it is
    identifiable; each of several `terms` has one of its own. Concrete coordinates are static: they
    are never trained.

    Args:
        kernels: one per axis, a sequence, or a dictionary by name.
        terms: in place of `kernels`, those of each term of an additive model by name, such as
            `{"trend": (slow, space), "season": (year, space)}`. They are exact where they differ
            on one axis, the others having the same kernel object, or are `kx.White` on all axes
            but one; others are a dense matrix or solved by iterations, as `gaps` says.
        axes: coordinates per axis, `(n_i,)` or `(n_i, p_i)`, in the form of `kernels`.
        noise: the variance σ² (not σ) of independent noise, 0 for none; or a dictionary from an
            axis to variances on it; or one variance per cell, infinite where there are no data,
            of which a fit trains the common scale; or a `kx.Kronecker` covariance. The derivative
            of a product `s * v` is NaN where `v` is infinite: write `jnp.where(seen, s * v, inf)`
            with any finite number in the gaps of `v`.
        mean: a number, an array that broadcasts to the grid, a kronax mean, or a callable of the
            axes.
        likelihood: in place of `noise`, how data depend on the function: `kx.Poisson(exposure)`, …,
            or a callable to a NumPyro distribution. Its posterior is then an approximation.
        approximation: "variational", the nearest normal distribution, or "laplace".
        observed: true where a cell has data, for use inside `jit`; else NaN in the data say it.
        gaps: how gaps, one variance per cell and any `terms` are handled: "exact"; "iterative",
            with first derivatives and certificates; or "auto": exactly up to a cost of some
            seconds (one dense matrix for up to some 2 000 observed cells), up to a minute as a
            trial at the first use finds iterations to serve or not, beyond by iterations.
            `describe()` tells which, why, and the cost.
        iteration: settings of the iterations.
        structure: by default each axis gets the fastest factor that is exact for every value of
            the parameters, a Markov one if it is long or its gaps are best filtered; one of
            "dense", "toeplitz", "circulant", "centrosymmetric" and "markov" per axis overrides
            that. A whole number is the rank of a `kx.LowRank` factor for a smooth kernel on many
            places: where that many columns do not carry the covariance to 1000 times the machine
            precision, values raise, and traced ones are NaN.

    Raises:
        ValueError: if kernels and axes do not match, coordinates are not finite, or a variance is
            not positive.
        TypeError: if something is not of the kinds above.
        NotImplementedError: if terms have no exact decomposition and the noise is correlated.

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

    kernels: Kernels
    joined: TermSum | None
    axes: tuple[Axis, ...]
    mean: Mean
    axis_names: tuple[str, ...] | None = eqx.field(static=True)
    structures: tuple[Structure, ...] = eqx.field(static=True)
    joined_structure: Structure | None = eqx.field(static=True)
    terms: Terms | None = eqx.field(static=True)
    observed: Mask | None = eqx.field(static=True)
    gaps: str = eqx.field(static=True)
    iteration: Iteration = eqx.field(static=True)
    measured: Choice | None = eqx.field(static=True)
    variance: Array | dict[str, Array] | None = parameter(constraints.positive, default=None)
    noise: Any = parameter(constraints.positive)
    likelihood: AbstractLikelihood | None = None
    approximation: str = eqx.field(static=True, default="variational")
    table: Table | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        kernels: Sequence[Any] | Mapping[str, Any] | None = None,
        axes: Sequence[Any] | Mapping[str, Any] = (),
        noise: Any = None,
        mean: Any = None,
        structure: Sequence[str | int | None] | Mapping[str, str | int] | None = None,
        terms: Mapping[str, Any] | None = None,
        observed: Bool[Any, "..."] | None = None,
        gaps: str = "auto",
        iteration: Iteration | None = None,
        likelihood: Any = None,
        approximation: str = "variational",
    ):
        given, axes, self.axis_names = read_kernels(kernels, terms, axes)
        labels = self.axis_names or tuple(f"axis {i}" for i in range(len(axes)))
        self.axes = tuple(as_axis(x, name) for x, name in zip(axes, labels, strict=True))
        refuse_mesh(self.axes)
        # Numbers that are not arrays follow the precision of the kernels.
        dtype = dtype_of(given)
        noise = noise_by_axis(noise, self.axes, self.axis_names)
        self.likelihood = as_likelihood(likelihood, self.grid_shape)
        self.approximation = checks.check_approximation(approximation, likelihood, noise)
        if self.likelihood is None:
            self.noise = as_noise(noise, self.grid_shape, self.axis_names, dtype)
        else:
            self.noise = SiteNoise()
        observed = in_grid_order(observed, self.axes, self.axis_names, "observed")
        self.observed = mask_of(observed, self.noise_model, self.grid_shape)
        self.gaps, self.iteration = gaps, solver_choice.check_choice(gaps, iteration)
        self.measured, self.table = None, None
        self.joined, self.terms, self.joined_structure = None, None, None
        if terms is None:
            found, self.variance = given[None]
        else:
            self.terms, found, self.joined, self.variance = merge(
                given, self.axes, self.noise_model, labels
            )
        self.kernels = Kernels(found, self.axis_names)
        mean = by_axis(mean, self.axes, self.axis_names)
        self.mean = as_mean(mean, dtype).bound(self.axes, self.axis_names, dtype)
        jax.eval_shape(lambda: self.mean_on((None,) * len(self.axes)))
        if structure is not None:
            structure = ordered(structure, self.axis_names, len(self.axes), "structure")
        self.structures = checks.chosen_structures(self.kernels, self.axes, structure, labels)
        checks.check_terms(self)
        if self.terms is not None and self.joined is not None:
            self.joined_structure = joined_structure(
                self.terms, self.joined, self.axes, labels, self.structures
            )
        self.structures = settled(self).structures
        warn_of_lost_digits(self)

    def covariance(
        self, include_noise: bool = True
    ) -> Kronecker | KroneckerTerms | KroneckerPlusNoise | KroneckerPlusDiagonal:
        """The prior covariance on the grid, as an operator; with a likelihood of the function."""
        include_noise = include_noise and self.likelihood is None
        if not are_exact(self):
            terms = terms_covariance(self)
            return with_noise_of(self, terms) if include_noise else terms
        dtype = self.dtype
        parts = zip(self.kernels, self.axes, self.structures, strict=True)
        first, *rest = (factor(*part, dtype) for part in parts)
        signal = Kronecker(amplitude(self, 0, dtype) * first, *rest)
        if self.joined is not None:
            return KroneckerPlusNoise(signal, joined_noise(self, include_noise))
        return with_noise_of(self, signal) if include_noise else signal

    @property
    def is_iterative(self) -> bool:
        """Whether its likelihood and posterior come from iterations, with certificates."""
        return solver_choice.is_iterative(self)

    def observing(self, y: Any) -> "GridGP":
        """The same process with data where `y` has some; also in `jit`, for constants there.

        NaN, what a masked array masks, and false in a mask are gaps.
        """
        return observing(self, y)

    def measuring(self, y: Array) -> "GridGP":
        """The same process, solved as a trial at its parameters says, if the plan leaves it open.

        `y` are checked data; traced ones measure nothing.
        """
        return watched("the trial of iterations", "", self, evidence.measured, self, y)

    def solved_by(self, measured: Choice | None) -> "GridGP":
        """The same process, solved in a way that was measured."""
        return solved_by(self, measured)

    def data_covariance(self) -> DataCovariance:
        """The covariance of the observations, at the cells that have some."""
        return solver_choice.data_covariance(self)

    def log_marginal_likelihood(self, y: Any) -> Array:
        """Log density of the data in nats, right to second order in every parameter.

        One `eigh` per axis and `2 N Σ n_i` operations; one value per entry of a leading batch. By
        iterations (`gp.is_iterative`) it is an estimate, right to first order;
        `log_marginal_likelihood_estimate` has its error.

        Args:
            y: `(*batch, n_1, …, n_d)`, `(*batch, N)`, a DataArray, or a pandas object that has the
                coordinates as labels, in any order. NaN, or a mask, marks a missing cell.

        Raises:
            ValueError: if `y` does not lie on the grid, has infinite cells or none at all, or
                NaN at cells that the model says are observed; or a batch has different gaps.
            TypeError: if `y` is not real, or of higher precision than the parameters.
            ConvergenceError: if the search of a likelihood does not converge (NaN if traced).
        """
        seen, grid = self._seen(y)
        way: Any = log_likelihood if self.likelihood is None else evidence.measured_evidence
        return watched("gp.log_marginal_likelihood", "", self, way, seen, grid)

    def checked_log_likelihood(self, grid: Array) -> Array:
        """The same of data that `observations` has read."""
        if self.likelihood is not None:
            return evidence.evidence(self, grid)
        value = marginal_likelihood.log_marginal_likelihood(self, grid)
        marginal_likelihood.explain(self, grid, value)
        return value

    def log_marginal_likelihood_estimate(self, y: Any) -> Estimate:
        """The same with its certificate: error, standard error, residual and iterations.

        Exact models have errors of zero. With a likelihood it is that of the approximate evidence.

        Raises:
            ConvergenceError: if an iteration does not converge and is to raise then.
            TypeError: as in `log_marginal_likelihood`.
            ValueError: as in `log_marginal_likelihood`.
        """
        seen, grid = self._seen(y)
        room: Any = marginal_likelihood if self.likelihood is None else evidence
        name = "gp.log_marginal_likelihood_estimate"
        return watched(name, "", self, room.estimate, seen.measuring(grid), grid)

    def condition(self, y: Any) -> Posterior:
        """The posterior given data on the whole grid; one `eigh` per axis.

        Its results are on the grid, in whichever form the data come. With a likelihood it is a
        `kx.LikelihoodPosterior`, and of a batch `kx.LikelihoodPosteriors`.

        Args:
            y: as for `log_marginal_likelihood`.

        Raises:
            ConvergenceError: if iterations, or the search of a likelihood, do not converge.
            ValueError: as in `log_marginal_likelihood`.
            TypeError: as in `log_marginal_likelihood`.
        """
        data = self.observations(y)
        seen, grid = self._observed(data)
        seen.check_model()
        make: Any = posterior_of if self.likelihood is None else posteriors
        return watched("gp.condition", "", self, make, seen.measuring(grid), grid, data.template)

    def sample(
        self,
        key: PRNGKeyArray,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
    ) -> Float[Array, "..."]:
        """Prior draws on the grid, of the function or of noisy observations.

        Raises:
            NotImplementedError: with a `kx.MarginalMean`.
        """
        checks.refuse_marginal(self, "Prior draws are")
        checks.check_ranks(self)
        return watched("gp.sample", "", self, prior_draws, self, key, sample_shape, include_noise)

    def initialise(self, y: Any, freeze: Any = ()) -> "GridGP":
        """The same model with starting values from the data, for `kx.fit`.

        A constant mean is that of the data, and the coefficients of a mean that has others are
        those of ordinary least squares; what is left of the data tells the rest. Its correlation
        along each axis, by distance, gives its lengthscales, where it falls to that at one
        lengthscale, and the share of the noise, what it has lost between neighbours; several
        lengthscales of a sum are spread around that, in the order of those given. `variance` and
        `noise` share out the mean square. Parameters without units start at 1, periods stay, and
        so does what declares no start (`kx.parameter`). Other units of data or axes give the same
        model in these units. One pass over the data; a batch is pooled.

        Args:
            y: as for `log_marginal_likelihood`.
            freeze: what stays as it is, as for `kx.parameters`.

        Raises:
            ValueError: if `y` does not lie on the grid, has infinite cells, or is constant.
            TypeError: if `y` is traced, or of higher precision than the parameters.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx
            >>> x = jnp.linspace(0, 1, 20)
            >>> gp = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), (x, 1000 * x), noise=1.0)
            >>> started = gp.initialise(jnp.sin(6 * x)[:, None] * jnp.cos(6 * x))
            >>> [round(kernel.lengthscale.item(), 3) for kernel in started.kernels]
            [0.163, 172.119]
        """
        return initialise(self, y, freeze)

    def random_start(self, key: PRNGKeyArray, y: Any) -> "GridGP":
        """The model at a random place around `initialise(y)`, as `kx.fit(restarts=…)` uses it.

        Positive parameters move by a factor that is log-normal with standard deviation 1, others by
        as much in unconstrained space; means, other real numbers and periods stay. Which of the
        lengthscales of a sum are long and which are short is drawn as well, and half of the
        lengthscales are anywhere between the spacing and the extent of their axis.

        Examples:
            >>> import jax, jax.numpy as jnp, kronax as kx
            >>> x = jnp.linspace(0, 1, 20)
            >>> gp = kx.GridGP((kx.RBF(1.0),), (x,), noise=1.0)
            >>> start = gp.random_start(jax.random.key(0), jnp.sin(6 * x))
            >>> bool(start.noise > 0)
            True
        """
        return random_start(self, key, y)

    def new_axes(self, axes: Any) -> tuple[Axis | None, ...]:
        """New coordinates in the form of the axes, `None` for those that stay."""
        new = new_axes(axes, self.axes, self.axis_names)
        names = self.axis_names or tuple(f"axis {i}" for i in range(len(new)))
        for kernel, axis, name in zip(self.kernels, new, names, strict=True):
            if axis is not None:
                check_kernel(kernel, axis, f"new {name}")
        return new

    def describe(self) -> str:
        """Axes with their kernels and structure, and the parameters with values and domains."""
        return description(self)

    def remarks(self) -> list[str]:
        """What has to be known to read the parameters, such as where the mean has its level."""
        return described(self.mean, self.axes, self.axis_names)

    def __repr__(self) -> str:
        return self.describe()

    def __hash__(self) -> int:
        """By structure and shapes, so that `jax.jit` takes bound methods; `==` compares values."""
        leaves, tree = jax.tree.flatten(self)
        return hash((tree, tuple(map(np.shape, leaves))))

    def check_model(self) -> None:
        """Refuse concrete parameters and means that the axes cannot carry."""
        checks.check_ranks(self)
        checks.check_covariates(self, self.observed)
        checks.check_design(self)

    def _seen(self, y: Any) -> tuple["GridGP", Array]:
        """The process that knows the gaps of the data, and the data, checked."""
        return self._observed(self.observations(y))

    def _observed(self, data: Observations) -> tuple["GridGP", Array]:
        seen = with_observed(self, data.observed)
        return seen, without_unknown_gaps(seen, data.grid)

    def observations(self, y: Any) -> Observations:
        """`y` as the process sees it: the grid, its gaps and its labels, or a clear error."""
        return observations(self, y)

    def check_data(self, y: Any) -> Array:
        """`y` in the grid layout and the precision of the parameters, or a clear error.

        The dimensions of a DataArray may come in any order; its coordinates must be the model's.
        """
        return self.observations(y).grid
