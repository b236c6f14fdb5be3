"""Cases that once gave a wrong number: batches of one term only, rounding in small blocks."""

from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import kronax as kx
from tests.cases import covariance
from tests.everyday import everyday


def check_against_dense(op):
    b = np.linspace(-1, 1, op.shape[-1])

    @jax.jit
    def answers(op):
        return op.to_dense(), kx.logdet(op), kx.solve(op, b), kx.inverse_diagonal(op)

    matrix, *found = answers(op)
    solved = np.linalg.solve(matrix, np.broadcast_to(b, matrix.shape[:-1])[..., None])[..., 0]
    diagonal = np.diagonal(np.linalg.inv(matrix), axis1=-2, axis2=-1)
    np.testing.assert_allclose(found[0], np.linalg.slogdet(matrix)[1], rtol=1e-10)
    flat = (*op.batch_shape, op.shape[-1])
    np.testing.assert_allclose(found[1].reshape(flat), solved, atol=1e-10)
    np.testing.assert_allclose(found[2].reshape(flat), diagonal, rtol=1e-9)


BATCHED = ("diagonal noise", "full noise", "signal", "both, broadcasting")
# As many as an axis is long, others, and one.
SIZES = (4, 3, 1)
EVERYDAY = [("diagonal noise", 4), ("both, broadcasting", 4)]


@pytest.mark.parametrize(("which", "batch"), everyday(product(BATCHED, SIZES), EVERYDAY))
def test_batch_of_one_term_only(batch, which):
    k, n = covariance(4), covariance(4, 1)
    other = covariance(2)
    many = covariance(4, 2, (batch,))
    signal, noise = {
        "diagonal noise": (k, kx.Diagonal(np.abs(many[:, 0]) + 0.1)),
        "full noise": (k, many),
        "signal": (many, n),
        "both, broadcasting": (covariance(4, 3, (5, 1)), many),
    }[which]
    check_against_dense(
        kx.KroneckerPlusNoise(kx.Kronecker(signal, other), kx.Kronecker(noise, other + np.eye(2)))
    )


class Weighted(kx.AbstractFactor):
    """Scales differ over the batch, weights do not: only some leaves have the batch axis."""

    scales: jax.Array
    weights: jax.Array
    size: int = eqx.field(static=True)

    def mv(self, x):
        return self.scales[..., None] * self.weights * x

    def to_dense(self):
        diagonal = jnp.diag(self.weights)[(None,) * self.scales.ndim]
        return self.scales[..., None, None] * diagonal


def test_batched_factor_of_a_user_with_a_shared_leaf():
    factor = Weighted(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0, 2.0]), 3)
    check_against_dense(kx.Kronecker(factor, covariance(2)) + 0.1)
    x = np.arange(6.0)
    op = kx.Kronecker(factor, covariance(2))
    product, matrix = jax.jit(lambda op, x: (op.mv(x), op.to_dense()))(op, x)
    np.testing.assert_allclose(product, np.asarray(matrix) @ x, atol=1e-12)


def test_hessian_of_solve_in_raw_entries_is_the_same_in_every_mode():
    matrix = jnp.asarray(covariance(3))
    b, c = jnp.array([0.3, -1.0, 0.5]), jnp.array([1.0, 0.2, -0.4])

    def ours(m):
        return c @ kx.solve(kx.KroneckerPlusNoise(kx.Kronecker(m), 0.3), b)

    # Of a covariance the symmetric part counts, in derivatives too.
    def dense(m):
        return c @ jnp.linalg.solve((m + m.T) / 2 + 0.3 * jnp.eye(3), b)

    pairs = list(product((jax.jacfwd, jax.jacrev), repeat=2))
    truth, *found = jax.jit(
        lambda m: [jax.hessian(dense)(m), *(outer(inner(ours))(m) for outer, inner in pairs)]
    )(matrix)
    for hessian in found:
        np.testing.assert_allclose(hessian, truth, atol=1e-10)


@pytest.mark.parametrize("lengthscale", [0.3, 20.0, 1e3, 1e6])
def test_halves_of_a_smooth_kernel_keep_the_rounding_of_the_whole(lengthscale):
    """The odd half is a difference of large numbers: its eigenvalues carry the axis's rounding."""
    column = np.exp(-0.5 * np.square(np.linspace(0, 1, 50) / lengthscale))
    fast = kx.Kronecker(kx.Toeplitz(column), covariance(3)) + 0.1
    dense = np.kron(scipy.linalg.toeplitz(column), covariance(3)) + 0.1 * np.eye(150)
    np.testing.assert_allclose(kx.logdet(fast), np.linalg.slogdet(dense)[1], rtol=1e-9)
    assert np.isfinite(kx.sample_normal(jax.random.key(0), fast)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("lengthscale", [0.3, 2.0, 20.0, 1e3])
def test_halves_of_two_smooth_terms_keep_the_rounding_of_the_whole(lengthscale, dtype):
    """Whitened by scales of its own, an odd half that is all rounding would be indefinite."""
    lag = np.linspace(0, 1, 50)
    signal = (60 * np.exp(-0.5 * np.square(lag / lengthscale))).astype(dtype)
    noise = (0.002 * np.exp(-lag) + 0.08 * (lag == 0)).astype(dtype)
    places = np.exp(-0.5 * np.square((lag[::5, None] - lag[::5]) / 3)).astype(dtype)
    one = kx.ScaledIdentity(np.ones((), dtype), 10)
    op = kx.Kronecker(kx.Toeplitz(signal), places) + kx.Kronecker(kx.Toeplitz(noise), one)
    terms = (signal, places), (noise, np.eye(10))
    dense = sum(np.kron(scipy.linalg.toeplitz(a.astype(float)), b) for a, b in terms)
    truth = np.linalg.slogdet(dense)[1]
    np.testing.assert_allclose(kx.logdet(op), truth, rtol=1e-9 if dtype == np.float64 else 1e-3)


def test_an_indefinite_half_beside_structured_noise_is_still_refused():
    noise = kx.Kronecker(kx.Toeplitz(np.array([1.0, 0.2])))
    with pytest.raises(np.linalg.LinAlgError, match="smallest eigenvalue is -1"):
        kx.logdet(kx.Kronecker(kx.Toeplitz(np.array([1.0, 2.0]))) + noise)


@pytest.mark.parametrize("lengthscale", [0.5, 1.0, 30.0])
def test_fourier_eigenvalues_of_a_smooth_kernel_may_round_below_zero(lengthscale):
    angle = 2 * np.pi * np.arange(60) / 60
    column = np.exp((np.cos(angle) - 1) / lengthscale**2)
    fast = kx.Kronecker(kx.Circulant(column), covariance(3)) + 0.1
    dense = np.kron(scipy.linalg.circulant(column), covariance(3)) + 0.1 * np.eye(180)
    np.testing.assert_allclose(kx.logdet(fast), np.linalg.slogdet(dense)[1], rtol=1e-9)
    assert np.isfinite(kx.sample_normal(jax.random.key(0), fast)).all()


def test_an_indefinite_half_is_still_refused():
    with pytest.raises(np.linalg.LinAlgError, match="smallest eigenvalue is -1"):
        kx.logdet(kx.Kronecker(kx.Toeplitz(np.array([1.0, 2.0]))) + 0.1)


def test_a_python_number_takes_the_precision_of_the_other_factors():
    single = jnp.ones(2, "float32")
    noise = kx.Kronecker(kx.Diagonal(single), kx.ScaledIdentity(1.0, 2))
    eye = jnp.eye(2, dtype="float32")
    assert kx.logdet(kx.KroneckerPlusNoise(kx.Kronecker(eye, eye), noise)).dtype == jnp.float32


def test_batched_decompositions_wait_for_each_other():
    """Two batched decompositions at once can deadlock a thread pool: the HLO must chain them."""
    factors = [jnp.asarray(covariance(3, k, (2,))) for k in range(2)]

    def value(*matrices):
        return kx.logdet(kx.Kronecker(*matrices) + 0.1).sum()

    jaxpr = str(jax.make_jaxpr(value)(*factors))
    assert "kronax_after[batched=True]" in jaxpr.replace(" ", "")
    jaxpr = str(jax.make_jaxpr(jax.vmap(value))(*factors))
    assert "kronax_after[batched=True]" in jaxpr.replace(" ", "")
    jaxpr = str(jax.make_jaxpr(value)(*(f[0] for f in factors)))
    assert "kronax_after[batched=False]" in jaxpr.replace(" ", "")
