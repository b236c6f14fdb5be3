"""What might deceive a rewrite: references, indices, indefinite matrices, empty arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.tolerances import assert_close

M, N = 5, 8
SIZE = M * N
RNG = np.random.default_rng(31)
G, H, Y = (jnp.asarray(RNG.normal(size=shape)) for shape in ((M, M), (N, N), SIZE))
A, B = G @ G.T + jnp.eye(M), H @ H.T + jnp.eye(N)
X, EYE = jnp.asarray(RNG.normal(size=(SIZE, 2))), jnp.eye(SIZE)


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
    assert_close(kx.rewrite(program)(v), program(v))


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
    expected = jax.value_and_grad(program, (0, 1))(*args)
    jax.tree.map(lambda got, want: assert_close(got, want, order=1), both(*args), expected)


def test_the_determinant_of_a_traced_indefinite_sum_has_no_sign():
    def program(a, b):
        return jnp.linalg.slogdet(_indefinite(a, b)[0])

    found = jax.jit(kx.rewrite(program, strict=True))(A, B)
    assert jnp.isnan(jnp.stack([found.sign, found.logabsdet])).all()
    with pytest.warns(kx.DenseProductWarning):
        jax.tree.map(assert_close, kx.rewrite(program)(A, B), program(A, B))


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
    jax.tree.map(assert_close, kx.rewrite(program, strict=True)(*args), program(*args))


def test_integers_are_divided_with_a_remainder():
    a, b = jnp.arange(1, 5).reshape(2, 2), jnp.arange(3, 12).reshape(3, 3)

    def program(a, b):
        product = jnp.kron(a, b)
        return jax.lax.div(product, 2), product // 3, product % 3, (product / 2) @ jnp.ones(6)

    with pytest.warns(kx.DenseProductWarning, match="dense 6×6"):
        found = kx.rewrite(program)(a, b)
    jax.tree.map(np.testing.assert_array_equal, found, program(a, b))
