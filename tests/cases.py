"""The one dictionary of operators that every property of the linear algebra is tested on.

A case is a layout (which kinds of factors, which noise) and leaves. A leaf is the parameter array
of one factor as a function of the flat vector `theta`: a `Jet` at `theta = 0`, so that its dense
matrix has exact derivatives without automatic differentiation. Its directions are random and
full: at a repeated eigenvalue they mix the whole eigenspace.

A new factor type adds one entry to `KINDS` and one to `CASES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests import oracle
from tests.everyday import everyday
from tests.oracle import Jet


class Exchangeable(kx.AbstractFactor):
    """`a I + b 11ᵀ`: a factor of a user, who wrote the three methods that are required."""

    weights: jax.Array
    size: int = eqx.field(static=True)

    def mv(self, x):
        own, shared = self.weights[..., 0, None], self.weights[..., 1, None]
        own, shared = (v.reshape((1,) * (x.ndim - v.ndim) + v.shape) for v in (own, shared))
        return own * x + shared * jnp.sum(x, axis=-1, keepdims=True)

    def to_dense(self):
        own, shared = (self.weights[..., k, None, None] for k in range(2))
        identity = jnp.eye(self.size, dtype=self.weights.dtype)
        identity = identity.reshape((1,) * (own.ndim - 2) + identity.shape)
        return own * identity + shared


class Kind(NamedTuple):
    """How a factor is made of its parameter array, in kronax and as a dense matrix."""

    factor: Callable[[Any, int], Any]
    matrix: Callable[[np.ndarray, int], np.ndarray]
    # A random array to the nearest that is a valid direction for the parameters.
    project: Callable[[np.ndarray], np.ndarray] = lambda array: array
    covariance: bool = True
    # The matrix of a jet of parameters, where it is not linear in them.
    jet: Callable[[Jet], Jet] | None = None


def _symmetrised(array):
    return (array + np.swapaxes(array, -1, -2)) / 2


def _of_diagonal(values, size):
    return values[..., None] * np.eye(size)


def _of_weights(weights, size):
    return weights[..., 0, None, None] * np.eye(size) + weights[..., 1, None, None]


def _itself(matrix, size):
    return matrix


def _of_column(column, size):
    places = np.arange(size)
    return column[..., np.abs(places[:, None] - places)]


def _mirrored(matrix):
    return (_symmetrised(matrix) + _symmetrised(matrix)[..., ::-1, ::-1]) / 2


def _round(column):
    return (column + np.roll(column[..., ::-1], 1, axis=-1)) / 2


def _squared(root, size):
    return root @ np.swapaxes(root, -1, -2)


def _squared_jet(root):
    return oracle.product(lambda a, b: a @ np.swapaxes(b, -1, -2), root, root)


def _markov(chain, size):
    """A variance and `n - 1` correlations of neighbours: a state of one number."""
    a = chain[..., 1:, None, None]
    start = chain[..., :1, None]
    space = kx.StateSpace(a, start[..., None, :, :] * (1 - a * a), start)
    return kx.Markov(space, size)


def _of_chain(chain, size):
    rows = [[chain[..., 0] for _ in range(size)] for _ in range(size)]
    for i in range(size):
        for j in range(i):
            rows[i][j] = rows[j][i] = chain[..., i] * rows[i - 1][j]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _chain_jet(chain):
    size = chain.value.shape[-1]
    entry = [oracle.linear_map(lambda x, k=k: x[..., k], chain) for k in range(size)]
    rows = [[entry[0]] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            rows[i][j] = rows[j][i] = oracle.product(np.multiply, entry[i], rows[i - 1][j])
    stacked = [Jet(*(np.stack(parts, axis=-1) for parts in zip(*row, strict=True))) for row in rows]
    return Jet(*(np.stack(parts, axis=-2) for parts in zip(*stacked, strict=True)))


KINDS = {
    "toeplitz": Kind(lambda p, n: kx.Toeplitz(p), _of_column),
    "circulant": Kind(lambda p, n: kx.Circulant(p), _of_column, _round),
    "centrosymmetric": Kind(lambda p, n: kx.Centrosymmetric(p), _itself, _mirrored),
    "dense": Kind(lambda p, n: p, _itself, _symmetrised),
    "definite": Kind(lambda p, n: kx.Dense(p, positive_definite=True), _itself, _symmetrised),
    "general": Kind(lambda p, n: kx.Dense(p), _itself, covariance=False),
    "lower": Kind(lambda p, n: kx.LowerTriangular(p), _itself, np.tril, covariance=False),
    "diagonal": Kind(lambda p, n: kx.Diagonal(p), _of_diagonal),
    "low_rank": Kind(lambda p, n: kx.LowRank(p), _squared, jet=_squared_jet),
    "markov": Kind(_markov, _of_chain, jet=_chain_jet),
    "scaled_identity": Kind(kx.ScaledIdentity, lambda p, n: p[..., None, None] * np.eye(n)),
    "exchangeable": Kind(Exchangeable, _of_weights),
}


def at(leaf: Jet, theta):
    """The parameter array at `theta`: quadratic, with exactly the derivatives of the jet."""
    bend = jnp.tensordot(theta, jnp.tensordot(theta, leaf.second, 1), 1)
    return leaf.value + jnp.tensordot(theta, leaf.first, 1) + bend / 2


class Layout(NamedTuple):
    """What does not change when the numbers do: hashable, so that compiled functions are shared."""

    signal: tuple[tuple[str, int], ...]
    # Factors, "scalar", or "sum" and "bare sum": a Kronecker sum with and without a variance.
    noise: tuple[tuple[str, int], ...] | str | None = None

    @property
    def covariance(self) -> bool:
        return all(KINDS[kind].covariance for kind, _ in self.signal)

    @property
    def num_leaves(self) -> int:
        if isinstance(self.noise, tuple):
            return len(self.signal) + len(self.noise)
        return len(self.signal) + (self.noise in ("scalar", "sum"))

    def operator(self, parameters):
        if self.noise in ("sum", "bare sum"):
            total = kx.KroneckerSum(*_factors(self.signal, parameters))
            return total + parameters[-1] if self.noise == "sum" else total
        signal = kx.Kronecker(*_factors(self.signal, parameters))
        if self.noise is None:
            return signal
        rest = parameters[len(self.signal) :]
        if self.noise == "scalar":
            return signal + rest[0]
        return kx.KroneckerPlusNoise(signal, kx.Kronecker(*_factors(self.noise, rest)))

    def inputs(self, leaves, theta):
        """The operator, the vector and the mean at `theta`."""
        parameters, start = [], 0
        for leaf in leaves[: self.num_leaves]:
            end = start + leaf.first.shape[0]
            parameters.append(at(leaf, theta[start:end]))
            start = end
        y, mean = (at(leaf, theta[start:]) for leaf in leaves[self.num_leaves :])
        return self.operator(parameters), y, mean


def _factors(kinds, parameters):
    return [KINDS[kind].factor(p, n) for (kind, n), p in zip(kinds, parameters, strict=False)]


@dataclass(frozen=True, eq=False)
class Case:
    """One operator, a vector `y` and a mean over its grid, all functions of `theta`.

    `leaves` are those of the signal, then of the noise, then `y` and the mean, which share theirs.
    """

    name: str
    layout: Layout
    leaves: tuple[Jet, ...]

    @property
    def covariance(self) -> bool:
        return self.layout.covariance

    @property
    def noisy(self) -> bool:
        return self.layout.noise is not None

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(size for _, size in self.layout.signal)

    @cached_property
    def theta(self) -> np.ndarray:
        own = sum(leaf.first.shape[0] for leaf in self.leaves[:-1])
        return np.zeros(own, self.leaves[0].value.dtype)

    @property
    def inputs(self):
        """The operator, `y` and the mean at `theta = 0`, as a user would make them."""
        *parameters, y, mean = (jnp.asarray(leaf.value) for leaf in self.leaves)
        return self.layout.operator(parameters), y, mean

    @property
    def operator(self):
        return self.inputs[0]

    @cached_property
    def dense(self) -> tuple[Jet, Jet, Jet]:
        """The dense matrix, the flat vector and the flat mean, as jets in all of `theta`."""
        kinds = self.layout.signal
        if isinstance(self.layout.noise, tuple):
            kinds = kinds + self.layout.noise
        *leaves, y, mean = self._padded()
        factors = [
            KINDS[kind].jet(leaf)
            if KINDS[kind].jet
            else oracle.linear_map(lambda a, k=kind, n=n: KINDS[k].matrix(a, n), leaf)
            for (kind, n), leaf in zip(kinds, leaves, strict=False)
        ]
        num_axes = len(self.grid)
        is_sum = self.layout.noise in ("sum", "bare sum")
        matrix = (_kronecker_sum if is_sum else _kronecker)(factors[:num_axes])
        if self.layout.noise in ("scalar", "sum"):
            identity = np.eye(prod(self.grid))
            matrix += oracle.linear_map(lambda a: a[..., None, None] * identity, leaves[-1])
        elif isinstance(self.layout.noise, tuple):
            matrix += _kronecker(factors[num_axes:])
        flat = (oracle.linear_map(self._flatten, leaf) for leaf in (y, mean))
        return matrix, *flat

    def _flatten(self, array):
        return array.reshape(*array.shape[: array.ndim - len(self.grid)], -1)

    def _padded(self) -> list[Jet]:
        """The leaves as float64 jets in the whole `theta`, with equally many batch axes."""
        event_ndims = [_event_ndim(kind) for kind, _ in self._kinds()] + [len(self.grid)] * 2
        ranks = [leaf.value.ndim - e for leaf, e in zip(self.leaves, event_ndims, strict=True)]
        padded, start = [], 0
        for k, (leaf, rank) in enumerate(zip(self.leaves, ranks, strict=True)):
            if k == len(self.leaves) - 1:
                start -= leaf.first.shape[0]
            count = leaf.first.shape[0]
            shape = (*(1,) * (max(ranks) - rank), *leaf.value.shape)
            total = self.theta.size
            first = np.zeros((total, *shape))
            second = np.zeros((total, total, *shape))
            mine = slice(start, start + count)
            first[mine] = leaf.first.reshape(count, *shape)
            second[mine, mine] = leaf.second.reshape(count, count, *shape)
            padded.append(Jet(leaf.value.astype(float).reshape(shape), first, second))
            start += count
        return padded

    def _kinds(self):
        noise = self.layout.noise
        scalar = (("scalar", 0),) if noise in ("scalar", "sum") else ()
        return (*self.layout.signal, *(noise if isinstance(noise, tuple) else scalar))

    def astype(self, dtype) -> "Case":
        """The same case in another precision; its oracle sees the rounded numbers."""
        leaves = tuple(Jet(*(a.astype(dtype) for a in leaf)) for leaf in self.leaves)
        return replace(self, leaves=leaves)


def _kronecker(factors: list[Jet]) -> Jet:
    return reduce(lambda a, b: oracle.product(oracle.kron, a, b), factors)


def _kronecker_sum(factors: list[Jet]) -> Jet:
    """Each factor beside identities, added up."""
    total = None
    for i, factor in enumerate(factors):
        before, after = (
            prod(f.value.shape[-1] for f in part) for part in (factors[:i], factors[i + 1 :])
        )
        wide = oracle.linear_map(
            lambda a, m=before, n=after: oracle.kron(oracle.kron(np.eye(m), a), np.eye(n)), factor
        )
        total = wide if total is None else total + wide
    return total


def _event_ndim(kind: str) -> int:
    vectors = ("diagonal", "exchangeable", "toeplitz", "circulant", "markov")
    return {"scalar": 0, "scaled_identity": 0, **dict.fromkeys(vectors, 1)}.get(kind, 2)


# --- bases -------------------------------------------------------------------------------------


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def covariance(size: int, seed: int = 0, batch: tuple[int, ...] = ()) -> np.ndarray:
    """A well-conditioned covariance."""
    root = _rng(size, seed).normal(size=(*batch, size, size + 3))
    return root @ np.swapaxes(root, -1, -2) / (size + 3) + 0.3 * np.eye(size)


def general(size: int, seed: int = 0, batch: tuple[int, ...] = ()) -> np.ndarray:
    """Square, invertible, not symmetric, with a negative determinant at odd sizes."""
    matrix = _rng(size, seed, 1).normal(size=(*batch, size, size))
    return 0.4 * matrix + np.diag(np.linspace(-1.5, -1.0, size))


def rbf(size: int, lengthscale: float = 0.3) -> np.ndarray:
    x = np.linspace(0, 1, size)
    return np.exp(-0.5 * np.square((x[:, None] - x) / lengthscale))


def exchangeable(size: int, rho: float) -> np.ndarray:
    return (1 - rho) * np.eye(size) + rho


def circulant(size: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(size) / size
    return np.exp(np.cos(angle[:, None] - angle))


def singular(size: int, rank: int, seed: int = 0) -> np.ndarray:
    root = _rng(size, rank, seed).normal(size=(size, rank))
    return root @ root.T


def near_singular(size: int) -> np.ndarray:
    vectors = np.linalg.qr(general(size, 3))[0]
    matrix = (vectors * np.logspace(0, -14, size)) @ vectors.T
    return (matrix + matrix.T) / 2


def _leaf(base, project, seed: int, count: int = 2) -> Jet:
    base = np.asarray(base, dtype=float)
    rng = _rng(seed, base.size, 7)
    first = project(rng.normal(size=(count, *base.shape)))
    bends = project(rng.normal(size=(count, count, *base.shape)))
    return Jet(base, first, (bends + np.swapaxes(bends, 0, 1)) / 2)


def _rbf_leaf(size: int, lengthscale: float = 0.3) -> Jet:
    """The kernel itself, with its derivatives in the lengthscale."""
    x = np.linspace(0, 1, size)
    squared = np.square(x[:, None] - x)
    k = rbf(size, lengthscale)
    bend = squared**2 / lengthscale**6 - 3 * squared / lengthscale**4
    return Jet(k, (k * squared / lengthscale**3)[None], (k * bend)[None, None])


def _case(name, signal, noise=None, batch=(), leaves=None, count=2, is_sum=False) -> Case:
    """`signal` and `noise`: pairs (kind, base parameters); `noise` may be a variance."""
    signal = [(kind, base, _size(kind, base)) for kind, base, *_ in signal]
    parts, layout_noise = list(signal), None
    if isinstance(noise, list):
        noise = [(kind, base, _size(kind, base)) for kind, base, *_ in noise]
        parts, layout_noise = parts + noise, tuple((kind, n) for kind, _, n in noise)
    parameters = [
        _leaf(base[0] if isinstance(base, tuple) else base, KINDS[kind].project, k)
        for k, (kind, base, _) in enumerate(parts)
    ]
    if noise is not None and layout_noise is None:
        parameters.append(_leaf(noise, lambda a: a, 91, 1))
        layout_noise = "scalar"
    if is_sum:
        layout_noise = "bare sum" if noise is None else "sum"
    grid = tuple(n for _, _, n in signal)
    rng = _rng(prod(grid), 5)
    vectors = [
        _leaf(rng.normal(size=(*batch, *grid)), lambda a: a, seed, count) for seed in (92, 93)
    ]
    layout = Layout(tuple((kind, n) for kind, _, n in signal), layout_noise)
    given = dict(enumerate(leaves or ()))
    parameters = [given.get(k, leaf) for k, leaf in enumerate(parameters)]
    return Case(name, layout, (*parameters, *vectors))


def _size(kind: str, base) -> int:
    if kind == "low_rank":
        return np.shape(base)[-2]
    return base[1] if isinstance(base, tuple) else np.shape(base)[-1]


def _dense(*bases):
    return [("dense", base) for base in bases]


def _all_cases():
    k2, k3, k4, k5 = (covariance(n) for n in (2, 3, 4, 5))
    yield _case("one axis", _dense(k5), 0.3)
    yield _case("one axis, repeated eigenvalues", _dense(exchangeable(5, 0.4)), 0.3)
    yield _case("two axes", _dense(k4, k3), 0.3)
    yield _case("three axes", _dense(k3, k2, k4), 0.3)
    yield _case("four axes", _dense(k2, k3, covariance(2, 1), covariance(2, 2)), 0.3)
    yield _case("size-1 factor", _dense(k4, np.full((1, 1), 1.7)), 0.3)
    yield _case("equal sizes", _dense(k3, covariance(3, 1)), 0.3)
    yield _case("exchangeable, rho = 0", _dense(exchangeable(4, 0.0), exchangeable(3, 0.0)), 0.3)
    yield _case("exchangeable, rho = 0.6", _dense(exchangeable(4, 0.6), exchangeable(3, 0.6)), 0.3)
    yield _case("identity beside a general factor", _dense(np.eye(4), k3), 0.3)
    yield _case("circulant", _dense(circulant(4), circulant(3)), 0.3)
    yield _case("near-singular", _dense(near_singular(4), near_singular(3)), 1e-4)
    yield _case("singular signal", _dense(singular(4, 1), singular(3, 2)), 0.3)
    yield _case("zero signal", _dense(np.zeros((4, 4)), k3), 0.3)
    big = [_rbf_leaf(30), _rbf_leaf(25)]
    yield _case("RBF 30 × 25", _dense(rbf(30), rbf(25)), 0.01, leaves=big, count=1)
    yield _case("identity factor", [("dense", k4), ("scaled_identity", (1.3, 3))], 0.3)
    yield _case("diagonal factor", [("diagonal", [1.0, 0.5, 2.0]), ("dense", k4)], 0.3)
    yield _case("all diagonal", [("diagonal", [1.0, 2.0]), ("scaled_identity", (1.3, 3))], 0.3)
    yield _case("user-defined factor", [("exchangeable", ([0.4, 0.6], 3)), ("dense", k4)], 0.3)
    yield from _structured_cases(k3)
    yield from _low_rank_cases(k3, k4)
    yield from _markov_cases(k3)
    yield from _two_term_cases(k2, k3, k4)
    yield from _noise_free_cases(k2, k3, k4)
    yield from _kronecker_sum_cases(k3, k4)
    yield from _batched_cases()


def decay(size: int, seed: int = 0) -> np.ndarray:
    """First column of a positive definite Toeplitz matrix."""
    return (1.0 + seed) * np.exp(-0.4 * np.arange(size))


def wave(size: int) -> np.ndarray:
    """First column of a positive definite circulant matrix, with repeated eigenvalues."""
    return np.exp(np.cos(2 * np.pi * np.arange(size) / size))


def _structured_cases(k3):
    columns = [("toeplitz", decay(4)), ("toeplitz", decay(5))]
    yield _case("Toeplitz, even and odd", columns, 0.3)
    small = [("toeplitz", decay(1)), ("toeplitz", decay(2)), ("dense", k3)]
    yield _case("Toeplitz of sizes 1 and 2", small, 0.3)
    circles = [("circulant", wave(4)), ("circulant", wave(5)), ("circulant", wave(1))]
    yield _case("circulant factors", circles, 0.3)
    middle = [("centrosymmetric", _mirrored(covariance(n))) for n in (5, 4)]
    yield _case("centrosymmetric factors", middle, 0.3)
    every = [("toeplitz", decay(3)), ("circulant", wave(3)), ("centrosymmetric", _mirrored(k3))]
    yield _case("one factor of each structure", every, 0.3)
    own = [("toeplitz", decay(4, 1)), ("diagonal", [0.3, 0.2, 0.1, 0.4, 0.5])]
    yield _case("structured signal and noise", columns, own)
    yield _case("noise-free, structured", [columns[1], circles[0]])
    yield _case("noise-free, one place round a circle", [circles[2], ("dense", k3)])


def thin(size: int, rank: int, seed: int = 0, batch: tuple[int, ...] = ()) -> np.ndarray:
    """A root with few columns."""
    return _rng(size, rank, seed, 2).normal(size=(*batch, size, rank)) / np.sqrt(rank)


def _low_rank_cases(k3, k4):
    one, two, full = (("low_rank", thin(*shape)) for shape in ((5, 1), (4, 2), (3, 3)))
    variances = [("diagonal", np.linspace(0.2, 1, n)) for n in (4, 3)]
    yield _case("low-rank factors", [one, two], 0.3)
    yield _case("low rank on one axis", [two], 0.3)
    yield _case("low rank beside dense", [("dense", k3), two], 0.3)
    yield _case("low rank of full and of too high rank", [full, ("low_rank", thin(2, 3))], 0.3)
    zeros = np.concatenate([thin(4, 1), np.zeros((4, 1))], axis=1)
    yield _case("low rank with a column of zeros", [("low_rank", zeros), ("dense", k3)], 0.3)
    yield _case("low rank beside Toeplitz", [one, ("toeplitz", decay(4))], 0.3)
    yield _case("low rank, diagonal noise", [two, ("dense", k3)], variances)
    noise = [variances[0], ("dense", covariance(3, 5))]
    yield _case("low rank, diagonal beside full noise", [two, ("dense", k3)], noise)
    yield _case("low rank, full noise", [two, ("dense", k3)], _dense(covariance(4, 5), k3))
    yield _case("low-rank noise", _dense(k4, k3), [two, ("dense", covariance(3, 5))])
    batch = [("low_rank", thin(4, 2, 3, (3, 1))), ("dense", covariance(3, 4, (2,)))]
    yield _case("batched low rank", batch, 0.3, (3, 2))
    own = [("diagonal", np.linspace(0.2, 1, 8).reshape(2, 4)), ("scaled_identity", (0.7, 3))]
    yield _case("low rank, batched noise", [two, ("dense", k3)], own, (2,))


def chain(size: int, batch: tuple[int, ...] = ()) -> np.ndarray:
    """A variance, and correlations of neighbours in time."""
    values = 0.3 + 0.6 * _rng(size, 7).uniform(size=(*batch, size))
    values[..., 0] += 1
    return values


def _markov_cases(k3):
    long, short = ("markov", chain(5)), ("markov", chain(4))
    variances = [("diagonal", np.linspace(0.2, 1, n)) for n in (5, 3)]
    yield _case("Markov", [long], 0.3)
    yield _case("Markov beside dense", [("dense", k3), long], 0.3)
    yield _case("two Markov factors", [short, long], 0.3)
    yield _case("Markov, diagonal noise", [long, ("dense", k3)], variances)
    beside = [variances[0], ("dense", covariance(3, 5))]
    yield _case("Markov, full noise beside it", [long, ("dense", k3)], beside)
    yield _case("Markov, full noise", [long, ("dense", k3)], _dense(covariance(5, 5), k3))
    yield _case("noise-free, Markov", [long, ("dense", k3)])
    batch = [("dense", covariance(3, 4, (2,))), ("markov", chain(4, (3, 1)))]
    yield _case("batched Markov", batch, 0.3, (3, 2))


def _two_term_cases(k2, k3, k4):
    variances = [("diagonal", np.linspace(0.2, 1, n)) for n in (4, 3, 2)]
    yield _case("Kronecker diagonal noise", _dense(k4, k3), variances[:2])
    full = _dense(covariance(4, 5), covariance(3, 5))
    yield _case("full Kronecker noise", _dense(k4, k3), full)
    yield _case("two equal terms", _dense(k4, k3), _dense(k4, k3))
    yield _case("singular signal, full noise", _dense(singular(4, 2), singular(3, 1)), full)
    thin = _dense(singular(4, 2, 1), singular(3, 1, 1))
    yield _case("full signal, singular noise", _dense(k4, k3), thin)
    yield _case("both terms singular", _dense(singular(5, 3)), _dense(singular(5, 3, 1)))
    zero = _dense(covariance(4, 5), np.zeros((3, 3)))
    yield _case("zero noise", _dense(k4, k3), zero)
    third = _dense(covariance(3, 5), covariance(2, 5), covariance(4, 5))
    yield _case("full Kronecker noise, three axes", _dense(k3, k2, k4), third)
    mixed = [("dense", covariance(4, 5)), ("scaled_identity", (0.7, 3)), ("dense", k2)]
    signal = [("diagonal", np.linspace(1, 2, 4)), ("dense", k3), ("scaled_identity", (1.3, 2))]
    yield _case("each axis another pair of kinds", signal, mixed)
    own = [("exchangeable", ([0.3, 0.1], 4)), ("dense", covariance(3, 5))]
    yield _case("user-defined noise", _dense(k4, k3), own)


def _kronecker_sum_cases(k3, k4):
    yield _case("Kronecker sum plus noise", _dense(k4, k3), 0.3, is_sum=True)
    mixed = [("toeplitz", decay(4)), ("circulant", wave(5))]
    yield _case("Kronecker sum of structured factors", mixed, 0.3, is_sum=True)
    three = _dense(k3, covariance(2), covariance(4))
    yield _case("Kronecker sum of three factors", three, 0.3, is_sum=True)
    plain = [("dense", exchangeable(4, 0.4)), ("diagonal", [0.3, 0.2, 0.4])]
    yield _case("Kronecker sum, noise-free", plain, is_sum=True)
    both = [("dense", covariance(2, 3, (3, 1))), ("scaled_identity", (1.3, 3))]
    yield _case("batched Kronecker sum", both, np.linspace(0.2, 0.6, 5), (3, 5), is_sum=True)


def _noise_free_cases(k2, k3, k4):
    generals = [("general", general(n)) for n in (4, 3, 2)]
    yield _case("noise-free", _dense(k4, k3))
    yield _case("noise-free, general", generals[:2])
    yield _case("noise-free, general, three axes", generals)
    yield _case("noise-free, one axis", generals[:1])
    yield _case("noise-free, positive definite", [("definite", k4), ("definite", k3)])
    lowers = [("lower", np.tril(general(n))) for n in (4, 3)]
    yield _case("noise-free, triangular", lowers)
    yield _case("noise-free, triangular beside general", [lowers[0], generals[1]])
    yield _case("noise-free, diagonal", [("diagonal", [1, 0.5]), ("scaled_identity", (1.3, 3))])
    yield _case("noise-free, user-defined", [("exchangeable", ([0.4, 0.6], 3)), ("dense", k2)])


def _batched_cases():
    left, right = covariance(2, 3, (3, 1)), covariance(3, 4, (5,))
    yield _case("batched (3, 1) against (5,)", _dense(left, right), 0.3, (3, 5))
    levels = np.linspace(0.2, 0.6, 5)
    yield _case("batched with a noise of each", _dense(left, right), levels, (3, 5))
    yield _case("one factor batched", _dense(covariance(2), right), 0.3, (5,))
    noise = _dense(covariance(2, 8, (3, 1)), covariance(3, 8))
    yield _case("batched full noise", _dense(left, right), noise, (3, 5))
    pair = [("general", general(2, 3, (3, 1))), ("general", general(3, 4, (5,)))]
    yield _case("batched, noise-free", pair, None, (3, 5))
    kinds = [("diagonal", 1 + np.arange(6.0).reshape(3, 1, 2)), ("dense", right)]
    yield _case("batched diagonal factor", kinds, 0.3, (3, 5))
    own = [("exchangeable", (np.array([[0.4, 0.6], [1, 0.2]]), 3)), ("dense", covariance(2))]
    yield _case("batched user-defined factor", own, 0.3, (2,))


CASES = {case.name: case for case in _all_cases()}
# One of each kind of computation, for properties that do not depend on the numbers.
REPRESENTATIVE = (
    "circulant",
    "both terms singular",
    "noise-free, one axis",
)
# The everyday run takes these. The ones that all properties are tested on hold every kind of factor
# and every form of noise; with those of one property they hold every kind beside every form, with
# and without batches (`test_everyday.py` holds them to it). The product of all is the full run's.
COVERING = (
    "two axes",
    "one factor of each structure",
    "low rank beside dense",
    "Markov, full noise beside it",
    "noise-free, positive definite",
    "noise-free, triangular beside general",
    "Kronecker sum, noise-free",
    "batched Kronecker sum",
    "batched user-defined factor",
)
# What stands in Hessians for one that is dear there.
INSTEAD = {"Markov, full noise beside it": ("Markov beside dense", "full Kronecker noise")}
DIFFERENTIATED = (
    "one axis",
    "two axes",
    "all diagonal",
    "structured signal and noise",
    "low rank, diagonal beside full noise",
    "Markov, full noise beside it",
    "full Kronecker noise",
    "batched full noise",
    "noise-free, diagonal",
    "noise-free, user-defined",
    "Kronecker sum of structured factors",
    "batched, noise-free",
)
SOLVED = (
    "two axes",
    "Toeplitz of sizes 1 and 2",
    "batched Markov",
    "low rank beside dense",
    "low-rank noise",
    "full Kronecker noise",
    "each axis another pair of kinds",
    "user-defined noise",
    "noise-free, structured",
    "noise-free, Markov",
    "noise-free",
    "noise-free, triangular beside general",
    "Kronecker sum, noise-free",
    "batched user-defined factor",
)


def _program(case: Case):
    """What a compiled function depends on."""
    return case.layout, tuple(leaf.value.shape for leaf in case.leaves)


def with_other_numbers(names):
    """And the cases that are the same programs as these: they cost nothing more."""
    programs = {_program(CASES[name]) for name in names}
    return tuple(name for name, case in CASES.items() if _program(case) in programs)


def _cases(*chosen):
    names = with_other_numbers({name for names in chosen for name in names})
    return names, pytest.mark.parametrize("name", everyday(CASES, names))


FEW, few_cases = _cases(COVERING)
HESSIANS, hessian_cases = _cases(set(COVERING) - set(INSTEAD), *INSTEAD.values())
GRADIENTS, gradient_cases = _cases(DIFFERENTIATED)
SOLVES, solve_cases = _cases(SOLVED)
EVERYDAY, each_case = _cases(FEW, HESSIANS, GRADIENTS, SOLVES)
