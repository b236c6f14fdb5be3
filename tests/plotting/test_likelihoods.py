"""Pictures and Datasets with a likelihood: of the latent function, or of new observations."""

import jax
import numpy as np
import pytest
import xarray as xr

import kronax as kx

AGE, YEAR = np.array([1.0, 2.0, 4.0, 5.0]), np.arange(2000.0, 2003.0)
PEOPLE = np.random.default_rng(1).uniform(1.0, 5.0, (4, 3))
DEATHS = np.random.default_rng(0).poisson(2 * PEOPLE).astype(float)
DEATHS[1, 2] = np.nan
SEEN = np.isfinite(DEATHS)


@pytest.fixture(scope="module")
def post():
    places = {"age": ("age", AGE, {"units": "years"}), "year": YEAR}
    labels = {"units": "persons", "long_name": "deaths in a year"}
    deaths = xr.DataArray(DEATHS, places, ("age", "year"), "deaths", labels)
    kernels = {"age": 0.3 * kx.Matern52(2.0), "year": kx.Matern32(3.0)}
    options = {"likelihood": kx.Poisson(exposure=PEOPLE), "mean": 0.5}
    return kx.GridGP.from_xarray(deaths, kernels, **options).condition(deaths)


def test_a_dataset_is_of_the_function_which_has_no_units(post):
    ds = post.to_dataset()
    np.testing.assert_allclose(ds["mean"], post.mean())
    assert ds["mean"].attrs == {
        "long_name": "posterior mean of latent function of deaths in a year"
    }
    assert "units" not in ds["standard_deviation"].attrs
    assert ds.attrs["title"] == "posterior of latent function of deaths"
    assert ds["age"].attrs["units"] == "years"


def test_or_of_the_response_and_new_observations(post):
    new, key = {"year": [2003.0]}, jax.random.key(0)
    options = {"quantiles": (0.1, 0.9), "response": True, "exposure": 7.0}
    ds = post.to_dataset(new, num_samples=3, key=key, **options)
    found = post.response(new, (0.1, 0.9), exposure=7.0)
    assert ds["mean"].dims == ("age", "year")
    np.testing.assert_allclose(ds["mean"], found.mean)
    np.testing.assert_allclose(ds["quantiles"], found.quantiles)
    np.testing.assert_allclose(ds["observation_standard_deviation"], found.observation_std)
    np.testing.assert_array_equal(ds["observation_quantiles"], found.observation_quantiles)
    np.testing.assert_array_equal(ds["year"], [2003.0])
    draws = post.sample(key, new, 3, response=True, exposure=7.0)
    np.testing.assert_array_equal(ds["draws"], draws)
    assert ds["observation_mean"].attrs["units"] == "persons"
    assert ds["mean"].attrs["long_name"] == "posterior mean of the rate of deaths in a year"
    assert "units" not in ds["mean"].attrs
    with pytest.raises(TypeError, match=r"key=jax.random.key"):
        post.to_dataset(num_samples=3, response=True)
    with pytest.raises(TypeError, match=r"`exposure` at the new places"):
        post.to_dataset(new, response=True)


def test_a_series_shows_observations_or_the_function(post):
    ax = kx.plot_series(post, "age", at={"year": 2002.0})
    found = post.response()
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    expected = np.stack([AGE, found.observation_mean[:, 2]], 1)
    np.testing.assert_allclose(lines["mean"], expected, rtol=1e-6)
    np.testing.assert_array_equal(lines["data"], np.stack([AGE, DEATHS[:, 2]], 1))
    corners = ax.collections[0].get_paths()[0].vertices
    for k, age in enumerate(AGE):
        ends = corners[corners[:, 0] == age, 1]
        low, high = np.asarray(found.observation_quantiles)[:, k, 2]
        assert (ends.min(), ends.max()) == (low, high)
    assert ax.get_ylabel() == "deaths in a year (persons)"
    ax = kx.plot_series(post, "age", at={"year": 2002.0}, include_noise=False)
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    np.testing.assert_allclose(lines["mean"][:, 1], post.mean()[:, 2], rtol=1e-6)
    assert "data" not in lines
    assert ax.get_ylabel() == "latent function of deaths in a year"
    new = {"at": {"year": 2003.0}, "level": 0.8}
    ax = kx.plot_series(post, "age", **new, given={"exposure": 10.0})
    found = post.response({"year": [2003.0]}, (0.1, 0.9), exposure=10.0)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found.observation_mean[:, 0], rtol=1e-6)
    with pytest.raises(TypeError, match="`exposure` at the new places"):
        kx.plot_series(post, "year", coordinates=[2003.0])
    with pytest.raises(ValueError, match="include_noise=True"):
        kx.plot_series(post, "year", held_out=[1.0, 2.0, 3.0], include_noise=False)


def test_maps_show_the_function_and_data_in_their_own_units(post):
    data, mean, sd = kx.plot_maps(post, "year", "age", show_data=True)
    shown = data.collections[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan).reshape(4, 3), DEATHS)
    np.testing.assert_allclose(mean.collections[0].get_array().reshape(4, 3), post.mean())
    assert data.collections[0].get_clim() != mean.collections[0].get_clim()
    bars = [ax.child_axes[0].get_ylabel() for ax in (data, mean, sd)]
    assert bars == ["persons", "", ""]
    mean, sd = kx.plot_maps(post, "year", "age", include_noise=True)
    found = post.response()
    np.testing.assert_allclose(
        mean.collections[0].get_array().reshape(4, 3), found.observation_mean
    )
    np.testing.assert_allclose(sd.collections[0].get_array().reshape(4, 3), found.observation_std)


def test_exposures_with_names_are_not_taken_by_position():
    people = xr.DataArray(PEOPLE, {"age": AGE, "year": YEAR}, ("age", "year"))
    for make in (kx.Poisson, lambda given: kx.CensoredNormal(1.0, lower=given)):
        with pytest.raises(TypeError, match="DataArray over 'age', 'year'"):
            make(people)


def test_a_report_has_data_and_mean_on_one_scale(post):
    seen = {ax.get_title(): ax.collections[0] for ax in post.plot().axes if ax.collections}
    mean = kx.plot_maps(post, include_noise=True)[0].collections[0].get_array()
    np.testing.assert_allclose(seen["mean"].get_array(), mean)
    assert seen["mean"].get_clim() == seen["data"].get_clim()
    errors = np.ma.filled(seen["leave-one-out errors"].get_array(), np.nan)
    assert np.isfinite(errors).sum() == SEEN.sum()
