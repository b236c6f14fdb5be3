"""What a GPU would compile: no call to the host, float32 in full precision and nothing else."""

import sys
from functools import partial

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.fitting.steps import advance
from tests.everyday import everyday
from tests.programs import float64_numbers, for_cuda, host_callbacks, rounded_products

RNG = np.random.default_rng(0)
X, Z = (np.linspace(0, 1, n, dtype=np.float32) ** 2 for n in (4, 3))
LONG, CIRCLE = np.arange(20, dtype=np.float32), np.arange(16, dtype=np.float32) / 16
Y = RNG.normal(size=(4, 3)).astype(np.float32)
HOLES = np.array([[True] * 3, [True, False, True], [True] * 3, [False, True, True]])
NEW = {"axes": (X[:2] + np.float32(0.1), None)}
A, B = (np.eye(n, dtype=np.float32) + np.float32(0.5) for n in (4, 3))
VALUE = np.float32(0.3)
KEY = jax.random.key(0)


def on_operators(function):
    def value(a, b, noise):
        return jnp.sum(function(kx.Kronecker(a, b) + noise))

    return value, (A, B, VALUE)


def of_products(function):
    def value(a, b):
        return jnp.sum(function(a, b))

    return value, (A, B)


def process(lengthscale, noise, **options):
    kernels = kx.RBF(lengthscale), kx.Matern32(lengthscale)
    noise = None if "likelihood" in options else noise
    return kx.GridGP(kernels, (X, Z), noise, **options)


def on_processes(function, **options):
    def value(lengthscale, noise):
        return jnp.sum(function(process(lengthscale, noise, **options)))

    return value, (VALUE, VALUE)


def likelihood_of(y=Y, **options):
    return on_processes(lambda gp: gp.log_marginal_likelihood(y), **options)


def given_data(function, **options):
    return on_processes(lambda gp: function(gp.condition(Y)), **options)


def long_process(lengthscale, noise):
    kernels = kx.Matern32(lengthscale), kx.Periodic(VALUE, lengthscale)
    axes = LONG, kx.circle(CIRCLE, 1.0)
    gp = kx.GridGP(kernels, axes, noise=noise, structure=("markov", None))
    return gp.log_marginal_likelihood(np.ones((20, 16), np.float32))


def regular_process(lengthscale, noise):
    kernels = kx.Matern32(lengthscale), kx.Periodic(VALUE, lengthscale)
    gp = kx.GridGP(kernels, (LONG, kx.circle(CIRCLE, 1.0)), noise=noise)
    return gp.log_marginal_likelihood(np.ones((20, 16), np.float32))


def uneven_process(lengthscale, noise):
    gp = process(lengthscale, jnp.where(HOLES, noise, jnp.inf))
    return gp.log_marginal_likelihood(Y)


def dense_code(a, b, noise):
    matrix = jnp.kron(a, b) + noise * jnp.eye(12, dtype=a.dtype)
    return jnp.linalg.slogdet(matrix)[1] + jnp.sum(jnp.linalg.solve(matrix, Y.ravel()) * Y.ravel())


def masked_density(a, b, noise):
    return kx.MaskedKroneckerNormal(0.0, (a, b), noise, observed=HOLES).log_prob(Y)


FIRST_ORDER = {
    "inverse_diagonal": on_operators(kx.inverse_diagonal),
    "sample_normal": on_operators(partial(kx.sample_normal, KEY)),
    "KroneckerStudentT": of_products(
        lambda a, b: kx.KroneckerStudentT(4.0, 0.0, (a, b)).log_prob(Y)
    ),
    "scale_trils": of_products(
        lambda a, b: kx.KroneckerNormal(0.0, scale_trils=(jnp.tril(a), jnp.tril(b))).log_prob(Y)
    ),
    "MaskedKroneckerNormal": (masked_density, (A, B, VALUE)),
    "rewrite": (kx.rewrite(dense_code), (A, B, VALUE)),
    "iterations": likelihood_of(observed=HOLES, gaps="iterative"),
    "a variance per cell": (uneven_process, (VALUE, VALUE)),
    "a filter": (long_process, (VALUE, VALUE)),
    "low rank": likelihood_of(structure=(2, None)),
    "a mean integrated out": likelihood_of(mean=kx.MarginalMean(kx.LinearMean(0))),
    "counts": likelihood_of(np.round(np.exp(Y)), likelihood=kx.Poisson()),
    "mean": given_data(lambda post: post.mean()),
    "mean on new axes": given_data(lambda post: post.mean(**NEW)),
    "variance": given_data(lambda post: post.variance(), observed=HOLES),
    "variance on new axes": given_data(lambda post: post.variance(**NEW)),
    "draws": given_data(lambda post: post.sample(KEY, sample_shape=2)),
    "leave one out": given_data(lambda post: post.leave_one_out().log_score),
}
SECOND_ORDER = {
    "solve": on_operators(lambda op: kx.solve(op, Y)),
    "logdet": on_operators(kx.logdet),
    "inv_quad": on_operators(lambda op: kx.inv_quad(op, Y)),
    "normal_logpdf": on_operators(lambda op: kx.normal_logpdf(Y, 0.0, op)),
    "solve without noise": of_products(lambda a, b: kx.solve(kx.Kronecker(a, b), Y)),
    "log_prob without noise": of_products(lambda a, b: kx.KroneckerNormal(0.0, (a, b)).log_prob(Y)),
    "whole grids": likelihood_of(),
    "gaps": likelihood_of(observed=HOLES),
    "regular axes": (regular_process, (VALUE, VALUE)),
}
FIRST_EVERY_DAY = [
    "inverse_diagonal",
    "sample_normal",
    "MaskedKroneckerNormal",
    "rewrite",
    "iterations",
    "a filter",
    "a mean integrated out",
    "mean",
]
SECOND_EVERY_DAY = ["solve", "normal_logpdf", "log_prob without noise", "whole grids"]


def check(text):
    assert host_callbacks(text) == []
    assert rounded_products(text) == []
    assert float64_numbers(text) == []


@pytest.mark.parametrize("name", everyday(FIRST_ORDER, FIRST_EVERY_DAY))
def test_values_and_gradients_in_float32(name):
    function, arguments = FIRST_ORDER[name]
    check(for_cuda(jax.value_and_grad(function, tuple(range(len(arguments)))), *arguments))


@pytest.mark.parametrize("name", everyday(SECOND_ORDER, SECOND_EVERY_DAY))
def test_values_gradients_and_hessians_in_float32(name):
    function, arguments = SECOND_ORDER[name]

    def all_orders(*args):
        return jax.value_and_grad(function)(*args), jax.hessian(function, len(args) - 1)(*args)

    check(for_cuda(all_orders, *arguments))


@pytest.mark.parametrize(
    "name", everyday(["normal_logpdf", "gaps", "iterations", "counts"], ["normal_logpdf"])
)
def test_the_same_where_nothing_is_float64(name):
    function, arguments = {**FIRST_ORDER, **SECOND_ORDER}[name]
    with jax.enable_x64(False):
        check(for_cuda(jax.value_and_grad(function), *arguments))


def test_scattered_points_in_float32():
    points = np.full((2, 2), VALUE)
    function, arguments = given_data(lambda post: post.variance(points=points))
    check(for_cuda(function, *arguments))


class Seen(Exception):
    """In place of a fit."""


@pytest.mark.parametrize(
    "name", everyday(["whole grids", "gaps", "counts"], ["whole grids", "counts"])
)
def test_the_steps_of_a_fit_are_one_program_without_calls_to_the_host(name, monkeypatch):
    begun = []

    def drive(fixed, states, **_):
        begun.append((fixed, states))
        raise Seen

    monkeypatch.setattr(sys.modules["kronax.fitting.fit"], "drive", drive)
    options, y = {
        "whole grids": ({}, Y),
        "gaps": ({}, np.where(HOLES, Y, np.nan).astype(np.float32)),
        "counts": ({"likelihood": kx.Poisson()}, np.round(np.exp(Y))),
    }[name]
    with jax.enable_x64(False):
        with pytest.raises(Seen):
            kx.fit(process(VALUE, VALUE, **options), y)
        arrays, rest = eqx.partition(begun[0], eqx.is_array)

        def steps(arrays, until):
            fixed, states = eqx.combine(arrays, rest)
            return eqx.filter(advance.__wrapped__(fixed, states, until), eqx.is_array)

        check(for_cuda(steps, arrays, np.int32(9)))
