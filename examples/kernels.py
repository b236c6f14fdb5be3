# %% [markdown]
# # Kernels: what they look like
#
# For each kernel its covariance with one place, and three draws of the process that it makes.
#
# Needs `pip install kronax matplotlib`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %%
kernels = {
    "SquaredExponential(1)": kx.SquaredExponential(1.0),
    "Matern52(1)": kx.Matern52(1.0),
    "Matern32(1)": kx.Matern32(1.0),
    "Matern12(1)": kx.Matern12(1.0),
    "RationalQuadratic(1, α = 0.3)": kx.RationalQuadratic(1.0, 0.3),
    "Periodic(period=2, lengthscale=0.7)": kx.Periodic(period=2.0, lengthscale=0.7),
    "Cosine(2) * Matern32(5)": kx.Cosine(2.0) * kx.Matern32(5.0),
    "SpectralMixture, two peaks": kx.SpectralMixture([0.7, 0.3], [0.15, 1.2], [0.05, 0.1]),
    "Linear(0)": kx.Linear(0.0),
    "Constant(1)": kx.Constant(1.0),
    "White(1)": kx.White(1.0),
    "RBF(2) + 0.1 * Matern12(0.3)": kx.RBF(2.0) + 0.1 * kx.Matern12(0.3),
}

# %% [markdown]
# A process on one axis, without noise. The covariance with the place x' = 1: a stationary kernel
# has its maximum there, a line does not.

# %%
place = 1.0
x = np.linspace(-5, 5, 401)
plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left"})
figure = plt.figure(figsize=(12, 9.2), layout="constrained")
panels = figure.subfigures(3, 4)
for panel, (name, kernel) in zip(panels.flat, kernels.items(), strict=True):
    shape, draws = panel.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    gp = kx.GridGP((kernel,), (x,), noise=0.1)
    style = {"color": "tab:blue", "lw": 1.5}
    shape.plot(x, kernel(x, [place])[:, 0], **style)
    shape.axvline(place, color="0.7", lw=0.8, ls=":")
    shape.axhline(0, color="0.7", lw=0.8)
    shape.set(title=name, ylabel="k(x, 1)", ylim=(-5.5, 5.5) if "Linear" in name else (-1.1, 1.2))
    paths = gp.sample(jax.random.key(3), sample_shape=3)
    for path, colour in zip(paths, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        marks = {"ls": "none", "marker": ".", "ms": 1.5} if "White" in name else {"lw": 1.1}
        draws.plot(x, path, color=colour, **marks)
    draws.set(ylabel="draws", xlim=(-5, 5), ylim=(-3.4, 3.4))
    panel.align_ylabels()
figure.savefig("kernels.png", dpi=110)
