"""Processes with a likelihood: sites, evidence and gradient beside dense NumPy and SciPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import kronax as kx
import kronax.gp.sites.search
from kronax.gp.sites.evidence import evidence
from kronax.gp.sites.leave_one_out import check_cavities
from tests.everyday import everyday, full
from tests.gp import dense

RNG = np.random.default_rng(1)
SPACE, TIME = np.array([0.0, 1.0, 2.5, 3.0, 4.2]), np.arange(4.0)
PRIOR = 0.7 * np.kron(dense.matern52(SPACE, SPACE, 2.0), dense.matern32(TIME, TIME, 3.0))
FIELD = 0.5 + np.linalg.cholesky(PRIOR + 1e-9 * np.eye(20)) @ RNG.normal(size=20)
EXPOSURE = RNG.uniform(0.5, 3.0, size=(5, 4))
SEEN = np.ones((5, 4), bool)
SEEN[1, 2] = SEEN[3, 0] = SEEN[3, 3] = False

COUNTS = RNG.poisson(EXPOSURE * np.exp(FIELD.reshape(5, 4))).astype(float)
OFTEN = (RNG.random(20) < scipy.special.expit(FIELD)).reshape(5, 4).astype(float)
OUTLIERS = FIELD.reshape(5, 4) + 0.1 * RNG.normal(size=(5, 4))
OUTLIERS[2, 1] += 4.0
LIKELIHOODS = {
    "Poisson": (kx.Poisson(EXPOSURE), COUNTS),
    "Bernoulli": (kx.Bernoulli(), OFTEN),
    "Student": (kx.StudentT(df=4.0, scale=0.1), OUTLIERS),
}
WAYS = {
    "dense": {},
    "filtered": {"structure": (None, "markov")},
    "iterative": {"gaps": "iterative"},
}


def model(likelihood, **options):
    kernels = (0.7 * kx.Matern52(2.0), kx.Matern32(3.0))
    return kx.GridGP(kernels, (SPACE, TIME), mean=0.5, likelihood=likelihood, **options)


def data(name, gaps=True):
    y = LIKELIHOODS[name][1]
    return np.where(SEEN, y, np.nan) if gaps else y


# Most tests are of this model and these data, so that they share what is compiled.
POISSON, GAPPY = model(kx.Poisson(EXPOSURE)), data("Poisson")


@pytest.fixture(scope="module")
def post():
    return POISSON.condition(GAPPY)


@eqx.filter_jit
def averages(likelihood, y, mean, variance):
    slope, bend = likelihood.expected_derivatives(y, mean, variance)
    return likelihood.expected(y, mean, variance), slope, bend


def nearest_normal(likelihood, y, seen, prior=PRIOR, centre=0.5):
    """The normal distribution nearest to the posterior, by plain minimisation over `m` and `W`."""
    n, y = len(prior), jnp.asarray(y.ravel())
    inverse = np.linalg.inv(prior)
    if likelihood.cell_fields and likelihood.exposure is not None:
        likelihood = kx.Poisson(likelihood.exposure.ravel())

    def parts(raw):
        weights, log_precision = raw[:n], raw[n:]
        precision = np.where(seen, np.exp(log_precision), 0.0)
        covariance = np.linalg.inv(inverse + np.diag(precision))
        return centre + prior @ weights, covariance, weights, precision

    def loss(raw):
        mean, covariance, weights, precision = parts(raw)
        variance = np.diag(covariance)
        expected, slope, bend = averages(likelihood, y, mean, variance)
        fit = np.where(seen, expected, 0.0).sum()
        divergence = np.trace(inverse @ covariance) + weights @ prior @ weights - n
        divergence += np.linalg.slogdet(prior)[1] - np.linalg.slogdet(covariance)[1]
        slope, bend = (np.where(seen, x, 0.0) for x in (slope, bend))
        by_weights = prior @ (slope - weights)
        by_precision = 0.5 * np.square(covariance) @ (bend - precision) * precision
        return divergence / 2 - fit, -np.concatenate([by_weights, by_precision])

    start = np.zeros(2 * n)
    found = scipy.optimize.minimize(loss, start, jac=True, tol=1e-14, options={"maxiter": 2000})
    mean, covariance, *_ = parts(found.x)
    return mean, np.diag(covariance), -found.fun


@pytest.mark.parametrize(
    ("name", "way", "gaps"),
    everyday(
        itertools.product(["Poisson", "Bernoulli"], WAYS, [False, True]),
        [
            ("Poisson", "dense", True),
        ],
    ),
)
def test_the_nearest_normal_distribution(name, way, gaps):
    likelihood, y = LIKELIHOODS[name][0], data(name, gaps)
    seen = SEEN.ravel() if gaps else np.ones(20, bool)
    mean, variance, bound = nearest_normal(likelihood, LIKELIHOODS[name][1], seen)
    gp = model(likelihood, **WAYS[way])
    post = gp.condition(y)
    tolerance = 1e-3 if way == "iterative" else 1e-5
    np.testing.assert_allclose(gp.log_marginal_likelihood(y), bound, rtol=1e-8)
    sd = np.sqrt(variance)
    np.testing.assert_allclose((post.mean().ravel() - mean) / sd, 0, atol=tolerance)
    np.testing.assert_allclose(post.variance().ravel(), variance, rtol=tolerance)


@pytest.mark.parametrize("name", everyday(LIKELIHOODS, ["Student"]))
def test_the_mode_of_laplace(name):
    likelihood, y = LIKELIHOODS[name][0], LIKELIHOODS[name][1]
    post = model(likelihood, approximation="laplace").condition(y)
    mean = jnp.asarray(post.mean())
    slope, _ = likelihood.derivatives(jnp.asarray(y), mean)
    np.testing.assert_allclose(mean.ravel() - 0.5, PRIOR @ slope.ravel(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "way", "approximation"),
    everyday(
        [
            *itertools.product(["Poisson"], WAYS, ["variational", "laplace"]),
            ("Student", "dense", "variational"),
            ("Student", "dense", "laplace"),
        ],
        [("Poisson", "iterative", "variational"), ("Poisson", "filtered", "laplace")],
    ),
)
def test_the_gradient_is_that_of_the_converged_evidence(name, way, approximation):
    likelihood, y = LIKELIHOODS[name][0], data(name)
    gp = model(likelihood, approximation=approximation, **WAYS[way]).observing(y)
    grid = gp.check_data(y)
    raw, build = kx.unconstrain(gp)
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda raw: build(raw).checked_log_likelihood(grid))
    )
    (value, gradient), h = value_and_grad(raw), 1e-4
    if (name, approximation) == ("Poisson", "variational"):
        *_, bound = nearest_normal(likelihood, COUNTS, SEEN.ravel())
        np.testing.assert_allclose(value, bound, rtol=1e-8)
    largest = max(abs(float(g)) for g in gradient.values())
    for path in raw:
        above, below = (value_and_grad({**raw, path: raw[path] + s})[0] for s in (h, -h))
        error = abs(float(gradient[path] - (above - below) / (2 * h))) / largest
        assert error < (2e-5 if name == "Student" else 1e-5), path


def test_gaps_of_a_wide_prior_leave_the_gradient_alone():
    """Rates overflow there, and count for nothing."""
    gp = model(kx.Gamma(2.0), observed=SEEN)
    gp = kx.replace(gp, {"variance": 1e6})
    y = np.where(SEEN, np.exp(FIELD.reshape(5, 4)), np.nan)
    grid = gp.check_data(y)

    @jax.jit
    @jax.value_and_grad
    def at(a):
        return evidence(kx.replace(gp, {"likelihood.concentration": a}), grid)

    h = 1e-4
    (below, _), (_, found), (above, _) = (at(2.0 + step) for step in (-h, 0.0, h))
    np.testing.assert_allclose(found, (above - below) / (2 * h), rtol=1e-4)


FROZEN = ("mean.value", "kernels[1].lengthscale")


def test_equal_counts_of_unequal_exposures_can_be_fitted():
    ones = np.ones((5, 4))
    kx.fit(POISSON, np.where(SEEN, ones, np.nan), freeze=FROZEN, num_steps=60, progress=False)
    with pytest.raises(ValueError, match=r"must vary.*got 1.0 in every cell"):
        kx.fit(model(kx.Poisson()), ones, num_steps=1, progress=False)


def test_a_second_derivative_raises():
    def value(variance):
        return evidence(kx.replace(POISSON, {"variance": variance}), jnp.asarray(COUNTS))

    with pytest.raises(kx.DerivativeOrderError, match="finite differences"):
        jax.eval_shape(jax.hessian(value), jnp.asarray(0.7))


def sampled_evidence(post):
    """By importance sampling from the approximation itself, with many draws."""
    covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.diag(post.sites.precision.ravel()))
    mean = np.asarray(post.mean()).ravel()
    q = scipy.stats.multivariate_normal(mean, (covariance + covariance.T) / 2)
    f = q.rvs(40_000, random_state=np.random.default_rng(0))
    prior = scipy.stats.multivariate_normal(np.full(20, 0.5), PRIOR)
    rate = (EXPOSURE.ravel() * np.exp(f))[:, SEEN.ravel()]
    logs = scipy.stats.poisson.logpmf(COUNTS[SEEN], rate).sum(axis=1)
    logs += prior.logpdf(f) - q.logpdf(f)
    return scipy.special.logsumexp(logs) - np.log(len(f))


@pytest.mark.parametrize("approximation", everyday(["variational", "laplace"], ["variational"]))
def test_the_check_finds_the_true_evidence(post, approximation):
    gp, truth = model(kx.Poisson(EXPOSURE), approximation=approximation), sampled_evidence(post)
    found = gp.condition(GAPPY).check_approximation(jax.random.key(0), num_draws=2000)
    assert abs(found.evidence - truth) < 0.01
    first, value = found.evidence - found.correction, gp.log_marginal_likelihood(GAPPY)
    np.testing.assert_allclose(first, value, rtol=1e-9)
    if approximation == "variational":
        assert abs(value - truth) < found.correction + 0.01
        assert found.is_close
        assert "The approximation is close." in repr(found)


def test_the_check_finds_where_the_approximation_is_bad():
    post = model(kx.StudentT(df=1.5, scale=0.1)).condition(OUTLIERS)
    found = post.check_approximation(jax.random.key(0), num_draws=1000)
    assert not found.is_close
    assert "NUTS" in repr(found)


def test_responses_are_those_of_draws(post):
    found = post.response(quantiles=(0.1, 0.9))
    assert found.name == "rate"
    f = np.asarray(post.sample(jax.random.key(0), sample_shape=4000))
    y = np.asarray(post.sample(jax.random.key(1), sample_shape=4000, response=True))
    assert (y == np.round(y)).all()
    rate_error = np.exp(f).std(axis=0) / np.sqrt(4000)
    np.testing.assert_array_less(np.abs(np.exp(f).mean(axis=0) - found.mean), 5 * rate_error)
    np.testing.assert_allclose(np.exp(f).std(axis=0), found.std, rtol=0.1)
    np.testing.assert_allclose(np.quantile(np.exp(f), 0.9, axis=0), found.quantiles[1], rtol=0.1)
    error = y.std(axis=0) / np.sqrt(4000)
    np.testing.assert_array_less(np.abs(y.mean(axis=0) - found.observation_mean), 5 * error)
    np.testing.assert_allclose(y.std(axis=0), found.observation_std, rtol=0.1)
    above = (y <= np.asarray(found.observation_quantiles[1])).mean(axis=0)
    below = (y < np.asarray(found.observation_quantiles[1])).mean(axis=0)
    np.testing.assert_array_less(0.88, above)
    np.testing.assert_array_less(below, 0.92)


def test_new_places_ask_for_their_exposure_by_name(post):
    new = {"axes": (None, [4.0, 5.0])}
    with pytest.raises(TypeError, match=r"`exposure` at the new places.*Pass exposure="):
        post.response(**new)
    with pytest.raises(KeyError, match=r"'exposures'.*Did you mean 'exposure'"):
        post.response(**new, exposures=1.0)
    with pytest.raises(ValueError, match=r"`exposure`.*\(5, 2\).*\(3,\)"):
        post.response(**new, exposure=np.ones(3))
    one = post.response(**new, quantiles=(), exposure=1.0)
    ten = post.response(**new, quantiles=(), exposure=10)
    np.testing.assert_allclose(one.mean, ten.mean)
    np.testing.assert_allclose(one.observation_mean * 10, ten.observation_mean)
    at = post.response(points=[[1.0, 4.0]], quantiles=(), exposure=1.0)
    np.testing.assert_allclose(at.mean[0], one.mean[1, 0], rtol=1e-6)
    with pytest.raises(TypeError, match=r"post.response\(\)"):
        post.variance(include_noise=True)


def test_observations_left_out_are_those_of_the_cavity(post):
    """Beside the posterior with the sites of all other cells."""
    found = post.leave_one_out()
    precision, target = (np.asarray(x).ravel() for x in (post.sites.precision, post.sites.target))
    for cell in (0, 7, 19):
        others = precision.copy()
        others[cell] = 0
        covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.diag(others))
        mean = 0.5 + covariance @ (others * (target - 0.5))
        m, v = mean[cell], covariance[cell, cell]
        np.testing.assert_allclose(found.function_mean.ravel()[cell], m, rtol=1e-5)
        np.testing.assert_allclose(found.function_variance.ravel()[cell], v, rtol=1e-5)
        f = m + np.sqrt(v) * np.linspace(-8, 8, 4001)
        weights = scipy.stats.norm.pdf(np.linspace(-8, 8, 4001))
        density = scipy.stats.poisson.pmf(COUNTS.ravel()[cell], EXPOSURE.ravel()[cell] * np.exp(f))
        truth = np.log(density @ weights / weights.sum())
        np.testing.assert_allclose(found.log_density().ravel()[cell], truth, rtol=1e-6)
    assert np.isnan(found.mean[1, 2])
    np.testing.assert_allclose(found.log_score, np.nansum(found.log_density()))
    places = found.probability_integral_transform(jax.random.key(0))
    assert ((places > 0) & (places < 1)).sum() == SEEN.sum()


def test_cavities_that_are_not_known_are_refused(post):
    """As where draws make a variance larger than that of its site alone."""
    with pytest.raises(kx.ConvergenceError, match=r"at 1 cells.*num_draws"):
        check_cavities(post.sites, jnp.ones((5, 4)).at[0, 0].set(-2.0))


def test_the_way_is_measured_at_the_sites():
    """A plan of iterations that is open asks the data, whichever verb comes first."""
    axes = (np.arange(54.0), np.arange(70.0))
    gp = kx.GridGP((kx.RBF(5.0), kx.RBF(5.0)), axes, likelihood=kx.Poisson())
    assert "the first use measures" in gp.describe()
    counts = jnp.ones((54, 70))
    both = gp.measuring(jnp.stack([counts, counts]))
    assert both.measured is not None
    assert both.measured == gp.measuring(counts).measured
    assert "measured:" in both.describe()


def test_densities_of_new_observations(post):
    single = post.log_prob(COUNTS, pointwise=True)
    assert single.shape == (5, 4)
    one = {"axes": (SPACE[:1], TIME[:1]), "exposure": 1.0}
    joint = post.log_prob([[2]], **one, key=jax.random.key(0), num_draws=20_000)
    np.testing.assert_allclose(joint, post.log_prob([[2]], **one, pointwise=True)[0, 0], rtol=0.02)
    with pytest.raises(ValueError, match="counts"):
        post.log_prob(COUNTS - 9.0, pointwise=True)


def test_a_fit_finds_the_maximum_and_its_errors():
    counts = np.ma.MaskedArray(COUNTS.astype(int), ~SEEN)
    gp = POISSON.initialise(counts)
    result = kx.fit(gp, counts, freeze=FROZEN, num_steps=60, progress=False)
    assert result.converged, result.reason
    raw, build = kx.unconstrain(result.model, freeze=FROZEN)
    value = lambda raw: float(build(raw).log_marginal_likelihood(GAPPY))  # noqa: E731
    for path in raw:
        above, below = (value({**raw, path: raw[path] + h}) for h in (1e-4, -1e-4))
        assert abs(above - below) / 2e-4 < 1e-3
    table = repr(result.summary())
    assert "standard error" in table


def test_the_evidence_is_a_factor_of_a_numpyro_model():
    """With its gradient, by which NUTS draws the parameters alone."""
    prior = dist.LogNormal(0.0, 1.0)

    def program():
        scale = numpyro.sample("scale", prior)
        gp = kx.replace(POISSON, {"variance": scale})
        numpyro.factor("y", gp.log_marginal_likelihood(GAPPY))

    @jax.jit
    @jax.value_and_grad
    def density(scale):
        return numpyro.infer.util.log_density(program, (), {}, {"scale": scale})[0]

    h = 1e-4
    (below, _), (value, slope), (above, _) = (density(0.7 + step) for step in (-h, 0.0, h))
    expected = POISSON.log_marginal_likelihood(GAPPY) + prior.log_prob(0.7)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(slope, (above - below) / (2 * h), rtol=1e-4)
    with pytest.raises(NotImplementedError, match=r"numpyro.factor"):
        POISSON.numpyro_dist()


def test_coefficients_that_are_integrated_out():
    """Beside a process whose kernel has the function of the mean in it."""
    kernels = (0.7 * kx.Matern52(2.0), kx.Matern32(3.0))
    mean = kx.MarginalMean(kx.ConstantMean(0.0), variance=4.0)
    gp = kx.GridGP(kernels, (SPACE, TIME), mean=mean, likelihood=kx.Poisson(EXPOSURE))
    wide = nearest_normal(kx.Poisson(EXPOSURE), COUNTS, SEEN.ravel(), PRIOR + 4.0, 0.0)
    post, sd = gp.condition(GAPPY), np.sqrt(wide[1])
    np.testing.assert_allclose((post.mean().ravel() - wide[0]) / sd, 0, atol=1e-5)
    np.testing.assert_allclose(post.variance().ravel(), wide[1], rtol=1e-5)
    np.testing.assert_allclose(gp.log_marginal_likelihood(GAPPY), wide[2], rtol=1e-8)
    terms = {"field": kernels, "level": (kx.Constant(4.0), kx.Constant(1.0))}
    other = kx.GridGP(terms=terms, axes=(SPACE, TIME), likelihood=kx.Poisson(EXPOSURE))
    field = PRIOR @ np.linalg.solve(PRIOR + 4.0, wide[0])
    found = other.condition(GAPPY).terms["field"].mean()
    np.testing.assert_allclose((found.ravel() - field) / sd, 0, atol=1e-5)


def test_single_precision():
    kernels = (0.7 * kx.Matern52(np.float32(2.0)), kx.Matern32(np.float32(3.0)))
    gp = kx.GridGP(kernels, (SPACE, TIME), mean=np.float32(0.5), likelihood=kx.Poisson(EXPOSURE))
    assert gp.dtype == np.float32
    assert gp.check_data(COUNTS.astype(int)).dtype == np.float32
    # Counts with gaps are numbers of double precision.
    wide, post = POISSON.condition(GAPPY), gp.condition(GAPPY)
    assert post.mean().dtype == np.float32
    np.testing.assert_allclose(post.mean(), wide.mean(), atol=2e-3)
    np.testing.assert_allclose(post.variance(), wide.variance(), rtol=5e-3)
    truth = POISSON.log_marginal_likelihood(GAPPY)
    np.testing.assert_allclose(gp.log_marginal_likelihood(GAPPY), truth, rtol=1e-5)


@pytest.mark.parametrize("way", everyday(WAYS, ["dense"]))
def test_the_evidence_has_the_certificate_of_its_density(way):
    gp = model(kx.Poisson(EXPOSURE), **WAYS[way])
    found = gp.log_marginal_likelihood_estimate(GAPPY)
    np.testing.assert_allclose(found.value, gp.log_marginal_likelihood(GAPPY), rtol=1e-9)
    assert (found.error > 0) == (way == "iterative")


class Counts(kx.Poisson):
    """A class of its own, so that its programs are compiled anew and serve nobody else."""


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("log_marginal_likelihood", r"gp.initialise\(y\)"),
        full("condition", "after 1 of"),
    ],
)
def test_a_search_that_does_not_converge_says_so(verb, words, monkeypatch):
    monkeypatch.setattr(kronax.gp.sites.search, "MOST_STEPS", 1)
    gp = model(Counts(2 * EXPOSURE))
    with pytest.raises(kx.ConvergenceError, match=words):
        getattr(gp, verb)(COUNTS)


def test_what_serves_normal_data_alone_says_so(post):
    with pytest.raises(NotImplementedError, match="likelihood"):
        post.diagnostics()


def test_many_data_sets_have_one_evidence_each():
    both = np.stack([GAPPY, np.where(SEEN, COUNTS[::-1], np.nan)])
    found = POISSON.log_marginal_likelihood(both)
    assert found.shape == (2,)
    np.testing.assert_allclose(found[0], POISSON.log_marginal_likelihood(GAPPY), rtol=1e-9)


def test_counts_may_come_in_any_form():
    """Whole numbers, and gaps as NaN, a masked array or `observed`."""
    gappy = POISSON.log_marginal_likelihood(GAPPY)
    masked = np.ma.MaskedArray(COUNTS.astype(int), ~SEEN)
    np.testing.assert_allclose(POISSON.log_marginal_likelihood(masked), gappy)
    told = model(kx.Poisson(EXPOSURE), observed=SEEN)
    np.testing.assert_allclose(told.log_marginal_likelihood(COUNTS.astype(int)), gappy)
