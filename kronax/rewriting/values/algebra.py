"""Sums, products and contractions of arrays that are kept as products of smaller ones."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from kronax.rewriting.values.tensors import (
    Groups,
    Part,
    Tensor,
    Term,
    Unstructured,
    common_cuts,
    regroup,
)

# More terms than this have no use that stays structured.
MAX_TERMS = 6


def aligned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of equal rank over the same fine axes; where one has size 1 it is repeated."""
    groups = []
    for each in zip(*(tensor.groups for tensor in tensors), strict=True):
        cut: tuple[int, ...] = ()
        for group in each:
            cut = common_cuts(cut, group) if cut and group else cut or group
        groups.append(cut)
    # An identity passes the cuts of one of its axes on to the other.
    while True:
        fine = tuple(_with_groups(tensor, groups) for tensor in tensors)
        finer = [max((t.groups[k] for t in fine), key=len) for k in range(len(groups))]
        if finer == groups:
            break
        groups = finer
    shape = tuple(prod(group) for group in groups)
    out = []
    for tensor in fine:
        full = tensor.broadcast(shape, range(len(groups)))
        out.append(full.split(_cuts_to(full.groups, groups)))
    return tuple(out)


def _with_groups(tensor: Tensor, groups: Sequence[tuple[int, ...]]) -> Tensor:
    wanted = tuple(g if own else () for own, g in zip(tensor.groups, groups, strict=True))
    return tensor.split(_cuts_to(tensor.groups, wanted))


def _cuts_to(own: Groups, wanted: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Per fine axis its cuts, so that the groups become the wanted ones."""
    pairs = zip(own, wanted, strict=True)
    return [cut for have, want in pairs for cut in regroup(common_cuts(want, have), have)]


def multiply(first: Tensor, second: Tensor, dtype: Any) -> Tensor:
    """The elementwise product."""
    first, second = aligned(first, second)
    terms = tuple((*a, *_renamed(b, {})) for a, b in itertools.product(first.terms, second.terms))
    return _checked(Tensor(first.groups, terms, dtype))


def add(first: Tensor, second: Tensor, dtype: Any) -> Tensor:
    """The sum; of a matrix and its transpose twice the symmetric part."""
    of = next((a for a, b in ((first, second), (second, first)) if b.transpose_of is a), None)
    left, right = aligned(first, second)
    total = _checked(Tensor(left.groups, (*left.terms, *right.terms), dtype))
    if of is not None:
        hint = (of.symmetric_of or of).scaled(np.asarray(2, dtype))
    elif first.symmetric_of or second.symmetric_of:
        hint = add(first.symmetric_of or first, second.symmetric_of or second, dtype)
    else:
        return total
    return dataclasses.replace(total, symmetric_of=hint)


def _checked(tensor: Tensor) -> Tensor:
    if len(tensor.terms) > MAX_TERMS:
        raise Unstructured(f"a sum of {len(tensor.terms)} products")
    return tensor


def contract(
    operands: Sequence[tuple[Tensor, Sequence[Any]]], result: Sequence[Any], **options: Any
) -> Tensor:
    """`einsum` of tensors: one label per visible axis; labels not in the result are summed over.

    Small arrays meet only where they share an axis that is summed over.
    """
    cuts: dict[Any, tuple[int, ...]] = {}
    split = [(tensor, labels) for tensor, labels in operands]
    while True:
        before = dict(cuts)
        for tensor, labels in split:
            for label, group in zip(labels, tensor.groups, strict=True):
                cuts[label] = common_cuts(cuts.get(label, group), group)
        split = [
            (t.split(_cuts_to(t.groups, [cuts[label] for label in labels])), labels)
            for t, labels in split
        ]
        if before == cuts:
            break
    sizes = {(label, i): n for label, cut in cuts.items() for i, n in enumerate(cut)}
    kept = [(label, i) for label in result for i in range(len(cuts[label]))]
    named = [[_renamed(term, _labels(t, labels)) for term in t.terms] for t, labels in split]
    place = {label: k for k, label in enumerate(kept)}
    terms = tuple(
        _renamed(eliminated(list(itertools.chain(*each)), kept, sizes, **options), place)
        for each in itertools.product(*named)
    )
    dtype = jnp.result_type(*(t.dtype for t, _ in operands))
    return _checked(Tensor(tuple(cuts[label] for label in result), terms, dtype))


def _labels(tensor: Tensor, labels: Sequence[Any]) -> dict[int, Any]:
    return {
        axis: (label, i)
        for k, label in enumerate(labels)
        for i, axis in enumerate(tensor.axes_of(k))
    }


def _renamed(term: Term, names: Mapping[Any, Any]) -> Term:
    """A term with other names of its axes; those that are summed over get new ones."""
    fresh: dict[Any, Any] = {}

    def name(axis: Any) -> Any:
        if axis in names:
            return names[axis]
        return axis if isinstance(axis, int) else fresh.setdefault(axis, object())

    return tuple(Part(part.array, tuple(map(name, part.axes))) for part in term)


def apart(
    operands: Sequence[tuple[Tensor, Sequence[Any]]], result: Sequence[Any], dtype: Any
) -> Tensor:
    """`contract` of arrays as they were lifted, with the sums left for later."""
    groups = {
        label: group
        for tensor, labels in operands
        for label, group in zip(labels, tensor.groups, strict=True)
    }
    place: dict[Any, Any] = {}
    for label in result:
        if groups[label]:
            place[label, 0] = len(place)
    for label, group in groups.items():
        if label not in result and group:
            place[label, 0] = object()
    terms = [
        [Part(p.array, tuple(place[_labels(t, labels)[a]] for a in p.axes)) for p in t.terms[0]]
        for t, labels in operands
    ]
    shape = tuple(groups[label] for label in result)
    return Tensor(shape, (tuple(itertools.chain(*terms)),), dtype)


def eliminated(
    parts: list[Part], kept: Sequence[Any], sizes: Mapping[Any, int], **options: Any
) -> Term:
    """Sum a product of parts over all axes that are not kept."""
    parts, gone = _without_identities(parts, kept, sizes)
    result: list[Part] = []
    for label in [g for g in gone if not any(g in part.axes for part in parts)]:
        result.append(Part(np.asarray(sizes[label]), ()))
    while parts:
        group, axes = [parts.pop(0)], set()
        while True:
            axes = {a for part in group for a in part.axes if a in gone}
            more = [part for part in parts if axes & set(part.axes)]
            if not more:
                break
            group += more
            parts = [part for part in parts if not any(part is other for other in more)]
        order = {label: k for k, label in enumerate(kept)}
        own = sorted({a for p in group for a in p.axes if a not in axes}, key=order.__getitem__)
        repeats = any(len(set(p.axes)) < len(p.axes) for p in group)
        result.append(einsum(group, own, **options) if axes or repeats else group[0])
    return tuple(result)


def _without_identities(
    parts: list[Part], kept: Sequence[Any], sizes: Mapping[Any, int]
) -> tuple[list[Part], set[Any]]:
    """Replace an axis that is summed over by the one that an identity ties it to."""
    gone = {label for part in parts for label in part.axes} | set(sizes)
    gone -= set(kept)
    while True:
        tie = next((p for p in parts if p.array is None and set(p.axes) & gone), None)
        if tie is None:
            break
        i, j = tie.axes
        lost, stays = (i, j) if i in gone else (j, i)
        rest = [part for part in parts if part is not tie]
        parts = [Part(p.array, tuple(stays if a == lost else a for a in p.axes)) for p in rest]
        parts = [p for p in parts if not (p.array is None and p.axes[0] == p.axes[1])]
        if lost != stays:
            gone.discard(lost)
    return parts, gone


def einsum(parts: Sequence[Part], axes: Sequence[Any], **options: Any) -> Part:
    """The product of parts with arrays, summed over what is not in `axes`."""
    numbers: dict[Any, int] = {}
    operands: list[Any] = []
    for part in parts:
        operands += [part.array, [numbers.setdefault(a, len(numbers)) for a in part.axes]]
    result = jnp.einsum(*operands, [numbers[a] for a in axes], optimize="optimal", **options)
    return Part(result, tuple(axes))
