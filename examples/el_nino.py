# %% [markdown]
# # El Niño: a full Bayesian model of a year × month grid
#
# Monthly sea-surface temperature off Peru (0–10° S, 80–90° W), 1950–2010. Every few years these
# waters run degrees too warm for months on end: that is where El Niño got its name. We lay the
# months out as a grid, put priors on everything, sample with NUTS, check the model against its own
# replicates, and forecast ten years that it has not seen.
#
# Needs `pip install kronax arviz statsmodels matplotlib`.

# %%
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, Predictive, init_to_median
from scipy.stats import norm
from statsmodels.datasets import elnino

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data, and where to cut a year
# A Kronecker product gives neighbouring months one covariance in every year, and neighbouring years
# one in every month. What it cannot say is that January comes after the *previous* December. What
# that costs depends on where a row begins. An anomaly is passed on from month to month with a
# correlation of 0.90 to 0.96; from January to February it is 0.84, and from February to March 0.83,
# when El Niños tend to end. So a row runs from March to February.

# %%
sst = elnino.load_pandas().data.drop(columns="YEAR").to_numpy().ravel()  # °C, from January 1950
names = ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"]
months, years = np.arange(12.0), np.arange(1950.0, 2010.0)  # a year is named after its March
rows = sst[2:-10].reshape(60, 12)  # from March 1950 to February 2010

num_held_out = 10
train, held_out = rows[:-num_held_out], rows[-num_held_out:]
train_years, new_years = years[:-num_held_out], years[-num_held_out:]
climatology, spread = train.mean(0), train.std(0, ddof=1)


# %% [markdown]
# Four layouts of fifty years, each month standardised, fitted by maximum likelihood. Months on a
# circle are the worst by far: that ties a January to the December eleven months *after* it. (The
# circle is right for the seasonal cycle, and comes back below.) The grid from March to February is
# nearly as good as one long series, which needs no cut. For this index alone the series would be
# the model to use; a grid is needed once places, or other axes, join in.


# %%
def fit_layout(data, axes):
    """Log density of the data in nats per month, and the fitted model."""
    mean, sd = data.mean(0), data.std(0, ddof=1)
    kernels = {"year": kx.Matern12(0.5), "month": 1.0 * kx.Matern32(4.0)}
    gp = kx.GridGP({name: kernels[name] for name in axes}, axes, noise=0.05)
    result = kx.fit(gp, ((data - mean) / sd).reshape(gp.grid_shape), progress=False)
    return -result.losses[-1] / data.size - np.log(sd).mean(), result.model


calendar, circle = sst[: train.size].reshape(train.shape), kx.circle(months, 12.0)
layouts = {
    "January to December, months on a circle": (calendar, {"year": train_years, "month": circle}),
    "January to December, months on a line": (calendar, {"year": train_years, "month": months}),
    "March to February, months on a line": (train, {"year": train_years, "month": months}),
    "one series of months": (train, {"month": np.arange(float(train.size))}),
}
print("Log density, nats per month")
for name, layout in layouts.items():
    nats, fitted = fit_layout(*layout)
    print(f"  {name:40} {nats:6.2f}")
series = fitted  # the last one

# %% [markdown]
# ## The model
# The temperature is a seasonal cycle, plus anomalies with a seasonal amplitude, plus noise. Cycle
# and amplitude do live on a circle: they are smooth random curves there. The anomalies are smooth
# from month to month and forgotten within about a year, but for a share that changes over decades.
#
# Means and kernels of one's own are a few lines, and take priors by path like all others.


# %%
class Cycle(kx.Mean):
    values: kx.ParameterArray = kx.parameter(constraints.real)

    def __call__(self, year, month):
        return self.values[month.astype(int)]


class Amplitude(kx.Kernel):
    values: kx.ParameterArray = kx.parameter(constraints.positive)

    def evaluate(self, x, z):
        return self.values[x.astype(int)] * self.values[z.astype(int)]


def on_grid(years, months):
    kernels = {
        "year": kx.Matern12(0.5) + 0.1 * kx.RBF(20.0),
        "month": Amplitude(jnp.ones(12)) * kx.Matern32(4.0),
    }
    axes = {"year": years, "month": months}
    return kx.GridGP(kernels, axes, noise=0.05, mean=Cycle(jnp.zeros(12)))


def curve(sd, mean):
    """A smooth random curve through the twelve months, used without its noise."""
    return kx.GridGP((sd**2 * kx.Periodic(12.0, 1.0),), (circle,), noise=1.0, mean=mean)


cycle, log_amplitude = curve(3.0, mean=23.0), curve(0.5, mean=0.0)
priors = {
    "kernels[0].first.lengthscale": dist.LogNormal(np.log(0.5), 0.5),  # years
    "kernels[0].second.kernel.lengthscale": dist.LogNormal(np.log(20.0), 0.3),  # years
    "kernels[0].second.variance": dist.HalfNormal(0.1),  # slow changes, beside 1 for fast ones
    "kernels[1].second.lengthscale": dist.LogNormal(np.log(4.0), 0.5),  # months
    "noise": dist.HalfNormal(0.1),  # °C²
}


def process(gp):
    """`gp` with everything unknown drawn from its prior."""
    gp = kx.sample_parameters("gp", gp, priors)
    amplitude = jnp.exp(log_amplitude.latent("log_amplitude"))
    curves = {"mean.values": cycle.latent("cycle"), "kernels[1].first.values": amplitude}
    return kx.replace(gp, curves)


def model(gp, sst=None):
    numpyro.sample("sst", process(gp).numpyro_dist(), obs=sst)


start = on_grid(train_years, months)
print(f"\n{start}\n")

# %% [markdown]
# ## Sample
# What the data say about neighbouring months of the cycle is highly correlated, hence a dense mass
# matrix; until that is learnt long trajectories are wasted, hence a limit during warm-up.

# %%
mcmc = MCMC(
    NUTS(model, dense_mass=True, max_tree_depth=(5, 10), init_strategy=init_to_median),
    num_warmup=300,
    num_samples=300,
    num_chains=4,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(0), start, train)
draws = mcmc.get_samples()
replicates = Predictive(model, draws)(jax.random.key(1), start)["sst"]

# %% [markdown]
# ## Diagnose, with ArviZ

# %%
scalars = {
    "gp.kernels[0].first.lengthscale": "memory (years)",
    "gp.kernels[0].second.kernel.lengthscale": "slow changes (years)",
    "gp.kernels[0].second.variance": "slow / fast variance",
    "gp.kernels[1].second.lengthscale": "lengthscale (months)",
    "gp.noise": "noise variance (°C²)",
}
sites = {**scalars, "cycle": "seasonal cycle (°C)", "log_amplitude": "log amplitude"}
data = az.from_numpyro(
    mcmc,
    posterior_predictive={"sst": replicates},
    coords={"year": train_years, "month": names},
    dims={"sst": ["year", "month"], "cycle": ["month"], "log_amplitude": ["month"]},
)
print(az.summary(data, var_names=list(scalars), round_to=3).rename(scalars).to_string())
r_hat = max(float(az.rhat(data)[name].max()) for name in sites)
ess = min(float(az.ess(data)[name].min()) for name in sites)
num_diverging = int(data.sample_stats["diverging"].sum())
print(
    f"with cycle and amplitude: r-hat ≤ {r_hat:.3f}, ess ≥ {ess:.0f}, {num_diverging} diverging\n"
)

# The plot of densities beside traces has this name since ArviZ 1; before, Matplotlib 3.11 warns.
plot_trace = getattr(az, "plot_trace_dist", az.plot_trace)
warnings.filterwarnings("ignore", message="Passing a dict or None as alias_mapping")
plot_trace(data, var_names=list(sites), labeller=az.labels.MapLabeller(var_name_map=sites))
figure = plt.gcf()
figure.set_size_inches(10, 13)
figure.set_layout_engine("constrained")
figure.savefig("el_nino_trace.png", dpi=70)
plt.close(figure)

# %% [markdown]
# ## Is the model like the data?
# Every draw makes fifty years of its own. Where the data lie far outside of what these show, the
# model is wrong; it is so twice. Nothing passes from February to March, by construction. And a
# Gaussian process is symmetric, while El Niños are warmer than La Niñas are cold. (A logarithm does
# not mend it: with any offset it gained next to nothing in likelihood, or lost.)


# %%
def correlation(a, b):
    a, b = (x - x.mean((-2, -1), keepdims=True) for x in (a, b))
    return np.sum(a * b, (-2, -1)) / np.sqrt(np.sum(a**2, (-2, -1)) * np.sum(b**2, (-2, -1)))


def features(sst):
    """What is compared, of one grid or of many."""
    z = sst - sst.mean(-2, keepdims=True)
    return {
        "warmest\nanomaly (°C)": z.max((-2, -1)),
        "correlation with\nthe next month": correlation(z[..., :-1], z[..., 1:]),
        "correlation of\nFebruary with March": correlation(z[..., :-1, -1:], z[..., 1:, :1]),
        "skewness of\nanomalies": np.mean(z**3, (-2, -1)) / np.mean(z**2, (-2, -1)) ** 1.5,
    }


observed, replicated = features(train), features(np.asarray(replicates))
print(f"{'':35} observed   95 % of replicates")
for name, values in replicated.items():
    low, high = np.quantile(values, [0.025, 0.975])
    label = name.replace("\n", " ")
    print(f"{label:35} {observed[name]:8.2f}   {low:8.2f} to {high:.2f}")

# %% [markdown]
# ## Forecast
# Twice, with the parameters of every fourth draw: ten years at once, from February 2000; and, where
# such a model can be of use, from the end of each August to the next February. For that the grid
# has the months from March to August alone, so that it is complete, and the others are new
# coordinates. A batch of ten such grids, fifty years and the one that has begun, gives all ten.


# %%
def forecast(gp, sst, axes):
    new = process(gp).condition(sst).numpyro_dist(axes=axes, include_noise=True)
    numpyro.deterministic("mean", new.mean)
    numpyro.deterministic("variance", new.variance)
    numpyro.sample("sst", new)


predict = Predictive(forecast, {name: values[::4] for name, values in draws.items()})
decade = predict(jax.random.key(2), start, train, {"year": new_years})

known, ahead = slice(0, 6), slice(6, 12)
num_years = len(train) + 1
begun = np.stack([rows[i : i + num_years, known] for i in range(num_held_out)])
until_august = on_grid(np.arange(float(num_years)), months[known])
rest = {"year": np.array([num_years - 1.0]), "month": months[ahead]}
winters = predict(jax.random.key(3), until_august, begun, rest)
winters = {name: winters[name][:, :, 0] for name in ("mean", "variance", "sst")}

# %% [markdown]
# ## Is it any good?
# Beside the climatology, the training mean and standard deviation of each month; persistence, where
# the last anomaly stays; damped persistence, a regression of each month on August; and the series
# of months from above, given ten years before each forecast.

# %%
anomaly = train - climatology
august, latest = anomaly[:, 5:6], (held_out - climatology)[:, 5:6]
slope = np.sum(august * anomaly[:, ahead], 0) / np.sum(august**2)
residual = np.sum((anomaly[:, ahead] - slope * august) ** 2, 0) / (len(train) - 2)
leverage = 1 + 1 / len(train) + latest**2 / np.sum(august**2)


def series_forecast(origins, num_months):
    """Means and variances in °C, a row per origin: months counted from the first one."""
    kernel, z = series.variance * series.kernels[0], ((rows - climatology) / spread).ravel()
    gp = kx.GridGP((kernel,), (np.arange(120.0),), noise=series.noise)
    post = gp.condition(np.stack([z[origin - 120 : origin] for origin in origins]))
    new = (120.0 + np.arange(num_months),)
    mean, variance = post.mean(new), post.variance(new, include_noise=True)
    month = (np.array(origins)[:, None] + np.arange(num_months)) % 12
    return climatology[month] + spread[month] * mean, spread[month] ** 2 * variance


series_rows = series_forecast([600, *range(606, 720, 12)], 120)
series_decade = [values[0].reshape(held_out.shape) for values in series_rows]
series_winters = [values[1:, :6] for values in series_rows]
new_year = spread**2 * (1 + 1 / len(train))
forecasts = {
    "Ten years from February 2000": {
        "year × month grid": (decade["mean"], decade["variance"]),
        "climatology": (climatology, new_year),
        "persistence": (climatology + anomaly[-1, -1], 2 * spread**2),
        "series of months": series_decade,
    },
    "From August to February, ten times": {
        "year × month grid": (winters["mean"], winters["variance"]),
        "climatology": (climatology[ahead], new_year[ahead]),
        "persistence": (climatology[ahead] + latest, np.mean((anomaly[:, ahead] - august) ** 2, 0)),
        "damped persistence": (climatology[ahead] + slope * latest, residual * leverage),
        "series of months": series_winters,
    },
}


def scores(truth, mean, variance):
    """RMSE (°C), mean negative log density and share in the central 95 %, of a mixture of draws."""
    mean, variance = (np.reshape(np.asarray(a), (-1, *np.shape(a)[-2:])) for a in (mean, variance))
    density = np.mean(norm.pdf(truth, mean, np.sqrt(variance)), axis=0)
    rank = np.mean(norm.cdf(truth, mean, np.sqrt(variance)), axis=0)
    rmse = np.sqrt(np.mean((truth - mean.mean(0)) ** 2))
    return rmse, -np.mean(np.log(density)), np.mean((rank > 0.025) & (rank < 0.975))


errors = {}  # those from August stay, for the picture
for (title, table), truth in zip(forecasts.items(), (held_out, held_out[:, ahead]), strict=True):
    print(f"\n{title:36} RMSE (°C)   −log density   in 95 % band")
    for name, moments in table.items():
        errors[name], nlpd, coverage = scores(truth, *moments)
        print(f"  {name:34} {errors[name]:9.2f}   {nlpd:12.2f}   {coverage:12.0%}")

# %% [markdown]
# Years ahead nothing beats the climatology by much, and nothing should: a year's anomaly is
# forgotten when the next begins. The bands are wide, because 1983 and 1998 are among the fifty
# years, and nothing like them has come since. From August the grid is far better than the
# climatology, 0.60 °C instead of 0.85 °C; so are a plain regression and the series. Ten winters are
# ten cases: differences of 0.01 °C mean nothing.

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(12, 11), layout="constrained")
grid = figure.add_gridspec(3, 6, height_ratios=[1, 1, 1.2])
blue, red = "tab:blue", "tab:red"


def band(ax, x, values, base=0.0, **options):
    low, high = np.quantile(values, [0.025, 0.975], axis=0) - base
    ax.fill_between(np.ravel(x), np.ravel(low), np.ravel(high), lw=0, **options)


ax = figure.add_subplot(grid[0, :])
image = ax.pcolormesh(years, months, (rows - climatology).T, cmap="RdBu_r", vmin=-4, vmax=4)
figure.colorbar(image, ax=ax, label="°C", pad=0.01)
ax.axvline(new_years[0] - 0.5, color="k", lw=2)
ax.text(new_years[0] - 0.2, 11.7, "held out", va="bottom")
ax.set(title="The data: sea-surface temperature off Peru, less each month's training mean")
ax.set(yticks=months[::2], yticklabels=names[::2], xlabel="year that begins in March")

ax = figure.add_subplot(grid[1, :2])
ax.plot(months, train.T, color="0.6", lw=0.6)
every_year = np.asarray(replicates).reshape(-1, 12)
band(ax, months, every_year, color=blue, alpha=0.25, label="replicated years, 95 %")
band(ax, months, draws["cycle"], color=blue, zorder=3, label="seasonal cycle, 95 %")
ax.set(title="Fifty years and their model", ylabel="°C", ylim=(None, 34))
ax.set(xticks=months[::2], xticklabels=names[::2])
ax.legend(loc="upper right", frameon=False)

for k, (name, values) in enumerate(replicated.items()):
    ax = figure.add_subplot(grid[1, 2 + k])
    ax.hist(values, bins=30, color=blue, alpha=0.4)
    ax.axvline(observed[name], color=red, lw=2)
    ax.set(xlabel=name, yticks=[])
    if k == 0:  # in_layout: as a title it would make its own column wider
        title = "Replicates of the whole grid (blue) and the data (red)"
        ax.text(0, 1.03, title, fontsize=11, transform=ax.transAxes, in_layout=False)

ax = figure.add_subplot(grid[2, :])
time = new_years[:, None] + (months + 2.5) / 12
grey = {"color": "0.5", "alpha": 0.25, "label": "from February 2000, 95 %"}
band(ax, time, decade["sst"], climatology, **grey)
for k in range(num_held_out):
    label = {"label": "from the end of August, 95 %"} if k == 0 else {}
    now, sst_k = time[k, ahead], winters["sst"][:, k]
    band(ax, now, sst_k, climatology[ahead], color=blue, alpha=0.25, **label)
    ax.plot(now, winters["mean"][:, k].mean(0) - climatology[ahead], color=blue, lw=2)
ax.plot(time.ravel(), (held_out - climatology).ravel(), ".-", color=red, lw=0.8, label="held out")
ax.axhline(0, color="k", ls="--", lw=1, label="climatology")
ax.set(title="Forecasts of the ten held-out years", ylabel="°C from climatology", ylim=(-3.2, 4))
ax.set(xlim=(time[0, 0], time[-1, -1]), xticks=np.arange(2001, 2011))
ax.legend(ncols=4, loc="upper center", frameon=False)

figure.suptitle(
    "El Niño as a year × month grid: a full Bayesian model, sampled with NUTS\n"
    f"r-hat ≤ {r_hat:.3f}, effective sample size ≥ {ess:.0f}; error from August to February "
    f"{errors['year × month grid']:.2f} °C (climatology: {errors['climatology']:.2f} °C)",
    fontsize=13,
)
figure.savefig("el_nino.png", dpi=110)
