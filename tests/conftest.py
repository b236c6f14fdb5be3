"""Settings that hold for every test."""

import os

# Tests compile far more than they run: what XLA spends on fast code is half of their time. Set
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 to test what users run. Processes that tests start follow.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
# A user may forbid that JAX adds axes by itself; kronax then works all the same.
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_released():
    """One process compiles thousands of programs; kept together they exhaust its memory maps."""
    yield
    jax.clear_caches()
