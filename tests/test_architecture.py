"""The rules of the house, checked on the source: layers, imports, sizes, names, loops, settings.

Every check takes the package's folder and the layer table and returns one line per offence. The
second half of the file feeds each check a small tree that breaks its rule.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EDGE = math.inf
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70
VAGUE_NAMES = {"utils", "helpers", "misc", "core", "common"}
OPTIONAL_EXTRAS = {"matplotlib", "xarray", "cftime", "netCDF4"}
TRACED_LOOPS = {"scan", "fori_loop", "map"}
# (module, loop): why this one is not a loop over factors.
ALLOWED_LOOPS = {
    ("linalg/pivoted", "fori_loop"): "columns of one factor, each chosen after the one before",
    ("linalg/diagonals", "map"): "rows of one axis in chunks, so that no N x n array is held",
    ("linalg/slices", "map"): "places on the other axes in chunks, as in linalg/diagonals",
    ("linalg/iterative_variances", "map"): "places in chunks, one solve each",
    ("linalg/iterative_variances", "scan"): "draws in chunks, so that few are held at once",
    ("linalg/terms_variances", "scan"): "the same",
    ("linalg/scattered", "map"): "places in chunks, so that nothing of size m x N is held",
    ("linalg/gap_matrices", "map"): "eigenvalues of shared axes, and pieces of fibres: one size",
    ("linalg/gap_matrices", "scan"): "the same, where what is found is added up",
    ("linalg/gap_rules", "map"): "columns in chunks, so that nothing of size m x N is held",
    ("linalg/gap_variances", "scan"): "one gap after another, for the same reason",
    ("linalg/gap_variances", "map"): "eigenvalues of shared axes, and rows of one axis in chunks",
    ("linalg/dense_covariance", "map"): "the same",
    ("linalg/masked_variances", "map"): "places in chunks, so that nothing of size m x N is held",
}

Table = Mapping[str, float]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file; `name` is its path in the package, as the layer table writes it."""

    name: str
    text: str
    tree: ast.Module

    @property
    def is_init(self) -> bool:
        return self.name.split("/")[-1] == "__init__"

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Import:
    """A name that a module imports, absolute and dotted."""

    line: int
    target: str
    inside_function: bool
    at_top: bool

    @property
    def top_level_package(self) -> str:
        return self.target.split(".")[0]


@cache
def read_modules(package: Path) -> tuple[Module, ...]:
    modules = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(package).with_suffix("").as_posix()
        modules.append(Module(name, text, ast.parse(text, filename=str(path))))
    return tuple(modules)


def read_table(page: Path) -> dict[str, float]:
    """The table headed `| module | layer |` of a markdown page; a layer is a number or `edge`."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    if not any(re.match(r"\|\s*module\s*\|\s*layer\s*\|", line) for line in lines):
        raise ValueError(f"{page.name} must hold a table that begins with '| module | layer |'.")
    next(lines)  # the rule under the header
    table: dict[str, float] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, layer = (cell.strip().strip("`") for cell in line.split("|")[1:3])
        if name in table:
            raise ValueError(f"{page.name} lists {name} twice.")
        table[name] = EDGE if layer == "edge" else int(layer)
    return table


def imports_of(module: Module, package: str) -> Iterator[Import]:
    in_functions = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, FunctionNode)
        for inner in ast.walk(node)
    }
    at_top = {id(node) for node in module.tree.body}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(module, node, package)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(node.lineno, target, id(node) in in_functions, id(node) in at_top)


def absolute_base(module: Module, node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    folders = [package, *module.folder.split("/")] if module.folder else [package]
    kept = folders[: len(folders) - (node.level - 1)]
    return ".".join(kept + ([node.module] if node.module else []))


def resolve(target: str, package: str, names: set[str]) -> str | None:
    """The module that an import reaches; a package counts as its `__init__`, others give None."""
    parts = target.split(".")
    if parts[0] != package:
        return None
    # The last part may be a name in a module rather than a module: drop parts until one fits.
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[1:end])
        init = f"{path}/__init__" if path else "__init__"
        if path in names:
            return path
        if init in names:
            return init
    return None


def layer_of(name: str, table: Table) -> float:
    """A package's `__init__` is as high as its highest module, the top one above all."""
    if name == "__init__":
        return EDGE
    if name.endswith("/__init__"):
        folder = name.removesuffix("__init__")
        return max((layer for other, layer in table.items() if other.startswith(folder)), default=0)
    return table.get(name, EDGE)


def functions_of(module: Module) -> Iterator[FunctionNode]:
    return (node for node in ast.walk(module.tree) if isinstance(node, FunctionNode))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden_layers(package: Path, table: Table) -> list[str]:
    modules = read_modules(package)
    names = {module.name for module in modules}
    problems = []
    for module in modules:
        for found in imports_of(module, package.name):
            target = resolve(found.target, package.name, names)
            if target is None:
                continue
            if module.is_init:
                allowed = target.startswith(f"{module.folder}/") or not module.folder
                why = "an __init__ re-exports its own package only"
            else:
                own, other = layer_of(module.name, table), layer_of(target, table)
                allowed = other < own
                why = f"layer {own} may import lower layers only, that is layer {other}"
            if not allowed:
                problems.append(f"{module.name}:{found.line} imports {target}: {why}")
    return problems


def table_mismatches(package: Path, table: Table) -> list[str]:
    names = {module.name for module in read_modules(package) if not module.is_init}
    missing = [f"{name} has no row in the layer table" for name in sorted(names - table.keys())]
    stale = [
        f"{name} has a row in the layer table but no file" for name in sorted(table.keys() - names)
    ]
    return missing + stale


def busy_inits(package: Path, table: Table) -> list[str]:
    problems = []
    for module in filter(lambda module: module.is_init, read_modules(package)):
        for node in module.tree.body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_dunder = isinstance(node, ast.Assign) and all(
                isinstance(target, ast.Name) and re.fullmatch(r"__\w+__", target.id)
                for target in node.targets
            )
            if not (is_docstring or is_dunder or isinstance(node, ast.Import | ast.ImportFrom)):
                problems.append(f"{module.name}:{node.lineno} does more than re-export names")
    return problems


def hidden_imports(package: Path, table: Table) -> list[str]:
    return [
        f"{module.name}:{found.line} imports {found.target} inside a function"
        for module in read_modules(package)
        for found in imports_of(module, package.name)
        if found.inside_function and found.top_level_package not in OPTIONAL_EXTRAS
    ]


def required_extras(package: Path, table: Table) -> list[str]:
    return [
        f"{module.name}:{found.line} needs the optional {found.top_level_package} to be imported"
        for module in read_modules(package)
        for found in imports_of(module, package.name)
        if found.at_top and found.top_level_package in OPTIONAL_EXTRAS
        if table.get(module.name) != EDGE
    ]


def long_files(package: Path, table: Table) -> list[str]:
    lengths = {module.name: len(module.text.splitlines()) for module in read_modules(package)}
    return [
        f"{name} has {length} lines, over {MAX_FILE_LINES}"
        for name, length in lengths.items()
        if length > MAX_FILE_LINES
    ]


def long_functions(package: Path, table: Table) -> list[str]:
    return [
        f"{module.name}:{node.lineno} {node.name} has {length} lines, over {MAX_FUNCTION_LINES}"
        for module in read_modules(package)
        for node in functions_of(module)
        if (length := length_of(node)) > MAX_FUNCTION_LINES
    ]


def length_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of its docstring."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def vague_names(package: Path, table: Table) -> list[str]:
    return [
        f"{module.name} has a name that says nothing"
        for module in read_modules(package)
        if VAGUE_NAMES & {part.strip("_") for part in module.name.split("/")}
    ]


def traced_loops(package: Path, table: Table) -> list[str]:
    problems = []
    for module in read_modules(package):
        if not module.name.startswith("linalg/"):
            continue
        found = [
            (node.lineno, node.attr)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and dotted(node.value).split(".")[-1] == "lax"
        ]
        found += [
            (entry.line, entry.target.rpartition(".")[2])
            for entry in imports_of(module, package.name)
            if entry.target.startswith("jax.lax.")
        ]
        problems += [
            f"{module.name}:{line} uses lax.{loop}; a loop over factors is a Python loop"
            for line, loop in found
            if loop in TRACED_LOOPS and (module.name, loop) not in ALLOWED_LOOPS
        ]
    return problems


def changed_settings(package: Path, table: Table) -> list[str]:
    return [
        f"{module.name}:{node.lineno} changes a setting of JAX"
        for module in read_modules(package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and dotted(node.func).endswith("config.update")
    ]


Check = Callable[[Path, Table], list[str]]
CHECKS: tuple[Check, ...] = (
    forbidden_layers,
    table_mismatches,
    busy_inits,
    hidden_imports,
    required_extras,
    long_files,
    long_functions,
    vague_names,
    traced_loops,
    changed_settings,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_kronax_keeps_the_rule(check: Check) -> None:
    assert read_modules(ROOT / "kronax"), "no source was found, so nothing was checked"
    problems = check(ROOT / "kronax", read_table(ROOT / "docs" / "architecture.md"))
    assert not problems, "\n".join(problems)


GOOD_FILES = {
    "__init__.py": '"""Package."""\n\nfrom kronax.top import f\n\n__all__ = ["f"]\n',
    "linalg/__init__.py": "from kronax.linalg.low import g\n",
    "linalg/low.py": "import jax\n\n\ndef g():\n    import matplotlib.pyplot\n",
    "linalg/diagonals.py": "from jax import lax\n\nh = lax.map\n",
    "top.py": "from kronax.linalg.low import g\nfrom .linalg import low\nimport kronax.linalg\n",
    "plotting.py": "import matplotlib\nfrom kronax import top\n",
}
GOOD_TABLE = {"linalg/low": 0, "linalg/diagonals": 1, "top": 2, "plotting": EDGE}

# check, the file that breaks the rule (or whose text does), what the complaint must say
BAD_FILES: list[tuple[Check, str, str, str]] = [
    (forbidden_layers, "linalg/low.py", "import kronax.top", "low:1 imports top"),
    (forbidden_layers, "linalg/low.py", "from kronax.top import f", "imports top"),
    (forbidden_layers, "linalg/low.py", "from ..top import f", "imports top"),
    (forbidden_layers, "linalg/low.py", "from .diagonals import h", "imports linalg/diagonals"),
    (forbidden_layers, "linalg/low.py", "from . import diagonals", "imports linalg/diagonals"),
    (forbidden_layers, "linalg/low.py", "from kronax import top", "imports top"),
    (forbidden_layers, "linalg/low.py", "from kronax import f", "imports __init__"),
    (forbidden_layers, "linalg/low.py", "from kronax.linalg import g", "linalg/__init__"),
    (forbidden_layers, "linalg/low.py", "def f():\n    import kronax.top", "low:2 imports top"),
    (forbidden_layers, "linalg/low.py", "from kronax.linalg.low import g", "imports linalg/low"),
    (forbidden_layers, "top.py", "from kronax.plotting import p", "imports plotting"),
    (forbidden_layers, "linalg/__init__.py", "from kronax.top import f", "its own package only"),
    (table_mismatches, "new.py", "x = 1", "new has no row"),
    (busy_inits, "linalg/__init__.py", "def f(): ...", "does more than re-export"),
    (busy_inits, "__init__.py", "cache = {}", "does more than re-export"),
    (hidden_imports, "top.py", "def f():\n    import scipy", "top:2 imports scipy"),
    (hidden_imports, "top.py", "def f():\n    from .linalg import low", "inside a function"),
    (required_extras, "top.py", "import xarray as xr", "optional xarray"),
    (required_extras, "top.py", "from matplotlib import pyplot", "optional matplotlib"),
    (long_files, "top.py", "x = 1\n" * (MAX_FILE_LINES + 1), f"top has {MAX_FILE_LINES + 1} lines"),
    (
        long_functions,
        "top.py",
        "class C:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES,
        f"f has {MAX_FUNCTION_LINES + 1} lines",
    ),
    (vague_names, "linalg/utils.py", "", "linalg/utils has a name"),
    (vague_names, "_helpers.py", "", "_helpers has a name"),
    (vague_names, "core/eigen.py", "", "core/eigen has a name"),
    (traced_loops, "linalg/low.py", "import jax\n\njax.lax.scan(f, 0, x)", "low:3 uses lax.scan"),
    (traced_loops, "linalg/low.py", "from jax import lax\n\nlax.fori_loop", "lax.fori_loop"),
    (traced_loops, "linalg/low.py", "from jax.lax import map", "lax.map"),
    (traced_loops, "linalg/diagonals.py", "from jax.lax import scan", "lax.scan"),
    (changed_settings, "top.py", "jax.config.update('jax_enable_x64', True)", "changes a setting"),
]


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    package = root / "kronax"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_clean_tree_passes(check: Check, tmp_path: Path) -> None:
    assert check(write_tree(tmp_path, GOOD_FILES), GOOD_TABLE) == []


@pytest.mark.parametrize(
    ("check", "file", "text", "complaint"),
    BAD_FILES,
    ids=[f"{case[0].__name__}-{number}" for number, case in enumerate(BAD_FILES)],
)
def test_each_check_finds_its_offence(
    check: Check, file: str, text: str, complaint: str, tmp_path: Path
) -> None:
    problems = check(write_tree(tmp_path, {**GOOD_FILES, file: text}), GOOD_TABLE)
    assert len(problems) == 1
    assert complaint in problems[0]


def test_a_row_without_a_file_is_found(tmp_path: Path) -> None:
    package = write_tree(tmp_path, GOOD_FILES)
    assert table_mismatches(package, {**GOOD_TABLE, "gone": 3}) == [
        "gone has a row in the layer table but no file"
    ]


def test_every_check_has_a_tree_that_breaks_it() -> None:
    assert {case[0] for case in BAD_FILES} == set(CHECKS)


def test_the_table_is_read_from_markdown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n| module | layer | x |\n|---|---|---|\n| `a/b` | 3 | y |\n| c | edge |\n"
    )
    assert read_table(page) == {"a/b": 3, "c": EDGE}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no table", "must hold a table"),
        ("| module | layer |\n|---|---|\n| a | 1 |\n| a | 2 |\n", "lists a twice"),
    ],
)
def test_a_broken_table_raises(text: str, match: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_table(page)
