# %% [markdown]
# # Climate and weather: a sum taken apart
#
# The air over North America warms slowly, and every year has weather of its own. An additive
# Gaussian process has one term for each: a *trend* that is smooth in time and over the map, and
# *weather* that forgets from one year to the next but is shared by neighbours. Both together are
# exact, and the posterior takes the data apart: the warming with its band at every place,
# and what a single year added to it.
#
# Needs `pip install kronax iris-sample-data xarray netCDF4 cftime matplotlib`.

# %%
from pathlib import Path

import iris_sample_data
import jax
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Data
# Annual means of a climate model, 1860 to 2099, every third place in each direction. Places are
# points on the globe, one axis of the grid; distances between them are those along great circles.

# %%
file = Path(iris_sample_data.path) / "A1B_north_america.nc"
air = xr.open_dataset(file).air_temperature.astype("float64")[:, ::3, ::3]
years = air.time.dt.year.values.astype(float)
latitude, longitude = air.latitude.values.astype(float), air.longitude.values.astype(float)
places = np.stack(np.meshgrid(latitude, longitude, indexing="ij"), -1).reshape(-1, 2)
warming = air.values.reshape(len(years), -1)
warming = warming - warming[:30].mean(0)  # K above 1860 to 1889
print(f"{len(years)} years × {len(places)} places")

# %% [markdown]
# ## Model
# A term is a kernel for every axis. `kx.White()` in time says that the weather of two years has
# nothing in common.


# %%
def model(years):
    """Trend and weather in these years."""
    return kx.GridGP(
        terms={
            "trend": {"year": 5.0 * kx.RBF(60.0), "place": kx.Matern52(3000.0)},
            "weather": {"year": 0.3 * kx.White(), "place": kx.Matern32(1500.0)},
        },
        axes={"year": years, "place": kx.sphere(places, radius=6371.0)},  # km
        noise=0.05,
    )


result = kx.fit(model(years), warming, progress=False)
print(result)
print(result.model)

# %% [markdown]
# ## Taken apart
# `post.terms` has a posterior for each term. Their means and what is left add up to the data.

# %%
post = result.model.condition(warming)
trend, weather = post.terms["trend"], post.terms["weather"]
parts = {"trend": trend.mean(), "weather": weather.mean()}
left = warming - sum(parts.values())
for name, part in {**parts, "what is left": left}.items():
    print(f"{name:13} standard deviation {np.std(part):.2f} K")

# %% [markdown]
# ## Is it right?
# The last ten years from those before alone. Weather cannot be foreseen, but how much there will be
# can: it belongs to the band of an observation. (The parameters are those of all years.)

# %%
early = kx.replace(model(years[:-10]), {p.path: p.value for p in result.parameters})
early = early.condition(warming[:-10])
forecast = early.mean(axes={"year": years[-10:]})
sd = np.sqrt(early.variance(axes={"year": years[-10:]}, include_noise=True))
error = warming[-10:] - forecast
flat = warming[-10:] - warming[-40:-10].mean(0)
rms = [np.sqrt(np.mean(e**2)) for e in (error, flat)]
print(f"error {rms[0]:.2f} K; of the mean of 30 years {rms[1]:.2f} K")
print(f"{np.mean(np.abs(error) < 1.96 * sd):.0%} inside the 95 % band")

# %% [markdown]
# ## Picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(11, 7.5), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.05))
year = int(np.argmax(np.abs(parts["weather"]).mean(1)))
shape = len(latitude), len(longitude)
maps = {
    f"Trend in {years[-1]:.0f}": (parts["trend"][-1], "YlOrRd"),
    f"Weather of {years[year]:.0f}": (parts["weather"][year], "RdBu_r"),
}
for panel, (title, (values, colours)) in zip(top.subplots(1, 2), maps.items(), strict=True):
    limit = float(np.abs(values).max())
    low = 0.0 if colours == "YlOrRd" else -limit
    options = {"cmap": colours, "vmin": low, "vmax": limit}
    image = panel.pcolormesh(longitude - 360, latitude, np.reshape(values, shape), **options)
    top.colorbar(image, ax=panel, label="K")
    panel.set(title=title, xlabel="longitude", ylabel="latitude")
place = int(np.argmin(np.abs(places - (40.0, 270.0)).sum(1)))
panel = bottom.subplots()
middle, width = parts["trend"][:, place], 1.96 * np.sqrt(trend.variance())[:, place]
panel.plot(years, warming[:, place], color="0.6", linewidth=1, label="data")
both = middle + parts["weather"][:, place]
panel.plot(years, both, color="tab:blue", linewidth=0.8, label="trend + weather")
panel.fill_between(years, middle - width, middle + width, color="tab:red", alpha=0.25)
panel.plot(years, middle, color="tab:red", label="trend, 95 % band")
north, east = places[place]
title = f"At {north:.0f}°N, {360 - east:.0f}°W"
panel.set(title=title, xlabel="year", ylabel="K above 1860–1889", xlim=years[[0, -1]])
panel.legend(frameon=False, loc="upper left")
figure.savefig("climate_and_weather.png", dpi=100)
