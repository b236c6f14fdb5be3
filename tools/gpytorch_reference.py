"""The numbers of GPyTorch that `tests/test_porting.py` holds kronax to.

    PYTHON_WITH_GPYTORCH tools/gpytorch_reference.py > tests/porting_gpytorch.json

GPyTorch is no dependency of the tests: they read the file, which names the version that made it.
"""

import json

import gpytorch
import torch
from gpytorch import kernels as k
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood

torch.set_default_dtype(torch.float64)
X = torch.tensor([0.0, 0.4, 1.1])
Y = torch.sin(1.0 + torch.arange(3.0))
NEW = torch.tensor([0.2, 1.5])


def made(kernel, **values):
    """A kernel with values, since constructors take none."""
    for name, value in values.items():
        setattr(kernel, name, torch.as_tensor(value))
    return kernel


def spectral_mixture():
    """Two components: weights, means and scales."""
    return made(
        k.SpectralMixtureKernel(num_mixtures=2),
        mixture_weights=[0.7, 0.3],
        mixture_means=torch.tensor([0.2, 1.5]).reshape(2, 1, 1),
        mixture_scales=torch.tensor([0.1, 0.3]).reshape(2, 1, 1),
    )


KERNELS = {
    "RBFKernel, lengthscale 0.5": made(k.RBFKernel(), lengthscale=0.5),
    "MaternKernel(0.5), lengthscale 0.5": made(k.MaternKernel(0.5), lengthscale=0.5),
    "MaternKernel(1.5), lengthscale 0.5": made(k.MaternKernel(1.5), lengthscale=0.5),
    "MaternKernel(2.5), lengthscale 0.5": made(k.MaternKernel(2.5), lengthscale=0.5),
    "RQKernel, lengthscale 0.5, alpha 2": made(k.RQKernel(), lengthscale=0.5, alpha=2.0),
    "PeriodicKernel, period_length 1, lengthscale 0.5": made(
        k.PeriodicKernel(), period_length=1.0, lengthscale=0.5
    ),
    "CosineKernel, period_length 0.5": made(k.CosineKernel(), period_length=0.5),
    "SpectralMixtureKernel": spectral_mixture(),
    "ScaleKernel(RBFKernel), outputscale 2.25, lengthscale 0.5": made(
        k.ScaleKernel(made(k.RBFKernel(), lengthscale=0.5)), outputscale=2.25
    ),
    "LinearKernel, variance 0.7": made(k.LinearKernel(), variance=0.7),
}


class Model(gpytorch.models.ExactGP):
    """A Matérn process with a constant mean."""

    def __init__(self, likelihood):
        super().__init__(X, Y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.mean_module.constant = torch.tensor(0.3)
        inner = made(k.MaternKernel(1.5), lengthscale=0.5)
        self.covar_module = made(k.ScaleKernel(inner), outputscale=2.25)

    def forward(self, x):
        """The prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def main():
    """Print the file."""
    near = torch.tensor([[0.2], [0.5]])
    values = {name: kernel(near).to_dense()[0, 1].item() for name, kernel in KERNELS.items()}
    likelihood = made(GaussianLikelihood(), noise=0.16)
    model = Model(likelihood)
    mll = ExactMarginalLogLikelihood(likelihood, model)(model(X), Y).item()
    model.eval(), likelihood.eval()
    with torch.no_grad():
        f, new = model(NEW), likelihood(model(NEW))
    index = k.IndexKernel(num_tasks=3, rank=2)
    index.covar_factor.data = torch.tensor([[1.0, 0.2], [0.5, -0.3], [0.1, 0.8]])
    index.var = torch.tensor([0.3, 0.5, 0.1])
    numbers = {
        "version": gpytorch.__version__,
        "kernels": values,
        "IndexKernel": index.covar_matrix.to_dense().tolist(),
        "mll": mll,
        "mean": f.mean.tolist(),
        "variance": f.variance.tolist(),
        "likelihood(model(x)).variance": new.variance.tolist(),
    }
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
