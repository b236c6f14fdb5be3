"""Likelihoods beside SciPy: densities, distribution functions, moments, averages, errors."""

import functools
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

import kronax as kx
from kronax.gp.likelihoods.incomplete import lower_beta, lower_gamma, upper_gamma
from kronax.gp.likelihoods.predictive import log_predictive, probability
from kronax.gp.sites.response import response
from tests.everyday import everyday

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-10)

F = np.array([[-1.3, 0.2, 0.9], [2.1, -0.4, 0.0]])
EXPOSURE = np.array([[0.5, 1.0, 2.0], [3.0, 10.0, 1.5]])
COUNTS = np.array([[0.0, 1.0, 3.0], [30.0, 4.0, 2.0]])
P = scipy.special.expit(F)
SHARES = np.array([[0.1, 0.5, 0.9], [0.8, 0.3, 0.45]])
CUTPOINTS = np.array([-1.5, 0.2, 0.3])


class Categories:
    """Ordered ones at the latent function, in the words of SciPy."""

    def __init__(self):
        ends = [np.ones(F.shape), *(scipy.special.expit(F - c) for c in CUTPOINTS), 0 * F]
        self.dist, self.p = self, -np.diff(ends, axis=0)

    def logpmf(self, y):
        return np.log(np.take_along_axis(self.p, y[None].astype(int), axis=0)[0])

    def cdf(self, y):
        return np.take_along_axis(np.cumsum(self.p, axis=0), y[None].astype(int), axis=0)[0]

    def mean(self):
        return np.tensordot(np.arange(4.0), self.p, 1)

    def var(self):
        return np.tensordot(np.arange(4.0) ** 2, self.p, 1) - self.mean() ** 2


REALS = np.array([[-0.9, 3.0, 0.4], [2.0, -7.0, 0.1]])

# What SciPy calls it, at the latent function, and data.
CASES = {
    "Poisson": (kx.Poisson(EXPOSURE), scipy.stats.poisson(EXPOSURE * np.exp(F)), COUNTS),
    "Poisson, no exposure": (kx.Poisson(), scipy.stats.poisson(np.exp(F)), COUNTS),
    "negative binomial": (
        kx.NegativeBinomial(2.5, EXPOSURE),
        scipy.stats.nbinom(2.5, 2.5 / (2.5 + EXPOSURE * np.exp(F))),
        COUNTS,
    ),
    "Bernoulli": (kx.Bernoulli(), scipy.stats.bernoulli(P), COUNTS % 2),
    "probit": (
        kx.Bernoulli(link="probit"),
        scipy.stats.bernoulli(scipy.stats.norm.cdf(F)),
        COUNTS % 2,
    ),
    "binomial": (kx.Binomial(40), scipy.stats.binom(40, P), COUNTS),
    "Student": (kx.StudentT(4.0, 0.5), scipy.stats.t(4.0, F, 0.5), REALS),
    "gamma": (kx.Gamma(3.0), scipy.stats.gamma(3.0, scale=np.exp(F) / 3.0), COUNTS + 0.5),
    "categories": (kx.OrderedLogistic(CUTPOINTS), Categories(), COUNTS % 4),
    "beta": (kx.Beta(7.0), scipy.stats.beta(7.0 * P, 7.0 * (1 - P)), SHARES),
}
CALLABLES = {
    "Poisson of NumPyro": (lambda f: dist.Poisson(jnp.exp(f)), CASES["Poisson, no exposure"]),
    "Student of NumPyro": (lambda f: dist.StudentT(4.0, f, 0.5), CASES["Student"]),
}
CASES |= {
    name: (kx.DistributionLikelihood(function), *case[1:])
    for name, (function, case) in CALLABLES.items()
}
EVERYDAY = set(CASES) - {"Poisson, no exposure", "Bernoulli", "Student of NumPyro"}
ALL = pytest.mark.parametrize("name", everyday(CASES, EVERYDAY))
NODES = np.linspace(-9, 9, 2001)
STEP = 1e-5


def log_density_of(truth, y):
    return truth.logpmf(y) if hasattr(truth.dist, "logpmf") else truth.logpdf(y)


@eqx.filter_jit
def answers_of(likelihood, y, f, nodes):
    """All that these tests ask, in one program for each likelihood."""
    try:
        cdf = likelihood.cdf(y, f)
    except NotImplementedError:
        cdf = None
    variance, start = jnp.full(f.shape, 0.3), likelihood.start(y)
    every = jnp.concatenate([jnp.stack([f, f + STEP, f - STEP]), nodes])
    chosen = jnp.concatenate([jnp.stack([f, start, jnp.full(f.shape, 1.5)]), nodes])
    logs = jax.vmap(lambda f: likelihood.log_density(y, f))(chosen)
    return {
        "density": logs[0],
        "moments": (likelihood.mean(f), likelihood.variance(f)),
        "cdf": cdf,
        "derivatives": jax.vmap(lambda f: likelihood.derivatives(y, f))(every),
        "logs": logs[3:],
        "expected_derivatives": likelihood.expected_derivatives(y, f, variance),
        "expected": likelihood.expected(y, f, variance),
        "start": start,
        "at_start": logs[1].sum(),
        "at_a_constant": logs[2].sum(),
    }


@functools.cache
def answers(name):
    likelihood, _, y = CASES[name]
    return answers_of(likelihood, y, F, F + np.sqrt(0.3) * NODES[:, None, None])


@ALL
def test_densities_moments_and_distribution_functions(name):
    (likelihood, truth, y), found = CASES[name], answers(name)
    assert_close(found["density"], log_density_of(truth, y))
    assert_close(found["moments"], (truth.mean(), truth.var()))
    if found["cdf"] is None:
        assert isinstance(likelihood, kx.DistributionLikelihood)
    else:
        assert_close(found["cdf"], truth.cdf(y), rtol=1e-9)


@ALL
def test_derivatives_and_their_averages(name):
    """Averages over a normal function, beside a fine sum."""
    found = answers(name)
    weights = np.exp(-(NODES**2) / 2)
    weights /= weights.sum()
    slope, bend = found["derivatives"]
    averages = [np.tensordot(weights, x, 1) for x in (slope[3:], bend[3:], found["logs"])]
    assert_close(found["expected_derivatives"][0], averages[0], rtol=1e-5, atol=1e-5)
    assert_close(found["expected_derivatives"][1], averages[1], rtol=1e-5, atol=1e-4)
    assert_close(found["expected"], averages[2], rtol=1e-6)
    assert_close(bend[0], -(slope[1] - slope[2]) / (2 * STEP), rtol=1e-5, atol=1e-6)


@ALL
def test_a_search_starts_near_the_data(name):
    """At a function of far more density than one that is a constant."""
    found = answers(name)
    assert np.isfinite(found["start"]).all()
    assert found["at_start"] > found["at_a_constant"]


DRAWN = {"negative binomial", "probit", "Student", "gamma", "categories", "Poisson of NumPyro"}


@pytest.mark.parametrize("name", everyday(CASES, DRAWN))
def test_draws_have_the_moments(name):
    likelihood, truth, _ = CASES[name]
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.jit(jax.vmap(lambda key: likelihood.sample(key, jnp.asarray(F))))(keys)
    error = np.sqrt(truth.var() / 4000)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - truth.mean()), 5 * error)


def test_categories_share_out_all_probability():
    like = kx.OrderedLogistic(CUTPOINTS)
    assert_close(like.cutpoints, CUTPOINTS)
    found = response(like, jnp.asarray(F), jnp.zeros(F.shape), (0.5,))
    assert_close(found.category_probabilities, Categories().p)
    far = like.log_density(jnp.asarray([0.0, 3.0]), jnp.asarray([500.0, -500.0]))
    assert_close(far, [-501.5, -500.3])
    assert response(kx.Poisson(), jnp.zeros(1), jnp.zeros(1), ()).category_probabilities is None


def test_censored_data_are_only_known_to_lie_beyond():
    like = kx.CensoredNormal(0.25, lower=0.0, upper=np.array([2.0, 2.0, 5.0]))
    y = np.array([[-1.0, 1.0, 5.0], [0.0, 2.5, 4.0]])
    normal, upper = scipy.stats.norm(F, 0.5), np.array([[2.0, 2.0, 5.0]])
    above = np.where(y >= upper, normal.logsf(upper), normal.logpdf(y))
    expected = np.where(y <= 0, normal.logcdf(0.0), above)

    @jax.jit
    def asked(y, f):
        below, above = (like.cdf(jnp.full(F.shape, end), f) for end in (-0.1, 5.0))
        return like.log_density(y, f), like.derivatives(y, f), below, above

    density, (slope, bend), below, above = asked(y, F)
    assert_close(density, expected)
    assert np.isfinite(slope).all()
    assert (np.asarray(bend) > 0).all()
    assert_close(below, np.zeros(F.shape))
    assert_close(above, np.ones(F.shape))


WRONG_DATA = [
    (kx.Poisson(), [[1.0, -1.0]], r"counts.*got -1 at cell \(0, 1\)"),
    (kx.Poisson(), [[0.5, 1.0]], "counts.*got 0.5"),
    (kx.Bernoulli(), [[2.0, 1.0]], "0 or 1; got 2"),
    (kx.Binomial(3), [[4.0, 1.0]], "0 to `total_count`; got 4"),
    (kx.Gamma(), [[0.0, 1.0]], "positive; got 0"),
    (kx.OrderedLogistic([0.0, 1.0]), [[3.0, 1.0]], "categories: 0, 1, …, 2; got 3"),
    (kx.Beta(), [[1.0, 0.5]], "between 0 and 1, both left out; got 1"),
    (lambda f: dist.Poisson(jnp.exp(f)), [[1.5, 1.0]], "in its support"),
]


@pytest.mark.parametrize(("likelihood", "y", "message"), WRONG_DATA)
def test_data_outside_the_support_are_refused(likelihood, y, message):
    gp = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), ([0.0], [0.0, 1.0]), likelihood=likelihood)
    with pytest.raises(ValueError, match=message):
        gp.log_marginal_likelihood(np.array(y))


WRONG = [
    (lambda: kx.Poisson(exposure=-1.0), ValueError, "exposure. must be positive; got -1"),
    (lambda: kx.Poisson(exposure="many"), TypeError, "exposure must be an array"),
    (lambda: kx.Binomial(2.5), ValueError, "whole numbers"),
    (lambda: kx.Bernoulli(link="cloglog"), ValueError, "'logit' or 'probit'"),
    (lambda: kx.StudentT(scale=-1.0), ValueError, "scale must be positive"),
    (lambda: kx.OrderedLogistic([1.0, 0.0]), ValueError, "rising"),
    (lambda: kx.OrderedLogistic([]), ValueError, "rising"),
    (lambda: kx.CensoredNormal(0.1, lower=1.0, upper=0.0), ValueError, "below"),
    (lambda: kx.DistributionLikelihood(3.0), TypeError, "kx.Poisson"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


WRONG_MODELS = [
    ({"likelihood": kx.Poisson}, TypeError, r"write kx.Poisson\(\)"),
    ({"likelihood": kx.Poisson(np.ones(3))}, ValueError, r"`exposure`.*\(1, 2\).*\(3,\)"),
    ({"likelihood": lambda f: f}, TypeError, "NumPyro distribution.*got ArrayImpl"),
    ({"likelihood": kx.Poisson(), "noise": 0.1}, TypeError, "noise or a likelihood; got both"),
    ({"likelihood": kx.Poisson(), "approximation": "ep"}, ValueError, "'variational' or 'laplace'"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG_MODELS)
def test_models_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), ([0.0], [0.0, 1.0]), **options)


CLOSED = "Poisson", "Poisson, no exposure", "negative binomial", "gamma"


@eqx.filter_jit
def moments_of(likelihood, nodes, mean, variance):
    each = likelihood.response, likelihood.mean, likelihood.variance
    at_nodes = jax.vmap(lambda f: [one(f) for one in each])(nodes)
    return at_nodes, likelihood.moments(mean, variance)


@pytest.mark.parametrize(
    ("name", "sd"),
    everyday(
        [*((name, 0.5) for name in CASES), *((name, 5.0) for name in CLOSED)],
        [*((name, 0.5) for name in EVERYDAY), *((name, 5.0) for name in CLOSED[1:])],
    ),
)
def test_moments_of_responses(name, sd):
    """Beside fine sums, which reach where the square of a log-normal rate is."""
    likelihood, *_ = CASES[name]
    x = np.linspace(-30, 30, 6001)[:, None, None]
    weights = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    (rate, mean, noise), found = moments_of(likelihood, F + sd * x, F, np.full(F.shape, sd**2))
    for average, variance, value, own in (
        (found.response, found.response_variance, rate, 0),
        (found.observation, found.observation_variance, mean, noise),
    ):
        value = np.asarray(value)
        true = (weights * value).sum(axis=0)
        assert_close(average, true, rtol=1e-6, atol=1e-12)
        spread = (weights * (np.square(value - true) + np.asarray(own))).sum(axis=0)
        assert_close(variance, spread, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "sd"),
    everyday(
        product(["Poisson, no exposure", "binomial", "Student"], [0.5, 1.0, 20.0]),
        [("Poisson, no exposure", 20.0), ("binomial", 0.5), ("Student", 1.0), ("Student", 20.0)],
    ),
)
def test_densities_of_observations_that_say_more_than_is_known(name, sd):
    """Beside fine sums: 32 nodes over all that is known would miss what the data allow."""
    cases = {
        "Poisson, no exposure": (
            kx.Poisson(),
            np.array([0.0, 10_000.0, 30_000.0]),
            np.log(1e4),
            lambda y, f: scipy.stats.poisson.logpmf(y, np.exp(f)),
        ),
        "binomial": (
            kx.Binomial(10_000),
            np.array([0.0, 5_000.0, 10_000.0]),
            0.5,
            lambda y, f: scipy.stats.binom.logpmf(y, 10_000, scipy.special.expit(f)),
        ),
        "Student": (
            kx.StudentT(4.0, 0.01),
            np.array([-2.0, 0.3, 9.0]),
            0.0,
            lambda y, f: scipy.stats.t.logpdf(y, 4.0, f, 0.01),
        ),
    }
    likelihood, y, mean, log_density = cases[name]
    reach = min(40, 240 / sd)
    x = np.linspace(-reach, reach, 400_001)[:, None]
    logs = log_density(y, mean + sd * x) - x**2 / 2
    truth = scipy.special.logsumexp(logs, axis=0) + np.log(reach / 200_000 / np.sqrt(2 * np.pi))
    shape = jnp.zeros(3)
    found = log_predictive(likelihood, jnp.asarray(y), shape + mean, shape + sd**2)
    assert_close(found, truth, rtol=0, atol=0.01)


def test_probabilities_of_observations_that_say_more_than_is_known():
    """At all counts that are likely, beside fine sums."""
    mean, sd = np.log(1e4), 0.3
    y = np.round(np.exp(mean + sd * np.linspace(-3, 3, 41)))
    x = np.linspace(-9, 9, 4001)[:, None]
    weights = np.exp(-(x**2) / 2)
    truth = (weights * scipy.stats.poisson.cdf(y, np.exp(mean + sd * x))).sum(0) / weights.sum()
    shape = jnp.zeros(41)
    found = probability(kx.Poisson(), jnp.asarray(y), shape + mean, shape + sd**2)
    assert_close(found, truth, rtol=0, atol=2e-3)
    like = kx.CensoredNormal(1e-4, lower=0.0)
    outside = probability(like, jnp.array([-0.1, 0.0]), jnp.zeros(2), jnp.ones(2))
    assert_close(outside, [0.0, 0.5], rtol=0, atol=5e-3)


def test_rates_ask_for_no_quantiles_of_observations():
    """Those take a hundred times as long."""

    class Rates(kx.Poisson):
        def cdf(self, y, f):
            raise AssertionError

    found = response(Rates(), jnp.zeros(2), jnp.ones(2), (0.5,))
    assert_close(found.quantiles, np.ones((1, 2)))
    assert_close(found.observation_std, np.sqrt(found.observation_mean + found.std**2))
    with pytest.raises(AssertionError):
        _ = found.observation_quantiles


@pytest.mark.parametrize("dtype", everyday([np.float32, np.float64], [np.float32]))
def test_responses_far_from_zero(dtype):
    """Deviations that are small beside their means, counts beyond what the precision counts."""
    like, mean, variance = kx.StudentT(dtype(4.0), dtype(0.1)), dtype([1000.0]), dtype([0.01])
    found = response(like, jnp.asarray(mean), jnp.asarray(variance), ())
    assert_close(found.std, [0.1], rtol=1e-3)
    assert_close(found.observation_std, [np.sqrt(0.03)], rtol=1e-3)
    f, variance = dtype([18.0, 5.0]), dtype([1e-4, 400.0])
    found = response(kx.Poisson(), jnp.asarray(f), jnp.asarray(variance), (0.5,))
    assert_close(found.observation_quantiles[0], np.exp(f), rtol=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-10)])
def test_probabilities_of_many_counts(dtype, tolerance):
    a = np.array([0.5, 19.0, 20.0, 100.0, 999.0, 1000.0, 1e4, 1e6])[:, None]
    deviations = np.array([-30.0, -5.0, -2.0, 0.0, 1e-3, 2.0, 7.0, 30.0])
    x = np.maximum(a + np.sqrt(a) * deviations, 0).astype(dtype)
    x = np.concatenate([x, np.full((8, 1), np.inf, dtype), np.zeros((8, 1), dtype)], axis=1)
    truth = scipy.special.gammaincc(a, x.astype(float))
    a = np.broadcast_to(a, x.shape).astype(dtype)
    upper, lower = jax.jit(lambda *at: (upper_gamma(*at), lower_gamma(*at)))(a, jnp.asarray(x))
    assert_close(upper, truth, rtol=0, atol=tolerance)
    assert_close(lower, 1 - truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-7)])
def test_probabilities_of_many_trials(dtype, tolerance):
    sizes = (
        np.array([0.3, 0.5, 2.0, 30.0, 999.0, 1000.0, 1e4, 1e6, 1e8]).astype(dtype).astype(float)
    )
    a, b = sizes[:, None, None], sizes[:, None]
    deviation = np.sqrt(1 / a + 1 / b)
    log_odds = np.log(a / b) + deviation * np.array([-30.0, -5.0, -2.0, 0.0, 1e-3, 2.0, 5.0, 30.0])
    log_odds = log_odds.astype(dtype).astype(float)
    low = scipy.special.betainc(a, b, scipy.special.expit(log_odds))
    high = scipy.special.betainc(b, a, scipy.special.expit(-log_odds))
    ends = np.array([-np.inf, np.inf])
    at_ends = np.broadcast_arrays([[0.3], [2.0], [1e4]], 0.5, ends)
    inside = np.broadcast_arrays(a, b, log_odds)
    pairs = zip(inside, at_ends, strict=True)
    both = [np.concatenate([x.ravel(), end.ravel()]).astype(dtype) for x, end in pairs]
    found, found_at_ends = np.split(np.asarray(jax.jit(lower_beta)(*both)), [-6])
    found = found.reshape(low.shape)
    assert_close(found_at_ends, [0.0, 1.0] * 3, rtol=0)
    error = np.abs(np.where(log_odds < 0, low, 1 - high) - found)
    # Log odds themselves are rounded, to a part of their own deviation.
    rounding = np.finfo(dtype).eps * np.abs(np.log(a / b)) / deviation
    assert (error < tolerance + rounding).all()


MANY = {
    "binomial": (kx.Binomial(np.float32(1e6)), scipy.stats.binom(1e6, 0.5)),
    "negative binomial": (
        kx.NegativeBinomial(np.float32(1e6), np.float32(1e6)),
        scipy.stats.nbinom(1e6, 0.5),
    ),
    "gamma": (kx.Gamma(np.float32(1e6)), scipy.stats.gamma(1e6, scale=1e-6)),
    "Student": (kx.StudentT(np.float32(1e6), np.float32(1.0)), scipy.stats.t(1e6)),
}


@pytest.mark.parametrize("name", everyday(MANY, ["binomial"]))
def test_quantiles_of_many_counts_in_single_precision(name):
    likelihood, truth = MANY[name]
    f = jnp.zeros(1, jnp.float32)
    y = truth.ppf(np.array([0.01, 0.6])).astype(np.float32)
    found = eqx.filter_jit(likelihood.cdf)(jnp.asarray(y), jnp.zeros(2, jnp.float32))
    assert_close(found, truth.cdf(y.astype(float)), rtol=0, atol=3e-4)
    quantiles = response(likelihood, f, jnp.full(1, 1e-12, jnp.float32), (0.01, 0.6))
    off = (np.asarray(quantiles.observation_quantiles)[:, 0] - y) / truth.std()
    assert np.abs(off).max() < 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-3), (np.float64, 3e-8)])
def test_densities_of_many_counts(dtype, tolerance):
    """Their terms are of the order of the counts, of which single precision has seven digits."""
    y = np.array([0.0, 1.0, 15.0, 16.0, 1e4, 1e6], dtype)
    f = np.log(np.maximum(y + 2 * np.sqrt(y), 0.3)).astype(dtype)
    truth = scipy.stats.poisson.logpmf(y, np.exp(f.astype(float)))
    like = kx.Poisson()
    found = eqx.filter_jit(like.log_density)(y, f)
    assert_close(found, truth, rtol=0, atol=tolerance)
    variance = (0.1 / (y + 1)).astype(dtype)
    rate = np.exp(f.astype(float))
    excess = rate * np.expm1(variance.astype(float) / 2)
    found = eqx.filter_jit(like.expected)(y, f, variance)
    assert_close(found, truth - excess, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    everyday([(np.float32, 4e-3), (np.float64, 1e-8)], [(np.float32, 4e-3)]),
)
def test_densities_of_many_trials_and_of_uneven_counts(dtype, tolerance):
    """Their terms are of the order of the counts as well."""
    y = np.array([0.0, 1.0, 15.0, 1e4, 1e6], dtype)
    f = np.array([-2.0, 0.3, 2.5, 9.2, 13.8], dtype)
    uneven = jax.jit(lambda r, y, f: kx.NegativeBinomial(r).log_density(y, f))
    for r in (dtype(0.01), dtype(3.0), dtype(1e4)):
        truth = scipy.stats.nbinom.logpmf(y, float(r), 1 / (1 + np.exp(f.astype(float)) / float(r)))
        assert_close(uneven(r, y, f), truth, rtol=tolerance / 100, atol=tolerance)
    f = np.array([-14.0, -14.0, -12.0, -5.3, 0.001], dtype)
    truth = scipy.stats.binom.logpmf(y, 2_000_000, scipy.special.expit(f.astype(float)))
    found = eqx.filter_jit(kx.Binomial(dtype(2_000_000)).log_density)(y, f)
    assert_close(found, truth, rtol=tolerance / 100, atol=tolerance)
    slope, bend = eqx.filter_jit(kx.Beta(dtype(10)).derivatives)(dtype([1e-12]), dtype([-60]))
    assert np.isfinite(slope).all()
    assert np.isfinite(bend).all()
    assert np.isfinite(jax.jit(jax.grad(lambda *at: uneven(*at).sum()))(dtype(3), y, f))


def test_scores_of_none_by_a_callable():
    like = kx.DistributionLikelihood(lambda f: dist.Poisson(jnp.exp(f)))
    y, mean = jnp.asarray([0.0, 3.0]), jnp.asarray([0.5, 1.0])
    found = log_predictive(like, y, mean, jnp.full(2, 0.1))
    assert_close(found, log_predictive(kx.Poisson(), y, mean, jnp.full(2, 0.1)), rtol=1e-8)
