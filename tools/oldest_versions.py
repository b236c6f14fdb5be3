"""Install the oldest versions that pyproject.toml admits in a fresh environment, and try kronax.

Run from the repository root: `python tools/oldest_versions.py`. It needs a package index and takes
some minutes; it is for once a week, and for whoever changes a lower bound.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOKE = """
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
import kronax as kx

x = np.linspace(0, 1, 8)
gp = kx.GridGP({"a": kx.RBF(0.3), "b": kx.Matern32(0.4)}, {"a": x, "b": x}, noise=0.1)
y = np.array(gp.sample(jax.random.key(0), include_noise=True))
post = kx.fit(gp, y, num_steps=5, progress=False).model.condition(y)
assert np.isfinite(post.mean({"a": x + 0.01})).all() and (post.variance() > 0).all()
kx.save("post.kx", post)
assert (kx.load("post.kx").mean() == post.mean()).all()
y[0, 0] = np.nan
assert np.isfinite(gp.log_marginal_likelihood(y))
counts = kx.GridGP((kx.RBF(0.3),), (x,), likelihood=kx.Poisson())
assert np.isfinite(counts.condition(np.arange(8)).response().mean).all()


def model():
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    factors = kx.RBF(scale)(x, x), kx.RBF(0.3)(x, x)
    numpyro.sample("y", kx.KroneckerNormal(0.0, factors, 0.1), obs=jnp.nan_to_num(y))


chains = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
chains.run(jax.random.key(1))
assert chains.get_samples()["scale"].shape == (5,)
print("kronax works on", jax.__version__, numpyro.__version__)
"""


def oldest() -> list[str]:
    """The dependencies, each at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", entry) for entry in project["dependencies"]]
    assert all(found), "every dependency has one lower bound and nothing else"
    return [f"{entry[1]}=={entry[2]}" for entry in found if entry]


def main() -> None:
    """Install, import, and run what a first user runs."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", *oldest()], check=True)
        command = [python, "-m", "pip", "install", "-q", "--no-deps", str(ROOT)]
        subprocess.run(command, check=True)
        subprocess.run([python, "-c", SMOKE], check=True, cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
