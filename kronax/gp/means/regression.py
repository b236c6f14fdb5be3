"""Means that are linear in their coefficients: lines, polynomials, harmonics along one axis."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.dates import Dates, place_of
from kronax.gp.coordinates.spacing import difference
from kronax.gp.kernels.points import Points
from kronax.gp.means.means import ConstantMean, Mean, SumMean, ZeroMean
from kronax.linalg.arrays.checks import is_concrete, whole
from kronax.linalg.arrays.host import on_device
from kronax.linalg.arrays.mode_products import along
from kronax.parameters import as_parameter, parameter
from kronax.paths import nearest


class RegressionMean(Mean):
    """`Σ_j β_j h_j(x)` with functions `h_j` of one axis and coefficients `β`.

    As it is, a fit trains the coefficients. Inside `kx.MarginalMean` they are integrated out.
    """

    axis: eqx.AbstractVar[int | str]
    coefficients: eqx.AbstractVar[Array | None]
    centre: eqx.AbstractVar[float | None]
    scale: eqx.AbstractVar[float | None]

    @property
    @abc.abstractmethod
    def terms(self) -> tuple[str, ...]:
        """What each coefficient belongs to."""

    @abc.abstractmethod
    def functions(self, x: Array) -> Float[Array, "p n"]:
        """The functions at `(x − centre) / scale`, or at `x` itself where they have no centre."""

    @property
    def units(self) -> tuple[float, ...]:
        """What each coefficient is multiplied by to be in units of the data, or per unit of `x`."""
        return (1.0,) * len(self.terms)

    def note(self, name: str, axis: Axis) -> str:
        """What has to be known of an axis to read the coefficients; empty if nothing has."""
        return ""

    def design(self, *axes: Array) -> Float[Array, "p ..."]:
        """The functions on the grid of the axes; they broadcast to it."""
        return self._design(axes, self.centre)

    def design_at(self, *axes: Points) -> Float[Array, "p ..."]:
        """The same at points of the axes, counted from their origin."""
        origin = axes[self._number(len(axes))].origin
        if origin is None or isinstance(origin, tuple):
            return self.design(*(x.raw for x in axes))
        return self._design([x.centred for x in axes], self.centre_from(origin))

    def centre_from(self, origin: int | float) -> float:
        """The centre as seen from an origin."""
        return difference(0.0 if self.centre is None else self.centre, origin)

    def _design(self, axes: Sequence[Array], centre: float | None) -> Array:
        i = self._number(len(axes))
        if axes[i].ndim != 1:
            raise ValueError(
                f"The axis of a {type(self).__name__} must have coordinates (n,); got places of "
                f"shape {axes[i].shape}."
            )
        x = axes[i]
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
        shape = [1] * len(axes)
        shape[i] = x.shape[0]
        return values.reshape(len(self.terms), *shape)

    def __call__(self, *axes: Array) -> Array:
        """The mean."""
        return self._weighted(self.design(*axes))

    def at(self, *axes: Points) -> Array:
        """The mean, from coordinates that count from their origin."""
        return self._weighted(self.design_at(*axes))

    def _weighted(self, design: Array) -> Array:
        if self.coefficients is None:
            return jnp.zeros((), design.dtype)
        weights = self.coefficients.astype(design.dtype)
        return jnp.sum(along(weights, -design.ndim, design.ndim) * design, axis=0)

    def bound(self, axes: Sequence[Axis], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """The mean of a process: its axis by number, centred on its coordinates."""
        i = self._number(len(axes), names)
        changes: dict[str, Any] = {"axis": i}
        static = axes[i].static
        centred = any(f.name == "centre" and f.init for f in dataclasses.fields(self))
        if centred and static is not None and static.values.ndim == 1:
            x = static.counted
            half = float(np.ptp(x)) / 2
            if self.centre is None:
                changes["centre"] = difference(static.origin, -float(x.min()) - half)
            if self.scale is None:
                changes["scale"] = half or 1.0
        if self.coefficients is None:
            changes["coefficients"] = on_device(np.zeros(len(self.terms), dtype))
        return dataclasses.replace(self, **changes)

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


class LinearMean(RegressionMean):
    """`β_0 + β_1 u`, `u = (x − centre) / scale`, along one axis.

    Inside a `kx.GridGP` centre and scale are the middle and half the length of the axis unless
    given, so that `β_1` is the rise from the middle to the end. What kronax shows of it, the table
    of a `kx.MarginalMean` and `describe()`, is the slope per unit of the axis.

    Args:
        axis: name or number of the axis.
        coefficients: `(2,)`, in units of the data; zero by default.
        centre: in units of the axis.
        scale: in units of the axis.

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

    def __init__(
        self,
        axis: int | str,
        coefficients: Any = None,
        centre: float | None = None,
        scale: float | None = None,
    ):
        self.axis, self.centre, self.scale = axis, *_frame(centre, scale)
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


class PolynomialMean(RegressionMean):
    """`Σ_k β_k P_k(u)`, Legendre polynomials of `u = (x − centre) / scale` along one axis.

    Legendre polynomials span the same functions as powers and stay well conditioned. Inside a
    `kx.GridGP` `u` runs from −1 to 1 unless centre and scale are given.

    Args:
        axis: name or number of the axis.
        degree: of the highest polynomial, at least 0.
        coefficients: `(degree + 1,)`, in units of the data; zero by default.
        centre: in units of the axis.
        scale: in units of the axis.

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

    def __init__(
        self,
        axis: int | str,
        degree: int,
        coefficients: Any = None,
        centre: float | None = None,
        scale: float | None = None,
    ):
        degree = whole(degree)
        if not isinstance(degree, int) or isinstance(degree, bool) or degree < 0:
            raise ValueError(
                f"The degree of a polynomial must be a whole number, 0 or more; got {degree!r}."
            )
        self.axis, self.degree = axis, degree
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


class HarmonicMean(RegressionMean):
    """`Σ_k a_k cos(2πk x / p) + b_k sin(2πk x / p)` along one axis: a seasonal cycle.

    Args:
        axis: name or number of the axis.
        period: `p` in units of the axis: knowledge, not a parameter.
        order: number of harmonics.
        coefficients: `(2 order,)`, `a_1, b_1, a_2, …`, in units of the data; zero by default.

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

    def __init__(self, axis: int | str, period: float, order: int = 1, coefficients: Any = None):
        order = whole(order)
        if not isinstance(order, int) or isinstance(order, bool) or order < 1:
            raise ValueError(f"The number of harmonics must be 1 or more; got {order!r}.")
        if not 0 < float(period or 0) < float("inf"):
            raise ValueError(f"The period must be positive and finite; got {period!r}.")
        self.axis, self.period, self.order = axis, float(period), order
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

    def functions(self, x: Array) -> Array:
        """Cosine and sine of every harmonic."""
        angle = 2 * jnp.pi * (x % self.period) / self.period
        values = [f(k * angle) for k in range(1, self.order + 1) for f in (jnp.cos, jnp.sin)]
        return jnp.stack(values)


class MarginalMean(Mean):
    """Regression whose coefficients are integrated out exactly: generalised least squares.

    With flat priors the log likelihood is the restricted one (REML), for `p` functions `H`
    `−½ ((n−p) log 2π + log|S| + log|Hᵀ S⁻¹ H| + rᵀ S⁻¹ r)`: it compares models of the same mean.
    The posterior carries the estimates and their standard errors, and its variances contain their
    uncertainty. Costs one structured solve per coefficient.

    Args:
        mean: a regression mean, `kx.ConstantMean`, or a sum of such; other means may be added and
            stay as they are. A level of several counts once: two `kx.LinearMean` are a plane.
        variance: of independent normal priors on the coefficients of the functions as each mean
            defines them (the `β_1` of a `kx.LinearMean` belongs to `u`); flat by default.

    Raises:
        TypeError: if no part of the mean has coefficients.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 6)
        >>> gp = kx.GridGP((kx.RBF(0.3),), (x,), noise=0.1, mean=kx.MarginalMean(kx.LinearMean(0)))
        >>> post = gp.condition(2.0 * x)
        >>> post.regression.names
        ('axis 0: level', 'axis 0: slope')
    """

    parts: tuple[Any, ...]
    fixed: Mean
    axis_names: tuple[str, ...] | None = eqx.field(static=True)
    variance: Array | None = parameter(constraints.positive, default=None)

    def __init__(self, mean: Any, variance: Any = None):
        summands = mean.summands() if isinstance(mean, Mean) else ()
        self.parts = tuple(m for m in summands if isinstance(m, RegressionMean | ConstantMean))
        if not self.parts:
            raise TypeError(
                "kx.MarginalMean needs a mean with coefficients, such as kx.LinearMean or "
                f"kx.ConstantMean, or a sum with one; got {mean!r}."
            )
        others = [m for m in summands if not isinstance(m, RegressionMean | ConstantMean)]
        self.fixed = functools.reduce(SumMean, others) if others else ZeroMean()
        self.axis_names = None
        self.variance = variance

    @property
    def names(self) -> tuple[str, ...]:
        """One per coefficient."""
        found: list[str] = []
        for part, first in zip(self.parts, self._firsts(), strict=True):
            if isinstance(part, ConstantMean):
                found += ["constant"][first:]
                continue
            axis = part.axis
            if isinstance(axis, int):
                axis = self.axis_names[axis] if self.axis_names else f"axis {axis}"
            found += [f"{axis}: {term}" for term in part.terms[first:]]
        return tuple(found)

    def _firsts(self) -> list[int]:
        """The number of each part's first function that counts: of several levels one does."""
        have = [isinstance(part, ConstantMean | LinearMean | PolynomialMean) for part in self.parts]
        return [int(has and any(have[:k])) for k, has in enumerate(have)]

    def labels(self, axes: Sequence[Axis]) -> dict[str, tuple]:
        """What a table of the coefficients says: their names, units and notes."""
        units: list[float] = []
        for part, first in zip(self.parts, self._firsts(), strict=True):
            units += ((1.0,) if isinstance(part, ConstantMean) else part.units)[first:]
        notes = notes_of(self.parts, axes, self.axis_names)
        return {"names": self.names, "units": tuple(units), "notes": notes}

    def design_at(self, *axes: Points) -> Float[Array, "p ..."]:
        """All functions at points of the axes, `(p, n_1, …, n_d)`."""
        grid = tuple(x.size for x in axes)
        pieces = [
            jnp.ones((1, *grid), axes[0].raw.dtype)
            if isinstance(part, ConstantMean)
            else jnp.broadcast_to(part.design_at(*axes), (len(part.terms), *grid))
            for part in self.parts
        ]
        return jnp.concatenate([p[k:] for p, k in zip(pieces, self._firsts(), strict=True)])

    def __call__(self, *axes: Array) -> Array:
        """The parts without coefficients: those that have them are zero beforehand."""
        return self.fixed(*axes)

    def at(self, *axes: Points) -> Array:
        """The same."""
        return self.fixed.at(*axes)

    def bound(self, axes: Sequence[Axis], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """Every part bound; the coefficients are no parameters any more."""
        parts = tuple(
            part
            if isinstance(part, ConstantMean)
            else dataclasses.replace(part.bound(axes, names, dtype), coefficients=None)
            for part in self.parts
        )
        new = eqx.tree_at(
            lambda m: (m.parts, m.fixed), self, (parts, self.fixed.bound(axes, names, dtype))
        )
        object.__setattr__(new, "axis_names", names)
        return new


def notes_of(
    parts: Sequence[Any], axes: Sequence[Axis], names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """What has to be known to read the coefficients of bound means."""
    found = []
    for part in parts:
        if isinstance(part, RegressionMean) and isinstance(part.axis, int):
            label = names[part.axis] if names else f"axis {part.axis}"
            found.append(part.note(label, axes[part.axis]))
    return tuple(note for note in found if note)


def described(mean: Mean, axes: Sequence[Axis], names: tuple[str, ...] | None) -> list[str]:
    """The coefficients of a bound mean that a fit trains, in the units of data and axes."""
    lines = []
    for part in mean.summands():
        for note in notes_of([part], axes, names):
            lines.append(note)
            if is_concrete(part) and isinstance(part, RegressionMean):
                values = np.asarray(part.coefficients, np.float64) * part.units
                shown = zip(part.terms, values, strict=True)
                lines.append("  " + ", ".join(f"{term} {value:.4g}" for term, value in shown))
    return lines
