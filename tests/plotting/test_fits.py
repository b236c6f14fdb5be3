"""Pictures: what is drawn where, and that nothing else is touched."""

import sys

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from numpyro.distributions import constraints

import kronax as kx
from kronax.plotting.figures import legend_above


class Bowl(eqx.Module):
    a: jax.Array = kx.parameter(constraints.real)
    b: jax.Array = kx.parameter(constraints.positive)


def bowl(m):
    return 2 * (m.a - 1) ** 2 + (m.b - 3) ** 2 + 7


@pytest.fixture(scope="module")
def fitted():
    return kx.fit(Bowl(5.0, 1.0), loss=bowl, restarts=2, progress=False)


def drawn(ax):
    return [line.get_xydata() for line in ax.lines]


def test_losses_above_the_best_and_gradient_norms(fitted):
    axes = kx.plot_losses(fitted)
    assert [ax.get_yscale() for ax in axes] == ["log", "log"]
    assert [ax.get_ylabel() for ax in axes] == ["loss above its best", "largest gradient"]
    assert axes[1].get_xlabel() == "step"
    curve, ends = drawn(axes[0])
    np.testing.assert_array_equal(curve[:, 0], np.arange(fitted.num_steps + 1))
    above = fitted.losses - fitted.losses.min()
    np.testing.assert_allclose(curve[:-1, 1], above[:-1], atol=1e-15)
    assert 0 < curve[-1, 1] <= np.spacing(7.0)  # zero is drawn at rounding
    np.testing.assert_array_equal(drawn(axes[1])[0][:, 1], fitted.gradient_norms)
    np.testing.assert_array_equal(ends[:, 0], [r.num_steps for r in fitted.restarts])


def test_starts_that_did_not_converge_are_open_marks():
    options = {"optimizer": optax.sgd(0.01), "num_steps": 1, "progress": False}
    result = kx.fit(Bowl(5.0, 1.0), loss=bowl, restarts=2, **options)
    (ax, _) = kx.plot_losses(result)
    assert [line.get_markerfacecolor() for line in ax.lines[1:]] == ["none"]
    assert ax.get_legend().get_texts()[0].get_text() == "end of a start, not converged"


def test_given_axes_are_used(fitted):
    _, mine = plt.subplots(3)
    assert kx.plot_losses(fitted, mine[0]) is mine[0]
    assert kx.plot_losses(fitted, mine[1:])[1] is mine[2]
    assert [bool(ax.lines) for ax in mine] == [True, True, True]
    assert mine[0].get_xlabel() == "step"
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match=r"one or two Axes; got an array of shape \(3,\)"):
        kx.plot_losses(fitted, mine)


def test_independent_fits_are_drawn_one_by_one():
    x = np.linspace(0, 1, 4)
    gp = kx.GridGP((kx.RBF(0.5),), (x,), noise=0.3)
    ys = np.random.default_rng(0).normal(size=(3, 4))
    options = {"optimizer": optax.sgd(0.01), "num_steps": 4, "progress": False}
    result = kx.fit(gp, ys, independent=True, **options)
    axes = kx.plot_losses(result)
    assert [len(ax.lines) for ax in axes] == [3, 3]
    above = result.losses[1] - np.nanmin(result.losses[1])
    np.testing.assert_allclose(drawn(axes[0])[1][:, 1], above, atol=1e-14)
    assert axes[1].get_ylabel() == "largest gradient per cell"


def test_a_profile_with_its_interval_and_the_laplace_parabola(fitted):
    profile = kx.profile_likelihood(fitted, "a", progress=False)
    _, mine = plt.subplots()
    ax = kx.plot_profile(profile, mine)
    assert ax is mine
    assert (ax.get_xlabel(), ax.get_xscale()) == ("a", "linear")
    curve, points, parabola, level = drawn(ax)
    np.testing.assert_allclose(points[:, 1], profile.losses - profile.losses.min())
    np.testing.assert_allclose(curve[:, 1], 2 * (curve[:, 0] - 1) ** 2, atol=0.01)
    np.testing.assert_allclose(parabola[:, 1], 2 * (parabola[:, 0] - 1) ** 2, atol=1e-3)
    assert level[0, 1] == pytest.approx(1.959963985**2 / 2)
    shaded = ax.collections[0].get_paths()[0].vertices[:, 0]
    width = parabola[1, 0] - parabola[0, 0]
    assert (shaded.min(), shaded.max()) == pytest.approx(profile.interval(), abs=2 * width)


def test_positive_parameters_have_a_logarithmic_axis(fitted):
    ax = kx.plot_profile(kx.profile_likelihood(fitted, "b", progress=False))
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()
    labels = {label.get_text() for label in ax.get_xticklabels()}
    assert {"2", "5"} <= labels


def test_without_matplotlib_it_says_what_to_install(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "kronax\[plot\]"'):
        kx.plot_losses(fitted)


@pytest.mark.parametrize("width", [2.0, 3.0, 6.0])
def test_a_legend_stays_over_its_own_picture(width):
    figure, axes = plt.subplots(1, 2, figsize=(2 * width, 3))
    for ax in axes:
        ax.plot([0, 1], label="a profile")
        ax.plot([1, 0], label="95 %, χ² with one degree of freedom")
        legend_above(ax)
    figure.canvas.draw()
    boxes = [ax.get_legend().get_window_extent() for ax in axes]
    assert boxes[0].x1 <= boxes[1].x0
    assert boxes[1].x1 <= figure.bbox.x1 * 1.02
    plt.close(figure)
