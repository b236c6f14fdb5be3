"""Cholesky factors that are no products: what does not depend on their rotation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.functions.logdet import inv_quad, logdet
from kronax.rewrite.interpreter import Deferred, Equation, Run, bind, is_number
from kronax.rewrite.matrices import cost_of, describe, solved_along
from kronax.rewrite.meanings import Inverse, Root, RootDiagonal, Whitened
from kronax.rewrite.tensors import Tensor, Unstructured


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
    """Whitened vectors of which axes are moved."""
    if not isinstance(value, Deferred) or not isinstance(value.meaning, Whitened):
        return None
    meaning = value.meaning
    axis = place(meaning.axis)
    if eqn.outvars[0].aval.shape[axis] != value.shape[meaning.axis]:
        return None
    (vectors,) = bind(eqn, [meaning.vectors])
    moved = dataclasses.replace(meaning, vectors=vectors, axis=axis)
    return [Deferred(Equation(eqn, [value]), moved)]


def whitened_arithmetic(run: Run, eqn: Any, *values: Any) -> Any:
    """Multiples of whitened vectors, their sums, and their squares."""
    meanings = [v.meaning if isinstance(v, Deferred) else None for v in values]
    whitened = [m for m in meanings if isinstance(m, Whitened)]
    if not whitened or any(m.squared for m in whitened):
        return None
    name, first = eqn.primitive.name, whitened[0]
    if name == "mul" and len(whitened) == 2:
        if whitened[0] is not whitened[1]:
            return None
        return [_squares(eqn, values, first)]
    both = len(whitened) == 2 and name in ("add", "sub", "add_any")
    if both and (
        whitened[0].root.op is not whitened[1].root.op or whitened[0].axis != whitened[1].axis
    ):
        return None
    alone = len(values) == 1
    scaled = name in ("mul", "div") and len(whitened) == 1 and not alone
    if scaled:
        other = next(v for v, m in zip(values, meanings, strict=True) if m is None)
        scaled = is_number(other) and not (name == "div" and meanings[0] is None)
        scaled = scaled and jnp.ndim(other) in (0, first.vectors.ndim)
    if not (alone or both or scaled):
        return None
    args = [
        m.vectors if isinstance(m, Whitened) else v for v, m in zip(values, meanings, strict=True)
    ]
    (vectors,) = bind(eqn, args)
    if vectors.shape != first.vectors.shape:
        return None
    return [Deferred(Equation(eqn, values), dataclasses.replace(first, vectors=vectors))]


def _squares(eqn: Any, values: Any, whitened: Whitened) -> Deferred:
    return Deferred(Equation(eqn, values), dataclasses.replace(whitened, squared=True))


def squared(run: Run, eqn: Any, value: Any) -> Any:
    """`square`, and `integer_pow` of two."""
    if eqn.params.get("y", 2) != 2 or not isinstance(value, Deferred):
        return None
    meaning = value.meaning
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
        if not meaning.log or axes != (0,):
            return None
        total = asked(logdet, meaning.root.op)
        note_solve(run, meaning.root.matrix, meaning.root.op, "kx.logdet / 2")
        return [total / 2]
    if not isinstance(meaning, Whitened):
        return None
    if not axes:
        return [value]
    if not meaning.squared or meaning.axis not in axes:
        return None
    forms = quadratic_forms(run, meaning)
    others = tuple(a - (a > meaning.axis) for a in axes if a != meaning.axis)
    return [jnp.sum(forms, axis=others) if others else forms]


def quadratic_forms(run: Run, whitened: Whitened) -> Array:
    """`bᵀ S⁻¹ b` along the axis."""
    op, matrix = whitened.root.op, whitened.root.matrix
    vectors = jnp.moveaxis(whitened.vectors, whitened.axis, -1)
    grid = vectors.reshape(*vectors.shape[:-1], *op.grid_shape)
    note_solve(run, matrix, op, "kx.inv_quad")
    return asked(inv_quad, op, grid)


def whitened_product(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    """`(L⁻¹ b)ᵀ (L⁻¹ c)`, which is `bᵀ S⁻¹ c`."""
    one, two = (getattr(v, "meaning", None) for v in (first, second))
    if not (isinstance(one, Whitened) and isinstance(two, Whitened)):
        return None
    (left, right), _ = eqn.params["dimension_numbers"]
    if one.root.op is not two.root.op or (one.axis,) != tuple(left) or (two.axis,) != tuple(right):
        return None
    if one.squared or two.squared:
        return None
    if one is two and one.vectors.ndim == 1:
        return [quadratic_forms(run, one)]
    note_solve(run, one.root.matrix, one.root.op, "kx.solve")
    solved = asked(solved_along, two.root.op, two.vectors, two.axis)
    return bind(eqn, [one.vectors, solved])


def inverse_times(run: Run, eqn: Any, first: Any, second: Any) -> Any:
    """An inverse times vectors, on either side."""
    one, two = (getattr(v, "meaning", None) for v in (first, second))
    (left, right), (batch, _) = eqn.params["dimension_numbers"]
    if batch or len(left) != 1 or (isinstance(one, Inverse) and isinstance(two, Inverse)):
        return None
    on_left = isinstance(one, Inverse)
    meaning, vectors, axis = (one, second, right[0]) if on_left else (two, first, left[0])
    assert isinstance(meaning, Inverse)
    vectors = run.plain(vectors)
    note_solve(run, meaning.matrix, meaning.op, "kx.solve")
    solved = asked(solved_along, meaning.op, vectors, axis)
    return [jnp.moveaxis(solved, axis, 0 if on_left else -1)]


def root_times_root(eqn: Any, first: Root, second: Root) -> Any:
    """`L Lᵀ`, which is the matrix again."""
    (left, right), (batch, _) = eqn.params["dimension_numbers"]
    if batch or first.op is not second.op or len(left) != 1:
        return None
    columns = (left[0] == 1) != first.transposed, (right[0] == 1) != second.transposed
    return [first.matrix] if all(columns) else None


ROOT_RULES: dict[str, Any] = {"square": squared, "integer_pow": squared, "log": log_of}
