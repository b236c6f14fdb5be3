# %% [markdown]
# # Super-resolution: a map from every fourth point
#
# Heights around the Jacksboro fault in Tennessee, 344 × 403 points some 90 m apart. We keep every
# fourth point in both directions, one in sixteen, fit a Gaussian process on that coarse grid, and
# predict the fine one: 138 632 heights with their uncertainty, in structured products only. The
# points that were left out say how good map and error bars are.
#
# Needs `pip install kronax scipy matplotlib`.

# %%
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cbook
from matplotlib.colors import LightSource
from scipy.interpolate import RegularGridInterpolator

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Data
# Coordinates in km. The last row and column are kept, so that nothing has to be extrapolated.

# %%
file = np.load(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))
height = file["elevation"].astype(float)[:341, :401]  # m
degree = 111.2  # km
degree = 111.2  # km
north = degree * float(file["dy"]) * np.arange(341)[::-1]
east = degree * np.cos(np.deg2rad(float(file["ymin"]))) * float(file["dx"]) * np.arange(401)
step = 4
rows, columns = slice(None, None, step), slice(None, None, step)
coarse = height[rows, columns]
held_out = np.ones(height.shape, bool)
held_out[rows, columns] = False
print(f"{coarse.size} of {height.size} heights are seen")

# %% [markdown]
# ## Two models
# A Matérn kernel per axis, one amplitude, and noise: either fitted, or held at the square of one
# metre, about what the heights are measured to. Starting values come from the data.


# %%
start = kx.GridGP(
    kernels={"north": kx.Matern52(1.0), "east": kx.Matern52(1.0)},
    axes={"north": north[rows], "east": east[columns]},
    noise=1.0,  # m²
    mean=kx.ConstantMean(coarse.mean()),
)
fits = {}
for name, held in {"noise fitted": (), "noise of 1 m": ("noise",)}.items():
    began = time.perf_counter()
    start_here = start.initialise(coarse, freeze=held)
    fits[name] = kx.fit(start_here, coarse, freeze=held, progress=False)
    print(
        f"{name}: {fits[name].num_steps} steps, {time.perf_counter() - began:.1f} s with compiling"
    )
print(f"\n{fits['noise fitted']}\n\n{fits['noise of 1 m']}")

# %% [markdown]
# ## The fine grid
# Mean and variance at all 136 741 places, with new coordinates on both axes. The likelihood much
# prefers a noise of 20 m: it is the only part of this model that can take what the kernels do not
# describe, such as ridges that run neither north nor east. But noise is smoothed away, and these
# heights should be kept. A map that passes through what was measured is better, and as good as
# cubic interpolation, which has no error bars. Those here are on the wide side.

# %%
fine = {"north": north, "east": east}
maps, deviations = {}, {}
for name, fit in fits.items():
    post = fit.model.condition(coarse)
    maps[name] = np.asarray(post.mean(fine))
    deviations[name] = np.sqrt(np.asarray(post.variance(fine, include_noise=True)))
places = np.stack(np.meshgrid(north, east, indexing="ij"), -1)
for method in ("linear", "cubic"):
    known = RegularGridInterpolator((north[rows][::-1], east[columns]), coarse[::-1], method)
    maps[f"{method} interpolation"] = known(places)

print()
for name, values in maps.items():
    error = (values - height)[held_out]
    line = f"{name:20} RMSE at what was left out {np.sqrt(np.mean(error**2)):5.1f} m"
    if name in deviations:
        inside = np.abs(error) < 1.96 * deviations[name][held_out]
        line += f", {inside.mean():.1%} of it inside the 95 % band"
    print(line)
mean, sd = maps["noise of 1 m"], deviations["noise of 1 m"]

# %% [markdown]
# ## Picture

# %%
window = (slice(60, 200), slice(120, 300))
km = (0, np.ptp(east[window[1]]), 0, np.ptp(north[window[0]]))
light = LightSource(315, 45)
low, high = height[window].min(), height[window].max()
figure, panels = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
shade = {"cmap": plt.get_cmap("gist_earth"), "vmin": low - 60, "vmax": high + 60, "vert_exag": 0.03}
seen = coarse[15:50, 30:75]
for panel, values, title in (
    (panels[0, 0], seen, "Seen: every fourth point"),
    (panels[0, 1], mean[window], "Predicted"),
    (panels[1, 0], height[window], "Truth"),
):
    panel.imshow(light.shade(values, blend_mode="soft", **shade), extent=km, aspect="equal")
    panel.set_title(title)
corner = (slice(0, 25), slice(0, 29))  # two kilometres of it, where single points can be seen
image = panels[1, 1].imshow(
    sd[window][corner],
    extent=(0, np.ptp(east[corner[1]]), 0, np.ptp(north[corner[0]])),
    cmap="magma",
)
panels[1, 1].set_title("Standard deviation, a corner of 2 km")
figure.colorbar(image, ax=panels[1, 1], label="standard deviation, m")
heights = plt.cm.ScalarMappable(plt.Normalize(shade["vmin"], shade["vmax"]), shade["cmap"])
figure.colorbar(heights, ax=panels[0, 1], label="height, m")
figure.supxlabel("km")
figure.supylabel("km")
figure.savefig("elevation.png", dpi=100)
