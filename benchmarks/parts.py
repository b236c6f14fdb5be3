"""Workloads in parts, of which some may be measured again while the rows of the others are kept.

Every row has the commit and the date of its own measurement.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measure import results_folder, save, surroundings

Row = dict[str, Any]
STAMPS = ("commit", "date", "load_average")


def measured(
    workload: str,
    parts: dict[str, Callable[[], list[Row]]],
    described: Callable[[Row], str],
    quick: bool,
    only: Sequence[str] = (),
    **notes: Any,
) -> None:
    """Measure the parts in turn, and store what is done as it comes.

    Args:
        workload: where results go.
        parts: what gives the rows of each.
        described: one line for the log.
        quick: results are kept apart.
        only: the names of parts; of the others the rows that are stored stay.
        notes: what else is stored.
    """
    rows = stored(workload, quick) if only else {}
    for name, measure in parts.items():
        if only and name not in only:
            continue
        here = surroundings()
        rows[name] = [{**row, **{key: here[key] for key in STAMPS}} for row in measure()]
        for row in rows[name]:
            print(described(row), flush=True)
        in_order = [{**row, "part": part} for part in parts for row in rows.get(part, ())]
        save(workload, in_order, quick, **notes)


def stored(workload: str, quick: bool) -> dict[str, list[Row]]:
    """Rows by part, none where nothing is stored."""
    path = results_folder(quick) / f"{workload}.json"
    rows: dict[str, list[Row]] = {}
    if path.exists():
        results = json.loads(path.read_text())
        known = {key: results[key] for key in STAMPS}
        for row in results["rows"]:
            rows.setdefault(row["part"], []).append({**known, **row})
    return rows
