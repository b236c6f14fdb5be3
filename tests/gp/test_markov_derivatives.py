"""Derivatives along a Markov axis: at new coordinates, and at little noise in sixty digits."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.gp.model import solver_choice
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.markov import kalman
from kronax.linalg.markov.at_observed import KalmanPlaces
from kronax.linalg.markov.lanes import KalmanLanes
from tests.everyday import full
from tests.gp.dense import matern12, matern32

RNG = np.random.default_rng(0)
TIMES = RNG.permutation(np.cumsum(RNG.exponential(size=10)))
PLACES = np.array([0.0, 0.3, 1.0])
SHAPE = 10, 3
# Before, between, after; two that are the same old one, and the last.
NEW = np.array([TIMES.min() - 0.7, 1.9, TIMES[4], TIMES.max() + 0.5, TIMES[4], TIMES.max()])
START = np.array([1.3, 0.6, 1.7, 0.2])  # lengthscales, variance, noise
Y, WEIGHTS = RNG.normal(size=SHAPE), RNG.normal(size=(3, len(NEW), 3))
SEEN = RNG.random(SHAPE) > 0.25
CELLS = RNG.uniform(0.5, 2, SHAPE)


def slopes(function, at, step=1e-5):
    """By central differences."""
    moves = step * np.eye(len(at))
    return np.array([function(at + m) - function(at - m) for m in moves]) / (2 * step)


@pytest.mark.parametrize(
    ("gaps", "with_product"),
    [
        pytest.param(False, False, id="complete"),
        full(False, True, id="complete, covariances as well"),
        full(True, True, id="gaps"),
    ],
)
def test_predictions_have_derivatives_in_everything(gaps, with_product, monkeypatch):
    """In parameters, noise and new coordinates, also where these are old ones; in no matrix."""
    monkeypatch.setattr(KalmanLanes, "_dense", None)
    monkeypatch.setattr(solver_choice, "dense_cost", lambda count: (1e12, 1e6))
    seen, cells = (SEEN, CELLS) if gaps else (np.ones(SHAPE, bool), np.ones(SHAPE))
    y, flat = np.where(seen, Y, np.nan), seen.ravel()

    def by_numpy(z):
        (along, across, variance, noise), new = z[:4], z[4:]
        places = matern12(PLACES, PLACES, across)

        def signal(a, b):
            return variance * np.kron(matern32(a, b, along), places)

        data = signal(TIMES, TIMES) + noise * np.diag(cells.ravel())
        rows = signal(new, TIMES)[:, flat]
        gain = np.linalg.solve(data[np.ix_(flat, flat)], rows.T).T
        covariance = signal(new, new) - gain @ rows.T
        mean, variances = gain @ Y[seen], np.diag(covariance)
        on_mean, on_variance, on_product = WEIGHTS.reshape(3, -1)
        product = with_product * covariance @ np.linspace(-1, 1, len(variances))
        return on_mean @ mean + on_variance @ variances + on_product @ product

    def ours(z):
        kernels = z[2] * kx.Matern32(z[0]), kx.Matern12(z[1])
        noise = z[3] * jnp.asarray(cells) if gaps else z[3]
        options = {"observed": seen} if gaps else {}
        gp = kx.GridGP(kernels, (TIMES, PLACES), noise, structure=("markov", None), **options)
        post, at = gp.condition(y), (z[4:], None)
        assert isinstance(decomposition_of(post.operator), KalmanPlaces if gaps else KalmanLanes)
        found = [post.mean(at), post.variance(at)]
        if with_product:
            product = post.covariance(at).mv(jnp.linspace(-1, 1, len(NEW) * 3))
            found.append(product.reshape(len(NEW), 3))
        return sum(jnp.sum(w * x) for w, x in zip(WEIGHTS, found, strict=False))

    at = np.concatenate([START, NEW])
    value, found = jax.jit(jax.value_and_grad(ours))(jnp.asarray(at))
    np.testing.assert_allclose(value, by_numpy(at), rtol=1e-10)
    np.testing.assert_allclose(found, slopes(by_numpy, at), rtol=1e-6, atol=1e-7)


def test_few_new_places_of_other_axes_take_no_matrix_of_the_long_one(monkeypatch):
    monkeypatch.setattr(KalmanLanes, "_dense", None)
    monkeypatch.setattr(kalman, "SOLVES", 1.0)
    new = NEW[:3], np.array([0.5, 2.0])
    weights = WEIGHTS[0, :3, :2]

    def by_numpy(z):
        along, across, variance, noise = z
        rows = np.kron(matern32(new[0], TIMES, along), matern12(new[1], PLACES, across))
        data = np.kron(matern32(TIMES, TIMES, along), matern12(PLACES, PLACES, across))
        inverse = np.linalg.inv(variance * data + noise * np.eye(30))
        known = variance * np.einsum("ij,jk,ik->i", rows, inverse, rows)
        return weights.ravel() @ (variance * (1 - known))

    def ours(z):
        kernels = z[2] * kx.Matern32(z[0]), kx.Matern12(z[1])
        gp = kx.GridGP(kernels, (TIMES, PLACES), z[3], structure=("markov", None))
        return jnp.sum(weights * gp.condition(Y).variance(new))

    value, found = jax.jit(jax.value_and_grad(ours))(jnp.asarray(START))
    np.testing.assert_allclose(value, by_numpy(START), rtol=1e-10)
    np.testing.assert_allclose(found, slopes(by_numpy, START), rtol=1e-6)


SMALL = np.sort(np.random.default_rng(3).uniform(size=8))
TWICE = np.repeat(SMALL[::2], 2)


def decimals(x):
    return np.array([Decimal(float(v)) for v in np.ravel(x)], object).reshape(np.shape(x))


def cholesky(matrix):
    root = matrix.copy()
    for k in range(len(root)):
        root[k, k] = root[k, k].sqrt()
        root[k + 1 :, k] /= root[k, k]
        for j in range(k + 1, len(root)):
            root[j:, j] -= root[j:, k] * root[j, k]
    return np.tril(root)


def covariance(times, given):
    """In decimal numbers: Matérn-3/2 along times and places, their variance, and the noise."""
    along, across, variance, noise = given

    def factor(x, scale):
        s = Decimal(3).sqrt() * np.abs(x[:, None] - x) / scale
        return (1 + s) * np.exp(-s)

    signal = variance * np.kron(factor(decimals(times), along), factor(decimals(PLACES), across))
    return signal + noise * decimals(np.eye(len(signal)))


def truth(times, given, y, cells):
    """Log density but for the constant, gradient and Hessian in logarithms, in sixty digits."""

    def at(*moves):
        moved = [g * sum(m[k] for m in moves).exp() for k, g in enumerate(given)]
        root = cholesky(covariance(times, moved)[np.ix_(cells, cells)])
        white = y[cells].copy()
        for k in range(len(white)):
            white[k] /= root[k, k]
            white[k + 1 :] -= root[k + 1 :, k] * white[k]
        return -(white @ white) / 2 - sum(x.ln() for x in np.diagonal(root))

    step = Decimal(10) ** -13
    moves = step * decimals(np.eye(4))
    gradient = [(at(m) - at(-m)) / (2 * step) for m in moves]
    hessian = [
        [(at(a, b) - at(a, -b) - at(-a, b) + at(-a, -b)) / (4 * step**2) for b in moves[: i + 1]]
        for i, a in enumerate(moves)
    ]
    return np.array(gradient), hessian


CASES = [
    full(1e-10, False, 1),
    (1e-10, True, 1),
    full(1e-6, False, 2),
    full(1e-10, False, 2),
    full(1e-10, True, 2),
]


@pytest.mark.parametrize(("noise", "gaps", "order"), CASES)
def test_derivatives_at_little_noise_in_sixty_digits(noise, gaps, order, monkeypatch):
    """Times that are measured twice leave nothing of a difference at a noise of 1e-10."""
    monkeypatch.setattr(solver_choice, "dense_cost", lambda count: (1e12, 1e6))
    times = TWICE if noise < 1e-6 else SMALL
    given = [0.7, 2.0, 1.5, noise]
    seen = SEEN[:8] if gaps else np.ones((8, 3), bool)
    with localcontext(prec=60):
        exact = [Decimal(v) for v in given]
        white = decimals(np.random.default_rng(5).standard_normal(24))
        y = (cholesky(covariance(times, exact)) @ white).astype(float)
        gradient, hessian = truth(times, exact, decimals(y), np.flatnonzero(seen))

    def density(logarithms):
        along, across, variance, noise = jnp.asarray(given) * jnp.exp(logarithms)
        options = {"observed": seen} if gaps else {}
        kernels = variance * kx.Matern32(along), kx.Matern32(across)
        gp = kx.GridGP(kernels, (times, PLACES), noise, structure=("markov", None), **options)
        return gp.log_marginal_likelihood(y.reshape(8, 3))

    found = jax.jit(jax.grad(density))(jnp.zeros(4))
    error = decimals(found) - gradient
    assert np.abs(error).max() < Decimal("1e-10") * np.abs(gradient).max()
    if order == 2:
        error = decimals(jax.jit(jax.hessian(density))(jnp.zeros(4)))
        largest = max(abs(x) for row in hessian for x in row)
        for i, row in enumerate(hessian):
            assert max(abs(error[i, j] - x) for j, x in enumerate(row)) < Decimal("1e-8") * largest
