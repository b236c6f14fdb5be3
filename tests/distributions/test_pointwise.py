"""Log densities of single observations given all others, beside dense NumPy."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import kronax as kx
from tests.tolerances import assert_close

RNG = np.random.default_rng(21)
X, Z = np.linspace(0, 1, 4), np.linspace(0, 1, 3)
Y = RNG.normal(size=(4, 3))
SEEN = Y > -1.0
SCALES = np.array([[0.4, 0.7, 1.0], [0.5, 0.6, 0.9]])


def rbf(x, scale):
    return np.exp(-(((x[:, None] - x) / scale) ** 2) / 2)


def dense(scale, cells):
    """`log p(y) − log p(y without i)` for every cell `i`."""
    full = np.kron(rbf(X, scale), rbf(Z, 0.3)) + 0.2 * np.eye(12)
    y = Y.ravel() - 0.5

    def joint(kept):
        return scipy.stats.multivariate_normal.logpdf(y[kept], cov=full[np.ix_(kept, kept)])

    return np.array([joint(cells) - joint(cells[cells != i]) for i in cells])


def model(kind, y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    factors = kx.RBF(scale)(X, X), kx.RBF(0.3)(Z, Z)
    if kind == "whole":
        numpyro.sample("y", kx.KroneckerNormal(0.5, factors, 0.2), obs=y)
    elif kind == "flat":
        numpyro.sample("y", kx.KroneckerNormal(0.5, factors, 0.2, flatten=True), obs=y.ravel())
    elif kind == "masked":
        numpyro.sample("y", kx.MaskedKroneckerNormal(0.5, factors, 0.2, observed=SEEN), obs=y)
    else:
        numpyro.sample("y", kx.KroneckerStudentT(4.0, 0.5, factors), obs=y)
    numpyro.sample("scales", dist.Normal(scale, 1.0).expand([5]), obs=jnp.arange(5.0))


@pytest.mark.parametrize("kind", ["whole", "flat", "masked"])
def test_each_observation_given_all_others(kind):
    y = np.where(SEEN, Y, np.nan) if kind == "masked" else Y
    found = kx.pointwise_log_likelihood(model, {"scale": SCALES}, kind, y, batch_ndims=2)
    shape = {"whole": (4, 3), "flat": (12,), "masked": (int(SEEN.sum()),)}[kind]
    assert found["y"].shape == (2, 3, *shape)
    cells = np.flatnonzero(SEEN) if kind == "masked" else np.arange(12)
    expected = [[dense(scale, cells) for scale in row] for row in SCALES]
    assert_close(found["y"].reshape(2, 3, -1), expected)
    assert_close(found["scales"][1, 2], scipy.stats.norm.logpdf(np.arange(5.0), 0.9))


def test_arviz_sees_as_many_observations_as_there_are():
    samples = {"scale": np.exp(RNG.normal(-0.3, 0.05, (2, 100)))}
    found = kx.pointwise_log_likelihood(model, samples, "whole", Y, batch_ndims=2)
    posterior = az.from_dict(posterior=samples, log_likelihood={"y": found["y"]})
    loo = az.loo(posterior)
    assert loo.n_data_points == 12
    # The draws lie close together, so that each cell's score is near the one at their centre.
    assert abs(loo.elpd_loo - dense(np.exp(-0.3), np.arange(12)).sum()) < 0.2


def test_others_are_refused():
    with pytest.raises(NotImplementedError, match="KroneckerStudentT have no densities here"):
        kx.pointwise_log_likelihood(model, {"scale": SCALES[0]}, "t", jnp.asarray(Y))


def test_draws_without_chains_in_single_precision():
    with jax.enable_x64(False):
        samples = {"scale": np.float32(SCALES[0])}
        found = kx.pointwise_log_likelihood(model, samples, "whole", np.float32(Y))["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1].ravel(), dense(0.7, np.arange(12)), rtol=2e-4)
