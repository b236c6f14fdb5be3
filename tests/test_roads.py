"""The roads of users, from a card of the landing page on: only what the pages say, as written.

CI walks the landing page, as a script in the environment at hand. In the full run every
road has an environment of its own, made by the commands of its pages.
"""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.everyday import full
from tests.test_documentation import ROOT, blocks

DOCS = ROOT / "docs"
LANDING = DOCS / "index.md"
INSTALL = re.compile(r"pip install ((?:[\w.\[\],\"=-]+ ?)+)")


def cards() -> dict[str, list[Path]]:
    """The pages of every road by the name of its card: where it leads, and what it links to."""
    text = LANDING.read_text(encoding="utf-8")
    found = re.findall(r":::\{grid-item-card\} (.+?)\n:link: (\w+)\n(.*?):::", text, re.DOTALL)
    return {
        name: [DOCS / f"{page}.md", *(DOCS / other for other in re.findall(r"\((\w+\.md)\)", body))]
        for name, page, body in found
    }


def needed(page: Path) -> set[str]:
    """What a page says to install before its first block, kronax from this checkout."""
    lines = page.read_text(encoding="utf-8").splitlines()
    first = next(line for line, language, _ in blocks(page) if language == "python")
    found = INSTALL.findall("\n".join(lines[: first - 1]))
    names = [name.strip('"') for command in found for name in command.split()]
    return {re.sub(r"^(kronax(?=$|\[)|\.$)", str(ROOT), name) for name in names}


def script(page: Path) -> str:
    """Its blocks, one after another."""
    return "\n".join(text for _, language, text in blocks(page) if language == "python")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """The interpreter of an environment that holds what is named, and nothing else."""
    made = {}

    def environment(names):
        if names not in made:
            folder = tmp_path_factory.mktemp("environment")
            venv.create(folder, with_pip=True)
            made[names] = folder / "bin" / "python"
            command = [made[names], "-m", "pip", "install", "-q", *sorted(names)]
            subprocess.run(command, check=True, env=alone())
        return made[names]

    return environment


def alone() -> dict[str, str]:
    """Of the environment, what is not about Python, JAX or progress."""
    own = ("PYTHON", "JAX", "XLA", "TQDM", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}


def walk(python, page: Path, folder: Path, environment: dict[str, str], *options: str) -> None:
    """Run a page in an empty folder; what it warns of in Python is an error."""
    (folder / page.stem).mkdir()
    (folder / page.stem / "page.py").write_text(script(page), encoding="utf-8")
    done = subprocess.run(
        [python, *options, "page.py"],
        cwd=folder / page.stem,
        env={**environment, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stderr[-3000:]}"


def test_the_landing_page_has_the_four_cards_and_an_install_command():
    assert list(cards()) == ["NumPyro", "Fitting", "Under jit", "xarray and pandas"]
    assert needed(LANDING) == {str(ROOT)}
    assert all(page.exists() for pages in cards().values() for page in pages)


@pytest.mark.ci
@pytest.mark.parametrize("road", [None, *map(full, cards())], ids=["landing page", *cards()])
def test_a_road_is_walked(road, fresh, tmp_path):
    if road is None:
        walk(sys.executable, LANDING, tmp_path, dict(os.environ), "-W", "error")
        return
    pages = [LANDING, *cards()[road]]
    python = fresh(frozenset().union(*map(needed, pages)))
    for page in pages:
        walk(python, page, tmp_path, alone())
