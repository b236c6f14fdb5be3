"""Kronecker-structured Gaussian processes for JAX."""

from kronax.annotations import ParameterArray as ParameterArray
from kronax.distributions import KroneckerCholeskyTransform as KroneckerCholeskyTransform
from kronax.distributions import KroneckerNormal as KroneckerNormal
from kronax.distributions import KroneckerReparam as KroneckerReparam
from kronax.distributions import KroneckerStudentT as KroneckerStudentT
from kronax.distributions import MaskedKroneckerNormal as MaskedKroneckerNormal
from kronax.distributions import pointwise_log_likelihood as pointwise_log_likelihood
from kronax.domains import parameter as parameter
from kronax.domains import parameters as parameters
from kronax.domains import replace as replace
from kronax.domains import unconstrain as unconstrain
from kronax.fitting import FitResult as FitResult
from kronax.fitting import LaplaceApproximation as LaplaceApproximation
from kronax.fitting import ProfileLikelihood as ProfileLikelihood
from kronax.fitting import fit as fit
from kronax.fitting import profile_likelihood as profile_likelihood
from kronax.gp.axes.declarations import circle as circle
from kronax.gp.axes.declarations import dates as dates
from kronax.gp.axes.declarations import regular as regular
from kronax.gp.axes.declarations import sphere as sphere
from kronax.gp.compare import Comparison as Comparison
from kronax.gp.compare import compare as compare
from kronax.gp.criticism.diagnostics import Diagnostics as Diagnostics
from kronax.gp.criticism.leave_one_out import LeaveOneOut as LeaveOneOut
from kronax.gp.criticism.leave_slice_out import LeaveSliceOut as LeaveSliceOut
from kronax.gp.criticism.outliers import Outliers as Outliers
from kronax.gp.forecasts.filter import Filter as Filter
from kronax.gp.forecasts.filter import Forecast as Forecast
from kronax.gp.forecasts.filter import Surprise as Surprise
from kronax.gp.grid import GridGP as GridGP
from kronax.gp.kernels.base import Kernel as Kernel
from kronax.gp.kernels.categorical import Categorical as Categorical
from kronax.gp.kernels.dims import ActiveDims as ActiveDims
from kronax.gp.kernels.linear import Linear as Linear
from kronax.gp.kernels.markov import NotMarkovError as NotMarkovError
from kronax.gp.kernels.oscillator import SHO as SHO
from kronax.gp.kernels.stationary import RBF as RBF
from kronax.gp.kernels.stationary import Constant as Constant
from kronax.gp.kernels.stationary import Cosine as Cosine
from kronax.gp.kernels.stationary import Matern12 as Matern12
from kronax.gp.kernels.stationary import Matern32 as Matern32
from kronax.gp.kernels.stationary import Matern52 as Matern52
from kronax.gp.kernels.stationary import Periodic as Periodic
from kronax.gp.kernels.stationary import RationalQuadratic as RationalQuadratic
from kronax.gp.kernels.stationary import SpectralMixture as SpectralMixture
from kronax.gp.kernels.stationary import SquaredExponential as SquaredExponential
from kronax.gp.kernels.stationary import White as White
from kronax.gp.likelihoods.binary import Bernoulli as Bernoulli
from kronax.gp.likelihoods.binary import Binomial as Binomial
from kronax.gp.likelihoods.continuous import Beta as Beta
from kronax.gp.likelihoods.continuous import CensoredNormal as CensoredNormal
from kronax.gp.likelihoods.continuous import Gamma as Gamma
from kronax.gp.likelihoods.continuous import StudentT as StudentT
from kronax.gp.likelihoods.counts import NegativeBinomial as NegativeBinomial
from kronax.gp.likelihoods.counts import Poisson as Poisson
from kronax.gp.likelihoods.distribution import DistributionLikelihood as DistributionLikelihood
from kronax.gp.likelihoods.ordered import OrderedLogistic as OrderedLogistic
from kronax.gp.means.covariates import CovariateMean as CovariateMean
from kronax.gp.means.means import ConstantMean as ConstantMean
from kronax.gp.means.means import Mean as Mean
from kronax.gp.means.means import ZeroMean as ZeroMean
from kronax.gp.means.regression import MarginalMean as MarginalMean
from kronax.gp.means.trends import HarmonicMean as HarmonicMean
from kronax.gp.means.trends import LinearMean as LinearMean
from kronax.gp.means.trends import PolynomialMean as PolynomialMean
from kronax.gp.numpyro.guide import LatentGuide as LatentGuide
from kronax.gp.numpyro.latent import LatentPosterior as LatentPosterior
from kronax.gp.posterior.posterior import Posterior as Posterior
from kronax.gp.posterior.term_posterior import TermPosterior as TermPosterior
from kronax.gp.sites.certificate import ApproximationCheck as ApproximationCheck
from kronax.gp.sites.conditioned import LikelihoodPosteriors as LikelihoodPosteriors
from kronax.gp.sites.filter import LikelihoodFilter as LikelihoodFilter
from kronax.gp.sites.filter import LikelihoodSurprise as LikelihoodSurprise
from kronax.gp.sites.leave_one_out import LikelihoodLeaveOneOut as LikelihoodLeaveOneOut
from kronax.gp.sites.leave_slice_out import LikelihoodLeaveSliceOut as LikelihoodLeaveSliceOut
from kronax.gp.sites.posterior import LikelihoodPosterior as LikelihoodPosterior
from kronax.gp.sites.response import Response as Response
from kronax.linalg.arrays.early_errors import debug_nans as debug_nans
from kronax.linalg.arrays.precision import PrecisionWarning as PrecisionWarning
from kronax.linalg.arrays.primitives import DerivativeOrderError as DerivativeOrderError
from kronax.linalg.estimates.certificates import ConvergenceError as ConvergenceError
from kronax.linalg.estimates.certificates import Estimate as Estimate
from kronax.linalg.estimates.certificates import Iteration as Iteration
from kronax.linalg.estimates.gradients import GradientEstimate as GradientEstimate
from kronax.linalg.estimates.gradients import gradient_estimate as gradient_estimate
from kronax.linalg.factors.abstract_operator import AbstractOperator as AbstractOperator
from kronax.linalg.factors.base import AbstractFactor as AbstractFactor
from kronax.linalg.factors.dense import Dense as Dense
from kronax.linalg.factors.diagonal import Diagonal as Diagonal
from kronax.linalg.factors.diagonal import ScaledIdentity as ScaledIdentity
from kronax.linalg.factors.lowrank import LowRank as LowRank
from kronax.linalg.factors.structured import Centrosymmetric as Centrosymmetric
from kronax.linalg.factors.structured import Circulant as Circulant
from kronax.linalg.factors.structured import Toeplitz as Toeplitz
from kronax.linalg.factors.triangular import LowerTriangular as LowerTriangular
from kronax.linalg.functions.decompose import decompose as decompose
from kronax.linalg.functions.diagonals import inverse_diagonal as inverse_diagonal
from kronax.linalg.functions.logdet import inv_quad as inv_quad
from kronax.linalg.functions.logdet import logdet as logdet
from kronax.linalg.functions.logdet import normal_logpdf as normal_logpdf
from kronax.linalg.functions.sample import sample_normal as sample_normal
from kronax.linalg.functions.solve import inverse as inverse
from kronax.linalg.functions.solve import solve as solve
from kronax.linalg.gaps.masked import Masked as Masked
from kronax.linalg.krylov.density import iterative_logdet as iterative_logdet
from kronax.linalg.krylov.density import iterative_logpdf as iterative_logpdf
from kronax.linalg.krylov.operator import Iterative as Iterative
from kronax.linalg.krylov.solve import iterative_solve as iterative_solve
from kronax.linalg.krylov.variances import iterative_inverse_at as iterative_inverse_at
from kronax.linalg.krylov.variances import (
    iterative_posterior_variances as iterative_posterior_variances,
)
from kronax.linalg.markov.factor import Markov as Markov
from kronax.linalg.operators.kronecker import Kronecker as Kronecker
from kronax.linalg.operators.kronecker import KroneckerSum as KroneckerSum
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal as KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise as KroneckerPlusNoise
from kronax.linalg.state_spaces.state_space import StateSpace as StateSpace
from kronax.lineax.conversion import as_lineax as as_lineax
from kronax.names import public_names as __dir__  # noqa: F401
from kronax.plotting import plot_kernels as plot_kernels
from kronax.plotting import plot_losses as plot_losses
from kronax.plotting import plot_maps as plot_maps
from kronax.plotting import plot_profile as plot_profile
from kronax.plotting import plot_series as plot_series
from kronax.plotting import plot_spectra as plot_spectra
from kronax.priors import sample_parameters as sample_parameters
from kronax.rewriting import DenseProductError as DenseProductError
from kronax.rewriting import DenseProductWarning as DenseProductWarning
from kronax.rewriting import rewrite as rewrite
from kronax.saving import load as load
from kronax.saving import save as save

__version__ = "0.1.0"
__all__ = [
    "RBF",
    "SHO",
    "AbstractFactor",
    "AbstractOperator",
    "ActiveDims",
    "ApproximationCheck",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "CensoredNormal",
    "Centrosymmetric",
    "Circulant",
    "Comparison",
    "Constant",
    "ConstantMean",
    "ConvergenceError",
    "Cosine",
    "CovariateMean",
    "Dense",
    "DenseProductError",
    "DenseProductWarning",
    "DerivativeOrderError",
    "Diagnostics",
    "Diagonal",
    "DistributionLikelihood",
    "Estimate",
    "Filter",
    "FitResult",
    "Forecast",
    "Gamma",
    "GradientEstimate",
    "GridGP",
    "HarmonicMean",
    "Iteration",
    "Iterative",
    "Kernel",
    "Kronecker",
    "KroneckerCholeskyTransform",
    "KroneckerNormal",
    "KroneckerPlusDiagonal",
    "KroneckerPlusNoise",
    "KroneckerReparam",
    "KroneckerStudentT",
    "KroneckerSum",
    "LaplaceApproximation",
    "LatentGuide",
    "LatentPosterior",
    "LeaveOneOut",
    "LeaveSliceOut",
    "LikelihoodFilter",
    "LikelihoodLeaveOneOut",
    "LikelihoodLeaveSliceOut",
    "LikelihoodPosterior",
    "LikelihoodPosteriors",
    "LikelihoodSurprise",
    "Linear",
    "LinearMean",
    "LowRank",
    "LowerTriangular",
    "MarginalMean",
    "Markov",
    "Masked",
    "MaskedKroneckerNormal",
    "Matern12",
    "Matern32",
    "Matern52",
    "Mean",
    "NegativeBinomial",
    "NotMarkovError",
    "OrderedLogistic",
    "Outliers",
    "ParameterArray",
    "Periodic",
    "Poisson",
    "PolynomialMean",
    "Posterior",
    "PrecisionWarning",
    "ProfileLikelihood",
    "RationalQuadratic",
    "Response",
    "ScaledIdentity",
    "SpectralMixture",
    "SquaredExponential",
    "StateSpace",
    "StudentT",
    "Surprise",
    "TermPosterior",
    "Toeplitz",
    "White",
    "ZeroMean",
    "__version__",
    "as_lineax",
    "circle",
    "compare",
    "dates",
    "debug_nans",
    "decompose",
    "fit",
    "gradient_estimate",
    "inv_quad",
    "inverse",
    "inverse_diagonal",
    "iterative_inverse_at",
    "iterative_logdet",
    "iterative_logpdf",
    "iterative_posterior_variances",
    "iterative_solve",
    "load",
    "logdet",
    "normal_logpdf",
    "parameter",
    "parameters",
    "plot_kernels",
    "plot_losses",
    "plot_maps",
    "plot_profile",
    "plot_series",
    "plot_spectra",
    "pointwise_log_likelihood",
    "profile_likelihood",
    "regular",
    "replace",
    "rewrite",
    "sample_normal",
    "sample_parameters",
    "save",
    "solve",
    "sphere",
    "unconstrain",
]
