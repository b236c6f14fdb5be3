"""How much memory this process holds, and the most that it may hold. Standard library alone."""

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def reset_peak() -> int:
    """Forget the high-water mark so far; gives back the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes resident since `reset_peak`."""
    return _status("VmHWM")


def available() -> int:
    """Bytes that a new process may take without swapping."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def limit(share: float) -> int:
    """Let allocations fail beyond this share of what is available, before the machine runs dry."""
    most = int(share * available())
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return most


def _status(name: str) -> int:
    return _field(STATUS, name)


def _field(path: Path, name: str) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return next(1024 * int(words[1]) for words in lines if words[0] == f"{name}:")
