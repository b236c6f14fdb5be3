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
from tests.everyday import everyday
from tests.tolerances import assert_close

# Large enough that kronax does not merge neighbours into one matrix.
M, N = 5, 8
SIZE = M * N


def _spd(rng, n):
    x = rng.normal(size=(n, n))
    return x @ x.T / n + np.eye(n)


RNG = np.random.default_rng(17)
A, B, C, D = (_spd(RNG, n) for n in (M, N, M, N))
G, H = (RNG.normal(size=(n, n)) + 3 * np.eye(n) for n in (M, N))
B_VECTOR, X = RNG.normal(size=SIZE), RNG.normal(size=(SIZE, 3))


def _noisy(a, b):
    return jnp.kron(a, b) + 0.3 * jnp.eye(SIZE)


def _two(a, b):
    return jnp.kron(a, b) + jnp.kron(jnp.asarray(C), jnp.asarray(D))


IDENTITY = jnp.eye(SIZE)


def _identity_outside(a, b):
    return jnp.kron(a, b) + 0.3 * IDENTITY + 1e-6 * np.eye(SIZE)


def _kronecker_diagonal(a, b):
    return jnp.kron(a, b) + jnp.diag(jnp.kron(jnp.diag(a), jnp.arange(1.0, N + 1.0)))


def _einsum_kron(a, b):
    return jnp.einsum("ij,kl->ikjl", a, b).reshape(SIZE, SIZE)


def _density(matrix):
    root = jnp.linalg.cholesky(matrix)
    white = jsp.linalg.solve_triangular(root, B_VECTOR, lower=True)
    return -0.5 * (white @ white) - jnp.log(jnp.diag(root)).sum()


def _sci_density(matrix):
    return jsp.stats.multivariate_normal.logpdf(B_VECTOR, jnp.zeros(SIZE), matrix)


def _batched_density(matrix):
    zeros = jnp.zeros(SIZE)
    return jax.vmap(lambda y: jsp.stats.multivariate_normal.logpdf(y, zeros, matrix))(X.T)


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
    "mapped solves": lambda k: jax.vmap(lambda b: jnp.linalg.solve(k, b))(X.T),
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
    "batched density": _batched_density,
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
    "identity outside": _identity_outside,
    "diagonal noise": _kronecker_diagonal,
}


def _largest(text):
    """The entries of the largest array in a lowered program."""
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    return max(np.prod([int(n) for n in shape[:-1].split("x")]) for shape in shapes)


def _programs():
    for name in GENERAL:
        yield name, "product", (G, H)
    for name in DEFINITE:
        for matrix in ("product", "noise"):
            yield name, matrix, (A, B)
    for name in ("solve columns", "slogdet", "products", "trace and diagonal", "inverse"):
        for matrix in ("noise", "two"):
            yield name, matrix, (A, B)
    for name in ("density", "cho_solve"):
        yield name, "two", (A, B)
    for matrix in ("identity outside", "diagonal noise"):
        yield "density", matrix, (A, B)
    yield "solve", "einsum", (G, H)
    yield "density", "three", (A, B)


# What needs a definite matrix has one kind of it a day; sums of two are the densities', and solved
# in `test_rewrite_edges.py`; what is a solve and a product more, or part of a trace, is left out.
FURTHER = {
    *((name, "product") for name in ("solve", "solve columns", "inverse on the right")),
    ("quadratic form", "product"),
    *((name, ("product", "noise")[k % 2]) for k, name in enumerate(DEFINITE)),
    *(("slogdet", matrix) for matrix in ("noise", "two")),
    ("inverse", "two"),
    ("inverse", "noise"),
    *(("solve columns", matrix) for matrix in ("noise", "two")),
    ("cho_solve", "two"),
}
PROGRAMS = [
    pytest.param(
        *case,
        id=f"{case[0]}-{case[1]}",
        marks=[pytest.mark.full] if case[:2] in FURTHER else [],
    )
    for case in _programs()
]


@pytest.mark.parametrize(("name", "matrix", "factors"), PROGRAMS)
def test_structured_programs_give_the_dense_values_and_gradients(name, matrix, factors):
    done = {**GENERAL, **DEFINITE}[name]

    def program(a, b):
        return done(MATRICES[matrix](a, b))

    fast = kx.rewrite(program, strict=True)

    def with_slopes(function):
        def total(a, b):
            value = function(a, b)
            leaves = jax.tree.leaves(value)
            weights = [jnp.cos(jnp.arange(leaf.size) + 1.0) for leaf in leaves]
            return sum(w @ x.reshape(-1) for w, x in zip(weights, leaves, strict=True)), value

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))

    factors = tuple(jnp.asarray(f) for f in factors)
    # Symmetric matrices are moved symmetrically: entries on both sides of the diagonal at once.
    ours = with_slopes(fast).lower(*factors)
    (_, value), gradient = ours.compile()(*factors)
    (_, expected), slope = with_slopes(program)(*factors)
    jax.tree.map(assert_close, value, expected)
    for got, want in zip(gradient, slope, strict=True):
        symmetric = name in DEFINITE or matrix != "product"
        turned = (lambda x: x + x.T) if symmetric else (lambda x: x)
        assert_close(turned(got), turned(want), 1)
    assert _largest(ours.as_text()) < SIZE**2


def _quiet(function, *args):
    """The value, and the messages of the warnings about dense products."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function(*args)
    return value, [str(w.message) for w in caught if w.category is kx.DenseProductWarning]


def _sampled(a, b):
    return jnp.linalg.cholesky(_noisy(a, b)) @ B_VECTOR  # depends on the root's rotation


def _whitened(a, b):
    return jsp.linalg.solve_triangular(jnp.linalg.cholesky(_noisy(a, b)), B_VECTOR, lower=True)


def _diagonal_noise(a, b):
    return jnp.linalg.solve(jnp.kron(a, b) + jnp.diag(jnp.abs(jnp.asarray(B_VECTOR))), B_VECTOR)


# program, factors, the primitive and a part of the reason
DENSE = {
    "a root times a vector": (_sampled, (A, B), "dot_general", "+ c·I"),
    "whitened vectors handed out": (_whitened, (A, B), "return", ""),
    "a variance per cell": (_diagonal_noise, (A, B), "solve", "on the whole grid"),
    "entry by entry": (lambda a, b: jnp.exp(jnp.kron(a, b)), (A, B), "exp", "kron(5×5, 8×8)"),
    "the product itself": (lambda a, b: jnp.kron(a, b), (A, B), "return", "kron(5×5, 8×8)"),
    "factors that are not square": (
        lambda a, b: jnp.linalg.solve(jnp.kron(a, b), jnp.ones(6)),
        (RNG.normal(size=(2, 3)), RNG.normal(size=(3, 2))),
        "solve",
        "not square",
    ),
    "not symmetric, taken to be": (
        lambda a, b: jsp.linalg.solve(jnp.kron(a, b), B_VECTOR, assume_a="pos"),
        (A, B + np.triu(np.full((N, N), 0.01), 1)),
        "_solve",
        "not symmetric",
    ),
    "three terms": (
        lambda a, b: jnp.linalg.solve(_two(a, b) + jnp.eye(SIZE), B_VECTOR),
        (A, B),
        "solve",
        "3 products",
    ),
}


@pytest.mark.parametrize("case", DENSE)
def test_what_has_no_structured_form_is_computed_densely_and_told(case):
    program, factors, name, reason = DENSE[case]
    factors = tuple(jnp.asarray(f) for f in factors)
    # What is not symmetric is seen in numbers alone.
    called = (lambda function: function) if reason == "not symmetric" else jax.jit
    value, messages = _quiet(called(kx.rewrite(program)), *factors)
    assert_close(value, jax.jit(program)(*factors))
    assert messages
    assert f"`{name}` at {__file__}:" in messages[0]
    assert reason in messages[0]
    with pytest.raises(kx.DenseProductError, match=rf"`{name}` at .*test_rewrite.py:\d+"):
        called(kx.rewrite(program, strict=True))(*factors)


def test_a_singular_matrix_gives_what_the_dense_code_gives():
    def program(a, b):
        return jnp.linalg.solve(jnp.kron(a, b), B_VECTOR)

    factors = jnp.diag(jnp.arange(float(M))), jnp.asarray(B)
    value, messages = _quiet(kx.rewrite(program), *factors)
    np.testing.assert_allclose(value, program(*factors))
    assert "must be invertible" in messages[0]


def test_two_negative_definite_factors_have_a_cholesky_factor():
    def program(a, b):
        return _density(jnp.kron(a, b)), _density(_noisy(a, b))

    factors = -jnp.asarray(A), -jnp.asarray(B)
    found = kx.rewrite(program, strict=True)(*factors)
    jax.tree.map(assert_close, found, jax.jit(program)(*factors))


def test_the_line_is_that_of_the_call():
    def program(a, b):
        product = jnp.kron(a, b)
        return jnp.sin(product).sum()

    line = program.__code__.co_firstlineno + 2
    _, messages = _quiet(kx.rewrite(program), jnp.asarray(A), jnp.asarray(B))
    assert f"`sin` at {__file__}:{line} takes kron(5×5, 8×8)" in messages[0]


def test_a_name_alone_is_no_product():
    @jax.jit
    def kron(a, b):
        return jnp.einsum("ij,kl->kilj", a, b).reshape(SIZE, SIZE)  # the other order

    @jax.jit
    def slogdet(matrix):
        return jnp.linalg.slogdet(matrix)[1] + 1.0

    def program(a, b):
        return jnp.linalg.solve(kron(a, b), B_VECTOR), slogdet(jnp.kron(a, b))

    factors = jnp.asarray(G), jnp.asarray(H)
    value = jax.jit(kx.rewrite(program, strict=True))(*factors)
    jax.tree.map(assert_close, value, jax.jit(program)(*factors))


def test_programs_without_a_product_are_left_alone():
    def program(x, key):
        kernel = jnp.exp(-0.5 * (x[:, None] - x[None, :]) ** 2) + 0.1 * jnp.eye(6)
        noise = jax.random.normal(key, (6,))
        mask = jnp.tril(jnp.ones((6, 6), bool))
        return jnp.linalg.cholesky(kernel) @ noise, jnp.where(mask, kernel, 0.0), {"n": 6}

    args = np.linspace(0.0, 1.0, 6), jax.random.key(0)
    value, messages = _quiet(jax.jit(kx.rewrite(program)), *args)
    assert not messages
    jax.tree.map(np.testing.assert_array_equal, value, jax.jit(program)(*args))
    assert kx.rewrite(program).explain(*args) == "No Kronecker product was found."


def _inner_jit(a, b):
    return jax.jit(lambda a, b: jnp.linalg.solve(jnp.kron(a, b), B_VECTOR))(a, b)


def _checkpoint(a, b):
    return jax.checkpoint(lambda a, b: jnp.linalg.solve(jnp.kron(a, b), B_VECTOR))(a, b)


def _scan(a, b):
    def step(carry, scale):
        return jnp.linalg.solve(jnp.kron(scale * a, b), carry), jnp.linalg.slogdet(jnp.kron(a, b))

    return jax.lax.scan(step, jnp.asarray(B_VECTOR), jnp.array([1.0, 2.0]))


def _scan_of_one(a, b):
    product = jnp.kron(a, b)
    return jax.lax.scan(lambda c, _: (product @ c, c.sum()), jnp.asarray(B_VECTOR), length=3)


def _cond(a, b):
    def one(a, b):
        return jnp.kron(a, b) @ B_VECTOR

    return jax.lax.cond(a[0, 0] > 0, one, lambda a, b: jnp.zeros(SIZE), a, b)


@jax.custom_jvp
def _ruled(a, b):
    return jnp.kron(a, b) @ B_VECTOR


@_ruled.defjvp
def _(primals, tangents):
    return _ruled(*primals), 7.0 * jnp.ones(SIZE) * tangents[0].sum()


INSIDE = [_inner_jit, _checkpoint, _scan, _scan_of_one, _cond, _ruled]


@pytest.mark.parametrize("program", INSIDE, ids=lambda p: getattr(p, "__name__", "custom_jvp"))
def test_products_inside_of_bodies(program):
    factors = jnp.asarray(G), jnp.asarray(H)
    fast = kx.rewrite(program, strict=True)

    def total(function):
        return lambda a: sum(x.sum() for x in jax.tree.leaves(function(a, factors[1])))

    expected, slope = jax.jit(lambda *f: (program(*f), jax.grad(total(program))(f[0])))(*factors)
    jax.tree.map(assert_close, fast(*factors), expected)
    assert_close(jax.jit(jax.grad(total(fast)))(factors[0]), slope, 1)


def test_transforms_on_either_side():
    def density(scale, y):
        return _sci_density_of(jnp.exp(scale) * jnp.asarray(A), y)

    def _sci_density_of(a, y):
        return jsp.stats.multivariate_normal.logpdf(y, jnp.zeros(SIZE), _noisy(a, jnp.asarray(B)))

    y, scale = jnp.asarray(B_VECTOR), jnp.asarray(0.3)
    scales = jnp.asarray([0.1, 0.2])
    fast = kx.rewrite(density, strict=True)
    inside = kx.rewrite(jax.jit(density), strict=True)

    def of(function):
        mapped = jax.vmap(function, (0, None))(scales, y)
        value, slope = jax.value_and_grad(function)(scale, y)
        return value, jax.hessian(function)(scale, y), mapped, slope

    # Transformed first, the program has other equations; some of them are computed densely.
    def first():
        mapped = kx.rewrite(jax.vmap(density, (0, None)))(scales, y)
        return inside(scale, y), mapped, kx.rewrite(jax.grad(density))(scale, y)

    (ours, others), _ = _quiet(jax.jit(lambda: (of(fast), first())))
    truth = jax.jit(lambda: of(density))()
    for got, want, order in zip(ours, truth, (0, 2, 0, 1), strict=True):
        assert_close(got, want, order)
    for got, want, order in zip(others, (truth[0], *truth[2:]), (0, 1, 1), strict=True):
        assert_close(got, want, order)


def test_traced_products_of_which_a_triangle_is_no_product_give_nan():
    density = jax.jit(kx.rewrite(lambda a, b: _density(_noisy(a, b))))
    turned = jnp.asarray(B + np.triu(np.full((N, N), 0.01), 1))
    assert jnp.isnan(density(jnp.asarray(G @ G.T + np.triu(G)), turned))
    with kx.debug_nans(), pytest.raises(RuntimeError, match="must have symmetric factors"):
        density(jnp.asarray(G @ G.T + np.triu(G)), turned).block_until_ready()


def test_single_precision():
    def program(a, b):
        y = jnp.asarray(B_VECTOR, jnp.float32)
        matrix = jnp.kron(a, b) + 0.3 * jnp.eye(SIZE, dtype=jnp.float32)
        return jsp.stats.multivariate_normal.logpdf(y, jnp.zeros(SIZE, jnp.float32), matrix)

    factors = jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32)
    value = jax.jit(kx.rewrite(program, strict=True))(*factors)
    assert value.dtype == jnp.float32
    assert_close(value, jax.jit(program)(*factors))


def test_explain_says_what_where_and_at_what_cost():
    def program(a, b):
        matrix = jnp.kron(a, b) + 0.3 * jnp.eye(SIZE)
        return _density(matrix), jnp.exp(jnp.kron(a, b))

    text = kx.rewrite(program).explain(jnp.asarray(A), jnp.asarray(B))
    line = program.__code__.co_firstlineno + 1
    assert f"test_rewrite.py:{line}" in text
    assert "kron(5×5, 8×8) + c·I" in text
    assert "kx.inv_quad" in text
    assert "kx.logdet" in text
    assert "dense" in text


def _inverse_root(k, y):
    values, vectors = jnp.linalg.eigh(k)
    return (vectors / jnp.sqrt(values)[None, :]) @ (vectors.T @ y)


STEPS = {
    "transposed": lambda k, rng: k.T,
    "scaled": lambda k, rng: rng.uniform(0.5, 2.0) * k,
    "halved": lambda k, rng: k / 2.0,
    "noise": lambda k, rng: k + rng.uniform(0.1, 1.0) * jnp.eye(len(k)),
    "symmetrised": lambda k, rng: (k + k.T) / 2,
    "negated twice": lambda k, rng: -jnp.negative(k),
    "turned": lambda k, rng: k[::-1, ::-1],
}
STARTS = {
    "two": (lambda a, b, c: jnp.kron(a, b), 2 * 3),
    "three": (lambda a, b, c: jnp.kron(jnp.kron(a, b), c), 2 * 3 * 2),
    "nested": (lambda a, b, c: jnp.kron(c, jnp.kron(b, a)), 2 * 3 * 2),
    "sum": (lambda a, b, c: jnp.kron(a, b) + jnp.kron(c, 2.0 * b), 2 * 3),
    "squared": (lambda a, b, c: jnp.kron(a, b) @ jnp.kron(a, b).T, 2 * 3),
    "Hadamard": (lambda a, b, c: jnp.kron(a, b) * jnp.kron(c, b), 2 * 3),
    "along axes": (lambda a, b, c: jnp.kron(a, jnp.eye(3)) + jnp.kron(jnp.eye(2), b), 2 * 3),
}
ENDS = {
    "solve": lambda k, y: jnp.linalg.solve(k, y),
    "form": lambda k, y: y @ jnp.linalg.inv(k) @ y,
    "density": lambda k, y: jsp.stats.multivariate_normal.logpdf(y, 0 * y, k),
    "det": lambda k, y: jnp.linalg.det(k),
    "columns": lambda k, y: k @ jnp.outer(y, y[:2]),
    "trace": lambda k, y: jnp.trace(k) + jnp.diag(k) @ y,
    "corner": lambda k, y: k[:2, 0],
    "normal": lambda k, y: dist.MultivariateNormal(0 * y, k).log_prob(y),
    "precision": lambda k, y: dist.MultivariateNormal(0 * y, precision_matrix=k).log_prob(y),
    "variance": lambda k, y: dist.MultivariateNormal(0 * y, k).variance,
    "draw": lambda k, y: dist.MultivariateNormal(0 * y, k).sample(jax.random.key(0)),
    "rows": lambda k, y: jax.vmap(lambda s: jnp.linalg.solve(s * k, y))(y[:2] ** 2 + 1.0),
    "gradient": lambda k, y: jax.grad(lambda s: y @ jnp.linalg.solve(s * k, y))(1.3),
    "eigenvalues": lambda k, y: jnp.linalg.eigvalsh(k),
    "function of it": _inverse_root,
}


@pytest.mark.parametrize("seed", everyday(range(500), range(5)))
def test_random_compositions_give_the_dense_values(seed):
    rng = np.random.default_rng(seed)
    start, size = STARTS[rng.choice(list(STARTS))]
    steps = [STEPS[name] for name in rng.choice(list(STEPS), size=rng.integers(0, 4))]
    numbers = [int(rng.integers(1 << 30)) for _ in steps]
    end = ENDS[rng.choice(list(ENDS))]
    a, b, c = (jnp.asarray(_spd(rng, n)) for n in (2, 3, 2))
    y = jnp.asarray(rng.normal(size=size))

    def program(a, b, c, y):
        matrix = start(a, b, c)
        for step, number in zip(steps, numbers, strict=True):
            matrix = step(matrix, np.random.default_rng(number))
        return end(matrix, y)

    value, _ = _quiet(kx.rewrite(program), a, b, c, y)
    assert_close(value, jax.jit(program)(a, b, c, y))


@pytest.mark.parametrize("density", [_density, _sci_density, _pyro_density])
def test_a_density_takes_as_many_products_as_one_by_hand(density):
    """Its two terms share what is computed for their derivatives."""

    def by_hand(a, b):
        return kx.normal_logpdf(B_VECTOR, 0.5, kx.Kronecker(a, b) + 0.3)

    texts = [
        jax.jit(jax.value_and_grad(f, (0, 1))).lower(A, B).as_text()
        for f in (kx.rewrite(lambda a, b: density(_noisy(a, b))), by_hand)
    ]
    ours, theirs = (text.count("stablehlo.dot_general") for text in texts)
    assert 0 < ours <= theirs


def test_the_terms_of_a_density_may_be_used_in_other_ways():
    def terms(a, b):
        root = jnp.linalg.cholesky(_noisy(a, b))
        white = jsp.linalg.solve_triangular(root, B_VECTOR, lower=True)
        form, log_det = white @ white, jnp.log(jnp.diag(root)).sum()
        mixed = 3.0 - 2.0 * (form / 4.0 - log_det) + form * a[0, 0]
        return form, log_det, mixed, -log_det - form, jnp.exp(-form), form + form

    fast = kx.rewrite(terms, strict=True)
    for got, expected in zip(jax.jit(fast)(A, B), jax.jit(terms)(A, B), strict=True):
        assert_close(got, expected)


def test_with_options_it_is_a_decorator():
    @kx.rewrite(strict=True)
    def solved(a, b):
        return jnp.linalg.solve(jnp.kron(a, b), B_VECTOR)

    @kx.rewrite(same_draws=False)
    def drawn(a, b):
        return jnp.linalg.cholesky(_noisy(a, b)) @ B_VECTOR

    assert_close(solved(G, H), np.linalg.solve(np.kron(G, H), B_VECTOR))
    assert solved.__name__ == "solved"
    assert solved.strict
    _, messages = _quiet(jax.jit(drawn), jnp.asarray(A), jnp.asarray(B))
    assert not messages
    with pytest.raises(TypeError, match="takes a function; got bool"):
        kx.rewrite(True)
