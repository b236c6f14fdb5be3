"""Where a grid has gaps, and what that means for its linear algebra. No array is traced here.

Whole missing slabs are dropped from their axis. Axes along which the remaining gaps are all the
same are *shared*: rotated to their eigenbasis, each of their eigenvalues leaves a problem of its
own on the other axes, the *gap axes*.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Literal

import numpy as np

from kronax.linalg.checks import is_concrete, plain

Method = Literal["slabs", "gaps", "merged"]
METHODS: tuple[Method, ...] = ("slabs", "gaps", "merged")
# Measured on two cores: `eigh` of an n × n matrix takes the time of this many n³ operations of
# matrix products, and Cholesky with both inverses of that many.
EIGH = 15.0
INVERSES = 4.0
# Cholesky of an n × n matrix and the gradient by automatic differentiation, likewise.
CHOLESKY = 8.0
# Numbers that one step of a loop over fibres may hold.
CHUNK = 4_000_000
# A fibre is cut into pieces of equal length; each piece costs about as much as this many gaps.
PIECE_COST = 4


@dataclass(frozen=True)
class Mask:
    """A boolean array as a static value: hashable, so that jit and pytrees can carry it."""

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, observed: Any, grid_shape: tuple[int, ...]) -> "Mask":
        """A checked mask, true where a cell is observed."""
        if isinstance(observed, Mask):
            observed = observed.array
        if not is_concrete(observed):
            raise TypeError(
                "The mask `observed` must have concrete values, since it decides the shapes of "
                "what is computed; got a traced array. Close over it, or make the operator "
                "outside of jit: a mask is no parameter."
            )
        observed = np.ma.filled(observed, False)  # what is masked has no data
        array = np.asarray(plain(observed, "The mask `observed`"))
        if array.dtype != bool:
            raise TypeError(
                f"The mask `observed` must be boolean, true where a cell is observed; got dtype "
                f"{array.dtype}. Convert it: `~jnp.isnan(y)`, or `mask.astype(bool)`."
            )
        if array.shape != grid_shape:
            raise ValueError(
                f"The mask `observed` must have the shape of the grid, {grid_shape}; got "
                f"{array.shape}. One mask holds for a whole batch."
            )
        if not array.any():
            raise ValueError(
                f"At least one cell must be observed; got a mask of {array.size} gaps. True "
                "means observed: invert a mask of missing cells."
            )
        return cls(grid_shape, np.packbits(array).tobytes())

    @cached_property
    def array(self) -> np.ndarray:
        """The boolean array."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=prod(self.shape))
        return bits.astype(bool).reshape(self.shape)

    @cached_property
    def kept(self) -> tuple[np.ndarray, ...]:
        """Per axis the indices that are left once whole missing slabs are dropped."""
        axes = range(len(self.shape))
        others = [tuple(j for j in axes if j != i) for i in axes]
        return tuple(np.flatnonzero(self.array.any(axis=rest)) for rest in others)

    @cached_property
    def gaps(self) -> "Gaps":
        """The gaps among the kept indices."""
        inside = ~self.array[np.ix_(*self.kept)]
        shared = tuple(
            i for i in range(inside.ndim) if np.array_equal(inside, _repeated(inside, i))
        )
        first = tuple(0 if i in shared else slice(None) for i in range(inside.ndim))
        return Gaps(inside.shape, shared, Mask(inside[first].shape, _packed(inside[first])))


def _repeated(array: np.ndarray, axis: int) -> np.ndarray:
    return np.broadcast_to(array.take([0], axis), array.shape)


def _packed(array: np.ndarray) -> bytes:
    return np.packbits(array).tobytes()


@dataclass(frozen=True)
class Gaps:
    """Gaps of a grid that lie in no whole missing slab.

    Args:
        shape: of the grid.
        shared: the axes along which all gaps are the same.
        missing: true at the gaps, on the other axes.
    """

    shape: tuple[int, ...]
    shared: tuple[int, ...]
    missing: Mask

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The gap axes."""
        return tuple(i for i in range(len(self.shape)) if i not in self.shared)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the gap axes."""
        return self.missing.shape

    @property
    def shared_sizes(self) -> tuple[int, ...]:
        """Of the shared axes."""
        return tuple(self.shape[i] for i in self.shared)

    @property
    def num_problems(self) -> int:
        """One per eigenvalue of the shared axes."""
        return prod(self.shared_sizes)

    @cached_property
    def places(self) -> np.ndarray:
        """The gaps of one problem by their indices on the gap axes, `(m, g)`."""
        return np.argwhere(self.missing.array)

    @property
    def count(self) -> int:
        """The number of gaps of one problem."""
        return int(self.missing.array.sum())

    @cached_property
    def observed(self) -> np.ndarray:
        """The observed cells of one problem by their indices on the gap axes, `(n, g)`."""
        return np.argwhere(~self.missing.array)

    @cached_property
    def fibres(self) -> tuple["Fibres", ...]:
        """The gaps sorted by their index on each of the gap axes."""
        return tuple(Fibres.of(column) for column in self.places.T)

    @property
    def flat_places(self) -> np.ndarray:
        """The gaps of one problem by their index in the flattened gap axes, `(m,)`."""
        return np.flatnonzero(self.missing.array)


@dataclass(frozen=True)
class Fibres:
    """Gaps in pieces of equal length, all those of a piece at one index of an axis.

    Args:
        rows: the indices that occur, ascending.
        row_of_gap: per gap its position in `rows`.
        row_of_piece: per piece its position in `rows`.
        table: per piece its gaps, `(pieces, length)`; the number of gaps stands for none.
        slots: per gap its place in the flattened table.
    """

    rows: np.ndarray
    row_of_gap: np.ndarray
    row_of_piece: np.ndarray
    table: np.ndarray
    slots: np.ndarray

    @classmethod
    def of(cls, indices: np.ndarray) -> "Fibres":
        """The pieces whose length makes padding and number together cheapest."""
        rows, row_of_gap, counts = np.unique(indices, return_inverse=True, return_counts=True)
        lengths = np.unique(counts)
        costs = [np.sum(-(-counts // c)) * (c + PIECE_COST) for c in lengths]
        length = int(lengths[np.argmin(costs)])
        members = np.split(np.argsort(row_of_gap, kind="stable"), np.cumsum(counts)[:-1])
        pieces = [
            (row, part)
            for row, gaps in enumerate(members)
            for part in np.split(gaps, range(length, len(gaps), length))
        ]
        table = np.full((len(pieces), length), len(indices))
        for k, (_, part) in enumerate(pieces):
            table[k, : len(part)] = part
        slots = np.empty(len(indices), int)
        slots[table[table < len(indices)]] = np.flatnonzero(table.ravel() < len(indices))
        return cls(rows, row_of_gap, np.array([row for row, _ in pieces]), table, slots)


@dataclass(frozen=True)
class GapPlan:
    """How an operator with gaps is handled, why, and at what predicted cost.

    Attributes:
        method: `"slabs"`: dropping whole slabs left no gap. `"gaps"`: one problem in the gaps per
            eigenvalue of the shared axes. `"merged"`: the gap axes become one dense axis of the
            observed cells.
        reason: in words.
        num_observed: observed cells.
        num_missing: missing cells.
        dropped: indices dropped per axis.
        shared_axes: the axes along which the remaining gaps are the same.
        num_gaps: gaps of one problem.
        num_problems: eigenvalues of the shared axes.
        flops: operations of one value and gradient, in those of a matrix product.
        memory: the largest arrays of one value and gradient, in bytes.
    """

    method: Method
    reason: str
    num_observed: int
    num_missing: int
    dropped: tuple[int, ...]
    shared_axes: tuple[int, ...]
    num_gaps: int
    num_problems: int
    flops: float
    memory: int


@lru_cache(maxsize=64)
def plan_gaps(mask: Mask, itemsize: int, method: str = "auto") -> GapPlan:
    """Choose the cheapest exact method for a mask, or take the one that is asked for."""
    gaps = mask.gaps
    costs = {"slabs": grid_cost(gaps.shape)} if not gaps.count else {}
    if gaps.count:
        costs = {"gaps": gap_cost(gaps), "merged": merged_cost(gaps)}
    best: Any = min(costs, key=lambda name: costs[name][0])
    if method != "auto":
        if method not in costs:
            raise ValueError(
                f"`method` must be one of {', '.join(map(repr, ('auto', *costs)))} for this mask; "
                f"got {method!r}. Leave it at 'auto' for the cheapest."
            )
        best = method
    flops, numbers = costs[best]
    return GapPlan(
        method=best,
        reason=_reason(gaps, best, costs, asked=method != "auto"),
        num_observed=int(mask.array.sum()),
        num_missing=int((~mask.array).sum()),
        dropped=tuple(n - len(k) for n, k in zip(mask.shape, mask.kept, strict=True)),
        shared_axes=gaps.shared if gaps.count else (),
        num_gaps=gaps.count,
        num_problems=gaps.num_problems if gaps.count else 1,
        flops=flops,
        memory=itemsize * int(numbers),
    )


@lru_cache(maxsize=64)
def plan_uneven(mask: Mask, itemsize: int, method: str = "auto") -> GapPlan:
    """The one exact method for a variance per cell: the observed cells as one dense matrix."""
    if method not in ("auto", "merged"):
        raise ValueError(
            "Noise with a variance per cell has one exact method, 'merged'; got "
            f"{method!r}. Leave it at 'auto'."
        )
    observed = int(mask.array.sum())
    flops, numbers = dense_cost(observed)
    return GapPlan(
        method="merged",
        reason=f"a noise variance per cell: a dense matrix of {observed} observed cells",
        num_observed=observed,
        num_missing=mask.array.size - observed,
        dropped=tuple(n - len(k) for n, k in zip(mask.shape, mask.kept, strict=True)),
        shared_axes=(),
        num_gaps=mask.array.size - observed,
        num_problems=1,
        flops=flops,
        memory=itemsize * int(numbers),
    )


def dense_cost(num_observed: int) -> tuple[float, float]:
    """Operations and numbers held by one dense matrix of the observed cells."""
    return CHOLESKY * num_observed**3, 6.0 * num_observed**2


def grid_cost(shape: tuple[int, ...]) -> tuple[float, float]:
    """Operations and numbers held on a grid without gaps."""
    size = prod(shape)
    flops = EIGH * sum(n**3 for n in shape) + 4 * size * sum(shape)
    return flops, 4 * size + 3 * sum(n * n for n in shape)


def build_axis(gaps: Gaps) -> int:
    """The position among the gap axes by which `(S⁻¹)_mm` is built in the fewest operations."""
    costs = [_along_cost(gaps, k)[0] for k in range(len(gaps.axes))]
    return int(np.argmin(costs))


def _along_cost(gaps: Gaps, k: int) -> tuple[float, float, float]:
    """Operations to build the matrix along one gap axis, those of its gradient, numbers held."""
    fibres = gaps.fibres[k]
    pieces, length = fibres.table.shape
    size, n = prod(gaps.sizes), gaps.sizes[k]
    others = size // n
    padded = pieces * length
    value = 2 * pieces * len(fibres.rows) * size + 2 * padded * gaps.count * others
    slope = 2 * padded**2 * others + 2 * pieces * (pieces + n) * size
    held = others * max(padded, gaps.count)
    return value, slope, max(held, min(CHUNK, pieces * held))


def gap_cost(gaps: Gaps) -> tuple[float, float]:
    """Operations and numbers held by the method in the gaps."""
    along = [_along_cost(gaps, k) for k in range(len(gaps.axes))]
    one = min(a[0] for a in along) + sum(a[1] for a in along) + INVERSES * gaps.count**3
    flops, numbers = grid_cost(gaps.shape)
    numbers += (gaps.num_problems + 4) * gaps.count**2 + 4 * max(a[2] for a in along)
    return flops + gaps.num_problems * one, numbers


def merged_cost(gaps: Gaps) -> tuple[float, float]:
    """Operations and numbers held by the merged method."""
    return grid_cost((*gaps.shared_sizes, len(gaps.observed)))


def _reason(gaps: Gaps, method: str, costs: dict[str, tuple[float, float]], asked: bool) -> str:
    if method == "slabs":
        return "every gap lies in a whole missing slab, which is dropped from its axis"
    shared = (
        f"the same gaps along {'axes' if len(gaps.shared) > 1 else 'axis'} "
        f"{', '.join(map(str, gaps.shared))}: {gaps.num_problems} problems of "
        if gaps.shared
        else ""
    )
    what = f"{shared}{gaps.count} gaps and {len(gaps.observed)} observed cells"
    if asked:
        return f"{what}; {method!r} was asked for"
    other = "merged" if method == "gaps" else "gaps"
    return (
        f"{what}; {method!r} takes {costs[method][0]:.1e} operations, {other!r} "
        f"{costs[other][0]:.1e}"
    )
