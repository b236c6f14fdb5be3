# %% [markdown]
# # Holes in a map, filled with error bars
#
# Heights around the Jacksboro fault in Tennessee, 120 × 140 points some 90 m apart. A tenth of the
# points is missing at random, and three squares are missing as a whole. Likelihood, mean and error
# bars are exact, at the price of one dense matrix of all gaps.
#
# Needs `pip install kronax scipy matplotlib`.

# %%
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cbook
from scipy.interpolate import griddata

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Data
# Coordinates in km. Squares of 8, 12 and 20 points, up to 1.8 km, are a sterner test than single
# points.

# %%
file = np.load(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))
height = file["elevation"].astype(float)[110:230, 150:290]  # m
degree = 111.2  # km
north = degree * float(file["dy"]) * np.arange(height.shape[0])[::-1]
east = degree * np.cos(np.deg2rad(float(file["ymin"]))) * float(file["dx"])
east = east * np.arange(height.shape[1])
scattered = np.random.default_rng(0).random(height.shape) < 0.1
squares = np.zeros(height.shape, bool)
for row, column, side in ((20, 25, 12), (50, 80, 20), (95, 30, 8)):
    squares[row : row + side, column : column + side] = True
seen = np.where(scattered | squares, np.nan, height)
print(f"{np.isnan(seen).sum():,} of {height.size:,} heights are missing")

# %% [markdown]
# ## Fit and fill
# Ridges and hills: two lengthscales along each axis. (With one alone, which the fine relief sets,
# the mean falls back to that of the map inside a square: 84 m off instead of 21 m.) The parameters
# come from 80 × 80 points around one of the squares; they do not depend on the grid.


# %%
def relief(part):
    """The model on a part of the map."""
    return kx.GridGP(
        kernels={name: kx.Matern32(0.5) + kx.Matern52(3.0) for name in ("north", "east")},
        axes={"north": north[part[0]], "east": east[part[1]]},
        noise=10.0,  # m²
        mean=kx.ConstantMean(np.nanmean(seen)),
        gaps="exact",
    )


start = perf_counter()
part = slice(0, 80), slice(0, 80)
result = kx.fit(relief(part).initialise(seen[part]), seen[part], progress=False)
print(f"fitted in {perf_counter() - start:.0f} s\n{result}\n")

whole = slice(None), slice(None)
gp = kx.replace(relief(whole), {p.path: p.value for p in result.parameters})
start = perf_counter()
post = gp.condition(seen)
mean = np.asarray(post.mean())
sd = np.sqrt(np.asarray(post.variance(include_noise=True)))
print(f"filled in {perf_counter() - start:.0f} s\n")

# %% [markdown]
# ## Is it any good?
# Beside linear and cubic interpolation of the triangles between seen points.

# %%
known = ~np.isnan(seen)
places = np.stack(np.meshgrid(north, east, indexing="ij"), -1)
maps = {"kronax": mean}
for method in ("linear", "cubic"):
    maps[method] = griddata(places[known], seen[known], places, method=method)

print("RMSE in m              scattered   squares")
for name, values in maps.items():
    errors = [(values - height)[where] for where in (scattered & ~squares, squares)]
    print(f"  {name:16}", *(f"{np.sqrt(np.nanmean(e**2)):11.1f}" for e in errors))
in_band = np.abs(mean - height) < 1.96 * sd
for name, where in {"scattered": scattered & ~squares, "squares": squares}.items():
    print(
        f"{in_band[where].mean():.1%} of the cells that are missing, {name}, inside the 95 % band"
    )

# %% [markdown]
# ## Picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
km = (0, np.ptp(east[whole[1]]), 0, np.ptp(north[whole[0]]))
shade = {"extent": km, "cmap": "gist_earth"}
spread = {"extent": km, "cmap": "magma_r", "vmin": 0}
shade |= {"vmin": height.min() - 60, "vmax": height.max() + 60}
figure, panels = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
pictures = (
    ("Seen: what is missing is white", seen, shade),
    ("Posterior mean", mean, shade),
    ("Truth", height, shade),
    ("Standard deviation of what is missing", np.where(known, np.nan, sd), spread),
)
for panel, (title, values, colours) in zip(panels.ravel(), pictures, strict=True):
    image = panel.imshow(values, **colours)
    figure.colorbar(image, ax=panel, label="m", shrink=0.9)
    panel.set(title=title, xlabel="km", ylabel="km")
figure.savefig("holes.png", dpi=100)
