"""Additive models over a grid: which sums of Kronecker products have an exact decomposition.

With white noise two Kronecker products in all are diagonalised together. Terms that differ on one
axis only are one product, with the sum of their kernels on that axis. A term that is the identity
on all axes but one is added to the noise on that axis. Any other sum is one dense matrix, or solved
by iterations.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from operator import mul
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from kronax.gp.axes.alignment import aligned
from kronax.gp.axes.axis import Axis
from kronax.gp.axes.kernel_gradients import warn_of_nan_gradient
from kronax.gp.axes.structure import Structure, check_kernel, check_structure, choose
from kronax.gp.kernels.base import Kernel, as_kernel, dtype_of
from kronax.gp.kernels.stationary import Indicator
from kronax.gp.kernels.terms import TermSum
from kronax.gp.noise.abstract import AbstractNoise
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.host import on_device, on_host

# Subsets of the terms are tried: what is more than this is no model that anybody could read.
MOST_TERMS = 12


class Terms(NamedTuple):
    """What became of the terms of an additive model.

    Attributes:
        names: in the order given.
        axis: where the kernels of the terms in the signal are added.
        joined: the terms that are added to the noise, also in the order given.
        joined_axis: where they are.
        owners: without an exact decomposition, per axis and term the first term that has the same
            kernel there; empty with one.
        reason: why there is none.
    """

    names: tuple[str, ...]
    axis: int
    joined: tuple[str, ...] = ()
    joined_axis: int = 0
    owners: tuple[tuple[str, ...], ...] = ()
    reason: str = ""

    @property
    def are_exact(self) -> bool:
        """Whether there is an exact decomposition together with the noise."""
        return not self.owners

    @property
    def signal(self) -> tuple[str, ...]:
        """The terms that are not added to the noise."""
        return tuple(name for name in self.names if name not in self.joined)


class Term(NamedTuple):
    """One term as it was given: its kernels without scales, and their product."""

    kernels: tuple[Kernel, ...]
    variance: Array


def read_kernels(
    kernels: Any, terms: Any, axes: Any
) -> tuple[dict[Any, Term], tuple, tuple[str, ...] | None]:
    """The terms, or the only one as `None`; the axes in their order, and their names if any."""
    if (kernels is None) == (terms is None):
        raise TypeError(
            "A GridGP needs `kernels`, one per axis, or the `terms` of an additive model; got "
            f"{'neither' if terms is None else 'both'}."
        )
    given: Any = {None: kernels} if terms is None else terms
    if terms is not None:
        _check_names(terms)
    # An object that is given twice is split once: what it holds is then the same.
    known: dict[int, tuple[Kernel, Array | None]] = {}
    split: dict[Any, list[tuple[Kernel, Array | None]]] = {}
    coordinates: tuple = ()
    axis_names: tuple[str, ...] | None = None
    for name, entry in given.items():
        try:
            entries, coordinates, axis_names = aligned(entry, axes)
        except (TypeError, ValueError, KeyError) as error:
            if name is None:
                raise
            raise type(error)(f"The term {name!r}: {error.args[0]}") from error
        labels = axis_names or tuple(f"axis {i}" for i in range(len(entries)))
        for kernel, label in zip(entries, labels, strict=True):
            if id(kernel) not in known:
                where = label if name is None else f"{label} in the term {name!r}"
                known[id(kernel)] = as_kernel(
                    kernel, f"The kernel of {where} must be"
                ).split_scale()
        split[name] = [known[id(kernel)] for kernel in entries]
    dtype = dtype_of(split)
    return {n: _term(pairs, dtype) for n, pairs in split.items()}, coordinates, axis_names


def _check_names(terms: Any) -> None:
    if not isinstance(terms, Mapping) or not terms:
        raise TypeError(
            "terms must be a dictionary from names to kernels, one per axis each, such as "
            f"{{'trend': (k_time, k_space), 'season': (k_year, k_space)}}; got {terms!r}."
        )
    wrong = [name for name in terms if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"The names of terms must be strings; got {wrong[0]!r}.")
    if len(terms) > MOST_TERMS:
        raise ValueError(f"An additive model has at most {MOST_TERMS} terms; got {len(terms)}.")


def _term(pairs: Sequence[tuple[Kernel, Array | None]], dtype: Any) -> Term:
    variance: Any = on_device(np.ones((), dtype))
    for _, scale in pairs:
        variance = variance if scale is None else on_host(mul, variance, scale)
    return Term(tuple(kernel for kernel, _ in pairs), variance)


class Merged(NamedTuple):
    """How the terms fit together.

    Attributes:
        terms: what became of them.
        kernels: of the signal, one per axis.
        joined: what is added to the noise.
        variance: of every term, where the kernels do not hold them.
    """

    terms: Terms
    kernels: tuple[Kernel, ...]
    joined: TermSum | None
    variance: dict[str, Array] | None = None


def merge(
    terms: dict[str, Term],
    axes: tuple[Axis, ...],
    noise: AbstractNoise,
    labels: tuple[str, ...],
) -> Merged:
    """How the terms fit together: in one decomposition where they can.

    A term joins the noise only where it must, and rather one that comes later.

    Raises:
        NotImplementedError: without an exact decomposition, where the noise is correlated.
    """
    names = tuple(terms)
    for first, second in combinations(names, 2):
        if not _differing(terms, (first, second)):
            raise ValueError(
                f"The terms {first!r} and {second!r} have the same kernels on every axis, so that "
                "data cannot tell them apart. Leave one of them out."
            )
    for joined, joined_axis in _choices(terms, axes, noise):
        signal = tuple(name for name in names if name not in joined)
        differing = _differing(terms, signal)
        if len(differing) > 1:
            continue
        kernels = terms[signal[0]].kernels
        axis = differing[0] if differing else _first_with_parameters(kernels)
        total = _sum(terms, signal, axis)
        kernels = (*kernels[:axis], total, *kernels[axis + 1 :])
        added = _sum(terms, joined, joined_axis) if joined else None
        return Merged(Terms(names, axis, joined, joined_axis), kernels, added)
    clash, advice = _clash(terms, axes, noise, labels)
    if not noise.is_independent:
        raise NotImplementedError(
            "Beside noise that is correlated, the terms of an additive model must differ on one "
            "and the same axis, the kernels of the other axes being shared; or else be kx.White on "
            "all axes but one, the same for all that are, and so join the noise. Got terms where "
            f"{clash}. {advice} "
            "Other sums need noise that is independent from cell to cell."
        )
    return _apart(terms, f"no joint decomposition, since {clash}. {advice}")


def _apart(terms: dict[str, Term], reason: str) -> Merged:
    """Every term as a product of its own; kernels that are shared are held once."""
    names = tuple(terms)
    kernels, owners = [], []
    for i in range(len(terms[names[0]].kernels)):
        held: dict[str, Kernel] = {}
        owner = []
        for name in names:
            kernel = terms[name].kernels[i]
            same = next((n for n, other in held.items() if _is_same(kernel, other)), name)
            held.setdefault(same, kernel)
            owner.append(same)
        kernels.append(TermSum(held) if len(held) > 1 else held[names[0]])
        owners.append(tuple(owner))
    variance = {name: term.variance for name, term in terms.items()}
    held_by = Terms(names, 0, owners=tuple(owners), reason=reason)
    return Merged(held_by, tuple(kernels), None, variance)


def joined_structure(
    terms: Terms,
    joined: TermSum,
    axes: tuple[Axis, ...],
    labels: tuple[str, ...],
    structures: tuple[Structure, ...],
) -> Structure:
    """The structure of what is added to the noise, on its axis."""
    if any(structure.rank is not None for structure in structures):
        raise ValueError(
            "Low-rank axes need noise that nothing is added to; here the terms "
            f"{', '.join(map(repr, terms.joined))} join it. Leave the numbers in `structure` out."
        )
    i = terms.joined_axis
    check_kernel(joined, axes[i], labels[i])
    chosen = choose(joined, axes[i])
    check_structure(joined, axes[i], chosen, labels[i])
    warn_of_nan_gradient(joined, axes[i], labels[i])
    return chosen


def _sum(terms: dict[str, Term], names: tuple[str, ...], axis: int) -> TermSum:
    return TermSum(
        {name: terms[name].kernels[axis] for name in names},
        {name: terms[name].variance for name in names},
    )


def _choices(
    terms: dict[str, Term], axes: tuple[Axis, ...], noise: AbstractNoise
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Which terms may join the noise, and on which axis: the fewest first, later ones first."""
    yield (), 0
    white = filter(noise.is_white_beside, range(len(axes)))
    able = [(i, _white_elsewhere(terms, axes, i)) for i in white]
    places = {name: k for k, name in enumerate(terms)}
    for count in range(1, len(terms)):
        found = [(chosen, i) for i, names in able for chosen in combinations(names, count)]
        yield from sorted(found, key=lambda choice: [-places[name] for name in choice[0][::-1]])


def _white_elsewhere(terms: dict[str, Term], axes: tuple[Axis, ...], i: int) -> tuple[str, ...]:
    """The terms that are the identity on all axes but `i`, for every value of their parameters."""
    return tuple(
        name
        for name, term in terms.items()
        if all(
            isinstance(kernel, Indicator) and axis.is_distinct
            for j, (kernel, axis) in enumerate(zip(term.kernels, axes, strict=True))
            if j != i
        )
    )


def _differing(terms: dict[str, Term], names: tuple[str, ...]) -> list[int]:
    """The axes on which the kernels of some terms are not one and the same."""
    first, *others = (terms[name].kernels for name in names)
    return [i for i, k in enumerate(first) if not all(_is_same(k, o[i]) for o in others)]


def _is_same(first: Kernel, second: Kernel) -> bool:
    """Whether two kernels are the same for every value of the parameters: they hold the same."""
    leaves, others = jax.tree.leaves(first), jax.tree.leaves(second)
    return _has_form_of(first, second) and all(a is b for a, b in zip(leaves, others, strict=True))


def _is_copy(first: Kernel, second: Kernel) -> bool:
    """Whether two kernels are equal now, and have parameters of their own."""
    if _is_same(first, second) or not is_concrete(first, second):
        return False
    leaves, others = jax.tree.leaves(first), jax.tree.leaves(second)
    return _has_form_of(first, second) and all(
        np.array_equal(a, b) for a, b in zip(leaves, others, strict=True)
    )


def _has_form_of(first: Kernel, second: Kernel) -> bool:
    trees: Any = jax.tree.structure(first), jax.tree.structure(second)
    return trees[0] == trees[1]


def _first_with_parameters(kernels: tuple[Kernel, ...]) -> int:
    return next((i for i, kernel in enumerate(kernels) if jax.tree.leaves(kernel)), 0)


def _clash(
    terms: dict[str, Term], axes: tuple[Axis, ...], noise: AbstractNoise, labels: tuple[str, ...]
) -> tuple[str, str]:
    """Why there is no exact decomposition, and what to do for one."""
    clashes, copies = [], []
    for first, second in combinations(terms, 2):
        differing = _differing(terms, (first, second))
        if len(differing) > 1:
            where = " and ".join(labels[i] for i in differing)
            clashes.append(f"{first!r} and {second!r} differ on {where}")
        pairs = zip(labels, terms[first].kernels, terms[second].kernels, strict=True)
        copies += [label for label, a, b in pairs if _is_copy(a, b)]
    if not clashes:
        clashes.append("each pair differs on one axis, but not all pairs on the same one")
    advice = "Share the kernels of the other axes, or make a term kx.White on all axes but one."
    if copies:
        advice = (
            f"The kernels on {', '.join(dict.fromkeys(copies))} are equal copies with parameters "
            "of their own: pass the same object where terms are to share a kernel."
        )
    elif any(_white_elsewhere(terms, axes, i) for i in range(len(axes))) and not any(
        map(noise.is_white_beside, range(len(axes)))
    ):
        advice = "Noise that varies along several axes, or is correlated, cannot be added to."
    repeated = [label for label, axis in zip(labels, axes, strict=True) if not axis.is_distinct]
    if repeated:
        advice += f" On {', '.join(repeated)}, where places occur twice, kx.White is no identity."
    return "; ".join(clashes), advice
