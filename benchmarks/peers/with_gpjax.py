"""GPJax's variational process of sites, one inducing point per observed cell."""

import os
from collections.abc import Callable
from typing import Any

os.environ["JAX_ENABLE_X64"] = "1"

import gpjax as gpx
import jax.numpy as jnp
import numpy as np
import optax
import paramax

# Steps, of which each is one of the sites and one of the parameters, by Adam.
NUM_STEPS, LEARNING_RATE, SITE_RATE = 300, 0.05, 0.5


def classify(rows: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable:
    """Yes or no by its probit link, about zero, from log lengthscales and variance; NaN gaps."""
    return _variational(gpx.likelihoods.Bernoulli(), gpx.mean_functions.Zero(), rows, y, start)


def count(rows: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable:
    """Counts with a constant mean of their log rate."""
    return _variational(gpx.likelihoods.Poisson(), gpx.mean_functions.Constant(), rows, y, start)


def _variational(
    likelihood: Any, mean: Any, rows: np.ndarray, y: np.ndarray, start: np.ndarray
) -> Callable:
    seen, places = np.isfinite(y), jnp.asarray(rows)
    *scales, variance = map(float, np.exp(start))
    first = gpx.kernels.Matern52(active_dims=[0], lengthscale=scales[0], variance=variance)
    one = paramax.non_trainable(gpx.parameters.PositiveReal(1.0))
    second = gpx.kernels.Matern52(active_dims=[1], lengthscale=scales[1], variance=one)
    data = gpx.Dataset(X=places[seen], y=jnp.asarray(y[seen])[:, None])
    model = gpx.gps.Prior(mean_function=mean, kernel=first * second) * likelihood
    is_probit = isinstance(likelihood, gpx.likelihoods.Bernoulli)

    def call() -> dict[str, Any]:
        inducing = paramax.non_trainable(gpx.parameters.Real(data.X))
        family = gpx.variational_families.DualVariationalGaussian(model, inducing)
        fitted, history = gpx.fit_natgrads(
            model=family,
            objective=lambda q, d: -gpx.objectives.elbo(q, d),
            train_data=data,
            optim=optax.adam(LEARNING_RATE),
            natgrad_lr=SITE_RATE,
            num_iters=NUM_STEPS,
            verbose=False,
        )
        found = fitted.predict(places)
        return {
            "mean": np.asarray(found.mean),
            "variance": np.asarray(found.variance),
            "link": "probit" if is_probit else "log",
            "log_evidence": -float(history[-1]),
            "num_steps": NUM_STEPS,
        }

    return call


TASKS = {"classify": classify, "count": count}
