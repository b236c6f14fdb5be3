"""Operators are pytrees: they go through every transformation and come back the same."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.cases import CASES, each_case, few_cases
from tests.tolerances import assert_close


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@each_case
def test_round_trips(name):
    op = CASES[name].operator
    leaves, tree = jax.tree.flatten(op)
    assert leaves, "the parameters must be leaves"
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert_same(jax.tree.unflatten(tree, leaves), op)
    assert_same(jax.tree.map(lambda leaf: leaf, op), op)
    assert hash(tree) == hash(jax.tree.structure(CASES[name].operator))
    assert_same(jax.jit(lambda op: op)(op), op)


@few_cases
def test_serialisation(name):
    op = CASES[name].operator
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, op)
    file.seek(0)
    blank = jax.tree.map(jnp.zeros_like, op)
    assert_same(eqx.tree_deserialise_leaves(file, blank), op)


def test_a_decomposed_operator_is_serialised_with_its_decomposition():
    held = kx.decompose(CASES["two axes"].operator)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, held)
    file.seek(0)
    restored = eqx.tree_deserialise_leaves(file, jax.tree.map(jnp.zeros_like, held))
    assert_same(restored, held)
    assert_close(kx.logdet(restored), np.asarray(kx.logdet(held)))


@pytest.mark.parametrize("name", ["two axes", "full Kronecker noise", "noise-free, triangular"])
def test_as_arguments_of_jit_vmap_and_scan(name):
    op, y, _ = CASES[name].inputs
    truth = np.asarray(kx.logdet(op))
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, leaf]), op)
    together = jax.jit(jax.vmap(kx.logdet))(several)
    assert together.shape == (3,)
    assert_close(together[0], truth)
    assert_close(together[1], np.asarray(kx.logdet(jax.tree.map(lambda leaf: 2 * leaf, op))))

    def step(carry, _):
        return carry, kx.solve(carry, y)

    carried, solutions = jax.lax.scan(step, op, length=2)
    assert_same(carried, op)
    assert_close(solutions[1], np.asarray(kx.solve(op, y)))


def test_in_axes_of_vmap_may_be_none():
    op, y, _ = CASES["two axes"].inputs
    vectors = jnp.stack([y, 2 * y])
    assert_close(
        jax.vmap(kx.solve, in_axes=(None, 0))(op, vectors), np.asarray(kx.solve(op, vectors))
    )


def test_gradients_are_operators():
    op = CASES["two axes"].operator
    gradient = jax.jit(jax.grad(kx.logdet))(op)
    assert jax.tree.structure(gradient) == jax.tree.structure(op)
    assert_close(gradient.noise, np.trace(np.linalg.inv(CASES["two axes"].dense[0].value)), 1)
