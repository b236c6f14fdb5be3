"""Identities, triangles and diagonals: what a program makes with indices of rows and columns."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.functions.diagonals import inverse_diagonal
from kronax.rewriting.interpreter import Deferred, Equation, Run, settled
from kronax.rewriting.roots import asked
from kronax.rewriting.values.algebra import contract, multiply
from kronax.rewriting.values.general_sums import GeneralSum, general_inverse_diagonal
from kronax.rewriting.values.matrices import describe
from kronax.rewriting.values.meanings import (
    Index,
    Inverse,
    Masked,
    Root,
    RootDiagonal,
    TriangleMask,
)
from kronax.rewriting.values.tensors import Tensor, identity, lift


def _iota(run: Run, eqn: Any) -> Any:
    shape, dtype = eqn.params["shape"], eqn.params["dtype"]
    if len(shape) != 2 or shape[0] != shape[1]:
        return None
    # Others are rounded, or begin again from below where they are short.
    if not jnp.issubdtype(dtype, jnp.signedinteger) or shape[0] > jnp.iinfo(dtype).max:
        return None
    return [Deferred(Equation(eqn, []), Index(eqn.params["dimension"]))]


def multiple_of_identity(value: Any) -> tuple[bool, Any]:
    """Whether it is the identity matrix times numbers, and their product; None for one."""
    if not isinstance(value, Tensor) or len(value.terms) != 1:
        return False, None
    (term,) = value.terms
    numbers = tuple(part for part in term if part.array is not None and not part.axes)
    rest = tuple(part for part in term if not any(part is number for number in numbers))
    if not is_identity(replace(value, terms=(rest,))):
        return False, None
    return True, Tensor((), (numbers,), value.dtype).dense if numbers else None


def is_identity(value: Any) -> bool:
    """Whether it is the identity matrix itself, or a batch of them."""
    if not isinstance(value, Tensor) or len(value.groups) < 2 or len(value.terms) != 1:
        return False
    (term,), last = value.terms, len(value.groups) - 1
    pairs = set(zip(value.axes_of(last - 1), value.axes_of(last), strict=False))
    return all(p.array is None for p in term) and {tuple(sorted(p.axes)) for p in term} == pairs


def _compare(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    rows, columns = (v.meaning if isinstance(v, Deferred) else None for v in (first, second))
    if not (isinstance(rows, Index) and isinstance(columns, Index)):
        return None
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    dims = (rows.dimension, columns.dimension)
    if rows.offset != columns.offset or set(dims) != {0, 1}:
        return None
    if name == "eq":
        return [identity(shape[0], jnp.bool_)]
    lower = (name == "ge") == (dims == (0, 1))
    mask = TriangleMask("lower" if lower else "upper")
    return [Deferred(Equation(eqn, [first, second]), mask)]


def _select_n(run: Run, eqn: Any, which: Any, *cases: Any) -> Any:
    """Of an identity mask its diagonal, of a triangular mask what is triangular already."""
    if len(cases) != 2 or not _is_zero(cases[0]):
        return None
    case = cases[1]
    mask = _triangle(which)
    if mask is not None:
        if isinstance(case, Deferred):
            if not isinstance(case.meaning, Root) or case.meaning.triangle != mask:
                return None
            # Formed, it needs the mask: the primitive leaves anything in the other triangle.
            return [Deferred(Equation(eqn, [which, *cases]), case.meaning)]
        return [case] if getattr(case, "triangle", None) == mask else None
    if not is_identity(which):
        return None
    if isinstance(case, Deferred):
        if isinstance(case.meaning, Root | Inverse):
            return [Deferred(Equation(eqn, [which, *cases]), Masked(case.meaning))]
        return None
    tensor = case if isinstance(case, Tensor) else lift(case)
    return [multiply(which.cast(tensor.dtype), tensor, tensor.dtype)]


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_zero
    return not isinstance(value, Deferred) and is_concrete(value) and not np.asarray(value).any()


def _triangle(which: Any) -> str | None:
    """Which triangle a mask keeps, from its equation or from its values."""
    if isinstance(which, Deferred):
        return which.meaning.kept if isinstance(which.meaning, TriangleMask) else None
    if isinstance(which, Tensor) or not is_concrete(which) or jnp.ndim(which) != 2:
        return None
    values = np.asarray(which)
    for kept, of in (("lower", np.tril), ("upper", np.triu)):
        if np.array_equal(values, of(np.ones(values.shape, bool))):
            return kept
    return None


def summed_mask(run: Run, eqn: Any, value: Deferred, axes: tuple[int, ...]) -> Any:
    """The diagonal of what an identity masks, or its trace."""
    of, rank = value.meaning.of, len(value.shape)
    if not {*axes} <= {rank - 2, rank - 1}:
        return None
    if isinstance(of, Root):
        return [Deferred(Equation(eqn, [value]), RootDiagonal(of))] if len(axes) == 1 else None
    diagonal = _diagonal_of_inverse(run, of)
    return [
        jnp.broadcast_to(
            diagonal if len(axes) == 1 else diagonal.sum(-1), eqn.outvars[0].aval.shape
        )
    ]


def _diagonal_of_inverse(run: Run, of: Inverse) -> Any:
    general = isinstance(of.op, GeneralSum)
    found = asked(general_inverse_diagonal if general else inverse_diagonal, of.op)
    run.log.note(run.here, describe(of.matrix), "kx.inverse_diagonal", 0.0, 0.0)
    return of.times(found.reshape(*of.op.batch_shape, -1))


def _gather(run: Run, eqn: Any, value: Any, indices: Any) -> Any:
    """The diagonal, where the indices are known and are those of one."""
    numbers = eqn.params["dimension_numbers"]
    if not isinstance(value, Deferred | Tensor) or isinstance(indices, Tensor | Deferred):
        return None
    rank, n = len(value.shape), value.shape[-1]
    both = (rank - 2, rank - 1)
    if (
        not is_concrete(indices)
        or value.shape[-2:] != (n, n)
        or tuple(numbers.collapsed_slice_dims) != both
        or tuple(numbers.start_index_map) != both
        or tuple(numbers.offset_dims) != tuple(range(rank - 2))
        or not np.array_equal(np.asarray(indices), np.stack([np.arange(n)] * 2, -1))
    ):
        return None
    if isinstance(value, Tensor):
        batch: list[Any] = [("batch", k) for k in range(rank - 2)]
        pair: Any = [(value, [*batch, "i", "j"]), (identity(n, value.dtype), ["i", "j"])]
        return [settled(contract(pair, [*batch, "i"]))]
    if isinstance(value.meaning, Root):
        return [Deferred(Equation(eqn, [value, indices]), RootDiagonal(value.meaning))]
    if isinstance(value.meaning, Inverse):
        return [
            jnp.broadcast_to(_diagonal_of_inverse(run, value.meaning), eqn.outvars[0].aval.shape)
        ]
    return None


MASK_RULES: dict[str, Any] = {
    "iota": _iota,
    "eq": _compare,
    "ge": _compare,
    "le": _compare,
    "select_n": _select_n,
    "gather": _gather,
}
