"""Where a grid has gaps: the mask, the gaps axis by axis, and fibres of them."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from kronax.linalg.arrays.checks import is_concrete, plain

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
