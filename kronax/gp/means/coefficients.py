"""Means that are linear in their coefficients: what all of them can do, and their products."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.domains import parameter
from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.points import Points
from kronax.gp.means.means import Mean
from kronax.linalg.arrays.host import on_device
from kronax.linalg.arrays.mode_products import along


class Term(NamedTuple):
    """One function of a mean.

    Args:
        name: in tables.
        key: what the function is a product of; that of a level is empty. Functions with the same
            key are the same.
        unit: what its coefficient is multiplied by to be in units of the data, or of the data per
            unit of what the function is of.
    """

    name: str
    key: tuple[Any, ...]
    unit: float = 1.0


class RegressionMean(Mean):
    """`Σ_j β_j h_j` with known functions `h_j` on the grid and coefficients `β`.

    As it is, a fit trains the coefficients. Inside `kx.MarginalMean` they are integrated out. The
    product of two has the products of their functions.
    """

    @abc.abstractmethod
    def functions_of(self, names: tuple[str, ...] | None) -> tuple[Term, ...]:
        """What each coefficient belongs to, with the names of the axes."""

    @abc.abstractmethod
    def design(self, *axes: Array) -> Float[Array, "p ..."]:
        """The functions on the grid of the axes; they broadcast to it."""

    def design_at(self, *axes: Points) -> Float[Array, "p ..."]:
        """The same at points of the axes, in the form that suits it."""
        return self.design(*(x.raw for x in axes))

    def notes(self, axes: Sequence[Axis], names: tuple[str, ...] | None) -> tuple[str, ...]:
        """What has to be known of the axes to read the coefficients."""
        return ()

    @abc.abstractmethod
    def weights(self) -> Float[Array, " p"] | None:
        """The coefficients in one vector, if it has some."""

    def weighing(self, weights: Any) -> Any:
        """Coefficients from one vector, in the form in which this mean holds them."""
        return weights

    def __mul__(self, other: Any) -> "RegressionMean":
        if not isinstance(other, RegressionMean):
            return NotImplemented
        pairs = (m.factors if isinstance(m, ProductMean) else (m,) for m in (self, other))
        return ProductMean(sum(pairs, ()), _outer(self.weights(), other.weights()))

    def __call__(self, *axes: Array) -> Array:
        """The mean."""
        return self._weighted(self.design(*axes))

    def at(self, *axes: Points) -> Array:
        """The mean, from coordinates that count from their origin."""
        return self._weighted(self.design_at(*axes))

    def _weighted(self, design: Array) -> Array:
        weights = self.weights()
        if weights is None:
            return jnp.zeros((), design.dtype)
        weights = weights.astype(design.dtype)
        return jnp.sum(along(weights, -design.ndim, design.ndim) * design, axis=0)

    def bare(self) -> "RegressionMean":
        """The functions alone."""
        return self.changed(coefficients=None)

    def changed(self, **changes: Any) -> Any:
        """The same mean with other fields, which nothing checks."""
        other = object.__new__(type(self))
        for field in dataclasses.fields(self):
            value = changes.get(field.name, getattr(self, field.name))
            object.__setattr__(other, field.name, value)
        return other

    def zeros(self, count: int, dtype: Any) -> Any:
        """Coefficients where none are given."""
        return self.weighing(on_device(np.zeros(count, dtype)))


def _outer(first: Array | None, second: Array | None) -> Array | None:
    """The coefficients of the product of two means that have some."""
    if first is None or second is None:
        return None
    return jnp.outer(first, second).reshape(-1)


class ProductMean(RegressionMean):
    """The products of the functions of several means, one coefficient each: what `*` makes.

    Those of the last mean vary fastest. A level times a function is that function.
    """

    factors: tuple[RegressionMean, ...]
    coefficients: Array | None = parameter(constraints.real, default=None)

    def __init__(self, factors: Sequence[RegressionMean], coefficients: Any = None):
        self.factors = tuple(factor.bare() for factor in factors)
        self.coefficients = coefficients

    def weights(self) -> Float[Array, " p"] | None:
        """One coefficient per product."""
        return self.coefficients

    def functions_of(self, names: tuple[str, ...] | None) -> tuple[Term, ...]:
        """All products."""
        return functools.reduce(_products, (m.functions_of(names) for m in self.factors))

    def design(self, *axes: Array) -> Float[Array, "p ..."]:
        """All products on the grid."""
        return functools.reduce(_times, (m.design(*axes) for m in self.factors))

    def design_at(self, *axes: Points) -> Float[Array, "p ..."]:
        """The same at points of the axes."""
        return functools.reduce(_times, (m.design_at(*axes) for m in self.factors))

    def notes(self, axes: Sequence[Axis], names: tuple[str, ...] | None) -> tuple[str, ...]:
        """Those of the factors."""
        return tuple(note for m in self.factors for note in m.notes(axes, names))

    def bound(self, axes: Sequence[Axis], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """Every factor bound."""
        factors: Any = tuple(m.bound(axes, names, dtype) for m in self.factors)
        bound = self.changed(factors=tuple(m.bare() for m in factors))
        if self.coefficients is not None:
            return bound
        return bound.changed(coefficients=self.zeros(len(bound.functions_of(names)), dtype))


def _products(first: tuple[Term, ...], second: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(_product(a, b) for a in first for b in second)


def _product(a: Term, b: Term) -> Term:
    names = [term.name for term in (a, b) if term.key] or [a.name]
    key = tuple(sorted(a.key + b.key, key=repr))
    return Term(" × ".join(names), key, a.unit * b.unit)


def _times(first: Array, second: Array) -> Array:
    products = first[:, None] * second[None]
    return products.reshape(-1, *products.shape[2:])
