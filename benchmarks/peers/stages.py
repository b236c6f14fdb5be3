"""When a process got how far: stamps of the clock, of the processor, and programs compiled."""

from collections.abc import Callable
from time import process_time, time


class Stages:
    """Stamps by stage, comparable with the clock of the process that started this one.

    Args:
        num_programs: how many programs JAX has compiled so far, where it is used.
    """

    def __init__(self, num_programs: Callable[[], int] | None = None) -> None:
        self.num_programs = num_programs
        self.found: dict[str, dict[str, float]] = {}

    def reached(self, stage: str) -> None:
        """What came before is done, its results are there."""
        self.found[stage] = {"clock": time(), "processor_seconds": process_time()}
        if self.num_programs is not None:
            self.found[stage]["programs"] = self.num_programs()


def programs_compiled() -> Callable[[], int]:
    """Starts to count the programs that JAX compiles from here on."""
    import jax

    compiled: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: len(compiled)
