"""What docs/porting.md says of other libraries: numbers of PyMC and GPyTorch, formulas of GPJax.

`tools/pymc_reference.py` and `tools/gpytorch_reference.py` made the files of numbers, with the same
inputs.
"""

import json
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tinygp
from numpyro.handlers import seed, substitute

import kronax as kx
from tests.everyday import everyday

PYMC = json.loads(Path(__file__).with_name("porting_pymc.json").read_text(encoding="utf-8"))
GPYTORCH = json.loads(Path(__file__).with_name("porting_gpytorch.json").read_text(encoding="utf-8"))
X, Z = np.array([0.0, 0.4, 1.1]), np.array([0.0, 0.7, 0.9, 2.0])
NEW = np.array([0.2, 1.5]), np.array([0.5, 0.9, 3.0])
SIGMA, SHIFT, ETA = 0.4, 0.3, 1.5
Y = np.sin(1.0 + np.arange(12.0)) + 0.1 * np.arange(12.0)
KERNELS = {
    "ExpQuad(1, ls=0.5)": kx.RBF(0.5),
    "Matern52(1, ls=0.5)": kx.Matern52(0.5),
    "Matern32(1, ls=0.5)": kx.Matern32(0.5),
    "Matern12(1, ls=0.5)": kx.Matern12(0.5),
    "Exponential(1, ls=0.5)": kx.Matern12(2 * 0.5),
    "RatQuad(1, ls=0.5, alpha=2.0)": kx.RationalQuadratic(0.5, 2.0),
    "Periodic(1, period=1.0, ls=0.5)": kx.Periodic(1.0, 2 * 0.5),
    "Cosine(1, ls=0.5)": kx.Cosine(0.5),
    "Linear(1, c=0.2)": kx.Linear(0.2),
    "Constant(2.0)": kx.Constant(2.0),
    "1.5**2 * ExpQuad(1, ls=0.5)": 1.5**2 * kx.RBF(0.5),
}


@pytest.fixture(scope="module", autouse=True)
def numpy_broadcasting():
    """tinygp broadcasts as NumPy does, and so do the formulas of other libraries."""
    with jax.numpy_rank_promotion("allow"):
        yield


def process():
    kernels = ETA**2 * kx.Matern52(0.6), kx.Periodic(1.7, 2 * 0.5)
    return kx.GridGP(kernels, (X, Z), SIGMA**2, SHIFT)


def assert_equal(actual, expected, rtol=1e-9):
    np.testing.assert_allclose(np.ravel(actual), expected, rtol=rtol)


@pytest.mark.parametrize("name", PYMC["kernels"])
def test_kernels_of_pymc(name):
    assert_equal(KERNELS[name].evaluate(0.0, 0.3), PYMC["kernels"][name])


def test_matrices_of_pymc():
    weights, own = np.array([[1.0, 0.2], [0.5, -0.3], [0.1, 0.8]]), np.array([0.3, 0.5, 0.1])
    level = own.mean()
    outputs = level * kx.Categorical(weights / np.sqrt(level), own / own.sum())
    expected = PYMC["matrices"]
    codes = np.arange(3)
    np.testing.assert_allclose(
        jax.jit(lambda: outputs(codes, codes))(), expected["Coregion(1, W=W, kappa=kappa)"]
    )
    np.testing.assert_allclose(kx.White(0.3**2)(X, X), expected["WhiteNoise(0.3)"])


def test_the_periodic_lengthscale_is_doubled():
    ours, theirs = kx.Periodic(1.0, 0.5).evaluate(0.0, 0.3), PYMC["kernels"]
    exponents = np.log([float(ours), theirs["Periodic(1, period=1.0, ls=0.5)"]])
    assert_equal(exponents[0] / exponents[1], 4.0)


@pytest.mark.parametrize(
    ("way", "sigma"),
    everyday(
        product(["covs", "chols", "evds"], [0.0, SIGMA]),
        [("covs", SIGMA), ("chols", 0.0), ("evds", SIGMA)],
    ),
)
def test_densities_of_pymc(way, sigma):
    factors = process().covariance(include_noise=False).factors
    covs = jax.jit(lambda factors: [f.to_dense() for f in factors])(factors)
    covs = [k + 0.2 * np.eye(len(k)) for k in covs]
    given = {
        "covs": {"factors": covs},
        "chols": {"scale_trils": [np.linalg.cholesky(k) for k in covs]},
        "evds": {"factors": [(q * v) @ q.T for v, q in map(np.linalg.eigh, covs)]},
    }
    noise = sigma**2 if sigma else None
    d = kx.KroneckerNormal(0.1 * np.arange(12.0), noise=noise, flatten=True, **given[way])
    assert_equal(d.log_prob(Y), PYMC["densities"][f"{way}, sigma={sigma}"])
    grid = kx.KroneckerNormal(0.1 * np.arange(12.0), noise=noise, **given[way])
    assert_equal(grid.log_prob(Y.reshape(3, 4)), PYMC["densities"][f"{way}, sigma={sigma}"])


def test_likelihood_and_predictions_of_pymc():
    expected, gp = PYMC["marginal"], process()
    assert_equal(gp.numpyro_dist(flatten=True).log_prob(Y), expected["log_marginal_likelihood"])
    assert_equal(gp.log_marginal_likelihood(Y), expected["log_marginal_likelihood"])
    post = gp.condition(Y)
    assert_equal(post.mean(NEW), expected["mean"])
    assert_equal(post.variance(NEW), expected["variance"])
    assert_equal(post.variance(NEW), expected["diagonal of covariance"])


def test_pymc_adds_the_standard_deviation_as_predictive_noise():
    expected, post = PYMC["marginal"], process().condition(Y)
    for what in ("variance", "diagonal of covariance"):
        added = np.subtract(expected[f"{what}, pred_noise=True"], expected[what])
        assert_equal(added, SIGMA)
    assert_equal(post.variance(NEW, include_noise=True) - post.variance(NEW), SIGMA**2)


def test_latent_fields_of_pymc():
    """Up to the jitter of 1e-6, which PyMC adds as it is and kronax relative to the variance.

    The white numbers are others: PyMC's go through Cholesky factors, as `KroneckerReparam`'s do.
    """
    expected, gp = PYMC["latent"], process()
    prior = gp.covariance(include_noise=False)
    transform = kx.KroneckerCholeskyTransform(prior, loc=SHIFT, jitter=1e-6)
    assert_equal(transform(jnp.asarray(Y.reshape(3, 4))), expected["f"], rtol=1e-5)

    def field(white):
        with substitute(data={"f_white": white}), seed(rng_seed=0):
            return gp.latent("f", jitter=1e-6)

    root = np.reshape(jax.jit(jax.jacobian(field))(jnp.zeros((3, 4))), (12, 12))
    covariance = jax.jit(lambda prior: prior.to_dense())(prior)
    np.testing.assert_allclose(root @ root.T, covariance, atol=1e-4)
    post = gp.latent_condition(np.reshape(expected["f"], (3, 4)), jitter=1e-6)
    assert_equal(post.mean(NEW), expected["mean"], rtol=1e-4)
    np.testing.assert_allclose(np.ravel(post.variance(NEW)), expected["variance"], atol=1e-4)


def test_a_list_of_points_is_taken_as_pymc_takes_it():
    points = np.stack(np.meshgrid(*NEW, indexing="ij"), axis=-1).reshape(6, 2)
    expected, post = PYMC["marginal"], process().condition(Y)
    assert_equal(post.mean(points=points), expected["mean"])
    assert_equal(post.variance(points=points), expected["variance"])


def test_a_linear_mean_of_pymc():
    x, z = jnp.asarray(X), jnp.asarray(Z)
    linear = kx.LinearMean(0, [0.7, 2.0], 0.0, 1.0) + kx.LinearMean(1, [0.0, -1.0], 0.0, 1.0)
    gp = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), (X, Z), 0.1, mean=linear)
    cells = np.stack(np.meshgrid(X, Z, indexing="ij"), axis=-1).reshape(12, 2)
    theirs = cells @ np.array([2.0, -1.0]) + 0.7  # pm.gp.mean.Linear([2, -1], 0.7)
    assert_equal(gp.numpyro_dist(flatten=True).mean, theirs)
    assert_equal(2.0 * x[:, None] - 1.0 * z + 0.7, theirs)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (tinygp.kernels.ExpSquared(scale=0.5), kx.RBF(0.5)),
        (tinygp.kernels.Exp(scale=0.5), kx.Matern12(0.5)),
        (tinygp.kernels.ExpSineSquared(scale=1.7, gamma=3.0), kx.Periodic(1.7, np.sqrt(2 / 3.0))),
    ],
)
def test_kernels_of_tinygp(theirs, ours):
    np.testing.assert_allclose(theirs(X, Z), ours(X, Z), rtol=1e-12)


def test_the_periodic_kernel_of_gpjax():
    """Its formula, as its source has it: that of PyMC."""
    period, scale = 1.7, 0.5
    sine = np.sin(np.pi * (X[:, None] - Z) / period)
    gpjax = np.exp(-0.5 * (sine / scale) ** 2)
    np.testing.assert_allclose(kx.Periodic(period, 2 * scale)(X, Z), gpjax, rtol=1e-12)


KERNELS_OF_GPYTORCH = {
    "RBFKernel, lengthscale 0.5": kx.RBF(0.5),
    "MaternKernel(0.5), lengthscale 0.5": kx.Matern12(0.5),
    "MaternKernel(1.5), lengthscale 0.5": kx.Matern32(0.5),
    "MaternKernel(2.5), lengthscale 0.5": kx.Matern52(0.5),
    "RQKernel, lengthscale 0.5, alpha 2": kx.RationalQuadratic(0.5, 2.0),
    "PeriodicKernel, period_length 1, lengthscale 0.5": kx.Periodic(1.0, np.sqrt(0.5)),
    "CosineKernel, period_length 0.5": kx.Cosine(2 * 0.5),
    "SpectralMixtureKernel": kx.SpectralMixture([0.7, 0.3], [0.2, 1.5], [0.1, 0.3]),
    "ScaleKernel(RBFKernel), outputscale 2.25, lengthscale 0.5": 2.25 * kx.RBF(0.5),
    "LinearKernel, variance 0.7": 0.7 * kx.Linear(0.0),
}


@pytest.mark.parametrize("name", GPYTORCH["kernels"])
def test_kernels_of_gpytorch(name):
    assert_equal(KERNELS_OF_GPYTORCH[name].evaluate(0.2, 0.5), GPYTORCH["kernels"][name])


def test_coregionalisation_of_gpytorch():
    weights, own = np.array([[1.0, 0.2], [0.5, -0.3], [0.1, 0.8]]), np.array([0.3, 0.5, 0.1])
    level = own.mean()
    outputs = level * kx.Categorical(weights / np.sqrt(level), own / own.sum())
    np.testing.assert_allclose(outputs(np.arange(3), np.arange(3)), GPYTORCH["IndexKernel"])


def test_a_process_of_gpytorch():
    """Its marginal likelihood is per cell; its noise a variance, and added as one."""
    y = np.sin(1.0 + np.arange(3.0))
    gp = kx.GridGP((2.25 * kx.Matern32(0.5),), (X,), noise=0.16, mean=0.3)
    assert_equal(gp.log_marginal_likelihood(y) / 3, GPYTORCH["mll"])
    post, new = gp.condition(y), [NEW[0]]
    assert_equal(post.mean(new), GPYTORCH["mean"])
    assert_equal(post.variance(new), GPYTORCH["variance"])
    noisy = post.variance(new, include_noise=True)
    assert_equal(noisy, GPYTORCH["likelihood(model(x)).variance"])
