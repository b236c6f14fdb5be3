"""Tables of pandas: to grids with gaps, and back in the names of their user."""

import numpy as np
import pandas as pd
import pytest

import kronax as kx
from tests.tolerances import assert_close

RNG = np.random.default_rng(19)
DAYS = pd.date_range("2024-03-01", periods=6, freq="D")
STATIONS = ["north", "east", "south"]
KERNELS = {"time": kx.Matern32(2.0), "station": kx.Categorical(3, rank=1)}
INDEX = ["time", "station"]


def full():
    """A long table of the whole grid, rows in no order, beside the grid itself."""
    grid = RNG.normal(size=(6, 3))
    rows = [(t, s, grid[i, k]) for i, t in enumerate(DAYS) for k, s in enumerate(sorted(STATIONS))]
    frame = pd.DataFrame(rows, columns=[*INDEX, "pm25"])
    frame["wind"] = RNG.normal(size=18)
    return frame.sample(frac=1, random_state=0), grid


FRAME, GRID = full()
WIND = FRAME.pivot(index="time", columns="station", values="wind").to_numpy()
GAPPED = FRAME.iloc[4:].reset_index(drop=True)  # four cells have no row
HOLES = GAPPED.pivot(index="time", columns="station", values="pm25").to_numpy()
PLAIN = kx.GridGP(KERNELS, {"time": DAYS.to_numpy(), "station": sorted(STATIONS)}, noise=0.1)


def test_a_long_table_makes_the_grid():
    gp = kx.GridGP.from_frame(FRAME, index=INDEX, value="pm25", kernels=KERNELS)
    assert gp.axis_names == ("time", "station")
    assert gp.grid_shape == (6, 3)
    expected = PLAIN.log_marginal_likelihood(GRID)
    assert_close(gp.log_marginal_likelihood(FRAME), expected)
    assert_close(gp.log_marginal_likelihood(FRAME.set_index(INDEX)["pm25"]), expected)
    assert_close(gp.log_marginal_likelihood(FRAME.set_index(INDEX)), expected)
    assert "18 values in 18 cells (100 %)" in gp.describe()


def test_cells_without_a_row_are_gaps():
    gp = kx.GridGP.from_frame(GAPPED, INDEX, "pm25", KERNELS)
    assert_close(gp.log_marginal_likelihood(GAPPED), PLAIN.log_marginal_likelihood(HOLES))
    assert "'pm25' of a long table: 14 values in 18 cells (77.8 %)" in gp.describe()
    # Other rows of the grid are data as well.
    part, grid = FRAME[FRAME["station"] != "east"], GRID.copy()
    grid[:, 0] = np.nan
    assert_close(gp.log_marginal_likelihood(part), PLAIN.log_marginal_likelihood(grid))


def test_the_table_comes_back_long():
    gp = kx.GridGP.from_frame(GAPPED, INDEX, "pm25", KERNELS)
    post = gp.condition(GAPPED)
    back = post.to_frame()
    names = ["mean", "standard_deviation", "quantile_0.025", "quantile_0.975"]
    assert list(back.columns) == [*INDEX, "pm25", *names]
    both = back.merge(GAPPED, on=INDEX, suffixes=("", "_given"))
    assert len(both) == 14
    assert (both["pm25"] == both["pm25_given"]).all()
    assert back["pm25"].isna().sum() == 4
    assert back["time"].dtype == GAPPED["time"].dtype
    for column, values in (("mean", post.mean()), ("standard_deviation", post.std())):
        assert_close(back.pivot(index="time", columns="station", values=column), values)
    assert_close(back["quantile_0.975"], post.quantile(0.975).ravel())
    again = gp.condition(back)  # the value among many columns is remembered
    assert_close(again.mean(), post.mean())
    day = {"time": [pd.Timestamp("2024-03-09")]}
    ahead = post.to_frame(day, quantiles=(), include_noise=True)
    assert list(ahead.columns) == [*INDEX, "mean", "standard_deviation"]
    assert len(ahead) == 3
    assert_close(
        ahead["standard_deviation"],
        post.std(day, include_noise=True)[0],
    )


def test_a_wide_table_by_its_index_and_columns():
    wide = FRAME.pivot(index="time", columns="station", values="pm25")
    expected = PLAIN.log_marginal_likelihood(GRID)
    gp = kx.GridGP.from_frame(wide, kernels=KERNELS)
    assert_close(gp.log_marginal_likelihood(wide), expected)
    assert_close(gp.log_marginal_likelihood(wide.iloc[::-1, ::-1]), expected)
    bare = wide.rename_axis(index=None, columns=None)
    gp = kx.GridGP.from_frame(bare, INDEX, kernels=dict(reversed(KERNELS.items())))
    assert_close(gp.log_marginal_likelihood(bare), expected)
    back = gp.condition(bare).to_frame(quantiles=())
    assert list(back.columns) == [*INDEX, "y", "mean", "standard_deviation"]
    assert_close(back["y"], GRID.ravel())


def test_a_series_by_its_levels():
    series = GAPPED.set_index(INDEX)["pm25"]
    gp = kx.GridGP.from_frame(series, kernels=KERNELS)
    assert_close(gp.log_marginal_likelihood(series), PLAIN.log_marginal_likelihood(HOLES))
    levels = GAPPED.set_index("time")
    gp = kx.GridGP.from_frame(levels, INDEX, "pm25", KERNELS)
    assert_close(gp.log_marginal_likelihood(levels), PLAIN.log_marginal_likelihood(HOLES))


def test_covariates_and_variances_are_columns():
    mean = kx.MarginalMean(kx.ConstantMean(0.0) + kx.CovariateMean(wind=GAPPED["wind"]))
    variances = GAPPED["wind"] ** 2 + 0.1
    gp = kx.GridGP.from_frame(GAPPED, INDEX, "pm25", KERNELS, noise=variances, mean=mean)
    known = np.where(np.isnan(HOLES), np.nan, WIND)
    plain = kx.GridGP(
        KERNELS,
        {"time": DAYS.to_numpy(), "station": sorted(STATIONS)},
        noise=np.where(np.isnan(HOLES), np.inf, WIND**2 + 0.1),
        mean=kx.MarginalMean(kx.ConstantMean(0.0) + kx.CovariateMean(wind=known)),
    )
    assert_close(gp.log_marginal_likelihood(GAPPED), plain.log_marginal_likelihood(HOLES))


def test_categories_keep_their_order_and_unused_ones_are_left_out():
    order = ["south", "west", "north", "east"]
    frame = FRAME.assign(station=pd.Categorical(FRAME["station"], order))
    gp = kx.GridGP.from_frame(frame, INDEX, "pm25", KERNELS)
    assert gp.axes[1].given.values.tolist() == ["south", "north", "east"]
    assert np.isfinite(gp.log_marginal_likelihood(frame))


def test_places_by_their_labels_and_times_with_a_zone():
    places = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [0.5, 0.1, 0.9]}, index=STATIONS)
    frame = FRAME.assign(time=FRAME["time"].dt.tz_localize("Europe/Berlin"))
    kernels = {"time": kx.Matern32(2.0), "station": kx.RBF(1.0)}
    gp = kx.GridGP.from_frame(frame, INDEX, "pm25", kernels, axes={"station": places})
    xy = places.loc[sorted(STATIONS)].to_numpy()
    plain = kx.GridGP(kernels, {"time": np.arange(6.0), "station": xy}, noise=0.1)
    assert_close(gp.log_marginal_likelihood(frame), plain.log_marginal_likelihood(GRID))
    back = gp.condition(frame).to_frame()
    assert sorted(set(back["station"])) == sorted(STATIONS)
    assert {"station_0", "station_1"} <= set(back.columns)
    assert str(back["time"].dt.tz) == "Europe/Berlin"


def test_counts_have_their_response():
    frame = pd.DataFrame({"day": [0, 1, 3], "deaths": [2, 5, 1]})
    gp = kx.GridGP.from_frame(frame, "day", "deaths", {"day": kx.RBF(2.0)}, likelihood=kx.Poisson())
    post = gp.condition(frame)
    back, found = post.to_frame(response=True, quantiles=[0.9]), post.response(quantiles=[0.9])
    assert_close(back["deaths"], [2, 5, 1])
    assert_close(back["mean"], found.mean)
    assert_close(back["quantile_0.9"], found.quantiles[0])
    assert_close(back["observation_quantile_0.9"], found.observation_quantiles[0])
    assert_close(post.to_frame()["mean"], post.mean())


def double():
    return pd.concat([FRAME, FRAME.iloc[:7]])


def build(frame, index=INDEX, value="pm25", kernels=KERNELS, **options):
    return kx.GridGP.from_frame(frame, index, value, kernels, **options)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: build(double()),
            ValueError,
            r"7 cells have several: 2024-03-0\d, \w+ \(2 rows\).*and 2 more.*groupby",
        ),
        (lambda: build(FRAME, ["time", "Station"]), KeyError, "Did you mean 'station'"),
        (lambda: build(FRAME, value="PM25"), KeyError, "Did you mean 'pm25'"),
        (lambda: build(FRAME, value=None), TypeError, "value=, one of 'pm25', 'wind'"),
        (lambda: build(FRAME, None), TypeError, r"index=\[\"time\", \"station\"\]"),
        (lambda: build(FRAME, kernels=None), TypeError, "a dictionary by axis, 'time', 'station'"),
        (lambda: build(FRAME, kernels={"time": kx.RBF(1.0)}), KeyError, "'station' has no kernel"),
        (lambda: build(FRAME, INDEX, "time"), ValueError, "must be no axis"),
        (lambda: build(GRID), TypeError, "needs a pandas DataFrame or Series; got ndarray"),
        (
            lambda: build(FRAME.assign(station=FRAME["station"].where(FRAME.index > 1))),
            ValueError,
            r"2 of 18 rows have none of 'station'.*dropna",
        ),
        (
            lambda: kx.GridGP.from_frame(pd.DataFrame(GRID), kernels=KERNELS),
            TypeError,
            "rows and the columns of a wide table need names",
        ),
        (
            lambda: PLAIN.condition(FRAME),
            ValueError,
            r"y is a long table.*columns 'pm25', 'wind' has the data: pass y.set_index",
        ),
        (
            lambda: kx.GridGP(list(KERNELS.values()), PLAIN.axes, 0.1).condition(FRAME),
            ValueError,
            r"of a long table.*set_index",
        ),
    ],
)
def test_what_is_no_grid_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_times_that_differ_a_little_are_no_grid():
    rows = pd.DataFrame({"time": RNG.normal(size=60), "station": np.arange(60) % 30, "pm25": 1.0})
    with pytest.warns(UserWarning, match=r"fills 3.3 % of its grid of 60 × 30.*round them"):
        kx.GridGP.from_frame(rows, INDEX, "pm25", {"time": kx.RBF(1.0), "station": kx.RBF(1.0)})


def test_one_column_beside_the_axes_is_the_data():
    frame = FRAME.drop(columns="wind")
    assert_close(PLAIN.log_marginal_likelihood(frame), PLAIN.log_marginal_likelihood(GRID))
