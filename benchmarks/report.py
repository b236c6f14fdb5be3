"""Draw the pictures and write the tables of README and documentation from the stored results.

A table replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; a page without
these markers, and a workload without results, are left as they are.
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.measure import ROOT, results_folder

PAGES = ("README.md", "docs/benchmarks.md")
IMAGES = ROOT / "docs" / "images"
NAMES = {"kronax": "kronax", "naive": "autodiff through `eigh`", "dense": "dense", "eigh": "`eigh`"}
COLOURS = {"kronax": "tab:blue", "regular": "tab:green", "naive": "tab:red", "eigh": "0.45"}


def run(quick: bool) -> None:
    """Write everything that there are results for; quick tables are printed, quick plots apart."""
    folder = results_folder(quick)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    images = folder if quick else IMAGES
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left"})
    if "likelihood" in results:
        likelihood_picture(results["likelihood"], images / "likelihood.png")
    if "mcmc" in results:
        nuts_picture(results["mcmc"], images / "nuts.png")
    writers = {
        "gradients": gradients_table,
        "likelihood": likelihood_table,
        "solve": solve_table,
        "mcmc": mcmc_table,
    }
    tables = {
        name: f"{write(results[name]['rows'])}\n\n{_source(results[name])}"
        for name, write in writers.items()
        if name in results
    }
    if quick:
        print("\n\n".join(tables.values()))
        return
    for page in PAGES:
        if _fill(ROOT / page, tables):
            print(f"wrote {page}")


def gradients_table(rows: list[dict[str, Any]]) -> str:
    """Relative errors of gradient and Hessian, kronax beside autodiff."""
    body = []
    for ours, theirs in _pairs(rows, ("kernel", "shape", "dtype", "parameters")):
        case = f"{ours['kernel']}{_correlations(ours)}, {_grid(ours)}, {ours['dtype']}"
        body.append(
            [case]
            + [
                _error(r[f"{kind}_error"])
                for r in (ours, theirs)
                for kind in ("gradient", "hessian")
            ]
        )
    header = ["", "kronax, gradient", "Hessian", "autodiff through `eigh`, gradient", "Hessian"]
    return _table(header, body)


def likelihood_table(rows: list[dict[str, Any]]) -> str:
    """Times in milliseconds with the error of the gradient beside them."""
    body = []
    for group in _groups(rows, ("kernel", "shape")):
        kronax, naive, regular = (group[name] for name in ("kronax", "naive", "regular"))
        body.append(
            [
                kronax["kernel"],
                _grid(kronax),
                _milliseconds(group["eigh"]["seconds"]),
                _milliseconds(kronax["seconds"]),
                f"{kronax['over_eigh']:.2f}",
                _milliseconds(regular["seconds"]),
                f"{regular['over_eigh']:.2f}",
                _milliseconds(naive["seconds"]),
                _milliseconds(group["dense"]["seconds"]) if "dense" in group else "–",
                _error(kronax["gradient_error"]),
                _error(naive["gradient_error"]),
            ]
        )
    header = ["kernel", "grid", "`eigh`, ms", "kronax, ms", "kronax / `eigh`"]
    header += ["regular axes seen, ms", "regular / `eigh`"]
    header += ["autodiff through `eigh`, ms", "dense, ms"]
    return _table([*header, "gradient error: kronax", "autodiff"], body)


def solve_table(rows: list[dict[str, Any]]) -> str:
    """Times in microseconds, and how many times faster than dense."""
    body = []
    for group in _groups(rows, ("kind", "size", "form")):
        kronax = group["kronax"]
        speedup = kronax["dense_over_this"]
        body.append(
            [
                kronax["kind"],
                f"{kronax['size']}²",
                kronax["form"],
                *(
                    f"{1e6 * group[name]['seconds']:.3g}" if name in group else "–"
                    for name in ("kronax", "kronax, not jitted", "NumPy")
                ),
                f"{1e6 * group['dense']['seconds']:,.0f}" if "dense" in group else "–",
                f"{speedup:,.0f} ×" if speedup else "–",
                _error(kronax["residual"]),
            ]
        )
    header = ["factors", "size", "right side", "kronax, µs", "not jitted, µs", "NumPy by axis, µs"]
    return _table([*header, "dense, µs", "dense / kronax", "residual"], body)


def mcmc_table(rows: list[dict[str, Any]]) -> str:
    """What became of each sampler."""
    body = []
    for row in rows:
        name = NAMES[row["method"]]
        draws = f"{row['num_chains']} × ({row['num_warmup']} + {row['num_samples']})"
        if row["seconds"] is None:
            body.append([name, draws, f"unfinished after {row['unfinished_after']}", *["–"] * 4])
            continue
        body.append(
            [
                name,
                draws,
                f"{row['seconds']:.1f}",
                f"{_worst(row):.2f}",
                f"{row['effective_samples_per_second']:.2g}",
                f"{row['steps_per_draw']:.0f}",
                str(row["divergences"]),
            ]
        )
    header = ["gradient", "chains × (warm-up + draws)", "seconds", "largest r-hat"]
    return _table([*header, "effective samples/s", "leapfrog steps a draw", "divergences"], body)


def likelihood_picture(results: dict[str, Any], path: Path) -> None:
    """Time and gradient error against the size of a square grid, one column per kernel."""
    kernels = list(dict.fromkeys(row["kernel"] for row in results["rows"]))
    figure, axes = plt.subplots(
        2, len(kernels), figsize=(10, 7), sharex=True, sharey="row", layout="constrained"
    )
    labels = {
        "kronax": "kronax, dense factors",
        "regular": "kronax, regular axes seen",
        "naive": "automatic differentiation through eigh",
        "eigh": "eigh of the factors alone",
    }
    for kernel, (top, bottom) in zip(kernels, axes.T, strict=True):
        for method, label in labels.items():
            rows = [
                r
                for r in results["rows"]
                if (r["kernel"], r["method"]) == (kernel, method) and len(set(r["shape"])) == 1
            ]
            sizes = [r["shape"][0] for r in rows]
            style = {"color": COLOURS[method], "marker": "o", "ms": 5}
            dashed = {"ls": "--", "marker": None, "zorder": 1} if method == "eigh" else {}
            top.loglog(sizes, [1e3 * r["seconds"] for r in rows], label=label, **style | dashed)
            if method != "eigh":
                errors = [r["gradient_error"] or float("nan") for r in rows]
                bottom.loglog(sizes, errors, label=label, **style)
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
    axes[0, 0].legend(fontsize=9, loc="upper left")
    axes[1, 0].set_ylabel("relative error of the gradient")
    _save(figure, path)


def nuts_picture(results: dict[str, Any], path: Path) -> None:
    """Traces of one lengthscale, side by side."""
    rows = [row for row in results["rows"] if row["seconds"] is not None]
    titles = {
        "kronax": "kronax: exact gradient",
        "naive": "automatic differentiation through eigh: wrong gradient",
    }
    figure, axes = plt.subplots(
        1, len(rows), figsize=(11, 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for row, ax in zip(rows, axes[0], strict=True):
        for chain, (draws, colour) in enumerate(
            zip(row["lengthscale_1"], ("tab:blue", "tab:orange"), strict=False)
        ):
            ax.plot(range(1, len(draws) + 1), draws, color=colour, lw=1, label=f"chain {chain + 1}")
        ax.axhline(
            results["truth"]["lengthscale_1"], color="0.3", ls="--", lw=1, label="true value"
        )
        ax.set_title(
            f"{titles[row['method']]}\n"
            f"r-hat {row['r_hat']['lengthscale_1']:.2f} · {row['steps_per_draw']:.0f} leapfrog "
            f"steps a draw · {row['seconds']:.0f} s in all",
        )
        ax.set_xlabel("draw after warm-up")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("lengthscale of the first axis")
    axes[0, -1].legend(fontsize=9)
    shape = " × ".join(map(str, results["shape"]))
    figure.suptitle(
        f"One Gaussian process on a {shape} grid, one sampler (NUTS), two gradients", fontsize=13
    )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    print(f"wrote {path.relative_to(ROOT)}")


def _fill(page: Path, tables: dict[str, str]) -> bool:
    """Replace the generated parts of a page; whether it has any."""
    if not page.exists():
        return False
    text = page.read_text()
    filled = text
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        filled = re.sub(
            pattern, lambda _, new=f"{begin}\n{table}\n{end}": new, filled, flags=re.DOTALL
        )
    page.write_text(filled)
    return filled != text


def _source(results: dict[str, Any]) -> str:
    hardware, versions = results["hardware"], results["versions"]
    commit = results["commit"][:7] + (" with changes" if "-" in results["commit"] else "")
    return (
        f"*`python -m benchmarks {results['workload']}`, {results['date']}, commit {commit}, "
        f"JAX {versions['jax']}, Python {versions['python']}, {hardware['cores']} cores of "
        f"{hardware['cpu']}.*"
    )


def _groups(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of one case together, by method, in the order in which they come."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        groups.setdefault(str([row[k] for k in keys]), {})[row["method"]] = row
    return list(groups.values())


def _pairs(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[tuple[Any, Any]]:
    return [(group["kronax"], group["naive"]) for group in _groups(rows, keys)]


def _grid(row: dict[str, Any]) -> str:
    return "×".join(map(str, row["shape"])) + (" points" if len(row["shape"]) == 1 else "")


def _correlations(row: dict[str, Any]) -> str:
    if row["kernel"] != "exchangeable":
        return ""
    values = [f"{v:.1g}" for v in row["parameters"][:-1]]
    return f" (correlations {', '.join(values)})"


def _worst(row: dict[str, Any]) -> float:
    return max(row["r_hat"].values())


def _error(value: float | None) -> str:
    """Two digits, powers of ten where they are needed; bold where nothing is right."""
    if value is None:
        return "**NaN**"
    if value >= 0.01:
        return f"**{value:.2g}**" if value < 99.5 else f"**{value:,.0f}**"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
