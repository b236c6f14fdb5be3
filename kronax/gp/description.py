"""What a grid GP says about itself."""

from typing import Any

from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.terms import TermSum
from kronax.gp.solver_choice import described
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
    lines += described(gp)
    lines += [f"  {line}" for line in gp.remarks()]
    table = repr(parameters(gp)).splitlines()
    return "\n".join(lines + [f"  {row}" for row in table])


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
