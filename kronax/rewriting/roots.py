"""Cholesky factors that are no products: what does not depend on their rotation."""

import dataclasses
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.functions.diagonals import inverse_diagonal
from kronax.linalg.functions.logdet import inv_quad, logdet
from kronax.rewriting.interpreter import Deferred, Equation, Run, bind, is_number
from kronax.rewriting.values.algebra import multiply
from kronax.rewriting.values.matrices import along, cost_of, describe, solved_along
from kronax.rewriting.values.meanings import (
    Density,
    Inverse,
    Root,
    RootDiagonal,
    RootSquares,
    Whitened,
    another_root_times,
)
from kronax.rewriting.values.tensors import Tensor, Unstructured


def asked(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A function of kronax; what it refuses has no structured form.

    Raises:
        Unstructured: with the refusal.
    """
    try:
        return function(*args, **options)
    except (ValueError, TypeError) as error:
        raise Unstructured(str(error).split(". ")[0]) from error


def note_solve(run: Run, matrix: Tensor, op: Any, became: str, columns: int = 1) -> None:
    """A line of the table for what takes a decomposition."""
    size = matrix.shape[-1]
    cost = size**3 / 3 + 2.0 * size**2 * columns
    run.log.note(run.here, describe(matrix), became, cost, cost_of(op) * max(1, columns) ** 0.5)


def whitened_moved(eqn: Any, value: Any, place: Callable[[int], int]) -> Any:
    """Whitened vectors of which axes are moved; those of a batch of one may grow."""
    if not isinstance(value, Deferred) or not isinstance(value.meaning, Whitened):
        return None
    meaning = value.meaning
    axes = tuple(place(axis) for axis in meaning.axes)
    shape = eqn.outvars[0].aval.shape
    sizes = zip(axes, meaning.axes, strict=True)
    grown = [axis for axis, old in sizes if shape[axis] != value.shape[old]]
    if any(axis == axes[-1] or value.shape[meaning.axes[axes.index(axis)]] != 1 for axis in grown):
        return None
    (vectors,) = bind(eqn, [meaning.vectors])
    moved = dataclasses.replace(meaning, vectors=vectors, axes=axes)
    return [Deferred(Equation(eqn, [value]), moved)]


def whitened_arithmetic(run: Run, eqn: Any, *values: Any) -> Any:
    """Multiples of whitened vectors, their sums, and their squares."""
    meanings = [v.meaning if isinstance(v, Deferred) else None for v in values]
    if any(isinstance(m, Density) for m in meanings):
        return density_arithmetic(eqn, values, meanings)
    whitened = [m for m in meanings if isinstance(m, Whitened)]
    if not whitened or any(m.squared for m in whitened):
        return None
    name, first = eqn.primitive.name, whitened[0]
    if name == "mul" and len(whitened) == 2:
        if whitened[0] is not whitened[1]:
            return None
        return [_squares(eqn, values, first)]
    both = len(whitened) == 2 and name in ("add", "sub", "add_any") and alike(*whitened)
    alone = len(values) == 1
    args: list[Any] = [m.vectors if isinstance(m, Whitened) else None for m in meanings]
    if name in ("mul", "div") and len(whitened) == 1 and not alone:
        k = next(k for k, m in enumerate(meanings) if m is None)
        args[k] = None if (name, k) == ("div", 0) else _constant_along(values[k], first)
    if not (alone or both) and any(arg is None for arg in args):
        return None
    (vectors,) = bind(eqn, args)
    if vectors.shape != first.vectors.shape:
        return None
    return [Deferred(Equation(eqn, values), dataclasses.replace(first, vectors=vectors))]


def deferred_density(eqn: Any, values: Sequence[Any], density: Density) -> Deferred:
    """A term of a log density, which is computed together with the others."""
    return Deferred(Equation(eqn, values), density)


def density_arithmetic(eqn: Any, values: Sequence[Any], meanings: list[Any]) -> Any:
    """Multiples of terms of a log density, and their sums with each other and with numbers."""
    name = eqn.primitive.name
    if eqn.outvars[0].aval.shape != ():
        return None
    plain = [v for v in values if not isinstance(v, Deferred | Tensor)]
    found = [m for m in meanings if isinstance(m, Density)]
    if name == "neg":
        result: Density | None = found[0].times(-1.0)
    elif name in ("mul", "div"):
        if (
            len(plain) != 1
            or not is_concrete(plain)
            or not (name == "mul" or values[1] is plain[0])
        ):
            return None
        number = float(np.asarray(plain[0]).item())
        result = found[0].times(1 / number if name == "div" else number)
    else:
        sign = -1.0 if name == "sub" else 1.0
        first, second = (m or v for m, v in zip(meanings, values, strict=True))
        if len(plain) + len(found) != 2:
            return None
        if isinstance(second, Density):
            second = second.times(sign)
            result = second.plus(first)
        else:
            result = first.plus(sign * second)
    return None if result is None else [deferred_density(eqn, values, result)]


def alike(first: Whitened, second: Whitened) -> bool:
    """Whether both are vectors along the same axis, whitened by the same root."""
    same = first.root.op is second.root.op and first.root.inverted == second.root.inverted
    return same and first.axes == second.axes


def _constant_along(value: Any, whitened: Whitened) -> Any:
    """An array that is the same all along whitened vectors; None if it is another."""
    if isinstance(value, Tensor):
        own = set(value.axes_of(whitened.axes[-1])) if value.groups else set()
        varies = any(own & set(part.axes) for term in value.terms for part in term)
        return None if varies or value.is_product else value.dense
    return value if is_number(value) and np.ndim(value) in (0, whitened.vectors.ndim) else None


def _squares(eqn: Any, values: Any, whitened: Whitened) -> Deferred:
    return Deferred(Equation(eqn, values), dataclasses.replace(whitened, squared=True))


def squared(run: Run, eqn: Any, value: Any) -> Any:
    """`square`, and `integer_pow` of two."""
    if eqn.params.get("y", 2) != 2:
        return None
    if isinstance(value, Tensor):
        return [multiply(value, value, value.dtype)] if value.is_product else None
    meaning = value.meaning
    if isinstance(meaning, Root):
        return [Deferred(Equation(eqn, [value]), RootSquares(meaning))]
    if not isinstance(meaning, Whitened) or meaning.squared:
        return None
    return [_squares(eqn, [value], meaning)]


def log_of(run: Run, eqn: Any, value: Any) -> Any:
    """The logarithm of the diagonal of a root."""
    if not isinstance(value, Deferred) or not isinstance(value.meaning, RootDiagonal):
        return None
    meaning = value.meaning
    if meaning.log:
        return None
    return [Deferred(Equation(eqn, [value]), dataclasses.replace(meaning, log=True))]


def summed(run: Run, eqn: Any, value: Deferred, axes: tuple[int, ...]) -> Any:
    """Sums of squares of whitened vectors, and of logarithms of a root's diagonal."""
    meaning = value.meaning
    if isinstance(meaning, RootDiagonal):
        if not meaning.log or axes != (len(value.shape) - 1,):
            return None
        root = meaning.root
        note_solve(run, root.matrix, root.op, "kx.logdet / 2")
        half = -0.5 if root.inverted else 0.5
        shape = eqn.outvars[0].aval.shape
        if shape == () and not is_concrete(root.op):
            return [deferred_density(eqn, [value], Density(root.op, half, 0.0))]
        return [jnp.broadcast_to(half * asked(logdet, root.op), shape)]
    if isinstance(meaning, RootSquares):
        return _summed_squares(run, eqn, value, meaning.root, axes)
    if not isinstance(meaning, Whitened):
        return None
    if not axes:
        return [value]
    along = meaning.axes[-1]
    if not meaning.squared or along not in axes:
        return None
    if eqn.outvars[0].aval.shape == () and meaning.vectors.size == prod(meaning.root.op.grid_shape):
        return [quadratic_form(run, eqn, [value], meaning)]
    forms = quadratic_forms(run, meaning)
    others = tuple(a - (a > along) for a in axes if a != along)
    return [jnp.sum(forms, axis=others) if others else forms]


def _summed_squares(run: Run, eqn: Any, value: Deferred, root: Root, axes: Any) -> Any:
    """The diagonal of `G Gᵀ`."""
    if axes != (len(value.shape) - (2 if root.whitens else 1),):
        return None
    diagonal = asked(inverse_diagonal, root.op) if root.inverted else root.op.diagonal()
    run.log.note(run.here, describe(root.matrix), "its diagonal", 0.0, 0.0)
    flat = diagonal.reshape(*root.op.batch_shape, -1)
    return [jnp.broadcast_to(flat, eqn.outvars[0].aval.shape)]


def quadratic_form(run: Run, eqn: Any, values: Sequence[Any], whitened: Whitened) -> Any:
    """Of one vector; where it is traced, to be computed with the rest of a density."""
    root = whitened.root
    if not root.inverted or is_concrete(root.op):
        return quadratic_forms(run, whitened).reshape(())
    note_solve(run, root.matrix, root.op, "kx.inv_quad")
    y = whitened.vectors.reshape(root.op.grid_shape)
    return deferred_density(eqn, values, Density(root.op, 0.0, 1.0, y))


def quadratic_forms(run: Run, whitened: Whitened) -> Array:
    """`bᵀ S⁻¹ b`, or `bᵀ S b`, along the axis."""
    root, axes, b = whitened.root, whitened.axes, whitened.vectors
    if not root.inverted:
        return jnp.sum(b * multiplied(run, root, b, axes), axis=axes[-1])
    note_solve(run, root.matrix, root.op, "kx.inv_quad")
    # With the axes of the batch last, as the operator has them.
    vectors = jnp.moveaxis(b, axes, range(-len(axes), 0))
    grid = vectors.reshape(*vectors.shape[:-1], *root.op.grid_shape)
    forms = asked(inv_quad, root.op, grid)
    places = [axis - (axis > axes[-1]) for axis in axes[:-1]]
    return jnp.moveaxis(forms, range(-len(places), 0), places) if places else forms


def multiplied(run: Run, root: Root, b: Array, axes: tuple[int, ...]) -> Array:
    """`S b`."""
    run.log.note(run.here, describe(root.matrix), "axis by axis", 0.0, 0.0)
    return along(root.op.mv, root.op, b, axes)


def rooted(run: Run, eqn: Any, values: list[Any], root: Root, b: Any, axes: Any) -> Any:
    """A root times vectors: whitened ones, or such coloured again."""
    if root.whitens:
        return Deferred(Equation(eqn, values), Whitened(root, run.plain(b), axes))
    inner = b.meaning if isinstance(b, Deferred) else None
    if not isinstance(inner, Whitened):
        return None if run.same_draws else coloured(run, root, run.plain(b), axes)
    if inner.root.op is not root.op or inner.squared or inner.axes != axes:
        return None
    if root.inverted != inner.root.inverted:
        return inner.vectors
    if not root.inverted:
        return multiplied(run, root, inner.vectors, axes)
    note_solve(run, root.matrix, root.op, "kx.solve")
    return asked(solved_along, root.op, inner.vectors, axes)


def coloured(run: Run, root: Root, b: Array, axes: tuple[int, ...]) -> Array:
    """Vectors times another root of the same matrix."""
    note_solve(run, root.matrix, root.op, "another root of it")
    return asked(another_root_times, root, b, axes)


class Times(NamedTuple):
    """A product of a matrix and vectors, in whatever axes.

    Args:
        matrix: which of the two operands it is.
        transposed: whether its rows are summed over.
        axes: of the vectors, those of the batch of the matrix, and last the one that is summed.
        order: of the axes of the vectors in the result.
    """

    matrix: int
    transposed: bool
    axes: tuple[int, ...]
    order: tuple[int, ...]


def times(eqn: Any, matrix: int, shapes: Sequence[tuple[int, ...]]) -> Times | None:
    """How `dot_general` multiplies vectors by an operand with a matrix in its last two axes."""
    summed_over, batch = eqn.params["dimension_numbers"]
    rank, other = len(shapes[matrix]), 1 - matrix
    lead = list(range(rank - 2))
    if len(summed_over[0]) != 1 or sorted(batch[matrix]) != lead:
        return None
    (summed_axis,), (axis,) = summed_over[matrix], summed_over[other]
    axes = (*(batch[other][list(batch[matrix]).index(k)] for k in lead), axis)
    free = [k for k in range(len(shapes[other])) if k not in axes]
    order = (*batch[other], *((axis, *free) if matrix == 0 else (*free, axis)))
    return Times(matrix, summed_axis == rank - 2, axes, order)


def whitened_product(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    """`(G⁻¹ b)ᵀ (G⁻¹ c)`, which is `bᵀ S⁻¹ c`, and the like."""
    one, two = (getattr(v, "meaning", None) for v in (first, second))
    if not (isinstance(one, Whitened) and isinstance(two, Whitened)):
        return None
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    if one.root.op is not two.root.op or one.squared or two.squared:
        return None
    if (one.axes[-1],) != tuple(left) or (two.axes[-1],) != tuple(right):
        return None
    pairs = set(zip(left_batch, right_batch, strict=True))
    if (
        one.root.op.batch_shape
        and not set(zip(one.axes, two.axes, strict=True)) - {(one.axes[-1], two.axes[-1])} <= pairs
    ):
        return None
    if one.root.inverted != two.root.inverted:
        return bind(eqn, [one.vectors, two.vectors])
    if one is two and one.vectors.ndim == 1:
        return [quadratic_form(run, eqn, [first, second], one)]
    if not two.root.inverted:
        return bind(eqn, [one.vectors, multiplied(run, two.root, two.vectors, two.axes)])
    note_solve(run, one.root.matrix, one.root.op, "kx.solve")
    solved = asked(solved_along, two.root.op, two.vectors, two.axes)
    return bind(eqn, [one.vectors, solved])


def deferred_times(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    """A root or an inverse times vectors, on either side, or times another."""
    values = [first, second]
    meanings = [v.meaning if isinstance(v, Deferred) else None for v in values]
    is_matrix = [isinstance(m, Root | Inverse) for m in meanings]
    if all(isinstance(m, Root) for m in meanings):
        return _root_times_root(eqn, values)
    if sum(is_matrix) != 1:
        return None
    k = is_matrix.index(True)
    found, meaning = times(eqn, k, [v.shape for v in values]), meanings[k]
    if found is None:
        return None
    if isinstance(meaning, Inverse):
        note_solve(run, meaning.matrix, meaning.op, "kx.solve")
        vectors = run.plain(values[1 - k])
        solution = asked(solved_along, meaning.op, vectors, found.axes, found.transposed)
        return [jnp.transpose(meaning.times(solution), found.order)]
    assert isinstance(meaning, Root)
    root = meaning.transpose() if found.transposed else meaning
    result = rooted(run, eqn, values, root, values[1 - k], found.axes)
    if not isinstance(result, Deferred):
        return None if result is None else [jnp.transpose(result, found.order)]
    moved = dataclasses.replace(
        result.meaning,
        vectors=jnp.transpose(result.meaning.vectors, found.order),
        axes=tuple(map(found.order.index, found.axes)),
    )
    return [Deferred(result.equation, moved)]


def _root_times_root(eqn: Any, values: list[Deferred]) -> Any:
    """`G Gᵀ`, which is the matrix again, and `G⁻ᵀ G⁻¹`, which is its inverse."""
    shapes = [v.shape for v in values]
    first, second = (times(eqn, k, shapes) for k in (0, 1))
    batch = eqn.params["dimension_numbers"][1]
    if first is None or second is None or batch[0] != batch[1]:
        return None
    if tuple(batch[0]) != tuple(range(len(shapes[0]) - 2)):
        return None
    # The one on the right multiplies by its transpose what is on its left.
    left, right = (
        v.meaning.transpose() if side.transposed else v.meaning
        for v, side in zip(values, (first, second), strict=True)
    )
    return sandwich(eqn, values, left, right)


def sandwich(eqn: Any, values: list[Any], left: Root, right: Root) -> Any:
    """`left rightᵀ`, where that does not depend on the rotation."""
    if left.op is not right.op or left.whitens or left.inverted != right.inverted:
        return None
    if left.transposed != right.transposed:
        return None
    if left.inverted:
        return [Deferred(Equation(eqn, values), Inverse(left.op, left.matrix))]
    return [dataclasses.replace(left.matrix)]


ROOT_RULES: dict[str, Any] = {"square": squared, "integer_pow": squared, "log": log_of}
