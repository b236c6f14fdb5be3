"""Simulated fields: whether bands of the rate, and distributions of held-out data, hold.

Every field has a variance and lengthscales of its own. With these the bands are those that the
approximation alone answers for; fitted ones, from one start for all, stand beside.
"""

from collections.abc import Sequence
from functools import partial
from time import process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import kronax as kx
from benchmarks.markdown import table
from benchmarks.nongaussian import data
from benchmarks.parts import measured

SHAPE, QUICK_SHAPE = (15, 20), (8, 10)
LENGTHSCALES = (4.0, 5.0)
# By how much parameters differ from field to field: the standard deviation of their logarithms.
SCATTER = 0.25
HELD_OUT = 0.2
NUM_FIELDS, QUICK_NUM_FIELDS = 200, 5
NUM_FITTED, QUICK_NUM_FITTED = 40, 2
LEVELS = (0.5, 0.95)


METHODS = {"variational": {}, "Laplace": {"approximation": "laplace"}}
# With these parameters are fitted as well.
FITTED = ("Poisson",)


def fields(
    name: str, shape: tuple[int, int], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, fields, data, and the cells where all are seen."""
    rng = np.random.default_rng(0)
    moves = np.exp(SCATTER * rng.standard_normal((count, 3)))
    parameters = np.hstack(
        [moves * np.array([data.VARIANCE, *LENGTHSCALES]), np.full((count, 1), data.MEAN)]
    )
    f = np.stack([data.field(rng, shape, scales, v) for v, *scales, _ in parameters])
    y = data.KINDS[name].draw(rng, f).astype(float)
    return parameters, f, y, rng.random(shape) >= HELD_OUT


def model(name: str, shape: tuple[int, ...], parameters: Any, **options: Any) -> kx.GridGP:
    """With a variance, two lengthscales and a mean."""
    variance, first, second, mean = parameters
    likelihood = data.KINDS[name].likelihood()
    return data.process(shape, (first, second), likelihood, variance, mean, **options)


def marginals(
    name: str, parameters: Any, y: np.ndarray, seen: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of the function at every cell, one field after another."""

    @jax.jit
    def one(at: Any, values: Any) -> Any:
        gp = model(name, seen.shape, at, **options).observing(seen)
        post = gp.condition(jnp.where(seen, values, 0))
        return post.mean(), post.variance()

    found = [one(at, values) for at, values in zip(jnp.asarray(parameters), y, strict=True)]
    mean, variance = (np.stack(part) for part in zip(*found, strict=True))
    return mean, variance


def fitted(name: str, y: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, int]:
    """Parameters of every field, and how many fits converged."""
    start = model(name, seen.shape, (1.0, 3.0, 3.0, 0.0))
    found, num_converged = [], 0
    for values in y:
        given = np.where(seen, values, np.nan)
        result = kx.fit(start, given, progress=False)
        found.append(parameters_of(result.model))
        num_converged += bool(result.converged)
    return np.array(found), num_converged


def parameters_of(gp: kx.GridGP) -> list[float]:
    """As `model` takes them."""
    return [float(x) for x in (gp.variance, *(k.lengthscale for k in gp.kernels), gp.mean.value)]


def covered(
    name: str, f: np.ndarray, y: np.ndarray, seen: np.ndarray, found: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Shares of rates inside their bands, and of held-out data in the middle of their own.

    A band of a rate is that of the function, through its inverse link. Fields are what is
    independent: standard errors are of the means of fields.
    """
    mean, variance = found
    z = np.abs(f - mean) / np.sqrt(variance)
    rng, kind = np.random.default_rng(7), data.KINDS[name]
    held = y[:, ~seen], mean[:, ~seen], variance[:, ~seen]
    places = data.transforms(kind, *held, rng)
    inside = {f"rate {level}": z < norm.ppf((1 + level) / 2) for level in LEVELS}
    inside |= {"rate 0.95 held out": inside["rate 0.95"][:, ~seen]}
    inside |= {f"data {level}": data.is_central(places, level) for level in LEVELS}
    shares = {key: value.reshape(len(f), -1).mean(axis=1) for key, value in inside.items()}
    return {
        "coverage": {key: float(share.mean()) for key, share in shares.items()},
        "standard_error": {
            key: float(share.std(ddof=1) / np.sqrt(share.size)) for key, share in shares.items()
        },
        "histogram": (np.histogram(places, 10, (0, 1))[0] / places.size).tolist(),
        "log_score": float(data.log_scores(kind, *held).mean()),
    }


def measure(
    name: str, shape: tuple[int, int], num_fields: int, num_fitted: int
) -> list[dict[str, Any]]:
    """One row for the true parameters with every method, and one for fitted ones."""
    parameters, f, y, seen = fields(name, shape, num_fields)
    row = {"likelihood": name, "shape": list(shape), "num_held_out": int((~seen).sum())}
    rows = []
    for method, options in METHODS.items():
        own = {"method": method, "parameters": "true", "num_fields": num_fields}
        found = marginals(name, parameters, y, seen, **options)
        rows.append({**row, **own, **covered(name, f, y, seen, found)})
    if num_fitted:
        some = slice(num_fitted)
        began = process_time()
        plugged, num_converged = fitted(name, y[some], seen)
        taken = process_time() - began
        own = {"method": "variational", "parameters": "fitted", "num_fields": num_fitted}
        own |= {"num_converged": num_converged, "fit_seconds": taken}
        found = marginals(name, plugged, y[some], seen)
        rows.append({**row, **own, **covered(name, f[some], y[some], seen, found)})
    return rows


def calibration_table(rows: list[dict[str, Any]]) -> str:
    """Coverage by likelihood, method and parameters."""
    keys = ("rate 0.95", "rate 0.95 held out", "rate 0.5", "data 0.95", "data 0.5")
    body = [
        [
            row["likelihood"],
            row["method"],
            row["parameters"],
            str(row["num_fields"]),
            *(_share(row, key) for key in keys),
        ]
        for row in rows
    ]
    header = ["likelihood", "method", "parameters", "fields", "rates in the 95 % band"]
    header += ["at held-out cells", "rates in the 50 % band", "held-out data in the middle 95 %"]
    return table([*header, "in the middle 50 %"], body)


def short_table(rows: list[dict[str, Any]]) -> str:
    """Bands of rates, of the variational approximation and of Laplace's, and those of new data."""
    found = {(row["likelihood"], row["method"], row["parameters"]): row for row in rows}
    body = []
    for name in dict.fromkeys(row["likelihood"] for row in rows):
        ways = ("variational", "true"), ("Laplace", "true"), ("variational", "fitted")
        own = [found.get((name, *way)) for way in ways]
        cells = [_share(row, "rate 0.95") for row in own]
        body.append([name, *cells, _share(own[0], "data 0.95"), _share(own[2], "data 0.95")])
    header = ["likelihood", "rates in the 95 % band", "Laplace", "with fitted parameters"]
    return table([*header, "held-out data in the middle 95 %", "with fitted parameters"], body)


def _share(row: dict[str, Any] | None, key: str) -> str:
    if row is None:
        return "–"
    return f"{row['coverage'][key]:.1%} ± {row['standard_error'][key]:.1%}"


def run(quick: bool, only: Sequence[str] = ()) -> None:
    """Every likelihood with the true parameters, counts with fitted ones as well."""
    shape, count = (QUICK_SHAPE, QUICK_NUM_FIELDS) if quick else (SHAPE, NUM_FIELDS)
    num_fitted = QUICK_NUM_FITTED if quick else NUM_FITTED
    parts = {
        name: partial(measure, name, shape, count, num_fitted if name in FITTED else 0)
        for name in data.KINDS
    }
    notes = {"lengthscales": LENGTHSCALES, "scatter": SCATTER, "held_out": HELD_OUT}
    measured("nongaussian.calibration", parts, described, quick, only, **notes)


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    return f"{row['likelihood']}, {row['method']}, {row['parameters']}: " + ", ".join(
        f"{key} {share:.1%} ± {row['standard_error'][key]:.1%}"
        for key, share in row["coverage"].items()
    )
