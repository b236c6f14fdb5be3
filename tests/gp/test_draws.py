"""Posterior draws with the structure of the axes, and many of them a few at a time.

What is counted or patched is read while a program is traced: the numbers of draws are such as no
other test has, so that no program of before is used.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.gp.model import components
from kronax.gp.posterior import draws
from tests.gp.dense import two_axes
from tests.tolerances import assert_close


def test_structured_axes_give_the_draws_of_dense_ones():
    """The symmetric root is one matrix, whichever way it is found."""
    axes = (np.linspace(0, 1, 18), kx.circle(np.arange(17.0), 17.0), np.array([0.0, 0.2, 1.0]))
    kernels = (kx.Matern32(0.4), 2.0 * kx.Matern32(3.0), kx.RBF(0.5))
    y = np.random.default_rng(0).normal(size=(18, 17, 3))
    structured, dense = (
        kx.GridGP(kernels, axes, noise=0.1, structure=structure).condition(y)
        for structure in (None, ("dense",) * 3)
    )
    assert [s.kind for s in structured.gp.structures] == ["toeplitz", "circulant", "dense"]
    key = jax.random.key(0)
    new = [None, None, np.array([2.5])]
    assert_close(structured.sample(key, new), dense.sample(key, new))


def test_only_a_root_over_new_coordinates_is_dense(monkeypatch):
    """An axis that stays has its factor's root; a dense one would take four times as long."""
    sizes = []
    original = components.symmetric_root

    def counted(matrix):
        sizes.append(matrix.shape[-1])
        return original(matrix)

    monkeypatch.setattr(components, "symmetric_root", counted)
    post = two_axes().gp.condition(two_axes().y)
    jax.eval_shape(lambda: post.sample(jax.random.key(0), sample_shape=17))
    assert sizes == []
    jax.eval_shape(lambda: post.sample(jax.random.key(0), [None, np.array([2.0, 3.0])], 17))
    assert sizes == [6]


@pytest.fixture
def few_at_once(monkeypatch):
    """So few that the draws of a small grid are made in turns."""
    monkeypatch.setattr(draws, "DRAWN_AT_ONCE", 3 * 20)


def test_draws_in_turns_have_the_posteriors_moments(few_at_once):
    case = two_axes()
    new = [np.array([0.35]), None]
    draws = case.gp.condition(case.y).sample(jax.random.key(1), new, (4001,), include_noise=True)
    mean, covariance = case.posterior([new[0], case.axes[1]])
    covariance = covariance + 0.1 * np.eye(4)
    flat = np.asarray(draws).reshape(4001, 4)
    deviations = np.sqrt(np.diagonal(covariance))
    assert np.all(np.abs(flat.mean(axis=0) - mean.ravel()) < 5 * deviations / np.sqrt(4001))
    scale = np.outer(deviations, deviations)
    assert np.abs((np.cov(flat.T) - covariance) / scale).max() < 5 * np.sqrt(2 / 4001)


def test_draws_in_turns_have_the_shape_asked_for_and_all_differ(few_at_once):
    case = two_axes()
    post = case.gp.condition(np.stack([case.y, 2 * case.y]))
    draws = post.sample(jax.random.key(1), sample_shape=(3, 11), include_noise=True)
    assert draws.shape == (3, 11, 2, 5, 4)
    assert len(np.unique(np.asarray(draws))) == draws.size
    again = post.sample(jax.random.key(1), sample_shape=(3, 11), include_noise=True)
    np.testing.assert_array_equal(draws, again)


def test_draws_in_turns_have_gradients(few_at_once):
    case = two_axes()

    def total(noise):
        gp = kx.replace(case.gp, {"noise": noise})
        return jnp.sum(gp.condition(case.y).sample(jax.random.key(2), sample_shape=(13,)) ** 2)

    found = jax.jit(jax.value_and_grad(total))
    expected = (found(0.1 + 1e-5)[0] - found(0.1 - 1e-5)[0]) / 2e-5
    assert found(0.1)[1] == pytest.approx(float(expected), rel=1e-5)
