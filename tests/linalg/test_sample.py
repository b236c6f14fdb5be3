"""Draws: their covariance, their derivative, their shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.factors.square_roots import symmetric_root
from tests import oracle
from tests.cases import CASES, circulant, covariance, exchangeable
from tests.everyday import everyday, full
from tests.linalg.contracted import QUICK
from tests.tolerances import assert_close

NUM_DRAWS = 20_000
KEY = jax.random.key(3)
SAMPLED = [name for name, case in CASES.items() if case.covariance and np.prod(case.grid) < 100]


@partial(jax.jit, compiler_options=QUICK)
def draws_of(op):
    return kx.sample_normal(KEY, op, (NUM_DRAWS,))


# A draw needs roots of the factors, of two terms, or of a sum; structure keeps its own.
DRAWN = [
    "one factor of each structure",
    "Markov, full noise beside it",
    "Kronecker sum, noise-free",
    "batched user-defined factor",
]


@pytest.mark.parametrize("name", everyday(SAMPLED, DRAWN))
def test_the_covariance_is_that_of_the_operator(name):
    case = CASES[name]
    op, dense = case.operator, case.dense[0].value
    draws = draws_of(op)
    assert draws.shape == (NUM_DRAWS, *op.batch_shape, *op.grid_shape)
    flat = np.asarray(draws).reshape(NUM_DRAWS, *op.batch_shape, -1)
    empirical = np.einsum("s...i,s...j->...ij", flat, flat) / NUM_DRAWS
    variances = np.diagonal(dense, axis1=-2, axis2=-1)
    products = variances[..., :, None] * variances[..., None, :]
    error = np.sqrt((products + dense**2) / NUM_DRAWS)
    # Five standard errors: the key is fixed, so this does not come and go.
    assert np.all(np.abs(empirical - dense) < 5 * error + 1e-12)
    assert np.all(np.abs(flat.mean(0)) < 5 * np.sqrt(variances / NUM_DRAWS) + 1e-12)


@pytest.mark.parametrize("name", [full("two axes"), "full Kronecker noise", full("noise-free")])
def test_keys_and_shapes(name):
    op = CASES[name].operator
    draw = kx.sample_normal(KEY, op)
    assert draw.shape == op.grid_shape
    assert kx.sample_normal(KEY, op, (2, 3)).shape == (2, 3, *op.grid_shape)
    np.testing.assert_array_equal(draw, kx.sample_normal(KEY, op))
    assert not np.allclose(draw, kx.sample_normal(jax.random.key(4), op))


SPECTRA = {
    "identity": np.eye(4),
    "exchangeable": exchangeable(4, 0.3),
    "circulant": circulant(4),
    "general": covariance(4),
}


@pytest.mark.parametrize("spectrum", everyday(SPECTRA, ["exchangeable"]))
def test_draws_follow_the_symmetric_root(spectrum):
    """A draw is `R z`, so its derivative is `dR R⁻¹` times the draw."""
    matrix = SPECTRA[spectrum]
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(4, 4))
    direction = direction + direction.T

    def draw(t):
        return kx.sample_normal(KEY, kx.Kronecker(matrix + t * direction))

    (value, slope), reverse = jax.jit(lambda t: (jax.jvp(draw, (t,), (1.0,)), jax.jacrev(draw)(t)))(
        0.0
    )
    step = 1e-5
    root_slope = (
        oracle.symmetric_root(matrix + step * direction)
        - oracle.symmetric_root(matrix - step * direction)
    ) / (2 * step)
    white = np.linalg.solve(oracle.symmetric_root(matrix), value)
    np.testing.assert_allclose(slope, root_slope @ white, rtol=1e-7, atol=1e-8)
    assert_close(reverse, np.asarray(slope), 1)


@jax.jit
def root_and_slope(matrix, weights):
    """And the gradient of its weighted sum."""
    root, pull = jax.vjp(symmetric_root, matrix)
    return root, pull(weights)[0]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_symmetric_root_and_its_gradient(spectrum):
    matrix = SPECTRA[spectrum]
    weights = np.random.default_rng(1).normal(size=(4, 4))
    root, gradient = root_and_slope(matrix, weights)
    assert_close(root, oracle.symmetric_root(matrix))
    gradient = np.asarray(gradient)
    step = 1e-5
    for i, j in ((0, 0), (0, 1), (2, 3)):
        direction = np.zeros((4, 4))
        direction[i, j] += 0.5
        direction[j, i] += 0.5
        up, down = (oracle.symmetric_root(matrix + s * direction) for s in (step, -step))
        slope = np.sum(weights * (up - down)) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7, atol=1e-8)


def of_rank_one(dtype):
    """`v vᵀ + δ I`, changes of it and of its root, `None` where rounding hides it, and `δ`."""
    v, u = np.array([1.0, -2.0, 0.5]), np.array([0.3, 1.0, 2.0])
    one, eye, length = np.outer(v, v), np.eye(3), np.linalg.norm(v)
    turned = np.outer(v, u) + np.outer(u, v)
    # The root of `v vᵀ` is `v vᵀ / |v|`.
    moved = turned / length - one * (v @ u) / length**3
    cases = [(0, one, one / length / 2), (0, turned, moved), (0, eye, None), (0, one + eye, None)]
    for delta in np.finfo(dtype).eps * np.array([0.1, 1e3, 1e5]):
        inner, outer = np.sqrt(delta), np.sqrt(length**2 + delta)
        raised = (eye - one / length**2) / inner / 2 + one / length**2 / outer / 2
        cases.append((delta, eye, None if delta < np.finfo(dtype).eps else raised))
    cases = [(one + delta * eye, *rest, delta) for delta, *rest in cases]
    zero = np.zeros((3, 3))
    return [*cases, (zero, zero, zero, 0), (zero, one, None, 0)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_modes_where_a_matrix_is_singular(dtype):
    matrices, tangents, truth, deltas = zip(*of_rank_one(dtype), strict=True)
    matrices, tangents = (jnp.asarray(np.array(x), dtype) for x in (matrices, tangents))

    @jax.jit
    def both(matrices, tangents):
        _, forward = jax.jvp(symmetric_root, (matrices,), (tangents,))
        # Every entry of the root by reverse mode, along the same changes.
        rows = jax.vmap(jax.jacrev(symmetric_root))(matrices)
        return forward, jnp.einsum("kabij,kij->kab", rows, tangents)

    forward, reverse = both(matrices, tangents)
    assert np.isfinite(reverse).all()
    eps = np.finfo(dtype).eps
    for exact, pushed, pulled, delta in zip(truth, forward, reverse, deltas, strict=True):
        if exact is None:
            assert np.isnan(pushed).all()
            continue
        # A null eigenvalue is known to `4 n ε λmax`, and roots of two of them divide.
        share = 2 * np.sqrt(4 * 3 * eps) + (30 * eps / delta if delta else 0)
        tolerance = share * np.abs(exact).max()
        np.testing.assert_allclose(pushed, exact, atol=tolerance)
        np.testing.assert_allclose(pulled, exact, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_of_smooth_kernels_have_a_derivative_in_both_modes(dtype):
    """Most eigenvalues are rounding, and so is how they move: that is no rise of the rank."""
    places = np.linspace(0, 1, 30)
    squares = np.square(places[:, None] - places)

    def draw(lengthscale):
        matrix = jnp.exp(-jnp.asarray(squares, dtype) / (2 * lengthscale**2))
        return kx.sample_normal(KEY, kx.Kronecker(matrix))

    scales = jnp.asarray([0.05, 0.3, 3.0], dtype)
    forward, reverse = jax.jit(lambda s: [jax.vmap(d(draw))(s) for d in (jax.jacfwd, jax.jacrev)])(
        scales
    )
    known = 1e-3 if dtype == "float32" else 1e-8
    np.testing.assert_allclose(forward, reverse, atol=known * np.abs(reverse).max())


def test_draws_where_a_covariance_gains_rank_from_zero():
    """By every way to say so; reverse mode leaves it out."""
    one, ring = np.ones((2, 2)), np.full(4, 0.25)
    zero = jnp.zeros(())
    cases = {
        "a matrix": lambda t: kx.Kronecker(one + t * np.eye(2)),
        "variances": lambda t: kx.Kronecker(kx.Diagonal(jnp.array([1.0, 0.0]) + t)),
        "a circle": lambda t: kx.Kronecker(kx.Circulant(ring + t * np.eye(4)[0])),
        "noise": lambda t: kx.Kronecker(one) + t,
        "a scale": lambda t: t * kx.Kronecker(one),
    }

    @partial(jax.jit, compiler_options=QUICK)
    def slopes(t):
        found = {}
        for name, case in cases.items():
            draw = lambda t, case=case: jnp.sum(kx.sample_normal(KEY, case(t)))  # noqa: E731
            found[name] = jax.jvp(draw, (t,), (jnp.ones(()),))[1], jax.grad(draw)(t)
        return found

    for name, (forward, reverse) in slopes(zero).items():
        assert np.isnan(forward), name
        assert np.isfinite(reverse), name
    # At other places these have a derivative in both modes, and one of the second order too.
    for name, (forward, reverse) in slopes(zero + 0.3).items():
        np.testing.assert_allclose(forward, reverse, rtol=1e-10, err_msg=name)
    total = lambda t: jnp.sum(kx.sample_normal(KEY, cases["variances"](t)))  # noqa: E731
    orders = jax.jit(lambda t: (total(t), jax.hessian(total)(t)))
    step = 1e-4
    drawn = [orders(0.3 + k * step)[0] for k in (-1, 0, 1)]
    twice = orders(0.3)[1]
    np.testing.assert_allclose(twice, (drawn[0] - 2 * drawn[1] + drawn[2]) / step**2, rtol=1e-5)


def test_gradient_in_the_noise():
    signal = kx.Kronecker(covariance(3), covariance(2))

    def draw(noise):
        return kx.sample_normal(KEY, signal + noise)

    step = 1e-6
    both = jax.jit(lambda noise: (draw(noise), jax.jacfwd(draw)(noise)))
    slope = (both(0.4 + step)[0] - both(0.4 - step)[0]) / (2 * step)
    np.testing.assert_allclose(both(0.4)[1], slope, rtol=1e-7, atol=1e-8)
