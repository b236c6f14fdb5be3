"""The file: a zip archive of one text and of arrays, none of which can hold code."""

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kronax.files import written_whole

FORMAT = 1
TEXT = "kronax.json"


def write(path: Path, tree: Any, arrays: Sequence[np.ndarray]) -> None:
    """A tree of JSON, which counts its arrays, and these."""
    header = {"format": FORMAT, "kronax": sys.modules["kronax"].__version__, "tree": tree}
    payload = io.BytesIO()
    with zipfile.ZipFile(payload, "w") as archive:
        archive.writestr(TEXT, json.dumps(header, allow_nan=False))
        for k, array in enumerate(arrays):
            with archive.open(_name(k), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    written_whole(path, payload.getvalue())


def read(path: Path) -> tuple[Any, "Arrays", str]:
    """The tree, the arrays, and the version of kronax that wrote them.

    Raises:
        ValueError: if it is no such file, is not whole, or is of a newer format.
    """
    content = path.read_bytes()
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        header = json.loads(archive.read(TEXT))
        own, written, tree = header["format"], header["kronax"], header["tree"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} must be a whole file of kx.save; it is not ({error})."
        ) from error
    if not isinstance(own, int) or own > FORMAT:
        raise ValueError(
            f"{str(path)!r} was written by kronax {written} in format {own}; this version reads "
            f"formats up to {FORMAT}. Install that version or a newer one."
        )
    return tree, Arrays(archive, path), str(written)


class Arrays:
    """The arrays of a file by their numbers."""

    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.archive, self.path = archive, path

    def __getitem__(self, k: int) -> np.ndarray:
        try:
            with self.archive.open(_name(k)) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ValueError(
                f"{str(self.path)!r} must be a whole file of kx.save; its array {k} is not there."
            ) from error


def _name(k: int) -> str:
    return f"arrays/{int(k)}.npy"
