"""Places in several dimensions: spheres, circles in sums, chosen dimensions, lengthscales each."""

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import kronax as kx
from tests.everyday import everyday
from tests.gp import dense
from tests.tolerances import assert_close

CITIES = np.array([[52.5, 13.4], [48.9, 2.4], [-33.9, 151.2], [-17.7, 179.9], [-17.7, -179.9]])
POLES = np.array([[90.0, 0.0], [90.0, 77.0], [-90.0, 5.0], [0.0, 0.0], [0.0, 360.0]])
SPACE = np.random.default_rng(3).uniform(size=(6, 3))
HOURS = np.arange(24.0)
RADIUS = 6371.0088
Y = np.random.default_rng(4).normal(size=5)


def on_the_globe(kernel, places=CITIES, **options):
    return kx.GridGP((kernel,), (kx.sphere(places, **options),), noise=0.1)


@jax.jit
def signal(gp):
    return gp.covariance(include_noise=False).factors[0].to_dense()


def great_circle(x, z):
    """The haversine formula, in kilometres."""
    x, z = np.deg2rad(x)[:, None], np.deg2rad(z)[None]
    half = np.sin((x - z) / 2) ** 2
    across = np.cos(x[..., 0]) * np.cos(z[..., 0]) * half[..., 1]
    return 2 * RADIUS * np.arcsin(np.sqrt(np.minimum(half[..., 0] + across, 1)))


@pytest.mark.parametrize("places", [CITIES, POLES], ids=["cities", "poles"])
def test_kernels_on_a_sphere_see_chords(places):
    distance = great_circle(places, places)
    chord = 2 * RADIUS * np.sin(distance / (2 * RADIUS))
    np.testing.assert_allclose(
        signal(on_the_globe(kx.Matern12(900.0), places)), np.exp(-chord / 900), atol=1e-9
    )
    unit = on_the_globe(kx.Matern12(0.3), places, radius=1.0)
    np.testing.assert_allclose(signal(unit), np.exp(-chord / RADIUS / 0.3), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=6, max_size=6, unique=True
    ),
    lengthscale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_covariances_on_a_sphere_are_positive_semidefinite(places, lengthscale):
    """Also at long lengthscales, where the same kernels of the great-circle distance are not."""
    x = kx.sphere(np.array(places), radius=1.0).points(float)
    values = np.asarray(kx.RBF(lengthscale).matrix_at(x, x))
    assert np.linalg.eigvalsh(values).min() > -1e-12


def test_predictions_on_a_sphere_cross_the_date_line_and_keep_float32():
    gp = on_the_globe(kx.Matern32(2000.0))
    post = gp.condition(Y)
    mean = post.mean((np.array([[-17.7, 180.0], [-17.7, -180.0], [52.5, 373.4 - 360]]),))
    assert_close(mean[0], mean[1])
    assert_close(mean[2], post.mean()[0])
    assert "sphere of radius 6371.01" in gp.describe()
    traced = jax.jit(lambda new: post.mean((new,)))(jnp.asarray(CITIES[:2]))
    assert_close(traced, post.mean()[:2])
    near = np.array([47.3, 8.5]) + 1e-3 * np.arange(10).reshape(5, 2)  # about a hundred metres
    single, double = (
        np.asarray(signal(on_the_globe(kx.Matern12(kind(0.2)), near)))
        for kind in (np.float32, np.float64)
    )
    assert single.dtype == np.float32
    assert np.abs(single - double).max() < 1e-5


def test_each_term_of_a_sum_sees_a_circle_in_its_own_way():
    """A term of chords wraps round beside one that sees the angle, and beside a line."""
    kernel = kx.RBF(2.0) + kx.Periodic(8.0, 1.0) + 0.01 * kx.Linear(12.0)
    gp = kx.GridGP((kernel,), (kx.circle(HOURS, 24.0),), noise=0.1)
    chord = 24 / np.pi * np.sin(np.pi * (HOURS[:, None] - HOURS) / 24)
    truth = (
        np.exp(-((chord / 2) ** 2) / 2)
        + dense.periodic(HOURS, HOURS, 8.0, 1.0)
        + 0.01 * dense.linear(HOURS, HOURS, 12.0)
    )
    assert_close(signal(gp), truth)
    stationary = kx.GridGP((kernel.first,), (kx.circle(HOURS, 24.0),), noise=0.1)
    assert stationary.structures[0].kind == "toeplitz"
    assert_close(signal(stationary), truth - 0.01 * dense.linear(HOURS, HOURS, 12.0))
    post = gp.condition(np.random.default_rng(0).normal(size=24))
    traced = jax.jit(lambda new: post.mean((new,)))(jnp.asarray(HOURS[3:5]))
    assert_close(traced, post.mean()[3:5])


def test_active_dimensions_are_the_kernel_of_these_columns():
    line, plane = 2.0 * kx.Matern12(0.4), kx.RBF(np.array([0.3, 0.8]))
    kernel = kx.ActiveDims(line, 1) * kx.ActiveDims(plane, (2, 0)) + kx.ActiveDims(kx.White(), 0)
    truth = 2 * dense.matern12(SPACE[:, 1], SPACE[:, 1], 0.4) * dense.squared_exponential(
        SPACE[:, [2, 0]], SPACE[:, [2, 0]], np.array([0.3, 0.8])
    ) + np.eye(6)
    asked = eqx.filter_jit(lambda k, x: (k(x, x), k.diagonal(x), k.evaluate(x[0], x[1])))
    for value, expected in zip(
        asked(kernel, SPACE), (truth, np.diagonal(truth), truth[0, 1]), strict=True
    ):
        assert_close(value, expected)
    gp = kx.GridGP((kernel,), (SPACE,), noise=0.1)
    assert_close(signal(gp), truth)
    assert gp.variance.item() == 2.0
    rows = gp.condition(Y[0] * np.ones(6)).mean((SPACE[[4, 1]],))
    assert_close(rows, gp.condition(Y[0] * np.ones(6)).mean()[np.array([4, 1])])
    assert {p.path for p in kx.parameters(kernel)} >= {"first.variance"}
    north = kx.ActiveDims(kx.RBF(30.0), 0) + kx.Matern32(900.0)
    degrees = dense.squared_exponential(CITIES[:, 0], CITIES[:, 0], 30.0)
    chord = 2 * RADIUS * np.sin(great_circle(CITIES, CITIES) / (2 * RADIUS))
    r = np.sqrt(3) * chord / 900
    np.testing.assert_allclose(
        signal(on_the_globe(north)), degrees + (1 + r) * np.exp(-r), atol=1e-9
    )


OF_PLACES = {
    "a spectral mixture": (
        kx.SpectralMixture([0.6, 0.4], [[0.4, 1.3], [2.0, 0.1]], [[0.1, 0.3], [0.5, 0.6]]),
        lambda x, z: dense.spectral_mixture(
            x, z, [0.6, 0.4], [[0.4, 1.3], [2.0, 0.1]], [[0.1, 0.3], [0.5, 0.6]]
        ),
    ),
    "a plane wave": (
        kx.Cosine(np.array([0.7, 1.9])),
        lambda x, z: np.cos(2 * np.pi * np.sum((x[:, None] - z[None]) / [0.7, 1.9], axis=-1)),
    ),
    "a plane": (
        kx.Linear((0.2, 0.5)),
        lambda x, z: (x - [0.2, 0.5]) @ (z - [0.2, 0.5]).T,
    ),
    "white": (kx.White(0.3), lambda x, z: 0.3 * (x[:, None] == z).all(axis=-1)),
    "a lengthscale each": (
        kx.Matern52(np.array([0.3, 0.8])),
        lambda x, z: dense.matern52(x, z, np.array([0.3, 0.8])),
    ),
}


@pytest.mark.parametrize(
    "name", everyday(OF_PLACES, ["a spectral mixture", "a plane", "a lengthscale each"])
)
def test_the_formula_holds_on_places_with_finite_derivatives(name):
    kernel, formula = OF_PLACES[name]
    places = SPACE[:, :2]
    raw, build = kx.unconstrain(kernel)

    def total(values, x):
        return jnp.sum(build(values)(x, x))

    @jax.jit
    def asked(*at):
        slopes = [d(total, argnums=(0, 1))(*at) for d in (jax.grad, jax.hessian)]
        return kernel(places, at[1]), slopes

    values, slopes = asked(raw, jnp.asarray(places))
    assert_close(values, formula(places, places))
    assert np.linalg.eigvalsh(values).min() > -1e-12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_an_axis_of_one_place_and_places_that_occur_twice_or_in_any_order():
    """One value per place of the axis; a place that occurs twice has one function value."""
    one = kx.GridGP((kx.Matern32(0.5), kx.RBF(1.0)), (np.array([3.0]), HOURS), noise=0.1)
    alone = kx.GridGP((kx.RBF(1.0),), (HOURS,), noise=0.1)
    y = np.random.default_rng(5).normal(size=(1, 24))
    assert_close(one.log_marginal_likelihood(y), alone.log_marginal_likelihood(y[0]))
    assert_close(one.condition(y).mean((None, HOURS[:3]))[0], alone.condition(y[0]).mean()[:3])
    order = np.random.default_rng(6).permutation(24)
    shuffled = kx.GridGP((kx.RBF(1.0),), (HOURS[order],), noise=0.1)
    assert shuffled.structures[0].kind == "dense"
    assert_close(shuffled.log_marginal_likelihood(y[0, order]), alone.log_marginal_likelihood(y[0]))
    twice = kx.GridGP((kx.RBF(1.0),), (np.repeat(HOURS[:4], 2),), noise=0.1).condition(y[0, :8])
    means = y[0, :8].reshape(4, 2).mean(axis=1)
    once = kx.GridGP((kx.RBF(1.0),), (HOURS[:4],), noise=0.05).condition(means)
    assert_close(twice.mean()[::2], once.mean())
    assert_close(twice.mean()[1::2], once.mean())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kx.sphere(CITIES[:, ::-1]), ValueError, r"got \[151\.2, -33\.9\] at index 2"),
        (lambda: kx.sphere(HOURS), ValueError, r"in degrees, \(n, 2\); got shape \(24,\)"),
        (lambda: kx.sphere(CITIES, radius=-1.0), ValueError, r"positive number; got -1\.0"),
        (lambda: kx.sphere(CITIES + np.nan), ValueError, "places must be finite; got nan"),
        (lambda: jax.jit(lambda x: kx.sphere(x))(CITIES), TypeError, "must be concrete"),
        (
            lambda: on_the_globe(kx.Matern32(1.0)).condition(Y).mean(([[95.0, 0.0]],)),
            ValueError,
            r"new axis 0 on a sphere.*got \[95\.0, 0\.0\]",
        ),
        (
            lambda: on_the_globe(kx.Matern32(1.0) + kx.RBF([1.0, 2.0])),
            ValueError,
            "axis 0 must depend on the distance alone.*SquaredExponential",
        ),
        (lambda: on_the_globe(kx.Periodic(1.0, 2.0)), ValueError, "distance alone.*Periodic"),
        (lambda: kx.ActiveDims(kx.RBF(1.0), -1), ValueError, "counted from 0; got -1"),
        (lambda: kx.ActiveDims(kx.RBF(1.0), (1, 1)), ValueError, r"got \(1, 1\)"),
        (lambda: kx.ActiveDims(kx.RBF(1.0), 1.5), TypeError, r"an integer or a tuple.*got 1\.5"),
        (
            lambda: kx.GridGP((kx.ActiveDims(kx.RBF(1.0), 3),), (SPACE,), 0.1),
            ValueError,
            r"axis 0 must have the dimensions 3.*got shape \(6, 3\)",
        ),
        (
            lambda: kx.GridGP((kx.ActiveDims(kx.RBF(1.0), 0),), (HOURS,), 0.1),
            ValueError,
            r"axis 0 must have the dimensions 0.*got shape \(24,\)",
        ),
        (lambda: kx.ActiveDims(kx.RBF(1.0), 0)(HOURS, HOURS), ValueError, r"got shape \(24,\)"),
        (
            lambda: kx.GridGP((kx.RBF([1.0, 2.0]),), (SPACE,), 0.1),
            ValueError,
            r"kernel of axis 0: The lengthscale .* shape \(2,\) for places in 3 dimensions",
        ),
        (
            lambda: kx.GridGP((kx.Linear((1.0, 2.0)),), (SPACE,), 0.1),
            ValueError,
            r"axis 0: the centre .*got \(1\.0, 2\.0\) for coordinates of shape \(6, 3\)",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()
