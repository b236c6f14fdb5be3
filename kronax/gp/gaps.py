"""Cells without data and uneven noise: where they are, and how such processes are solved."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.components import are_exact
from kronax.gp.data_arrays import in_grid_order
from kronax.gp.noise import CellNoise
from kronax.linalg.checks import is_concrete
from kronax.linalg.estimates import Iteration
from kronax.linalg.gaps import GapPlan, Mask, plan_gaps, plan_uneven
from kronax.linalg.iterative_operator import Iterative
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.masked import Masked
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.reference import balanced_box
from kronax.linalg.terms import KroneckerTerms
from kronax.linalg.thin import is_diagonal
from kronax.linalg.uneven import KroneckerPlusDiagonal

# Beyond these an exact value and gradient take more than some seconds on two cores.
MOST_OPERATIONS = 4e11
MOST_BYTES = 4e9
# The same for one dense matrix of the observed cells, some 1500 of them, beside which iterations
# are very fast.
MOST_DENSE = 5e10
# An exact method that takes this many times as much is not chosen without being asked for.
MOST_UNASKED = 5
# What a cost is predicted with; `Estimate.num_steps` tells the true number.
USUAL_STEPS = 15


class Choice(NamedTuple):
    """How a process with gaps or uneven noise is solved, and why."""

    is_iterative: bool
    reason: str


def observing(gp: Any, y: Any) -> Any:
    """The same process with data where `y` has some, a mask or data as users give them."""
    if isinstance(y, Mask):
        return with_observed(gp, y)
    if isinstance(y, list | tuple):
        y = np.asarray(y)
    y = in_grid_order(y, gp.axes, gp.axis_names)
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    if kind == "b":
        return with_observed(gp, Mask.of(y, gp.grid_shape))
    if kind in "iu" and kind:
        raise TypeError(
            f"gp.observing takes a boolean mask, true where a cell is observed, or data with NaN; "
            f"got dtype {y.dtype}. Convert a mask: mask.astype(bool)."
        )
    return with_observed(gp, gaps_of(gp, y))


def with_observed(gp: Any, observed: Mask | None) -> Any:
    """The same process, observed at other cells."""
    if observed == gp.observed:
        return gp
    other = object.__new__(type(gp))
    for field in dataclasses.fields(gp):
        value = observed if field.name == "observed" else getattr(gp, field.name)
        object.__setattr__(other, field.name, value)
    return other


def mask_of(observed: Any, noise: Any, grid_shape: tuple[int, ...]) -> Mask | None:
    """Where a model has data: as it was told, and where its noise is finite."""
    finite = noise.observed if isinstance(noise, CellNoise) else None
    if observed is None:
        return None if finite is None else Mask.of(finite, grid_shape)
    told = Mask.of(observed, grid_shape)
    return told if finite is None else Mask.of(told.array & finite, grid_shape)


def gaps_of(gp: Any, y: Array) -> Mask | None:
    """Which cells have data: as the model was told, or as NaN in concrete data say."""
    if not is_concrete(y):
        return gp.observed
    # Variances may have been replaced since the model was made.
    told = mask_of(None, gp.noise, gp.grid_shape)
    is_told = gp.observed is not None and gp.observed != told
    if is_told and isinstance(gp.noise, CellNoise):
        is_told = not gp.observed.array.all()  # as it is for variances that are all finite
    known = told if gp.observed is None else mask_of(gp.observed, gp.noise, gp.grid_shape)
    missing = np.isnan(np.asarray(y))
    if not missing.any():
        return known
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


def without_unknown_gaps(gp: Any, y: Array) -> Array:
    """Traced data that raise at run time if they are NaN where the model is observed."""
    if is_concrete(y):
        return y
    cells = jnp.isnan(y) if gp.observed is None else jnp.isnan(y) & gp.observed.array
    return eqx.error_if(
        y,
        jnp.any(cells),
        "y must have a value at every cell that the model takes for observed; got NaN. Inside "
        "jax.jit gaps cannot be counted: tell the model by kx.GridGP(…, observed=mask) or "
        "gp.observing(mask).",
    )


def data_covariance(gp: Any) -> KroneckerPlusNoise | Masked | Iterative:
    """The covariance of the observations, at the cells that have some, ready to be solved."""
    is_uneven = _is_uneven(gp)
    if gp.observed is None and not is_uneven and are_exact(gp):
        return gp.covariance()
    if not is_iterative(gp):
        _check_cost(gp)
        return Masked(gp.covariance(), _mask(gp))
    noise = gp.noise_term()
    levels = noise.diagonal() if isinstance(noise, Kronecker) else noise
    observed = None if gp.observed is None else gp.observed.array
    signal = gp.covariance(include_noise=False)
    return Iterative(KroneckerPlusDiagonal(signal, levels, observed=observed), gp.iteration)


def with_noise_of(
    gp: Any, signal: Kronecker | KroneckerTerms
) -> KroneckerPlusNoise | KroneckerPlusDiagonal:
    """The covariance of noisy data on the whole grid."""
    noise = gp.noise_term()
    if isinstance(signal, KroneckerTerms):
        levels = noise.diagonal() if isinstance(noise, Kronecker) else noise
        return KroneckerPlusDiagonal(signal, levels)
    if isinstance(noise, Kronecker) or not noise.ndim:
        return KroneckerPlusNoise(signal, noise)
    return KroneckerPlusDiagonal(signal, noise)


def choice(gp: Any) -> Choice:
    """By iterations or exactly: as asked, or exactly up to a cost of some seconds."""
    if not are_exact(gp):
        return Choice(True, gp.terms.reason)
    if gp.observed is None and _is_uneven(gp):
        if gp.gaps == "exact":
            raise ValueError(
                "gaps='exact' must know which cells have data; got traced noise variances. Give "
                "`observed=` as well, or make the process outside of jit."
            )
        return Choice(True, "the noise variances are traced, and with them the gaps")
    plan = _plan(gp)
    if gp.gaps == "exact":
        return Choice(False, f"{plan.reason}; 'exact' was asked for")
    refused = _why_not_iterative(gp)
    if gp.gaps == "iterative":
        if refused:
            raise NotImplementedError(
                f"gaps='iterative' is not available {refused}. Take gaps='exact'."
            )
        return Choice(True, "'iterative' was asked for")
    cost = f"{plan.flops:.1e} operations and {plan.memory / 1e9:.1f} GB"
    # Without the slabs there is no gap left, whatever the size.
    most = MOST_DENSE if plan.method == "merged" else MOST_OPERATIONS
    is_cheap = plan.flops <= most and plan.memory <= MOST_BYTES
    if is_cheap or plan.method == "slabs":
        return Choice(False, plan.reason)
    if refused:
        return Choice(False, f"{plan.reason}; {cost}, and no iterations {refused}")
    return Choice(True, f"{plan.reason}; exactly it would take {cost}")


def check_choice(gaps: Any, iteration: Any) -> Iteration:
    """The settings of iterations, if both are what they must be."""
    if gaps not in ("auto", "exact", "iterative"):
        raise ValueError(f"`gaps` must be 'auto', 'exact' or 'iterative'; got {gaps!r}.")
    if not isinstance(iteration, Iteration | None):
        raise TypeError(f"`iteration` must be a kx.Iteration; got {iteration!r}.")
    return iteration or Iteration()


def described(gp: Any) -> list[str]:
    """How gaps and uneven noise are handled, in words."""
    if gp.observed is None and not _is_uneven(gp) and are_exact(gp):
        return []
    plan, chosen = _plan(gp), choice(gp)
    lines = []
    if plan.num_missing:
        share = plan.num_missing / (plan.num_missing + plan.num_observed)
        lines.append(f"  {plan.num_missing} cells missing ({share:.0%})")
    if any(plan.dropped):
        names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
        whole = [f"{n} of {name}" for n, name in zip(plan.dropped, names, strict=True) if n]
        lines.append(f"  whole slices missing, dropped exactly: {', '.join(whole)}")
    if not chosen.is_iterative:
        cost = f"{plan.flops:.1e} operations, {plan.memory / 1e9:.2g} GB"
        return [*lines, f"  exact: {chosen.reason}", f"  a value and gradient: {cost}"]
    it = gp.iteration
    size = plan.num_missing + plan.num_observed
    num_terms = 1 if are_exact(gp) else 1 + len(gp.terms.names)
    if num_terms > 1 and (gp.observed is not None or _is_uneven(gp)):
        # Every iteration holds others inside, for the gaps of one product.
        num_terms += USUAL_STEPS
    passes = 2 * USUAL_STEPS * num_terms * (1 + it.num_probes)
    flops = passes * 2 * size * sum(gp.grid_shape)
    box = "×".join(map(str, balanced_box(gp.grid_shape, it.box_size)))
    return [
        *lines,
        f"  iterative: {chosen.reason}",
        f"  a value and gradient: {flops:.1e} operations if {USUAL_STEPS} iterations do, "
        f"{it.num_probes} probes, exact on {box} eigenvectors",
    ]


def _check_cost(gp: Any) -> None:
    """Refuse an exact method of hours that nobody asked for."""
    plan = _plan(gp)
    is_huge = plan.flops > MOST_UNASKED * MOST_OPERATIONS or plan.memory > MOST_UNASKED * MOST_BYTES
    if gp.gaps == "auto" and is_huge and plan.method != "slabs":
        raise NotImplementedError(
            f"These gaps need iterations, which are not available {_why_not_iterative(gp)}; "
            f"exactly a value takes {plan.flops:.1e} operations and {plan.memory / 1e9:.0f} GB. "
            "Leave `structure` and such noise out, or ask for gaps='exact'."
        )


def is_iterative(gp: Any) -> bool:
    """Whether the process is solved by iterations."""
    if not are_exact(gp):
        return True
    return (gp.observed is not None or _is_uneven(gp)) and choice(gp).is_iterative


def _is_uneven(gp: Any) -> bool:
    return isinstance(gp.noise, CellNoise)


def _mask(gp: Any) -> Mask:
    if gp.observed is not None:
        return gp.observed
    return Mask.of(np.ones(gp.grid_shape, bool), gp.grid_shape)


def _plan(gp: Any) -> GapPlan:
    plan = plan_uneven if _is_uneven(gp) else plan_gaps
    return plan(_mask(gp), jnp.dtype(gp.dtype).itemsize, "auto")


def _why_not_iterative(gp: Any) -> str:
    """What iterations cannot do, in words; empty if they can."""
    if gp.joined is not None:
        return "where terms join the noise"
    if any(structure.rank for structure in gp.structures):
        return "with low-rank axes"
    noise = gp.noise_term()
    if isinstance(noise, Kronecker) and not all(is_diagonal(f) for f in noise.factors):
        return "with noise that is correlated between cells"
    return ""
