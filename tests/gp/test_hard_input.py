"""Coordinates and data that go wrong in silence elsewhere: right numbers here, or a clear error."""

from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.gp.dense import SPACE, TIME, DenseGP, matern52, squared_exponential, two_axes
from tests.tolerances import assert_close

KERNELS = (lambda x, z: matern52(x, z, 0.6), lambda x, z: squared_exponential(x, z, 0.4))


def case(time, space=SPACE):
    """The process of `two_axes` over other coordinates, beside its dense self."""
    gp = kx.GridGP((kx.Matern52(0.6), 2.5 * kx.RBF(0.4)), (time, space), noise=0.1, mean=0.3)
    return DenseGP(gp, KERNELS, (time, space), 0.1, 2.5, lambda t, s: 0.3)


def test_the_order_of_coordinates_does_not_matter():
    order = np.array([3, 0, 4, 1, 2])
    sorted_one, shuffled = two_axes(), case(TIME[order])
    y = sorted_one.y
    new = [np.array([2.0, 0.35]), None]
    first, second = sorted_one.gp.condition(y), shuffled.gp.condition(y[order])
    assert_close(second.mean(), first.mean()[order])
    assert_close(second.variance(new), first.variance(new))
    assert_close(second.leave_one_out().mean, first.leave_one_out().mean[order])
    assert_close(second.mean([new[0][::-1], None]), first.mean(new)[::-1])


def test_a_coordinate_that_occurs_twice_was_observed_twice():
    twice = case(np.array([0.0, 0.3, 0.3, 0.9]))
    post, (mean, covariance) = twice.gp.condition(twice.y), twice.posterior()
    assert_close(post.mean(), mean)
    assert_close(post.variance(), np.diagonal(covariance).reshape(4, 4))
    assert_close(post.mean()[1], post.mean()[2])
    means, variances = post.leave_one_out()
    expected = twice.left_out()
    assert_close(means, expected[0])
    assert_close(variances, expected[1])
    # White noise of the kernel's own is shared by the two, so it is not diagonal.
    white = kx.GridGP((kx.White(1.0), kx.RBF(0.4)), (twice.axes[0], SPACE), noise=0.1)
    assert white.structures[0].kind == "dense"


def test_an_axis_of_length_one():
    single = case(np.array([0.7]))
    post, (mean, covariance) = single.gp.condition(single.y), single.posterior()
    assert_close(post.mean(), mean)
    assert_close(post.variance(), np.diagonal(covariance).reshape(1, 4))
    draws = jax.eval_shape(lambda: post.sample(jax.random.key(0), sample_shape=2))
    assert draws.shape == (2, 1, 4)
    assert_close(post.leave_one_out().mean, single.left_out()[0])
    # Without its only slice nothing is known.
    alone = post.leave_slice_out(0)
    assert_close(alone.mean, np.full((1, 4), 0.3))
    assert_close(alone.variance, np.full((1, 4), 2.6))
    assert_close(alone.log_scores[0], single.gp.log_marginal_likelihood(single.y))
    longer = post.append(np.ones((1, 4)), [np.array([0.9]), None])
    assert_close(longer.mean(), case(np.array([0.7, 0.9])).gp.condition(longer.y).mean())
    whole = kx.GridGP(
        (kx.RBF(1.0), kx.RBF(1.0)), (kx.circle(np.array([3.0]), 24.0), np.array([1.0])), noise=0.1
    )
    assert_close(whole.condition(np.array([[2.0]])).mean(), np.array([[2.0 / 1.1]]))


def test_far_from_the_data_the_prior_is_back():
    post = two_axes().gp.condition(two_axes().y)
    for far in ([np.array([-1e3, 1e6]), None], [None, np.array([50.0])]):
        shape = post.grid_shape(far)
        assert_close(post.mean(far), np.full(shape, 0.3))
        assert_close(post.variance(far), np.full(shape, 2.5))
        assert_close(post.variance(far, include_noise=True), np.full(shape, 2.6))
    points = np.array([[1e4, 0.0], [0.3, -80.0]])
    assert_close(post.variance(points=points), np.full(2, 2.5))


def test_dates_far_ahead():
    dates = np.arange("2000", "2010", dtype="datetime64[Y]")
    gp = kx.GridGP((kx.Matern32(2.0),), (kx.dates(dates, "years"),), noise=0.1)
    post = gp.condition(np.arange(10.0))
    assert_close(post.variance([np.array(["3000"], "datetime64[Y]")]), np.ones(1))
    # Another resolution is the same date.
    days = np.array(["2004-01-01"], "datetime64[D]")
    assert_close(post.mean([days]), post.mean()[4:5])


def by_name():
    dates = np.arange("2000-01-01", "2000-01-06", dtype="datetime64[D]")
    kernels = {"day": kx.Matern52(0.6), "depth": kx.RBF(0.4)}
    return kx.GridGP(kernels, {"day": dates, "depth": SPACE}, noise=0.1).condition(two_axes().y)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        # In another order than the kernels.
        (
            lambda: two_axes().gp.condition(two_axes().y.T),
            ValueError,
            r"another order.*transpose y",
        ),
        (
            lambda: kx.GridGP({"a": kx.RBF(1.0)}, {"b": TIME}, noise=0.1),
            KeyError,
            "kernel 'a' has no axis: no coordinates of that name.*Known: 'b'",
        ),
        # Of other units.
        (lambda: by_name().mean({"day": np.arange(3.0)}), TypeError, "new day must be dates"),
        (
            lambda: by_name().mean({"depth": np.array(["2000"], "datetime64[D]")}),
            TypeError,
            "new depth must be numbers, as the old ones; got dates",
        ),
        (
            lambda: by_name().mean({"day": np.array([1], "timedelta64[D]")}),
            TypeError,
            "new day must be dates, as the old ones; got numbers",
        ),
        (
            lambda: case(np.arange(5).astype("timedelta64[D]")),
            TypeError,
            r"dates or labels; got durations",
        ),
        # Missing coordinates.
        (
            lambda: by_name().mean({"depth": []}),
            ValueError,
            r"depth must have shape .*got shape \(0,\)",
        ),
        (
            lambda: by_name().mean({"day": np.array(["2001-01-01", "NaT"], "datetime64[D]")}),
            ValueError,
            "must not be missing; entry 1 is NaT",
        ),
        (lambda: by_name().mean([None]), ValueError, "one entry per axis, 2 in all; got 1"),
        # Objects.
        (lambda: case(np.array([Decimal(k) for k in range(5)])), TypeError, "got dtype object"),
        (
            lambda: two_axes().gp.condition(np.full(two_axes().y.shape, object())),
            TypeError,
            "y must be an array of real numbers",
        ),
        (
            lambda: by_name().mean({"depth": np.array([Decimal(1)])}),
            TypeError,
            "got dtype object",
        ),
        (
            lambda: by_name().mean({"day": np.array([object()])}),
            TypeError,
            "new day must be dates",
        ),
    ],
)
def test_what_cannot_be_meant_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_the_variance_of_several_data_sets_is_one():
    """It does not depend on the data, so it has no batch axes; it broadcasts against the means."""
    several = np.stack([two_axes().y, 2 * two_axes().y, two_axes().y ** 2])
    post = two_axes().gp.condition(several)
    assert post.mean().shape == (3, 5, 4)
    assert post.variance().shape == post.variance(include_noise=True).shape == (5, 4)
    assert jnp.sqrt(post.variance()).shape == post.leave_one_out().variance.shape


LINE = kx.GridGP((kx.RBF(1.0),), (TIME,), noise=0.1)
OP = kx.Kronecker(np.eye(2), np.eye(3))
WHOLE = {
    "noise of an operator": lambda n: (OP + n).noise,
    "an operator": lambda n: (n * OP).to_dense(),
    "an identity": lambda n: kx.ScaledIdentity(n, np.int64(3)).to_dense(),
    "a variance per cell": lambda n: kx.KroneckerPlusDiagonal(OP, n).variances,
    "the mean of a density": lambda n: kx.normal_logpdf(np.ones(6), n, OP),
    "the noise of a distribution": lambda n: kx.KroneckerNormal(n, OP, n).variance,
    "noise": lambda n: kx.replace(process_with(noise=n), {"noise": n}).noise,
    "a mean": lambda n: process_with(mean=n).mean_on((None,)),
    "noise of new observations": lambda n: LINE.condition(TIME).variance(
        include_noise=True, noise=n
    ),
    "a period": lambda n: kx.circle(TIME, n).period,
    "a variance": lambda n: (n * kx.RBF(n)).variance,
    "the rank of an axis": lambda n: process_with(structure=(n,)).structures[0].rank,
    "a degree": lambda n: kx.PolynomialMean(0, n).degree,
    "harmonics": lambda n: kx.HarmonicMean(0, n, n).order,
}


def process_with(**changes):
    return kx.GridGP(**{"kernels": (kx.RBF(1.0),), "axes": (TIME,), "noise": 0.1, **changes})


@pytest.mark.parametrize("name", WHOLE)
def test_one_whole_number_of_any_library_is_a_number(name):
    expected = np.asarray(WHOLE[name](5))
    for number in (np.int64(5), np.array(5), jnp.array(5)):
        found = np.asarray(WHOLE[name](number))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_an_axis_may_be_counted_by_numpy():
    post = two_axes().gp.condition(two_axes().y)
    assert_close(post.leave_slice_out(np.int64(1)).mean, post.leave_slice_out(1).mean)
    assert_close(post.mean_derivative(np.int64(1)), post.mean_derivative(1))
    means = [process_with(mean=kx.LinearMean(i, [1, 2])).mean_on((None,)) for i in (0, np.int64(0))]
    assert_close(*means)


ODD = {
    "a batch of nothing": (lambda: kx.fit(LINE, np.zeros((0, 5)), progress=False), "one data set"),
    "nothing for a parameter": (lambda: kx.replace(LINE, {"noise": None}), "noise must be a num"),
    "text for a parameter": (lambda: kx.replace(LINE, {"noise": "1"}), "noise must be a number"),
    "from the right": (lambda: np.ones(6) @ OP, r"op\.T @ x"),
    "no period": (lambda: kx.HarmonicMean(0, None), "The period must be positive"),
    "no categories": (lambda: kx.Categorical.with_rank(0), "num_categories must be a whole num"),
    "half a rank": (lambda: kx.Categorical.with_rank(3, 1.5), "rank must be a whole number"),
    "a tolerance in text": (
        lambda: kx.fit(LINE, TIME, tolerance="a", progress=False),
        "tolerance must be a finite number",
    ),
    "quantiles in text": (lambda: LINE.condition(TIME).to_dataset(quantiles="a"), "Quantiles must"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_input_is_refused_in_words(name):
    call, match = ODD[name]
    with pytest.raises((TypeError, ValueError), match=match):
        call()


def test_double_precision_of_numpy_becomes_jaxs_without_a_word():
    with jax.enable_x64(False):
        number, axis = np.array(0.5), np.linspace(0, 1, 4)
        y = np.ones((4, 4), np.float32)
        for noise in (
            number,
            np.float64(0.5),
            {0: number},
            {1: np.full(4, 0.5)},
            np.full((4, 4), 0.5),
        ):
            kernels = (number * kx.RBF(number), kx.Matern32(np.float64(0.5)))
            gp = kx.GridGP(kernels, (axis, axis), noise=noise, mean=number)
            assert gp.dtype == np.float32
            assert jax.eval_shape(gp.log_marginal_likelihood, y).dtype == np.float32
