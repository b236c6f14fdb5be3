"""LowRank from a kernel: the error it certifies, its derivatives, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import kronax as kx
from kronax.linalg.factors.pivoted_cholesky import choose_pivots, joint_root, root_at
from kronax.linalg.functions.choice import decomposition_of
from tests.everyday import full

X = np.linspace(0, 1, 60)
NOISE = 0.1
Y = np.random.default_rng(0).normal(size=(60, 3))
OTHER = np.array([[1.0, 0.3, 0.1], [0.3, 1.2, 0.2], [0.1, 0.2, 0.9]])


def rbf(lengthscale, x=X):
    return kx.RBF(jnp.asarray(lengthscale, x.dtype))


def dense_rbf(lengthscale, x=X):
    return np.exp(-0.5 * ((x[:, None] - x) / lengthscale) ** 2)


# The default is that of the tests below.
@pytest.mark.parametrize("tolerance", [1e-2, full(1e-6), full(None)])
def test_the_certified_error_bounds_the_true_one(tolerance):
    factor = kx.LowRank.from_kernel(rbf(0.2), X, tolerance=tolerance)
    exact, columns = dense_rbf(0.2), np.asarray(factor.columns)
    left = exact - columns @ columns.T
    asked = 1e3 * np.finfo(float).eps if tolerance is None else tolerance
    assert np.trace(left) / np.trace(exact) <= factor.trace_error <= asked
    assert np.linalg.eigvalsh(left).min() > -1e-13, "what is left out is positive semidefinite"
    if tolerance is not None:
        fewer = columns[:, :-1]
        assert np.trace(exact - fewer @ fewer.T) / np.trace(exact) > tolerance, "no column too many"


def test_several_dimensions_and_a_plain_function():
    points = np.random.default_rng(1).uniform(size=(40, 2))
    kernel = lambda a, b: jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, -1))  # noqa: E731
    columns = np.asarray(kx.LowRank.from_kernel(kernel, points).columns)
    exact = np.exp(-np.sum((points[:, None] - points) ** 2, -1))
    np.testing.assert_allclose(columns @ columns.T, exact, atol=1e-11)


def test_more_columns_than_the_kernel_has_are_zero():
    factor = kx.LowRank.from_kernel(rbf(2.0), X, rank=40)
    assert factor.rank == 40
    assert np.linalg.matrix_rank(np.asarray(factor.columns)) < 15
    columns = np.asarray(factor.columns)
    assert np.isfinite(columns).all()
    np.testing.assert_allclose(columns @ columns.T, dense_rbf(2.0), atol=1e-12)


def density(build, log_lengthscale, log_noise, y):
    factor = build(rbf(jnp.exp(log_lengthscale)))
    return kx.normal_logpdf(y, 0.0, kx.Kronecker(factor, OTHER) + jnp.exp(log_noise))


def test_derivatives_in_the_parameters_of_the_kernel():
    def orders(build):
        def slope(t):
            value, slope = jax.value_and_grad(lambda t: density(build, t[0], t[1], Y))(t)
            return slope, (value, slope)

        return jax.jit(jax.jacfwd(slope, has_aux=True))

    thin = orders(lambda kernel: kx.LowRank.from_kernel(kernel, X, rank=40))
    dense = orders(lambda kernel: kx.Dense(kernel(X, X)))
    for lengthscale in (0.1, 0.3):
        t = np.log([lengthscale, NOISE])
        (bend, (value, slope)), (true_bend, (true_value, true_slope)) = thin(t), dense(t)
        np.testing.assert_allclose(value, true_value, rtol=1e-11)
        np.testing.assert_allclose(slope, true_slope, rtol=1e-8)
        np.testing.assert_allclose(bend, true_bend, rtol=1e-7)


def test_a_rank_that_does_not_reach_is_nan_under_jit():
    def value(t, rank):
        build = lambda kernel: kx.LowRank.from_kernel(kernel, X, rank=rank)  # noqa: E731
        return density(build, t, -1.0, Y)

    function = jax.jit(value, static_argnums=1)
    assert np.isnan(function(-2.0, 5))
    assert np.isfinite(function(-2.0, 40))


def test_float32():
    x = X.astype(np.float32)
    factor = kx.LowRank.from_kernel(rbf(0.3, x), x)
    assert factor.dtype == jnp.float32
    assert factor.trace_error <= 1e3 * np.finfo(np.float32).eps
    op = kx.Kronecker(factor, OTHER.astype(np.float32)) + NOISE
    ours = jax.jit(lambda o: kx.normal_logpdf(Y.astype(o.dtype), 0.0, o))(op)
    exact, y = np.kron(dense_rbf(0.3), OTHER) + NOISE * np.eye(180), Y.ravel()
    log_det = np.linalg.slogdet(2 * np.pi * exact)[1]
    theirs = -0.5 * (y @ np.linalg.solve(exact, y) + log_det)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_a_scaled_factor_stays_thin_and_a_negative_one_is_right_or_nan():
    factor = kx.LowRank(np.random.default_rng(2).normal(size=(6, 2)))
    x = np.arange(6.0)
    np.testing.assert_allclose((-2.0 * factor).mv(x), -2.0 * factor.mv(x), rtol=1e-14)
    doubled = kx.logdet(kx.Kronecker(2.0 * factor) + 1.0)
    dense = np.linalg.slogdet(2.0 * np.asarray(factor.to_dense()) + np.eye(6))[1]
    np.testing.assert_allclose(doubled, dense, rtol=1e-12)
    value = jax.jit(lambda s: kx.logdet(kx.Kronecker(s * factor) + 1.0))(-1.0)
    assert np.isnan(value)


def test_nothing_of_the_size_of_the_axis_squared():
    n, rank = 400, 8

    def value(root, y, noise):
        return kx.normal_logpdf(y, 0.0, kx.Kronecker(kx.LowRank(root), OTHER) + noise)

    root, y = np.ones((n, rank)), np.ones((n, 3))
    program = jax.jit(jax.value_and_grad(value)).lower(root, y, 1.0).compile()
    assert program.memory_analysis().temp_size_in_bytes < 40 * 8 * n * rank < 8 * n * n


def test_draws_have_the_covariance():
    factor = kx.LowRank(np.random.default_rng(3).normal(size=(4, 2)))
    op = kx.Kronecker(factor, OTHER)
    draws = kx.sample_normal(jax.random.key(0), op, (20000,)).reshape(20000, -1)
    np.testing.assert_allclose(np.cov(draws.T), op.to_dense(), atol=0.15)


def test_a_joint_root_keeps_the_old_rows():
    kernel, new = rbf(0.3), np.linspace(0.5, 1.6, 20)
    places = choose_pivots(kernel, X, 25).places
    joint, left, old = jax.jit(
        lambda x, new: (*joint_root(kernel, x, places, new, 15), root_at(kernel, x, places))
    )(X, new)
    together, joint = np.concatenate([X, new]), np.asarray(joint)
    assert left < 1e-12
    np.testing.assert_allclose(joint @ joint.T, dense_rbf(0.3, together), atol=1e-7)
    np.testing.assert_array_equal(joint[:60, :25], old)
    assert not np.any(joint[:60, 25:])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: kx.LowRank(np.ones(3)),
            ValueError,
            r"root of LowRank must be a matrix.*got shape \(3,\)\. A root of one .*\(n, 1\)",
        ),
        (
            lambda: kx.LowRank(kx.RBF(1.0)),
            TypeError,
            r"got SquaredExponential\. .*kx\.LowRank\.from_kernel\(kernel, points\)",
        ),
        (
            lambda: kx.LowRank.from_kernel(rbf(0.005), X, rank=40),
            ValueError,
            "must be of rank 40 to a relative trace error",
        ),
        (
            lambda: kx.LowRank.from_kernel(lambda a, b: jnp.abs(a[:, None] - b[None]) + 1, X),
            ValueError,
            "kernel must be positive semidefinite",
        ),
        full(
            lambda: kx.LowRank.from_kernel(lambda a, b: -rbf(0.1)(a, b), X),
            ValueError,
            "kernel must be positive semidefinite",
        ),
        (
            lambda: kx.LowRank.from_kernel(rbf(0.1), X, tolerance=1e-18),
            ValueError,
            "relative trace error of 1e-18; rounding alone",
        ),
        (lambda: kx.LowRank.from_kernel(rbf(0.1), X, tolerance=0), ValueError, "positive number"),
        (lambda: kx.LowRank.from_kernel(rbf(0.1), X, rank=0), ValueError, "at least 1; got 0"),
        (lambda: kx.LowRank.from_kernel(rbf(0.1), X, rank=2.0), TypeError, "integer; got 2.0"),
        (
            lambda: kx.LowRank.from_kernel(rbf(0.1), np.ones((2, 2, 2))),
            ValueError,
            r"shape \(n,\) or \(n, p\)",
        ),
        (
            lambda: jax.jit(lambda t: kx.LowRank.from_kernel(rbf(t), X).to_dense())(0.1),
            ValueError,
            "rank of LowRank must be given where the kernel is traced",
        ),
        (
            lambda: kx.solve(2.0 * kx.LowRank(np.ones((3, 1))), np.ones(3)),
            ValueError,
            "full rank to be inverted; got rank 1 for size 3",
        ),
        (
            lambda: kx.logdet(kx.Kronecker(kx.LowRank(np.ones((3, 1))), OTHER)),
            ValueError,
            "full rank to be inverted; got rank 1 for size 3",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_kernel_that_changes_is_not_certified_from_memory():
    scale = {"lengthscale": 1.0}
    kernel = lambda a, b: jnp.exp(-(((a[:, None] - b[None]) / scale["lengthscale"]) ** 2))  # noqa: E731
    assert kx.LowRank.from_kernel(kernel, X, rank=40).trace_error < 1e-12
    scale["lengthscale"] = 0.02
    with pytest.raises(ValueError, match="relative trace error"):
        kx.LowRank.from_kernel(kernel, X, rank=40)


def test_an_indefinite_operator_is_nan_under_jit():
    solve = jax.jit(lambda s: kx.solve(kx.LowRank(np.ones((3, 1))) + s, np.arange(3.0)))
    assert np.isnan(solve(-0.1)).all()


def test_long_toeplitz_products():
    column = np.exp(-np.arange(1100.0))
    x = np.random.default_rng(0).normal(size=1100)
    expected = scipy.linalg.toeplitz(column) @ x
    found = jax.jit(lambda factor, x: factor.mv(x))(kx.Toeplitz(column), x)
    np.testing.assert_allclose(found, expected, atol=1e-12)


SINGULAR = {
    "ones": np.ones((2, 2)),
    "zeros": np.zeros((2, 2)),
    "rank one": np.outer([1, 2], [1, 2]),
}


@pytest.mark.parametrize("noise", ["variance", "full"])
@pytest.mark.parametrize(
    "function", [kx.inverse_diagonal, lambda op: decomposition_of(op).posterior_diagonal()]
)
def test_a_derivative_where_the_factor_beside_it_is_singular(function, noise):
    """The results are smooth functions of that factor, though its symmetric root is not."""
    rng = np.random.default_rng(5)
    root, moved = rng.normal(size=(2, 5, 2))
    scales, beside = np.array([0.5, 1.0, 2.0, 1.0, 0.7]), np.array([[0.6, 0.1], [0.1, 0.4]])
    change = np.array([[1.0, 0.3], [0.3, 0.7]])

    @jax.jit
    def along(matrix):
        def value(root, matrix, level):
            term = kx.Kronecker(kx.Diagonal(level * scales), beside) if noise == "full" else level
            op = kx.KroneckerPlusNoise(kx.Kronecker(kx.LowRank(root), matrix), term)
            return function(op)

        return jax.jvp(value, (root, matrix, 0.3), (moved, change, 0.2))[1]

    for name, matrix in SINGULAR.items():
        matrix = matrix.astype(float)
        k, half = np.kron(root @ root.T, matrix), np.kron(root @ moved.T, matrix)
        dk = half + half.T + np.kron(root @ root.T, change)
        n = np.kron(np.diag(scales), beside) if noise == "full" else np.eye(10)
        inverse = np.linalg.inv(k + 0.3 * n)
        ds = dk + 0.2 * n
        if function is kx.inverse_diagonal:
            expected = -inverse @ ds @ inverse
        else:
            g = inverse @ k
            expected = dk - dk @ g - (dk @ g).T + g.T @ ds @ g
        expected = np.diag(expected).reshape(5, 2)
        np.testing.assert_allclose(along(matrix), expected, rtol=1e-10, atol=1e-11, err_msg=name)


def test_a_derivative_where_the_columns_of_a_root_are_dependent():
    rng = np.random.default_rng(6)
    root, rows = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    root[:, 2] = root[:, 0]
    moved = rng.normal(size=root.shape)

    def ours(root):
        op = kx.Kronecker(kx.LowRank(root), OTHER[:2, :2]) + 0.3
        return decomposition_of(op).explained_by_roots([(rows @ root.T, rows), (np.eye(2), None)])

    def dense(root):
        cross = np.kron(rows @ root.T, np.eye(2))
        s = np.kron(root @ root.T, OTHER[:2, :2]) + 0.3 * np.eye(10)
        return np.einsum("ai,ij,aj->a", cross, np.linalg.inv(s), cross).reshape(4, 2)

    got = jax.jit(lambda root: jax.jvp(ours, (root,), (moved,)))(root)
    step = 1e-4
    slopes = [
        (dense(root + h * moved) - dense(root - h * moved)) / (2 * h) for h in (step, step / 2)
    ]
    np.testing.assert_allclose(got[0], dense(root), rtol=1e-12)
    np.testing.assert_allclose(got[1], (4 * slopes[1] - slopes[0]) / 3, rtol=1e-8, atol=1e-9)
