# %% [markdown]
# # A map of cases: where is the risk high, and how sure is that?
#
# Cases of a disease and the people among whom they arose, on a grid of cells of five kilometres.
# Most cells have few people and no case or one, so that the highest and the lowest rates of a map
# of cases per head are those of the emptiest cells. A Poisson likelihood with the people as
# exposure knows what a count is worth: towns speak for themselves, empty cells follow their
# neighbours, and districts that did not report are filled, all with bands.
#
# Simulated, so that the truth is known: a coast, towns, a valley of high risk and a gradient. It is
# no draw from the model below.
#
# Needs `pip install kronax matplotlib scipy`.

# %%
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from scipy.stats import norm

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# The sea and two districts without reports are missing cells. Rates are cases per 10 000 people.

# %%
rng = np.random.default_rng(4)
north, east = 5.0 * np.arange(30), 5.0 * np.arange(38)  # km
x, y = np.meshgrid(east, north)
is_sea = x + 9 * np.sin(y / 17) + 14 * np.sin(y / 41 + 1) < 32
towns = rng.uniform((35, 0), (185, 145), (16, 2))
sizes = rng.lognormal(0, 0.8, 16)
people = 400 * rng.lognormal(0, 0.6, x.shape)
for (town_x, town_y), size in zip(towns, sizes, strict=True):
    people += 12_000 * size * np.exp(-np.hypot(x - town_x, y - town_y) / (5 + 2 * size))
people = people.round()
valley = np.exp(-0.5 * ((y - 40 - 0.45 * x + 12 * np.sin(x / 25)) / 14) ** 2)
hill = np.exp(-0.5 * (((x - 145) / 20) ** 2 + ((y - 30) / 16) ** 2))
rate = 3.0 * np.exp(1.3 * valley + 1.3 * hill + 0.4 * np.sin(x / 60) * np.cos(y / 45))
cases = rng.poisson(people / 1e4 * rate).astype(float)
has_report = ~(((x > 96) & (x < 134) & (y > 66) & (y < 104)) | ((x > 56) & (x < 84) & (y < 24)))
seen = np.where(is_sea | ~has_report, np.nan, cases)
known = ~np.isnan(seen)
print(
    f"{np.nansum(seen):,.0f} cases in {known.sum():,} cells; {np.mean(cases[known] == 0):.0%} of "
    f"them have none, {np.sum(~known & ~is_sea)} cells did not report"
)

# %% [markdown]
# ## Fit
# The exposure is in units of 10 000 people, and the rate per one of them. Where cells are missing
# any number will do.

# %%
gp = kx.GridGP(
    kernels={"north": 1.0 * kx.Matern32(30.0), "east": kx.Matern32(30.0)},
    axes={"north": north, "east": east},
    mean=1.0,
    likelihood=kx.Poisson(exposure=people / 1e4),
)
start = perf_counter()
result = kx.fit(gp, seen, progress=False)
print(f"\n{result}\nfit in {perf_counter() - start:.0f} s\n")
post = result.model.condition(seen)
print(post.check_approximation(jax.random.key(0)), "\n")

# %% [markdown]
# ## Rates, and how probable it is that they are high
# The latent function is the logarithm of the rate, and normal given the data.

# %%
found = post.response()
high_rate = 6.0
probability = norm.sf((np.log(high_rate) - post.mean()) / np.sqrt(post.variance()))
crude = seen / people * 1e4
low, high = found.quantiles


def report(name, where):
    """Errors of rates on some cells, and how many lie in their bands."""
    ours = np.sqrt(np.mean((found.mean - rate)[where] ** 2))
    band = np.mean(((rate > low) & (rate < high))[where])
    level = np.sqrt(np.mean((np.nansum(seen) / people[known].sum() * 1e4 - rate)[where] ** 2))
    raw = np.sqrt(np.mean((crude - rate)[where] ** 2))
    print(f"{name:16} {ours:8.2f} {raw:14.2f} {level:14.2f} {band:12.0%}")
    return ours, raw, band


print(
    f"{'RMSE per 10 000':16} {'kronax':>8} {'cases / people':>14} {'the mean rate':>14} in the band"
)
ours, raw, _ = report("reported", known)
report("not reported", ~known & ~is_sea)
_, _, inside = report("all land", ~is_sea)

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, axs = plt.subplots(
    2, 3, figsize=(14.5, 8.0), layout="constrained", sharex=True, sharey=True
)
rates = {"cmap": "YlOrRd", "vmin": 0, "vmax": 15}
panels = {
    "People": (people, {"cmap": "Blues", "norm": LogNorm(200, 3e4)}, "people per cell", "both"),
    "Cases": (seen, {"cmap": "YlOrRd", "vmin": 0, "vmax": 15}, "cases per cell", "max"),
    "Cases per head": (crude, rates, "cases per 10 000", "max"),
    "Posterior mean of the rate": (found.mean, rates, "cases per 10 000", "max"),
    "True rate": (rate, rates, "cases per 10 000", "max"),
    f"Probability of a rate above {high_rate:.0f} per 10 000": (
        probability,
        {"cmap": "RdBu_r", "vmin": 0, "vmax": 1},
        "probability",
        "neither",
    ),
}
for ax, (title, (values, colours, unit, extend)) in zip(axs.flat, panels.items(), strict=True):
    ax.set_facecolor("0.8")
    shown = np.where(is_sea, np.nan, values)
    image = ax.pcolormesh(east, north, shown, shading="nearest", rasterized=True, **colours)
    figure.colorbar(image, ax=ax, label=unit, extend=extend, aspect=16, shrink=0.82)
    edge = {"colors": "k", "linewidths": 0.9, "linestyles": "--"}
    ax.contour(east, north, (~has_report).astype(float), levels=[0.5], **edge)
    ax.contour(east, north, is_sea.astype(float), levels=[0.5], colors="0.35", linewidths=1)
    ax.set(title=title, aspect="equal")
axs[1, 2].contour(
    east, north, np.where(is_sea, np.nan, probability), levels=[0.95], colors="k", linewidths=1.3
)
for ax in axs[1]:
    ax.set_xlabel("east (km)")
for ax in axs[:, 0]:
    ax.set_ylabel("north (km)")
axs[0, 0].text(3, 110, "sea", color="0.3", style="italic")
figure.suptitle(
    f"Simulated cases: the rates are off by {ours:.1f} per 10 000, those of cases per head by "
    f"{raw:.1f}; {100 * inside:.0f} % of the true rates lie in their 95 % bands\n"
    "dashed: districts without reports; the thick line: a probability of 95 %",
    fontsize=12,
)
figure.savefig("disease_map.png", dpi=100)
