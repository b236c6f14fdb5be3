"""GPyTorch and linear_operator, with their default settings and as many threads as cores."""

import os
from collections.abc import Callable

import gpytorch
import numpy as np
import torch
from linear_operator.operators import (
    KroneckerProductLinearOperator,
    KroneckerProductTriangularLinearOperator,
    TriangularLinearOperator,
)

torch.set_num_threads(len(os.sched_getaffinity(0)))


def likelihood(
    kernel: str, axes: list[np.ndarray], parameters: np.ndarray, y: np.ndarray
) -> Callable:
    """Value and gradient of the log density in `(log ℓ_1, …, log σ²)`."""
    points = [torch.from_numpy(x).unsqueeze(-1) for x in axes]
    data = torch.from_numpy(y).reshape(-1)
    kernels = [_kernel(kernel, data.dtype, t) for t in parameters[:-1]]
    log_noise = torch.tensor(parameters[-1], dtype=data.dtype, requires_grad=True)
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
    positive = gpytorch.constraints.Positive(transform=torch.exp, inv_transform=torch.log)
    if name == "RBF":
        kernel = gpytorch.kernels.RBFKernel(lengthscale_constraint=positive)
    else:
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, lengthscale_constraint=positive)
    return kernel.to(dtype).initialize(
        raw_lengthscale=torch.tensor([[float(log_lengthscale)]], dtype=dtype)
    )


TASKS = {
    "likelihood": likelihood,
    "stored likelihood": stored_likelihood,
    "matvec": matvec,
    "solve": solve,
}
