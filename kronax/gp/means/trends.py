"""Lines, polynomials and harmonics along one axis, or one dimension of its places."""

import abc
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.domains import as_parameter, parameter
from kronax.gp.axes.axis import Axis
from kronax.gp.axes.dates import Dates, place_of
from kronax.gp.coordinates.spacing import difference
from kronax.gp.kernels.points import Points
from kronax.gp.means.coefficients import RegressionMean, Term
from kronax.gp.means.means import Mean
from kronax.linalg.arrays.checks import whole
from kronax.paths import nearest


class AxisMean(RegressionMean):
    """`Σ_j β_j h_j(x)` with functions `h_j` of one axis, or of one dimension of its places."""

    axis: eqx.AbstractVar[int | str]
    coefficients: eqx.AbstractVar[Array | None]
    centre: eqx.AbstractVar[float | None]
    scale: eqx.AbstractVar[float | None]
    dim: eqx.AbstractVar[int | None]
    # Whether the first function is one everywhere.
    has_level: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def terms(self) -> tuple[str, ...]:
        """What each coefficient belongs to."""

    @abc.abstractmethod
    def functions(self, x: Array) -> Float[Array, "p n"]:
        """The functions at `(x − centre) / scale`, or at `x` itself where they have no centre."""

    def weights(self) -> Float[Array, " p"] | None:
        """The coefficients."""
        return self.coefficients

    @property
    def units(self) -> tuple[float, ...]:
        """What each coefficient is multiplied by to be in units of the data, or per unit of `x`."""
        return (1.0,) * len(self.terms)

    def note(self, name: str, axis: Axis) -> str:
        """What has to be known of an axis to read the coefficients; empty if nothing has."""
        return ""

    def notes(self, axes: Sequence[Axis], names: tuple[str, ...] | None) -> tuple[str, ...]:
        """The same of all axes."""
        note = self.note(self._label(names), axes[self._number(len(axes), names)])
        return (note,) if note else ()

    def functions_of(self, names: tuple[str, ...] | None) -> tuple[Term, ...]:
        """Those of the axis, each with its unit."""
        label, found = self._label(names), []
        own = (type(self).__name__, self.axis, self.dim, self.centre, self.scale)
        for k, (term, unit) in enumerate(zip(self.terms, self.units, strict=True)):
            key: tuple = () if self.has_level and k == 0 else ((*own, *self._more, term),)
            found.append(Term(f"{label}: {term}", key, unit))
        return tuple(found)

    @property
    def _more(self) -> tuple:
        """What tells functions of the same axis apart beside their terms."""
        return ()

    def _label(self, names: tuple[str, ...] | None) -> str:
        axis = self.axis
        if isinstance(axis, int):
            axis = names[axis] if names else f"axis {axis}"
        return axis if self.dim is None else f"{axis}[{self.dim}]"

    def design(self, *axes: Array) -> Float[Array, "p ..."]:
        """The functions on the grid of the axes; they broadcast to it."""
        i = self._number(len(axes))
        x = axes[i] if self.dim is None or axes[i].ndim != 2 else axes[i][:, self.dim]
        return self._design(x, i, len(axes), self.centre)

    def design_at(self, *axes: Points) -> Float[Array, "p ..."]:
        """The same at points of the axes, counted from their origin."""
        i = self._number(len(axes))
        x = axes[i] if self.dim is None or axes[i].raw.ndim != 2 else axes[i].columns(self.dim)
        if x.origin is None or isinstance(x.origin, tuple):
            return self._design(x.raw, i, len(axes), self.centre)
        return self._design(x.centred, i, len(axes), self.centre_from(x.origin))

    def centre_from(self, origin: int | float) -> float:
        """The centre as seen from an origin."""
        return difference(0.0 if self.centre is None else self.centre, origin)

    def _design(self, x: Array, i: int, num_axes: int, centre: float | None) -> Array:
        if x.ndim != 1:
            raise ValueError(
                f"The axis of a {type(self).__name__} must have coordinates (n,); got places of "
                f"shape {x.shape}. Say which dimension of them it is along, such as dim=0."
            )
        if centre is not None:
            x = x - jnp.asarray(centre, x.dtype)
        if self.scale is not None:
            x = x / jnp.asarray(self.scale, x.dtype)
        values = self.functions(x)
        if values.shape != (len(self.terms), x.shape[0]):
            raise ValueError(
                f"`functions` of {type(self).__name__} must return shape ({len(self.terms)}, "
                f"{x.shape[0]}), one row per coefficient; got shape {values.shape}."
            )
        shape = [1] * num_axes
        shape[i] = x.shape[0]
        return values.reshape(len(self.terms), *shape)

    def bound(self, axes: Sequence[Axis], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """The mean of a process: its axis by number, centred on its coordinates."""
        i = self._number(len(axes), names)
        self._check_dim(axes[i])
        changes: dict[str, Any] = {"axis": i}
        static = axes[i].static
        centred = any(f.name == "centre" and f.init for f in dataclasses.fields(self))
        if centred and static is not None and (static.values.ndim == 1 or self.dim is not None):
            x, origin = static.counted, static.origin
            if static.values.ndim == 2:
                x = x[:, self.dim]
                origin = origin[self.dim or 0] if isinstance(origin, tuple) else origin
            half = float(np.ptp(x)) / 2
            if self.centre is None:
                changes["centre"] = difference(origin, -float(x.min()) - half)
            if self.scale is None:
                changes["scale"] = half or 1.0
        if self.coefficients is None:
            changes["coefficients"] = self.zeros(len(self.terms), dtype)
        return self.changed(**changes)

    def _check_dim(self, axis: Axis) -> None:
        count = axis.num_dimensions
        if self.dim is not None and not (count and 0 <= self.dim < count):
            got = "has coordinates (n,)" if count is None else f"has {count}, counted from zero"
            raise ValueError(
                f"`dim` of a {type(self).__name__} must be a dimension of the places of its axis; "
                f"got {self.dim!r}, and the axis {got}."
            )

    def _number(self, num_axes: int, names: tuple[str, ...] | None = None) -> int:
        known: tuple[Any, ...] = (*(names or ()), *range(num_axes))
        if self.axis not in known:
            raise KeyError(
                f"The axis of a {type(self).__name__} is unknown: {self.axis!r}."
                f"{nearest(self.axis, known)}"
            )
        return names.index(self.axis) if names and self.axis in names else int(self.axis)


def _frame(centre: Any, scale: Any) -> tuple[float | None, float | None]:
    """Centre and scale as numbers, where they are given."""
    for name, value, low in (("centre", centre, -np.inf), ("scale", scale, 0.0)):
        if value is not None and not low < float(value) < np.inf:
            kind = "a finite number" if name == "centre" else "positive and finite"
            raise ValueError(
                f"The {name} of a mean must be {kind}, in units of the axis; got {value!r}."
            )
    return None if centre is None else float(centre), None if scale is None else float(scale)


def _numbers(value: Any, count: int, name: str) -> Array | None:
    if value is None:
        return None
    array = as_parameter(value, constraints.real, name)
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},); got {array.shape}.")
    return array


class LinearMean(AxisMean):
    """`β_0 + β_1 u`, `u = (x − centre) / scale`, along one axis.

    Inside a `kx.GridGP` centre and scale are the middle and half the length of the axis unless
    given, so that `β_1` is the rise from the middle to the end. What kronax shows of it, the table
    of a `kx.MarginalMean` and `describe()`, is the slope per unit of the axis.

    Args:
        axis: name or number of the axis.
        coefficients: `(2,)`, in units of the data; zero by default.
        centre: in units of the axis.
        scale: in units of the axis.
        dim: of an axis of places `(n, p)`, the dimension that is meant, counted from zero.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> line = kx.LinearMean(0, coefficients=[1.0, 2.0], centre=0.0, scale=1.0)
        >>> line(jnp.arange(3.0)).tolist()
        [1.0, 3.0, 5.0]
    """

    axis: int | str = eqx.field(static=True, converter=whole)
    coefficients: Array | None = parameter(constraints.real, default=None)
    centre: float | None = eqx.field(static=True, default=None)
    scale: float | None = eqx.field(static=True, default=None)
    dim: int | None = eqx.field(static=True, default=None, converter=whole)
    has_level: ClassVar[bool] = True

    def __init__(
        self,
        axis: int | str,
        coefficients: Any = None,
        centre: float | None = None,
        scale: float | None = None,
        dim: int | None = None,
    ):
        self.axis, self.dim = axis, dim
        self.centre, self.scale = _frame(centre, scale)
        self.coefficients = _numbers(coefficients, 2, "The coefficients of a LinearMean")

    @property
    def terms(self) -> tuple[str, ...]:
        """Level and slope."""
        return ("level", "slope")

    @property
    def units(self) -> tuple[float, ...]:
        """The slope is per unit of `x`, not of `u`."""
        return 1.0, 1.0 / (self.scale or 1.0)

    def note(self, name: str, axis: Axis) -> str:
        """Where the level is, and what the slope is per."""
        unit = axis.coding.unit.removesuffix("s") if isinstance(axis.coding, Dates) else "unit"
        middle = place_of(self.centre or 0.0, axis.coding)
        return f"{name}: level at {middle}, slope per {unit} of {name}"

    def functions(self, x: Array) -> Array:
        """`1, u`."""
        return jnp.stack([jnp.ones_like(x), x])


class PolynomialMean(AxisMean):
    """`Σ_k β_k P_k(u)`, Legendre polynomials of `u = (x − centre) / scale` along one axis.

    Legendre polynomials span the same functions as powers and stay well conditioned. Inside a
    `kx.GridGP` `u` runs from −1 to 1 unless centre and scale are given.

    Args:
        axis: name or number of the axis.
        degree: of the highest polynomial, at least 0.
        coefficients: `(degree + 1,)`, in units of the data; zero by default.
        centre: in units of the axis.
        scale: in units of the axis.
        dim: of an axis of places `(n, p)`, the dimension that is meant, counted from zero.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> bowl = kx.PolynomialMean(0, 2, [0.0, 0.0, 1.0], centre=0.0, scale=1.0)
        >>> bowl(jnp.array([0.0, 1.0])).tolist()
        [-0.5, 1.0]
    """

    axis: int | str = eqx.field(static=True, converter=whole)
    degree: int = eqx.field(static=True, default=0)
    coefficients: Array | None = parameter(constraints.real, default=None)
    centre: float | None = eqx.field(static=True, default=None)
    scale: float | None = eqx.field(static=True, default=None)
    dim: int | None = eqx.field(static=True, default=None, converter=whole)
    has_level: ClassVar[bool] = True

    def __init__(
        self,
        axis: int | str,
        degree: int,
        coefficients: Any = None,
        centre: float | None = None,
        scale: float | None = None,
        dim: int | None = None,
    ):
        degree = whole(degree)
        if not isinstance(degree, int) or isinstance(degree, bool) or degree < 0:
            raise ValueError(
                f"The degree of a polynomial must be a whole number, 0 or more; got {degree!r}."
            )
        self.axis, self.degree, self.dim = axis, degree, dim
        self.centre, self.scale = _frame(centre, scale)
        what = "The coefficients of a PolynomialMean"
        self.coefficients = _numbers(coefficients, degree + 1, what)

    @property
    def terms(self) -> tuple[str, ...]:
        """By degree."""
        return tuple(f"degree {k}" for k in range(self.degree + 1))

    def note(self, name: str, axis: Axis) -> str:
        """What the polynomials are of."""
        middle = place_of(self.centre or 0.0, axis.coding)
        return f"{name}: Legendre polynomials of ({name} less {middle}) / {self.scale or 1.0:.6g}"

    def functions(self, x: Array) -> Array:
        """`P_0(u), …, P_k(u)` by Bonnet's recursion."""
        values = [jnp.ones_like(x), x]
        for k in range(1, self.degree):
            values.append(((2 * k + 1) * x * values[k] - k * values[k - 1]) / (k + 1))
        return jnp.stack(values[: self.degree + 1])


class HarmonicMean(AxisMean):
    """`Σ_k a_k cos(2πk x / p) + b_k sin(2πk x / p)` along one axis: a seasonal cycle.

    Args:
        axis: name or number of the axis.
        period: `p` in units of the axis: knowledge, not a parameter.
        order: number of harmonics.
        coefficients: `(2 order,)`, `a_1, b_1, a_2, …`, in units of the data; zero by default.
        dim: of an axis of places `(n, p)`, the dimension that is meant, counted from zero.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.HarmonicMean(0, 12.0, 1, [1.0, 0.0])(jnp.array([0.0, 6.0])).tolist()
        [1.0, -1.0]
    """

    axis: int | str = eqx.field(static=True, converter=whole)
    period: float = eqx.field(static=True, default=1.0)
    order: int = eqx.field(static=True, default=1)
    coefficients: Array | None = parameter(constraints.real, default=None)
    centre: float | None = eqx.field(static=True, default=None, init=False)
    scale: float | None = eqx.field(static=True, default=None, init=False)
    dim: int | None = eqx.field(static=True, default=None, converter=whole)

    def __init__(
        self,
        axis: int | str,
        period: float,
        order: int = 1,
        coefficients: Any = None,
        dim: int | None = None,
    ):
        order = whole(order)
        if not isinstance(order, int) or isinstance(order, bool) or order < 1:
            raise ValueError(f"The number of harmonics must be 1 or more; got {order!r}.")
        if not 0 < float(period or 0) < float("inf"):
            raise ValueError(f"The period must be positive and finite; got {period!r}.")
        self.axis, self.period, self.order, self.dim = axis, float(period), order, dim
        self.centre = self.scale = None
        what = "The coefficients of a HarmonicMean"
        self.coefficients = _numbers(coefficients, 2 * order, what)

    def centre_from(self, origin: int | float) -> float:
        """Where its phase is zero, as seen from an origin."""
        return -float(Fraction(origin) % Fraction(self.period))

    @property
    def terms(self) -> tuple[str, ...]:
        """Cosine and sine of every harmonic, by its period."""
        periods = [f"{self.period / k:g}" for k in range(1, self.order + 1)]
        return tuple(f"{f} {period}" for period in periods for f in ("cos", "sin"))

    @property
    def _more(self) -> tuple:
        return (self.period,)

    def functions(self, x: Array) -> Array:
        """Cosine and sine of every harmonic."""
        angle = 2 * jnp.pi * (x % self.period) / self.period
        values = [f(k * angle) for k in range(1, self.order + 1) for f in (jnp.cos, jnp.sin)]
        return jnp.stack(values)
