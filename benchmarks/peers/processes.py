"""The near end of the peers' processes: candidates that take turns with those of this process."""

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measure import ROOT, CandidateError
from benchmarks.peers import environments

PREPARE_LIMIT_S = 300
CALL_LIMIT_S = 60
# A peer sees its own packages and this checkout alone, and a first call compiles what it takes.
LEFT_OUT = ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR")


class Worker:
    """One peer's process, started when it is first asked and after it was ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen | None = None
        self.connection: Connection | None = None

    def ask(self, request: str, limit_s: float, **arguments: Any) -> Any:
        """Send a request and wait for the answer; a process that takes longer is ended."""
        if not environments.is_installed(self.name):
            raise CandidateError("not installed")
        if self.connection is None:
            self._start()
        try:
            self.connection.send((request, arguments))
            if not self.connection.poll(limit_s):
                self.stop()
                raise CandidateError(f"over {limit_s:.0f} s")
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            code = self.process.wait()
            self.stop()
            raise CandidateError(f"the process ended with code {code}") from error
        if "error" in reply:
            raise CandidateError(reply["error"])
        return reply["answer"]

    def stop(self) -> None:
        """End the process, those that it started, and with them what was prepared."""
        if self.process is not None:
            self.connection.close()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = self.connection = None

    def _start(self) -> None:
        self.connection, far = Pipe()
        command = [environments.python(self.name), "-m", "benchmarks.peers.serve", self.name]
        log = environments.FOLDER / self.name / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, str(far.fileno())],
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if k not in LEFT_OUT},
                pass_fds=[far.fileno()],
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        far.close()


@dataclass
class Call:
    """A call in a peer's process: `seconds` times it there, calling gives its last result.

    `clock` names what it is timed by, `perf_counter` or `process_time`.
    """

    worker: Worker
    key: int
    task: str
    inputs: dict[str, Any]
    limit_s: float = CALL_LIMIT_S
    is_prepared: bool = False
    clock: str = "perf_counter"

    def seconds(self, repeats: int = 1) -> float:
        """Mean time of a call; the first time it is prepared, which is not counted."""
        if not self.is_prepared:
            self.worker.ask(
                "prepare", PREPARE_LIMIT_S, key=self.key, task=self.task, inputs=self.inputs
            )
            self.is_prepared = True
        return self.worker.ask(
            "seconds", self.limit_s, key=self.key, repeats=repeats, clock=self.clock
        )

    def __call__(self) -> Any:
        """What the last timed call gave."""
        return self.worker.ask("result", CALL_LIMIT_S, key=self.key)


class Peers:
    """The processes of one run of a workload; ends them when it is left."""

    def __init__(self) -> None:
        self.workers = {name: Worker(name) for name in environments.REQUIREMENTS}
        self.keys = count()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.workers.values():
            worker.stop()

    def call(self, name: str, task: str, limit_s: float = CALL_LIMIT_S, **inputs: Any) -> Call:
        """A candidate for `measure.alternate`; what fails, or takes too long, does so there."""
        return Call(self.workers[name], next(self.keys), task, inputs, limit_s)

    def forget(self) -> None:
        """Let go of all that was prepared."""
        for worker in self.workers.values():
            if worker.process is not None:
                worker.ask("forget", CALL_LIMIT_S)

    def device(self, name: str) -> str:
        """What a peer that was asked for something runs on."""
        return self.workers[name].ask("device", CALL_LIMIT_S)

    def versions(self) -> dict[str, Any]:
        """Of every peer that was asked for something; the others are not named."""
        return {
            name: worker.ask("versions", CALL_LIMIT_S)
            for name, worker in self.workers.items()
            if worker.process is not None
        }
