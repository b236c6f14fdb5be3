"""Kernels of some dimensions of the coordinates."""

from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array

from kronax.gp.kernels.base import Kernel, as_kernel, as_points
from kronax.gp.kernels.points import Points


class ActiveDims(Kernel):
    """`k(x[dims], x'[dims])`: a kernel on some dimensions of coordinates `(n, p)`.

    Sums and products of them give each dimension a kernel of its own. On a sphere the dimensions
    are latitude and longitude, in degrees.

    Args:
        kernel: any kernel.
        dims: a dimension, which the kernel sees as `(n,)`, or a tuple of them, seen as `(n, q)`.

    Raises:
        ValueError: if dimensions are negative, or occur twice.
        TypeError: if they are no integers.

    Examples:
        >>> import numpy as np, kronax as kx
        >>> kernel = kx.ActiveDims(kx.RBF(0.5), 0) * kx.ActiveDims(kx.Matern32([1.0, 2.0]), (1, 2))
        >>> kernel(np.ones((4, 3)), np.ones((2, 3))).shape
        (4, 2)
    """

    not_markov: ClassVar[str] = "places in several dimensions have no order"
    kernel: Kernel
    dims: int | tuple[int, ...] = eqx.field(static=True)

    def __init__(self, kernel: Any, dims: int | tuple[int, ...]):
        self.kernel = as_kernel(kernel, "The kernel of ActiveDims must be")
        given = np.asarray(dims)
        if given.dtype.kind not in "iu" or given.ndim > 1:
            raise TypeError(f"dims must be an integer or a tuple of them; got {dims!r}.")
        if not given.size or given.min() < 0 or np.unique(given).size < given.size:
            raise ValueError(
                f"dims must be different dimensions, counted from 0; got {dims!r}. Leave out "
                "ActiveDims where the kernel sees all of them."
            )
        self.dims = tuple(given.tolist()) if given.ndim else int(given)

    @property
    def stationary(self) -> bool:
        """If the kernel is; it is not isotropic, since some directions do not count."""
        return self.kernel.stationary

    @property
    def has_slope(self) -> bool:
        """If the kernel does."""
        return self.kernel.has_slope

    @property
    def takes_labels(self) -> bool:
        """Never, as labels have one dimension."""
        return False

    def split_scale(self) -> tuple[Kernel, Array | None]:
        """The scale of the kernel."""
        inner, variance = self.kernel.split_scale()
        return ActiveDims(inner, self.dims), variance

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse coordinates without these dimensions."""
        if x.ndim != 2 or np.max(self.dims) >= x.shape[1]:
            raise ValueError(
                f"The coordinates of {name} must have the dimensions {self.dims}, counted from 0, "
                f"that its kernel sees; got shape {x.shape}."
            )
        for term in self.kernel.all_terms():
            term.check_coordinates(self._columns(x), name)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The kernel of these dimensions."""
        return self.kernel.evaluate(self._columns(x, 1), self._columns(z, 1))

    def __call__(self, x1: Any, x2: Any) -> Array:
        """The matrix of the kernel of these dimensions."""
        return self.kernel(*(self._columns(as_points(x, self)) for x in (x1, x2)))

    def diagonal(self, x: Any) -> Array:
        """The diagonal of the kernel of these dimensions."""
        return self.kernel.diagonal(self._columns(as_points(x, self)))

    def matrix_at(self, x1: Points, x2: Points) -> Array:
        """The matrix, from points in the form that suits the kernel inside."""
        return self.kernel.matrix_at(x1.columns(self.dims), x2.columns(self.dims))

    def variances_at(self, x: Points) -> Array:
        """The diagonal, from points in the form that suits the kernel inside."""
        return self.kernel.variances_at(x.columns(self.dims))

    def _columns(self, x: Any, ndim: int = 2) -> Any:
        if x.ndim != ndim or x.shape[-1] <= np.max(self.dims):
            raise ValueError(
                f"A kernel of the dimensions {self.dims} must have coordinates (n, p) with "
                f"p > {np.max(self.dims)}; got shape {x.shape}."
            )
        return x[..., self.dims if isinstance(self.dims, int) else np.asarray(self.dims)]
