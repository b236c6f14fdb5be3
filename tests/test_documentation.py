"""Every example in the documentation runs as it stands."""

import doctest
import re
from pathlib import Path

import jax
import pytest

import kronax as kx

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC = {name: value for name, value in vars(kx).items() if not name.startswith("_")}
OBJECTS = {name: value for name, value in PUBLIC.items() if callable(value)}
# What no call of a user makes: it is shown where it is returned, subclassed or raised.
RETURNED = {
    "FitResult",
    "Posterior",
    "LatentPosterior",
    "LaplaceApproximation",
    "Comparison",
    "ProfileLikelihood",
    "AbstractOperator",
    "Mean",
    "DerivativeOrderError",
}


def python_blocks(page: Path) -> str:
    """The blocks of one page in a row, each at its own line, so that a traceback points there."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = re.match(r"\s*```(\S*)", line)
        if fence:
            inside = not inside and fence[1] == "python"
            line = ""
        kept.append(line if inside else "")
    return "\n".join(kept)


def test_blocks_are_found_at_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Text\n```python\nx = 1\n```\n```bash\nls\n```\n```python\ny = x\n```\n")
    assert python_blocks(page) == "\n\nx = 1\n\n\n\n\n\ny = x\n"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_blocks(page).strip()], ids=lambda page: page.name
)
def test_the_code_of_a_page_runs_with_default_settings(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with jax.enable_x64(False):
        exec(compile(python_blocks(page), str(page), "exec"), {"__name__": "__main__"})


def examples_of(name):
    (found,) = doctest.DocTestFinder(recurse=False).find(OBJECTS[name], name, globs={})
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_has_a_docstring_with_an_example(name):
    assert OBJECTS[name].__doc__
    assert bool(examples_of(name).examples) is not (name in RETURNED)


@pytest.mark.parametrize("double", [False, True], ids=["default precision", "float64"])
@pytest.mark.parametrize("name", OBJECTS)
def test_the_examples_of_a_docstring_run(name, double):
    test = examples_of(name)
    report = []
    with jax.enable_x64(double):
        result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize(
    "script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name
)
def test_a_script_compiles(script):
    compile(script.read_text(encoding="utf-8"), str(script), "exec")
