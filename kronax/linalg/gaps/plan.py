"""Where a grid has gaps, and what that means for its linear algebra. No array is traced here.

Whole missing slabs are dropped from their axis. Axes along which the remaining gaps are all the
same are *shared*: rotated to their eigenbasis, each of their eigenvalues leaves a problem of its
own on the other axes, the *gap axes*.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np

from kronax.linalg.operators.gap_geometry import Gaps, Mask

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
