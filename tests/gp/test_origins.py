"""Coordinates far from zero: the numbers are those of the axis counted from its first place."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import kronax as kx
from kronax.gp.coordinates.spacing import written
from tests.everyday import everyday, full
from tests.gp.dense import matern32
from tests.tolerances import assert_close

STEPS = np.arange(48.0)
LATE = STEPS + 0.5 * ((STEPS >= 20) & (STEPS < 30))
NS = 1_700_000_000_000_000_000


def truth(steps, y, new, kernel=matern32, lengthscale=2.0, noise=0.01):
    """Log likelihood, mean and variance, from coordinates in steps."""
    covariance = kernel(steps, steps, lengthscale) + noise * np.eye(len(steps))
    cross = kernel(new, steps, lengthscale)
    solved = np.linalg.solve(covariance, np.column_stack([y, cross.T]))
    constant = len(y) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1]
    variance = 1 - np.sum(cross * solved[:, 1:].T, axis=1)
    return -(y @ solved[:, 0] + constant) / 2, cross @ solved[:, 0], variance


def model(x, dtype, step=1.0):
    return kx.GridGP((kx.Matern32(dtype(2.0 * step)),), (x,), noise=0.01)


def assert_true(gp, dtype, steps, new, new_steps):
    y = np.sin(steps)
    post = gp.condition(y.astype(dtype))
    found = gp.log_marginal_likelihood(y.astype(dtype)), post.mean([new]), post.variance([new])
    for value, expected in zip(found, truth(steps, y, new_steps), strict=True):
        assert value.dtype == dtype
        assert_close(value, expected)


F32, F64 = np.float32, np.float64
AXES = {
    # Coordinates, what a step is in their unit, their places in steps, and a precision.
    "hours since 1900": (jnp.arange(1_060_000.0, 1_060_048.0, dtype="float32"), 1, STEPS, F32),
    "in float64": (jnp.arange(1_060_000.0, 1_060_048.0, dtype="float32"), 1, STEPS, F64),
    "ten of them late": (np.float32(1_060_000 + LATE), 1, LATE, F32),
    "ten late in float64": (np.float32(1_060_000 + LATE), 1, LATE, F64),
    "northings in metres": (np.float32(5_400_000 + 4 * STEPS), 4, STEPS, F32),
    "nanoseconds": (NS + 100 * np.arange(48), 100, STEPS, F64),
    "unsigned nanoseconds": (np.uint64(2**63) - np.arange(48, dtype="u8") * 100, -100, STEPS, F32),
    "integers above 2**53": (2**62 + 2 * np.arange(48), 2, STEPS, F32),
    "float16": (np.float16(950 + STEPS), 1, STEPS, F32),
    "big-endian": ((1e9 + STEPS).astype(">f8"), 1, STEPS, F32),
}


EVERYDAY = "ten of them late", "unsigned nanoseconds"


@pytest.mark.parametrize("name", everyday(AXES, EVERYDAY))
def test_an_axis_far_from_zero(name):
    x, step, steps, dtype = AXES[name]
    x = np.asarray(x)
    gp = model(x, dtype, abs(step))
    assert gp.structures[0].kind == ("dense" if steps is LATE else "toeplitz")
    # In between and beyond, some of them old places.
    new = np.append(steps[3:-1] + 0.5, steps[-4:] + 1)
    number = float if x.dtype.kind == "f" else int
    values = [number(x[0]) + number(step * s) for s in new]
    assert_true(gp, dtype, steps, np.array(values, x.dtype), new)


def test_new_coordinates_of_higher_precision():
    """A metre and a half is not the same place, in whatever precision it is given."""
    x, step, steps, dtype = AXES["northings in metres"]
    for metres in (0.5, 1.5):
        new = x[:-1].astype(float) + metres
        assert_true(model(x, dtype, step), dtype, steps, new, steps[:-1] + metres / 4)


def test_an_irregular_axis_says_so_and_names_what_snaps_it():
    words = "dense (irregular axis, off by up to {} steps: kx.regular snaps up to a tenth)"
    assert words.format(0.5) in model(np.float32(1_060_000 + LATE), F32).describe()
    nearly = np.float32(100_000 + STEPS + 0.0625 * (STEPS == 7))
    assert words.format(0.062) in model(nearly, F32).describe()
    assert "toeplitz" in model(kx.regular(nearly), F32).describe()


def test_dates_are_subtracted_as_integers():
    """A step of 100 ns, in seconds, across midnight."""
    dates = np.datetime64("2024-01-31T23:59:59.999998", "ns") + 100 * np.arange(48).astype("m8[ns]")
    gp = model(kx.dates(dates, "seconds"), F64, 100e-9)
    assert gp.structures[0].kind == "toeplitz"
    assert_true(gp, F64, STEPS, dates[:-1] + np.timedelta64(50, "ns"), STEPS[:-1] + 0.5)
    earlier = dates[:3] - np.timedelta64(10, "us")
    np.testing.assert_allclose(
        gp.new_axes((earlier,))[0].points(F64).centred, 1e-7 * np.array([-100, -99, -98])
    )


def random_axis(rng, kind):
    """Places in eighths of a step, as they are and from a random origin: its dtype holds both."""
    steps = np.arange(20.0) if rng.random() < 0.3 else np.cumsum(rng.integers(4, 13, 20)) / 8
    most, unit = (1e6 if kind == F32 else 1e9), (8 if kind == np.int64 else 1)
    origin = int(rng.uniform(-most, most))
    new = rng.choice(np.arange(-16, 8 * int(steps[-1])), 15, replace=False) / 8
    return steps - steps[0], new, *((unit * (origin + x)).astype(kind) for x in (steps, new))


@pytest.mark.parametrize(
    ("kind", "compared"),
    [(np.float32, None), full(np.float32, 0), full(np.float64, 1), (np.int64, 2)],
)
def test_random_origins(kind, compared):
    """All that a kernel sees, to the last bit, and so the likelihood, the mean and the variance."""
    rng = np.random.default_rng(0)
    unit = 8 if kind == np.int64 else 1
    for case in range(100):
        steps, _, x, ahead = random_axis(rng, kind)
        dtype = (F32, F64)[case % 2]
        zero = model(unit * steps, dtype, unit)
        far = model(x, dtype, unit)
        assert far.structures[0].kind == zero.structures[0].kind
        old = far.axes[0].points(dtype).centred
        np.testing.assert_array_equal(old, (unit * steps).astype(dtype))
        seen = far.new_axes((ahead,))[0].points(dtype).centred
        first = x[0].astype(float) - (steps[0] * unit)
        np.testing.assert_array_equal(seen, (ahead.astype(float) - first).astype(dtype))
        if case == compared:
            assert_true(far, dtype, steps, ahead, np.asarray(seen, float) / unit)


SECONDS = 1_700_000_000 + 60 * np.arange(48)
MEANS = {
    "line": (
        kx.LinearMean(0, np.float32([1.0, 2.0]), centre=1_700_000_010.0, scale=100.0),
        lambda x: 1 + 2 * (x - 1_700_000_010) / 100,
    ),
    "centred line": (
        kx.LinearMean(0, np.float32([1.0, 2.0])),
        lambda x: 1 + 2 * (x - 1_700_001_410) / 1410,
    ),
    "wave": (
        kx.ConstantMean(np.float32(3.0)) + kx.HarmonicMean(0, 700.0, 1, np.float32([1.0, 0.5])),
        lambda x: 3 + np.cos(2 * np.pi * (x % 700) / 700) + np.sin(2 * np.pi * (x % 700) / 700) / 2,
    ),
}


@pytest.mark.parametrize("name", everyday(MEANS, ["line", "wave"]))
def test_regression_functions_far_from_zero_in_float32(name):
    mean, expected = MEANS[name]
    gp = kx.GridGP((kx.RBF(np.float32(200.0)),), (SECONDS,), noise=0.1, mean=mean)
    assert_close(gp.mean_on((None,)), expected(SECONDS))
    new = SECONDS[:5] + 30
    far = gp.condition(np.float32(expected(SECONDS))).mean(points=new[:, None])
    assert_close(far, expected(new))


def test_a_line_through_a_large_integer():
    x = NS + 100 * np.arange(48)
    gp = kx.GridGP((kx.Linear(int(x[10])),), (x,), noise=1.0)
    d = 100.0 * (np.arange(48) - 10)
    assert_close(gp.covariance(include_noise=False).to_dense(), d[:, None] * d)


@pytest.mark.parametrize("dtype", everyday(["int64", "int32", "float64"], ["int64"]))
def test_traced_coordinates_are_subtracted_in_their_own_dtype(dtype):
    y = np.sin(STEPS).astype(F32)

    @jax.jit
    def value(x, new):
        post = model(x, F32, 60).condition(y)
        return post.mean([new]), model(SECONDS, F32, 60).condition(y).mean([new])

    both = value(jnp.asarray(SECONDS, dtype), jnp.asarray(SECONDS[:-1] + 30, dtype))
    expected = truth(STEPS, np.sin(STEPS), STEPS[:-1] + 0.5)[1]
    for found in both:
        assert_close(found, expected)


def test_a_circle_is_full_or_not():
    quarters = np.float32(1_060_000 + np.arange(96) / 4)
    kinds = [
        kx.GridGP((kx.RBF(2.0),), (kx.circle(x, 24.0),), noise=0.1).structures[0].kind
        for x in (quarters, quarters[:-1], quarters[::-1])
    ]
    assert kinds == ["circulant", "dense", "circulant"]
    with pytest.raises(ValueError, match="must be different places"):
        kx.circle(np.append(quarters, np.float32(1_060_024)), 24.0)


def test_a_symmetric_axis_is_so_in_its_own_spacing():
    x = np.float32(1_060_000 + np.array([*range(0, 16, 2), *range(17, 33, 2)]))
    assert model(x, F32).structures[0].kind == "centrosymmetric"
    x[-1] += 0.125
    assert model(x, F32).structures[0].kind == "dense"


def test_cells_of_a_data_array_are_matched_within_a_hundredth_of_a_step():
    hours = np.float32(1_060_000 + STEPS)
    big = 2**60 + np.arange(48)
    for x, moved in ((hours, hours + np.float32(0.5)), (big, big + 1)):
        data = xr.DataArray(np.sin(STEPS), {"t": x}, ("t",))
        gp = kx.GridGP.from_xarray(data, {"t": kx.Matern32(2.0)})
        gp.check_data(data)
        with pytest.raises(ValueError, match="must be those of the model"):
            gp.check_data(data.assign_coords(t=moved))
    # Rounding of the coarser of two dtypes is none.
    fine = 0.1 * STEPS
    gp = kx.GridGP.from_xarray(data.assign_coords(t=np.float32(fine)), {"t": kx.Matern32(2.0)})
    gp.check_data(data.assign_coords(t=fine))


def test_places_in_the_plane():
    """The same place in another precision has the same value; one 1.5 m away has its own."""
    x = np.random.default_rng(0).permutation(20)
    places = np.stack([5_400_000 + 10.0 * (x // 5), 400_000 + 10.0 * (x % 5)], axis=1)
    kernel = kx.Matern12(50.0) + kx.White(0.5)
    gp = kx.GridGP((kernel,), (np.float32(places),), noise=0.01)
    post = gp.condition(np.sin(np.arange(20.0)))
    assert_close(post.mean([places]), post.mean())
    assert_close(post.mean([places + 1e-9]), post.mean())
    near = post.variance([places + np.array([1.5, 0.0])])
    assert (near > 0.5).all()
    assert_close(
        gp.axes[0].points(F64).centred,
        places - places[0],
    )


@pytest.mark.parametrize("ahead", everyday([48.0, 48.25, 48.3], [48.25, 48.3]))
def test_slices_are_appended_where_they_are(ahead):
    x = np.float32(1_060_000 + STEPS)
    y = np.sin(STEPS)
    post = model(x, F64).condition(y).append(np.ones(1), [np.array([1_060_000 + ahead])])
    steps = np.append(STEPS, ahead)
    expected = truth(steps, np.append(y, 1.0), steps)[1]
    assert_close(post.mean(), expected)
    assert post.gp.structures[0].kind == ("toeplitz" if ahead == 48 else "dense")


def test_integers_are_snapped_and_continued_without_loss():
    x = NS + 1000 * np.arange(48)
    x[7] += 20
    gp = model(kx.regular(x), F64, 1000)
    assert gp.structures[0].kind == "toeplitz"
    assert gp.axes[0].shift == 20
    y = np.sin(STEPS)
    post = gp.condition(y).append(np.ones(1), [x[-1:] + 1010])
    assert post.gp.structures[0].kind == "toeplitz"
    steps = np.arange(49.0)
    assert_close(post.mean(), truth(steps, np.append(y, 1.0), steps)[1])


def test_functions_that_see_coordinates_as_they_are_warn_in_float32():
    kernel = kx.RBF(np.float32(200.0))
    for kernels, mean, far in (
        ((kernel * (lambda x, z: kernel(x, z)),), None, True),
        ((kernel,), lambda t: t, True),
        ((kernel,), lambda t: jnp.zeros(()), False),
        ((kernel + kx.Linear(SECONDS[0]),), kx.LinearMean(0, np.float32([0, 1])), False),
    ):
        kx.GridGP(kernels, (SECONDS - SECONDS[0],), np.float32(0.1), mean)
        expected = pytest.warns(UserWarning, match="axis 0, from 1700000000 .* nearer zero")
        with expected if far else contextlib.nullcontext():
            kx.GridGP(kernels, (SECONDS,), np.float32(0.1), mean)
    apart = np.concatenate([SECONDS, SECONDS * 100])
    with pytest.warns(UserWarning, match="lose digits in float32"):
        kx.GridGP((kernel,), (apart,), noise=0.1)
    kx.GridGP((kx.RBF(200.0),), (apart,), noise=0.1)


def test_places_in_print_name_the_place():
    assert [written(x) for x in (1043136.5, 5412445.0, -1234.25, 0.1234567, 12.0, 1e20)] == [
        "1043136.5",
        "5412445",
        "-1234.25",
        "0.123457",
        "12",
        "1e+20",
    ]


@pytest.mark.parametrize("start", [0, 1_060_000])
def test_ten_readings_half_an_hour_late_change_the_likelihood(start):
    """Hours since 1900 in float32: as a regular axis they would have −34.05."""
    hours = np.arange(48.0)
    late = hours + 0.5 * ((hours >= 10) & (hours < 20))
    for axis, wanted in ((late, -34.5716), (hours, -34.0523)):
        gp = kx.GridGP((kx.Matern32(F32(2)),), (F32(start + axis),), noise=F32(0.01))
        assert abs(float(gp.log_marginal_likelihood(F32(np.sin(hours)))) - wanted) < 2e-3
