"""The forms of noise: one variance, variances along an axis, a Kronecker product."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import kronax as kx
from tests.gp.dense import SPACE, TIME
from tests.tolerances import assert_close

VARIANCES = np.array([0.1, 0.4, 0.2, 0.9])


def named(noise):
    kernels = {"time": kx.Matern52(0.6), "task": kx.RBF(0.4)}
    return kx.GridGP(kernels, {"time": TIME, "task": SPACE}, noise)


def unnamed(noise):
    return kx.GridGP((kx.Matern52(0.6), kx.RBF(0.4)), (TIME, SPACE), noise)


def dense_noise(gp):
    return gp.covariance().to_dense() - gp.covariance(include_noise=False).to_dense()


@pytest.mark.parametrize(
    ("gp", "expected"),
    [
        (unnamed(2), 2 * np.eye(20)),
        (unnamed(jnp.array(0.3)), 0.3 * np.eye(20)),
        (named({"task": VARIANCES}), np.kron(np.eye(5), np.diag(VARIANCES))),
        (named({"task": [1, 2, 3, 4]}), np.kron(np.eye(5), np.diag([1, 2, 3, 4]))),
        (named({"time": 0.5}), 0.5 * np.eye(20)),
        (unnamed({1: VARIANCES}), np.kron(np.eye(5), np.diag(VARIANCES))),
        (
            named({"task": VARIANCES, "time": 1 + TIME}),
            np.kron(np.diag(1 + TIME), np.diag(VARIANCES)),
        ),
        (
            unnamed(kx.Kronecker(kx.ScaledIdentity(0.5, 5), kx.Diagonal(VARIANCES))),
            0.5 * np.kron(np.eye(5), np.diag(VARIANCES)),
        ),
        (
            unnamed(kx.Kronecker(kx.ScaledIdentity(0.5, 5), kx.ScaledIdentity(3.0, 4))),
            1.5 * np.eye(20),
        ),
        (
            unnamed(kx.Kronecker(np.diag(1 + TIME), 2 * np.eye(4) + 1)),
            np.kron(np.diag(1 + TIME), 2 * np.eye(4) + 1),
        ),
    ],
)
def test_the_noise_covariance_is_what_was_asked_for(gp, expected):
    np.testing.assert_allclose(dense_noise(gp), expected, atol=1e-14)


def test_variances_along_an_axis_are_positive_parameters():
    rows = {p.path: p for p in kx.parameters(named({"task": VARIANCES}))}
    row = rows["noise.variances[1]"]
    assert row.trainable
    assert row.domain is constraints.positive
    assert "noise.variances[0]" not in rows


def test_noise_that_does_not_vary_along_an_axis_has_no_parameters_there():
    gp = unnamed(kx.Kronecker(kx.ScaledIdentity(0.5, 5), kx.Diagonal(VARIANCES)))
    values = {p.path: p.value for p in kx.parameters(gp) if "noise" in p.path}
    assert list(values) == ["noise.variances[1]"]
    assert_close(values["noise.variances[1]"], 0.5 * VARIANCES)
    post = gp.condition(np.ones((5, 4)))
    assert post.variance(axes=[TIME[:2], None], include_noise=True).shape == (2, 4)


def test_full_noise_is_data_until_it_has_a_domain():
    gp = unnamed(kx.Kronecker(np.diag(1 + TIME), 2 * np.eye(4) + 1))
    rows = [p for p in kx.parameters(gp) if "noise" in p.path]
    assert len(rows) == 2
    assert not any(p.trainable for p in rows)


def test_the_marginal_likelihood_has_right_slopes_in_every_variance():
    y = np.random.default_rng(0).normal(size=(5, 4))
    base = named({"task": VARIANCES})
    signal = np.asarray(base.covariance(include_noise=False).to_dense())

    def by_kronax(variances):
        return kx.replace(base, {"noise.variances[1]": variances}).log_marginal_likelihood(y)

    def by_hand(variances):
        covariance = signal + jnp.kron(jnp.eye(5), jnp.diag(variances))
        return jax.scipy.stats.multivariate_normal.logpdf(y.ravel(), jnp.zeros(20), covariance)

    found, truth = (jax.jit(jax.value_and_grad(f))(VARIANCES) for f in (by_kronax, by_hand))
    assert_close(found[0], truth[0])
    assert_close(found[1], truth[1], order=1)


def test_traced_infinite_variances_are_gaps():
    """The cotangent of an infinite variance is zero, and a product must not multiply by it."""
    variances = np.random.default_rng(0).uniform(0.05, 0.2, (5, 4))
    variances[1, 2] = variances[3] = np.inf
    seen = np.isfinite(variances)
    y = np.random.default_rng(1).normal(size=(5, 4))
    signal = np.asarray(unnamed(0.1).covariance(include_noise=False).to_dense())
    cells = np.flatnonzero(seen)
    inverse = np.linalg.inv(signal[np.ix_(cells, cells)] + np.diag(variances[seen]))
    weights = inverse @ y[seen]
    slopes = np.zeros((5, 4))
    slopes[seen] = (weights**2 - np.diagonal(inverse)) / 2

    def likelihood(variances):
        return unnamed(variances).log_marginal_likelihood(jnp.where(seen, y, 1e5))

    def by_scale(scale):
        scaled = scale * np.where(seen, variances, 1.0)
        return likelihood(jnp.where(seen, scaled, jnp.inf))

    @jax.jit
    def found(variances):
        post = unnamed(variances).condition(jnp.where(seen, y, 1e5))
        places = np.array([[0.1, 0.2], [0.9, -0.4]])
        others = (post.variance(), post.mean([TIME + 0.1, None]), post.mean(points=places))
        slope = jax.grad(likelihood)(variances), jax.grad(by_scale)(1.0)
        return post.mean(), post.leave_one_out().mean, others, slope

    mean, left_out, others, (by_cell, along) = found(variances)
    assert_close(mean, (signal[:, cells] @ weights).reshape(5, 4))
    assert np.isfinite(left_out[seen]).all()
    assert all(np.isfinite(x).all() for x in others)
    assert_close(by_cell, slopes, order=1)
    assert (by_cell[~seen] == 0).all()
    assert_close(along, np.sum(slopes[seen] * variances[seen]), order=1)


def test_the_slope_in_a_variance_with_gaps_in_the_noise_and_in_the_data():
    variances = np.random.default_rng(0).uniform(0.05, 0.2, (5, 4))
    variances[1, 2] = np.inf
    y = np.random.default_rng(1).normal(size=(5, 4))
    y[3, 0] = np.nan
    gp, seen = unnamed(variances), np.isfinite(variances) & ~np.isnan(y)
    cells = np.flatnonzero(seen)
    signal = np.asarray(gp.covariance(include_noise=False).to_dense())[np.ix_(cells, cells)]
    inverse = np.linalg.inv(signal + np.diag(variances[seen]))
    slopes = np.zeros((5, 4))
    slopes[seen] = ((inverse @ y[seen]) ** 2 - np.diagonal(inverse)) / 2
    found = eqx.filter_grad(lambda gp: gp.log_marginal_likelihood(y))(gp)
    assert_close(found.noise.variances, slopes, order=1)


CELLS = np.arange(1.0, 21.0).reshape(5, 4)
AMONG = 2 * np.eye(4) + 1
# Noise as users give it, its dense covariance, and the axis along which it is not independent.
KINDS = {
    "one variance": (0.3, 0.3 * np.eye(20), None),
    "none": (0, np.zeros((20, 20)), None),
    "by axis": ({1: VARIANCES}, np.kron(np.eye(5), np.diag(VARIANCES)), None),
    "by no axis": ({}, np.eye(20), None),
    "by cell": (np.where(CELLS == 7, np.inf, CELLS), np.diag(CELLS.ravel()), None),
    "full": (kx.Kronecker(kx.Diagonal(1 + TIME), AMONG), np.kron(np.diag(1 + TIME), AMONG), 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_noise_answers_the_same_questions(name):
    given, dense, correlated = KINDS[name]
    noise, x = unnamed(given).noise_model, np.random.default_rng(0).normal(size=(5, 4))
    has_gap = name == "by cell"
    seen = np.full((5, 4), True) if not has_gap else CELLS != 7

    @jax.jit
    def asked(noise):
        in_time = noise.in_time(0, (5, 4), float)
        covariances = jax.vmap(in_time.at)(in_time.levels)
        draws = noise.draw(jax.random.key(0), (1000, 5, 4), float)
        return noise.levels(float), noise.times(x, float), covariances, draws

    levels, product, covariances, draws = asked(noise)
    diagonal = np.diagonal(dense).reshape(5, 4)
    assert_close(np.broadcast_to(levels, (5, 4))[seen], diagonal[seen])
    assert_close(product, np.where(seen, (dense @ x.ravel()).reshape(5, 4), 0))
    at_times = dense.reshape(5, 4, 5, 4)[range(5), :, range(5)]
    if not has_gap:
        assert_close(covariances, at_times)
    assert (np.isnan(draws) == ~seen).all()
    spread = np.mean(draws**2, axis=0)[seen] - diagonal[seen]
    assert (np.abs(spread) <= 6 * np.sqrt(2 / 1000) * diagonal[seen]).all()
    assert noise.is_independent == (correlated is None)
    assert [noise.is_independent_along(i) for i in (0, 1)] == [i != correlated for i in (0, 1)]
    assert noise.observed is None or (noise.observed == seen).all()


@pytest.mark.parametrize(
    ("noise", "path"),
    [
        (0.3, "noise"),
        (0, None),
        ({}, None),
        ({1: VARIANCES}, "noise.variances[1]"),
        (CELLS, "noise.scale"),
        (kx.Kronecker(np.eye(5), AMONG), None),
    ],
)
def test_the_level_of_the_noise_is_one_parameter_or_none(noise, path):
    gp = unnamed(noise)
    assert gp.noise_parameter == path
    assert path is None or path in {p.path for p in kx.parameters(gp)}


def test_no_noise_is_no_parameter():
    for zero in (0, 0.0, np.array(0.0), np.int64(0), jnp.zeros(())):
        gp = kx.GridGP((kx.Matern12(0.6), kx.Matern12(0.4)), (TIME, SPACE), zero)
        paths = [p.path for p in kx.parameters(gp)]
        assert paths == ["kernels[0].lengthscale", "kernels[1].lengthscale", "variance"]
    assert "no noise: the data are interpolated" in gp.describe()
    y = np.random.default_rng(0).normal(size=(5, 4))
    post = gp.condition(y)
    assert_close(post.mean(), y)
    places = np.array([[0.1, 0.2], [0.9, -0.4]])
    assert_close(post.variance(points=places, include_noise=True), post.variance(points=places))
    new = [TIME[:2] + 0.1, None]
    assert_close(post.variance(new, include_noise=True), post.variance(new))
    longer = post.append(y[:1], [TIME[-1:] + 1, None])
    assert_close(longer.mean(), np.concatenate([y, y[:1]]))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: unnamed(-0.1), ValueError, r"noise must be positive; got -0\.1"),
        (lambda: unnamed(np.nan), ValueError, "noise must be positive; got nan"),
        (lambda: unnamed(None), TypeError, "noise must be a variance.*got None"),
        (lambda: unnamed("0.1"), TypeError, r"noise must be a variance.*got '0\.1'"),
        (lambda: unnamed([1.0, 2.0]), TypeError, r"noise must be a variance.*got \[1\.0, 2\.0\]"),
        (lambda: unnamed(True), TypeError, "must be a number.*got True"),
        (lambda: unnamed(False), TypeError, "must be a number.*got False"),
        (lambda: unnamed(np.array(1j)), TypeError, "must hold real numbers"),
        (lambda: unnamed(np.ones((20, 20))), ValueError, r"one per cell .* got shape \(20, 20\)"),
        (lambda: unnamed(kx.Dense(np.eye(20))), TypeError, "noise must be.*got Dense"),
        (
            lambda: unnamed(kx.Kronecker(np.eye(4), np.eye(5))),
            ValueError,
            r"over the grid \(5, 4\); got \(4, 5\)",
        ),
        (
            lambda: unnamed(
                kx.Kronecker(kx.Diagonal(-VARIANCES[[0, 1, 2, 3, 0]]), kx.Diagonal(VARIANCES))
            ),
            ValueError,
            r"must be positive; got \[-0\.1",
        ),
        (lambda: named({"tsk": VARIANCES}), KeyError, "no axis 'tsk'.*Did you mean 'task'"),
        (lambda: unnamed({2: VARIANCES}), KeyError, "no axis 2.*Known: 0, 1"),
        (lambda: unnamed({"task": VARIANCES}), KeyError, "no axis 'task'.*Known: 0, 1"),
        (
            lambda: named({"task": np.ones(5)}),
            ValueError,
            r"along 'task' must have shape \(4,\); got shape \(5,\)",
        ),
        (
            lambda: named({"task": -VARIANCES}),
            ValueError,
            r"along 'task' must be positive; got \[-0\.1 -0\.4",
        ),
    ],
)
def test_bad_noise_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()
