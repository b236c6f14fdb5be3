"""Kronecker-structured Gaussian processes for JAX."""

from kronax.linalg.decompose import decompose as decompose
from kronax.linalg.diagonals import inverse_diagonal as inverse_diagonal
from kronax.linalg.factors.base import AbstractFactor as AbstractFactor
from kronax.linalg.factors.dense import Dense as Dense
from kronax.linalg.factors.diagonal import Diagonal as Diagonal
from kronax.linalg.factors.diagonal import ScaledIdentity as ScaledIdentity
from kronax.linalg.factors.triangular import LowerTriangular as LowerTriangular
from kronax.linalg.kronecker import Kronecker as Kronecker
from kronax.linalg.logdet import inv_quad as inv_quad
from kronax.linalg.logdet import logdet as logdet
from kronax.linalg.logdet import normal_logpdf as normal_logpdf
from kronax.linalg.noise import KroneckerPlusNoise as KroneckerPlusNoise
from kronax.linalg.operators import AbstractOperator as AbstractOperator
from kronax.linalg.rules import DerivativeOrderError as DerivativeOrderError
from kronax.linalg.sample import sample_normal as sample_normal
from kronax.linalg.solve import inverse as inverse
from kronax.linalg.solve import solve as solve
