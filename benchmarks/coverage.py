"""W6: whether bands at missing cells hold what they promise, with fitted parameters.

Fields are drawn from the model, each with lengthscales and noise of its own; cells are taken out in
several shapes; the model is fitted to the rest of each field, from one start for all, and its bands
for noisy data are held against the cells that were taken out.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import kronax as kx
from benchmarks.measure import save

NUM_FIELDS = 40
QUICK_NUM_FIELDS = 3
LEVELS = (0.5, 0.95)
# By how much parameters differ from field to field: the standard deviation of their logarithms.
SCATTER = 0.3
NOISE = 0.1


class Shape(NamedTuple):
    """Gaps of one kind on one grid."""

    grid: tuple[int, ...]
    missing: Callable[[tuple[int, ...]], np.ndarray]


def scattered(share: float) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Cells anywhere."""
    return lambda grid: np.random.default_rng(1).random(grid) < share


def blocks(grid: tuple[int, ...]) -> np.ndarray:
    """Clouds: rectangles at several places."""
    missing = np.zeros(grid, bool)
    missing[2:8, 3:9] = missing[12:17, 1:6] = missing[9:15, 11:18] = True
    return missing


def land(grid: tuple[int, ...]) -> np.ndarray:
    """The same places along the first axis: a continent, and an island."""
    places = np.zeros(grid[1:], bool)
    places[:5, :4] = places[3:7, 4:6] = places[7:9, 8:10] = True
    return np.broadcast_to(places, grid).copy()


def cut_short(grid: tuple[int, ...]) -> np.ndarray:
    """Curves that end early, each at its own place, and a few that do not."""
    ends = np.random.default_rng(2).integers(grid[1] // 4, grid[1] + grid[1] // 3, grid[0])
    return np.arange(grid[1]) >= ends[:, None]


SHAPES = {
    "a tenth, scattered": Shape((24, 20), scattered(0.1)),
    "half, scattered": Shape((24, 20), scattered(0.5)),
    "blocks": Shape((24, 20), blocks),
    "land, the same in all months": Shape((12, 10, 10), land),
    "series cut short": Shape((24, 20), cut_short),
}


def model(grid: tuple[int, ...], lengthscale: Any = 0.3, noise: Any = NOISE) -> kx.GridGP:
    """A Matérn-3/2 process on regular axes of length one."""
    scales = jnp.broadcast_to(lengthscale, len(grid))
    kernels = [kx.Matern32(scale) for scale in scales]
    kernels[0] = jnp.ones(()) * kernels[0]
    return kx.GridGP(kernels, [np.linspace(0, 1, n) for n in grid], noise)


def measure(name: str, num_fields: int) -> list[dict[str, Any]]:
    """One row for fitted and one for true parameters."""
    grid, missing_on = SHAPES[name]
    missing = missing_on(grid)
    rng = np.random.default_rng(0)
    moves = np.exp(SCATTER * rng.standard_normal((num_fields, len(grid) + 1)))
    truths = eqx.filter_vmap(lambda move: model(grid, 0.3 * move[1:], NOISE * move[0]))(moves)
    keys = jax.random.split(jax.random.key(0), num_fields)
    fields = eqx.filter_vmap(lambda gp, key: gp.sample(key, include_noise=True))(truths, keys)
    seen = jnp.where(missing, jnp.nan, fields)

    began = perf_counter()
    result = kx.fit(model(grid, 0.2, 0.3), seen, independent=True, progress=False)
    seconds = perf_counter() - began
    found = {"fitted": result.model, "true": truths}
    return [
        {
            "gaps": name,
            "shape": list(grid),
            "num_missing": int(missing.sum()),
            "num_fields": num_fields,
            "parameters": which,
            "num_converged": int(np.sum(result.converged)),
            "fit_seconds": seconds,
            **_coverage(gps, seen, fields, missing),
        }
        for which, gps in found.items()
    ]


def _coverage(gps: Any, seen: Any, fields: Any, missing: np.ndarray) -> dict[str, Any]:
    """Per level the mean over fields of the share in the band, and its standard error."""

    def standardised(gp, y, truth):
        post = gp.observing(~missing).condition(jnp.nan_to_num(y))
        variance = post.variance(include_noise=True)
        return ((truth - post.mean()) / jnp.sqrt(variance))[missing]

    z = np.abs(np.asarray(eqx.filter_jit(eqx.filter_vmap(standardised))(gps, seen, fields)))
    shares = {level: np.mean(z < norm.ppf((1 + level) / 2), axis=1) for level in LEVELS}
    return {
        "coverage": {f"{level}": float(share.mean()) for level, share in shares.items()},
        "standard_error": {
            f"{level}": float(share.std(ddof=1) / np.sqrt(share.size))
            for level, share in shares.items()
        },
    }


def run(quick: bool) -> None:
    """Measure every shape of gaps."""
    rows: list[dict[str, Any]] = []
    for name in SHAPES:
        rows += measure(name, QUICK_NUM_FIELDS if quick else NUM_FIELDS)
        for row in rows[-2:]:
            print(f"{name}, {row['parameters']} parameters: {row['coverage']}", flush=True)
    save("coverage", rows, quick, scatter=SCATTER, noise=NOISE)
