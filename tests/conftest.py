"""Settings that hold for every test."""

import os

# Tests compile far more than they run: what XLA spends on fast code is most of their time. Set
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 to test what users run. Processes that tests start follow.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from hypothesis import settings

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
    settings.load_profile("everyday" if config.option.markexpr == "not full" else "full")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_released():
    """One process compiles thousands of programs; kept together they exhaust its memory maps."""
    yield
    jax.clear_caches()
