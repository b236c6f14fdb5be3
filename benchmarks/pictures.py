"""The pictures of README and documentation, from stored results."""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.measure import ROOT
from benchmarks.tables import has_converged

# Label, colour and marker of a method in every picture.
STYLES = {
    "kronax": ("kronax, dense factors", "tab:blue", "o"),
    "regular": ("kronax, regular axes seen", "tab:green", "o"),
    "naive": ("automatic differentiation through eigh", "tab:red", "o"),
    "eigh": ("eigh of the factors alone", "0.45", None),
    "low rank": ("kronax, factors of low rank", "tab:cyan", "*"),
    "luas": ("luas", "tab:purple", "s"),
    "GPyTorch": ("GPyTorch", "tab:orange", "^"),
    "PyMC": ("PyMC", "tab:brown", "D"),
    "PyMC, NumPyro": ("PyMC, sampler of NumPyro", "tab:pink", "D"),
    "PyMC, dense": ("PyMC, dense", "tab:olive", "v"),
    "kronax, not jitted": ("kronax, not jitted", "tab:cyan", "o"),
    "NumPy": ("NumPy by axis", "0.6", "P"),
    "dense": ("dense", "0.2", "v"),
    "PyTensor": ("PyTensor, dense", "tab:brown", "D"),
    "einsum": ("einsum", "tab:red", "P"),
    "pykronecker, NumPy": ("pykronecker, NumPy", "tab:olive", "s"),
    "pykronecker, JAX": ("pykronecker, JAX", "tab:pink", "s"),
}


def _style(method: str, has_structure: bool = True) -> dict[str, Any]:
    label, colour, marker = STYLES[method]
    label = "kronax" if method == "kronax" and not has_structure else label
    line = {"label": label, "color": colour, "marker": marker, "ms": 5}
    return line | ({"ls": "--", "zorder": 1} if marker is None else {})


def _timed(rows: Iterable[dict[str, Any]], **fixed: Any) -> dict[str, list[dict[str, Any]]]:
    """Rows with a time and these values, by method in the order of `STYLES`."""
    kept = [r for r in rows if r["seconds"] and all(r[k] == v for k, v in fixed.items())]
    groups = {m: [r for r in kept if r["method"] == m] for m in STYLES}
    return {method: group for method, group in groups.items() if group}


def likelihood_picture(results: dict[str, Any], path: Path) -> None:
    """Time and gradient error against the size of a square grid, one column per kernel."""
    rows = [r for r in results["rows"] if len(set(r["shape"])) == 1]
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    figure, axes = plt.subplots(
        2, len(kernels), figsize=(11, 8), sharex=True, sharey="row", layout="constrained"
    )
    sizes = sorted({r["shape"][0] for r in rows})
    for kernel, (top, bottom) in zip(kernels, axes.T, strict=True):
        for method, group in _timed(rows, kernel=kernel).items():
            if method == "dense":
                continue
            x = [r["shape"][0] for r in group]
            top.loglog(x, [1e3 * r["seconds"] for r in group], **_style(method))
            if method != "eigh":
                errors = [r["gradient_error"] or float("nan") for r in group]
                bottom.loglog(x, errors, **_style(method))
        top.set_title(f"{kernel} kernel, n × n grid")
        bottom.axhline(1, color="0.7", lw=1, ls=":")
        if top is axes[0, 0]:
            bottom.text(
                sizes[0], 0.4, "as large as the gradient", color="0.45", fontsize=9, va="top"
            )
        bottom.set(xlabel="n", xticks=sizes, xticklabels=sizes)
        bottom.minorticks_off()
        for ax in (top, bottom):
            ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("value and gradient, ms")
    axes[1, 0].set_ylabel("relative error of the gradient")
    _legend_below(figure, axes[0])
    _save(figure, path)


def solve_picture(results: dict[str, Any], path: Path) -> None:
    """Time against the size of both factors for one vector, one column per kind of factor."""
    rows = [r for r in results["rows"] if r["form"] == "vector"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(11, 4.4), sharey=True, layout="constrained", squeeze=False
    )
    for kind, ax in zip(kinds, axes[0], strict=True):
        for method, group in _timed(rows, kind=kind).items():
            sizes = [r["size"] for r in group]
            ax.loglog(sizes, [1e6 * r["seconds"] for r in group], **_style(method, False))
        sizes = sorted({r["size"] for r in rows})
        ax.set(title=f"{kind} factors, n × n each", xlabel="n", xticks=sizes, xticklabels=sizes)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("solve, µs")
    _legend_below(figure, axes[0])
    _save(figure, path)


def matvec_picture(results: dict[str, Any], path: Path) -> None:
    """Time of every method relative to kronax, one line per case."""
    cases = list(dict.fromkeys(row["case"] for row in results["rows"]))[::-1]
    figure, ax = plt.subplots(figsize=(9, 0.6 * len(cases) + 2), layout="constrained")
    for method, group in _timed(results["rows"]).items():
        ax.semilogx(
            [r["over_kronax"] for r in group],
            [cases.index(r["case"]) for r in group],
            **_style(method, False) | {"ls": "", "ms": 8, "alpha": 0.85},
        )
    ax.axvline(1, color="tab:blue", lw=1)
    ax.set(
        yticks=range(len(cases)),
        yticklabels=cases,
        ylim=(-0.6, len(cases) - 0.4),
        xlabel="time / time of kronax",
        title="Kronecker product times vector",
    )
    ax.grid(alpha=0.3)
    _legend_below(figure, [ax])
    _save(figure, path)


def scale_picture(results: dict[str, Any], path: Path) -> None:
    """Time and planned or resident memory against the number of cells."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in results["rows"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for dtype, dashes in zip(dtypes, ("-", ":"), strict=False):
        for method, group in _timed(results["rows"], dtype=dtype).items():
            style = _style(method) | {"ls": dashes}
            style["label"] += f", {dtype}"
            cells = [prod(r["shape"]) for r in group]
            left.loglog(cells, [r["seconds"] for r in group], **style)
            right.loglog(cells, [r["bytes"] / 2**30 for r in group], **style)
    for ax in (left, right):
        ax.set_xlabel("cells")
        ax.grid(alpha=0.3)
    left.set(ylabel="value and gradient, s", title="Time")
    right.set(ylabel="most memory, GiB", title="Memory beyond what the program takes")
    _legend_below(figure, [left], 3)
    _save(figure, path)


def nuts_picture(results: dict[str, Any], path: Path) -> None:
    """Traces of one lengthscale by three samplers, and every rate below."""
    traced = [r for r in results["rows"] if "trace" in r or r["method"] == "PyMC"]
    problem = traced[0]["kernel"], traced[0]["shape"]
    traced = [r for r in traced if (r["kernel"], r["shape"]) == problem]
    figure = plt.figure(figsize=(11, 8.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    panels = top.subplots(1, len(traced), sharey=True, squeeze=False)[0]
    for row, ax in zip(traced, panels, strict=True):
        _trace(ax, row, results["truth"]["lengthscale_1"])
    panels[0].set_ylabel("lengthscale of the first axis")
    panels[0].legend(fontsize=9, loc="upper right")
    top.suptitle(f"NUTS: one Gaussian process, {_problem(traced[0])}", fontsize=13)
    _rates(bottom, results["rows"])
    _save(figure, path)


def _trace(ax: Any, row: dict[str, Any], truth: float) -> None:
    """One lengthscale along both chains, or how far the sampler came."""
    titles = {
        "kronax": "kronax: exact gradient",
        "naive": "JAX's derivative of eigh",
        "PyMC": "PyMC: pm.KroneckerNormal",
    }
    facts = row.get("error", f"{row['seconds'] or 0:.1f} s in all")
    if "trace" in row:
        for chain, (draws, colour) in enumerate(
            zip(row["trace"], ("tab:blue", "tab:orange"), strict=False)
        ):
            x = range(1, len(draws) + 1)
            ax.plot(x, draws, color=colour, lw=1, label=f"chain {chain + 1}")
        r_hat, steps = row["r_hat"]["lengthscale_1"], row["steps_per_draw"]
        facts = f"r-hat {r_hat:.2f} · {steps:.0f} leapfrog steps a draw\n{facts}"
    else:
        facts = facts.replace(": ", ":\n")
        style = {"ha": "center", "va": "center", "color": "0.4", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "no draw after warm-up", **style)
    ax.axhline(truth, color="0.3", ls="--", lw=1, label="true value")
    ax.set_title(f"{titles[row['method']]}\n{facts}", fontsize=11)
    ax.set_xlim(0, row["num_samples"])
    ax.set_xlabel("draw after warm-up")
    ax.grid(alpha=0.3)


def _rates(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Effective samples a second, one line per problem; a bound where a sampler did not end."""
    problems = list(dict.fromkeys(map(_problem, rows)))[::-1]
    ax = figure.subplots()
    ax.set_xscale("log")
    methods = [m for m in STYLES if any(r["method"] == m for r in rows)]
    styles = {method: _style(method) | {"ls": "", "ms": 9} for method in methods}
    for style in styles.values():
        ax.plot([], [], **style)
    for method in reversed(methods):
        style = styles[method] | {"label": None}
        for row in (r for r in rows if r["method"] == method):
            y, face = problems.index(_problem(row)), {} if has_converged(row) else {"mfc": "white"}
            if "r_hat" in row:
                ax.plot(row["effective_samples_per_second"], y, **style | face)
            else:
                most = row["effective_samples_per_second_at_most"]
                arrow = {"arrowstyle": "->", "color": style["color"], "lw": 1.5}
                ax.annotate("", (most / 2.5, y), (most, y), arrowprops=arrow)
                # What is not drawn itself still widens the axis to where the arrow ends.
                ax.plot([most / 3, most], [y, y], **style | {"marker": ""})
                ax.plot(most, y, **style | face)
    ax.set(
        yticks=range(len(problems)),
        yticklabels=problems,
        ylim=(-0.6, len(problems) - 0.4),
        xlabel="effective samples a second, compiling included "
        "(hollow: not converged; with arrow: unfinished, at most)",
    )
    ax.grid(alpha=0.3)
    _legend_below(figure, [ax])


def _problem(row: dict[str, Any]) -> str:
    return f"{row['kernel']}, {'×'.join(map(str, row['shape']))}"


def _legend_below(figure: Any, axes: Iterable[Any], num_columns: int = 4) -> None:
    """One legend for all panels, each label once."""
    found = {k: h for ax in axes for h, k in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=num_columns, fontsize=9
    )


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    print(f"wrote {path.relative_to(ROOT)}")
