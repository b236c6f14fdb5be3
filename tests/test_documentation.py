"""Every example in the documentation runs as it stands."""

import doctest
import inspect
import re
from contextlib import chdir
from pathlib import Path

import jax
import pytest

import kronax as kx
from tests.everyday import full

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC = {name: value for name, value in vars(kx).items() if not name.startswith("_")}
OBJECTS = {name: value for name, value in PUBLIC.items() if callable(value)}
# What no call of a user makes: it is shown where it is returned, subclassed or raised.
RETURNED = {
    "ParameterArray",
    "AbstractOperator",
    "Mean",
    "DerivativeOrderError",
    "NotMarkovError",
    "ConvergenceError",
    "PrecisionWarning",
    "DenseProductWarning",
    "DenseProductError",
}


# Executed when the site is built as well.
CELLS = {"{code-cell}": "python"}
# What every day runs; CI runs the other pages beside the build of the site.
EVERYDAY = {"README.md", "index.md"}
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module", autouse=True)
def numpy_broadcasting():
    """Examples are code of users, who broadcast as NumPy does."""
    with jax.numpy_rank_promotion("allow"):
        yield


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """First line, language and text of every fenced block of a page."""
    found, start, language, kept = [], 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\S*)", line)
        if fence and start:
            found.append((start, language, "\n".join(kept)))
            start, kept = 0, []
        elif fence:
            start, language = number + 1, CELLS.get(fence[1], fence[1])
        elif start:
            kept.append(line)
    return found


def same_output(shown: str, printed: str) -> bool:
    """Whether a page shows what its code prints: the words, and the numbers to a few per cent.

    Spaces do not count, as numbers of another length move the columns of tables; `…` stands for
    anything, as for seconds.
    """
    parts = ["".join(part.split()) for part in shown.split("…")]
    pattern = ".*".join(re.escape(NUMBER.sub("#", part)) for part in parts)
    printed = "".join(printed.split())
    if not re.fullmatch(pattern, NUMBER.sub("#", printed)):
        return False
    if len(parts) > 1:
        return True
    pairs = zip(NUMBER.findall(parts[0]), NUMBER.findall(printed), strict=True)
    return all(float(b) == pytest.approx(float(a), rel=0.05, abs=2e-3) for a, b in pairs)


def test_blocks_are_found_at_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Text\n```python\nx = 1\n```\n```text\n1\n2\n```\n```python\ny = x\n```\n")
    assert blocks(page) == [(3, "python", "x = 1"), (6, "text", "1\n2"), (10, "python", "y = x")]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  1.50 b", "a 1.52  b", True),
        ("a 1.5 b", "a 1.7 b", False),
        ("a 1.5 b", "c 1.5 b", False),
        ("took … s, 3 steps", "took 0.31 s, 3 steps", True),
        ("took … s, 3 steps", "took 0.31 s, none", False),
    ],
)
def test_shown_output_is_compared_by_words_and_numbers(shown, printed, same):
    assert same_output(shown, printed) is same


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.ci] * (page.name not in EVERYDAY))
        for page in PAGES
        if any(block[1] == "python" for block in blocks(page))
    ],
)
def test_the_code_of_a_page_runs_with_default_settings(page, tmp_path, capsys):
    """And prints what is shown in a block of text directly below it."""
    names, printed = {"__name__": "__main__"}, None
    # Not by the context manager, which would outdo what a page sets itself.
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        for line, language, text in blocks(page):
            if language == "text" and printed is not None:
                assert same_output(text, printed), f"{page}:{line}: printed is\n{printed}"
            printed = None
            if language == "python":
                # At its own line, so that a traceback points there.
                with chdir(tmp_path):
                    exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)
                printed = capsys.readouterr().out
    finally:
        jax.config.update("jax_enable_x64", before)


def test_the_site_reads_no_type_in_a_property():
    """Before a colon in the first line it would."""
    lines = {
        f"{name}.{key}": (member.__doc__ or "").split("\n")[0]
        for name, value in OBJECTS.items()
        for key, member in inspect.getmembers(value, lambda m: isinstance(m, property))
        if not key.startswith("_") and (member.fget.__module__ or "").startswith("kronax")
    }
    assert lines
    assert not {key: line for key, line in lines.items() if ":" in re.sub(r"`[^`]*`", "", line)}


def examples_of(name):
    (found,) = doctest.DocTestFinder(recurse=False).find(OBJECTS[name], name, globs={})
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_has_a_docstring_with_an_example(name):
    assert OBJECTS[name].__doc__
    assert bool(examples_of(name).examples) is not (name in RETURNED)


@pytest.mark.ci
@pytest.mark.parametrize("double", [False, full(True)], ids=["default precision", "float64"])
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
