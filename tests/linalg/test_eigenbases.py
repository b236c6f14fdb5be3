"""Blocks of equal shape decomposed in one call, as on a GPU, give the same as one after another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.factors import eigenbases
from tests.cases import CASES, covariance
from tests.tolerances import assert_close

NAMES = (
    "equal sizes",
    "four axes",
    "Toeplitz, even and odd",
    "one factor of each structure",
    "full Kronecker noise, three axes",
    "batched full noise",
    "identity factor",
)


@pytest.fixture
def together(monkeypatch, uncompiled):
    """What a GPU does."""

    def platform_dependent(*args, cpu, default):
        return default(*args)

    monkeypatch.setattr(eigenbases.lax, "platform_dependent", platform_dependent)


def test_the_same_numbers(together):
    """One program for all: its caches are of no use to others."""
    ops = {name: CASES[name].operator for name in NAMES}
    found = jax.jit(lambda ops: {name: kx.logdet(op) for name, op in ops.items()})(ops)
    for name, log_det in found.items():
        assert_close(log_det, np.linalg.slogdet(CASES[name].dense[0].value)[1])


@pytest.mark.parametrize(("platform", "is_batched"), [("cuda", True), ("cpu", False)])
def test_one_call_for_equal_sizes_on_a_gpu(platform, is_batched):
    def value(a, b, c, y):
        return kx.normal_logpdf(y, 0.0, kx.Kronecker(a, b, c) + 0.1)

    factors = covariance(6), covariance(6, 1), covariance(5)
    traced = jax.jit(jax.value_and_grad(value)).trace(*factors, jnp.ones((6, 6, 5)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(r"syevd_ffi\(", text)) == 2
    assert bool(re.search(r"syevd_ffi.*tensor<2x6x6xf64>", text)) == is_batched
