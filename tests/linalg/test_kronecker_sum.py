"""Kronecker sums: products, diagonals, and what adding to one makes."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.cases import CASES, covariance, general
from tests.tolerances import assert_close

A, B, C = covariance(4), covariance(3), covariance(2)
LEFT, RIGHT = covariance(4, 1, (3, 1)), covariance(3, 2, (5,))


def dense_sum(*matrices):
    total = 0.0
    for i, matrix in enumerate(matrices):
        parts = [np.eye(m.shape[-1]) for m in matrices]
        parts[i] = matrix
        total = total + reduce(np.kron, parts)
    return total


@pytest.mark.parametrize(
    "matrices", [(A, B), (A, B, C), (general(4), general(3))], ids=["two", "three", "general"]
)
def test_everything_that_needs_no_decomposition(matrices):
    op, dense = kx.KroneckerSum(*matrices), dense_sum(*matrices)
    x = np.random.default_rng(0).normal(size=(2, *op.grid_shape))
    flat = x.reshape(2, -1)
    assert op.shape == dense.shape
    denses, products, diagonal, trace = answers(op, x, flat)
    for found, truth in zip(denses, (dense, dense.T, 2 * dense), strict=True):
        assert_close(found, truth)
    truths = (flat @ dense.T).reshape(x.shape), flat @ dense.T, dense @ flat.T
    for found, truth in zip(products, truths, strict=True):
        assert_close(found, truth)
    assert_close(diagonal.ravel(), np.diag(dense))
    assert_close(trace, np.trace(dense))


@jax.jit
def answers(op, x, flat):
    """All that needs no decomposition."""
    denses = [each.to_dense() for each in (op, op.T, 2.0 * op)]
    return denses, (op.mv(x), op.mv(flat), op @ flat.T), op.diagonal(), op.trace()


def test_batches_broadcast():
    op = kx.KroneckerSum(LEFT, RIGHT)
    dense = np.stack([[dense_sum(a[0], b) for b in RIGHT] for a in LEFT])
    x = np.random.default_rng(0).normal(size=(5, 4, 3))
    assert op.batch_shape == (3, 5)
    found = jax.jit(lambda op: (op.to_dense(), op.diagonal(), op.trace(), op.mv(x)))(op)
    matrix, diagonal, trace, product = found
    assert_close(matrix, dense)
    assert_close(diagonal.reshape(3, 5, 12), np.diagonal(dense, axis1=-2, axis2=-1))
    assert_close(trace, np.trace(dense, axis1=-2, axis2=-1))
    assert_close(product.reshape(3, 5, 12), np.einsum("abij,bj->abi", dense, x.reshape(5, 12)))


@pytest.mark.parametrize("noise", [0.1, 1, np.float64(0.1), jnp.array(0.1)])
def test_a_variance_is_noise(noise):
    for op in (kx.KroneckerSum(A, B) + noise, noise + kx.KroneckerSum(A, B)):
        assert isinstance(op, kx.KroneckerPlusNoise)
        assert_close(op.to_dense(), dense_sum(A, B) + float(noise) * np.eye(12))
        assert_close((2.0 * op + 0.3).to_dense(), 2 * op.to_dense() + 0.3 * np.eye(12))


@pytest.mark.parametrize("kind", ["toeplitz", "circulant", "diagonal", "scaled_identity"])
def test_a_factor_plus_a_multiple_of_the_identity_keeps_its_blocks(kind):
    column = np.exp(np.cos(2 * np.pi * np.arange(6) / 6))
    factor = {
        "toeplitz": lambda: kx.Toeplitz(column),
        "circulant": lambda: kx.Circulant(column),
        "diagonal": lambda: kx.Diagonal(column),
        "scaled_identity": lambda: kx.ScaledIdentity(1.3, 6),
    }[kind]()
    shifted = factor.shifted(jnp.asarray(0.1))
    assert shifted.blocks().sizes == factor.blocks().sizes
    assert shifted.blocks().ndims == factor.blocks().ndims
    x = np.arange(6.0)

    @jax.jit
    def answers(factor, shifted):
        doubled = 2.0 * shifted.T
        matrices = factor.to_dense(), shifted.to_dense(), doubled.to_dense()
        return matrices, shifted.mv(x), shifted.diagonal()

    (dense, *others), product, diagonal = answers(factor, shifted)
    dense = np.asarray(dense) + 0.1 * np.eye(6)
    for found, truth in zip(others, (dense, 2 * dense), strict=True):
        assert_close(found, truth)
    assert_close(product, dense @ x)
    assert_close(diagonal, np.diagonal(dense))
    product = kx.Kronecker(shifted, B)
    assert_close(kx.logdet(product), np.linalg.slogdet(np.kron(dense, B))[1])


def test_thin_factors_of_a_sum():
    root = np.random.default_rng(4).normal(size=(4, 1))
    op = kx.KroneckerSum(kx.LowRank(root), B) + 0.2
    dense = dense_sum(root @ root.T, B) + 0.2 * np.eye(12)
    assert_close(kx.logdet(op), np.linalg.slogdet(dense)[1])
    assert_close(kx.inverse_diagonal(op).ravel(), np.diag(np.linalg.inv(dense)))


def test_distributions_take_sums_of_two():
    y = np.random.default_rng(4).normal(size=(4, 3))
    for op in (kx.KroneckerSum(A, B) + 0.1, kx.KroneckerSum(A, B)):
        normal = kx.KroneckerNormal(0.0, op)
        assert_close(normal.log_prob(jnp.asarray(y)), kx.normal_logpdf(y, 0.0, op))
        assert_close(normal.variance, op.diagonal())
    with pytest.raises(NotImplementedError, match=r"must have two factors.*got 3"):
        kx.KroneckerNormal(0.0, kx.KroneckerSum(A, B, C))


@pytest.mark.parametrize("matrices", [(A, B), (A, B, C)], ids=["two", "three"])
def test_functions_take_a_sum_and_a_decomposed_one(matrices):
    op = kx.KroneckerSum(*matrices)
    dense = dense_sum(*matrices)
    for held in (op, kx.decompose(op)):
        assert_close(kx.logdet(held), np.linalg.slogdet(dense)[1])
    columns = np.eye(dense.shape[0])[:, :3]
    assert_close(kx.inverse(op) @ columns, np.linalg.solve(dense, columns))


# name: (call, exception, what the message must match)
BAD = {
    "one factor": (lambda: kx.KroneckerSum(A), ValueError, "two factors or more.*got one"),
    "tuple": (lambda: kx.KroneckerSum((A, B)), TypeError, r"a tuple of 2.*KroneckerSum\(\*fac"),
    "rectangular": (
        lambda: kx.KroneckerSum(A, np.ones((2, 3))),
        ValueError,
        r"factor 1 must be square for a Kronecker sum; got shape \(2, 3\)",
    ),
    "a third term": (
        lambda: kx.KroneckerSum(A, B) + kx.Kronecker(A, B),
        TypeError,
        "more than two terms has no exact.*got a Kronecker sum plus Kronecker",
    ),
    "a third term before": (
        lambda: kx.Kronecker(A, B) + kx.KroneckerSum(A, B),
        TypeError,
        "more than two terms has no exact.*got a Kronecker sum plus Kronecker",
    ),
    "not symmetric": (
        lambda: kx.logdet(kx.KroneckerSum(general(4), B) + 0.1),
        ValueError,
        "factor 0 must be symmetric",
    ),
    "indefinite": (
        lambda: kx.logdet(kx.KroneckerSum(A, np.diag([1.0, -2.0, 1.0])) + 0.1),
        np.linalg.LinAlgError,
        "factor 1 of the signal must be positive semidefinite",
    ),
    "singular": (
        lambda: kx.logdet(kx.KroneckerSum(np.zeros((4, 4)), np.zeros((3, 3)))),
        np.linalg.LinAlgError,
        "must be positive definite.*Add noise",
    ),
    "Kronecker noise": (
        lambda: kx.KroneckerPlusNoise(kx.KroneckerSum(A, B), kx.Kronecker(A, B)),
        TypeError,
        "got a Kronecker sum plus Kronecker",
    ),
    "a third term to a noisy one": (
        lambda: kx.KroneckerSum(A, B) + 0.1 + kx.Kronecker(A, B),
        TypeError,
        "got a Kronecker sum plus noise plus Kronecker",
    ),
    "negative": (
        lambda: kx.KroneckerSum(A, B) + -0.1,
        ValueError,
        "must not be negative; got -0.1",
    ),
    "array": (lambda: kx.KroneckerSum(A, B) + np.ones(3), ValueError, r"got shape \(3,\)"),
    "nested": (
        lambda: kx.Kronecker(kx.KroneckerSum(A, B), C),
        TypeError,
        "must be an operator on one axis; got KroneckerSum",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, exception, match = BAD[name]
    with pytest.raises(exception, match=match):
        call()


def test_the_cases_hold_sums():
    assert isinstance(CASES["Kronecker sum, noise-free"].operator, kx.KroneckerSum)
