"""The tables of README and documentation, as markdown, from stored rows."""

from math import prod
from typing import Any

from benchmarks.markdown import digits, grid, table, times

# What `benchmarks.mcmc` samples with, in the order of the tables.
SAMPLERS = {
    "kronax": "kronax",
    "regular": "kronax, regular axes seen",
    "naive": "autodiff through `eigh`",
    "dense": "dense",
    "PyMC": "PyMC",
    "PyMC, NumPyro": "PyMC, sampler of NumPyro",
    "PyMC, dense": "PyMC, dense",
}
CONVERGED_R_HAT = 1.05
LIKELIHOOD_PEERS = ("PyMC", "GPyTorch", "luas")
FITTING_ALONE = ("starts", "progress bar")
# Below this many bytes of data what is resident is the program, not the arrays.
LEAST_BYTES_TO_COUNT = 8e6


def gradients_table(rows: list[dict[str, Any]]) -> str:
    """Relative errors of gradient and Hessian, kronax beside autodiff."""
    body = []
    for ours, theirs in _pairs(rows, ("kernel", "shape", "dtype", "parameters")):
        case = f"{ours['kernel']}{_correlations(ours)}, {grid(ours)}, {ours['dtype']}"
        body.append(
            [case]
            + [
                _error(r[f"{kind}_error"]) if f"{kind}_error" in r else "–"
                for r in (ours, theirs)
                for kind in ("gradient", "hessian")
            ]
        )
    header = ["", "kronax, gradient", "Hessian", "autodiff through `eigh`, gradient", "Hessian"]
    return table(header, body)


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
                grid(kronax),
                _milliseconds(group["eigh"]),
                _milliseconds(kronax),
                f"{kronax['over_eigh']:.2f}",
                _milliseconds(regular),
                f"{regular['over_eigh']:.2f}",
                digits(group["eigh"].get("product_gigaflops")),
                *(_quotient(row.get("over_eigh_and_products")) for row in (kronax, regular)),
                _milliseconds(naive),
                _milliseconds(group.get("dense")),
                _error(kronax["gradient_error"]),
                _error(naive["gradient_error"]),
            ]
        )
    header = ["kernel", "grid", "`eigh`, ms", "kronax, ms", "kronax / `eigh`"]
    header += ["regular axes seen, ms", "regular / `eigh`", "products, Gflop/s"]
    header += ["kronax / (`eigh` + 8 products)", "regular / the same"]
    header += ["autodiff through `eigh`, ms", "dense, ms"]
    return table([*header, "gradient error: kronax", "autodiff"], body)


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
                grid(kronax),
                _milliseconds(kronax),
                _milliseconds(regular),
                *(_with_error(group.get(name)) for name in LIKELIHOOD_PEERS),
                kronax.get("fastest_peer", "–"),
                *(times(r.get("fastest_peer_over_this")) for r in (kronax, regular)),
            ]
        )
    header = ["kernel", "grid", "kronax, ms", "kronax, regular axes seen, ms"]
    header += [f"{name}, ms (gradient error)" for name in LIKELIHOOD_PEERS]
    return table([*header, "fastest", "fastest / kronax", "fastest / regular"], body)


def square_likelihood_peers_table(rows: list[dict[str, Any]]) -> str:
    """The same for the larger square grids and one kernel."""
    kept = [r for r in rows if r["kernel"] == "Matérn-3/2" and 100 <= r["shape"][0] <= 1000]
    return likelihood_peers_table([r for r in kept if len(set(r["shape"])) == 1])


def low_rank_table(rows: list[dict[str, Any]]) -> str:
    """Factors of low rank beside the decompositions that they do without."""
    body = [
        [
            group["low rank"]["kernel"],
            grid(group["low rank"]),
            _milliseconds(group["eigh"]),
            _milliseconds(group["low rank"]),
            _error(group["low rank"].get("gradient_error")),
        ]
        for group in _groups(rows, ("kernel", "shape"))
        if "low rank" in group
    ]
    return table(["kernel", "grid", "`eigh`, ms", "low rank, ms", "gradient error"], body)


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
                times(kronax["dense_over_this"]),
                times(published["dense"][size] / published["rewrite"][size])
                if is_published
                else "–",
                _error(kronax["residual"]) if "residual" in kronax else "–",
            ]
        )
    header = ["factors", "size", "right side", "kronax, µs", "not jitted, µs", "NumPy by axis, µs"]
    header += ["PyTensor, µs", "GPyTorch, µs", "dense, µs", "dense / kronax"]
    return table([*header, "dense / rewrite, as published", "residual"], body)


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
    return table([*header, *(f"{name}, ms" for name in others), "error"], body)


def scale_table(rows: list[dict[str, Any]]) -> str:
    """Seconds, and memory in arrays of N numbers."""
    body = []
    for group in _groups(rows, ("shape", "dtype")):
        first = next(iter(group.values()))
        row = [f"{prod(first['shape']):,}", grid(first), first["dtype"]]
        for name in ("kronax", "regular", "GPyTorch"):
            row += [_seconds(group.get(name)), _arrays(group.get(name))]
        errors = [group.get(name, {}).get("gradient_error") for name in ("kronax", "GPyTorch")]
        body.append(row + ["–" if error is None else _error(error) for error in errors])
    header = ["cells", "grid", "", "kronax, s", "memory"]
    header += ["regular axes seen, s", "memory", "GPyTorch, s", "memory"]
    return table([*header, "gradient error: kronax", "GPyTorch"], body)


def mcmc_table(rows: list[dict[str, Any]]) -> str:
    """What became of each sampler on each problem."""
    body = []
    for group in _groups(rows, ("kernel", "shape")):
        for method in (m for m in SAMPLERS if m in group):
            row = group[method]
            draws = f"{row['num_warmup']} + {row['num_samples']}"
            first = [row["kernel"], grid(row), SAMPLERS[method], draws]
            body.append([*first, *_sampled(row), digits(row.get("load_average"))])
    header = [
        "kernel",
        "grid",
        "",
        "draws",
        "seconds",
        "processor time",
        "sampling alone",
        "largest r-hat",
    ]
    header += ["leapfrog steps a draw", "effective samples/s", "of sampling alone"]
    return table(
        [*header, "kronax / this", "by processor time", "means apart, standard errors", "load"],
        body,
    )


def nuts_peers_table(rows: list[dict[str, Any]]) -> str:
    """Effective samples per second, one line per problem."""
    body = []
    for group in _groups(rows, ("kernel", "shape")):
        first = next(iter(group.values()))
        cells = [_rate(group.get(method)) for method in SAMPLERS]
        body.append([f"{first['kernel']}, {grid(first)}", *cells])
    return table(["", *SAMPLERS.values()], body)


def _sampled(row: dict[str, Any]) -> list[str]:
    ratios = [_ratio(row, name) for name in ("kronax_over_this", "kronax_over_this_of_cpu")]
    time = row["error"] if "error" in row else _seconds(row)
    if "r_hat" not in row:
        return [time, digits(row["cpu_seconds"]), *["–"] * 5, *ratios, "–"]
    apart = row.get("deviation")
    return [
        time,
        digits(row["cpu_seconds"]),
        digits(row["sampling_seconds"]),
        f"{_worst(row):.2f}" if has_converged(row) else f"**{_worst(row):.3g}**",
        f"{row['steps_per_draw']:.0f}",
        f"{row['effective_samples_per_second']:.3g}",
        digits(row["effective_samples_per_second_of_sampling"]),
        *ratios,
        f"{max(apart.values()):.1f}" if apart else "–",
    ]


def _ratio(row: dict[str, Any], name: str) -> str:
    """A ratio, or what it is at least."""
    least = row.get(f"{name}_at_least")
    return f"≥ {times(least)}" if least else times(row.get(name))


def _rate(row: dict[str, Any] | None) -> str:
    """Effective samples per second, in brackets if they are of chains that do not agree."""
    if row is None:
        return "–"
    if "r_hat" not in row:
        return "unfinished"
    rate = f"{row['effective_samples_per_second']:.3g}"
    return rate if has_converged(row) else f"({rate}: r-hat {_worst(row):.3g})"


def has_converged(row: dict[str, Any]) -> bool:
    """Whether the chains of a sampler agree on every parameter."""
    return "r_hat" in row and _worst(row) <= CONVERGED_R_HAT


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
    return table([*header, "effective samples per second of it"], body)


def posterior_table(rows: list[dict[str, Any]]) -> str:
    """What is asked of a posterior, in likelihood values, and the memory of many draws."""
    body = []
    for row in rows:
        cells = [grid(row), row["what"]]
        if row["seconds"] is None:
            body.append([*cells, row["error"], "–", "–"])
            continue
        memory = f"{row['bytes'] / 1e9:.1f} GB" if "bytes" in row else "–"
        body.append([*cells, _milliseconds(row), times(row.get("ratio")), memory])
    return table(["grid", "what", "ms", "likelihood values", "memory"], body)


def coverage_table(rows: list[dict[str, Any]]) -> str:
    """The share of missing cells inside their bands, one line per shape of gaps and one for all."""
    body = []
    for group in _groups(rows, ("gaps",), by="parameters"):
        fitted, true = group["fitted"], group["true"]
        share = fitted["num_missing"] / prod(fitted["shape"])
        bands = [_share(fitted, "0.95"), _share(true, "0.95"), _share(fitted, "0.5")]
        fields = str(fitted["num_fields"])
        body.append([fitted["gaps"], grid(fitted), f"{share:.0%}", fields, *bands])
    if body:
        body.append(["all", "", "", str(sum(int(line[3]) for line in body)), *_means(rows)])
    header = ["gaps", "grid", "missing", "fields", "in the 95 % band", "with the true parameters"]
    return table([*header, "in the 50 % band"], body)


def _share(row: dict[str, Any], level: str) -> str:
    return f"{row['coverage'][level]:.1%} ± {row['standard_error'][level]:.1%}"


def _means(rows: list[dict[str, Any]]) -> list[str]:
    """Over all fields, of equal weight."""
    means = []
    for parameters, level in (("fitted", "0.95"), ("true", "0.95"), ("fitted", "0.5")):
        chosen = [row for row in rows if row["parameters"] == parameters]
        counts = [row["num_fields"] for row in chosen]
        total = sum(counts)
        pairs = list(zip(chosen, counts, strict=True))
        mean = sum(n * row["coverage"][level] for row, n in pairs) / total
        error = sum((n * row["standard_error"][level]) ** 2 for row, n in pairs) ** 0.5 / total
        means.append(f"{mean:.1%} ± {error:.1%}")
    return means


def fitting_table(rows: list[dict[str, Any]]) -> str:
    """Seconds to the optimum by method; what could not be run has its reason."""
    body = []
    for group in _groups([r for r in rows if r["method"] not in FITTING_ALONE], ("data",)):
        for row in group.values():
            ours = group["kronax"]
            cells = [f"{row['data']}, {grid(row)}", row["method"]]
            if row["seconds"] is None:
                body.append([*cells, row["error"], *["–"] * 6])
                continue
            near, ours_near = row["seconds_to_near"], ours["seconds_to_near"]
            body.append(
                [
                    *cells,
                    _in_unit({"seconds": near}, 1) if near else "never",
                    _in_unit(row, 1),
                    _in_unit({"seconds": row["first_call_seconds"]}, 1),
                    str(row["steps"]),
                    _error(max(0.0, row["above_best_per_cell"])),
                    _error(row["gradient_per_cell"]),
                    "–"
                    if row is ours
                    else f"{times(near and near / ours_near)}, "
                    f"{times(row['seconds'] / row['kronax_seconds'])}",
                ]
            )
    header = ["data", "method", "to within 1e-3 nats per cell, s", "to the end, s", "first call, s"]
    header += ["steps", "above the best, per cell", "gradient per cell"]
    return table([*header, "over kronax: within 1e-3, to the end"], body)


def fitting_starts_table(rows: list[dict[str, Any]]) -> str:
    """Which share of starts reaches the best value."""
    body = [
        [
            f"{row['data']}, {grid(row)}",
            row["kernels"],
            "yes" if row["initialised_reaches"] else "no",
            f"{row['num_reached']} of {row['num_starts']}",
            f"{row['num_calls_reached']} of {row['num_calls']}",
            f"{row['num_converged']} of {row['num_starts']}",
            str(row["most_steps"]),
        ]
        for row in rows
        if row["method"] == "starts"
    ]
    header = ["data", "first axis", "`initialise` reaches it", "random starts that do"]
    return table([*header, "calls with `restarts=5` that do", "converged", "most steps"], body)


def fitting_bar_table(rows: list[dict[str, Any]]) -> str:
    """What the progress bar costs."""
    body = [
        [
            f"{row['data']}, {grid(row)}",
            f"{1e3 * row['seconds_without']:.1f}",
            f"{1e3 * (row['seconds'] - row['seconds_without']):.1f}",
            f"{row['overhead']:.1%}",
        ]
        for row in rows
        if row["method"] == "progress bar"
    ]
    return table(["data", "fit without, ms", "the bar adds, ms", "share"], body)


def _groups(
    rows: list[dict[str, Any]], keys: tuple[str, ...], by: str = "method"
) -> list[dict[str, Any]]:
    """Rows of one case together, by method, in the order in which they come."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        groups.setdefault(str([row[k] for k in keys]), {})[row[by]] = row
    return list(groups.values())


def _pairs(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[tuple[Any, Any]]:
    return [(group["kronax"], group["naive"]) for group in _groups(rows, keys)]


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


def _quotient(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def _seconds(row: dict[str, Any] | None) -> str:
    return _in_unit(row, 1)


def _in_unit(row: dict[str, Any] | None, unit: float) -> str:
    """Three digits; the reason where there is no time."""
    if row is None:
        return "–"
    if row["seconds"] is None:
        return row["error"].replace("|", "/")
    return digits(unit * row["seconds"])


def _with_error(row: dict[str, Any] | None) -> str:
    has_error = row is not None and "gradient_error" in row
    return _milliseconds(row) + (f" ({_error(row['gradient_error'])})" if has_error else "")


def _arrays(row: dict[str, Any] | None) -> str:
    """Resident, and what XLA planned in brackets; small data say nothing of the former."""
    if row is None or "arrays" not in row:
        return "–"
    planned = f" ({row['planned_arrays']:.1f})" if "planned_arrays" in row else ""
    is_small = row["bytes"] < LEAST_BYTES_TO_COUNT * row["arrays"]
    return ("–" if is_small else f"{row['arrays']:.1f}") + planned
