"""The oracle against SciPy, against finite differences, and against a dense model in JAX."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests import oracle
from tests.cases import CASES, Case
from tests.everyday import full
from tests.tolerances import assert_close


def test_it_imports_neither_kronax_nor_jax():
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} == {"numpy", "scipy", "typing"}


def dense_outputs(jets, theta):
    """The same functions in dense JAX: a second oracle, by automatic differentiation."""

    def taylor(jet):
        bend = jnp.tensordot(theta, jnp.tensordot(theta, jet.second, 1), 1)
        return jet.value + jnp.tensordot(theta, jet.first, 1) + bend / 2

    matrix, y, mean = map(taylor, jets)
    r = y - mean
    quadratic = r @ jnp.linalg.solve(matrix, r)
    logdet = jnp.linalg.slogdet(matrix)[1]
    return {
        "solve": jnp.linalg.solve(matrix, y),
        "logdet": logdet,
        "inv_quad": y @ jnp.linalg.solve(matrix, y),
        "normal_logpdf": -0.5 * (quadratic + logdet + len(y) * jnp.log(2 * jnp.pi)),
        "inverse_diagonal": jnp.diagonal(jnp.linalg.inv(matrix)),
    }


@pytest.mark.parametrize(
    "name", [full("two axes"), "full Kronecker noise", full("noise-free, general")]
)
def test_against_automatic_differentiation(name):
    case: Case = CASES[name]
    matrix, y, mean = case.dense

    def function(theta):
        return dense_outputs(case.dense, theta)

    truth = (
        function(case.theta),
        jax.jit(jax.jacfwd(function))(case.theta),
        jax.jit(jax.jacfwd(jax.jacfwd(function)))(case.theta),
    )
    jets = {
        "solve": oracle.solve(matrix, y),
        "logdet": oracle.logdet(matrix),
        "inv_quad": oracle.inv_quad(matrix, y),
        "normal_logpdf": oracle.normal_logpdf(y, mean, matrix),
        "inverse_diagonal": oracle.inverse_diagonal(matrix),
    }
    for output, jet in jets.items():
        for order, ours in enumerate(jet):
            # JAX puts the parameters last, a jet puts them first.
            moved = np.moveaxis(ours, range(order), range(ours.ndim - order, ours.ndim))
            assert_close(moved, np.asarray(truth[order][output]), order)


def test_the_density_is_scipys():
    matrix, y, mean = CASES["two axes"].dense
    truth = scipy.stats.multivariate_normal(mean.value, matrix.value).logpdf(y.value)
    assert_close(oracle.normal_logpdf(y, mean, matrix).value, np.asarray(truth))


def test_kron_is_numpys():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(oracle.kron(a, b), np.kron(a, b))


@pytest.mark.parametrize("name", ["three axes", "each axis another pair of kinds"])
def test_the_dense_matrix_moves_as_its_derivatives_say(name):
    case = CASES[name]
    matrix = case.dense[0]
    direction = np.random.default_rng(0).normal(size=case.theta.size)
    step = 1e-4
    up, middle, down = (
        np.asarray(case.layout.inputs(case.leaves, s * direction)[0].to_dense())
        for s in (step, 0.0, -step)
    )
    slope = np.tensordot(direction, matrix.first, 1)
    bend = np.tensordot(direction, np.tensordot(direction, matrix.second, 1), 1)
    np.testing.assert_allclose((up - down) / (2 * step), slope, atol=1e-5)
    np.testing.assert_allclose((up - 2 * middle + down) / step**2, bend, atol=1e-4)
