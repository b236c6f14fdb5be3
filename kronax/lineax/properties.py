"""What is known of an operator by its structure, in the names that lineax has for it."""

from functools import reduce, singledispatch

from kronax.linalg.decompositions.restricted import AbstractRestricted
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor, Scaled, Shifted
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.lowrank import LowRank
from kronax.linalg.factors.triangular import LowerTriangular
from kronax.linalg.functions.solve import Inverse
from kronax.linalg.lineax_factor import LineaxFactor
from kronax.linalg.markov.factor import Markov
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.operators.sum_of_products import KroneckerTerms

Properties = frozenset[str]

NONE: Properties = frozenset()
SYMMETRIC: Properties = frozenset({"is_symmetric"})
COVARIANCE: Properties = SYMMETRIC | {"is_positive_semidefinite"}
DIAGONAL: Properties = SYMMETRIC | {
    "is_diagonal",
    "is_tridiagonal",
    "is_lower_triangular",
    "is_upper_triangular",
}
# What a multiple of either sign, or a multiple of the identity more, may take away.
OF_VALUES: Properties = frozenset(
    {"has_unit_diagonal", "is_positive_semidefinite", "is_negative_semidefinite"}
)


def properties_of(op: AbstractOperator) -> Properties:
    """The names of lineax's functions that say yes of it."""
    num_rows, num_columns = op.shape[-2:]
    if num_rows != num_columns:
        return NONE
    return _known(op) | (DIAGONAL if num_rows == 1 else NONE)


@singledispatch
def _known(op: AbstractOperator) -> Properties:
    return NONE


@_known.register
def _(op: AbstractFactor) -> Properties:
    return SYMMETRIC if op.is_symmetric else NONE


@_known.register(Diagonal)
@_known.register(ScaledIdentity)
def _(op: AbstractFactor) -> Properties:
    return DIAGONAL


@_known.register(LowRank)
@_known.register(Markov)
def _(op: AbstractFactor) -> Properties:
    return COVARIANCE


@_known.register
def _(op: Dense) -> Properties:
    return COVARIANCE if op.positive_definite else NONE


@_known.register
def _(op: LowerTriangular) -> Properties:
    return frozenset({"is_lower_triangular" if op.lower else "is_upper_triangular"})


@_known.register
def _(op: LineaxFactor) -> Properties:
    return op.properties


@_known.register(Scaled)
@_known.register(Shifted)
def _(op: Scaled | Shifted) -> Properties:
    return properties_of(op.factor) - OF_VALUES


@_known.register
def _(op: Kronecker) -> Properties:
    every = [properties_of(factor) for factor in op.factors]
    common = reduce(frozenset.intersection, every) - {"is_negative_semidefinite", "is_tridiagonal"}
    # Blocks of the last axis stand along the diagonal, or every block is one number.
    last = max((i for i, n in enumerate(op.grid_shape) if n > 1), default=0)
    is_banded = "is_tridiagonal" in every[last] and all(
        "is_diagonal" in found for found in every[:last]
    )
    return common | {"is_tridiagonal"} if is_banded else common


@_known.register
def _(op: KroneckerSum) -> Properties:
    sizes = op.grid_shape
    terms = [
        properties_of(
            Kronecker(
                *(op.factors[j] if j == i else ScaledIdentity(1.0, n) for j, n in enumerate(sizes))
            )
        )
        for i in range(len(sizes))
    ]
    common = reduce(frozenset.intersection, terms) - OF_VALUES
    is_covariance = all(properties_of(factor) >= COVARIANCE for factor in op.factors)
    return common | (COVARIANCE if is_covariance else NONE)


@_known.register
def _(op: KroneckerPlusNoise) -> Properties:
    noise = properties_of(op.noise) if isinstance(op.noise, Kronecker) else DIAGONAL
    return (properties_of(op.kronecker) & noise) - OF_VALUES | COVARIANCE


@_known.register
def _(op: KroneckerTerms) -> Properties:
    every = [properties_of(term) for term in op.terms]
    return reduce(frozenset.intersection, every) - {"has_unit_diagonal"}


@_known.register
def _(op: KroneckerPlusDiagonal) -> Properties:
    return (properties_of(op.kronecker) & DIAGONAL) | COVARIANCE


@_known.register
def _(op: AbstractRestricted) -> Properties:
    return (properties_of(op.op) & DIAGONAL) | COVARIANCE


@_known.register
def _(op: Inverse) -> Properties:
    found = properties_of(op.op)
    return found if "is_diagonal" in found else found - {"is_tridiagonal", "has_unit_diagonal"}
