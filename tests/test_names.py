"""Which names completion lists, and what becomes of those that people try."""

import re
import types
from pathlib import Path

import numpy as np
import pytest

import kronax as kx
from kronax.paths import named, numbered

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gp():
    x = np.linspace(0, 1, 5)
    return kx.GridGP({"time": kx.RBF(0.3)}, {"time": x}, noise=0.1)


@pytest.fixture(scope="module")
def post(gp):
    return gp.condition(np.sin(np.arange(5.0)))


def test_all_is_what_the_package_imports():
    listed = {name for name in kx.__all__ if not name.startswith("_")}
    imported = {
        name
        for name, value in vars(kx).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert listed == imported
    assert kx.__all__ == list(dict.fromkeys(kx.__all__))


def test_no_public_name_is_that_of_a_module_too():
    modules = {path.stem for path in (ROOT / "kronax").iterdir()}
    assert not modules.intersection(kx.__all__)


def test_the_version_is_that_of_the_distribution():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"', text, re.MULTILINE)[1] == kx.__version__


def test_parameters_is_a_function_and_no_module():
    with pytest.raises(ModuleNotFoundError):
        __import__("kronax.parameters")
    assert kx.parameters(kx.RBF(0.5))[0].path == "lengthscale"


def test_completion_lists_what_is_for_users(gp, post):
    assert {n for n in dir(kx) if not n.startswith("__")} == {
        n for n in kx.__all__ if n != "__version__"
    }
    hidden = {"check_data", "design_on", "joined_structure", "noise_parameter", "measured"}
    assert not hidden & set(dir(gp))
    assert {"condition", "kernels", "log_marginal_likelihood", "initialise"} <= set(dir(gp))
    assert all(hasattr(gp, name) for name in hidden)
    assert not {"made_of", "template", "on_grid"} & set(dir(post))
    assert {"mean", "variance", "sample", "leave_one_out"} <= set(dir(post))
    assert "takes_labels" not in dir(kx.RBF(0.5))
    assert {"lengthscale", "evaluate"} <= set(dir(kx.RBF(0.5)))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("GP", "kx.GridGP"),
        ("GaussianProcess", "kx.GridGP"),
        ("Matern", "kx.Matern32"),
        ("rbf", r"Did you mean kx\.RBF\?"),
        ("gridgp", r"Did you mean kx\.GridGP\?"),
        ("matern32", r"Did you mean kx\.Matern32\?"),
        ("from_xarray", "kx.GridGP.from_xarray"),
    ],
)
def test_a_guessed_name_of_the_package_is_told(name, match):
    with pytest.raises(AttributeError, match=match):
        getattr(kx, name)


def test_an_odd_name_gets_no_hint():
    with pytest.raises(AttributeError, match=r"kronax has no 'qqq'\.$"):
        _ = kx.qqq
    assert not hasattr(kx, "__wrapped__")


@pytest.mark.parametrize(
    ("name", "match"),
    [("fit", r"kx\.fit\(gp, y\)"), ("predict", r"gp\.condition"), ("kernel", r"gp\.kernels")],
)
def test_a_guessed_name_of_a_process_is_told(gp, name, match):
    with pytest.raises(AttributeError, match=match):
        getattr(gp, name)


@pytest.mark.parametrize(
    ("name", "match"),
    [("predict", r"post\.mean"), ("samples", r"post\.sample"), ("sd", r"post\.std")],
)
def test_a_guessed_name_of_a_posterior_is_told(post, name, match):
    with pytest.raises(AttributeError, match=match):
        getattr(post, name)


def test_hints_say_names_that_exist(gp, post):
    said = set()
    for kind in (type(gp), type(post), kx.FitResult):
        for base in kind.__mro__:
            said |= set(vars(base).get("_guesses", {}).values())
    from kronax.names import ELSEWHERE

    said |= set(ELSEWHERE.values())
    words = " ".join(said)
    owners = {"kx": kx, "gp": type(gp), "post": type(post), "result": kx.FitResult}
    for owner, name in re.findall(r"\b(kx|gp|post|result)\.(\w+)", words):
        known = hasattr(owners[owner], name) or name in owners[owner].__dict__.get(
            "__dataclass_fields__", {}
        )
        assert known, f"{owner}.{name}"


def test_a_categorical_kernel_by_its_rank():
    kernel = kx.Categorical(3, rank=2)
    assert kernel == kx.Categorical.with_rank(3, 2)
    with pytest.raises(TypeError, match="shares of its own"):
        kx.Categorical(3, [0.2, 0.3, 0.5], rank=1)


def test_kernels_of_a_process_go_to_other_axes_by_name():
    axes = {"time": np.arange(3.0), "place": np.arange(4.0)}
    gp = kx.GridGP({"time": kx.RBF(0.5), "place": kx.RBF(0.7)}, axes, noise=0.1)
    other = kx.GridGP(gp.kernels, {"place": np.arange(2.0), "time": np.arange(5.0)}, noise=0.1)
    assert (other.kernels["time"].lengthscale, other.grid_shape) == (0.5, (2, 5))


def test_sentences_name_a_kernel_by_its_axis(gp):
    assert named(gp, "kernels[0].lengthscale") == "kernels['time'].lengthscale"
    assert numbered(gp, named(gp, "kernels[0].lengthscale")) == "kernels[0].lengthscale"
    assert named(gp, "noise") == "noise"
    plain = kx.GridGP((kx.RBF(0.3),), (np.arange(3.0),), noise=0.1)
    assert named(plain, "kernels[0].lengthscale") == "kernels[0].lengthscale"
