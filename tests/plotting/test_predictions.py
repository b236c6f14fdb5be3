"""Pictures of a posterior: every curve, band, dot and pixel is the number that it stands for."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import norm

import kronax as kx
from tests.everyday import everyday, full

TIME = pd.date_range("2001-01-01", periods=5, freq="MS")
LATITUDE = np.array([50.0, 40.0, 60.0])


def field(time=TIME, name="tas"):
    return xr.DataArray(
        np.random.default_rng(0).normal(size=(5, 3, 4)),
        {
            "time": time,
            "latitude": ("latitude", LATITUDE, {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(4.0), {"units": "degrees_east"}),
        },
        ("time", "latitude", "longitude"),
        name,
        {"units": "K"},
    )


KERNELS = {"time": kx.Matern32(60.0), "latitude": kx.RBF(20.0), "longitude": kx.RBF(2.0)}


@pytest.fixture(scope="module")
def post():
    return kx.GridGP.from_xarray(field(), KERNELS, 0.1).condition(field())


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def band(ax):
    """Lowest and highest of the band at each of its coordinates."""
    vertices = ax.collections[0].get_paths()[0].vertices
    x = np.unique(vertices[:, 0])
    pairs = [vertices[vertices[:, 0] == one, 1] for one in x]
    return np.array([[pair.min(), pair.max()] for pair in pairs])


def test_a_series_holds_mean_band_and_data(post):
    ax = kx.plot_series(post, "latitude", at={"time": TIME[1], "longitude": 2.0})
    order = np.argsort(LATITUDE)
    mean = np.asarray(post.mean())[1, :, 2]
    sd = np.sqrt(np.asarray(post.variance(include_noise=True)))[1, :, 2]
    np.testing.assert_allclose(lines(ax)["mean"], np.stack([LATITUDE, mean], 1)[order], rtol=1e-9)
    expected = norm.interval(0.95, mean[order], sd[order])
    np.testing.assert_allclose(band(ax), np.stack(expected, 1), rtol=1e-9)
    data = np.stack([LATITUDE, field().values[1, :, 2]], 1)
    np.testing.assert_array_equal(lines(ax)["data"], data)
    assert ax.get_title() == "time 2001-02-01, longitude 2"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latitude (degrees_north)", "tas (K)")
    assert ax.get_legend().get_texts()[0].get_text() == "95 % band"


def test_a_band_is_that_of_the_function_if_asked(post):
    ax = kx.plot_series(post, "latitude", level=0.5, include_noise=False)
    sd = np.sqrt(np.asarray(post.variance()))[2, :, 2][np.argsort(LATITUDE)]
    np.testing.assert_allclose(np.ptp(band(ax), axis=1), 2 * norm.ppf(0.75) * sd, rtol=1e-9)


def test_a_forecast_is_drawn_with_what_was_held_out(post):
    new = TIME.shift(5)
    held_out = field(new) * 2
    ax = kx.plot_series(post, coordinates=new, held_out=held_out)
    shown = lines(ax)
    np.testing.assert_array_equal(shown["held out"][:, 1], held_out.values[:, 1, 2])
    expected = post.mean(axes={"time": new})[:, 1, 2]
    np.testing.assert_allclose(shown["mean"][:, 1], expected, rtol=1e-9)
    # The data stay at their own dates.
    assert shown["data"][-1, 0] < shown["mean"][0, 0]
    line = held_out.isel(latitude=1, longitude=2)
    for same in (line, line.values):
        ax = kx.plot_series(post, coordinates=new, held_out=same)
        np.testing.assert_array_equal(lines(ax)["held out"], shown["held out"])
    with pytest.raises(ValueError, match=r"one number per coordinate, \(5,\); got shape \(3,\)"):
        kx.plot_series(post, coordinates=new, held_out=np.zeros(3))
    rounded = held_out.assign_coords(latitude=held_out.latitude + 1e-14)
    ax = kx.plot_series(post, at={"latitude": 40.0}, coordinates=new, held_out=rounded)
    assert "held out" in lines(ax)
    with pytest.raises(ValueError, match="of held_out along 'latitude' must be those of the model"):
        kx.plot_series(post, held_out=held_out[:, :2])
    elsewhere = held_out.assign_coords(latitude=[45.0, 46.0, 47.0])
    ax = kx.plot_series(post, at={"latitude": 46.0}, held_out=elsewhere)
    np.testing.assert_array_equal(lines(ax)["held out"][:, 1], held_out.values[:, 1, 2])
    with pytest.raises(ValueError, match="must be a line along 'time'"):
        kx.plot_series(post, held_out=held_out.expand_dims(member=2))


def test_between_the_cells_there_are_no_data(post):
    ax = kx.plot_series(post, "time", at={"latitude": 45.0})
    assert set(lines(ax)) == {"mean"}
    expected = post.mean(axes={"latitude": [45.0]})[:, 0, 2]
    np.testing.assert_allclose(lines(ax)["mean"][:, 1], expected, rtol=1e-9)


def test_given_axes_are_used_and_names_may_be_numbers(post):
    _, mine = plt.subplots()
    assert kx.plot_series(post, 0, at={1: 45.0}, ax=mine) is mine
    assert len(plt.get_fignums()) == 1
    bare = kx.GridGP((kx.RBF(1.0),), (np.arange(3.0),), 0.1).condition(jnp.arange(3.0))
    ax = kx.plot_series(bare)
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("", "axis_0", "")


def test_axes_may_be_part_of_a_figure(post):
    part = plt.figure().subfigures(2, 1)[0]
    ax = kx.plot_series(post, "latitude", at={"longitude": 2.0}, ax=part.subplots())
    assert ax.figure is part
    assert kx.plot_maps(post, ax=part.subplots(1, 2))[0].figure is part


def test_noise_that_varies_is_that_of_the_cells_that_are_drawn():
    variances = np.array([0.1, 0.5, 2.0])
    gp = kx.GridGP.from_xarray(field(), KERNELS, {"latitude": variances})
    post = gp.condition(field())
    all_cells = np.sqrt(np.asarray(post.variance(include_noise=True)))
    ax = kx.plot_series(post, "time", at={"latitude": 60.0, "longitude": 0.0})
    half = np.ptp(band(ax), axis=1) / 2
    np.testing.assert_allclose(half, norm.ppf(0.975) * all_cells[:, 2, 0], rtol=1e-9)
    sd = kx.plot_maps(post, include_noise=True)[1].collections[0].get_array()
    np.testing.assert_allclose(sd, all_cells[2][np.argsort(LATITUDE)], rtol=1e-9)
    with pytest.raises(ValueError, match="The noise varies along latitude"):
        kx.plot_series(post, "time", at={"latitude": 45.0})
    kx.plot_series(post, "time", at={"latitude": 45.0}, noise=1.0)


CALENDARS = {
    "noleap": ("2001-02-28", np.arange(5.0)),
    "360_day": ("2001-02-29", 2001 + (58 + np.arange(5)) / 360),
}


@pytest.mark.parametrize("calendar", everyday(CALENDARS, ["360_day"]))
def test_other_calendars_are_drawn(calendar):
    first, places = CALENDARS[calendar]
    time = xr.date_range(first, periods=5, calendar=calendar, use_cftime=True)
    post = kx.GridGP.from_xarray(field(time), KERNELS, 0.1).condition(field(time))
    ax = kx.plot_series(post)
    found = lines(ax)["mean"][:, 0]
    if calendar == "noleap":
        found = found - found[0]
    else:
        assert ax.get_xlabel() == "time (year)"
    np.testing.assert_allclose(found, places)


def test_categories_have_error_bars():
    y = field()[:, :, 0].drop_vars("longitude").assign_coords(latitude=["a", "b", "c"])
    kernels = {"time": kx.RBF(60.0), "latitude": kx.White()}
    post = kx.GridGP.from_xarray(y, kernels, 0.1).condition(y)
    ax = kx.plot_series(post, "latitude")
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_ydata(), post.mean()[2], rtol=1e-9)
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    mean, _ = kx.plot_maps(post)
    assert [label.get_text() for label in mean.get_xticklabels()] == ["a", "b", "c"]


def pixels(ax):
    mesh = ax.collections[0]
    x, y = mesh.get_coordinates()[0, :, 0], mesh.get_coordinates()[:, 0, 1]
    return (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2, np.asarray(mesh.get_array())


def test_maps_show_mean_and_standard_deviation_the_right_way_round(post):
    order = np.argsort(LATITUDE)
    mean, sd = kx.plot_maps(post, at={"time": TIME[4]})
    x, y, shown = pixels(mean)
    np.testing.assert_allclose(x, np.arange(4.0))
    np.testing.assert_allclose(y, LATITUDE[order])
    np.testing.assert_allclose(shown, np.asarray(post.mean())[4][order], rtol=1e-9)
    expected = np.sqrt(np.asarray(post.variance()))[4][order]
    np.testing.assert_allclose(pixels(sd)[2], expected, rtol=1e-9)
    assert sd.collections[0].get_clim()[0] == 0
    turned, _ = kx.plot_maps(post, x="latitude", y="longitude", at={"time": TIME[4]})
    np.testing.assert_allclose(pixels(turned)[2], shown.T, rtol=1e-9)
    assert mean.figure.get_suptitle() == "tas, time 2001-05-01"
    assert mean.get_aspect() == pytest.approx(1 / np.cos(np.deg2rad(50)))
    over_time, _ = kx.plot_maps(post, x="time")
    assert over_time.get_ylabel() == "longitude (degrees_east)"
    assert over_time.get_aspect() == "auto"


def test_data_stand_beside_the_mean_on_one_scale(post):
    data, mean, sd = kx.plot_maps(post, show_data=True)
    np.testing.assert_array_equal(pixels(data)[2], field().values[2][np.argsort(LATITUDE)])
    assert data.collections[0].get_clim() == mean.collections[0].get_clim()
    assert [ax.get_title() for ax in (data, mean, sd)] == ["data", "mean", "standard deviation"]


def test_maps_predict_where_they_are_asked_to(post):
    fine = np.linspace(0, 3, 7)
    axes = {"time": [TIME[0] + pd.Timedelta(days=3)], "longitude": fine}
    mean, _ = kx.plot_maps(post, at={"time": axes["time"][0]}, coordinates={"longitude": fine})
    x, _, shown = pixels(mean)
    np.testing.assert_allclose(x, fine)
    expected = np.asarray(post.mean(axes=axes))[0][np.argsort(LATITUDE)]
    np.testing.assert_allclose(shown, expected, rtol=1e-9)


def test_places_are_dots():
    y = field()[:, 0].rename(longitude="station").drop_vars(["station", "latitude"])
    places = np.array([[52.5, 13.4], [48.9, 2.4], [40.4, -3.7], [59.3, 18.1]])
    y = y.assign_coords(lat=("station", places[:, 0]), lon=("station", places[:, 1]))
    kernels = {"time": kx.Matern32(60.0), "station": kx.Matern32(900.0)}
    gp = kx.GridGP.from_xarray(y, kernels, 0.1, axes={"station": kx.sphere(places)})
    post = gp.condition(y)
    for options in ({}, {"x": "station"}):
        mean, _ = kx.plot_maps(post, **options)
        (dots,) = mean.collections
        np.testing.assert_array_equal(dots.get_offsets(), places[:, ::-1])
        np.testing.assert_allclose(dots.get_array(), post.mean()[2], rtol=1e-9)
        assert (mean.get_xlabel(), mean.get_ylabel()) == ("lon", "lat")
    held_out = 2 * y.assign_coords(time=TIME.shift(5))
    ax = kx.plot_series(post, "time", at={"station": (48.9, 2.4)}, held_out=held_out)
    np.testing.assert_array_equal(lines(ax)["held out"][:, 1], held_out.values[:, 1])
    assert ax.get_title() == "station (48.9, 2.4)"
    np.testing.assert_array_equal(lines(ax)["data"][:, 1], y.values[:, 1])
    with pytest.raises(ValueError, match=r"places in 2 dimensions\. Draw it with kx.plot_maps"):
        kx.plot_series(post, "station")
    with pytest.raises(ValueError, match="two different axes"):
        kx.plot_maps(post, x="time", y="station")


WRONG = [
    (kx.plot_series, {"level": 1.0}, ValueError, "between 0 and 1; got 1.0"),
    (kx.plot_series, {"axis": "lat"}, KeyError, "no axis 'lat'. Did you mean 'latitude'"),
    (kx.plot_series, {"at": {"time": 0}}, ValueError, "drawn along 'time'; `at` must not fix it"),
    (kx.plot_maps, {"x": "time", "y": "time"}, ValueError, "two different axes"),
    (kx.plot_maps, {"coordinates": {"time": TIME}}, ValueError, "'time' is not. Pass its place"),
    (
        kx.plot_maps,
        {"show_data": True, "at": {"time": TIME[0] + pd.Timedelta(days=1)}},
        ValueError,
        "The data are known on the grid only",
    ),
    (kx.plot_maps, {"ax": np.empty(3, object)}, ValueError, "must be 2 Axes, one per panel; got 3"),
]


@pytest.mark.parametrize(("draw", "options", "error", "message"), WRONG)
def test_what_cannot_be_drawn_is_refused(draw, options, error, message, post):
    with pytest.raises(error, match=message):
        draw(post, **options)


def test_a_batch_is_refused(post):
    batch = post.gp.condition(np.stack([field().values] * 2))
    with pytest.raises(ValueError, match=r"got a batch of shape \(2,\)"):
        kx.plot_series(batch)


def plane(gap=False, units=("m", "m")):
    x, y = np.arange(0, 400.0, 20), np.arange(0, 100.0, 10)
    values = 5 + np.sin(x / 60)[:, None] * np.cos(y / 30)
    if gap:
        values[3, 4] = np.nan
    sides = {"x": ("x", x, {"units": units[0]}), "y": ("y", y, {"units": units[1]})}
    return xr.DataArray(values, sides, ("x", "y"))


@pytest.fixture(scope="module")
def with_a_gap():
    kernels = {"x": kx.RBF(40.0), "y": kx.RBF(20.0)}
    return kx.GridGP.from_xarray(plane(True), kernels, 0.01).condition(plane(True))


def test_a_gap_has_no_say_in_the_colours(with_a_gap):
    data, mean, _ = kx.plot_maps(with_a_gap, "x", "y", show_data=True)
    numbers = np.concatenate([plane(True).values.ravel(), np.asarray(with_a_gap.mean()).ravel()])
    for ax in (data, mean):
        expected = (np.nanmin(numbers), np.nanmax(numbers))
        np.testing.assert_allclose(ax.collections[0].get_clim(), expected, rtol=1e-12)
    assert 3 < expected[0] < 5 < expected[1]


def test_coarse_data_stand_beside_a_finer_map(with_a_gap):
    fine = {"x": np.arange(100, 300, 4.0), "y": np.arange(20, 80, 2.0)}
    data, mean, _ = kx.plot_maps(with_a_gap, "x", "y", coordinates=fine, show_data=True)
    shown, ours = data.collections[0].get_array(), mean.collections[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan), plane(True).values.T)
    assert ours.shape == (30, 50)
    assert (data.get_xlim(), data.get_ylim()) == (mean.get_xlim(), mean.get_ylim())
    framed = plane(True).sel(x=slice(100, 296), y=slice(20, 78)).values
    low, high = data.collections[0].get_clim()
    np.testing.assert_allclose(low, min(np.nanmin(framed), ours.min()), rtol=1e-12)
    np.testing.assert_allclose(high, max(np.nanmax(framed), ours.max()), rtol=1e-12)


@pytest.mark.parametrize("units", [full(("m", "m")), full(("m", "metres")), ("Kilometer", "km")])
def test_lengths_in_one_unit_have_one_scale(units):
    kernels = {"x": kx.RBF(40.0), "y": kx.RBF(20.0)}
    data = plane(True, units)
    post = kx.GridGP.from_xarray(data, kernels, 0.01).condition(data)
    assert kx.plot_maps(post)[0].get_aspect() == 1


def test_places_in_the_plane_have_one_scale():
    places = np.random.default_rng(1).uniform(size=(12, 2)) * [300, 50]
    y = np.where(np.arange(12) == 3, np.nan, np.sin(places[:, 0] / 40) + 5)
    post = kx.GridGP({"place": kx.RBF(30.0)}, {"place": places}, 0.01).condition(y)
    data, mean, _ = kx.plot_maps(post, show_data=True)
    assert mean.get_aspect() == data.get_aspect() == 1
    low, high = mean.collections[0].get_clim()
    assert 1 < low < 5 < high < 6.5
    stretched = kx.RBF([30.0, 0.5])
    other = kx.GridGP({"place": stretched}, {"place": places}, 0.01).condition(y)
    assert kx.plot_maps(other)[0].get_aspect() == "auto"


def test_a_part_of_an_axis_shows_the_data_of_that_part():
    t = np.arange(60.0)
    y = t + np.sin(t)
    post = kx.GridGP({"t": kx.RBF(5.0)}, {"t": t}, 0.01).condition(y)
    ax = kx.plot_series(post, coordinates=np.arange(50, 60, 0.25))
    np.testing.assert_array_equal(lines(ax)["data"], np.stack([t, y], 1)[50:])
    assert ax.get_xlim()[0] > 45
    assert ax.get_ylim()[0] > 40
    legend = ax.get_legend()
    ax.figure.canvas.draw()
    assert legend.get_window_extent().y0 >= ax.get_window_extent().y1 - 1, "it covers nothing"


def test_dates_in_titles_are_as_short_as_they_can_be():
    hours = pd.date_range("2001-02-01", periods=4, freq="6h")
    gp = kx.GridGP(
        {"time": kx.RBF(0.5), "x": kx.RBF(1.0)}, {"time": hours, "x": np.arange(3.0)}, noise=0.1
    )
    post = gp.condition(np.arange(12.0).reshape(4, 3))
    titles = [kx.plot_series(post, "x", at={"time": at}).get_title() for at in hours[2:]]
    assert titles == ["time 2001-02-01 12:00", "time 2001-02-01 18:00"]
