"""Filters in files."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

HEADER = "kronax filter 1"


def save(service: Any, path: Any, what: str) -> None:
    """A line that says what it is, and the arrays."""
    with Path(path).open("wb") as file:
        file.write(json.dumps(_header(service, what)).encode() + b"\n")
        eqx.tree_serialise_leaves(file, service)


def load(path: Any, like: Any, what: str) -> Any:
    """A filter like another, with the arrays of a file."""
    wanted = _header(like, what)
    with Path(path).open("rb") as file:
        try:
            got = json.loads(file.readline())
        except ValueError:
            got = None
        if not isinstance(got, list) or got[:1] != [HEADER]:
            raise ValueError(f"{path} must hold a filter, as its `save` writes it; it does not.")
        for mine, own, part in zip(wanted, got, ("", "model", "arrays"), strict=True):
            if mine != own:
                raise ValueError(
                    f"The filter in {path} must be of the same model as `like`, with data that "
                    f"begin at the same time; its {part} is {own}, and here {mine}."
                )
        return eqx.tree_deserialise_leaves(file, like)


def _header(service: Any, what: str) -> list:
    leaves = [x for x in jax.tree.leaves(service) if eqx.is_array_like(x)]
    return [HEADER, what, [[list(x.shape), str(x.dtype)] for x in leaves]]
