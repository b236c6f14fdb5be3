"""A grid GP given data: mean, variance and draws, at the grid and on a new one."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.criticism.held_out import axis_number
from kronax.gp.criticism.verbs import CriticisedPosterior
from kronax.gp.forecasts.filter import Filter, filter_of
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.labelled.templates import Template
from kronax.gp.means.gls import Regression
from kronax.gp.model.marginal_likelihood import conditioned, of_its_model
from kronax.gp.model.observations import checksums_of, new_data
from kronax.gp.model.process import AbstractProcess
from kronax.gp.numpyro.guide import LatentGiven
from kronax.gp.numpyro.predictive import PosteriorNormal
from kronax.gp.posterior import noise_levels, predict, scattered
from kronax.gp.posterior.append import append
from kronax.gp.posterior.covariance import PosteriorCovariance
from kronax.gp.posterior.density import check_number, log_density, log_density_at
from kronax.gp.posterior.draws import function_draws
from kronax.gp.posterior.slopes import slope_of_mean
from kronax.gp.posterior.term_posterior import TermPosterior, TermPosteriors
from kronax.gp.summaries import SummarisedPosterior
from kronax.linalg.arrays.checks import check_finite, check_key, grid_of, is_concrete, shape_of
from kronax.linalg.estimates.certificates import Estimate, warn_if_uncertain
from kronax.linalg.factors.dense import Dense
from kronax.linalg.functions.choice import DataCovariance, decomposition_of
from kronax.linalg.krylov.operator import Iterative, check_draws


class Posterior(CriticisedPosterior, SummarisedPosterior, LatentGiven):
    """What `gp.condition(y)` returns; it carries the decomposition that predictions need.

    `axes` in its methods is a list with one entry per axis, or a dictionary by name: new
    coordinates, or `None` (or left out) for an axis that stays. Batches of `y` lead. `regression`
    has the coefficients of a `kx.MarginalMean`, with their standard errors; `terms` the terms of an
    additive model. `estimate` is the certificate of the weights, and so of the mean, where they
    come from iterations, and `None` where they are exact: its error is by how many posterior
    standard deviations the mean may be off.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> low, high = post.interval(0.9, axes=[x + 0.1, None])
        >>> low.shape, bool((low < high).all())
        ((4, 4), True)
    """

    gp: AbstractProcess
    y: Array
    operator: DataCovariance
    weights: Array
    regression: Regression | None = None
    template: Template | None = eqx.field(static=True, default=None)
    estimate: Estimate | None = None
    # Of what it was made, to tell where a leaf of model or data has been replaced.
    made_of: tuple[Array, ...] | None = None

    def __repr__(self) -> str:
        return f"Posterior given data of shape {self.y.shape}:\n{self.gp!r}"

    @property
    @of_its_model
    def terms(self) -> TermPosteriors:
        """The terms of an additive model by name, each with a mean, a variance and draws."""
        names = () if self.gp.terms is None else self.gp.terms.names
        return TermPosteriors({name: TermPosterior(self, name) for name in names})

    def residual(self) -> Float[Array, "..."]:
        """The data less the posterior mean of the function: what is taken for noise."""
        return self.y - self.mean()

    @of_its_model
    def mean(
        self, axes: Any = None, points: Any = None, covariates: Any = None
    ) -> Float[Array, "..."]:
        """Posterior mean of the function, grid-shaped; `2 N Σ m_i` operations.

        Args:
            axes: new coordinates; by default the grid itself.
            points: scattered places instead: rows `(m, d)` in an array or a nested list, or one
                array of `m` per axis in a tuple or a dictionary; the result is `(*batch, m)`, at
                `2 m N` operations.
            covariates: of a `kx.CovariateMean` there, by name: arrays that broadcast to the new
                grid, DataArrays, or one value per point. Those that do not vary along a new axis
                may be left out, and all at coordinates of the data.

        Raises:
            KeyError: if the name of an axis or a covariate is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if there is not one entry per axis, coordinates have another form, or a
                covariate is not known there.
        """
        if points is not None:
            return scattered.mean_at(self, self._scattered(axes, points, covariates))
        return predict.mean(self, self._points(self.gp.new_axes(axes), covariates))

    @of_its_model
    def mean_derivative(
        self, axis: int | str, axes: Any = None, points: Any = None, covariates: Any = None
    ) -> Float[Array, "..."]:
        """The derivative of the mean along one axis, in units of the data per unit of the axis.

        Args:
            axis: its name or number.
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if the axis has places in several dimensions or labels, the mean function
                is known on the grid only, or the mean has a kink or a jump at one of the places:
                with `Matern12` or `White` it has them where data are.
        """
        return slope_of_mean(self, axis, axes, points, covariates=covariates)

    def variance(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Float[Array, "..."]:
        """Posterior variance, grid-shaped; right to first order, raises beyond.

        It does not depend on the data: it has no batch axes, and broadcasts against the mean's.
        Where it comes from draws that leave more than 5 % in a tenth of the cells, it warns and
        says what to set.

        Args:
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`; values only, differentiating raises.
            include_noise: the variance of a new observation: σ² is added.
            noise: the noise variance there, where the model's is not defined on new coordinates;
                a number, or an array that broadcasts to the new grid.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if `noise` is given without `include_noise=True`, or both `axes` and
                `points` are given.
            ValueError: if there is not one entry per axis, or if noise that varies along an axis is
                asked for at new coordinates of it.
        """
        noise_levels.check_used(noise, include_noise)
        found = self.variance_estimate(axes, include_noise, noise, points, covariates)
        return self.certain(found)

    @of_its_model
    def variance_estimate(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Estimate:
        """`variance` with its certificate: standard errors where it comes from random draws.

        Exact models have errors of zero. By iterations, variances at scattered points take one
        solve each and are exact but for the tolerance; those on a grid take `iteration.num_draws`
        draws, and only what the preconditioner leaves of them is random.

        Args:
            axes: as for `variance`.
            include_noise: as for `variance`.
            noise: as for `variance`.
            points: as for `variance`.
            covariates: as for `variance`.

        Raises:
            ConvergenceError: if an iteration does not converge (traced ones give NaN).
            KeyError: as in `variance`.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        noise_levels.check_used(noise, include_noise)
        if points is not None:
            places = self._scattered(axes, points, covariates)
            found, noise_at = (
                self.settled(scattered.variance_at(self, places)),
                noise_levels.noise_at,
            )
            return found.shifted(noise_at(self, places, noise)) if include_noise else found
        new = self.gp.new_axes(axes)
        levels = noise_levels.noise_on(self, new, noise) if include_noise else None
        ahead = self._points(new, covariates)
        return self.settled(predict.variance_estimate(self, ahead, None, levels))

    @of_its_model
    def covariance(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
        points: Any = None,
    ) -> PosteriorCovariance | Dense:
        """Posterior covariance on a grid, as an operator: it multiplies, and knows its diagonal.

        Args:
            axes: new coordinates; by default the grid itself.
            include_noise: of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.
            covariates: of the mean there, as for `mean`.
            points: scattered places instead, as for `mean`: a `kx.Dense`, `(m, m)`, at
                `2 m² N` operations, for up to 5 000 of them; values only.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`; or if noise that is correlated is to be included.
        """
        noise_levels.check_used(noise, include_noise)
        if include_noise:
            noise_levels.check_independent(self.gp, noise)
        if points is not None:
            places = self._scattered(axes, points, covariates)
            check_number(places[0].raw.shape[0])
            levels = noise_levels.noise_at(self, places, noise) if include_noise else None
            return Dense(scattered.covariance_at(self, places, None, levels))
        new = self.gp.new_axes(axes)
        levels = None
        if include_noise:
            levels = noise_levels.noise_on(self, new, noise)
        return predict.covariance(self, self._points(new, covariates), levels)

    @of_its_model
    def log_prob(
        self,
        y_new: Any,
        axes: Any = None,
        points: Any = None,
        noise: Any = None,
        covariates: Any = None,
    ) -> Array:
        """Joint log density in nats of new observations, given the data.

        With at most one new axis it is the difference of two marginal likelihoods, one `eigh` per
        axis. With several new axes, at scattered points, with `noise=`, or where terms join the
        noise it takes the dense covariance of the new observations: `2 m² N + m³` operations, for
        up to 5 000 of them.

        Args:
            y_new: on the grid of the prediction, as an array or a DataArray; one further
                observation of every cell by default.
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`; then `y_new` is `(*batch, m)`.
            noise: the noise variance there, where the model's is not defined on new coordinates.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given, or `y_new` is not real.
            ValueError: if `y_new` has another shape, or there are too many for a dense covariance.
        """
        if points is not None:
            places = self._scattered(axes, points, covariates)
            flat, _ = grid_of(y_new, (places[0].raw.shape[0],), "y_new", self.operator.dtype)
            check_number(places[0].raw.shape[0])
            return log_density_at(self, flat, places, noise_levels.noise_at(self, places, noise))
        new = self.gp.new_axes(axes)
        grid = new_data(self.gp, y_new, new, self.template)
        return log_density(self, grid, new, noise, self._points(new, covariates).covariates)

    @of_its_model
    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
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
                `2 m² N + m³` operations, for up to 5 000 of them; values only.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        noise_levels.check_used(noise, include_noise)
        check_key(key)
        shape = shape_of(sample_shape)
        if points is not None:
            places = self._scattered(axes, points, covariates)
            check_number(places[0].raw.shape[0])
            key, noise_key = jax.random.split(key)
            draws = scattered.sample_at(self, key, places, shape)
            if is_concrete(draws):
                check_finite(draws, "Draws at scattered points (their covariance is indefinite)")
            levels = noise_levels.noise_at(self, places, noise) if include_noise else None
            return draws if levels is None else noise_levels.noisy(draws, noise_key, levels)
        new = self.gp.new_axes(axes)
        levels = None
        if include_noise and not (noise is None and not any(new)):
            levels = noise_levels.noise_on(self, new, noise)
        ahead = self._points(new, covariates)
        draws = function_draws(self, key, ahead, shape, include_noise, levels)
        if any(s.rank for s in self.gp.structures) and is_concrete(draws):
            check_finite(draws, "Draws with low-rank factors (raise the rank of `structure`)")
        if isinstance(self.operator, Iterative) and is_concrete(draws):
            check_draws(draws, self.operator)
        return draws

    @of_its_model
    def append(
        self, y_new: Any, axes: Any, noise: Any = None, covariates: Any = None
    ) -> "Posterior":
        """The posterior given further slices along one axis as well: a new year of data.

        The parameters stay, and the numbers are those of conditioning the longer grid from scratch.
        That one axis is decomposed again, its structure chosen anew; the others keep their
        decompositions, and one solve of `4 N Σ n_i` operations follows. The slices stand after the
        old ones, or before them if all their coordinates come before the first.

        Args:
            y_new: `(*batch, …)` on the grid of the new slices, with as many data sets as before.
            axes: new coordinates of one axis, in its form: numbers, dates, labels, places.
            noise: their noise variance, one or one each, where the noise varies along the axis.
            covariates: of the mean at the new slices, as for `mean`.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if the coordinates are of another kind, or `noise` has no use.
            ValueError: if not one axis is given, `y_new` does not lie on its grid, or noise or mean
                are not defined at the new coordinates.
        """
        return append(self, y_new, axes, noise, covariates)

    @of_its_model
    def filter(self, axis: int | str | None = None) -> Filter:
        """A forecast service that takes in new slices along one axis; one pass over the data.

        Args:
            axis: the time, by name or number; by default the axis with the structure "markov", or
                the only one whose kernel has a state space.

        Raises:
            KeyError: if the axis is unknown.
            NotMarkovError: if the process is not Markov along it.
            ValueError: if several axes may be meant, the noise correlates along it, or the mean or
                a covariate of it is known on the grid only.
        """
        return filter_of(self, None if axis is None else axis_number(self.gp, axis))

    def grid_shape(self, axes: Any = None) -> tuple[int, ...]:
        """Shape of the grid with new coordinates on some axes."""
        pairs = zip(self.gp.new_axes(axes), self.gp.axes, strict=True)
        return tuple((axis or old).size for axis, old in pairs)

    def numpyro_dist(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
    ) -> PosteriorNormal:
        """The posterior as a NumPyro distribution, to be drawn from in a model or `Predictive`.

        Args:
            axes: new coordinates; by default the grid itself.
            include_noise: of new observations.
            noise: the noise variance there, where the model's is not defined on new coordinates.
            covariates: of the mean there, as for `mean`.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        noise_levels.check_used(noise, include_noise)
        return PosteriorNormal(self, axes, include_noise, noise, covariates)

    def settled(self, estimate: Estimate) -> Estimate:
        """An estimate of this posterior, unless it did not converge and that is to raise."""
        return decomposition_of(self.operator).settled(estimate, "the variances")

    def certain(self, estimate: Estimate, what: str = "Posterior variances") -> Array:
        """The value of an estimate, with a warning where draws leave it uncertain."""
        if isinstance(self.operator, Iterative):
            iteration, error = self.operator.iteration, estimate.standard_error
            warn_if_uncertain(estimate.value, error, iteration, what)
        return estimate.value

    def _points(self, new: tuple[Axis | None, ...], covariates: Any = None) -> NewPoints:
        return predict.with_covariates(self, new, covariates)

    def _scattered(self, axes: Any, points: Any, covariates: Any = None) -> tuple[Points, ...]:
        found = scattered.scattered_axes(self.gp, points, axes)
        return scattered.with_covariates(self.gp, found, covariates)


def posterior_of(gp: AbstractProcess, y: Array, template: Template | None) -> Posterior:
    """The posterior of a process that knows its gaps, given checked data."""
    operator, found = conditioned(gp, y)
    made_of = checksums_of(gp, y)
    parts = found.value, found.regression, template, found.estimate, made_of
    return Posterior(gp, y, operator, *parts)
