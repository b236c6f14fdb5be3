# %% [markdown]
# # Hourly stations: three years, and what the outages hid
#
# Twelve weather stations and three years of hourly temperature, 315 360 cells: loggers fail for
# weeks, single readings go missing. A tenth of the cells has no reading. Along the hours the model
# is a Markov process, so that a filter of all stations at once gives likelihood and gradient of
# *all* readings exactly, in time linear in their number and with any gaps; the next days are
# forecast from the same posterior.
#
# The data are simulated, and not from the model: beside the weather that stations share there are
# spells of fog and cloud that one station has for itself, and whose strength changes with the
# season.
#
# Needs `pip install kronax matplotlib`.

# %%
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np

import kronax as kx

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(3)

# %% [markdown]
# ## The data
# Places in km. Of four years that are simulated the model gets the last three; the last week is
# kept for the forecast.

# %%
num_stations, num_days = 12, 4 * 365 + 1
hours = np.arange(24.0 * num_days)
places = rng.uniform(0, 250, (num_stations, 2))


def weather(lengthscale, size):
    """Independent Matérn-3/2 series, hour by hour."""
    rate = np.sqrt(3) / lengthscale
    step = np.exp(-rate) * np.array([[1 + rate, 1], [-(rate**2), 1 - rate]])
    spread = np.diag([1, rate**2])
    root = np.linalg.cholesky(spread - step @ spread @ step.T)
    state, series = np.linalg.cholesky(spread) @ rng.normal(size=(2, size)), []
    for kick in rng.normal(size=(hours.size, 2, size)):
        state = step @ state + root @ kick
        series.append(state[0])
    return np.array(series)


def spells(hours_each, size):
    """Independent series that are forgotten exponentially."""
    share, series = np.exp(-1 / hours_each), [rng.normal(size=size)]
    for kick in rng.normal(size=(hours.size - 1, size)):
        series.append(share * series[-1] + np.sqrt(1 - share**2) * kick)
    return np.array(series)


distance = np.linalg.norm(places[:, None] - places, axis=-1)
shared = np.linalg.cholesky(np.exp(-distance / 200) + 1e-9 * np.eye(num_stations))
year, day = 2 * np.pi * hours / (24 * 365.25), 2 * np.pi * hours / 24
cycle = 9 - 9 * np.cos(year - 0.4) - (3.5 - 2 * np.cos(year - 0.2)) * np.cos(day - 0.8)
own = (0.5 - 0.2 * np.cos(year))[:, None] * spells(4.0, num_stations)
truth = cycle[:, None] + 3.5 * weather(36.0, num_stations) @ shared.T + own
truth += rng.normal(0, 2, num_stations)  # height above the sea
readings = truth + rng.normal(0, 0.2, truth.shape)

is_out = rng.random(truth.shape) < 0.02
while is_out.mean() < 0.1:
    station, begin = rng.integers(num_stations), rng.integers(hours.size)
    is_out[begin : begin + rng.integers(7 * 24, 35 * 24), station] = True
num_new = 7 * 24
given = slice(hours.size - 3 * 365 * 24, -num_new)
whole, ahead = readings[given], readings[-num_new:]
past, future = hours[given], hours[-num_new:]
is_out = is_out[given]
seen = np.where(is_out, np.nan, whole)
print(f"{seen.size:,} cells, {is_out.sum():,} without a reading ({is_out.mean():.0%})\n")

# %% [markdown]
# ## The cycles
# Year and day with two harmonics each, and their products: least squares of the readings that there
# are, station by station.


# %%
def harmonics(at):
    """Columns of the regression."""
    year, day = 2 * np.pi * at / (24 * 365.25), 2 * np.pi * at / 24
    waves = [
        [np.ones_like(at), *(wave(k * x) for k in (1, 2) for wave in (np.cos, np.sin))]
        for x in (year, day)
    ]
    return np.stack([a * b for a in waves[0] for b in waves[1]], axis=1)


columns = harmonics(past)
weights = np.stack(
    [np.linalg.lstsq(columns[~out], y[~out])[0] for out, y in zip(is_out.T, whole.T, strict=True)],
    axis=1,
)
anomaly = seen - columns @ weights

# %% [markdown]
# ## The model and its fit
# Weather that decays over hours and kilometres, a share of it that a station has for itself, and
# the noise of a reading: five parameters, fitted to all readings at once. A step takes about a
# second.

# %%
gp = kx.GridGP(
    kernels={
        "hour": 10.0 * kx.Matern32(24.0),
        "station": kx.Matern12(100.0) + 0.1 * kx.White(),
    },
    axes={"hour": past, "station": places},
    noise=0.1,
)
start = perf_counter()
result = kx.fit(gp, anomaly)
print(f"\nfitted to {(~is_out).sum():,} readings in {perf_counter() - start:.0f} s\n{result}\n")
gp = result.model.observing(anomaly)
print(gp.describe(), "\n")

# %% [markdown]
# ## The same number from a plain filter
# Thirty lines of NumPy that know nothing of kronax: the state is the value and the slope at all
# stations, hour by hour.


# %%
def plain_filter(y, along, between, noise):
    """Log density of the values of `y` that are not NaN."""
    m, rate = len(between), np.sqrt(3) / along
    step = np.exp(-rate) * np.array([[1 + rate, 1], [-(rate**2), 1 - rate]])
    prior = np.kron(np.diag([1, rate**2]), between)
    step = np.kron(step, np.eye(m))
    kick = prior - step @ prior @ step.T
    mean, spread, total = np.zeros(2 * m), prior, 0.0
    for values in y:
        known = np.flatnonzero(~np.isnan(values))
        if known.size:
            covariance = spread[np.ix_(known, known)] + noise * np.eye(known.size)
            gain = np.linalg.solve(covariance, spread[known]).T
            error = values[known] - mean[known]
            total -= 0.5 * error @ np.linalg.solve(covariance, error)
            total -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
            mean, spread = mean + gain @ error, spread - gain @ spread[known]
        mean, spread = step @ mean, step @ spread @ step.T + kick
        spread = (spread + spread.T) / 2
    return total


along = float(gp.kernels[0].lengthscale)
between = float(gp.variance) * np.asarray(gp.kernels[1](places, places))
value = float(gp.log_marginal_likelihood(anomaly))
plain = plain_filter(anomaly, along, between, float(gp.noise))
print(f"log likelihood {value:.6f}, by the plain filter {plain:.6f}")
print(f"relative difference {abs(value / plain - 1):.0e}\n")
assert abs(value / plain - 1) < 1e-9

# %% [markdown]
# ## Fill, and forecast
# One posterior for both: new hours are coordinates like all others.

# %%
start = perf_counter()
post = gp.condition(anomaly)
filled = np.asarray(post.mean()) + columns @ weights
sd = np.sqrt(np.asarray(post.variance(include_noise=True)))
new = {"hour": future}
forecast = np.asarray(post.mean(new)) + harmonics(future) @ weights
forecast_sd = np.sqrt(np.asarray(post.variance(new, include_noise=True)))
print(f"filled and forecast in {perf_counter() - start:.0f} s\n")

# %% [markdown]
# ## Is it any good?
# In the outages beside the mean cycle, straight lines in time, and a regression of each station on
# the mean anomaly of those that read at the hour. The forecast beside the cycle, day by day.

# %%
usual = columns @ weights
linear, regression = np.empty_like(seen), np.empty_like(seen)
for s in range(num_stations):
    known = ~is_out[:, s]
    linear[:, s] = np.interp(past, past[known], anomaly[known, s]) + usual[:, s]
    others = np.nanmean(np.delete(anomaly, s, axis=1), axis=1)
    slope = anomaly[known, s] @ others[known] / (others[known] @ others[known])
    regression[:, s] = slope * others + usual[:, s]


def rmse(error):
    return np.sqrt(np.mean(np.square(error)))


print("RMSE in the outages, °C")
ways = {"kronax": filled, "regression": regression, "linear": linear, "cycle": usual}
for name, values in ways.items():
    print(f"  {name:12} {rmse((values - whole)[is_out]):.2f}")
in_band = np.mean(np.abs(filled - whole)[is_out] < 1.96 * sd[is_out])
print(f"{in_band:.1%} of the readings that are missing lie in the 95 % band\n")

print("day ahead   RMSE, °C   mean cycle   in 95 % band")
for d in range(num_new // 24):
    cut = slice(24 * d, 24 * (d + 1))
    error = forecast[cut] - ahead[cut]
    inside = np.mean(np.abs(error) < 1.96 * forecast_sd[cut])
    plain_error = rmse(harmonics(future)[cut] @ weights - ahead[cut])
    print(f"{d + 1:9}   {rmse(error):8.2f}   {plain_error:10.2f}   {inside:12.0%}")

# %% [markdown]
# ## The picture
# What was seen, an outage in full, and the forecast.

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, panels = plt.subplots(3, 1, figsize=(12, 10), layout="constrained")
days = past / 24

daily = anomaly[: past.size // 24 * 24].reshape(-1, 24, num_stations)
shown = np.where(np.isnan(daily).mean(axis=1) > 0.5, np.nan, np.nansum(daily, axis=1) / 24)
image = panels[0].imshow(
    shown.T,
    aspect="auto",
    cmap="RdBu_r",
    vmin=-8,
    vmax=8,
    interpolation="nearest",
    extent=(days[0] / 365.25, days[-1] / 365.25, num_stations + 0.5, 0.5),
)
panels[0].set_facecolor("0.25")
panels[0].set(
    title="Seen: departures from the mean cycle, days on average; outages are dark",
    xlabel="years",
    ylabel="station",
    yticks=range(1, num_stations + 1, 2),
)
figure.colorbar(image, ax=panels[0], label="°C", pad=0.01)

# The outage of about two weeks that the other stations tell most of.
edges = np.diff(np.pad(is_out, ((1, 1), (0, 0))).astype(int), axis=0)
runs = [
    (end - begin, begin, end, s)
    for s in range(num_stations)
    for begin, end in zip(*(np.flatnonzero(edges[:, s] == k) for k in (1, -1)), strict=True)
]
runs = [run for run in runs if abs(run[0] - 14 * 24) < 3 * 24]
_, begin, end, station = min(runs, key=lambda run: sd[run[1] : run[2], run[3]].mean())
window = slice(max(begin - 3 * 24, 0), end + 3 * 24)
ax, centre, half = panels[1], filled[window, station], 1.96 * sd[window, station]
ax.axvspan(days[begin], days[end - 1], color="0.93")
ax.fill_between(days[window], centre - half, centre + half, alpha=0.3, lw=0, label="95 % band")
ax.plot(days[window], whole[window, station], ".", ms=3, color="tab:red", label="hidden")
ax.plot(days[window], seen[window, station], ".", ms=3, color="k", label="seen")
ax.plot(days[window], centre, lw=1.2, label="posterior mean")
ax.plot(days[window], usual[window, station], "--", lw=0.8, color="0.5", label="mean cycle")
ax.set(title=f"An outage of station {station + 1}: filled from the others", ylabel="°C")
ax.set(xlabel="days", xlim=(days[window][0], days[window][-1]))
ax.legend(ncols=5, frameon=False, loc="upper left")
ax.set_ylim(top=ax.get_ylim()[1] + 3)

ax, before = panels[2], slice(-4 * 24, None)
centre, half = forecast[:, station], 1.96 * forecast_sd[:, station]
ax.axvline(days[-1], color="0.7", lw=1)
ax.fill_between(future / 24, centre - half, centre + half, alpha=0.3, lw=0, label="95 % band")
ax.plot(days[before], seen[before, station], ".", ms=3, color="k", label="seen")
ax.plot(future / 24, ahead[:, station], ".", ms=3, color="tab:red", label="to come")
ax.plot(future / 24, centre, lw=1.2, label="forecast")
ax.plot(future / 24, harmonics(future) @ weights[:, station], "--", lw=0.8, color="0.5")
ax.set(title=f"The next week at station {station + 1}", xlabel="days", ylabel="°C")
ax.legend(ncols=4, frameon=False, loc="upper left")
ax.set_ylim(top=ax.get_ylim()[1] + 3)
figure.suptitle(
    f"Three years of hours at twelve stations, {is_out.mean():.0%} missing: error in the outages "
    f"{rmse((filled - whole)[is_out]):.1f} °C, {in_band:.0%} in the 95 % band",
    fontsize=13,
)
figure.savefig("hourly_stations.png", dpi=100)
