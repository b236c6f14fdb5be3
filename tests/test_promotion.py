"""The core works where implicit promotion of ranks is forbidden, as it is in all of these tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import full

X, Z = np.linspace(0, 1, 7), np.linspace(0, 1, 5)
Y = np.sin(5 * X)[:, None] * np.cos(3 * Z)
GAPS = np.where(np.arange(35).reshape(7, 5) % 11 == 3, np.nan, Y)


@pytest.mark.parametrize(
    ("y", "gaps"),
    [(Y, "auto"), full(Y, "iterative"), full(GAPS, "auto"), full(GAPS, "iterative")],
    ids=["complete-auto", "complete-iterative", "gaps-auto", "gaps-iterative"],
)
def test_a_process_runs(y, gaps):
    with jax.numpy_rank_promotion("raise"):
        gp = kx.GridGP((kx.RBF(0.3), kx.Matern32(0.4)), (X, Z), noise=0.1, gaps=gaps)

        def value(noise):
            return kx.replace(gp, {"noise": noise}).log_marginal_likelihood(y)

        assert np.isfinite(jax.grad(value)(jnp.asarray(0.1)))
        post = gp.condition(y)
        for found in (post.mean(), post.variance(), post.mean([X[:2] + 0.01, None])):
            assert np.isfinite(found).all()
