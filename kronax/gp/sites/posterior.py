"""A process with a likelihood given data."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.criticism.held_out import axis_labels
from kronax.gp.datasets import check_draws_have_a_key
from kronax.gp.labelled.templates import Template, of_function
from kronax.gp.likelihoods.base import AbstractLikelihood, as_floats
from kronax.gp.model.marginal_likelihood import conditioned, of_its_model
from kronax.gp.model.method import UNKNOWN_GAPS, has_unknown_gaps
from kronax.gp.model.process import AbstractProcess
from kronax.gp.posterior.covariance import PosteriorCovariance
from kronax.gp.posterior.posterior import Posterior
from kronax.gp.sites.certificate import ApproximationCheck, check, log_weights
from kronax.gp.sites.datasets import response_dataset
from kronax.gp.sites.evidence import bound_given, evidence_given
from kronax.gp.sites.leave_one_out import LikelihoodLeaveOneOut, check_cavities, left_out
from kronax.gp.sites.predictive import log_predictive
from kronax.gp.sites.response import Response, response
from kronax.gp.sites.search import MOST_STEPS, OTHER_START, filled, find, no_hint
from kronax.gp.sites.sites import Sites, gaussian
from kronax.linalg.arrays.checks import is_concrete, shape_of
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.fingerprints import fingerprint_of_tree
from kronax.linalg.estimates.certificates import ConvergenceError, Estimate

MUST_CONVERGE = "The search for the sites must converge"


class LikelihoodPosterior(Posterior):
    """What `gp.condition(y)` returns where `gp` has a likelihood.

    The latent function has a normal distribution, that of the same process given Gaussian sites:
    `mean`, `variance`, `covariance`, `sample` and the terms are of it, as for any posterior. New
    observations are asked for by `response`.

    Attributes:
        model: the process with its likelihood.
        data: the data, with something possible in the gaps.
        sites: what stands for the likelihood at every cell.
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
        _check_converged(self.sites)

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
        likelihood = self._likelihood_at(given, axes, points, mean.shape)
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
        likelihood = self._likelihood_at(given, axes, points, place)
        flat = draws.reshape(-1, *place)
        observations = jax.vmap(likelihood.sample)(jax.random.split(key, len(flat)), flat)
        return observations.reshape(draws.shape)

    def log_prob(
        self,
        y_new: Float[Array, "..."],
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

        Args:
            y_new: on the grid of the prediction, `(m,)` at scattered points.
            axes: new coordinates; by default the grid itself.
            points: scattered places instead, as for `mean`.
            noise: none.
            covariates: of the mean at the new places, as for `mean`.
            pointwise: of every observation by itself, by quadrature; else of all jointly, the
                function integrated out by draws, for which a few observations are best: the spread
                of the draws grows with their number.
            key: a JAX random key for the draws.
            num_draws: how many.
            given: as for `response`.

        Raises:
            KeyError: as in `response`.
            TypeError: as in `response`; or if draws have no key.
            ValueError: if `y_new` has another shape, or the likelihood excludes it.
        """
        self._refuse_noise(False, noise)
        mean, variance = self._moments(axes, points, covariates)
        shape = mean.shape
        y_new = jnp.asarray(as_floats(y_new, self.operator.dtype))
        if y_new.shape != shape:
            raise ValueError(
                f"y_new must have one observation per place, shape {shape}; got {y_new.shape}."
            )
        likelihood = self._likelihood_at(given, axes, points, shape)
        if is_concrete(y_new, likelihood):
            likelihood.check(np.asarray(y_new), np.ones(shape, bool))
        if pointwise:
            return log_predictive(likelihood, y_new, mean, variance)
        if key is None:
            raise TypeError(
                "The joint density of new observations needs draws of the function: pass "
                "key=jax.random.key(0), or ask for pointwise=True."
            )
        draws = super().sample(key, axes, (num_draws,), points=points, covariates=covariates)
        logs = jax.vmap(lambda f: jnp.sum(likelihood.log_density(y_new, f)))(draws)
        return logsumexp(logs) - jnp.log(jnp.asarray(num_draws, logs.dtype))

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

    @of_its_model
    def leave_one_out(self) -> LikelihoodLeaveOneOut:
        """Every observation as predicted from all the others, with the same parameters.

        `means, variances = post.leave_one_out()`; log scores, probability integral transforms and
        standardised errors are in the same object. The sites of the others stay, at no further
        cost; by iterations the variances come from draws.

        Raises:
            ConvergenceError: if the variances are too uncertain to take the site of a cell off.
        """
        mean, variance, *function = left_out(self._likelihood, self.sites)
        check_cavities(self.sites, function[1])
        return LikelihoodLeaveOneOut(
            mean=mean,
            variance=variance,
            function_mean=function[0],
            function_variance=function[1],
            y=jnp.where(self.sites.precision > 0, self.data, jnp.nan),
            axes=self.model.axes,
            axis_names=axis_labels(self.model),
            likelihood=self._likelihood,
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

    def append(self, y_new: Any, axes: Any, noise: Any = None, covariates: Any = None) -> Posterior:
        """Not with a likelihood: the sites of the old data change.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "With a likelihood further data move the sites of the old ones: condition the model on "
            "the longer grid."
        )

    def filter(self, axis: Any = None) -> Any:
        """Not with a likelihood.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A filter takes in normal data; with a likelihood condition on the longer grid."
        )

    def leave_slice_out(self, axis: Any) -> Any:
        """Not with a likelihood.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Whole slices are left out of normal data; with a likelihood mark them as missing, "
            "condition again and take log_prob(pointwise=True) there."
        )

    @property
    def _likelihood(self) -> AbstractLikelihood:
        assert self.model.likelihood is not None
        return self.model.likelihood

    def _likelihood_at(
        self, given: Any, axes: Any, points: Any, shape: tuple[int, ...]
    ) -> AbstractLikelihood:
        is_grid = points is None and not any(self.gp.new_axes(axes))
        grid = self.gp.grid_shape if is_grid else ()
        return self._likelihood.at(given, shape, grid)

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
    ) -> PosteriorCovariance:
        """Posterior covariance of the function, as an operator.

        Raises:
            TypeError: if noise is asked for.
        """
        self._refuse_noise(include_noise, noise)
        return super().covariance(axes, covariates=covariates)


def approximated(gp: AbstractProcess, y: Array, template: Template | None) -> LikelihoodPosterior:
    """The approximate posterior of checked data.

    Raises:
        ValueError: for a batch of data sets.
        ConvergenceError: if the search for the sites does not converge.
    """
    if y.ndim > len(gp.axes):
        raise ValueError(
            "With a likelihood every data set has sites of its own; got a batch of shape "
            f"{y.shape[: y.ndim - len(gp.axes)]}. Condition on one at a time."
        )
    y = filled(gp, y)
    sites, _ = _find(gp, y, no_hint(y.shape, y.dtype))
    failed = ~sites.converged
    if is_concrete(sites):
        _check_converged(sites)
    sites = raising_if(lambda: failed, sites, f"{MUST_CONVERGE}, and did not. {OTHER_START}")
    target = jnp.where(sites.converged, sites.target, jnp.nan)
    process = gaussian(gp, sites.precision)
    operator, found = conditioned(process, target)
    made_of = fingerprint_of_tree((process, target), is_void=failed)
    parts = (found.value, found.regression, of_function(template), found.estimate, made_of)
    return LikelihoodPosterior(process, target, operator, *parts, model=gp, data=y, sites=sites)


def _check_converged(sites: Sites) -> None:
    if not bool(sites.converged):
        raise ConvergenceError(
            f"{MUST_CONVERGE}; after {int(sites.num_steps)} of {MOST_STEPS} steps a step still "
            f"moved the function by {float(sites.change):.2g} standard deviations. {OTHER_START}"
        )


_find = eqx.filter_jit(find)
