"""Fits from several starts, and independent fits of several data sets."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro.distributions import constraints

import kronax as kx
from kronax.fitting import steps
from tests.fitting.cases import draws, fit, make, natural

Y = draws(5)
SMALL_STEPS = optax.sgd(1e-3)  # its loop compiles in half the time of a line search's


class Point(eqx.Module):
    """One number."""

    a: jax.Array = kx.parameter(constraints.real)


def two_valleys(m):
    """Minima near −1 and near 1; the one near −1 is lower."""
    return (m.a**2 - 1) ** 2 + 0.3 * m.a


@pytest.fixture(scope="module")
def many():
    return fit(y=Y, independent=True)


@pytest.fixture(scope="module")
def alone():
    return [fit(y=y) for y in Y]


def test_restarts_find_the_lower_valley():
    options = {"loss": two_valleys, "progress": False}
    stuck = kx.fit(Point(1.5), **options)
    assert stuck.model.a.item() == pytest.approx(0.96, abs=0.01)
    found = kx.fit(Point(1.5), **options, restarts=6, key=jax.random.key(1))
    assert found.model.a.item() == pytest.approx(-1.035, abs=0.01)
    assert len(found.restarts) == 7
    assert found.restarts[0].loss == pytest.approx(stuck.loss)
    assert found.loss == min(r.loss for r in found.restarts)
    assert 0 < found.restarts.num_best < 7
    assert f"best of 7 starts; {found.restarts.num_best} of them reached it" in found.summary()
    assert re.search(r"as given +\S+ +\d+ +converged\n1 ", repr(found.restarts))


def test_starts_may_be_given_as_models():
    starts = [Point(-1.4), Point(0.2)] * 3
    found = kx.fit(Point(1.5), loss=two_valleys, restarts=starts, progress=False)
    assert found.model.a.item() == pytest.approx(-1.035, abs=0.01)
    assert len(found.restarts) == 7


def test_a_key_decides_the_starts():
    ends = [
        fit(restarts=2, optimizer=SMALL_STEPS, num_steps=1, key=key)
        for key in (None, jax.random.key(0), jax.random.key(1))
    ]
    losses = [[r.loss for r in end.restarts] for end in ends]
    assert losses[0] == losses[1]
    assert losses[0][0] == losses[2][0]
    assert losses[0][1] != losses[2][1]


def test_restarts_of_a_gp_end_where_its_fit_ends(alone):
    found = fit(y=Y[0], restarts=3)
    assert found.loss == pytest.approx(alone[0].loss, abs=1e-6)
    assert found.converged
    assert len(found.losses) == found.num_steps + 1


def test_a_start_that_is_not_finite_is_one_lost_start():
    def loss(m):
        return jnp.sqrt(m.a) + 1 / m.a

    with pytest.raises(FloatingPointError, match="cannot start: the loss is nan"):
        kx.fit(Point(-1.0), loss=loss, progress=False)
    found = kx.fit(Point(-1.0), loss=loss, restarts=[Point(2.0)], progress=False)
    assert found.converged
    assert found.model.a.item() == pytest.approx(2 ** (2 / 3), rel=1e-4)
    assert found.restarts[0].failed
    assert "the loss is nan" in repr(found.restarts)


def test_independent_fits_are_the_fits_one_by_one(many, alone):
    np.testing.assert_allclose(many.loss, [r.loss for r in alone], rtol=1e-10)
    np.testing.assert_array_equal(many.num_steps, [r.num_steps for r in alone])
    assert many.converged.all()
    for path, value in natural(many).items():
        np.testing.assert_allclose(value, [natural(r)[path] for r in alone], rtol=1e-6)


def test_one_of_the_independent_fits_is_a_result(many, alone):
    one = many[3]
    assert len(many) == 5
    assert (
        one.summary(standard_errors=False).splitlines()[1:]
        == (alone[3].summary(standard_errors=False).splitlines()[1:])
    )
    np.testing.assert_allclose(one.losses, alone[3].losses)
    assert one.model.log_marginal_likelihood(Y[3]).item() == pytest.approx(-one.loss)
    np.testing.assert_allclose(
        one.laplace().covariance, alone[3].laplace().covariance, rtol=1e-4, atol=1e-8
    )
    with pytest.raises(IndexError, match="5 fits; got index 5"):
        many[5]
    with pytest.raises(TypeError, match="this is one fit"):
        alone[0][0]
    with pytest.raises(TypeError, match=r"single fit; got 5 .*result\[i\]"):
        many.laplace()


def test_the_model_of_independent_fits_is_used_under_vmap(many, alone):
    mean = eqx.filter_jit(eqx.filter_vmap(lambda gp, y: gp.condition(y).mean()))
    means = mean(many.model, Y)
    np.testing.assert_allclose(means[2], alone[2].model.condition(Y[2]).mean(), atol=1e-6)


def test_independent_fits_have_restarts_of_their_own(many):
    found = fit(y=Y[:2], independent=True, restarts=3)
    assert [len(table) for table in found.restarts] == [4, 4]
    np.testing.assert_allclose(found.loss, many.loss[:2], atol=1e-6)


def test_the_summary_of_independent_fits_counts(many):
    text = many.summary()
    assert text.startswith("5 of 5 fits converged in ")
    assert "kernels[0].lengthscale  float64[5] in [" in text
    few = fit(y=Y, independent=True, optimizer=SMALL_STEPS, num_steps=2)
    assert "5 not converged: the limit of 2 steps was reached" in few.summary()


def test_faults_of_some_fits_are_counted():
    bad = np.stack([Y[0], Y[0] * 1e200])
    with pytest.warns(RuntimeWarning, match="1 of 2 fits stopped: the loss is inf"):
        found = fit(y=bad, independent=True)
    assert found.converged.tolist() == [True, False]
    assert found.model.noise[1].item() == pytest.approx(0.3)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="batched LAPACK in a loop may deadlock before JAX 0.12"
)
def test_fits_side_by_side_are_the_fits_one_after_another(many, monkeypatch, uncompiled):
    monkeypatch.setattr(steps, "side_by_side", lambda: True)
    beside = fit(y=Y, independent=True)
    np.testing.assert_allclose(beside.loss, many.loss, rtol=1e-8)
    np.testing.assert_array_equal(beside.num_steps, many.num_steps)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fit(restarts=-1), ValueError, "restarts must be the number .*; got -1"),
        (lambda: fit(restarts=1.5), ValueError, r"restarts must be .*; got 1\.5"),
        (lambda: fit(restarts=[Point(1.0)]), ValueError, "form of the model .*; got Point"),
        (
            lambda: fit(y=Y[0], independent=True),
            ValueError,
            r"one leading axis.*got shape \(7, 6\)",
        ),
        (
            lambda: kx.fit(Point(1.0), loss=two_valleys, independent=True),
            TypeError,
            "needs data `y`, one entry for each fit; got a loss",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_members_start_at_places_of_their_own():
    """Data in other units: each member's random starts are its own, and so is what they reach."""
    pair = np.stack([1e-3 * Y[0], 1e3 * Y[1]])
    found = fit(y=pair, independent=True, restarts=3)
    for i in range(2):
        alone = fit(y=pair[i], restarts=3)
        assert found.loss[i] == pytest.approx(alone.loss, abs=1e-3)
    assert found.restarts[0].num_best >= 3


def test_models_to_start_at_agree_in_what_is_frozen():
    other = kx.replace(make(), {"noise": 0.2})
    with pytest.raises(ValueError, match=r"agree .* in what does not train; noise differs"):
        fit(y=Y[0], freeze=("noise",), restarts=[other])


def test_the_point_that_converged_is_the_one_returned():
    """In float32 an earlier point may have a loss that is lower by rounding."""
    x = np.linspace(0, 1, 15, dtype=np.float32)
    truth = kx.GridGP((kx.RBF(np.float32(0.3)), kx.RBF(np.float32(0.3))), (x, x), noise=0.1)
    _, build = kx.unconstrain(truth)

    @jax.jit
    @jax.grad
    def slopes_of(raw, y):
        return -build(raw).log_marginal_likelihood(y)

    for seed in range(3):
        y = truth.sample(jax.random.key(seed), include_noise=True)
        result = fit(truth, y)
        if not result.converged:
            continue
        slopes = slopes_of(kx.unconstrain(result.model)[0], y)
        assert max(float(abs(s)) for s in slopes.values()) / y.size < 2e-5


def test_the_loss_is_that_of_the_model_that_is_returned():
    def cliff(m):
        return jnp.where(m.a < 0.5, -jnp.inf, m.a)

    with pytest.warns(RuntimeWarning, match="the loss is -inf"):
        found = kx.fit(Point(1.0), loss=cliff, optimizer=optax.sgd(0.2), progress=False)
    assert found.loss == pytest.approx(found.model.a.item())
