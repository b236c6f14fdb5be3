"""Covariates: what is known of every cell of a grid beside its coordinates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.domains import as_parameter, data, parameter
from kronax.gp.axes.axis import Axis
from kronax.gp.axes.indexes import is_frame, is_labelled
from kronax.gp.coordinates.static_arrays import FrozenArray
from kronax.gp.kernels.base import dtype_of
from kronax.gp.labelled.data_arrays import by_axis
from kronax.gp.means.coefficients import RegressionMean, Term
from kronax.gp.means.means import Mean, fits
from kronax.linalg.arrays.checks import is_concrete, plain
from kronax.linalg.arrays.host import on_device
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.paths import nearest


class Covariate(eqx.Module):
    """One number per cell: an array that broadcasts to the grid, or a function of the axes.

    Args:
        static: concrete numbers, zero where they are not known: data, never parameters.
        gaps: where these are.
        traced: traced ones.
        function: in place of numbers; its own are frozen.
        unknown: axes along which it varies and of which it keeps nothing: new coordinates ask.
    """

    static: FrozenArray | None = eqx.field(static=True, default=None)
    gaps: FrozenArray | None = eqx.field(static=True, default=None)
    traced: Array | None = data(default=None)
    function: Callable[..., Any] | None = data(default=None)
    unknown: tuple[int, ...] = eqx.field(static=True, default=())

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which numbers differ."""
        shape = () if self.values is None else self.values.shape
        return tuple(i for i, n in enumerate(shape) if n > 1 or i in self.unknown)

    def forgetting(self, i: int) -> "Covariate":
        """The same without its numbers along an axis on which they differ."""
        if i not in self.varying:
            return self
        shape = tuple(1 if j == i else n for j, n in enumerate(self.values.shape))
        return Covariate(FrozenArray(np.zeros(shape)), unknown=(i,))

    @property
    def values(self) -> Any:
        """The numbers, NaN where they are not known; `None` of a function."""
        if self.static is None or self.gaps is None:
            return self.traced if self.static is None else self.static.values
        return np.where(self.gaps.values, np.nan, self.static.values)

    def on(self, axes: Sequence[Array], name: str) -> Array:
        """What it is on the grid of the axes, to which it broadcasts; zero where not known."""
        grid, dtype = tuple(a.shape[0] for a in axes), dtype_of(axes)
        if self.function is not None:
            values = jnp.asarray(self.function(*axes))
        elif self.static is not None:
            values = on_device(self.static.values.astype(dtype))
        else:
            assert self.traced is not None
            values = self.traced
        check_fits(values.shape, grid, name)
        return values.astype(dtype).reshape((1,) * (len(grid) - values.ndim) + values.shape)


def check_fits(shape: tuple[int, ...], grid: tuple[int, ...], name: str) -> None:
    """Refuse a covariate of another grid."""
    if not fits(shape, grid):
        raise ValueError(
            f"The covariate {name!r} must broadcast to the grid, {grid}; got shape {shape}. Give "
            "it size one along axes on which it is the same everywhere."
        )


def numbers_of(value: Any, name: str) -> Any:
    """A covariate as a floating-point array, NaN where it is masked; JAX's if it is traced.

    Raises:
        TypeError: if it holds no real numbers.
        ValueError: if some are infinite.
    """
    what = f"The covariate {name!r}"
    value = plain(without_mask(value), what)
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.dtype.kind == "V" or not (
        jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "biu"
    ):
        raise TypeError(f"{what} must hold real numbers; got dtype {array.dtype}.")
    if isinstance(array, jax.core.Tracer):
        return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    array = np.asarray(array)
    array = array if array.dtype.kind == "f" else array.astype(float)
    if np.isinf(array).any():
        raise ValueError(f"{what} must be finite, or NaN where it is not known; got infinity.")
    return array


def aligned(
    value: Any, axes: Sequence[Axis], names: tuple[str, ...] | None, name: str
) -> Array | np.ndarray:
    """A covariate with one axis per axis of a grid, of size one where it is the same everywhere.

    DataArrays go by their dimensions and coordinates, pandas objects by their labels.
    """
    value = numbers_of(by_axis(value, axes, names, f"The covariate {name!r}"), name)
    check_fits(value.shape, tuple(axis.size for axis in axes), name)
    return value.reshape((1,) * (len(axes) - value.ndim) + value.shape)


def covariate_of(value: Any, name: str) -> Covariate:
    """A covariate from numbers or a function; or as it is."""
    if isinstance(value, Covariate):
        return value
    if callable(value) and not isinstance(value, type):
        return Covariate(function=value)
    if value is None or isinstance(value, str | type | Mapping):
        raise TypeError(
            f"The covariate {name!r} must be an array that broadcasts to the grid, or a function "
            f"of the axes; got {value!r}."
        )
    numbers = numbers_of(value, name)
    if not is_concrete(numbers):
        return Covariate(traced=numbers)
    gaps = np.isnan(numbers)
    known = FrozenArray(np.where(gaps, 0, numbers))
    return Covariate(known, FrozenArray(gaps) if gaps.any() else None)


class CovariateMean(RegressionMean):
    """`Σ_j β_j c_j`: covariates that are known on the grid, or functions of its coordinates.

    An array is data: predictions elsewhere ask for its values there, by name,
    `post.mean(axes=…, covariates={"temperature": values})`. A function of the axes is known
    everywhere. Nothing is scaled or centred: a coefficient is in units of the data per unit of its
    covariate. It has no level; add a `kx.ConstantMean`. Times another mean with coefficients, as in
    `kx.CovariateMean(temperature=t) * kx.HarmonicMean("day", 365.25)`, it has all products.

    Args:
        coefficients: one number per covariate, by name; zero by default.
        covariates: by name. An array that broadcasts to the grid; a DataArray, with any of its
            dimensions in any order; a pandas object; or a function of the axes, like a mean that is
            one. NaN where it is not known: there must be no data there.

    Raises:
        KeyError: if there is a coefficient for no covariate.
        TypeError: if there is no covariate, or one holds no real numbers.
        ValueError: if one is infinite or, in a process, does not broadcast to the grid, or is NaN
            where there are data.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> hours, warmth = jnp.arange(6.0), jnp.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
        >>> mean = kx.ConstantMean(0.0) + kx.CovariateMean(temperature=warmth)
        >>> gp = kx.GridGP((kx.RBF(2.0),), (hours,), noise=0.1, mean=kx.MarginalMean(mean))
        >>> post = gp.condition(1.0 + 2.0 * warmth)
        >>> post.regression.names, [round(b, 3) for b in post.regression.coefficients.tolist()]
        (('constant', 'temperature'), [1.0, 2.0])
        >>> post.mean(axes=[jnp.array([6.0])], covariates={"temperature": [2.0]}).round(3).tolist()
        [5.0]
    """

    covariates: dict[str, Any]
    coefficients: dict[str, Array] | None = parameter(constraints.real, default=None)
    order: tuple[str, ...] = eqx.field(static=True, default=())  # trees sort their dictionaries

    def __init__(self, *, coefficients: Mapping[str, Any] | None = None, **covariates: Any):
        if not covariates:
            raise TypeError(
                "kx.CovariateMean needs a covariate by name, such as "
                "kx.CovariateMean(temperature=array)."
            )
        self.order = tuple(covariates)
        # Labels wait for the axes of a process.
        self.covariates = {
            name: value if is_labelled(value) or is_frame(value) else covariate_of(value, name)
            for name, value in covariates.items()
        }
        self.coefficients = _by_name(coefficients, tuple(covariates))

    def functions_of(self, names: tuple[str, ...] | None) -> tuple[Term, ...]:
        """One per covariate."""
        return tuple(Term(name, (("covariate", name),)) for name in self.order)

    def design(self, *axes: Array) -> Float[Array, "p ..."]:
        """The covariates on the grid of the axes."""
        values = [covariate_of(self.covariates[name], name).on(axes, name) for name in self.order]
        shape = jnp.broadcast_shapes(*(v.shape for v in values))
        return jnp.stack([jnp.broadcast_to(v, shape) for v in values])

    def weights(self) -> Float[Array, " p"] | None:
        """The coefficients in the order of the covariates."""
        if self.coefficients is None:
            return None
        return jnp.stack([jnp.asarray(self.coefficients[name]) for name in self.order])

    def weighing(self, weights: Any) -> dict[str, Any]:
        """The coefficients by name."""
        return {name: weights[k] for k, name in enumerate(self.order)}

    def bound(self, axes: Sequence[Axis], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """The mean of a process: every covariate with one axis per axis of the grid."""
        known = {}
        for name, value in self.covariates.items():
            own = value.values if isinstance(value, Covariate) else value
            if own is not None:
                value = covariate_of(aligned(own, axes, names, name), name)
            known[name] = value
        coefficients = self.coefficients
        if coefficients is None:
            coefficients = self.zeros(len(known), dtype)
        return self.changed(covariates=known, coefficients=coefficients)


def _by_name(coefficients: Any, names: tuple[str, ...]) -> dict[str, Array] | None:
    """One number per covariate; of those left out zero."""
    if coefficients is None:
        return None
    if not isinstance(coefficients, Mapping):
        raise TypeError(
            "The coefficients of a CovariateMean must be a dictionary by covariate, such as "
            f"{{{names[0]!r}: 0.5}}; got {coefficients!r}."
        )
    for name in coefficients:
        if name not in names:
            raise KeyError(
                f"A CovariateMean has no covariate {name!r} for a coefficient."
                f"{nearest(name, names)}"
            )
    found = {}
    for name in names:
        value = as_parameter(coefficients.get(name, 0.0), constraints.real, f"coefficient {name!r}")
        if jnp.ndim(value):
            raise ValueError(
                f"The coefficient of {name!r} must be one number; got shape {value.shape}."
            )
        found[name] = value
    return found


def covariates_of(mean: Mean) -> dict[str, Covariate]:
    """All covariates of a bound mean by name.

    Raises:
        ValueError: if one name has several values.
    """
    found: dict[str, Covariate] = {}
    for part in jax.tree.leaves(mean, is_leaf=_is_covariate_mean):
        for name in part.order if _is_covariate_mean(part) else ():
            if not _are_same(found.setdefault(name, part.covariates[name]), part.covariates[name]):
                raise ValueError(
                    f"The covariate {name!r} is given twice, with different values. Covariates go "
                    "by their names: give each its own."
                )
    return found


def with_covariates(mean: Mean, known: Mapping[str, Covariate]) -> Mean:
    """The same mean with other covariates, by name."""
    if not known:
        return mean

    def changed(part: Any) -> Any:
        if not _is_covariate_mean(part):
            return part
        return part.changed(covariates={n: known.get(n, c) for n, c in part.covariates.items()})

    return jax.tree.map(changed, mean, is_leaf=_is_covariate_mean)


def _is_covariate_mean(part: Any) -> bool:
    return isinstance(part, CovariateMean)


def _are_same(one: Covariate, other: Covariate) -> bool:
    if one.function is not None or other.function is not None:
        return one.function is other.function
    if one.static is not None and other.static is not None:
        return one.static == other.static and one.gaps == other.gaps
    return one.traced is not None and other.traced is not None
