"""Whole slices left out, beside a dense process that really has not seen them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import full
from tests.gp.dense import GPS, full_noise, matern32, squared_exponential, two_axes
from tests.tolerances import assert_close

CASES = [(name, axis) for name, case in GPS.items() for axis in range(len(case.grid))]


def predicted(covariance, mean, y, axis, design=None):
    """Means, variances, joint log densities and chi-squares of every slice given the others."""
    shape, size = y.shape, y.size
    cells = np.moveaxis(np.arange(size).reshape(shape), axis, 0).reshape(shape[axis], -1)
    residual = (y - mean).ravel()
    means, variances = np.empty(size), np.empty(size)
    scores, squares = np.empty(shape[axis]), np.empty(shape[axis])
    for a, own in enumerate(cells):
        others = np.setdiff1d(np.arange(size), own)
        inside, cross = covariance[np.ix_(others, others)], covariance[np.ix_(own, others)]
        explained = np.linalg.solve(inside, cross.T).T
        given = covariance[np.ix_(own, own)] - explained @ cross.T
        rest, ahead = residual[others], 0.0
        if design is not None:
            h = design.reshape(len(design), -1)
            solved = np.linalg.solve(inside, h[:, others].T)
            spread = np.linalg.inv(h[:, others] @ solved)
            beta = spread @ solved.T @ rest
            left = h[:, own].T - explained @ h[:, others].T
            given = given + left @ spread @ left.T
            rest, ahead = rest - beta @ h[:, others], beta @ h[:, own]
        centre = ahead + explained @ rest
        means[own], variances[own] = centre, np.diagonal(given)
        joint = scipy.stats.multivariate_normal(centre, given)
        scores[a] = joint.logpdf(residual[own])
        error = residual[own] - centre
        squares[a] = error @ np.linalg.solve(given, error)
    return mean + means.reshape(shape), variances.reshape(shape), scores, squares


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_each_slice_is_predicted_from_the_others(name, axis):
    case = GPS[name]
    found = case.gp.condition(case.y).leave_slice_out(axis)
    expected = predicted(case.covariance(), case.mean_on(), case.y, axis)
    means, variances = found
    assert_close(means, expected[0])
    assert_close(variances, expected[1])
    assert_close(found.log_scores, expected[2])
    assert_close(found.chi_square, expected[3])
    assert_close(found.log_score, expected[2].sum())
    assert found.cells_per_slice == case.y.size // case.grid[axis]


def test_slices_of_a_grid_with_one_axis_are_its_cells():
    case = GPS["one axis"]
    post = case.gp.condition(case.y)
    by_slice, by_cell = post.leave_slice_out(0), post.leave_one_out()
    assert_close(by_slice.mean, by_cell.mean)
    assert_close(by_slice.log_scores, by_cell.log_density())


def test_batches_of_data_lead():
    case = full_noise()
    several = np.stack([case.y, 2 * case.y + 1])
    found = case.gp.condition(several).leave_slice_out(1)
    for k, y in enumerate(several):
        expected = predicted(case.covariance(), case.mean_on(), y, 1)
        assert_close(found.mean[k], expected[0])
        assert_close(found.log_scores[k], expected[2])
    assert found.variance.shape == case.grid
    assert found.coverage([0.5, 0.9]).shape == (2, 2)
    assert repr(found) == "4 slices along axis 1, each predicted from the others"


X, Z = np.linspace(0, 1, 5), np.linspace(0, 2, 4)
DATA = np.random.default_rng(3).normal(size=(5, 4)) + 4 * X[:, None]


@pytest.mark.parametrize(
    ("axis", "noise", "kind"),
    [
        (0, 0.2, "dense"),
        full(1, 0.2, "dense"),
        full(1, 0.2, "markov"),
        (1, {1: np.linspace(0.1, 0.3, 4)}, "markov"),
    ],
)
def test_coefficients_are_estimated_from_the_other_slices(axis, noise, kind):
    mean = kx.MarginalMean(kx.LinearMean(0))

    def process(kind):
        kernels = (kx.Matern32(0.4), kx.RBF(0.7))
        return kx.GridGP(kernels, (X, Z), noise=noise, mean=mean, structure=(kind, None))

    found = process(kind).condition(np.stack([DATA, DATA**2])).leave_slice_out(axis)
    variances = np.tile(noise[1] if isinstance(noise, dict) else noise, 20)[:20]
    covariance = np.kron(matern32(X, X, 0.4), squared_exponential(Z, Z, 0.7)) + np.diag(variances)
    line = np.broadcast_to((X[:, None] - 0.5) / 0.5, (5, 4))
    design = np.stack([np.ones((5, 4)), line])
    for k, y in enumerate((DATA, DATA**2)):
        expected = predicted(covariance, 0.0, y, axis, design)
        assert_close(found.mean[k], expected[0])
        assert_close(found.variance, expected[1])
        assert_close(found.log_scores[k], expected[2])
        assert_close(found.chi_square[k], expected[3])


def test_coefficients_that_the_other_slices_do_not_determine_raise():
    mean = kx.MarginalMean(kx.LinearMean("tree"))
    gp = kx.GridGP(
        {"time": kx.Matern32(0.4), "tree": kx.RBF(0.7)},
        {"time": X, "tree": np.array([0.0, 2.5])},
        noise=0.2,
        mean=mean,
    )
    post = gp.condition(DATA[:, :2])
    assert np.isfinite(post.leave_slice_out("time").log_score)
    with pytest.raises(ValueError, match=r"slice 0 of tree .*tree: level, tree: slope.*variance"):
        post.leave_slice_out("tree")
    proper = kx.GridGP(gp.kernels, (X, gp.axes[1]), 0.2, kx.MarginalMean(kx.LinearMean(1), 1.0))
    assert np.isfinite(proper.condition(DATA[:, :2]).leave_slice_out(1).log_score)


def test_a_low_rank_axis():
    x = np.linspace(0, 1, 30)
    gp = kx.GridGP((kx.RBF(0.5), kx.RBF(0.4)), (x, Z), noise=0.2, structure=(25, None))
    y = np.random.default_rng(1).normal(size=(30, 4))
    signal = np.kron(squared_exponential(x, x, 0.5), squared_exponential(Z, Z, 0.4))
    for axis in (0, 1):
        found = gp.condition(y).leave_slice_out(axis)
        mean, variance, scores, _ = predicted(signal + 0.2 * np.eye(120), 0.0, y, axis)
        # The factor leaves out a thousand roundings of its trace.
        np.testing.assert_allclose(found.mean, mean, atol=1e-8)
        np.testing.assert_allclose(found.variance, variance, rtol=1e-8)
        np.testing.assert_allclose(found.log_scores, scores, rtol=1e-8)


def test_float32_stays_float32():
    case = two_axes()
    gp = jax.tree.map(lambda a: a.astype(np.float32), case.gp)
    found = gp.condition(case.y.astype(np.float32)).leave_slice_out(0)
    expected = predicted(case.covariance(), case.mean_on(), case.y, 0)
    values = (found.mean, found.variance, found.log_scores, found.chi_square)
    for value, truth in zip(values, expected, strict=True):
        assert value.dtype == np.float32
        assert_close(value, truth, dtype="float32")


def test_the_score_can_be_fitted_by():
    """Its slope in every parameter is that of the dense score; a second derivative raises."""
    case = two_axes()

    def score(noise):
        gp = kx.replace(case.gp, {"noise": noise})
        return gp.condition(case.y).leave_slice_out(0).log_score

    def dense(noise):
        covariance = case.signal() + noise * np.eye(case.y.size)
        return predicted(covariance, case.mean_on(), case.y, 0)[2].sum()

    slope = jax.jit(jax.grad(score))(jnp.asarray(0.1))
    expected = (dense(0.1 + 1e-5) - dense(0.1 - 1e-5)) / 2e-5
    assert slope.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(kx.DerivativeOrderError):
        jax.eval_shape(jax.grad(jax.grad(score)), jnp.asarray(0.1))


def test_the_score_has_a_slope_where_coefficients_are_integrated_out():
    mean = kx.MarginalMean(kx.LinearMean(0))
    gp = kx.GridGP((kx.Matern32(0.4), kx.RBF(0.7)), (X, Z), noise=0.2, mean=mean)

    @jax.jit
    @jax.value_and_grad
    def score(lengthscale):
        model = kx.replace(gp, {"kernels[0].lengthscale": lengthscale})
        return model.condition(DATA).leave_slice_out(0).log_score

    (below, _), (_, slope), (above, _) = (score(0.4 + h) for h in (-1e-5, 0.0, 1e-5))
    expected = (above - below) / 2e-5
    assert slope.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_slices_print_in_the_users_coordinates():
    years = np.arange("1990", "2010", dtype="datetime64[Y]")
    gp = kx.GridGP(
        {"year": kx.Matern32(3.0), "tree": kx.Categorical.with_rank(3)},
        {"year": kx.dates(years, "years"), "tree": ["ash", "elm", "oak"]},
        noise=0.3,
    )
    y = np.array(gp.sample(jax.random.key(0), include_noise=True))
    y[7] += 4.0
    post = gp.condition(y)
    found = post.leave_slice_out("year")
    lines = repr(found).splitlines()
    assert lines[0].startswith("20 slices along year, each predicted from the others: log score")
    assert int(np.argmax(found.chi_square)) == 7
    assert any(line.startswith("1997 ") for line in lines)
    assert lines[-1] == "and 8 more, with smaller chi-squares"
    assert "elm" in repr(post.leave_slice_out("tree"))
    with pytest.raises(KeyError, match=r"no axis 'tre'.*Did you mean 'tree'"):
        post.leave_slice_out("tre")
