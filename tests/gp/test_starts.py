"""Starting values from data: right in any units, near the truth, never degenerate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import kronax as kx
from kronax.fitting.problem import make_problem
from kronax.fitting.starts import starting_points

X, Z = np.linspace(0, 2, 24), np.linspace(5, 6, 18)
PLACES = np.random.default_rng(0).uniform(size=(20, 2)) * np.array([1.0, 30.0])
# Axis and data are multiplied by these.
FAR, SMALL = 1000.0, 1e-3


class Ramp(kx.Kernel):
    """A kernel of a user's, with a start in every unit."""

    slope: jax.Array = kx.parameter(constraints.positive, start="1/lengthscale²")
    rate: jax.Array = kx.parameter(constraints.positive, start="1/lengthscale")
    power: jax.Array = kx.parameter(constraints.positive, start=2.0)
    unknown: jax.Array = kx.parameter(constraints.positive)

    def evaluate(self, x, z):
        return self.slope * x * z + self.power * jnp.exp(-self.rate * jnp.abs(x - z))


def given(*kernels, axes=(X, Z), noise=1.0, mean=None):
    """A model as a user would write it, and the same with the axes in other units."""

    def build(unit):
        return kx.GridGP(kernels, [unit * np.asarray(x) for x in axes], noise=noise, mean=mean)

    return build


# By name: a model in any units, and by path the powers of those of axis and data of each parameter.
MODELS = {
    "one scale": (
        given(kx.Matern32(9.0), 3.0 * kx.RBF(7.0), mean=1.0),
        {
            "kernels[0].lengthscale": (1, 0),
            "kernels[1].lengthscale": (1, 0),
            "mean.value": (0, 1),
            "variance": (0, 2),
            "noise": (0, 2),
        },
    ),
    "sum": (
        given(
            kx.Matern12(1.0) + 4.0 * kx.RBF(9.0) + kx.Constant(5.0), kx.RationalQuadratic(1.0, 9)
        ),
        {
            "kernels[0].first.first.lengthscale": (1, 0),
            "kernels[0].first.second.kernel.lengthscale": (1, 0),
            "kernels[0].first.second.variance": (0, 0),
            "kernels[0].second.variance": (0, 0),
            "kernels[1].lengthscale": (1, 0),
            "kernels[1].alpha": (0, 0),
            "variance": (0, 2),
            "noise": (0, 2),
        },
    ),
    "several dimensions": (
        given(
            kx.Matern52(jnp.array([1.0, 1.0])),
            kx.RBF(1.0),
            axes=(PLACES, Z),
            noise={0: np.linspace(1, 2, 20)},
        ),
        {
            "kernels[0].lengthscale": (1, 0),
            "kernels[1].lengthscale": (1, 0),
            "variance": (0, 2),
            "noise.variances[0]": (0, 2),
        },
    ),
    "a kernel of the user's": (
        given(Ramp(1.0, 1.0, 1.0, 3.0), kx.Matern32(1.0)),
        {
            "kernels[0].slope": (-2, 0),
            "kernels[0].rate": (-1, 0),
            "kernels[0].power": (0, 0),
            "kernels[0].unknown": (0, 0),
            "kernels[1].lengthscale": (1, 0),
            "variance": (0, 2),
            "noise": (0, 2),
        },
    ),
}


def values(model):
    return {p.path: np.asarray(p.value) for p in kx.parameters(model)}


def smooth(*shape, seed=0, noise=0.1):
    """Correlated data with noise."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=shape)
    for axis in range(len(shape)):
        y = np.apply_along_axis(np.convolve, axis, y, np.hanning(7), "same")
    return y / y.std() + noise * rng.normal(size=shape)


def draw(axes, correlations, variance, noise, seed=0):
    """A draw from a GP, by NumPy."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=[len(x) for x in axes])
    for axis, (x, correlation) in enumerate(zip(axes, correlations, strict=True)):
        values, vectors = np.linalg.eigh(correlation(np.abs(x[:, None] - x)))
        root = vectors * np.sqrt(np.maximum(values, 0))
        y = np.moveaxis(np.tensordot(root, y, axes=(1, axis)), 0, axis)
    return np.sqrt(variance) * y + np.sqrt(noise) * rng.normal(size=y.shape)


def matern32(lengthscale):
    return lambda d: (1 + np.sqrt(3) * d / lengthscale) * np.exp(-np.sqrt(3) * d / lengthscale)


def rbf(lengthscale):
    return lambda d: np.exp(-((d / lengthscale) ** 2) / 2)


@pytest.mark.parametrize("name", MODELS)
def test_starts_have_the_units_of_axes_and_data(name):
    build, powers = MODELS[name]
    y = smooth(*build(1.0).grid_shape)
    here = values(build(1.0).initialise(y))
    there = values(build(FAR).initialise(SMALL * y))
    assert here.keys() == powers.keys()
    for path, (of_axis, of_data) in powers.items():
        expected = here[path] * FAR**of_axis * SMALL**of_data
        np.testing.assert_allclose(there[path], expected, rtol=1e-9, err_msg=path)


def test_a_shift_of_the_data_moves_the_mean_alone():
    gp = MODELS["one scale"][0](1.0)
    y = smooth(24, 18)
    here, there = values(gp.initialise(y)), values(gp.initialise(y + 50))
    np.testing.assert_allclose(there.pop("mean.value"), here.pop("mean.value") + 50)
    for path, value in here.items():
        np.testing.assert_allclose(there[path], value, rtol=1e-9, err_msg=path)


@pytest.mark.parametrize("seed", range(4))
def test_starts_are_near_the_truth(seed):
    axes = np.linspace(0, 10, 60), np.linspace(0, 300, 40)
    truth = kx.GridGP((kx.Matern32(0.6), 4.0 * kx.RBF(20.0)), axes, noise=0.5, mean=3.0)
    y = 3 + draw(axes, (matern32(0.6), rbf(20.0)), 4.0, 0.5, seed)
    model = kx.GridGP((kx.Matern32(1.0), kx.RBF(1.0)), axes, noise=1.0, mean=0.0)
    for path, value in values(model.initialise(y)).items():
        assert 1 / 2 < value / values(truth)[path] < 2, path


def test_pure_noise_and_no_noise_start_inside_the_domain():
    gp = given(kx.Matern32(1.0), kx.RBF(1.0))(1.0)
    for y in (
        np.random.default_rng(0).normal(size=gp.grid_shape),
        np.outer(X, np.ones(18)),
        np.outer((-1.0) ** np.arange(24), np.ones(18)),
        np.eye(24, 18),
    ):
        found = values(gp.initialise(y))
        assert all(np.isfinite(v).all() and (v > 0).all() for v in found.values()), found
    assert values(gp.initialise(np.outer(X, Z)))["noise"] < 0.02 * np.mean(np.outer(X, Z) ** 2)


def test_a_batch_is_pooled():
    gp = given(kx.Matern32(1.0), kx.RBF(1.0), mean=0.0)(1.0)
    y = smooth(24, 18)
    alone, pooled = gp.initialise(y), gp.initialise(np.stack([y, -y, y, -y]).reshape(2, 2, -1))
    assert abs(pooled.mean.value) < 1e-12
    assert pooled.variance > 0
    centred = gp.initialise(y - y.mean())
    doubled = gp.initialise(np.stack([y - y.mean()] * 2))
    np.testing.assert_allclose(doubled.variance, centred.variance, rtol=1e-9)
    np.testing.assert_allclose(alone.variance, centred.variance, rtol=1e-9)


def test_the_lengthscales_of_a_sum_keep_their_order():
    def lengths(first, second):
        gp = given(kx.RBF(first) + 2.0 * kx.RBF(second), kx.RBF(1.0))(1.0)
        kernel = gp.initialise(smooth(24, 18)).kernels[0]
        return float(kernel.first.lengthscale), float(kernel.second.kernel.lengthscale)

    long, short = lengths(5.0, 1.0)
    assert long > 5 * short
    assert lengths(1.0, 5.0) == (short, long)
    assert lengths(1.0, 1.0) == (long, short)


def test_a_period_stays_and_the_envelope_is_seen_through_it():
    day = np.arange(240.0)
    kernel = kx.Periodic(period=12.0, lengthscale=3.0) * kx.Matern32(1.0)
    waves = lambda d: np.exp(-2 * np.sin(np.pi * d / 12) ** 2) * rbf(40.0)(d)  # noqa: E731
    y = draw((day, Z), (waves, rbf(0.3)), 1.0, 0.01)
    start = kx.GridGP((kernel, kx.RBF(1.0)), (day, Z), noise=1.0).initialise(y).kernels[0]
    assert start.first.period == 12.0
    assert start.first.lengthscale == 1.0
    assert 12 < start.second.lengthscale < 120
    alone = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), (day, Z), noise=1.0).initialise(y).kernels[0]
    assert alone.lengthscale < 6


def test_a_circle_is_measured_along_its_chords():
    angle = np.arange(0.0, 360.0, 15.0)
    y = np.cos(np.deg2rad(angle - 30))[:, None] * np.cos(5 * Z)
    gp = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), (kx.circle(angle, 360.0), Z), noise=1.0)
    start, other = gp.initialise(y), gp.initialise(np.roll(y, 7, axis=0))
    # A cosine falls to exp(-1/2) after 52.7 degrees.
    assert 40 < start.kernels[0].lengthscale < 60
    np.testing.assert_allclose(
        start.kernels[0].lengthscale, other.kernels[0].lengthscale, rtol=1e-9
    )


def test_lengthscales_per_dimension_follow_the_spread_of_the_places():
    gp = MODELS["several dimensions"][0](1.0)
    wide, narrow = gp.initialise(smooth(20, 18)).kernels[0].lengthscale[::-1]
    np.testing.assert_allclose(wide / narrow, PLACES[:, 1].std() / PLACES[:, 0].std())


def test_what_is_frozen_or_has_no_lags_stays():
    gp = kx.GridGP((kx.RBF(3.0), kx.RBF(4.0)), (X, np.array([2.0])), noise=0.3)
    start = gp.initialise(smooth(24, 7)[:, :1], freeze=("noise",))
    assert start.noise == 0.3
    assert start.kernels[1].lengthscale == 4.0
    assert start.kernels[0].lengthscale != 3.0


def test_noise_keeps_its_pattern():
    pattern = np.linspace(1, 3, 24)
    gp = given(kx.RBF(1.0), kx.RBF(1.0), noise={0: pattern, 1: np.full(18, 2.0)})(1.0)
    first, second = gp.initialise(smooth(24, 18)).noise.variances
    np.testing.assert_allclose(first / first[0], pattern / pattern[0])
    np.testing.assert_allclose(second, 1.0)


def test_single_precision_stays_single():
    kernels = kx.Matern32(jnp.float32(1.0)), kx.RBF(jnp.float32(1.0))
    gp = kx.GridGP(kernels, (X, Z), noise=jnp.float32(1.0))
    y = smooth(24, 18)
    start = gp.initialise(y.astype(np.float32))
    assert start.dtype == jnp.float32
    double = given(kx.Matern32(1.0), kx.RBF(1.0))(1.0).initialise(y)
    for path, value in values(double).items():
        np.testing.assert_allclose(values(start)[path], value, rtol=1e-3, err_msg=path)


def test_a_random_start_is_spread_about_the_initial_one():
    build, _ = MODELS["a kernel of the user's"]
    gp = build(1.0)
    y = smooth(24, 18)
    centre = values(gp.initialise(y))
    starts = [values(gp.random_start(jax.random.key(k), y)) for k in range(24)]
    for path, value in centre.items():
        moves = np.array([np.log(s[path] / value) for s in starts])
        # Lengthscales are anywhere on their axis in half of the starts.
        is_length = path.endswith(("lengthscale", "rate", "slope"))
        assert abs(moves.mean()) < (2.5 if is_length else 0.7), path
        assert 0.6 < moves.std() < (6.0 if is_length else 2.0), path
    again = values(gp.random_start(jax.random.key(3), y))
    assert all(np.array_equal(again[path], starts[3][path]) for path in again)


def test_a_random_start_leaves_means_and_periods_and_shuffles_sums():
    kernel = kx.RBF(5.0) + kx.Matern12(1.0)
    gp = kx.GridGP((kernel, kx.Periodic(0.5, 1.0)), (X, Z), noise=1.0, mean=2.0)
    y = smooth(24, 18)
    starts = [gp.random_start(jax.random.key(k), y) for k in range(12)]
    assert {float(s.kernels[1].period) for s in starts} == {0.5}
    assert {float(s.mean.value) for s in starts} == {float(gp.initialise(y).mean.value)}
    longer = [
        bool(s.kernels[0].first.lengthscale > s.kernels[0].second.lengthscale) for s in starts
    ]
    assert 2 <= sum(longer) <= 10


def test_shares_of_categories_scatter_on_their_simplex():
    kernels = {"task": kx.Categorical.with_rank(3), "time": kx.Matern32(1.0)}
    axes = {"task": ["ash", "elm", "oak"], "time": np.arange(8.0)}
    gp = kx.GridGP(kernels, axes, noise=0.1)
    y = gp.sample(jax.random.key(0), include_noise=True)
    start = gp.random_start(jax.random.key(1), y)
    shares = np.asarray(start.kernels[0].shares)
    assert shares.sum() == pytest.approx(1.0)
    assert np.ptp(shares) > 0.01
    assert (shares > 0).all()


def test_restarts_of_a_fit_are_random_starts_of_the_model():
    gp = given(kx.RBF(1.0), kx.RBF(1.0))(1.0)
    y = smooth(24, 18)
    settings = {"freeze": ("variance",), "domains": None, "share": ()}
    problem = make_problem(gp, y, None, None, False, settings)
    found, _ = starting_points(problem, 2, jax.random.key(5))
    keys = jax.random.split(jax.random.key(5), 2)
    models = [gp, *(gp.random_start(k, y) for k in keys)]
    assert found.keys() == values(gp).keys() - {"variance"}
    for path, raw in found.items():
        np.testing.assert_allclose(np.exp(raw), [values(m)[path] for m in models], err_msg=path)


def test_a_fit_of_smooth_kernels_converges_within_forty_steps():
    axes = np.linspace(0, 1, 40), np.linspace(0, 1, 30)
    model = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), axes, noise=1.0)
    for seed in range(4):
        y = draw(axes, (rbf(0.15), rbf(0.3)), 2.0, 0.05, seed)
        for start in (model, model.initialise(y), model.random_start(jax.random.key(seed), y)):
            result = kx.fit(start, y, progress=False)
            assert result.converged
            assert result.num_steps <= 40
            assert abs(np.log(result.model.kernels[0].lengthscale / 0.15)) < 0.3


def test_a_kernel_of_the_users_may_have_an_amplitude_of_its_own():
    gp = MODELS["a kernel of the user's"][0](1.0)
    assert "kernels[0].slope" in [p.path for p in kx.parameters(gp) if p.trainable]
    start = gp.initialise(smooth(24, 18))
    signal = np.mean(np.asarray(start.covariance(include_noise=False).diagonal()))
    total = signal + float(start.noise)
    np.testing.assert_allclose(total, np.mean(smooth(24, 18) ** 2), rtol=1e-9)


ERRORS = {
    "constant data": (
        lambda: MODELS["one scale"][0](1.0).initialise(np.full((24, 18), 7.1)),
        ValueError,
        "must vary about the mean",
    ),
    "zeros": (
        lambda: MODELS["sum"][0](1.0).initialise(np.zeros((24, 18))),
        ValueError,
        "must vary about the mean",
    ),
    "traced data": (
        lambda: eqx.filter_jit(lambda gp, y: gp.initialise(y))(
            MODELS["one scale"][0](1.0), jnp.asarray(smooth(24, 18))
        ),
        TypeError,
        "concrete data",
    ),
    "variances that are zero in this precision": (
        lambda: kx.GridGP((kx.RBF(jnp.float32(1.0)),), (X,), noise=jnp.float32(1.0)).initialise(
            1e-25 * smooth(24).astype(np.float32)
        ),
        ValueError,
        "must be a number in its domain",
    ),
    "an unknown start": (
        lambda: kx.parameter(constraints.positive, start="lengthscales"),
        ValueError,
        "one of lengthscale",
    ),
    "NaN": (
        lambda: MODELS["one scale"][0](1.0).initialise(np.full((24, 18), np.nan)),
        ValueError,
        "NaN",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_start_says_so(name):
    call, error, match = ERRORS[name]
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("join", ["product", "sum"])
def test_kernels_of_single_dimensions_follow_the_spread_of_these(join):
    """Places that are near in one dimension are far apart in the other: that is no noise."""
    rng = np.random.default_rng(0)
    places = rng.uniform(size=(150, 2)) * [1.0, 100.0]
    true = np.sin(4 * places[:, 0]) + np.sin(0.04 * places[:, 1])
    along = [kx.ActiveDims(kx.RBF(1e-3), k) for k in (0, 1)]
    kernel = along[0] * along[1] if join == "product" else along[0] + along[1]
    gp = kx.GridGP((kernel,), (places,), noise=1e-3)
    found = gp.initialise(true + 0.05 * rng.normal(size=150))
    first, second = found.kernels[0].first.kernel, found.kernels[0].second.kernel
    assert 0.1 < first.lengthscale < 2
    assert 10 < second.lengthscale < 200
    assert found.noise < 0.3 * np.var(true)
