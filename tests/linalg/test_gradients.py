"""Gradients of what is right to first order only, and of the density, on every case."""

from functools import partial

import jax
import numpy as np
import pytest

from tests.cases import CASES, HESSIANS, gradient_cases
from tests.everyday import full
from tests.linalg.contracted import QUICK, compare, expected, outputs, two_orders, weights_of
from tests.tolerances import assert_close


@partial(jax.jit, static_argnames=("layout", "names"), compiler_options=QUICK)
def first_order(layout, names, leaves, weights, theta):
    return two_orders(jax.jacrev, partial(outputs, layout, names, leaves, weights), theta)


@gradient_cases
def test_gradients(name):
    case = CASES[name]
    # A density needs a covariance; general factors have none. Some have it with their Hessians.
    has_density = case.covariance and name not in HESSIANS
    names = ("inverse_diagonal", "normal_logpdf") if has_density else ("inverse_diagonal",)
    compare(first_order(case.layout, names, case.leaves, weights_of(case), case.theta), case)


FORWARD = [full("two axes"), full("full Kronecker noise"), "batched full noise"]


@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_of_the_inverse_diagonal(name):
    case = CASES[name]
    function = partial(outputs, case.layout, ("inverse_diagonal",), case.leaves, weights_of(case))
    directions = np.eye(case.theta.size)
    slopes = jax.jit(jax.vmap(lambda v: jax.jvp(function, (case.theta,), (v,))[1]))(directions)
    assert_close(slopes["inverse_diagonal"], expected(case, "inverse_diagonal")[1], 1)
