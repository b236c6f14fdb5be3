"""Fits that end on a plateau say so; fits that start at their optimum do not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from numpyro.distributions import constraints

import kronax as kx
from tests.fitting.cases import draws, fit, make

Y = draws()[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kernels[0].lengthscale": 1e-6}, r"kernels\[0\].lengthscale did not"),
        ({"kernels[1].lengthscale": 1e5}, r"kernels\[1\].lengthscale did not"),
        (
            {"kernels[0].lengthscale": 1e-6, "kernels[1].lengthscale": 1e-6},
            r"kernels\[0\].lengthscale and kernels\[1\].lengthscale did not",
        ),
    ],
)
def test_a_parameter_without_influence_is_named(changes, named):
    with pytest.warns(RuntimeWarning, match=f"{named} move, and the loss is flat there"):
        result = fit(kx.replace(make(), changes), Y)
    assert not result.converged
    assert "Start from other values (kx.replace, gp.initialise), or give restarts=" in result.reason


class Point(eqx.Module):
    a: jax.Array = kx.parameter(constraints.real)


def hilltop(m):
    return jnp.cos(m.a)


def test_a_start_on_a_maximum_is_told_from_a_minimum():
    with pytest.warns(RuntimeWarning, match="no minimum there: with a = -3 it is 1.99 lower"):
        result = kx.fit(Point(0.0), loss=hilltop, progress=False)
    assert (result.converged, result.num_steps) == (False, 0)
    assert kx.fit(Point(0.1), loss=hilltop, progress=False).converged


def test_a_fit_that_starts_at_its_optimum_converges_at_once():
    first = fit(y=Y)
    again = fit(first.model, Y, tolerance=1e-5)
    assert (again.converged, again.num_steps) == (True, 0)
    assert again.loss == pytest.approx(first.loss)


@pytest.mark.parametrize("noise", [1e-8, 1e-13])
def test_noise_that_is_next_to_nothing_is_no_end(noise):
    """Its logarithm has no slope to be seen there, whatever the data say."""
    start = kx.replace(make(), {"noise": noise, "kernels[0].lengthscale": 3.0})
    with pytest.warns(RuntimeWarning, match="noise .*: with noise = .* it is .* lower"):
        result = fit(start, Y)
    assert not result.converged
