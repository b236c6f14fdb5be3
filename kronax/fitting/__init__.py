"""Fitting of any Equinox module with optax, and what a fit tells."""

from kronax.fitting.fit import fit as fit
from kronax.fitting.laplace import LaplaceApproximation as LaplaceApproximation
from kronax.fitting.profile import ProfileLikelihood as ProfileLikelihood
from kronax.fitting.profile import profile_likelihood as profile_likelihood
from kronax.fitting.result import FitResult as FitResult
