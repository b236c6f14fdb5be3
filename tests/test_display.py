"""What is printed of kernels, means, likelihoods and parameters."""

import copy

import jax
import numpy as np
import pytest

import kronax as kx

X = np.linspace(0, 1, 5)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (lambda: kx.RBF(0.5), "SquaredExponential(lengthscale=0.5)"),
        (lambda: kx.RBF([0.5, 1.0]), "SquaredExponential(lengthscale=[0.5, 1. ])"),
        (lambda: kx.White(1e-8), "White(variance=1e-08)"),
        (
            lambda: 2.0 * kx.RBF(0.5) + kx.Periodic(1.0, 0.4) * (kx.Linear() + kx.White(0.1)),
            "2 * SquaredExponential(lengthscale=0.5) + Periodic(period=1, lengthscale=0.4) * "
            "(Linear(centre=0.0) + White(variance=0.1))",
        ),
        (
            lambda: 2.0 * (kx.RBF(0.5) + kx.White(0.1)),
            "2 * (SquaredExponential(lengthscale=0.5) + White(variance=0.1))",
        ),
        (
            lambda: kx.ConstantMean(0.5) + kx.LinearMean(0),
            "ConstantMean(value=0.5) + LinearMean(axis=0)",
        ),
        (lambda: kx.Poisson(exposure=2.0), "Poisson(exposure=2)"),
        (lambda: kx.Poisson(), "Poisson()"),
        (lambda: kx.StudentT(4.0, 1.5), "StudentT(df=4, scale=1.5)"),
    ],
)
def test_modules_show_the_values_of_their_parameters(shown, text):
    assert repr(shown()) == text


def test_a_traced_parameter_is_shown_as_such():
    seen = []
    jax.jit(lambda scale: seen.append(repr(kx.RBF(scale))) or scale)(0.5)
    assert seen == ["SquaredExponential(lengthscale=traced float64[])"]


def test_parameters_go_by_their_paths():
    kernels = {"time": kx.RBF(0.3) * 2.0, "site": kx.Matern32(0.5) + kx.White(0.2)}
    gp = kx.GridGP(kernels, {"time": X, "site": X}, noise=0.1)
    table = kx.parameters(gp)
    assert float(table["noise"]) == 0.1
    assert repr(table["noise"]) == "noise = 0.1, positive"
    assert table["kernels['time'].lengthscale"] is table[0]
    part = table["kernels['site']"]
    assert [p.path for p in part] == ["kernels[1].first.lengthscale", "kernels[1].second.variance"]
    assert part["kernels['site'].second.variance"].value == 0.2
    assert table[-1].path == "noise"
    with pytest.raises(KeyError, match="Did you mean 'noise'"):
        table["Noise"]
    html = table._repr_html_()
    assert html.startswith("<table><tr><th>parameter</th>")
    assert html.count("<tr>") == len(table) + 1


def test_kernels_go_by_the_names_of_their_axes():
    gp = kx.GridGP(
        {"time": kx.RBF(0.3), "site": kx.Matern32(0.5)}, {"time": X, "site": X}, noise=0.1
    )
    assert gp.kernels["site"] is gp.kernels[1]
    assert gp.kernels[:1] == (gp.kernels["time"],)
    assert jax.tree.map(lambda x: 2 * x, gp).kernels["site"].lengthscale == 1.0
    assert copy.deepcopy(gp).kernels["time"] == gp.kernels["time"]
    with pytest.raises(KeyError, match="Did you mean 'site'"):
        gp.kernels["Site"]
    with pytest.raises(KeyError, match="no axis 'time'"):
        kx.GridGP((kx.RBF(0.3),), (X,), noise=0.1).kernels["time"]


def test_a_fit_in_a_notebook():
    gp = kx.GridGP((kx.RBF(0.3),), (X,), noise=0.1)
    result = kx.fit(gp, np.sin(6 * X), num_steps=2, progress=False)
    html = result._repr_html_()
    assert html.startswith("<pre>not converged after 2 steps")
    assert "<td>kernels[0].lengthscale</td>" in html
    assert float(result.parameters["noise"]) == result.model.noise


@pytest.mark.parametrize("step", ["h", "m", "D"])
def test_a_short_series_tells_its_times_of_day(step):
    times = np.arange(
        np.datetime64("2020-01-01T00", "s"), np.timedelta64(7, step), np.timedelta64(1, step)
    )
    gp = kx.GridGP((kx.Matern32(1.0),), (times,), noise=0.1)
    last = {"h": "2020-01-01 06:00", "m": "2020-01-01 00:06", "D": "2020-01-07"}[step]
    assert f"2020-01-01 to {last} in days" in gp.describe()
