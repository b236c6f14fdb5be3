"""Priors, and the Laplace approximation over parameters."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

import kronax as kx
from kronax.fitting import curvature, laplace
from tests.fitting.cases import draws, fit, make, natural

Y = draws()[0]
PATHS = ["kernels[0].lengthscale", "kernels[1].lengthscale", "noise", "variance"]


class Gaussian(eqx.Module):
    """A normal model with unknown mean and standard deviation."""

    mean: jax.Array = kx.parameter(constraints.real)
    scale: jax.Array = kx.parameter(constraints.positive)


SAMPLE = np.random.default_rng(3).normal(2.0, 1.5, 400)


def deviance(m):
    return -jnp.sum(jax.scipy.stats.norm.logpdf(SAMPLE, m.mean, m.scale))


@pytest.fixture(scope="module")
def gaussian():
    return kx.fit(Gaussian(0.0, 1.0), loss=deviance, progress=False)


@pytest.fixture(scope="module")
def gp_result():
    return fit(y=Y)


def test_standard_errors_are_those_of_theory(gaussian):
    found = gaussian.laplace()
    sd, n = SAMPLE.std(), SAMPLE.size
    assert found.standard_errors["mean"] == pytest.approx(sd / np.sqrt(n), rel=1e-5)
    assert found.standard_errors["scale"] == pytest.approx(sd / np.sqrt(2 * n), rel=1e-5)
    assert found.names == ("mean", "scale")
    np.testing.assert_allclose(found.correlations, np.eye(2), atol=1e-5)


def test_intervals_stay_inside_the_domain(gaussian):
    found = gaussian.laplace()
    low, high = found.intervals(0.95)["scale"]
    sd = SAMPLE.std()
    step = 1.96 / np.sqrt(2 * SAMPLE.size)
    assert low.item() == pytest.approx(sd * np.exp(-step), rel=1e-4)
    assert high.item() == pytest.approx(sd * np.exp(step), rel=1e-4)
    assert found.intervals(1 - 1e-12)["scale"][0] > 0
    with pytest.raises(ValueError, match=r"level must be between 0 and 1; got 1\.5"):
        found.intervals(1.5)


def test_draws_have_the_moments_of_the_approximation(gaussian):
    found = gaussian.laplace()
    models = found.sample(jax.random.key(0), 20_000)
    raw = np.stack([models.mean, np.log(models.scale)])
    np.testing.assert_allclose(np.cov(raw), found.covariance, rtol=0.05, atol=1e-4)
    assert raw.mean(1) == pytest.approx([SAMPLE.mean(), np.log(SAMPLE.std())], abs=2e-3)


def test_the_covariance_is_the_inverse_hessian(gp_result):
    found = gp_result.laplace()
    assert list(found.names) == PATHS

    def loss(vector):
        values = dict(zip(PATHS, jnp.exp(vector), strict=True))
        return -kx.replace(make(), values).log_marginal_likelihood(Y)

    at = np.log([natural(gp_result)[path] for path in PATHS])
    step, slope = 1e-5, jax.jit(jax.grad(loss))
    shifts = step * np.eye(4)
    hessian = np.stack([(slope(at + s) - slope(at - s)) / (2 * step) for s in shifts])
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian), rtol=1e-4)


def test_the_log_evidence_of_a_linear_model_is_exact():
    """Normal data with a known variance and a normal prior: nothing is approximate."""

    class Level(eqx.Module):
        level: jax.Array = kx.parameter(constraints.real)

    data = SAMPLE[:20]
    result = kx.fit(
        Level(0.0),
        loss=lambda m: -jnp.sum(jax.scipy.stats.norm.logpdf(data, m.level, 1.5)),
        priors={"level": dist.Normal(1.0, 2.0)},
        progress=False,
    )
    covariance = 1.5**2 * np.eye(20) + 2.0**2
    exact = scipy.stats.multivariate_normal(np.ones(20), covariance).logpdf(data)
    assert result.laplace().log_evidence.item() == pytest.approx(exact, abs=1e-6)


def test_the_log_evidence_does_not_depend_on_the_coordinates():
    """A gamma likelihood in its rate, whose evidence in natural units SciPy integrates."""

    class Rate(eqx.Module):
        rate: jax.Array = kx.parameter(constraints.positive)

    data = np.random.default_rng(0).exponential(0.5, 300)
    result = kx.fit(
        Rate(1.0),
        loss=lambda m: -jnp.sum(jnp.log(m.rate) - m.rate * data),
        priors={"rate": dist.Gamma(3.0, 1.0)},
        progress=False,
    )
    shape, rate = 3 + data.size, 1 + data.sum()
    exact = scipy.special.gammaln(shape) - shape * np.log(rate) - scipy.special.gammaln(3.0)
    assert result.laplace().log_evidence.item() == pytest.approx(exact, abs=1e-3)


def test_priors_move_the_fit_to_the_maximum_a_posteriori(gp_result):
    prior = dist.LogNormal(-4.0, 0.05)
    result = fit(y=Y, priors={"noise": prior})
    assert natural(result)["noise"] < natural(gp_result)["noise"]
    gp = result.model
    joint = gp.log_marginal_likelihood(Y) + prior.log_prob(gp.noise)
    assert result.loss == pytest.approx(-joint.item())

    def density(noise):
        value = kx.replace(gp, {"noise": noise}).log_marginal_likelihood(Y)
        return value + prior.log_prob(noise)

    assert jax.jit(jax.grad(density))(gp.noise).item() == pytest.approx(0, abs=1e-2)
    assert quick(result).standard_errors["noise"] < gp_result.laplace().standard_errors["noise"]


def test_the_summary_has_standard_errors_and_intervals(gp_result):
    text = gp_result.summary()
    assert "standard error" in text
    errors = gp_result.laplace().standard_errors
    (line,) = (row for row in text.splitlines() if row.startswith("noise"))
    assert np.array2string(np.asarray(errors["noise"]), precision=3) in line
    assert "standard error" not in gp_result.summary(standard_errors=False)
    few = fit(y=Y, optimizer=optax.sgd(1e-3), num_steps=1)
    assert "standard error" not in few.summary()


def quick(result):
    return laplace.quick_laplace(result.problem, result.model, result.raw, result.loop)


@pytest.fixture(scope="module")
def single_result():
    return fit(make(np.float32), Y.astype(np.float32), tolerance=1e-4)


def test_the_errors_of_a_summary_are_those_of_the_exact_hessian(gp_result, single_result):
    exact = gp_result.laplace()
    for found, share in (
        (quick(gp_result), 1e-7),
        (quick(fit(y=Y, restarts=3)), 1e-4),  # another of its ends, as near to the optimum
        (quick(fit(y=draws(2), independent=True)[0]), 1e-4),
        (quick(single_result), 5e-3),
    ):
        assert not found.by_differences
        assert found.names == exact.names
        known = exact.log_evidence.item()
        assert found.log_evidence.item() == pytest.approx(known, rel=max(share, 1e-6))
        sd = np.sqrt(np.diag(exact.covariance))
        off = (found.covariance - exact.covariance) / np.outer(sd, sd)
        np.testing.assert_allclose(off, 0, atol=2 * share)


def test_noise_above_its_floor_is_transferred(single_result):
    """A quadratic loss of the plain coordinates, seen in those above float32's floor."""
    problem = single_result.problem
    floor = problem.noise_level(single_result.model).least
    model = kx.replace(single_result.model, {"noise": 4 * floor})
    raw = {path: value.astype(np.float64) for path, value in problem.raw_of(model).items()}
    plain, _ = problem.without_floor(model)
    vector, unravel = ravel_pytree(raw)
    random = np.random.default_rng(0)
    hessian, slope = np.cov(random.normal(size=(4, 9))), random.normal(size=4)

    @jax.jit
    @jax.value_and_grad
    def loss(v):
        u = ravel_pytree(plain.raw_of(problem.build(unravel(v))))[0]
        return u @ hessian @ u / 2 + slope @ u

    def gradients(points):
        losses, found = zip(*map(loss, points), strict=True)
        return np.array(losses), np.stack(found)

    transferred = curvature._transferred(gradients, problem, raw, plain)
    moved = np.asarray(curvature._transfer(problem, raw, plain, vector))
    assert np.abs(moved - np.eye(4)).max() > 0.1
    found = curvature._differences(transferred, raw, moved, curvature._steps(raw))
    np.testing.assert_allclose(found.hessian, hessian, atol=1e-6)
    assert found.share() < 1e-2


@pytest.mark.parametrize("precision", ["gp_result", "single_result"])
def test_a_summary_traces_the_loss_no_more(precision, request, monkeypatch):
    """In float32 too, where the steps of the differences are long."""
    result = request.getfixturevalue(precision)

    def refused(self, y):
        raise AssertionError("traced")

    monkeypatch.setattr(kx.GridGP, "checked_log_likelihood", refused)
    assert "standard error" in result.summary()


def test_a_result_survives_a_pickle(gp_result):
    found = pickle.loads(pickle.dumps(gp_result))
    assert found.loop is None
    assert found.loss == gp_result.loss


class Bowl(eqx.Module):
    """Flat along `a`, with walls, and steeper along `b`."""

    a: jax.Array = kx.parameter(constraints.real)
    b: jax.Array = kx.parameter(constraints.real)


def bowl(m):
    return 5e-3 / 14**2 * (jnp.cosh(14 * m.a) - 1) + (m.b - 1) ** 2


def test_differences_are_shorter_where_the_loss_bends_sooner(monkeypatch):
    """A hundredth of a standard error of `a` is too far for float32's steps."""
    result = kx.fit(Bowl(np.float32(0.01), np.float32(0.0)), loss=bowl, progress=False)
    monkeypatch.setattr(curvature, "_exact", None)
    found = quick(result).standard_errors
    assert found["a"] == pytest.approx(5e-3**-0.5, rel=1e-2)
    assert found["b"] == pytest.approx(2**-0.5, rel=1e-2)


@pytest.mark.parametrize("curvatures", [(1.0,), (1.0, 1e4), (1.0, 1e4, 1e4, 1e2)])
def test_noise_of_the_gradient_counts_along_flat_directions(curvatures):
    """It is the same along all of them, and so the largest share where the curvature is least."""
    raw = {"a": np.zeros(len(curvatures))}
    steps, hessian, rng = curvature._steps(raw), np.diag(curvatures), np.random.default_rng(0)

    def gradients(points):
        noise = 1e-3 * steps[0] * rng.normal(size=points.shape)
        return np.zeros(len(points)), points @ hessian + noise

    exceeded = 0
    for _ in range(100):
        found = curvature._differences(gradients, raw, np.eye(len(hessian)), steps)
        errors = np.sqrt(np.diag(np.linalg.inv(found.hessian)) * curvatures) - 1
        exceeded += np.abs(errors).max() > found.share()
    assert exceeded <= 20


def test_where_differences_do_not_serve_the_hessian_is_exact():
    """A ripple that is finer than their steps."""
    result = kx.fit(
        Gaussian(SAMPLE.mean(), SAMPLE.std()),
        loss=lambda m: deviance(m) - 1e-3 * jnp.cos(1e3 * (m.mean - SAMPLE.mean())),
        progress=False,
    )
    assert result.converged
    found = quick(result).standard_errors["mean"]
    curvature = SAMPLE.size / SAMPLE.var() + 1e3
    assert found == pytest.approx(1 / np.sqrt(curvature), rel=1e-3)


def test_a_direction_that_the_data_do_not_determine_is_named():
    class Twice(eqx.Module):
        a: jax.Array = kx.parameter(constraints.positive)
        b: jax.Array = kx.parameter(constraints.positive)

    result = kx.fit(Twice(2.0, 1.0), loss=lambda m: (m.a * m.b - 3) ** 2, progress=False)
    with pytest.raises(ValueError, match="do not determine a and b here"):
        result.laplace()
    assert "No standard errors: The loss does not rise" in result.summary()


def test_float32_errors_agree(gp_result, single_result):
    single = single_result.laplace()
    for path, error in gp_result.laplace().standard_errors.items():
        assert single.standard_errors[path].dtype == np.float32
        assert single.standard_errors[path].item() == pytest.approx(error.item(), rel=0.05)


@pytest.mark.parametrize(
    ("priors", "error", "match"),
    [
        ({"nose": dist.HalfNormal()}, KeyError, "'nose'.*Did you mean 'noise'"),
        ({"noise": 3.0}, TypeError, "prior of noise must be a NumPyro distribution; got float"),
        ({"noise": dist.Normal()}, ValueError, "prior of noise must lie in its domain, positive"),
        ({"variance": dist.HalfNormal()}, ValueError, "parameter that trains; variance is frozen"),
    ],
)
def test_bad_priors_raise(priors, error, match):
    with pytest.raises(error, match=match):
        fit(y=Y, priors=priors, freeze=("variance",))
