"""Run one measurement in a process of its own: memory starts anew, and a hang ends one case only.

The process is `python -m benchmarks.apart WORKLOAD FUNCTION ARGUMENTS OUTPUT`, the last two JSON.
"""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import ROOT, CandidateError


def apart(workload: str, function: str, limit_s: float, **arguments: Any) -> Any:
    """What `benchmarks.WORKLOAD.FUNCTION(**arguments)` gives in a new process.

    Raises:
        CandidateError: if it is not done after `limit_s`, or ends with an error.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.apart", workload, function]
        try:
            done = subprocess.run(
                [*command, json.dumps(arguments), str(output)], cwd=ROOT, timeout=limit_s
            )
        except subprocess.TimeoutExpired as error:
            raise CandidateError(f"unfinished after {limit_s:.0f} s") from error
        if done.returncode:
            raise CandidateError(f"the process ended with code {done.returncode}")
        return json.loads(output.read_text())


if __name__ == "__main__":
    _, name, attribute, given, target = sys.argv
    measured = getattr(import_module(f"benchmarks.{name}"), attribute)(**json.loads(given))
    Path(target).write_text(json.dumps(measured))
