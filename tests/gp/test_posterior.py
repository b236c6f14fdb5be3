"""Prediction: means, variances and draws beside the dense posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.gp.posterior import predict
from tests.everyday import everyday, full
from tests.gp.dense import GPS, HOURS, PLACES, SPACE, TIME, named, task_noise, two_axes
from tests.tolerances import assert_close

NEW = {
    "one axis": [np.array([0.3, 2.0])],
    # The first two coincide with old ones.
    "two axes": [np.array([0.0, 0.3, 0.35, 2.0]), np.array([0.5, 0.1])],
    "three named axes": [np.array([0.1, 0.3]), PLACES[1:3] + 0.1, np.array([3.0])],
    "noise by axis": [np.array([0.1, 0.3]), np.array([0.5])],
    "full noise": [np.array([0.1, 0.3]), np.array([0.5])],
}
NUM_DRAWS = 20_000
every_gp = pytest.mark.parametrize("name", GPS)


def variance_of(case, new=None):
    covariance = case.posterior(new)[1]
    return np.diagonal(covariance).reshape([len(x) for x in new or case.axes])


@pytest.mark.parametrize("name", everyday(GPS, ["three named axes", "full noise"]))
def test_mean_and_variance_are_the_dense_ones_at_the_grid_and_on_a_new_one(name):
    case = GPS[name]
    post = case.gp.condition(case.y)
    for new in (None, NEW[name]):
        assert_close(post.mean(axes=new), case.posterior(new)[0])
        assert_close(post.variance(axes=new), variance_of(case, new))


@every_gp
def test_the_noise_that_is_included_is_a_variance(name):
    """σ² is added to the variance of the function: adding σ would be far off."""
    case = GPS[name]
    post = case.gp.condition(case.y)
    noise = case.covariance() - case.signal()
    expected = variance_of(case) + np.diagonal(noise).reshape(case.grid)
    assert_close(post.variance(include_noise=True), expected)


def test_scalar_noise_is_included_on_a_new_grid():
    post = named().gp.condition(named().y)
    new = NEW["three named axes"]
    expected = variance_of(named(), new) + 0.3
    assert_close(post.variance(axes=new, include_noise=True), expected)
    expected = variance_of(named(), new) + 0.7
    assert_close(post.variance(axes=new, include_noise=True, noise=0.7), expected)


def test_axes_that_are_left_out_stay():
    post = named().gp.condition(named().y)
    places = NEW["three named axes"][1]
    expected = named().posterior([TIME, places, HOURS])[0]
    assert_close(post.mean(axes={"place": places}), expected)
    assert_close(post.mean(axes=[None, places, None]), expected)
    assert_close(post.variance(axes={"place": places}), variance_of(named(), [TIME, places, HOURS]))
    assert_close(post.mean(axes={}), post.mean())


def test_noise_that_varies_is_known_on_its_own_axis_only():
    case = task_noise()
    post = case.gp.condition(case.y)
    new = np.array([0.1, 0.3])
    variance = variance_of(case, [new, SPACE])
    expected = variance + np.array([0.1, 0.4, 0.2, 0.9])
    assert_close(post.variance(axes={"time": new}, include_noise=True), expected)
    drawn = jax.eval_shape(
        lambda: post.sample(jax.random.key(0), {"time": new}, include_noise=True)
    )
    assert drawn.shape == (2, 4)
    with pytest.raises(ValueError, match=r"varies along task.*Pass `noise=`"):
        post.variance(axes={"task": new}, include_noise=True)
    with pytest.raises(ValueError, match=r"varies along task.*Pass `noise=`"):
        post.sample(jax.random.key(0), axes={"task": new}, include_noise=True)
    given = np.array([0.5, 0.6])
    assert_close(
        post.variance(axes={"task": new}, include_noise=True, noise=given),
        variance_of(case, [TIME, new]) + given,
    )


def test_variances_are_not_negative_beyond_rounding():
    """A smooth kernel with hardly any noise: the prior variance cancels almost entirely."""
    x = np.linspace(0, 1, 15)
    gp = kx.GridGP((kx.RBF(0.5), kx.RBF(0.5)), (x, x), noise=1e-6)
    post = gp.condition(np.sin(5 * x)[:, None] * x)
    for new in (None, [np.linspace(0, 1, 40), None]):
        variance = np.asarray(post.variance(axes=new))
        assert variance.min() > -1e-12
        assert variance.max() < 1e-5


def check_moments(draws, mean, covariance):
    flat = np.asarray(draws).reshape(NUM_DRAWS, -1)
    scale = np.sqrt(np.clip(np.diagonal(covariance), 1e-12, None))
    assert (np.abs(flat.mean(0) - mean.ravel()) / scale).max() < 5 / np.sqrt(NUM_DRAWS)
    error = np.sqrt((scale[:, None] * scale) ** 2 + covariance**2) / np.sqrt(NUM_DRAWS)
    assert (np.abs(np.cov(flat.T) - covariance) / error).max() < 5


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        pytest.param("two axes", True, id="on a new grid-two axes"),
        pytest.param("full noise", False, id="at the grid-full noise"),
        full("two axes", False, id="at the grid-two axes"),
        full("full noise", True, id="on a new grid-full noise"),
    ],
)
def test_draws_have_the_posteriors_moments(name, moved):
    case = GPS[name]
    new = NEW[name] if moved else None
    draws = case.gp.condition(case.y).sample(jax.random.key(3), new, (NUM_DRAWS,))
    assert draws.shape == (NUM_DRAWS, *(len(x) for x in new or case.axes))
    check_moments(draws, *case.posterior(new))


@pytest.mark.parametrize(
    "name", everyday(["two axes", "noise by axis", "full noise"], ["noise by axis"])
)
def test_draws_of_observations_have_the_noise_added(name):
    case = GPS[name]
    draws = case.gp.condition(case.y).sample(
        jax.random.key(3), sample_shape=NUM_DRAWS, include_noise=True
    )
    mean, covariance = case.posterior()
    check_moments(draws, mean, covariance + case.covariance() - case.signal())


def test_draws_agree_where_new_points_coincide_with_old_ones():
    case = two_axes()
    draw = case.gp.condition(case.y).sample(jax.random.key(0), [np.repeat(TIME, 2), None])
    np.testing.assert_allclose(draw[::2], draw[1::2], atol=1e-6)


def test_gradients_of_draws_are_finite_where_points_coincide():
    case = two_axes()
    raw, build = kx.unconstrain(case.gp)

    @jax.jit
    @jax.grad
    def slopes(values):
        post = build(values).condition(case.y)
        return jnp.sum(jnp.square(post.sample(jax.random.key(0), [TIME, SPACE])))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(raw)))


def test_slopes_of_mean_and_variance_are_those_of_the_dense_posterior():
    case = two_axes()
    new = NEW["two axes"]
    weights = np.random.default_rng(1).normal(size=(2, 4, 2))
    raw, build = kx.unconstrain(case.gp)

    @jax.jit
    @jax.grad
    def by_kronax(values):
        post = build(values).condition(case.y)
        return jnp.sum(weights[0] * post.mean(new)) + jnp.sum(weights[1] * post.variance(new))

    def total(lengthscale, other, variance, noise, mean):
        changed = type(case)(
            gp=None,
            kernels=(
                lambda x, z: GPS["two axes"].kernels[0](
                    x * 0.6 / lengthscale, z * 0.6 / lengthscale
                ),
                lambda x, z: GPS["two axes"].kernels[1](x * 0.4 / other, z * 0.4 / other),
            ),
            axes=case.axes,
            variance=variance,
            noise=noise,
            mean=lambda *axes: mean,
        )
        return np.sum(weights[0] * changed.posterior(new, case.y)[0]) + np.sum(
            weights[1] * variance_of(changed, new)
        )

    natural = {
        "kernels[0].lengthscale": 0.6,
        "kernels[1].lengthscale": 0.4,
        "variance": 2.5,
        "noise": 0.1,
        "mean.value": 0.3,
    }
    slopes = by_kronax(raw)
    for i, (path, value) in enumerate(natural.items()):
        ends = []
        for step in (1e-5, -1e-5):
            values = list(natural.values())
            values[i] = value + step
            ends.append(total(*values))
        expected = (ends[0] - ends[1]) / 2e-5 * (1 if path == "mean.value" else value)
        np.testing.assert_allclose(slopes[path], expected, rtol=1e-6, atol=1e-7, err_msg=path)


def test_batches_of_data_lead():
    case = two_axes()
    batch = np.stack([case.y, 2 * case.y, case.y - 1])
    post = case.gp.condition(batch)
    new = NEW["two axes"]
    means = np.asarray(post.mean(new))
    for k in range(3):
        assert_close(means[k], case.gp.condition(batch[k]).mean(new))
    assert_close(post.variance(new), variance_of(case, new))
    drawn = jax.eval_shape(lambda: post.sample(jax.random.key(0), new, (7,)))
    assert drawn.shape == (7, 3, 4, 2)
    assert_close(case.gp.condition(batch.reshape(3, -1)).mean(new), post.mean(new))


def test_a_posterior_goes_through_jit():
    case = two_axes()
    post = case.gp.condition(case.y)
    new = NEW["two axes"]
    assert_close(jax.jit(lambda p: p.mean(new))(post), case.posterior(new)[0])
    moved = jax.jit(lambda p, time: p.variance([time, None]))(post, new[0])
    assert_close(moved, variance_of(case, [new[0], SPACE]))


def test_float32_stays_float32():
    gp = jax.tree.map(lambda a: a.astype(np.float32), two_axes().gp)
    post = gp.condition(two_axes().y.astype(np.float32))
    new = NEW["two axes"]
    mean = post.mean(new)
    others = jax.eval_shape(lambda: (post.variance(new), post.sample(jax.random.key(0), new)))
    assert {value.dtype for value in (mean, *others)} == {np.dtype("float32")}
    assert_close(mean, two_axes().posterior(new)[0], dtype="float32")


def unnamed():
    return two_axes().gp.condition(two_axes().y)


def of_places():
    return named().gp.condition(named().y)


X = np.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: of_places().mean({"tme": X}), KeyError, "no axis 'tme'.*Did you mean 'time'"),
        (lambda: of_places().variance({"lat": X}), KeyError, "no axis 'lat'"),
        (lambda: unnamed().mean({"time": X}), TypeError, "named axes; this one has none"),
        (lambda: unnamed().mean([X]), ValueError, "one entry per axis, 2 in all; got 1"),
        (lambda: unnamed().mean([X, X, X]), ValueError, "one entry per axis, 2 in all; got 3"),
        (lambda: unnamed().mean(X), ValueError, "one entry per axis, 2 in all; got ndarray"),
        (
            lambda: unnamed().mean([np.ones((3, 2)), None]),
            ValueError,
            r"axis 0 must have shape \(m,\).*got shape \(3, 2\)",
        ),
        (
            lambda: of_places().mean({"place": X}),
            ValueError,
            r"place must have shape \(m, 2\).*got shape \(3,\)",
        ),
        (
            lambda: of_places().sample(jax.random.key(0), {"place": np.ones((4, 3))}),
            ValueError,
            r"place must have shape \(m, 2\).*got shape \(4, 3\)",
        ),
        (lambda: unnamed().mean([None, X * np.nan]), ValueError, "new axis 1 must be finite"),
        (
            lambda: unnamed().mean([["a"], None]),
            TypeError,
            "new axis 0 must be numbers, as the old ones; got labels",
        ),
        (
            lambda: unnamed().variance(include_noise=True, noise=-1.5),
            ValueError,
            r"must not be negative; got -1\.5",
        ),
        (
            lambda: unnamed().variance(include_noise=True, noise=X),
            ValueError,
            r"broadcast to the grid of the prediction, \(5, 4\); got shape \(3,\)",
        ),
        (
            lambda: unnamed().sample(jax.random.key(0), include_noise=True, noise="big"),
            TypeError,
            "must be an array of real numbers; got 'big'",
        ),
        (lambda: unnamed().variance(noise=0.5), TypeError, r"include_noise=True.*noise=0\.5"),
        (
            lambda: unnamed().sample(jax.random.key(0), noise=0.5),
            TypeError,
            r"include_noise=True.*noise=0\.5",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_other_coordinates_of_the_same_number_need_no_new_compilation(monkeypatch):
    """A window that slides compiles once, and once more where places of the grid are in it."""
    traces = []
    original = predict.cross_factor

    def counted(*arguments):
        traces.append(1)
        return original(*arguments)

    monkeypatch.setattr(predict, "cross_factor", counted)
    post = two_axes().gp.condition(two_axes().y)
    for shift in (0.0, 0.1, 0.2):
        new = [np.linspace(0.35, 2.0, 17) + shift, None]  # a number that no other test has
        assert_close(post.mean(axes=new), two_axes().posterior([new[0], SPACE])[0])
    assert len(traces) in (1, 2)
