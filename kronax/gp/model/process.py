"""What a Gaussian process on a grid is, below all that one does with it."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.structure import Structure
from kronax.gp.kernels.base import Kernel, dtype_of
from kronax.gp.kernels.points import NewPoints, Points
from kronax.gp.kernels.terms import TermSum
from kronax.gp.labelled.tables import Table
from kronax.gp.labelled.templates import Template
from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.means.covariates import Covariate, with_covariates
from kronax.gp.means.gls import Regression
from kronax.gp.means.means import Mean, values_at
from kronax.gp.means.new_covariates import Move, check_stays, new_covariates
from kronax.gp.means.regression import MarginalMean
from kronax.gp.model.additive import Terms
from kronax.gp.noise.abstract import AbstractNoise
from kronax.gp.noise.reading import noise_of
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.fingerprints import held, is_known
from kronax.linalg.estimates.certificates import Estimate, Iteration
from kronax.linalg.functions.choice import DataCovariance
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.names import Named, words


class AbstractProcess(Named, eqx.Module):
    """Kernels and axes, a mean, and noise; `kx.GridGP` reads them and adds the verbs.

    Attributes:
        kernels: one per axis, without the scale that `variance` has.
        joined: the kernel of the terms that are added to the noise.
        axes: one per axis.
        mean: bound to the axes.
        axis_names: their names, if they have some.
        structures: which factor each axis gets.
        joined_structure: which one the terms beside the noise get.
        terms: what became of the terms of an additive model.
        observed: where there are data, if that is known.
        gaps: how they are to be handled.
        iteration: settings of iterations.
        measured: the way of solving that a trial found.
        variance: the amplitude; by name for terms without an exact decomposition.
        noise: a variance, or noise of another kind.
        table: of pandas, for which it was made.
        likelihood: of data that are not normal; their noise is then what its sites bring.
        approximation: how the function is approximated then: "variational" or "laplace".
    """

    kernels: eqx.AbstractVar[tuple[Kernel, ...]]
    joined: eqx.AbstractVar[TermSum | None]
    axes: eqx.AbstractVar[tuple[Axis, ...]]
    mean: eqx.AbstractVar[Mean]
    axis_names: eqx.AbstractVar[tuple[str, ...] | None]
    structures: eqx.AbstractVar[tuple[Structure, ...]]
    joined_structure: eqx.AbstractVar[Structure | None]
    terms: eqx.AbstractVar[Terms | None]
    observed: eqx.AbstractVar[Mask | None]
    gaps: eqx.AbstractVar[str]
    iteration: eqx.AbstractVar[Iteration]
    measured: eqx.AbstractVar[Any]
    variance: eqx.AbstractVar[Any]
    noise: eqx.AbstractVar[Any]
    table: eqx.AbstractVar[Table | None]
    likelihood: eqx.AbstractVar[AbstractLikelihood | None]
    approximation: eqx.AbstractVar[str]

    _internal: ClassVar[frozenset[str]] = words(
        "additive check_data check_model checked_log_likelihood conditioning data_covariance "
        "design_on first_hints joined joined_structure log_likelihood_from lowered_noise "
        "marginal mean_ahead mean_on measured measuring new_axes new_covariates noise_level "
        "noise_model noise_parameter noise_term observations points_on raised_noise remarks "
        "solved_by"
    )
    _guesses: ClassVar[Mapping[str, str]] = {
        "fit": "kx.fit(gp, y): its result has the fitted `model`, and gp stays as it is",
        "train": "kx.fit(gp, y)",
        "optimize": "kx.fit(gp, y)",
        "predict": "gp.condition(y), then .mean(axes=…), .std(axes=…) or .interval(0.95, axes=…)",
        "posterior": "gp.condition(y)",
        "log_likelihood": "gp.log_marginal_likelihood(y)",
        "log_prob": "gp.log_marginal_likelihood(y), and of new data post.log_prob(y_new)",
        "logp": "gp.log_marginal_likelihood(y)",
        "kernel": "gp.kernels, one per axis",
        "parameters": "kx.parameters(gp)",
        "shape": "gp.grid_shape",
        "summary": "gp.describe(), and of a fit result.summary()",
        "plot": "kx.plot_kernels(gp); of predictions kx.plot_series(post) or kx.plot_maps(post)",
        "save": "kx.save(path, gp)",
    }

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return tuple(axis.size for axis in self.axes)

    @property
    def dtype(self) -> Any:
        """Precision of the parameters, and so of every result."""
        return dtype_of((self.kernels, self.joined, self.variance, self.noise, self.mean))

    @property
    def additive(self) -> Terms:
        """The terms of an additive model."""
        assert self.terms is not None, "the model has no terms"
        return self.terms

    @property
    def marginal(self) -> MarginalMean:
        """The mean, of which the coefficients are integrated out."""
        assert isinstance(self.mean, MarginalMean), "the coefficients of the mean have values"
        return self.mean

    def mean_on(self, new: Sequence[Points | None]) -> Array:
        """The mean on a grid where some axes are replaced; it broadcasts to that grid."""
        return values_at(self.mean_ahead(new), self.points_on(new)).astype(self.dtype)

    def design_on(self, new: Sequence[Points | None]) -> Array:
        """The functions of a marginal mean on a grid where some axes are replaced, `(p, …)`."""
        mean = self.mean_ahead(new)
        assert isinstance(mean, MarginalMean)
        return mean.design_at(*self.points_on(new)).astype(self.dtype)

    def mean_ahead(self, new: Sequence[Points | None]) -> Mean:
        """The mean, with the covariates of the places where it is to be evaluated.

        What has none of its own, `(None, None)`, is the grid of the data: there covariates are zero
        where they are not known.
        """
        if not isinstance(new, NewPoints):
            check_stays(self.mean, [x is not None for x in new])
            return self.mean
        known = {name: Covariate(traced=x) for name, x in new.covariates.items()}
        return with_covariates(self.mean, known)

    def new_covariates(
        self, covariates: Any, new: Sequence[Axis | None], are_scattered: bool = False
    ) -> dict[str, Array]:
        """All covariates of the mean on a grid where some axes are replaced, or at places."""
        move = Move(self.axes, tuple(new), self.axis_names, are_scattered)
        return new_covariates(self.mean, covariates, move, self.dtype)

    def points_on(self, new: Sequence[Points | None]) -> list[Points]:
        """The points of a grid where some axes are replaced."""
        pairs = zip(new, self.axes, strict=True)
        return [old.points(self.dtype) if p is None else p for p, old in pairs]

    @property
    def noise_model(self) -> AbstractNoise:
        """The noise, of whichever kind."""
        return noise_of(self.noise)

    def noise_term(self) -> Array | Kronecker:
        """The noise alone: a variance, one per cell, or a Kronecker covariance."""
        return self.noise_model.operator(self.dtype)

    @abc.abstractmethod
    def covariance(self, include_noise: bool = True) -> Any:
        """The prior covariance on the grid, as an operator."""

    @abc.abstractmethod
    def new_axes(self, axes: Any) -> tuple[Axis | None, ...]:
        """New coordinates in the form of the axes, `None` for those that stay."""

    @abc.abstractmethod
    def remarks(self) -> list[str]:
        """What has to be known to read the parameters."""

    @abc.abstractmethod
    def check_model(self) -> None:
        """Refuse concrete parameters and means that the axes cannot carry."""

    @abc.abstractmethod
    def observations(self, y: Any) -> Any:
        """`y` as the process sees it: the grid, its gaps and its labels, or a clear error."""

    @abc.abstractmethod
    def observing(self, y: Any) -> "AbstractProcess":
        """The same process with data where `y` has some."""

    @abc.abstractmethod
    def checked_log_likelihood(self, grid: Array) -> Array:
        """Log density of data that `observations` and `observing` have seen."""

    @abc.abstractmethod
    def condition(self, y: Any) -> "AbstractPosterior":
        """The posterior given data."""

    @abc.abstractmethod
    def data_covariance(self) -> DataCovariance:
        """The covariance of the observations, at the cells that have some."""


Process = TypeVar("Process", bound=AbstractProcess)


def with_fields(gp: Process, **changes: Any) -> Process:
    """The same process with other fields, which nothing checks."""
    other = object.__new__(type(gp))
    for field in dataclasses.fields(gp):
        object.__setattr__(other, field.name, changes.get(field.name, getattr(gp, field.name)))
    return other


class AbstractPosterior(Named, eqx.Module):
    """A process given data; `kx.GridGP.condition` makes one, with the verbs.

    Attributes:
        gp: the process, with where its data are.
        y: the data on the grid.
        operator: the covariance of the data, with what was computed of it.
        weights: `S⁻¹ (y − mean)`.
        regression: the coefficients of a marginal mean.
        template: what the data came as.
        estimate: the weights with their certificate, if they come from iterations.
        made_of: checksums of model and data.
    """

    gp: eqx.AbstractVar[AbstractProcess]
    y: eqx.AbstractVar[Array]
    operator: eqx.AbstractVar[DataCovariance]
    weights: eqx.AbstractVar[Array]
    regression: eqx.AbstractVar[Regression | None]
    template: eqx.AbstractVar[Template | None]
    estimate: eqx.AbstractVar[Estimate | None]
    made_of: eqx.AbstractVar[tuple[Array, ...] | None]

    _internal: ClassVar[frozenset[str]] = words("certain made_of on_grid operator settled template")
    _guesses: ClassVar[Mapping[str, str]] = {
        "predict": "post.mean(axes=…), with post.std(axes=…) or post.interval(0.95, axes=…)",
        "samples": "post.sample(key, sample_shape=100)",
        "draw": "post.sample(key)",
        "draws": "post.sample(key, sample_shape=100)",
        "rsample": "post.sample(key)",
        "sd": "post.std()",
        "stddev": "post.std()",
        "standard_deviation": "post.std()",
        "var": "post.variance()",
        "cov": "post.covariance()",
        "quantiles": "post.quantile([0.025, 0.975])",
        "credible_interval": "post.interval(0.95)",
        "confidence_interval": "post.interval(0.95)",
        "confidence_region": "post.interval(0.95)",
        "hdi": "post.interval(0.95)",
        "residuals": "post.residual()",
        "loo": "post.leave_one_out()",
        "model": "post.gp",
        "plot_report": "post.plot()",
        "to_xarray": "post.to_dataset()",
        "to_pandas": "post.to_frame()",
        "to_dataframe": "post.to_frame()",
        "save": "kx.save(path, post)",
    }

    def explain(self) -> None:
        """Raise if what it was made of is to blame that it is NaN; nothing is, beside the data."""

    @property
    def on_grid(self) -> KroneckerPlusNoise:
        """The operator, of data without gaps."""
        assert isinstance(self.operator, KroneckerPlusNoise), "the data have gaps"
        return self.operator

    @abc.abstractmethod
    def residual(self) -> Array:
        """The data less the posterior mean of the function."""

    @abc.abstractmethod
    def grid_shape(self, axes: Any = None) -> tuple[int, ...]:
        """Shape of the grid with new coordinates on some axes."""

    @abc.abstractmethod
    def mean(self, axes: Any = None, points: Any = None, covariates: Any = None) -> Array:
        """Of the function, on a grid or at scattered points."""

    @abc.abstractmethod
    def variance(
        self,
        axes: Any = None,
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Array:
        """Of the function, or of new observations."""

    @abc.abstractmethod
    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        include_noise: bool = False,
        noise: Any = None,
        points: Any = None,
        covariates: Any = None,
    ) -> Array:
        """Draws of the same."""

    @abc.abstractmethod
    def settled(self, estimate: Estimate) -> Estimate:
        """An estimate, unless it did not converge and that is to raise."""

    @abc.abstractmethod
    def certain(self, estimate: Estimate, what: str = "Posterior variances") -> Array:
        """The value of an estimate, with a warning where draws leave it uncertain."""


def compiled(function: Callable[..., Any], *, returns_operator: bool = False) -> Callable[..., Any]:
    """`eqx.filter_jit` for a function of a posterior, whose template is left out.

    Posteriors of a hundred variables or dates then share one compiled program. The checksum of a
    decomposition is compared before where it can be: inside it takes half the compilation.
    """
    jitted = eqx.filter_jit(function)

    @functools.wraps(function)
    def call(post: AbstractPosterior, *args: Any) -> Any:
        if post.template is not None:
            post = dataclasses.replace(post, template=None)
        if not returns_operator:
            post = _compared(post)
        return jitted(post, *args)

    return call


def _compared(post: AbstractPosterior) -> AbstractPosterior:
    """A posterior without checksums, if that of the decomposition can be seen to be right."""
    op: Any = post.operator
    if getattr(op, "made_of", None) is None or not (is_concrete(post) or is_known(op)):
        return post
    held(op, op.decomposition)
    op = eqx.tree_at(lambda o: o.made_of, op, None)
    return dataclasses.replace(post, operator=op, made_of=None)
