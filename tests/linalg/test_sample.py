"""Draws: their covariance, their derivative, their shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.factors.square_roots import symmetric_root
from tests import oracle
from tests.cases import CASES, FEW, circulant, covariance, exchangeable
from tests.everyday import everyday
from tests.linalg.contracted import QUICK
from tests.tolerances import assert_close

NUM_DRAWS = 20_000
KEY = jax.random.key(3)
SAMPLED = [name for name, case in CASES.items() if case.covariance and np.prod(case.grid) < 100]


@partial(jax.jit, compiler_options=QUICK)
def draws_of(op):
    return kx.sample_normal(KEY, op, (NUM_DRAWS,))


@pytest.mark.parametrize("name", everyday(SAMPLED, set(SAMPLED) & set(FEW)))
def test_the_covariance_is_that_of_the_operator(name):
    case = CASES[name]
    op, dense = case.operator, case.dense[0].value
    draws = draws_of(op)
    assert draws.shape == (NUM_DRAWS, *op.batch_shape, *op.grid_shape)
    flat = np.asarray(draws).reshape(NUM_DRAWS, *op.batch_shape, -1)
    empirical = np.einsum("s...i,s...j->...ij", flat, flat) / NUM_DRAWS
    variances = np.diagonal(dense, axis1=-2, axis2=-1)
    products = variances[..., :, None] * variances[..., None, :]
    error = np.sqrt((products + dense**2) / NUM_DRAWS)
    # Five standard errors: the key is fixed, so this does not come and go.
    assert np.all(np.abs(empirical - dense) < 5 * error + 1e-12)
    assert np.all(np.abs(flat.mean(0)) < 5 * np.sqrt(variances / NUM_DRAWS) + 1e-12)


@pytest.mark.parametrize("name", ["two axes", "full Kronecker noise", "noise-free"])
def test_keys_and_shapes(name):
    op = CASES[name].operator
    draw = kx.sample_normal(KEY, op)
    assert draw.shape == op.grid_shape
    assert kx.sample_normal(KEY, op, (2, 3)).shape == (2, 3, *op.grid_shape)
    np.testing.assert_array_equal(draw, kx.sample_normal(KEY, op))
    assert not np.allclose(draw, kx.sample_normal(jax.random.key(4), op))


SPECTRA = {
    "identity": np.eye(4),
    "exchangeable": exchangeable(4, 0.3),
    "circulant": circulant(4),
    "general": covariance(4),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_draws_follow_the_symmetric_root(spectrum):
    """A draw is `R z`, so its derivative is `dR R⁻¹` times the draw."""
    matrix = SPECTRA[spectrum]
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(4, 4))
    direction = direction + direction.T

    def draw(t):
        return kx.sample_normal(KEY, kx.Kronecker(matrix + t * direction))

    value, slope = jax.jit(lambda t: jax.jvp(draw, (t,), (1.0,)))(0.0)
    step = 1e-5
    root_slope = (
        oracle.symmetric_root(matrix + step * direction)
        - oracle.symmetric_root(matrix - step * direction)
    ) / (2 * step)
    white = np.linalg.solve(oracle.symmetric_root(matrix), value)
    np.testing.assert_allclose(slope, root_slope @ white, rtol=1e-7, atol=1e-8)
    reverse = jax.jit(jax.jacrev(draw))(0.0)
    assert_close(reverse, np.asarray(slope), 1)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_symmetric_root_and_its_gradient(spectrum):
    matrix = SPECTRA[spectrum]
    weights = np.random.default_rng(1).normal(size=(4, 4))

    def total(matrix):
        return jnp.sum(weights * symmetric_root(matrix))

    assert_close(symmetric_root(jnp.asarray(matrix)), oracle.symmetric_root(matrix))
    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(matrix)))
    step = 1e-5
    for i, j in ((0, 0), (0, 1), (2, 3)):
        direction = np.zeros((4, 4))
        direction[i, j] += 0.5
        direction[j, i] += 0.5
        up, down = (oracle.symmetric_root(matrix + s * direction) for s in (step, -step))
        slope = np.sum(weights * (up - down)) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7, atol=1e-8)


def test_the_root_of_a_singular_matrix_is_finite():
    matrix = jnp.ones((3, 3))
    assert_close(symmetric_root(matrix), np.full((3, 3), 1 / np.sqrt(3)), 1)
    assert np.all(np.isfinite(jax.grad(lambda m: symmetric_root(m).sum())(matrix)))


def test_gradient_in_the_noise():
    signal = kx.Kronecker(covariance(3), covariance(2))

    def draw(noise):
        return kx.sample_normal(KEY, signal + noise)

    step = 1e-6
    slope = (draw(0.4 + step) - draw(0.4 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jacfwd(draw)(0.4), slope, rtol=1e-7, atol=1e-8)
