"""What compiled programs contain, and how many there are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

COMPILED: list[str] = []


def _listen(event: str, _: float, **details: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(str(details.get("fun_name", event)))


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def programs() -> Iterator[list[str]]:
    """The names of the programs that are compiled inside, as in a process that has none yet."""
    jax.clear_caches()
    found: list[str] = []
    before = len(COMPILED)
    try:
        yield found
    finally:
        found += COMPILED[before:]


def num_eigh(function, *args) -> int:
    """How many calls of LAPACK's symmetric eigensolver the compiled function has."""
    program = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"custom_call_target=\"[^\"]*syevd", program))
