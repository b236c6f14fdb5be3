"""What a grid GP says about itself."""

from math import prod
from typing import Any

import numpy as np

from kronax.domains import parameters
from kronax.gp.axes.axis import Axis
from kronax.gp.axes.markov import why_not_markov
from kronax.gp.axes.structure import Structure
from kronax.gp.kernels.base import Kernel, Product, Scale, Sum
from kronax.gp.kernels.oscillator import SHO
from kronax.gp.kernels.stationary import (
    Constant,
    Cosine,
    Isotropic,
    Matern12,
    Matern32,
    Matern52,
    Periodic,
    SquaredExponential,
    White,
)
from kronax.gp.kernels.terms import TermSum
from kronax.gp.model.process import AbstractProcess
from kronax.gp.model.solver_choice import described
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import FELT, LOST

# By NumPy, of the distance in lengthscales, so that a description compiles nothing. Where one is
# not known, its largest value bounds it.
PROFILES: dict[type, Any] = {
    SquaredExponential: lambda r: np.exp(-np.square(r) / 2),
    Matern12: lambda r: np.exp(-r),
    Matern32: lambda r: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
    Matern52: lambda r: (1 + np.sqrt(5) * r + 5 * np.square(r) / 3) * np.exp(-np.sqrt(5) * r),
}
# From so many places on, a description says whether an axis could be Markov.
LONG = 200
# Beyond, the distances of places without regular steps are too many for a description.
MOST_PLACES = 1000


def description(gp: AbstractProcess) -> str:
    """Axes with their kernels and structure, and the parameters with values and domains."""
    labels = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
    width = max(len(label) for label in labels)
    lines = [f"GridGP on {' × '.join(map(str, gp.grid_shape))} cells, {gp.dtype}"]
    for label, kernel, axis, structure in zip(
        labels, gp.kernels, gp.axes, gp.structures, strict=True
    ):
        words = ", ".join(word for word in (structure.reason, axis.describe()) if word)
        lines.append(
            f"  {label:<{width}}  {axis.size:>5}  {name_of(kernel)}  {structure.kind} ({words})"
        )
        lines += [f"  {line}" for line in _markov(kernel, axis, structure, label)]
    lines += [f"  {line}" for line in _terms(gp, labels)]
    if gp.likelihood is not None:
        lines.append(f"  likelihood {type(gp.likelihood).__name__}, {gp.approximation}")
    if gp.noise_model.is_none:
        lines.append("  no noise: the data are interpolated")
    if gp.table is not None:
        lines.append(f"  {gp.table.describe(prod(gp.grid_shape))}")
    lines += described(gp) + _rounding(gp)
    lines += [f"  {line}" for line in gp.remarks()]
    table = repr(parameters(gp)).splitlines()
    return "\n".join(lines + [f"  {row}" for row in table])


def _markov(kernel: Kernel, axis: Axis, structure: Structure, label: str) -> list[str]:
    """Whether a long axis could be Markov, or why not."""
    if axis.size < LONG or structure.kind in ("markov", "diagonal") or structure.rank is not None:
        return []
    reason = why_not_markov(kernel, axis)
    if reason is None:
        return [f'{label} can be Markov: structure="markov" takes time linear in its length']
    return [f"{label} is not Markov: {reason}"]


def _rounding(gp: AbstractProcess) -> list[str]:
    """What the precision carries, where that is near: by NumPy, so that nothing is compiled."""
    noise = gp.noise_model.one_variance
    if gp.terms is not None or noise is None:
        return []
    if not is_concrete((gp.variance, noise, gp.kernels, gp.axes)):
        return []
    known = [variance_of(kernel) for kernel in gp.kernels]
    variances = [v for v in known if v is not None]
    if len(variances) < len(known):
        return []
    cells = prod(gp.grid_shape) if gp.observed is None else int(gp.observed.array.sum())
    by_rows = prod(map(_row_sum, gp.kernels, gp.axes))
    signal = float(1.0 if gp.variance is None else gp.variance)
    signal *= min(cells * prod(variances), by_rows)
    ratio = float(np.finfo(gp.dtype).eps) * signal / float(noise)
    if ratio <= FELT:
        return []
    return [
        f"  rounding times condition number: at most {ratio:.1g} in {gp.dtype}; at {LOST:g} means "
        "are off by a deviation"
    ]


def _row_sum(kernel: Kernel, axis: Axis) -> float:
    """A bound on the largest eigenvalue on an axis: the largest sum of a row, or the trace."""
    trace = axis.size * correlation(kernel, np.zeros((1, 1)))[0]
    is_bent = axis.period is not None or axis.radius is not None
    if axis.static is None or is_bent or axis.size == 1:
        return trace
    x = axis.offsets.reshape(axis.size, -1)
    if axis.static.is_regular:  # no row has more than each distance twice
        own = correlation(kernel, x - x[0])
        return min(trace, 2 * own.sum() - own[0])
    if axis.size > MOST_PLACES:
        return trace
    apart = (x[:, None] - x).reshape(axis.size**2, -1)
    return correlation(kernel, apart).reshape(axis.size, axis.size).sum(axis=1).max()


def correlation(kernel: Kernel, lag: np.ndarray) -> np.ndarray:
    """A bound on the absolute value of a kernel that has one variance at differences `(m, p)`."""
    if isinstance(kernel, Sum | Product):
        join = np.add if isinstance(kernel, Sum) else np.multiply
        return join(correlation(kernel.first, lag), correlation(kernel.second, lag))
    if isinstance(kernel, Scale):
        return float(kernel.variance) * correlation(kernel.kernel, lag)
    if isinstance(kernel, White):
        return np.where((lag == 0).all(axis=1), float(kernel.variance), 0.0)
    profile = PROFILES.get(type(kernel))
    if profile is None or not isinstance(kernel, Isotropic):
        return np.full(len(lag), variance_of(kernel) or 0.0)
    with np.errstate(over="ignore"):
        r = np.sqrt(np.square(lag / np.asarray(kernel.lengthscale, float)).sum(axis=1))
    return profile(np.minimum(r, 1e3))


def variance_of(kernel: Kernel) -> float | None:
    """The variance of a kernel that has one number for it, without evaluating it."""
    if isinstance(kernel, Isotropic | Periodic | Cosine | SHO):
        return 1.0
    if isinstance(kernel, Constant | White):
        return float(kernel.variance)
    if isinstance(kernel, Scale):
        inner = variance_of(kernel.kernel)
        return None if inner is None else float(kernel.variance) * inner
    if isinstance(kernel, Sum | Product):
        first, second = variance_of(kernel.first), variance_of(kernel.second)
        if first is None or second is None:
            return None
        return first + second if isinstance(kernel, Sum) else first * second
    return None


def name_of(kernel: Kernel) -> str:
    """What a kernel is called."""
    return " + ".join(kernel.names) if isinstance(kernel, TermSum) else type(kernel).__name__


def _terms(gp: AbstractProcess, labels: tuple[str, ...]) -> list[str]:
    """How the terms of an additive model came to be exact."""
    if gp.terms is None:
        return []
    lines, signal = [], gp.terms.signal
    if not gp.terms.are_exact:
        count = len(gp.terms.names)
        return [f"{', '.join(gp.terms.names)}: {count} Kronecker products"]
    if len(signal) > 1:
        lines.append(
            f"{', '.join(signal)}: one Kronecker product, since they differ on "
            f"{labels[gp.terms.axis]} only"
        )
    elif gp.joined is not None:
        lines.append(f"{signal[0]}: a Kronecker product")
    if gp.joined is not None and gp.joined_structure is not None:
        i = gp.additive.joined_axis
        white = [label for j, label in enumerate(labels) if j != i]
        where = f"white on {', '.join(white)}" if white else "on the only axis"
        lines.append(
            f"{', '.join(gp.additive.joined)}: added to the noise on {labels[i]}, "
            f"{gp.joined_structure.kind}, since {where}"
        )
    return lines
