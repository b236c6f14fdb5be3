"""Starting values of a grid Gaussian process from its data, in the units of axes and data.

Kernels and means declare on their fields what a parameter starts at (`start=` of `kx.parameter`),
so that those of users take part like those of the library.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import biject_to, constraints

from kronax.domains import AS_GIVEN, DATA_MEAN, LENGTH_POWERS, parameters, replace
from kronax.gp.axes.axis import Axis
from kronax.gp.axes.labels import Labels
from kronax.gp.kernels.base import Kernel, Sum
from kronax.gp.kernels.dims import ActiveDims
from kronax.gp.kernels.points import Points
from kronax.gp.kernels.terms import TermSum
from kronax.gp.model.components import term
from kronax.gp.model.description import variance_of
from kronax.gp.model.process import AbstractProcess
from kronax.gp.start.correlogram import Correlogram, Products
from kronax.gp.start.least_squares import least_squares
from kronax.linalg.arrays.checks import check_key, is_concrete
from kronax.parameter_table import Parameter
from kronax.paths import frozen_paths

Dims = int | tuple[int, ...] | None

# The share of the variance that may start as noise; and where no axis tells, that does.
NOISE_SHARES = 0.01, 0.9
UNKNOWN_NOISE_SHARE = 0.1
# The lengthscales of a sum lie up to this factor above and below that of the data.
SPREAD = 4.0
# A kernel whose correlation rises again by this much comes back.
RISE = 0.05
# Standard deviation of random starts, in unconstrained units.
SCATTER = 1.0


def initialise(gp: AbstractProcess, y: Any, freeze: Any) -> Any:
    """The body of `GridGP.initialise`."""
    return _Start(gp, y, freeze).gp


def random_start(gp: AbstractProcess, key: PRNGKeyArray, y: Any) -> Any:
    """The body of `GridGP.random_start`."""
    check_key(key)
    key, shuffling = jax.random.split(key)
    start = _Start(gp, y, (), np.random.default_rng(_seed(shuffling)))
    rows = [
        p
        for p in parameters(start.gp)
        if p.domain not in (None, constraints.real) and p.path not in start.known_to_user
    ]
    keys = jax.random.split(key, len(rows))
    return replace(start.gp, {p.path: _scattered(p, k) for p, k in zip(rows, keys, strict=True)})


def _seed(key: PRNGKeyArray) -> np.ndarray:
    return np.asarray(jax.random.bits(key, (4,), jnp.uint32))


def _scattered(p: Parameter, key: Array) -> Array:
    transform = biject_to(p.domain)
    raw = transform.inv(p.value)
    # The noise moves as a whole, whatever its pattern over the places.
    shape = () if p.path.startswith("noise") else raw.shape
    return transform(raw + SCATTER * jax.random.normal(key, shape, raw.dtype))


class _Start:
    """A model on its way to starting values: first the mean, then lengthscales, then variances.

    With `rng` the terms of a sum are long and short in any order.
    """

    def __init__(
        self, gp: AbstractProcess, y: Any, freeze: Any, rng: np.random.Generator | None = None
    ):
        if not is_concrete(gp, y):
            raise TypeError(
                "Starting values need concrete data, coordinates and parameters; got traced ones. "
                "Call initialise outside of jit, grad and vmap."
            )
        grid, observed, _ = gp.observations(y)
        y = np.asarray(grid, np.float64)
        if observed is not None:
            y = np.where(observed.array, y, np.nan)
        if gp.likelihood is not None:  # from here on the latent function is what was observed
            y = np.asarray(gp.likelihood.start(jnp.asarray(y)), np.float64)
        self.gp = gp
        self.frozen = frozen_paths(gp, freeze)
        self.known_to_user: set[str] = set()
        declared = dict(_declared(gp.mean, "mean"))
        self.put({path: np.nanmean(y) for path, start in declared.items() if start == DATA_MEAN})
        found, fit = least_squares(self.gp, y, self.frozen)
        self.put(found)
        residual = y - np.asarray(self.gp.mean_on((None,) * len(gp.axes)), np.float64) - fit
        mean_square = float(np.nanmean(np.square(residual)))
        # What is left of constant data is rounding.
        rounding = 16 * float(jnp.finfo(gp.dtype).eps) * float(np.nanmax(np.abs(y)))
        if not mean_square > rounding**2:
            raise ValueError(
                "y must vary about the mean, so that starting values can be taken from it; got a "
                f"mean square of {mean_square:.3g} about it. Give the values yourself."
            )
        alongs = [
            _Along(gp, i, kernel, path, residual, mean_square, rng)
            for i, kernel, path in _placed_kernels(gp)
        ]
        noise = _noise_share(alongs)
        for along in alongs:
            self.put(dict(along.lengths(1 - noise)))
            self.known_to_user |= along.known_to_user
        self.put(dict(_variances(self.gp, (1 - noise) * mean_square)))
        found = self.gp.noise_model.at_level(noise * mean_square)
        self.put({f"noise{path}": value for path, value in found.items()})
        if gp.likelihood is not None:
            starts = gp.likelihood.starts(noise * mean_square)
            self.put({f"likelihood.{name}": value for name, value in starts.items()})

    def put(self, values: dict[str, Any]) -> None:
        """Set parameters in their own shape and precision, except frozen ones."""
        rows = {p.path: p for p in parameters(self.gp)}
        new = {}
        for path, value in values.items():
            old = rows[path]
            if path in self.frozen:
                continue
            new[path] = np.broadcast_to(value, old.value.shape).astype(old.value.dtype)
            if not (np.isfinite(new[path]).all() and np.all(old.domain(new[path]))):
                raise ValueError(
                    f"The starting value of {path} must be a number in its domain; got {value} in "
                    f"{old.value.dtype}. Take units in which data and coordinates are nearer to 1."
                )
        self.gp = replace(self.gp, new)


class _Along:
    """What the data say about the kernel of one axis."""

    def __init__(
        self,
        gp: AbstractProcess,
        index: int,
        kernel: Kernel,
        path: str,
        residual: np.ndarray,
        mean_square: float,
        rng: np.random.Generator | None,
    ):
        self.rng = rng
        self.kernel = kernel
        self.axis: Axis = gp.axes[index]
        self.path = path
        self.dtype = gp.dtype
        self.known_to_user: set[str] = set()
        place = residual.ndim - len(gp.axes) + index
        rows = np.moveaxis(residual, place, 0).reshape(self.axis.size, -1)
        self.products = Products(rows, mean_square)
        self._correlograms: dict[Any, Correlogram] = {}

    @property
    def nugget(self) -> float | None:
        """The share of the variance that is gone between neighbours, if the axis has a metric."""
        for leaf, dims in _leaves(self.kernel, self.path):
            if any(start in LENGTH_POWERS for _, start in _declared(leaf, "")):
                return self.correlogram(leaf, dims).nugget
        return None

    def places(self, kernel: Kernel, dims: Dims) -> np.ndarray:
        """Where the axis' places are, as the kernel sees them, `(n, p)`."""
        points = self.axis.points(self.dtype)
        points = points if dims is None else points.columns(dims)
        return np.asarray(kernel.form_of(points), np.float64).reshape(self.axis.size, -1)

    def spread(self, dims: Dims) -> np.ndarray | None:
        """Of each of these dimensions, for a kernel that sees some of several and not all."""
        count = self.axis.num_dimensions
        if dims is None or count is None or np.size(dims) == count:
            return None
        return np.std(self.places_in(range(count)), axis=0)[np.atleast_1d(dims)]

    def places_in(self, dims: Iterable[int]) -> np.ndarray:
        """Coordinates in these dimensions, `(n, p)`."""
        return np.asarray(self.axis.points(self.dtype).columns(tuple(dims)).raw, np.float64)

    def correlogram(
        self, kernel: Kernel, dims: Dims, units: np.ndarray | None = None
    ) -> Correlogram:
        """Over the distances that a kernel sees, with coordinates in other units if given.

        Of a kernel of some dimensions, over those in all of them, each in units of its spread:
        places that are near in some may be far apart, and unlike, by the others.
        """
        places = self.places(kernel, dims)
        if self.spread(dims) is not None:
            places = self.places_in(range(self.axis.num_dimensions or 0))
            units = _units(np.std(places, axis=0))
        scaled = places if units is None else places / units
        key = scaled.shape, scaled.tobytes()
        if key not in self._correlograms:
            self._correlograms[key] = self.products.by_distance(scaled)
        return self._correlograms[key]

    def lengths(self, signal: float) -> Iterator[tuple[str, Any]]:
        """Path and value of every parameter of the kernel that has a start."""
        return self._visit(self.kernel, self.path, signal)

    def _visit(
        self,
        kernel: Kernel,
        path: str,
        signal: float,
        factor: float = 1.0,
        returns: bool = False,
        dims: Dims = None,
    ) -> Iterator[tuple[str, Any]]:
        """`factor` is that of lengthscales; `returns` says that something beside it comes back."""
        dims = kernel.dims if isinstance(kernel, ActiveDims) else dims
        for name, start in _declared(kernel, path):
            value = np.asarray(getattr(kernel, name.rpartition(".")[2]), np.float64)
            if start == AS_GIVEN:
                self.known_to_user.add(name)
            elif start in LENGTH_POWERS:
                power = LENGTH_POWERS[start]
                length = self._length(kernel, value ** (1 / power), signal, returns, dims)
                if length is not None:
                    length = self._anywhere(kernel, dims, length)
                    yield name, (factor * length) ** power
            elif not isinstance(start, str):
                yield name, start
        parts = _parts(kernel, path)
        rises = [self._comes_back(part) for part, _ in parts] if len(parts) > 1 else [False]
        factors = np.ones(len(parts))
        if isinstance(kernel, Sum | TermSum):
            factors = self._spread([_size(part) for part, _ in parts])
        for k, (part, below) in enumerate(parts):
            beside = returns or any(rises[:k] + rises[k + 1 :])
            yield from self._visit(part, below, signal, factor * factors[k], beside, dims)

    def _length(
        self, kernel: Kernel, given: np.ndarray, signal: float, returns: bool, dims: Dims
    ) -> Any:
        """The lengthscale for one parameter; one per dimension or scale if it is a vector."""
        places, own = self.places(kernel, dims), self.spread(dims)
        if given.ndim == 1 and given.size == places.shape[1]:
            spread = np.std(places, axis=0)
            units = _units(spread)
            found = self.correlogram(kernel, dims, units).length(signal, returns=returns)
            return None if found is None else np.where(spread > 0, found * units, given)
        found = self.correlogram(kernel, dims).length(signal, returns=returns)
        if found is not None and own is not None:
            found = float(found * np.mean(own)) or None
        if found is None or given.ndim == 0:
            return found
        return found * np.reshape(self._spread(list(given.ravel())), given.shape)

    def _anywhere(self, kernel: Kernel, dims: Dims, length: Any) -> Any:
        """At random, with `rng`: this length, or in half of the cases any that the axis can show.

        A correlation along one axis may come from what the slices along another have in common:
        then the length at which it is lost is that of a poorer model.
        """
        if self.rng is None or self.rng.random() < 0.5 or self.axis.size < 3:
            return length
        places = self.places(kernel, dims)
        extent = float(np.max(np.ptp(places, axis=0)))
        spacing = extent / (self.axis.size - 1)
        if not 0 < spacing < np.inf:
            return length
        return length * np.exp(self.rng.uniform(np.log(spacing), np.log(extent))) / np.mean(length)

    def _spread(self, sizes: list[float | None]) -> np.ndarray:
        """Factors from long to short in the order of the sizes given, or in any; 1 for no size."""
        factors = np.ones(len(sizes))
        known = {k: size for k, size in enumerate(sizes) if size is not None}
        ranked = sorted(known, key=lambda k: -known[k])
        if self.rng is not None:
            self.rng.shuffle(ranked)
        if len(ranked) > 1:
            factors[ranked] = np.geomspace(SPREAD, 1 / SPREAD, len(ranked))
        return factors

    def _comes_back(self, kernel: Kernel) -> bool:
        """Whether the correlation with the first place rises again along the axis."""
        plain = self.axis.num_dimensions is None and self.axis.period is None
        if not plain or isinstance(self.axis.coding, Labels):
            return False
        x = self.axis.points(self.dtype)
        x = x[np.argsort(np.asarray(x.centred))]
        values = np.asarray(kernel.matrix_at(x, x[:1]))[:, 0]
        return bool(np.any(values - np.minimum.accumulate(values) > RISE * np.abs(values[0])))


def _units(spread: np.ndarray) -> np.ndarray:
    """In which coordinates are alike; where all places agree, as they are."""
    return np.where(spread > 0, spread, 1)


def _declared(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and declared start of the parameters right on a module."""
    for field in dataclasses.fields(module):
        start = field.metadata.get("start")
        if start is not None and eqx.is_inexact_array(getattr(module, field.name)):
            yield f"{path}.{field.name}", start


def _parts(kernel: Kernel, path: str) -> list[tuple[Kernel, str]]:
    """The kernels right below a kernel; the terms of a sum, however it is nested."""
    found = []
    for field in dataclasses.fields(kernel):
        value = getattr(kernel, field.name)
        below = f"{path}.{field.name}"
        entries = [(value, below)]
        if isinstance(value, tuple):
            entries = [(entry, f"{below}[{i}]") for i, entry in enumerate(value)]
        if isinstance(value, dict):
            entries = [(entry, f"{below}[{name!r}]") for name, entry in value.items()]
        for part, name in entries:
            if isinstance(kernel, Sum) and isinstance(part, Sum):
                found += _parts(part, name)
            elif isinstance(part, Kernel):
                found.append((part, name))
    return found


def _leaves(kernel: Kernel, path: str, dims: Dims = None) -> Iterator[tuple[Kernel, Dims]]:
    """A kernel and all below it, with the dimensions that they see."""
    yield kernel, dims
    dims = kernel.dims if isinstance(kernel, ActiveDims) else dims
    for part, below in _parts(kernel, path):
        yield from _leaves(part, below, dims)


def _size(kernel: Kernel) -> float | None:
    """The longest lengthscale of a kernel as it was given, if it has one."""
    sizes = [
        np.max(np.asarray(getattr(leaf, name.removeprefix("."))) ** (1.0 / LENGTH_POWERS[start]))
        for leaf, _ in _leaves(kernel, "")
        for name, start in _declared(leaf, "")
        if start in LENGTH_POWERS
    ]
    return float(max(sizes)) if sizes else None


def _noise_share(alongs: list[_Along]) -> float:
    """The share of the variance that no axis carries from one place to its neighbours.

    It is the same along every axis; where neighbours are far apart, more is lost between them.
    """
    shares = [along.nugget for along in alongs]
    told = [share for share in shares if share is not None]
    return float(np.clip(min(told), *NOISE_SHARES)) if told else UNKNOWN_NOISE_SHARE


def _placed_kernels(gp: AbstractProcess) -> Iterator[tuple[int, Kernel, str]]:
    """The axis, the kernel and its path, for all that have parameters."""
    for i, kernel in enumerate(gp.kernels):
        yield i, kernel, f"kernels[{i}]"
    if gp.joined is not None:
        yield gp.additive.joined_axis, gp.joined, "joined"


def _variances(gp: AbstractProcess, level: float) -> Iterator[tuple[str, Any]]:
    """The amplitude at a level, or those of all terms at equal shares of it."""
    if gp.terms is None:
        yield "variance", level / _mean_diagonal(gp, gp.kernels)
        return
    for name in gp.terms.names:
        kernels = term(gp, name).kernels
        share = level / len(gp.terms.names)
        path = f"kernels[{gp.terms.axis}].variances"
        if not gp.terms.are_exact:
            path = "variance"
        elif name in gp.terms.joined:
            path = "joined.variances"
        yield f"{path}[{name!r}]", share / _mean_diagonal(gp, kernels)


def _mean_diagonal(gp: AbstractProcess, kernels: tuple[Kernel, ...]) -> float:
    """The mean prior variance on the grid at an amplitude of one."""
    known = [v for v in map(variance_of, kernels) if v is not None]
    if len(known) == len(kernels):
        return float(np.prod(known))
    places = tuple(axis.points(gp.dtype) for axis in gp.axes)
    return float(np.prod(np.asarray(_diagonals(kernels, places), np.float64)))


@eqx.filter_jit
def _diagonals(kernels: tuple[Kernel, ...], places: tuple[Points, ...]) -> list[Array]:
    return [jnp.mean(kernel.variances_at(x)) for kernel, x in zip(kernels, places, strict=True)]
