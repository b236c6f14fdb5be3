"""What `+` makes, and that both ways to write a sum agree."""

import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.cases import covariance
from tests.tolerances import assert_close

A, B = covariance(4), covariance(3)
SIGNAL = kx.Kronecker(A, B)
DENSE = np.kron(A, B)


@pytest.mark.parametrize("noise", [0.1, 1, np.float64(0.1), jnp.array(0.1), np.array(0.1)])
def test_a_number_adds_a_multiple_of_the_identity(noise):
    for op in (SIGNAL + noise, noise + SIGNAL, kx.KroneckerPlusNoise(SIGNAL, noise)):
        assert isinstance(op, kx.KroneckerPlusNoise)
        assert_close(op.to_dense(), DENSE + float(noise) * np.eye(12))


def test_noise_adds_up():
    op = SIGNAL + 0.1 + 0.2
    assert isinstance(op, kx.KroneckerPlusNoise)
    assert_close(op.to_dense(), DENSE + 0.3 * np.eye(12))


def test_zero_noise_is_allowed_where_the_signal_is_definite():
    assert_close(kx.logdet(SIGNAL + 0.0), np.linalg.slogdet(DENSE)[1])


def test_a_sum_of_two_products():
    other = kx.Kronecker(kx.Diagonal(np.arange(1.0, 5)), kx.ScaledIdentity(0.5, 3))
    op = SIGNAL + other
    assert isinstance(op, kx.KroneckerPlusNoise)
    truth = DENSE + np.kron(np.diag(np.arange(1.0, 5)), 0.5 * np.eye(3))
    assert_close(op.to_dense(), truth)
    assert_close(kx.logdet(other + SIGNAL), np.linalg.slogdet(truth)[1])
    assert_close(kx.logdet(op), np.linalg.slogdet(truth)[1])


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (kx.Dense(A), kx.Dense(A), kx.Dense),
        (kx.Dense(A), kx.Diagonal(np.ones(4)), kx.Dense),
        (kx.Diagonal(np.ones(4)), kx.Diagonal(np.ones(4)), kx.Diagonal),
        (kx.Diagonal(np.ones(4)), kx.ScaledIdentity(2.0, 4), kx.Diagonal),
    ],
)
def test_sums_on_one_axis_stay_on_one_axis(first, second, kind):
    total = first + second
    assert isinstance(total, kind)
    assert_close(total.to_dense(), np.asarray(first.to_dense() + second.to_dense()))


@pytest.mark.parametrize("noise", [0.1, kx.Kronecker(np.eye(4), 2 * np.eye(3))])
def test_multiples_and_transposes_of_sums(noise):
    op = kx.KroneckerPlusNoise(SIGNAL, noise)
    dense = np.asarray(op.to_dense())
    assert isinstance(2.0 * op, kx.KroneckerPlusNoise)
    assert_close((2.0 * op).to_dense(), 2 * dense)
    assert_close((op / 4).to_dense(), dense / 4)
    assert_close(op.T.to_dense(), dense.T)
    columns = np.random.default_rng(0).normal(size=(12, 2))
    assert_close(op @ columns, dense @ columns)
    assert_close(op.trace(), np.trace(dense))
    assert op.factors == op.kronecker.factors


def test_a_batch_of_variances():
    batch = kx.Kronecker(np.stack([A, 2 * A]), B)
    op = kx.KroneckerPlusNoise(batch, np.array([0.1, 0.3]))
    truth = [np.kron(A, B) + 0.1 * np.eye(12), np.kron(2 * A, B) + 0.3 * np.eye(12)]
    assert_close(op.to_dense(), np.stack(truth))
