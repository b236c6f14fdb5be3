"""Leave-one-out prediction beside a dense process from which each cell is really left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.gp.dense import GPS, full_noise, left_out, matern32, squared_exponential, two_axes
from tests.tolerances import assert_close


@pytest.mark.parametrize("name", GPS)
def test_each_cell_is_predicted_from_the_others(name):
    case = GPS[name]
    means, variances = case.gp.condition(case.y).leave_one_out()
    expected = case.left_out()
    assert_close(means, expected[0])
    assert_close(variances, expected[1])
    # It is not the posterior mean, which has seen the cell.
    assert np.abs(means - case.gp.condition(case.y).mean()).max() > 0.01


def test_the_log_density_is_the_normal_one():
    case = two_axes()
    found = case.gp.condition(case.y).leave_one_out()
    means, variances = case.left_out()
    expected = scipy.stats.norm(means, np.sqrt(variances)).logpdf(case.y)
    assert_close(found.log_density(case.y), expected)


def test_batches_of_data_lead_and_share_the_variance():
    case = full_noise()
    several = np.stack([case.y, 2 * case.y + 1, case.y**2])
    means, variances = case.gp.condition(several).leave_one_out()
    for y, mean in zip(several, means, strict=True):
        expected = case.left_out(y)
        assert_close(mean, expected[0])
        assert_close(variances, expected[1])


@pytest.mark.parametrize("name", ["two axes", "full noise"])
def test_float32_stays_float32(name):
    case = GPS[name]
    gp = jax.tree.map(lambda a: a.astype(np.float32), case.gp)
    found = gp.condition(case.y.astype(np.float32)).leave_one_out()
    for value, expected in zip(found, case.left_out(), strict=True):
        assert value.dtype == np.float32
        assert_close(value, expected, dtype="float32")


def test_a_low_rank_axis():
    x, z = np.linspace(0, 1, 30), np.linspace(0, 1, 4)
    gp = kx.GridGP((kx.RBF(0.5), kx.RBF(0.4)), (x, z), noise=0.2, structure=(25, None))
    signal = np.kron(squared_exponential(x, x, 0.5), squared_exponential(z, z, 0.4))
    y = np.random.default_rng(1).normal(size=(30, 4))
    means, variances = gp.condition(y).leave_one_out()
    expected = left_out(signal + 0.2 * np.eye(120), 0.0, y)
    # The factor leaves out a thousand roundings of its trace.
    np.testing.assert_allclose(means, expected[0], atol=1e-8)
    np.testing.assert_allclose(variances, expected[1], rtol=1e-8)


def test_gradients_to_first_order_and_no_further():
    """A user may fit by leave-one-out density; the derivative is that of the dense formula."""
    case = two_axes()

    def density(noise):
        gp = kx.replace(case.gp, {"noise": noise})
        return jnp.sum(gp.condition(case.y).leave_one_out().log_density(case.y))

    def dense_density(noise):
        covariance = case.signal() + noise * np.eye(case.y.size)
        means, variances = left_out(covariance, case.mean_on(), case.y)
        return scipy.stats.norm(means, np.sqrt(variances)).logpdf(case.y).sum()

    slope = jax.jit(jax.grad(density))(jnp.asarray(0.1))
    step = 1e-5
    expected = (dense_density(0.1 + step) - dense_density(0.1 - step)) / (2 * step)
    assert slope.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(kx.DerivativeOrderError):
        jax.eval_shape(jax.grad(jax.grad(density)), jnp.asarray(0.1))


def test_coefficients_that_are_integrated_out_are_left_out_too():
    """Each cell predicted by a model of the others, whose coefficients they alone determine."""
    x, z = np.linspace(0, 1, 5), np.linspace(0, 2, 4)
    y = np.random.default_rng(3).normal(size=(5, 4)) + 4 * x[:, None]
    mean = kx.MarginalMean(kx.LinearMean(0))
    gp = kx.GridGP((kx.Matern32(0.4), kx.RBF(0.7)), (x, z), noise=0.2, mean=mean)
    means, variances = gp.condition(y).leave_one_out()
    covariance = np.kron(matern32(x, x, 0.4), squared_exponential(z, z, 0.7)) + 0.2 * np.eye(20)
    line = np.stack([np.ones(20), np.repeat((x - 0.5) / 0.5, 4)], axis=1)
    for cell in (0, 7, 19):
        rest = np.arange(20) != cell
        inside, cross = covariance[np.ix_(rest, rest)], covariance[cell, rest]
        solved = np.linalg.solve(inside, line[rest])
        errors = np.linalg.inv(line[rest].T @ solved)
        beta = errors @ solved.T @ y.ravel()[rest]
        weights = np.linalg.solve(inside, y.ravel()[rest] - line[rest] @ beta)
        left = line[cell] - cross @ solved
        assert means.ravel()[cell] == pytest.approx(line[cell] @ beta + cross @ weights)
        variance = covariance[cell, cell] - cross @ np.linalg.solve(inside, cross)
        assert variances.ravel()[cell] == pytest.approx(variance + left @ errors @ left)
