"""Fitting of any Equinox module with optax, and what a fit tells."""

from kronax.fitting.fit import fit as fit
from kronax.fitting.laplace import LaplaceApproximation as LaplaceApproximation
from kronax.fitting.result import FitResult as FitResult
