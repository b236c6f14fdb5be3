"""Pictures of kernels and spectra: the numbers behind the curves."""

import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.gp.dense import matern12, matern32, squared_exponential

X = np.linspace(0, 1, 20)


def curves(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_spectra_are_the_eigenvalues_of_the_factors():
    kernels = {"regular": 2.0 * kx.Matern32(0.3), "round": kx.Matern12(0.4), "white": kx.White()}
    axes = {"regular": X, "round": kx.circle(np.arange(16.0), 16.0), "white": np.arange(3.0)}
    gp = kx.GridGP(kernels, axes, noise=0.1)
    ax = kx.plot_spectra(gp)
    found = curves(ax)
    angle = 2 * np.pi * np.arange(16) / 16
    chords = 16 / (2 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    matrices = {
        "regular": matern32(X, X, 0.3),
        "round": matern12(chords, chords, 0.4),
        "white": np.eye(3),
    }
    for name, matrix in matrices.items():
        expected = np.linalg.eigvalsh(matrix)[::-1]
        np.testing.assert_allclose(found[name][:, 1], expected / expected[0], rtol=1e-9)
        np.testing.assert_array_equal(found[name][:, 0], np.arange(1, len(expected) + 1))
    largest = 2.0 * np.prod([np.linalg.eigvalsh(matrix)[-1] for matrix in matrices.values()])
    assert found["noise"][0, 1] == pytest.approx(0.1 / largest, rel=1e-9)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_spectra_end_at_rounding_and_at_the_rank():
    gp = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), (X, X), 0.1, structure=(None, 12))
    smooth, thin = (line.get_ydata() for line in kx.plot_spectra(gp).lines[:2])
    assert 5 < len(smooth) < len(X)
    assert smooth.min() > 20 * np.finfo(float).eps
    assert len(thin) <= 12
    np.testing.assert_allclose(thin[:6], smooth[:6], rtol=1e-6)  # one kernel, two structures
    small = kx.GridGP((kx.RBF(0.1),), (X,), 0.1, structure=(4,))
    with pytest.raises(ValueError, match=r"low-rank factor of axis 0 \(raise the rank"):
        kx.plot_spectra(small)
    varying = kx.GridGP((kx.RBF(1.0),), (X[:3],), {0: np.array([0.1, 0.2, 0.3])})
    assert set(curves(kx.plot_spectra(varying))) == {"axis 0"}


def test_a_stationary_kernel_is_drawn_over_distance_with_its_terms():
    kernel = 3.0 * kx.RBF(0.5) + kx.Matern12(0.1)
    dates = np.datetime64("2001-01-01") + np.arange(0, 40, 2)
    gp = kx.GridGP({"time": kernel, "x": kx.Matern32(0.3)}, {"time": dates, "x": X}, noise=0.1)
    time, x = kx.plot_kernels(gp)
    distance, whole = curves(time)["sum"].T
    smooth, rough = np.exp(-((distance / 0.5) ** 2) / 2), np.exp(-distance / 0.1)
    np.testing.assert_allclose(whole, (3 * smooth + rough) / 4, rtol=1e-9)
    np.testing.assert_allclose(
        curves(time)["SquaredExponential"][:, 1],
        0.75 * np.exp(-((distance / 0.5) ** 2) / 2),
        atol=1e-12,
    )
    assert distance[-1] == 38.0
    assert curves(time)["neighbours"][0, 0] == 2.0
    assert (time.get_xlabel(), time.get_ylabel()) == ("distance (days)", "correlation")
    assert [ax.get_title() for ax in (time, x)] == ["time", "x"]


def test_a_circle_is_drawn_as_far_as_its_other_side():
    gp = kx.GridGP((kx.RBF(2.0),), (kx.circle(np.arange(24.0), 24.0),), noise=0.1)
    (ax,) = kx.plot_kernels(gp)
    distance, shape = ax.lines[0].get_xydata().T
    assert distance[-1] == 12.0
    chord = 24 / np.pi * np.sin(np.pi * distance / 24)
    np.testing.assert_allclose(shape, np.exp(-(chord**2) / 8), rtol=1e-9)


def test_other_kernels_are_drawn_as_a_matrix():
    kernel = kx.Linear(0.0) + kx.RBF(0.5)
    categories = kx.Categorical([[1.0], [-0.5]], [0.5, 0.5])
    gp = kx.GridGP(
        {"x": kernel, "task": categories, "places": kx.RBF([0.5, 2.0])},
        {"x": X[::-1], "task": ["a", "b"], "places": np.stack([X, X**2], 1)},
        noise=0.1,
    )
    matrix, labelled, pairs = kx.plot_kernels(gp)
    shown = np.asarray(matrix.collections[0].get_array())
    expected = np.outer(X, X) + squared_exponential(X, X, 0.5)
    sd = np.sqrt(np.diagonal(expected))
    np.testing.assert_allclose(shown, expected / (sd[:, None] * sd), rtol=1e-9)
    image = np.asarray(labelled.images[0].get_array())
    weights = np.array([[1.0], [-0.5]]) @ np.array([[1.0, -0.5]]) + np.eye(2)
    sd = np.sqrt(np.diagonal(weights))
    np.testing.assert_allclose(image, weights / (sd[:, None] * sd), rtol=1e-9)
    assert [label.get_text() for label in labelled.get_xticklabels()] == ["a", "b"]
    distance, correlation = pairs.lines[0].get_xydata().T
    assert distance.max() == pytest.approx(np.sqrt(2))
    assert correlation.max() == 1.0


def test_places_on_a_sphere_are_drawn_over_the_great_circle():
    places = np.array([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0], [0.0, 180.0]])
    gp = kx.GridGP((kx.Matern12(8000.0),), (kx.sphere(places),), noise=0.1)
    (ax,) = kx.plot_kernels(gp)
    distance = ax.lines[0].get_xydata()[:, 0]
    quarter = 6371.0088 * np.pi / 2
    np.testing.assert_allclose(distance[:4], [0, quarter, quarter, 2 * quarter], rtol=1e-7)
    assert ax.get_xlabel() == "great-circle distance (km)"


def test_a_line_through_zero_has_no_correlation_there():
    gp = kx.GridGP((kx.Linear(0.0),), (np.arange(3.0),), noise=0.1)
    (ax,) = kx.plot_kernels(gp)
    np.testing.assert_array_equal(
        np.asarray(ax.collections[0].get_array()), jnp.outer(jnp.arange(3.0), jnp.arange(3.0))
    )
