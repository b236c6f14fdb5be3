"""Rules of factorisations and of what solves with them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.operators.kronecker import Kronecker
from kronax.rewrite.interpreter import Deferred, Equation, Run, settled
from kronax.rewrite.matrices import (
    Operator,
    operator_of,
    per_factor,
    solved_along,
    triangular_of,
)
from kronax.rewrite.meanings import Inverse, Lu, Root, Whitened
from kronax.rewrite.roots import ROOT_RULES, asked, note_solve
from kronax.rewrite.rules import _is_identity
from kronax.rewrite.tensors import Tensor, Unstructured, contract


def _cholesky(run: Run, eqn: Any, matrix: Any) -> Any:
    """Of a product the product of the factors' own; of a sum what is done with it decides."""
    if not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    matrix = matrix.symmetric_of or matrix
    op = asked(operator_of, matrix, definite=True)
    if not isinstance(op, Kronecker):
        return [Deferred(Equation(eqn, [matrix]), Root(op, matrix))]
    found = per_factor(matrix, op, _lower)
    note_solve(run, matrix, op, "a Cholesky factor per axis")
    return [Tensor(found.groups, found.terms, found.dtype, "lower")]


def _lower(matrix: Array) -> Array:
    return jnp.linalg.cholesky(matrix)


def _lu(run: Run, eqn: Any, matrix: Any) -> Any:
    if not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    equation = Equation(eqn, [matrix])
    return [Deferred(equation, Lu(matrix), k) for k in range(len(eqn.outvars))]


def _triangular_solve(run: Run, eqn: Any, matrix: Any, b: Any) -> Any:
    params = eqn.params
    if params["unit_diagonal"] or params["conjugate_a"]:
        return None
    transposed = params["transpose_a"] == params["left_side"]
    triangle = "lower" if params["lower"] else "upper"
    rank = len(eqn.outvars[0].aval.shape)
    axis = rank - 2 if params["left_side"] else rank - 1
    if isinstance(matrix, Deferred):
        root = matrix.meaning
        if not isinstance(root, Root) or root.triangle != triangle:
            return None
        return _root_solve(run, eqn, [matrix, b], axis, transposed != root.transposed)
    if not isinstance(matrix, Tensor) or not matrix.is_product or matrix.triangle != triangle:
        return None
    op = asked(triangular_of, matrix)
    if rank > 2:
        raise Unstructured("a batch of triangular solves")
    note_solve(run, matrix, op, "a triangular solve per axis")
    return [_solved(run, matrix, op, b, axis, transposed)]


def _root_solve(run: Run, eqn: Any, values: list[Any], axis: int, transposed: bool) -> Any:
    """`L⁻¹ b`, or `L⁻ᵀ` of that, which is a solve with the matrix."""
    matrix, b = values
    root = matrix.meaning
    if len(eqn.outvars[0].aval.shape) > 2:
        return None
    if not transposed:
        # The transpose of a root keeps the meaning of the whole: only `b` is whitened.
        original = root.transpose() if root.transposed else root
        return [Deferred(Equation(eqn, values), Whitened(original, run.plain(b), axis))]
    inner = b.meaning if isinstance(b, Deferred) else None
    if not isinstance(inner, Whitened) or inner.root.op is not root.op:
        return None
    if inner.squared or inner.axis != axis:
        return None
    note_solve(run, root.matrix, root.op, "kx.solve")
    return [asked(solved_along, root.op, inner.vectors, axis)]


def _solved(run: Run, matrix: Tensor, op: Operator, b: Any, axis: int, transposed: bool) -> Any:
    """`op⁻¹ b` along an axis, of vectors or of another product."""
    if isinstance(b, Tensor) and (b.is_product or _is_identity(b)) and isinstance(op, Kronecker):
        inverse = per_factor(matrix, op, jnp.linalg.inv)
        labels: list[Any] = list(range(len(b.groups)))
        out = ["new" if k == axis else k for k in labels]
        pair = (axis, "new") if transposed else ("new", axis)
        return settled(contract([(inverse, pair), (b, labels)], out))
    return asked(solved_along, op, run.plain(b), axis, transposed)


def _custom_linear_solve(run: Run, eqn: Any, *values: Any) -> Any:
    """A solve with a matrix of which the LU or Cholesky factors are given."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    if lengths.matvec != 1 or len(values) != sum(lengths) + 1:
        return None
    matrix, b = values[0], values[-1]
    start = lengths.matvec + lengths.vecmat
    held = values[start : start + lengths.solve]
    if not isinstance(matrix, Tensor) or not matrix.is_product or len(matrix.groups) != 2:
        return None
    found = _orientation(jaxprs.matvec.jaxpr)
    if found is None:
        return None
    transposed, axis = found
    definite = any(
        (isinstance(v, Tensor) and v.triangle is not None)
        or (isinstance(v, Deferred) and isinstance(v.meaning, Root))
        for v in held
    )
    if not definite and not any(isinstance(getattr(v, "meaning", None), Lu) for v in held):
        return None
    op = asked(operator_of, matrix, definite=definite)
    if _is_identity(b):
        return [_inverse(run, eqn, list(values), matrix, op, transposed != (axis == 1))]
    columns = b.shape[0] if len(b.shape) > 1 else 1
    note_solve(run, matrix, op, "kx.solve", columns)
    return [_solved(run, matrix, op, b, axis, transposed)]


def _inverse(
    run: Run, eqn: Any, values: list[Any], matrix: Tensor, op: Operator, turned: bool
) -> Any:
    """The inverse or its transpose as a product, or as what it means."""
    if isinstance(op, Kronecker):
        note_solve(run, matrix, op, "an inverse per factor", matrix.shape[-1])
        found = per_factor(matrix, op, jnp.linalg.inv)
        return found.transpose((1, 0)) if turned else found
    return Deferred(Equation(eqn, values), Inverse(op, matrix))


def _orientation(matvec: Any) -> tuple[bool, int] | None:
    """Whether a program of a matrix and vectors is `Mᵀ x` or `M x`, and along which axis of `x`.

    None where it is neither.
    """
    if len(matvec.invars) != 2 or len(matvec.invars[0].aval.shape) != 2:
        return None
    matrix, vectors = matvec.invars
    names: dict[Any, list[Any]] = {matrix: ["rows", "columns"]}
    names[vectors] = list(range(len(vectors.aval.shape)))
    summed: list[Any] = []
    for eqn in matvec.eqns:
        name, (out,) = eqn.primitive.name, eqn.outvars
        if name == "dot_general" and not summed:
            first, second = (names.get(v) for v in eqn.invars)
            (left, right), (batch, _) = eqn.params["dimension_numbers"]
            if first is None or second is None or len(left) != 1 or batch:
                return None
            summed = [first[left[0]], second[right[0]]]
            names[out] = [n for n in (*first, *second) if n not in summed]
        elif name == "transpose" and eqn.invars[0] in names:
            names[out] = [names[eqn.invars[0]][k] for k in eqn.params["permutation"]]
        elif name == "reduce_sum" and not eqn.params["axes"] and eqn.invars[0] in names:
            names[out] = names[eqn.invars[0]]
        else:
            return None
    axis = next((label for label in summed if isinstance(label, int)), None)
    over = next((label for label in summed if isinstance(label, str)), None)
    if axis is None or over is None:
        return None
    other = "rows" if over == "columns" else "columns"
    expected = [other if k == axis else k for k in names[vectors]]
    return (over == "rows", axis) if names.get(matvec.outvars[0]) == expected else None


def _eigh(run: Run, eqn: Any, matrix: Any) -> Any:
    """The eigenvalues of a product, plus a multiple of the identity; vectors stay as they are."""
    if not isinstance(matrix, Tensor) or not matrix.is_product or len(matrix.groups) != 2:
        return None
    if run.used[0] or not eqn.params.get("sort_eigenvalues", True):
        return None
    if eqn.params.get("subset_by_index") is not None:
        return None
    matrix = matrix.symmetric_of or matrix
    op = asked(operator_of, matrix)
    signal = op if isinstance(op, Kronecker) else op.kronecker
    noise = 0.0 if isinstance(op, Kronecker) else op.noise
    if isinstance(noise, Kronecker) or not isinstance(signal, Kronecker):
        raise Unstructured("eigenvalues of a sum of two products")
    values = jnp.ones((1,), op.dtype)
    for factor in asked(operator_of, matrix, definite=True).factors:
        own = jnp.linalg.eigvalsh(factor.to_dense())
        values = (values[:, None] * own[None, :]).reshape(-1)
    note_solve(run, matrix, op, "eigenvalues per factor")
    vectors = Deferred(Equation(eqn, [matrix]), None)
    return [vectors, jnp.sort(values) + noise]


SOLVE_RULES: dict[str, Any] = {
    **ROOT_RULES,
    "cholesky": _cholesky,
    "lu": _lu,
    "triangular_solve": _triangular_solve,
    "custom_linear_solve": _custom_linear_solve,
    "eigh": _eigh,
}
