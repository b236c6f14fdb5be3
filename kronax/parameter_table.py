"""The parameters of a model as rows of a table."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.display import aligned, html_table, short
from kronax.paths import matching, numbered


def describe_domain(constraint: Any) -> str:
    """A constraint in words."""
    if constraint is constraints.positive:
        return "positive"
    if constraint is constraints.real:
        return "real"
    low, high = (getattr(constraint, f"{end}_bound", None) for end in ("lower", "upper"))
    bounds = [end for end in (low, high) if end is not None]
    if not bounds or any(isinstance(b, jax.core.Tracer) or np.ndim(b) for b in bounds):
        return str(constraint)
    if len(bounds) == 2:
        return f"between {float(bounds[0]):g} and {float(bounds[1]):g}"
    return f"{'above' if high is None else 'below'} {float(bounds[0]):g}"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of `kx.parameters`: where it is, what it is, and what may become of it.

    A shared parameter takes its value from the path `source`.
    """

    path: str
    value: Array
    domain: Any
    trainable: bool
    source: str | None = None

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        domain = "of unknown domain" if self.domain is None else describe_domain(self.domain)
        return f"{self.path} = {short(self.value)}, {domain}"


class ParameterTable(tuple[Parameter, ...]):
    """The parameters of a model, by number or by path; prints as a table.

    `table["noise"]` is a row, and the beginning of several paths, `table["kernels['time']"]`, a
    table of these.
    """

    axis_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, rows: Iterable[Parameter], axis_names: Any) -> "ParameterTable":
        """The table of a model whose axes have these names."""
        table = cls(rows)
        table.axis_names = axis_names
        return table

    @property
    def rows(self) -> tuple[Parameter, ...]:
        """The parameters."""
        return tuple(self)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        found = matching(numbered(self, key), [p.path for p in self])
        rows = [p for p in self if p.path in found]
        return rows[0] if rows[0].path == numbered(self, key) else self.of(rows, self.axis_names)

    def _cells(self) -> Sequence[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("parameter", "value", "domain", "trainable")]
        for p in self:
            domain = "unknown" if p.domain is None else describe_domain(p.domain)
            trained = "yes" if p.trainable else "no"
            if p.source is not None:
                trained = f"as {p.source}"
            rows.append((p.path, short(p.value), domain, trained))
        return self.with_axes(rows)

    def with_axes(self, rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
        """A head and a row per parameter, with names of axes beside the paths of kernels."""
        axes = [self._axis_of(p.path) for p in self]
        if not any(axes):
            return rows
        column = ["axis", *axes]
        return [(row[0], axis, *row[1:]) for row, axis in zip(rows, column, strict=True)]

    def _axis_of(self, path: str) -> str:
        found = re.match(r"kernels\[(\d+)\]", path)
        return str(self.axis_names[int(found[1])]) if found and self.axis_names else ""

    def __repr__(self) -> str:
        return aligned(self._cells())

    def _repr_html_(self) -> str:
        return html_table(self._cells())
