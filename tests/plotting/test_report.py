"""`post.plot()`: every panel shows the number that it stands for."""

import numpy as np
import pytest
from scipy.stats import norm

import kronax as kx

RNG = np.random.default_rng(0)
X = np.arange(6.0)
Y = RNG.normal(size=(6, 5))
Y[2, 3] = np.nan


@pytest.fixture(scope="module")
def post():
    kernels = {"time": kx.Matern32(2.0), "depth": kx.RBF(1.5)}
    return kx.GridGP(kernels, {"time": X, "depth": X[:5]}, noise=0.3).condition(Y)


def panels(figure):
    return {ax.get_title(): ax for ax in figure.axes}


def errors():
    """Of every cell given all others, by dense NumPy."""
    r = np.abs(X[:, None] - X) * np.sqrt(3) / 2
    K = np.kron((1 + r) * np.exp(-r), np.exp(-(((X[:5, None] - X[:5]) / 1.5) ** 2) / 2))
    seen = np.isfinite(Y.ravel())
    inverse = np.linalg.inv(K[np.ix_(seen, seen)] + 0.3 * np.eye(seen.sum()))
    return inverse @ Y.ravel()[seen] / np.sqrt(np.diag(inverse))


def test_a_report_on_two_axes(post):
    seen = panels(post.plot())
    names = ["data", "mean", "standard deviation", "leave-one-out errors", "distribution"]
    assert {*names, "calibration"} <= set(seen)
    drawn = seen["leave-one-out errors"].collections[0].get_array().ravel()
    np.testing.assert_allclose(drawn[np.isfinite(Y.ravel())], errors(), atol=1e-8)
    quantiles = seen["distribution"].lines[-1].get_xydata()
    np.testing.assert_allclose(quantiles[:, 1], np.sort(errors()), atol=1e-8)
    np.testing.assert_allclose(quantiles[:, 0], norm.ppf((np.arange(29) + 0.5) / 29), atol=1e-9)
    level, share = seen["calibration"].lines[-1].get_xydata().T
    inside = np.abs(errors()) <= norm.ppf((1 + level[:, None]) / 2)
    np.testing.assert_allclose(share, inside.mean(axis=1))


def test_a_report_on_one_axis():
    gp = kx.GridGP({"time": kx.Matern32(2.0)}, {"time": X}, noise=0.3)
    figure = gp.condition(Y[:, 0]).plot()
    assert len(figure.axes) == 4
    assert [line.get_label() for line in figure.axes[0].lines] == ["mean", "data"]
    assert figure.axes[1].get_title() == "leave-one-out errors"


def test_places_are_a_map_with_one_unit():
    kernels = {"site": kx.Matern32(30.0), "time": kx.Matern32(2.0)}
    gp = kx.GridGP(kernels, {"site": RNG.random((6, 2)) * [100, 30], "time": X[:5]}, noise=0.3)
    figure = gp.condition(Y).plot(at={"time": 1.0})
    seen = panels(figure)
    assert figure.get_suptitle() == "time 1"
    for name in ("data", "mean", "standard deviation", "leave-one-out errors"):
        assert seen[name].get_aspect() == 1


def test_a_batch_is_refused(post):
    with pytest.raises(ValueError, match="one data set"):
        post.gp.condition(np.zeros((2, 6, 5))).plot()


def test_an_axis_that_is_unknown_is_told(post):
    with pytest.raises(KeyError, match="no axis 'tiem'"):
        post.plot(x="tiem")
