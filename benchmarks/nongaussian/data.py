"""Fields, observations of them, and their densities, in NumPy and SciPy alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import expit, log_expit

import kronax as kx

VARIANCE, MEAN = 0.7, 0.5
TRIALS, CONCENTRATION, DF, SCALE = 10, 2.0, 4.0, 0.3
# Averages over a normal distribution: exact for polynomials of a degree below twice as much.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Kind(NamedTuple):
    """A likelihood of the library beside its draws, log density and distribution function here.

    `response` is what is predicted, of which `f` is a transform.
    """

    likelihood: Callable[[], Any]
    draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    log_density: Callable[[np.ndarray, np.ndarray], np.ndarray]
    cdf: Callable[[np.ndarray, np.ndarray], np.ndarray]
    is_discrete: bool = True


def _share(f: np.ndarray) -> np.ndarray:
    """The second parameter of SciPy's negative binomial distribution."""
    return CONCENTRATION / (CONCENTRATION + np.exp(f))


KINDS = {
    "Poisson": Kind(
        kx.Poisson,
        lambda rng, f: rng.poisson(np.exp(f)),
        lambda y, f: stats.poisson.logpmf(y, np.exp(f)),
        lambda y, f: stats.poisson.cdf(y, np.exp(f)),
    ),
    "Bernoulli": Kind(
        kx.Bernoulli,
        lambda rng, f: rng.binomial(1, expit(f)),
        lambda y, f: log_expit((2 * y - 1) * f),
        lambda y, f: stats.binom.cdf(y, 1, expit(f)),
    ),
    "Binomial": Kind(
        lambda: kx.Binomial(TRIALS),
        lambda rng, f: rng.binomial(TRIALS, expit(f)),
        lambda y, f: stats.binom.logpmf(y, TRIALS, expit(f)),
        lambda y, f: stats.binom.cdf(y, TRIALS, expit(f)),
    ),
    "NegativeBinomial": Kind(
        lambda: kx.NegativeBinomial(CONCENTRATION),
        lambda rng, f: rng.negative_binomial(CONCENTRATION, _share(f)),
        lambda y, f: stats.nbinom.logpmf(y, CONCENTRATION, _share(f)),
        lambda y, f: stats.nbinom.cdf(y, CONCENTRATION, _share(f)),
    ),
    "StudentT": Kind(
        lambda: kx.StudentT(DF, SCALE),
        lambda rng, f: f + SCALE * rng.standard_t(DF, f.shape),
        lambda y, f: stats.t.logpdf(y, DF, f, SCALE),
        lambda y, f: stats.t.cdf(y, DF, f, SCALE),
        is_discrete=False,
    ),
}


def matern52(size: int, lengthscale: float) -> np.ndarray:
    """The covariance of places one apart."""
    s = np.sqrt(5) * np.abs(np.subtract.outer(*2 * [np.arange(size)])) / lengthscale
    return (1 + s + s**2 / 3) * np.exp(-s)


def matern32(size: int, lengthscale: float) -> np.ndarray:
    """The covariance of places one apart."""
    s = np.sqrt(3) * np.abs(np.subtract.outer(*2 * [np.arange(size)])) / lengthscale
    return (1 + s) * np.exp(-s)


def covariance(shape: tuple[int, int], lengthscales: tuple[float, float]) -> np.ndarray:
    """Of the whole field, dense."""
    factors = (matern52(n, scale) for n, scale in zip(shape, lengthscales, strict=True))
    return VARIANCE * np.kron(*factors)


def field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    lengthscales: Sequence[float],
    variance: float = VARIANCE,
) -> np.ndarray:
    """A draw of the field with Matérn-5/2 along both axes, by roots of their covariances."""
    first, second = (
        _root(matern52(n, scale)) for n, scale in zip(shape, lengthscales, strict=True)
    )
    return MEAN + np.sqrt(variance) * first @ rng.standard_normal(shape) @ second.T


def _root(k: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(k)
    return vectors * np.sqrt(np.maximum(values, 0))


def process(
    shape: tuple[int, ...],
    lengthscales: Any,
    likelihood: Any,
    variance: Any = VARIANCE,
    mean: Any = MEAN,
    **more: Any,
) -> kx.GridGP:
    """The model of these fields."""
    first, second = (kx.Matern52(jnp.asarray(scale)) for scale in lengthscales)
    axes = tuple(np.arange(float(n)) for n in shape)
    kernels = (jnp.asarray(variance) * first, second)
    return kx.GridGP(kernels, axes, mean=mean, likelihood=likelihood, **more)


def log_scores(kind: Kind, y: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Log density of every observation, its function averaged over normal marginals."""
    f = mean + np.sqrt(variance) * NODES.reshape(-1, *(1,) * mean.ndim)
    return np.log(np.tensordot(WEIGHTS, np.exp(kind.log_density(y, f)), 1))


def transforms(
    kind: Kind, y: np.ndarray, mean: np.ndarray, variance: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Where every observation lies in its predictive distribution; counts are placed at random."""
    f = mean + np.sqrt(variance) * NODES.reshape(-1, *(1,) * mean.ndim)
    upper = np.tensordot(WEIGHTS, kind.cdf(y, f), 1)
    if not kind.is_discrete:
        return upper
    lower = np.tensordot(WEIGHTS, kind.cdf(y - 1, f), 1)
    return lower + rng.random(y.shape) * (upper - lower)


def is_central(places: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Whether they lie in the middle of the unit interval."""
    return np.abs(places - 0.5) < level / 2
