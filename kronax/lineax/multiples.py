"""The operator of kronax inside one of lineax: under tags, multiples, shifts by the identity."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from kronax.linalg.decompositions.restricted import AbstractRestricted
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.functions.solve import Inverse
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.lineax.operator import KroneckerLinearOperator
from kronax.lineax.properties import COVARIANCE, properties_of

WITH_SHIFT = AbstractFactor | Kronecker | KroneckerSum | KroneckerPlusNoise
WITH_SOLVER = WITH_SHIFT | AbstractRestricted | Inverse
SEMIDEFINITE = {lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}


class Multiple(NamedTuple):
    """`scalar · op + shift · I`."""

    op: AbstractOperator
    scalar: Array
    shift: Array | None
    # Of every factor. A tag of a product says so of its factors if it says semidefinite; a product
    # that is only symmetric may be one of antisymmetric factors, with eigenvalues of both signs.
    is_symmetric: bool

    def times(self, number: Array) -> "Multiple":
        """A multiple of it."""
        shift = None if self.shift is None else number * self.shift
        return self._replace(scalar=number * self.scalar, shift=shift)

    def plus(self, number: Array) -> "Multiple":
        """A multiple of the identity more; noise is one."""
        if isinstance(self.op, KroneckerPlusNoise):
            assert not isinstance(self.op.noise, Kronecker)
            number = number + self.scalar * self.op.noise
            return self._replace(op=self.op.kronecker, shift=number)
        return self._replace(shift=number if self.shift is None else self.shift + number)

    @property
    def can_be_shifted(self) -> bool:
        """Whether it has an exact way with a multiple of the identity more."""
        has_other_noise = isinstance(self.op, KroneckerPlusNoise) and isinstance(
            self.op.noise, Kronecker
        )
        return isinstance(self.op, WITH_SHIFT) and self.is_symmetric and not has_other_noise


def unwrapped(operator: lx.AbstractLinearOperator) -> Multiple | None:
    """What a solve with the operator is a solve of kronax with; `None` if it is none.

    Raises:
        TypeError: if it is an operator of kronax that has no exact way.
    """
    if isinstance(operator, KroneckerLinearOperator):
        op = operator.operator
        if not (isinstance(op, WITH_SOLVER) and operator.has_solver):
            raise TypeError(_without_solver(op))
        return Multiple(op, jnp.ones((), op.dtype), None, "is_symmetric" in properties_of(op))
    if isinstance(operator, lx.AddLinearOperator):
        return _sum(operator.operator1, operator.operator2)
    if not isinstance(
        operator,
        lx.TaggedLinearOperator
        | lx.MulLinearOperator
        | lx.DivLinearOperator
        | lx.NegLinearOperator,
    ):
        return None
    inner = unwrapped(operator.operator)
    if inner is None:
        return None
    if isinstance(operator, lx.TaggedLinearOperator):
        is_symmetric = inner.is_symmetric or bool(SEMIDEFINITE & operator.tags)
        return inner._replace(is_symmetric=is_symmetric)
    return inner.times(_number(operator, inner.scalar.dtype))


def _number(operator: Any, dtype: Any) -> Array:
    """What a wrapper multiplies by."""
    if isinstance(operator, lx.NegLinearOperator):
        return -jnp.ones((), dtype)
    scalar = jnp.asarray(operator.scalar, dtype)
    return 1 / scalar if isinstance(operator, lx.DivLinearOperator) else scalar


def _sum(first: lx.AbstractLinearOperator, second: lx.AbstractLinearOperator) -> Multiple | None:
    """A symmetric operator plus a multiple of the identity, or two covariances."""
    found = [unwrapped(first), unwrapped(second)]
    for one, other in ((found[0], second), (found[1], first)):
        if one is not None and one.can_be_shifted:
            number = _multiple_of_identity(other, one.scalar.dtype)
            if number is not None:
                return one.plus(number)
    products = [
        operator.operator
        for operator in (first, second)
        if isinstance(operator, KroneckerLinearOperator)
        and isinstance(operator.operator, AbstractFactor | Kronecker)
        and properties_of(operator.operator) >= COVARIANCE
    ]
    if len(products) < 2 or products[0].grid_shape != products[1].grid_shape:
        return None
    total = products[0] + products[1]
    return Multiple(total, jnp.ones((), total.dtype), None, True)


def _multiple_of_identity(operator: lx.AbstractLinearOperator, dtype: Any) -> Array | None:
    """The number, if it is one."""
    if isinstance(operator, lx.IdentityLinearOperator):
        return jnp.ones((), dtype)
    if isinstance(operator, lx.TaggedLinearOperator):
        return _multiple_of_identity(operator.operator, dtype)
    if not isinstance(operator, lx.MulLinearOperator | lx.DivLinearOperator | lx.NegLinearOperator):
        return None
    inner = _multiple_of_identity(operator.operator, dtype)
    return None if inner is None else inner * _number(operator, dtype)


def _without_solver(op: AbstractOperator) -> str:
    if isinstance(op, KroneckerSum):
        why = "A Kronecker sum must have symmetric factors for an exact solve; these are not"
    else:
        why = f"There is no exact solve with a {type(op).__name__}"
    return (
        f"{why}, and what lineax would choose takes the whole matrix. Pass a solver: "
        "lx.CG(rtol=1e-6, atol=1e-6) or lx.GMRES multiply only, lx.Cholesky() and lx.LU() take "
        "the matrix. Of a kx.KroneckerPlusDiagonal wrap kx.Iterative(op)."
    )
