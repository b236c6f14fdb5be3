"""Settings that hold for every test."""

import gc
import os
import threading
from pathlib import Path

# Tests compile far more than they run: what XLA spends on fast code is most of their time. Set
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 to test what users run. Processes that tests start follow.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Pictures are drawn without a screen.
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
from hypothesis import settings
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir

from tests.programs import anew

jax.config.update("jax_enable_x64", True)
# A user may forbid that JAX adds axes by itself; kronax then works all the same.
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):
        # The older way to emit fusions, as one module, compiles in a third of the time; later
        # versions of XLA have only the new one. Read when the first program is compiled.
        quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", quick)

# Examples of one property are cases of one kind: a few every day, more in the full run.
settings.register_profile("everyday", max_examples=8, deadline=None, derandomize=True)
settings.register_profile("full", settings.get_profile("everyday"), max_examples=40)


def pytest_configure(config):
    settings.load_profile("full" if config.option.markexpr in ("", "full") else "everyday")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Every property keeps a case in the everyday run; called before any is left out."""
    if any("::" in argument for argument in config.args):
        return
    everyday = {item.function for item in items if not item.get_closest_marker("full")}
    gone = {item.nodeid.split("[")[0] for item in items if item.function not in everyday}
    if gone:
        raise pytest.UsageError(f"no case of the everyday run is left of {sorted(gone)}")


# Tracing makes containers by the million and hardly a cycle: looked through as often as Python does
# by default, they take an eighth of the time.
gc.set_threshold(200_000, 20, 20)


def share_ir_contexts(most: int = 256) -> None:
    """One MLIR context for many programs, as JAX does from 0.12 on.

    Before, it makes one for each, in 3 ms, and keeps more than a megabyte of it with the program.
    """
    make, held = mlir.make_ir_context, threading.local()

    def shared():
        if ir.Context.current is not None:  # while another program is lowered
            return make()
        held.left = getattr(held, "left", 0) - 1
        if held.left < 0:
            held.context, held.left = make(), most - 1
        return held.context

    mlir.make_ir_context = shared


if jax.__version_info__ < (0, 12):
    share_ir_contexts()

# Some 9000 programs, which take 3 GB; what Linux grants a process is 65 530.
MOST_MEMORY_MAPS = 27_000


def num_memory_maps() -> float:
    """Unknown, and so too many, where there is no /proc."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else float("inf")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_released():
    """One process compiles thousands of programs; kept together they exhaust its memory."""
    yield
    if num_memory_maps() > MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def uncompiled():
    """For patches of code that is compiled: no program of before is used, and none is left."""
    with anew():
        yield
