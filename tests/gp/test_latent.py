"""A GridGP inside NumPyro models: as likelihood, as latent field, and conditioned in Predictive."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC, NUTS, Predictive

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import matern32, matern52

X, Z = np.linspace(0, 1, 6), np.linspace(0, 2, 4)
NEW = np.linspace(1.1, 1.5, 3)
KEY = jax.random.key(0)
JITTER = 1e-6


def process(kernel=None, axis=X, mean=0.5, **options):
    kernel = 2.0 * kx.Matern52(0.4) if kernel is None else kernel
    return kx.GridGP((kernel, kx.Matern32(0.7)), (axis, Z), noise=0.1, mean=mean, **options)


REGULAR = np.linspace(0, 1, 20)
PROCESSES = {
    "dense": process(),
    "Toeplitz": process(axis=REGULAR),
    "a circle": process(kernel=2.0 * kx.Matern52(0.4), axis=kx.circle(X[:-1], 1.0)),
    "low rank": process(kernel=2.0 * kx.RBF(0.4), axis=REGULAR, structure=(18, None)),
    "places": process(axis=np.stack([X, X**2], axis=-1)),
}


def field_of(gp, white):
    """The flat field that the white one makes."""
    with substitute(data={"f_white": white}), seed(rng_seed=0):
        return gp.latent("f", JITTER).ravel()


def root_of(gp, shape):
    """And the field that zeros make."""

    @jax.jit
    def both(white):
        return jax.jacfwd(lambda white: field_of(gp, white))(white), field_of(gp, white)

    root, at_zero = both(jnp.zeros(shape))
    return root.reshape(len(root), -1), at_zero


@jax.jit
def prior_covariance(gp):
    return gp.covariance(include_noise=False).to_dense()


@pytest.mark.parametrize("name", everyday(PROCESSES, ["Toeplitz", "a circle", "low rank"]))
def test_the_latent_field_has_the_prior_covariance(name):
    gp = PROCESSES[name]
    site = "f_white"
    draws = trace(seed(lambda: gp.latent("f"), KEY)).get_trace
    shape = jax.eval_shape(lambda: draws()[site]["value"]).shape
    assert shape == (18, 4) if name == "low rank" else gp.grid_shape
    root, at_zero = root_of(gp, shape)
    np.testing.assert_allclose(at_zero, 0.5)
    np.testing.assert_allclose(root @ root.T, prior_covariance(gp), atol=3 * 2.0 * JITTER)


def test_a_latent_field_on_traced_coordinates_has_the_prior_covariance():
    root, _ = jax.jit(lambda x: root_of(process(axis=x), (6, 4)))(X)
    covariance = prior_covariance(PROCESSES["dense"])
    np.testing.assert_allclose(root @ root.T, covariance, atol=3 * 2.0 * JITTER)


@pytest.mark.parametrize("axis", [REGULAR, np.sort(REGULAR**1.5)], ids=["halves", "dense"])
@pytest.mark.parametrize("lengthscale", [0.1, 0.5])
def test_a_diagonal_scaling_fits_what_counts_say_of_the_white_field(axis, lengthscale):
    gp = kx.GridGP((kx.Matern52(lengthscale),), (axis,), noise=0.1)
    rates = 20 * np.exp(gp.sample(KEY))

    def condition(root):
        """Of the posterior precision of the white field, scaled by its marginal variances."""
        precision = np.eye(20) + np.asarray(root).T @ (rates[:, None] * np.asarray(root))
        scale = np.sqrt(np.diagonal(np.linalg.inv(precision)))
        return np.linalg.cond(scale[:, None] * precision * scale)

    assert condition(root_of(gp, (20,))[0]) < 10
    assert condition(np.linalg.cholesky(prior_covariance(gp))) > 50


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("Toeplitz", (NEW, None)),
        ("dense", (NEW, [0.1, 0.3])),
        full("dense", (NEW, None)),
        full("Toeplitz", (NEW, [0.1, 0.3])),
    ],
)
def test_conditioning_on_a_field_is_that_of_the_dense_normal(name, axes):
    gp = PROCESSES[name]
    axes = tuple(a if a is None else np.asarray(a) for a in axes)
    f = gp.sample(KEY)
    post = gp.latent_condition(f, JITTER)
    old, new = [], []
    places = [axis.static.values for axis in gp.axes]
    kernels = lambda x, z: matern52(x, z, 0.4), lambda x, z: matern32(x, z, 0.7)
    for i, (kernel, x) in enumerate(zip(kernels, places, strict=True)):
        scale = 2.0 if i == 0 else 1.0
        k = scale * (np.asarray(kernel(x, x)) + JITTER * np.eye(len(x)))
        z = axes[i]
        old.append(k)
        if z is None:
            new.append((k, k))
        else:
            new.append((scale * kernel(z, x), scale * (kernel(z, z) + JITTER * np.eye(len(z)))))
    cross, ahead = (np.kron(new[0][k], new[1][k]) for k in range(2))
    weights = np.linalg.solve(np.kron(*old), cross.T).T
    mean = 0.5 + weights @ (np.ravel(f) - 0.5)
    variance = np.diagonal(ahead - weights @ cross.T)
    np.testing.assert_allclose(post.mean(axes).ravel(), mean, atol=1e-6)
    np.testing.assert_allclose(post.variance(axes).ravel(), variance, atol=1e-6)
    draws = np.asarray(post.sample(KEY, axes, 4000)).reshape(4000, -1)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / 4000) + 1e-6)
    np.testing.assert_allclose(draws.std(0), np.sqrt(variance), rtol=0.1)


def test_the_likelihood_of_a_model_is_the_marginal_likelihood():
    gp = PROCESSES["dense"]
    y = gp.sample(KEY, include_noise=True)
    found = jax.jit(lambda y: gp.numpyro_dist().log_prob(y))(y)
    np.testing.assert_allclose(found, gp.log_marginal_likelihood(y), rtol=1e-12)
    dense = np.kron(2.0 * matern52(X, X, 0.4), matern32(Z, Z, 0.7)) + 0.1 * np.eye(24)
    truth = scipy.stats.multivariate_normal(np.full(24, 0.5), dense).logpdf(np.ravel(y))
    np.testing.assert_allclose(found, truth, rtol=1e-10)


def test_a_whole_model_with_counts_and_its_predictions():
    gp0 = PROCESSES["dense"]
    rng, prior = np.random.default_rng(0), np.asarray(prior_covariance(gp0))
    field = rng.multivariate_normal(np.full(24, 0.5), prior).reshape(6, 4)
    counts = rng.poisson(np.exp(field))
    priors = {"kernels[0].lengthscale": dist.LogNormal(-1.0, 0.5), "variance": dist.HalfNormal(2.0)}

    def model(y=None):
        gp = kx.sample_parameters("gp", gp0, priors)
        f = gp.latent("f")
        numpyro.deterministic("ahead", gp.latent_condition(f).mean((NEW, None)))
        numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(2), obs=y)

    @jax.jit
    def run(key):
        mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=100, progress_bar=False)
        mcmc.run(key, counts)
        return mcmc.get_samples(), mcmc.get_extra_fields()["diverging"]

    with jax.numpy_dtype_promotion("standard"):  # NumPyro's Poisson mixes types
        draws, diverging = run(KEY)
    assert draws["ahead"].shape == (100, 3, 4)
    assert not diverging.any()
    assert np.corrcoef(np.ravel(counts), np.exp(draws["f"]).mean(0).ravel())[0, 1] > 0.7
    with jax.numpy_dtype_promotion("standard"):
        new = jax.jit(Predictive(model, draws))(KEY)
    assert new["y"].shape == (100, 6, 4)


def test_a_posterior_inside_predictive():
    gp = PROCESSES["dense"]
    y = gp.sample(KEY, include_noise=True)
    post = gp.condition(y)

    def model():
        d = post.numpyro_dist(axes=(NEW, None), include_noise=True)
        numpyro.sample("y_new", d)

    draws = Predictive(model, num_samples=3000)(KEY)["y_new"]
    d = post.numpyro_dist((NEW, None), include_noise=True)
    assert draws.shape == (3000, 3, 4)
    assert d.event_shape == (3, 4)
    sd = np.sqrt(d.variance)
    np.testing.assert_allclose(d.variance, post.variance((NEW, None), include_noise=True))
    assert np.abs((draws.mean(0) - d.mean) / sd).max() < 0.1
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    with pytest.raises(NotImplementedError, match="no Kronecker product"):
        d.log_prob(draws)


def test_a_posterior_given_a_batch_of_data_has_moments_of_its_whole_shape():
    gp = PROCESSES["dense"]
    y = gp.sample(KEY, include_noise=True)
    post = gp.condition(jnp.stack([y, -y]))
    d = post.numpyro_dist((NEW, None), include_noise=True)
    assert (d.batch_shape, d.event_shape) == ((2,), (3, 4))
    assert d.mean.shape == d.variance.shape == d.sample(KEY).shape == (2, 3, 4)
    for variance in d.variance:
        np.testing.assert_array_equal(variance, post.variance((NEW, None), include_noise=True))


@pytest.mark.parametrize("jitter", [-1e-6, "small", True])
def test_a_bad_jitter_raises(jitter):
    gp = PROCESSES["dense"]
    with pytest.raises(ValueError, match="jitter must be a number that is not negative"):
        gp.latent_condition(np.zeros((6, 4)), jitter)
    with seed(rng_seed=0), pytest.raises(ValueError, match="jitter"):
        gp.latent("f", jitter)


def test_a_field_of_another_grid_raises():
    with pytest.raises(ValueError, match=r"\(4, 6\)"):
        PROCESSES["dense"].latent_condition(np.zeros((4, 6)))


def test_a_lengthscale_that_needs_more_columns_has_no_density():
    rank = 14  # as many as `LowRank.from_kernel(kx.RBF(0.3), REGULAR)` has
    kernels = kx.RBF(0.4), kx.Matern32(0.7)
    gp = kx.GridGP(kernels, (REGULAR, Z), noise=0.1, structure=(rank, None))
    path = "kernels[0].lengthscale"

    def model():
        f = kx.sample_parameters("gp", gp, {path: dist.LogNormal(-1.0, 0.3)}).latent("f")
        numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(2), obs=jnp.ones((20, 4)))

    def density(lengthscale):
        values = {f"gp.{path}": lengthscale, "f_white": jnp.full((rank, 4), 0.1)}
        return numpyro.infer.util.log_density(model, (), {}, values)[0]

    found = jax.jit(jax.vmap(jax.value_and_grad(density)))(jnp.array([0.5, 0.31, 0.1]))
    for part in found:
        np.testing.assert_array_equal(np.isnan(part), [False, False, True])
