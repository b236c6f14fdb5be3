"""Deviations, quantiles, intervals and covariances at points, beside dense NumPy and SciPy."""

import jax
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.gp.dense import SPACE, squared_exponential, two_axes
from tests.tolerances import assert_close

RNG = np.random.default_rng(18)
X = np.stack([RNG.uniform(-0.2, 1.6, 4), RNG.uniform(-1, 1, 4)], axis=1)
CASE = two_axes()
POST = CASE.gp.condition(CASE.y)
SITES = np.array([0.0, 0.6, 0.7, 1.9])
COUNTS = np.array([0.0, 3.0, 1.0, 5.0])


@pytest.fixture(scope="module")
def counts():
    gp = kx.GridGP((0.8 * kx.RBF(0.7),), (SITES,), likelihood=kx.Poisson(), mean=0.3)
    return gp.condition(COUNTS)


def of_counts(post, points):
    """The function given the sites: dense, by the precisions that the search has found."""
    prior = 0.8 * squared_exponential(SITES, SITES, 0.7)
    cross = 0.8 * squared_exponential(points, SITES, 0.7)
    solved = np.linalg.solve(prior + np.diag(1 / np.asarray(post.sites.precision)), cross.T)
    return 0.8 * squared_exponential(points, points, 0.7) - cross @ solved


def at_points():
    mean, covariance = CASE.posterior(list(X.T))
    chosen = np.ravel_multi_index((np.arange(4),) * 2, (4, 4))
    return mean.ravel()[chosen], covariance[np.ix_(chosen, chosen)]


def test_the_deviation_is_the_root_of_the_variance():
    new = {"axes": [np.array([0.2, 2.0]), None]}
    mean, covariance = CASE.posterior([np.array([0.2, 2.0]), SPACE])
    assert_close(POST.std(**new), np.sqrt(np.diagonal(covariance)).reshape(mean.shape))
    dense = np.sqrt(np.diagonal(covariance) + 0.1).reshape(mean.shape)
    assert_close(POST.std(**new, include_noise=True), dense)
    assert_close(POST.std(points=X), np.sqrt(np.diagonal(at_points()[1])))


@pytest.mark.parametrize("q", [0.3, [0.025, 0.5, 0.975], np.array([[0.1, 0.2], [0.7, 0.999]])])
def test_quantiles_are_those_of_normal_marginals(q):
    mean, covariance = at_points()
    for noise in (0.0, 0.1):
        sd = np.sqrt(np.diagonal(covariance) + noise)
        expected = scipy.stats.norm.ppf(np.asarray(q)[..., None], mean, sd)
        got = POST.quantile(q, points=X, include_noise=bool(noise))
        assert got.shape == (*np.shape(q), 4)
        assert_close(got, expected)
    with pytest.raises(TypeError, match="include_noise=True only"):
        POST.quantile(q, noise=0.2)


def test_quantiles_of_a_batch_lead_it():
    batch = CASE.gp.condition(np.stack([CASE.y, 2 * CASE.y, -CASE.y]))
    got = batch.quantile([0.1, 0.9])
    assert got.shape == (2, 3, *CASE.grid)
    mean, covariance = CASE.posterior(y=-CASE.y)
    sd = np.sqrt(np.diagonal(covariance)).reshape(CASE.grid)
    assert_close(got[1, 2], mean + scipy.stats.norm.ppf(0.9) * sd)


def test_an_interval_holds_its_probability():
    mean, covariance = CASE.posterior()
    sd = np.sqrt(np.diagonal(covariance)).reshape(mean.shape)
    expected = scipy.stats.norm.interval(0.9, mean, sd)
    lower, upper = POST.interval(0.9)
    assert_close(lower, expected[0])
    assert_close(upper, expected[1])
    assert_close(POST.interval()[1], scipy.stats.norm.interval(0.95, mean, sd)[1])


def test_a_traced_probability():
    assert_close(jax.jit(lambda q: POST.quantile(q, points=X))(0.9), POST.quantile(0.9, points=X))


def test_the_covariance_at_points():
    expected = at_points()[1]
    covariance = POST.covariance(points=X)
    assert_close(covariance.to_dense(), expected)
    assert_close(np.asarray(covariance), expected)
    assert_close(covariance @ np.arange(4.0), expected @ np.arange(4.0))
    noisy = POST.covariance(points=X, include_noise=True)
    assert_close(noisy.to_dense(), expected + 0.1 * np.eye(4))
    levels = np.linspace(0.1, 0.4, 4)
    noisy = POST.covariance(points=X, include_noise=True, noise=levels)
    assert_close(noisy.to_dense(), expected + np.diag(levels))
    with pytest.raises(TypeError, match="got both"):
        POST.covariance([None, None], points=X)


def test_the_function_behind_counts(counts):
    points = np.array([0.1, 0.65, 3.0])
    dense = of_counts(counts, points)
    assert_close(counts.covariance(points=points[:, None]).to_dense(), dense)
    assert_close(counts.std(axes=[points]), np.sqrt(np.diagonal(dense)))
    mean = np.asarray(counts.mean(axes=[points]))
    expected = scipy.stats.norm.interval(0.8, mean, np.sqrt(np.diagonal(dense)))
    assert_close(counts.interval(0.8, axes=[points])[0], expected[0])
    assert_close(counts.quantile(0.9, axes=[points]), expected[1])
    for ask in (counts.std, counts.interval, counts.covariance):
        with pytest.raises(TypeError, match=r"post\.response\(\)"):
            ask(include_noise=True)


def test_a_batch_of_counts(counts):
    both = counts.model.condition(np.stack([COUNTS, COUNTS]))
    lower, upper = both.interval(0.8)
    assert_close(upper, np.stack([np.asarray(counts.quantile(0.9))] * 2))
    assert_close(lower, both.quantile(0.1))
    assert_close(both.std()[1], counts.std())


def test_a_term_has_them_as_well():
    x, z = np.linspace(0, 1, 6), np.linspace(0, 2, 4)
    trend, wave, space = kx.RBF(0.8), kx.RBF(0.1), kx.RBF(0.7)
    gp = kx.GridGP(
        terms={"trend": (2.0 * trend, space), "wave": (0.5 * wave, space)}, axes=(x, z), noise=0.2
    )
    term = gp.condition(RNG.normal(size=(6, 4))).terms["wave"]
    own, other = (
        np.kron(v * squared_exponential(x, x, s), squared_exponential(z, z, 0.7))
        for v, s in ((0.5, 0.1), (2.0, 0.8))
    )
    dense = own - own @ np.linalg.solve(own + other + 0.2 * np.eye(24), own)
    cells = [3, 9, 22]
    points = np.stack([x[np.array(cells) // 4], z[np.array(cells) % 4]], axis=1)
    assert_close(term.covariance(points=points).to_dense(), dense[np.ix_(cells, cells)])
    sd = np.sqrt(np.diagonal(dense)).reshape(6, 4)
    assert_close(term.std(), sd)
    expected = scipy.stats.norm.interval(0.5, np.asarray(term.mean()), sd)
    assert_close(term.interval(0.5)[1], expected[1])
    assert_close(term.quantile(0.25), expected[0])


def test_a_term_that_stands_where_the_noise_does():
    x, z = np.linspace(0, 1, 5), np.linspace(0, 2, 3)
    gp = kx.GridGP(
        terms={"field": (kx.RBF(0.4), kx.RBF(0.7)), "own": (0.6 * kx.RBF(0.2), kx.White(1.0))},
        axes=(x, z),
        noise=0.2,
    )
    term = gp.condition(RNG.normal(size=(5, 3))).terms["own"]
    own = np.kron(0.6 * squared_exponential(x, x, 0.2), np.eye(3))
    other = np.kron(squared_exponential(x, x, 0.4), squared_exponential(z, z, 0.7))
    dense = own - own @ np.linalg.solve(own + other + 0.2 * np.eye(15), own)
    cells = [1, 4, 10]
    points = np.stack([x[np.array(cells) // 3], z[np.array(cells) % 3]], axis=1)
    assert_close(term.covariance(points=points).to_dense(), dense[np.ix_(cells, cells)])


def test_a_latent_field_that_is_known():
    gp = kx.GridGP((kx.RBF(0.7),), (SITES,), noise=0.1)
    post, new = gp.latent_condition(COUNTS, jitter=1e-3), [np.array([0.3, 2.5])]
    prior = squared_exponential(SITES, SITES, 0.7) + 1e-3 * np.eye(4)
    cross = squared_exponential(new[0], SITES, 0.7)
    dense = 1 + 1e-3 - np.sum(cross * np.linalg.solve(prior, cross.T).T, axis=1)
    mean = cross @ np.linalg.solve(prior, COUNTS)
    assert_close(post.std(new), np.sqrt(dense))
    lower, upper = post.interval(0.9, new)
    assert_close(lower, scipy.stats.norm.ppf(0.05, mean, np.sqrt(dense)))
    assert_close(upper, post.quantile(0.95, new))


@pytest.mark.parametrize(
    ("ask", "error", "match"),
    [
        (lambda: POST.interval(95), ValueError, "between 0 and 1, 0.95 for 95 %; got 95"),
        (lambda: POST.interval((0.1, 0.9)), TypeError, "one number"),
        (lambda: POST.quantile(1.0), ValueError, "between 0 and 1; got 1.0"),
        (lambda: POST.quantile("median"), TypeError, "got 'median'"),
        (lambda: POST.quantile(np.nan), ValueError, "got nan"),
    ],
)
def test_what_is_no_probability_raises(ask, error, match):
    with pytest.raises(error, match=match):
        ask()
