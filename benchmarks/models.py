"""One Gaussian-process likelihood on a grid, computed in several ways.

The parameters are `(t_1, …, t_d, log σ²)` as in `benchmarks.reference`. The covariance factors come
from the same code in every method; only the algebra on them differs.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from math import log, pi

import jax
import jax.numpy as jnp
from jax import Array

import kronax as kx

KERNELS: dict[str, Callable[[Array, Array], Array]] = {
    "RBF": lambda x, t: kx.RBF(jnp.exp(t))(x, x),
    "Matérn-3/2": lambda x, t: kx.Matern32(jnp.exp(t))(x, x),
    "exchangeable": lambda x, t: (1 - t) * jnp.eye(x.size, dtype=x.dtype) + t,
}


def kronax(y: Array, factors: Sequence[Array], noise: Array) -> Array:
    """The library under test, with dense factors."""
    return kx.normal_logpdf(y, 0.0, kx.Kronecker(*(kx.Dense(k) for k in factors)) + noise)


def naive(y: Array, factors: Sequence[Array], noise: Array) -> Array:
    """The textbook formula through `eigh`, left to automatic differentiation."""
    values, rotated = jnp.ones((), y.dtype), y
    for axis, k in enumerate(factors):
        eigenvalues, vectors = jnp.linalg.eigh(k)
        values = jnp.multiply.outer(values, eigenvalues)
        rotated = jnp.moveaxis(jnp.tensordot(vectors, rotated, axes=(0, axis)), 0, axis)
    d = values + noise
    return -0.5 * (jnp.sum(rotated**2 / d) + jnp.sum(jnp.log(d)) + y.size * log(2 * pi))


def dense(y: Array, factors: Sequence[Array], noise: Array) -> Array:
    """The whole `(N, N)` matrix and its Cholesky factor."""
    covariance = reduce(jnp.kron, factors) + noise * jnp.eye(y.size, dtype=y.dtype)
    root = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(root, y.ravel(), lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    return -0.5 * (jnp.sum(white**2) + log_det + y.size * log(2 * pi))


STATIONARY = {"RBF": kx.RBF, "Matérn-3/2": kx.Matern32}


def structured(kernel: str, axes: Sequence[Array]) -> Callable:
    """The library under test as `kx.GridGP`, which sees that the axes are regular."""

    def value(parameters: Array, y: Array) -> Array:
        kernels = tuple(STATIONARY[kernel](jnp.exp(t)) for t in parameters[:-1])
        gp = kx.GridGP(kernels, tuple(axes), noise=jnp.exp(parameters[-1]))
        return gp.log_marginal_likelihood(y)

    return value


def low_rank(kernel: str, axes: Sequence[Array], rank: int = 48) -> Callable:
    """The library under test with factors of low rank, which a smooth kernel has."""

    def value(parameters: Array, y: Array) -> Array:
        factors = (
            kx.LowRank.from_kernel(STATIONARY[kernel](jnp.exp(t)), x, rank=rank, tolerance=1e-10)
            for t, x in zip(parameters, axes, strict=False)
        )
        return kx.normal_logpdf(y, 0.0, kx.Kronecker(*factors) + jnp.exp(parameters[-1]))

    return value


def likelihood(method: Callable, kernel: str, axes: Sequence[Array]) -> Callable:
    """`(parameters, y) -> log density` by one of the methods above."""

    def value(parameters: Array, y: Array) -> Array:
        factors = [KERNELS[kernel](x, parameters[i]) for i, x in enumerate(axes)]
        return method(y, factors, jnp.exp(parameters[-1]))

    return value
