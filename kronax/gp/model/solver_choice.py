"""How the data covariance of a process is solved: by structure, as a dense matrix, by iterations.

An exact way of some seconds is taken. Beyond that the noise decides, which no count of operations
knows: iterations take 10 steps at a noise ratio of 0.1 and 1000 at 1e-4. There the first use
measures (`gp.trial`), and `Choice.exact` is what stands in if iterations are no good.
"""

import dataclasses
from math import prod, sqrt
from typing import Any, Literal, Optional

import jax.numpy as jnp
import numpy as np

from kronax.gp.axes.kernel_gradients import is_known
from kronax.gp.axes.markov import state_length, why_unordered
from kronax.gp.axes.structure import Structure, check_structure, choose
from kronax.gp.kernels.base import Kernel
from kronax.gp.kernels.stationary import Periodic
from kronax.gp.model.components import are_exact, terms_covariance
from kronax.gp.model.process import AbstractProcess, Process, with_fields
from kronax.linalg.dense_covariance import DenseCovariance
from kronax.linalg.estimates.certificates import Iteration
from kronax.linalg.gaps.masked import Masked
from kronax.linalg.gaps.plan import dense_cost, plan_gaps
from kronax.linalg.krylov.markov_reference import numbers_of_filter
from kronax.linalg.krylov.operator import Iterative
from kronax.linalg.krylov.preconditioner import balanced_box, held_numbers
from kronax.linalg.markov.at_observed import MarkovAtObserved, misses_whole_times
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import KroneckerTerms

# Beyond these an exact value and gradient take more than some seconds on two cores.
MOST_OPERATIONS = 4e11
MOST_BYTES = 4e9
# The same for one dense matrix of the observed cells, some 2000 of them, beside which iterations
# are very fast.
MOST_DENSE = 7e10
# From so many places on, and with at most so many others, an axis is filtered without being asked
# for; `eigh` takes more than ten times as much there (2 cores).
LONG = 1000
MOST_PLACES = 100
# A state of more numbers costs more than the decomposition that it saves: a periodic kernel has 33.
MOST_STATE = 6
# Structures of an axis that a filter may replace.
UNFILTERED = ("dense", "toeplitz", "centrosymmetric")
# A shorter axis is filtered where the gaps make every other exact way this many times dearer.
TO_SWITCH = 4.0
# Beyond `MOST_DENSE` a filter is taken at up to this many times what iterations are predicted to
# take, for it is exact, and right at every order.
WORTH_EXACT = 10.0
# What a step in time costs at least, in such operations: some thirty microseconds.
LEAST_STEP = 1.2e6
# The operations of a step with its gradient, in `m³ (d² + d + 1)` of `m` places and `d` numbers.
FILTER_STEP = 20.0
# What a cell costs that a filter passes forward and back, as the rotation of an axis of this size:
# some 40 ns for a state of two numbers.
FILTERED = 320
# Up to these, about a minute, an exact way stands in where iterations turn out to be no good.
MOST_MEASURED = 6e12
# An exact method that takes this many times as much is not chosen without being asked for.
MOST_UNASKED = 5
# What a cost is predicted with; `Estimate.num_steps` tells the true number.
USUAL_STEPS = 15


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the covariance of the data is solved, and why; the words do not count in `==`.

    Attributes:
        way: by the structure of the grid, as a dense matrix of the observed cells, by a filter
            along a Markov axis, or by iterations.
        reason: in words.
        flops: operations of a value and gradient that is exact, in those of a matrix product.
        memory: its largest arrays, in bytes.
        axis: of a filter, the axis along which; of iterations, that along which the complete
            grid that they start from is filtered.
        exact: of iterations, the exact way that stands in where they turn out to be no good, if
            it takes about a minute at most.
    """

    way: Literal["structured", "dense", "markov", "iterative"]
    reason: str = dataclasses.field(compare=False)
    flops: float
    memory: float
    axis: int | None = None
    exact: Optional["Choice"] = None

    @property
    def is_cheap(self) -> bool:
        """Whether an exact way takes some seconds at most."""
        most = MOST_DENSE if self.way == "dense" else MOST_OPERATIONS
        return self.flops <= most and self.memory <= MOST_BYTES

    @property
    def cost(self) -> str:
        """In words."""
        return f"{self.flops:.1e} operations and {self.memory / 1e9:.2g} GB"


def choice(gp: AbstractProcess) -> Choice:
    """As asked, as measured, or exactly up to a cost of some seconds."""
    if gp.measured is not None:
        return gp.measured
    exact = _cheapest_exact(gp)
    if not _has_choice(gp):
        return exact
    if gp.gaps == "exact":
        return _because(exact, f"{exact.reason}; 'exact' was asked for")
    refused = _why_not_iterative(gp)
    if gp.gaps == "iterative":
        if refused:
            raise NotImplementedError(
                f"gaps='iterative' is not available {refused}. Take gaps='exact'."
            )
        return _iterative(gp, exact, "'iterative' was asked for")
    if _is_whole(gp) or (exact.is_cheap and _is_worth(gp, exact)):
        return exact
    if refused:
        return _because(exact, f"{exact.reason}; {exact.cost}, and no iterations {refused}")
    found = _iterative(gp, exact, f"{exact.reason}; exactly it would take {exact.cost}")
    is_near = exact.flops <= MOST_MEASURED and exact.memory <= MOST_BYTES
    return dataclasses.replace(found, exact=exact) if is_near else found


def _because(found: Choice, reason: str) -> Choice:
    return dataclasses.replace(found, reason=reason)


def _iterative(gp: AbstractProcess, exact: Choice, reason: str) -> Choice:
    return Choice("iterative", reason, exact.flops, exact.memory, iterated_axis(gp))


def iterated_axis(gp: AbstractProcess) -> int | None:
    """The Markov axis along which the complete grid that iterations start from is filtered."""
    own = with_fields(gp, structures=own_structures(gp))
    i = int(np.argmax(gp.grid_shape))
    found = filtered_axis(own)
    if found is not None or gp.grid_shape[i] < LONG:
        return found
    return None if _markov_along(own, i) is None else i


def _has_choice(gp: AbstractProcess) -> bool:
    """Whether the grid alone does not decide: there are gaps, uneven noise, or several products."""
    return gp.observed is not None or gp.noise_model.is_per_cell or not are_exact(gp)


def _is_worth(gp: AbstractProcess, exact: Choice) -> bool:
    """Whether an exact way is no waste beside iterations."""
    if exact.way != "markov" or exact.flops <= MOST_DENSE:
        return True
    return exact.flops <= WORTH_EXACT * iterative_flops(gp, USUAL_STEPS)


def _cheapest_exact(gp: AbstractProcess) -> Choice:
    """The exact way of the fewest operations; a filter that nobody asked for, of far fewer."""
    own = with_fields(gp, structures=own_structures(gp))
    exact = _exact(own)
    least = TO_SWITCH * LEAST_STEP * min(gp.grid_shape)
    if exact.way == "markov" or exact.flops <= least or not _has_choice(gp) or _is_whole(gp):
        return exact
    along = (_markov_along(own, i) for i in range(len(gp.axes)))
    found = [way for other in along if other is not None and (way := _filtered(other))]
    best = min(found, key=lambda way: way.flops, default=exact)
    if TO_SWITCH * best.flops > exact.flops:
        return exact
    return _because(best, f"{best.reason}; {exact.way} it takes {exact.flops:.1e} operations")


def _exact(gp: AbstractProcess) -> Choice:
    """The exact way of the fewest operations with the structures that a process has."""
    itemsize = jnp.dtype(gp.dtype).itemsize
    if not _has_choice(gp):
        return Choice("structured", "no cell is missing", 0.0, 0.0)
    count = int(mask_to_solve(gp).array.sum())
    flops, numbers = dense_cost(count)
    matrix = f"a dense matrix of {count} observed cells"
    dense = Choice("dense", f"{matrix}: {_why_dense(gp)}", flops, itemsize * numbers)
    filtered = _filtered(gp)
    if filtered is not None:
        return filtered if filtered.flops <= flops else dense
    if gp.observed is None or gp.noise_model.is_per_cell or not are_exact(gp):
        return dense
    plan = plan_gaps(gp.observed, itemsize)
    structured = Choice("structured", plan.reason, plan.flops, float(plan.memory))
    if plan.method == "slabs":
        return structured
    # A posterior with terms in the noise has no structured way.
    if gp.joined is not None and dense.is_cheap:
        return dense
    if plan.flops <= flops:
        return structured
    other = f"{matrix} takes {flops:.1e} operations, {plan.method!r} {plan.flops:.1e}"
    return _because(dense, f"{plan.num_missing} gaps; {other}")


def _filtered(gp: AbstractProcess) -> Choice | None:
    """By a filter along a Markov axis, for any cells and a variance each."""
    axis = filtered_axis(gp)
    if axis is None:
        return None
    places = prod(n for i, n in enumerate(gp.grid_shape) if i != axis)
    order, size = state_length(gp.kernels[axis]) or 0, gp.grid_shape[axis]
    itemsize = jnp.dtype(gp.dtype).itemsize
    misses_whole = gp.observed is not None and misses_whole_times(gp.observed, axis)
    if misses_whole and not gp.noise_model.is_per_cell:
        numbers = size * places * (order + order**2 + 4)
        reason = "whole times missing along a Markov axis: a filter for every mode"
        return Choice("markov", reason, 20.0 * numbers * order, float(itemsize * numbers), axis)
    step = FILTER_STEP * places**3 * (order**2 + order + 1) + LEAST_STEP
    # The blocks of a reverse pass, and what a posterior keeps of every time.
    blocks = (sqrt(size) + size / max(sqrt(size), 1)) * (order * places) ** 2
    held = max(blocks, size * places**2 * (order + 1))
    reason = f"a filter of {places} places along a Markov axis of {size}"
    return Choice("markov", reason, size * step, float(itemsize * held), axis)


def settled(gp: Process) -> Process:
    """The same process, an axis of which is Markov where its data are to be filtered along it."""
    structures = own_structures(gp)
    is_asked = gp.gaps == "iterative" and _has_choice(gp)
    axis = iterated_axis(gp) if is_asked else None if gp.gaps == "iterative" else choice(gp).axis
    if axis is not None and structures[axis].kind != "markov":
        structures = _with_markov(gp, structures, axis)
        if not all(map(is_known, gp.kernels[axis].all_terms())):
            name = gp.axis_names[axis] if gp.axis_names else f"axis {axis}"
            asked = choose(gp.kernels[axis], gp.axes[axis], "markov")
            check_structure(gp.kernels[axis], gp.axes[axis], asked, name)
    return with_fields(gp, structures=structures)


def own_structures(gp: AbstractProcess) -> tuple[Structure, ...]:
    """The structures of the axes whatever is missing; a long one is Markov."""
    structures = tuple(
        structure if structure.is_asked else choose(kernel, axis)
        for kernel, axis, structure in zip(gp.kernels, gp.axes, gp.structures, strict=True)
    )
    i = int(np.argmax(gp.grid_shape))
    size, places = gp.grid_shape[i], prod(gp.grid_shape) // gp.grid_shape[i]
    if size < LONG or places > min(size, MOST_PLACES):
        return structures
    long = _markov_along(with_fields(gp, structures=structures), i)
    return structures if long is None else long.structures


def _markov_along(gp: AbstractProcess, i: int) -> AbstractProcess | None:
    """The same process filtered along an axis that is open, if its kernel has a short state."""
    structure, kernel = gp.structures[i], gp.kernels[i]
    if structure.is_asked or structure.kind not in UNFILTERED or why_unordered(kernel, gp.axes[i]):
        return None
    length = state_length(kernel)
    # A series that is cut off has lengthscales at which it does not hold.
    if length is None or length > MOST_STATE or any(map(_is_series, kernel.all_terms())):
        return None
    found = with_fields(gp, structures=_with_markov(gp, gp.structures, i))
    return found if filtered_axis(found) == i else None


def _is_series(kernel: Kernel) -> bool:
    return isinstance(kernel, Periodic)


def _with_markov(
    gp: AbstractProcess, structures: tuple[Structure, ...], i: int
) -> tuple[Structure, ...]:
    size = gp.grid_shape[i]
    reason = f"{size} places on a line, {prod(gp.grid_shape) // size} cells at each"
    return (*structures[:i], Structure("markov", reason), *structures[i + 1 :])


def filtered_axis(gp: AbstractProcess) -> int | None:
    """The Markov axis along which a process can be filtered."""
    if gp.joined is not None or not are_exact(gp):
        return None
    if gp.noise_model.is_none or not gp.noise_model.is_independent:
        return None
    markov = [(gp.grid_shape[i], i) for i, s in enumerate(gp.structures) if s.kind == "markov"]
    return max(markov)[1] if markov else None


def _is_whole(gp: AbstractProcess) -> bool:
    """Whether no gap is left once whole slabs are dropped, so that no size needs another way."""
    is_even = are_exact(gp) and not gp.noise_model.is_per_cell
    return is_even and (gp.observed is None or not gp.observed.gaps.count)


def _why_dense(gp: AbstractProcess) -> str:
    if not are_exact(gp):
        return gp.additive.reason
    if gp.likelihood is not None:
        return "the likelihood makes a noise variance per cell"
    if gp.noise_model.is_per_cell:
        return "a noise variance per cell"
    return "terms that join the noise, with gaps"


def data_covariance(
    gp: AbstractProcess, signal: Kronecker | None = None
) -> KroneckerPlusNoise | Masked | MarkovAtObserved | DenseCovariance | Iterative:
    """The covariance of the observations, at the cells that have some, ready to be solved.

    Args:
        gp: the process.
        signal: in place of the covariance of its function, one with the same structure.
    """
    found = choice(gp)
    if found.way == "iterative":
        observed = None if gp.observed is None else gp.observed.array
        levels = gp.noise_model.levels(gp.dtype)
        function = signal or gp.covariance(include_noise=False)
        return Iterative(KroneckerPlusDiagonal(function, levels, observed=observed), gp.iteration)
    _check_cost(gp, found)
    if found.way == "dense":
        function = signal or gp.covariance(include_noise=False)
        function = terms_covariance(gp) if gp.joined else function
        return DenseCovariance(with_noise_of(gp, function), mask_to_solve(gp))
    whole: Any = gp.covariance() if signal is None else with_noise_of(gp, signal)
    if found.way == "markov":
        return MarkovAtObserved(whole, mask_to_solve(gp))
    return whole if gp.observed is None else Masked(whole, gp.observed)


def with_noise_of(
    gp: AbstractProcess, signal: Kronecker | KroneckerTerms
) -> KroneckerPlusNoise | KroneckerPlusDiagonal:
    """The covariance of noisy data on the whole grid."""
    if gp.noise_model.is_per_cell or isinstance(signal, KroneckerTerms):
        return KroneckerPlusDiagonal(signal, gp.noise_model.levels(gp.dtype))
    return KroneckerPlusNoise(signal, gp.noise_term())


def check_choice(gaps: Any, iteration: Any) -> Iteration:
    """The settings of iterations, if both are what they must be."""
    if gaps not in ("auto", "exact", "iterative"):
        raise ValueError(f"`gaps` must be 'auto', 'exact' or 'iterative'; got {gaps!r}.")
    if not isinstance(iteration, Iteration | None):
        raise TypeError(f"`iteration` must be a kx.Iteration; got {iteration!r}.")
    return iteration or Iteration()


def described(gp: AbstractProcess) -> list[str]:
    """How gaps, uneven noise and several products are handled, in words."""
    unused = _unused_markov(gp)
    if not _has_choice(gp):
        return unused
    mask, found = mask_to_solve(gp), choice(gp)
    lines, missing = unused, int((~mask.array).sum())
    if missing:
        lines.append(f"  {missing} cells missing ({missing / mask.array.size:.0%})")
    dropped = [n - len(k) for n, k in zip(mask.shape, mask.kept, strict=True)]
    if any(dropped):
        names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
        whole = [f"{n} of {name}" for n, name in zip(dropped, names, strict=True) if n]
        lines.append(f"  whole slices missing, dropped exactly: {', '.join(whole)}")
    if found.way != "iterative":
        cost = found.cost.replace(" and", ",")
        return [*lines, f"  exact: {found.reason}", f"  a value and gradient: {cost}"]
    if found.axis is None:
        box = "×".join(map(str, balanced_box(gp.grid_shape, gp.iteration.box_size)))
        num_terms = 1 if are_exact(gp) else len(gp.additive.names)
        held = held_numbers(gp.grid_shape, gp.iteration, num_terms)
        known = f"exact on {box} eigenvectors"
    else:
        names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
        order = state_length(gp.kernels[found.axis]) or 0
        held = numbers_of_filter(gp.grid_shape, order, gp.iteration)
        known = f"from the complete grid, filtered along {names[found.axis]}"
    memory = held * jnp.dtype(gp.dtype).itemsize / 1e9
    lines += [
        f"  iterative: {found.reason}",
        f"  a value and gradient: {iterative_flops(gp, USUAL_STEPS):.1e} operations if "
        f"{USUAL_STEPS} iterations do, {gp.iteration.num_probes} probes, {known}, {memory:.2g} GB",
    ]
    if found.exact is not None:
        lines.append("  the first use measures: where iterations are no good, the exact way is it")
    return lines


def _unused_markov(gp: AbstractProcess) -> list[str]:
    """Why a Markov axis is a matrix all the same, in words."""
    names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
    axes = [n for n, s in zip(names, gp.structures, strict=True) if s.kind == "markov"]
    if not axes or filtered_axis(gp) is not None:
        return []
    if not are_exact(gp):
        why = gp.additive.reason
    elif gp.joined is not None:
        why = "terms that join the noise"
    elif gp.noise_model.is_none:
        why = "no noise"
    else:
        why = "noise that is correlated"
    return [f"  {axes[0]} is not filtered but a dense matrix: {why}"]


def iterative_flops(gp: AbstractProcess, num_steps: int) -> float:
    """Operations of a value and gradient by that many iterations."""
    num_terms = 1 if are_exact(gp) else 1 + len(gp.additive.names)
    if num_terms > 1 and (gp.observed is not None or gp.noise_model.is_per_cell):
        # Every iteration holds others inside, for the gaps of one product.
        num_terms += USUAL_STEPS
    passes = 2 * num_steps * num_terms * (1 + gp.iteration.num_probes)
    sizes = list(gp.grid_shape)
    if (axis := iterated_axis(gp)) is not None:
        order = state_length(gp.kernels[axis]) or 0
        sizes[axis] = FILTERED * max(order, 1) // 2
    return passes * 2.0 * np.prod(gp.grid_shape, dtype=float) * sum(sizes)


def is_iterative(gp: AbstractProcess) -> bool:
    """Whether the process is solved by iterations."""
    return choice(gp).way == "iterative"


def mask_to_solve(gp: AbstractProcess) -> Mask:
    """Where the process has data, as far as is known before its variances are."""
    if gp.observed is not None:
        return gp.observed
    return Mask.of(np.ones(gp.grid_shape, bool), gp.grid_shape)


def _check_cost(gp: AbstractProcess, exact: Choice) -> None:
    """Refuse an exact method of hours that nobody asked for."""
    is_huge = (
        exact.flops > MOST_UNASKED * MOST_OPERATIONS or exact.memory > MOST_UNASKED * MOST_BYTES
    )
    if gp.gaps == "auto" and is_huge and not _is_whole(gp):
        raise NotImplementedError(
            f"These gaps need iterations, which are not available {_why_not_iterative(gp)}; "
            f"exactly a value takes {exact.cost}. Leave `structure` and such noise out, or ask "
            "for gaps='exact'."
        )


def _why_not_iterative(gp: AbstractProcess) -> str:
    """What iterations cannot do, in words; empty if they can."""
    if gp.joined is not None:
        return "where terms join the noise"
    if any(structure.rank for structure in gp.structures):
        return "with low-rank axes"
    if not gp.noise_model.is_independent:
        return "with noise that is correlated between cells"
    return ""
