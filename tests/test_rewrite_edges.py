"""What might deceive a rewrite: references, indices, indefinite matrices, empty arrays."""

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import everyday, full
from tests.tolerances import assert_close

M, N = 5, 8
SIZE = M * N
RNG = np.random.default_rng(31)
G, H, Y = (RNG.normal(size=shape) for shape in ((M, M), (N, N), SIZE))
A, B = (jnp.asarray(root @ root.T + np.eye(len(root))) for root in (G, H))
X, EYE = RNG.normal(size=(SIZE, 2)), np.eye(SIZE)
G, H, Y, X, EYE = map(jnp.asarray, (G, H, Y, X, EYE))


def _once(a):
    return a


def _twice(a):
    return 2.0 * a


class Choice:
    """What a program refers to."""

    table = (_once, _twice)
    function = staticmethod(_once)
    scale = 1.0


def test_what_takes_the_place_of_another_reference_is_seen(monkeypatch):
    _once.shift = 0.0
    nested = [3.0, [2.0]]

    def program(a, b):
        weight = nested[0] if isinstance(nested[0], float) else nested[0][0] + nested[1]
        factor = Choice.function(a) + 0.0 * Choice.table[1](a)
        return Choice.scale * weight * (jnp.kron(factor, b) @ Y) + _once.shift

    fast = kx.rewrite(program)

    def check():
        assert_close(fast(G, H), program(G, H))
        assert_close(fast(G, H), program(G, H))

    check()
    monkeypatch.setattr(Choice, "function", staticmethod(_twice))
    check()
    monkeypatch.setattr(Choice, "scale", 3.0)
    check()
    monkeypatch.setattr(_once, "shift", 1.0)
    check()
    nested[:] = [[3.0], 2.0]
    check()


class Field:
    """A class with a rewritten method."""

    def __init__(self, scale):
        self.scale = scale

    @kx.rewrite
    def times(self, a, b):
        return self.scale * (jnp.kron(a, b) @ Y)


def test_a_method_is_rewritten():
    field, expected = Field(2.0), jnp.kron(G, H) @ Y
    assert_close(field.times(G, H), 2.0 * expected)
    field.scale = 3.0
    assert_close(field.times(G, H), 3.0 * expected)
    assert_close(Field.times(field, G, H), 3.0 * expected)
    assert "axis by axis" in field.times.explain(G, H)


@pytest.mark.parametrize(("dtype", "shift"), [(jnp.int8, 0), (jnp.float32, 0.5)])
def test_indices_that_are_not_exact_make_no_identity(dtype, shift):
    def program(v):
        rows, columns = (jax.lax.broadcasted_iota(dtype, (300, 300), k) for k in (0, 1))
        mask = rows + jnp.asarray(shift, dtype) == columns
        return jnp.where(mask, 1.0, 0.0) @ v

    v = jnp.arange(300.0)
    assert_close(kx.rewrite(program)(v), jax.jit(program)(v))


def _indefinite(a, b):
    shift = 2.5 * EYE
    return jnp.kron(a, b) - shift, jnp.kron(a, jnp.eye(N)) + jnp.kron(jnp.eye(M), b) - shift


def test_a_matrix_that_is_solved_need_not_be_definite():
    def program(a, b):
        product, total = _indefinite(a + a.T, b + b.T)
        return (
            jnp.linalg.solve(product, Y).sum()
            + jnp.linalg.solve(total, X)[3].sum()
            + (jnp.linalg.inv(total) @ X[:, 1])[2]
        )

    args = G, H
    both = jax.jit(jax.value_and_grad(kx.rewrite(program, strict=True), (0, 1)))
    expected = jax.jit(jax.value_and_grad(program, (0, 1)))(*args)
    jax.tree.map(lambda got, want: assert_close(got, want, order=1), both(*args), expected)


def _sums(a, b):
    """One term with noise, two terms, and a Kronecker sum."""
    one = jnp.eye
    yield jnp.kron(a, b) + 0.3 * EYE
    yield jnp.kron(a, b) + jnp.kron(G + 3 * one(M), H + 3 * one(N))
    yield jnp.kron(a, one(N)) + jnp.kron(one(M), b) + 0.3 * EYE


def _what_lu_gives(k):
    inverse = jnp.linalg.inv(k)
    solved = jnp.linalg.solve(k, X), Y @ inverse, jnp.linalg.inv(k.T) @ Y, inverse.T @ Y
    return solved, jnp.linalg.slogdet(k), jnp.trace(inverse)


def _with_slopes(function, *argnums):
    """What a program gives, and the slopes of a sum of the first two parts, by one trace."""

    def total(*args):
        value = function(*args)
        leaves = jax.tree.leaves(value[:2])
        return sum(jnp.cos(jnp.arange(x.size) + 1.0) @ x.reshape(-1) for x in leaves), value

    def both(*args):
        (_, value), slopes = jax.value_and_grad(total, argnums, has_aux=True)(*args)
        return value, slopes

    return jax.jit(both)


# Concrete factors are those of two products that are singular, below, every day.
LU_OF = [("noise", False), ("noise", True), ("two", False), ("Kronecker sum", False)]


@pytest.mark.parametrize(("name", "concrete"), everyday(LU_OF, LU_OF[:1]))
def test_sums_of_which_lu_is_taken_need_be_neither_symmetric_nor_definite(name, concrete):
    """Under `jit` as well, where nothing says that they are not; derivatives included."""
    k = ("noise", "two", "Kronecker sum").index(name)

    def program(a, b):
        return _what_lu_gives(list(_sums(a, b))[k])

    fast = kx.rewrite(program, strict=True)
    both, truth = (_with_slopes(f, 0, 1) for f in (fast, program))
    unsymmetric, indefinite = (G, H), (G + G.T, H + H.T)
    for args in (unsymmetric, indefinite, (A, H), (A, B)):
        (value, slope), (expected, expected_slope) = both(*args), truth(*args)
        jax.tree.map(assert_close, value, expected)
        turned = (lambda x: x + x.T) if args[1] is B else (lambda x: x)
        for got, want in zip(slope, expected_slope, strict=True):
            assert_close(turned(got), turned(want), order=1)
    if concrete:
        jax.tree.map(assert_close, fast(G, H), truth(G, H)[0])


def test_sums_of_which_lu_is_taken_are_mapped():
    def program(a, b):
        k = jnp.kron(a, b) + 0.3 * EYE
        return jnp.linalg.solve(k, X), jnp.linalg.slogdet(k)

    several = jnp.stack([A, G]), jnp.stack([B, H])
    fast = kx.rewrite(program, strict=True)
    mapped, expected = (jax.jit(jax.vmap(f))(*several) for f in (fast, program))
    jax.tree.map(assert_close, mapped, expected)


def test_both_products_of_a_sum_may_be_singular():
    """Which neither can be divided by."""

    def program(a, b, c, d):
        k = jnp.kron(a, b) + jnp.kron(c, d)
        return jnp.linalg.solve(k, Y), jnp.linalg.slogdet(k)

    kept = jnp.asarray([1.0, 1, 0, 0, 0])
    first, second = (G @ jnp.diag(own) @ A for own in (kept, 1 - kept))
    args = first, H, second, H.T
    fast = kx.rewrite(program, strict=True)
    both, truth = (_with_slopes(f, 0, 1, 2, 3) for f in (fast, program))
    expected = truth(*args)
    for got, want in zip(both(*args), expected, strict=True):
        jax.tree.map(lambda x, y: assert_close(x, y, order=1), got, want)
    # And where the numbers are known.
    solved = kx.rewrite(lambda *factors: program(*factors)[0], strict=True)
    assert_close(solved(*args), expected[0][0], order=1)


def test_sums_of_single_precision_stay_so():
    """Also where JAX has double precision."""

    def program(a, b):
        one = jnp.kron(a, jnp.eye(N, dtype=a.dtype)), jnp.kron(jnp.eye(M, dtype=b.dtype), b)
        return jnp.linalg.solve(one[0] - one[1], Y.astype(a.dtype)), jnp.linalg.det(one[0] - one[1])

    fast = jax.jit(kx.rewrite(program, strict=True))
    found = fast(G.astype("float32"), H.astype("float32"))
    for got, want in zip(found, jax.jit(program)(G, H), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_matrices_without_a_basis_of_eigenvectors():
    jordan = jnp.triu(jnp.ones((N, N)))

    def program(a, b):
        k = jnp.kron(a, b) + 0.3 * EYE
        return jnp.linalg.solve(k, X), jnp.linalg.slogdet(k)

    fast = kx.rewrite(program, strict=True)
    found, expected = (_with_slopes(f, 0, 1)(A, jordan) for f in (fast, program))
    assert_close(found[0][0], expected[0][0])
    for got, want in zip(found[1], expected[1], strict=True):
        assert_close(got, want, order=1)


def test_one_factor_may_have_a_triangle_that_cholesky_does_not_read():
    """`jnp` reads both triangles and takes the mean, `scipy` one of them."""
    skew = A + jnp.triu(jnp.full((M, M), 0.3), 1)

    def program(a, b):
        k = jnp.kron(a, b) + 0.3 * EYE
        lower = jsp.linalg.cho_factor(k, lower=True)
        return (
            jnp.square(jsp.linalg.solve_triangular(jnp.linalg.cholesky(k), Y, lower=True)).sum(),
            jsp.linalg.cho_solve(lower, Y),
            jsp.linalg.solve(jnp.kron(a, b), Y, assume_a="pos"),
            jnp.linalg.eigvalsh(jnp.kron(a, b)),
            jnp.linalg.eigh(jnp.kron(a, b), UPLO="U", symmetrize_input=False)[0],
        )

    fast, expected = kx.rewrite(program, strict=True), jax.jit(program)(skew, B)
    for found in (jax.jit(fast)(skew, B), fast(skew, B)):
        jax.tree.map(assert_close, found, expected)


@pytest.mark.parametrize("lower", [full(True), False])
def test_the_triangle_of_a_product_need_not_be_the_product_of_triangles(lower):
    third = jnp.asarray(RNG.normal(size=(2, 2))) + 3 * jnp.eye(2)
    y = jnp.concatenate([Y, Y])

    def program(a, b, c):
        k = jnp.kron(jnp.kron(a, b), c)
        one = jsp.linalg.solve_triangular(k, y, lower=lower)
        return one, jsp.linalg.solve_triangular(k, X.repeat(2, 0), lower=lower, trans=1)

    fast = kx.rewrite(program, strict=True)
    both, truth = (_with_slopes(f, 0, 1, 2) for f in (fast, program))
    general = G + 3 * jnp.eye(M), H + 5 * jnp.eye(N), third
    triangular = tuple(map(jnp.tril if lower else jnp.triu, general))
    for args in (general, triangular, (general[0], *triangular[1:])):
        got, want = both(*args), truth(*args)
        jax.tree.map(assert_close, got[0], want[0])
        jax.tree.map(lambda x, y: assert_close(x, y, order=1), got[1], want[1])
        jax.tree.map(assert_close, fast(*args), want[0])


def test_arrays_without_entries():
    def program(a, b, empty):
        product, nothing = jnp.kron(a, b), jnp.kron(empty, b)
        return (
            product @ jnp.zeros((SIZE, 0)),
            jnp.linalg.solve(product, jnp.zeros((SIZE, 0))),
            nothing.sum() + jnp.trace(nothing),
            nothing @ jnp.zeros(0) + jnp.zeros(0),
        )

    args = G, H, jnp.zeros((0, 0))
    fast = jax.jit(kx.rewrite(program, strict=True))
    jax.tree.map(assert_close, fast(*args), jax.jit(program)(*args))


def test_integers_are_divided_with_a_remainder():
    a, b = jnp.arange(1, 5).reshape(2, 2), jnp.arange(3, 12).reshape(3, 3)

    def program(a, b):
        product = jnp.kron(a, b)
        return jax.lax.div(product, 2), product // 3, product % 3, (product / 2) @ jnp.ones(6)

    with pytest.warns(kx.DenseProductWarning, match="dense 6×6"):
        found = jax.jit(kx.rewrite(program))(a, b)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(program)(a, b))
