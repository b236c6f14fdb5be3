# %% [markdown]
# # Carbon dioxide: gaps and a forecast on a grid of years and weeks
#
# Carbon dioxide in the air at Mauna Loa, weekly from March 1958 to 2001. Laid out as years × weeks
# the series is a grid with holes: the instrument stood still for months in 1964, and for single
# weeks in most of the early years. NaN says so, and nothing else changes: the fit is exact at the
# weeks that there are. We hide some more stretches and the last two years, and see how good filled
# gaps, forecast and bands are.
#
# Needs `pip install kronax statsmodels matplotlib`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from statsmodels.datasets import co2

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# Rows are years, columns the 52 weeks of a year; what a week lacks is NaN. Besides the last two
# years, twenty stretches of eight weeks are held out.

# %%
series = co2.load_pandas().data["co2"]  # ppm, on Saturdays
week_of_year = np.minimum((series.index.day_of_year - 1) // 7, 51)
table = series.groupby([series.index.year, week_of_year]).mean().unstack()
ppm, all_years = table.to_numpy(), table.index.to_numpy().astype(float)
weeks = np.arange(52.0)

num_new = 2
whole, held_out = ppm[:-num_new], ppm[-num_new:]
years, new_years = all_years[:-num_new], all_years[-num_new:]
hidden = np.zeros(whole.size, bool)
for begin in np.random.default_rng(1).choice(whole.size - 8, 20, replace=False):
    hidden[begin : begin + 8] = True
hidden = hidden.reshape(whole.shape) & ~np.isnan(whole)
train = np.where(hidden, np.nan, whole)
print(f"{np.isnan(whole).sum()} of {whole.size} weeks have no reading; {hidden.sum()} are hidden\n")

# %% [markdown]
# ## The model
# A trend and a seasonal cycle whose coefficients are integrated out, so that bands contain their
# uncertainty: a line within each year is fixed, so that December meets January, and a quadratic in
# the year and four harmonics in the week are found from the data. What is left, some tenths of a
# ppm, is the Gaussian process: a slow part and one that is forgotten within a year, and along the
# weeks a level of the whole year and deviations of some weeks.


# %%
def line(year, week):
    """The mean rise from 1958 to 1999."""
    return 1.3 * (year[:, None] - 1980 + week / 52)


gp = kx.GridGP(
    kernels={
        "year": kx.Matern32(5.0) + kx.Matern32(0.5),
        "week": kx.Constant(1.0) + kx.Matern32(10.0),
    },
    axes={"year": years, "week": weeks},
    noise=0.1,
    mean=kx.MarginalMean(kx.PolynomialMean("year", 2) + kx.HarmonicMean("week", 52.0, 4) + line),
)
result = kx.fit(gp, train, progress=False)
print(result, "\n")

# %% [markdown]
# ## Fill and forecast
# One posterior for both: new years are coordinates like all others.

# %%
post = result.model.condition(train)
print(*(line for line in post.gp.describe().splitlines() if "missing" in line or "exact" in line))
print()
filled, filled_sd = post.mean(), np.sqrt(post.variance(include_noise=True))
new = {"year": new_years}
ahead, ahead_sd = post.mean(new), np.sqrt(post.variance(new, include_noise=True))

# %% [markdown]
# ## Is it any good?
# Gaps beside straight lines in time, through the readings as they are, or less the mean cycle of
# all years. The forecast beside the last year, moved up by the mean rise of ten years: so far ahead
# that is hard to beat, as the cycle is the same every year and the rise of carbon dioxide in a year
# is not known before; the process adds bands that hold what they promise.

# %%
time = years[:, None] + (weeks + 0.5) / 52
seen = ~np.isnan(train)


def straight(values):
    """Linear interpolation in time between the readings."""
    return np.interp(time, time[seen], values[seen])


trend = np.polynomial.Polynomial.fit(time[seen], train[seen], 2)(time)
cycle = np.nanmean(train - trend, axis=0)
last = straight(train)[-1]
rise = (straight(train)[-1] - straight(train)[-11]).mean() / 10
naive = last + rise * np.arange(1, num_new + 1)[:, None]


def report(name, errors, sd=None):
    inside = "" if sd is None else f"{np.mean(np.abs(errors) < 1.96 * sd):17.0%}"
    print(f"  {name:38}{np.sqrt(np.mean(errors**2)):11.2f}{inside}")


print(f"{hidden.sum()} hidden weeks, in gaps of eight      RMSE (ppm)   in 95 % band")
report("kronax", (filled - whole)[hidden], filled_sd[hidden])
report("straight lines", (straight(train) - whole)[hidden])
report("straight lines, cycle taken out", (straight(train - cycle) + cycle - whole)[hidden])
for k, year in enumerate(new_years):
    print(f"{year:.0f}, {'one year' if k == 0 else 'two years'} ahead")
    report("kronax", ahead[k] - held_out[k], ahead_sd[k])
    report("last year and the mean rise", naive[k] - held_out[k])

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, panels = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
blue, red = "tab:blue", "tab:red"
first = weeks * 7 / 30.44  # weeks in months, for the ticks
months = ["Jan", "Mar", "May", "Jul", "Sep", "Nov"]

ax = panels[0, 0]
colours = {"cmap": "RdBu_r", "vmin": -4, "vmax": 4}
ax.set_facecolor("0.2")
image = ax.pcolormesh(years, first, (train - trend).T, **colours)
figure.colorbar(image, ax=ax, label="ppm from a quadratic trend")
ax.set(title="Seen: weeks without a reading, or hidden, are black", xlabel="year")
ax.set(yticks=range(0, 12, 2), yticklabels=months)

ax = panels[0, 1]
image = ax.pcolormesh(years, first, np.sqrt(post.variance()).T, cmap="magma", vmin=0)
figure.colorbar(image, ax=ax, label="ppm")
ax.set(title="Standard deviation of the filled grid", xlabel="year")
ax.set(yticks=range(0, 12, 2), yticklabels=months)


def show(ax, t, mean, sd):
    ax.fill_between(
        t, mean - 1.96 * sd, mean + 1.96 * sd, color=blue, alpha=0.25, lw=0, label="95 % band"
    )
    ax.plot(t, mean, color=blue, lw=1.5, label="mean")


ax = panels[1, 0]
show(ax, time.ravel(), filled.ravel(), filled_sd.ravel())
ax.plot(time[seen], train[seen], ".", ms=5, color="0.3", label="seen")
ax.plot(time[hidden], whole[hidden], "o", ms=4, mfc="w", color=red, label="hidden")
ax.set(title="The gap of 1964", xlim=(1963, 1966), ylim=(314.5, 324), ylabel="ppm")
ax.set_xticks([1963, 1964, 1965, 1966])
ax.legend(frameon=False, ncols=4, loc="upper center", columnspacing=1.0, handlelength=1.2)

ax = panels[1, 1]
t = new_years[:, None] + (weeks + 0.5) / 52
show(ax, t.ravel(), ahead.ravel(), ahead_sd.ravel())
recent = slice(-4, None)
ax.plot(time[recent][seen[recent]], train[recent][seen[recent]], ".", ms=5, color="0.3")
ax.plot(t.ravel(), held_out.ravel(), "o", ms=4, mfc="w", color=red, label="held out")
ax.plot(t.ravel(), naive.ravel(), "k--", lw=1, label="last year and the mean rise")
ax.set(title="Two years ahead", xlim=(1997, 2002), ylabel="ppm", xticks=range(1997, 2003))
ax.set(yticks=range(360, 377, 4))
ax.legend(frameon=False, loc="upper left")
figure.savefig("carbon_dioxide.png", dpi=100)
