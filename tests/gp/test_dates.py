"""Dates: numbers of the user's units since the first one, whatever library they come from."""

import datetime

import cftime
import jax
import numpy as np
import pandas as pd
import pytest

import kronax as kx
from tests.tolerances import assert_close

DAYS = np.arange("2000-02-20", "2000-03-15", dtype="M8[D]")
HOURS = np.arange("2024-01-01", "2024-01-03", dtype="M8[h]")
MONTHS = np.arange("1999-11", "2001-03", dtype="M8[M]")
PYTHON = [datetime.datetime(2000, 2, 20) + datetime.timedelta(days=i) for i in range(24)]
UTC = datetime.UTC


def model(axis, kernel=None):
    return kx.GridGP({"time": kernel or kx.Matern32(4.0)}, {"time": axis}, noise=0.1)


def in_cftime(calendar, years, month=7):
    return [cftime.datetime(y, month, 1, calendar=calendar) for y in years]


@pytest.mark.parametrize(
    "dates",
    [
        DAYS,
        DAYS.astype("M8[ns]"),
        PYTHON,
        [day.date() for day in PYTHON],
        [day.replace(tzinfo=UTC) for day in PYTHON],
        pd.DatetimeIndex(DAYS),
        [pd.Timestamp(day) for day in PYTHON],
        [cftime.DatetimeGregorian(d.year, d.month, d.day) for d in PYTHON],
    ],
    ids=["days", "nanoseconds", "datetime", "date", "aware", "index", "Timestamp", "cftime"],
)
def test_dates_of_every_library_are_days_since_the_first(dates):
    gp = model(dates)
    np.testing.assert_array_equal(gp.axes[0].coordinates(float), np.arange(24.0))
    assert gp.structures[0].kind == "toeplitz"
    assert "dates 2000-02-20 to 2000-03-14 in days" in gp.describe()
    later = dates[::-1][:2]
    (new,) = gp.new_axes({"time": later})
    np.testing.assert_array_equal(new.points(float).centred, [23.0, 22.0])


@pytest.mark.parametrize(
    ("dates", "unit", "expected", "kind"),
    [
        (HOURS, "hours", np.arange(48.0), "toeplitz"),
        (HOURS, "seconds", 3600.0 * np.arange(48), "toeplitz"),
        (HOURS, "minutes", 60.0 * np.arange(48), "toeplitz"),
        (HOURS, "days", np.arange(48) / 24, "toeplitz"),
        (DAYS, "weeks", np.arange(24) / 7, "toeplitz"),
        (MONTHS, "months", np.arange(16.0), "toeplitz"),
        (MONTHS, "years", np.arange(16) / 12, "toeplitz"),
        (MONTHS, "days", (MONTHS.astype("M8[D]") - MONTHS[0]).astype(float), "dense"),
        (np.arange("1990", "2010", dtype="M8[Y]"), "years", np.arange(20.0), "toeplitz"),
        (in_cftime("noleap", range(1860, 1880)), "days", 365.0 * np.arange(20), "toeplitz"),
        (in_cftime("360_day", range(1860, 1880)), "months", 12.0 * np.arange(20), "toeplitz"),
        (in_cftime("standard", range(1860, 1880), 12), "years", np.arange(20.0), "toeplitz"),
    ],
)
def test_units_are_the_users_choice(dates, unit, expected, kind):
    gp = model(kx.dates(dates, unit))
    np.testing.assert_allclose(gp.axes[0].coordinates(float), expected, rtol=1e-14)
    assert gp.structures[0].kind == kind
    assert f"in {unit}" in gp.describe()


def test_times_of_day_and_steps_are_told_in_a_unit_that_suits_them():
    assert (
        "2001-03-01 to 2001-03-02 23:00 in days, 1 hour apart" in model(HOURS_OF_MARCH).describe()
    )
    spaced = model(HOURS_OF_MARCH[::6]).describe()
    assert "2001-03-01 to 2001-03-02 18:00 in days, 6 hours apart" in spaced
    gp = kx.GridGP({"time": kx.RBF(1.0)}, {"time": HOURS_OF_MARCH[5:]}, 0.1, kx.LinearMean("time"))
    assert "level at 21 hours after 2001-03-01 05:00, slope per day" in gp.describe()
    seconds = model(np.datetime64("2001-03-01T05:00:30") + np.arange(3) * np.timedelta64(1, "s"))
    assert (
        "2001-03-01 05:00:30 to 2001-03-01 05:00:32 in days, 1 second apart" in seconds.describe()
    )


HOURS_OF_MARCH = np.datetime64("2001-03-01T00", "ns") + np.arange(48) * np.timedelta64(1, "h")


def test_part_of_a_month_counts_by_its_length():
    dates = np.array(["2023-02-01", "2023-02-15", "2023-03-16T12"], "M8[h]")
    np.testing.assert_allclose(kx.dates(dates, "months").coordinates(float), [0, 0.5, 1.5])
    other = [cftime.DatetimeNoLeap(2023, 2, 1), cftime.DatetimeNoLeap(2023, 3, 16, 12)]
    np.testing.assert_allclose(kx.dates(other, "months").coordinates(float), [0, 1.5])


def test_new_dates_count_from_the_old_first_date_in_the_old_unit():
    months = kx.dates(MONTHS, "months")
    post = model(months, kx.RBF(2.0)).condition(np.sin(np.arange(16.0)))
    numbers = kx.GridGP({"time": kx.RBF(2.0)}, {"time": np.arange(16.0)}, noise=0.1)
    expected = numbers.condition(np.sin(np.arange(16.0))).mean({"time": [16.0, 18.0]})
    later = np.array(["2001-03", "2001-05"], "M8[M]")
    assert_close(post.mean({"time": later}), expected)
    assert_close(post.mean({"time": kx.dates(later.astype("M8[ns]"), "days")}), expected)


def test_a_mean_sees_the_units_and_a_year_can_be_a_circle():
    gp = kx.GridGP((kx.RBF(3.0),), (kx.dates(HOURS, "hours"),), 0.1, mean=lambda t: 2.0 * t)
    assert_close(gp.mean_on((None,)), 2 * np.arange(48.0))
    day = kx.circle(kx.dates(HOURS[:24], "hours"), 24.0)
    gp = model(day, kx.RBF(5.0))
    assert gp.structures[0].kind == "circulant"
    post = gp.condition(np.sin(np.arange(24.0)))
    assert_close(post.mean({"time": HOURS[24:26]}), post.mean()[:2])


def test_days_of_the_year_can_be_snapped_and_stay_dates():
    middays = DAYS + np.timedelta64(12, "h") + np.arange(24) % 2 * np.timedelta64(1, "h")
    gp = model(kx.regular(kx.dates(middays, "hours")))
    assert gp.structures[0].kind == "toeplitz"
    assert "dates 2000-02-20 to 2000-03-14 in hours, snapped by at most 0.957" in gp.describe()
    assert gp.condition(np.zeros(24)).mean({"time": middays[:2]}).shape == (2,)


def test_equal_dates_compile_once():
    axes = [model(in_cftime("noleap", range(1860, 1864))).axes[0] for _ in range(2)]
    assert axes[0] == axes[1]
    assert hash(axes[0].given) == hash(axes[1].given)


@pytest.mark.parametrize(
    "time",
    [
        1950 + np.arange(48) / 12,
        1.7e9 + 3600.0 * np.arange(48),
        np.datetime64("2024-01-01") + np.arange(48) * np.timedelta64(1, "ms"),
        np.stack([5e6 + 30.0 * np.arange(48), 4e5 + 30.0 * np.arange(48) ** 1.1], axis=1),
    ],
    ids=["years", "seconds", "milliseconds", "metres"],
)
@pytest.mark.parametrize("linear", [False, True])
def test_large_coordinates_lose_nothing_in_float32(time, linear):
    """Kernels see coordinates less the first one, also in a sum with a line through them."""
    axis = kx.dates(time, "seconds") if time.dtype.kind == "M" else time
    x = kx.GridGP((kx.RBF(1.0),), (axis,), noise=1.0).axes[0].static.values
    span = float(np.ptp(x, axis=0).max())

    def build(dtype):
        kernel = kx.Matern12(dtype(span / 20))
        if linear:
            kernel = kernel + dtype(1 / span**2) * kx.Linear(x[0])
        return kx.GridGP((kernel,), (axis,), noise=0.1)

    dense = jax.jit(lambda gp: gp.covariance().to_dense())
    single, double = (np.asarray(dense(build(dtype))) for dtype in (np.float32, np.float64))
    assert single.dtype == np.float32
    assert np.abs(single - double).max() < 2e-6
    ahead = kx.GridGP((kx.RBF(1.0),), (axis,), 0.1).new_axes((time[10:30],))
    assert_close(ahead[0].points(np.float32).centred, np.float32(x - x[0])[10:30])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: model(np.array(["2000-01-01", "NaT"], "M8[D]")), ValueError, "entry 1 is NaT"),
        (lambda: model([*PYTHON[:2], None]), TypeError, "all be dates; entry 2 is None"),
        (lambda: model([*PYTHON[:2], pd.NaT]), TypeError, "all be dates; entry 2 is NaT"),
        (lambda: model([*PYTHON[:2], 3.0]), TypeError, r"all be dates; entry 2 is 3\.0"),
        (lambda: model(DAYS.reshape(2, 12)), ValueError, r"shape \(n,\).*got shape \(2, 12\)"),
        (
            lambda: model([PYTHON[0], *in_cftime("noleap", [2000])]),
            TypeError,
            "dates of time must be of one kind",
        ),
        (lambda: kx.dates(DAYS, "day"), ValueError, "got 'day'. Did you mean 'days'"),
        (lambda: kx.dates(np.arange(3.0)), TypeError, "takes dates; got numbers"),
        (lambda: kx.dates(["2000-01-01"]), TypeError, "takes dates; got labels"),
        (
            lambda: model(DAYS).condition(np.zeros(24)).mean({"time": [25.0]}),
            TypeError,
            "new time must be dates, as the old ones; got numbers",
        ),
        (
            lambda: model(np.arange(24.0)).condition(np.zeros(24)).mean({"time": DAYS}),
            TypeError,
            "new time must be numbers, as the old ones; got dates",
        ),
        (
            lambda: model(DAYS).condition(np.zeros(24)).mean({"time": in_cftime("noleap", [2001])}),
            TypeError,
            "one calendar; got noleap and numpy's",
        ),
        (
            lambda: (
                model(in_cftime("360_day", range(4)))
                .condition(np.zeros(4))
                .mean({"time": in_cftime("noleap", [2001])})
            ),
            TypeError,
            "one calendar; got noleap and 360_day",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("index", [False, True])
def test_durations_and_periods_are_refused_with_what_to_take(index):
    durations = pd.timedelta_range("0h", periods=4, freq="h")
    months = pd.period_range("2020-01", periods=4, freq="M")
    for given, match in (
        (durations, r"durations / numpy.timedelta64\(1, 'h'\)"),
        (months, r"`periods.to_timestamp\(\)`"),
    ):
        x = given if index else np.asarray(given)
        with pytest.raises(TypeError, match=match):
            kx.GridGP({"time": kx.RBF(2.0)}, {"time": x}, noise=0.1)
    for x in (durations / np.timedelta64(1, "h"), months.to_timestamp()):
        kx.GridGP({"time": kx.RBF(2.0)}, {"time": x}, noise=0.1)
