"""Means: numbers, arrays, callables, and what each does on a new grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import full
from tests.gp.dense import SPACE, TIME, two_axes
from tests.tolerances import assert_close

Y = two_axes().y


def gp_with(mean):
    return kx.GridGP((kx.Matern52(0.6), kx.RBF(0.4)), (TIME, SPACE), noise=0.1, mean=mean)


def wave(time, space):
    return jnp.sin(time)[:, None] * space[None]


def test_a_zero_mean_is_the_default():
    assert isinstance(gp_with(None).mean, kx.ZeroMean)
    assert_close(gp_with(None).log_marginal_likelihood(Y), gp_with(0.0).log_marginal_likelihood(Y))


@pytest.mark.parametrize("number", [0.5, np.float64(0.5), np.array(0.5), jnp.array(0.5)], ids=repr)
def test_a_number_is_a_constant_mean_that_trains(number):
    gp = gp_with(number)
    assert isinstance(gp.mean, kx.ConstantMean)
    (row,) = [p for p in kx.parameters(gp) if p.path == "mean.value"]
    assert row.trainable
    assert row.value.item() == 0.5


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        full(kx.ConstantMean(-2.0), np.full((5, 4), -2.0), id="ConstantMean"),
        pytest.param(3, np.full((5, 4), 3.0), id="int"),
        full(np.arange(20.0).reshape(5, 4), np.arange(20.0).reshape(5, 4), id="array"),
        pytest.param(
            np.arange(5)[:, None],
            np.arange(5)[:, None] * np.ones((5, 4)),
            id="column of integers",
        ),
        full(jnp.arange(4.0), np.arange(4.0) * np.ones((5, 4)), id="row"),
        pytest.param(wave, np.sin(TIME)[:, None] * SPACE, id="callable"),
    ],
)
def test_a_mean_shifts_the_data_and_the_prediction(mean, expected):
    gp, plain = gp_with(mean), gp_with(None)
    assert_close(gp.log_marginal_likelihood(Y), plain.log_marginal_likelihood(Y - expected))
    assert_close(gp.condition(Y).mean(), expected + plain.condition(Y - expected).mean())
    key = jax.random.key(0)
    assert_close(gp.sample(key), expected + plain.sample(key))


def test_a_callable_mean_is_evaluated_on_the_new_grid():
    new = np.array([0.2, 2.0, 3.0])
    fitted = np.sin(TIME)[:, None] * SPACE
    expected = gp_with(None).condition(Y - fitted).mean(axes=[new, None])
    expected += np.sin(new)[:, None] * SPACE
    assert_close(gp_with(wave).condition(Y).mean(axes=[new, None]), expected)


def test_an_array_mean_holds_on_axes_that_stay():
    """It may have size one along the axis that is replaced."""
    post = gp_with(SPACE).condition(Y)
    new = np.array([0.2, 2.0, 3.0])
    expected = SPACE[None] + gp_with(None).condition(Y - SPACE).mean(axes=[new, None])
    assert_close(post.mean(axes=[new, None]), expected)
    with pytest.raises(ValueError, match=r"broadcast to the grid \(5, 3\); got shape \(4,\)"):
        post.mean(axes=[None, new])


def test_an_array_mean_is_data():
    assert not [p for p in kx.parameters(gp_with(np.ones((5, 4)))) if "mean" in p.path]


def test_numbers_of_a_callable_mean_are_frozen_until_they_have_a_domain():
    mean = jax.tree_util.Partial(lambda slope, t, s: slope * t[:, None], jnp.array(0.5))
    (row,) = [p for p in kx.parameters(gp_with(mean)) if "mean" in p.path]
    assert (row.domain, row.trainable) == (None, False)


@pytest.mark.parametrize(
    ("mean", "error", "match"),
    [
        ("zero", TypeError, "must be a number.*got 'zero'"),
        (True, TypeError, "must be a number.*got True"),
        (kx.ZeroMean, TypeError, "must be a number.*got <class 'kronax.gp.means.means.ZeroMean'>"),
        (np.full((5, 4), "a"), TypeError, r"must be a number.*got array\(\[\['a'"),
        (np.nan, ValueError, "got nan"),
        (np.full((5, 4), np.inf), ValueError, r"must be finite; got inf at index \(0, 0\)"),
        (np.ones((4, 5)), ValueError, r"the grid \(5, 4\); got shape \(4, 5\)"),
        (np.ones(5), ValueError, r"the grid \(5, 4\); got shape \(5,\)"),
        (lambda t, s: t, ValueError, r"the grid \(5, 4\); got shape \(5,\)"),
        (lambda t, s: jnp.ones((3, 5, 4)), ValueError, r"grid \(5, 4\); got shape \(3, 5, 4\)"),
    ],
)
def test_bad_means_raise(mean, error, match):
    with pytest.raises(error, match=match):
        gp_with(mean)
