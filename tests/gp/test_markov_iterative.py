"""A process with many gaps along a Markov axis by iterations equals the exact filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import full

ITERATION = kx.Iteration(tolerance=1e-10, num_probes=64, num_draws=256)
TIMES = np.cumsum(np.random.default_rng(0).exponential(size=30))
PLACES = np.arange(4.0)
NEW = {"time": np.array([-1.0, 3.3, TIMES[4], 40.0]), "place": np.array([0.5, 2.0])}


def process(gaps, **options):
    kernels = {"time": 2.0 * kx.Matern32(4.0) + kx.Matern12(0.7), "place": kx.Matern32(2.0)}
    axes = {"time": TIMES, "place": PLACES}
    structure = {"time": "markov"}
    return kx.GridGP(kernels, axes, noise=0.1, structure=structure, gaps=gaps, **options)


@pytest.fixture(scope="module")
def posteriors():
    """By iterations, and exactly."""
    rng = np.random.default_rng(1)
    y = np.asarray(process("exact").sample(jax.random.key(0), include_noise=True)).copy()
    y[rng.random(y.shape) < 0.2] = np.nan
    y[5:12, 1] = np.nan
    return process("iterative", iteration=ITERATION).condition(y), process("exact").condition(y)


def test_the_complete_grid_is_filtered(posteriors):
    text = posteriors[0].gp.describe()
    assert "from the complete grid, filtered along time" in text
    assert posteriors[0].gp.is_iterative
    assert not posteriors[1].gp.is_iterative


@pytest.mark.parametrize("axes", [None, NEW, full({"place": NEW["place"]})])
def test_means_and_variances(posteriors, axes):
    found, exact = posteriors
    np.testing.assert_allclose(found.mean(axes), exact.mean(axes), rtol=0, atol=1e-6)
    estimate, truth = found.variance_estimate(axes), np.asarray(exact.variance(axes))
    off = np.abs(np.asarray(estimate.value) - truth)
    assert np.mean(off <= 3 * np.asarray(estimate.standard_error) + 1e-9) > 0.95
    assert np.max(np.asarray(estimate.standard_error) / truth) < 0.15


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
