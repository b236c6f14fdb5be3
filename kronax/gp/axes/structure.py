"""Which factor the covariance of one axis is: chosen from facts that hold for all parameters."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.kernel_gradients import is_known
from kronax.gp.axes.labels import Labels
from kronax.gp.axes.markov import beginning, markov_factor, why_not_markov
from kronax.gp.coordinates.spacing import Coordinates
from kronax.gp.kernels.base import Kernel, dtype_of
from kronax.gp.kernels.categorical import Categorical
from kronax.gp.kernels.dims import ActiveDims
from kronax.gp.kernels.markov import NotMarkovError
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.checks import check_symmetric, is_concrete, whole
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.lowrank import LowRank, default_tolerance
from kronax.linalg.factors.pivoted_cholesky import choose_pivots, joint_root, root_at
from kronax.linalg.factors.structured import Centrosymmetric, Circulant, Toeplitz

# Each kind with what it holds for.
KINDS = {
    "dense": "any kernel on any axis",
    "diagonal": "a kernel without correlation on an axis whose places all differ",
    "toeplitz": "a stationary kernel on a regular axis (kx.regular snaps one that nearly is)",
    "circulant": "an isotropic kernel on a regular axis all the way round a kx.circle",
    "centrosymmetric": "a stationary kernel on an axis that is symmetric about its middle",
    "markov": "a kernel with a state space (kx.Matern32, kx.SHO, their sums, …) on a line",
}
AS_ASKED = "as asked"
# Below this size a dense factor is as fast as two halves (2 cores, float64).
SMALL = 16
# So many places show whether a kernel and its state space agree.
MOST_COMPARED = 64
# What finding the rank that is missing in a message may cost: a second or two (2 cores, float64).
MOST_OPERATIONS = 1e8


class Structure(NamedTuple):
    """What was chosen for an axis, and why; `rank` is that of a low-rank factor."""

    kind: str
    reason: str
    rank: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the user said so."""
        return self.reason == AS_ASKED or self.rank is not None


def choose(kernel: Kernel, axis: Axis, asked: str | int | None = None) -> Structure:
    """The structure of `kernel` on `axis`, from concrete coordinates and declared facts.

    Args:
        kernel: covariance function of the axis.
        axis: its coordinates.
        asked: one of `KINDS`, or the rank of a low-rank factor, to override.
    """
    asked = whole(asked)
    if isinstance(asked, int) and not isinstance(asked, bool):
        columns = f"{asked} columns, as asked"
        if asked > axis.size:
            columns = f"all {axis.size} columns; {asked} were asked for"
        return Structure("low rank", columns, asked)
    if asked is not None:
        return Structure(asked if isinstance(asked, str) else repr(asked), AS_ASKED)
    if axis.static is None:
        return Structure("dense", "traced coordinates")
    if kernel.uncorrelated and axis.is_distinct:
        return Structure("diagonal", "uncorrelated between different places")
    if wraps(kernel, axis):
        if axis.is_full_circle:
            return Structure("circulant", "isotropic kernel, regular all the way round")
        uneven = "" if axis.static.is_regular else f": {_irregular(axis)}"
        return Structure("dense", f"isotropic kernel, not regular all the way round{uneven}")
    if not kernel.stationary:
        return Structure("dense", "kernel not known to be stationary")
    if axis.static.line is None:
        return Structure("dense", "places in several dimensions")
    if axis.size < SMALL:
        return Structure("dense", f"fewer than {SMALL} places")
    if axis.static.is_regular:
        return Structure("toeplitz", "stationary kernel, regular axis")
    if axis.static.is_symmetric:
        return Structure("centrosymmetric", "stationary kernel, axis symmetric about its middle")
    return Structure("dense", _irregular(axis))


def _irregular(axis: Axis) -> str:
    """How far an axis is from a regular one."""
    assert axis.static is not None
    off = axis.static.unevenness
    if np.isinf(off):
        return "irregular axis, which ends where it begins"
    return f"irregular axis, off by up to {off:.2g} steps: kx.regular snaps up to a tenth"


def wraps(kernel: Kernel, axis: Axis) -> bool:
    """Whether the kernel sees chords of a declared circle."""
    return axis.period is not None and kernel.isotropic


def factor(kernel: Kernel, axis: Axis, structure: Structure, dtype: Any) -> AbstractFactor:
    """The covariance of `kernel` on `axis` as a factor of some kind."""
    kind, x = structure.kind, axis.points(dtype)
    if kind == "markov":
        return markov_factor(kernel, axis, dtype)
    if structure.rank is not None:
        return low_rank(kernel, x, structure.rank, dtype)
    if kind in ("toeplitz", "circulant"):
        column = _first_column(kernel, axis, dtype)
        return Toeplitz(column) if kind == "toeplitz" else Circulant(column)
    if kind == "diagonal":
        if kernel.stationary:
            return ScaledIdentity(kernel.variances_at(x[:1])[0].astype(dtype), axis.size)
        return Diagonal(kernel.variances_at(x).astype(dtype))
    matrix = kernel.matrix_at(x, x).astype(dtype)
    return Centrosymmetric(matrix) if kind == "centrosymmetric" else Dense(matrix)


def low_rank(kernel: Kernel, x: Points, rank: int, dtype: Any) -> LowRank:
    """The covariance at `x` by at most `rank` columns; NaN if they do not carry it.

    It does not raise: a sampler may try values that need more columns, and reject them.
    """
    return _low_rank(*_at_indices(kernel, x, dtype), rank)


@eqx.filter_jit
def _low_rank(kernel: Any, x: jax.Array, rank: int) -> LowRank:
    return LowRank.from_kernel(kernel, x, rank=rank)


def check_rank(kernel: Kernel, axis: Axis, structure: Structure, name: str, dtype: Any) -> None:
    """Refuse concrete parameters whose covariance needs more columns than were asked for."""
    if structure.rank is None or not is_concrete(kernel, axis):
        return
    wanted = f"The covariance of {name} must be carried by {structure.rank} columns"
    with jax.ensure_compile_time_eval():
        indexed, x = _at_indices(kernel, axis.points(dtype), dtype)
        error = choose_pivots(indexed, x, min(structure.rank, axis.size)).remainders[-1]
        if not is_concrete(error) or error <= default_tolerance(dtype):
            return
        enough = _enough(indexed, x, structure.rank, dtype)
    if enough is None:
        raise ValueError(
            f"{wanted}, and is not by any number. The kernel must be positive semidefinite; a "
            "variance that its first columns leave is negative. Check the kernel."
        )
    raise ValueError(
        f"{wanted}; they leave a part of {float(error):.3g} of its trace. {enough}, at these "
        "parameters: raise the number in `structure`, or leave it out."
    )


def _enough(kernel: Any, x: jax.Array, rank: int, dtype: Any) -> str | None:
    """How many columns are enough, looked for within `MOST_OPERATIONS` beyond the first attempt.

    `None` if the kernel is seen not to be positive semidefinite.
    """
    size = x.shape[0]
    while rank < size:
        rank = min(2 * rank, size)
        remainders = np.asarray(choose_pivots(kernel, x, rank).remainders)
        if np.isnan(remainders[-1]):
            return None
        reached = np.flatnonzero(remainders[1:] <= default_tolerance(dtype))
        if reached.size:
            return f"{int(reached[0]) + 1} columns do"
        if 4 * rank**2 * size > MOST_OPERATIONS:
            break
    return f"It takes more than {rank} columns" if rank < size else "No number of columns does"


def low_rank_rows(
    kernel: Kernel, new: Points, x: Points, rank: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """The rows of the root of `low_rank` at new points, and those at `x`."""
    indexed, old, ahead = _at_two_indices(kernel, x, new, dtype)
    places = choose_pivots(indexed, old, min(rank, old.shape[0])).places
    return root_at(indexed, old, places, ahead), root_at(indexed, old, places)


def low_rank_joint(
    kernel: Kernel, x: Points, new: Points | None, rank: int, dtype: Any
) -> jax.Array:
    """A root over `x` and new points; NaN if `rank` more columns do not carry the new ones."""
    if new is None:
        indexed, old = _at_indices(kernel, x, dtype)
        return root_at(indexed, old, choose_pivots(indexed, old, min(rank, old.shape[0])).places)
    indexed, old, ahead = _at_two_indices(kernel, x, new, dtype)
    places = choose_pivots(indexed, old, min(rank, old.shape[0])).places
    root, left = joint_root(indexed, old, places, ahead, min(rank, ahead.shape[0]))
    return where(left <= default_tolerance(dtype), root, jnp.nan)


class _Indexed(eqx.Module):
    """A kernel between points known by their number, with values of a given precision.

    What the kernel sees of a point may take several forms; pivoted Cholesky needs one array.
    """

    kernel: Kernel
    points: Points
    dtype: Any = eqx.field(static=True)

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        x, z = (self.points[index.astype(int)] for index in (i, j))
        return self.kernel.matrix_at(x, z).astype(self.dtype)


def _at_indices(kernel: Kernel, x: Points, dtype: Any) -> tuple[_Indexed, jax.Array]:
    return _Indexed(kernel, x, dtype), jnp.arange(x.raw.shape[0], dtype=dtype)


def _at_two_indices(
    kernel: Kernel, x: Points, new: Points, dtype: Any
) -> tuple[_Indexed, jax.Array, jax.Array]:
    indexed, every = _at_indices(kernel, x.joined(new), dtype)
    size = x.raw.shape[0]
    return indexed, every[:size], every[size:]


def _first_column(kernel: Kernel, axis: Axis, dtype: Any) -> jax.Array:
    """The covariances with the first place, the axis taken as exactly regular."""
    assert axis.static is not None
    wide = axis.offsets.ravel()
    lags = (wide[-1] - wide[0]) / max(1, wide.size - 1) * np.arange(wide.size)
    static = Coordinates(lags.reshape(axis.static.values.shape))
    x = dataclasses.replace(axis, static=static, origin=static.origin).points(dtype)
    return kernel.matrix_at(x, x[:1])[:, 0].astype(dtype)


def check_kernel(kernel: Kernel, axis: Axis, name: str) -> None:
    """Refuse coordinates at which a kernel is not defined, or has no meaning."""
    if isinstance(axis.coding, Labels) and not kernel.takes_labels:
        raise TypeError(
            f"The kernel of {name} must take labels, which have neither order nor distance; got "
            f"{type(kernel).__name__}. Use kx.Categorical or kx.White, or give the axis numbers."
        )
    for term in kernel.all_terms():
        if isinstance(axis.coding, Labels) and isinstance(term, Categorical):
            _check_categories(term, axis.coding, name)
        if axis.static is not None:
            term.check_coordinates(axis.static.values, name)
        planar = term.stationary and not term.isotropic and not isinstance(term, ActiveDims)
        if axis.radius is not None and planar:
            raise ValueError(
                f"The kernel of {name} must depend on the distance alone on a sphere; got "
                f"{type(term).__name__}, which would see differences of latitude and longitude. "
                "Give it one lengthscale, or put kx.ActiveDims around it."
            )


def _check_categories(kernel: Categorical, coding: Labels, name: str) -> None:
    """Refuse categories without a label: no data tell of them, but they share in the variances."""
    wanted, got = len(coding.categories), kernel.num_categories
    if got > wanted:
        raise ValueError(
            f"The kernel of {name} must have one category per label, {wanted}; got one of {got} "
            f"categories. Leave out the others, or give the axis the codes, 0 to {got - 1}, of the "
            "categories that it holds."
        )


def check_structure(kernel: Kernel, axis: Axis, structure: Structure, name: str) -> None:
    """Refuse a kernel of the user's that is not symmetric, or a structure that does not hold."""
    if structure.rank is not None:
        if structure.rank < 1:
            raise ValueError(f"The rank of {name} must be at least 1; got {structure.rank}.")
        return
    if structure.kind not in KINDS:
        raise ValueError(
            f"The structure of {name} must be one of {', '.join(map(repr, KINDS))}, or a number of "
            f"columns for a low-rank factor; got {structure.kind!r}."
        )
    asked = structure.kind != "dense" and structure.is_asked
    if asked and axis.static is None:
        raise ValueError(f"The structure of {name} must be dense: its coordinates are traced.")
    reason = why_not_markov(kernel, axis) if structure.kind == "markov" else None
    if reason is not None:
        raise NotMarkovError(
            f"The structure of {name} cannot be 'markov': {reason}. It is for {KINDS['markov']}; "
            "leave `structure` out to have the fastest one that holds chosen.",
            reason,
        )
    if not is_concrete(kernel, axis) or _is_sure(kernel, axis, structure):
        return
    # Concrete kernels stay so inside jit, where a likelihood may build its model.
    with jax.ensure_compile_time_eval():
        _check_values(kernel, axis, structure, name, asked)


def _is_sure(kernel: Kernel, axis: Axis, structure: Structure) -> bool:
    """Whether a structure holds for this library's own kernels, which are what they say."""
    chosen = structure.kind in ("dense", "markov", choose(kernel, axis).kind)
    return chosen and all(map(is_known, kernel.all_terms()))


def _check_values(kernel: Kernel, axis: Axis, structure: Structure, name: str, asked: bool) -> None:
    """The part of `check_structure` that looks at concrete values."""
    dtype = dtype_of(kernel)
    if structure.kind == "markov":
        axis = beginning(axis, MOST_COMPARED)
    x = axis.points(dtype)
    if kernel.stationary and not asked:
        if structure.kind != "dense":
            _check_mirrored(kernel, x, name)
        return
    matrix = _matrix(kernel, x)
    check_symmetric(matrix, f"The covariance of {name}")
    if not asked or not is_concrete(matrix):
        return
    dense = np.asarray(matrix)
    gap = np.abs(np.asarray(_claimed(kernel, axis, structure, dtype)) - dense).max()
    if gap > 1e3 * np.finfo(dense.dtype).eps * np.abs(dense).max():
        raise ValueError(
            f"The covariance of {name} is not {structure.kind}: it differs from its dense matrix "
            f"by {gap:.3g}. That structure is for {KINDS[structure.kind]}; leave `structure` out "
            "to have the fastest one that holds chosen."
        )


@eqx.filter_jit
def _claimed(kernel: Kernel, axis: Axis, structure: Structure, dtype: Any) -> jax.Array:
    """The matrix of a factor of that structure; its own checks, which know no axis, pass traced."""
    return factor(kernel, axis, structure, dtype).to_dense()


@eqx.filter_jit
def _matrix(kernel: Kernel, x: Points) -> jax.Array:
    return kernel.matrix_at(x, x)


def _check_mirrored(kernel: Kernel, x: Points, name: str) -> None:
    """Refuse a kernel that calls itself stationary and plainly is not."""
    rows = _end_rows(kernel, x)
    if not is_concrete(rows):  # a function that closes over something traced
        return
    first, last = (np.asarray(row) for row in rows)
    gap = np.abs(first - last[::-1]).max()
    if gap > 0.01 * max(np.abs(first).max(), np.abs(last).max()):
        raise ValueError(
            f"The kernel of {name} must be stationary, as it says; its values from the first place "
            f"and from the last differ by {gap:.3g} at equal distances. Do not override "
            "`stationary`."
        )


@eqx.filter_jit
def _end_rows(kernel: Kernel, x: Points) -> list[jax.Array]:
    """The covariances with the first and with the last place."""
    return [kernel.matrix_at(end, x)[0] for end in (x[:1], x[-1:])]
