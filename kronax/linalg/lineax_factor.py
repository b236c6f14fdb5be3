"""Operators of lineax as factors of a Kronecker product.

Nothing here imports lineax: whoever holds one of its operators has done so.
"""

import sys
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays import checks
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.factorizations import AbstractFactorization
from kronax.linalg.factors.triangular import LowerTriangular

# What lineax knows of an operator, by the names of its functions.
PROPERTIES = (
    "is_symmetric",
    "is_diagonal",
    "is_tridiagonal",
    "is_lower_triangular",
    "is_upper_triangular",
    "has_unit_diagonal",
    "is_positive_semidefinite",
    "is_negative_semidefinite",
)
_MIRRORED = {
    "is_lower_triangular": "is_upper_triangular",
    "is_upper_triangular": "is_lower_triangular",
}


def transposed(properties: frozenset[str]) -> frozenset[str]:
    """The properties of the transpose."""
    return frozenset(_MIRRORED.get(name, name) for name in properties)


class LineaxFactor(AbstractFactor):
    """A lineax operator that is no plain matrix: it multiplies by its own `mv`.

    Solves, determinants and draws take its matrix. Vectors are its pytrees, laid end to end.

    Args:
        operator: any `lineax.AbstractLinearOperator` of real numbers.
        properties: those of `PROPERTIES` that it has.
    """

    arrays: tuple[Array, ...]
    structure: Any = eqx.field(static=True)
    properties: frozenset[str] = eqx.field(static=True)

    def __init__(self, operator: Any, properties: frozenset[str]):
        leaves, tree = jax.tree.flatten(operator)
        is_array = tuple(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        pairs = list(zip(leaves, is_array, strict=True))
        self.arrays = tuple(jnp.asarray(leaf) for leaf, held in pairs if held)
        self.structure = tree, is_array, tuple(leaf for leaf, held in pairs if not held)
        self.properties = properties

    @property
    def operator(self) -> Any:
        """The operator of lineax."""
        tree, is_array, others = self.structure
        arrays, rest = iter(self.arrays), iter(others)
        return jax.tree.unflatten(tree, [next(arrays if held else rest) for held in is_array])

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.operator.in_size()

    @property
    def output_grid_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return (self.operator.out_size(),)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """None: lineax knows no batches."""
        return ()

    @property
    def dtype(self) -> Any:
        """Floating-point type of the operator's results."""
        return dtype_of(self.operator.out_structure())

    @property
    def T(self) -> "LineaxFactor":
        """The transpose."""
        return LineaxFactor(self.operator.transpose(), transposed(self.properties))

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`, one vector after another."""
        operator = self.operator
        structure = operator.in_structure()

        def one(vector: Array) -> Array:
            return laid_end_to_end(operator.mv(cut(vector, structure)), x.dtype)

        rows = jax.vmap(one)(x.reshape(-1, x.shape[-1]))
        return rows.reshape(*x.shape[:-1], rows.shape[-1])

    def to_dense(self) -> Array:
        """The matrix."""
        return self.operator.as_matrix()

    def check_covariance(self, name: str) -> None:
        """Refuse one that is concrete, not symmetric, and not said to be."""
        if "is_symmetric" not in self.properties:
            super().check_covariance(name)

    def symmetrised(self) -> AbstractFactor:
        """Itself, or the symmetric part of a traced one that is not said to be symmetric."""
        if "is_symmetric" in self.properties:
            return self
        matrix = self.to_dense()  # traced inside of a trace, even where it has no arrays
        return self if checks.is_concrete(matrix) else Dense(checks.symmetric(matrix))

    def as_dtype(self, dtype: Any) -> AbstractFactor:
        """Its matrix: an operator may hold what is not an array, and has a precision of its own."""
        return Dense(self.to_dense().astype(dtype), "is_positive_semidefinite" in self.properties)

    def factorize(self, positive_definite: bool = False) -> AbstractFactorization:
        """Cholesky where it is said to be positive semidefinite, as lineax does, else LU."""
        return super().factorize(positive_definite or "is_positive_semidefinite" in self.properties)


def lineax_operator(value: Any) -> AbstractOperator | None:
    """An operator of lineax as one of ours, with the structure that it is known to have.

    Returns:
        The operator that `kx.as_lineax` wraps, else a factor; `None` for anything else.

    Raises:
        TypeError: if it holds complex numbers.
    """
    lx = sys.modules.get("lineax")
    if lx is None or not isinstance(value, lx.AbstractLinearOperator):
        return None
    own = getattr(value, "operator", None)
    if isinstance(own, AbstractOperator):
        return own
    dtype = dtype_of((value.in_structure(), value.out_structure()))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"A lineax operator must hold real numbers to be a factor; got {type(value).__name__} "
            f"of {dtype}."
        )
    return _factor(lx, value, dtype)


def _factor(lx: Any, value: Any, dtype: Any) -> AbstractFactor:
    properties = frozenset(name for name in PROPERTIES if getattr(lx, name)(value))
    if value.in_size() != value.out_size():
        properties = frozenset()
    if isinstance(value, lx.IdentityLinearOperator) and properties:
        return ScaledIdentity(jnp.ones((), dtype), value.in_size())
    if "is_diagonal" in properties:
        return Diagonal(lx.diagonal(value).astype(dtype))
    if {"is_lower_triangular", "is_upper_triangular"} & properties:
        return LowerTriangular(value.as_matrix(), lower="is_lower_triangular" in properties)
    bare = value
    while isinstance(bare, lx.TaggedLinearOperator):
        bare = bare.operator
    is_stored = isinstance(bare, lx.MatrixLinearOperator | lx.PyTreeLinearOperator)
    if is_stored and "is_tridiagonal" not in properties:
        return Dense(value.as_matrix(), "is_positive_semidefinite" in properties)
    return LineaxFactor(value, properties)


def dtype_of(structure: Any) -> Any:
    """The floating-point type that all leaves of a structure fit in."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(structure)))


def laid_end_to_end(vector: Any, dtype: Any) -> Array:
    """The leaves of a pytree of arrays as one `(N,)`, in the order of `jax.tree.leaves`."""
    flat = [leaf.astype(dtype).reshape(-1) for leaf in jax.tree.leaves(vector)]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


def cut(vector: Array, structure: Any) -> Any:
    """`(N,)` as a pytree of arrays of the shapes and types of a structure."""
    leaves, tree = jax.tree.flatten(structure)
    ends = np.cumsum([prod(leaf.shape) for leaf in leaves])
    parts = [vector] if len(leaves) == 1 else jnp.split(vector, ends[:-1])
    pairs = zip(parts, leaves, strict=True)
    return jax.tree.unflatten(tree, [p.reshape(s.shape).astype(s.dtype) for p, s in pairs])
