# %% [markdown]
# # Your own training loop: a neural mean in a Gaussian process
#
# A front crosses a line of sensors, over smooth background variations and noise. A Kronecker
# covariance knows how things vary in time and how they vary in space, but not that the front moves:
# where half an hour of all sensors is missing, a Gaussian process fades from the picture before to
# the picture after. A small neural network as its mean function can learn the front, while the
# process takes care of the rest. Both train together, by any optax optimiser, each with a learning
# rate of its own; five starts of the network run side by side under `vmap`.
#
# The data are simulated, so that the truth behind the held-out times is known. Needs
# `pip install kronax matplotlib`.

# %%
from time import perf_counter

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
# Six hours, every three minutes, on 48 sensors. Every second half hour is held out, the last of
# them at the end.

# %%
minutes, km = np.arange(0.0, 360.0, 3.0), np.linspace(0.0, 100.0, 48)
position = 20 + 60 * minutes / 360 + 8 * np.sin(minutes / 60)
background = kx.GridGP(
    kernels={"minute": 0.25 * kx.Matern52(60.0), "km": kx.Matern52(25.0)},
    axes={"minute": minutes, "km": km},
    noise=0.04,
)
front = 3 * np.tanh((position[:, None] - km) / 2.5)
truth = front + np.asarray(background.sample(jax.random.key(1)))
y = truth + 0.2 * np.random.default_rng(0).normal(size=truth.shape)
held_out = (minutes // 30) % 2 == 1
times, data = minutes[~held_out], y[~held_out]

# %% [markdown]
# ## The models
# A mean function is any Equinox module that maps the axes to the grid, so a network is one.


# %%
class NeuralMean(kx.Mean):
    net: eqx.nn.MLP

    def __call__(self, minute, km):
        def at(t, x):
            return 2 * self.net(jnp.stack([t / 180 - 1, x / 50 - 1]))[0]

        return jax.vmap(lambda t: jax.vmap(lambda x: at(t, x))(km))(minute)


def process(mean):
    return kx.GridGP(
        kernels={"minute": 1.0 * kx.Matern52(30.0), "km": kx.Matern52(10.0)},
        axes={"minute": times, "km": km},
        noise=0.1,
        mean=mean,
    )


def neural(key):
    net = eqx.nn.MLP(2, 1, 16, 2, activation=jnp.tanh, dtype=jnp.float64, key=key)
    return process(NeuralMean(net))


# %% [markdown]
# ## The loop
# `kx.unconstrain` gives a dictionary of arrays that an optimiser may move anywhere, and the way
# back to the model. The paths tell the network from the process: weight decay is for the network.
# (Coordinates are no parameters: nothing can move them.)

# %%
num_steps = 1000
keys = jax.random.split(jax.random.key(0), 5)
_, build = kx.unconstrain(neural(keys[0]))
starts = jax.vmap(lambda key: kx.unconstrain(neural(key))[0])(keys)

groups = {path: "network" if path.startswith("mean.net") else "process" for path in starts}
optimizer = optax.multi_transform(
    {
        "network": optax.adamw(optax.cosine_decay_schedule(1e-2, num_steps), weight_decay=1e-3),
        "process": optax.adam(optax.cosine_decay_schedule(3e-2, num_steps)),
    },
    groups,
)


def loss(raw):
    return -build(raw).log_marginal_likelihood(data)


@jax.jit
@jax.vmap
def train(raw):
    def step(carry, _):
        raw, state = carry
        value, slope = jax.value_and_grad(loss)(raw)
        updates, state = optimizer.update(slope, state, raw)
        return (optax.apply_updates(raw, updates), state), value

    (raw, _), losses = jax.lax.scan(step, (raw, optimizer.init(raw)), length=num_steps)
    return raw, losses


began = perf_counter()
ends, losses = jax.block_until_ready(train(starts))
seconds = perf_counter() - began
models = eqx.filter_vmap(build)(ends)  # five models in one: a leading axis on every parameter
print(f"{len(keys)} networks, {num_steps} steps each, in {seconds:.1f} s")

began = perf_counter()
plain = kx.fit(process(0.0), data, restarts=2, progress=False)
print(f"plain process, {len(plain.restarts)} fits in {perf_counter() - began:.1f} s\n")
print(plain.summary(), "\n")

# %% [markdown]
# ## Is it any good?
# The held-out half hours. The five networks are one prediction too: the mixture of all. Its
# variance has the networks' disagreement in it, which each of them alone does not know of. (It
# still is a little too sure: the weights of each network are one estimate, with no uncertainty.)

# %%
new = {"minute": minutes[held_out]}


def predict(gp):
    post = gp.condition(data)
    return post.mean(axes=new), post.variance(axes=new, include_noise=True)


def scores(mean, variance):
    """Error of the truth, mean negative log density and coverage of the noisy held-out cells."""
    z = (y[held_out] - mean) / np.sqrt(variance)
    nlpd = np.mean(z**2 + np.log(2 * np.pi * variance)) / 2
    return np.sqrt(np.mean((truth[held_out] - mean) ** 2)), nlpd, np.mean(np.abs(z) < 1.96)


means, variances = map(np.asarray, eqx.filter_vmap(predict)(models))
together = means.mean(0), (variances + means**2).mean(0) - means.mean(0) ** 2
table = {"plain process": tuple(map(np.asarray, predict(plain.model)))}
table |= {f"network {k + 1}": pair for k, pair in enumerate(zip(means, variances, strict=True))}
table["five networks"] = together

print("                RMSE   −log density   in 95 % band")
for name, (mean, variance) in table.items():
    rmse, nlpd, coverage = scores(mean, variance)
    print(f"{name:14}  {rmse:.3f}   {nlpd:12.3f}   {coverage:12.1%}")

# %% [markdown]
# ## What the training data alone would have said
# BIC counts the weights of the network one by one and takes the plain process; the marginal
# likelihood and leave-one-out take the network. Leave-one-out still understates it: the neighbours
# in time of a cell are there when it is left out, which is easier than half an hour without data.

# %%
best = int(np.argmin(losses[:, -1]))
chosen = jax.tree.map(lambda leaf: leaf[best] if eqx.is_array(leaf) else leaf, models)
print("\n", kx.compare({"plain": plain, f"network {best + 1}": chosen}, data), sep="")

# %% [markdown]
# ## The picture

# %%
plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left"})
seen = np.where(held_out[:, None], np.nan, y)
pictures = {"What was seen": seen, "The truth": truth}
for name, title in {"plain process": "Plain process", "five networks": "Neural mean"}.items():
    filled = np.empty_like(truth)
    filled[held_out] = table[name][0]
    filled[~held_out] = np.asarray(
        plain.model.condition(data).mean()
        if name == "plain process"
        else eqx.filter_vmap(lambda gp: gp.condition(data).mean())(models).mean(0)
    )
    pictures[f"{title}: held-out error {scores(*table[name])[0]:.2f}"] = filled

figure = plt.figure(figsize=(12, 8.5), layout="constrained")
grid = figure.add_gridspec(2, 12)
places = [grid[0, 3 * k : 3 * k + 3] for k in range(4)]
for k, (place, (title, values)) in enumerate(zip(places, pictures.items(), strict=True)):
    ax = figure.add_subplot(place)
    image = ax.pcolormesh(km, minutes / 60, values, cmap="RdBu_r", vmin=-4.5, vmax=4.5)
    ax.set(xlabel="km", ylabel="hour" if k == 0 else "")
    ax.set_title(title, fontsize=10)
figure.colorbar(image, ax=figure.axes, location="right", shrink=0.9, label="y")

ax = figure.add_subplot(grid[1, :7])
k = int(np.argmin(np.abs(minutes[held_out] - 45)))
for name, colour in (("plain process", "tab:orange"), ("five networks", "tab:blue")):
    mean, half = table[name][0][k], 1.96 * np.sqrt(table[name][1][k])
    ax.fill_between(km, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
    ax.plot(km, mean, color=colour, lw=2, label=f"{name}, 95 % band")
ax.plot(km, truth[held_out][k], "k--", lw=1.5, label="truth")
ax.plot(km, y[held_out][k], "o", color="0.4", ms=4, label="held-out measurements")
ax.set(title=f"Minute {minutes[held_out][k]:.0f}, in the middle of a gap", xlabel="km", ylabel="y")
ax.legend(frameon=False)

ax = figure.add_subplot(grid[1, 7:])
ax.plot(losses.T, color="tab:blue", alpha=0.6, lw=1)
ax.axhline(plain.loss, color="tab:orange", label="plain process")
ax.plot([], color="tab:blue", label="five networks")
ax.set(title="Negative log marginal likelihood", xlabel="step", ylabel="nats", ylim=(-550, 900))
ax.legend(frameon=False)
figure.savefig("neural_mean.png", dpi=110)
