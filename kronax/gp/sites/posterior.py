"""A process with a likelihood given data."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.criticism.held_out import axis_labels, axis_number
from kronax.gp.datasets import check_draws_have_a_key
from kronax.gp.forecasts.filter import filter_of
from kronax.gp.likelihoods.base import AbstractLikelihood, as_floats
from kronax.gp.likelihoods.predictive import log_predictive
from kronax.gp.model.marginal_likelihood import of_its_model
from kronax.gp.model.observations import UNKNOWN_GAPS, has_unknown_gaps, new_data
from kronax.gp.model.process import AbstractProcess
from kronax.gp.posterior.append import append_observed
from kronax.gp.posterior.covariance import PosteriorCovariance
from kronax.gp.posterior.density import check_number, places_on
from kronax.gp.posterior.posterior import Posterior
from kronax.gp.sites.certificate import ApproximationCheck, check, log_weights
from kronax.gp.sites.datasets import response_columns, response_dataset
from kronax.gp.sites.evidence import bound_given, evidence_given
from kronax.gp.sites.few import FewCells, Seen, certain_evidence, joint_evidence
from kronax.gp.sites.filter import likelihood_filter
from kronax.gp.sites.leave_one_out import LikelihoodLeaveOneOut, left_out
from kronax.gp.sites.leave_slice_out import leave_slice_out
from kronax.gp.sites.response import Response, likelihood_at, response
from kronax.gp.sites.search import check_converged
from kronax.gp.sites.sites import Sites
from kronax.linalg.arrays.checks import is_concrete, shape_of
from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import Estimate
from kronax.linalg.factors.dense import Dense


class LikelihoodPosterior(Posterior):
    """What `gp.condition(y)` returns where `gp` has a likelihood.

    The latent function has a normal distribution, that of the same process given Gaussian sites:
    `mean`, `variance`, `covariance`, `sample` and the terms are of it, as for any posterior. New
    observations are asked for by `response`.

    Attributes:
        model: the process with its likelihood.
        data: the data, with something possible in the gaps.
        sites: what stands for the likelihood at every cell.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> post.response().mean.shape, post.variance([x + 0.1, None]).shape
        ((4, 4), (4, 4))
    """

    model: AbstractProcess = eqx.field(kw_only=True)
    data: Array = eqx.field(kw_only=True)
    sites: Sites = eqx.field(kw_only=True)

    def __repr__(self) -> str:
        return f"Posterior of the function given data of shape {self.y.shape}:\n{self.model!r}"

    def explain(self) -> None:
        """Raise if its data or its search are to blame that it is NaN."""
        if has_unknown_gaps(self.model, self.data):
            raise ValueError(UNKNOWN_GAPS)
        check_converged(self.sites)

    def response(
        self,
        axes: Any = None,
        quantiles: Sequence[float] = (0.025, 0.975),
        points: Any = None,
        covariates: Any = None,
        **given: Any,
    ) -> Response:
        """Rates or probabilities, and new observations: means, deviations and quantiles.

        Exact but for quadrature given the marginals of the function.

        Args:
            axes: new coordinates; by default the grid itself.
            quantiles: their probabilities; `()` for none.
            points: scattered places instead, as for `mean`.
            covariates: of the mean at the new places, as for `mean`.
            given: what the likelihood has at every cell, such as `exposure=`, at the new places.

        Raises:
            KeyError: if an axis name is unknown, or the likelihood has no such field.
            TypeError: if both `axes` and `points` are given, or a field of the likelihood varies
                over the grid and is not given at new places.
            ValueError: if a shape does not fit, or a probability is not between 0 and 1.
        """
        mean, variance = self._moments(axes, points, covariates)
        likelihood = likelihood_at(self.model, given, axes, points, mean.shape)
        return response(likelihood, mean, variance, quantiles)

    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
        response: bool = False,
        **given: Any,
    ) -> Float[Array, "..."]:
        """Posterior draws of the function, or with `response=True` of new observations.

        Args:
            key: a JAX random key.
            axes: new coordinates; by default the grid itself.
            sample_shape: leading axes of the draws.
            include_noise: false; new observations are a response.
            noise: none.
            points: scattered places instead, as for `mean`.
            covariates: of the mean at the new places, as for `mean`.
            response: draws of observations, jointly with the function they depend on.
            given: as for `response`.

        Raises:
            KeyError: as in `response`.
            TypeError: as in `response`; or if noise is asked for.
            ValueError: as in `response`.
        """
        self._refuse_noise(include_noise, noise)
        function_key, key = jax.random.split(key) if response else (key, key)
        draws = super().sample(
            function_key, axes, sample_shape, points=points, covariates=covariates
        )
        if not response:
            return draws
        lead = shape_of(sample_shape)
        place = draws.shape[len(lead) :]
        likelihood = likelihood_at(self.model, given, axes, points, place)
        flat = draws.reshape(-1, *place)
        observations = jax.vmap(likelihood.sample)(jax.random.split(key, len(flat)), flat)
        return observations.reshape(draws.shape)

    def log_prob(
        self,
        y_new: Any,
        axes: Any = None,
        points: Any = None,
        noise: Any = None,
        covariates: Any = None,
        *,
        pointwise: bool = False,
        key: PRNGKeyArray | None = None,
        num_draws: int = 1000,
        **given: Any,
    ) -> Array:
        """Log density in nats of new observations, given the data.

        Jointly, the function is integrated out by draws that know the observations, weighted by
        what they leave out; where that leaves more than 0.1 nats, it warns. It takes the dense
        covariance of the function there: `2 m² N + m³` operations, for up to 5 000 observations.

        Args:
            y_new: on the grid of the prediction, `(m,)` at scattered points; NaN for none.
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`.
            noise: none.
            covariates: of the mean there, as for `mean`.
            pointwise: of every observation by itself, by quadrature; else of all jointly.
            key: a JAX random key for the draws; by default always the same.
            num_draws: how many.
            given: as for `response`.

        Raises:
            KeyError: as in `response`.
            TypeError: as in `response`.
            ValueError: if `y_new` has another shape, or the likelihood excludes it; or if there
                are too many observations for a dense covariance.
        """
        self._refuse_noise(False, noise)
        if pointwise:
            mean, variance = self._moments(axes, points, covariates)
            likelihood = likelihood_at(self.model, given, axes, points, mean.shape)
            y_new, seen = self._checked(y_new, likelihood, mean.shape, axes, points)
            return where(seen, log_predictive(likelihood, y_new, mean, variance), jnp.nan)
        if points is not None:
            places: Any = self._scattered(axes, points, covariates)
            shape: tuple[int, ...] = (places[0].raw.shape[0],)
            check_number(*shape)
        else:
            new = self.gp.new_axes(axes)
            shape, places = places_on(self, new, self._points(new, covariates).covariates)
        likelihood = likelihood_at(self.model, given, axes, points, shape)
        y_new, seen = self._checked(y_new, likelihood, shape, axes, points)
        cells = FewCells(likelihood, self.model.approximation, Seen(seen))
        key = jax.random.key(0) if key is None else key
        found = joint_evidence(self, cells, y_new, places, key, num_draws)
        return certain_evidence(found, num_draws)

    def to_dataset(
        self,
        axes: Any = None,
        quantiles: Sequence[float] = (0.025, 0.975),
        num_samples: int = 0,
        key: PRNGKeyArray | None = None,
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
        response: bool = False,
        **given: Any,
    ) -> Any:
        """The latent function as an xarray Dataset, or with `response=True` what is predicted.

        Its variables are then those of the rate or probability, `mean`, `standard_deviation` and
        `quantiles`, and those of new observations, which have the units of the data:
        `observation_mean`, `observation_standard_deviation`, `observation_quantiles`, `draws`.

        Args:
            axes: new coordinates; by default the grid itself.
            quantiles: their probabilities; `()` for none.
            num_samples: number of joint draws, of observations with `response=True`.
            key: a JAX random key for them.
            include_noise: false; new observations are a response.
            noise: none.
            covariates: of the mean at the new places, as for `mean`.
            response: of rates or probabilities, and of new observations.
            given: as for `response`.

        Raises:
            ImportError: if xarray is not installed.
            KeyError: as in `response`.
            TypeError: as in `response`; or if draws are asked for without a key.
            ValueError: as in `response`; or if the data have a dimension called as a variable.
        """
        self._refuse_noise(include_noise, noise)
        if not response:
            return super().to_dataset(axes, quantiles, num_samples, key, covariates=covariates)
        check_draws_have_a_key(num_samples, key)
        at = {"covariates": covariates, **given}
        found, draws = self.response(axes, quantiles, **at), None
        if key is not None and num_samples:
            draws = self.sample(key, axes, (num_samples,), response=True, **at)
        return response_dataset(self, found, axes, draws)

    def _columns(self, axes: Any, quantiles: Sequence[float], noise: Any, at: Any) -> Any:
        self._refuse_noise(*noise)
        if at.pop("response", False):
            return response_columns(self.response(axes, quantiles, **at))
        return super()._columns(axes, quantiles, noise, at)

    def _data(self) -> Array:
        return where(self.sites.precision > 0, self.data, jnp.nan)

    @of_its_model
    def leave_one_out(self) -> LikelihoodLeaveOneOut:
        """Every observation as predicted from all the others, with the same parameters.

        `means, variances = post.leave_one_out()`; log scores, probability integral transforms and
        standardised errors are in the same object. The sites of the others stay, at no further
        cost; by iterations the variances come from draws, with `function_variance_error`.

        Raises:
            ConvergenceError: if the variances are too uncertain to take the site of a cell off.
        """
        mean, variance, *function = left_out(self, self._likelihood, self.sites)
        return LikelihoodLeaveOneOut(
            mean=mean,
            variance=variance,
            function_mean=function[0],
            function_variance=function[1],
            y=self._data(),
            axes=self.model.axes,
            axis_names=axis_labels(self.model),
            likelihood=self._likelihood,
            function_variance_error=function[2],
        )

    @of_its_model
    def check_approximation(self, key: PRNGKeyArray, num_draws: int = 1000) -> ApproximationCheck:
        """How far the normal approximation may be trusted; `print` says it.

        Args:
            key: a JAX random key.
            num_draws: draws of the function, jointly on the grid.
        """
        draws = super().sample(key, sample_shape=(num_draws,))
        weights = log_weights(self._likelihood, self.data, self.sites, draws)
        given = self.model, self.data, self.sites
        bound = bound_given(*given)
        is_variational = self.model.approximation == "variational"
        evidence = bound if is_variational else evidence_given(*given)
        return check(evidence, bound, weights, draws, self.sites)

    def diagnostics(self) -> Any:
        """Not with a likelihood: they are of normal errors.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Diagnostics are of normal errors; with a likelihood take post.leave_one_out(), its "
            "log scores and probability_integral_transform(key), and post.check_approximation(key)."
        )

    def append(
        self, y_new: Any, axes: Any, noise: Any = None, covariates: Any = None, **given: Any
    ) -> Posterior:
        """The posterior given further slices along one axis as well, with the same parameters.

        They move the sites of the old data: all are found anew, as from scratch.

        Args:
            y_new: on the grid of the new slices.
            axes: new coordinates of one axis, in its form.
            noise: none.
            covariates: of the mean at the new slices, as for `mean`.
            given: what the likelihood has at every cell, such as `exposure=`, at the new slices;
                what is the same along the axis stays so.

        Raises:
            ConvergenceError: if the search for the sites does not converge.
            KeyError: if an axis name is unknown, or the likelihood has no such field.
            TypeError: if a field of the likelihood varies along the axis and is not given; or if
                noise is.
            ValueError: if not one axis is given, or `y_new` does not lie on its grid.
        """
        self._refuse_noise(False, noise)
        return append_observed(self, y_new, axes, covariates, given)

    def filter(self, axis: int | str | None = None) -> Any:
        """A forecast service that takes in new slices along one axis, by assumed densities.

        It begins at this posterior. Of new slices it finds the sites given their forecast and
        leaves older ones as they are; `append` finds all of them anew.

        Args:
            axis: the time, as for normal data.

        Raises:
            KeyError: if the axis is unknown.
            NotMarkovError: if the process is not Markov along it.
            ValueError: if several axes may be meant, or the mean or a covariate of it is known on
                the grid only.
        """
        found = filter_of(self, None if axis is None else axis_number(self.gp, axis))
        return likelihood_filter(found, self._likelihood, self.model.approximation)

    def leave_slice_out(self, axis: int | str) -> Any:
        """Every slice along an axis, a year or a station, as predicted from all the others.

        The parameters stay; the sites of the others are found anew for every slice, which takes
        about as long as conditioning `n_i` times.

        Args:
            axis: its name or number.

        Raises:
            ConvergenceError: if a search for the sites does not converge.
            KeyError: if the axis is unknown.
        """
        return leave_slice_out(self, self.data, self.sites, axis_number(self.gp, axis))

    @property
    def _likelihood(self) -> AbstractLikelihood:
        assert self.model.likelihood is not None
        return self.model.likelihood

    def read(self, y_new: Any, axes: Any, points: Any) -> Array:
        """New observations in the order of their places, batches in front."""
        if points is not None:
            return jnp.asarray(as_floats(y_new, self.operator.dtype))
        known = self.template and self.template.data
        return new_data(self.model, y_new, self.gp.new_axes(axes), known, finite=False)

    def _checked(
        self, y_new: Any, likelihood: AbstractLikelihood, shape: tuple[int, ...], *at: Any
    ) -> tuple[Array, Array]:
        """New observations with something possible in the gaps, and where there are some."""
        y_new = self.read(y_new, *at)
        if y_new.shape != shape:
            raise ValueError(
                f"y_new must have one observation per place, shape {shape}; got {y_new.shape}."
            )
        seen = ~jnp.isnan(y_new)
        if is_concrete(y_new, likelihood):
            likelihood.check(np.asarray(y_new), np.asarray(seen))
        return jnp.where(seen, y_new, likelihood.filler), seen

    def _refuse_noise(self, include_noise: bool, noise: Any) -> None:
        if include_noise or noise is not None:
            raise TypeError(
                "Noise belongs to normal data. New observations of "
                f"{type(self._likelihood).__name__} are post.response() and "
                "post.sample(key, response=True)."
            )

    def _moments(self, axes: Any, points: Any, covariates: Any) -> tuple[Array, Array]:
        at = {"axes": axes, "points": points, "covariates": covariates}
        mean = self.mean(**at)
        return mean, jnp.broadcast_to(self.variance(**at), mean.shape)

    def variance_estimate(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Estimate:
        """`variance` of the function with its certificate, as for any posterior.

        Raises:
            TypeError: if noise is asked for.
        """
        self._refuse_noise(include_noise, noise)
        return super().variance_estimate(axes, points=points, covariates=covariates)

    def covariance(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        covariates: Any = None,
        points: Any = None,
    ) -> PosteriorCovariance | Dense:
        """Posterior covariance of the function, an operator; noise raises a `TypeError`."""
        self._refuse_noise(include_noise, noise)
        return super().covariance(axes, covariates=covariates, points=points)
