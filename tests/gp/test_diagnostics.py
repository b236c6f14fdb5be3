"""Scores, coverage, outliers and independent residuals beside their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import everyday
from tests.gp.dense import GPS, two_axes
from tests.tolerances import assert_close


@pytest.mark.parametrize("name", everyday(GPS, ["three named axes"]))
def test_scores_and_standardised_errors_follow_from_the_predictions(name):
    case = GPS[name]
    found = case.gp.condition(case.y).leave_one_out()
    means, variances = case.left_out()
    error = case.y - means
    assert_close(found.error, error)
    assert_close(found.standardised, error / np.sqrt(variances))
    assert_close(found.rmse, np.sqrt(np.mean(error**2)))
    expected = scipy.stats.norm(means, np.sqrt(variances)).logpdf(case.y)
    assert_close(found.log_density(), expected)
    assert_close(found.log_score, expected.sum())


def test_coverage_counts_central_intervals():
    case = two_axes()
    found = case.gp.condition(case.y).leave_one_out()
    means, variances = case.left_out()
    for level in (0.5, 0.9):
        low, high = scipy.stats.norm(means, np.sqrt(variances)).interval(level)
        inside = np.mean((low <= case.y) & (case.y <= high))
        assert 0 < inside < 1
        assert float(found.coverage(level)) == pytest.approx(inside)
    np.testing.assert_array_equal(
        found.coverage([[0.5], [0.9]]), [[found.coverage(0.5)], [found.coverage(0.9)]]
    )
    for level in (0.0, 1.0, 95, [0.5, -0.1], []):
        with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.95; got"):
            found.coverage(level)


def forest(mean=0.0):
    """Daily numbers of three trees, two of them misread."""
    days = np.datetime64("2024-02-27") + np.arange(30)
    gp = kx.GridGP(
        {"day": kx.Matern32(6.0), "tree": kx.Categorical.with_rank(3)},
        {"day": days, "tree": ["ash", "elm", "oak"]},
        noise=0.1,
        mean=mean,
    )
    y = np.array(kx.replace(gp, {}).sample(jax.random.key(1), include_noise=True))
    y[4, 1] += 6.0
    y[20, 2] -= 4.0
    return gp, y


def test_outliers_are_named_in_the_users_coordinates():
    gp, y = forest()
    found = gp.condition(y).leave_one_out()
    first, second = found.outliers(number=2)
    assert (first.index, second.index) == ((4, 1), (20, 2))
    assert first.where == {"day": np.datetime64("2024-03-02"), "tree": "elm"}
    assert first.observed == y[4, 1]
    assert first.z == pytest.approx(float(found.standardised[4, 1]))
    assert first.predicted + first.z * first.standard_deviation == pytest.approx(first.observed)
    beyond = found.outliers(threshold=4.0)
    assert all(abs(one.z) > 4 for one in beyond)
    assert len(beyond) == int(np.sum(np.abs(found.standardised) > 4))
    lines = repr(beyond).splitlines()
    assert lines[0].split() == ["day", "tree", "observed", "predicted", "sd", "z"]
    assert lines[1].startswith("2024-03-02  elm ")
    assert repr(found.outliers(threshold=100.0)) == "no outliers"
    assert found.outliers(number=0) == ()


def test_outliers_in_places_and_batches():
    case = GPS["three named axes"]
    several = np.stack([case.y, case.y])
    several[1, 2, 3, 0] += 50.0
    worst = case.gp.condition(several).leave_one_out().outliers(number=1)
    assert worst[0].index == (1, 2, 3, 0)
    assert worst[0].where == {"time": 0.45, "place": (0.2, 0.2), "hour": 0.0}
    assert "data set" in repr(worst)
    assert "(0.2, 0.2)" in repr(worst)


def test_outliers_need_values_and_a_sensible_number():
    case = two_axes()

    @jax.jit
    def count(y):
        return len(case.gp.condition(y).leave_one_out().outliers())

    with pytest.raises(TypeError, match=r"traced. Use `.standardised`"):
        count(case.y)
    found = case.gp.condition(case.y).leave_one_out()
    for wrong in ({"threshold": -1.0}, {"number": -1}):
        with pytest.raises(ValueError, match="not negative"):
            found.outliers(**wrong)


@pytest.mark.parametrize("name", everyday(GPS, ["full noise"]))
def test_decorrelated_residuals_have_the_likelihoods_square(name):
    case = GPS[name]
    post = case.gp.condition(np.stack([case.y, case.y - 1]))
    white = post.diagnostics().decorrelated
    for k, y in enumerate((case.y, case.y - 1)):
        residual = (y - case.mean_on()).ravel()
        square = residual @ np.linalg.solve(case.covariance(), residual)
        assert_close(jnp.sum(white[k] ** 2), square)


def test_decorrelated_residuals_of_the_models_own_data_are_standard_normal():
    gp = kx.GridGP((kx.Matern32(3.0), 2.0 * kx.RBF(2.0)), (np.arange(40.0), np.arange(25.0)), 0.2)
    y = gp.sample(jax.random.key(3), include_noise=True)
    found = gp.condition(y).diagnostics()
    white = np.asarray(found.decorrelated)
    assert scipy.stats.kstest(white.ravel(), "norm").pvalue > 0.01
    for axis in (0, 1):  # neighbours do not correlate
        first, second = (np.take(white, np.arange(white.shape[axis] - 1) + k, axis) for k in (0, 1))
        assert abs(np.mean(first * second)) < 4 / np.sqrt(white.size)
    shares = found.coverage([0.5, 0.95])
    assert np.all(
        np.abs(shares - np.array([0.5, 0.95])) < 4 * np.sqrt([0.25 / 1000, 0.0475 / 1000])
    )


def test_coefficients_take_up_their_degrees_of_freedom():
    mean = kx.MarginalMean(kx.LinearMean(0))
    gp = kx.GridGP((kx.Matern32(0.4), kx.RBF(0.7)), (np.arange(5.0), np.arange(4.0)), 0.2, mean)
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(gp.covariance().to_dense())
    several = (rng.normal(size=(4000, 20)) @ root.T).reshape(-1, 5, 4) + 7.0
    white = gp.condition(several).diagnostics().decorrelated
    assert float(jnp.mean(jnp.sum(white**2, axis=(1, 2)))) == pytest.approx(18, abs=0.4)


def test_the_table_says_what_is_wrong():
    gp, y = forest()
    text = repr(gp.condition(y).diagnostics())
    lines = text.splitlines()
    assert lines[0].startswith("Diagnostics of 30 × 3 observations: leave-one-out log score ")
    assert lines[1].split() == ["leave", "one", "out", "decorrelated", "expected"]
    assert any(line.startswith("inside 95%") and "95% ± 2.3%" in line for line in lines)
    assert any("more than 3 standard deviations away, 0.24 expected:" in line for line in lines)
    assert any(line.startswith("2024-03-02  elm ") for line in lines)
    quiet = repr(kx.replace(gp, {"noise": 100.0}).condition(y).diagnostics()).splitlines()
    assert quiet[-1] == "0 of 90 more than 3 standard deviations away, 0.24 expected"


def test_the_objects_go_through_jit_and_say_what_they_are():
    case = two_axes()
    several = np.stack([case.y, case.y])

    found = jax.jit(lambda y: case.gp.condition(y).diagnostics())(case.y)
    assert_close(found.decorrelated, case.gp.condition(case.y).diagnostics().decorrelated)
    batched = case.gp.condition(several).leave_one_out()
    assert repr(batched) == "LeaveOneOut of 2 × 5 × 4 observations"
    assert "5 × 4 observations: log score" in repr(found.leave_one_out)
    assert batched.log_score.shape == (2,)
