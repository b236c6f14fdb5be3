"""Dtypes follow the parameters; a squared-exponential kernel works in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests import oracle
from tests.cases import rbf
from tests.tolerances import assert_close


def test_lower_precision_data_are_promoted():
    op = kx.Kronecker(np.eye(3), np.eye(2)) + 1.0
    b = np.ones((3, 2), np.float32)
    results = jax.eval_shape(
        lambda op: (kx.solve(op, b), kx.inv_quad(op, b), op.mv(b), op @ b.ravel()), op
    )
    assert all(result.dtype == jnp.float64 for result in results)
    assert kx.solve(op, b).dtype == jnp.float64


def test_float32_parameters_stay_float32():
    op = kx.Kronecker(np.eye(3, dtype=np.float32), np.eye(2, dtype=np.float32)) + 1.0
    b = np.ones((3, 2), np.float32)
    assert (2.0 * op).dtype == jnp.float32
    assert op.dtype == jnp.float32
    results = jax.eval_shape(
        lambda op: (
            kx.solve(op, b),
            kx.logdet(op),
            kx.inv_quad(op, b),
            kx.normal_logpdf(b, 0.0, op),
            kx.inverse_diagonal(op),
            kx.sample_normal(jax.random.key(0), op),
            op.mv(b),
            kx.inverse(op) @ b.reshape(6, 1),
            kx.decompose(op).decomposition[0].values,
        ),
        op,
    )
    assert all(result.dtype == jnp.float32 for result in results)
    assert kx.logdet(op).dtype == jnp.float32


def test_python_numbers_take_the_default_dtype():
    assert kx.ScaledIdentity(2.0, 3).dtype == jnp.float64
    with jax.enable_x64(False):
        assert kx.ScaledIdentity(2.0, 3).dtype == jnp.float32


def test_without_x64():
    with jax.enable_x64(False):
        op = kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0
        b = jnp.ones((3, 2))
        value, gradient = jax.jit(jax.value_and_grad(lambda op: kx.normal_logpdf(b, 0.0, op)))(op)
        hessian = jax.jit(jax.hessian(lambda s: kx.logdet(kx.Kronecker(jnp.eye(3)) + s)))(1.0)
        assert value.dtype == gradient.noise.dtype == jnp.float32
        expected = -0.5 * (3.0 + 6 * np.log(2.0)) - 3 * np.log(2 * np.pi)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(hessian, -3 / 4, rtol=1e-6)


def test_squared_exponential_of_500_points_in_float32():
    """Its rounded eigenvalues are negative down to a few `n · eps · λ_max`, and count as zero."""
    matrix = rbf(500, 0.3).astype(np.float32)
    assert np.linalg.eigvalsh(matrix).min() < 0
    y = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    pair = np.array([[1.0, 0.4], [0.4, 1.0]], np.float32)
    op = kx.Kronecker(pair, matrix) + np.float32(0.01)
    # The kernel, not its float32 rounding, is what the answer must be right for.
    dense = np.kron(pair.astype(float), rbf(500, 0.3)) + 0.01 * np.eye(1000)
    logdet = np.linalg.slogdet(dense)[1]
    x = np.linalg.solve(dense, y.ravel().astype(float))
    assert_close(kx.logdet(op), np.asarray(logdet), 1)
    assert_close(kx.inv_quad(op, y), oracle.dot(y.ravel(), x), 1)
    density = -0.5 * (logdet + y.ravel() @ x + 1000 * np.log(2 * np.pi))
    assert_close(kx.normal_logpdf(y, 0.0, op), np.asarray(density), 1)
    assert_close(kx.solve(op, y), x.reshape(2, 500), 1)
    variances = kx.inverse_diagonal(op)
    assert np.all(variances > 0)
    assert_close(variances, np.diag(np.linalg.inv(dense)).reshape(2, 500), 1)
    assert np.all(np.isfinite(kx.sample_normal(jax.random.key(0), op)))


@pytest.mark.parametrize("first", [np.float32, np.float64])
def test_factors_of_two_precisions_take_the_higher(first):
    second = np.float64 if first is np.float32 else np.float32
    op = kx.Kronecker(np.eye(2, dtype=first), np.eye(3, dtype=second))
    assert op.dtype == jnp.float64
    assert all(factor.dtype == jnp.float64 for factor in op.factors)


def test_noise_of_lower_precision_is_promoted():
    signal = kx.Kronecker(np.eye(2), np.eye(3))
    noise = kx.Kronecker(np.eye(2, dtype=np.float32), np.eye(3, dtype=np.float32))
    op = signal + noise
    assert op.noise.dtype == jnp.float64
    assert_close(kx.logdet(op), np.asarray(6 * np.log(2.0)))
