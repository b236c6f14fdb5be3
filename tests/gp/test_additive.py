"""Additive models: which are exact, and the posterior of every term beside the dense one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import HOURS, SPACE, TIME, left_out
from tests.gp.orders import three_orders
from tests.tolerances import assert_close

REGULAR = np.linspace(0.0, 4.0, 17)
NOISE = np.array([0.1, 0.4, 0.2, 0.9])


def library(theta):
    """NumPy for numbers; JAX where they are traced, so that derivatives can be taken."""
    return jnp if isinstance(theta, jax.Array) else np


def rbf(x, z, scale):
    return library(scale).exp(-(((x[:, None] - z[None]) / scale) ** 2) / 2)


def matern12(x, z, scale):
    return library(scale).exp(-np.abs(x[:, None] - z[None]) / scale)


def periodic(x, z, scale):
    return library(scale).exp(-2 * (np.sin(np.pi * (x[:, None] - z[None])) / scale) ** 2)


def white(x, z):
    return (x[:, None] == z).astype(x.dtype)


@dataclass(frozen=True)
class Model:
    """A model made from numbers `theta`, and its terms as dense covariances of these numbers.

    `terms(theta)` gives each a function of coordinates per axis; `noise(theta)` the matrix.
    """

    make: Callable
    theta: np.ndarray
    axes: tuple[np.ndarray, ...]
    new: tuple[np.ndarray | None, ...]
    terms: Callable
    noise: Callable
    level: float = 0.0

    @property
    def gp(self):
        return self.make(jnp.asarray(self.theta))

    @property
    def grid(self):
        return tuple(len(x) for x in self.axes)

    @property
    def y(self):
        return np.random.default_rng(3).normal(size=self.grid) + self.level

    def covariances(self, theta, rows, columns):
        """One matrix per term between two lists of axes."""
        kron = library(theta).kron
        return {
            name: reduce(kron, [k(x, z) for k, x, z in zip(kernels, rows, columns, strict=True)])
            for name, kernels in self.terms(theta).items()
        }

    def data_covariance(self, theta):
        terms = self.covariances(theta, self.axes, self.axes)
        return sum(terms.values()) + self.noise(theta)

    def log_likelihood(self, theta):
        r = self.y.ravel() - self.level
        matrix, linalg = self.data_covariance(theta), library(theta).linalg
        logdet = linalg.slogdet(matrix)[1] + r.size * np.log(2 * np.pi)
        return -(r @ linalg.solve(matrix, r) + logdet) / 2

    def posterior(self, theta, rows, name=None):
        """Mean and covariance of a term, or of the whole function less its level, at `rows`."""

        def pick(terms):
            return sum(terms.values()) if name is None else terms[name]

        cross = pick(self.covariances(theta, rows, self.axes))
        prior = pick(self.covariances(theta, rows, rows))
        inverse = library(theta).linalg.inv(self.data_covariance(theta))
        return cross @ inverse @ (self.y.ravel() - self.level), prior - cross @ inverse @ cross.T


def _shared(theta):
    """Trend and season over one space kernel; a regular axis is decomposed by halves."""
    space = kx.RBF(theta[4])
    return kx.GridGP(
        terms={
            "trend": (theta[0] * kx.RBF(theta[1]), space),
            "season": (theta[2] * kx.Periodic(1.0, theta[3]), space),
        },
        axes=(REGULAR, SPACE),
        noise=theta[5],
        mean=0.3,
    )


def _joined(theta):
    """A trend over space, and what each place does on its own."""
    return kx.GridGP(
        terms={
            "trend": {"time": theta[0] * kx.RBF(theta[1]), "space": kx.RBF(theta[2])},
            "local": {"time": kx.Matern12(theta[4]), "space": kx.White(theta[3])},
        },
        axes={"time": REGULAR, "space": SPACE},
        noise=theta[5],
    )


def _everything(theta):
    """Two terms in the signal, two in the noise, which varies along their axis; three axes."""
    hour, space = kx.Matern12(1.0), kx.RBF(theta[4])
    return kx.GridGP(
        terms={
            "trend": (theta[0] * kx.RBF(theta[1]), space, hour),
            "local": (kx.White(), theta[5] * kx.Matern12(theta[6]), kx.White()),
            "season": (kx.Periodic(1.0, theta[3]), theta[2] * space, hour),
            "nugget": (kx.White(theta[7]), kx.White(), kx.White()),
        },
        axes=(TIME, SPACE, HOURS),
        noise={1: NOISE},
        mean=0.3,
    )


def _sum(theta):
    """What depends on time alone at each place, and on space alone at each time."""
    return kx.GridGP(
        terms={
            "across": (theta[0] * kx.Matern12(theta[1]), kx.White()),
            "along": (kx.White(), theta[2] * kx.RBF(theta[3])),
        },
        axes=(TIME, SPACE),
        noise=theta[4],
    )


def _identity(theta, size):
    return theta[-1] * np.eye(size)


MODELS = {
    "terms that differ on one axis": Model(
        _shared,
        np.array([2.0, 0.9, 0.5, 0.8, 0.7, 0.1]),
        (REGULAR, SPACE),
        (np.array([0.0, 0.25, 4.3]), np.array([0.1, 2.0])),
        lambda t: {
            "trend": (lambda x, z: t[0] * rbf(x, z, t[1]), partial(rbf, scale=t[4])),
            "season": (lambda x, z: t[2] * periodic(x, z, t[3]), partial(rbf, scale=t[4])),
        },
        partial(_identity, size=68),
        level=0.3,
    ),
    "a term that joins the noise": Model(
        _joined,
        np.array([2.0, 0.9, 0.7, 0.4, 0.5, 0.1]),
        (REGULAR, SPACE),
        (np.array([0.0, 0.3, 4.3]), np.array([0.5, 0.1])),
        lambda t: {
            "trend": (lambda x, z: t[0] * rbf(x, z, t[1]), partial(rbf, scale=t[2])),
            "local": (lambda x, z: t[3] * matern12(x, z, t[4]), white),
        },
        partial(_identity, size=68),
    ),
    "four terms on three axes": Model(
        _everything,
        np.array([2.0, 0.9, 0.5, 0.8, 0.7, 0.6, 0.4, 0.2]),
        (TIME, SPACE, HOURS),
        (None, np.array([-0.2, 0.5]), np.array([0.5, 1.5])),
        lambda t: {
            "trend": (
                lambda x, z: t[0] * rbf(x, z, t[1]),
                partial(rbf, scale=t[4]),
                partial(matern12, scale=1.0),
            ),
            "local": (white, lambda x, z: t[5] * matern12(x, z, t[6]), white),
            "season": (
                lambda x, z: t[2] * periodic(x, z, t[3]),
                partial(rbf, scale=t[4]),
                partial(matern12, scale=1.0),
            ),
            "nugget": (white, lambda x, z: t[7] * white(x, z), white),
        },
        lambda t: np.kron(np.eye(5), np.kron(np.diag(NOISE), np.eye(3))),
        level=0.3,
    ),
    "a Kronecker sum": Model(
        _sum,
        np.array([1.3, 0.6, 0.7, 0.4, 0.2]),
        (TIME, SPACE),
        (np.array([0.3, 0.4]), None),
        lambda t: {
            "across": (lambda x, z: t[0] * matern12(x, z, t[1]), white),
            "along": (white, lambda x, z: t[2] * rbf(x, z, t[3])),
        },
        partial(_identity, size=20),
    ),
}


def models(*chosen):
    """Of the everyday run; one property has one, another has another."""
    return pytest.mark.parametrize("name", everyday(MODELS, chosen))


def _rows(model, new):
    return [x if z is None else z for x, z in zip(model.axes, new, strict=True)]


def _shape(rows):
    return tuple(len(x) for x in rows)


@models("a term that joins the noise")
def test_likelihood_gradient_and_hessian_are_the_dense_ones(name):
    model = MODELS[name]

    def value(theta):
        return model.make(theta).log_marginal_likelihood(model.y)

    found, truth = (three_orders(f, model.theta) for f in (value, model.log_likelihood))
    for order in range(3):
        assert_close(found[order], truth[order], order)


@models("four terms on three axes")
def test_every_term_has_the_dense_mean_and_variance_and_all_add_up(name):
    model = MODELS[name]
    gp = model.gp
    post = gp.condition(model.y)
    assert list(post.terms) == list(model.terms(model.theta))
    new = list(model.new)
    rows = _rows(model, new)
    total = np.full(_shape(rows), model.level)
    for term, part in post.terms.items():
        mean, covariance = model.posterior(model.theta, rows, term)
        assert_close(part.mean(new), mean.reshape(_shape(rows)))
        assert_close(part.variance(new), np.diag(covariance).reshape(_shape(rows)))
        total = total + part.mean(new)
    assert_close(post.mean(new), total)
    for axes, places in ((new, rows), (None, model.axes)):
        mean, covariance = model.posterior(model.theta, places)
        assert_close(post.mean(axes), model.level + mean.reshape(_shape(places)))
        assert_close(post.variance(axes), np.diag(covariance).reshape(_shape(places)))
    mean, covariance = model.posterior(model.theta, model.axes, term)
    assert_close(part.mean(), mean.reshape(model.grid))
    assert_close(part.variance(), np.diag(covariance).reshape(model.grid))
    assert_close(post.residual(), model.y - post.mean())


@models("a Kronecker sum")
def test_covariances_are_operators(name):
    model = MODELS[name]
    post, new = model.gp.condition(model.y), list(model.new)
    rows = _rows(model, new)
    term = list(post.terms)[-1]

    @jax.jit
    def covariances(post):
        part = post.terms[term].covariance(new)
        noises = ()
        if name != "four terms on three axes":  # whose noise is not known at new coordinates
            noisy = post.covariance(new, include_noise=True).diagonal()
            noises = noisy, post.variance(new, include_noise=True)
        return post.covariance(new).to_dense(), part.to_dense(), part.diagonal(), noises

    whole, part, diagonal, noises = covariances(post)
    _, covariance = model.posterior(model.theta, rows)
    assert_close(whole, covariance)
    assert_close(part, model.posterior(model.theta, rows, term)[1])
    assert_close(np.ravel(diagonal), np.diag(part))
    # Noise that is included is the white noise alone, whatever terms join it.
    expected = np.diag(covariance).reshape(_shape(rows))
    expected = expected + np.diag(model.noise(model.theta))[0]
    for noisy in noises:
        assert_close(noisy, expected)


@models("terms that differ on one axis")
def test_scattered_points(name):
    model = MODELS[name]
    post = model.gp.condition(model.y)
    # The first is a cell of the grid.
    places = tuple(np.concatenate([x[1:2], x[:2] + 0.05]) for x in model.axes)
    dense = model.posterior(model.theta, places)
    pick = np.ravel_multi_index((np.arange(3),) * len(places), (3,) * len(places))
    assert_close(post.mean(points=places), model.level + dense[0][pick])
    assert_close(post.variance(points=places), np.diag(dense[1])[pick])
    term = list(post.terms)[-1]
    mean, covariance = model.posterior(model.theta, places, term)
    assert_close(post.terms[term].mean(points=places), mean[pick])
    assert_close(post.terms[term].variance(points=places), np.diag(covariance)[pick])
    covariance = dense[1][np.ix_(pick, pick)] + np.diag([0.1, 0.2, 0.3])
    y_new = np.array([0.5, -0.2, 0.1])
    truth = scipy.stats.multivariate_normal(model.level + dense[0][pick], covariance)
    got = post.log_prob(y_new, points=places, noise=np.array([0.1, 0.2, 0.3]))
    assert_close(got, truth.logpdf(y_new))


@models("terms that differ on one axis", "a Kronecker sum")
def test_leaving_one_out(name):
    model = MODELS[name]
    found = model.gp.condition(model.y).leave_one_out()
    matrix = np.asarray(model.data_covariance(model.theta))
    mean, variance = left_out(matrix, model.level, model.y)
    assert_close(found.mean, mean)
    assert_close(found.variance, variance)


@pytest.mark.parametrize("axes", [full(None), [np.array([0.3, 0.4]), None]])
def test_the_density_of_further_data(axes):
    model = MODELS["a Kronecker sum"]
    rows = _rows(model, axes or (None, None))
    mean, covariance = model.posterior(model.theta, rows)
    y_new = np.random.default_rng(8).normal(size=_shape(rows))
    covariance = covariance + 0.2 * np.eye(y_new.size)
    expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(y_new.ravel())
    assert_close(model.gp.condition(model.y).log_prob(y_new, axes=axes), expected)


def test_draws_have_the_mean_and_covariance_of_the_posterior_and_those_of_its_terms_add_up():
    model = MODELS["a Kronecker sum"]
    post = model.gp.condition(model.y)
    axes, num = [np.array([0.3, 0.4]), np.array([0.1, 0.5])], 20_000
    rows, key = _rows(model, axes), jax.random.key(0)
    function = post.sample(key, axes, num)
    parts = {name: part.sample(key, axes, num) for name, part in post.terms.items()}
    # Roots of smooth kernels have the rounding of √eps, another in every compiled function.
    np.testing.assert_allclose(function, model.level + sum(parts.values()), atol=1e-6)
    for draws, name in ((function, None), (parts["along"], "along")):
        mean, covariance = model.posterior(model.theta, rows, name)
        flat = np.asarray(draws).reshape(num, -1)
        spread = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(flat.mean(0) - mean) < 5 * spread / np.sqrt(num))
        error = 5 * np.outer(spread, spread) * np.sqrt(2 / num)
        assert np.all(np.abs(np.cov(flat.T) - covariance) < error)
    noisy = jax.eval_shape(lambda: post.sample(key, axes, 2, include_noise=True))
    assert noisy.shape == (2, 2, 2)


def test_prior_draws_and_covariances_hold_all_terms():
    model = MODELS["a Kronecker sum"]
    terms = model.covariances(model.theta, model.axes, model.axes)

    @jax.jit
    def prior(gp, y):
        covariances = [gp.covariance(include_noise=noise).to_dense() for noise in (False, True)]
        return *covariances, gp.sample(jax.random.key(0), (2,)), gp.numpyro_dist().log_prob(y)

    function, data, draws, logpdf = prior(model.gp, model.y)
    assert_close(function, sum(terms.values()))
    assert_close(data, model.data_covariance(model.theta))
    assert draws.shape == (2, *model.grid)
    assert_close(logpdf, model.log_likelihood(model.theta))


def test_a_variance_of_two_components_has_the_dense_gradient():
    model = MODELS["a Kronecker sum"]
    rows = _rows(model, model.new)
    weights = np.random.default_rng(2).normal(size=_shape(rows))

    def variance(theta):
        post = model.make(theta).condition(model.y)
        return jnp.sum(weights * post.variance(list(model.new)))

    def dense(theta):
        return weights.ravel() @ jnp.diag(model.posterior(theta, rows)[1])

    found, truth = (jax.jit(jax.grad(f))(model.theta) for f in (variance, dense))
    assert_close(found, truth, 1)


def test_coefficients_that_are_integrated_out():
    """A constant with a flat prior is the limit of one with a wide prior, among the terms."""
    model = MODELS["a term that joins the noise"]
    base = model.gp
    gp = kx.GridGP(
        terms={
            "trend": {"time": 2.0 * kx.RBF(0.9), "space": kx.RBF(0.7)},
            "local": {"time": kx.Matern12(0.5), "space": kx.White(0.4)},
        },
        axes={"time": REGULAR, "space": SPACE},
        noise=0.1,
        mean=kx.MarginalMean(kx.ConstantMean(0.0)),
    )
    assert base.terms == gp.terms
    post = gp.condition(model.y)
    rows = _rows(model, model.new)
    y, matrix = model.y.ravel(), np.asarray(model.data_covariance(model.theta))
    ones = np.ones(y.size)
    solved = np.linalg.solve(matrix, ones)
    level = solved @ y / (solved @ ones)
    assert_close(post.regression.coefficients, np.array([level]))
    for name in (None, "local"):
        cross = model.covariances(model.theta, rows, model.axes)
        cross = sum(cross.values()) if name is None else cross[name]
        _, covariance = model.posterior(model.theta, rows, name)
        mean = cross @ np.linalg.solve(matrix, y - level)
        left = (1.0 if name is None else 0.0) - cross @ solved
        part = post if name is None else post.terms[name]
        expected = mean + (level if name is None else 0.0)
        assert_close(part.mean(list(model.new)), expected.reshape(_shape(rows)))
        variance = np.diag(covariance) + left**2 / (solved @ ones)
        assert_close(part.variance(list(model.new)), variance.reshape(_shape(rows)))


def test_the_slope_of_a_term():
    model = MODELS["a term that joins the noise"]
    post = model.gp.condition(model.y)
    x, step = np.array([0.4, 1.1]), 1e-5
    for part in (post, post.terms["local"]):
        ahead, behind = (part.mean({"time": x + s}) for s in (step, -step))
        slope = part.mean_derivative("time", {"time": x})
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
        places = {"time": x, "space": np.array([0.35, 0.15])}
        ahead, behind = (part.mean(points={**places, "time": x + s}) for s in (step, -step))
        slope = part.mean_derivative("time", points=places)
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
    assert post.terms["trend"].mean_derivative("space").shape == model.grid
    for part in (post, post.terms["local"]):
        with pytest.raises(ValueError, match=r"no derivative along 'space', on which 'local'"):
            part.mean_derivative("space")


@models("a Kronecker sum")
def test_float32(name):
    model = MODELS[name]
    gp = jax.tree.map(lambda leaf: leaf.astype(np.float32), model.gp)
    y = model.y.astype(np.float32)
    value = gp.log_marginal_likelihood(y)
    assert value.dtype == np.float32
    assert_close(value, model.log_likelihood(model.theta), dtype=np.float32)
    post = gp.condition(y)
    rows = _rows(model, model.new)
    for term, part in post.terms.items():
        mean, covariance = model.posterior(model.theta, rows, term)
        got = part.mean(list(model.new)), part.variance(list(model.new))
        assert {array.dtype for array in got} == {np.dtype(np.float32)}
        assert_close(got[0], mean.reshape(_shape(rows)), 1, dtype=np.float32)
        variance = np.diag(covariance).reshape(_shape(rows))
        np.testing.assert_allclose(got[1], variance, rtol=2e-3, atol=1e-5)


def test_batches_of_data():
    model = MODELS["a Kronecker sum"]
    y = np.stack([model.y, 2 * model.y, model.y + 1])
    post = model.gp.condition(y)
    part = post.terms["along"]
    assert_close(part.mean()[0], model.gp.condition(model.y).terms["along"].mean())
    assert part.mean().shape == (3, 5, 4)
    assert part.variance().shape == (5, 4)
    assert part.sample(jax.random.key(0), sample_shape=2).shape == (2, 3, 5, 4)


def test_low_rank_axes_serve_terms_that_differ_on_one_axis():
    axis = np.linspace(0, 1, 60)
    space = kx.RBF(0.7)
    terms = {"slow": (2.0 * kx.RBF(0.5), space), "fast": (kx.RBF(0.3), space)}
    new = np.array([0.41, 1.1])
    model = Model(
        lambda t: kx.GridGP(terms=terms, axes=(axis, SPACE), noise=0.1, structure=(25, None)),
        np.array([0.1]),
        (axis, SPACE),
        (new, None),
        lambda t: {
            "slow": (lambda x, z: 2.0 * rbf(x, z, 0.5), partial(rbf, scale=0.7)),
            "fast": (partial(rbf, scale=0.3), partial(rbf, scale=0.7)),
        },
        partial(_identity, size=240),
    )
    got = model.gp.condition(model.y).terms["fast"]
    mean, _ = model.posterior(model.theta, model.axes, "fast")
    np.testing.assert_allclose(got.mean().ravel(), mean, atol=1e-5)
    _, covariance = model.posterior(model.theta, (new, SPACE), "fast")
    variance = got.variance([new, None])
    np.testing.assert_allclose(variance.ravel(), np.diag(covariance), atol=1e-5)
    draws = jax.eval_shape(lambda: got.sample(jax.random.key(0), [new, None]))
    assert draws.shape == (2, 4)
    _, covariance = model.posterior(model.theta, (new[:1], np.array([0.3])), "fast")
    near = got.variance(points=np.array([[0.41, 0.3]]))
    np.testing.assert_allclose(near, np.diag(covariance), atol=1e-5)
    local = {"trend": (kx.RBF(0.5), space), "local": (kx.RBF(0.3), kx.White())}
    with pytest.raises(ValueError, match=r"noise that nothing is added to; here the terms 'local'"):
        kx.GridGP(terms=local, axes=(axis, SPACE), noise=0.1, structure=(25, None))


def test_a_shared_kernel_is_one_set_of_parameters_and_every_term_has_a_variance():
    gp = MODELS["terms that differ on one axis"].gp
    assert gp.variance is None
    assert {p.path: p.value.item() for p in kx.parameters(gp)} == {
        "kernels[0].terms['season'].lengthscale": 0.8,
        "kernels[0].terms['season'].period": 1.0,
        "kernels[0].terms['trend'].lengthscale": 0.9,
        "kernels[0].variances['season']": 0.5,
        "kernels[0].variances['trend']": 2.0,
        "kernels[1].lengthscale": 0.7,
        "mean.value": 0.3,
        "noise": 0.1,
    }
    joined = MODELS["a term that joins the noise"].gp
    paths = [p.path for p in kx.parameters(joined)]
    assert "joined.terms['local'].lengthscale" in paths
    assert "joined.variances['local']" in paths


def test_scales_inside_a_shared_kernel_are_each_terms_own():
    space = 1.5 * kx.RBF(0.7)
    gp = kx.GridGP(
        terms={"trend": (2.0 * kx.RBF(1.0), space), "season": (kx.Periodic(1.0, 0.8), space)},
        axes=(TIME, SPACE),
        noise=0.1,
    )
    assert {k: v.item() for k, v in gp.kernels[0].variances.items()} == {
        "trend": 3.0,
        "season": 1.5,
    }


def test_plain_functions_can_be_shared():
    def space(x, z):
        return jnp.exp(-jnp.abs(x[:, None] - z[None]))

    gp = kx.GridGP(
        terms={"trend": (kx.RBF(1.0), space), "season": (kx.Periodic(1.0, 0.8), space)},
        axes=(TIME, SPACE),
        noise=0.1,
    )
    assert gp.terms.axis == 0


def test_a_term_joins_the_noise_only_where_it_must():
    wide, narrow = kx.RBF(1.0), kx.RBF(0.2)
    same = {"a": (wide, kx.White()), "b": (narrow, kx.White())}
    gp = kx.GridGP(terms=same, axes=(TIME, SPACE), noise=0.1)
    assert gp.joined is None
    assert gp.structures[1].kind == "diagonal"
    three = {"c": (wide, narrow), "a": (wide, kx.White()), "b": (kx.White(), narrow)}
    gp = kx.GridGP(terms=three, axes=(TIME, SPACE), noise=0.1)
    assert gp.terms.signal == ("c", "a")
    assert gp.terms.axis == 1
    assert (gp.terms.joined, gp.terms.joined_axis) == (("b",), 1)


def test_one_term_alone_is_the_ordinary_model():
    gp = kx.GridGP(terms={"only": (2.0 * kx.RBF(1.0), kx.RBF(0.3))}, axes=(TIME, SPACE), noise=0.1)
    plain = kx.GridGP((2.0 * kx.RBF(1.0), kx.RBF(0.3)), (TIME, SPACE), noise=0.1)
    y = np.random.default_rng(0).normal(size=(5, 4))
    assert_close(gp.log_marginal_likelihood(y), plain.log_marginal_likelihood(y))
    assert_close(gp.condition(y).terms["only"].mean(), plain.condition(y).mean())
    assert plain.condition(y).terms == {}
    with pytest.raises(KeyError, match="no term 'only'"):
        plain.condition(y).terms["only"]


def test_the_description_says_which_terms_went_where():
    text = MODELS["a term that joins the noise"].gp.describe()
    assert "trend: a Kronecker product\n" in text
    assert "local: added to the noise on time, toeplitz, since white on space\n" in text
    text = MODELS["four terms on three axes"].gp.describe()
    assert "trend, season: one Kronecker product, since they differ on axis 0 only\n" in text
    assert "local, nugget: added to the noise on axis 1, dense, since white on axis 0, axis 2\n"
    assert "  trend + season  dense (" in text


def test_fits_starts_and_priors_find_the_terms():
    model = MODELS["a term that joins the noise"]
    y = np.asarray(model.gp.sample(jax.random.key(2), include_noise=True))
    gp = model.gp
    started = gp.initialise(y)
    variances = started.kernels[0].variances["trend"], started.joined.variances["local"]
    assert_close(variances[0], variances[1])
    assert_close(sum(variances) + started.noise, np.mean(np.square(y)))
    scaled = gp.initialise(10 * y)
    assert_close(scaled.joined.variances["local"], 100 * variances[1])
    assert bool(gp.random_start(jax.random.key(0), y).noise > 0)
    path = "joined.terms['local'].lengthscale"
    result = kx.fit(gp, y, priors={path: dist.LogNormal(-1.0, 0.1)}, num_steps=3, progress=False)
    assert result.losses[-1] < result.losses[0]
    with numpyro.handlers.seed(rng_seed=0):
        sampled = kx.sample_parameters("gp", gp, priors={path: dist.LogNormal(-1.0, 0.1)})
    assert sampled.joined.terms["local"].lengthscale != gp.joined.terms["local"].lengthscale


def test_new_values_of_parameters_keep_the_order_of_the_terms():
    """JAX sorts dictionaries: the sum must not depend on that."""
    gp = MODELS["terms that differ on one axis"].gp
    again = jax.tree.map(lambda leaf: leaf, gp)
    assert list(gp.kernels[0].terms) == ["trend", "season"]
    assert list(again.kernels[0].terms) == ["season", "trend"]
    ours, theirs = (jax.jit(lambda one=one: one.covariance().to_dense())() for one in (gp, again))
    assert np.array_equal(ours, theirs)
    assert list(again.condition(MODELS["terms that differ on one axis"].y).terms) == [
        "trend",
        "season",
    ]


def test_a_term_that_is_white_on_an_axis_falls_back_to_its_prior_there():
    model = MODELS["a term that joins the noise"]
    post = model.gp.condition(model.y)
    part = post.terms["local"]
    away = part.variance({"space": np.array([0.55])})
    assert_close(away, np.full((17, 1), 0.4))
    assert_close(part.mean({"space": np.array([0.55])}), np.zeros((17, 1)))
    assert_close(part.mean({"space": SPACE[[2]]}), part.mean()[:, [2]])


SPACE_KERNEL = kx.RBF(0.7)
GENERAL = {"a": (kx.RBF(1.0), kx.RBF(0.4)), "b": (kx.RBF(2.0), kx.Matern12(0.4))}
APART = {
    "several axes": (GENERAL, {}, "'a' and 'b' differ on axis 0 and axis 1. Share"),
    "copies": (
        {"a": (kx.RBF(1.0), kx.RBF(0.4)), "b": (kx.RBF(2.0), kx.RBF(0.4))},
        {},
        "kernels on axis 1 are equal copies",
    ),
    "noise": (
        {"a": (kx.RBF(1.0), SPACE_KERNEL), "b": (kx.RBF(2.0), kx.White())},
        {"noise": {0: np.full(5, 0.2), 1: NOISE}},
        "varies along several axes",
    ),
    "repeated places": (
        {"a": (kx.RBF(1.0), SPACE_KERNEL), "b": (kx.RBF(2.0), kx.White())},
        {"axes": (TIME, np.array([0.0, 0.1, 0.1, 0.8]))},
        "On axis 1, where places occur twice, kx.White is no identity",
    ),
}
BAD = [
    ({"a": GENERAL["a"], "b": GENERAL["a"]}, {}, ValueError, "'a' and 'b' have the same kernels"),
    ({}, {}, TypeError, "dictionary from names to kernels"),
    ([GENERAL["a"]], {}, TypeError, "dictionary from names to kernels"),
    ({1: GENERAL["a"]}, {}, TypeError, r"names of terms must be strings; got 1"),
    ({"a": (kx.RBF(1.0),)}, {}, ValueError, r"The term 'a': .*one kernel per axis"),
    ({"a": {"time": kx.RBF(1.0)}}, {}, TypeError, r"The term 'a': .*both be dictionaries"),
    ({"a": (kx.RBF(1.0), 3.0)}, {}, TypeError, r"kernel of axis 1 in the term 'a' must be"),
    (GENERAL, {"kernels": GENERAL["a"]}, TypeError, "got both"),
    (None, {}, TypeError, "got neither"),
    ({f"{k}": GENERAL["a"] for k in range(13)}, {}, ValueError, "at most 12 terms; got 13"),
]


@pytest.mark.parametrize(("terms", "options", "words"), APART.values(), ids=APART)
def test_why_terms_have_no_joint_decomposition(terms, options, words):
    options = {"axes": (TIME, SPACE), "noise": 0.1, **options}
    gp = kx.GridGP(terms=terms, **options)
    assert words in gp.describe()
    assert not gp.is_iterative


@pytest.mark.parametrize(("terms", "options", "exception", "match"), BAD)
def test_bad_input(terms, options, exception, match):
    options = {"axes": (TIME, SPACE), "noise": 0.1, **options}
    with pytest.raises(exception, match=match):
        kx.GridGP(terms=terms, **options)


def test_what_is_not_available_where_terms_join_the_noise():
    model = MODELS["a term that joins the noise"]
    post = model.gp.condition(model.y)
    for call in (lambda: model.gp.latent("f"), lambda: model.gp.latent_condition(model.y)):
        with pytest.raises(NotImplementedError, match=r"where terms join the noise \(local\)"):
            call()
    with pytest.raises(KeyError, match=r"no term 'locl'\. Did you mean 'local'"):
        post.terms["locl"]
