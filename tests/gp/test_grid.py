"""A GP on a grid: its density beside the dense one, its amplitude, its draws, its errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import everyday
from tests.gp import dense
from tests.gp.dense import GPS, SPACE, TIME, two_axes
from tests.gp.orders import three_orders
from tests.tolerances import assert_close

every_gp = pytest.mark.parametrize("name", everyday(GPS, ["three named axes", "full noise"]))


def log_density(case, y):
    covariance = case.covariance()
    residual = (y - case.mean_on()).reshape(-1, len(covariance))
    return scipy.stats.multivariate_normal(cov=covariance).logpdf(residual)


@eqx.filter_jit
def covariances(gp):
    return [gp.covariance(include_noise=noise).to_dense() for noise in (True, False)]


@every_gp
def test_the_prior_covariance_is_the_dense_one(name):
    case = GPS[name]
    data, function = covariances(case.gp)
    assert_close(data, case.covariance())
    assert_close(function, case.signal())
    assert case.gp.grid_shape == case.grid


@every_gp
def test_the_marginal_likelihood_is_the_dense_one_in_every_layout(name):
    case = GPS[name]
    expected = log_density(case, case.y)
    assert_close(case.gp.log_marginal_likelihood(case.y), expected)
    assert_close(case.gp.log_marginal_likelihood(case.y.ravel()), expected)
    batch = np.stack([case.y, 2 * case.y, case.y - 1])
    assert_close(case.gp.log_marginal_likelihood(batch), log_density(case, batch))
    assert_close(case.gp.log_marginal_likelihood(batch.reshape(3, -1)), log_density(case, batch))


def test_names_put_kernels_in_the_order_of_the_axes():
    axes = {"time": TIME, "lat": SPACE}
    one = kx.GridGP({"lat": kx.RBF(0.4), "time": kx.Matern52(0.6)}, axes, noise=0.1)
    other = kx.GridGP((kx.Matern52(0.6), kx.RBF(0.4)), tuple(axes.values()), noise=0.1)
    assert one.axis_names == ("time", "lat")
    y = two_axes().y
    assert one.log_marginal_likelihood(y) == other.log_marginal_likelihood(y)


def test_the_outermost_scales_are_one_amplitude():
    gp = kx.GridGP((2.0 * kx.RBF(0.5), kx.RBF(0.4) * 3.0), (TIME, SPACE), noise=0.1)
    assert gp.variance.item() == 6.0
    assert [p.path for p in kx.parameters(gp)] == [
        "kernels[0].lengthscale",
        "kernels[1].lengthscale",
        "variance",
        "noise",
    ]
    plain = kx.GridGP((kx.RBF(0.5), kx.RBF(0.4)), (TIME, SPACE), noise=0.1)
    assert plain.variance.item() == 1.0
    expected = 6 * plain.covariance(include_noise=False).to_dense()
    assert_close(gp.covariance(include_noise=False).to_dense(), expected)


def raw_and_losses():
    """Negative log densities of the raw parameters: of the library, and from the formulas."""
    case = two_axes()
    raw, build = kx.unconstrain(case.gp)

    def by_kronax(values):
        return -build(values).log_marginal_likelihood(case.y)

    def by_hand(values):
        first, second, variance, noise = (
            jnp.exp(values[path])
            for path in ("kernels[0].lengthscale", "kernels[1].lengthscale", "variance", "noise")
        )
        r = jnp.sqrt(5.0) * np.abs(TIME[:, None] - TIME) / first
        matern = (1 + r + r**2 / 3) * jnp.exp(-r)
        rbf = jnp.exp(-jnp.square((SPACE[:, None] - SPACE) / second) / 2)
        covariance = variance * jnp.kron(matern, rbf) + noise * jnp.eye(20)
        mean = jnp.full(20, values["mean.value"])
        return -jax.scipy.stats.multivariate_normal.logpdf(case.y.ravel(), mean, covariance)

    return raw, by_kronax, by_hand


def test_gradients_and_hessians_in_the_raw_parameters_are_the_dense_ones():
    raw, by_kronax, by_hand = raw_and_losses()
    assert len(raw) == 5
    found, expected = (three_orders(f, raw) for f in (by_kronax, by_hand))
    assert_close(found[0], expected[0])
    for path in raw:
        assert_close(found[1][path], expected[1][path], order=1)
        for other in raw:
            assert_close(found[2][path][other], expected[2][path][other], order=2)


def test_prior_draws_have_the_prior_moments():
    case = two_axes()
    for include_noise, covariance in ((False, case.signal()), (True, case.covariance())):
        draws = case.gp.sample(jax.random.key(1), (20_000,), include_noise=include_noise)
        assert draws.shape == (20_000, 5, 4)
        flat = np.asarray(draws).reshape(20_000, -1)
        scale = np.sqrt(np.diagonal(covariance))
        assert np.abs(flat.mean(0) - 0.3).max() < 5 * scale.max() / np.sqrt(20_000)
        error = np.sqrt((scale[:, None] * scale) ** 2 + covariance**2) / np.sqrt(20_000)
        assert (np.abs(np.cov(flat.T) - covariance) / error).max() < 5


def test_float32_stays_float32():
    kernels = (2.0 * kx.Matern52(np.float32(0.6)), kx.RBF(np.float32(0.4)))
    gp = kx.GridGP(kernels, (TIME, SPACE), noise=0.1, mean=0.3)
    assert gp.dtype == np.float32
    y = two_axes().y.astype(np.float32)
    assert gp.log_marginal_likelihood(y).dtype == np.float32
    case = two_axes()
    exact = kx.replace(case.gp, {"variance": 2.0}).log_marginal_likelihood(case.y)
    assert_close(gp.log_marginal_likelihood(y), exact, dtype="float32")


def test_data_of_lower_precision_are_promoted():
    case = two_axes()
    y = case.y.astype(np.float32)
    value = case.gp.log_marginal_likelihood(y)
    assert value.dtype == np.float64
    assert_close(value, case.gp.log_marginal_likelihood(y.astype(float)))


def test_describe_says_what_the_model_is():
    text = repr(dense.named().gp)
    for word in (
        "5 × 6 × 3 cells",
        "float64",
        "time",
        "place",
        "hour",
        "dense",
        "fewer than 16 places",
        "Matern12",
    ):
        assert word in text
    assert "variance" in text
    assert "1.5" in text
    assert text == dense.named().gp.describe()


def unnamed(**changes):
    given = {"kernels": (kx.Matern52(0.6), kx.RBF(0.4)), "axes": (TIME, SPACE), "noise": 0.1}
    return kx.GridGP(**{**given, **changes})


def with_names(*names):
    return unnamed(kernels={name: kx.RBF(1.0) for name in names}, axes={"time": TIME, "lat": SPACE})


def test_float64_data_with_float32_parameters_raise():
    gp = jax.tree.map(lambda a: a.astype(np.float32), two_axes().gp)
    with pytest.raises(TypeError, match="got float64 with float32 parameters"):
        gp.log_marginal_likelihood(two_axes().y)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: with_names("time", "lon"),
            KeyError,
            "'lon' has no axis.*Did you mean 'lat'",
        ),
        (lambda: with_names("time"), KeyError, "axis 'lat' has no kernel; got kernels for 'time'"),
        (lambda: unnamed(kernels=(kx.RBF(1.0),)), ValueError, "got 1 kernels and 2 axes"),
        (lambda: unnamed(kernels=(), axes=()), ValueError, "got 0 kernels and 0 axes"),
        (lambda: unnamed(kernels={"a": kx.RBF(1.0)}), TypeError, "got dict and tuple"),
        (
            lambda: unnamed(kernels=(kx.RBF, kx.RBF(1.0))),
            TypeError,
            "kernel of axis 0 must be.*got <class.*SquaredExponential.*Pass an instance",
        ),
        (lambda: unnamed(kernels=(kx.RBF(1.0), 2.5)), TypeError, r"kernel of axis 1.*got 2\.5"),
        (
            lambda: unnamed(kernels=(lambda a, b: -jnp.eye(5), kx.RBF(1.0))).condition(np.ones(20)),
            np.linalg.LinAlgError,
            "factor 0 of the signal must be positive semidefinite; its smallest eigenvalue is -",
        ),
        (
            lambda: unnamed(
                kernels=(lambda a, b: a[:, None] + 2 * b[None], kx.RBF(1.0))
            ).covariance(),
            ValueError,
            r"must be symmetric.*entries \(0, 4\) and \(4, 0\) differ by 1\.4",
        ),
    ],
)
def test_a_model_that_does_not_fit_together_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("under_jit", [False, True], ids=["outside jit", "under jit"])
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: unnamed(noise=-0.1), r"noise must be positive; got -0\.1\."),
        (lambda: unnamed(noise=np.array(-0.1)), r"noise must be positive; got -0\.1\."),
        (lambda: unnamed(noise={0: -np.ones(5)}), r"noise variance along 0 must be positive"),
        (lambda: kx.RBF(-1.0), r"lengthscale must be positive; got -1\.0"),
        (lambda: -2.0 * kx.RBF(1.0), r"variance must be positive; got -2\.0"),
        (lambda: unnamed(mean=np.nan), r"value must be real; got nan\. Remove NaN"),
        (lambda: kx.replace(unnamed(), {"noise": -0.1}), r"noise must be positive; got -0\.1"),
        (lambda: unnamed().log_marginal_likelihood(np.full_like(HOLED, np.nan)), "NaN in all 20"),
        (lambda: unnamed().numpyro_dist().log_prob(HOLED), r"NaN in 1 of 20.*kx\.Masked"),
        (lambda: unnamed().condition(np.ones((4, 5))), r"\(4, 5\)\. The axes are in another order"),
    ],
)
def test_concrete_bad_values_raise(call, match, under_jit):
    with pytest.raises(ValueError, match=match):
        (jax.jit(lambda: jax.tree.leaves(call())) if under_jit else call)()


def test_traced_bad_values_give_nan():
    y = np.ones((5, 4))

    def value(noise):
        return kx.replace(unnamed(), {"noise": noise}).log_marginal_likelihood(y)

    assert np.isnan(jax.jit(value)(-5.0))


def test_bound_methods_go_through_jit():
    """`jax.jit` hashes what it is given; equal models hash equal, others are told apart."""
    y = np.ones((5, 4))
    first, second = unnamed(), unnamed(noise=0.2)
    assert hash(first) == hash(unnamed())
    for gp in (first, second, unnamed(mean=lambda t, s: t[:, None] + s[None])):
        value = jax.jit(gp.log_marginal_likelihood)(y)
        np.testing.assert_allclose(value, gp.log_marginal_likelihood(y), rtol=1e-12)
    slope = jax.jit(jax.grad(second.log_marginal_likelihood))(y)
    np.testing.assert_allclose(slope, jax.grad(second.log_marginal_likelihood)(y), rtol=1e-12)


def test_flat_events_of_the_likelihood():
    gp = unnamed(mean=lambda t, s: t[:, None] + s[None])
    y = np.arange(20.0).reshape(5, 4)
    flat = gp.numpyro_dist(flatten=True)
    assert flat.event_shape == (20,)
    np.testing.assert_allclose(flat.log_prob(y.ravel()), gp.numpyro_dist().log_prob(y))


HOLED = np.where(np.arange(20).reshape(5, 4) == 7, np.nan, 1.0)


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (np.ones((4, 5)), ValueError, r"got shape \(4, 5\)\. The axes are in another order"),
        (np.ones((3, 3)), ValueError, r"y must have shape \(\*batch, 5, 4\).*got shape \(3, 3\)"),
        (np.ones((20, 2)), ValueError, r"got shape \(20, 2\)\. A trailing column axis"),
        (np.ones((5, 4, 2)), ValueError, r"got shape \(5, 4, 2\)\. A trailing column axis"),
        (np.full_like(HOLED, np.nan), ValueError, "some cell; got NaN in all 20"),
        (np.full((5, 4), np.inf), ValueError, "y must be finite, or NaN .*; got 20 infinite"),
        (np.ones((5, 4), int), TypeError, "y must hold floating-point numbers; got dtype int64"),
        (np.ones((5, 4)) * 1j, TypeError, "y must hold.*got dtype complex128"),
        ("y", TypeError, "y must be an array of real numbers; got 'y'"),
        (None, TypeError, "y must be an array of real numbers; got None"),
    ],
    ids=["swapped", "shape", "columns", "trailing", "nan", "inf", "int", "complex", "str", "None"],
)
@pytest.mark.parametrize("method", ["log_marginal_likelihood", "condition"])
def test_data_off_the_grid_raise(method, y, error, match):
    with pytest.raises(error, match=match):
        getattr(unnamed(), method)(y)
