"""Profile likelihoods beside exact ones and dense minimisation."""

import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from numpyro.distributions import constraints

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import matern52, squared_exponential

TIME, SPACE = np.linspace(0, 1, 7), np.linspace(0, 2, 6)
Y = np.asarray(
    kx.GridGP((kx.Matern52(0.5), 2.0 * kx.RBF(1.0)), (TIME, SPACE), noise=0.1).sample(
        jax.random.key(4), include_noise=True
    )
)
CHI = scipy.stats.chi2.ppf(0.95, 1) / 2


def profile(result, path, values=None, **options):
    return kx.profile_likelihood(result, path, values, progress=False, **options)


@pytest.fixture(scope="module")
def fitted():
    gp = kx.GridGP((kx.Matern52(0.3), 1.0 * kx.RBF(0.7)), (TIME, SPACE), noise=0.3)
    return kx.fit(gp, Y, progress=False)


def dense_loss(raw):
    first, second, variance, noise = np.exp(raw)
    signal_part = np.kron(matern52(TIME, TIME, first), squared_exponential(SPACE, SPACE, second))
    root = np.linalg.cholesky(variance * signal_part + noise * np.eye(42))
    white = scipy.linalg.solve_triangular(root, Y.ravel(), lower=True)
    return white @ white / 2 + np.log(np.diag(root)).sum() + 21 * np.log(2 * np.pi)


def dense_profile(noise, start):
    found = scipy.optimize.minimize(
        lambda raw: dense_loss([*raw, np.log(noise)]), start, method="BFGS", options={"gtol": 1e-5}
    )
    return found.fun


def test_the_losses_are_minimised_over_the_other_parameters(fitted):
    found = profile(fitted, "noise", [0.3, 0.07])
    assert found.values == pytest.approx([0.07, fitted.model.noise.item(), 0.3])
    assert found.fitted == 1
    assert found.converged.all()
    start = np.log([p.value.item() for p in fitted.parameters if p.path != "noise"])
    for value, loss in zip(found.values, found.losses, strict=True):
        assert loss == pytest.approx(dense_profile(value, start), abs=1e-5)
    # With the others left where they are, the loss would be higher.
    held = kx.replace(fitted.model, {"noise": 0.3})
    assert -held.log_marginal_likelihood(Y) > found.losses[2] + 0.01


def test_the_interval_ends_where_the_likelihood_ratio_test_rejects(fitted):
    low, high = profile(fitted, "noise").interval(0.95)
    start = np.log([p.value.item() for p in fitted.parameters if p.path != "noise"])

    def excess(log_noise):
        return dense_profile(np.exp(log_noise), start) - fitted.loss - CHI

    best = np.log(fitted.model.noise.item())
    expected = [
        np.exp(scipy.optimize.brentq(excess, *ends, xtol=1e-3))
        for ends in ((best - 1.5, best), (best, best + 1.5))
    ]
    assert (low, high) == pytest.approx(expected, rel=5e-3)


def test_the_values_go_outwards_until_three_standard_errors_would_be_bounded(fitted):
    found = profile(fitted, "noise")
    rise = found.losses - found.losses.min()
    assert rise[0] >= 4.5 > rise[1]
    assert rise[-1] >= 4.5 > rise[-2]
    raw = np.log(found.values)
    laplace = fitted.laplace()
    place = laplace.names.index("noise")
    error = float(jnp.sqrt(laplace.covariance[place, place]))
    assert found.standard_error == pytest.approx(error)
    np.testing.assert_allclose(np.diff(raw), error / 2, rtol=1e-6)


def test_the_models_are_those_at_each_value(fitted):
    found = profile(fitted, "noise", [0.07, 0.3])
    np.testing.assert_allclose(found.models.noise, found.values)
    losses = -eqx.filter_vmap(lambda gp: gp.log_marginal_likelihood(Y))(found.models)
    np.testing.assert_allclose(losses, found.losses, rtol=1e-9)


class Bowl(eqx.Module):
    """One of several losses, by a whole number, so that all share their programs."""

    a: jax.Array = kx.parameter(constraints.real)
    b: jax.Array = kx.parameter(constraints.real)
    kind: jax.Array


# The first has parabolas for profiles; the last is no number beyond a = 2.
QUADRATIC, BOUNDED, QUARTIC, ENDING = range(4)
PRECISION = np.array([[4.0, 1.0, -0.5], [1.0, 2.0, 0.3], [-0.5, 0.3, 1.0]])
CENTRE = np.array([1.0, -2.0, 0.5])


def bowl_loss(m):
    offset = jnp.concatenate([m.a[None], m.b]) - CENTRE
    quadratic, rest = offset @ PRECISION @ offset / 2, m.b @ m.b
    ending = jnp.where((m.kind == ENDING) & (m.a > 2), jnp.nan, 1.0) * quadratic
    bounded, quartic = jnp.tanh(m.a - 1) ** 2 + rest, (m.a - 2) ** 4 + rest
    return jnp.stack([quadratic, bounded, quartic, ending])[m.kind]


def bowl_fit(kind=QUADRATIC, start=0.0, **options):
    model = Bowl(jnp.asarray(start), jnp.full(2, start), jnp.asarray(kind))
    return kx.fit(model, loss=bowl_loss, progress=False, **options)


@pytest.mark.parametrize(("path", "place"), [full("a", 0), ("b[1]", 2)])
def test_numbers_and_entries_of_arrays_have_exact_parabolas(path, place):
    sd = np.sqrt(np.linalg.inv(PRECISION)[place, place])
    found = profile(bowl_fit(), path)
    assert found.standard_error == pytest.approx(sd, rel=1e-6)
    expected = (found.values - CENTRE[place]) ** 2 / (2 * sd**2)
    np.testing.assert_allclose(found.losses - found.losses.min(), expected, atol=1e-7)
    for level in (0.5, 0.95, 0.99):
        half = scipy.stats.norm.ppf(0.5 + level / 2) * sd
        ends = CENTRE[place] - half, CENTRE[place] + half
        assert found.interval(level) == pytest.approx(ends, abs=1e-4)
    between = CENTRE[place] + np.array([-1.1, 0.3]) * sd
    np.testing.assert_allclose(found.rise(between), [1.1**2 / 2, 0.3**2 / 2], rtol=1e-3)
    assert np.isnan(found.rise(CENTRE[place] + 9 * sd))


def test_priors_are_part_of_the_loss():
    priors = {"a": dist.Normal(0.0, 0.5), "b": dist.Normal(0.0, 1.0)}
    found = profile(bowl_fit(priors=priors), "a")
    posterior = PRECISION + np.diag([4.0, 1.0, 1.0])
    centre = np.linalg.solve(posterior, PRECISION @ CENTRE)[0]
    half = 1.959964 * np.sqrt(np.linalg.inv(posterior)[0, 0])
    assert found.interval() == pytest.approx((centre - half, centre + half), abs=1e-4)


def test_a_single_parameter_needs_no_minimisation():
    found = profile(bowl_fit(freeze=("b",)), "a")
    assert found.converged.all()
    fixed = CENTRE[0] - PRECISION[0, 1:] @ (0 - CENTRE[1:]) / PRECISION[0, 0]
    half = 1.959964 / 2
    assert found.interval() == pytest.approx((fixed - half, fixed + half), abs=1e-4)


class Pair(eqx.Module):
    first: jax.Array = kx.parameter(constraints.positive)
    second: jax.Array = kx.parameter(constraints.positive)
    third: jax.Array = kx.parameter(constraints.less_than(5.0))


def pair_loss(pair):
    return (pair.first - 2) ** 2 + (pair.second - 4) ** 2 + 3 * (pair.third - 1) ** 2


def test_shared_parameters_are_held_together_in_any_domain():
    start = Pair(1.0, 1.0, 0.0)
    result = kx.fit(start, loss=pair_loss, share=[("first", "second")], progress=False)
    found = profile(result, "first", [2.0, 3.5])
    np.testing.assert_allclose(found.values, [2.0, 3.0, 3.5], rtol=1e-6)
    np.testing.assert_allclose(found.losses, [4.0, 2.0, 2.5], rtol=1e-9)
    np.testing.assert_allclose(found.models.second, found.values)
    # With an upper end the unconstrained values fall where the natural ones rise.
    found = profile(result, "third")
    assert (np.diff(found.values) > 0).all()
    half = np.sqrt(CHI / 3)
    assert found.interval() == pytest.approx((1 - half, 1 + half), rel=1e-2)
    np.testing.assert_allclose(found.rise([0.5, 1.5]), [0.75, 0.75], rtol=1e-2)


def test_what_the_data_do_not_bound_is_said():
    found = profile(bowl_fit(BOUNDED, 1.0), "a")
    assert found.values[[0, -1]] == pytest.approx([1 - 6 / np.sqrt(2), 1 + 6 / np.sqrt(2)])
    with pytest.raises(ValueError, match=r"rise by 1\.92 .*; down to -3\.243 it rises by 0\.999"):
        found.interval()
    assert "95 % interval: not bounded below not bounded above" in repr(found)
    low, high = found.interval(0.5)
    half = np.arctanh(scipy.stats.norm.ppf(0.75) / np.sqrt(2))
    assert (low, high) == pytest.approx((1 - half, 1 + half), abs=0.02)


@pytest.mark.parametrize("tolerance", everyday([1e-3, 1e-9], [1e-3]))
def test_steps_adapt_to_a_loss_that_is_no_parabola(tolerance):
    """At a flat optimum the standard error is far too long, or there is none."""
    found = profile(bowl_fit(QUARTIC, 1.0, tolerance=tolerance), "a", tolerance=1e-9)
    roots = np.sqrt(2 * (found.losses - found.losses.min()))
    assert np.diff(roots).max() <= 1
    assert roots[[0, -1]].min() >= 3
    ends = (2 - CHI**0.25, 2 + CHI**0.25)
    assert found.interval() == pytest.approx(ends, rel=0.02)


def test_a_better_point_than_the_fit_is_said():
    early = bowl_fit(optimizer=optax.sgd(1e-3), num_steps=1)
    found = profile(early, "a", np.linspace(-1, 3, 9))
    text = repr(found)
    assert "The fit was not at its best: the loss is" in text
    assert "Fit again from there" in text
    assert found.losses.min() == pytest.approx(0.0, abs=1e-2)
    assert "The fit was not at its best" not in repr(profile(bowl_fit(), "a"))


def test_it_prints_as_a_table(fitted):
    found = profile(fitted, "noise", [0.07, 0.3])
    lines = repr(found).splitlines()
    assert lines[0] == "Profile likelihood of noise at 3 values"
    low, high = found.interval()
    assert lines[1] == f"95 % interval: from {low:.4g} to {high:.4g}, by the rise of the loss"
    assert lines[2].split() == ["value", "loss", "rise"]
    assert lines[4].split() == ["0.1346", f"{fitted.loss:.6g}", "0.000", "fitted"]
    assert len(lines) == 6
    short = profile(fitted, "noise", [0.3, 0.5], num_steps=1)
    assert list(short.converged) == [True, False, False]
    assert repr(short).count("not converged") == 2


def test_all_values_share_one_compiled_loop(fitted, caplog):
    def loops():
        return [
            r
            for r in caplog.records
            if r.message.startswith("Compiling") and "advance" in r.message
        ]

    with jax.log_compiles():
        profile(fitted, "kernels[0].lengthscale", [0.3, 0.4, 0.6, 0.9])
        assert len(loops()) == 1
        profile(fitted, "kernels[0].lengthscale", [0.35, 0.45])
        other = kx.fit(fitted.model, Y + 0.1, progress=False)  # by the loop of `fitted`
        profile(other, "kernels[0].lengthscale", [0.35])
    assert len(loops()) == 1


def test_float32_stays_float32(fitted):
    gp = kx.GridGP(
        (kx.Matern52(np.float32(0.5)), np.float32(2) * kx.RBF(np.float32(1.0))),
        (TIME, SPACE),
        noise=np.float32(0.1),
    )
    result = kx.fit(gp, Y.astype(np.float32), progress=False)
    found = profile(result, "noise")
    assert found.values.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(found.models)} == {np.dtype("float32")}
    exact = profile(fitted, "noise").interval()
    assert found.interval() == pytest.approx(exact, rel=0.02)


def test_ctrl_c_ends_it(monkeypatch):
    result = bowl_fit()
    monkeypatch.setattr(
        "kronax.fitting.driver.Bar.show", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        profile(result, "a")


def test_a_profile_ends_where_the_loss_is_no_number():
    result = bowl_fit(ENDING)
    found = profile(result, "a")
    assert found.values.max() <= 2
    assert found.values.min() < -0.5
    with pytest.raises(ValueError, match="bound"):
        found.interval()
    with pytest.raises(
        FloatingPointError, match=r"profile of a cannot be followed to the value 3\.5"
    ):
        profile(result, "a", [1.5, 3.5])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda r: profile(r, "nose"), KeyError, "'nose'.*Did you mean 'noise'"),
        (lambda r: profile(r, "noise[0]"), ValueError, r"one number; noise has shape \(\)\."),
        (lambda r: profile(r, "noise", [0.1, -1.0]), ValueError, "Each value of noise must be pos"),
        (lambda r: profile(r, "noise", []), ValueError, r"one or more numbers; got shape \(0,\)"),
        (lambda r: profile(r, "noise", 0.1), ValueError, r"got shape \(\)"),
        (lambda r: profile(r, "noise", [0.05, 0.3]).interval(1.0), ValueError, r"got 1\.0"),
        (lambda r: profile(bowl_fit(), "b"), ValueError, r"b has shape \(2,\).*as in b\[0\]"),
        (lambda r: profile(bowl_fit(), "b[2]"), ValueError, r"b has shape \(2,\)"),
        (
            lambda r: profile(bowl_fit(freeze=("b",)), "b[0]"),
            ValueError,
            "b.* was not: it is frozen",
        ),
        (
            lambda r: profile(
                kx.fit(
                    r.model,
                    Y[None],
                    independent=True,
                    optimizer=optax.sgd(1e-3),
                    num_steps=1,
                    progress=False,
                ),
                "noise",
            ),
            TypeError,
            r"got 1 independent ones.*result\[i\]",
        ),
    ],
)
def test_bad_input_raises(fitted, call, error, match):
    with pytest.raises(error, match=match):
        call(fitted)


def test_a_profile_is_of_a_fit():
    with pytest.raises(TypeError, match=r"result of kx\.fit; got GridGP\. Fit"):
        profile(kx.GridGP((kx.RBF(1.0),), (TIME,), noise=0.1), "noise")
