"""The README and the addresses that a package index shows."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
HUB, SITE = "https://hub.example/kronax", "https://kronax.example"


@pytest.fixture
def hook(monkeypatch):
    """The build hook, where the build system is not installed."""
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    path = ROOT / "tools" / "package_index.py"
    spec = importlib.util.spec_from_file_location("package_index", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_somewhere_from_anywhere(hook):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    public = hook.public_readme(text, HUB, "main", SITE)
    targets = re.findall(r"\]\(([^)]+)\)", public)
    assert len(targets) > 15
    assert all(target.startswith("https://") for target in targets)
    assert f"({HUB}/raw/main/docs/images/quickstart.png)" in public
    assert f"({HUB}/blob/main/examples/quickstart.py)" in public
    assert f"({SITE}/benchmarks.html#hamiltonian-monte-carlo)" in public


def test_links_of_the_readme_lead_somewhere_in_the_repository(hook):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = [match[3].partition("#")[0] for match in hook.LINK.finditer(text)]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_without_an_address_nothing_is_claimed(hook):
    text = "![a](b.png) [c](docs/d.md) [e](https://f)"
    assert hook.public_readme(text, "", "main", "") == text
    assert hook.project_urls("", "main", "") == {}
    assert set(hook.project_urls(HUB, "main", "")) == {"Homepage", "Source", "Issues", "Changelog"}


def test_addresses_are_configured_in_one_place():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    kept = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    assert set(kept) == {"path", "repository", "branch", "site"}
    assert {"readme", "urls"} <= set(settings["project"]["dynamic"])
