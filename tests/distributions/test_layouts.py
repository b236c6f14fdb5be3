"""Batches that the factors lack, flat layouts, operators that bring noise or a decomposition."""

import jax
import numpy as np
import pytest

import kronax as kx
from tests.distributions.cases import CASES, LOC
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    "name", ["noise-free", "variance", "Cholesky factors", "precision factors"]
)
def test_flat_events_are_the_grid_events_in_c_order(name):
    case, key = CASES[name], jax.random.key(2)
    flat, grid = case.make(flatten=True), case.make()
    assert_close(flat.sample(key, (3,)), grid.sample(key, (3,)).reshape(3, 12))
    assert_close(flat.variance, np.asarray(grid.variance).ravel())
    assert_close(case.make(loc=LOC.ravel(), flatten=True).mean, LOC.ravel())


@pytest.mark.parametrize(
    "name", ["noise-free", "variance", "full noise", "Cholesky factors", "precision factors"]
)
def test_draws_are_independent_across_a_batch_that_the_factors_lack(name):
    d = CASES[name].make(loc=np.zeros((2, 3, 4)))
    draws = np.asarray(d.sample(jax.random.key(0), (2_000,)))
    assert draws.shape == (2_000, 2, 3, 4)
    first, second = (draws[:, k].reshape(2_000, 12) for k in range(2))
    crossed = np.corrcoef(first.T, second.T)[:12, 12:]
    assert np.abs(crossed).max() < 5 / np.sqrt(2_000)
    over_draws = np.corrcoef(first[:-1].T, first[1:].T)[:12, 12:]
    assert np.abs(over_draws).max() < 5 / np.sqrt(2_000)


def test_factors_may_bring_their_noise():
    op = kx.Kronecker(np.eye(3), np.eye(2)) + 0.5
    y = np.linspace(-1, 1, 6).reshape(3, 2)
    expected = kx.KroneckerNormal(0.0, (np.eye(3), np.eye(2)), 0.5).log_prob(y)
    np.testing.assert_allclose(kx.KroneckerNormal(0.0, op).log_prob(y), expected)


def test_an_operator_may_bring_its_decomposition():
    op = kx.Kronecker(np.eye(3) + 0.5, np.eye(2)) + 0.5
    y = np.linspace(-1, 1, 6).reshape(3, 2)
    d = kx.KroneckerNormal(0.0, kx.decompose(op))
    assert d.covariance.decomposition is not None
    assert_close(d.log_prob(y), kx.KroneckerNormal(0.0, op).log_prob(y))
    many = jax.vmap(lambda loc: kx.KroneckerNormal(loc, kx.decompose(op)))(np.stack([y, 2 * y]))
    assert_close(many.log_prob(y)[0], kx.KroneckerNormal(y, op).log_prob(y))
