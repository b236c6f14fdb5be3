"""A GridGP with low-rank axes against the same one with dense factors; variances without loss."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kronax as kx
from kronax.gp.axes import structure
from tests.everyday import everyday, full
from tests.gp.dense import DenseGP, matern32, squared_exponential
from tests.tolerances import assert_close

X, Z = np.linspace(0, 1, 30), np.linspace(0, 2, 12)
NEW = np.linspace(0, 1.2, 5)
KEY = jax.random.key(0)


def process(asked, noise=0.01, dtype=np.float64):
    kernels = (2.0 * kx.RBF(dtype(0.4)), kx.Matern32(dtype(0.5)))
    return kx.GridGP(kernels, (X.astype(dtype), Z.astype(dtype)), noise, structure=asked)


def dense(noise=0.01):
    """The same by NumPy."""
    if np.ndim(noise):
        noise = np.diag(np.repeat(noise, 12))
    kernels = lambda x, z: squared_exponential(x, z, 0.4), lambda x, z: matern32(x, z, 0.5)
    return DenseGP(None, kernels, (X, Z), noise, variance=2.0)


DENSE = process(("dense", "dense"))
Y = np.linalg.cholesky(dense().covariance()) @ np.random.default_rng(0).normal(size=360)
Y = Y.reshape(30, 12)
NOISES = {"scalar": 0.01, "along the low-rank axis": {0: np.linspace(0.01, 0.02, 30)}}


ALONG = "along the low-rank axis"


def dense_of(noise):
    given = NOISES[noise]
    return dense(given[0] if isinstance(given, dict) else given)


def pair(noise):
    return [process(s, NOISES[noise]) for s in (("dense", "dense"), (20, None))]


@pytest.mark.parametrize("noise", everyday(NOISES, [ALONG]))
def test_likelihood_and_its_gradient(noise):
    value_and_grad = jax.jit(jax.value_and_grad(lambda gp: gp.log_marginal_likelihood(Y)))
    values = [value_and_grad(gp) for gp in pair(noise)]
    for ours, theirs in zip(*(jax.tree.leaves(v) for v in reversed(values)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


PLACES = {"old": None, "first": (NEW, None), "second": (None, NEW), "both": (NEW, NEW)}


@pytest.mark.parametrize(("noise", "where"), everyday(product(NOISES, PLACES), [(ALONG, "both")]))
def test_predictions(noise, where):
    axes = PLACES[where]
    post = pair(noise)[1].condition(Y)
    new = [x if z is None else z for x, z in zip((X, Z), axes or (None, None), strict=True)]
    mean, covariance = dense_of(noise).posterior(new, Y)
    np.testing.assert_allclose(post.mean(axes), mean, atol=1e-6)
    variance = np.diagonal(covariance).reshape(mean.shape)
    np.testing.assert_allclose(post.variance(axes), variance, atol=1e-8)


@pytest.mark.parametrize(
    ("noise", "where"), everyday(product(NOISES, ["old", "first"]), [(ALONG, "old")])
)
def test_draws(noise, where):
    axes, post = PLACES[where], pair(noise)[1].condition(Y)
    draws = np.asarray(post.sample(KEY, axes, 4000))
    new = [x if z is None else z for x, z in zip((X, Z), axes or (None, None), strict=True)]
    mean, covariance = dense_of(noise).posterior(new, Y)
    sd = np.sqrt(np.diagonal(covariance)).reshape(mean.shape)
    assert np.abs((draws.mean(0) - mean) / sd).max() < 0.1
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.12)


def test_a_rank_that_is_too_small_says_so():
    gp = process((4, None))
    assert "low rank (4 columns, as asked)" in gp.describe()
    for call in (lambda: gp.log_marginal_likelihood(Y), lambda: gp.condition(Y)):
        with pytest.raises(
            ValueError, match=r"axis 0 must be carried by 4 columns; .* 1\d columns do"
        ):
            call()
    value, slope = jax.jit(jax.value_and_grad(lambda gp: gp.log_marginal_likelihood(Y)))(gp)
    assert np.isnan(value)
    assert all(np.isnan(leaf) for leaf in jax.tree.leaves(slope)[:2])
    with pytest.raises(ValueError, match=r"must be one of .* number of columns"):
        process((True, None))
    with pytest.raises(ValueError, match="rank of axis 0 must be at least 1"):
        process((0, None))


def test_the_search_for_a_rank_stops(monkeypatch):
    tried = []
    choose = structure.choose_pivots
    monkeypatch.setattr(
        structure, "choose_pivots", lambda k, x, r: tried.append(r) or choose(k, x, r)
    )
    monkeypatch.setattr(structure, "MOST_OPERATIONS", 1e3)
    gp = kx.GridGP((kx.Matern12(0.3),), (np.linspace(0, 1, 100),), 0.1, structure=(4,))
    with pytest.raises(
        ValueError, match=r"leave a part of 0\.\d+ of .*It takes more than 8 columns, at"
    ):
        gp.log_marginal_likelihood(np.ones(100))
    assert tried == [4, 8]


def test_a_rank_above_the_size_is_the_size():
    gp = process((1000, None))
    assert "low rank (all 30 columns; 1000 were asked for)" in gp.describe()
    assert_close(*jax.jit(lambda gps: [gp.covariance().to_dense() for gp in gps])((gp, DENSE)))


def test_a_kernel_that_is_no_covariance_is_no_matter_of_rank():
    gp = kx.GridGP((lambda x, z: jnp.abs(x[:, None] - z[None]) + 1,), (X,), 0.1, structure=(5,))
    with pytest.raises(ValueError, match=r"not by any number\. The kernel must be positive semi"):
        gp.log_marginal_likelihood(np.ones(X.size))


def test_a_fit_with_a_low_rank_axis_finds_the_same_optimum():
    dense, thin = (
        kx.fit(gp, Y, num_steps=60, optimizer=optax.adam(0.05), progress=False)
        for gp in (DENSE, process((20, None)))
    )
    np.testing.assert_allclose(thin.losses[-1], dense.losses[-1], rtol=1e-8)


@pytest.mark.filterwarnings("ignore::kronax.PrecisionWarning")  # the ratio is at its limit
@pytest.mark.parametrize("structure", [None, full(("dense", "dense")), (20, None)])
def test_float32_variances_at_the_grid_keep_their_digits(structure):
    """`K − K S⁻¹ K` would lose them all: the variances are 1e-5 of the signal's."""
    single = process(structure, np.float32(2e-5), np.float32)
    ours = single.condition(Y.astype(np.float32)).variance()
    assert ours.dtype == jnp.float32
    assert np.all(ours > 0)
    truth = np.diagonal(dense(2e-5).posterior(y=Y)[1]).reshape(30, 12)
    np.testing.assert_allclose(ours, truth, rtol=0.2)


@pytest.mark.parametrize("structure", [full(("dense", "dense")), full(None), (20, None)])
def test_gradient_of_the_variance_at_the_grid(structure):
    def total(t):
        kernels = (2.0 * kx.RBF(jnp.exp(t[0])), kx.Matern32(jnp.exp(t[1])))
        gp = kx.GridGP(kernels, (X, Z), jnp.exp(t[2]), structure=structure)
        return jnp.sum(weights * gp.condition(Y).variance())

    weights = np.random.default_rng(0).normal(size=Y.shape)
    t = jnp.log(jnp.array([0.4, 0.5, 0.1]))
    both, step = jax.jit(jax.value_and_grad(total)), 1e-4
    ends = [(both(t + step * e)[0], both(t - step * e)[0]) for e in np.eye(3)]
    numeric = [(above - below) / (2 * step) for above, below in ends]
    np.testing.assert_allclose(both(t)[1], numeric, rtol=1e-5)
