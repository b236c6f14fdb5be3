"""What is asked of a posterior with a likelihood: more data, batches, forecasts, slices."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import xarray

import kronax as kx
from kronax.gp.sites import leave_one_out as module
from kronax.gp.sites.few import Weighted, certain_evidence
from tests.everyday import everyday
from tests.gp.test_sites import COUNTS, EXPOSURE, FIELD, PRIOR, SEEN, SPACE, TIME, data, model


def on(time, exposure):
    kernels = (0.7 * kx.Matern52(2.0), kx.Matern32(3.0))
    return kx.GridGP(kernels, (SPACE, time), mean=0.5, likelihood=kx.Poisson(exposure))


@pytest.fixture(scope="module")
def post():
    return model(kx.Poisson(EXPOSURE)).condition(data("Poisson"))


@pytest.fixture(scope="module")
def short():
    return on(TIME[:3], EXPOSURE[:, :3]).condition(data("Poisson")[:, :3])


def test_appended_slices_are_those_of_the_longer_grid(post, short):
    y = data("Poisson")
    longer = short.append(y[:, 3:], (None, TIME[3:]), exposure=EXPOSURE[:, 3:])
    np.testing.assert_array_equal(longer.mean(), post.mean())
    np.testing.assert_array_equal(longer.variance(), post.variance())
    with pytest.raises(TypeError, match=r"`exposure` at the new places.*Pass exposure="):
        short.append(y[:, 3:], (None, TIME[3:]))
    with pytest.raises(ValueError, match="counts"):
        short.append(y[:, 3:] + 0.5, (None, TIME[3:]), exposure=1.0)


def test_fields_of_a_likelihood_on_a_longer_grid():
    """Those that are the same along the axis stay so."""
    sizes = (5, 4), (5, 2)
    like = kx.Poisson(EXPOSURE)
    longer = like.longer({"exposure": 2.0}, 1, sizes, in_front=True).exposure
    np.testing.assert_array_equal(longer, np.concatenate([np.full((5, 2), 2.0), EXPOSURE], axis=1))
    for exposure in (None, 3.0, EXPOSURE[:, :1]):
        kept = kx.Poisson(exposure).longer({}, 1, sizes, in_front=False).exposure
        assert (kept is None) if exposure is None else np.array_equal(kept, exposure)
    both = kx.Poisson().longer({"exposure": 2.0}, 1, sizes, in_front=False).exposure
    np.testing.assert_array_equal(both[0], [1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    with pytest.raises(KeyError, match="exposure"):
        kx.Poisson().longer({"people": 2.0}, 1, sizes, in_front=False)


def test_a_batch_is_asked_as_its_data_sets_are():
    gp = kx.GridGP(
        {"place": 0.7 * kx.Matern52(2.0), "time": kx.Matern32(3.0)},
        {"place": SPACE, "time": TIME},
        mean=0.5,
        likelihood=kx.Poisson(EXPOSURE),
    )
    y = np.stack([data("Poisson"), np.where(SEEN, COUNTS[::-1], np.nan)])
    both = xarray.DataArray(
        y, {"who": ["a", "b"], "place": SPACE, "time": TIME}, ("who", "place", "time"), "deaths"
    )
    posts, one = gp.condition(both), gp.condition(y[1])
    assert len(posts) == 2
    np.testing.assert_array_equal(posts[1].mean(), one.mean())
    found, alone = posts.response(), one.response()
    assert eqx.tree_equal(found.likelihood, alone.likelihood)  # one for all
    names = "mean std quantiles observation_mean observation_std observation_quantiles"
    for name in names.split():
        whole, part = getattr(found, name), getattr(alone, name)
        np.testing.assert_array_equal(whole[..., 1, :, :], part)
    # One number, without a batch.
    per_unit, alone = (p.response(quantiles=(), exposure=1.0) for p in (posts, one))
    for name in ("observation_mean", "observation_std"):
        np.testing.assert_array_equal(getattr(per_unit, name)[1], getattr(alone, name))
    for name in ("mean", "variance"):
        whole = getattr(posts, name)()
        np.testing.assert_array_equal(whole, [getattr(p, name)() for p in posts])
    whole = posts.leave_one_out()
    np.testing.assert_allclose(whole.log_score, [p.leave_one_out().log_score for p in posts])
    assert posts.sample(jax.random.key(0), sample_shape=3).shape == (3, 2, 5, 4)
    new = np.nan_to_num(y)
    np.testing.assert_array_equal(
        posts.log_prob(new, pointwise=True)[1], one.log_prob(new[1], pointwise=True)
    )
    ds = posts.to_dataset(response=True)
    assert ds["observation_mean"].dims == ("who", "place", "time")
    assert ds["quantiles"].dims == ("quantile", "who", "place", "time")
    assert posts.to_dataset()["standard_deviation"].shape == (2, 5, 4)
    assert posts[0].to_dataset()["mean"].dims == ("place", "time")


def longer_sites(short):
    return [
        np.concatenate([np.asarray(x), np.zeros((5, 1))], axis=1)
        for x in (short.sites.precision, short.sites.target)
    ]


def densities_given(short, y, exposure):
    """Of every count that there is, by fine sums, and of all of them, by many draws."""
    precision, target = longer_sites(short)
    covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.diag(precision.ravel()))
    mean = 0.5 + covariance @ (precision * (target - 0.5)).ravel()
    seen = np.flatnonzero(~np.isnan(y))
    ahead = 4 * seen + 3
    mean, covariance = mean[ahead], covariance[np.ix_(ahead, ahead)]
    x = np.linspace(-9, 9, 4001)[:, None]
    f = mean + np.sqrt(np.diag(covariance)) * x
    density = scipy.stats.poisson.pmf(y[seen], exposure[seen] * np.exp(f))
    weights = scipy.stats.norm.pdf(x)
    f = np.random.default_rng(0).multivariate_normal(mean, covariance, 200_000)
    joint = scipy.stats.poisson.logpmf(y[seen], exposure[seen] * np.exp(f)).sum(axis=1)
    alone = np.log((weights * density).sum(axis=0) / weights.sum())
    return alone, scipy.special.logsumexp(joint) - np.log(200_000)


def forecast_given(short, y, exposure):
    """Mean, variance and sites of the last slice, the sites of older data held, in plain NumPy."""
    seen = ~np.isnan(y)
    precision, target = longer_sites(short)
    for _ in range(60):
        covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.diag(precision.ravel()))
        weighted = precision * (target - 0.5)
        mean = (0.5 + covariance @ weighted.ravel()).reshape(5, 4)[:, 3]
        variance = np.diag(covariance).reshape(5, 4)[:, 3]
        rate = exposure * np.exp(mean + variance / 2)
        precision[:, 3] = np.where(seen, rate, 0)
        target[:, 3] = np.where(seen, mean + (y - rate) / rate, 0)
    return mean, variance


def test_a_filter_takes_in_counts(post, short):
    service = short.filter(1)
    ahead = service.response(3.0, quantiles=(), exposure=1.0)
    alike = short.response((None, [3.0]), quantiles=(), exposure=1.0)
    np.testing.assert_allclose(ahead.observation_std, alike.observation_std[:, 0])
    y, exposure = data("Poisson")[:, 3], EXPOSURE[:, 3]
    later, surprise = service.update(y, 3.0, exposure=exposure)
    assert surprise.count == 4
    mean, variance = forecast_given(short, y, exposure)
    np.testing.assert_allclose(later.predict(3.0).mean, mean, atol=1e-6)
    np.testing.assert_allclose(later.predict(3.0).variance, variance, rtol=1e-5)
    # Conditioning on all moves the older sites as well, by little.
    sd = np.sqrt(post.variance()[:, 3])
    np.testing.assert_allclose((later.predict(3.0).mean - post.mean()[:, 3]) / sd, 0, atol=0.05)
    alone, joint = densities_given(short, y, exposure)
    np.testing.assert_allclose(surprise.pointwise[~np.isnan(y)], alone, rtol=1e-6)
    np.testing.assert_allclose(surprise.log_density, joint, atol=0.03)
    with pytest.raises(TypeError, match=r"`exposure` at new times.*varies along axis 1"):
        service.update(y, 3.0)
    with pytest.raises(ValueError, match="counts"):
        service.update(y + 0.5, 3.0, exposure=1.0)


def test_several_slices_are_taken_in_one_after_another(short, tmp_path):
    service = on(TIME[:3], EXPOSURE[:, :1]).condition(COUNTS[:, :3]).filter(1)
    y = np.stack([COUNTS[:, 3], COUNTS[:, 0]], axis=1)
    several, surprise = service.update(y, [3.0, 4.5])
    one, first = service.update(y[:, 0].astype(int), 3.0)
    one, second = one.update(y[:, 1], 4.5)
    np.testing.assert_allclose(several.predict(5.0).mean, one.predict(5.0).mean)
    expected = [first.log_density, second.log_density]
    np.testing.assert_allclose(surprise.log_density, expected)
    assert several.response([5.0, 6.0], quantiles=()).mean.shape == (5, 2)
    one.save(tmp_path / "filter")
    loaded = kx.LikelihoodFilter.load(tmp_path / "filter", service)
    np.testing.assert_array_equal(loaded.predict(5.0).mean, one.predict(5.0).mean)


@pytest.mark.parametrize("way", everyday([{}, {"structure": (None, "markov")}], [{}]))
def test_slices_are_left_out_as_missing_ones_are(way):
    gp, y = model(kx.Poisson(EXPOSURE), **way), data("Poisson")
    found = gp.condition(y).leave_slice_out(1)
    without = np.where(np.arange(4) == 2, np.nan, y)
    post = gp.condition(without)
    seen = SEEN[:, 2]
    sd = np.sqrt(post.variance()[:, 2])
    error = (found.function_mean - post.mean())[:, 2] / sd
    np.testing.assert_allclose(error[seen], 0, atol=1e-5)
    np.testing.assert_allclose(found.function_variance[seen, 2], sd[seen] ** 2, rtol=1e-5)
    joint = gp.log_marginal_likelihood(y) - gp.log_marginal_likelihood(without)
    np.testing.assert_allclose(found.log_scores[2], joint, atol=1e-6)
    assert np.isnan(found.mean[1, 2])
    assert "4 slices along axis 1" in repr(found)


def test_joint_densities_are_those_of_importance_sampling(post):
    """With draws of the approximate posterior, which few and likely observations admit."""
    y = np.array([2.0, 4.0, 1.0])
    sites = post.sites
    covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.diag(sites.precision.ravel()))
    q = scipy.stats.multivariate_normal(np.asarray(post.mean()).ravel(), covariance)
    f = q.rvs(200_000, random_state=np.random.default_rng(0))[:, [0, 1, 4]]
    logs = scipy.stats.poisson.logpmf(y, np.exp(f)).sum(axis=1)
    truth = scipy.special.logsumexp(logs) - np.log(len(f))
    points = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    found = post.log_prob(y, points=points, exposure=1.0, num_draws=4000)
    np.testing.assert_allclose(found, truth, atol=0.01)
    y[1:] = np.nan
    less = post.log_prob(y, points=points, exposure=1.0, num_draws=4000)
    alone = post.log_prob(y, points=points, exposure=1.0, pointwise=True)
    np.testing.assert_allclose(less, alone[0], atol=0.01)
    with pytest.warns(UserWarning, match=r"known to 0.5 nats only.*100 draws.*leave 2.0%"):
        certain_evidence(Weighted(jnp.zeros(()), jnp.asarray(0.5), jnp.asarray(0.02)), 100)


def test_cavities_of_millions_of_counts():
    """In single precision, beside NumPy in double precision at the same sites."""
    like = kx.Poisson()
    kernels = (np.float32(0.7) * kx.Matern52(np.float32(2)), kx.Matern32(np.float32(3)))
    axes = [x.astype(np.float32) for x in (SPACE, TIME)]
    gp = kx.GridGP(kernels, axes, mean=np.float32(0.5), likelihood=like)
    post = gp.condition(np.round(1e6 * np.exp(FIELD.reshape(5, 4))))
    *_, mean, variance, error = module.left_out(post, like, post.sites)
    precision, target = (np.asarray(x, float).ravel() for x in (post.sites.precision, post.y))
    inverse = np.linalg.inv(PRIOR + np.diag(1 / precision))
    true_variance = 1 / np.diag(inverse) - 1 / precision
    true_mean = target - inverse @ (target - 0.5) / np.diag(inverse)
    sd = np.sqrt(true_variance)
    np.testing.assert_allclose((np.ravel(mean) - true_mean) / sd, 0, atol=2e-3)
    np.testing.assert_allclose(np.ravel(variance), true_variance, rtol=1e-3)
    assert error is None


def test_cavities_by_iterations_have_errors(post, monkeypatch):
    """By as much as the cavities of variances that are off by their standard errors differ."""
    error = 1e-6 * post.variance()
    monkeypatch.setattr(module, "is_iterative", lambda gp: True)
    estimate = types.SimpleNamespace(standard_error=error)
    monkeypatch.setattr(module.predict, "variance_estimate", lambda post, new: estimate)
    found = module.left_out(post, post.model.likelihood, post.sites)[4]
    off = eqx.tree_at(lambda sites: sites.variance, post.sites, post.sites.variance + error)
    difference = module.cavity(off)[1] - module.cavity(post.sites)[1]
    np.testing.assert_allclose(found[SEEN], difference[SEEN], rtol=1e-4)


def test_categories_are_fitted_and_predicted():
    rng, like = np.random.default_rng(2), kx.OrderedLogistic([-0.5, 0.5, 1.5])
    noise = rng.logistic(size=(5, 4, 1))
    y = (FIELD.reshape(5, 4, 1) + noise > np.array([-0.5, 0.5, 1.5])).sum(axis=-1)
    post = model(like).condition(y)
    shares = post.response(quantiles=()).category_probabilities
    assert shares.shape == (4, 5, 4)
    f = np.asarray(post.mean()) + np.sqrt(post.variance()) * np.linspace(-8, 8, 2001)[:, None, None]
    weights = scipy.stats.norm.pdf(np.linspace(-8, 8, 2001))
    below = np.tensordot(weights / weights.sum(), scipy.special.expit(-0.5 - f), 1)
    np.testing.assert_allclose(shares[0], below, rtol=1e-6)
    assert jnp.isfinite(post.leave_one_out().log_score)


def test_data_sets_may_be_mapped_over():
    gp = model(kx.Poisson(EXPOSURE), observed=SEEN)
    both = jnp.stack([COUNTS, COUNTS[::-1]])
    found = jax.jit(jax.vmap(lambda y: gp.condition(y).mean()))(both)
    np.testing.assert_allclose(found[1], gp.condition(both[1]).mean(), atol=1e-6)
