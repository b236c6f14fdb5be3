"""PyMC's `KroneckerNormal` and PyTensor's dense solve, compiled in PyTensor's default mode."""

from collections.abc import Callable

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from benchmarks.peers import pymc_laplace
from benchmarks.peers.pymc_nuts import nuts

KERNELS = {"RBF": pm.gp.cov.ExpQuad, "Matérn-3/2": pm.gp.cov.Matern32}


def likelihood(
    kernel: str, axes: list[np.ndarray], parameters: np.ndarray, y: np.ndarray
) -> Callable:
    """Value and gradient of the log density in `(log ℓ_1, …, log σ²)`."""
    t = pt.vector("t", shape=parameters.shape)
    covariances = [KERNELS[kernel](1, ls=pt.exp(t[i]))(x[:, None]) for i, x in enumerate(axes)]
    normal = pm.KroneckerNormal.dist(
        mu=np.zeros(y.size), covs=covariances, sigma=pt.exp(t[len(axes)] / 2)
    )
    value = pm.logp(normal, y.ravel()).sum()
    function = pytensor.function([t], [value, pt.grad(value, t)])
    return lambda: tuple(function(parameters))


def solve(kind: str, a: np.ndarray, b: np.ndarray, y: np.ndarray) -> Callable:
    """`solve(kron(A, B), y)` as written; PyTensor may rewrite it."""
    assume = {"general": "gen", "positive definite": "pos", "triangular": "lower triangular"}
    left, right, flat = pt.matrix("a"), pt.matrix("b"), pt.vector("y")
    solution = pt.linalg.solve(pt.linalg.kron(left, right), flat, assume_a=assume[kind])
    function = pytensor.function([left, right, flat], solution)
    return lambda: function(a, b, y.ravel()).reshape(y.shape)


TASKS = {"likelihood": likelihood, "solve": solve, "nuts": nuts, **pymc_laplace.TASKS}
