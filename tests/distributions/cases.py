"""The one dictionary of distributions that every property is tested on.

A case is a constructor with its arguments, and the dense location and matrix that these mean; for
a t distribution the matrix is the scale, and `df` is set.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.cases import covariance, decay, exchangeable, thin, wave
from tests.everyday import everyday
from tests.oracle import kron


class Case(NamedTuple):
    arguments: dict[str, Any]
    loc: np.ndarray
    dense: np.ndarray
    df: Any = None

    def make(self, **options):
        arguments = {**self.arguments, **options}
        if self.df is None:
            return kx.KroneckerNormal(**arguments)
        return kx.KroneckerStudentT(self.df, **arguments)

    @property
    def size(self):
        return self.dense.shape[-1]

    @property
    def batch(self):
        own = () if self.df is None else np.shape(self.df)
        return np.broadcast_shapes(own, self.loc.shape[:-1], self.dense.shape[:-2])

    def frozen(self, index=()):
        """SciPy's distribution of one batch entry."""
        loc = np.broadcast_to(self.loc, (*self.batch, self.size))[index]
        dense = np.broadcast_to(self.dense, (*self.batch, self.size, self.size))[index]
        if self.df is None:
            return scipy.stats.multivariate_normal(loc, dense)
        df = np.broadcast_to(self.df, self.batch)[index]
        return scipy.stats.multivariate_t(loc, dense, df=df)

    def each(self, function):
        """`function(frozen, index)` over the batch."""
        values = np.empty(self.batch)
        for index in np.ndindex(self.batch):
            values[index] = function(self.frozen(index), index)
        return values

    @property
    def covariance(self):
        if self.df is None:
            return np.broadcast_to(self.dense, (*self.batch, self.size, self.size))
        df = np.asarray(self.df)[..., None, None]
        ratio = df / (df - 2)
        return np.broadcast_to(ratio * self.dense, (*self.batch, self.size, self.size))


A, B = covariance(3), covariance(4, 1)
N1, N2 = covariance(3, 2), 0.3 * covariance(4, 3)
LA, LB = np.linalg.cholesky(A), np.linalg.cholesky(B)
VARIANCES = np.array([0.1, 0.4, 0.2, 0.9])
LOC = np.arange(12.0).reshape(3, 4) / 10
LOCS = np.random.default_rng(1).normal(size=(2, 3, 4))
NOISES = np.array([0.1, 0.9])
BATCH_A, BATCH_B = covariance(3, batch=(2,)), covariance(4, 1, batch=(5, 1))
EYE = np.eye(12)
AB = np.kron(A, B)
NUMBERS = AB + 0.1 * EYE
THIN = thin(4, 2)
TOEPLITZ, CIRCULANT = decay(3), wave(4)
PLACES = np.arange(4)


def _toeplitz(column):
    places = np.arange(column.size)
    return column[np.abs(places[:, None] - places)]


def _case(dense, loc=LOC, df=None, **arguments):
    flat = np.asarray(loc)
    flat = flat.reshape(*flat.shape[:-2], 12) if flat.ndim > 1 else np.broadcast_to(flat, 12)
    return Case({"loc": loc, **arguments}, flat, dense, df)


AXIS_NOISE = kx.Kronecker(kx.ScaledIdentity(0.5, 3), kx.Diagonal(VARIANCES))
INVERSE = np.linalg.inv(AB)

CASES = {
    "noise-free": _case(AB, factors=(A, B)),
    "variance": _case(NUMBERS, factors=(A, B), noise=0.1),
    "noise by axis": _case(
        AB + 0.5 * np.kron(np.eye(3), np.diag(VARIANCES)), factors=(A, B), noise=AXIS_NOISE
    ),
    "full noise": _case(AB + np.kron(N1, N2), factors=(A, B), noise=kx.Kronecker(N1, N2)),
    "Cholesky factors": _case(AB, scale_trils=(LA, LB)),
    "Cholesky factors and noise": _case(NUMBERS, scale_trils=(LA, LB), noise=0.1),
    "precision factors": _case(INVERSE, precision_factors=(A, B)),
    "precision factors and noise": _case(INVERSE + 0.1 * EYE, precision_factors=(A, B), noise=0.1),
    "structured": _case(
        np.kron(_toeplitz(TOEPLITZ), CIRCULANT[(PLACES[:, None] - PLACES) % 4]) + 0.1 * EYE,
        factors=(kx.Toeplitz(TOEPLITZ), kx.Circulant(CIRCULANT)),
        noise=0.1,
    ),
    "low rank": _case(
        np.kron(A, THIN @ THIN.T) + 0.1 * EYE, factors=(A, kx.LowRank(THIN)), noise=0.1
    ),
    "repeated eigenvalues": _case(
        np.kron(np.eye(3), exchangeable(4, 0.4)) + 0.1 * EYE,
        factors=(np.eye(3), exchangeable(4, 0.4)),
        noise=0.1,
    ),
    "one axis": _case(NUMBERS, loc=LOC.ravel(), factors=(AB,), noise=0.1),
    "three axes": _case(
        np.kron(np.kron(A, covariance(2, 5)), covariance(2, 6)),
        loc=0.5,
        factors=(A, covariance(2, 5), covariance(2, 6)),
    ),
    "flat precision factors": _case(INVERSE, precision_factors=(A, B), flatten=True),
    "batched factors": _case(
        kron(BATCH_A, BATCH_B) + 0.1 * EYE, loc=0.0, factors=(BATCH_A, BATCH_B), noise=0.1
    ),
    "batched loc": _case(AB, loc=LOCS, factors=(A, B)),
    "batched loc, noise and a factor": _case(
        kron(BATCH_A, B) + NOISES[:, None, None] * EYE,
        loc=LOCS,
        factors=(BATCH_A, B),
        noise=NOISES,
    ),
    "t": _case(NUMBERS, df=6.0, factors=(A, B), noise=0.1),
    "t, Cholesky factors": _case(AB, df=6.0, scale_trils=(LA, LB), flatten=True),
    "t, batched": _case(
        AB + NOISES[:, None, None] * EYE,
        df=np.array([6.0, 9.0]),
        loc=LOCS,
        factors=(A, B),
        noise=NOISES,
    ),
}
# One of each way to differentiate a density and a draw; tests/linalg has every kind of factor.
DIFFERENTIATED = (
    "noise-free",
    "full noise",
    "Cholesky factors",
    "precision factors",
    "precision factors and noise",
    "low rank",
    "repeated eigenvalues",
    "batched loc, noise and a factor",
    "t",
)
DIFFERENTIATED_EVERYDAY = (
    "repeated eigenvalues",
    "batched loc, noise and a factor",
    "t",
)
# The everyday run: every way to state a matrix and its noise, flat and not, with batches of each
# part. What is left out puts these together otherwise, and is the full run's.
COVERING = (
    "noise-free",
    "variance",
    "full noise",
    "Cholesky factors",
    "precision factors and noise",
    "structured",
    "low rank",
    "repeated eigenvalues",
    "flat precision factors",
    "batched factors",
    "batched loc, noise and a factor",
    "t, Cholesky factors",
    "t, batched",
)
each_case = pytest.mark.parametrize("name", everyday(CASES, COVERING))
# Where each takes a program of its own.
some_cases = pytest.mark.parametrize(
    "name",
    everyday(
        CASES,
        [
            "full noise",
            "batched loc, noise and a factor",
            "t, Cholesky factors",
        ],
    ),
)
# For what does not depend on the kind of matrix.
FEW = ("variance", "Cholesky factors", "flat precision factors", "batched factors", "t, batched")


def value_of(case, d, seed=0):
    """A point of the event space, one per batch entry."""
    return np.random.default_rng(seed).normal(size=(*case.batch, *d.event_shape))


def direction(d, seed=0):
    """A random direction in the parameters, symmetric where a matrix is, triangular likewise."""
    rng = np.random.default_rng(seed)

    def one(leaf):
        t = rng.normal(size=leaf.shape)
        if leaf.ndim < 2 or leaf.shape[-1] != leaf.shape[-2]:
            return t
        symmetric = np.allclose(leaf, np.swapaxes(leaf, -1, -2))
        return t + np.swapaxes(t, -1, -2) if symmetric else np.tril(t)

    return jax.tree.map(one, d)
