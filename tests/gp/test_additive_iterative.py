"""Additive models without an exact decomposition: everything beside the dense oracle."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kronax as kx
from kronax.gp.posterior.scattered import covariance_at, scattered_points

TIME, SPACE = np.linspace(0.0, 4.0, 12), np.linspace(0.0, 1.0, 8)
GRID = (12, 8)
AXES = {"time": TIME, "space": SPACE}
NOISE, LEVEL = 0.05, 0.3


def matern32(x, z, scale):
    r = np.sqrt(3) * np.abs(x[:, None] - z[None]) / scale
    return (1 + r) * np.exp(-r)


def matern12(x, z, scale):
    return np.exp(-np.abs(x[:, None] - z[None]) / scale)


def rbf(x, z, scale):
    return np.exp(-(((x[:, None] - z[None]) / scale) ** 2) / 2)


def make(**options):
    """Two of the terms share a kernel of space."""
    space = kx.Matern32(0.5)
    terms = {
        "trend": {"time": 2.0 * kx.RBF(2.0), "space": space},
        "weather": {"time": 0.5 * kx.Matern32(0.5), "space": kx.RBF(0.3)},
        "local": {"time": 0.3 * kx.Matern12(0.3), "space": space},
    }
    options = {"noise": NOISE, "mean": LEVEL, "gaps": "iterative", **options}
    return kx.GridGP(terms=terms, axes=AXES, **options)


def covariances(rows, columns):
    """One dense matrix per term between two grids."""
    (t, s), (u, v) = rows, columns
    return {
        "trend": 2.0 * np.kron(rbf(t, u, 2.0), matern32(s, v, 0.5)),
        "weather": 0.5 * np.kron(matern32(t, u, 0.5), rbf(s, v, 0.3)),
        "local": 0.3 * np.kron(matern12(t, u, 0.3), matern32(s, v, 0.5)),
    }


def gapped():
    """Noise that is uneven, and gaps."""
    rng = np.random.default_rng(0)
    variances = NOISE * np.exp(rng.uniform(0, 2, GRID))
    variances[rng.random(GRID) < 0.2] = np.inf
    return variances


MODELS = {"even": np.full(GRID, NOISE), "uneven": gapped()}


class Dense:
    """The same model as matrices, given data."""

    def __init__(self, variances, y):
        self.cells = np.flatnonzero(np.isfinite(variances))
        whole = sum(covariances((TIME, SPACE), (TIME, SPACE)).values())
        noise = np.diag(variances.ravel()[self.cells])
        self.matrix = whole[np.ix_(self.cells, self.cells)] + noise
        self.inverse = np.linalg.inv(self.matrix)
        self.residual = y.ravel()[self.cells] - LEVEL

    def log_likelihood(self):
        logdet = np.linalg.slogdet(self.matrix)[1]
        quadratic = self.residual @ self.inverse @ self.residual
        return -(quadratic + logdet + len(self.cells) * np.log(2 * np.pi)) / 2

    def posterior(self, rows, names):
        cross = covariances(rows, (TIME, SPACE))
        prior = covariances(rows, rows)
        c = sum(cross[n] for n in names)[:, self.cells]
        explained = np.einsum("ab,bc,ac->a", c, self.inverse, c)
        variances = sum(np.diagonal(prior[n]) for n in names) - explained
        return c @ self.inverse @ self.residual, variances


@cache
def conditioned(name):
    variances = MODELS[name]
    gp = make(noise=NOISE if name == "even" else variances)
    rng = np.random.default_rng(1)
    whole = sum(covariances((TIME, SPACE), (TIME, SPACE)).values())
    field = (np.linalg.cholesky(whole) @ rng.standard_normal(96)).reshape(GRID) + LEVEL
    y = field + np.sqrt(np.where(np.isfinite(variances), variances, np.nan)) * rng.normal(size=GRID)
    return gp, y, gp.condition(y), Dense(variances, y)


models = pytest.mark.parametrize("name", MODELS)
ALL = ("trend", "weather", "local")


@models
def test_the_likelihood_lies_within_its_error(name):
    gp, y, _, dense = conditioned(name)
    estimate = gp.log_marginal_likelihood_estimate(y)
    assert abs(estimate.value - dense.log_likelihood()) <= estimate.error < 3.0
    assert gp.log_marginal_likelihood(y) == pytest.approx(float(estimate.value), rel=1e-9)


def test_the_gradient_is_that_of_the_dense_likelihood():
    gp, y, _, dense = conditioned("even")
    slopes = jax.jit(jax.grad(lambda scales: kx.replace(gp, scales).log_marginal_likelihood(y)))(
        {f"variance['{n}']": v for n, v in gp.variance.items()} | {"noise": gp.noise}
    )
    weights = dense.inverse @ dense.residual
    by_matrix = (np.outer(weights, weights) - dense.inverse) / 2
    terms = covariances((TIME, SPACE), (TIME, SPACE))
    for name, value in gp.variance.items():
        expected = np.sum(by_matrix * terms[name])
        np.testing.assert_allclose(slopes[f"variance['{name}']"] * value, expected, atol=0.2)
    np.testing.assert_allclose(slopes["noise"], np.trace(by_matrix), rtol=0.05)


@models
def test_means(name):
    _, _, post, dense = conditioned(name)
    expected, _ = dense.posterior((TIME, SPACE), ALL)
    np.testing.assert_allclose(post.mean().ravel() - LEVEL, expected, atol=1e-3)
    ahead = np.array([4.2, 4.6])
    expected, _ = dense.posterior((ahead, SPACE), ALL)
    moved = post.mean(axes={"time": ahead})
    np.testing.assert_allclose(moved.ravel() - LEVEL, expected, atol=1e-3)
    total = LEVEL
    for term in ALL:
        expected, _ = dense.posterior((TIME, SPACE), (term,))
        mean = post.terms[term].mean()
        np.testing.assert_allclose(mean.ravel(), expected, atol=1e-3)
        total = total + mean
    np.testing.assert_allclose(total, post.mean(), rtol=1e-9)
    places = np.array([[0.3, 0.4], [3.0, 0.9]])
    expected = [dense.posterior((p[:1], p[1:]), ALL)[0][0] for p in places]
    np.testing.assert_allclose(post.mean(points=places) - LEVEL, expected, atol=1e-3)


def test_variances():
    _, _, post, dense = conditioned("uneven")
    places = np.array([[0.3, 0.4], [3.0, 0.9]])
    expected = [dense.posterior((p[:1], p[1:]), ALL)[1][0] for p in places]
    found = post.variance_estimate(points=places)
    np.testing.assert_allclose(found.value, expected, atol=float(found.error) + 1e-9)
    covariance = covariance_at(post, scattered_points(post.gp, places, None))
    np.testing.assert_allclose(np.diagonal(covariance), expected, atol=1e-5)
    _, expected = dense.posterior((TIME, SPACE), ALL)
    found = post.variance_estimate()
    assert np.mean(np.abs(found.value.ravel() - expected) <= found.error.ravel()) >= 0.9
    assert np.median(found.standard_error.ravel() / expected) < 0.15


def test_variances_of_a_term_and_on_new_coordinates():
    _, _, post, dense = conditioned("even")
    _, expected = dense.posterior((TIME, SPACE), ("weather",))
    np.testing.assert_allclose(post.terms["weather"].variance().ravel(), expected, rtol=0.6)
    ahead = np.array([4.2, 4.6])
    _, expected = dense.posterior((ahead, SPACE), ALL)
    found = post.variance_estimate(axes={"time": ahead})
    assert np.all(np.abs(found.value.ravel() - expected) <= 1.3 * found.error.ravel())


def test_draws_have_the_mean_and_variance_of_the_posterior():
    _, _, post, dense = conditioned("uneven")
    draws = post.sample(jax.random.key(0), sample_shape=(400,)).reshape(400, -1)
    mean, variance = dense.posterior((TIME, SPACE), ALL)
    away = (draws.mean(0) - LEVEL - mean) / np.sqrt(variance / 400)
    assert np.abs(away).max() < 4.5
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.5)
    assert np.mean(draws.var(0) / variance) == pytest.approx(1, abs=0.1)
    one = post.sample(jax.random.key(1))
    total = sum(term.sample(jax.random.key(1)) for term in post.terms.values())
    np.testing.assert_allclose(total + LEVEL, one, atol=1e-9)


def test_prior_draws_and_the_covariance():
    gp = make()
    whole = sum(covariances((TIME, SPACE), (TIME, SPACE)).values())
    np.testing.assert_allclose(gp.covariance(include_noise=False).to_dense(), whole, atol=1e-9)
    noisy = whole + NOISE * np.eye(96)
    np.testing.assert_allclose(gp.covariance().to_dense(), noisy, atol=1e-9)
    draws = gp.sample(jax.random.key(0), (2000,)).reshape(2000, -1) - LEVEL
    assert np.mean(draws.var(0) / np.diagonal(whole)) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_fit_gets_better_and_keeps_shared_kernels_one():
    gp, y, _, _ = conditioned("even")
    paths = [p.path for p in kx.parameters(gp)]
    assert len([p for p in paths if p.startswith("kernels[1]")]) == 2
    assert [p for p in paths if p.startswith("variance")] == [
        "variance['local']",
        "variance['trend']",
        "variance['weather']",
    ]
    start = gp.initialise(y)
    # The loop of a line search holds the likelihood several times, and compiles as much longer.
    result = kx.fit(start, y, num_steps=12, optimizer=optax.adam(0.1))
    assert result.loss < -start.log_marginal_likelihood(y) - 1
    assert result.model.terms == gp.terms


def test_what_it_says_about_itself():
    text = make().describe()
    assert "trend, weather, local: 3 Kronecker products" in text
    assert "iterative: 'iterative' was asked for" in text
    text = make(gaps="auto").describe()
    assert "exact: a dense matrix of 96 observed cells: no joint decomposition, since" in text
    assert "'trend' and 'weather' differ on time" in text
    copies = {"a": (kx.RBF(1.0), kx.RBF(0.4)), "b": (kx.RBF(2.0), kx.RBF(0.4))}
    text = kx.GridGP(terms=copies, axes=(TIME, SPACE), noise=0.1).describe()
    assert "kernels on axis 1 are equal copies" in text


def test_traced_models():
    gp, y, _, _ = conditioned("uneven")
    value = jax.jit(lambda g, z: g.log_marginal_likelihood(z))(gp, jnp.nan_to_num(jnp.asarray(y)))
    assert value == pytest.approx(float(gp.log_marginal_likelihood(y)), rel=1e-6)


NEVER = kx.Iteration(max_steps=1, box_size=1)
FULL = kx.Kronecker(rbf(TIME, TIME, 0.1), np.eye(8))
BAD = {
    "correlated noise": (lambda: make(noise=FULL), NotImplementedError, "independent from cell"),
    "latent": (lambda: make().latent("f"), NotImplementedError, "without an exact decomposition"),
    "a distribution": (lambda: make().numpyro_dist(), NotImplementedError, "by iterations"),
    "slices": (
        lambda: conditioned("even")[2].leave_slice_out("time"),
        NotImplementedError,
        "without an exact decomposition",
    ),
    "diagnostics": (
        lambda: conditioned("even")[2].diagnostics(),
        NotImplementedError,
        "without an exact decomposition",
    ),
    "low rank": (lambda: make(structure={"time": 4}), ValueError, "Low-rank axes need"),
    "no convergence": (
        lambda: make(iteration=NEVER).condition(np.ones(GRID)),
        kx.ConvergenceError,
        "after 1 steps",
    ),
    "term": (lambda: conditioned("even")[2].terms["weathr"], KeyError, "Did you mean 'weather'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, exception, match = BAD[case]
    with pytest.raises(exception, match=match):
        call()
