"""Errors of log likelihoods in nats, against sixty decimal digits.

A small grid of times × places with Matérn-3/2 on both and little noise; data are a draw in sixty
digits, rounded once. The truth is a Cholesky factorisation of the whole covariance in decimal
numbers of the very parameters, coordinates and data that the library is given.
"""

from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kronax as kx
from benchmarks.markdown import table
from benchmarks.precision import cholesky, forward

DIGITS = 60
NUM_TIMES, NUM_PLACES = 24, 3
PLACES = np.arange(3.0)
PRECISIONS = {"float64": np.float64, "float32": np.float32}


class Hard(NamedTuple):
    """Parameters of a model on times between 0 and 1, of which some may be repeated."""

    noise: float = 1e-6
    lengthscale: float = 1.0
    is_repeated: bool = False


CASES = {
    **{f"noise {noise:g}": Hard(noise) for noise in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)},
    **{f"repeated times, noise {noise:g}": Hard(noise, 1.0, True) for noise in (1e-6, 1e-10)},
    **{f"lengthscale {scale:g}": Hard(1e-6, scale) for scale in (1e-3, 1e3, 1e6)},
}
QUICK_CASES = ("noise 0.01", "repeated times, noise 1e-10")
METHODS = {"Markov": ("markov", None), "eigh": ("dense", "dense")}


def measure_accuracy(quick: bool) -> list[dict[str, Any]]:
    """One row per case and precision, with the errors of every method."""
    return [
        {"case": name, "precision": precision, "errors": errors(CASES[name], dtype)}
        for precision, dtype in PRECISIONS.items()
        for name in (QUICK_CASES if quick else CASES)
    ]


def errors(case: Hard, dtype: Any) -> dict[str, float]:
    """What every method makes of the log likelihood, less what it is."""
    times = np.sort(np.random.default_rng(0).uniform(0, 1, NUM_TIMES)).astype(dtype)
    if case.is_repeated:
        times = np.repeat(times[::2], 2)
    given = [dtype(v) for v in (case.lengthscale, 2.0, case.noise)]
    y, truth = drawn(times, given)
    found = {name: by_grid(times, given, y, kinds) for name, kinds in METHODS.items()}
    found["dense Cholesky"] = by_cholesky(times, given, y)
    return {name: float(Decimal(float(value)) - truth) for name, value in found.items()}


def drawn(times: np.ndarray, given: list[Any]) -> tuple[np.ndarray, Decimal]:
    """Data of the model in the precision of the times, and their log density in sixty digits."""
    with localcontext() as context:
        context.prec = DIGITS
        along, across, noise = (Decimal(float(v)) for v in given)
        places = PLACES.astype(times.dtype)
        whole = np.kron(matern32(times, along), matern32(places, across))
        root = cholesky(whole + noise * _decimals(np.eye(len(whole))))
        white = _decimals(np.random.default_rng(1).standard_normal(len(whole)))
        y = (root @ white).astype(np.float64).astype(times.dtype)
        alpha = forward(root, _decimals(y))
        log_det = 2 * sum(entry.ln() for entry in np.diagonal(root))
        normaliser = len(whole) * (2 * Decimal(PI)).ln()
        return y.reshape(times.size, places.size), -(alpha @ alpha + log_det + normaliser) / 2


PI = "3.14159265358979323846264338327950288419716939937510582097494459"


def matern32(x: np.ndarray, lengthscale: Decimal) -> np.ndarray:
    """The covariance in decimal numbers."""
    places = _decimals(x)
    s = Decimal(3).sqrt() * np.abs(places[:, None] - places) / lengthscale
    return (1 + s) * np.exp(-s)


def _decimals(x: np.ndarray) -> np.ndarray:
    return np.array([Decimal(float(v)) for v in x.ravel()], object).reshape(x.shape)


def by_grid(times: np.ndarray, given: list[Any], y: np.ndarray, kinds: Any) -> Any:
    """By the library, with a structure."""
    along, across, noise = given
    axes = (times, PLACES.astype(times.dtype))
    kernels = (kx.Matern32(along), kx.Matern32(across))
    gp = kx.GridGP(kernels, axes, noise=noise, structure=kinds)
    return jax.jit(gp.log_marginal_likelihood)(jnp.asarray(y))


def by_cholesky(times: np.ndarray, given: list[Any], y: np.ndarray) -> Any:
    """By a Cholesky factorisation of the whole covariance, in the same precision."""
    along, across, noise = given
    places = PLACES.astype(times.dtype)
    kernels = (kx.Matern32(along)(times, times), kx.Matern32(across)(places, places))
    whole = jnp.kron(*kernels) + noise * jnp.eye(y.size, dtype=y.dtype)
    root = jnp.linalg.cholesky(whole)
    alpha = jax.scipy.linalg.solve_triangular(root, jnp.asarray(y).ravel(), lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    return -0.5 * (alpha @ alpha + log_det + y.size * np.log(2 * np.pi).astype(y.dtype))


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """Nats by case, precision and method."""
    own = [row for row in rows if "case" in row]
    names = list(own[0]["errors"]) if own else []
    body = [
        [row["case"], row["precision"], *(_nats(row["errors"][name]) for name in names)]
        for row in own
    ]
    return table(["", "precision", *names], body)


def _nats(error: float | None) -> str:
    return "**NaN**" if error is None or np.isnan(error) else f"{abs(error):.0e}"
