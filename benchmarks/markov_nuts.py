"""NUTS on a long axis: effective samples per second with a filter and with a decomposition.

20 places × 2000 irregular times, Matérn-3/2 on both; two lengthscales, variance and noise are
sampled. A gradient by decomposition takes too long for a warm-up, so it is given that of the
filter: its step size, mass matrix and last state, a lead of hundreds of gradients. Seconds are
those of the processor; each has a process of its own and one chain.
"""

from time import process_time
from typing import Any

import numpy as np

from benchmarks.apart import apart
from benchmarks.markdown import digits, table, times
from benchmarks.markov import TRUE, Case, data_of
from benchmarks.measure import CandidateError, save

SHAPE, QUICK_SHAPE = (2000, 20), (120, 4)
# By structure along time: draws. Before them the filter has as many to warm up, and to compile.
DRAWS = {"markov": 150, "dense": 15}
QUICK_DRAWS = {"markov": 30, "dense": 20}
# Of fewer draws nothing can be estimated: each counts as one effective sample.
FEWEST_DRAWS = 50
NAMES = {"markov": "filter", "dense": "decomposition"}
LIMIT_S = 3000
SITES = ("along", "across", "variance", "noise")


def model_of(structure: str, shape: tuple[int, int]) -> Any:
    """A NumPyro model without arguments; priors are centred a factor off the truth."""
    import numpyro
    import numpyro.distributions as dist

    import kronax as kx

    axes, y, _ = data_of(Case(shape))
    along_times = {"time": structure}

    def model() -> None:
        along, across, variance, noise = (
            numpyro.sample(site, dist.LogNormal(centre, 1.0))
            for site, centre in zip(SITES, TRUE + 0.5, strict=True)
        )
        kernels = {"time": variance * kx.Matern32(along), "place": kx.Matern32(across)}
        named = dict(zip(kernels, axes, strict=True))
        gp = kx.GridGP(kernels, named, noise=noise, structure=along_times)
        numpyro.sample("y", gp.numpyro_dist(), obs=y)

    return model


def sample(
    structure: str, shape: list[int], num_draws: int, adapted: dict[str, Any] | None
) -> dict[str, Any]:
    """Draws and processor seconds; adapted to the posterior before, or else given that."""
    import jax
    import jax.numpy as jnp
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import MCMC, NUTS, init_to_value

    options: dict[str, Any] = {}
    if adapted is not None:
        options = {
            "step_size": adapted["step_size"],
            "inverse_mass_matrix": jnp.asarray(adapted["inverse_mass_matrix"]),
            "adapt_step_size": False,
            "adapt_mass_matrix": False,
            "init_strategy": init_to_value(values=adapted["last"]),
        }
    kernel = NUTS(model_of(structure, (shape[0], shape[1])), dense_mass=True, **options)
    num_warmup = 0 if adapted else num_draws
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_draws, progress_bar=False)
    began = process_time()
    if adapted is None:
        # After the warm-up, what is drawn first compiles the loop that is timed.
        for seed in (2, 3):
            mcmc.run(jax.random.key(seed))
            mcmc.post_warmup_state = mcmc.last_state
    warm = process_time()
    mcmc.run(jax.random.key(1), extra_fields=("num_steps", "diverging"))
    draws = {site: np.asarray(mcmc.get_samples()[site]) for site in SITES}
    ended = process_time()
    extra = mcmc.get_extra_fields()
    effective = {s: float(effective_sample_size(np.log(draws[s])[None])) for s in SITES}
    state = mcmc.last_state.adapt_state
    (metric,) = state.inverse_mass_matrix.values()
    gradients = int(np.sum(extra["num_steps"]))
    return {
        "seconds": ended - warm,
        "first_seconds": warm - began,
        "gradients": gradients,
        "draws": num_draws,
        "effective_samples": effective,
        "per_second": _counted(effective, num_draws) / (ended - warm),
        "divergences": int(np.sum(extra["diverging"])),
        "mean": {site: float(np.log(draws[site]).mean()) for site in SITES},
        "deviation": {site: float(np.log(draws[site]).std()) for site in SITES},
        "adapted": {
            "step_size": float(state.step_size),
            "inverse_mass_matrix": np.asarray(metric).tolist(),
            "last": {site: float(draws[site][-1]) for site in SITES},
        },
    }


def _counted(effective: dict[str, float], num_draws: int) -> float:
    return min(effective.values()) if num_draws >= FEWEST_DRAWS else num_draws


def nuts_table(rows: list[dict[str, Any]]) -> str:
    """What was drawn, and how fast."""
    rates = {row["method"]: row.get("per_second") for row in rows}
    ours = rates.get(NAMES["markov"])
    body = []
    for row in rows:
        name = "{1} × {0:,}".format(*row["shape"])
        if "error" in row:
            body.append([name, row["method"], row["error"], *["–"] * 6])
            continue
        fewest, rate = _counted(row["effective_samples"], row["draws"]), row["per_second"]
        at_most = "" if row["draws"] >= FEWEST_DRAWS else "≤ "
        slower = None if row["method"] == NAMES["markov"] or ours is None else ours / rate
        body.append(
            [
                name,
                row["method"],
                str(row["draws"]),
                digits(row["gradients"] / row["draws"]),
                digits(1e3 * row["seconds"] / row["gradients"]),
                digits(row["seconds"]),
                at_most + digits(fewest),
                at_most + digits(rate),
                "–" if slower is None else at_most.replace("≤", "≥") + times(slower),
            ]
        )
    header = ["grid", "along time", "draws", "gradients a draw", "ms a gradient", "seconds"]
    header += ["fewest effective samples", "of them a second", "filter over this"]
    return table(header, body)


def run(quick: bool) -> None:
    """The filter, then what it adapted in the hands of the decomposition."""
    rows: list[dict[str, Any]] = []
    shape, draws = (QUICK_SHAPE, QUICK_DRAWS) if quick else (SHAPE, DRAWS)
    adapted = None
    for structure, num_draws in draws.items():
        row: dict[str, Any] = {"shape": list(shape), "method": NAMES[structure]}
        inputs = {"structure": structure, "shape": list(shape), "num_draws": num_draws}
        try:
            row |= apart("markov_nuts", "sample", LIMIT_S, **inputs, adapted=adapted)
        except CandidateError as reason:
            row["error"] = str(reason)
        adapted = adapted or row.pop("adapted", None)
        row.pop("adapted", None)
        rows.append(row)
        print(nuts_table(rows).splitlines()[-1], flush=True)
        save("markov_nuts", rows, quick)
