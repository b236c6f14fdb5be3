"""Rules of factorisations and of what solves with them."""

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.operators.kronecker import Kronecker
from kronax.rewriting.interpreter import Deferred, Equation, Run, settled
from kronax.rewriting.masks import is_identity, multiple_of_identity
from kronax.rewriting.roots import ROOT_RULES, asked, note_solve, rooted, sandwich
from kronax.rewriting.values.algebra import contract
from kronax.rewriting.values.covariances import covariance_of
from kronax.rewriting.values.general_sums import eigenvalues
from kronax.rewriting.values.matrices import (
    Covariance,
    Operator,
    along,
    are_triangular,
    operator_of,
    per_factor,
    solved_along,
    triangular_of,
)
from kronax.rewriting.values.meanings import Inverse, Lu, Root
from kronax.rewriting.values.tensors import Tensor, Unstructured, other_triangle
from kronax.rewriting.values.triangles import triangle_solve


def _cholesky(run: Run, eqn: Any, matrix: Any) -> Any:
    """Of a product the product of the factors' own; of a sum what is done with it decides."""
    if not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    op, matrix = _read(matrix)
    if not isinstance(op, Kronecker):
        return [Deferred(Equation(eqn, [matrix]), Root(op, matrix, "lower"))]
    found = per_factor(matrix, op, _lower)
    note_solve(run, matrix, op, "a Cholesky factor per axis")
    return [Tensor(found.groups, found.terms, found.dtype, "lower")]


def _read(matrix: Tensor, triangle: str = "lower") -> tuple[Covariance, Tensor]:
    """A matrix as the covariance that a factorisation takes it for, of which a triangle is read."""
    if matrix.symmetric_of is None:
        return asked(covariance_of, matrix, triangle)
    return asked(covariance_of, matrix.symmetric_of)


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
    axes = (*range(rank - 2), rank - 2 if params["left_side"] else rank - 1)
    if isinstance(matrix, Deferred):
        root = matrix.meaning
        if not isinstance(root, Root) or root.triangle != triangle:
            return None
        if is_identity(b):
            inverse = root.transpose().inverse() if params["transpose_a"] else root.inverse()
            return [Deferred(Equation(eqn, [matrix, b]), inverse)]
        way = (root.transpose() if transposed else root).inverse()
        other = b.meaning if isinstance(b, Deferred) else None
        if isinstance(other, Root):
            on_left = params["left_side"]
            pair = (way, other.transpose()) if on_left else (other, way)
            return sandwich(eqn, [matrix, b], *pair)
        result = rooted(run, eqn, [matrix, b], way, b, axes)
        return None if result is None else [result]
    if not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    op = asked(operator_of, matrix)
    if not isinstance(op, Kronecker):
        raise Unstructured("a triangular matrix that is no product")
    note_solve(run, matrix, op, "a triangular solve per axis")
    if (isinstance(b, Tensor) and b.has_structure) or are_triangular(op, matrix, triangle):
        op = asked(triangular_of, op, matrix, triangle)
        result = _solved(run, matrix, op, b, axes, transposed)
    else:
        lower = params["lower"] != transposed
        solved = partial(triangle_solve, op.T if transposed else op, lower)
        return [asked(along, solved, op, run.plain(b), axes)]
    if not isinstance(result, Tensor) or not is_identity(b):
        return [result]
    kept = other_triangle(triangle) if params["transpose_a"] else triangle
    return [replace(result, triangle=kept)]


def _solved(
    run: Run,
    matrix: Tensor,
    op: Operator,
    b: Any,
    axes: Any,
    transposed: bool,
) -> Any:
    """`op⁻¹ b` along the last of `axes`, of vectors or of another product."""
    if isinstance(b, Tensor) and (b.is_product or is_identity(b)) and isinstance(op, Kronecker):
        inverse = per_factor(matrix, op, jnp.linalg.inv)
        labels: list[Any] = list(range(len(b.groups)))
        out = ["new" if k == axes[-1] else k for k in labels]
        pair = (axes[-1], "new") if transposed else ("new", axes[-1])
        lead = [axes[:-1][k] for k in range(len(matrix.groups) - 2)]
        return settled(contract([(inverse, (*lead, *pair)), (b, labels)], out))
    return asked(solved_along, op, run.plain(b), axes, transposed)


def _custom_linear_solve(run: Run, eqn: Any, *values: Any) -> Any:
    """A solve with a matrix of which the LU or Cholesky factors are given."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    if lengths.matvec != 1 or len(values) != sum(lengths) + 1:
        return None
    matrix, b = values[0], values[-1]
    start = lengths.matvec + lengths.vecmat
    held = values[start : start + lengths.solve]
    if not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    found = _orientation(jaxprs.matvec.jaxpr)
    if found is None:
        return None
    transposed, axes = found
    read = next(filter(None, map(_triangle_of, held)), None)
    if read is None and not any(isinstance(getattr(v, "meaning", None), Lu) for v in held):
        return None
    op: Any
    op = asked(covariance_of, matrix, read)[0] if read else asked(operator_of, matrix)
    rank = len(matrix.groups)
    multiple, scale = multiple_of_identity(b)
    if multiple and sorted(axes[:-1]) == list(range(rank - 2)) == list(axes[:-1]):
        turned = transposed != (axes[-1] == rank - 1)
        if isinstance(op, Kronecker):
            return [_inverse(run, matrix, op, turned, scale)]
        meaning = Inverse(op.T if turned else op, matrix, scale)
        return [Deferred(Equation(eqn, list(values)), meaning)]
    columns = prod(b.shape) // prod(b.shape[a] for a in axes)
    note_solve(run, matrix, op, "kx.solve", columns)
    return [_solved(run, matrix, op, b, axes, transposed)]


def _triangle_of(factor: Any) -> str | None:
    """Which triangle of a matrix its Cholesky factor was made of; None for anything else."""
    if isinstance(factor, Deferred):
        return factor.meaning.triangle if isinstance(factor.meaning, Root) else None
    return getattr(factor, "triangle", None)


def _inverse(run: Run, matrix: Tensor, op: Kronecker, turned: bool, scale: Any) -> Tensor:
    """The inverse or its transpose, as a product."""
    note_solve(run, matrix, op, "an inverse per factor", matrix.shape[-1])
    found = per_factor(matrix, op, jnp.linalg.inv)
    found = found if scale is None else found.scaled(scale)
    rank = len(found.groups)
    return found.transpose((*range(rank - 2), rank - 1, rank - 2)) if turned else found


def _orientation(matvec: Any) -> tuple[bool, tuple[int, ...]] | None:
    """Whether a program of a matrix and vectors is `Mᵀ x` or `M x`, and along which axes of `x`.

    The axes of the batch come first; None where it is neither.
    """
    rank = len(matvec.invars[0].aval.shape)
    if len(matvec.invars) != 2 or rank < 2:
        return None
    matrix, vectors = matvec.invars
    names: dict[Any, list[Any]] = {vectors: list(range(len(vectors.aval.shape)))}
    names[matrix] = [*(("batch", k) for k in range(rank - 2)), "rows", "columns"]
    same: dict[Any, Any] = {}
    summed: list[Any] = []
    for eqn in matvec.eqns:
        name, (out,) = eqn.primitive.name, eqn.outvars
        if name == "dot_general" and not summed:
            first, second = (names.get(v) for v in eqn.invars)
            (left, right), batch = eqn.params["dimension_numbers"]
            if first is None or second is None or len(left) != 1:
                return None
            for i, j in zip(*batch, strict=True):
                pair = sorted((first[i], second[j]), key=lambda n: isinstance(n, int))
                same[pair[0]] = pair[1]
            summed = [first[left[0]], second[right[0]]]
            lead = [same.get(first[i], first[i]) for i in batch[0]]
            rest = [n for n in (*first, *second) if same.get(n, n) not in (*lead, *summed)]
            names[out] = [*lead, *rest]
        elif name == "transpose" and eqn.invars[0] in names:
            names[out] = [names[eqn.invars[0]][k] for k in eqn.params["permutation"]]
        elif name == "reduce_sum" and not eqn.params["axes"] and eqn.invars[0] in names:
            names[out] = names[eqn.invars[0]]
        else:
            return None
    axis = next((label for label in summed if isinstance(label, int)), None)
    over = next((label for label in summed if isinstance(label, str)), None)
    lead = [same.get(("batch", k)) for k in range(rank - 2)]
    if axis is None or over is None or not all(isinstance(label, int) for label in lead):
        return None
    other = "rows" if over == "columns" else "columns"
    expected = [other if k == axis else k for k in names[vectors]]
    if names.get(matvec.outvars[0]) != expected:
        return None
    return over == "rows", (*lead, axis)


def _eigh(run: Run, eqn: Any, matrix: Any) -> Any:
    """The eigenvalues of a product or of a sum that shares its eigenvectors, sorted."""
    if not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    if run.used[0] or not eqn.params.get("sort_eigenvalues", True):
        return None
    if eqn.params.get("subset_by_index") is not None:
        return None
    op, matrix = _read(matrix, "lower" if eqn.params["lower"] else "upper")
    signal = op if isinstance(op, Kronecker) else op.kronecker
    noise = None if isinstance(op, Kronecker) else op.noise
    if isinstance(noise, Kronecker):
        raise Unstructured("eigenvalues of a sum of two products")
    own = [jnp.linalg.eigvalsh(factor.to_dense()) for factor in signal.factors]
    values = eigenvalues(signal, own)
    note_solve(run, matrix, op, "eigenvalues per factor")
    ordered = jnp.sort(values, axis=-1)
    if noise is not None:
        ordered = jnp.add(*same_rank(ordered, noise[..., None]))
    shape = eqn.outvars[1].aval.shape
    return [Deferred(Equation(eqn, [matrix]), None), jnp.broadcast_to(ordered, shape)]


SOLVE_RULES: dict[str, Any] = {
    **ROOT_RULES,
    "cholesky": _cholesky,
    "lu": _lu,
    "triangular_solve": _triangular_solve,
    "custom_linear_solve": _custom_linear_solve,
    "eigh": _eigh,
}
