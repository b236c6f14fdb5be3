"""How well conditioned the factors of a product without noise are, found on the host."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array
from scipy.linalg import LinAlgError, solve_triangular
from scipy.linalg.lapack import dgecon, dpocon

from kronax.linalg.arrays.transforms import Identity
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.eigenbases import SymmetricBlocks, full_block
from kronax.linalg.factors.factorizations import (
    AbstractFactorization,
    BlockFactorization,
    CholeskyFactorization,
    DiagonalFactorization,
    LUFactorization,
    TriangularFactorization,
)

# Powers of a matrix that show its largest singular value to some ten per cent.
POWERS = 3
# A condition number by 1-norms is within the size of that by singular values. Where rounding times
# that is less than this, nobody is told, and it is known at once.
HARMLESS = 1e-3
# Of a batch at most so many entries are looked at.
MOST_ENTRIES = 100

Apply = Callable[[np.ndarray], np.ndarray]


class FactorCondition(NamedTuple):
    """What tells the condition number of a factor: blocks, and how each was factorised."""

    blocks: SymmetricBlocks
    pieces: tuple[AbstractFactorization, ...]

    @classmethod
    def of(cls, factor: AbstractFactor, held: AbstractFactorization) -> "FactorCondition":
        """From a factor and its factorisation."""
        if isinstance(held, BlockFactorization):
            return cls(factor.blocks(), held.pieces)
        return cls(full_block(factor.to_dense()), (held,))

    def number(self) -> float:
        """An estimate from inside, of concrete values, the worst of a batch.

        Rows and columns of a matrix are balanced first: their scales cost no digits.
        """
        batch = self.blocks.batch_shape
        count = prod(batch)
        chosen = np.linspace(0, count - 1, min(count, MOST_ENTRIES)).astype(int)
        return max((self._number(np.unravel_index(k, batch)) for k in chosen), default=1.0)

    def _number(self, entry: tuple[Any, ...]) -> float:
        is_balanced = self.blocks.transform == Identity()
        pairs = list(zip(self.blocks.arrays, self.pieces, strict=True))
        quick = [_one_norms(a, piece, entry, is_balanced) for a, piece in pairs]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            above = float(max(norm for norm, _ in quick) * max(inverse for _, inverse in quick))
        if self.blocks.size * np.finfo(self.blocks.arrays[0].dtype).eps * above < HARMLESS:
            return above
        ends = np.array([_singular_values(a, piece, entry, is_balanced) for a, piece in pairs])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return float(ends[:, 0].max() / ends[:, 1].min())


class FactorConditions(NamedTuple):
    """What tells how ill-conditioned a product is.

    Factors are solved with one by one: their errors add up, and condition numbers do not multiply.
    """

    factors: tuple[FactorCondition, ...]

    @property
    def largest(self) -> Array:
        """An array of the precision that was computed in."""
        return self.factors[0].blocks.arrays[0]

    def ratio(self) -> np.ndarray:
        """Rounding times the worst condition number."""
        return np.asarray(np.finfo(self.largest.dtype).eps * max(f.number() for f in self.factors))


def _one_norms(
    array: Array, held: AbstractFactorization, entry: tuple[Any, ...], is_balanced: bool
) -> tuple[float, float]:
    """The 1-norms of a block and of its inverse, by LAPACK's estimate from its factorisation."""
    if isinstance(held, DiagonalFactorization):
        largest, smallest = _singular_values(array, held, entry, is_balanced)
        return largest, 1 / smallest if smallest else np.inf
    norm = float(np.abs(_entry(array, entry, 2)).sum(axis=0).max())
    if isinstance(held, LUFactorization):
        inverse, _ = dgecon(_entry(held.lu, entry, 2), norm)
    elif isinstance(held, CholeskyFactorization):
        inverse, _ = dpocon(_entry(held.root, entry, 2).T, norm)
    else:
        return norm, np.inf  # by singular values
    return norm, 1 / (norm * inverse) if norm * inverse > 0 else np.inf


def _singular_values(
    array: Array, held: AbstractFactorization, entry: tuple[Any, ...], is_balanced: bool
) -> tuple[float, float]:
    """The largest and smallest one of a block, of one entry of the batch."""
    if isinstance(held, DiagonalFactorization):
        values = np.abs(_entry(held.values, entry, 1))
        return (1.0, 1.0) if is_balanced else (float(values.max()), float(values.min()))
    a, solve = _entry(array, entry, 2), _solver(held, entry)
    rows, columns = np.ones((2, len(a)))
    with np.errstate(all="ignore"):
        if is_balanced:
            rows = 1 / np.abs(a).max(axis=1)
            columns = 1 / np.abs(rows[:, None] * a).max(axis=0)
        try:
            inverse = _stretched(
                lambda x: solve(x / columns, 1) / rows,
                lambda x: solve(x / rows, 0) / columns,
                len(a),
            )
        except LinAlgError:  # a zero on a diagonal
            return np.inf, 0.0
        top = _stretched(
            lambda x: rows * (a @ (columns * x)), lambda x: columns * (a.T @ (rows * x)), len(a)
        )
        return top, 1 / inverse


def _stretched(forward: Apply, backward: Apply, size: int) -> float:
    """The largest singular value, by some powers of `forward` and its transpose."""
    x = np.random.default_rng(0).standard_normal(size)
    for _ in range(POWERS):
        x = backward(forward(x / np.linalg.norm(x)))
    return float(np.sqrt(np.linalg.norm(x)))


def _solver(held: AbstractFactorization, entry: tuple[Any, ...]) -> Callable[..., np.ndarray]:
    """`solve(b, trans)`, with the matrix or its transpose."""
    if isinstance(held, LUFactorization):
        lu, order = _entry(held.lu, entry, 2), _entry(held.permutation, entry, 1).astype(int)

        def solve(b: np.ndarray, trans: int) -> np.ndarray:
            if not trans:
                b = _substituted(lu, b[order], lower=True, unit_diagonal=True)
                return _substituted(lu, b)
            b = _substituted(lu, b, trans=1)
            b = _substituted(lu, b, trans=1, lower=True, unit_diagonal=True)
            return b[np.argsort(order)]

        return solve
    if isinstance(held, CholeskyFactorization):
        root = _entry(held.root, entry, 2)
        return lambda b, trans: _substituted(
            root, _substituted(root, b, lower=True), lower=True, trans=1
        )
    assert isinstance(held, TriangularFactorization)
    matrix, is_lower = _entry(held.matrix, entry, 2), held.lower
    return lambda b, trans: _substituted(matrix, b, lower=is_lower, trans=trans)


def _substituted(matrix: np.ndarray, b: np.ndarray, **options: Any) -> np.ndarray:
    return solve_triangular(matrix, b, check_finite=False, **options)


def _entry(array: Array, entry: tuple[Any, ...], ndim: int) -> np.ndarray:
    """One entry of a batch in double precision; axes that the array lacks are left out."""
    lead = array.ndim - ndim
    own = entry[len(entry) - lead :]
    index = tuple(0 if n == 1 else k for n, k in zip(array.shape, own, strict=False))
    return np.asarray(array)[index].astype(np.float64, copy=False)
