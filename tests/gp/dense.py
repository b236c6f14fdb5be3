"""Small grid GPs beside their dense covariances, by NumPy from the definitions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

import kronax as kx


def squared_distance(x, z, lengthscale):
    """Between all pairs of places, in lengthscales."""
    x, z = (np.reshape(v, (len(v), -1)) for v in (x, z))
    return np.sum(np.square((x[:, None] - z[None]) / lengthscale), axis=-1)


def squared_exponential(x, z, lengthscale):
    return np.exp(-squared_distance(x, z, lengthscale) / 2)


def matern12(x, z, lengthscale):
    return np.exp(-np.sqrt(squared_distance(x, z, lengthscale)))


def matern32(x, z, lengthscale):
    r = np.sqrt(3 * squared_distance(x, z, lengthscale))
    return (1 + r) * np.exp(-r)


def matern52(x, z, lengthscale):
    square = squared_distance(x, z, lengthscale)
    r = np.sqrt(5 * square)
    return (1 + r + 5 * square / 3) * np.exp(-r)


def rational_quadratic(x, z, lengthscale, alpha):
    return (1 + squared_distance(x, z, lengthscale) / (2 * alpha)) ** -alpha


def periodic(x, z, period, lengthscale):
    return np.exp(-2 * np.sin(np.pi * np.abs(x[:, None] - z[None]) / period) ** 2 / lengthscale**2)


def constant(x, z, variance):
    return np.full((len(x), len(z)), variance)


def cosine(x, z, period):
    return np.cos(2 * np.pi * (x[:, None] - z[None]) / period)


def spectral_mixture(x, z, weights, means, scales):
    """Of coordinates `(n, p)`, with means and scales `(q, p)`."""
    lag = x[:, None] - z
    return sum(
        w * np.prod(np.exp(-2 * (np.pi * lag * s) ** 2) * np.cos(2 * np.pi * lag * m), axis=-1)
        for w, m, s in zip(weights, means, scales, strict=True)
    )


def white(x, z, variance):
    return variance * (x[:, None] == z)


def linear(x, z, centre):
    return (x[:, None] - centre) * (z - centre)


@dataclass(frozen=True, eq=False)
class DenseGP:
    """A grid GP, and what it is made of."""

    gp: kx.GridGP
    kernels: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...]
    axes: tuple[np.ndarray, ...]
    noise: Any = 0.1
    variance: float = 1.0
    mean: Callable[..., Any] = lambda *axes: 0.0

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(len(x) for x in self.axes)

    @property
    def y(self) -> np.ndarray:
        return np.random.default_rng(5).normal(size=self.grid) + 0.5

    def signal(self, rows=None, columns=None) -> np.ndarray:
        """The covariance of the function between two grids."""
        rows, columns = rows or self.axes, columns or self.axes
        factors = [k(x, z) for k, x, z in zip(self.kernels, rows, columns, strict=True)]
        return self.variance * reduce(np.kron, factors)

    def covariance(self) -> np.ndarray:
        noise = self.noise
        return self.signal() + (
            noise * np.eye(np.prod(self.grid)) if np.ndim(noise) == 0 else noise
        )

    def mean_on(self, axes=None) -> np.ndarray:
        axes = axes or self.axes
        return np.broadcast_to(self.mean(*axes), tuple(len(x) for x in axes))

    def posterior(self, new=None, y=None) -> tuple[np.ndarray, np.ndarray]:
        """The mean, grid-shaped, and the covariance of the function on a grid."""
        new = new or self.axes
        y = self.y if y is None else y
        cross = self.signal(new, self.axes)
        weights = np.linalg.solve(self.covariance(), (y - self.mean_on()).ravel())
        mean = self.mean_on(new) + (cross @ weights).reshape([len(x) for x in new])
        reduction = cross @ np.linalg.solve(self.covariance(), cross.T)
        return mean, self.signal(new, new) - reduction

    def left_out(self, y=None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every observation given the others."""
        return left_out(self.covariance(), self.mean_on(), self.y if y is None else y)


def left_out(covariance, mean, y):
    """Mean and variance of every entry of `y` given the others, one dense solve each."""
    residual = (y - mean).ravel()
    means, variances = np.empty(residual.size), np.empty(residual.size)
    for c in range(residual.size):
        kept = np.arange(residual.size) != c
        row = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[kept, c])
        means[c] = row @ residual[kept]
        variances[c] = covariance[c, c] - row @ covariance[kept, c]
    return mean + means.reshape(y.shape), variances.reshape(y.shape)


TIME = np.array([0.0, 0.3, 0.45, 0.9, 1.4])
SPACE = np.array([-1.0, -0.2, 0.1, 0.8])
HOURS = np.array([0.0, 0.5, 1.2])
PLACES = np.array([[0.0, 0.1], [0.4, 0.9], [1.0, 0.3], [0.2, 0.2], [0.7, 0.7], [0.9, 0.1]])


def one_axis() -> DenseGP:
    return DenseGP(
        kx.GridGP((kx.Matern32(0.6),), (TIME,), noise=0.2),
        kernels=(lambda x, z: matern32(x, z, 0.6),),
        axes=(TIME,),
        noise=0.2,
    )


def two_axes() -> DenseGP:
    """Other kernels and sizes on the two axes: a wrong order of indices shows."""
    return DenseGP(
        kx.GridGP((kx.Matern52(0.6), 2.5 * kx.RBF(0.4)), (TIME, SPACE), noise=0.1, mean=0.3),
        kernels=(
            lambda x, z: matern52(x, z, 0.6),
            lambda x, z: squared_exponential(x, z, 0.4),
        ),
        axes=(TIME, SPACE),
        variance=2.5,
        mean=lambda t, s: 0.3,
    )


def by_time_and_hour(t, p, h):
    """One function, so that equal models share their programs."""
    return t[:, None, None] + h[None, None]


def named() -> DenseGP:
    """Three named axes, one of them of places, a callable mean."""
    kernels = {
        "time": kx.Periodic(period=1.1, lengthscale=0.8) + 0.5 * kx.Constant(1.4),
        "place": 0.5 * kx.Matern12(np.array([0.4, 0.9])),
        "hour": kx.RationalQuadratic(0.7, 1.3) * 3.0,
    }
    axes = {"time": TIME, "place": PLACES, "hour": HOURS}
    return DenseGP(
        kx.GridGP(kernels, axes, noise=0.3, mean=by_time_and_hour),
        kernels=(
            lambda x, z: periodic(x, z, 1.1, 0.8) + 0.7,
            lambda x, z: matern12(x, z, np.array([0.4, 0.9])),
            lambda x, z: rational_quadratic(x, z, 0.7, 1.3),
        ),
        axes=tuple(axes.values()),
        noise=0.3,
        variance=1.5,
        mean=by_time_and_hour,
    )


def task_noise() -> DenseGP:
    """Noise that varies along one axis."""
    variances = np.array([0.1, 0.4, 0.2, 0.9])
    gp = kx.GridGP(
        kernels={"time": kx.Matern52(0.6), "task": kx.RBF(0.4)},
        axes={"time": TIME, "task": SPACE},
        noise={"task": variances},
    )
    return DenseGP(
        gp,
        kernels=two_axes().kernels,
        axes=(TIME, SPACE),
        noise=np.kron(np.eye(5), np.diag(variances)),
    )


def full_noise() -> DenseGP:
    """Noise that is correlated along both axes."""
    across, along = matern12(TIME, TIME, 0.3), 0.3 * squared_exponential(SPACE, SPACE, 0.5)
    along = along + 0.1 * np.eye(4)
    gp = kx.GridGP(
        (kx.Matern52(0.6), kx.RBF(0.4)), (TIME, SPACE), noise=kx.Kronecker(across, along)
    )
    return DenseGP(gp, kernels=two_axes().kernels, axes=(TIME, SPACE), noise=np.kron(across, along))


GPS = {
    "one axis": one_axis(),
    "two axes": two_axes(),
    "three named axes": named(),
    "noise by axis": task_noise(),
    "full noise": full_noise(),
}
