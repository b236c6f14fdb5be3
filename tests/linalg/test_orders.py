"""Derivatives of an order without a rule raise, in every mode; they never give a number."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.cases import CASES
from tests.everyday import everyday, full
from tests.tolerances import assert_close

MODES = {"forward": jax.jacfwd, "reverse": jax.jacrev}


def derivative(function, modes):
    for mode in reversed(modes):
        function = MODES[mode](function)
    return function


def function_of(case, output):
    def function(theta):
        op, y, mean = case.layout.inputs(case.leaves, theta)
        return {
            "logdet": lambda: kx.logdet(op),
            "inv_quad": lambda: kx.inv_quad(op, y),
            "normal_logpdf": lambda: kx.normal_logpdf(y, mean, op),
            "inverse_diagonal": lambda: kx.inverse_diagonal(op),
            "sample_normal": lambda: kx.sample_normal(jax.random.key(0), op),
        }[output]()

    return function


THIRD = [" over ".join(modes) for modes in product(MODES, repeat=3)]
OUTPUTS = [
    ("one axis", "logdet"),
    ("one axis", "inv_quad"),
    ("full Kronecker noise", "normal_logpdf"),
]
# Every pair of modes at every pair of levels, and one of them for the others.
EVERYDAY = [(OUTPUTS[0], modes) for modes in THIRD if modes.count("forward") % 2]
EVERYDAY += [(outputs, "reverse over reverse over forward") for outputs in OUTPUTS[1:]]


@pytest.mark.parametrize(("of", "modes"), everyday(product(OUTPUTS, THIRD), EVERYDAY))
def test_third_order_raises(of, modes):
    name, output = of
    case = CASES[name]
    with pytest.raises(kx.DerivativeOrderError, match="one order less is supported"):
        jax.eval_shape(derivative(function_of(case, output), modes.split(" over ")), case.theta)


@pytest.mark.parametrize("modes", list(product(MODES, repeat=2)), ids=" over ".join)
@pytest.mark.parametrize(
    ("output", "what"),
    [("inverse_diagonal", "diagonal of an inverse"), ("sample_normal", "symmetric root")],
)
@pytest.mark.parametrize("name", ["two axes", full("batched full noise")])
def test_second_order_of_first_order_outputs_raises(name, output, what, modes):
    case = CASES[name]
    with pytest.raises(kx.DerivativeOrderError, match=what):
        jax.eval_shape(derivative(function_of(case, output), modes), case.theta)


def test_the_error_is_a_not_implemented_error():
    assert issubclass(kx.DerivativeOrderError, NotImplementedError)


def test_guarded_eigenvectors_raise():
    def first_vector(matrix):
        op = kx.decompose(kx.Kronecker(matrix) + 0.1)
        return op.decomposition[0].vectors[0].sum()

    matrix = jnp.asarray(CASES["one axis"].leaves[0].value)
    assert np.isfinite(jax.jit(first_vector)(matrix))
    for mode in MODES.values():
        with pytest.raises(kx.DerivativeOrderError, match="eigenvectors"):
            jax.eval_shape(mode(first_vector), matrix)


def third(function, theta):
    """The third derivative along a fixed direction."""
    direction = jnp.cos(jnp.arange(theta.size, dtype=theta.dtype))
    along = lambda t: function(theta + t * direction)  # noqa: E731
    return jax.jit(jax.jacfwd(jax.jacfwd(jax.jacfwd(along))))(jnp.zeros((), theta.dtype))


@pytest.mark.parametrize("name", ["exchangeable, rho = 0", full("noise-free, general")])
def test_solve_is_right_at_third_order(name):
    case = CASES[name]

    def ours(theta):
        op, y, _ = case.layout.inputs(case.leaves, theta)
        return kx.solve(op, y).ravel()

    def dense(theta):
        op, y, _ = case.layout.inputs(case.leaves, theta)
        return jnp.linalg.solve(op.to_dense(), y.ravel())

    assert_close(third(ours, case.theta), third(dense, case.theta), 2)


def test_noise_free_logdet_is_right_at_third_order():
    case = CASES["noise-free, general"]
    dense = lambda t: jnp.linalg.slogdet(case.layout.inputs(case.leaves, t)[0].to_dense())[1]  # noqa: E731
    ours = third(function_of(case, "logdet"), case.theta)
    assert_close(ours, third(dense, case.theta), 2)
