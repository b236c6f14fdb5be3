"""Batches of products inside of dense programs, sums along axes, triangles, and what repeats."""

import re

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import numpyro.distributions as dist
import pytest

import kronax as kx
from tests.everyday import everyday
from tests.tolerances import assert_close

M, N, ROWS = 5, 8, 3
SIZE = M * N
RNG = np.random.default_rng(23)


def _spd(n, *batch):
    x = RNG.normal(size=(*batch, n, n))
    return jnp.asarray(x @ np.swapaxes(x, -1, -2) / n + np.eye(n))


A, B = _spd(M, ROWS), _spd(N, ROWS)
G, H = (jnp.asarray(RNG.normal(size=(ROWS, n, n)) + 3 * np.eye(n)) for n in (M, N))
Y, X = jnp.asarray(RNG.normal(size=(ROWS, SIZE))), jnp.asarray(RNG.normal(size=(ROWS, SIZE, 2)))
EYE = jnp.eye(SIZE)
NORMAL = dist.MultivariateNormal


def _noisy(a, b):
    return jnp.kron(a, b) + 0.3 * EYE


def _batched(a, b):
    product = jnp.einsum("...ij,...kl->...ikjl", a, b)
    return product.reshape(*product.shape[:-4], SIZE, SIZE)


def _noisy_batch(a, b):
    return _batched(a, b) + 0.3 * jnp.broadcast_to(EYE, (1, SIZE, SIZE))


def _density(y, matrix):
    return jsp.stats.multivariate_normal.logpdf(y, jnp.zeros(SIZE), matrix)


def _by_cholesky(matrix, b):
    return jsp.linalg.cho_solve(jsp.linalg.cho_factor(matrix, lower=True), b)


def _inverse(matrix, b):
    inverse = jnp.linalg.inv(matrix)
    return inverse @ b, b @ inverse, jnp.trace(inverse), jnp.diag(inverse)


# name: a program of one row, which factors, what else it takes, and the axes that are mapped
MAPPED = {
    "solve": (lambda a, b, y: jnp.linalg.solve(jnp.kron(a, b), y), (G, H, Y), (0, 0, 0)),
    "solve, noise": (lambda a, b, y: jnp.linalg.solve(_noisy(a, b), y), (A, B, Y), (0, 0, 0)),
    "one factor": (lambda a, b, y: jnp.linalg.solve(_noisy(a, b), y), (A, B[0], Y), (0, None, 0)),
    "one vector": (lambda a, b, y: jnp.linalg.solve(_noisy(a, b), y), (A, B, Y[0]), (0, 0, None)),
    "columns": (lambda a, b, x: jnp.linalg.solve(jnp.kron(a, b), x), (G, H, X), (0, 0, 0)),
    "determinant": (
        lambda a, b, _: (jnp.linalg.slogdet(jnp.kron(a, b)), jnp.linalg.slogdet(_noisy(a, b))),
        (A, B, Y),
        (0, 0, None),
    ),
    "inverse": (lambda a, b, y: _inverse(_noisy(a, b), y), (A, B, Y), (0, 0, 0)),
    "products": (lambda a, b, y: (_noisy(a, b) @ y, y @ jnp.kron(a, b)), (G, H, Y), (0, 0, 0)),
    "density": (lambda a, b, y: _density(y, _noisy(a, b)), (A, B, Y), (0, 0, 0)),
    "density, product": (lambda a, b, y: _density(y, jnp.kron(a, b)), (A, B, Y), (0, 0, 0)),
    "cho_solve": (lambda a, b, x: _by_cholesky(_noisy(a, b), x), (A, B, X), (0, 0, 0)),
    "eigenvalues": (lambda a, b, _: jnp.linalg.eigvalsh(_noisy(a, b)), (A, B, Y), (0, 0, None)),
    "another axis": (
        lambda a, b, y: jnp.linalg.solve(_noisy(a, b), y),
        (jnp.moveaxis(A, 0, 2), B, Y),
        (2, 0, 0),
    ),
}
EVERY_DAY = ("one factor", "determinant", "inverse", "density")


@pytest.mark.parametrize("name", everyday(MAPPED, EVERY_DAY))
def test_products_mapped_inside_of_a_program(name):
    program, args, in_axes = MAPPED[name]
    fast = kx.rewrite(jax.vmap(program, in_axes), strict=True)
    found, by_matrix = fast(*args), jax.jit(program)
    for row in range(ROWS):
        own = [
            x if axis is None else jnp.take(x, row, axis)
            for x, axis in zip(args, in_axes, strict=True)
        ]
        expected = by_matrix(*own)
        jax.tree.map(lambda got, want, row=row: assert_close(got[row], want), found, expected)


# Written with batches; some of them broadcast.
BATCHES = {
    "solve": (lambda a, b: jnp.linalg.solve(_batched(a, b), X), (G, H)),
    "one for all": (lambda a, b: jnp.linalg.solve(_batched(a, b), X[:1]), (G, H)),
    "rows and columns": (
        lambda a, b: jnp.linalg.solve(_batched(a, b)[:, None], X[None, :2]),
        (G, H),
    ),
    "one matrix": (lambda a, b: jnp.linalg.solve(_batched(a, b), X), (G[0], H[0])),
    "factors broadcast": (lambda a, b: jnp.linalg.solve(_batched(a, b), X), (G, H[:1])),
    "density": (lambda a, b: NORMAL(jnp.zeros(SIZE), _noisy_batch(a, b)).log_prob(Y), (A, B)),
    "density, repeated": (
        lambda a, b: NORMAL(jnp.zeros((ROWS, SIZE)), _noisy(a, b)).log_prob(Y),
        (A[0], B[0]),
    ),
    "density, rows and columns": (
        lambda a, b: NORMAL(jnp.zeros(SIZE), _noisy_batch(a, b)[:, None]).log_prob(
            jnp.swapaxes(X, 1, 2)
        ),
        (A, B),
    ),
    "precision": (
        lambda a, b: NORMAL(jnp.zeros(SIZE), precision_matrix=_noisy_batch(a, b)).log_prob(Y),
        (A, B),
    ),
    "draws": (
        lambda a, b: NORMAL(jnp.zeros(SIZE), _batched(a, b)).sample(jax.random.key(0), (2,)),
        (A, B),
    ),
}


@pytest.mark.parametrize("name", everyday(BATCHES, ("rows and columns", "density")))
def test_products_written_with_a_batch(name):
    program, args = BATCHES[name]
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(program)(*args)
        jax.tree.map(assert_close, jax.jit(kx.rewrite(program, strict=True))(*args), expected)


def _along_axes(a, b):
    return jnp.kron(a, jnp.eye(N)) + 2.0 * jnp.kron(jnp.eye(M), b) + 0.2 * EYE


def _three_axes(a, b):
    a, b = a[:2, :2], b[:3, :3]
    c = jnp.array([[1.0, 0.2], [0.2, 1.0]])
    one, two = (
        jnp.kron(jnp.kron(a, jnp.eye(3)), jnp.eye(2)),
        jnp.kron(jnp.eye(2), jnp.kron(b, jnp.eye(2))),
    )
    return jnp.linalg.slogdet(one + two + jnp.kron(jnp.eye(6), c))


SUMS = {
    "solve": lambda a, b: jnp.linalg.solve(_along_axes(a, b), Y[0]),
    "density": lambda a, b: _density(Y[0], _along_axes(a, b)),
    "eigenvalues": lambda a, b: jnp.linalg.eigvalsh(_along_axes(a, b)),
    "without a multiple of the identity": lambda a, b: jnp.linalg.solve(
        jnp.kron(a, jnp.eye(N)) + jnp.kron(jnp.eye(M), b), Y[0]
    ),
    "three axes": _three_axes,
}


@pytest.mark.parametrize("name", everyday(SUMS, ("density", "eigenvalues")))
def test_sums_along_axes_stay_structured(name):
    program, args = SUMS[name], (A[0], B[0])
    jax.tree.map(assert_close, kx.rewrite(program, strict=True)(*args), jax.jit(program)(*args))


def test_a_triangle_of_traced_factors_is_what_their_values_say():
    def program(a, b):
        return jsp.linalg.solve_triangular(jnp.kron(a, b), Y[0], lower=True)

    roots = jnp.linalg.cholesky(A[0]), jnp.linalg.cholesky(B[0])
    dense = jax.jit(program)
    assert_close(kx.rewrite(program, strict=True)(*roots), dense(*roots))
    # A solve reads one triangle alone, and that of a product is no product of triangles.
    fast, expected = kx.rewrite(program, strict=True), dense(A[0], B[0])
    for found in (fast(A[0], B[0]), jax.jit(fast)(A[0], B[0])):
        assert_close(found, expected)


# Factors that are not square, of which the product is.
TALL, WIDE = jnp.asarray(RNG.normal(size=(3, 2))), jnp.asarray(RNG.normal(size=(4, 6)))


def test_factors_that_are_not_square_are_never_taken_apart_in_a_solve():
    def program(a, b):
        product = jnp.kron(a, b)
        assert product.shape == (12, 12)
        shifted = product + 5.0 * jnp.eye(12)
        return (
            jnp.linalg.solve(shifted, jnp.ones(12)),
            jnp.linalg.slogdet(shifted),
            product @ jnp.ones(12),
        )

    with pytest.warns(kx.DenseProductWarning, match="kron"):
        found = jax.jit(kx.rewrite(program))(TALL, WIDE)
    jax.tree.map(assert_close, found, jax.jit(program)(TALL, WIDE))


def test_the_users_error_is_the_users_own():
    def program(a, b):
        return jnp.linalg.solve(jnp.kron(a, b), jnp.ones(SIZE + 1))  # one too many

    with pytest.raises((TypeError, ValueError)) as plain:
        program(A[0], B[0])
    with pytest.raises(type(plain.value), match=re.escape(str(plain.value))) as rewritten:
        kx.rewrite(program)(A[0], B[0])
    lines = [entry.lineno for entry in rewritten.traceback if str(entry.path) == __file__]
    assert program.__code__.co_firstlineno in lines


def test_a_product_that_a_loop_carries_is_formed_and_told():
    def program(a, b):
        def step(carry, _):
            return 0.5 * carry, carry[0, 0]

        return jax.lax.scan(step, jnp.kron(a, b), length=2)

    with pytest.warns(kx.DenseProductWarning, match="`scan` at"):
        found = kx.rewrite(program)(A[0], B[0])
    jax.tree.map(assert_close, found, jax.jit(program)(A[0], B[0]))


def test_what_a_body_forms_is_formed_again_outside():
    def program(a, b):
        product, noisy = jnp.kron(a, b), _noisy(a, b)

        def step(carry, _):
            return carry, (jnp.exp(product).sum(), jnp.linalg.cholesky(noisy)[1, 0])

        _, within = jax.lax.scan(step, 0.0, length=2)
        chosen = jax.lax.cond(a[0, 0] > 0, lambda: jnp.sin(product), lambda: product)
        return within, chosen, jnp.exp(product), jnp.sin(product), jnp.linalg.cholesky(noisy)

    with pytest.warns(kx.DenseProductWarning):
        found = kx.rewrite(program)(A[0], B[0])
    jax.tree.map(assert_close, found, jax.jit(program)(A[0], B[0]))


def _total(k):
    return Y[0] @ jnp.linalg.solve(k, Y[0]) + jnp.linalg.slogdet(k)[1] + (k @ X[0]).sum()


def test_a_gradient_that_is_rewritten_stays_structured():
    def program(a, b):
        return jax.value_and_grad(lambda a, b: _total(jnp.kron(a, b)), (0, 1))(a, b)

    fast = kx.rewrite(program, strict=True)
    compiled = jax.jit(fast).lower(G[0], H[0]).compile()
    jax.tree.map(assert_close, compiled(G[0], H[0]), jax.jit(program)(G[0], H[0]))
    text = compiled.as_text()
    assert f"[{SIZE},{SIZE}]" not in text
    assert f"[{M},{N},{M},{N}]" not in text


DERIVATIVES = {
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "hessian": jax.hessian,
    "mapped": lambda f: jax.vmap(jax.grad(f)),
}


@pytest.mark.parametrize("name", everyday(DERIVATIVES, ("hessian",)))
def test_a_derivative_of_a_function_is_that_of_the_rewritten_one(name):
    derivative = DERIVATIVES[name](lambda s: _density(Y[0], _noisy(s * A[0], B[0])))
    point = jnp.array([1.2, 1.3]) if name == "mapped" else jnp.asarray(1.2)
    fast = kx.rewrite(derivative, strict=True)
    found, expected = jax.jit(fast)(point), jax.jit(derivative)(point)
    jax.tree.map(lambda got, want: assert_close(got, want, 2), found, expected)
    assert "kx.inv_quad" in fast.explain(point)


def test_a_gradient_inside_of_a_program_is_right_and_tells_what_it_forms():
    def program(scale):
        return jax.value_and_grad(lambda s: _density(Y[0], _noisy(s * A[0], B[0])))(scale)

    with pytest.warns(kx.DenseProductWarning):
        found = jax.jit(kx.rewrite(program))(jnp.asarray(1.2))
    jax.tree.map(assert_close, found, jax.jit(program)(jnp.asarray(1.2)))


def test_thin_products_are_what_they_were():
    def program(u):
        gram = u @ u.T
        twice = (
            (gram * gram).sum(0),
            (-gram * 2.0 + gram).T @ u,
            gram.reshape(M, N, SIZE).sum((0, 1)),
        )
        return (
            *twice,
            jnp.exp(gram)[3],
            jnp.linalg.solve(gram + EYE, u),
            jnp.outer(u[:, 0], u[:, 1]),
        )

    found = jax.jit(kx.rewrite(program, strict=True))(X[0])
    jax.tree.map(assert_close, found, jax.jit(program)(X[0]))


FACTOR = 2.0


def _referring(a):
    return FACTOR * a


def test_a_program_is_traced_once_while_all_that_it_refers_to_is_the_same(monkeypatch):
    numbers, weights, scale = np.ones(2), [1.0], 2.0

    def program(a, b):
        matrix = jnp.kron(_referring(a) * numbers[0], weights[0] * b)
        return scale * jnp.linalg.solve(matrix, Y[0])

    fast = kx.rewrite(program)

    def traced():
        before = [id(each) for _, each in fast.programs.kept.values()]
        assert_close(fast(G[0], H[0]), program(G[0], H[0]))
        return before != [id(each) for _, each in fast.programs.kept.values()]

    assert [traced(), traced()] == [True, False]
    numbers[0] = 2.0
    assert [traced(), traced()] == [True, False]
    weights[0] = 3.0
    assert [traced(), traced()] == [True, False]
    scale = 4.0
    assert [traced(), traced()] == [True, False]
    monkeypatch.setattr(f"{__name__}.FACTOR", 3.0)
    assert [traced(), traced()] == [True, False]


def test_what_may_change_without_a_trace_is_traced_anew():
    class State:
        scale = 2.0

    state = State()
    fast = kx.rewrite(lambda a, b: state.scale * (jnp.kron(a, b) @ Y[0]))
    first = fast(G[0], H[0])
    state.scale = 4.0
    assert_close(fast(G[0], H[0]), 2.0 * first)
