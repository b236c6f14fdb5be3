"""What a likelihood is: how data at a cell depend on the latent function there."""

import abc
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, PRNGKeyArray
from scipy.special import roots_hermitenorm

from kronax.display import Shown
from kronax.gp.axes.indexes import is_labelled
from kronax.linalg.arrays.checks import array_of_reals
from kronax.linalg.arrays.mode_products import HIGHEST, same_rank
from kronax.paths import nearest

# Averages over a normal distribution by Gauss and Hermite: exact for polynomials up to twice as
# high, and to some 1e-9 for the likelihoods here at a standard deviation of 1.
NUM_NODES = 32
_NODES, _WEIGHTS = roots_hermitenorm(NUM_NODES)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Moments(NamedTuple):
    """Of the response and of an observation, cell by cell, where the function is normal.

    Args:
        response: its mean.
        response_variance: its variance.
        observation: its mean.
        observation_variance: its variance.
    """

    response: Array
    response_variance: Array
    observation: Array
    observation_variance: Array


class AbstractLikelihood(Shown, eqx.Module):
    """The distribution of an observation given the latent function `f` at its cell.

    Cells are independent given `f`. A new one gives its log density, where a search for `f` may
    start, and what is predicted; its derivatives and averages follow. Data and functions have the
    shape of the places, and `cells_like` brings fields to it.
    """

    # Fields that may have a value of its own at every cell, which new places need as well, and
    # how they are read.
    cell_fields: ClassVar[Mapping[str, Callable[[Any, str], Array]]] = MappingProxyType({})
    # Whether `log p(y | f)` bends downwards everywhere in `f`, so that there is one answer.
    is_log_concave: ClassVar[bool] = False
    # A possible observation, which stands in the gaps, where nothing that follows counts.
    filler: ClassVar[float] = 0.5
    # What the response is called in pictures and tables.
    response_name: ClassVar[str] = "mean"

    @abc.abstractmethod
    def log_density(self, y: Array, f: Array) -> Array:
        """Log density or log probability of `y` given `f`, cell by cell."""

    @abc.abstractmethod
    def start(self, y: Array) -> Array:
        """Values of `f` that suit the data cell by cell, where a search for the field starts."""

    @abc.abstractmethod
    def response(self, f: Array) -> Array:
        """What is predicted: a rate, a probability, a location; monotone in `f`."""

    @abc.abstractmethod
    def mean(self, f: Array) -> Array:
        """The mean of an observation given `f`."""

    @abc.abstractmethod
    def variance(self, f: Array) -> Array:
        """The variance of an observation given `f`."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Observations given `f`, one per entry."""

    @abc.abstractmethod
    def cdf(self, y: Array, f: Array) -> Array:
        """The probability of an observation of at most `y` given `f`."""

    def category_probabilities(self, f: Array) -> Array | None:
        """Of every category, first, where observations are categories; else `None`."""
        return None

    @property
    @abc.abstractmethod
    def support(self) -> "Support":
        """Which observations there can be."""

    def refused(self, y: np.ndarray) -> np.ndarray:
        """True where the likelihood cannot have given concrete data."""
        return ~self.support.holds(y)

    def check(self, y: np.ndarray, observed: np.ndarray) -> None:
        """Refuse concrete data that the likelihood cannot have given.

        Raises:
            ValueError: with the first such cell.
        """
        bad = self.refused(y) & observed
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"Data of {type(self).__name__} must be {self.support.words}; got "
                f"{float(y[place]):g} at cell {place} ({int(bad.sum())} such). Correct them, mark "
                "them as missing by NaN, or take another likelihood."
            )

    def expected(self, y: Array, mean: Array, variance: Array) -> Array:
        """`E log p(y | f)` for `f ~ N(mean, variance)`, cell by cell."""
        return average(lambda f: self.log_density(y, f), mean, variance)

    def derivatives(self, y: Array, f: Array) -> tuple[Array, Array]:
        """The first and the negative second derivative of the log density in `f`."""

        def first(f: Array) -> Array:
            return jax.jvp(lambda f: self.log_density(y, f), (f,), (jnp.ones_like(f),))[1]

        slope, bend = jax.jvp(first, (f,), (jnp.ones_like(f),))
        return slope, -bend

    def expected_derivatives(self, y: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Their averages for `f ~ N(mean, variance)`."""
        return average(lambda f: self.derivatives(y, f), mean, variance)

    def moments(self, mean: Array, variance: Array) -> Moments:
        """Those of the response and of an observation for `f ~ N(mean, variance)`."""
        rate, own = average(lambda f: (self.response(f), self.mean(f)), mean, variance)

        def spreads(f: Array) -> tuple[Array, Array]:
            # About the means, which may be far from zero.
            rest, own_rest = self.response(f) - rate, self.mean(f) - own
            return jnp.square(rest), jnp.square(own_rest) + self.variance(f)

        spread, own_spread = average(spreads, mean, variance)
        return Moments(rate, spread, own, own_spread)

    def at(self, given: Mapping[str, Any], shape: tuple[int, ...], grid: tuple[int, ...]) -> Any:
        """The same likelihood at other places, of which `given` has what varies by the cell.

        Args:
            given: values of `cell_fields` there, which broadcast to `shape`.
            shape: of the new places.
            grid: the shape of the grid, on which fields that are not given are known.

        Raises:
            KeyError: if something is given that the likelihood does not have.
            TypeError: if something is missing.
            ValueError: if a shape does not fit.
        """
        for name in given:
            if name not in self.cell_fields:
                raise KeyError(
                    f"{type(self).__name__} has no {name!r} at its cells."
                    f"{nearest(name, tuple(self.cell_fields))}"
                )
        found = self
        for name in self.cell_fields:
            own = getattr(self, name)
            if name in given:
                value = self.cell_fields[name](given[name], name)
                _check_fits(value, shape, name)
            elif own is not None and jnp.ndim(own) and shape != grid:
                raise TypeError(
                    f"{type(self).__name__} must know `{name}` at the new places; it varies over "
                    f"the grid. Pass {name}=, one value, or one for every place of shape {shape}."
                )
            else:
                value = own
            found = eqx.tree_at(attrgetter(name), found, value, is_leaf=lambda leaf: leaf is None)
        return found

    def longer(
        self,
        given: Mapping[str, Any],
        axis: int,
        sizes: tuple[tuple[int, ...], tuple[int, ...]],
        in_front: bool,
    ) -> Any:
        """The same likelihood on a grid with further places along one axis.

        Args:
            given: values of `cell_fields` there; fields that are the same along the axis stay so.
            axis: its number.
            sizes: the shapes of the grid and of the new places.
            in_front: whether these come first.

        Raises:
            KeyError: as in `at`, as are the others.
            TypeError: if something is missing.
            ValueError: if a shape does not fit.
        """
        own = {name: getattr(self, name) for name in self.cell_fields}
        behind = axis - len(sizes[0])
        stay = {
            name: value
            for name, value in own.items()
            if name not in given
            and value is not None
            and (jnp.ndim(value) < -behind or jnp.shape(value)[behind] == 1)
        }
        ahead = self.at({**stay, **given}, sizes[1], ())
        for name in set(given):
            old = 1.0 if own[name] is None else own[name]
            both = zip((old, getattr(ahead, name)), sizes, strict=True)
            pair = [jnp.broadcast_to(x, shape) for x, shape in both]
            longer = jnp.concatenate(pair[::-1] if in_front else pair, axis=axis)
            ahead = eqx.tree_at(attrgetter(name), ahead, longer)
        return ahead

    def starts(self, noise: float) -> dict[str, float]:
        """Starting values of fields, from how much of the variance of `start(y)` is no signal."""
        return {}

    def check_grid(self, grid: tuple[int, ...]) -> None:
        """Refuse values per cell that do not broadcast to the grid.

        Raises:
            ValueError: naming the field.
        """
        for name in self.cell_fields:
            if getattr(self, name) is not None:
                _check_fits(getattr(self, name), grid, name)


def _check_fits(value: Array, shape: tuple[int, ...], name: str) -> None:
    try:
        fits = jnp.broadcast_shapes(jnp.shape(value), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`{name}` must be one number, or broadcast to {shape}; got shape {jnp.shape(value)}."
        )


class Support(eqx.Module):
    """Which numbers observations can be: an interval, or the whole numbers in it.

    Args:
        lowest: the least one.
        highest: the largest one, a number or one per cell.
        is_discrete: whether they are whole numbers.
        words: the same in words.
        is_open: whether the ends themselves are left out.
    """

    lowest: float
    highest: Any
    is_discrete: bool
    words: str
    is_open: bool = False

    def holds(self, y: np.ndarray) -> np.ndarray:
        """True where concrete data lie in it."""
        highest = np.asarray(self.highest)
        if self.is_open:
            inside = (y > self.lowest) & (y < highest)
        else:
            inside = (y >= self.lowest) & (y <= highest)
        return inside & (y == np.round(y)) if self.is_discrete else inside


def average(function: Callable[[Array], Any], mean: Array, variance: Array) -> Any:
    """`E function(f)` for `f ~ N(mean, variance)`, by Gauss and Hermite; cell by cell."""
    weights = jnp.asarray(_WEIGHTS, mean.dtype)
    values = _at_nodes(function, mean, variance)
    return jax.tree.map(lambda v: jnp.tensordot(weights, v, 1, precision=HIGHEST), values)


def log_average(function: Callable[[Array], Array], mean: Array, variance: Array) -> Array:
    """`log E exp function(f)` likewise, by the largest term first."""
    log_weights = jnp.asarray(np.log(_WEIGHTS), mean.dtype)
    values = _at_nodes(function, mean, variance)
    return logsumexp(jnp.add(*same_rank(log_weights.reshape(-1, *(1,) * mean.ndim), values)), 0)


def _at_nodes(function: Callable[[Array], Any], mean: Array, variance: Array) -> Any:
    sd = jnp.sqrt(jnp.broadcast_to(variance, mean.shape))
    return jax.vmap(lambda node: function(mean + node * sd))(jnp.asarray(_NODES, mean.dtype))


def cells_like(value: Array, f: Array) -> Array:
    """A field of a likelihood at the places of a function, in its shape and precision."""
    return jnp.broadcast_to(value, f.shape).astype(f.dtype)


def refuse_labels(value: Any, name: str) -> None:
    """Refuse a DataArray, whose dimensions may stand in another order than the axes.

    Raises:
        TypeError: with its dimensions.
    """
    if is_labelled(value):
        dims = ", ".join(map(repr, value.dims))
        raise TypeError(
            f"`{name}` must be a plain array in the order of the axes, whose names a likelihood "
            f"does not know; got a DataArray over {dims}. Pass .transpose(…).values."
        )


def per_cell(value: Any, name: str) -> Array:
    """Positive numbers per cell, such as exposures, or one number; whole numbers will do.

    Raises:
        TypeError: if they are no real numbers.
        ValueError: if one is not positive or not finite.
    """
    refuse_labels(value, name)
    array = array_of_reals(as_floats(value), name)
    if not isinstance(array, jax.core.Tracer) and not bool((np.asarray(array) > 0).all()):
        raise ValueError(
            f"`{name}` must be positive; got {np.asarray(array).min():g}. Leave cells without any "
            "out: mark their data as missing, and give any positive number here."
        )
    return array


def as_floats(value: Any, dtype: Any = float) -> Any:
    """Arrays of whole numbers or of truth values, labelled ones too, as real ones.

    Counts with gaps are real numbers, of double precision by default: where all of them are whole
    and in the narrower one as they are, nothing is lost.
    """
    if isinstance(value, list | tuple):
        return np.asarray(value, dtype)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in "iub" and kind:
        return value.astype(dtype)
    if kind == "f" and not isinstance(value, jax.Array):
        numbers = np.asarray(value)
        with np.errstate(over="ignore"):
            kept = (numbers.astype(dtype) == numbers) & (numbers == np.round(numbers))
        return value.astype(dtype) if np.all(kept | np.isnan(numbers)) else value
    return value
