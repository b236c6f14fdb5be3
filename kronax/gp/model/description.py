"""What a grid GP says about itself."""

from math import prod
from typing import Any

import numpy as np

from kronax.gp.kernels.base import Kernel, Product, Scale, Sum
from kronax.gp.kernels.stationary import Constant, Cosine, Isotropic, Periodic, White
from kronax.gp.kernels.terms import TermSum
from kronax.gp.model.noise import AxisNoise, CellNoise, FullNoise
from kronax.gp.model.solver_choice import described
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import FELT, LOST
from kronax.parameters import parameters


def description(gp: Any) -> str:
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
    lines += [f"  {line}" for line in _terms(gp, labels)]
    lines += described(gp) + _rounding(gp)
    lines += [f"  {line}" for line in gp.remarks()]
    table = repr(parameters(gp)).splitlines()
    return "\n".join(lines + [f"  {row}" for row in table])


def _rounding(gp: Any) -> list[str]:
    """What the precision carries, where that is near: by the trace, without any computation."""
    known = (gp.variance, gp.noise, gp.kernels)
    if gp.terms is not None or isinstance(gp.noise, CellNoise | FullNoise | AxisNoise):
        return []
    if not is_concrete(known):
        return []
    variances = [v for v in map(variance_of, gp.kernels) if v is not None]
    if len(variances) < len(gp.kernels):
        return []
    cells = prod(gp.grid_shape) if gp.observed is None else int(gp.observed.array.sum())
    signal = cells * float(1.0 if gp.variance is None else gp.variance) * prod(variances)
    ratio = float(np.finfo(gp.dtype).eps) * signal / float(gp.noise)
    if ratio <= FELT:
        return []
    return [
        f"  rounding times condition number: at most {ratio:.1g} in {gp.dtype}; at {LOST:g} means "
        "are off by a deviation"
    ]


def variance_of(kernel: Kernel) -> float | None:
    """The variance of a kernel that has one number for it, without evaluating it."""
    if isinstance(kernel, Isotropic | Periodic | Cosine):
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


def _terms(gp: Any, labels: tuple[str, ...]) -> list[str]:
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
    if gp.joined is not None:
        i = gp.terms.joined_axis
        white = [label for j, label in enumerate(labels) if j != i]
        where = f"white on {', '.join(white)}" if white else "on the only axis"
        lines.append(
            f"{', '.join(gp.terms.joined)}: added to the noise on {labels[i]}, "
            f"{gp.joined_structure.kind}, since {where}"
        )
    return lines
