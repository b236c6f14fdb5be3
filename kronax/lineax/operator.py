"""A kronax operator as one of lineax, in all that lineax asks of its operators."""

from functools import partial
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array

from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.lineax_factor import PROPERTIES, cut, laid_end_to_end
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.lineax.properties import properties_of


class KroneckerLinearOperator(lx.AbstractLinearOperator):
    """`kx.as_lineax(op)`: vectors are pytrees whose leaves, laid end to end, are the grid's cells.

    Args:
        operator: the operator of kronax.
        in_structure: a pytree of `jax.ShapeDtypeStruct`.
        out_structure: the same of results.
        has_solver: false for a Kronecker sum that is seen to have none.
    """

    operator: AbstractOperator
    # Static, flattened: a pytree itself need not be hashable.
    structures: Any = eqx.field(static=True)
    has_solver: bool = eqx.field(static=True)

    def __init__(
        self,
        operator: AbstractOperator,
        in_structure: Any,
        out_structure: Any,
        has_solver: bool = True,
    ):
        self.operator = operator
        both = (jax.tree.flatten(s) for s in (in_structure, out_structure))
        self.structures = tuple((tuple(leaves), tree) for leaves, tree in both)
        self.has_solver = has_solver

    def in_structure(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct`."""
        leaves, tree = self.structures[0]
        return jax.tree.unflatten(tree, leaves)

    def out_structure(self) -> Any:
        """The same of results."""
        leaves, tree = self.structures[1]
        return jax.tree.unflatten(tree, leaves)

    @property
    def properties(self) -> frozenset[str]:
        """The names of lineax's functions that say yes; by structure alone, never by values."""
        found = properties_of(self.operator)
        if self.structures[0] == self.structures[1]:
            return found
        return found - {"is_symmetric", "is_positive_semidefinite", "is_negative_semidefinite"}

    def mv(self, vector: Any) -> Any:
        """Multiply, factor by factor.

        Raises:
            ValueError: if the vector is not of `in_structure()`.
        """
        leaves, tree = jax.tree.flatten(vector)
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        if (shapes, tree) != (tuple(s.shape for s in self.structures[0][0]), self.structures[0][1]):
            raise ValueError(
                f"A vector must have the structure {self.in_structure()}; got {vector}. Give "
                "kx.as_lineax the structure of your vectors."
            )
        flat = laid_end_to_end(vector, self.operator.dtype)
        product = self.operator.mv_grid(flat.reshape(self.operator.grid_shape))
        return cut(product.reshape(-1), self.out_structure())

    def as_matrix(self) -> Array:
        """The whole matrix, `(M, N)`: nothing of kronax asks for it."""
        return self.operator.to_dense()

    def transpose(self) -> "KroneckerLinearOperator":
        """The transpose; itself if it is known to be symmetric."""
        if "is_symmetric" in self.properties:
            return self
        return KroneckerLinearOperator(
            self.operator.T, self.out_structure(), self.in_structure(), self.has_solver
        )


def _has(operator: KroneckerLinearOperator, name: str) -> bool:
    return name in operator.properties


def _itself(operator: KroneckerLinearOperator) -> KroneckerLinearOperator:
    """Real, linear, and with its numbers in memory."""
    return operator


def _diagonal(operator: KroneckerLinearOperator) -> Array:
    op = operator.operator
    try:
        return op.diagonal().reshape(-1)
    except NotImplementedError:  # that of an inverse
        return jnp.diagonal(op.to_dense())


def _tridiagonal(operator: KroneckerLinearOperator) -> tuple[Array, Array, Array]:
    op = operator.operator
    return _diagonal(operator), _beside_diagonal(op, below=True), _beside_diagonal(op, below=False)


def _beside_diagonal(op: AbstractOperator, below: bool) -> Array:
    """The entries next to the diagonal, `(N - 1,)`; those of a product from its factors."""
    if isinstance(op, KroneckerPlusNoise):
        signal = _beside_diagonal(op.kronecker, below)
        if not isinstance(op.noise, Kronecker):
            return signal
        return signal + _beside_diagonal(op.noise, below)
    if not isinstance(op, Kronecker):
        return jnp.diagonal(op.to_dense(), offset=-1 if below else 1)
    op.check_square("the entries beside its diagonal")
    places = np.array(np.unravel_index(np.arange(prod(op.grid_shape)), op.grid_shape))
    rows, columns = places[:, :-1], places[:, 1:]
    if below:
        rows, columns = columns, rows
    entries = [f.to_dense()[r, c] for f, r, c in zip(op.factors, rows, columns, strict=True)]
    return jnp.prod(jnp.stack(entries), axis=0)


for _name in PROPERTIES:
    getattr(lx, _name).register(KroneckerLinearOperator)(partial(_has, name=_name))
for _function in (lx.linearise, lx.materialise, lx.conj):
    _function.register(KroneckerLinearOperator)(_itself)
lx.diagonal.register(KroneckerLinearOperator)(_diagonal)
lx.tridiagonal.register(KroneckerLinearOperator)(_tridiagonal)
