"""BoTorch's `LatentKroneckerGP`, and GPyTorch as its users meet gaps; as many threads as cores."""

import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from time import perf_counter
from typing import Any

import gpytorch
import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.latent_kronecker_gp import LatentKroneckerGP
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, ProductKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.operators import KroneckerProductLinearOperator

torch.set_num_threads(len(os.sched_getaffinity(0)))

# Its default is 1e-4, which binds on smooth data.
LEAST_NOISE = 1e-6


def latent_kronecker(
    kernels: tuple[float, float],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    num_samples: int,
    limit_s: float,
    clock: str = "perf_counter",
) -> Callable:
    """Fit and predict as its documentation says: in its own context of iterative methods.

    Means are its `posterior.mean`, variances those of pathwise draws. By `process_time` on one
    thread, since threads that wait would count.
    """
    now = getattr(time, clock)
    if clock == "process_time":
        torch.set_num_threads(1)
    first, second = (torch.from_numpy(x) for x in places)
    data = torch.from_numpy(y)

    def call() -> dict[str, Any]:
        torch.manual_seed(0)
        one, two, variance, noise = np.exp(start)
        model = LatentKroneckerGP(
            first,
            second,
            data,
            likelihood=_noise(noise),
            covar_module_X=_matern(kernels[0], one),
            covar_module_T=_scaled(_matern(kernels[1], two), variance),
            outcome_transform=None,
        )
        scales = (model.covar_module_X, model.covar_module_T.base_kernel, model.covar_module_T)
        fitted = _fitted(model, scales, limit_s, model.use_iterative_methods, now)
        began = now()
        # Otherwise it solves for a dense matrix of all cells by all cells.
        mean_alone = gpytorch.settings.skip_posterior_variances()
        with torch.no_grad(), model.use_iterative_methods():
            with mean_alone:
                posterior = model.posterior(first, second)
                mean = posterior.mean.reshape(data.shape)
            draws = posterior.rsample(torch.Size([num_samples]))
        # About the mean, which is known better than that of the draws.
        spread = ((draws - mean) ** 2).mean(dim=0)
        return _answer(fitted, mean, spread, now() - began)

    return call


def observed_cells(
    kernels: tuple[float, ...],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    num_samples: int,
    limit_s: float,
) -> Callable:
    """An exact GP on the observed cells alone, with dense Cholesky factors."""
    index = np.indices(y.shape).reshape(y.ndim, -1)
    rows = torch.from_numpy(np.hstack([x[i] for x, i in zip(places, index, strict=True)]))
    data = torch.from_numpy(y).reshape(-1)
    observed = ~torch.isnan(data)
    ends = np.cumsum([0, *(x.shape[1] for x in places)])

    def call() -> dict[str, Any]:
        *lengthscales, variance, noise = np.exp(start)
        parts = [
            _matern(nu, scale, active_dims=tuple(range(*span)))
            for nu, scale, span in zip(kernels, lengthscales, pairwise(ends), strict=True)
        ]
        kernel = _scaled(ProductKernel(*parts), variance)
        model = _Exact(rows[observed], data[observed], _noise(noise), kernel)
        fitted = _fitted(model, (*parts, kernel), limit_s, _by_cholesky)
        began = perf_counter()
        mean, spread = torch.empty_like(data), torch.empty_like(data)
        with torch.no_grad(), _by_cholesky(), gpytorch.settings.fast_pred_var():
            for piece in torch.arange(len(data)).split(1024):
                found = model(rows[piece])
                mean[piece], spread[piece] = found.mean, found.variance
        return _answer(fitted, mean, spread, perf_counter() - began, y.shape)

    return call


def masked_grid(
    kernels: tuple[float, float],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    num_samples: int,
    limit_s: float,
) -> Callable:
    """A Kronecker kernel on the whole grid under `observation_nan_policy("mask")`."""
    first, second = (torch.from_numpy(x) for x in places)
    data = torch.from_numpy(y)

    def call() -> dict[str, Any]:
        torch.manual_seed(0)
        one, two, variance, noise = np.exp(start)
        other = _scaled(_matern(kernels[1], two), variance)
        kernel = _Separable(_matern(kernels[0], one), other, second)
        model = _Grid(first, data, kernel, noise)
        scales = (kernel.first, other.base_kernel, other)
        fitted = _fitted(model, scales, limit_s, _by_mask)
        began = perf_counter()
        with torch.no_grad(), _by_mask():
            found = model(first)
            mean, spread = found.mean, found.variance
        return _answer(fitted, mean, spread, perf_counter() - began)

    return call


class _Exact(GPyTorchModel, gpytorch.models.ExactGP):
    def __init__(self, x: Any, y: Any, likelihood: Any, kernel: Kernel) -> None:
        super().__init__(x, y, likelihood)
        self.kernel = kernel
        self.mean = gpytorch.means.ZeroMean()

    def forward(self, x: Any) -> MultivariateNormal:
        return MultivariateNormal(self.mean(x), self.kernel(x))


class _Separable(Kernel):
    """A kernel of the first axis times the covariance along the second, as `MultitaskKernel`."""

    def __init__(self, first: Kernel, second: Kernel, places: torch.Tensor) -> None:
        super().__init__()
        self.first, self.second, self.places = first, second, places

    def forward(self, x1: Any, x2: Any, diag: bool = False, **options: Any) -> Any:
        along = self.second(self.places).evaluate_kernel()
        product = KroneckerProductLinearOperator(self.first.forward(x1, x2), along)
        return product.diagonal(dim1=-1, dim2=-2) if diag else product

    def num_outputs_per_input(self, x1: Any, x2: Any) -> int:
        return len(self.places)


class _Grid(GPyTorchModel, gpytorch.models.ExactGP):
    def __init__(self, x: Any, y: Any, kernel: Kernel, noise: float) -> None:
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(
            num_tasks=y.shape[1], has_task_noise=False, noise_constraint=GreaterThan(LEAST_NOISE)
        ).double()
        likelihood.noise = torch.tensor(noise)
        super().__init__(x, y, likelihood)
        self.kernel = kernel

    def forward(self, x: Any) -> MultitaskMultivariateNormal:
        mean = torch.zeros(len(x), len(self.kernel.places), dtype=x.dtype)
        return MultitaskMultivariateNormal(mean, self.kernel(x))


def _matern(nu: float, lengthscale: float, **options: Any) -> MaternKernel:
    kernel = MaternKernel(nu=nu, **options).double()
    kernel.lengthscale = torch.tensor(lengthscale)
    return kernel


def _scaled(kernel: Kernel, variance: float) -> ScaleKernel:
    scaled = ScaleKernel(kernel).double()
    scaled.outputscale = torch.tensor(variance)
    return scaled


def _noise(variance: float) -> GaussianLikelihood:
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(LEAST_NOISE)).double()
    likelihood.noise = torch.tensor(variance)
    return likelihood


def _by_cholesky() -> Any:
    return gpytorch.settings.max_cholesky_size(10**6)


def _by_mask() -> Any:
    return gpytorch.settings.observation_nan_policy("mask")


def _fitted(
    model: Any, scales: tuple, limit_s: float, context: Callable, now: Callable = perf_counter
) -> dict[str, Any]:
    """BoTorch's own fit, L-BFGS-B of SciPy; what it found, and how it ended."""
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    results: list[Any] = []

    def keep(_: Any, result: Any) -> None:
        results.append(result)

    began = now()
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(context())
        options = {"timeout_sec": limit_s, "callback": keep}
        fit_gpytorch_mll(mll, optimizer_kwargs=options)
    taken = now() - began
    *kernels, scaled = scales
    noise = model.likelihood.noise
    found = [*(k.lengthscale for k in kernels), scaled.outputscale, noise]
    model.eval()
    return {
        "fit_seconds": taken,
        "is_stopped": taken > limit_s,
        "steps": len(results),
        "log_parameters": np.log([value.item() for value in found]),
    }


def _answer(
    fitted: dict[str, Any], mean: Any, variance: Any, seconds: float, shape: Any = None
) -> dict[str, Any]:
    noise = np.exp(fitted["log_parameters"][-1])
    arrays = {"mean": mean.numpy(), "variance": variance.numpy() + noise}
    shaped = {name: a.reshape(shape or a.shape) for name, a in arrays.items()}
    return {**fitted, **shaped, "predict_seconds": seconds}


TASKS = {
    "latent Kronecker": latent_kronecker,
    "observed cells": observed_cells,
    "masked grid": masked_grid,
}
