"""Draw the pictures and write the tables of README and documentation from the stored results.

A table replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; a page without
these markers, and a workload without results, are left as they are.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks import (
    devices,
    gap_tables,
    gpu,
    many_gaps,
    markov,
    markov_accuracy,
    markov_gaps,
    markov_lines,
    markov_nuts,
    pictures,
    precision,
    rewrite,
    start,
    tables,
)
from benchmarks.measure import ROOT, results_folder
from benchmarks.nongaussian import accuracy, calibration, others, speed

PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/missing.md",
    "docs/nongaussian.md",
    "docs/precision.md",
    "docs/long_axes.md",
    "docs/devices.md",
)
IMAGES = ROOT / "docs" / "images"
# By workload. A caption stands for a picture that is placed above the table.
CAPTIONS = {
    "solve": "Time to solve against the size of the factors",
    "matvec": "Time of other methods relative to kronax",
    "scale": "Time and memory against the number of cells",
}
PICTURES = {
    "likelihood": (pictures.likelihood_picture, "likelihood.png"),
    "solve": (pictures.solve_picture, "solve.png"),
    "matvec": (pictures.matvec_picture, "matvec.png"),
    "scale": (pictures.scale_picture, "scale.png"),
    "mcmc": (pictures.nuts_picture, "nuts.png"),
}


def run(quick: bool) -> None:
    """Write everything that there are results for; quick tables are printed, quick plots apart."""
    folder = results_folder(quick)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    images = folder if quick else IMAGES
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left"})
    for workload, (draw, file) in PICTURES.items():
        if workload in results:
            draw(results[workload], images / file)
    filled = {
        name: f"{_picture(workload)}{table}\n\n{_source(results[workload])}"
        for workload in results
        for name, table in written(workload, results[workload]).items()
    }
    if quick:
        print("\n\n".join(filled.values()))
        return
    for page in PAGES:
        if _fill(ROOT / page, filled):
            print(f"wrote {page}")


def written(workload: str, results: dict[str, Any]) -> dict[str, str]:
    """The tables of a workload by marker, without those that would have no rows."""
    writers: dict[str, dict[str, Callable]] = {
        "gradients": {"gradients": tables.gradients_table},
        "likelihood": {
            "likelihood": tables.likelihood_table,
            "likelihood-peers": tables.likelihood_peers_table,
            "likelihood-peers-square": tables.square_likelihood_peers_table,
            "low-rank": tables.low_rank_table,
        },
        "solve": {"solve": partial(tables.solve_table, published=results.get("published"))},
        "matvec": {"matvec": tables.matvec_table},
        "scale": {"scale": tables.scale_table},
        "devices": {"devices": devices.devices_table},
        "gpu": {"gpu": gpu.gpu_table},
        "mcmc": {"mcmc": tables.mcmc_table, "nuts-peers": tables.nuts_peers_table},
        "fitting": {
            "fitting": tables.fitting_table,
            "fitting-starts": tables.fitting_starts_table,
            "fitting-bar": tables.fitting_bar_table,
        },
        "whitening": {"whitening": tables.whitening_table},
        "start": {"start": start.start_table},
        "rewrite": {"rewrite": rewrite.rewrite_table},
        "posterior": {"posterior": tables.posterior_table},
        "gaps": {"gaps": gap_tables.gaps_table},
        "preconditioners": {"preconditioners": gap_tables.preconditioners_table},
        "certificates": {"certificates": gap_tables.certificates_table},
        "coverage": {"coverage": tables.coverage_table},
        "precision": {"precision": precision.precision_table},
        "markov": {
            "markov": markov.markov_table,
            "markov-accuracy": markov_accuracy.accuracy_table,
        },
        "markov_gaps": {"markov-gaps": markov_gaps.gaps_table},
        "markov_nuts": {"markov-nuts": markov_nuts.nuts_table},
        "markov_lines": {"markov-lines": markov_lines.lines_table},
        "many_gaps": {"many-gaps": many_gaps.many_gaps_table},
        "nongaussian.accuracy": {
            "nongaussian-accuracy": accuracy.accuracy_table,
            "nongaussian-errors": accuracy.short_table,
        },
        "nongaussian.calibration": {
            "nongaussian-calibration": calibration.calibration_table,
            "nongaussian-bands": calibration.short_table,
        },
        "nongaussian.speed": {"nongaussian-speed": speed.speed_table},
        "nongaussian.others": {"nongaussian-others": others.others_table},
    }
    found = {name: write(results["rows"]) for name, write in writers.get(workload, {}).items()}
    return {name: table for name, table in found.items() if table.count("\n") > 1}


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


def _picture(workload: str) -> str:
    if workload not in CAPTIONS:
        return ""
    return f"![{CAPTIONS[workload]}]({IMAGES.name}/{PICTURES[workload][1]})\n\n"


def _source(results: dict[str, Any]) -> str:
    hardware, versions = results["hardware"], results["versions"]
    device = hardware.get("device", "cpu")
    device = "" if device == "cpu" else f"{device}, "
    peers = dict(results.get("peers", {}))
    for row in results["rows"]:
        found = row.get("versions", {})
        # A row of one peer has its packages, one of several those of each.
        of_one = any(isinstance(number, str) for number in found.values())
        peers |= {row["method"]: found} if of_one else found
    return (
        f"*`python -m benchmarks {results['workload']}`, {results['date']}, {_commits(results)}, "
        f"JAX {versions['jax']}, Python {versions['python']}, {device}{hardware['cores']} cores of "
        f"{hardware['cpu']}{_peers(peers)}.*"
    )


def _commits(results: dict[str, Any]) -> str:
    """What was measured: parts of a workload may have commits of their own."""
    found = dict.fromkeys(row.get("commit", results["commit"]) for row in results["rows"])
    named = [c[:7] + (" with changes" if "-" in c else "") for c in found or [results["commit"]]]
    return ("commits " if len(named) > 1 else "commit ") + ", ".join(named)


def _peers(versions: dict[str, dict[str, str]]) -> str:
    """The versions of the other libraries, each named once."""
    named = {package: number for found in versions.values() for package, number in found.items()}
    named = {k: v for k, v in named.items() if k not in ("jax", "numpy")}
    return "".join(f"; {package} {number}" for package, number in named.items())
