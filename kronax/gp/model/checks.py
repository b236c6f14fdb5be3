"""What a grid GP cannot do, and which parameters its axes cannot carry."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.kernel_gradients import warn_of_nan_gradient
from kronax.gp.axes.structure import Structure, check_kernel, check_rank, check_structure, choose
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.points import Points
from kronax.gp.means.covariates import covariates_of
from kronax.gp.means.means import ZeroMean
from kronax.gp.means.regression import MarginalMean
from kronax.gp.model.process import AbstractProcess
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.operators.gap_geometry import Mask

# Functions that differ by so many roundings each are combinations of each other.
ROUNDINGS = 8


def refuse_marginal(gp: AbstractProcess, what: str) -> None:
    """Refuse a mean whose coefficients have no values."""
    if isinstance(gp.mean, MarginalMean):
        raise NotImplementedError(
            f"{what} not available for a mean whose coefficients are integrated out: give them "
            "values or priors of their own, with the mean outside kx.MarginalMean."
        )


def refuse_joined(gp: AbstractProcess, what: str) -> None:
    """Refuse terms that join the noise."""
    if gp.joined is not None:
        raise NotImplementedError(
            f"{what} not available where terms join the noise ({', '.join(gp.joined.names)}): the "
            "covariance of the function is no Kronecker product. Make the terms differ on one axis "
            "only."
        )


def refuse_sums(gp: AbstractProcess, what: str) -> None:
    """Refuse a function whose covariance is a sum of products, be it exact or not."""
    refuse_joined(gp, what)
    if gp.terms is not None and not gp.terms.are_exact:
        raise NotImplementedError(
            f"{what} not available for terms without an exact decomposition ("
            f"{', '.join(gp.terms.names)}): the covariance of the function is no Kronecker "
            "product. Make the terms differ on one axis only."
        )


def check_terms(gp: AbstractProcess) -> None:
    """Refuse low-rank axes of terms that have no exact decomposition."""
    ranked = any(structure.rank is not None for structure in gp.structures)
    if ranked and gp.terms is not None and not gp.terms.are_exact:
        raise ValueError(
            "Low-rank axes need terms with an exact decomposition; got "
            f"{', '.join(gp.terms.names)}. Leave the numbers in `structure` out."
        )


def refuse_gaps(gp: AbstractProcess, what: str) -> None:
    """Refuse what needs a value in every cell, and an exact decomposition."""
    if gp.terms is not None and not gp.terms.are_exact:
        raise NotImplementedError(
            f"{what} not available for terms without an exact decomposition ("
            f"{', '.join(gp.terms.names)}). Leave out single cells (post.leave_one_out()), or "
            "condition on the rest and predict what was left out."
        )
    if gp.noise_model.is_per_cell:
        raise NotImplementedError(
            f"{what} not available for noise with a variance of its own at every cell."
        )
    if gp.observed is not None:
        cells = gp.observed.array
        raise NotImplementedError(
            f"{what} not available for data with missing cells; got {int((~cells).sum())} missing "
            f"of {cells.size}. Leave out single cells (post.leave_one_out()), or condition on the "
            "rest and predict what was left out."
        )


def check_approximation(approximation: Any, likelihood: Any, noise: Any) -> str:
    """The name of the approximation, if there is a likelihood in place of noise, or neither."""
    if approximation not in ("variational", "laplace"):
        raise ValueError(
            f"`approximation` must be 'variational' or 'laplace'; got {approximation!r}."
        )
    if likelihood is not None and noise is not None:
        raise TypeError(
            "A process has noise or a likelihood; got both. The likelihood says how data scatter "
            "about the function: leave `noise` out."
        )
    return approximation


def check_design(gp: AbstractProcess) -> None:
    """Refuse functions of a marginal mean that are combinations of each other."""
    if not isinstance(gp.mean, MarginalMean) or not is_concrete(gp.axes):
        return
    with jax.ensure_compile_time_eval():  # concrete coordinates stay so inside jit
        mean = eqx.tree_at(lambda m: m.fixed, gp.mean, ZeroMean())  # which may be traced
        functions = _functions(mean, gp.points_on((None,) * len(gp.axes)))
    if not is_concrete(functions):
        return
    grid = np.broadcast_to(np.asarray(functions), (len(functions), *gp.grid_shape))
    seen = np.ones(gp.grid_shape, bool) if gp.observed is None else gp.observed.array
    design = grid[:, seen].astype(np.float64)
    size = np.sqrt(np.sum(np.square(design), axis=1, keepdims=True))
    values = np.linalg.svd(design / np.where(size > 0, size, 1), compute_uv=False)
    # Functions of any units: what is left of one is rounding or not, whatever its size.
    slack = ROUNDINGS * len(design) * np.finfo(functions.dtype).eps
    rank = int(np.sum(values > slack))
    if rank < design.shape[0]:
        raise ValueError(
            f"The functions of the mean are not independent where there are data: {len(design)} of "
            f"them span {rank} dimensions ({', '.join(gp.mean.names)}). Leave out what others "
            "hold, such as the line that is in a PolynomialMean of the same axis, or a slope along "
            "an axis of one place."
        )


@eqx.filter_jit
def _functions(mean: MarginalMean, points: Sequence[Points]) -> Array:
    """In one program, instead of one for every operation."""
    return mean.design_at(*points)


def check_covariates(gp: AbstractProcess, observed: Mask | None) -> None:
    """Refuse covariates that are not known where there are data."""
    for name, covariate in covariates_of(gp.mean).items():
        if covariate.gaps is None:
            continue
        missing = np.broadcast_to(covariate.gaps.values, gp.grid_shape)
        wrong = missing if observed is None else missing & observed.array
        if wrong.any():
            first = tuple(int(k) for k in np.argwhere(wrong)[0])
            raise ValueError(
                f"The covariate {name!r} must be known wherever there are data; it is NaN at "
                f"{int(wrong.sum())} of these cells, such as {first}. Fill it in, or mark the data "
                "there as missing, numpy.nan."
            )


def check_ranks(gp: AbstractProcess) -> None:
    """Refuse concrete parameters that a low-rank axis cannot carry."""
    names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
    for kernel, axis, structure, name in zip(
        gp.kernels, gp.axes, gp.structures, names, strict=True
    ):
        check_rank(kernel, axis, structure, name, gp.dtype)


def chosen_structures(
    kernels: Sequence[Kernel], axes: Sequence[Axis], asked: Any, labels: Sequence[str]
) -> tuple[Structure, ...]:
    """The factor of every axis; kernels that do not fit their axis are refused."""
    for kernel, axis, name in zip(kernels, axes, labels, strict=True):
        check_kernel(kernel, axis, name)
    chosen = tuple(map(choose, kernels, axes, asked or (None,) * len(axes)))
    for kernel, axis, one, name in zip(kernels, axes, chosen, labels, strict=True):
        check_structure(kernel, axis, one, name)
        warn_of_nan_gradient(kernel, axis, name)
    return chosen
