"""Run one chain per core in JAX, compiling and sampling timed apart; ours and the peers' processes.

JAX is imported late, since the number of its devices has to be set first.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any


@dataclass
class TimedChains:
    """A `chain_method` for NumPyro that does what "parallel" does and looks at the clock."""

    compile_seconds: float = 0.0
    sampling_seconds: float = 0.0

    def __call__(self, chain: Callable) -> Callable:
        """`chain` mapped over the cores."""
        import jax

        def run(arguments: Any) -> Any:
            start = perf_counter()
            program = jax.pmap(chain).lower(arguments).compile()
            compiled = perf_counter()
            result = jax.block_until_ready(program(arguments))
            self.compile_seconds = compiled - start
            self.sampling_seconds = perf_counter() - compiled
            return result

        return run


def cpu_seconds() -> float:
    """Processor time of this process and of those that it waited for: neighbours do not count."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
