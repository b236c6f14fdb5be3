"""Means, deviations and log evidence of the approximate posterior, beside importance sampling.

The truth comes from draws of the first approximation that is found, weighted by what its sites
left out of the likelihood, in dense NumPy: whatever the proposal, it is that of the posterior.
Averages of the field and its square under the proposal are known, and are control variates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp

import kronax as kx
from benchmarks.markdown import table
from benchmarks.nongaussian.data import KINDS, MEAN, Kind, covariance, process
from benchmarks.parts import measured

SHAPE, LENGTHSCALES = (30, 40), (6.0, 8.0)
QUICK_SHAPE = (8, 10)
SEEDS, NUM_DRAWS, QUICK_NUM_DRAWS = 4, 8000, 1000
# By the name in tables.
METHODS: dict[str, dict[str, Any]] = {
    "variational": {"approximation": "variational"},
    "Laplace": {"approximation": "laplace"},
    "variational, by iterations": {"approximation": "variational", "gaps": "iterative"},
}


class Truth(NamedTuple):
    """Of the posterior, each with the standard error that the draws leave.

    Errors of means and deviations are root mean squares over cells, in deviations and as shares.
    """

    mean: np.ndarray
    sd: np.ndarray
    log_evidence: float
    mean_error: float
    sd_error: float
    log_evidence_error: float
    effective_share: float


def sampled(
    kind: Kind,
    y: np.ndarray,
    prior: np.ndarray,
    sites: tuple[np.ndarray, np.ndarray],
    num_draws: int,
) -> Truth:
    """By draws in pairs on either side of the mean, of targets and precisions as proposal."""
    target, precision = (np.asarray(x).ravel() for x in sites)
    noise = 1 / precision
    factor = cho_factor(prior + np.diag(noise), lower=True)
    residual = target - MEAN
    weights = cho_solve(factor, residual)
    mean = MEAN + prior @ weights
    sd = np.sqrt(np.diag(prior) - np.einsum("ij,ji->i", prior, cho_solve(factor, prior)))
    log_det = 2 * np.log(np.diag(factor[0])).sum()
    of_targets = -(residual @ weights + log_det + y.size * np.log(2 * np.pi)) / 2
    values, vectors = np.linalg.eigh(prior)
    root = vectors * np.sqrt(np.maximum(values, 0))
    logs, places = [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(100 + seed)
        f = root @ rng.standard_normal((y.size, num_draws // 2))
        noisy = f + np.sqrt(noise)[:, None] * rng.standard_normal(f.shape)
        away = (f - prior @ cho_solve(factor, noisy)).T
        for side in (away, -away):
            draw = mean + side
            log_site = (np.log(precision / (2 * np.pi)) - precision * (target - draw) ** 2) / 2
            logs.append((kind.log_density(y.ravel(), draw) - log_site).sum(axis=1))
        places.append(away / sd)
    return _averaged(np.stack(logs).reshape(SEEDS, 2, -1), np.stack(places), mean, sd, of_targets)


def _averaged(
    logs: np.ndarray, places: np.ndarray, mean: np.ndarray, sd: np.ndarray, of_targets: float
) -> Truth:
    """From log weights `(seeds, 2, pairs)` and where the first of each pair lies, in deviations."""
    weights = np.exp(logs - logs.max())
    weights /= weights.mean()
    count = logs.size / 2
    odd, even = (weights[:, 0] - weights[:, 1]) / 2, weights.mean(axis=1) - 1
    shift = np.einsum("sp,spc->c", odd, places) / count
    # Of (weight − 1) (z² − 1), whose plain averages are known.
    square = np.square(places) - 1
    spread = np.einsum("sp,spc->c", even, square) / count
    shift_error = np.sqrt(np.einsum("sp,spc->c", odd**2, places**2)) / count
    spread_error = np.sqrt(np.einsum("sp,spc->c", even**2, square**2)) / count
    by_pair = weights.mean(axis=1)
    return Truth(
        mean=mean + sd * shift,
        sd=sd * np.sqrt(1 + spread - shift**2),
        log_evidence=float(of_targets + logsumexp(logs) - np.log(logs.size)),
        mean_error=float(np.sqrt(np.mean(shift_error**2))),
        sd_error=float(np.sqrt(np.mean(spread_error**2)) / 2),
        log_evidence_error=float(by_pair.std() / np.sqrt(by_pair.size)),
        effective_share=float(1 / np.mean(weights**2)),
    )


def measure(name: str, shape: tuple[int, int], num_draws: int) -> list[dict[str, Any]]:
    """One row per method, beside the same truth."""
    kind, prior, rng = KINDS[name], covariance(shape, LENGTHSCALES), np.random.default_rng(1)
    root = np.linalg.cholesky(prior + 1e-9 * np.eye(len(prior)))
    f = MEAN + root @ rng.standard_normal(len(prior))
    y = kind.draw(rng, f).reshape(shape).astype(float)
    rows, truth = [], None
    for method, options in METHODS.items():
        gp = process(shape, LENGTHSCALES, kind.likelihood(), **options)
        row = {"likelihood": name, "method": method, "shape": list(shape), "num_draws": num_draws}
        try:
            post = gp.condition(y)
        except kx.ConvergenceError as reason:
            rows.append({**row, "error": str(reason).split(";")[0]})
            continue
        if truth is None:
            sites = post.sites.target, post.sites.precision
            truth = sampled(kind, y, prior, sites, num_draws)
        rows.append({**row, **compared(gp, post, y, truth)})
    return rows


def compared(gp: Any, post: Any, y: np.ndarray, truth: Truth) -> dict[str, Any]:
    """What a posterior is off by."""
    found = post.check_approximation(jax.random.key(0))
    off = (np.asarray(post.mean()).ravel() - truth.mean) / truth.sd
    ratio = np.sqrt(np.asarray(post.variance()).ravel()) / truth.sd
    first = float(gp.log_marginal_likelihood(y))
    return {
        "num_steps": int(post.sites.num_steps),
        "mean_rms": float(np.sqrt(np.mean(off**2))),
        "mean_bias": float(off.mean()),
        "sd_ratio": float(ratio.mean()),
        "sd_ratio_ends": [float(ratio.min()), float(ratio.max())],
        "log_evidence": truth.log_evidence,
        "first_order_error": first - truth.log_evidence,
        "second_order_error": float(found.evidence) - truth.log_evidence,
        "stated_error": float(found.evidence_error),
        "worst_tail": float(found.tails.max()),
        "worst_shift": float(found.worst_shift),
        "is_close": found.is_close,
        "truth_mean_error": truth.mean_error,
        "truth_sd_error": truth.sd_error,
        "truth_log_evidence_error": truth.log_evidence_error,
        "effective_share": truth.effective_share,
    }


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """Errors by likelihood and method, with those of the truth itself."""
    body = [
        [row["likelihood"], row["method"], row["error"], *["–"] * 7]
        if "error" in row
        else [
            row["likelihood"],
            row["method"],
            f"{row['mean_rms']:.3f} ± {row['truth_mean_error']:.3f}",
            f"{row['mean_bias']:+.3f}",
            f"{row['sd_ratio']:.3f}",
            " to ".join(f"{end:.3f}" for end in row["sd_ratio_ends"]),
            f"{row['first_order_error']:+.3f} ± {row['truth_log_evidence_error']:.3f}",
            f"{row['second_order_error']:+.3f} ± {row['stated_error']:.3f}",
            f"{row['effective_share']:.0%}",
            "close" if row["is_close"] else "not good",
        ]
        for row in rows
    ]
    header = ["likelihood", "method", "mean off, rms in deviations", "all one way"]
    header += ["deviation over the true one", "from cell to cell", "log evidence off, nats"]
    return table([*header, "to second order", "draws that count", "`check_approximation`"], body)


def short_table(rows: list[dict[str, Any]]) -> str:
    """What a reader wants to know of either approximation, by exact linear algebra."""
    found = {(row["likelihood"], row["method"]): row for row in rows if "error" not in row}
    body = []
    for name in dict.fromkeys(name for name, _ in found):
        first, second = (found.get((name, method)) for method in ("variational", "Laplace"))
        cells = [f"{row['mean_rms']:.3f}" if row else "–" for row in (first, second)]
        cells += [f"{row['sd_ratio']:.3f}" if row else "–" for row in (first, second)]
        evidence = ("first_order_error", "second_order_error")
        cells += [f"{row[key]:+.3f}" if row else "–" for row in (first, second) for key in evidence]
        body.append([name, *cells])
    header = ["likelihood", "mean off, in deviations", "Laplace", "deviation over the true one"]
    header += ["Laplace", "log evidence off, nats", "to second order"]
    return table([*header, "Laplace", "to second order"], body)


def run(quick: bool, only: Sequence[str] = ()) -> None:
    """Every likelihood."""
    sizes = (QUICK_SHAPE, QUICK_NUM_DRAWS) if quick else (SHAPE, NUM_DRAWS)
    parts = {name: partial(measure, name, *sizes) for name in KINDS}
    notes = {"lengthscales": LENGTHSCALES, "seeds": SEEDS}
    measured("nongaussian.accuracy", parts, described, quick, only, **notes)


def described(row: dict[str, Any]) -> str:
    """One line for the log."""
    if "error" in row:
        return f"{row['likelihood']}, {row['method']}: {row['error']}"
    return (
        f"{row['likelihood']}, {row['method']}: mean {row['mean_rms']:.4f} ± "
        f"{row['truth_mean_error']:.4f} sd, sd × {row['sd_ratio']:.4f}, log evidence "
        f"{row['first_order_error']:+.4f}, {row['second_order_error']:+.4f} to second order ± "
        f"{row['stated_error']:.4f}, truth ± {row['truth_log_evidence_error']:.4f}, "
        f"{row['effective_share']:.0%} count, {row['num_steps']} steps"
    )
