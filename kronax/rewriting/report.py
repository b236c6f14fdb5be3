"""What a rewrite found, where in the user's file, and what became of it."""

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = str(Path(__file__).resolve().parents[1])


class DenseProductWarning(UserWarning):
    """A Kronecker product is formed as a dense matrix, as the program says."""


class DenseProductError(ValueError):
    """A Kronecker product would be formed as a dense matrix, where `strict=True` forbids it."""


class Place(NamedTuple):
    """A line of the user's program, and what it calls there."""

    name: str
    file: str
    line: int

    @classmethod
    def of(cls, eqn: Any) -> "Place":
        """The innermost line that belongs neither to a library nor to kronax."""
        name = eqn.params.get("name", eqn.primitive.name)
        traceback = eqn.source_info.traceback
        for frame in traceback.frames if traceback is not None else ():
            if not is_library(frame.file_name):
                return cls(name, frame.file_name, frame.line_num)
        return cls(name, "<unknown>", 0)

    def __str__(self) -> str:
        return f"`{self.name}` at {self.file}:{self.line}"

    @property
    def short(self) -> str:
        """The file's name and the line."""
        return f"{os.path.basename(self.file)}:{self.line}"


def is_library(file: str) -> bool:
    """Whether a file is an installed package's or kronax's own."""
    return "site-packages" in file or file.startswith((PACKAGE, "<frozen"))


class Event(NamedTuple):
    """One line of the table."""

    place: Place
    found: str
    became: str
    before: float
    after: float


@dataclass
class Log:
    """What happens in one run of a rewritten program."""

    strict: bool = False
    quiet: bool = False
    events: list[Event] = field(default_factory=list)
    told: set[tuple[Place, str]] = field(default_factory=set)

    def note(self, place: Place, found: str, became: str, before: float, after: float) -> None:
        """Something that stays structured."""
        self.events.append(Event(place, found, became, before, after))

    def formed(self, place: Place, what: str, shape: tuple[int, ...], why: str | None) -> None:
        """A product that does not.

        Raises:
            DenseProductError: if that is forbidden.
        """
        size = "×".join(map(str, shape))
        reason = f" ({why})" if why else ""
        message = f"{place} takes {what} as a dense {size} array{reason}."
        if self.quiet:
            self.events.append(Event(place, what, f"dense{reason}", 0.0, 0.0))
            return
        if self.strict:
            raise DenseProductError(
                f"{message} With strict=True no product may be formed; change that line, or leave "
                "out strict=True."
            )
        if (place, what) not in self.told:
            self.told.add((place, what))
            warnings.warn(
                f"{message} The result is right, at the dense code's cost.",
                DenseProductWarning,
                stacklevel=_level(),
            )

    def __str__(self) -> str:
        if not self.events:
            return "No Kronecker product was found."
        header = ("where", "call", "found", "became", "operations before", "after")
        rows = [
            (
                event.place.short,
                event.place.name,
                event.found,
                event.became,
                f"{event.before:.1e}" if event.before else "",
                f"{event.after:.1e}" if event.after else "",
            )
            for event in self.events
        ]
        widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in (header, *rows)
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _level() -> int:
    """So that the warning points to the caller of the rewritten function."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and is_library(frame.f_code.co_filename):
        frame, depth = frame.f_back, depth + 1
    return depth
