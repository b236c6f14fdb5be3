"""Dense programs run without forming their products: the same numbers, derivatives and errors."""

import re
import warnings

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import numpyro.distributions as dist
import pytest

import kronax as kx
from tests.tolerances import assert_close

M, N = 5, 7
SIZE = M * N


def _spd(rng, n):
    x = rng.normal(size=(n, n))
    return x @ x.T / n + np.eye(n)


RNG = np.random.default_rng(17)
A, B, C, D = (_spd(RNG, n) for n in (M, N, M, N))
G, H = (RNG.normal(size=(n, n)) + 3 * np.eye(n) for n in (M, N))
B_VECTOR, X = RNG.normal(size=SIZE), RNG.normal(size=(SIZE, 3))
EYE = "jnp.eye(n)"


def _noisy(a, b):
    return jnp.kron(a, b) + 0.3 * jnp.eye(SIZE)


def _two(a, b):
    return jnp.kron(a, b) + jnp.kron(jnp.asarray(C), jnp.asarray(D))


def _einsum_kron(a, b):
    return jnp.einsum("ij,kl->ikjl", a, b).reshape(SIZE, SIZE)


def _density(matrix):
    root = jnp.linalg.cholesky(matrix)
    white = jsp.linalg.solve_triangular(root, B_VECTOR, lower=True)
    return -0.5 * white @ white - jnp.log(jnp.diag(root)).sum()


def _sci_density(matrix):
    return jsp.stats.multivariate_normal.logpdf(B_VECTOR, jnp.zeros(SIZE), matrix)


def _pyro_density(matrix):
    return dist.MultivariateNormal(0.5, covariance_matrix=matrix).log_prob(B_VECTOR)


def _cho_solve(matrix):
    return jsp.linalg.cho_solve(jsp.linalg.cho_factor(matrix, lower=True), X)


def _both(matrix):
    return matrix @ B_VECTOR, B_VECTOR @ matrix, matrix @ X, X.T @ matrix.T


# name: what is done to a matrix. Those of the second table need a positive definite one.
GENERAL = {
    "solve": lambda k: jnp.linalg.solve(k, B_VECTOR),
    "solve columns": lambda k: jnp.linalg.solve(k, X),
    "solve transposed": lambda k: jnp.linalg.solve(k.T, X),
    "scipy solve": lambda k: jsp.linalg.solve(k, X, assume_a="gen"),
    "inverse": lambda k: jnp.linalg.inv(k) @ B_VECTOR,
    "inverse on the right": lambda k: X.T @ jnp.linalg.inv(k),
    "quadratic form": lambda k: B_VECTOR @ jnp.linalg.solve(k, B_VECTOR),
    "slogdet": lambda k: jnp.linalg.slogdet(k),
    "products": _both,
    "einsum": lambda k: jnp.einsum("i,ij,j->", B_VECTOR, k, B_VECTOR),
    "trace and diagonal": lambda k: (jnp.trace(k), jnp.diagonal(k), jnp.diag(k)),
    "sum": lambda k: k.sum(axis=1),
    "multiples": lambda k: jnp.linalg.solve(-2.0 * k / 3.0, B_VECTOR),
}
DEFINITE = {
    "solve pos": lambda k: jsp.linalg.solve(k, X, assume_a="pos"),
    "solve sym": lambda k: jsp.linalg.solve(k, B_VECTOR, assume_a="sym"),
    "density": _density,
    "scipy density": _sci_density,
    "numpyro density": _pyro_density,
    "cho_solve": _cho_solve,
    "eigenvalues": lambda k: jnp.linalg.eigvalsh(k),
    "trace of the inverse": lambda k: jnp.trace(jnp.linalg.inv(k)),
}
MATRICES = {
    "product": lambda a, b: jnp.kron(a, b),
    "einsum": _einsum_kron,
    "three": lambda a, b: jnp.kron(a, jnp.kron(b, jnp.eye(1))),
    "noise": _noisy,
    "two": _two,
}


def _largest(text):
    """The entries of the largest array in a lowered program."""
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    return max(np.prod([int(n) for n in shape[:-1].split("x")]) for shape in shapes)


def _programs():
    for name in GENERAL:
        yield pytest.param(name, "product", (G, H), id=f"{name}-product")
    for k, (name, matrix) in enumerate((n, m) for n in DEFINITE for m in ("product", "noise")):
        yield pytest.param(name, matrix, (A, B), id=f"{name}-{matrix}-{k}")
    for name in ("solve columns", "slogdet", "products", "trace and diagonal", "inverse"):
        for matrix in ("noise", "two"):
            yield pytest.param(name, matrix, (A, B), id=f"{name}-{matrix}")
    for name in ("density", "numpyro density", "cho_solve"):
        yield pytest.param(name, "two", (A, B), id=f"{name}-two")
    yield pytest.param("solve", "einsum", (G, H), id="solve-einsum")
    yield pytest.param("density", "three", (A, B), id="density-three")


@pytest.mark.parametrize(("name", "matrix", "factors"), _programs())
def test_structured_programs_give_the_dense_values_and_gradients(name, matrix, factors):
    done = {**GENERAL, **DEFINITE}[name]

    def program(a, b):
        return done(MATRICES[matrix](a, b))

    fast = kx.rewrite(program, strict=True)

    def total(function):
        def one(a, b):
            leaves = jax.tree.leaves(function(a, b))
            weights = [jnp.cos(jnp.arange(leaf.size) + 1.0) for leaf in leaves]
            return sum(w @ leaf.reshape(-1) for w, leaf in zip(weights, leaves, strict=True))

        return one

    factors = tuple(jnp.asarray(f) for f in factors)
    # Symmetric matrices are moved symmetrically: entries on both sides of the diagonal at once.
    ours = jax.jit(lambda a, b: (fast(a, b), jax.grad(total(fast), (0, 1))(a, b)))
    value, gradient = ours(*factors)
    truth = jax.jit(lambda a, b: (program(a, b), jax.grad(total(program), (0, 1))(a, b)))
    expected, slope = truth(*factors)
    jax.tree.map(assert_close, value, expected)
    for got, want in zip(gradient, slope, strict=True):
        symmetric = name in DEFINITE or matrix != "product"
        turned = (lambda x: x + x.T) if symmetric else (lambda x: x)
        assert_close(turned(got), turned(want), 1)
    assert _largest(ours.lower(*factors).as_text()) < SIZE**2
