"""Gradients and Hessians of every function on every case, against the dense oracle.

One compiled function per layout gives value, gradient and Hessian together. `theta` moves all
factors, the noise, `y` and the mean at once, so that every mixed derivative is included.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests import oracle
from tests.cases import CASES
from tests.tolerances import assert_close

MODES = {
    "forward over reverse": (jax.jacfwd, jax.jacrev),
    "reverse over forward": (jax.jacrev, jax.jacfwd),
    "forward over forward": (jax.jacfwd, jax.jacfwd),
    "reverse over reverse": (jax.jacrev, jax.jacrev),
}
OUTPUTS = ("solve", "logdet", "inv_quad", "normal_logpdf")


def outputs(layout, leaves, weights, theta):
    """Every function at `theta`; batches and the solution contracted with fixed weights."""
    op, y, mean = layout.inputs(leaves, theta)
    per_batch, per_cell = weights
    values = {
        "solve": jnp.sum(per_cell * kx.solve(op, y)),
        "logdet": jnp.sum(per_batch * kx.logdet(op)),
        "inv_quad": jnp.sum(per_batch * kx.inv_quad(op, y)),
    }
    if layout.covariance:
        values["normal_logpdf"] = jnp.sum(per_batch * kx.normal_logpdf(y, mean, op))
    return values


# Compiling is most of the cost here, and unoptimised code gives the same numbers; the other files
# compile as users do.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, static_argnames=("layout", "modes"), compiler_options=QUICK)
def second_order(layout, modes, leaves, weights, theta):
    outer, inner = MODES[modes]
    function = partial(outputs, layout, leaves, weights)
    return function(theta), inner(function)(theta), outer(inner(function))(theta)


def weights_of(case):
    rng = np.random.default_rng(11)
    matrix, y, _ = case.dense
    per_batch = rng.normal(size=matrix.value.shape[:-2])
    per_cell = rng.normal(size=(*y.value.shape[:-1], *case.grid))
    dtype = case.theta.dtype
    return per_batch.astype(dtype), per_cell.astype(dtype)


@cache
def computed(name, modes="forward over reverse", dtype="float64"):
    case = CASES[name].astype(dtype)
    result = second_order(case.layout, modes, case.leaves, weights_of(case), case.theta)
    return jax.tree.map(np.asarray, result)


@cache
def expected(name, dtype="float64"):
    case = CASES[name].astype(dtype)
    matrix, y, mean = case.dense
    per_batch, per_cell = weights_of(case)
    x = oracle.solve(matrix, y)
    batch_axes = tuple(range(-per_batch.ndim, 0))
    cell_axes = tuple(axis - 1 for axis in batch_axes)
    jets = {
        "solve": oracle.linear_map(
            lambda a: np.sum(a * per_cell.reshape(y.value.shape), axis=(*cell_axes, -1)), x
        )
    }
    scalars = {
        "logdet": oracle.logdet(matrix),
        "inv_quad": oracle.product(oracle.dot, y, x),
    }
    if case.covariance:
        scalars["normal_logpdf"] = oracle.normal_logpdf(y, mean, matrix)
    for key, jet in scalars.items():
        jets[key] = oracle.linear_map(lambda a: np.sum(a * per_batch, axis=batch_axes), jet)
    return jets


def skip_without(case, output):
    if output == "normal_logpdf" and not case.covariance:
        pytest.skip("the factors are general, and a density needs a covariance")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_hessian(name, output):
    skip_without(CASES[name], output)
    for order, (ours, truth) in enumerate(zip(computed(name), expected(name)[output], strict=True)):
        assert np.any(truth), "a derivative that vanishes tests nothing"
        assert_close(ours[output], truth, order)
