# %% [markdown]
# # Emulate a simulator: epidemics at settings that were never run
#
# A computer experiment: an epidemic is simulated at 60 settings of its three parameters, and each
# run gives a time series. What would it have given at other settings? The model is the
# matrix-normal distribution plus noise, `N(mean, K_settings ⊗ K_times + σ² I)`, as one NumPyro site
# under NUTS. The series grow from 20 readings to 500, which for a dense covariance is a matrix of
# 30 000 × 30 000.
#
# Needs `pip install kronax scipy matplotlib`; a minute on two cores.

# %%
from functools import partial
from time import perf_counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive, init_to_median
from numpyro.infer.util import log_density
from scipy.stats import norm, qmc

import kronax as kx

jax.config.update("jax_enable_x64", True)
numpyro.set_host_device_count(2)  # one core per chain

# %% [markdown]
# ## The simulator
# People are susceptible, infectious, or immune for a while (SIRS): a first wave, then smaller ones.
# The virus in sewage goes with the number of the infectious, and a sampler reads it twice a day
# with an error of 10 %: so the output is the logarithm of the infectious share plus noise of
# standard deviation `SIGMA`, which the model has to find.

# %%
LOW, HIGH = np.array([1.5, 4.0, 30.0]), np.array([3.5, 10.0, 150.0])
DAYS, READINGS_A_DAY, STEPS_A_READING, SIGMA = 250, 2, 4, 0.1
LONGEST = DAYS * READINGS_A_DAY


@jax.jit
@jax.vmap
def simulator(setting):
    """Log of the infectious share of the people, by the classical Runge-Kutta method."""
    reproduction, infectious, immune = setting  # number, days, days
    h = 1 / (READINGS_A_DAY * STEPS_A_READING)

    def rate(state):
        susceptible, infected = state
        new = reproduction / infectious * susceptible * infected
        back = (1 - susceptible - infected) / immune
        return jnp.array([back - new, new - infected / infectious])

    def step(state, _):
        a = rate(state)
        b = rate(state + h / 2 * a)
        c = rate(state + h / 2 * b)
        d = rate(state + h * c)
        return state + h / 6 * (a + 2 * b + 2 * c + d), state[1]

    _, path = jax.lax.scan(step, jnp.array([0.99, 0.01]), length=LONGEST * STEPS_A_READING)
    return jnp.log(path[::STEPS_A_READING])


def experiment(num_runs, seed):
    """Settings in the unit cube, what the simulator gives there, and the readings."""
    settings = qmc.LatinHypercube(d=3, rng=seed).random(num_runs)
    clean = np.asarray(simulator(LOW + (HIGH - LOW) * settings))
    noise = SIGMA * np.random.default_rng(seed).standard_normal(clean.shape)
    return settings, clean, clean + noise


design, _, runs = experiment(60, seed=0)
held_out, truth, readings = experiment(40, seed=1)

# %% [markdown]
# ## The model
# A Matérn kernel over the settings, with one lengthscale for each, and one over time; around the
# mean of the runs. The times are evenly spaced, so that their covariance is `kx.Toeplitz`, which
# splits into two halves.


# %%
def parameters():
    return {
        "amplitude": numpyro.sample("amplitude", dist.HalfNormal(2.0)),
        "lengthscales": numpyro.sample(
            "lengthscales", dist.LogNormal(jnp.zeros(3), 1.0).to_event(1)
        ),
        "timescale": numpyro.sample("timescale", dist.LogNormal(jnp.log(20.0), 1.0)),
        "sigma": numpyro.sample("sigma", dist.HalfNormal(0.5)),
    }


def model(days, y):
    p = parameters()
    between_settings = p["amplitude"] ** 2 * kx.Matern52(p["lengthscales"])(design, design)
    between_times = kx.Toeplitz(kx.Matern52(p["timescale"])(days[:1], days)[0])
    factors = between_settings, between_times
    noise = p["sigma"] ** 2  # a variance
    numpyro.sample("y", kx.KroneckerNormal(y.mean(0, keepdims=True), factors, noise), obs=y)


# %% [markdown]
# The same, written out: what NumPyro offers without kronax.


# %%
def dense_model(days, y):
    p = parameters()
    between_settings = p["amplitude"] ** 2 * kx.Matern52(p["lengthscales"])(design, design)
    between_times = kx.Matern52(p["timescale"])(days, days)
    covariance = jnp.kron(between_settings, between_times) + p["sigma"] ** 2 * jnp.eye(y.size)
    mean = jnp.broadcast_to(y.mean(0), y.shape).ravel()
    numpyro.sample("y", dist.MultivariateNormal(mean, covariance), obs=y.ravel())


# %% [markdown]
# ## Longer and longer series
# One log density with its gradient is what the sampler pays for each step: here for 20 to 500
# readings of every run. The dense model goes as far as it goes in seconds.

# %%
SIZES, DENSE_SIZES = (20, 100, 500), (10, 20)
POINT = {"amplitude": 1.0, "lengthscales": jnp.ones(3), "timescale": 20.0, "sigma": 0.1}


def thinned(size):
    """Evenly spaced readings of the whole time."""
    places = np.arange(size) * (LONGEST // size)
    return places / READINGS_A_DAY, runs[:, places]


def seconds_per_gradient(which, size, rounds):
    value = partial(log_density, which, thinned(size), {})
    call = jax.jit(jax.value_and_grad(lambda point: value(point)[0]))
    found, _ = jax.block_until_ready(call(POINT))
    times = []
    for _ in range(rounds):
        start = perf_counter()
        jax.block_until_ready(call(POINT))
        times.append(perf_counter() - start)
    return min(times), float(found)  # other programs only ever slow it down


gradient = {n: seconds_per_gradient(model, n, rounds=9) for n in {*DENSE_SIZES, *SIZES}}
dense = {n: seconds_per_gradient(dense_model, n, rounds=1) for n in DENSE_SIZES}
print("readings  cells   density + gradient    dense")
for n in sorted(gradient):
    against = f"{1e3 * dense[n][0]:5.0f} ms" if n in dense else f"{'–':>8}"
    print(f"{n:7}{n * len(design):8,}{1e3 * gradient[n][0]:18.2f} ms {against}")
for n, (_, value) in dense.items():
    np.testing.assert_allclose(value, gradient[n][1], rtol=1e-9)  # the same density

# %% [markdown]
# ## Sample
# NUTS on a reading every other day of every run, 7 500 cells: two chains, one per core. (All 30 000
# take some minutes.)

# %%
NUM_WARMUP = NUM_DRAWS = 150
sampler = NUTS(model, dense_mass=True, init_strategy=init_to_median)
mcmc = MCMC(sampler, num_warmup=NUM_WARMUP, num_samples=NUM_DRAWS, num_chains=2, progress_bar=False)
days, y = thinned(DAYS // 2)
truth, readings = (series[:, :: LONGEST // days.size] for series in (truth, readings))
start = perf_counter()
mcmc.run(jax.random.key(0), days, y, extra_fields=("num_steps", "diverging"))
nuts_seconds = perf_counter() - start
extra = mcmc.get_extra_fields()
num_gradients = int(extra["num_steps"].sum() * (1 + NUM_WARMUP / NUM_DRAWS))  # about
assert not extra["diverging"].any()
mcmc.print_summary()
print(f"{nuts_seconds:.0f} s, compiling included, for some {num_gradients:,} gradients")

# %% [markdown]
# ## Predict runs that were not made
# The process of each posterior draw, a `kx.GridGP`, is conditioned on the runs and asked for the 40
# settings held out. The draws together are one predictive distribution for every reading.


# %%
def predict(days, y):
    p = parameters()
    gp = kx.GridGP(
        kernels={
            "setting": p["amplitude"] ** 2 * kx.Matern52(p["lengthscales"]),
            "day": kx.Matern52(p["timescale"]),
        },
        axes={"setting": design, "day": days},
        noise=p["sigma"] ** 2,
        mean=y.mean(0, keepdims=True),
    )
    post = gp.condition(y)
    new = {"setting": held_out}
    numpyro.deterministic("mean", post.mean(new))
    numpyro.deterministic("variance", post.variance(new, include_noise=True))


draws = {name: values[::10] for name, values in mcmc.get_samples().items()}
start = perf_counter()
found = Predictive(predict, draws)(jax.random.key(1), days, y)
mean = np.asarray(found["mean"].mean(0))
sd = np.sqrt(np.asarray(found["variance"].mean(0) + found["mean"].var(0)))
print(f"{mean.size:,} predictions from {len(draws['sigma'])} draws: {perf_counter() - start:.1f} s")

# %% [markdown]
# ## Is it any good?
# Against two things that one might do instead: the nearest of the 60 runs, and a regression on the
# settings, their squares and their products, for every time anew.


# %%
def features(settings):
    """1, the settings, and all their products."""
    columns = np.column_stack([np.ones(len(settings)), 2 * settings - 1])
    i, j = np.triu_indices(columns.shape[1])
    return columns[:, i] * columns[:, j]


def regression():
    """Mean and standard deviation of a new reading, time by time, by least squares."""
    old, new = features(design), features(held_out)
    weights, squares, rank, _ = np.linalg.lstsq(old, y)
    leverage = np.sum(new @ np.linalg.inv(old.T @ old) * new, axis=1)
    return new @ weights, np.sqrt(squares / (len(old) - rank) * (1 + leverage[:, None]))


apart = np.linalg.norm(held_out[:, None] - design, axis=-1)


def scores(mean, sd):
    """RMSE against the simulator; mean negative log density and 95 % coverage of the readings."""
    z = (readings - mean) / sd
    density = np.mean(0.5 * z**2 + np.log(sd) + 0.5 * np.log(2 * np.pi))
    return np.sqrt(np.mean((mean - truth) ** 2)), density, np.mean(np.abs(z) < 1.96)


predictions = {"kronax": (mean, sd), "regression for each time": regression()}
nearest = y[apart.argmin(axis=1)]
print(f"\n{'':24}   RMSE   −log density   in 95 % band")
for name, prediction in predictions.items():
    rmse, density, coverage = scores(*prediction)
    print(f"{name:24} {rmse:6.3f} {density:14.2f} {coverage:14.1%}")
print(f"{'nearest run':24} {np.sqrt(np.mean((nearest - truth) ** 2)):6.3f}")
sigma = np.asarray(draws["sigma"])
print(f"σ: {sigma.mean():.4f} ± {sigma.std():.4f}, and {SIGMA} is true")

# %% [markdown]
# ## The picture
# Held-out settings at the median, at nine tenths and at the end of the errors; where the errors
# lie; how far the bands can be believed; and what the length of the series costs.

# %%
plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(13, 8.5), layout="constrained")
grid = figure.add_gridspec(2, 3, hspace=0.06)


by_setting = np.sqrt(np.mean((mean - truth) ** 2, axis=1))
order = np.argsort(by_setting)
shown = {"The median error": order[20], "Nine tenths are better": order[35], "The worst": order[-1]}
for k, (title, i) in enumerate(shown.items()):
    ax = figure.add_subplot(grid[0, k])
    band = np.exp(mean[i] - 1.96 * sd[i]), np.exp(mean[i] + 1.96 * sd[i])
    ax.semilogy(days, 100 * np.exp(readings[i]), ".", color="0.6", ms=3, label="readings, unseen")
    ax.fill_between(days, *(100 * b for b in band), alpha=0.3, lw=0, label="their 95 % band")
    ax.plot(days, 100 * np.exp(truth[i]), "k--", lw=1.5, label="simulator")
    ax.plot(days, 100 * np.exp(mean[i]), color="tab:blue", lw=1.5, label="emulator")
    setting = LOW + (HIGH - LOW) * held_out[i]
    ax.set_title(
        f"{title}: {100 * by_setting[i]:.0f} %\n"
        "R {:.1f}, infectious {:.0f} days, immune {:.0f} days".format(*setting)
    )
    ax.set(xlabel="day", xlim=(0, DAYS), ylim=(0.05, 60))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
figure.axes[0].set_ylabel("infectious")
figure.axes[0].legend(frameon=False, loc="lower right")

ax = figure.add_subplot(grid[1, 0])
guesses = {name: guess for name, (guess, _) in predictions.items()} | {"nearest run": nearest}
for (name, guess), colour in zip(guesses.items(), ("tab:blue", "tab:orange", "0.5"), strict=True):
    error = np.sqrt(np.mean((guess - truth) ** 2, axis=0))
    ax.plot(days, 100 * error, color=colour, lw=1.2, label=name)
ax.set(title="Error by time, 40 held-out settings", xlabel="day", xlim=(0, DAYS), ylim=(0, 60))
ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
ax.legend(frameon=False, loc="upper left")

ax = figure.add_subplot(grid[1, 1])
levels = np.linspace(0.02, 0.98, 49)
for (name, (guess, deviation)), colour in zip(
    predictions.items(), ("tab:blue", "tab:orange"), strict=True
):
    z = np.abs(readings - guess) / deviation
    inside = [np.mean(z < norm.ppf(0.5 + level / 2)) for level in levels]
    ax.plot(levels, inside, color=colour, lw=1.8, label=name)
ax.plot([0, 1], [0, 1], "k:", lw=1, label="if right")
ax.set(title="Calibration of the bands", xlabel="level of the band", ylabel="readings inside")
ax.legend(frameon=False, loc="upper left")

ax = figure.add_subplot(grid[1, 2])
last = DENSE_SIZES[-1]
further = np.array([n for n in SIZES if n >= last])
further = np.append(last, further)
cubic = dense[last][0] * (further / last) ** 3
ax.loglog(
    sorted(gradient), [gradient[n][0] for n in sorted(gradient)], "o-", c="tab:blue", label="kronax"
)
ax.loglog(DENSE_SIZES, [t for t, _ in dense.values()], "v-", color="0.2", label="dense")
ax.loglog(further, cubic, ":", color="0.2", label="dense, on with the cube")
ax.set(title="A log density with its gradient", ylabel="s", ylim=(1e-4, 1e6))
ax.set_xlabel(f"readings in each of the {len(design)} runs")
ax.set_xticks(SIZES, SIZES)
ax.xaxis.minorticks_off()
ax.grid(alpha=0.3)
ax.legend(frameon=False, loc="upper left")

rmse, _, coverage = scores(mean, sd)
figure.suptitle(
    f"{len(held_out)} epidemics that were never run, from {len(design)} that were: error "
    f"{100 * rmse:.0f} %; {100 * coverage:.0f} % of their readings lie in the 95 % band",
    fontsize=13,
)
figure.savefig("emulator.png", dpi=110)
