"""Additive models without an exact decomposition: everything beside the dense oracle."""

from functools import cache

import jax
import numpy as np
import optax
import pytest

import kronax as kx
from tests.everyday import everyday, full

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


ALL = ("trend", "weather", "local")


def make(names=ALL, **options):
    """Two of all terms share a kernel of space."""
    space = kx.Matern32(0.5)
    terms = {
        "trend": {"time": 2.0 * kx.RBF(2.0), "space": space},
        "weather": {"time": 0.5 * kx.Matern32(0.5), "space": kx.RBF(0.3)},
        "local": {"time": 0.3 * kx.Matern12(0.3), "space": space},
    }
    terms = {name: terms[name] for name in names}
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


def covariance_of(names):
    """Of all cells."""
    terms = covariances((TIME, SPACE), (TIME, SPACE))
    return sum(terms[name] for name in names)


def gapped():
    """Noise that is uneven, and gaps."""
    rng = np.random.default_rng(0)
    variances = NOISE * np.exp(rng.uniform(0, 2, GRID))
    variances[rng.random(GRID) < 0.2] = np.inf
    return variances


MODELS = {"even": (ALL, np.full(GRID, NOISE)), "uneven": (ALL[:2], gapped())}


class Dense:
    """The same model as matrices, given data."""

    def __init__(self, names, variances, y):
        self.names, self.cells = names, np.flatnonzero(np.isfinite(variances))
        whole = covariance_of(names)
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
def setup(name):
    names, variances = MODELS[name]
    gp = make(names, noise=NOISE if name == "even" else variances)
    rng, whole = np.random.default_rng(1), covariance_of(names)
    field = (np.linalg.cholesky(whole) @ rng.standard_normal(96)).reshape(GRID) + LEVEL
    y = field + np.sqrt(np.where(np.isfinite(variances), variances, np.nan)) * rng.normal(size=GRID)
    return gp, y, Dense(names, variances, y)


@cache
def conditioned(name="uneven"):
    gp, y, dense = setup(name)
    return gp.condition(y), dense


models = pytest.mark.parametrize("name", everyday(MODELS, ["uneven"]))
AHEAD = np.array([4.2, 4.6])
PLACES = np.array([[0.3, 0.4], [3.0, 0.9]])


@models
def test_the_likelihood_lies_within_its_error_and_has_the_dense_gradient(name):
    """Of a traced model, in one program with its error."""
    gp, y, dense = setup(name)

    def value(scales, gp, y):
        estimate = kx.replace(gp, scales).log_marginal_likelihood_estimate(y)
        return estimate.value, estimate

    scales = {f"variance['{n}']": v for n, v in gp.variance.items()}
    noise, level = ("noise", gp.noise) if name == "even" else ("noise.scale", gp.noise.scale)
    known = np.nan_to_num(y)
    program = jax.jit(jax.value_and_grad(value, has_aux=True))
    (found, estimate), slopes = program({**scales, noise: level}, gp, known)
    assert abs(found - dense.log_likelihood()) <= estimate.error < 3.0
    if name == "even":  # the same as of a model that is known
        expected = gp.log_marginal_likelihood_estimate(y).value
        assert found == pytest.approx(float(expected), rel=1e-6)
    weights = dense.inverse @ dense.residual
    by_matrix = (np.outer(weights, weights) - dense.inverse) / 2
    cells = np.ix_(dense.cells, dense.cells)
    for term, variance in gp.variance.items():
        expected = np.sum(by_matrix * covariance_of([term])[cells])
        np.testing.assert_allclose(slopes[f"variance['{term}']"] * variance, expected, atol=0.2)
    by_noise = np.diagonal(by_matrix) @ MODELS[name][1].ravel()[dense.cells]
    np.testing.assert_allclose(slopes[noise] * level, by_noise, rtol=0.05)


@models
def test_means(name):
    post, dense = conditioned(name)
    expected, _ = dense.posterior((TIME, SPACE), dense.names)
    np.testing.assert_allclose(post.mean().ravel() - LEVEL, expected, atol=1e-3)
    expected, _ = dense.posterior((AHEAD, SPACE), dense.names)
    moved = post.mean(axes={"time": AHEAD})
    np.testing.assert_allclose(moved.ravel() - LEVEL, expected, atol=1e-3)
    total = LEVEL
    for term in dense.names:
        expected, _ = dense.posterior((TIME, SPACE), (term,))
        mean = post.terms[term].mean()
        np.testing.assert_allclose(mean.ravel(), expected, atol=1e-3)
        total = total + mean
    np.testing.assert_allclose(total, post.mean(), rtol=1e-9)
    expected = [dense.posterior((p[:1], p[1:]), dense.names)[0][0] for p in PLACES]
    np.testing.assert_allclose(post.mean(points=PLACES) - LEVEL, expected, atol=1e-3)


@pytest.mark.parametrize("verb", [full("variance"), "covariance"])
def test_scattered_variances(verb):
    post, dense = conditioned()
    expected = [dense.posterior((p[:1], p[1:]), dense.names)[1][0] for p in PLACES]
    if verb == "variance":
        found = post.variance_estimate(points=PLACES)
        np.testing.assert_allclose(found.value, expected, atol=float(found.error) + 1e-9)
    else:
        covariance = post.covariance(points=PLACES).to_dense()
        np.testing.assert_allclose(np.diagonal(covariance), expected, atol=1e-5)


@pytest.mark.parametrize("of", ["a term on new coordinates", full("all on the grid")])
def test_variances(of):
    post, dense = conditioned()
    if of == "all on the grid":
        _, expected = dense.posterior((TIME, SPACE), dense.names)
        found = post.variance_estimate()
        assert np.mean(np.abs(found.value.ravel() - expected) <= found.error.ravel()) >= 0.9
        assert np.median(found.standard_error.ravel() / expected) < 0.15
    else:
        _, expected = dense.posterior((AHEAD, SPACE), ("weather",))
        found = post.terms["weather"].variance_estimate(axes={"time": AHEAD})
        assert np.all(np.abs(found.value.ravel() - expected) <= 1.3 * found.error.ravel())
        np.testing.assert_allclose(found.value.ravel(), expected, rtol=0.6)


@pytest.mark.parametrize("names", [("trend",), full(("trend", "weather"))])
def test_draws_have_the_mean_and_variance_of_the_posterior(names):
    post, dense = conditioned()
    draws = np.asarray(post.sample(jax.random.key(0), sample_shape=(400,))) - LEVEL
    first, *others = names
    parts = {n: post.terms[n].sample(jax.random.key(0), sample_shape=(400,)) for n in names}
    if others == ["weather"]:
        np.testing.assert_allclose(sum(parts.values()), draws, atol=1e-9)
    else:
        # What is left of the same draws of the whole is the other term.
        parts["weather"] = draws - parts[first]
    for terms, function in ((dense.names, draws), *(((n,), part) for n, part in parts.items())):
        flat = np.reshape(function, (400, -1))
        mean, variance = dense.posterior((TIME, SPACE), terms)
        away = (flat.mean(0) - mean) / np.sqrt(variance / 400)
        assert np.abs(away).max() < 4.5
        np.testing.assert_allclose(flat.var(0), variance, rtol=0.5)
        assert np.mean(flat.var(0) / variance) == pytest.approx(1, abs=0.1)


def test_prior_draws_and_the_covariance():
    gp, whole = make(), covariance_of(ALL)
    signal, noisy = jax.jit(
        lambda gp: [gp.covariance(include_noise=n).to_dense() for n in (False, True)]
    )(gp)
    np.testing.assert_allclose(signal, whole, atol=1e-9)
    np.testing.assert_allclose(noisy, whole + NOISE * np.eye(96), atol=1e-9)
    draws = gp.sample(jax.random.key(0), (2000,)).reshape(2000, -1) - LEVEL
    assert np.mean(draws.var(0) / np.diagonal(whole)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gaps", [full("iterative"), "exact"])
def test_a_fit_gets_better_and_keeps_shared_kernels_one(gaps):
    _, y, _ = setup("even")
    gp = make(gaps=gaps)
    paths = [p.path for p in kx.parameters(gp)]
    assert len([p for p in paths if p.startswith("kernels[1]")]) == 2
    assert [p for p in paths if p.startswith("variance")] == [
        "variance['local']",
        "variance['trend']",
        "variance['weather']",
    ]
    # The loop of a line search holds the likelihood several times, and compiles as much longer.
    result = kx.fit(gp.initialise(y), y, num_steps=12, optimizer=optax.adam(0.1))
    assert result.loss < result.losses[0] - 1
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


NEVER = kx.Iteration(max_steps=1, box_size=1)
FULL = kx.Kronecker(rbf(TIME, TIME, 0.1), np.eye(8))
BAD = {
    "correlated noise": (lambda: make(noise=FULL), NotImplementedError, "independent from cell"),
    "latent": (lambda: make().latent("f"), NotImplementedError, "without an exact decomposition"),
    "a distribution": (lambda: make().numpyro_dist(), NotImplementedError, "by iterations"),
    "slices": (
        lambda: conditioned()[0].leave_slice_out("time"),
        NotImplementedError,
        "without an exact decomposition",
    ),
    "diagnostics": (
        lambda: conditioned()[0].diagnostics(),
        NotImplementedError,
        "without an exact decomposition",
    ),
    "low rank": (lambda: make(structure={"time": 4}), ValueError, "Low-rank axes need"),
    "no convergence": (
        lambda: make(iteration=NEVER).condition(np.ones(GRID)),
        kx.ConvergenceError,
        "after 1 steps",
    ),
    "term": (lambda: conditioned()[0].terms["weathr"], KeyError, "Did you mean 'weather'"),
}


@pytest.mark.parametrize("case", everyday(BAD, [k for k in BAD if k != "no convergence"]))
def test_bad_input(case):
    call, exception, match = BAD[case]
    with pytest.raises(exception, match=match):
        call()
