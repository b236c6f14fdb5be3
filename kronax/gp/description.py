"""What a grid GP says about itself."""

from typing import Any

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
            f"  {label:<{width}}  {axis.size:>5}  {type(kernel).__name__}  "
            f"{structure.kind} ({words})"
        )
    table = repr(parameters(gp)).splitlines()
    return "\n".join(lines + [f"  {row}" for row in table])
