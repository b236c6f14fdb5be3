"""Files that are there whole or not at all."""

import os
from pathlib import Path


def written_whole(path: Path, content: bytes) -> None:
    """Write beside the old file, to the disk, and only then in its place."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
