# %% [markdown]
# # Several outputs: what eleven firms have in common
#
# Grunfeld's panel: investment, market value and capital of eleven American firms, 1935 to 1954.
# Three variables × eleven firms × twenty years are a grid, and what two of its axes have instead of
# distances are correlations. `kx.Categorical` learns them: a covariance of low rank plus a
# diagonal, the intrinsic model of coregionalisation. Is it worth it? Four models say.
#
# Needs `pip install kronax statsmodels matplotlib`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from statsmodels.datasets import grunfeld

import kronax as kx

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Data
# Growth is relative, so logarithms; each series is brought to mean zero and variance one over its
# twenty years.

# %%
variables = ["invest", "value", "capital"]
table = grunfeld.load_pandas().data.set_index(["firm", "year"])
panel = table[variables].to_xarray().to_array("variable").sel(firm=table.index.levels[0])
firms, years = [str(firm) for firm in panel.firm.values], panel.year.values
logs = np.log(panel.values)
y = (logs - logs.mean(-1, keepdims=True)) / logs.std(-1, keepdims=True)
print(f"{' × '.join(map(str, y.shape))} cells: {', '.join(variables)}; {', '.join(firms)}")

# %% [markdown]
# ## Four models
# Series may be independent (`kx.White`: no category tells anything about another), covary between
# firms, between variables, or both. Both together are a product, so that what two firms share
# is the same in every variable.


# %%
def model(variable, firm):
    return kx.GridGP(
        kernels={"variable": variable, "firm": firm, "year": 1.0 * kx.Matern32(3.0)},
        axes={"variable": variables, "firm": firms, "year": years},
        noise=0.1,
    )


def shared(num_categories, rank):
    return kx.Categorical.with_rank(num_categories, rank)


candidates = {
    "independent": model(kx.White(1.0), kx.White(1.0)),
    "variables covary": model(shared(3, 1), kx.White(1.0)),
    "firms covary": model(kx.White(1.0), shared(11, 2)),
    "both": model(shared(3, 1), shared(11, 2)),
}
fits = {name: kx.fit(gp, y, restarts=2, progress=False) for name, gp in candidates.items()}
comparison = kx.compare(fits, y)
print(f"\n{comparison}\n")

# %% [markdown]
# Every observation is predicted from all the others. The more that series may share, the better:
# most is learnt from other firms in the same year, which is no surprise for years that hold a
# depression and a war.

# %%
best = fits["both"].model
firm_covariance = np.asarray(best.kernels[1].covariance)
spread = np.sqrt(np.diagonal(firm_covariance))
correlation = firm_covariance / np.outer(spread, spread)
order = np.argsort(np.linalg.eigh(correlation)[1][:, -2])  # alike beside alike
for name, fit in fits.items():
    mean, variance = fit.model.condition(y).leave_one_out()
    inside = np.abs(y - mean) < 1.96 * np.sqrt(variance)
    rmse, share = np.sqrt(np.mean(np.square(y - mean))), inside.mean()
    print(f"{name:17} left out: RMSE {rmse:.2f}, 95 % band {share:.1%}")

# %% [markdown]
# ## Picture

# %%
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13.5, 4.6), layout="constrained", width_ratios=(1.15, 0.85, 1.1)
)
image = left.imshow(correlation[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r")
left.set_xticks(range(11), [firms[k] for k in order], rotation=60, ha="right")
left.set_yticks(range(11), [firms[k] for k in order])
left.set_title("Correlation between firms")
figure.colorbar(image, ax=left, shrink=0.7, label="correlation")

names = list(fits)
middle.barh(names, [-comparison[name].loo / y.size for name in names], color="#4878a8")
middle.invert_yaxis()
middle.set_xlabel("nats per observation, left out (less is better)")
middle.set_title("Surprise")

firm = firms.index("Union Oil")
for name, colour in (("independent", "#999999"), ("both", "#c44e52")):
    mean, variance = fits[name].model.condition(y).leave_one_out()
    mean, sd = np.asarray(mean)[0, firm], np.sqrt(np.asarray(variance))[0, firm]
    right.fill_between(years, mean - 1.96 * sd, mean + 1.96 * sd, color=colour, alpha=0.2, lw=0)
    right.plot(years, mean, color=colour, label=name)
right.plot(years, y[0, firm], "k.", label="observed")
right.set_xticks([1935, 1940, 1945, 1950])
right.set_title(f"{firms[firm]}, each year left out in turn")
right.set(xlabel="year", ylabel="log investment, standardised")
right.legend(frameon=False)
figure.savefig("grunfeld.png", dpi=110)
