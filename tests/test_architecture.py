"""The rules of the house, checked on the source: order, imports, sizes, names, loops, settings.

Every check takes the package's folder and the ordered list of places and returns one line per
offence. The second half of the file feeds each check a small tree that breaks its rule.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_MODULES = 12
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70
VAGUE_NAMES = {"utils", "helpers", "misc", "core", "common"}
# Optional extras and the one room of each; None: nowhere.
OPTIONAL_EXTRAS = {
    "matplotlib": "plotting",
    "xarray": "gp/labelled",
    "lineax": "lineax",
    "sklearn": "sklearn",
    "pandas": "gp/labelled",
    "cftime": "gp/labelled",
    "netCDF4": None,
}
# Extras whose classes are subclassed: a module of their room that imports one at its top is itself
# imported inside functions, or by its like.
SUBCLASSED_EXTRAS = {"lineax", "sklearn"}
TRACED_LOOPS = {"scan", "fori_loop", "map"}
# (module, loop): why this one is not a loop over factors.
# Along one axis, from place to place: no loop over factors.
OVER_TIME = ("linalg/state_spaces/", "linalg/markov/")
ALLOWED_LOOPS = {
    (
        "linalg/factors/pivoted_cholesky",
        "fori_loop",
    ): "columns of one factor, each chosen after the one before",
    (
        "linalg/spectral/diagonals",
        "map",
    ): "rows of one axis in chunks, so that no N x n array is held",
    ("linalg/gaps/slices", "map"): "places on the other axes in chunks, as in the diagonals",
    ("linalg/sharing/data_sets", "map"): "one data set after another, over no factors",
    ("linalg/krylov/variances", "map"): "places in chunks, one solve each",
    ("linalg/estimates/draws", "scan"): "draws in chunks, so that few are held at once",
    ("linalg/krylov/markov_reference", "fori_loop"): "one product after another, of one vector",
    (
        "linalg/spectral/khatri_rao",
        "map",
    ): "places in chunks, so that nothing of size m x N is held",
    ("linalg/gaps/schur", "map"): "eigenvalues of shared axes, and pieces of fibres: one size",
    ("linalg/gaps/schur", "scan"): "the same, where what is found is added up",
    ("linalg/gaps/rules", "map"): "columns in chunks, so that nothing of size m x N is held",
    ("linalg/gaps/variances", "scan"): "one gap after another, for the same reason",
    ("linalg/gaps/variances", "map"): "eigenvalues of shared axes, and rows of one axis in chunks",
    ("linalg/dense_covariance", "map"): "the same",
    ("linalg/state_spaces/cosines", "scan"): "ratios of Bessel functions, each from the one before",
    ("rewriting/values/substitution", "fori_loop"): "row after row of a triangular matrix",
    ("rewriting/values/determinants", "map"): "inverses of one factor, so that none is batched",
    ("rewriting/values/general_sums", "map"): "columns of an inverse, so that N x N is not held",
    (
        "linalg/gaps/masked_variances",
        "map",
    ): "places in chunks, so that nothing of size m x N is held",
}

Order = Sequence[str]
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


def read_order(page: Path) -> tuple[str, ...]:
    """The first column of the table headed `| place | …` of a markdown page, in its order."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    if not any(re.match(r"\|\s*place\s*\|", line) for line in lines):
        raise ValueError(f"{page.name} must hold a table that begins with '| place |'.")
    next(lines)  # the rule under the header
    order: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            break
        order.append(line.split("|")[1].strip().strip("`"))
    if len(set(order)) < len(order):
        raise ValueError(f"{page.name} lists a place twice.")
    return tuple(order)


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


def place_of(name: str, order: Order) -> str | None:
    """The folder that a module lies in, or itself, whichever the list names."""
    parts = name.split("/")
    candidates = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((place for place in candidates if place in order), None)


def functions_of(module: Module) -> Iterator[FunctionNode]:
    return (node for node in ast.walk(module.tree) if isinstance(node, FunctionNode))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports_between(package: Path) -> Iterator[tuple[Module, int, str]]:
    modules = read_modules(package)
    names = {module.name for module in modules}
    for module in modules:
        for found in imports_of(module, package.name):
            target = resolve(found.target, package.name, names)
            if target is not None:
                yield module, found.line, target


def forbidden_imports(package: Path, order: Order) -> list[str]:
    problems = []
    for module, line, target in imports_between(package):
        if module.is_init:
            allowed = target.startswith(f"{module.folder}/") or not module.folder
            why = "an __init__ re-exports its own package only"
        else:
            own, other = place_of(module.name, order), place_of(target, order)
            # What is in no place is told by `lost_modules`.
            allowed = own is None or (
                target != "__init__" and (other is None or order.index(other) <= order.index(own))
            )
            why = f"{own} may import only places before it"
        if not allowed:
            problems.append(f"{module.name}:{line} imports {target}: {why}")
    return problems


def circles(package: Path, order: Order) -> list[str]:
    ahead: dict[str, set[str]] = {}
    for module, _, target in imports_between(package):
        if not module.is_init:
            ahead.setdefault(module.name, set()).add(target)
    while ahead:
        ends = [name for name, targets in ahead.items() if not targets & ahead.keys()]
        if not ends:
            return [f"{', '.join(sorted(ahead))} import each other in a circle"]
        ahead = {name: targets for name, targets in ahead.items() if name not in ends}
    return []


def lost_modules(package: Path, order: Order) -> list[str]:
    names = {module.name for module in read_modules(package) if not module.is_init}
    used = {place_of(name, order) for name in names}
    missing = [f"{name} has no place" for name in sorted(names) if not place_of(name, order)]
    return missing + [
        f"{place} is a place without a module" for place in order if place not in used
    ]


def full_folders(package: Path, order: Order) -> list[str]:
    counts: dict[str, int] = {}
    for module in read_modules(package):
        if not module.is_init:
            counts[module.folder] = counts.get(module.folder, 0) + 1
    return [
        f"{folder} holds {count} modules, over {MAX_MODULES}"
        for folder, count in counts.items()
        if count > MAX_MODULES
    ]


def busy_inits(package: Path, order: Order) -> list[str]:
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


def optional_modules(package: Path) -> set[str]:
    """The modules that cannot be imported without an extra that they subclass."""
    modules = read_modules(package)
    names = {module.name for module in modules}
    found = {
        module.name
        for module in modules
        for entry in imports_of(module, package.name)
        if entry.at_top and entry.top_level_package in SUBCLASSED_EXTRAS
    }
    while True:
        more = {
            module.name
            for module in modules
            if module.name.split("/")[0] in SUBCLASSED_EXTRAS and module.name not in found
            for entry in imports_of(module, package.name)
            if entry.at_top and resolve(entry.target, package.name, names) in found
        }
        if not more:
            return found
        found |= more


def hidden_imports(package: Path, order: Order) -> list[str]:
    modules = read_modules(package)
    names, optional = {module.name for module in modules}, optional_modules(package)
    return [
        f"{module.name}:{found.line} imports {found.target} inside a function"
        for module in modules
        for found in imports_of(module, package.name)
        if found.inside_function
        and found.top_level_package not in OPTIONAL_EXTRAS
        and resolve(found.target, package.name, names) not in optional
    ]


def extras_outside(package: Path, order: Order) -> list[str]:
    problems = []
    modules = read_modules(package)
    names, optional = {module.name for module in modules}, optional_modules(package)
    for module in modules:
        for found in imports_of(module, package.name):
            extra = found.top_level_package
            target = resolve(found.target, package.name, names)
            if extra not in OPTIONAL_EXTRAS:
                if found.at_top and target in optional and module.name not in optional:
                    problems.append(f"{module.name}:{found.line} cannot do without {target}")
            elif found.at_top and extra not in SUBCLASSED_EXTRAS:
                problems.append(f"{module.name}:{found.line} cannot be imported without {extra}")
            elif place_of(module.name, order) != OPTIONAL_EXTRAS[extra]:
                problems.append(f"{module.name}:{found.line} imports {extra} outside its room")
    return problems


def long_files(package: Path, order: Order) -> list[str]:
    lengths = {module.name: len(module.text.splitlines()) for module in read_modules(package)}
    return [
        f"{name} has {length} lines, over {MAX_FILE_LINES}"
        for name, length in lengths.items()
        if length > MAX_FILE_LINES
    ]


def long_functions(package: Path, order: Order) -> list[str]:
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


def vague_names(package: Path, order: Order) -> list[str]:
    return [
        f"{module.name} has a name that says nothing"
        for module in read_modules(package)
        if VAGUE_NAMES & {part.strip("_") for part in module.name.split("/")}
    ]


def traced_loops(package: Path, order: Order) -> list[str]:
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
            if loop in TRACED_LOOPS
            and (module.name, loop) not in ALLOWED_LOOPS
            and not module.name.startswith(OVER_TIME)
        ]
    return problems


def changed_settings(package: Path, order: Order) -> list[str]:
    return [
        f"{module.name}:{node.lineno} changes a setting of JAX"
        for module in read_modules(package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and dotted(node.func).endswith("config.update")
    ]


Check = Callable[[Path, Order], list[str]]
CHECKS: tuple[Check, ...] = (
    forbidden_imports,
    circles,
    lost_modules,
    full_folders,
    busy_inits,
    hidden_imports,
    extras_outside,
    long_files,
    long_functions,
    vague_names,
    traced_loops,
    changed_settings,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_kronax_keeps_the_rule(check: Check) -> None:
    assert read_modules(ROOT / "kronax"), "no source was found, so nothing was checked"
    problems = check(ROOT / "kronax", read_order(ROOT / "docs" / "architecture.md"))
    assert not problems, "\n".join(problems)


GOOD_FILES = {
    "__init__.py": '"""Package."""\n\nfrom kronax.top import f\n\n__all__ = ["f"]\n',
    "linalg/__init__.py": "from kronax.linalg.low import g\n",
    "linalg/low.py": "import jax\n\n\ndef g():\n    pass\n",
    "linalg/spectral/diagonals.py": "from jax import lax\nfrom .. import low\nh = lax.map\n",
    "linalg/spectral/traces.py": "from .diagonals import h\n",
    "top.py": "from kronax.linalg.low import g\nfrom .linalg import low\n",
    "plotting/maps.py": "from kronax import top\n\n\ndef p():\n    import matplotlib\n",
}
GOOD_ORDER = ("linalg/low", "linalg/spectral", "top", "plotting")

# check, the file that breaks the rule (or whose text does), what the complaint must say
BAD_FILES: list[tuple[Check, str, str, str]] = [
    (
        forbidden_imports,
        "linalg/low.py",
        "import kronax.plotting.maps",
        "low:1 imports plotting/maps",
    ),
    (forbidden_imports, "linalg/low.py", "from kronax.plotting.maps import p", "imports plotting"),
    (forbidden_imports, "linalg/low.py", "from ..plotting.maps import p", "imports plotting"),
    (forbidden_imports, "linalg/low.py", "from kronax.plotting import maps", "imports plotting"),
    (forbidden_imports, "linalg/low.py", "from kronax import f", "imports __init__"),
    (
        forbidden_imports,
        "linalg/spectral/traces.py",
        "from .. import functions, low\nfrom kronax.top import f",
        "imports top",
    ),
    (
        forbidden_imports,
        "linalg/low.py",
        "def f():\n    import kronax.plotting.maps",
        "low:2 imports plotting",
    ),
    (forbidden_imports, "top.py", "from kronax.plotting.maps import p", "imports plotting"),
    (forbidden_imports, "linalg/__init__.py", "from kronax.top import f", "its own package only"),
    (circles, "linalg/spectral/diagonals.py", "from .traces import t\nh = 0", "in a circle"),
    (circles, "top.py", "from kronax.top import f", "in a circle"),
    (lost_modules, "new.py", "x = 1", "new has no place"),
    (busy_inits, "linalg/__init__.py", "def f(): ...", "does more than re-export"),
    (busy_inits, "__init__.py", "cache = {}", "does more than re-export"),
    (hidden_imports, "top.py", "def f():\n    import scipy", "top:2 imports scipy"),
    (hidden_imports, "top.py", "def f():\n    from .linalg import low", "inside a function"),
    (extras_outside, "top.py", "import xarray as xr", "without xarray"),
    (extras_outside, "plotting/maps.py", "from matplotlib import pyplot", "without matplotlib"),
    (extras_outside, "top.py", "def f():\n    import matplotlib", "outside its room"),
    (extras_outside, "plotting/maps.py", "import lineax as lx", "imports lineax outside its room"),
    (long_files, "top.py", "x = 1\n" * (MAX_FILE_LINES + 1), f"top has {MAX_FILE_LINES + 1} lines"),
    (
        long_functions,
        "top.py",
        "class C:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES,
        f"f has {MAX_FUNCTION_LINES + 1} lines",
    ),
    (vague_names, "linalg/spectral/utils.py", "", "utils has a name"),
    (vague_names, "plotting/_helpers.py", "", "_helpers has a name"),
    (vague_names, "plotting/core/eigen.py", "", "core/eigen has a name"),
    (traced_loops, "linalg/low.py", "import jax\n\njax.lax.scan(f, 0, x)", "low:3 uses lax.scan"),
    (traced_loops, "linalg/low.py", "from jax import lax\n\nlax.fori_loop", "lax.fori_loop"),
    (traced_loops, "linalg/low.py", "from jax.lax import map", "lax.map"),
    (traced_loops, "linalg/spectral/diagonals.py", "from jax.lax import scan", "lax.scan"),
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
    assert check(write_tree(tmp_path, GOOD_FILES), GOOD_ORDER) == []


@pytest.mark.parametrize(
    ("check", "file", "text", "complaint"),
    BAD_FILES,
    ids=[f"{case[0].__name__}-{number}" for number, case in enumerate(BAD_FILES)],
)
def test_each_check_finds_its_offence(
    check: Check, file: str, text: str, complaint: str, tmp_path: Path
) -> None:
    problems = check(write_tree(tmp_path, {**GOOD_FILES, file: text}), GOOD_ORDER)
    assert len(problems) == 1
    assert complaint in problems[0]


def test_a_full_folder_is_found(tmp_path: Path) -> None:
    files = {f"plotting/m{number}.py": "" for number in range(MAX_MODULES)}
    package = write_tree(tmp_path, {**GOOD_FILES, **files})
    assert full_folders(package, GOOD_ORDER) == [
        f"plotting holds {MAX_MODULES + 1} modules, over {MAX_MODULES}"
    ]


def test_a_place_without_a_module_is_found(tmp_path: Path) -> None:
    package = write_tree(tmp_path, GOOD_FILES)
    assert lost_modules(package, (*GOOD_ORDER, "gone")) == ["gone is a place without a module"]


def test_every_check_has_a_tree_that_breaks_it() -> None:
    assert {case[0] for case in BAD_FILES} == {*CHECKS} - {full_folders}  # it has a test of its own


def test_the_order_is_read_from_markdown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text\n\n| place | x |\n|---|---|\n| `a/b` | y |\n| c | z |\n\n| d |\n")
    assert read_order(page) == ("a/b", "c")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no table", "must hold a table"),
        ("| place |\n|---|\n| a |\n| a |\n", "lists a place twice"),
    ],
)
def test_a_broken_list_raises(text: str, match: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_order(page)
