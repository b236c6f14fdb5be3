"""Starts and guides of latent fields beside the dense posterior of their white numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import block, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoGuideList, AutoNormal

import kronax as kx

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
SPACE, TIME = np.array([0.0, 1.0, 2.5, 3.0, 4.2]), np.arange(4.0)
COUNTS = RNG.poisson(2.0, size=(5, 4)).astype(float)
VALUES = RNG.normal(size=(5, 4))
GAPPY = COUNTS.copy()
GAPPY[1, 2] = GAPPY[3, 0] = GAPPY[3, 3] = np.nan
JITTER = 1e-2  # far from nothing: it must not be forgotten


def process(kernels=None, axes=(SPACE, TIME), **options):
    kernels = (0.7 * kx.Matern52(2.0), kx.Matern32(3.0)) if kernels is None else kernels
    return kx.GridGP(kernels, axes, mean=0.5, **options)


SMOOTH = (0.7 * kx.RBF(3.0), kx.Matern32(3.0))
REGULAR = (np.arange(5.0), TIME)
POISSON = {"likelihood": kx.Poisson()}
# A process and data for every way of solving and every kind of root and noise.
CASES = {
    "dense": (process(**POISSON), COUNTS),
    "gaps": (process(**POISSON), GAPPY),
    "Laplace": (process(axes=REGULAR, approximation="laplace", **POISSON), GAPPY),
    "filtered": (process(structure=(None, "markov"), **POISSON), GAPPY),
    "low rank": (process(SMOOTH, structure=(4, None), **POISSON), GAPPY),
    "iterative": (process(gaps="iterative", **POISSON), GAPPY),
    "outliers": (process(likelihood=kx.StudentT(df=3.0, scale=0.1)), VALUES * np.exp(VALUES)),
    "normal": (process(axes=REGULAR, noise=0.3), VALUES),
    "normal, gaps": (process(noise={0: np.linspace(0.1, 1, 5)}), VALUES + 0 * GAPPY),
    "normal, filtered": (process(noise=0.3, structure=(None, "markov")), VALUES),
}


def field_of(gp, white):
    with substitute(data={"f_white": white}), seed(rng_seed=0):
        return gp.latent("f", JITTER)


def dense_posterior(gp, post):
    """Mean and covariance of the white numbers, by the information that data add to theirs."""
    start = post.latent_start("f", JITTER)["f_white"]
    root = jax.jit(jax.jacfwd(lambda white: field_of(gp, white).ravel()))(jnp.zeros(start.shape))
    root = np.asarray(root).reshape(root.shape[0], -1)
    noise = np.broadcast_to(getattr(post.gp.noise_term(), "diagonal", lambda: 0.3)(), (5, 4))
    if gp.likelihood is not None:
        precision = np.asarray(post.sites.precision).ravel()
    else:
        precision = np.where(np.isnan(post.y), 0, 1 / noise).ravel()
    residual = np.where(precision > 0, np.ravel(post.y) - 0.5, 0)
    covariance = np.linalg.inv(np.eye(root.shape[1]) + root.T @ (precision[:, None] * root))
    return covariance @ root.T @ (precision * residual), (covariance + covariance.T) / 2


@pytest.mark.parametrize("name", CASES)
def test_a_guide_is_the_dense_posterior_of_the_white_numbers(name):
    gp, y = CASES[name]
    post = gp.condition(y)
    mean, covariance = dense_posterior(gp, post)
    guide = post.latent_guide("f", JITTER)
    found, start = guide.distribution, post.latent_start("f", JITTER)
    assert list(start) == ["f_white"]
    tolerance = 1e-5 if name == "iterative" else 1e-8
    np.testing.assert_allclose(start["f_white"].ravel(), mean, atol=tolerance)
    np.testing.assert_array_equal(found.mean, start["f_white"])
    draws = np.asarray(found.sample(KEY, (3000,))).reshape(3000, -1)
    truth = scipy.stats.multivariate_normal(mean, covariance)
    logs = found.log_prob(draws[:5].reshape(5, *found.event_shape))
    np.testing.assert_allclose(logs, truth.logpdf(draws[:5]), atol=10 * tolerance)
    # Draws that are white once more, along every direction.
    white = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T)
    assert np.abs(white.mean(axis=1)).max() < 5 / np.sqrt(3000)
    assert np.abs(np.cov(white) - np.eye(len(mean))).max() < 0.1
