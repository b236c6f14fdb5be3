"""GPyTorch's variational classification, with as many inducing points as observed cells."""

from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

NUM_STEPS, LEARNING_RATE = 500, 0.05


class Field(gpytorch.models.ApproximateGP):
    """A product of two Matérn kernels times a variance, about zero."""

    def __init__(self, rows: torch.Tensor, start: np.ndarray) -> None:
        distribution = CholeskyVariationalDistribution(len(rows))
        super().__init__(
            VariationalStrategy(self, rows, distribution, learn_inducing_locations=False)
        )
        self.mean_module = gpytorch.means.ZeroMean()
        parts = [gpytorch.kernels.MaternKernel(nu=2.5, active_dims=(i,)) for i in range(2)]
        for part, logarithm in zip(parts, start, strict=False):
            part.lengthscale = float(np.exp(logarithm))
        self.covar_module = gpytorch.kernels.ScaleKernel(parts[0] * parts[1])
        self.covar_module.outputscale = float(np.exp(start[2]))

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def classify(rows: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable:
    """Fit and predict yes or no by the probit link, from log lengthscales and variance; NaN gaps.

    Adam on the evidence lower bound, for a fixed number of steps, as in its tutorials.
    """
    places = torch.from_numpy(rows)
    seen = np.isfinite(y)

    def call() -> dict[str, Any]:
        torch.manual_seed(0)
        observed, values = places[seen], torch.from_numpy(y[seen])
        model, likelihood = Field(observed, start), gpytorch.likelihoods.BernoulliLikelihood()
        model, likelihood = model.double().train(), likelihood.double().train()
        loss = gpytorch.mlls.VariationalELBO(likelihood, model, len(values))
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            value = -loss(model(observed), values)
            value.backward()
            optimizer.step()
        with torch.no_grad():
            found = model.eval()(places)
            mean, variance = found.mean.numpy(), found.variance.numpy()
        return {
            "mean": mean,
            "variance": variance,
            "link": "probit",
            "log_evidence": -value.item() * len(values),
            "num_steps": NUM_STEPS,
        }

    return call
