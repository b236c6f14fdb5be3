"""The default optimiser: one look at the loss a turn, and where it ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from numpyro.distributions import constraints

import kronax as kx
from kronax.fitting import steps
from kronax.fitting.lbfgs import LBFGS
from kronax.fitting.problem import make_problem
from tests.everyday import everyday


class Vector(eqx.Module):
    """Some real numbers."""

    x: jax.Array = kx.parameter(constraints.real)


def rosenbrock(m):
    return jnp.sum(100 * (m.x[1:] - m.x[:-1] ** 2) ** 2 + (1 - m.x[:-1]) ** 2)


def scaled(m):
    """A quadratic form with curvatures from 1e-3 to 1e5."""
    return jnp.sum(jnp.logspace(-3, 5, 6) * (m.x - jnp.arange(6)) ** 2) / 2


def walled(m):
    """Not a number on the far side, where the first steps go."""
    return jnp.sum(jnp.sqrt(0.1 - m.x) + 1 / (0.1 - m.x)) + m.x[0] ** 2


def steep(m):
    return jnp.sum(jnp.exp(20 * m.x) - 20 * m.x)


WALL = scipy.optimize.minimize_scalar(
    lambda x: np.sqrt(0.1 - x) + 1 / (0.1 - x) + x**2, bounds=(-10, 0), options={"xatol": 1e-10}
).fun + 1.5 * 2 ** (1 / 3)
# Start, the most steps, and the least value.
CASES = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0], 80, 0.0),
    "scaled": (scaled, [10.0] * 6, 150, 0.0),
    "walled": (walled, [-8.0, -3.0], 40, WALL),
    "steep": (steep, [1.0, -2.0], 60, 2.0),
}


@pytest.mark.parametrize("name", everyday(CASES, ["rosenbrock", "walled"]))
def test_it_ends_at_the_minimum(name):
    loss, start, most, least = CASES[name]
    found = kx.fit(Vector(jnp.asarray(start)), loss=loss, tolerance=1e-6, progress=False)
    assert found.converged, found.reason
    assert found.num_steps <= most
    assert found.loss == pytest.approx(least, abs=1e-8)
    assert np.isfinite(found.losses).all()


def loop_of(loss, optimizer):
    """The program of a fit, as text."""
    model = Vector(jnp.ones(3))
    problem = make_problem(
        model, None, loss, None, False, {"freeze": (), "domains": {}, "share": ()}
    )
    starts = {"x": np.ones((1, 3))}
    states = steps.start(starts, np.zeros(1, np.int32), optimizer, 5)
    run = steps.advance.__wrapped__
    return str(jax.make_jaxpr(lambda p, s: run((p, optimizer, 0.0), s, 3))(problem, states))


def marked(m):
    return jnp.sum(jax.lax.lgamma(1 + m.x**2))


def test_the_loop_holds_the_loss_once():
    assert loop_of(marked, LBFGS()).count(" lgamma ") == 1
    assert loop_of(marked, optax.lbfgs()).count(" lgamma ") > 1


def test_num_steps_counts_points_that_were_taken():
    """The first line needs many looks; the loss is recorded once a step, and falls."""
    found = kx.fit(Vector(jnp.full(2, 3.0)), loss=steep, num_steps=4, progress=False)
    assert found.num_steps == 4
    assert (np.diff(found.losses) < 0).all()
