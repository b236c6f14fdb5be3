# %% [markdown]
# # Poisson counts on a grid with a whitened latent field
#
# A survey counts birds in 24 plots along a shore in each of 36 weeks: 864 counts, a third of them
# zero. The rate is the exponential of a smooth field over place and week. It is latent: no closed
# form integrates it out, and NUTS samples its values together with the parameters. `gp.latent`
# draws the field whitened, so that the sampler sees a geometry that hardly depends on the
# lengthscales. The last six weeks are held out and forecast.
#
# Needs `pip install kronax matplotlib`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS, Predictive

import kronax as kx

jax.config.update("jax_enable_x64", True)
numpyro.set_host_device_count(2)  # one chain per core

# %% [markdown]
# ## The data
# Simulated, so that the truth is known: a front that moves along the shore and a resident flock. It
# is no draw from the model below.

# %%
shore, week = np.arange(24.0), np.arange(36.0)  # plots of one kilometre; weeks
front = np.exp(-0.5 * ((shore[:, None] - 3 - 0.5 * week) / 3.0) ** 2)
flock = np.exp(-0.5 * ((shore[:, None] - 18) / 2.0) ** 2) * (1 + np.cos(2 * np.pi * week / 26))
rate = 0.3 + 5.0 * front + 2.0 * flock
counts = np.random.default_rng(0).poisson(rate)
seen, later = slice(0, 30), slice(30, 36)
print(f"{counts.size} counts, {np.mean(counts == 0):.0%} of them zero, at most {counts.max()}")

# %% [markdown]
# ## The model
# `kx.sample_parameters` puts priors on the parameters by path, `gp.latent` is the field.
# Lengthscales are in kilometres and weeks.

# %%
start = kx.GridGP(
    kernels={"shore": 1.0 * kx.Matern52(4.0), "week": kx.Matern52(6.0)},
    axes={"shore": shore, "week": week[seen]},
    noise=1.0,  # of Gaussian data; a Poisson likelihood does not use it
    mean=0.0,
)
priors = {
    "kernels[0].lengthscale": dist.LogNormal(np.log(4.0), 0.5),
    "kernels[1].lengthscale": dist.LogNormal(np.log(6.0), 0.5),
    "variance": dist.LogNormal(0.0, 1.0),
    "mean.value": dist.Normal(0.0, 2.0),
}


def model(y=None):
    gp = kx.sample_parameters("gp", start, priors)
    f = gp.latent("f")
    numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(2), obs=y)


# %% [markdown]
# ## Sampling
# Two chains, one per core.

# %%
mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=300, num_chains=2, progress_bar=False)
mcmc.run(jax.random.key(0), counts[:, seen], extra_fields=("num_steps", "diverging"))
draws = mcmc.get_samples(group_by_chain=True)
checked = summary({k: v for k, v in draws.items() if k != "f_white"})
r_hat = max(float(np.max(s["r_hat"])) for s in checked.values())
effective = min(float(np.min(s["n_eff"])) for s in checked.values())
steps = float(np.mean(mcmc.get_extra_fields()["num_steps"]))
diverged = int(np.sum(mcmc.get_extra_fields()["diverging"]))
print(f"largest r-hat {r_hat:.3f}, fewest effective samples {effective:.0f}")
print(f"{steps:.0f} leapfrog steps a draw, {diverged} divergences\n")
for path in priors:
    values = np.asarray(draws[f"gp.{path}"])
    print(f"{path:24} {values.mean():6.2f} ± {values.std():.2f}")

# %% [markdown]
# ## The forecast
# `gp.latent_condition(f)` is the process given a draw of the field: it is drawn further, jointly
# over the new weeks, and then counts are drawn from it.


# %%
def forecast():
    gp = kx.sample_parameters("gp", start, priors)
    f = gp.latent("f")
    ahead = gp.latent_condition(f).sample(numpyro.prng_key(), {"week": week[later]})
    numpyro.deterministic("rate", jnp.exp(ahead))
    numpyro.sample("y_new", dist.Poisson(jnp.exp(ahead)).to_event(2))


new = Predictive(forecast, mcmc.get_samples())(jax.random.key(1))
predicted = np.asarray(new["y_new"])
low, high = np.quantile(predicted, [0.025, 0.975], axis=0)
truth = counts[:, later]
inside = np.mean((truth >= low) & (truth <= high))
# Counts are whole numbers: the shortest interval that holds 95 % of the draws holds more of them.
expected = np.mean((predicted >= low) & (predicted <= high))


def log_score(rates):
    """Mean log probability of the held-out counts under a mixture of Poisson rates."""
    each = np.asarray(dist.Poisson(jnp.asarray(rates)).log_prob(truth))
    return np.mean(np.logaddexp.reduce(each, axis=0) - np.log(len(each)))


plain = counts[:, seen][:, -6:].mean(axis=1, keepdims=True) + 1 / 6
scores = log_score(np.asarray(new["rate"])), log_score(np.broadcast_to(plain, (1, 24, 6)))
print(f"\nheld-out weeks: {inside:.0%} of the counts lie in their 95 % interval, which the model")
print(f"expects of {expected:.0%}, as counts are whole numbers")
print(f"mean log probability {scores[0]:.2f} (mean of the last six weeks: {scores[1]:.2f})")

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left"})
fields = np.concatenate([np.asarray(mcmc.get_samples()["f"]), np.log(new["rate"])], axis=2)
spread = fields.std(axis=0)
top = float(rate.max())
panels = {
    "Counts": (counts, {"cmap": "viridis", "vmin": 0, "vmax": top}, "birds"),
    "True rate": (rate, {"cmap": "viridis", "vmin": 0, "vmax": top}, "birds"),
    "Posterior mean of the rate": (
        np.exp(fields).mean(axis=0),
        {"cmap": "viridis", "vmin": 0, "vmax": top},
        "birds",
    ),
    "Standard deviation of the log rate": (spread, {"cmap": "magma", "vmin": 0}, ""),
}
figure, axs = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained", sharex=True, sharey=True)
for ax, (title, (values, colours, unit)) in zip(axs.flat, panels.items(), strict=True):
    figure.colorbar(ax.pcolormesh(week, shore, values, **colours), ax=ax, label=unit)
    ax.axvline(29.5, color="white", lw=2)
    ax.set(title=title)
for ax in axs[1]:
    ax.set_xlabel("week (held out beyond the line)")
for ax in axs[:, 0]:
    ax.set_ylabel("place along the shore (km)")
figure.suptitle(
    f"720 counts and their field: r-hat ≤ {r_hat:.2f}, {steps:.0f} leapfrog steps a draw\n"
    f"144 held out: {inside:.0%} in their 95 % interval, expected {expected:.0%}",
    fontsize=13,
)
figure.savefig("poisson.png", dpi=100)
