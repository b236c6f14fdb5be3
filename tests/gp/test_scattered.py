"""Scattered points, covariances as operators, densities of new data, derivatives along an axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import (
    GPS,
    PLACES,
    SPACE,
    TIME,
    full_noise,
    named,
    squared_exponential,
    task_noise,
    two_axes,
)
from tests.tolerances import assert_close

RNG = np.random.default_rng(8)
X = np.stack([RNG.uniform(-0.2, 1.6, 7), RNG.uniform(-1, 1, 7)], axis=1)
TWO = two_axes().gp.condition(two_axes().y)


def dense_at(case, points):
    """Mean and covariance at scattered points, from a grid that has them on its diagonal."""
    mean, covariance = case.posterior(list(points))
    m, d = len(points[0]), len(points)
    chosen = np.ravel_multi_index((np.arange(m),) * d, (m,) * d)
    return mean.ravel()[chosen], covariance[np.ix_(chosen, chosen)]


def test_scattered_points_are_those_of_the_dense_posterior():
    mean, covariance = dense_at(two_axes(), X.T)
    assert_close(TWO.mean(points=X), mean)
    assert_close(TWO.variance(points=X), np.diagonal(covariance))
    assert_close(TWO.variance(points=X, include_noise=True), np.diagonal(covariance) + 0.1)
    levels = np.linspace(0.1, 0.7, 7)
    assert_close(
        TWO.variance(points=X, include_noise=True, noise=levels), np.diagonal(covariance) + levels
    )


def test_rows_are_rows_and_columns_are_columns():
    """Two places on two axes: the container says which they are, never the shape."""
    rows = [[0.1, 0.9], [0.8, -0.4]]
    expected = dense_at(two_axes(), np.transpose(rows))[0]
    for points in (rows, np.array(rows), jnp.array(rows), [tuple(r) for r in rows]):
        assert_close(TWO.mean(points=points), expected)
    for points in (tuple(zip(*rows, strict=True)), tuple(np.transpose(rows))):
        assert_close(TWO.mean(points=points), expected)
    traced = jax.jit(lambda t: TWO.mean(points=[[t, 0.9], [0.8, -0.4]]))(0.1)
    assert_close(traced, expected)


@pytest.mark.parametrize(
    ("points", "match"),
    [
        (((0.1, 0.9), (0.8, -0.4), (0.2, 0.3)), "got a tuple of 3. A tuple has one array per axis"),
        ((), "got a tuple of 0"),
        ((0.1, 0.9), r"got a tuple of numbers. One place is a row of its own: \[\[0.1, 0.9\]\]"),
        ([0.1, 0.9], "row 0 of the list is 0.1"),
    ],
)
def test_a_tuple_is_columns(points, match):
    with pytest.raises(ValueError, match=match):
        TWO.mean(points=points)


def test_rows_may_hold_labels_dates_and_places_beside_numbers():
    dates = np.arange("2000-01-01", "2000-01-06", dtype="M8[D]")
    kernels = (kx.RBF(2.0), kx.Categorical.with_rank(3), kx.Matern12(0.5), kx.RBF(0.4))
    gp = kx.GridGP(kernels, (dates, ["ash", "elm", "oak"], PLACES[:2], SPACE), noise=0.1)
    post = gp.condition(RNG.normal(size=gp.grid_shape))
    rows = [[dates[1], "elm", tuple(PLACES[1]), -0.2], [dates[3], "ash", tuple(PLACES[0]), 0.1]]
    expected = np.asarray(post.mean())[[1, 3], [1, 0], [1, 0], [1, 2]]
    assert_close(post.mean(points=rows), expected)
    assert_close(post.mean(points=tuple(map(list, zip(*rows, strict=True)))), expected)
    with pytest.raises(TypeError, match=r"became text\. Pass points as a nested list of rows, or"):
        post.mean(points=np.array([["2000-01-02", "elm", "0.1", "0.2"]]))


def test_points_come_by_name_and_in_several_dimensions():
    case = named()
    post = case.gp.condition(case.y)
    points = {"time": X[:3, 0], "place": PLACES[:3] + 0.05, "hour": np.array([0.1, 0.5, 2.0])}
    mean, covariance = dense_at(case, list(points.values()))
    assert_close(post.mean(points=points), mean)
    assert_close(post.mean(points=tuple(points.values())), mean)
    assert_close(post.variance(points=points), np.diagonal(covariance))


def test_a_batch_of_data_has_a_batch_of_means_at_points():
    case = two_axes()
    both = np.stack([case.y, 2 * case.y])
    post = case.gp.condition(both)
    means = post.mean(points=X)
    assert means.shape == (2, 7)
    chosen = np.ravel_multi_index((np.arange(7),) * 2, (7, 7))
    assert_close(means[1], case.posterior(list(X.T), both[1])[0].ravel()[chosen])
    drawn = jax.eval_shape(lambda: post.sample(jax.random.key(0), points=X, sample_shape=(3,)))
    assert drawn.shape == (3, 2, 7)


def test_more_points_than_a_chunk_holds_agree(monkeypatch):
    """A number of points that no other test has, so that nothing compiled before is used."""
    points = np.concatenate([X, X + 0.05, X - 0.05])[:19]
    mean, covariance = dense_at(two_axes(), points.T)
    monkeypatch.setattr("kronax.linalg.spectral.khatri_rao.CHUNK", 12)
    assert_close(TWO.mean(points=points), mean)
    assert_close(TWO.variance(points=points), np.diagonal(covariance))


def test_draws_at_points_have_the_moments_of_the_posterior():
    mean, covariance = dense_at(two_axes(), X.T)
    draws = np.asarray(TWO.sample(jax.random.key(1), points=X, sample_shape=20_000))
    error = np.sqrt(np.diagonal(covariance) / 20_000)
    assert (np.abs(draws.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=5 * 1.5 / np.sqrt(20_000))
    noisy = TWO.sample(jax.random.key(1), points=X, sample_shape=20_000, include_noise=True)
    np.testing.assert_allclose(noisy.var(0) - draws.var(0), 0.1, atol=0.05)


def test_low_rank_axes_predict_at_points():
    x = np.linspace(0, 1, 30)
    y = np.sin(6 * x)[:, None] * np.cos(3 * x)
    kernels = (kx.RBF(0.5), kx.RBF(0.4))
    thin = kx.GridGP(kernels, (x, x), noise=0.1, structure=(20, None)).condition(y)
    points = RNG.uniform(0, 1, (5, 2))
    ends = [squared_exponential(x, x, s) for s in (0.5, 0.4)]
    values, vectors = zip(*map(np.linalg.eigh, ends), strict=True)
    rows = [
        squared_exponential(p, x, s) @ v
        for p, s, v in zip(points.T, (0.5, 0.4), vectors, strict=True)
    ]
    cross = np.einsum("pi,pj->pij", *rows)
    spectrum = np.multiply.outer(*values) + 0.1
    mean = np.einsum("pij,ij->p", cross, (vectors[0].T @ y @ vectors[1]) / spectrum)
    variance = 1 - np.sum(cross**2 / spectrum, axis=(1, 2))
    np.testing.assert_allclose(thin.mean(points=points), mean, atol=1e-6)
    np.testing.assert_allclose(thin.variance(points=points), variance, atol=1e-6)


def test_the_mean_at_points_can_be_differentiated_and_variances_say_that_they_cannot():
    slope = jax.jit(jax.grad(lambda x: jnp.sum(TWO.mean(points=x))))(jnp.asarray(X))
    step = 1e-6
    shifted = X + step * np.array([1.0, 0.0])
    expected = (TWO.mean(points=shifted) - TWO.mean(points=X)) / step
    np.testing.assert_allclose(slope[:, 0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(kx.DerivativeOrderError, match="scattered places have values only"):
        jax.eval_shape(jax.grad(lambda x: jnp.sum(TWO.variance(points=x))), jnp.asarray(X))


NEW = {
    "the grid": None,
    "one new axis": [np.array([0.1, 1.0, 1.9]), None],
    "two new axes": [np.array([0.1, 1.0]), np.array([-0.5, 0.6, 0.9])],
}


@jax.jit
def asked(op, vector, columns):
    """All that an operator answers, in one program."""
    return op.to_dense(), op.diagonal(), op.mv(vector), op @ columns, op.trace()


@pytest.mark.parametrize(
    ("where", "noisy"),
    everyday(
        [(where, noisy) for noisy in (False, True) for where in NEW],
        [("the grid", True), ("two new axes", False)],
    ),
)
def test_the_covariance_is_an_operator(where, noisy):
    axes = NEW[where]
    used = [x if n is None else n for n, x in zip(axes or (None, None), (TIME, SPACE), strict=True)]
    expected = two_axes().posterior(used)[1]
    if noisy:
        expected = expected + 0.1 * np.eye(len(expected))
    operator = TWO.covariance(axes=axes, include_noise=noisy)
    grid = tuple(len(x) for x in used)
    assert operator.shape == expected.shape
    assert operator.grid_shape == grid
    vector, columns = RNG.normal(size=(2, *grid)), RNG.normal(size=(len(expected), 3))
    matrix, diagonal, product, columns_of, trace = asked(operator, vector, columns)
    assert_close(matrix, expected)
    assert_close(diagonal, np.diagonal(expected).reshape(grid))
    assert_close(product, (vector.reshape(2, -1) @ expected).reshape(2, *grid))
    assert_close(columns_of, expected @ columns)
    assert_close(trace, np.trace(expected))


def test_what_a_posterior_covariance_cannot_do_says_so():
    operator = TWO.covariance()
    for call, match in (
        (lambda: operator.factors, "has no factors"),
        (lambda: 2.0 * operator, "cannot be scaled"),
        (lambda: operator + 0.1, r"post\.covariance\(include_noise=True\)"),
    ):
        with pytest.raises(TypeError, match=match):
            call()
    correlated = full_noise()
    with pytest.raises(ValueError, match="correlated from cell to cell"):
        correlated.gp.condition(correlated.y).covariance(include_noise=True)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        full("two axes", "the grid"),
        full("two axes", "one new axis"),
        ("two axes", "two new axes"),
        full("noise by axis", "the grid"),
        ("noise by axis", "one new axis"),  # of its own axis the noise is not defined elsewhere
    ],
)
def test_the_log_density_of_new_data_is_that_of_the_dense_posterior(name, where):
    case, axes = GPS[name], NEW[where]
    used = [x if n is None else n for n, x in zip(axes or (None, None), case.axes, strict=True)]
    mean, covariance = case.posterior(used)
    noise = 0.1 if name == "two axes" else np.tile([0.1, 0.4, 0.2, 0.9], len(used[0]))
    covariance = covariance + np.diag(np.broadcast_to(noise, len(covariance)))
    data = RNG.normal(size=(2, *mean.shape))
    normal = scipy.stats.multivariate_normal(mean.ravel(), covariance)
    post = case.gp.condition(case.y)
    assert_close(post.log_prob(data[0], axes=axes), normal.logpdf(data[0].ravel()))
    assert_close(post.log_prob(data, axes=axes), normal.logpdf(data.reshape(2, -1)))


def test_the_log_density_at_points_and_with_other_noise():
    mean, covariance = dense_at(two_axes(), X.T)
    data = RNG.normal(size=7)
    for noise, level in ((None, 0.1), (0.5, 0.5)):
        normal = scipy.stats.multivariate_normal(mean, covariance + level * np.eye(7))
        assert_close(TWO.log_prob(data, points=X, noise=noise), normal.logpdf(data))
    mean, covariance = two_axes().posterior()
    normal = scipy.stats.multivariate_normal(mean.ravel(), covariance + 0.5 * np.eye(20))
    assert_close(TWO.log_prob(two_axes().y, noise=0.5), normal.logpdf(two_axes().y.ravel()))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("new", [None, [np.array([0.05, 0.31, 1.2]), np.array([-0.5, 0.3])]])
def test_the_derivative_of_the_mean_is_that_of_differences(axis, new):
    used = [TIME + 1e-3, SPACE + 1e-3] if new is None else new
    step = np.array([1e-6, 0.0]) if axis == 0 else np.array([0.0, 1e-6])
    moved = [x + s for x, s in zip(used, step, strict=True)]
    expected = (TWO.mean(axes=moved) - TWO.mean(axes=used)) / 1e-6
    found = TWO.mean_derivative(axis, axes=used)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    places = tuple(x[:2] for x in used)  # one of each axis together
    at_points = TWO.mean_derivative(axis, points=places)
    np.testing.assert_allclose(at_points, np.diagonal(found[:2, :2]), rtol=1e-8, atol=1e-10)


ROUGH = {
    "alone": kx.Matern12(0.5),
    "in a sum": kx.RBF(0.5) + 0.3 * kx.Matern12(0.5),
    "in a product": kx.Matern12(0.5) * kx.RBF(2.0),
    "a jump": kx.RBF(0.5) + kx.White(0.2),
    "on a circle": kx.Matern12(0.5),
}


@pytest.mark.parametrize("name", everyday(ROUGH, ["alone", "on a circle"]))
def test_there_is_no_derivative_at_a_kink(name):
    x = np.arange(6.0)
    axis = kx.circle(x, 6.0) if name == "on a circle" else x
    gp = kx.GridGP(kernels={"x": ROUGH[name]}, axes={"x": axis}, noise=0.1)
    post = gp.condition(np.sin(x))
    between = np.array([0.4, 2.5])
    ahead, behind = (post.mean({"x": between + s}) for s in (1e-5, -1e-5))
    slope = post.mean_derivative("x", {"x": between})
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)
    shared = [8.0, 0.5] if name == "on a circle" else [0.5, 2.0]
    for new in (None, {"x": np.array(shared)}):
        with pytest.raises(ValueError, match=r"no derivative along 'x' at places of the data"):
            post.mean_derivative("x", new)
    with pytest.raises(ValueError, match=r"no derivative along 'x' at places of the data"):
        post.mean_derivative("x", points=(np.array(shared),))
    if name == "alone":
        traced = jax.jit(lambda new: post.mean_derivative("x", {"x": new}))(np.array([0.5, 2.0]))
        np.testing.assert_array_equal(np.isnan(traced), [False, True])


def test_derivatives_go_round_a_circle_and_along_the_prior_mean():
    hours = np.arange(0.0, 24.0, 2.0)
    gp = kx.GridGP(
        kernels={"hour": kx.RBF(3.0), "day": kx.Matern52(2.0)},
        axes={"hour": kx.circle(hours, 24.0), "day": np.arange(4.0)},
        noise=0.1,
        mean=lambda h, d: 0.2 * h[:, None] + d[None] ** 2,
    )
    post = gp.condition(np.cos(2 * np.pi * hours / 24)[:, None] + np.arange(4.0))
    for axis in ("hour", "day"):
        at = {"hour": hours + 0.3, "day": np.arange(4.0) + 0.1}
        moved = {**at, axis: at[axis] + 1e-6}
        expected = (post.mean(axes=moved) - post.mean(axes=at)) / 1e-6
        found = post.mean_derivative(axis, axes=at)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        places = {name: x[:4] for name, x in at.items()}
        at_points = post.mean_derivative(axis, points=places)
        np.testing.assert_allclose(at_points, np.diagonal(found[:4]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: TWO.mean(points=X[:, :1]), ValueError, r"shape \(m, 2\).*got shape \(7, 1\)"),
        (lambda: TWO.mean(points=[X[:3, 0], X[:3, 1]]), ValueError, "one array per axis into a"),
        (lambda: TWO.mean(points=[0.1, 0.9]), ValueError, r"row 0 of the list is 0\.1"),
        (lambda: TWO.mean(points={*X[0]}), TypeError, "in a tuple or a dictionary; got set"),
        (lambda: TWO.mean(points=(X[:3, 0], X[:2, 1])), ValueError, r"on every axis; got \[3, 2\]"),
        (lambda: TWO.mean(points=(X[:3, 0], None)), ValueError, "got none for axis 1"),
        (lambda: TWO.mean(axes=[TIME, None], points=X), TypeError, "got both"),
        (lambda: TWO.log_prob(np.ones(3), points=X), ValueError, r"y_new .*got shape \(3,\)"),
        (lambda: TWO.log_prob(np.ones((4, 5))), ValueError, r"y_new .*got shape \(4, 5\)"),
        (
            lambda: TWO.log_prob(np.ones((80, 80)), axes=[np.arange(80.0)] * 2),
            ValueError,
            "got 6400 observations, more than 5000",
        ),
        (lambda: TWO.mean_derivative(2), KeyError, "There is no axis 2"),
        (lambda: TWO.mean_derivative("time"), KeyError, "There is no axis 'time'"),
        (
            lambda: (
                task_noise()
                .gp.condition(task_noise().y)
                .log_prob(np.ones((5, 1)), axes={"task": np.array([0.3])})
            ),
            ValueError,
            "varies along task",
        ),
        (
            lambda: (
                task_noise().gp.condition(task_noise().y).variance(points=X, include_noise=True)
            ),
            ValueError,
            "not defined at scattered points.*`noise=`",
        ),
        (
            lambda: named().gp.condition(named().y).mean_derivative("place"),
            ValueError,
            "places in several dimensions",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_draws_at_many_points_are_finite_in_float32():
    """The covariance is a small difference of large numbers there."""
    x = np.linspace(0, 1, 20, dtype=np.float32)
    gp = kx.GridGP((kx.RBF(np.float32(0.3)), kx.RBF(np.float32(0.3))), (x, x), noise=1e-3)
    post = gp.condition(np.sin(5 * x)[:, None] * x)
    points = RNG.uniform(0, 1, (60, 2)).astype(np.float32)
    draws = post.sample(jax.random.key(0), points=points, sample_shape=3)
    assert draws.dtype == np.float32
    expected = np.sin(5 * points[:, 0]) * points[:, 1]
    np.testing.assert_allclose(draws, np.broadcast_to(expected, (3, 60)), atol=0.1)
