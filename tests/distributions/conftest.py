"""NumPyro's own distributions, samplers and handlers broadcast as NumPy does."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def numpy_broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield
