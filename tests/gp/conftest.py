"""Gaussian processes are tested without implicit promotion, so that no dtype widens unseen."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield
