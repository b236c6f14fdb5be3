"""The way into lineax; this module alone may be imported without it."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from kronax.linalg.arrays import checks
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.operators.kronecker import KroneckerSum


def as_lineax(op: AbstractOperator, in_structure: Any = None, out_structure: Any = None) -> Any:
    """The operator as a `lineax.AbstractLinearOperator`.

    `lx.linear_solve(kx.as_lineax(op), b)` solves as `kx.solve` does, exactly and per factor;
    lineax's own choice of a solver asks such an operator first, also inside multiples of it, with
    tags, and with a multiple of the identity added. Of a product whose factors are rectangular or
    singular, `lx.AutoLinearSolver(well_posed=False)` takes the pseudo-inverse, per factor too.

    Args:
        op: any operator of kronax without a batch; map over batches with `jax.vmap`.
        in_structure: what vectors look like: a pytree of arrays or `jax.ShapeDtypeStruct`, whose
            leaves, laid end to end in the order of `jax.tree.leaves`, are the cells of the grid in
            C order. By default one flat array `(N,)`; `op.grid_shape` arrays are
            `jax.ShapeDtypeStruct(op.grid_shape, op.dtype)`.
        out_structure: the same for results; by default that of `in_structure` where the operator
            is square, else one flat array.

    Raises:
        ImportError: if lineax is not installed.
        TypeError: if `op` is no operator of kronax, or a structure does not hold real numbers, or
            such of higher precision than the operator.
        ValueError: if `op` has a batch, or a structure another number of cells.

    Examples:
        >>> import jax, jax.numpy as jnp, kronax as kx, lineax as lx
        >>> op = kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0
        >>> lx.linear_solve(kx.as_lineax(op), jnp.ones(6)).value.sum().item()
        3.0
        >>> grid = jax.ShapeDtypeStruct((3, 2), jnp.float32)
        >>> lx.linear_solve(kx.as_lineax(op, grid), jnp.ones((3, 2))).value.shape
        (3, 2)
    """
    try:
        import lineax as lx
    except ImportError as error:
        raise ImportError(
            'kx.as_lineax needs lineax, which is not installed: pip install "kronax[lineax]".'
        ) from error
    from kronax.lineax.automatic import ask_operators_first
    from kronax.lineax.operator import KroneckerLinearOperator

    ask_operators_first()
    _check_operator(op, isinstance(op, lx.AbstractLinearOperator))
    num_rows, num_columns = op.shape
    flat = {n: jax.ShapeDtypeStruct((n,), op.dtype) for n in (num_rows, num_columns)}
    if in_structure is None:
        in_structure = flat[num_columns]
        out_structure = flat[num_rows] if out_structure is None else out_structure
    if out_structure is None:
        out_structure = in_structure if num_rows == num_columns else flat[num_rows]
    return KroneckerLinearOperator(
        op,
        _checked(in_structure, op, num_columns, "in_structure"),
        _checked(out_structure, op, num_rows, "out_structure"),
        has_solver=not (isinstance(op, KroneckerSum) and _is_seen_not_to_be_symmetric(op)),
    )


def _check_operator(op: Any, is_theirs: bool) -> None:
    if not isinstance(op, AbstractOperator):
        what = ", which is one of lineax's already" if is_theirs else ""
        raise TypeError(
            f"kx.as_lineax takes an operator of kronax; got {type(op).__name__}{what}. Make one, "
            "for example kx.Kronecker(A, B)."
        )
    if op.batch_shape:
        raise ValueError(
            f"lineax's operators have no batch; got one of batch {op.batch_shape}. Map over what "
            "has one: jax.vmap(lambda A, b: lx.linear_solve(kx.as_lineax(kx.Kronecker(A, B)), "
            "b).value)."
        )


def _checked(structure: Any, op: AbstractOperator, size: int, name: str) -> Any:
    """A pytree of `ShapeDtypeStruct` of `size` real numbers."""
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), structure)
    leaves = jax.tree.leaves(structs)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} must hold real numbers; got a leaf of {leaf.dtype}.")
        checks.check_precision(leaf, f"A leaf of {name}", op.dtype)
    total = sum(prod(leaf.shape) for leaf in leaves)
    if total != size:
        raise ValueError(
            f"The leaves of {name} must hold {size} numbers together, the cells of the grid; got "
            f"{total} in {[leaf.shape for leaf in leaves]}."
        )
    return structs


def _is_seen_not_to_be_symmetric(op: KroneckerSum) -> bool:
    """Whether concrete factors cannot be covariances, as solves with a Kronecker sum take them."""
    try:
        op.check_covariance("a solve")
    except (TypeError, ValueError):
        return True
    return False
