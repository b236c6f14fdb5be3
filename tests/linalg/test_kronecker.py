"""Products, layouts, transposes and multiples, at shapes that nobody chose."""

from functools import partial, reduce
from itertools import permutations
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import kronax as kx
from kronax.linalg.arrays.mode_products import best_order
from kronax.linalg.factors.factorizations import SUBSTITUTED_SIZE
from tests.tolerances import assert_close

SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
BATCHES = st.sampled_from([(), (1,), (3,), (2, 3), (2, 1)])


def matrices_of(shapes, batch=()):
    rng = np.random.default_rng(len(shapes))
    return [rng.normal(size=(*batch, m, n)) for m, n in shapes]


def dense_of(matrices):
    return reduce(np.kron, matrices)


# One program for an example, of which most have shapes of their own.
@jax.jit
def products(op, vectors):
    return [op.mv(x) for x in vectors]


@jax.jit
def matrix_products(op, arrays):
    return [op @ x for x in arrays]


@jax.jit
def denses(*ops):
    return [op.to_dense() for op in ops]


@given(SHAPES, BATCHES, st.booleans())
def test_mv_is_the_dense_product_in_the_layout_given(shapes, batch, flat):
    matrices = matrices_of(shapes)
    rows, columns = zip(*shapes, strict=True)
    op = kx.Kronecker(*matrices)
    x = np.random.default_rng(1).normal(size=(*batch, *columns))
    product = x.reshape(*batch, -1) @ dense_of(matrices).T
    # As many vectors as they have entries may be rows or columns: refused.
    assume(batch[-1:] != (prod(columns),))
    # A flat vector whose trailing sizes happen to be the grid's is a grid.
    given_flat = x.reshape(*batch, -1)
    reads_as_grid = given_flat.shape[-len(columns) :] == columns
    layouts = [(x, product.reshape(*batch, *rows))]
    if flat and not reads_as_grid:
        layouts.append((given_flat, product))
    vectors, truths = zip(*layouts, strict=True)
    for found, truth in zip(products(op, vectors), truths, strict=True):
        assert_close(found, truth)


@given(SHAPES, st.sampled_from([(), (2,), (1,), (3, 2)]))
def test_matmul_is_numpys(shapes, lead):
    matrices = matrices_of(shapes)
    op, dense = kx.Kronecker(*matrices), dense_of(matrices)
    rng = np.random.default_rng(2)
    vector = rng.normal(size=dense.shape[1])
    columns = rng.normal(size=(*lead, dense.shape[1], 3))
    for found, x in zip(matrix_products(op, (vector, columns)), (vector, columns), strict=True):
        assert_close(found, dense @ x)


@given(SHAPES, st.sampled_from([((3, 1), (5,)), ((2,), ()), ((), (4,)), ((1,), (3,))]))
def test_batched_factors_broadcast_as_in_numpy(shapes, batches):
    rng = np.random.default_rng(3)
    batches = [batches[k % 2] for k in range(len(shapes))]
    matrices = [rng.normal(size=(*b, *s)) for b, s in zip(batches, shapes, strict=True)]
    op = kx.Kronecker(*matrices)
    batch = np.broadcast_shapes(*batches)
    dense = np.empty((*batch, *op.shape[-2:]))
    whole = [np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in matrices]
    for place in np.ndindex(*batch):
        dense[place] = dense_of([m[place] for m in whole])
    assert op.shape == dense.shape
    columns = rng.normal(size=(dense.shape[-1], 2))
    x = rng.normal(size=op.grid_shape)

    @jax.jit
    def found(op, columns, x):
        return op.to_dense(), op @ columns, op @ columns[:, 0], op.mv(x).reshape(*batch, -1)

    truth = dense, dense @ columns, dense @ columns[:, 0], dense @ x.ravel()
    for ours, theirs in zip(found(op, columns, x), truth, strict=True):
        assert_close(ours, theirs)


@given(SHAPES, st.floats(-3, 3).filter(lambda c: abs(c) > 1e-3))
def test_transpose_and_multiples(shapes, scalar):
    matrices = matrices_of(shapes)
    op, dense = kx.Kronecker(*matrices), dense_of(matrices)

    @jax.jit
    def found(op):
        multiples = (scalar * op, op * scalar, np.float64(scalar) * op, jnp.asarray(scalar) * op)
        assert all(isinstance(scaled, kx.Kronecker) for scaled in multiples)
        return denses(op.T, op / scalar), denses(*multiples)

    (turned, divided), multiples = found(op)
    assert_close(turned, dense.T)
    assert_close(divided, dense / scalar)
    for scaled in multiples:
        assert_close(scaled, scalar * dense)


@given(SHAPES)
def test_a_product_of_operators_is_a_kronecker_product(shapes):
    matrices = matrices_of(shapes)
    op, dense = kx.Kronecker(*matrices), dense_of(matrices)

    @jax.jit
    def found(op):
        product = op.T @ op
        assert isinstance(product, kx.Kronecker)
        return product.to_dense()

    assert_close(found(op), dense.T @ dense)


@given(SHAPES, st.integers(0, 4), st.integers(0, 4))
def test_nested_products_flatten(shapes, start, stop):
    matrices = matrices_of(shapes)
    inner = matrices[start:stop]
    if not inner:
        return
    nested = kx.Kronecker(*matrices[:start], kx.Kronecker(*inner), *matrices[stop:])
    assert len(nested.factors) == len(matrices)
    assert_close(denses(nested)[0], dense_of(matrices))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), BATCHES)
def test_solve_undoes_mv(sizes, noisy, batch):
    rng = np.random.default_rng(4)
    roots = [rng.normal(size=(n, n + 2)) for n in sizes]
    op = kx.Kronecker(*(r @ r.T + np.eye(len(r)) for r in roots))
    op = op + 0.5 if noisy else op
    x = rng.normal(size=(*batch, *sizes))
    assert_close(jax.jit(lambda op, x: kx.solve(op, op.mv(x)))(op, x), x, 1)


def test_where_both_readings_fit_the_grid_reading_wins():
    op = kx.Kronecker(jnp.array([[2.0]]), jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    x = np.arange(6.0).reshape(3, 1, 2)
    assert op.mv(x).shape == (3, 1, 2)
    assert op.mv(x[:, 0]).shape == (3, 2)
    # (1, 2) is one grid, not a batch of one flat vector; the numbers are the same.
    assert op.mv(x[0]).shape == (1, 2)


def test_rectangular_factors_multiply():
    wide, tall = np.ones((2, 5)), np.arange(12.0).reshape(4, 3)
    op = kx.Kronecker(wide, tall)
    x = np.random.default_rng(0).normal(size=(6, 5, 3))
    assert (op.shape, op.grid_shape, op.output_grid_shape) == ((8, 15), (5, 3), (2, 4))
    truth = x.reshape(6, 15) @ np.kron(wide, tall).T
    assert_close(op.mv(x), truth.reshape(6, 2, 4))
    assert_close(op.mv(x.reshape(6, 15)), truth)
    assert_close(op.T.mv(np.ones((2, 4))), (np.kron(wide, tall).T @ np.ones(8)).reshape(5, 3))


@pytest.mark.parametrize("first", [kx.Dense(np.eye(2)), kx.ScaledIdentity(1.0, 2), np.eye(2)])
def test_operators_and_arrays_are_factors(first):
    op = kx.Kronecker(first, np.ones((3, 3)))
    assert all(isinstance(f, kx.AbstractFactor) for f in op.factors)
    assert_close(op.to_dense(), np.kron(np.eye(2), np.ones((3, 3))))


@pytest.mark.parametrize("shapes", [[(3, 3)] * 7, [(40, 40), (2, 2), (3, 3), (7, 7)]])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_axes_that_pass_round_come_back_to_their_places(shapes, batch):
    matrices = matrices_of(shapes)
    x = np.random.default_rng(4).normal(size=(*batch, *(n for _, n in shapes)))
    product = x.reshape(*batch, -1) @ dense_of(matrices).T
    assert_close(kx.Kronecker(*matrices).mv(x), product.reshape(x.shape))


SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))


@given(st.lists(SIZES, min_size=1, max_size=5))
def test_no_order_of_the_axes_takes_fewer_operations(shapes):
    def operations(order):
        entries = np.cumprod([1.0, *(shapes[i][0] / shapes[i][1] for i in order)])
        return sum(e * shapes[i][0] for e, i in zip(entries, order, strict=False))

    fewest = min(operations(order) for order in permutations(range(len(shapes))))
    assert operations(best_order(shapes)) <= fewest * (1 + 1e-12)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("factor", [kx.Dense, kx.LowerTriangular])
def test_substitution_by_halves(factor, transpose):
    size = 2 * SUBSTITUTED_SIZE + 45
    matrix = np.tril(np.random.default_rng(5).normal(size=(size, size))) / size + np.eye(size)
    if factor is kx.Dense:
        matrix = matrix @ matrix.T + np.triu(matrix.T, 1)
    op = kx.Kronecker(factor(matrix), 2.0 * np.eye(3))
    x = np.random.default_rng(6).normal(size=(size, 3))
    b = 2 * (matrix.T if transpose else matrix) @ x
    solve = partial(kx.solve, op)
    solved = jax.linear_transpose(solve, b)(b)[0] if transpose else solve(b)
    assert_close(solved, x)
