"""The distributions inside NumPyro's models: samplers, guides, handlers, control flow."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.util import log_density, log_likelihood

import kronax as kx
from tests.distributions.cases import AB, LOC, A, B
from tests.everyday import everyday
from tests.tolerances import assert_close

Y = np.random.default_rng(0).normal(size=(3, 4))


def scipy_log_prob(value, mean, dense):
    return scipy.stats.multivariate_normal(mean.ravel(), dense).logpdf(value.reshape(-1, 12))


def model(y=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    shift = numpyro.sample("shift", dist.Normal(0.0, 2.0))
    numpyro.sample("y", kx.KroneckerNormal(shift, (A, B), noise), obs=y)


@pytest.fixture(scope="module")
def sampled():
    mcmc = MCMC(
        NUTS(model),
        num_warmup=100,
        num_samples=100,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    with jax.numpy_dtype_promotion("standard"):
        mcmc.run(jax.random.key(0), y=Y)
    return mcmc


def test_observed_under_nuts_it_gives_the_posterior(sampled):
    """Beside quadrature of the two-parameter posterior, with dense normals."""
    shifts, noises = np.linspace(-4, 4, 81), np.linspace(0.005, 3, 120)
    values, vectors = np.linalg.eigh(np.kron(A, B))
    spectrum = values + noises[:, None]
    squares = np.square((Y.ravel() - shifts[:, None]) @ vectors)
    log_post = -0.5 * (squares @ (1 / spectrum).T + np.log(spectrum).sum(-1))
    log_post += scipy.stats.norm(0, 2).logpdf(shifts)[:, None]
    log_post += scipy.stats.halfnorm.logpdf(noises)
    weights = np.exp(log_post - log_post.max())
    weights /= weights.sum()
    draws = sampled.get_samples(group_by_chain=True)
    for name, grid, marginal in (
        ("shift", shifts, weights.sum(1)),
        ("noise", noises, weights.sum(0)),
    ):
        mean = grid @ marginal
        spread = np.sqrt((grid - mean) ** 2 @ marginal)
        assert abs(draws[name].mean() - mean) < 0.4 * spread
        assert numpyro.diagnostics.gelman_rubin(np.asarray(draws[name])) < 1.1
    assert not sampled.get_extra_fields()["diverging"].any()


def test_arviz_takes_draws_and_densities(sampled):
    with warnings.catch_warnings():  # of versions to come, of no concern here
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", reason="ArviZ is an extra")
        data = arviz.from_numpyro(sampled, log_likelihood=True)
    assert data.posterior["noise"].shape == data.log_likelihood["y"].shape == (2, 100)
    np.testing.assert_array_equal(data.observed_data["y"], Y)
    shift, noise = (float(data.posterior[name][1, 7]) for name in ("shift", "noise"))
    expected = scipy_log_prob(Y, np.full(12, shift), AB + noise * np.eye(12))
    assert_close(data.log_likelihood["y"].values[1, 7], expected)


def test_a_latent_site_and_a_plate_have_the_right_joint_density():
    def nested(y=None):
        with numpyro.plate("replicates", 2):
            f = numpyro.sample("f", kx.KroneckerNormal(LOC, (A, B)))
        numpyro.sample("y", dist.Normal(f, 0.5).to_event(3), obs=y)

    f, y = np.stack([Y, 2 * Y]), np.zeros((2, 3, 4))

    @jax.jit
    def joint_of(f):
        value, trace = log_density(nested, (), {"y": y}, {"f": f})
        assert trace["f"]["fn"].batch_shape == (2,)
        return value

    joint = joint_of(f)
    expected = scipy_log_prob(f, LOC, np.kron(A, B)).sum()
    expected += scipy.stats.norm(f, 0.5).logpdf(y).sum()
    assert_close(joint, expected)
    prior = jax.eval_shape(Predictive(nested, num_samples=3), jax.random.key(0))
    assert prior["f"].shape == (3, 2, 3, 4)


def test_gaps_in_what_a_model_observes_raise():
    gaps = np.where(np.arange(12).reshape(3, 4) == 5, np.nan, Y)
    with pytest.raises(ValueError, match=r"got NaN in 1 of 12 cells.*kx\.MaskedKroneckerNormal"):
        log_density(model, (gaps,), {}, {"noise": 0.1, "shift": 0.0})


@pytest.mark.parametrize("flatten", [False, True])
def test_a_plate_over_the_axes_of_a_grid_is_noticed(flatten):
    def model(y, size):
        with numpyro.plate("rows", size):
            numpyro.sample("y", kx.KroneckerNormal(LOC, (A, B), flatten=flatten), obs=y)

    def density(y, size):
        return jax.eval_shape(lambda: log_density(model, (y, size), {}, {})[0])

    y = Y.ravel() if flatten else Y
    with pytest.warns(UserWarning, match=r"counts 3 times.*A grid is one event: leave out a plate"):
        density(y, 3)
    density(y, 1)
    density(np.stack([y, y, y]), 3)


def latent_mean(noise):
    return AB @ np.linalg.solve(AB + noise * np.eye(12), Y.ravel())


def latent(y=None):
    f = numpyro.sample("f", kx.KroneckerNormal(0.0, (A, B)))
    numpyro.sample("y", dist.Normal(f, 0.5).to_event(2), obs=y)


def test_a_latent_site_runs_under_nuts():
    @jax.jit
    def run(key):
        mcmc = MCMC(NUTS(latent), num_warmup=100, num_samples=100, progress_bar=False)
        mcmc.run(key, y=Y)
        return mcmc.get_samples()["f"]

    with jax.numpy_dtype_promotion("standard"):
        draws = run(jax.random.key(0))
    error = draws.mean(0).ravel() - latent_mean(0.25)
    assert np.abs(error).max() < 0.4


@pytest.mark.parametrize(
    "guide",
    everyday(["AutoNormal", "AutoMultivariateNormal", "AutoLaplaceApproximation"], ["AutoNormal"]),
)
def test_guides_find_the_mean_of_a_latent_field(guide):
    guide = getattr(autoguide, guide)(latent)
    svi = SVI(latent, guide, numpyro.optim.Adam(0.05), Trace_ELBO(num_particles=8))

    @jax.jit
    def fitted(key):
        return guide.median(svi.run(key, 400, progress_bar=False, y=Y).params)["f"]

    with jax.numpy_dtype_promotion("standard"):
        found = fitted(jax.random.key(0))
    assert np.abs(np.ravel(found) - latent_mean(0.25)).max() < 0.2


def test_predictions_and_likelihoods_of_draws():
    def model(y=None):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        numpyro.sample("y", kx.KroneckerNormal(shift, (A, B), 0.1), obs=y)

    shifts = {"shift": jnp.array([0.0, 0.5, 1.0])}
    drawn = jax.eval_shape(Predictive(model, posterior_samples=shifts), jax.random.key(0))
    assert drawn["y"].shape == (3, 3, 4)
    values = jax.jit(lambda shifts: log_likelihood(model, shifts, y=Y)["y"])(shifts)
    expected = [scipy_log_prob(Y, np.full(12, s), AB + 0.1 * np.eye(12)) for s in shifts["shift"]]
    assert_close(values, np.array(expected))


def test_masks_of_handlers_are_over_batches():
    def model(mask, y):
        with numpyro.plate("replicates", 2), handlers.mask(mask=mask):
            numpyro.sample("y", kx.KroneckerNormal(LOC, (A, B)), obs=y)

    y = np.stack([Y, 2 * Y])
    value = jax.jit(lambda y: log_density(model, (np.array([True, False]), y), {}, {})[0])(y)
    assert_close(value, scipy_log_prob(Y, LOC, AB))
    for shape in ((3, 4), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"kx\.MaskedKroneckerNormal"):
            log_density(model, (np.ones(shape, bool), y), {}, {})


def test_a_chain_of_fields_in_a_scan():
    y = np.stack([Y, 2 * Y, 0.5 * Y])

    def chain(y):
        def step(last, now):
            field = numpyro.sample("f", kx.KroneckerNormal(0.9 * last, (A, B), 0.1), obs=now)
            return field, None

        scan(step, jnp.zeros((3, 4)), y)

    @jax.jit
    def density(y):
        value, trace = log_density(chain, (y,), {}, {})
        assert trace["f"]["fn"].batch_shape == (3,)
        return value

    means = np.concatenate([np.zeros((1, 3, 4)), 0.9 * y[:-1]])
    expected = sum(
        scipy_log_prob(now, mean, AB + 0.1 * np.eye(12)) for now, mean in zip(y, means, strict=True)
    )
    assert_close(density(y), expected)

    def prior():
        def step(last, _):
            field = numpyro.sample("f", kx.KroneckerNormal(0.9 * last, (A, B), 0.1))
            return field, None

        scan(step, jnp.zeros((3, 4)), None, length=3)

    drawn = handlers.trace(handlers.seed(prior, 0)).get_trace()["f"]
    assert (drawn["value"].shape, drawn["fn"].batch_shape) == ((3, 3, 4), (3,))


def test_a_t_field_is_sampled_and_observed():
    def model(y=None):
        df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
        numpyro.sample("y", kx.KroneckerStudentT(df + 2, LOC, (A, B), 0.1), obs=y)

    drawn = jax.eval_shape(Predictive(model, num_samples=3), jax.random.key(0))
    assert drawn["y"].shape == (3, 3, 4)
    value = jax.jit(lambda df: log_density(model, (Y,), {}, {"df": df})[0])(4.0)
    expected = scipy.stats.multivariate_t(LOC.ravel(), AB + 0.1 * np.eye(12), df=6).logpdf(
        Y.ravel()
    )
    assert_close(value, expected + scipy.stats.gamma(2, scale=10).logpdf(4.0))
