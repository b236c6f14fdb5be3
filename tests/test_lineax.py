"""Operators of kronax in lineax, and of lineax in kronax, against dense NumPy."""

import sys
from functools import reduce

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg

import kronax as kx
from kronax.lineax.solver import KroneckerSolver
from tests.everyday import everyday

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(4, 4)) + 4 * np.eye(4), RNG.normal(size=(3, 3)) + 3 * np.eye(3)
K1, K2 = A @ A.T, B @ B.T
TALL = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 2))
RHS = RNG.normal(size=12)
ROW = jax.ShapeDtypeStruct((12,), jnp.float64)
OBSERVED = RNG.random((4, 3)) < 0.8
AUTO = lx.AutoLinearSolver(well_posed=True)
PROPERTIES = {
    "is_symmetric": lambda m: np.array_equal(m, m.T),
    "is_diagonal": lambda m: np.array_equal(m, np.diag(np.diagonal(m))),
    "is_tridiagonal": lambda m: np.array_equal(m, np.tril(np.triu(m, -1), 1)),
    "is_lower_triangular": lambda m: np.array_equal(m, np.tril(m)),
    "is_upper_triangular": lambda m: np.array_equal(m, np.triu(m)),
    "has_unit_diagonal": lambda m: np.array_equal(np.diagonal(m), np.ones(len(m))),
    "is_positive_semidefinite": lambda m: np.linalg.eigvalsh(m + m.T).min() > -1e-9,
    "is_negative_semidefinite": lambda m: np.linalg.eigvalsh(m + m.T).max() < 1e-9,
}
DIAGONAL = {"is_symmetric", "is_diagonal", "is_tridiagonal"}
DIAGONAL |= {"is_lower_triangular", "is_upper_triangular"}
COVARIANCE = {"is_symmetric", "is_positive_semidefinite"}


def kron(*matrices):
    return reduce(np.kron, matrices)


def assert_close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def identity(size):
    return lx.IdentityLinearOperator(jax.ShapeDtypeStruct((size,), jnp.float64))


TRI = np.diag(np.full(4, 3.0)) + np.diag(np.ones(3), -1) + np.diag(np.full(3, 0.5), 1)
TRIDIAGONAL = lx.TridiagonalLinearOperator(*(jnp.asarray(np.diagonal(TRI, k)) for k in (0, -1, 1)))
SUM = kron(K1, np.eye(3)) + kron(np.eye(4), K2)
D3 = np.array([1.0, 2.0, 3.0])
# The operator, its matrix, and what lineax is told of it.
OPERATORS = {
    "general": (lambda: kx.Kronecker(A, B), kron(A, B), set()),
    "one factor": (lambda: kx.Dense(kron(A, B)), kron(A, B), set()),
    "definite": (
        lambda: kx.Kronecker(kx.Dense(K1, True), kx.Dense(K2, True)),
        kron(K1, K2),
        COVARIANCE,
    ),
    "diagonal": (
        lambda: kx.Kronecker(kx.Diagonal(np.arange(1.0, 5)), kx.ScaledIdentity(2.0, 3)),
        kron(np.diag(np.arange(1.0, 5)), 2 * np.eye(3)),
        DIAGONAL,
    ),
    "lower": (
        lambda: kx.Kronecker(kx.LowerTriangular(np.tril(A)), kx.Diagonal(D3)),
        kron(np.tril(A), np.diag(D3)),
        {"is_lower_triangular"},
    ),
    "banded": (
        lambda: kx.Kronecker(kx.Diagonal(D3), TRIDIAGONAL),
        kron(np.diag(D3), TRI),
        {"is_tridiagonal"},
    ),
    "not banded": (
        lambda: kx.Kronecker(TRIDIAGONAL, kx.Diagonal(D3)),
        kron(TRI, np.diag(D3)),
        set(),
    ),
    "symmetric": (
        lambda: kx.Kronecker(kx.Toeplitz(np.array([4.0, 1, 0, 2])), kx.Diagonal(-D3)),
        kron(scipy.linalg.toeplitz([4.0, 1, 0, 2]), np.diag(-D3)),
        {"is_symmetric"},
    ),
    "noise": (lambda: kx.Kronecker(K1, K2) + 0.1, kron(K1, K2) + 0.1 * np.eye(12), COVARIANCE),
    "two terms": (
        lambda: kx.Kronecker(K1, K2) + kx.Kronecker(kx.Diagonal(np.arange(1.0, 5)), K2),
        kron(K1, K2) + kron(np.diag(np.arange(1.0, 5)), K2),
        COVARIANCE,
    ),
    "sum": (lambda: kx.KroneckerSum(K1, K2), SUM, set()),
    "sum of covariances": (
        lambda: kx.KroneckerSum(kx.Dense(K1, True), kx.Dense(K2, True)),
        SUM,
        COVARIANCE,
    ),
    "inverse": (lambda: kx.inverse(kx.Kronecker(A, B)), np.linalg.inv(kron(A, B)), set()),
    "one cell": (lambda: kx.Kronecker(np.array([[2.0]])), np.array([[2.0]]), DIAGONAL),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_tells_lineax_what_it_is(name):
    make, matrix, known = OPERATORS[name]
    operator = kx.as_lineax(make())
    size = len(matrix)
    assert (operator.in_size(), operator.out_size()) == (size, size)
    found = {p for p in PROPERTIES if getattr(lx, p)(operator)}
    assert found == known
    turned = {
        p.replace("lower", "UP").replace("upper", "lower").replace("UP", "upper") for p in known
    }
    assert {p for p in PROPERTIES if getattr(lx, p)(operator.T)} == turned
    assert isinstance(AUTO.select_solver(operator), KroneckerSolver)


ASKED = ("general", "lower", "banded", "noise", "sum of covariances", "inverse")


@pytest.mark.parametrize("name", everyday(OPERATORS, ASKED))
def test_an_operator_answers_all_that_lineax_asks(name):
    make, matrix, _ = OPERATORS[name]
    operator = kx.as_lineax(make())
    size = len(matrix)
    b = RHS[:size]

    @jax.jit
    def answers(operator, b):
        products = operator.mv(b), operator.T.mv(b)
        diagonals = lx.diagonal(operator), *lx.tridiagonal(operator)
        solutions = [lx.linear_solve(o, b).value for o in (operator, operator.T)]
        return products, operator.as_matrix(), diagonals, solutions

    products, dense, diagonals, solutions = answers(operator, jnp.asarray(b))
    assert_close(dense, matrix)
    for got, offset in zip(diagonals, (0, 0, -1, 1), strict=True):
        assert_close(got, np.diagonal(matrix, offset))
    for got, solved, turned in zip(products, solutions, (matrix, matrix.T), strict=True):
        assert_close(got, turned @ b)
        assert_close(solved, np.linalg.solve(turned, b))
    for same in (lx.linearise(operator), lx.materialise(operator), lx.conj(operator)):
        assert same is operator


@pytest.mark.parametrize("name", OPERATORS)
def test_what_lineax_is_told_is_true(name):
    _, matrix, known = OPERATORS[name]
    assert all(PROPERTIES[p](matrix) for p in known)


def test_a_solve_has_its_derivatives_to_second_order():
    """In a factor along `D`, of `M x = b`: x' = −M⁻¹ D x, x'' = 2 M⁻¹ D M⁻¹ D x."""
    direction, weights, step = RNG.normal(size=(4, 4)), RNG.normal(size=12), RNG.normal(size=12)

    def value(a, b):
        x = lx.linear_solve(kx.as_lineax(kx.Kronecker(a, kx.Dense(B))), b).value
        return jnp.dot(jnp.asarray(weights), x)

    def along(f):
        return lambda a, b: jax.jvp(lambda a: f(a, b), (a,), (jnp.asarray(direction),))[1]

    def reverse(f):
        return lambda a, b: jnp.vdot(jax.grad(f)(a, b), direction)

    @jax.jit
    def all_of(a, b):
        orders = [f(g(value))(a, b) for f in (along, reverse) for g in (along, reverse)]
        return (along(value)(a, b), *jax.grad(value, (0, 1))(a, b), jnp.stack(orders))

    slope, in_factor, in_vector, seconds = all_of(jnp.asarray(A), jnp.asarray(RHS))
    matrix, moved = kron(A, B), kron(direction, B)
    once = -np.linalg.solve(matrix, moved @ np.linalg.solve(matrix, RHS))
    twice = -2 * np.linalg.solve(matrix, moved @ once)
    assert_close(slope, weights @ once)
    assert_close(np.vdot(in_factor, direction), weights @ once)
    assert_close(np.vdot(in_vector, step), weights @ np.linalg.solve(matrix, step))
    assert_close(seconds, np.full(4, weights @ twice))


def test_a_solve_with_noise_and_gaps_has_its_gradient():
    def value(a):
        op = kx.Masked(kx.Kronecker(a, K2) + 0.1, OBSERVED)
        return jnp.sum(lx.linear_solve(kx.as_lineax(op), jnp.asarray(RHS)).value)

    direction = K1 @ A + A.T @ K1
    direction = direction + direction.T
    found, gradient = jax.jit(jax.value_and_grad(value))(jnp.asarray(K1))
    cells = OBSERVED.ravel()
    matrix = (kron(K1, K2) + 0.1 * np.eye(12))[np.ix_(cells, cells)]
    solution = np.linalg.solve(matrix, RHS[cells])
    moved = kron(direction, K2)[np.ix_(cells, cells)]
    assert_close(found, solution.sum())
    expected = -np.linalg.solve(matrix, np.ones(len(matrix))) @ moved @ solution
    assert_close(np.vdot(gradient, direction), expected)


def test_solves_are_mapped_over_factors_and_vectors():
    def solve(a, b):
        return lx.linear_solve(kx.as_lineax(kx.Kronecker(a, K2) + 0.1), b).value

    factors, vectors = np.stack([K1, 2 * K1]), RNG.normal(size=(2, 12))
    got = jax.jit(jax.vmap(solve))(factors, vectors)
    for one, a, b in zip(got, factors, vectors, strict=True):
        assert_close(one, np.linalg.solve(kron(a, K2) + 0.1 * np.eye(12), b))
    got = jax.jit(jax.vmap(lambda b: lx.linear_solve(kx.as_lineax(kx.Kronecker(A, B)), b).value))
    assert_close(got(vectors), np.linalg.solve(kron(A, B), vectors.T).T)


def test_a_solve_holds_no_whole_matrix():
    op = kx.Kronecker(np.eye(12), np.eye(10)) + 1.0

    def value(op, b):
        return jnp.sum(lx.linear_solve(kx.as_lineax(op), b).value)

    text = jax.jit(jax.grad(value)).lower(op, jnp.ones(120)).as_text()
    assert "120x" in text or "12x10" in text
    assert "120x120" not in text


TAGGED = lx.TaggedLinearOperator(kx.as_lineax(kx.Kronecker(K1, K2)), lx.positive_semidefinite_tag)
NOISY = kx.as_lineax(kx.Kronecker(K1, K2) + 0.3)
SUMMED = kx.as_lineax(kx.KroneckerSum(kx.Dense(K1, True), kx.Dense(K2, True)))
DEFINITE = kx.as_lineax(kx.Kronecker(kx.Dense(K1, True), kx.Dense(K2, True)))
M, I12 = kron(K1, K2), np.eye(12)
ONE = lx.IdentityLinearOperator(ROW)
COMPOSED = {
    "tagged": (TAGGED, M),
    "multiples": (-(2.0 * (TAGGED / 3.0)), -2 / 3 * M),
    "of what has noise": (-NOISY, -M - 0.3 * I12),
    "plus": (TAGGED + 0.1 * ONE, M + 0.1 * I12),
    "indefinite": (2.0 * TAGGED - ONE, 2 * M - I12),
    "noise plus": (ONE + 2.0 * NOISY, 2 * M + 1.6 * I12),
    "sum minus": (SUMMED - 0.5 * ONE / 2.0, SUM - 0.25 * I12),
    "two covariances": (DEFINITE + DEFINITE, 2 * M),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_what_lineax_makes_of_an_operator_is_solved_per_factor(name):
    operator, matrix = COMPOSED[name]
    assert isinstance(AUTO.select_solver(operator), KroneckerSolver)
    assert_close(lx.linear_solve(operator, jnp.asarray(RHS)).value, np.linalg.solve(matrix, RHS))
    assert_close(lx.invert(operator).mv(jnp.asarray(RHS)), np.linalg.solve(matrix, RHS))


def test_other_operators_keep_the_solvers_of_lineax():
    kx.as_lineax(kx.Kronecker(A, B))
    operator = lx.MatrixLinearOperator(jnp.asarray(A))
    assert isinstance(AUTO.select_solver(operator), lx.LU)
    assert_close(lx.linear_solve(operator, jnp.asarray(RHS[:4])).value, np.linalg.solve(A, RHS[:4]))
    # Antisymmetric factors make a symmetric product, of which no factor is a covariance.
    skew = np.array([[0.0, 1.0], [-1.0, 0.0]])
    product = kx.as_lineax(kx.Kronecker(skew, skew))
    tagged = lx.TaggedLinearOperator(product, lx.symmetric_tag)
    shifted = tagged + lx.IdentityLinearOperator(product.in_structure()) * 3.0
    b = RHS[:4]
    expected = np.linalg.solve(kron(skew, skew) + 3 * np.eye(4), b)
    assert_close(lx.linear_solve(shifted, jnp.asarray(b)).value, expected)


@pytest.mark.parametrize("solver", [lx.CG(1e-12, 1e-12), lx.Cholesky(), lx.LU(), lx.SVD()])
def test_a_solver_that_is_asked_for_is_taken(solver):
    got = lx.linear_solve(TAGGED, jnp.asarray(RHS), solver).value
    assert_close(got, np.linalg.solve(M, RHS), 1e-8)


@pytest.mark.parametrize("turned", [False, True])
def test_least_squares_go_by_the_pseudo_inverses_of_the_factors(turned):
    factors = [m.T for m in TALL] if turned else list(TALL)
    singular = factors[0] @ factors[0].T @ factors[0], factors[1]
    for first, second in (factors, singular):
        b = RHS[: len(first) * len(second)]
        operator = kx.as_lineax(kx.Kronecker(first, second))
        got = lx.linear_solve(operator, jnp.asarray(b), lx.AutoLinearSolver(well_posed=False)).value
        assert_close(got, np.linalg.pinv(kron(first, second)) @ b)
    rank_one = np.ones((4, 4)), B
    operator = kx.as_lineax(kx.Kronecker(*rank_one))
    got = lx.linear_solve(operator, jnp.asarray(RHS), lx.AutoLinearSolver(well_posed=False)).value
    assert_close(got, np.linalg.pinv(kron(*rank_one)) @ RHS)


@pytest.mark.parametrize("well_posed", [None, False])
def test_least_squares_have_their_gradient(well_posed):
    direction, step = RNG.normal(size=(4, 3)), 1e-5

    def value(a):
        operator = kx.as_lineax(kx.Kronecker(a, TALL[1]))
        solver = lx.AutoLinearSolver(well_posed)
        return jnp.sum(lx.linear_solve(operator, jnp.asarray(RHS), solver).value)

    def dense(t):
        return (np.linalg.pinv(kron(TALL[0] + t * direction, TALL[1])) @ RHS).sum()

    gradient = jax.jit(jax.grad(value))(jnp.asarray(TALL[0]))
    expected = (dense(step) - dense(-step)) / (2 * step)
    assert_close(np.vdot(gradient, direction), expected, 1e-7)


def test_vectors_are_pytrees():
    op = kx.Kronecker(np.array([[2.0, 1.0], [1.0, 3.0]]), K1, K2) + 0.1
    matrix = kron(np.array([[2.0, 1.0], [1.0, 3.0]]), K1, K2) + 0.1 * np.eye(24)
    like = {"first": jnp.zeros((4, 3), jnp.float32), "second": jnp.zeros(12)}
    operator = kx.as_lineax(op, like)
    b = {"first": jnp.ones((4, 3), jnp.float32), "second": jnp.asarray(RHS)}
    both = jax.jit(lambda o, b: (lx.linear_solve(o, b).value, o.mv(b)))
    solution, product = both(operator, b)
    assert solution["first"].dtype == jnp.float32
    expected = np.linalg.solve(matrix, np.concatenate([np.ones(12), RHS]))
    assert_close(solution["first"], expected[:12].reshape(4, 3), 1e-6)
    assert_close(solution["second"], expected[12:])
    assert_close(product["second"], (matrix @ np.concatenate([np.ones(12), RHS]))[12:])


def test_rectangular_operators_have_two_structures():
    rows, columns = jax.ShapeDtypeStruct((4, 3), jnp.float64), (jnp.zeros(4), jnp.zeros(2))
    operator = kx.as_lineax(kx.Kronecker(*TALL), columns, rows)
    vector = jnp.asarray(RHS[:4]), jnp.asarray(RHS[4:6])
    matrix = kron(*TALL)
    both = jax.jit(lambda o, x, y: (o.mv(x), o.T.mv(y)))
    product, (first, second) = both(operator, vector, jnp.asarray(RHS.reshape(4, 3)))
    assert_close(product, (matrix @ RHS[:6]).reshape(4, 3))
    assert_close(np.concatenate([first, second]), matrix.T @ RHS)
    assert operator.T.in_structure() == rows


def test_single_precision_stays_single():
    op = kx.Kronecker(np.float32(K1), np.float32(K2)) + 0.1
    b = jnp.asarray(RHS, jnp.float32)
    solution = lx.linear_solve(kx.as_lineax(op), b).value
    assert solution.dtype == jnp.float32
    assert_close(solution, np.linalg.solve(M + 0.1 * I12, RHS), 1e-4)


DENSE_A = lx.MatrixLinearOperator(jnp.asarray(A))
FUNCTION = lx.FunctionLinearOperator(
    lambda x: jnp.matmul(jnp.asarray(A), x), jax.ShapeDtypeStruct((4,), jnp.float64)
)
HALVES = {"x": jnp.asarray(A[:2]), "y": jnp.asarray(A[2:])}
# A lineax operator, and the class of the factor that it is.
FACTORS = {
    "matrix": (DENSE_A, "Dense"),
    "definite": (
        lx.MatrixLinearOperator(jnp.asarray(K1), lx.positive_semidefinite_tag),
        "Dense",
    ),
    "pytree": (
        lx.PyTreeLinearOperator(HALVES, {k: jnp.zeros(2) for k in HALVES}),
        "Dense",
    ),
    "diagonal": (lx.DiagonalLinearOperator(jnp.arange(1.0, 5)), "Diagonal"),
    "tagged diagonal": (
        lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 5)), lx.diagonal_tag),
        "Diagonal",
    ),
    "identity": (identity(4), "ScaledIdentity"),
    "tridiagonal": (TRIDIAGONAL, "LineaxFactor"),
    "lower": (
        lx.MatrixLinearOperator(jnp.tril(jnp.asarray(A)), lx.lower_triangular_tag),
        "LowerTriangular",
    ),
    "upper": (
        lx.MatrixLinearOperator(jnp.triu(jnp.asarray(A)), lx.upper_triangular_tag),
        "LowerTriangular",
    ),
    "function": (FUNCTION, "LineaxFactor"),
    "jacobian": (
        lx.JacobianLinearOperator(lambda x, _: jnp.sin(x) * jnp.sum(x), jnp.arange(1.0, 5)),
        "LineaxFactor",
    ),
    "composed": (2.0 * FUNCTION @ DENSE_A + TRIDIAGONAL, "LineaxFactor"),
    "of ours": (kx.as_lineax(kx.Toeplitz(np.array([4.0, 1.0, 0.5, 0.0]))), "Toeplitz"),
}


# One of each factor that comes of it.
EACH = ("definite", "pytree", "diagonal", "identity", "tridiagonal", "upper", "composed", "of ours")


@pytest.mark.parametrize("name", everyday(FACTORS, EACH))
def test_any_operator_of_lineax_is_a_factor(name):
    operator, kind = FACTORS[name]
    matrix = kron(np.asarray(operator.as_matrix()), B)
    op = kx.Kronecker(operator, B)
    assert type(op.factors[0]).__name__ == kind

    @jax.jit
    def found(b):
        solved = kx.solve(op, b), lx.linear_solve(kx.as_lineax(op), b).value
        return (op.to_dense(), op.T.to_dense()), (op.mv(b), op.T.mv(b)), solved, kx.logdet(op)

    dense, products, solved, log_det = found(jnp.asarray(RHS))
    for got, turned in zip(dense, (matrix, matrix.T), strict=True):
        assert_close(got, turned)
    for got, turned in zip(products, (matrix, matrix.T), strict=True):
        assert_close(got, turned @ RHS)
    for got in solved:
        assert_close(got, np.linalg.solve(matrix, RHS))
    assert_close(log_det, np.linalg.slogdet(matrix)[1])


def test_a_factor_of_lineax_has_derivatives_in_its_own_arrays():
    direction = RNG.normal(size=(4, 4))

    def value(a):
        structure = jax.ShapeDtypeStruct((4,), jnp.float64)
        function = lx.FunctionLinearOperator(lambda x: jnp.matmul(a, x), structure)
        op = kx.Kronecker(function, B)
        return kx.logdet(op) + jnp.sum(kx.solve(op, jnp.asarray(RHS)))

    def both(a):
        gradient = jax.grad(value)
        return gradient(a), jax.jvp(gradient, (a,), (jnp.asarray(direction),))[1]

    first, second = jax.jit(both)(jnp.asarray(A))
    matrix, moved = kron(A, B), kron(direction, B)
    once = -np.linalg.solve(matrix, moved @ np.linalg.solve(matrix, RHS))
    twice = -2 * np.linalg.solve(matrix, moved @ once)
    ratio = np.linalg.solve(matrix, moved)
    assert_close(np.vdot(first, direction), np.trace(ratio) + once.sum())
    assert_close(np.vdot(second, direction), -np.trace(ratio @ ratio) + twice.sum())


def test_covariances_of_lineax_serve_a_distribution():
    structure = jax.ShapeDtypeStruct((4,), jnp.float64)
    function = lx.FunctionLinearOperator(
        lambda x: jnp.matmul(jnp.asarray(K1), x), structure, lx.positive_semidefinite_tag
    )
    factors = function, lx.MatrixLinearOperator(jnp.asarray(K2))
    distribution = kx.KroneckerNormal(0.0, factors, 0.1)
    covariance = M + 0.1 * I12
    expected = -0.5 * RHS @ np.linalg.solve(covariance, RHS)
    expected -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    log_prob = jax.jit(lambda d, y: d.log_prob(y))
    assert_close(log_prob(distribution, jnp.asarray(RHS.reshape(4, 3))), expected)
    with pytest.raises(ValueError, match="must be symmetric"):
        kx.Kronecker(FUNCTION, B) + 0.1


def test_a_factor_of_lower_precision_takes_that_of_the_others():
    structure = jax.ShapeDtypeStruct((4,), jnp.float32)
    half = lx.FunctionLinearOperator(lambda x: 0.5 * x + jnp.sum(x), structure)
    op = kx.Kronecker(half, B)
    matrix = kron(0.5 * np.eye(4) + np.ones((4, 4)), B)
    assert op.dtype == jnp.float64
    assert_close(kx.solve(op, jnp.asarray(RHS)), np.linalg.solve(matrix, RHS))


COMPLEX = lx.MatrixLinearOperator(jnp.ones((2, 2), jnp.complex128))
MISTAKES = {
    "a batch": (lambda: kx.as_lineax(kx.Kronecker(np.stack([A, A]), B)), ValueError, "jax.vmap"),
    "an array": (lambda: kx.as_lineax(jnp.eye(3)), TypeError, "operator of kronax"),
    "theirs": (lambda: kx.as_lineax(DENSE_A), TypeError, "one of lineax's already"),
    "another size": (lambda: kx.as_lineax(kx.Dense(A), jnp.zeros(3)), ValueError, "must hold 4"),
    "integers": (lambda: kx.as_lineax(kx.Dense(A), jnp.arange(4)), TypeError, "real numbers"),
    "too precise": (
        lambda: kx.as_lineax(kx.Dense(np.float32(A)), jnp.zeros(4)),
        TypeError,
        "higher precision",
    ),
    "another vector": (
        lambda: kx.as_lineax(kx.Kronecker(A, B)).mv(jnp.zeros((4, 3))),
        ValueError,
        "must have the structure",
    ),
    "no exact way": (
        lambda: lx.linear_solve(
            kx.as_lineax(kx.KroneckerPlusDiagonal(kx.Kronecker(K1, K2), 0.1 * np.ones((4, 3)))),
            jnp.asarray(RHS),
        ),
        TypeError,
        "Pass a solver",
    ),
    "a general sum": (
        lambda: lx.linear_solve(kx.as_lineax(kx.KroneckerSum(A, B)), jnp.asarray(RHS)),
        TypeError,
        "symmetric factors",
    ),
    "rectangular": (
        lambda: lx.linear_solve(kx.as_lineax(kx.Kronecker(*TALL)), jnp.asarray(RHS)),
        ValueError,
        "well_posed=False",
    ),
    "complex": (lambda: kx.Kronecker(COMPLEX, B), TypeError, "real numbers"),
    "another's solver": (
        lambda: KroneckerSolver().init(DENSE_A, {}),
        TypeError,
        "Choose another solver",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    call, error, match = MISTAKES[name]
    with pytest.raises(error, match=match):
        call()


def test_a_singular_operator_fails_as_lineax_says():
    operator = kx.as_lineax(kx.Kronecker(np.ones((4, 4)), B))
    found = lx.linear_solve(operator, jnp.asarray(RHS), throw=False)
    assert found.result == lx.RESULTS.singular


def test_without_lineax_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "lineax", None)
    with pytest.raises(ImportError, match=r"kronax\[lineax\]"):
        kx.as_lineax(kx.Kronecker(A, B))
    assert kx.Kronecker(A, B).shape == (12, 12)
