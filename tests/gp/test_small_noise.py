"""Variances where the noise is small beside the signal: never negative, and right relatively.

The truth is a dense Cholesky factorisation in extended precision. What rounding may do is stated
as a share `C · eps · λ_max / σ²` of the variance, for the largest eigenvalue of the signal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigvalsh

import kronax as kx

LONG = np.longdouble
# Rounding may move a variance by so many `eps λ_max / σ²` of itself, on the grid and elsewhere.
ON_GRID, ELSEWHERE = 0.5, 3.0
LEVELS = {
    "float32": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8),
    "float64": (1e-2, 1e-6, 1e-9, 1e-12, 1e-15, 1e-40),
}
AXES = (np.linspace(0, 1, 12), np.linspace(0, 1, 10))
NEW = (np.array([0.03, 0.4, 0.77, 1.1]), np.array([0.01, 0.5, 1.05]))
ALONG = np.linspace(0.5, 2.0, 10)
SLICE, GAPS, MANY = (np.ones((12, 10), bool) for _ in range(3))
SLICE[3], SLICE[7, 2] = False, False
GAPS[2, 3] = GAPS[7, 1] = GAPS[5, 5] = False
MANY[np.random.default_rng(0).random((12, 10)) < 0.7] = False


def rbf(x, z):
    return np.exp(-(((np.asarray(x, LONG)[:, None] - np.asarray(z, LONG)) / LONG(0.3)) ** 2) / 2)


def matern12(x, z):
    return np.exp(-np.abs(np.asarray(x, LONG)[:, None] - np.asarray(z, LONG)))


def white(x, z):
    return (np.asarray(x)[:, None] == np.asarray(z)).astype(LONG)


def cholesky(matrix):
    root = np.zeros_like(matrix)
    for j in range(len(matrix)):
        root[j, j] = np.sqrt(matrix[j, j] - root[j, :j] @ root[j, :j])
        root[j + 1 :, j] = (matrix[j + 1 :, j] - root[j + 1 :, :j] @ root[j, :j]) / root[j, j]
    return root


def whitened(root, columns):
    found = columns.copy()
    for j in range(len(root)):
        found[j] = (columns[j] - root[j, :j] @ found[:j]) / root[j, j]
    return found


def number(value, dtype):
    return jnp.asarray(value, dtype)


def smooth(dtype):
    return kx.RBF(number(0.3, dtype)), kx.RBF(number(0.3, dtype))


@dataclass(frozen=True)
class Case:
    """A process with noise of some level, and its covariances: `terms` are kernels per axis."""

    make: Callable[[Any, Any], Any]
    terms: dict[str, tuple[Callable, ...]]
    noise: np.ndarray
    mask: np.ndarray | None = None
    mean: float | None = None

    def covariance(self, rows, columns, name=None):
        chosen = self.terms.values() if name is None else (self.terms[name],)
        return sum(
            reduce(np.kron, [k(x, z) for k, x, z in zip(kernels, rows, columns, strict=True)])
            for kernels in chosen
        )

    def truth(self, level, rows, name=None, axes=AXES):
        kept = slice(None) if self.mask is None else np.flatnonzero(self.mask)
        matrix = self.covariance(axes, axes) + LONG(level) * self.noise
        cross = self.covariance(rows, axes, name)[:, kept]
        root = cholesky(matrix[kept][:, kept])
        prior = np.diag(self.covariance(rows, rows, name))
        left = prior - np.sum(whitened(root, cross.T) ** 2, axis=0)
        if self.mean is None:
            return left
        ones = np.ones((len(matrix), 1), LONG)[kept]
        design = whitened(root, ones)
        share = 1 - np.sum(whitened(root, cross.T) * design, axis=0)
        return left + share**2 / np.sum(design**2)

    def left_out(self, level):
        """The variances of observations given the others, at those that there are."""
        kept = slice(None) if self.mask is None else np.flatnonzero(self.mask)
        matrix = (self.covariance(AXES, AXES) + LONG(level) * self.noise)[kept][:, kept]
        inverse = whitened(cholesky(matrix), np.eye(len(matrix), dtype=LONG))
        return 1 / np.sum(inverse**2, axis=0)


def plain(level, dtype, **options):
    axes = [x.astype(dtype) for x in AXES]
    return kx.GridGP(smooth(dtype), axes, noise=number(level, dtype), **options)


def along_axis(level, dtype):
    axes = [x.astype(dtype) for x in AXES]
    return kx.GridGP(smooth(dtype), axes, noise={1: number(level * ALONG, dtype)})


def full_noise(level, dtype):
    factors = [number(np.asarray(matern12(x, x), float), dtype) for x in AXES]
    axes = [x.astype(dtype) for x in AXES]
    noise = kx.Kronecker(number(level, dtype) * factors[0], factors[1])
    return kx.GridGP(smooth(dtype), axes, noise=noise)


def joined(level, dtype):
    """A smooth term, and one that joins the noise along the second axis."""
    time, space = smooth(dtype)
    terms = {
        "field": (time, space),
        "drift": (kx.White(number(1.0, dtype)), kx.Matern12(number(1.0, dtype))),
    }
    return kx.GridGP(terms=terms, axes=[x.astype(dtype) for x in AXES], noise=number(level, dtype))


def on_one_axis(level, dtype):
    time, space = smooth(dtype)
    terms = {"slow": (time, space), "fast": (kx.Matern12(number(1.0, dtype)), space)}
    return kx.GridGP(terms=terms, axes=[x.astype(dtype) for x in AXES], noise=number(level, dtype))


IID, FIELD = np.eye(120, dtype=LONG), {"field": (rbf, rbf)}
CASES = {
    "one variance": Case(plain, FIELD, IID),
    "noise along an axis": Case(along_axis, FIELD, np.diag(np.tile(np.asarray(ALONG, LONG), 12))),
    "full noise": Case(full_noise, FIELD, np.kron(*[matern12(x, x) for x in AXES])),
    "a missing slice": Case(
        lambda level, dtype: plain(level, dtype).observing(SLICE), FIELD, IID, SLICE
    ),
    "a few gaps": Case(lambda level, dtype: plain(level, dtype).observing(GAPS), FIELD, IID, GAPS),
    "many gaps": Case(lambda level, dtype: plain(level, dtype).observing(MANY), FIELD, IID, MANY),
    "a term beside the noise": Case(joined, {**FIELD, "drift": (white, matern12)}, IID),
    "terms on one axis": Case(on_one_axis, {"slow": (rbf, rbf), "fast": (matern12, rbf)}, IID),
    "a level that is integrated out": Case(
        lambda level, dtype: plain(
            level, dtype, mean=kx.MarginalMean(kx.ConstantMean(number(0.0, dtype)))
        ),
        FIELD,
        IID,
        mean=0.0,
    ),
}
POINTS = np.stack(np.meshgrid(*NEW, indexing="ij"), axis=-1).reshape(-1, 2)


@jax.jit
def predicted(gp, y):
    """Every kind of variance of one process, as one program."""
    post = gp.condition(y)
    new = [x.astype(gp.dtype) for x in NEW]
    found = {
        "grid": post.variance(),
        "new": post.variance(new),
        "first": post.variance([new[0], None]),
        "second": post.variance([None, new[1]]),
        "points": post.variance(points=POINTS.astype(gp.dtype)),
        "left out": post.leave_one_out().variance,
    }
    for name, part in post.terms.items():
        found[f"{name}: grid"], found[f"{name}: new"] = part.variance(), part.variance(new)
    return found


def rows_of(route):
    return {
        "grid": AXES,
        "new": NEW,
        "points": NEW,
        "first": (NEW[0], AXES[1]),
        "second": (AXES[0], NEW[1]),
    }[route.rpartition(": ")[2]]


@pytest.mark.parametrize("dtype", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_variances_are_not_negative_and_right_relatively(name, dtype):
    case, eps = CASES[name], np.finfo(dtype).eps
    signal = np.asarray(case.covariance(AXES, AXES), float)
    top = eigvalsh(signal)[-1] / eigvalsh(np.asarray(case.noise, float))[0]
    for level in LEVELS[dtype]:
        found = predicted(case.make(level, dtype), np.ones((12, 10), dtype))
        for route, value in found.items():
            value = np.asarray(value, float)
            if route == "left out":
                value = value.ravel() if case.mask is None else value[case.mask]
            assert (value >= 0).all(), (route, level)
            lost = eps * top / level
            if lost > 0.1:
                assert (value <= signal.max() * 1.01 + level * 2).all(), (route, level)
                continue
            term = route.rpartition(": ")[0] or None
            if route == "left out" and case.mean is not None:
                continue
            truth = (
                case.left_out(level)
                if route == "left out"
                else case.truth(level, rows_of(route), term)
            )
            error = np.abs(value.ravel() - truth) / truth
            bound = (ON_GRID if route == "grid" else ELSEWHERE) * lost + 30 * eps
            print(name, dtype, level, route, float(error.max() / bound))
            assert error.max() <= bound, (route, level, float(error.max()), bound)
