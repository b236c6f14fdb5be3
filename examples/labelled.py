# %% [markdown]
# # Labelled arrays: a NetCDF file in, a NetCDF file out, and four pictures
#
# Air temperature over North America in a climate model's A1B scenario, one field a year, as xarray
# reads it: dimensions have names, years have 360 days, coordinates have units. The model takes it
# as it is, whatever the order of the dimensions, and the forecast comes back in the same way.
#
# Needs `pip install kronax iris-sample-data xarray netCDF4 cftime matplotlib`.

# %%
import tempfile
from pathlib import Path

import iris_sample_data
import jax
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# The last 120 years, every other latitude and longitude. Ten years are held out; the rest is
# divided by its mean of all years.

# %%
file = Path(iris_sample_data.path) / "A1B_north_america.nc"
air = xr.open_dataset(file).air_temperature[120:, ::2, ::2].astype("float64")
train, held_out = air[:-10], air[-10:]
climate = train.mean("time")
anomaly = (train - climate).assign_attrs(units="K", long_name="temperature anomaly")

# %% [markdown]
# ## Model, fit, forecast
# Kernels by name. Dates count in years, so that lengthscales do.

# %%
gp = kx.GridGP.from_xarray(
    anomaly,
    kernels={
        "time": 10.0 * kx.SquaredExponential(60.0) + kx.Matern12(1.0),
        "latitude": kx.Matern52(10.0),
        "longitude": kx.Matern52(10.0),
    },
    axes={"time": kx.dates(anomaly.time, unit="years")},
)
result = kx.fit(gp, anomaly)
print(result, "\n")

post = result.model.condition(anomaly)
forecast = post.to_dataset(axes={"time": held_out.time}, include_noise=True)
print(forecast, "\n")

# %% [markdown]
# ## Arithmetic by label, and a file
# The forecast of anomalies and the mean of all years meet by their coordinates.

# %%
error = forecast["mean"] + climate - held_out
inside = abs(error) < 1.96 * forecast["standard_deviation"]
rmse = float(np.sqrt((error**2).mean()))
print(f"error {rmse:.2f} K; {100 * float(inside.mean()):.0f} % of the held-out cells in the band")

with tempfile.TemporaryDirectory() as folder:
    forecast.to_netcdf(Path(folder) / "forecast.nc")
    with xr.open_dataset(Path(folder) / "forecast.nc") as back:
        print("The file holds the same:", back.identical(forecast))

# %% [markdown]
# ## Four pictures
# Illinois, with the held-out years; the last year of the data on a finer and wider grid, with its
# uncertainty; what the model supposes along every axis; and how fast its eigenvalues fall.

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(12, 11.5), layout="constrained")
top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1, 1.05, 1))

place = {"latitude": 40.0, "longitude": 270.0}
when = np.concatenate([train.time[-60:], held_out.time])
ax = kx.plot_series(
    post,
    at=place,
    coordinates=when,
    held_out=held_out - climate,
    ax=top.subplots(),
)
ax.set(title="plot_series: Illinois, ten years held out", xlim=(2029, 2101), ylim=(-3, 6.5))

wide = {"latitude": np.arange(5.0, 70.1, 1.25), "longitude": np.arange(210.0, 330.1, 1.25)}
year = train.time.values[-1]
mean, sd = kx.plot_maps(post, at={"time": year}, coordinates=wide, ax=middle.subplots(1, 2))
mean.set_title("plot_maps: mean of 2089, finer and further than the data")
sd.set_title("standard deviation")

*kernels, spectra = bottom.subplots(1, 4)
for one, name in zip(kx.plot_kernels(result.model, ax=kernels), anomaly.dims, strict=True):
    one.set_title(f"plot_kernels: {name}")
kx.plot_spectra(result.model, ax=spectra).set_title("plot_spectra")
figure.savefig("xarray.png", dpi=100)
