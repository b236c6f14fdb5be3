"""scikit-learn's `GaussianProcessRegressor`: dense, one row per cell."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import scipy.optimize
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Hyperparameter,
    Kernel,
    Matern,
    WhiteKernel,
)

from benchmarks.peers.stages import Stages

BOUNDS = (1e-10, 1e10)


class OnAxis(Kernel):
    """A Matérn kernel of some of the columns."""

    def __init__(self, nu: float, length_scale: float, columns: tuple[int, ...]):
        self.nu, self.length_scale, self.columns = nu, length_scale, columns

    @property
    def hyperparameter_length_scale(self) -> Hyperparameter:
        return Hyperparameter("length_scale", "numeric", BOUNDS)

    def __call__(self, X: np.ndarray, Y: Any = None, eval_gradient: bool = False) -> Any:
        other = None if Y is None else Y[:, self.columns]
        return Matern(self.length_scale, BOUNDS, nu=self.nu)(
            X[:, self.columns], other, eval_gradient
        )

    def diag(self, X: np.ndarray) -> np.ndarray:
        return np.ones(len(X))

    def is_stationary(self) -> bool:
        return True


def fit(
    kernels: tuple[float, ...],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    tolerance: float,
    num_steps: int,
) -> Callable:
    """Maximise the marginal likelihood of a product of Matérn kernels times a variance, plus noise.

    Its own optimiser, SciPy's L-BFGS-B, with the gradient per cell as the only end.
    """
    rows = _rows(places)
    kernel = _kernel(kernels, places, start)

    def call() -> tuple[np.ndarray, ...]:
        trace: list[tuple[float, float]] = []
        steps = []
        began = perf_counter()

        def optimizer(objective: Callable, first: np.ndarray, bounds: Any) -> tuple:
            def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
                value, gradient = objective(x)
                trace.append((perf_counter() - began, value))
                return value / y.size, gradient / y.size

            options = {"gtol": tolerance, "ftol": 0.0, "maxiter": num_steps}
            found = scipy.optimize.minimize(
                value_and_gradient,
                first,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options=options,
            )
            steps.append(found.nit)
            return found.x, found.fun * y.size

        model = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=optimizer)
        model.fit(rows, y.ravel())
        theta = model.kernel_.theta
        times, losses = np.array(trace).T
        # Its order is variance, lengthscales, noise.
        found = np.array([*theta[1:-1], theta[0], theta[-1]])
        return times, losses, found, np.array(steps[0])

    return call


def _rows(places: list[np.ndarray]) -> np.ndarray:
    """One row per cell."""
    index = np.indices([len(x) for x in places]).reshape(len(places), -1)
    return np.hstack([x[i] for x, i in zip(places, index, strict=True)])


def _kernel(kernels: tuple[float, ...], places: list[np.ndarray], start: np.ndarray) -> Kernel:
    *signal, noise = start
    return _product(kernels, places, signal) + WhiteKernel(np.exp(noise), BOUNDS)


def _product(kernels: tuple[float, ...], places: list[np.ndarray], start: Any) -> Kernel:
    *scales, variance = np.exp(start)
    product: Any = ConstantKernel(variance, BOUNDS)
    column = 0
    for nu, scale, x in zip(kernels, scales, places, strict=True):
        product = product * OnAxis(nu, scale, tuple(range(column, column + x.shape[1])))
        column += x.shape[1]
    return product


def start(
    kernels: tuple[float, ...],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    new: list[np.ndarray],
    tolerance: float,
    num_steps: int,
) -> Callable:
    """A likelihood, the fit of `fit`, and predictions of the function, dense throughout."""
    stages = Stages()

    def call() -> dict[str, Any]:
        kernel = _kernel(kernels, places, start)
        first = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None)
        first.fit(_rows(places), y.ravel())
        stages.reached("likelihood")
        found = fit(kernels, places, y, start, tolerance, num_steps)()[2]
        stages.reached("fit")
        fitted = GaussianProcessRegressor(
            _kernel(kernels, places, found), alpha=0.0, optimizer=None
        )
        fitted.fit(_rows(places), y.ravel()).predict(_rows(new), return_std=True)
        stages.reached("prediction")
        return stages.found

    return call


def classify(rows: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable:
    """Fit and predict yes or no by Laplace and the logit link, one row of `rows` per cell.

    From log lengthscales and variance, by its own optimiser; NaN gaps.
    """
    seen = np.isfinite(y)
    kernel = _product((2.5, 2.5), [rows[:, :1], rows[:, 1:]], start)

    def call() -> dict[str, Any]:
        model = GaussianProcessClassifier(kernel).fit(rows[seen], y[seen].astype(int))
        mean, variance = model.latent_mean_and_variance(rows)
        return {
            "mean": mean,
            "variance": variance,
            "link": "logit",
            "log_evidence": float(model.log_marginal_likelihood_value_),
            "parameters": np.exp(model.kernel_.theta).tolist(),
        }

    return call


TASKS = {"fit": fit, "start": start, "classify": classify}
