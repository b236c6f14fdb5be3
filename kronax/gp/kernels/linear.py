"""Straight lines and planes."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.coordinates.spacing import Origin, difference
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.points import Points


class Linear(Kernel):
    """`Σ (x − c)(x' − c)`; a line through zero at `c`, of unknown slope.

    `a * Linear(c)` is a slope of variance `a`, in squared units of the data over those of the
    axis; add a `Constant` for an unknown level at `c`. It is not stationary, and of rank one per
    dimension.

    Args:
        centre: `c`, where the line is zero, in units of the axis: a coordinate, hence data and no
            parameter; a number for all dimensions, or one per dimension.

    Raises:
        TypeError: if the centre is traced, or no number.

    Examples:
        >>> import kronax as kx
        >>> kx.Linear(centre=2000.0).evaluate(2001.0, 2003.0).item()
        3.0
    """

    not_markov: ClassVar[str] = "it depends on where places are, which gaps do not tell"
    centre: Origin = eqx.field(static=True)

    def __init__(self, centre: Any = 0.0):
        if isinstance(centre, jax.core.Tracer):
            raise TypeError(
                "The centre of a linear kernel must be concrete, as coordinates are; got a traced "
                "one. Where it is unknown, add a kx.Constant."
            )
        given = np.asarray(centre)
        if given.dtype.kind not in "fiu" or given.ndim > 1 or not np.isfinite(given).all():
            raise TypeError(
                "The centre of a linear kernel must be a finite number, or one per dimension; got "
                f"{centre!r}."
            )
        # Integers stay exact, as coordinates do: nanoseconds since 1970 are no float64 numbers.
        values = (given if given.dtype.kind in "iu" else given.astype(float)).tolist()
        self.centre = tuple(values) if given.ndim else values

    @property
    def takes_labels(self) -> bool:
        """Never, as codes have no order."""
        return False

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse a centre in another number of dimensions."""
        if np.shape(self.centre) not in ((), x.shape[1:]):
            raise ValueError(
                f"The kernel of {name}: the centre of a linear kernel must be one number, or one "
                f"per dimension of coordinates (n, p); got {self.centre} for coordinates of shape "
                f"{x.shape}."
            )

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        centre = np.asarray(self.centre, jnp.result_type(x, z))
        return jnp.sum((x - centre) * (z - centre))

    def matrix_at(self, x1: Points, x2: Points) -> Array:
        """From centred points, so that large coordinates lose nothing in float32."""
        if x1.origin is None:
            return self(x1.raw, x2.raw)
        return self._moved(x1.origin)(x1.centred, x2.centred)

    def variances_at(self, x: Points) -> Array:
        """From centred points too."""
        if x.origin is None:
            return self.diagonal(x.raw)
        return self._moved(x.origin).diagonal(x.centred)

    def _moved(self, origin: Origin) -> "Linear":
        return Linear(difference(self.centre, origin))
