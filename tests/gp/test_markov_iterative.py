"""A process with many gaps along a Markov axis by iterations equals the exact filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import full
from tests.gp.dense import matern12, matern32

ITERATION = kx.Iteration(tolerance=1e-10, num_probes=64, num_draws=256)
TIMES = np.cumsum(np.random.default_rng(0).exponential(size=30))
PLACES = np.arange(4.0)
NEW = {"time": np.array([-1.0, 3.3, TIMES[4], 40.0]), "place": np.array([0.5, 2.0])}


def process(gaps, **options):
    kernels = {"time": 2.0 * kx.Matern32(4.0) + kx.Matern12(0.7), "place": kx.Matern32(2.0)}
    axes = {"time": TIMES, "place": PLACES}
    structure = {"time": "markov"}
    options = {"noise": 0.1, **options}
    return kx.GridGP(kernels, axes, structure=structure, gaps=gaps, **options)


def signal(rows, columns):
    time = 2 * matern32(rows[0], columns[0], 4.0) + matern12(rows[0], columns[0], 0.7)
    return np.kron(time, matern32(rows[1], columns[1], 2.0))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    covariance = signal((TIMES, PLACES), (TIMES, PLACES)) + 0.1 * np.eye(120)
    y = (np.linalg.cholesky(covariance) @ rng.normal(size=120)).reshape(30, 4)
    y[rng.random(y.shape) < 0.2] = np.nan
    y[5:12, 1] = np.nan
    return y


@pytest.fixture(scope="module")
def post(data):
    return process("iterative", iteration=ITERATION).condition(data)


def test_the_complete_grid_is_filtered(post, data):
    text = post.gp.describe()
    assert "from the complete grid, filtered along time" in text
    assert post.gp.is_iterative
    assert not process("exact").observing(data).is_iterative


@pytest.mark.parametrize("axes", [full(None), NEW, full({"place": NEW["place"]})])
def test_means_and_variances(post, data, axes):
    """Beside the dense posterior."""
    used = {"time": TIMES, "place": PLACES, **(axes or {})}.values()
    grid, seen = [len(x) for x in used], ~np.isnan(data.ravel())
    rows = signal(tuple(used), (TIMES, PLACES))[:, seen]
    covariance = signal((TIMES, PLACES), (TIMES, PLACES)) + 0.1 * np.eye(120)
    solved = np.linalg.solve(covariance[np.ix_(seen, seen)], rows.T)
    mean, truth = solved.T @ data.ravel()[seen], 3 - np.sum(rows * solved.T, axis=1)
    truth = truth.reshape(grid)
    np.testing.assert_allclose(post.mean(axes), mean.reshape(grid), rtol=0, atol=1e-6)
    estimate = post.variance_estimate(axes)
    off = np.abs(np.asarray(estimate.value) - truth)
    assert np.mean(off <= 3 * np.asarray(estimate.standard_error) + 1e-9) > 0.95
    assert np.max(np.asarray(estimate.standard_error) / truth) < 0.15


@pytest.mark.parametrize("axes", [None, NEW])
def test_variances_have_no_derivatives_in_the_noise(data, axes):
    """Not even at new places, where only what the data explain depends on it."""

    def variances(share):
        noise = share * np.full(data.shape, 0.1)
        gp = process("iterative", iteration=ITERATION, noise=noise)
        return gp.condition(data).variance(axes).sum()

    with pytest.raises(kx.DerivativeOrderError, match="values only"):
        jax.eval_shape(jax.grad(variances), 1.0)


def test_long_axes_are_filtered_unasked():
    times, places = np.arange(3000.0), np.arange(150.0)
    kernels = {"time": kx.Matern32(10.0), "place": kx.Matern32(3.0)}
    seen = np.random.default_rng(0).random((3000, 150)) > 0.2
    gp = kx.GridGP(kernels, {"time": times, "place": places}, noise=0.1).observing(
        jnp.asarray(np.where(seen, 0.0, np.nan))
    )
    assert "iterative" in gp.describe()
    assert "filtered along time" in gp.describe()
    assert gp.structures[0].kind == "markov"
