# %% [markdown]
# # Many devices: where the numbers are, and what is sent
#
# One line shares the data out over devices; everything after it is written as for one. Eight
# virtual devices of one processor are enough to see it work, to count what is sent, and to read
# off what each device would have to hold for grids that are far larger. They are not enough to be
# faster: eight devices on two cores are two cores.
#
# Needs `pip install kronax matplotlib`. The line that makes the devices must come before anything
# touches one; on a machine with real ones leave it out.

# %%
import re
from math import prod

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kronax as kx

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
print(len(jax.devices()), "devices:", jax.devices()[0], "to", jax.devices()[-1])

# %% [markdown]
# ## Share out
# A field on 64 times × 24 latitudes × 30 longitudes, simulated. A mesh names the devices; the data
# go onto it by their first axis. Every device then holds eight times, whole maps of them.

# %%
axes = {
    "time": np.linspace(0, 10, 64),
    "latitude": np.linspace(0, 4, 24),
    "longitude": np.linspace(0, 5, 30),
}
kernels = {"time": kx.Matern32(2.0), "latitude": kx.Matern52(1.0), "longitude": kx.Matern52(1.0)}
gp = kx.GridGP(kernels, axes, noise=0.1)
whole = gp.sample(jax.random.key(0), include_noise=True)

mesh = Mesh(np.array(jax.devices()), ("devices",))
by_time = NamedSharding(mesh, PartitionSpec("devices"))
y = jax.device_put(whole, by_time)  # the one line
for shard in y.addressable_shards[:2]:
    rows = shard.index[0]
    print(f"{shard.device}: times {rows.start} to {rows.stop - 1}, {shard.data.shape}")

# %% [markdown]
# ## The same program
# Value, gradient, posterior and draws are asked for as ever. Their numbers are those of one device,
# and what is as large as the grid lies where the data lie; so do variances and leave-one-out.

# %%
evaluate = jax.jit(jax.value_and_grad(lambda gp, y: gp.log_marginal_likelihood(y)))
value, slope = evaluate(gp, y)
alone, slope_alone = evaluate(gp, jax.device_put(whole, jax.devices()[0]))
apart = max(
    float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(slope_alone), strict=True)
)
print(f"log marginal likelihood on eight devices {value:.6f}, on one {alone:.6f}")
print(f"gradients differ by {apart:.1e}\n")

post = gp.condition(y)
results = {
    "mean": post.mean(),
    "draw": post.sample(jax.random.key(1)),
    "value": value,
}
for name, array in results.items():
    print(f"{name:14} {array.shape!s:14} {array.sharding.shard_shape(array.shape)} on each device")

# %% [markdown]
# ## Fit
# `kx.fit` is no exception. Many small data sets are the other case: a leading axis counts them, and
# with `independent=True` every device fits its own, each to its own end.

# %%
result = kx.fit(gp, y, num_steps=15, progress=False)
print(result, "\n")

small = kx.GridGP(
    {"x": kx.RBF(0.3), "t": kx.Matern32(0.5)},
    {"x": np.linspace(0, 1, 8), "t": np.linspace(0, 1, 10)},
    noise=0.1,
)
sets = small.sample(jax.random.key(2), (16,), include_noise=True)
fits = kx.fit(small, jax.device_put(sets, by_time), independent=True, num_steps=30, progress=False)
print("16 lengthscales:", np.round(np.asarray(fits.model.kernels["x"].lengthscale), 2))

# %% [markdown]
# ## What is sent
# The compiled program says so itself. Products along latitude and longitude need nothing from
# other devices. Along time each device takes some of the fibres, whole, and gives them back: two
# all-to-alls of what it holds, and five with the gradient. No device is ever sent the whole grid.

# %%
BYTES = {"f64": 8, "f32": 4, "u32": 4, "s32": 4, "pred": 1}
COLLECTIVE = r"= (.+?) (all-to-all|all-reduce|all-gather|collective-permute|reduce-scatter)\("


def sent(compiled):
    """Bytes that a device receives, by kind of collective."""
    total = {}
    for shapes, kind in re.findall(COLLECTIVE, compiled.as_text()):
        sizes = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        count = sum(BYTES[k] * prod(int(n) for n in s.split(",") if n) for k, s in sizes)
        total[kind] = total.get(kind, 0) + count
    return total


def planned(function, y):
    """MiB that a device holds at once, and what it is sent, by XLA's own plan."""
    compiled = function.lower(gp, y).compile()
    plan = compiled.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return held / 2**20, {kind: count / 2**20 for kind, count in sent(compiled).items()}


programs = {
    "value": jax.jit(lambda gp, y: gp.log_marginal_likelihood(y)),
    "value and gradient": evaluate,
}
mine = y.nbytes / 2**20 / mesh.size
print(f"of the data {mine:.3f} MiB on each of {mesh.size} devices")
for name, program in programs.items():
    held, moved = planned(program, y)
    print(f"{name:19} holds {held:.2f} MiB; receives", {k: round(v, 3) for k, v in moved.items()})

# %% [markdown]
# ## Larger grids
# Nothing has to be run for such a plan, nor be there: compile for arrays that have only a shape. A
# hundred million cells on one, two, four and eight devices. What does not shrink are the matrices
# of the axes, which every device has to itself.

# %%
large = {"time": 1024, "latitude": 320, "longitude": 320}
gp = kx.GridGP(kernels, {name: np.linspace(0, 9, n) ** 1.1 for name, n in large.items()}, noise=0.1)
shape, numbers = tuple(large.values()), (1, 2, 4, 8)
plans = []
for number in numbers:
    some = Mesh(np.array(jax.devices()[:number]), ("devices",))
    shared = NamedSharding(some, PartitionSpec("devices"))
    data = jax.ShapeDtypeStruct(shape, jnp.float64, sharding=shared)
    plans.append(planned(programs["value and gradient"], data))
print(f"{prod(shape):,} cells, {8 * prod(shape) / 2**20:,.0f} MiB; value and gradient")
for number, (held, moved) in zip(numbers, plans, strict=True):
    received = sum(moved.values())
    print(f"on {number}: each holds {held:7,.0f} MiB and receives {received:7,.0f} MiB")

# %% [markdown]
# ## The picture
# Who holds what, and what a device has to hold and is sent.

# %%
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
figure, panels = plt.subplots(1, 4, figsize=(14.5, 3.9), layout="constrained")
owner = np.empty(y.shape[:2])
for k, shard in enumerate(y.addressable_shards):
    owner[shard.index[0]] = k
colours = plt.get_cmap("tab10", 8)
longitude = 12
for ax, (title, values) in zip(
    panels, {"The data": whole, "Posterior mean": results["mean"]}.items(), strict=False
):
    field = np.asarray(values)[:, :, longitude]
    limit = np.abs(np.asarray(whole)[:, :, longitude]).max()
    ax.pcolormesh(axes["latitude"], axes["time"], field, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for k in range(8):
        low, high = axes["time"][8 * k], axes["time"][8 * k + 7]
        ax.axhspan(low, high, xmin=0, xmax=0.05, color=colours(k))
        ax.axhline(low, color="k", lw=0.5)
        ax.annotate(
            f" {k}", (0.05, (low + high) / 2), xycoords=("axes fraction", "data"), va="center"
        )
    ax.set(title=f"{title}, by device", xlabel="latitude", ylabel="time")

ax = panels[2]
held = np.array([held for held, _ in plans]) / 1024
ax.loglog(numbers, held, "o-", label="XLA's plan")
ax.loglog(numbers, held[0] / np.array(numbers), "k:", label="in proportion")
ax.set(title=f"Held by each: {prod(shape) / 1e6:.0f} million cells", ylabel="GiB")
ax.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
ax.legend(frameon=False)

ax = panels[3]
bottom = np.zeros(len(numbers))
for kind, colour in (("all-to-all", "tab:blue"), ("others", "tab:orange")):
    part = np.array([moved.get("all-to-all", 0) for _, moved in plans]) / 1024
    if kind == "others":
        part = np.array([sum(moved.values()) for _, moved in plans]) / 1024 - part
    ax.bar(range(len(numbers)), part, bottom=bottom, color=colour, label=kind)
    bottom += part
ax.set(title="Received by each: value and gradient", ylabel="GiB")
ax.set_xticks(range(len(numbers)), numbers)
ax.legend(frameon=False)
panels[2].set_xticks(numbers, numbers)
panels[2].minorticks_off()
for ax in panels[2:]:
    ax.set_xlabel("devices")
figure.savefig("eight_devices.png", dpi=100)
