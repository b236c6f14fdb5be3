"""Kernels and axes of a grid in one order, by position or by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from kronax.gp.axes.axis import Axis, ordered
from kronax.gp.kernels.named import Kernels
from kronax.paths import nearest


def refuse_mesh(axes: tuple[Axis, ...]) -> None:
    """Refuse two axes that are the arrays of a mesh."""
    shapes = {(axis.size, axis.num_dimensions) for axis in axes}
    if len(axes) == 2 and len(shapes) == 1 and axes[0].num_dimensions not in (None, 1, 2, 3):
        raise ValueError(
            f"Every axis has coordinates of shape {next(iter(shapes))}, as np.meshgrid gives them. "
            "Pass the coordinates of each axis alone, (n_1,) and (n_2,)."
        )


def aligned(kernels: Any, axes: Any) -> tuple[tuple, tuple, tuple[str, ...] | None]:
    """Kernels and axes in one order, and the names if they came by name."""
    if isinstance(kernels, Kernels) and kernels.names and isinstance(axes, Mapping):
        kernels = dict(zip(kernels.names, kernels.items, strict=True))  # those of another process
    if isinstance(kernels, Mapping) != isinstance(axes, Mapping):
        raise TypeError(
            "kernels and axes must both be sequences or both be dictionaries by axis name; got "
            f"{type(kernels).__name__} and {type(axes).__name__}."
        )
    if isinstance(axes, Mapping):
        names = tuple(axes)
        for name in kernels:
            if name not in names:
                raise KeyError(
                    f"The kernel {name!r} has no axis: no coordinates of that name were given."
                    f"{nearest(name, names)}"
                )
        missing = [name for name in names if name not in kernels]
        if missing:
            raise KeyError(
                f"The axis {missing[0]!r} has no kernel; got kernels for "
                f"{', '.join(map(repr, kernels)) or 'none'}. Give one kernel per axis."
            )
        return ordered(dict(kernels), names, len(names), "kernels"), tuple(axes.values()), names
    kernels, axes = ((tuple(v) if isinstance(v, Sequence) else (v,)) for v in (kernels, axes))
    if len(kernels) != len(axes) or not axes:
        raise ValueError(
            f"A GridGP needs one kernel per axis and at least one axis; got {len(kernels)} "
            f"kernels and {len(axes)} axes."
        )
    return kernels, axes, None
