"""Settings that hold for every test."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_released():
    """One process compiles thousands of programs; kept together they exhaust its memory maps."""
    yield
    jax.clear_caches()
