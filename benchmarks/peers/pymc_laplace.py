"""PyMC's Laplace approximation, by pymc-extras: of parameters and whitened field together.

Its default is BFGS, whose approximation of the inverse Hessian is the covariance. Newton-CG, which
has the exact one, takes several times as long and is no better: the joint mode is far off.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pymc as pm
import pymc_extras
import pytensor.tensor as pt

NUM_DRAWS = 500
# Of the covariances of the axes, without which the gradient of a Cholesky factor may be NaN.
JITTER = 1e-6


def classify(rows: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable:
    """Yes or no by the logit link, about zero, from log lengthscales and variance; NaN gaps."""
    return _laplace(rows, y, start, is_binary=True)


def count(rows: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable:
    """Counts with a constant mean of their log rate."""
    return _laplace(rows, y, start, is_binary=False)


def _laplace(rows: np.ndarray, y: np.ndarray, start: np.ndarray, is_binary: bool) -> Callable:
    """A call that builds the model, finds its mode and draws; with the priors of NUTS."""
    axes = [np.unique(column) for column in rows.T]
    shape = tuple(map(len, axes))
    seen = np.isfinite(y)
    *scales, variance = np.exp(start)
    initial = {"variance": variance, "lengthscale_0": scales[0], "lengthscale_1": scales[1]}

    def call() -> dict[str, Any]:
        with pm.Model():
            amplitude = pt.sqrt(pm.LogNormal("variance", 0.0, 1.0))
            first, second = (
                _root(x, pm.LogNormal(f"lengthscale_{i}", 1.0, 1.0)) for i, x in enumerate(axes)
            )
            mean = 0.0 if is_binary else pm.Normal("mean", 0.0, 1.0)
            white = pm.Normal("white", shape=shape)
            field = pm.Deterministic("field", mean + amplitude * first @ white @ second.T)
            observed = {"observed": y[seen]}
            if is_binary:
                pm.Bernoulli("y", logit_p=field.ravel()[seen], **observed)
            else:
                pm.Poisson("y", pt.exp(field.ravel()[seen]), **observed)
            found = pymc_extras.fit_laplace(
                initvals=initial, draws=NUM_DRAWS, random_seed=0, progressbar=False
            )
        draws = found.posterior["field"].to_numpy().reshape(-1, y.size)
        return {
            "mean": draws.mean(axis=0),
            "variance": draws.var(axis=0),
            "link": "logit" if is_binary else "log",
            "num_steps": NUM_DRAWS,
        }

    return call


def _root(x: np.ndarray, lengthscale: Any) -> Any:
    """The Cholesky factor of a Matérn-5/2 covariance."""
    s = np.sqrt(5) * np.abs(x[:, None] - x) / lengthscale
    return pt.linalg.cholesky((1 + s + s**2 / 3) * pt.exp(-s) + JITTER * np.eye(len(x)))


TASKS = {"classify": classify, "count": count}
