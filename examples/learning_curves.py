# %% [markdown]
# # Learning curves cut short
#
# A sweep over the settings of a network, seen while it runs: 40 jobs were started one after the
# other, and each has got somewhere between epoch 3 and the last, 30. Which will be the best? Curves
# are rows of a grid of settings × epochs, and what has not happened yet is missing.
#
# The curves are simulated, and not from the model: an error falls as a power of the epoch and as an
# exponential, with shares of its own, to a floor. Floor and speed depend on the settings, and on
# luck. Every reading has the noise of a validation set of some 3 000 examples.
#
# Needs `pip install kronax scipy matplotlib`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from numpyro.distributions import constraints
from scipy.optimize import curve_fit
from scipy.stats import norm

import kronax as kx

jax.config.update("jax_enable_x64", True)
num_settings, num_epochs = 40, 30
epochs = np.arange(1.0, num_epochs + 1)
noise = 0.006

# %% [markdown]
# ## The sweep
# Settings are log learning rate and log width, both scaled to −1 … 1.


# %%
def sweep(seed):
    """Settings, validation errors of whole curves, and the same with NaN for what lies ahead."""
    rng = np.random.default_rng(seed)
    settings = rng.uniform(-1, 1, (num_settings, 2))
    rate, width = settings.T
    luck = rng.normal(size=(3, num_settings))
    floor = (0.05 + 0.12 * (rate - 0.2) ** 2 + 0.05 * (width - 0.5) ** 2) * np.exp(0.15 * luck[0])
    scale = np.exp(0.8 - rate + 0.3 * luck[1])[:, None]
    power = (0.8 + 0.3 * width + 0.1 * luck[2])[:, None]
    share = rng.uniform(0.3, 0.9, (num_settings, 1))
    fall = share * (1 + epochs / scale) ** -power + (1 - share) * np.exp(-epochs / (4 * scale))
    error = floor[:, None] + (0.9 - floor[:, None]) * fall
    error += noise * rng.standard_normal(error.shape)
    ends = rng.permutation(np.linspace(3, num_epochs + 8, num_settings).round())
    return settings, error, np.where(epochs > ends[:, None], np.nan, error)


settings, error, seen = sweep(0)
ends = np.isfinite(seen).sum(axis=1)
is_cut = ends < num_epochs
print(
    f"{is_cut.sum()} of {num_settings} curves are cut short, {np.isnan(seen).mean():.0%} missing\n"
)

# %% [markdown]
# ## The model
# The mean falls as a power of the epoch. Around it, a curve is like those of similar settings, and
# partly like no other (`kx.White` on the axis of settings). Curves change ever more slowly, hence
# the axis is the logarithm of the epoch.


# %%
class Fall(kx.Mean):
    drop: kx.ParameterArray = kx.parameter(constraints.positive)
    rate: kx.ParameterArray = kx.parameter(constraints.positive)

    def __call__(self, setting, epoch):
        return self.drop * jnp.exp(-self.rate * epoch)  # of the logarithm


def fit(settings, seen):
    gp = kx.GridGP(
        kernels={
            "setting": 0.02 * (kx.RBF(jnp.ones(2)) + 0.3 * kx.White()),
            "epoch": kx.Matern52(2.0),
        },
        axes={"setting": settings, "epoch": np.log(epochs)},
        noise=noise**2,
        mean=Fall(jnp.array(0.7), jnp.array(0.3)),
    )
    return kx.fit(gp, seen, progress=False)


result = fit(settings, seen)
print(result, "\n")

# %% [markdown]
# ## The last epoch
# Beside the last reading, and beside a power law with a floor fitted to each curve by itself. Bands
# are for readings, with their noise.


# %%
def predict(result, seen):
    """Mean and standard deviation of readings on the whole grid."""
    post = result.model.condition(seen)
    return np.asarray(post.mean()), np.sqrt(np.asarray(post.variance(include_noise=True)))


def power_law(epoch, floor, drop, power):
    return floor + drop * epoch**-power


def own_power_law(curve):
    """Extrapolated from one curve, or its last reading where it is too short for that."""
    known = np.isfinite(curve)
    if known.sum() < 4:
        return curve[known][-1]
    box = ([0, 0, 0.05], [1, 2, 5])
    found, _ = curve_fit(power_law, epochs[known], curve[known], (0.1, 0.7, 0.8), bounds=box)
    return power_law(epochs[-1], *found)


def last_reading(curve):
    return curve[np.isfinite(curve)][-1]


mean, sd = predict(result, seen)
truth = error[is_cut, -1]
guesses = {
    "kronax": mean[is_cut, -1],
    "a power law for each": np.array([own_power_law(c) for c in seen[is_cut]]),
    "last reading": np.array([last_reading(c) for c in seen[is_cut]]),
}
rmse = {name: np.sqrt(np.mean((guess - truth) ** 2)) for name, guess in guesses.items()}
print("error of the last epoch's validation error, RMSE")
for name, value in rmse.items():
    print(f"  {name:22} {value:.3f}")
best = np.where(is_cut, mean[:, -1], error[:, -1]).argsort()[:5]
ranks = error[:, -1].argsort().argsort()[best] + 1
print(f"the five that look best have the ranks {', '.join(map(str, sorted(ranks)))}\n")

# %% [markdown]
# ## Are the bands right?
# Four sweeps, each with a fit of its own: the share of the cut curves' last readings, and of all
# missing readings, in central bands of several levels.

# %%
levels = np.array([0.5, 0.8, 0.9, 0.95])
z = {"last epochs": [], "all missing": []}
for seed in range(4):
    again = sweep(seed)
    m, s = (mean, sd) if seed == 0 else predict(fit(again[0], again[2]), again[2])
    away, missing = np.abs(again[1] - m) / s, np.isnan(again[2])
    z["last epochs"].append(away[missing[:, -1], -1])
    z["all missing"].append(away[missing])
inside = {
    name: [np.mean(np.concatenate(values) < norm.ppf((1 + level) / 2)) for level in levels]
    for name, values in z.items()
}
print(f"{'nominal':14}", *(f"{level:6.0%}" for level in levels))
for name, shares in inside.items():
    print(f"{name:14}", *(f"{share:6.0%}" for share in shares))

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, panels = plt.subplots(2, 4, figsize=(13, 6.6), layout="constrained")
chosen = np.flatnonzero(is_cut)[np.argsort(ends[is_cut])][[1, 5, 10, 15, 20, 25]]
for ax, k in zip(panels[:, :3].ravel(), chosen, strict=True):
    cut = ends[k]
    ahead = slice(cut - 1, None)
    low, high = mean[k] - 1.96 * sd[k], mean[k] + 1.96 * sd[k]
    ax.fill_between(epochs[ahead], low[ahead], high[ahead], alpha=0.25, lw=0, label="95 % band")
    ax.plot(epochs[ahead], mean[k, ahead], lw=2, label="mean")
    ax.plot(epochs[:cut], error[k, :cut], "o", ms=4, color="0.3", label="seen")
    ax.plot(epochs[cut:], error[k, cut:], "o", ms=4, mfc="w", color="tab:red", label="not yet seen")
    ax.axvline(cut + 0.5, color="k", ls=":", lw=1)
    ax.set(title=f"cut after epoch {cut}", xlim=(0, num_epochs + 1), ylim=(0, 0.8))
panels[0, 0].legend(frameon=False)
for ax in panels[1, :3]:
    ax.set_xlabel("epoch")
for ax in panels[:, 0]:
    ax.set_ylabel("validation error")

ax = panels[0, 3]
ax.errorbar(truth, mean[is_cut, -1], 1.96 * sd[is_cut, -1], fmt="o", ms=4, lw=1, label="kronax")
ax.plot(truth, guesses["last reading"], "x", ms=5, color="0.5", label="last reading")
ends_at = 1.05 * max(truth.max(), guesses["last reading"].max())
ax.plot([0, ends_at], [0, ends_at], "k--", lw=1)
ax.set(title="Last epoch of cut curves", xlabel="truth", ylabel="predicted")
ax.legend(frameon=False, loc="lower right")

ax = panels[1, 3]
ax.plot([0.4, 1], [0.4, 1], "k--", lw=1)
for (name, shares), mark in zip(inside.items(), "os", strict=True):
    ax.plot(levels, shares, f"{mark}-", label=name)
ax.set(title="Calibration over four sweeps", xlabel="nominal level", ylabel="share in the band")
ax.legend(frameon=False)
figure.suptitle(
    f"A sweep while it runs: error of the last epoch {rmse['kronax']:.3f} "
    f"(a power law for each curve: {rmse['a power law for each']:.3f}, "
    f"last reading: {rmse['last reading']:.3f})",
    fontsize=13,
)
figure.savefig("learning_curves.png", dpi=100)
