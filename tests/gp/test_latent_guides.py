"""Starts and guides of latent fields beside the dense posterior of their white numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import block, seed, substitute
from numpyro.infer import SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoGuideList, AutoNormal
from numpyro.infer.util import log_density

import kronax as kx
from kronax.gp.noise.products import AxisNoise
from tests.everyday import everyday
from tests.gp import dense

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


PRIOR = 0.7 * np.kron(dense.matern52(SPACE, SPACE, 2.0), dense.matern32(TIME, TIME, 3.0))
PLANE = (0.7 * (kx.Constant(1.0) + kx.Linear(0.3)), kx.Matern32(3.0))
REGULAR = (np.arange(5.0), TIME)
POISSON = {"likelihood": kx.Poisson(1.0)}  # a number, as where there is another one
# A process and data for every way of solving and every kind of root and noise.
CASES = {
    "dense": (process(**POISSON), COUNTS),
    "gaps": (process(**POISSON), GAPPY),
    "Laplace": (process(axes=REGULAR, approximation="laplace", **POISSON), GAPPY),
    "filtered": (process(structure=(None, "markov"), **POISSON), GAPPY),
    "low rank": (process(PLANE, structure=(2, None), **POISSON), GAPPY),
    "iterative": (process(gaps="iterative", **POISSON), GAPPY),
    "outliers": (process(likelihood=kx.StudentT(df=4.0, scale=0.3)), VALUES * np.exp(VALUES)),
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
    if gp.likelihood is not None:
        precision = np.asarray(post.sites.precision).ravel()
    else:
        noise = np.linspace(0.1, 1, 5)[:, None] if isinstance(gp.noise, AxisNoise) else 0.3
        precision = np.where(np.isnan(post.y), 0, 1 / noise).ravel()
    residual = np.where(precision > 0, np.ravel(post.y) - 0.5, 0)
    covariance = np.linalg.inv(np.eye(root.shape[1]) + root.T @ (precision[:, None] * root))
    return covariance @ root.T @ (precision * residual), (covariance + covariance.T) / 2


@pytest.mark.parametrize("name", everyday(CASES, ["filtered"]))
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


def test_another_process_of_the_same_field_keeps_the_sites():
    """Roots of another structure, and parameters that a guide draws, with their derivatives."""
    filtered = process(structure=(None, "markov"), **POISSON)
    post, other = filtered.condition(GAPPY), process(**POISSON)
    guide = post.latent_guide("f", JITTER, gp=other)
    same = other.condition(GAPPY).latent_guide("f", JITTER)
    np.testing.assert_allclose(guide.distribution.mean, same.distribution.mean, atol=1e-5)
    value = np.ones((5, 4))
    found, truth = (g.distribution.log_prob(value) for g in (guide, same))
    np.testing.assert_allclose(found, truth, rtol=1e-6)

    @jax.jit
    @jax.value_and_grad
    def at(variance):
        gp = kx.replace(other, {"variance": variance})
        white = post.latent_guide("f", JITTER, gp=gp).distribution
        return white.log_prob(white.sample(KEY)) + white.log_prob(jnp.asarray(value))

    below, value_here, above = (at(jnp.asarray(0.7 + h)) for h in (-1e-5, 0.0, 1e-5))
    np.testing.assert_allclose(value_here[1], (above[0] - below[0]) / 2e-5, rtol=1e-5)


def counted(gp, exposure=1.0):
    def program(counts=None):
        scale = numpyro.sample("scale", dist.LogNormal(np.log(0.7), 0.1))
        f = kx.replace(gp, {"variance": scale}).latent("f")
        numpyro.sample("y", dist.Poisson(exposure * jnp.exp(f)).to_event(2), obs=counts)

    return program


def laplace_evidence(counts, exposure):
    """Of many counts, by Newton's method in plain NumPy."""
    inverse, f = np.linalg.inv(PRIOR), np.log(counts.ravel() / exposure)
    for _ in range(20):
        rate = exposure * np.exp(f)
        precision = inverse + np.diag(rate)
        f = f + np.linalg.solve(precision, counts.ravel() - rate - inverse @ (f - 0.5))
    logs = scipy.stats.poisson.logpmf(counts.ravel(), exposure * np.exp(f)).sum()
    logs += scipy.stats.multivariate_normal(np.full(20, 0.5), PRIOR).logpdf(f)
    return logs + 10 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2


def test_inference_begins_where_it_ends():
    """On many counts, which a draw of the prior is far from."""
    exposure, truth = 1e4, RNG.multivariate_normal(np.full(20, 0.5), PRIOR).reshape(5, 4)
    gp = process(likelihood=kx.Poisson(exposure))
    counts = RNG.poisson(exposure * np.exp(truth))
    post, model = gp.condition(counts), counted(gp, exposure)
    begin = init_to_value(values={**post.latent_start("f"), "scale": 0.7})
    values = {**post.latent_start("f"), "scale": jnp.asarray(0.7)}

    @jax.jit
    def run(key):
        guide = AutoGuideList(model, init_loc_fn=begin)
        hidden = block(model, hide=["f", "f_white"])
        guide.append(AutoNormal(hidden, init_loc_fn=begin, init_scale=1e-3))
        guide.append(post.latent_guide("f"))
        svi = SVI(model, guide, numpyro.optim.Adam(0.001), Trace_ELBO())
        result = svi.run(key, 3, counts, progress_bar=False)
        draws = guide.sample_posterior(key, result.params, sample_shape=(2,))
        return result.losses, draws["f_white"], log_density(model, (counts,), {}, values)[0]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        losses, draws, density = run(KEY)
    assert draws.shape == (2, 5, 4)
    # The loss is the negative evidence, and what the guide of the scale is from its prior.
    truth = np.log(0.1 / 1e-3) - 0.5 - laplace_evidence(counts, exposure)
    np.testing.assert_allclose(losses, truth, atol=3)
    # Where NUTS would begin; a draw of the prior is thousands away.
    assert density > -250


def test_single_precision():
    kernels = (0.7 * kx.Matern52(np.float32(2.0)), kx.Matern32(np.float32(3.0)))
    likelihood = kx.Poisson(np.float32(1e3))
    gp = kx.GridGP(kernels, (SPACE, TIME), mean=np.float32(0.5), likelihood=likelihood)
    counts = np.where(np.isnan(GAPPY), np.nan, 1000 * GAPPY + 100).astype(np.float32)
    white = gp.condition(counts).latent_guide("f", JITTER).distribution
    draw = white.sample(KEY)
    assert draw.dtype == np.float32
    wide = process(likelihood=kx.Poisson(1e3)).condition(counts.astype(float))
    truth = wide.latent_guide("f", JITTER).distribution
    np.testing.assert_allclose(white.mean, truth.mean, atol=2e-3)
    np.testing.assert_allclose(white.log_prob(draw), truth.log_prob(draw.astype(float)), atol=0.05)


def test_draws_and_densities_map_over_data_sets():
    post = process(noise=0.3).condition(np.stack([VALUES, -VALUES]))
    white = post.latent_guide("f").distribution
    assert (white.batch_shape, white.event_shape) == ((2,), (5, 4))
    draws = white.sample(KEY, (3,))
    single = process(noise=0.3).condition(-VALUES).latent_guide("f").distribution
    np.testing.assert_allclose(white.log_prob(draws)[:, 1], single.log_prob(draws[:, 1]))
    mapped = jax.vmap(single.log_prob)(draws[:, 1])
    np.testing.assert_allclose(mapped, single.log_prob(draws[:, 1]))


def test_what_has_no_such_start_says_so():
    post = process(**POISSON).condition(COUNTS)
    with pytest.raises(ValueError, match="jitter must be"):
        post.latent_start("f", -1.0)
    with pytest.raises(ValueError, match=r"grid of the posterior, \(5, 4\); got \(4, 4\)"):
        post.latent_guide("f", gp=process(axes=(SPACE[1:], TIME), noise=0.1))
    with pytest.raises(TypeError, match="random key"):
        post.latent_guide("f")()
    with pytest.raises(ValueError, match="must have noise"):
        process(noise=0.0).condition(VALUES).latent_start("f")
    full = kx.Kronecker(0.1 * np.eye(5) + 0.01, np.eye(4))
    with pytest.raises(NotImplementedError, match="correlated between cells"):
        jax.eval_shape(lambda: process(noise=full).condition(VALUES).latent_start("f"))
    mean = kx.MarginalMean(kx.ConstantMean(0.0))
    gp = kx.GridGP((kx.Matern52(2.0), kx.Matern32(3.0)), (SPACE, TIME), noise=0.1, mean=mean)
    with pytest.raises(NotImplementedError, match=r"post.latent_guide\(\) is not available"):
        jax.eval_shape(lambda: gp.condition(VALUES).latent_guide("f").distribution.mean)
