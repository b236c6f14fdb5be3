"""Arrays kept as sums of products of smaller arrays: Kronecker products before they are formed.

Every visible axis is a row-major group of fine axes. A term is a product of parts, each an array
over some of the fine axes. `kron(A, B)` has the groups `((m, p), (n, q))` and the parts `A` over
axes 0 and 2, `B` over axes 1 and 3.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# A product of parts is kept where the array has more than so many times their entries.
LARGE = 4


class Unstructured(Exception):
    """Something has no structured form, and why."""


@dataclass(frozen=True, eq=False)
class Part:
    """An array over some fine axes; without an array the identity between two of them."""

    array: Any
    axes: tuple[Any, ...]


Term = tuple[Part, ...]
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A sum of terms over the same fine axes.

    Args:
        groups: per visible axis the sizes of its fine axes, none of them 1.
        terms: the parts name fine axes by their position in all groups. An axis with another name
            is summed over, where the array is needed.
        dtype: of the entries.
        triangle: "lower" or "upper" where a matrix is known to be triangular.
        symmetric_of: the matrix of which this is the symmetric part; equal to it if that matrix
            is symmetric.
        transpose_of: the matrix of which this is the transpose.
    """

    groups: Groups
    terms: tuple[Term, ...]
    dtype: Any
    triangle: str | None = None
    symmetric_of: "Tensor | None" = None
    transpose_of: "Tensor | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array that it stands for."""
        return tuple(prod(group) for group in self.groups)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Of all fine axes."""
        return tuple(itertools.chain(*self.groups))

    def axes_of(self, visible: int) -> tuple[int, ...]:
        """The fine axes of a visible one."""
        start = sum(len(group) for group in self.groups[:visible])
        return tuple(range(start, start + len(self.groups[visible])))

    @property
    def has_structure(self) -> bool:
        """Whether it is more than broadcast arrays multiplied together."""
        if any(part.array is None for term in self.terms for part in term):
            return True
        return any(len(group) > 1 for group in self.groups) and self._has_parts

    @property
    def is_product(self) -> bool:
        """Whether it is a Kronecker product of matrices, or a sum with one."""
        return sum(len(group) > 1 for group in self.groups) > 1 and self._has_parts

    @property
    def _has_parts(self) -> bool:
        return any(sum(bool(part.axes) for part in term) > 1 for term in self.terms)

    @property
    def is_apart(self) -> bool:
        """Whether the parts of every term have far fewer entries than the array."""
        entries = max(sum(np.size(p.array) for p in term if p.axes) for term in self.terms)
        return (self._has_parts or self.sums) and prod(self.shape) > LARGE * entries

    @property
    def sums(self) -> bool:
        """Whether axes are still to be summed over."""
        return any(not isinstance(a, int) for term in self.terms for p in term for a in p.axes)

    @property
    def is_zero(self) -> bool:
        """Whether it is known to be zero."""
        parts = [part for term in self.terms for part in term]
        return any(
            not part.axes and isinstance(part.array, np.ndarray | np.generic) and part.array == 0
            for part in parts
        )

    @cached_property
    def dense(self) -> Array:
        """The array, formed as the dense code would."""
        total = _form(self.terms[0], self.sizes, self.dtype)
        for term in self.terms[1:]:
            total = total + _form(term, self.sizes, self.dtype)
        return jnp.reshape(total, self.shape)

    def scaled(self, scalar: Any) -> "Tensor":
        """Every term times a number."""
        of = self.symmetric_of
        return dataclasses.replace(
            self,
            terms=tuple((*term, Part(scalar, ())) for term in self.terms),
            symmetric_of=None if of is None else of.scaled(scalar),
            transpose_of=None,
        )

    def mapped(self, function: Any) -> "Tensor":
        """A linear function of one argument applied to one part of every term."""
        terms = []
        for term in self.terms:
            arrays = [k for k, part in enumerate(term) if part.array is not None]
            if not arrays:
                raise Unstructured("an identity has no array")
            k = arrays[0]
            terms.append((*term[:k], Part(function(term[k].array), term[k].axes), *term[k + 1 :]))
        return Tensor(self.groups, tuple(terms), self.dtype, self.triangle)

    def cast(self, dtype: Any) -> "Tensor":
        """The same in another precision."""

        def one(part: Part) -> Part:
            return part if part.array is None else Part(jnp.asarray(part.array, dtype), part.axes)

        terms = tuple(tuple(one(part) for part in term) for term in self.terms)
        of = self.symmetric_of
        return Tensor(
            self.groups, terms, dtype, self.triangle, None if of is None else of.cast(dtype)
        )

    def split(self, cuts: Sequence[tuple[int, ...]]) -> "Tensor":
        """Cut fine axes into finer ones, one tuple of sizes for each."""
        cuts = self._agreed(cuts)
        if all(cut == (size,) for cut, size in zip(cuts, self.sizes, strict=True)):
            return self
        starts = list(itertools.accumulate((len(cut) for cut in cuts), initial=0))
        groups = tuple(
            tuple(itertools.chain(*(cuts[axis] for axis in self.axes_of(k))))
            for k in range(len(self.groups))
        )

        def places(axis: Any) -> Sequence[Any]:
            whole = isinstance(axis, int)
            return range(starts[axis], starts[axis + 1]) if whole else [axis]

        def one(part: Part) -> list[Part]:
            if part.array is None:
                i, j = part.axes
                return [Part(None, pair) for pair in zip(places(i), places(j), strict=True)]
            axes = tuple(itertools.chain(*(places(axis) for axis in part.axes)))
            own = zip(part.axes, jnp.shape(part.array), strict=True)
            sizes = tuple(
                itertools.chain(*(cuts[a] if isinstance(a, int) else (n,) for a, n in own))
            )
            return [Part(jnp.reshape(part.array, sizes) if part.axes else part.array, axes)]

        terms = tuple(tuple(p for part in term for p in one(part)) for term in self.terms)
        return dataclasses.replace(self, groups=groups, terms=terms)

    def _agreed(self, cuts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Cuts that are the same on both sides of every identity."""
        cuts = list(cuts)
        pairs = [p.axes for term in self.terms for p in term if p.array is None]
        while any(cuts[i] != cuts[j] for i, j in pairs):
            for i, j in pairs:
                cuts[i] = cuts[j] = common_cuts(cuts[i], cuts[j])
        return cuts

    def reshape(self, shape: Sequence[int]) -> "Tensor":
        """Another shape, where no axis is cut across."""
        cuts = regroup(common_cuts(self.sizes, tuple(shape)), self.sizes)
        fine = self.split(cuts)
        return dataclasses.replace(
            fine,
            groups=regroup(fine.sizes, shape),
            triangle=None,
            symmetric_of=None,
            transpose_of=None,
        )

    def transpose(self, permutation: Sequence[int]) -> "Tensor":
        """Permute visible axes."""
        order = [axis for k in permutation for axis in self.axes_of(k)]
        place = {axis: new for new, axis in enumerate(order)}
        terms = tuple(
            tuple(Part(part.array, tuple(place.get(a, a) for a in part.axes)) for part in term)
            for term in self.terms
        )
        groups = tuple(self.groups[k] for k in permutation)
        swaps = tuple(permutation) == (*range(len(groups) - 2), len(groups) - 1, len(groups) - 2)
        if not swaps:
            return Tensor(groups, terms, self.dtype)
        triangle = other_triangle(self.triangle)
        return Tensor(groups, terms, self.dtype, triangle, self.symmetric_of, self)

    def reverse(self, dimensions: Sequence[int]) -> "Tensor":
        """Turn visible axes round; an identity stays one if both of its axes are turned."""
        turned = {axis for k in dimensions for axis in self.axes_of(k)}

        def one(part: Part) -> Part:
            places = [k for k, axis in enumerate(part.axes) if axis in turned]
            if part.array is None:
                if len(places) == 1:
                    raise Unstructured("an identity of which one axis is turned round")
                return part
            return Part(jnp.flip(part.array, places), part.axes) if places else part

        terms = tuple(tuple(one(part) for part in term) for term in self.terms)
        rank = len(self.groups)
        if {*dimensions} & {rank - 2, rank - 1} != {rank - 2, rank - 1}:
            return Tensor(self.groups, terms, self.dtype)
        of = self.symmetric_of
        turned_of = None if of is None else of.reverse(dimensions)
        return Tensor(self.groups, terms, self.dtype, other_triangle(self.triangle), turned_of)

    def broadcast(self, shape: Sequence[int], dimensions: Sequence[int]) -> "Tensor":
        """Give visible axes new places, and repeat along the others."""
        groups: list[tuple[int, ...]] = [() if n == 1 else (n,) for n in shape]
        for k, d in enumerate(dimensions):
            if self.groups[k]:
                groups[d] = self.groups[k]
        starts = list(itertools.accumulate((len(g) for g in groups), initial=0))
        place = {
            axis: starts[d] + i
            for k, d in enumerate(dimensions)
            for i, axis in enumerate(self.axes_of(k))
        }
        terms = tuple(
            tuple(Part(part.array, tuple(place.get(a, a) for a in part.axes)) for part in term)
            for term in self.terms
        )
        return Tensor(tuple(groups), terms, self.dtype)


def other_triangle(triangle: str | None) -> str | None:
    """Where the entries of the transpose are."""
    return {"lower": "upper", "upper": "lower", None: None}[triangle]


def lift(array: Any) -> Tensor:
    """An array as a tensor of one part."""
    shape = jnp.shape(array)
    groups = tuple(() if n == 1 else (n,) for n in shape)
    count = sum(n != 1 for n in shape)
    if count != len(shape):
        array = jnp.reshape(array, tuple(n for n in shape if n != 1))
    return Tensor(groups, ((Part(array, tuple(range(count))),),), jnp.result_type(array))


def identity(size: int, dtype: Any) -> Tensor:
    """The identity matrix."""
    if size == 1:
        return lift(np.ones((1, 1), dtype))
    return Tensor(((size,), (size,)), ((Part(None, (0, 1)),),), dtype)


def common_cuts(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The coarsest sizes that are finer than both of these.

    Raises:
        Unstructured: if one cuts across the other.
    """
    cuts = sorted({*_suffixes(first), *_suffixes(second)})
    if any(large % small for small, large in itertools.pairwise(cuts)):
        raise Unstructured(f"axes of sizes {tuple(first)} and {tuple(second)} do not align")
    return tuple(large // small for small, large in itertools.pairwise(cuts))[::-1]


def _suffixes(sizes: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(sizes[::-1], lambda a, b: a * b, initial=1))


def regroup(fine: Sequence[int], targets: Sequence[int]) -> Groups:
    """Fine sizes in turn, gathered into groups with the products `targets`."""
    rest, groups = list(fine), []
    for target in targets:
        group: list[int] = []
        while prod(group) < target:
            group.append(rest.pop(0))
        groups.append(tuple(group))
    return tuple(groups)


def _form(term: Term, sizes: tuple[int, ...], dtype: Any) -> Array:
    """One term over all fine axes, multiplied from left to right."""
    total: Any = None
    if any(not isinstance(axis, int) for part in term for axis in part.axes):
        term = (_summed(term, sizes, dtype),)
    for part in term:
        if part.array is None:
            i, j = sorted(part.axes)
            array, axes = jnp.eye(sizes[i], dtype=dtype), [i, j]
        else:
            axes = sorted(part.axes)
            array = jnp.asarray(part.array, dtype)
            if list(part.axes) != axes:
                array = jnp.transpose(array, [part.axes.index(a) for a in axes])
        wide = array.reshape([n if k in axes else 1 for k, n in enumerate(sizes)])
        total = wide if total is None else total * wide
    return jnp.broadcast_to(total, sizes)


def _summed(term: Term, sizes: tuple[int, ...], dtype: Any) -> Part:
    """A term as one part, summed over what is no axis of the array."""
    names: dict[Any, int] = {}
    operands: list[Any] = []
    for part in term:
        array = part.array
        if array is None:
            array = jnp.eye(sizes[part.axes[0]], dtype=dtype)
        operands += [array, [names.setdefault(a, len(names)) for a in part.axes]]
    axes = sorted(axis for axis in names if isinstance(axis, int))
    result = jnp.einsum(
        *operands, [names[a] for a in axes], optimize="optimal", precision="highest"
    )
    return Part(result, tuple(axes))
