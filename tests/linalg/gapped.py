"""Functions of an operator with gaps as scalars of `theta`: computed, and by the dense oracle.

The oracle takes rows and columns of the dense matrix and its derivatives; nothing else is shared
with the code.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from kronax.linalg.operators.gap_geometry import Mask
from tests import oracle
from tests.linalg.contracted import QUICK, three_orders, two_orders, weights_of


def mask_of(grid, missing) -> Mask:
    """A mask with gaps at the indices `missing`, which may hold slices."""
    observed = np.ones(grid, bool)
    for place in missing:
        observed[place] = False
    return Mask.of(observed, grid)


def scattered(grid) -> Mask:
    """Gaps along a broken diagonal of the last two axes, the same along all others."""
    rows, columns = grid[-2:]
    places = {(k % rows, (2 * k + k // rows) % columns) for k in range(max(rows, columns) - 1)}
    return mask_of(grid, [(..., *place) for place in places])


def outputs(layout, mask, method, names, leaves, weights, theta):
    op, y, mean = layout.inputs(leaves, theta)
    part = kx.Masked(op, mask, method=method)
    y = jnp.where(mask.array, y, jnp.nan)
    per_batch, per_cell = weights
    functions = {
        "solve": lambda: per_cell * kx.solve(part, y),
        "logdet": lambda: per_batch * kx.logdet(part),
        "inv_quad": lambda: per_batch * kx.inv_quad(part, y),
        "normal_logpdf": lambda: per_batch * kx.normal_logpdf(y, mean, part),
        "inverse_diagonal": lambda: per_cell * kx.inverse_diagonal(part),
    }
    return {name: jnp.sum(functions[name]()) for name in names}


@partial(jax.jit, static_argnames=("layout", "mask", "method", "names"), compiler_options=QUICK)
def first_order(layout, mask, method, names, leaves, weights, theta):
    function = partial(outputs, layout, mask, method, names, leaves, weights)
    return two_orders(jax.jacrev, function, theta)


@partial(
    jax.jit, static_argnames=("layout", "mask", "method", "names", "modes"), compiler_options=QUICK
)
def second_order(layout, mask, method, names, modes, leaves, weights, theta):
    function = partial(outputs, layout, mask, method, names, leaves, weights)
    return three_orders(modes, function, theta)


def expected(case, mask):
    """What makes the contracted jets of every output: a large grid's take longer than the code."""
    places = np.flatnonzero(mask.array.ravel())
    matrix, y, mean = case.dense
    matrix = oracle.linear_map(lambda a: a[..., places, :][..., places], matrix)
    y, mean = (oracle.linear_map(lambda a: a[..., places], jet) for jet in (y, mean))
    per_batch, per_cell = weights_of(case)
    per_cell = per_cell.reshape(*per_batch.shape, -1)[..., places]
    batch_axes = tuple(range(-per_batch.ndim, 0))
    cell_axes = tuple(range(-per_batch.ndim - 1, 0))
    cells = lambda a: np.sum(a * per_cell, axis=cell_axes)  # noqa: E731
    scalars = lambda a: np.sum(a * per_batch, axis=batch_axes)  # noqa: E731
    return {
        "solve": lambda: oracle.linear_map(cells, oracle.solve(matrix, y)),
        "logdet": lambda: oracle.linear_map(scalars, oracle.logdet(matrix)),
        "inv_quad": lambda: oracle.linear_map(scalars, oracle.inv_quad(matrix, y)),
        "normal_logpdf": lambda: oracle.linear_map(scalars, oracle.normal_logpdf(y, mean, matrix)),
        "inverse_diagonal": lambda: tuple(cells(a) for a in oracle.inverse_diagonal(matrix)),
    }
