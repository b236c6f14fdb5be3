"""The process of a peer: prepares calls, times them here, and sends back seconds and results.

Runs as `python -m benchmarks.peers.serve NAME DESCRIPTOR` in the peer's environment, with one end
of a connection as the open file descriptor. Timing is of the call alone: nothing is sent meanwhile.
"""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import memory
from benchmarks.peers.environments import PACKAGES

MEMORY_SHARE = 0.85


class Server:
    """What one process has prepared. A method is a request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = import_module(f"benchmarks.peers.with_{name.split('-')[0]}")
        self.tasks = self.module.TASKS
        self.calls: dict[int, Callable[[], Any]] = {}
        self.results: dict[int, Any] = {}
        self.baseline = 0

    def versions(self) -> dict[str, str]:
        """Of the packages that matter."""
        return {package: version(package) for package in PACKAGES[self.name]}

    def device(self) -> str:
        """What calls run on: a library that finds devices by itself says so in `device`."""
        return self.module.device() if hasattr(self.module, "device") else "cpu"

    def prepare(self, key: int, task: str, inputs: dict[str, Any]) -> None:
        """Build and compile a call."""
        self.baseline = memory.reset_peak()
        self.calls[key] = self.tasks[task](**inputs)

    def seconds(self, key: int, repeats: int, clock: str) -> float:
        """Mean time of one of `repeats` calls in a row, by a clock of `time`."""
        call, now = self.calls[key], getattr(time, clock)
        start = now()
        for _ in range(repeats):
            result = call()
        taken = (now() - start) / repeats
        self.results[key] = result
        return taken

    def result(self, key: int) -> Any:
        """What the last timed call gave, as NumPy arrays; a dictionary as it is."""
        found = self.results[key]
        if isinstance(found, dict):
            return found
        return tuple(map(np.asarray, found)) if isinstance(found, tuple) else np.asarray(found)

    def forget(self) -> None:
        """Let go of every call."""
        self.calls.clear()
        self.results.clear()

    def peak(self) -> int:
        """The most memory since before the last call was prepared."""
        return memory.peak() - self.baseline


def main() -> None:
    """Answer requests until the other end closes."""
    name, descriptor = sys.argv[1:]
    connection = Connection(int(descriptor))
    most = memory.limit(MEMORY_SHARE)
    server = None
    while True:
        try:
            request, arguments = connection.recv()
        except EOFError:
            return
        try:
            # Imported at the first request, so that a failing import is an answer as well.
            server = server or Server(name)
            reply = {"answer": getattr(server, request)(**arguments)}
        except Exception as error:
            reply = {"error": _reason(error, most)}
        connection.send(reply)


def _reason(error: Exception, most: int) -> str:
    """One line; what ran out of memory says of how much."""
    if isinstance(error, NotImplementedError):
        return str(error)
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    signs = ("memory", "alloc", "resource_exhausted")
    if any(sign in text.lower() for sign in signs):
        return f"out of memory at {most / 2**30:.0f} GiB"
    return text


if __name__ == "__main__":
    main()
