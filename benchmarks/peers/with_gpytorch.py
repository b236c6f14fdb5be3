"""GPyTorch and linear_operator, with their default settings and as many threads as cores."""

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

import gpytorch
import numpy as np
import scipy.optimize
import torch
from linear_operator.operators import (
    KroneckerProductLinearOperator,
    KroneckerProductTriangularLinearOperator,
    TriangularLinearOperator,
)

from benchmarks.peers.gpytorch_variational import classify
from benchmarks.peers.stages import Stages

torch.set_num_threads(len(os.sched_getaffinity(0)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device() -> str:
    """What PyTorch finds."""
    return "cpu" if DEVICE.type == "cpu" else torch.cuda.get_device_name(DEVICE)


def likelihood(
    kernel: str, axes: list[np.ndarray], parameters: np.ndarray, y: np.ndarray
) -> Callable:
    """Value and gradient of the log density in `(log ℓ_1, …, log σ²)`."""
    points = [torch.from_numpy(x).unsqueeze(-1).to(DEVICE) for x in axes]
    data = torch.from_numpy(y).reshape(-1).to(DEVICE)
    kernels = [_kernel(kernel, data.dtype, t).to(DEVICE) for t in parameters[:-1]]
    log_noise = torch.tensor(parameters[-1], dtype=data.dtype, device=DEVICE, requires_grad=True)
    leaves = [k.raw_lengthscale for k in kernels] + [log_noise]

    def call() -> tuple[float, np.ndarray]:
        for leaf in leaves:
            leaf.grad = None
        signal = KroneckerProductLinearOperator(
            *(k(x) for k, x in zip(kernels, points, strict=True))
        )
        covariance = signal.add_diagonal(torch.exp(log_noise))
        normal = gpytorch.distributions.MultivariateNormal(torch.zeros_like(data), covariance)
        value = normal.log_prob(data)
        value.backward()
        return value.item(), np.array([leaf.grad.item() for leaf in leaves])

    return call


def fit(
    optimizer: str,
    kernels: tuple[float, ...],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    tolerance: float,
    num_steps: int,
) -> Callable:
    """Maximise the marginal likelihood of a product of Matérn kernels times a variance, plus noise.

    Parameters are the logarithms of lengthscales, variance and noise; the loss that the optimiser
    sees is per cell, as that of GPyTorch's own exact marginal likelihood is.
    """
    points = [torch.from_numpy(x).to(DEVICE) for x in places]
    data = torch.from_numpy(y).reshape(-1).to(DEVICE)

    def call() -> tuple[np.ndarray, ...]:
        parts = [_matern(nu, t).to(DEVICE) for nu, t in zip(kernels, start, strict=False)]
        scales = [torch.tensor(t, device=DEVICE, requires_grad=True) for t in start[len(parts) :]]
        leaves = [k.raw_lengthscale for k in parts] + scales
        trace: list[tuple[float, float]] = []
        began = perf_counter()

        def loss() -> torch.Tensor:
            for leaf in leaves:
                leaf.grad = None
            value = _loss(parts, scales, points, data)
            value.backward()
            trace.append((perf_counter() - began, value.item()))
            return value

        # Up to 800 cells its default is a dense Cholesky factor, which is far slower.
        with gpytorch.settings.max_cholesky_size(1):
            steps = OPTIMIZERS[optimizer](loss, leaves, tolerance, num_steps)
        found = np.array([leaf.detach().item() for leaf in leaves])
        times, losses = np.array(trace).T
        return times, losses * data.numel(), found, np.array(steps)

    return call


def _loss(parts: list, scales: list, points: list, data: torch.Tensor) -> torch.Tensor:
    """The negative log density per cell, of a variance and a noise in logarithms."""
    factors = [k(x) for k, x in zip(parts, points, strict=True)]
    factors[0] = factors[0] * torch.exp(scales[0])
    covariance = KroneckerProductLinearOperator(*factors).add_diagonal(torch.exp(scales[1]))
    normal = gpytorch.distributions.MultivariateNormal(torch.zeros_like(data), covariance)
    return -normal.log_prob(data) / data.numel()


def start(
    kernels: tuple[float, ...],
    places: list[np.ndarray],
    y: np.ndarray,
    start: np.ndarray,
    new: list[np.ndarray],
    tolerance: float,
    num_steps: int,
) -> Callable:
    """The likelihood and fit of `fit`; predictions by the eigenvectors of every axis."""
    stages = Stages()

    def call() -> dict[str, Any]:
        points, data = [torch.from_numpy(x) for x in places], torch.from_numpy(y)
        parts = [_matern(nu, t) for nu, t in zip(kernels, start, strict=False)]
        scales = [torch.tensor(t) for t in start[len(parts) :]]
        with gpytorch.settings.max_cholesky_size(1):
            _loss(parts, scales, points, data.reshape(-1)).item()
        stages.reached("likelihood")
        found = fit("SciPy", kernels, places, y, start, tolerance, num_steps)()[2]
        stages.reached("fit")
        _predicted(kernels, points, data, [torch.from_numpy(x) for x in new], found)
        stages.reached("prediction")
        return stages.found

    return call


@torch.no_grad()
def _predicted(
    kernels: tuple[float, ...], points: list, data: torch.Tensor, new: list, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and variance; on a grid GPyTorch's own way would form every covariance."""
    variance, noise = np.exp(found[-2:])
    values, weights, rows = torch.full((), variance, dtype=data.dtype), data, []
    for i, (nu, x, z) in enumerate(zip(kernels, points, new, strict=True)):
        kernel = _matern(nu, found[i])
        eigenvalues, vectors = torch.linalg.eigh(kernel(x).to_dense())
        values = values[..., None] * eigenvalues
        weights = _along(vectors.T, weights, i)
        rows.append(kernel(z, x).to_dense() @ vectors)
    weights, left = weights / (values + noise), 1 / (values + noise)
    for i, r in enumerate(rows):
        weights, left = _along(r, weights, i), _along(r**2, left, i)
    return (variance * weights).numpy(), (variance - variance**2 * left).numpy()


def _along(matrix: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """The matrix times every vector along one axis."""
    return torch.movedim(torch.tensordot(matrix, x, dims=([1], [axis])), 0, axis)


def _torch_lbfgs(loss: Callable, leaves: list, tolerance: float, num_steps: int) -> int:
    """`torch.optim.LBFGS` with its strong Wolfe line search, ended by the gradient alone."""
    optimizer = torch.optim.LBFGS(
        leaves,
        max_iter=num_steps,
        max_eval=10 * num_steps,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss)
    return optimizer.state[leaves[0]]["n_iter"]


def _scipy_lbfgs(loss: Callable, leaves: list, tolerance: float, num_steps: int) -> int:
    """SciPy's L-BFGS-B, ended by the gradient alone."""

    def put(x: np.ndarray) -> None:
        with torch.no_grad():
            for leaf, value in zip(leaves, x, strict=True):
                leaf.fill_(value)

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        put(x)
        value = loss().item()
        return value, np.array([leaf.grad.item() for leaf in leaves])

    first = np.array([leaf.detach().item() for leaf in leaves])
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": num_steps}
    found = scipy.optimize.minimize(
        value_and_gradient, first, jac=True, method="L-BFGS-B", options=options
    )
    put(found.x)
    return found.nit


OPTIMIZERS = {"torch": _torch_lbfgs, "SciPy": _scipy_lbfgs}


def stored_likelihood(path: str, **inputs: object) -> Callable:
    """The same, for data in a file: what is measured is then all the memory that they take."""
    return likelihood(y=np.load(path), **inputs)


def matvec(factors: list[np.ndarray], x: np.ndarray) -> Callable:
    """The Kronecker product times vectors of grid shape, batch first."""
    operator = KroneckerProductLinearOperator(*map(torch.from_numpy, factors))
    columns = np.prod([f.shape[1] for f in factors])
    vectors = torch.from_numpy(x).reshape(-1, columns).T.contiguous()
    batch = x.shape[: x.ndim - len(factors)]
    shape = (*batch, *(f.shape[0] for f in factors))
    call = (lambda: operator @ vectors) if batch else (lambda: operator @ vectors[:, 0])

    @torch.no_grad()
    def product() -> np.ndarray:
        return call().T.numpy().reshape(shape)

    return product


def solve(kind: str, a: np.ndarray, b: np.ndarray, y: np.ndarray) -> Callable:
    """`kron(A, B)⁻¹ y`, of Cholesky factors or triangular ones."""
    factors = [torch.from_numpy(m) for m in (a, b)]
    data = torch.from_numpy(y).reshape(-1, 1)

    @torch.no_grad()
    def call() -> np.ndarray:
        if kind == "triangular":
            operator = KroneckerProductTriangularLinearOperator(
                *(TriangularLinearOperator(f) for f in factors)
            )
        else:
            operator = KroneckerProductLinearOperator(*factors)
        return operator.solve(data).numpy().reshape(y.shape)

    return call


def _kernel(name: str, dtype: torch.dtype, log_lengthscale: float) -> gpytorch.kernels.Kernel:
    """A kernel whose raw parameter is the logarithm of its lengthscale."""
    if name == "RBF":
        kernel = gpytorch.kernels.RBFKernel(lengthscale_constraint=_exponential())
        return _started(kernel, dtype, log_lengthscale)
    return _matern(1.5, log_lengthscale, dtype)


def _matern(
    nu: float, log_lengthscale: float, dtype: torch.dtype = torch.float64
) -> gpytorch.kernels.Kernel:
    kernel = gpytorch.kernels.MaternKernel(nu=nu, lengthscale_constraint=_exponential())
    return _started(kernel, dtype, log_lengthscale)


def _exponential() -> gpytorch.constraints.Positive:
    return gpytorch.constraints.Positive(transform=torch.exp, inv_transform=torch.log)


def _started(kernel: Any, dtype: torch.dtype, log_lengthscale: float) -> gpytorch.kernels.Kernel:
    return kernel.to(dtype).initialize(
        raw_lengthscale=torch.tensor([[float(log_lengthscale)]], dtype=dtype)
    )


TASKS = {
    "likelihood": likelihood,
    "fit": fit,
    "start": start,
    "stored likelihood": stored_likelihood,
    "matvec": matvec,
    "solve": solve,
    "classify": classify,
}
