"""A sum of Kronecker products over the same grid, any number of them."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor, cast
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum, as_kronecker


class KroneckerTerms(AbstractOperator):
    """`Σ_j ⊗_i K_ji`: two terms or more, which share no eigenvectors in general.

    Args:
        terms: Kronecker products over the same grid.
        what: they are, for errors.

    Raises:
        ValueError: without terms, or if their grids differ.
        TypeError: if one is no Kronecker product.
    """

    terms: tuple[Kronecker, ...]

    def __init__(self, terms: Sequence[Any], what: str = "A sum of Kronecker products"):
        products = [as_kronecker(term, f"Term {j} of {what}") for j, term in enumerate(terms)]
        if not products:
            raise ValueError(f"{what} needs a term or more; got none.")
        grids = [product.grid_shape for product in products]
        if any(grid != grids[0] for grid in grids):
            raise ValueError(f"The terms of {what} must be over the same grid; got {grids}.")
        dtype = max((p.dtype for p in products), key=lambda d: jnp.finfo(d).bits)
        self.terms = tuple(
            p if p.dtype == dtype else Kronecker(*(cast(f, dtype) for f in p.factors))
            for p in products
        )

    @property
    def factors(self) -> tuple[AbstractFactor, ...]:
        """Those of all terms, one term after another."""
        return tuple(factor for term in self.terms for factor in term.factors)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.terms[0].grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast batch of the terms."""
        return jnp.broadcast_shapes(*(term.batch_shape for term in self.terms))

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.terms[0].dtype

    @property
    def T(self) -> "KroneckerTerms":
        """The transpose, that of every term."""
        return KroneckerTerms([term.T for term in self.terms])

    def mv_grid(self, x: Array) -> Array:
        """Multiply by every term, and add."""
        return reduce(add, (term.mv_grid(x) for term in self.terms))

    def diagonal(self) -> Array:
        """The diagonal, a grid array."""
        return reduce(add, (term.diagonal() for term in self.terms))

    def to_dense(self) -> Array:
        """The `(N, N)` matrix: for tests and small grids only."""
        return reduce(add, (term.to_dense() for term in self.terms))

    def scaled(self, scalar: Array) -> "KroneckerTerms":
        """`scalar * self`: every term is scaled."""
        return KroneckerTerms([term.scaled(scalar) for term in self.terms])

    def check_covariance(self, what: str) -> None:
        """Refuse factors that cannot be covariances."""
        for term in self.terms:
            term.check_covariance(what)


# What may stand beside a variance per cell.
Signal = Kronecker | KroneckerTerms


def as_signal(value: Any, name: str) -> Signal:
    """One Kronecker product, or the sum of those in a sequence."""
    if isinstance(value, KroneckerTerms):
        return value
    if not isinstance(value, tuple | list):
        return as_kronecker(value, f"The signal of {name}")
    signal = KroneckerTerms(value, f"the signal of {name}")
    return signal.terms[0] if len(signal.terms) == 1 else signal


def products_of(signal: Kronecker | KroneckerSum | KroneckerTerms) -> tuple[Any, ...]:
    """The terms of a sum, or the only one."""
    return signal.terms if isinstance(signal, KroneckerTerms) else (signal,)
