"""Every function as a scalar of `theta`, with its derivatives: computed, and by the oracle.

`theta` moves all factors, the noise, `y` and the mean at once, so that every mixed derivative is
included. One compiled function per layout gives value, gradient and Hessian together.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from tests import oracle
from tests.tolerances import assert_close

MODES = {
    "forward over reverse": (jax.jacfwd, jax.jacrev),
    "reverse over forward": (jax.jacrev, jax.jacfwd),
    "forward over forward": (jax.jacfwd, jax.jacfwd),
    "reverse over reverse": (jax.jacrev, jax.jacrev),
}
# `normal_logpdf` is the primitive of `logdet` and `inv_quad` with both weights at once: alone these
# are compared on representative cases.
SECOND_ORDER = ("solve", "logdet", "inv_quad")
FUSED = ("solve", "normal_logpdf")
# Compiling is most of the cost here, and unoptimised code gives the same numbers; the other files
# compile as users do.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    # Later versions of XLA have only the one way to emit fusions.
    QUICK |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def outputs(layout, names, leaves, weights, theta):
    """Functions at `theta`, their batches and cells contracted with fixed weights."""
    op, y, mean = layout.inputs(leaves, theta)
    per_batch, per_cell = weights
    functions = {
        "solve": lambda: per_cell * kx.solve(op, y),
        "logdet": lambda: per_batch * kx.logdet(op),
        "inv_quad": lambda: per_batch * kx.inv_quad(op, y),
        "normal_logpdf": lambda: per_batch * kx.normal_logpdf(y, mean, op),
        "inverse_diagonal": lambda: per_cell * kx.inverse_diagonal(op),
    }
    return {name: jnp.sum(functions[name]()) for name in names}


def two_orders(derivative, function, theta):
    """The value and the first derivative, traced once."""

    def twice(theta):
        value = function(theta)
        return value, value

    return derivative(twice, has_aux=True)(theta)[::-1]


def three_orders(modes, function, theta):
    """The value and both derivatives, traced once."""
    outer, inner = MODES[modes]

    def first(theta):
        value, slope = two_orders(inner, function, theta)
        return slope, (value, slope)

    bend, orders = outer(first, has_aux=True)(theta)
    return *orders, bend


@partial(jax.jit, static_argnames=("layout", "names", "modes"), compiler_options=QUICK)
def second_order(layout, names, modes, leaves, weights, theta):
    return three_orders(modes, partial(outputs, layout, names, leaves, weights), theta)


def weights_of(case):
    rng = np.random.default_rng(11)
    batch = case.dense[0].value.shape[:-2]
    per_batch, per_cell = rng.normal(size=batch), rng.normal(size=(*batch, *case.grid))
    return per_batch.astype(case.theta.dtype), per_cell.astype(case.theta.dtype)


def computed(case, names, modes="forward over reverse"):
    return second_order(case.layout, names, modes, case.leaves, weights_of(case), case.theta)


@cache
def expected(case, output):
    """The contracted jet of an output; that of the inverse's diagonal has no second order."""
    matrix, y, mean = case.dense
    per_batch, per_cell = weights_of(case)
    batch_axes = tuple(range(-per_batch.ndim, 0))
    cell_axes = tuple(range(-per_batch.ndim - 1, 0))

    def contract(array, weights, axes):
        return np.sum(array * weights, axis=axes)

    cells = partial(contract, weights=per_cell.reshape(*per_batch.shape, -1), axes=cell_axes)
    scalars = partial(contract, weights=per_batch, axes=batch_axes)
    jets = {
        "solve": lambda: oracle.linear_map(cells, oracle.solve(matrix, y)),
        "logdet": lambda: oracle.linear_map(scalars, oracle.logdet(matrix)),
        "inv_quad": lambda: oracle.linear_map(scalars, oracle.inv_quad(matrix, y)),
        "normal_logpdf": lambda: oracle.linear_map(scalars, oracle.normal_logpdf(y, mean, matrix)),
        "inverse_diagonal": lambda: tuple(cells(a) for a in oracle.inverse_diagonal(matrix)),
    }
    return jets[output]()


def compare(result, case):
    for order, values in enumerate(result):
        for output, value in values.items():
            truth = expected(case, output)[order]
            assert np.any(truth), "a derivative that vanishes tests nothing"
            assert value.dtype == case.theta.dtype
            assert_close(value, truth, order)
