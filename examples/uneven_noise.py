# %% [markdown]
# # A variance for every cell
#
# A satellite measures a field along its tracks: some cells in passing many times, others once at
# a slant, with an error that is reported beside every value. Cells weigh as much as they are worth
# if the model is told, and the band is wide where the instrument was poor. One variance for all
# lets the poorest cells spoil the best.
#
# Needs `pip install kronax matplotlib`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Data
# A field on 32 × 40 cells that is known, because it is simulated. Standard deviations of the
# error run from 0.1 to 3, in bands across the map; a tenth of the cells was never seen.

# %%
north, east = np.linspace(0, 8, 32), np.linspace(0, 10, 40)  # in 100 km
kernels = {"north": 1.0 * kx.Matern52(1.5), "east": kx.Matern52(2.0)}
axes = {"north": north, "east": east}
truth = np.asarray(kx.GridGP(kernels=kernels, axes=axes, noise=0.0).sample(jax.random.key(3)))

rng = np.random.default_rng(0)
slant = 0.5 + 0.5 * np.sin(1.1 * north[:, None] + 1.7 * east)
error = 0.1 * 30.0**slant  # one standard deviation per cell, 0.1 to 3
seen = truth + error * rng.normal(size=truth.shape)
seen[rng.random(truth.shape) < 0.1] = np.nan

# %% [markdown]
# ## Two models
# `noise=` takes an array of the grid's shape: variances, not deviations. It is what the instrument
# reports, so the fit leaves it alone. The other model has one variance and fits it.

# %%
models = {
    "a variance per cell": kx.GridGP(kernels=kernels, axes=axes, noise=error**2),
    "one variance": kx.GridGP(kernels=kernels, axes=axes, noise=1.0),
}
print(models["a variance per cell"].observing(~np.isnan(seen)), "\n")
posts = {}
for name, gp in models.items():
    frozen = ("noise",) if name == "a variance per cell" else ()
    result = kx.fit(gp, seen, freeze=frozen, progress=False)
    print(f"{name}: {result.reason}; log likelihood {-result.losses[-1]:.1f}")
    posts[name] = result.model.condition(seen)

# %% [markdown]
# ## Which is closer to the truth?
# The last two columns are the share of cells whose truth lies in the 95 % band, where the error was
# small and where it was large.

# %%
good, poor = error < 0.3, error > 1.0
found = {}
print("                      RMSE  good cells  poor cells  in band: good  poor")
for name, post in posts.items():
    mean, sd = np.asarray(post.mean()), np.sqrt(np.asarray(post.variance()))
    found[name] = mean, sd
    off = mean - truth
    rms = [np.sqrt(np.mean(off[where] ** 2)) for where in (off == off, good, poor)]
    inside = [np.mean(np.abs(off[where]) < 1.96 * sd[where]) for where in (good, poor)]
    print(f"{name:20}", *(f"{r:9.2f}" for r in rms), *(f"{i:9.0%}" for i in inside))

# %% [markdown]
# ## Picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, panels = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
limit = float(np.abs(truth).max())
field = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
spread = {"cmap": "viridis", "vmin": 0.0, "vmax": float(max(sd.max() for _, sd in found.values()))}
pictures = [
    ("Truth", truth, field),
    ("Seen", np.ma.masked_invalid(seen), field),
    ("Reported error", error, {"cmap": "magma", "vmin": 0.0}),
    *((f"Mean: {name}", mean, field) for name, (mean, _) in found.items()),
    ("Deviation: a variance per cell", found["a variance per cell"][1], spread),
]
for panel, (title, values, colours) in zip(panels.ravel(), pictures, strict=True):
    figure.colorbar(panel.pcolormesh(east, north, values, **colours), ax=panel)
    panel.set(title=title, xlabel="east, 100 km", ylabel="north, 100 km", aspect="equal")
figure.savefig("uneven_noise.png", dpi=100)
