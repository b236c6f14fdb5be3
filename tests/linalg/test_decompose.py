"""A decomposed operator gives the same values and gradients, and decomposes nothing again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests import oracle
from tests.cases import CASES
from tests.everyday import everyday, full
from tests.tolerances import assert_close

DECOMPOSITIONS = ("eigh", "lu", "cholesky", "svd", "householder_product")
NAMES = (
    "two axes",
    "full Kronecker noise",
    "noise-free, general",
    "noise-free",
    "noise-free, triangular",
    "batched with a noise of each",
    "batched, noise-free",
    "user-defined factor",
    "low rank beside dense",
    "batched low rank",
    "low rank, diagonal noise",
)
# By eigenvectors of one term and of two, by LU, and thin.
SOME = ("full Kronecker noise", "batched, noise-free", "low rank beside dense")


def functions(op, y, mean, covariance):
    yield "solve", lambda op: kx.solve(op, y)
    yield "logdet", kx.logdet
    yield "inv_quad", lambda op: kx.inv_quad(op, y)
    yield "inverse_diagonal", kx.inverse_diagonal
    yield "inverse", lambda op: kx.inverse(op).mv(y)
    if covariance:
        yield "normal_logpdf", lambda op: kx.normal_logpdf(y, mean, op)


@pytest.mark.parametrize("name", everyday(NAMES, SOME))
def test_the_same_values(name):
    """Those of the dense matrix."""
    case = CASES[name]
    op, y, mean = case.inputs
    held = kx.decompose(op)
    assert held.decomposition is not None
    calls = dict(functions(op, y, mean, case.covariance), dense=lambda op: op.to_dense())
    found = jax.jit(lambda held: {label: call(held) for label, call in calls.items()})(held)
    matrix, flat, flat_mean = case.dense
    solved = oracle.solve(matrix, flat).value
    truth = {
        "solve": solved.reshape(y.shape),
        "logdet": oracle.logdet(matrix).value,
        "inv_quad": oracle.dot(flat.value, solved),
        "inverse_diagonal": oracle.inverse_diagonal(matrix)[0].reshape(y.shape),
        "inverse": solved.reshape(y.shape),
        "dense": matrix.value,
    }
    if case.covariance:
        truth["normal_logpdf"] = oracle.normal_logpdf(flat, flat_mean, matrix).value
    assert found.keys() == truth.keys()
    for label, known in truth.items():
        assert_close(found[label], known)


def primitives(jaxpr, found):
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                primitives(getattr(inner, "jaxpr", inner), found)
    return found


@pytest.mark.parametrize("name", everyday(NAMES, [*SOME, "user-defined factor"]))
def test_every_function_uses_it(name):
    case = CASES[name]
    op, y, mean = case.inputs
    held = kx.decompose(op)
    for label, function in functions(op, y, mean, case.covariance):
        fresh = primitives(jax.make_jaxpr(function)(op).jaxpr, set())
        used = primitives(jax.make_jaxpr(function)(held).jaxpr, set())
        if "low rank" in name and label == "inverse_diagonal":
            continue  # it works with roots of all axes, which makes it another small operator
        assert not used & set(DECOMPOSITIONS), label
        if "triangular" not in name:
            assert fresh & set(DECOMPOSITIONS), "the search finds nothing"


@pytest.mark.parametrize("name", [full("two axes"), "full Kronecker noise", "noise-free, general"])
def test_the_same_gradients_in_the_factors(name):
    case = CASES[name]
    op, y, mean = case.inputs
    held = kx.decompose(op)

    def total(op):
        value = kx.logdet(op) + jnp.sum(kx.solve(op, y) ** 2) + kx.inv_quad(op, y)
        return value + kx.normal_logpdf(y, mean, op) if case.covariance else value

    # A factorisation holds integers, the permutation of LU.
    gradient = eqx.filter_jit(eqx.filter_grad(total))
    truth, ours = gradient(op), gradient(held)
    assert_close(ours.factors[0].matrix, np.asarray(truth.factors[0].matrix), 1)
    assert_close(ours.factors[1].matrix, np.asarray(truth.factors[1].matrix), 1)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(ours.factors))


@pytest.mark.parametrize("matrix", [np.ones((2, 2)), np.zeros((2, 2))])
def test_a_singular_operator_without_noise_raises(matrix):
    with pytest.raises(np.linalg.LinAlgError, match="factor 1 must be invertible"):
        kx.decompose(kx.Kronecker(np.eye(3), matrix))


def test_it_may_be_attached_under_transformations():
    case = CASES["two axes"]

    def through(theta, decompose):
        op, y, _ = case.layout.inputs(case.leaves, theta)
        op = kx.decompose(op) if decompose else op
        return kx.logdet(op) + kx.inv_quad(op, y)

    theta = case.theta
    ours = jax.jit(jax.grad(lambda t: through(t, True)))(theta)
    assert_close(ours, np.asarray(jax.jit(jax.grad(lambda t: through(t, False)))(theta)), 1)
