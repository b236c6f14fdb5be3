"""What makes the factors of a sum along one axis triangular together."""

from collections.abc import Sequence
from math import pi
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

# Of two matrices some combination is invertible wherever the sum of the products is. At an angle of
# these it is so, but for pairs that are made for them.
ANGLES = tuple((k + 0.37) * pi / 6 for k in range(6))


class Pencil(NamedTuple):
    """Factors along one axis, as `D (a I + b M)`; one or two of them are no identity.

    Args:
        divisor: `D`; None for the identity.
        matrix: `M`.
        weights: `a` and `b` of every factor; None for an identity.
    """

    divisor: Array | None
    matrix: Array
    weights: Sequence[tuple[Any, Any] | None]

    def of(self, like: Array, one: Any) -> list[Any]:
        """`a one + b like` for every factor, None for an identity.

        Args:
            like: what takes the place of `M`: eigenvalues, or a triangular matrix.
            one: what takes that of the identity.
        """
        return [None if w is None else w[0] * one + w[1] * like for w in self.weights]


def pencil_of(factors: Sequence[Array | None]) -> Pencil:
    """The factors of all products along an axis, `(n, n)`; None for an identity.

    Of two matrices `D` is the combination that is the farthest from a singular one, so that
    either may be singular.
    """
    given = [factor for factor in factors if factor is not None]
    if len(given) == 1:
        return Pencil(None, given[0], [None if f is None else (0, 1) for f in factors])
    first, second = given
    largest = [jnp.max(jnp.abs(matrix)) for matrix in given]
    ratio = jnp.where((largest[0] > 0) & (largest[1] > 0), largest[0] / largest[1], 1)
    ratio = lax.stop_gradient(ratio)

    def divisor(cosine: Array, sine: Array) -> Array:
        return cosine * first + sine * ratio * second

    def gap(angle: Array) -> Array:
        matrix = divisor(jnp.cos(angle), jnp.sin(angle))
        return jnp.linalg.svd(matrix, compute_uv=False)[-1]

    angles = jnp.asarray(ANGLES, first.dtype)
    angle = angles[jnp.argmax(lax.map(gap, angles))]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    common = divisor(cosine, sine)
    matrix = jnp.linalg.solve(common, cosine * ratio * second - sine * first)
    return Pencil(common, matrix, [(cosine, -sine), (sine / ratio, cosine / ratio)])


def pencils_of(terms: Sequence[Sequence[Array | None]]) -> list[Pencil]:
    """One per axis of a sum of products."""
    return [pencil_of(factors) for factors in zip(*terms, strict=True)]
