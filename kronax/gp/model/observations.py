"""Data as users give them, read once: below, nobody asks what they came as."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.axis import Axis
from kronax.gp.labelled.data_arrays import in_grid_order
from kronax.gp.labelled.templates import Template, check_data_units, template_of
from kronax.gp.likelihoods.base import as_floats
from kronax.gp.model.checks import check_covariates
from kronax.gp.model.process import AbstractProcess, Process, with_fields
from kronax.gp.model.solver_choice import settled
from kronax.gp.noise.abstract import AbstractNoise
from kronax.linalg.arrays.checks import grid_of, is_concrete
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.fingerprints import fingerprint_of_tree
from kronax.linalg.arrays.host import count, numbers
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.linalg.operators.gap_geometry import Mask

UNKNOWN_GAPS = (
    "y must have a value at every cell that the model takes for observed; got NaN. Inside jax.jit "
    "gaps cannot be counted: tell the model by kx.GridGP(…, observed=mask) or gp.observing(mask)."
)


class Observations(NamedTuple):
    """Data of a process, read and checked.

    Attributes:
        grid: `(*batch, n_1, …, n_d)`, in the precision of the parameters, NaN at gaps.
        observed: which cells have data, `None` for all.
        template: what they came as, `None` for a plain array.
    """

    grid: Array
    observed: Mask | None
    template: Template | None


def observations(gp: AbstractProcess, y: Any) -> Observations:
    """Labels, order, masks, precision, values, gaps: all that is asked of data, in one place."""
    values = _in_grid_order(gp, y, gp.axes, "y")
    # Constants keep their values inside jit.
    with jax.ensure_compile_time_eval() if is_concrete(values) else nullcontext():
        grid, _ = grid_of(values, gp.grid_shape, "y", gp.dtype, finite=False)
    _check_values(gp, grid)
    observed = gaps_of(gp, values)
    return Observations(grid, observed, template_of(y, gp.axis_names))


def new_data(
    gp: AbstractProcess,
    y_new: Any,
    new: Sequence[Axis | None],
    template: Template | None,
    finite: bool = True,
) -> Array:
    """Further data on a grid some of whose axes are new, in the units that the template knows."""
    check_data_units(y_new, template, "y_new")
    axes = [axis or old for axis, old in zip(new, gp.axes, strict=True)]
    values = _in_grid_order(gp, y_new, axes, "y_new")
    shape = tuple(axis.size for axis in axes)
    return grid_of(values, shape, "y_new", gp.dtype, finite=finite)[0]


def _in_grid_order(gp: AbstractProcess, y: Any, axes: Sequence[Axis], what: str) -> Any:
    if gp.likelihood is None:
        return in_grid_order(y, axes, gp.axis_names, what, gp.table)
    # Counts are whole numbers: masked ones before NaN marks them, those of tables afterwards.
    values = in_grid_order(as_floats(y, gp.dtype), axes, gp.axis_names, what, gp.table)
    return as_floats(values, gp.dtype)


def observing(gp: Process, y: Any) -> Process:
    """The same process with data where `y` has some, a mask or data as users give them."""
    if isinstance(y, Mask):
        return with_observed(gp, y)
    y = without_mask(y)
    if isinstance(y, list | tuple):
        y = np.asarray(y)
    y = in_grid_order(y, gp.axes, gp.axis_names, table=gp.table)
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    if kind == "b":
        return with_observed(gp, Mask.of(y, gp.grid_shape))
    if kind in "iu" and kind:
        raise TypeError(
            f"gp.observing takes a boolean mask, true where a cell is observed, or data with NaN; "
            f"got dtype {y.dtype}. Convert a mask: mask.astype(bool)."
        )
    return with_observed(gp, gaps_of(gp, y))


def with_observed(gp: Process, observed: Mask | None) -> Process:
    """The same process, observed at other cells: what was measured of others does not count."""
    check_covariates(gp, observed)
    if observed == gp.observed:
        return gp
    return settled(with_fields(gp, observed=observed, measured=None))


def mask_of(observed: Any, noise: AbstractNoise, grid_shape: tuple[int, ...]) -> Mask | None:
    """Where a model has data: as it was told, and where its noise is finite."""
    finite = noise.observed
    if not is_concrete(finite):
        finite = None
    if observed is None:
        return None if finite is None else Mask.of(finite, grid_shape)
    told = Mask.of(observed, grid_shape)
    return told if finite is None else Mask.of(told.array & finite, grid_shape)


def gaps_of(gp: AbstractProcess, y: Array) -> Mask | None:
    """Which cells have data: as the model was told, or as NaN in concrete data say."""
    if not is_concrete(y):
        return gp.observed
    # Variances may have been replaced since the model was made.
    told = mask_of(None, gp.noise_model, gp.grid_shape)
    is_told = gp.observed is not None and gp.observed != told
    if gp.observed is not None and is_told and gp.noise_model.is_per_cell:
        is_told = not gp.observed.array.all()  # as it is for variances that are all finite
    known = told if gp.observed is None else mask_of(gp.observed, gp.noise_model, gp.grid_shape)
    if not count(np.isnan, y):
        return known
    missing = np.isnan(numbers(y))
    if missing.all():
        raise ValueError(
            f"y must have a value in some cell; got NaN in all {missing.size}. Without data there "
            "is the prior: gp.sample, gp.covariance."
        )
    sets = missing.reshape(-1, *gp.grid_shape)
    if known is not None:
        sets = sets & known.array
        if not sets.any():
            return known
        if is_told:
            raise ValueError(
                f"y must have values at all cells that `observed` marks; got NaN at "
                f"{int(sets.any(axis=0).sum())} of them. Leave `observed` out, and gaps are read "
                "from y."
            )
    if (sets != sets[0]).any():
        other = int(np.flatnonzero((sets != sets[0]).any(axis=tuple(range(1, sets.ndim))))[0])
        raise ValueError(
            "All data sets of a batch must have the same missing cells; number 0 and number "
            f"{other} differ. Take those with the same gaps together, or one at a time."
        )
    seen = ~sets[0] if known is None else known.array & ~sets[0]
    return Mask.of(seen, gp.grid_shape)


def has_unknown_gaps(gp: AbstractProcess, y: Array) -> Array:
    """Whether data are NaN where the model is observed, `()`."""
    xp = np if is_concrete(y) else jnp
    cells = xp.isnan(y)
    return xp.any(cells if gp.observed is None else cells & gp.observed.array)


def without_unknown_gaps(gp: AbstractProcess, y: Array) -> Array:
    """The data, of which traced ones raise at run time, if asked to, where they have such gaps."""
    return raising_if(lambda: has_unknown_gaps(gp, y), y, UNKNOWN_GAPS)


def checksums_of(gp: AbstractProcess, y: Array) -> tuple[Array, ...]:
    """Checksums of model and data; of traced data with gaps that are not known those of none."""
    return fingerprint_of_tree((gp, y), False if is_concrete(y) else has_unknown_gaps(gp, y))


def _check_values(gp: AbstractProcess, grid: Array) -> None:
    """Values are finite where there are data, and such as the likelihood knows."""
    # What y holds at gaps does not count.
    among = True if gp.observed is None else gp.observed.array
    infinite = count(np.isinf, grid, among) if is_concrete(grid) else 0
    if infinite:
        raise ValueError(
            f"y must be finite, or NaN where a cell is missing; got {infinite} infinite values. "
            "Mark them as missing, numpy.nan, or correct them."
        )
    if gp.likelihood is not None and is_concrete(grid, gp.likelihood):
        values = numbers(grid)
        seen = ~np.isnan(values)
        if gp.observed is not None:
            seen = seen & gp.observed.array
        gp.likelihood.check(values, seen)
