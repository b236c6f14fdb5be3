"""A list of surprising observations, in the user's coordinates."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kronax.display import aligned
from kronax.gp.axes.axis import Axis
from kronax.gp.coordinates.spacing import written


@dataclasses.dataclass(frozen=True)
class Outlier:
    """One observation beside what the others predict for it.

    Attributes:
        index: in the array of the data, batch axes first.
        where: its coordinates by axis, as they were given: dates, labels, numbers.
        observed: in units of the data.
        predicted: from the other observations.
        standard_deviation: of that prediction, noise included.
        z: the error in standard deviations.
    """

    index: tuple[int, ...]
    where: dict[str, Any]
    observed: float
    predicted: float
    standard_deviation: float
    z: float


class Outliers(tuple[Outlier, ...]):
    """Surprising observations, the most surprising first; prints as a table.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x.at[1].add(5.0))
        >>> worst = post.leave_one_out().outliers(number=3)[0]
        >>> worst.index[1], abs(worst.z) > 3
        (1, True)
    """

    def __repr__(self) -> str:
        if not self:
            return "no outliers"
        names = list(self[0].where)
        is_batched = len(self[0].index) > len(names)
        header = (*(("data set",) if is_batched else ()), *names, "observed", "predicted", "sd")
        rows = [(*header, "z")]
        for one in self:
            entry = ", ".join(map(str, one.index[: len(one.index) - len(names)]))
            numbers = (one.observed, one.predicted, one.standard_deviation)
            rows.append(
                (
                    *((entry,) if is_batched else ()),
                    *map(shown, one.where.values()),
                    *(f"{number:.4g}" for number in numbers),
                    f"{one.z:+.2f}",
                )
            )
        return aligned(rows)


def coordinates_at(
    axes: Sequence[Axis], names: Sequence[str], index: Sequence[int]
) -> dict[str, Any]:
    """Where a cell is, in the coordinates that were given."""
    return {name: axis.at(k) for axis, name, k in zip(axes, names, index, strict=True)}


def shown(coordinate: Any) -> str:
    """A coordinate in few characters."""
    if isinstance(coordinate, tuple):
        return f"({', '.join(map(shown, coordinate))})"
    if isinstance(coordinate, float):
        return written(coordinate)
    text = str(coordinate)
    return text.removesuffix("T00:00:00.000000000").removesuffix(" 00:00:00")


def most_surprising(z: np.ndarray, threshold: float, number: int | None) -> np.ndarray:
    """The flat indices of the largest `|z|`, in order: beyond a threshold, or a number of them."""
    size = np.nan_to_num(np.abs(z).ravel(), nan=-1.0)
    if number is None:
        number = int((size > threshold).sum())
    return np.argsort(-size, kind="stable")[:number]
