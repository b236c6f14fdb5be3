"""Numbers and tables in markdown."""

from typing import Any


def grid(row: dict[str, Any]) -> str:
    """The shape of a row's grid."""
    return "×".join(map(str, row["shape"])) + (" points" if len(row["shape"]) == 1 else "")


def digits(value: float | None) -> str:
    """Three digits."""
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float | None) -> str:
    """A ratio."""
    if ratio is None:
        return "–"
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


def table(header: list[str], body: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
