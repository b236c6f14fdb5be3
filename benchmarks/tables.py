"""The tables of README and documentation, as markdown, from stored rows."""

from math import prod
from typing import Any

NAMES = {"kronax": "kronax", "naive": "autodiff through `eigh`", "dense": "dense", "eigh": "`eigh`"}
CONVERGED_R_HAT = 1.05
LIKELIHOOD_PEERS = ("PyMC", "GPyTorch", "luas")
# Below this many bytes of data what is resident is the program, not the arrays.
LEAST_BYTES_TO_COUNT = 8e6


def gradients_table(rows: list[dict[str, Any]]) -> str:
    """Relative errors of gradient and Hessian, kronax beside autodiff."""
    body = []
    for ours, theirs in _pairs(rows, ("kernel", "shape", "dtype", "parameters")):
        case = f"{ours['kernel']}{_correlations(ours)}, {_grid(ours)}, {ours['dtype']}"
        body.append(
            [case]
            + [
                _error(r[f"{kind}_error"]) if f"{kind}_error" in r else "–"
                for r in (ours, theirs)
                for kind in ("gradient", "hessian")
            ]
        )
    header = ["", "kronax, gradient", "Hessian", "autodiff through `eigh`, gradient", "Hessian"]
    return _table(header, body)


def likelihood_table(rows: list[dict[str, Any]]) -> str:
    """Times in milliseconds with the error of the gradient beside them."""
    body = []
    for group in _groups(rows, ("kernel", "shape")):
        if "kronax" not in group:
            continue
        kronax, naive, regular = (group[name] for name in ("kronax", "naive", "regular"))
        body.append(
            [
                kronax["kernel"],
                _grid(kronax),
                _milliseconds(group["eigh"]),
                _milliseconds(kronax),
                f"{kronax['over_eigh']:.2f}",
                _milliseconds(regular),
                f"{regular['over_eigh']:.2f}",
                _milliseconds(naive),
                _milliseconds(group.get("dense")),
                _error(kronax["gradient_error"]),
                _error(naive["gradient_error"]),
            ]
        )
    header = ["kernel", "grid", "`eigh`, ms", "kronax, ms", "kronax / `eigh`"]
    header += ["regular axes seen, ms", "regular / `eigh`"]
    header += ["autodiff through `eigh`, ms", "dense, ms"]
    return _table([*header, "gradient error: kronax", "autodiff"], body)


def likelihood_peers_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of other libraries, with the error of the gradient in brackets."""
    body = []
    for group in _groups(rows, ("kernel", "shape")):
        if not any(name in group for name in LIKELIHOOD_PEERS):
            continue
        kronax, regular = group["kronax"], group["regular"]
        body.append(
            [
                kronax["kernel"],
                _grid(kronax),
                _milliseconds(kronax),
                _milliseconds(regular),
                *(_with_error(group.get(name)) for name in LIKELIHOOD_PEERS),
                kronax.get("fastest_peer", "–"),
                *(_times(r.get("fastest_peer_over_this")) for r in (kronax, regular)),
            ]
        )
    header = ["kernel", "grid", "kronax, ms", "kronax, regular axes seen, ms"]
    header += [f"{name}, ms (gradient error)" for name in LIKELIHOOD_PEERS]
    return _table([*header, "fastest", "fastest / kronax", "fastest / regular"], body)


def square_likelihood_peers_table(rows: list[dict[str, Any]]) -> str:
    """The same for the larger square grids and one kernel."""
    kept = [r for r in rows if r["kernel"] == "Matérn-3/2" and 100 <= r["shape"][0] <= 1000]
    return likelihood_peers_table([r for r in kept if len(set(r["shape"])) == 1])


def low_rank_table(rows: list[dict[str, Any]]) -> str:
    """Factors of low rank beside the decompositions that they do without."""
    body = [
        [
            group["low rank"]["kernel"],
            _grid(group["low rank"]),
            _milliseconds(group["eigh"]),
            _milliseconds(group["low rank"]),
            _error(group["low rank"].get("gradient_error")),
        ]
        for group in _groups(rows, ("kernel", "shape"))
        if "low rank" in group
    ]
    return _table(["kernel", "grid", "`eigh`, ms", "low rank, ms", "gradient error"], body)


def solve_table(rows: list[dict[str, Any]], published: dict[str, Any] | None = None) -> str:
    """Times in microseconds, and how many times faster than dense."""
    body = []
    for group in _groups(rows, ("kind", "size", "form")):
        kronax = group["kronax"]
        size = str(kronax["size"])
        is_published = published and (kronax["kind"], kronax["form"]) == ("general", "vector")
        body.append(
            [
                kronax["kind"],
                f"{size}²",
                kronax["form"],
                *(
                    _microseconds(group.get(name))
                    for name in ("kronax", "kronax, not jitted", "NumPy", "PyTensor", "GPyTorch")
                ),
                _microseconds(group.get("dense")),
                _times(kronax["dense_over_this"]),
                _times(published["dense"][size] / published["rewrite"][size])
                if is_published
                else "–",
                _error(kronax["residual"]) if "residual" in kronax else "–",
            ]
        )
    header = ["factors", "size", "right side", "kronax, µs", "not jitted, µs", "NumPy by axis, µs"]
    header += ["PyTensor, µs", "GPyTorch, µs", "dense, µs", "dense / kronax"]
    return _table([*header, "dense / rewrite, as published", "residual"], body)


def matvec_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds, and how much of the machine's rate the operations come to."""
    others = ("einsum", "dense", "pykronecker, NumPy", "pykronecker, JAX", "GPyTorch")
    body = []
    for group in _groups(rows, ("case",)):
        kronax = group["kronax"]
        body.append(
            [
                kronax["case"],
                f"{kronax['product_rate'] / 1e9:.0f}",
                _milliseconds(kronax),
                f"{kronax['rate'] / kronax['product_rate']:.0%}",
                *(_milliseconds(group.get(name)) for name in others),
                _error(kronax["error_of_result"]),
            ]
        )
    header = ["", "matrix product, Gflop/s", "kronax, ms", "of the rate"]
    return _table([*header, *(f"{name}, ms" for name in others), "error"], body)


def scale_table(rows: list[dict[str, Any]]) -> str:
    """Seconds, and memory in arrays of N numbers."""
    body = []
    for group in _groups(rows, ("shape", "dtype")):
        first = next(iter(group.values()))
        row = [f"{prod(first['shape']):,}", _grid(first), first["dtype"]]
        for name in ("kronax", "regular", "GPyTorch"):
            row += [_seconds(group.get(name)), _arrays(group.get(name))]
        errors = [group.get(name, {}).get("gradient_error") for name in ("kronax", "GPyTorch")]
        body.append(row + ["–" if error is None else _error(error) for error in errors])
    header = ["cells", "grid", "", "kronax, s", "memory"]
    header += ["regular axes seen, s", "memory", "GPyTorch, s", "memory"]
    return _table([*header, "gradient error: kronax", "GPyTorch"], body)


def mcmc_table(rows: list[dict[str, Any]]) -> str:
    """What became of each sampler."""
    body = []
    for row in rows:
        name = NAMES[row["method"]]
        draws = f"{row['num_chains']} × ({row['num_warmup']} + {row['num_samples']})"
        if row["seconds"] is None:
            body.append([name, draws, row["error"], *["–"] * 4])
            continue
        body.append(
            [
                name,
                draws,
                f"{row['seconds']:.1f}",
                f"{_worst(row):.2f}",
                f"{row['effective_samples_per_second']:.2g}",
                f"{row['steps_per_draw']:.0f}",
                str(row["divergences"]),
            ]
        )
    header = ["gradient", "chains × (warm-up + draws)", "seconds", "largest r-hat"]
    return _table([*header, "effective samples/s", "leapfrog steps a draw", "divergences"], body)


def whitening_table(rows: list[dict[str, Any]]) -> str:
    """Latent fields in several coordinates, one problem after another."""
    body = []
    for group in _groups(rows, ("counts", "is_sampled")):
        for method, row in group.items():
            parameters = "sampled" if row["is_sampled"] else "held"
            cells = [f"counts about {row['counts']}, parameters {parameters}", method]
            if row["seconds"] is None:
                body.append([*cells, row["error"], *["–"] * 6])
                continue
            worst = _worst(row)
            body.append(
                [
                    *cells,
                    f"{row['steps_per_draw']:.0f}",
                    f"{row['share_at_most_steps']:.0%}",
                    f"{worst:.2f}" if worst <= CONVERGED_R_HAT else f"**{worst:.2f}**",
                    str(row["divergences"]),
                    f"{min(row['effective_samples'].values()):.0f}",
                    f"{row['cpu_seconds']:.0f}",
                    f"{row['effective_samples_per_cpu_second']:.2g}",
                ]
            )
    header = ["problem", "field", "leapfrog steps a draw", "draws at the limit", "largest r-hat"]
    header += ["divergences", "fewest effective samples", "processor time, s"]
    return _table([*header, "effective samples per second of it"], body)


def _groups(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of one case together, by method, in the order in which they come."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        groups.setdefault(str([row[k] for k in keys]), {})[row["method"]] = row
    return list(groups.values())


def _pairs(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[tuple[Any, Any]]:
    return [(group["kronax"], group["naive"]) for group in _groups(rows, keys)]


def _grid(row: dict[str, Any]) -> str:
    return "×".join(map(str, row["shape"])) + (" points" if len(row["shape"]) == 1 else "")


def _correlations(row: dict[str, Any]) -> str:
    if row["kernel"] != "exchangeable":
        return ""
    values = [f"{v:.1g}" for v in row["parameters"][:-1]]
    return f" (correlations {', '.join(values)})"


def _worst(row: dict[str, Any]) -> float:
    return max(row["r_hat"].values())


def _error(value: float | None) -> str:
    """Two digits, powers of ten where they are needed; bold where nothing is right."""
    if value is None:
        return "**NaN**"
    if value == 0:
        return "0"
    if value >= 0.01:
        return f"**{value:.2g}**" if value < 99.5 else f"**{value:,.0f}**"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _milliseconds(row: dict[str, Any] | None) -> str:
    return _in_unit(row, 1e3)


def _microseconds(row: dict[str, Any] | None) -> str:
    mark = "≈ " if row and row.get("extrapolated") else ""
    return mark + _in_unit(row, 1e6)


def _seconds(row: dict[str, Any] | None) -> str:
    return _in_unit(row, 1)


def _in_unit(row: dict[str, Any] | None, unit: float) -> str:
    """Three digits; the reason where there is no time."""
    if row is None:
        return "–"
    if row["seconds"] is None:
        return row["error"].replace("|", "/")
    value = unit * row["seconds"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _with_error(row: dict[str, Any] | None) -> str:
    has_error = row is not None and "gradient_error" in row
    return _milliseconds(row) + (f" ({_error(row['gradient_error'])})" if has_error else "")


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


def _arrays(row: dict[str, Any] | None) -> str:
    """Resident, and what XLA planned in brackets; small data say nothing of the former."""
    if row is None or "arrays" not in row:
        return "–"
    planned = f" ({row['planned_arrays']:.1f})" if "planned_arrays" in row else ""
    is_small = row["bytes"] < LEAST_BYTES_TO_COUNT * row["arrays"]
    return ("–" if is_small else f"{row['arrays']:.1f}") + planned


def _table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
