"""KroneckerNormal: its density and draws beside the dense normal, and its life in NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

import kronax as kx
from tests.cases import covariance
from tests.oracle import kron
from tests.tolerances import assert_close

A, B = covariance(3), covariance(4, 1)
N1, N2 = covariance(3, 2), 0.3 * covariance(4, 3)
LA, LB = np.linalg.cholesky(A), np.linalg.cholesky(B)
VARIANCES = np.array([0.1, 0.4, 0.2, 0.9])
LOC = np.arange(12.0).reshape(3, 4) / 10
Y = np.random.default_rng(0).normal(size=(3, 4))
AXIS_NOISE = kx.Kronecker(kx.ScaledIdentity(0.5, 3), kx.Diagonal(VARIANCES))
NUM_DRAWS = 20_000

# arguments, and the dense covariance
COVARIANCES = {
    "noise-free": ({"factors": (A, B)}, np.kron(A, B)),
    "an operator": ({"factors": kx.Kronecker(A, B)}, np.kron(A, B)),
    "variance": ({"factors": (A, B), "noise": 0.1}, np.kron(A, B) + 0.1 * np.eye(12)),
    "noise by axis": (
        {"factors": (A, B), "noise": AXIS_NOISE},
        np.kron(A, B) + 0.5 * np.kron(np.eye(3), np.diag(VARIANCES)),
    ),
    "full noise": (
        {"factors": (A, B), "noise": kx.Kronecker(N1, N2)},
        np.kron(A, B) + np.kron(N1, N2),
    ),
    "Cholesky factors": ({"scale_trils": (LA, LB)}, np.kron(A, B)),
    "Cholesky factors and noise": (
        {"scale_trils": (LA, LB), "noise": 0.1},
        np.kron(A, B) + 0.1 * np.eye(12),
    ),
    "one axis": ({"factors": (np.kron(A, B),), "noise": 0.2}, np.kron(A, B) + 0.2 * np.eye(12)),
}
every_covariance = pytest.mark.parametrize("name", COVARIANCES)


def make(name, loc=None, **options):
    arguments, dense = COVARIANCES[name]
    if loc is None:
        loc = LOC.ravel() if name == "one axis" else LOC
    return kx.KroneckerNormal(loc, **arguments, **options), dense


def scipy_log_prob(value, mean, dense):
    return scipy.stats.multivariate_normal(mean.ravel(), dense).logpdf(value.reshape(-1, 12))


@every_covariance
@pytest.mark.parametrize("flatten", [False, True])
def test_log_prob_is_that_of_the_dense_normal(name, flatten):
    d, dense = make(name, flatten=flatten)
    expected_shape = (12,) if flatten or name == "one axis" else (3, 4)
    assert (d.batch_shape, d.event_shape) == ((), expected_shape)
    value = Y.reshape(expected_shape)
    assert_close(d.log_prob(value), scipy_log_prob(value, LOC, dense))
    batch = np.stack([value, 2 * value])
    assert_close(d.log_prob(batch), scipy_log_prob(batch, LOC, dense))


@every_covariance
def test_draws_mean_and_variance_are_those_of_the_dense_normal(name):
    d, dense = make(name)
    draws = d.sample(jax.random.key(1), (NUM_DRAWS,))
    assert draws.shape == (NUM_DRAWS, *d.event_shape)
    flat = np.asarray(draws).reshape(NUM_DRAWS, 12)
    scale = np.sqrt(np.diagonal(dense))
    assert (np.abs(flat.mean(0) - LOC.ravel()) / scale).max() < 5 / np.sqrt(NUM_DRAWS)
    error = np.sqrt((scale[:, None] * scale) ** 2 + dense**2) / np.sqrt(NUM_DRAWS)
    assert (np.abs(np.cov(flat.T) - dense) / error).max() < 5
    assert_close(d.mean, LOC.reshape(d.event_shape))
    assert_close(d.variance, np.diagonal(dense).reshape(d.event_shape))


@pytest.mark.parametrize("name", ["noise-free", "variance", "Cholesky factors"])
def test_flat_events_are_the_grid_events_in_c_order(name):
    (flat, _), (grid, _) = make(name, flatten=True), make(name)
    key = jax.random.key(2)
    assert_close(flat.sample(key, (3,)), grid.sample(key, (3,)).reshape(3, 12))
    assert_close(flat.mean, LOC.ravel())
    assert_close(flat.variance, np.asarray(grid.variance).ravel())
    assert_close(make(name, loc=LOC.ravel(), flatten=True)[0].mean, LOC.ravel())


BATCH_A, BATCH_B = covariance(3, batch=(2,)), covariance(4, 1, batch=(5, 1))
BATCH_LOC = np.random.default_rng(1).normal(size=(2, 3, 4))
NOISES = np.array([0.1, 0.9])


@pytest.mark.parametrize(
    ("arguments", "loc", "dense"),
    [
        ({"factors": (BATCH_A, BATCH_B), "noise": 0.1}, 0.0, kron(BATCH_A, BATCH_B)),
        ({"factors": (BATCH_A, BATCH_B)}, 0.0, kron(BATCH_A, BATCH_B)),
        ({"factors": (A, B), "noise": NOISES}, 0.0, kron(A, B)),
        ({"factors": (BATCH_A, B), "noise": NOISES}, BATCH_LOC, kron(BATCH_A, B)),
        ({"factors": (A, B)}, BATCH_LOC, kron(A, B)),
        ({"scale_trils": (np.linalg.cholesky(BATCH_A), LB)}, BATCH_LOC, kron(BATCH_A, B)),
        ({"scale_trils": (LA, LB), "noise": NOISES}, BATCH_LOC, kron(A, B)),
    ],
    ids=[
        "factors",
        "factors, noise-free",
        "noise",
        "all",
        "loc",
        "Cholesky factors",
        "noise and Cholesky factors",
    ],
)
def test_batches_broadcast(arguments, loc, dense):
    d = kx.KroneckerNormal(loc, **arguments)
    noise = np.asarray(arguments.get("noise", 0.0))
    dense = dense + noise[..., None, None] * np.eye(12)
    batch = np.broadcast_shapes(dense.shape[:-2], np.shape(loc)[:-2])
    assert (d.batch_shape, d.event_shape) == (batch, (3, 4))
    dense = np.broadcast_to(dense, (*batch, 12, 12))
    means = np.broadcast_to(loc, (*batch, 3, 4))
    expected = np.empty(batch)
    for k in np.ndindex(batch):
        expected[k] = scipy_log_prob(Y, means[k], dense[k])
    assert_close(d.log_prob(Y), expected)
    assert_close(d.mean, means)
    assert_close(d.variance, np.diagonal(dense, axis1=-2, axis2=-1).reshape(*batch, 3, 4))
    assert d.sample(jax.random.key(0), (6,)).shape == (6, *batch, 3, 4)


@pytest.mark.parametrize("name", ["noise-free", "variance", "full noise", "Cholesky factors"])
def test_draws_are_independent_across_a_batch_that_the_factors_lack(name):
    d, _ = make(name, loc=np.zeros((2, 3, 4)))
    draws = np.asarray(d.sample(jax.random.key(0), (2_000,)))
    assert draws.shape == (2_000, 2, 3, 4)
    first, second = (draws[:, k].reshape(2_000, 12) for k in range(2))
    crossed = np.corrcoef(first.T, second.T)[:12, 12:]
    assert np.abs(crossed).max() < 5 / np.sqrt(2_000)
    over_draws = np.corrcoef(first[:-1].T, first[1:].T)[:12, 12:]
    assert np.abs(over_draws).max() < 5 / np.sqrt(2_000)


def test_draws_are_reparametrised():
    def total(loc, noise):
        d = kx.KroneckerNormal(loc, (A, B), noise)
        return jnp.sum(d.rsample(jax.random.key(0), (3,)))

    by_loc, by_noise = jax.grad(total, argnums=(0, 1))(0.5, 0.1)
    assert by_loc == 36
    step = 1e-6
    difference = (total(0.5, 0.1 + step) - total(0.5, 0.1 - step)) / (2 * step)
    np.testing.assert_allclose(by_noise, difference, rtol=1e-6)


def test_expand_and_to_event():
    d, dense = make("variance")
    many = d.expand((5,))
    assert (many.batch_shape, many.event_shape) == ((5,), (3, 4))
    draws = many.sample(jax.random.key(0))
    assert draws.shape == (5, 3, 4)
    assert np.abs(draws[0] - draws[1]).min() > 0
    assert_close(many.log_prob(Y), np.full(5, scipy_log_prob(Y, LOC, dense)))
    one = many.to_event(1)
    assert (one.batch_shape, one.event_shape) == ((), (5, 3, 4))
    values = np.stack([Y + k for k in range(5)])
    assert_close(one.log_prob(values), scipy_log_prob(values, LOC, dense).sum())


@every_covariance
def test_it_is_a_pytree_that_goes_through_jit(name):
    d, _ = make(name)
    leaves, tree = jax.tree.flatten(d)
    back = jax.tree.unflatten(tree, leaves)
    assert (back.batch_shape, back.event_shape) == (d.batch_shape, d.event_shape)
    value = Y.reshape(d.event_shape)
    assert_close(back.log_prob(value), d.log_prob(value))
    assert_close(jax.jit(lambda d, v: d.log_prob(v))(d, value), d.log_prob(value))
    doubled = jax.tree.map(lambda a: a, d)
    assert_close(doubled.sample(jax.random.key(0)), d.sample(jax.random.key(0)))


def test_it_is_made_under_vmap():
    noises, values = jnp.array([0.1, 0.9]), np.stack([Y, 2 * Y])

    def log_prob(noise, value):
        return kx.KroneckerNormal(LOC, (A, B), noise).log_prob(value)

    expected = [
        scipy_log_prob(v, LOC, np.kron(A, B) + n * np.eye(12))
        for n, v in zip([0.1, 0.9], values, strict=True)
    ]
    assert_close(jax.jit(jax.vmap(log_prob))(noises, values), np.array(expected))


def model(y=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    shift = numpyro.sample("shift", dist.Normal(0.0, 2.0))
    numpyro.sample("y", kx.KroneckerNormal(shift, (A, B), noise), obs=y)


def test_observed_under_nuts_it_gives_the_posterior():
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
    draws = mcmc.get_samples(group_by_chain=True)
    for name, grid, marginal in (
        ("shift", shifts, weights.sum(1)),
        ("noise", noises, weights.sum(0)),
    ):
        mean = grid @ marginal
        spread = np.sqrt((grid - mean) ** 2 @ marginal)
        assert abs(draws[name].mean() - mean) < 0.4 * spread
        assert numpyro.diagnostics.gelman_rubin(np.asarray(draws[name])) < 1.1
    assert not mcmc.get_extra_fields()["diverging"].any()


def test_a_latent_site_and_a_plate_have_the_right_joint_density():
    def nested(y=None):
        with numpyro.plate("replicates", 2):
            f = numpyro.sample("f", kx.KroneckerNormal(LOC, (A, B)))
        numpyro.sample("y", dist.Normal(f, 0.5).to_event(3), obs=y)

    f, y = np.stack([Y, 2 * Y]), np.zeros((2, 3, 4))
    joint, trace = log_density(nested, (), {"y": y}, {"f": jnp.asarray(f)})
    assert trace["f"]["fn"].batch_shape == (2,)
    expected = scipy_log_prob(f, LOC, np.kron(A, B)).sum()
    expected += scipy.stats.norm(f, 0.5).logpdf(y).sum()
    assert_close(joint, expected)
    prior = numpyro.infer.Predictive(nested, num_samples=3)(jax.random.key(0))
    assert prior["f"].shape == (3, 2, 3, 4)


def test_a_latent_site_runs_under_nuts():
    def latent(y):
        f = numpyro.sample("f", kx.KroneckerNormal(0.0, (A, B)))
        numpyro.sample("y", dist.Normal(f, 0.5).to_event(2), obs=y)

    mcmc = MCMC(NUTS(latent), num_warmup=100, num_samples=100, progress_bar=False)
    with jax.numpy_dtype_promotion("standard"):
        mcmc.run(jax.random.key(0), y=Y)
    covariance = np.kron(A, B)
    mean = covariance @ np.linalg.solve(covariance + 0.25 * np.eye(12), Y.ravel())
    assert np.abs(mcmc.get_samples()["f"].mean(0).ravel() - mean).max() < 0.4


def test_the_support_is_the_grid_of_reals():
    d, _ = make("variance")
    assert d.support.event_dim == 2
    assert make("variance", flatten=True)[0].support.event_dim == 1
    with pytest.warns(UserWarning, match="Out-of-support"):
        make("variance", validate_args=True)[0].log_prob(np.full((3, 4), np.inf))


def test_a_value_that_is_not_finite_is_not_blamed_on_the_factors():
    d, _ = make("variance", validate_args=False)
    assert np.isnan(d.log_prob(np.full((3, 4), np.nan)))


def test_traced_factors_that_are_no_covariance_give_nan():
    value = jax.jit(lambda a: kx.KroneckerNormal(0.0, (a, B), 0.1).log_prob(Y))(A - 5 * np.eye(3))
    assert np.isnan(value)


def test_float32_stays_float32():
    single = [m.astype(np.float32) for m in (A, B)]
    d = kx.KroneckerNormal(0.0, single, 0.1)
    value = d.log_prob(Y.astype(np.float32))
    assert value.dtype == d.sample(jax.random.key(0)).dtype == np.float32
    expected = scipy_log_prob(Y, np.zeros(12), np.kron(A, B) + 0.1 * np.eye(12))
    assert_close(value, expected, dtype="float32")
    with pytest.raises(TypeError, match=r"value must not.*got float64 with float32 parameters"):
        d.log_prob(Y)


LOPSIDED = np.array([[1.0, 0.5], [0.1, 1.0]])
INDEFINITE = np.array([[1.0, 2.0], [2.0, 1.0]])
TWO = np.eye(2)


def draw(d):
    return d.sample(jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kx.KroneckerNormal(0.0), TypeError, "got none"),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO,), scale_trils=(TWO,)),
            TypeError,
            "got `factors` and `scale_trils`",
        ),
        (lambda: kx.KroneckerNormal(0.0, ()), ValueError, "at least one factor"),
        (lambda: kx.KroneckerNormal(0.0, A), TypeError, r"factors must be.*kx\.Kronecker"),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, A[:2])),
            ValueError,
            r"factor 1 must be square.*got shape \(2, 3\)",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, LOPSIDED), 0.1),
            ValueError,
            r"factor 1 must be symmetric.*differ by 0\.4",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (LOPSIDED, TWO)),
            ValueError,
            r"factor 0 must be symmetric.*differ by 0\.4",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, INDEFINITE)).log_prob(TWO),
            np.linalg.LinAlgError,
            "factor 1 of the covariance must be positive semidefinite.*eigenvalue is -1",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, INDEFINITE), 0.1).log_prob(TWO),
            np.linalg.LinAlgError,
            "factor 1 of the signal must be positive semidefinite.*eigenvalue is -1",
        ),
        (
            lambda: draw(kx.KroneckerNormal(0.0, (TWO, INDEFINITE), 0.1)),
            np.linalg.LinAlgError,
            "factor 1 of the signal must be positive semidefinite.*eigenvalue is -1",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, scale_trils=(TWO, INDEFINITE)),
            ValueError,
            r"must be lower triangular; got 2 at index \(0, 1\)",
        ),
        (lambda: kx.KroneckerNormal(0.0, (A, B), -0.1), ValueError, r"not be negative; got -0\.1"),
        (
            lambda: kx.KroneckerNormal(0.0, (A, B), np.full((3, 4), 0.1)),
            ValueError,
            r"got shape \(3, 4\) on the grid \(3, 4\) without a batch",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (A, B), kx.Kronecker(N2, N1)),
            ValueError,
            r"got \(3, 4\) and \(4, 3\)",
        ),
        (lambda: kx.KroneckerNormal(LOC.T, (A, B)), ValueError, r"got shape \(4, 3\).*transpose"),
        (lambda: kx.KroneckerNormal(Y.astype(int), (A, B)), TypeError, "loc.*got dtype int64"),
        (lambda: kx.KroneckerNormal(LOC * np.nan, (A, B)), ValueError, "loc must be finite.*nan"),
        (
            lambda: kx.KroneckerNormal(np.zeros((4, 3, 4)), (BATCH_A, B)),
            ValueError,
            r"batch shapes of loc and factors.*got \(4,\), \(2,\)",
        ),
        (
            lambda: make("variance", validate_args=False)[0].log_prob(Y[0]),
            ValueError,
            r"value must have shape \(\*batch, 3, 4\); got shape \(4,\)",
        ),
        (
            lambda: make("variance")[0].log_prob(Y.ravel()[None]),
            ValueError,
            r"got shape \(1, 12\).*flatten=True",
        ),
        (
            lambda: make("variance", flatten=True)[0].log_prob(Y),
            ValueError,
            r"\(\*batch, 12\); got shape \(3, 4\).*flatten=False",
        ),
        (
            lambda: make("variance")[0].log_prob(np.ones((3, 4), int)),
            TypeError,
            "value must hold floating-point numbers; got dtype int64",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_noise_per_row_without_a_batch_is_not_taken_for_a_batch():
    factors = (np.eye(3), np.eye(2))
    for shape in ((3,), (2,), (6,), (3, 2)):
        with pytest.raises(ValueError, match=r"one per batch entry; got shape \(\d"):
            kx.KroneckerNormal(0.0, factors, np.ones(shape))
    assert kx.KroneckerNormal(np.zeros((3, 3, 2)), factors, np.ones(3)).batch_shape == (3,)


def test_mask_over_cells_raises_and_over_the_batch_does_not():
    d = kx.KroneckerNormal(np.zeros((4, 3, 2)), (np.eye(3), np.eye(2)), 0.1)
    with pytest.raises(ValueError, match="MaskedKroneckerNormal"):
        d.mask(np.ones((3, 2), bool))
    assert d.mask(np.ones(4, bool)).log_prob(np.zeros((4, 3, 2))).shape == (4,)


def test_factors_may_bring_their_noise():
    op = kx.Kronecker(np.eye(3), np.eye(2)) + 0.5
    y = np.linspace(-1, 1, 6).reshape(3, 2)
    expected = kx.KroneckerNormal(0.0, (np.eye(3), np.eye(2)), 0.5).log_prob(y)
    np.testing.assert_allclose(kx.KroneckerNormal(0.0, op).log_prob(y), expected)
