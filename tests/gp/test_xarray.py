"""DataArrays in, Datasets out: order by name, coordinates compared, metadata kept."""

import subprocess
import sys
from itertools import product

import cftime
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import norm

import kronax as kx
from tests.everyday import everyday
from tests.tolerances import assert_close

LATITUDE = np.array([-30.0, 0.0, 20.0])
MONTHS = pd.date_range("2000-01-01", periods=3, freq="MS")


def field(**changes):
    """A square grid, so that a transposed one has the same shape and only names tell."""
    coords = {
        "time": ("time", MONTHS, {"long_name": "month"}),
        "latitude": ("latitude", LATITUDE, {"units": "degrees_north"}),
        "height": 2.0,
        "season": ("time", ["DJF", "DJF", "MAM"]),
        "area": ("latitude", [1.0, 2.0, 1.5]),
        "distance": (("latitude", "time"), np.arange(9.0).reshape(3, 3)),
    }
    values = np.random.default_rng(0).normal(size=(3, 3))
    attrs = {"units": "K", "standard_name": "air_temperature", "long_name": "air temperature"}
    return xr.DataArray(values, coords | changes, ("time", "latitude"), "tas", attrs)


ONE_STEP = {"num_steps": 1, "optimizer": optax.sgd(1e-3), "progress": False}
KERNELS = {"latitude": kx.RBF(20.0), "time": 2.0 * kx.Matern32(60.0)}


def process(data=None, **options):
    return kx.GridGP.from_xarray(field() if data is None else data, KERNELS, 0.1, **options)


def by_hand():
    days = (MONTHS - MONTHS[0]).days.to_numpy().astype(float)
    return kx.GridGP((KERNELS["time"], KERNELS["latitude"]), (days, LATITUDE), 0.1)


def test_axes_have_the_order_of_the_dimensions_whatever_that_of_the_kernels():
    gp = process()
    assert gp.axis_names == ("time", "latitude")
    assert [type(kernel) for kernel in gp.kernels] == [kx.Matern32, kx.RBF]
    assert process(field().T).axis_names == ("latitude", "time")
    y = field().values
    expected = by_hand().log_marginal_likelihood(y)
    assert_close(gp.log_marginal_likelihood(y), expected)


def test_data_are_put_into_the_order_of_the_model_by_name():
    gp, hand, y = process(), by_hand(), field()
    value = hand.log_marginal_likelihood(y.values)
    # The other reading of the square grid is another value, which a test by shape would not see.
    assert abs(hand.log_marginal_likelihood(y.values.T) - value) > 0.1
    for data in (y, y.T):
        assert_close(gp.log_marginal_likelihood(data), value)
        assert_close(gp.condition(data).mean(), hand.condition(y.values).mean())
        started, expected = gp.initialise(data), hand.initialise(y.values)
        assert_close(started.noise, expected.noise)
        assert_close(gp.latent_condition(data).f, y.values)
    fits = [kx.fit(gp, data, **ONE_STEP) for data in (y, y.T)]
    np.testing.assert_array_equal(fits[0].losses, fits[1].losses)


def test_new_data_are_compared_with_the_new_coordinates():
    post, y = process().condition(field()), field()
    time = MONTHS + pd.DateOffset(years=1)
    new = y.assign_coords(time=time)
    value = post.log_prob(new.values, axes={"time": time})
    assert_close(post.log_prob(new.T, axes={"time": time}), value)
    celsius = new.assign_attrs(units="degC")
    with pytest.raises(ValueError, match="y_new must be in the units of the data, 'K'; got 'degC'"):
        post.log_prob(celsius, axes={"time": time})
    with pytest.raises(ValueError, match="along 'time' must be those of the model; got 2001-01-01"):
        post.log_prob(new)


def test_models_are_compared_on_the_same_cells():
    y = field()
    models = {"one": process(), "other": process(y.T)}
    table = kx.compare(models, y)
    assert abs(table[1].loo_difference) < 1e-10
    assert abs(table[1].difference_error) < 1e-10
    result = kx.fit(process(), y.T, **ONE_STEP)
    assert kx.compare({"fit": result}, y.T)[0].num_parameters == 4
    found = process().condition(y).leave_one_out()
    with pytest.raises(TypeError, match=r"got a DataArray. Pass gp.check_data\(y\)"):
        found.log_density(y)


def test_batch_dimensions_lead():
    gp = process()
    several = xr.concat([field(), 2 * field(), 3 * field()], pd.Index([10, 20, 30], name="member"))
    several = several.transpose("latitude", "member", "time")
    with pytest.raises(KeyError, match=r"'member' has no kernel.*batch_dims=\('member',\)"):
        process(several)
    assert process(several, batch_dims="member").axis_names == ("latitude", "time")
    plain = np.stack([field().values * k for k in (1, 2, 3)])
    assert_close(gp.log_marginal_likelihood(several), gp.log_marginal_likelihood(plain))
    ds = gp.condition(several).to_dataset()
    assert ds["mean"].dims == ("member", "time", "latitude")
    assert ds["standard_deviation"].dims == ("time", "latitude")
    assert ds.member.values.tolist() == [10, 20, 30]
    fits = kx.fit(gp, several, independent=True, **ONE_STEP)
    assert len(fits) == 3
    other = kx.compare({"a": gp, "b": process(field().T)}, several)
    assert abs(other[1].difference_error) < 1e-10


WRONG_DATA = {
    "other dimension": (lambda y: y.rename(latitude="lat"), "got 'time', 'lat', without 'latitude"),
    "one place": (lambda y: y.isel(latitude=0), "got 'time', without 'latitude'"),
    "shifted": (
        lambda y: y.assign_coords(latitude=y.latitude + 0.5),
        "along 'latitude' must be those of the model; got -29.5 instead of -30.0 at index 0",
    ),
    "a part": (lambda y: y[:, :2], "got 2, -30.0 … 0.0, instead of 3, -30.0 … 20.0"),
    "turned round": (lambda y: y[:, ::-1], r"in another order, 20.0 … -30.0 instead of .*sortby"),
    "without coordinates": (lambda y: y.drop_vars("latitude"), "no coordinates along 'latitude'"),
    "numbers for dates": (lambda y: y.assign_coords(time=[0, 1, 2]), "model, dates; got numbers"),
    "another calendar": (
        lambda y: y.convert_calendar("noleap", use_cftime=True),
        "model, dates; got dates of the calendar 'noleap'",
    ),
    "other dates": (
        lambda y: y.assign_coords(time=MONTHS.shift(1)),
        "got 2000-02-01.* instead of 2000-01-01.* at index 0",
    ),
    "other units": (
        lambda y: y.assign_coords(latitude=y.latitude.assign_attrs(units="rad")),
        "y along 'latitude' must be in the units of the model, 'degrees_north'; got 'rad'",
    ),
    "gaps": (lambda y: y * np.nan, "must have a value in some cell; got NaN in all 9"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_on_other_coordinates_are_refused(name):
    change, message = WRONG_DATA[name]
    gp = process()
    for take in (gp.log_marginal_likelihood, gp.condition, gp.initialise):
        with pytest.raises(ValueError, match=message):
            take(change(field()))


def test_data_of_another_kind_are_refused():
    with pytest.raises(TypeError, match=r"must be one DataArray; got a Dataset.*'tas'"):
        process().condition(field().to_dataset())
    with pytest.raises(TypeError, match="'time', 'latitude', and the axes of this model have no n"):
        by_hand().condition(field())
    with pytest.raises(TypeError, match="floating-point numbers; got dtype int"):
        process().condition(field().astype(int))


def test_rounding_of_coordinates_is_not_a_difference():
    y = field(latitude=("latitude", np.array([0.1, 0.2, 0.3])))
    rounded = y.assign_coords(latitude=np.array([0.1, 0.2, 0.3], "f4"))
    assert_close(process(y).condition(rounded).mean(), process(y).condition(y).mean())
    assert_close(process(rounded).condition(y).y, y.values)


WRONG_ARGUMENTS = [
    ({"kernels": {"time": kx.RBF(1.0)}}, KeyError, "'latitude' has no kernel; got kernels for 'ti"),
    (
        {"kernels": KERNELS | {"lat": kx.RBF(1.0)}},
        KeyError,
        "kernels: the data have no dimension 'lat' to model. Did you mean 'latitude'",
    ),
    ({"kernels": tuple(KERNELS.values())}, TypeError, "a dictionary by dimension; got tuple"),
    ({"axes": {"lon": LATITUDE}}, KeyError, "axes: the data have no dimension 'lon'"),
    ({"batch_dims": ("member",)}, KeyError, "batch_dims: the data have no dimension 'member'"),
    ({"axes": {"latitude": LATITUDE[:2]}}, ValueError, "one place per cell, 3; got 2"),
    ({"data": np.zeros((3, 3))}, TypeError, "must be an xarray DataArray; got ndarray"),
    ({"data": field().to_dataset()}, TypeError, r"got a Dataset. Pass one of its variables \('tas"),
    (
        {"data": field(latitude=("latitude", np.array([1.0, None, "a"], object)))},
        TypeError,
        "labels of latitude must all be text; entry 0 is 1.0",
    ),
    (
        {"data": field(latitude=("latitude", np.array([1.0, 2.0, 3.0], object)))},
        TypeError,
        "must be real numbers, dates or labels; got dtype object",
    ),
    (
        {"data": field(latitude=("latitude", np.arange(3).astype("m8[h]")))},
        TypeError,
        "latitude must be numbers, dates or labels; got durations",
    ),
    ({"data": field(latitude=("latitude", [0.0, np.nan, 1.0]))}, ValueError, "must be finite"),
    ({"data": field(time=("time", [*MONTHS[:2], pd.NaT]))}, ValueError, "entry 2 is NaT"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), WRONG_ARGUMENTS, ids=[case[2][:30] for case in WRONG_ARGUMENTS]
)
def test_what_makes_no_grid_is_refused(change, error, message):
    arguments = {"data": field(), "kernels": KERNELS, "noise": 0.1} | change
    with pytest.raises(error, match=message):
        kx.GridGP.from_xarray(**arguments)


CALENDARS = ["noleap", "360_day", "standard"]


def model_time(calendar):
    return xr.date_range("2000-02-28", periods=3, freq="D", calendar=calendar, use_cftime=True)


@pytest.mark.parametrize("calendar", everyday(CALENDARS, ["360_day"]))
def test_dates_of_every_calendar_come_back(calendar, tmp_path):
    time = model_time(calendar)
    y = field(time=time)
    post = process(y).condition(y.T)
    new = xr.date_range("2001-01-30", periods=2, freq="D", calendar=calendar, use_cftime=True)
    for axes, expected in ((None, time), ({"time": new}, new)):
        ds = post.to_dataset(axes=axes)
        assert ds.indexes["time"].equals(expected)
        assert ds.time.dt.calendar == calendar
        ds.to_netcdf(tmp_path / "posterior.nc")
        coder = xr.coders.CFDatetimeCoder(use_cftime=True)
        with xr.open_dataset(tmp_path / "posterior.nc", decode_times=coder) as back:
            xr.testing.assert_identical(back, ds)
    other = [cftime.datetime(2000, 3, 1, calendar="julian")]
    with pytest.raises(TypeError, match="must be of one calendar; got julian"):
        post.to_dataset(axes={"time": other})


def test_everything_comes_back_from_a_file(tmp_path):
    post = process().condition(field().T)
    ds = post.to_dataset(num_samples=2, key=jax.random.key(0), include_noise=True)
    ds.to_netcdf(tmp_path / "posterior.nc")
    with xr.open_dataset(tmp_path / "posterior.nc") as back:
        xr.testing.assert_identical(back, ds)
        # And a model of what was read is the model of what was written.
        again = process(back["mean"])
        assert_close(again.condition(field()).mean(), post.mean())


def test_a_dataset_holds_what_the_methods_return():
    post = process().condition(field())
    key = jax.random.key(1)
    new = {"latitude": np.array([5.0, 10.0])}
    levels = (0.025, 0.5, 0.9)
    for noise in (False, True):
        draws = {"num_samples": 3, "key": key} if noise else {}
        ds = post.to_dataset(new, levels, include_noise=noise, **draws)
        mean, variance = post.mean(new), post.variance(new, include_noise=noise)
        np.testing.assert_array_equal(ds["mean"], mean)
        np.testing.assert_allclose(ds["standard_deviation"], np.sqrt(variance), rtol=1e-14)
        expected = norm.ppf(np.reshape(levels, (3, 1, 1)), mean, np.sqrt(variance))
        np.testing.assert_allclose(ds["quantiles"], expected, rtol=1e-12)
        if noise:
            np.testing.assert_array_equal(ds["draws"], post.sample(key, new, (3,), noise))
        assert ds["quantile"].values.tolist() == list(levels)
        assert ("noise included" in ds["mean"].attrs["long_name"]) is noise
    assert set(post.to_dataset(quantiles=()).data_vars) == {"mean", "standard_deviation"}


def test_a_dataset_has_the_coordinates_names_and_units_of_the_data():
    y = field()
    turned = y.transpose("latitude", "time", transpose_coords=False)
    ds = process().condition(turned).to_dataset()
    assert ds["mean"].dims == y.dims
    xr.testing.assert_identical(ds["mean"].coords.to_dataset(), y.coords.to_dataset())
    assert ds["mean"].attrs == y.attrs | {"long_name": "posterior mean of air temperature"}
    assert ds["standard_deviation"].attrs == {
        "units": "K",
        "long_name": "posterior standard deviation of air temperature",
    }
    assert ds.attrs == {"title": "posterior of tas"}
    # Arithmetic with the data aligns, so that no cell is lost.
    assert (y - ds["mean"]).shape == y.shape


def test_anything_on_the_grid_gets_its_coordinates():
    y = field()
    post = process().condition(y)
    found = post.leave_one_out()
    residual = post.to_dataarray(y.values - found.mean, name="residual")
    xr.testing.assert_identical(residual.coords.to_dataset(), y.coords.to_dataset())
    np.testing.assert_array_equal(residual, y.values - found.mean)
    assert residual.name == "residual"
    new = {"latitude": [1.0, 2.0]}
    draws = post.to_dataarray(np.zeros((4, 3, 2)), axes=new)
    assert draws.dims == ("draw", "time", "latitude")
    assert draws.latitude.values.tolist() == [1.0, 2.0]
    batch = process().condition(xr.concat([y, y], pd.Index([7, 9], name="member")))
    slope = batch.to_dataarray(batch.mean_derivative("time"))
    assert slope.dims == ("member", "time", "latitude")
    assert slope.member.values.tolist() == [7, 9]
    shared = batch.to_dataarray(batch.variance())
    assert shared.dims == ("time", "latitude")
    assert "member" not in shared.coords
    with pytest.raises(
        ValueError, match=r"shape of the grid, \(3, 3\), or .* \(2, 3, 3\), .*got \(3,\)"
    ):
        batch.to_dataarray(np.zeros(3))


def test_coordinates_of_places_that_are_left_are_left_out():
    latitude = xr.DataArray(np.array([0.1, 0.2], "f4"), dims="latitude")
    ds = process().condition(field()).to_dataset(axes={"latitude": latitude})
    assert set(ds.coords) == {"time", "latitude", "height", "season", "quantile"}
    # Exactly what was given, or alignment by value would find nothing.
    np.testing.assert_array_equal(ds.latitude, latitude)
    assert ds.latitude.dtype == np.float32
    assert ds.latitude.attrs == {"units": "degrees_north"}
    wrong = latitude.assign_attrs(units="rad")
    with pytest.raises(ValueError, match="in the units of the model, 'degrees_north'; got 'rad'"):
        process().condition(field()).mean(axes={"latitude": wrong})


def test_data_without_names_get_those_of_the_model():
    ds = process().condition(field().values).to_dataset()
    assert set(ds.coords) == {"time", "latitude", "quantile"}
    assert ds.latitude.attrs == {"units": "degrees_north"}
    assert ds["mean"].attrs == {"long_name": "posterior mean of the data"}
    post = by_hand().condition(field().values)
    ds = post.to_dataset()
    assert ds["mean"].dims == ("axis_0", "axis_1")
    np.testing.assert_array_equal(ds.axis_1, LATITUDE)
    batch = by_hand().condition(np.stack([field().values] * 2))
    assert batch.to_dataset()["mean"].dims == ("batch", "axis_0", "axis_1")
    assert batch.to_dataset(axes={1: [0.0]})["mean"].shape == (2, 3, 1)


def test_numbers_are_names_of_axes_without_names():
    post = by_hand().condition(field().values)
    new = np.array([5.0])
    np.testing.assert_array_equal(post.mean(axes={1: new}), post.mean(axes=[None, new]))
    np.testing.assert_array_equal(post.mean(points={0: new, 1: new}), post.mean(points=(new, new)))
    with pytest.raises(KeyError, match="there is no axis 2"):
        post.mean(axes={2: new})
    with pytest.raises(KeyError, match="there is no axis True"):
        post.mean(axes={True: new})
    with pytest.raises(TypeError, match=r"Use their numbers, 0 to 1, for example \{0: …\}"):
        post.mean(axes={"latitude": new})
    structure = kx.GridGP((kx.RBF(1.0),) * 2, (new, new), 0.1, structure={1: "dense"}).structures
    assert [s.kind for s in structure][1] == "dense"


def test_labels_and_cells_without_coordinates():
    y = xr.DataArray(
        np.random.default_rng(1).normal(size=(3, 4)),
        {"task": np.array(["a", "b", "c"], object)},
        ("task", "cell"),
    )
    kernels = {"cell": kx.RBF(1.0), "task": kx.Categorical(np.ones((3, 1)), np.ones(3) / 3)}
    post = kx.GridGP.from_xarray(y, kernels, 0.1).condition(y.T)
    ds = post.to_dataset()
    assert "cell" not in ds.coords
    assert ds.task.values.tolist() == ["a", "b", "c"]
    ds = post.to_dataset(axes={"task": ["c"], "cell": [4.0, 5.0]})
    assert ds.sel(task="c", cell=4.0)["mean"].shape == ()
    numbered = y.assign_coords(cell=np.arange(4))
    assert_close(post.gp.condition(numbered).mean(), post.mean())
    with pytest.raises(ValueError, match="got 1 instead of 0 at index 0"):
        post.gp.condition(y.assign_coords(cell=np.arange(1, 5)))
    with pytest.raises(ValueError, match="must have 4 places along 'cell', as the model; got 3"):
        post.gp.condition(y[:, :3])
    swapped = y.assign_coords(task=["b", "a", "c"])
    with pytest.raises(ValueError, match="those of the model in another order, b … c instead of a"):
        post.gp.condition(swapped)


PLACES = np.array([[52.5, 13.4], [48.9, 2.4], [-33.9, 151.2]])


def stations():
    y = field().rename(latitude="station").drop_vars(["station", "area"])
    return y.assign_coords(
        station=["Berlin", "Paris", "Sydney"],
        lat=("station", PLACES[:, 0]),
        lon=("station", PLACES[:, 1]),
    )


def test_places_are_found_by_the_names_of_the_data():
    y = stations()
    kernels = {"time": kx.Matern32(60.0), "station": kx.Matern32(1000.0)}
    axes = {"station": kx.sphere(np.stack([y.lat, y.lon], axis=-1))}
    gp = kx.GridGP.from_xarray(y, kernels, 0.1, axes=axes)
    post = gp.condition(y.transpose("station", "time", transpose_coords=False))
    assert gp.axes[1].radius is not None
    xr.testing.assert_identical(
        post.to_dataset()["mean"].coords.to_dataset(), y.coords.to_dataset()
    )
    new = post.to_dataset(axes={"station": PLACES[:2] + 0.5})
    assert "station" not in new.coords
    np.testing.assert_array_equal(new.lat, PLACES[:2, 0] + 0.5)
    np.testing.assert_array_equal(new.lon, PLACES[:2, 1] + 0.5)
    with pytest.raises(ValueError, match="another order, Paris … Sydney instead of Berlin … Sydn"):
        gp.condition(y.isel(station=[1, 0, 2]))


def test_a_multiindex_is_an_axis_of_places(tmp_path):
    y = stations().drop_vars("station").set_index(station=["lat", "lon"])
    kernels = {"time": kx.Matern32(60.0), "station": kx.RBF(10.0)}
    gp = kx.GridGP.from_xarray(y, kernels, 0.1)
    assert gp.axes[1].shape == (3, 2)
    on_sphere = kx.GridGP.from_xarray(y, kernels, 0.1, axes={"station": kx.sphere(y.station)})
    assert on_sphere.axes[1].radius is not None
    ds = gp.condition(y.T).to_dataset()
    np.testing.assert_array_equal(np.stack([ds.lat, ds.lon], axis=-1), PLACES)
    ds.to_netcdf(tmp_path / "posterior.nc")
    with pytest.raises(ValueError, match=r"got .* instead of .* at index 0"):
        gp.condition(y.isel(station=[1, 0, 2]))


def test_what_coordinates_do_not_show_is_declared():
    y = field(latitude=("latitude", [0.0, 120.0, 240.0], {"units": "degrees_east"}))
    months = {"time": kx.dates(y.time, unit="months")}
    gp = process(y, axes={"latitude": kx.circle(y.latitude, 360.0)} | months)
    assert gp.axes[0].coordinates(float).tolist() == [0.0, 1.0, 2.0]
    assert gp.axes[1].is_full_circle
    assert "degrees_east" in repr(gp)
    ds = gp.condition(y.T).to_dataset(axes={"latitude": [60.0]})
    assert ds.indexes["time"].equals(pd.DatetimeIndex(MONTHS))
    assert ds.latitude.attrs == {"units": "degrees_east"}
    uneven = field(latitude=("latitude", [0.0, 1.01, 2.0]))
    gp = process(uneven, axes={"latitude": kx.regular(uneven.latitude)})
    # Data are found under the coordinates that they came with, and go back under them.
    ds = gp.condition(uneven).to_dataset()
    assert ds.latitude.values.tolist() == [0.0, 1.01, 2.0]


def test_bins_are_modelled_at_coordinates_of_their_own():
    y = field().groupby_bins("latitude", [-40.0, -10.0, 10.0, 30.0]).mean()
    kernels = {"time": kx.Matern32(60.0), "latitude_bins": kx.RBF(20.0)}
    middles = np.array([interval.mid for interval in y.latitude_bins.values])
    gp = kx.GridGP.from_xarray(y, kernels, 0.1, axes={"latitude_bins": middles})
    ds = gp.condition(y.T).to_dataset()
    assert ds.latitude_bins.values[0] == y.latitude_bins.values[0]


def test_means_and_noise_are_taken_by_name():
    y = field()
    climate = y.mean("time")
    variances = xr.DataArray([0.1, 0.2, 0.3], {"latitude": LATITUDE}, ("latitude",))
    gp = kx.GridGP.from_xarray(y, KERNELS, variances, mean=climate)
    plain = kx.GridGP.from_xarray(
        y, KERNELS, {"latitude": variances.values}, mean=climate.values[None, :]
    )
    assert_close(gp.log_marginal_likelihood(y), plain.log_marginal_likelihood(y))
    whole = process(mean=y.T)
    np.testing.assert_array_equal(whole.mean_on((None, None)), y.values)
    by_name = kx.GridGP.from_xarray(y, KERNELS, {"latitude": variances})
    np.testing.assert_array_equal(by_name.noise.variances[1], variances)
    with pytest.raises(ValueError, match="the mean along 'latitude' must be those of the model"):
        process(mean=climate.assign_coords(latitude=LATITUDE + 1))
    with pytest.raises(ValueError, match="The mean must have dimensions of the grid; got 'member'"):
        process(mean=climate.expand_dims(member=2))


TRACES = []


class Counted(kx.Kernel):
    """Says when it is compiled."""

    def evaluate(self, x, z):
        TRACES.append(None)
        return jnp.exp(-jnp.square(x - z))


def test_data_that_differ_in_names_alone_share_what_is_compiled():
    kernels = {"time": Counted(), "latitude": kx.RBF(20.0)}
    gp = kx.GridGP.from_xarray(field(), kernels, 0.1)
    key = jax.random.key(0)

    def predict(y):
        gp.condition(y).to_dataset(num_samples=1, key=key)
        gp.condition(y).mean(points=(MONTHS[:1], [3.0]))
        gp.condition(y).log_prob(y)

    counts = []
    other = field(height=10.0).rename("other").assign_attrs(units="m")
    for y in (field(), field(), other):
        predict(y)
        counts.append(len(TRACES))
    # What is not compiled at all, such as the covariance of `condition`, sees the kernel each time.
    assert counts[2] - counts[1] == counts[1] - counts[0] < counts[0]


def test_metadata_follow_their_own_posterior_through_jax():
    first = process().condition(field())
    second = process().condition(field().rename("other").assign_attrs(units="m"))
    same = eqx.filter_jit(lambda post: post)
    for post in (first, second):
        assert same(post).template == post.template
        assert jax.tree.map(lambda leaf: leaf, post).template is post.template
    again = process().condition(field(height=np.nan))
    assert hash(process()) == hash(process())
    assert hash(again.template) == hash(process().condition(field(height=np.nan)).template)
    assert first.template == process().condition(field()).template != second.template


def test_a_float32_model_takes_float32_data():
    with jax.enable_x64(False):
        y = field().astype("float32")
        kernels = {"latitude": kx.RBF(20.0), "time": kx.Matern32(60.0)}
        ds = kx.GridGP.from_xarray(y, kernels, 0.1).condition(y.T).to_dataset()
        assert {v.dtype for v in ds.data_vars.values()} == {np.dtype("float32")}


BAD_DATASETS = [
    ({"quantiles": (0.0, 0.5)}, ValueError, "between 0 and 1; got 0.0"),
    ({"num_samples": 2}, TypeError, "2 draws need a random key"),
    ({"noise": 0.1}, TypeError, "include_noise=True only"),
    ({"axes": {"lat": [0.0]}}, KeyError, "no axis 'lat'. Did you mean 'latitude'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_DATASETS)
def test_what_makes_no_dataset_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        process().condition(field()).to_dataset(**options)


def test_names_of_variables_are_not_those_of_dimensions():
    y = field().rename(latitude="draw")
    gp = kx.GridGP.from_xarray(y, {"draw": kx.RBF(1.0), "time": kx.RBF(60.0)}, 0.1)
    with pytest.raises(ValueError, match=r"'draw' is that of a variable.*Rename it"):
        gp.condition(y).to_dataset()
    y = field().assign_coords(mean=1.0)
    with pytest.raises(ValueError, match="'mean' is that of a variable"):
        process(y).condition(y).to_dataset()


def test_kronax_imports_no_extras_and_works_without_them():
    code = (
        "import sys, numpy as np, kronax as kx\n"
        "for name in ('matplotlib', 'sklearn', 'xarray'):\n"
        "    assert name not in sys.modules, name\n"
        "    sys.modules[name] = None\n"
        "post = kx.GridGP((kx.RBF(1.0),), (np.arange(3.0),), 0.1).condition(np.ones(3, 'f4'))\n"
        "try: post.to_dataset()\n"
        "except ImportError as error: assert 'kronax[xarray]' in str(error); print('fine')"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "fine\n"


@pytest.mark.parametrize(
    ("pointwise", "batched"), everyday(product([True, False], [True, False]), [(False, True)])
)
def test_new_data_of_a_likelihood_may_have_their_dimensions_in_any_order(pointwise, batched):
    counts = xr.DataArray(
        np.arange(9).reshape(3, 3) % 4, {"a": [0.0, 1, 2], "b": [0.0, 1, 3]}, ("a", "b")
    )
    kernels = {"a": kx.RBF(1.0), "b": kx.RBF(1.0)}
    gp = kx.GridGP.from_xarray(counts, kernels, likelihood=kx.Poisson())
    data = xr.concat([counts, counts + 1], "run") if batched else counts
    post = gp.condition(data)
    expected = post.log_prob(data.values, pointwise=pointwise, num_draws=200)
    turned = data.transpose("b", "run", "a") if batched else data.T
    for y_new in (data, turned):
        found = post.log_prob(y_new, pointwise=pointwise, num_draws=200)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="coordinates"):
        post.log_prob(data.assign_coords(b=[0.0, 1, 2]), pointwise=pointwise)
    with pytest.raises(TypeError, match=r"got a DataArray. Pass gp.check_data"):
        post.leave_one_out().log_density(turned)


def test_variances_of_new_observations_may_have_their_dimensions_in_any_order():
    y = field()
    post = process().condition(y)
    variances = np.exp(field()).drop_vars(["height", "season", "area", "distance"])
    plain = post.variance(include_noise=True, noise=variances.transpose(*post.gp.axis_names).values)
    for noise in (variances, variances.T):
        np.testing.assert_array_equal(post.variance(include_noise=True, noise=noise), plain)
    along = variances.isel(time=0, drop=True)
    lead = -1 if post.gp.axis_names[0] == "latitude" else 1
    expected = post.variance() + along.values.reshape(lead, -lead)
    np.testing.assert_allclose(post.variance(include_noise=True, noise=along), expected)
    moved = variances.assign_coords(latitude=LATITUDE + 1)
    with pytest.raises(ValueError, match="The coordinates of the noise along 'latitude' must be"):
        post.variance(include_noise=True, noise=moved)


def test_variances_of_further_times_may_have_their_dimensions_in_any_order():
    axes = {"day": np.arange(5.0), "x": np.arange(2.0), "y": np.array([0.0, 3])}
    rng = np.random.default_rng(3)
    y = xr.DataArray(rng.normal(size=(5, 2, 2)), axes, tuple(axes))
    variances = np.exp(y)
    kernels = {"day": kx.Matern32(2.0), "x": kx.RBF(1.0), "y": kx.RBF(1.0)}
    gp = kx.GridGP.from_xarray(y[:4], kernels, noise=variances[:4])
    post = gp.condition(y[:4])
    densities, means = [], []
    for noise in (variances[4], variances[4].T, variances[4].values):
        _, found = post.filter("day").update(y[4], 4.0, noise=noise)
        densities.append(found.log_density)
        more = noise if isinstance(noise, np.ndarray) else noise.expand_dims("day", -1)
        more = more[None] if isinstance(more, np.ndarray) else more
        means.append(post.append(y[4:], {"day": [4.0]}, noise=more).mean())
    np.testing.assert_array_equal(densities, densities[:1] * 3)
    np.testing.assert_array_equal(means[:2], [means[2]] * 2)
