"""Means with coefficients, trained or integrated out, beside dense generalised least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpyro.distributions import constraints

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import SPACE, TIME, matern52, squared_exponential
from tests.tolerances import assert_close

NEW = [np.array([0.2, 1.9]), np.array([-0.4, 0.5, 1.2])]
Y = np.random.default_rng(2).normal(size=(5, 4)) + 3 * TIME[:, None] - SPACE


def design(time, space):
    """A quadratic in time and a wave in space, one column each, as kronax centres them."""
    u = (time - 0.7) / 0.7
    angle = 2 * np.pi * space / 3.0
    over_time = [np.ones_like(u), u, (3 * u**2 - 1) / 2]
    over_space = [np.cos(angle), np.sin(angle)]
    columns = [np.outer(h, np.ones_like(space)).ravel() for h in over_time]
    return np.stack(columns + [np.outer(np.ones_like(time), h).ravel() for h in over_space], axis=1)


def waves():
    return kx.PolynomialMean("time", 2) + kx.HarmonicMean("space", 3.0)


def make(mean):
    return kx.GridGP(
        kernels={"time": kx.Matern52(0.6), "space": 2.5 * kx.RBF(0.4)},
        axes={"time": TIME, "space": SPACE},
        noise=0.1,
        mean=mean,
    )


def signal(rows, columns):
    first = matern52(rows[0], columns[0], 0.6)
    return 2.5 * np.kron(first, squared_exponential(rows[1], columns[1], 0.4))


class Dense:
    """The same by matrices: coefficients, mean and covariance on a new grid."""

    def __init__(self, new, variance=None, fixed=0.0):
        axes = [TIME, SPACE]
        self.design = design(*axes)
        self.covariance = signal(axes, axes) + 0.1 * np.eye(20)
        solved = np.linalg.solve(self.covariance, self.design)
        precision = self.design.T @ solved
        if variance is not None:
            precision = precision + np.eye(5) / variance
        residual = (Y - fixed).ravel()
        self.errors = np.linalg.inv(precision)
        self.coefficients = self.errors @ solved.T @ residual
        cross = signal(new, axes)
        weights = np.linalg.solve(self.covariance, residual - self.design @ self.coefficients)
        self.mean = design(*new) @ self.coefficients + cross @ weights
        left = design(*new) - cross @ solved
        explained = cross @ np.linalg.solve(self.covariance, cross.T)
        self.spread = signal(new, new) - explained + left @ self.errors @ left.T


@pytest.mark.parametrize("variance", [None, 4.0], ids=["flat", "normal"])
def test_coefficients_that_are_integrated_out_are_those_of_least_squares(variance):
    post = make(kx.MarginalMean(waves(), variance)).condition(Y)
    dense = Dense(NEW, variance)
    assert_close(post.regression.coefficients, dense.coefficients)
    assert_close(post.regression.covariance, dense.errors)
    assert_close(post.regression.standard_errors, np.sqrt(np.diagonal(dense.errors)))
    assert post.regression.names[:3] == ("time: degree 0", "time: degree 1", "time: degree 2")
    assert post.regression.names[3:] == ("space: cos 3", "space: sin 3")
    lines = repr(post.regression).splitlines()
    assert lines[0].split() == ["coefficient", "estimate", "standard", "error"]
    assert lines[1].startswith("time: degree 0  ")


@pytest.mark.parametrize(
    ("variance", "moved"),
    everyday([(v, m) for v in (None, 4.0) for m in (False, True)], [(None, True)]),
)
def test_predictions_contain_the_coefficients_uncertainty(variance, moved):
    post = make(kx.MarginalMean(waves(), variance)).condition(Y)
    new = NEW if moved else [TIME, SPACE]
    dense, axes = Dense(new, variance), NEW if moved else None
    grid = tuple(map(len, new))
    assert_close(post.mean(axes=axes), dense.mean.reshape(grid))
    assert_close(post.variance(axes=axes), np.diagonal(dense.spread).reshape(grid))
    assert_close(post.covariance(axes=axes).to_dense(), dense.spread)
    draws = np.asarray(post.sample(jax.random.key(0), axes, 20_000)).reshape(20_000, -1)
    scale = np.sqrt(np.diagonal(dense.spread))
    assert (np.abs(draws.mean(0) - dense.mean) < 5 * scale / np.sqrt(20_000)).all()
    error = np.outer(scale, scale) * np.sqrt(2 / 20_000)
    assert (np.abs(np.cov(draws.T) - dense.spread) < 5 * error).all()


PLANE = kx.LinearMean("time") + kx.LinearMean("space")


@pytest.mark.parametrize(
    "extra", [full(None), full(kx.ConstantMean(0.0)), kx.PolynomialMean("space", 0)]
)
def test_a_level_that_several_means_have_counts_once(extra):
    post = make(kx.MarginalMean(PLANE if extra is None else PLANE + extra)).condition(Y)
    assert post.regression.names == ("time: level", "time: slope", "space: slope")
    columns = np.meshgrid(TIME - 0.7, SPACE - (-0.1), indexing="ij")
    plane = np.stack([np.ones(20), *(column.ravel() for column in columns)], axis=1)
    covariance = signal([TIME, SPACE], [TIME, SPACE]) + 0.1 * np.eye(20)
    errors = np.linalg.inv(plane.T @ np.linalg.solve(covariance, plane))
    truth = errors @ plane.T @ np.linalg.solve(covariance, Y.ravel())
    assert_close(post.regression.coefficients, truth)
    assert_close(post.regression.covariance, errors)
    left = np.linalg.solve(covariance, Y.ravel() - plane @ truth)
    assert_close(post.mean().ravel(), Y.ravel() - 0.1 * left)


@pytest.mark.parametrize(
    ("variance", "moved"),
    everyday([(v, m) for v in (None, 4.0) for m in ((0,), (0, 1), ())], [(None, (0,)), (4.0, ())]),
)
def test_the_density_of_new_data_contains_it(variance, moved):
    post = make(kx.MarginalMean(waves(), variance)).condition(Y)
    new = [NEW[i] if i in moved else x for i, x in enumerate((TIME, SPACE))]
    dense = Dense(new, variance)
    grid = tuple(map(len, new))
    data = np.random.default_rng(1).normal(size=grid)
    covariance = dense.spread + 0.1 * np.eye(data.size)
    expected = scipy.stats.multivariate_normal(dense.mean, covariance).logpdf(data.ravel())
    axes = [NEW[i] if i in moved else None for i in range(2)]
    assert_close(post.log_prob(data, axes=axes), expected)


def test_the_marginal_likelihood_with_a_normal_prior_is_that_of_one_covariance():
    gp = make(kx.MarginalMean(waves(), 4.0))
    columns = design(TIME, SPACE)
    covariance = Dense(NEW).covariance + 4.0 * columns @ columns.T
    expected = scipy.stats.multivariate_normal(cov=covariance).logpdf(Y.ravel())
    assert_close(gp.log_marginal_likelihood(Y), expected)


def test_the_restricted_likelihood_is_that_of_contrasts():
    """With flat priors it is the density of what is orthogonal to the functions, but a constant."""
    gp = make(kx.MarginalMean(waves()))
    columns = design(TIME, SPACE)
    contrasts = np.linalg.qr(columns, mode="complete")[0][:, 5:]
    inside = contrasts.T @ Dense(NEW).covariance @ contrasts
    density = scipy.stats.multivariate_normal(cov=inside).logpdf(contrasts.T @ Y.ravel())
    expected = density - np.linalg.slogdet(columns.T @ columns)[1] / 2
    assert_close(gp.log_marginal_likelihood(Y), expected)


def test_the_restricted_likelihood_has_gradients():
    gp = make(kx.MarginalMean(waves()))
    raw, build = kx.unconstrain(gp)
    assert set(raw) == {"kernels[0].lengthscale", "kernels[1].lengthscale", "variance", "noise"}

    @jax.jit
    @jax.value_and_grad
    def loss(values):
        return build(values).log_marginal_likelihood(Y)

    _, slopes = loss(raw)
    for path, slope in slopes.items():
        ahead, behind = (loss({**raw, path: raw[path] + h})[0] for h in (1e-5, -1e-5))
        assert slope.item() == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-5, abs=1e-7)


def test_a_part_without_coefficients_stays():
    fixed = 2.0 * TIME[:, None] + np.zeros(4)
    mean = kx.MarginalMean(waves() + fixed)
    post = make(mean).condition(Y)
    dense = Dense([TIME, SPACE], fixed=fixed)
    assert_close(post.regression.coefficients, dense.coefficients)
    assert_close(post.mean(), dense.mean.reshape(5, 4) + fixed)


def test_a_batch_has_coefficients_of_its_own():
    gp, dense = make(kx.MarginalMean(waves())), Dense(NEW)
    both = gp.condition(np.stack([Y, -Y]))
    assert both.regression.coefficients.shape == (2, 5)
    assert_close(both.regression.coefficients[0], dense.coefficients)
    assert_close(both.mean(axes=NEW)[1], -dense.mean.reshape(2, 3))
    drawn = jax.eval_shape(lambda: both.sample(jax.random.key(0), NEW, 3))
    assert drawn.shape == (3, 2, 2, 3)
    values = jax.eval_shape(lambda: gp.log_marginal_likelihood(np.stack([Y, -Y])))
    assert values.shape == (2,)


def test_coefficients_that_train_end_at_least_squares():
    names = ("kernels", "variance", "noise")
    result = kx.fit(make(waves()), Y, freeze=names, progress=False)
    found = np.concatenate([part.coefficients for part in result.model.mean.summands()])
    np.testing.assert_allclose(found, Dense(NEW).coefficients, rtol=1e-4, atol=1e-5)


def test_means_are_functions_of_their_axis():
    time, space = jnp.asarray(TIME), jnp.asarray(SPACE)
    line = kx.LinearMean(1, [2.0, 3.0], centre=1.0, scale=0.5)
    assert_close(line(time, space), (2 + 3 * (SPACE - 1) / 0.5)[None])
    cubic = kx.PolynomialMean(0, 3, [0, 0, 0, 1.0], centre=0.0, scale=1.0)
    assert_close(cubic(time, space), ((5 * TIME**3 - 3 * TIME) / 2)[:, None])
    wave = kx.HarmonicMean(0, 2.0, 2, [0, 1.0, 2.0, 0])
    expected = np.sin(np.pi * TIME) + 2 * np.cos(2 * np.pi * TIME)
    assert_close(wave(time, space), expected[:, None])
    both = line + wave + 1.5
    assert_close(both(time, space), line(time, space) + wave(time, space) + 1.5)
    assert [type(m).__name__ for m in both.summands()] == [
        "LinearMean",
        "HarmonicMean",
        "ConstantMean",
    ]


def test_coefficients_are_parameters_of_the_real_line():
    gp = make(kx.LinearMean("time"))
    rows = {p.path: p.domain for p in kx.parameters(gp)}
    assert rows["mean.coefficients"] is constraints.real
    assert gp.mean.centre == pytest.approx(0.7)
    assert gp.mean.scale == pytest.approx(0.7)


def test_derivatives_contain_the_regression():
    post = make(kx.MarginalMean(waves())).condition(Y)
    moved = [NEW[0] + 1e-6, NEW[1]]
    expected = (post.mean(axes=moved) - post.mean(axes=NEW)) / 1e-6
    found = post.mean_derivative("time", NEW)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    at_points = post.mean_derivative("time", points=tuple(x[:2] for x in NEW))
    np.testing.assert_allclose(at_points, np.diagonal(found[:2, :2]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: make(kx.LinearMean("tme")), KeyError, "'tme'.*Did you mean 'time'"),
        (lambda: make(kx.LinearMean(2)), KeyError, "unknown: 2"),
        (lambda: kx.LinearMean(0, [1.0]), ValueError, r"must have shape \(2,\); got \(1,\)"),
        (lambda: kx.PolynomialMean(0, -1), ValueError, "degree .*got -1"),
        (lambda: kx.HarmonicMean(0, 0.0), ValueError, r"period must be positive.*got 0\.0"),
        (lambda: kx.HarmonicMean(0, 1.0, 0), ValueError, "harmonics must be 1 or more; got 0"),
        (lambda: kx.MarginalMean(kx.ZeroMean()), TypeError, "needs a mean with coefficients"),
        (lambda: kx.MarginalMean(waves(), -1.0), ValueError, r"variance must be positive; got -1"),
        (
            lambda: make(
                kx.MarginalMean(kx.LinearMean("time") + kx.PolynomialMean("time", 2))
            ).condition(Y),
            ValueError,
            "functions of the mean are not independent",
        ),
        (
            lambda: make(kx.MarginalMean(waves())).numpyro_dist(),
            NotImplementedError,
            "coefficients are integrated out",
        ),
        (
            lambda: make(kx.MarginalMean(waves())).sample(jax.random.key(0)),
            NotImplementedError,
            "coefficients are integrated out",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()
