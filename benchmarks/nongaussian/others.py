"""Other libraries and samplers on a small grid: yes or no, and counts, a fifth of them held out.

Each fits a variance and two lengthscales (and the mean of counts) by its own optimiser, or samples
them, and predicts every cell; in a process of its own, in processor time. Compilation is included
where a library compiles.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from scipy.special import expit, log_ndtr, logsumexp, ndtr

import kronax as kx
from benchmarks.apart import apart
from benchmarks.markdown import digits, grid, table
from benchmarks.measure import CandidateError
from benchmarks.nongaussian import data
from benchmarks.parts import measured
from benchmarks.peers.processes import Peers

SHAPE, QUICK_SHAPE = (20, 20), (6, 7)
LENGTHSCALES = (4.0, 5.0)
HELD_OUT = 0.2
# By problem: likelihood, variance, mean, whether the mean is known.
PROBLEMS = {
    "yes or no": ("Bernoulli", 3.0, 0.0),
    "counts": ("Poisson", data.VARIANCE, data.MEAN),
}
OWN = {
    "kronax": {"approximation": "variational"},
    "kronax, Laplace": {"approximation": "laplace"},
}
SAMPLER = "NumPyro, NUTS of `gp.latent`"
# By the name in tables: environment, task.
PEERS = {
    "yes or no": {
        "scikit-learn": ("sklearn", "classify"),
        "GPyTorch, variational": ("gpytorch", "classify"),
        "GPJax, variational": ("gpjax", "classify"),
        "PyMC, Laplace": ("pymc", "classify"),
    },
    "counts": {
        "GPJax, variational": ("gpjax", "count"),
        "PyMC, Laplace": ("pymc", "count"),
    },
}
START = (3.0, 3.0, 1.0)
LIMIT_S = 1200
DRAWS, QUICK_DRAWS = 500, 30


def simulated(problem: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The field, data, and which are held out."""
    name, variance, mean = PROBLEMS[problem]
    rng = np.random.default_rng(5)
    f = data.field(rng, shape, LENGTHSCALES, variance) - data.MEAN + mean
    y = data.KINDS[name].draw(rng, f).astype(float)
    return f, y, rng.random(shape) < HELD_OUT


def fitted(problem: str, method: str, shape: list[int]) -> dict[str, Any]:
    """By the library itself."""
    _, y, held = simulated(problem, tuple(shape))
    name, given = PROBLEMS[problem][0], np.where(held, np.nan, y)
    *scales, variance = START
    likelihood = data.KINDS[name].likelihood()
    gp = data.process(tuple(shape), scales, likelihood, variance, 0.0, **OWN[method])
    freeze = ("mean.value",) if problem == "yes or no" else ()
    began = process_time()
    result = kx.fit(gp, given, freeze=freeze, progress=False)
    post = result.model.condition(given)
    mean, deviation = np.asarray(post.mean()), np.sqrt(np.asarray(post.variance()))
    return {
        "seconds": process_time() - began,
        "mean": mean.ravel().tolist(),
        "variance": (deviation**2).ravel().tolist(),
        "link": "logit",
        "log_evidence": -float(result.loss),
        "num_steps": int(result.num_steps),
    }


def sampled(problem: str, shape: list[int], num_draws: int) -> dict[str, Any]:
    """NUTS over the whitened field and the parameters, as many draws for warming up."""
    f, y, held = simulated(problem, tuple(shape))
    name = PROBLEMS[problem][0]

    def program() -> None:
        variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
        scales = [numpyro.sample(f"lengthscale_{i}", dist.LogNormal(1.0, 1.0)) for i in range(2)]
        mean = 0.0 if problem == "yes or no" else numpyro.sample("mean", dist.Normal(0.0, 1.0))
        gp = data.process(tuple(shape), scales, data.KINDS[name].likelihood(), variance, mean)
        field = gp.latent("f")
        with numpyro.handlers.mask(mask=~held):
            if name == "Poisson":
                numpyro.sample("y", dist.Poisson(jnp.exp(field)).to_event(0), obs=y)
            else:
                numpyro.sample("y", dist.Bernoulli(logits=field).to_event(0), obs=y)

    kernel = numpyro.infer.NUTS(program, init_strategy=numpyro.infer.init_to_median)
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=num_draws, num_samples=num_draws, progress_bar=False
    )
    began = process_time()
    with jax.numpy_dtype_promotion("standard"):
        mcmc.run(jax.random.key(0))
    draws = {key: np.asarray(value) for key, value in mcmc.get_samples().items()}
    taken = process_time() - began
    effective = [effective_sample_size(draws[key][None]).min() for key in ("f", "variance")]
    densities = data.KINDS[name].log_density(y, draws["f"])[:, held]
    low, high = np.quantile(draws["f"], (0.025, 0.975), axis=0)
    return {
        "seconds": taken,
        "log_score": float((logsumexp(densities, axis=0) - np.log(num_draws)).mean()),
        "coverage": float(((low <= f) & (f <= high)).mean()),
        "mean": draws["f"].mean(axis=0).ravel().tolist(),
        "num_steps": num_draws,
        "effective_samples": float(min(effective)),
    }


def of_peer(
    problem: str, peer: tuple[str, str], shape: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What another library gives, and its versions."""
    _, y, held = simulated(problem, shape)
    rows = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2)
    given = np.where(held, np.nan, y).ravel()
    inputs = {"rows": rows.astype(float), "y": given, "start": np.log(START)}
    with Peers() as peers:
        call = peers.call(*peer, LIMIT_S, **inputs)
        call.clock = "process_time"
        seconds = call.seconds()
        return {**call(), "seconds": seconds}, peers.versions()


def scores(problem: str, found: dict[str, Any], shape: tuple[int, int]) -> dict[str, float]:
    """Log density at held-out cells, and bands of the rate or probability, by its own link."""
    f, y, held = simulated(problem, shape)
    mean, variance = (np.reshape(found[key], shape) for key in ("mean", "variance"))
    if found["link"] == "probit":
        logs = log_ndtr((2 * y - 1) * mean / np.sqrt(1 + variance))[held]
        forward: Callable[[np.ndarray], np.ndarray] = ndtr
    else:
        kind = data.KINDS[PROBLEMS[problem][0]]
        logs = data.log_scores(kind, y[held], mean[held], variance[held])
        forward = expit
    low, high = (forward(mean + s * 1.959964 * np.sqrt(variance)) for s in (-1, 1))
    inside = (low <= expit(f)) & (expit(f) <= high)
    return {"log_score": float(logs.mean()), "coverage": float(inside.mean())}


def measure(problem: str, shape: tuple[int, int], num_draws: int) -> list[dict[str, Any]]:
    """One row per method."""
    rows = []
    calls: dict[str, Callable[[], Any]] = {
        method: partial(_apart, "fitted", problem=problem, method=method, shape=list(shape))
        for method in OWN
    }
    calls[SAMPLER] = partial(
        _apart, "sampled", problem=problem, shape=list(shape), num_draws=num_draws
    )
    for method, peer in PEERS[problem].items():
        calls[method] = partial(of_peer, problem, peer, shape)
    for method, call in calls.items():
        row: dict[str, Any] = {"problem": problem, "shape": list(shape), "method": method}
        try:
            found, versions = call()
            if "link" in found:
                found |= scores(problem, found, shape)
            row |= {key: value for key, value in found.items() if key not in LONG}
            row["versions"] = versions
        except CandidateError as reason:
            row |= {"seconds": None, "error": str(reason)}
        rows.append(row)
    return rows


# Fields of every cell, which are not stored.
LONG = ("mean", "variance")


def _apart(function: str, **inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return apart("nongaussian.others", function, LIMIT_S, **inputs), {}


def others_table(rows: list[dict[str, Any]]) -> str:
    """Processor time and scores by problem and method."""
    body = []
    for row in rows:
        cells = [f"{row['problem']}, {grid(row)}", row["method"]]
        if row["seconds"] is None:
            body.append([*cells, row["error"], *["–"] * 5])
            continue
        body.append(
            [
                *cells,
                digits(row["seconds"]),
                str(row.get("num_steps", "–")),
                digits(row.get("effective_samples")),
                f"{row['log_evidence']:.3f}" if "log_evidence" in row else "–",
                f"{row['log_score']:.4f}",
                f"{row['coverage']:.1%}",
            ]
        )
    header = ["data", "method", "fit and predict, s of processors", "steps or draws"]
    header += ["fewest effective samples", "log evidence", "log density of a held-out datum"]
    return table([*header, "rates or probabilities in the 95 % band"], body)


def run(quick: bool, only: Sequence[str] = ()) -> None:
    """Both problems."""
    sizes = (QUICK_SHAPE, QUICK_DRAWS) if quick else (SHAPE, DRAWS)
    parts = {problem: partial(measure, problem, *sizes) for problem in PROBLEMS}
    measured("nongaussian.others", parts, described, quick, only, held_out=HELD_OUT, start=START)


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    if row["seconds"] is None:
        return f"{row['problem']}: {row['method']}: {row['error']}"
    return (
        f"{row['problem']}: {row['method']}: {row['seconds']:.1f} s, log score "
        f"{row['log_score']:.4f}, coverage {row['coverage']:.1%}, evidence "
        f"{digits(row.get('log_evidence'))}, {row.get('num_steps')} steps"
    )
