"""Numbers, modules and tables as people read them."""

import dataclasses
from collections.abc import Sequence
from html import escape
from typing import Any

import equinox as eqx
import jax
import numpy as np

# Kernels and means that are written with a sign between their two parts.
SIGNS = {"Sum": " + ", "SumMean": " + ", "Product": " * "}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, columns aligned to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The same for a notebook; the first row has the names of the columns."""
    tags = ["th", *["td"] * (len(rows) - 1)]
    lines = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(tags, rows, strict=True)
    )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def html_lines(text: str) -> str:
    """Lines of plain text for a notebook."""
    return f"<pre>{escape(text)}</pre>"


def short(value: Any) -> str:
    """An array in few characters: its numbers, or between which they are."""
    if isinstance(value, jax.core.Tracer):
        return f"traced {value.dtype}{list(value.shape)}"
    array = np.asarray(value)
    if array.ndim == 0 and 0 < abs(array) < 1e-3:  # NumPy would print decimals that are zeros
        return f"{array:.4g}"
    if array.size <= 4:
        return " ".join(np.array2string(array, precision=4, separator=", ").split())
    return f"{array.dtype}{list(array.shape)} in [{array.min():.4g}, {array.max():.4g}]"


class Shown:
    """A mixin for modules: printed as it is written, with the values of its parameters."""

    def __repr__(self) -> str:
        name, known = type(self).__name__, vars(self)
        if name in SIGNS and len(known) == 2:
            return SIGNS[name].join(_part(part, name) for part in known.values())
        if name == "Scale":
            return f"{_value(known['variance'])} * {_part(known['kernel'], 'Product')}"
        own: Any = self
        fields = [f for f in dataclasses.fields(own) if f.name in known]
        words = [f"{f.name}={_value(known[f.name])}" for f in fields if not _is_default(f, known)]
        return f"{name}({', '.join(words)})"


def _part(part: Any, around: str) -> str:
    is_sum = SIGNS.get(type(part).__name__) == " + "
    return f"({part!r})" if is_sum and around == "Product" else repr(part)


def _is_default(field: Any, known: dict[str, Any]) -> bool:
    value = known[field.name]
    return value is None or (value is field.default and not eqx.is_array(value))


def _value(value: Any) -> str:
    if isinstance(value, jax.core.Tracer | jax.Array | np.ndarray):
        is_number = value.ndim == 0 and not isinstance(value, jax.core.Tracer)
        is_real = is_number and np.asarray(value).dtype.kind == "f"
        return f"{float(value):.6g}" if is_real else short(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_value(v)}" for k, v in value.items()) + "}"
    if type(value) is tuple:
        return f"({', '.join(map(_value, value))}{',' * (len(value) == 1)})"
    return repr(value)
