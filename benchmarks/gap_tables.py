"""The tables on missing cells, as markdown, from stored rows."""

from typing import Any

import numpy as np

from benchmarks.markdown import digits, table, times
from benchmarks.preconditioners import MAX_STEPS

OURS = "kronax"


def gaps_table(rows: list[dict[str, Any]]) -> str:
    """Scores of held-out cells, times and memory, by data and method."""
    body = []
    fastest: dict[str, float] = {}
    for row in rows:
        if row["method"].startswith(OURS) and row["seconds"] is not None:
            known = fastest.get(row["case"], np.inf)
            fastest[row["case"]] = min(known, row["seconds"])
    for row in rows:
        cells = [f"{row['case']}; {row['num_missing']:,} missing", row["method"]]
        if row["seconds"] is None:
            body.append([*cells, row["error"].replace("|", "/"), *["–"] * 8])
            continue
        is_ours = row["method"].startswith(OURS)
        mark = "> " if row["is_stopped"] and not is_ours else ""
        ours = fastest.get(row["case"])
        value = row.get("log_likelihood")
        ratio = None if is_ours or ours is None else row["seconds"] / ours
        body.append(
            [
                *cells,
                f"{row['rmse']:.4f}",
                f"{row['negative_log_density']:.3f}",
                f"{row['coverage']:.1%}",
                "–" if value is None else f"{value:,.1f}",
                mark + digits(row["fit_seconds"]),
                digits(row["predict_seconds"]),
                digits(row["first_call_seconds"]),
                f"{row['bytes'] / 1e9:.2f} GB",
                "–" if ratio is None else mark + times(ratio),
            ]
        )
    header = ["data", "method", "RMSE", "negative log density", "inside 95 %", "log likelihood"]
    return table([*header, "fit, s", "predict, s", "first call, s", "memory", "over kronax"], body)


def preconditioners_table(rows: list[dict[str, Any]]) -> str:
    """Iterations to the same error, and to the same residual, by noise and preconditioner."""
    names = list(dict.fromkeys(row["preconditioner"] for row in rows))
    places = list(dict.fromkeys((row["field"], row["noise"]) for row in rows))
    counts = {(r["field"], r["noise"], r["preconditioner"]): _counts(r) for r in rows}
    body = [
        [field, f"{noise:g}", *(counts.get((field, noise, name), "–") for name in names)]
        for field, noise in places
    ]
    return table(["cells", "noise", *names], body)


def _counts(row: dict[str, Any]) -> str:
    error, residual = (
        f"> {MAX_STEPS}" if row[f"steps_to_{end}"] is None else str(row[f"steps_to_{end}"])
        for end in ("error", "residual")
    )
    return f"{error} ({residual})"


def certificates_table(rows: list[dict[str, Any]]) -> str:
    """How often values and gradients lie within their reported errors, stratum by stratum."""
    header = ["stratum", "cases", "converged", "values within their error", "gradient entries"]
    header = [*header, "median of the error, nats", "of error over reported error"]
    return table([*header, "most iterations"], [_certified(row) for row in rows])


def _certified(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['kind']} {row['level']}".strip(),
        str(row["num_cases"]),
        f"{row['num_converged'] / row['num_cases']:.1%}",
        f"{row['num_within'] / row['num_converged']:.1%}",
        f"{row['num_within_gradient'] / row['num_gradient']:.1%}",
        digits(row["median_error"]),
        f"{row['median_of_error']:.2f}",
        str(row["most_steps"]),
    ]
