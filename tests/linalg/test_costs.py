"""What is not computed: no N × N array anywhere, no eigendecomposition twice."""

import re
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import kronax as kx
from kronax.linalg.gaps.slices import slices_given_others
from tests.cases import covariance, general
from tests.everyday import everyday, full
from tests.programs import num_eigh

SIZES = (12, 10, 8)
NUM_CELLS = 960
MATRICES = tuple(covariance(n) for n in SIZES)


def with_noise(matrices):
    return kx.Kronecker(*matrices) + 0.3


def with_full_noise(matrices):
    noise = kx.Kronecker(*(covariance(n, 4) for n in SIZES))
    return kx.KroneckerPlusNoise(kx.Kronecker(*matrices), noise)


def noise_free(matrices):
    return kx.Kronecker(*matrices)


BUILDERS = {builder.__name__: builder for builder in (with_noise, with_full_noise, noise_free)}
Y = np.random.default_rng(0).normal(size=SIZES)
FUNCTIONS = {
    "mv": lambda op: jnp.sum(op.mv(Y) ** 2),
    "solve": lambda op: jnp.sum(kx.solve(op, Y) ** 2),
    "logdet": kx.logdet,
    "inv_quad": lambda op: kx.inv_quad(op, Y),
    "normal_logpdf": lambda op: kx.normal_logpdf(Y, 0.0, op),
    "inverse_diagonal": lambda op: jnp.sum(kx.inverse_diagonal(op) ** 2),
    "sample_normal": lambda op: jnp.sum(kx.sample_normal(jax.random.key(0), op) ** 2),
}
FIRST_ORDER = ("inverse_diagonal", "sample_normal")


def largest(jaxpr) -> int:
    """The size of the largest array that any equation makes, in sub-jaxprs as well."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(v.aval.shape)) for v in equation.outvars]
        for leaf in jax.tree.leaves(
            equation.params, is_leaf=lambda p: isinstance(p, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr):
                sizes.append(largest(getattr(leaf, "jaxpr", leaf)))
    return max(sizes)


def gradient_and_hessian_product(function, matrices):
    return jax.jvp(jax.grad(function), (matrices,), (matrices,))


def orders():
    """Every output at every order that it has; a gradient is part of the program of the second."""
    for output in FUNCTIONS:
        yield output, 0
        yield (output, 1) if output in FIRST_ORDER else full(output, 1)
        if output not in FIRST_ORDER:
            # The density is the primitive of these two.
            yield full(output, 2) if output in ("logdet", "inv_quad") else (output, 2)


@pytest.mark.parametrize(("output", "order"), list(orders()))
@pytest.mark.parametrize("builder", BUILDERS)
def test_no_array_of_squared_size(builder, output, order):
    def function(matrices):
        return FUNCTIONS[output](BUILDERS[builder](matrices))

    second = partial(gradient_and_hessian_product, function)
    traced = jax.jit([function, jax.grad(function), second][order]).trace(MATRICES)
    # Lowered primitives hide their content in a jaxpr; the lowered program hides nothing.
    shapes = re.findall(r"tensor<((?:\d+x)+)f64>", traced.lower().as_text())
    sizes = [int(np.prod([int(n) for n in shape.split("x")[:-1]])) for shape in shapes]
    assert max(sizes) >= NUM_CELLS / 8, "the program was not read"
    limit = NUM_CELLS * max(SIZES)
    assert max(sizes) <= limit
    assert largest(traced.jaxpr.jaxpr) <= limit


def test_a_dense_matrix_is_found():
    program = jax.make_jaxpr(lambda m: jax.jit(lambda m: jnp.sum(noise_free(m).to_dense()))(m))
    assert largest(program(MATRICES).jaxpr) == NUM_CELLS**2


PAIR = (covariance(5), covariance(4))
PAIR_Y = np.random.default_rng(1).normal(size=(5, 4))


def density(matrices, noise):
    return kx.normal_logpdf(PAIR_Y, 0.0, kx.Kronecker(*matrices) + noise)


def separate_density(matrices, noise):
    op = kx.Kronecker(*matrices) + noise
    return kx.logdet(op) + jnp.sum(PAIR_Y * kx.solve(op, PAIR_Y)) + kx.inv_quad(op, PAIR_Y)


def two_term_density(matrices, noise):
    other = kx.Kronecker(noise * covariance(5, 4), covariance(4, 4))
    return kx.normal_logpdf(PAIR_Y, 0.0, kx.KroneckerPlusNoise(kx.Kronecker(*matrices), other))


def hessian(function):
    return jax.jacfwd(jax.jacrev(function, argnums=1), argnums=1)


def full_hessian_product(function):
    gradient = jax.grad(function, argnums=(0, 1))
    return lambda m, n: jax.jvp(gradient, (m, n), (m, n))[1]


TRANSFORMS = {
    "value": lambda f: f,
    "value and gradient": lambda f: jax.value_and_grad(f, argnums=(0, 1)),
    "hessian in the noise": hessian,
    "hessian product in all": full_hessian_product,
}


# What has a Hessian in all is no less than its value, its gradient and a part of the Hessian.
FUNCTIONS_OF_NOISE = (density, separate_density, two_term_density)
COUNTED = [(f, "hessian product in all") for f in FUNCTIONS_OF_NOISE]
COUNTED += [(density, "value and gradient")]


@pytest.mark.parametrize(
    ("function", "transform"), everyday(product(FUNCTIONS_OF_NOISE, TRANSFORMS), COUNTED)
)
def test_one_eigendecomposition_per_dense_factor(function, transform):
    assert num_eigh(TRANSFORMS[transform](function), PAIR, 0.3) == 2


def test_equal_sizes_are_decomposed_once_each():
    pair, y = (covariance(5), covariance(5, 1)), jnp.ones((5, 5))

    def value(matrices):
        return kx.normal_logpdf(y, 0.0, kx.Kronecker(*matrices) + 0.3)

    assert num_eigh(jax.value_and_grad(value), pair) in (1, 2)


def test_hessian_in_all_factors_decomposes_once():
    def value(theta):
        return density((theta[0] * PAIR[0], theta[1] * PAIR[1]), theta[2])

    assert num_eigh(jax.hessian(value), jnp.array([1.0, 1.0, 0.3])) == 2


def test_diagonal_factors_need_no_eigendecomposition():
    def value(variances, matrix):
        op = kx.Kronecker(kx.Diagonal(variances), matrix) + 0.3
        return kx.normal_logpdf(jnp.ones((3, 4)), 0.0, op)

    assert num_eigh(jax.value_and_grad(value), jnp.arange(1.0, 4), covariance(4)) == 1


@pytest.mark.parametrize("output", [full("solve"), "logdet", "inv_quad", "normal_logpdf"])
def test_noise_free_operators_need_no_eigendecomposition(output):
    def value(matrices):
        op = kx.Kronecker(*matrices)
        return {
            "solve": lambda: jnp.sum(kx.solve(op, PAIR_Y)),
            "logdet": lambda: kx.logdet(op),
            "inv_quad": lambda: kx.inv_quad(op, PAIR_Y),
            "normal_logpdf": lambda: kx.normal_logpdf(PAIR_Y, 0.0, op),
        }[output]()

    general_pair = PAIR if output == "normal_logpdf" else (general(5), general(4))
    assert num_eigh(jax.value_and_grad(value), general_pair) == 0


def test_broadcast_batches_are_decomposed_once_each():
    """(3, 1) against (5,) is 3 + 5 decompositions, not 15 of each."""
    left, right = covariance(4, 0, (3, 1)), covariance(2, 0, (5,))

    def value(left, right):
        return kx.logdet(kx.Kronecker(left, right) + 0.3)

    program = jax.jit(value).lower(left, right).as_text()
    decomposed = re.findall(r"syevd[^\n]*?\(tensor<([\dx]+)xf64>\)", program)
    counts = sorted(int(np.prod([int(n) for n in shape.split("x")[:-2]])) for shape in decomposed)
    assert counts == [3, 5]


@pytest.mark.parametrize("structure", ["dense", "toeplitz"])
def test_memory_of_value_and_gradient(structure):
    """At most six arrays of the grid's size at once, `y` included (here five beside it)."""
    shape = (60, 50, 100, 10)
    factor = {"dense": lambda n: jnp.ones((n, n)), "toeplitz": lambda n: kx.Toeplitz(jnp.ones(n))}

    def density(factors, noise, y):
        return kx.normal_logpdf(y, 0.0, kx.Kronecker(*factors) + noise)

    arguments = jax.eval_shape(
        lambda: (tuple(factor[structure](n) for n in shape), jnp.ones(()), jnp.ones(shape))
    )
    program = jax.jit(jax.value_and_grad(density, (0, 1))).lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 5 * 8 * np.prod(shape)


def diagonal(factors):
    return jnp.sum(kx.inverse_diagonal(kx.Kronecker(*factors) + 0.3) ** 2)


def slice_variances(factors):
    y = jnp.ones((1, *(len(f) for f in factors)))
    return jnp.sum(slices_given_others(kx.Kronecker(*factors) + 0.3, 1, y).diagonal ** 2)


@pytest.mark.parametrize("function", [diagonal, slice_variances])
def test_gradients_of_variances_hold_no_array_of_a_matrix_per_fibre(function):
    """A chunk, and some arrays of the grid's size: kept for every place, they would be 2 200."""
    shape = (600, 500)
    factors = tuple(jax.ShapeDtypeStruct((n, n), jnp.float64) for n in shape)
    program = jax.jit(jax.grad(function)).lower(factors).compile()
    assert program.memory_analysis().temp_size_in_bytes < 100 * 8 * np.prod(shape)
