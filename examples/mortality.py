# %% [markdown]
# # Mortality by age and year: rates, a forecast, and life expectancy with bands
#
# Deaths and person-years in 21 age groups over 35 years, and the fifteen years after them, which
# are held out. Children seldom die, one or two in a year and in some years none: counts are Poisson
# with the person-years as exposure, and nothing is the logarithm of a zero. Rates are smooth in age
# and year, and their forecast has a trend of its own at every age.
#
# The town is made up: rates follow Gompertz's law with deaths
# of infants and accidents of the young, and fall at a pace that depends on the age and changes from
# year to year, as Lee and Carter have it. It is no draw from the model below.
#
# Needs `pip install kronax matplotlib`.

# %%
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# Age groups of five years, 0–4 to 100–104, in a town of 100 000 people.

# %%
rng = np.random.default_rng(1)
age, year = 2.5 + 5 * np.arange(21.0), np.arange(1970.0, 2020.0)
a = age[:, None]
infants, accidents = 1.6e-3 * np.exp(-a / 4), 7e-4 * np.exp(-0.5 * ((a - 23) / 7) ** 2)
first = infants + accidents + 1e-4 + 2.8e-5 * np.exp(0.101 * a)  # deaths per person-year, 1970
pace = 0.01 + 0.025 * np.exp(-a / 15) + 0.012 * np.exp(-0.5 * ((a - 62) / 14) ** 2)
pace = pace * (1 - 0.8 / (1 + np.exp((90 - a) / 5)))
index = np.cumsum(1 + 0.7 * rng.normal(size=year.size))
rate = first * np.exp(-pace * index)
born = year - a
people = 7_000 * np.exp(-((a / 77) ** 5)) * (1 + 0.3 * np.exp(-0.5 * ((born - 1964) / 7) ** 2))
people = np.maximum(people, 20).round()
deaths = rng.poisson(people * rate)
seen, later = slice(0, 35), slice(35, 50)
young = (deaths[1:3, seen] == 0).mean()
print(f"{deaths[:, seen].sum():,} deaths; none in {young:.0%} of the cells at ages 5 to 14")

# %% [markdown]
# ## The model
# Gompertz's law is a mean that is linear in age, on the scale of logarithms; another slope is that
# of time. The process is what differs from it: a smooth function of age that is constant, one that
# has a slope of its own in time, and one that wanders from year to year. That one is a random walk:
# its variance over its lengthscale is all that counts, so that the lengthscale stays as it is.

# %%
gp = kx.GridGP(
    kernels={
        "age": kx.Matern52(15.0),
        "year": kx.Constant(1.0) + 2e-4 * kx.Linear(1987.0) + 0.05 * kx.Matern12(200.0),
    },
    axes={"age": age, "year": year[seen]},
    mean=kx.LinearMean("age", [-5.5, 4.5]) + kx.LinearMean("year", [0.0, -0.4]),
    likelihood=kx.Poisson(exposure=people[:, seen]),
)
start = perf_counter()
walk = ("kernels['year'].second.kernel.lengthscale",)
result = kx.fit(gp, deaths[:, seen], freeze=walk, progress=False)
print(f"\n{result}\nfit in {perf_counter() - start:.0f} s\n")
post = result.model.condition(deaths[:, seen])
print(post.check_approximation(jax.random.key(0)), "\n")

# %% [markdown]
# ## Rates and forecasts
# `response` has rates, and deaths to come, whose exposure it asks for. Rates are wanted at every
# age and year, so that it is one person-year there.

# %%
fine = np.arange(0.0, 105.0)
surface = post.response({"age": fine, "year": year}, exposure=1.0)
ahead = post.response({"year": year[later]}, exposure=people[:, later])
low, high = ahead.observation_quantiles
held_out = deaths[:, later]
inside = np.mean((held_out >= low) & (held_out <= high))


def log_score(mean):
    """Mean log probability of the held-out deaths under Poisson counts."""
    return float(np.mean(kx.Poisson().log_density(held_out.astype(float), np.log(mean))))


ours = post.log_prob(
    held_out, {"year": year[later]}, exposure=people[:, later], pointwise=True
).mean()
last = (deaths[:, 30:35].sum(1) + 0.5) / people[:, 30:35].sum(1)
plain = log_score(people[:, later] * last[:, None])
print(f"held-out years: {inside:.1%} of the numbers of deaths in their 95 % intervals")
print(f"mean log probability {ours:.2f} (rates of the last five years: {plain:.2f})\n")

# %% [markdown]
# ## Life expectancy
# A function of the rates of all ages takes joint draws of them.


# %%
def life_expectancy(rates):
    """At birth, from rates of five-year groups `(…, 21, years)` that are constant in each."""
    survival = np.exp(-5 * np.cumsum(rates, axis=-2))
    alive = np.concatenate([np.ones_like(survival[..., :1, :]), survival[..., :-1, :]], axis=-2)
    lived = alive * -np.expm1(-5 * rates) / rates
    return lived.sum(axis=-2) + (survival / rates)[..., -1, :]


draws = np.asarray(post.sample(jax.random.key(1), {"year": year}, 1000))
years_of_life = np.quantile(life_expectancy(np.exp(draws)), [0.025, 0.5, 0.975], axis=0)
truth = life_expectancy(rate)
crude = life_expectancy(np.maximum(deaths, 0.5) / people)
print(
    f"life expectancy in 2019: {years_of_life[1, -1]:.1f} years "
    f"({years_of_life[0, -1]:.1f} to {years_of_life[2, -1]:.1f}); the truth is {truth[-1]:.1f}"
)

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, axs = plt.subplots(2, 3, figsize=(15, 8.4), layout="constrained")
rates = {"cmap": "viridis", "norm": LogNorm(3e-5, 0.5), "rasterized": True}
observed = np.where(deaths == 0, np.nan, deaths / people)
ax = axs[0, 0]
ax.set_facecolor("0.75")
image = ax.pcolormesh(year[seen], age, observed[:, seen], shading="nearest", **rates)
ax.set(title="Deaths per person-year: grey where nobody died", xlim=(1969.5, 2019.5))
figure.colorbar(image, ax=ax, label="deaths per person-year")
ax = axs[0, 1]
image = ax.pcolormesh(year, fine, surface.mean, shading="nearest", **rates)
ax.set(title="Posterior mean of the rate, and its forecast")
figure.colorbar(image, ax=ax, label="deaths per person-year")
ax = axs[0, 2]
relative = 100 * surface.std / surface.mean
image = ax.pcolormesh(
    year, fine, relative, shading="nearest", cmap="magma", vmin=0, vmax=30, rasterized=True
)
ax.set(title="Standard deviation of the rate")
figure.colorbar(image, ax=ax, label="% of the rate", extend="max")
for ax in axs[0]:
    ax.axvline(2004.5, color="white", lw=2)
    ax.set(xlabel="year", ylabel="age", ylim=(0, 105))

ax = axs[1, 0]
for which, colour in ((0, "tab:purple"), (49, "tab:orange")):
    low, high = surface.quantiles[:, :, which]
    name = f"{year[which]:.0f}"
    words = f"{name}, forecast" if which > 34 else name
    ax.fill_between(fine, low, high, alpha=0.3, lw=0, color=colour)
    ax.plot(fine, surface.mean[:, which], color=colour, lw=1.8, label=words)
    ax.plot(age, observed[:, which], "o", ms=4, color=colour)
    ax.plot(age, rate[:, which], "k--", lw=0.9)
ax.plot([], [], "ko", ms=4, label="deaths / person-years")
ax.plot([], [], "k--", lw=0.9, label="true rate")
ax.set(title="By age, with 95 % bands of the rate", xlabel="age", yscale="log", xlim=(0, 105))
ax.set_ylabel("deaths per person-year")
ax.legend(frameon=False, loc="upper left")

ax = axs[1, 1]
for group, colour in ((1, "tab:green"), (6, "tab:blue"), (12, "tab:orange"), (17, "tab:red")):
    at = int(age[group])
    low, high = surface.quantiles[:, at]
    ax.fill_between(year, low, high, alpha=0.3, lw=0, color=colour)
    ax.plot(year, surface.mean[at], color=colour, lw=1.8)
    ax.plot(year[seen], observed[group, seen], "o", ms=3, color=colour)
    ax.plot(year[later], observed[group, later], "o", ms=4, mfc="white", color=colour)
    words = {"color": colour, "bbox": {"color": "white", "alpha": 0.7, "pad": 1}}
    ax.text(1971, float(surface.mean[at, 0]) * 1.9, f"age {at - 2}–{at + 2}", **words)
ax.plot([], [], "ko", ms=3, label="seen")
ax.plot([], [], "ko", ms=4, mfc="white", label="held out")
ax.axvline(2004.5, color="0.5", lw=1)
ax.set(title="Over time, with 95 % bands of the rate", xlabel="year", yscale="log")
ax.set_ylabel("deaths per person-year")
ax.set(xlim=(1969.5, 2019.5), ylim=(2e-5, 1))
ax.legend(frameon=False, ncols=2, loc="lower left")

ax = axs[1, 2]
ax.fill_between(year, years_of_life[0], years_of_life[2], alpha=0.3, lw=0, label="95 % band")
ax.plot(year, years_of_life[1], lw=1.8, label="posterior median")
ax.plot(year[seen], crude[seen], "o", ms=3.5, color="0.25", label="from the deaths of a year")
ax.plot(year[later], crude[later], "o", ms=4.5, mfc="white", color="0.25", label="held out")
ax.plot(year, truth, "k--", lw=0.9, label="truth")
ax.axvline(2004.5, color="0.5", lw=1)
ax.set(title="Life expectancy at birth", xlabel="year", ylabel="years", xlim=(1969.5, 2019.5))
ax.legend(frameon=False, loc="lower right")
figure.suptitle(
    f"A simulated town of 100 000: {100 * inside:.0f} % of the numbers of deaths in fifteen "
    "years to come lie in their 95 % intervals",
    fontsize=13,
)
figure.savefig("mortality.png", dpi=100)
