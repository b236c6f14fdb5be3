"""A Gaussian process along a sorted axis as a linear recursion of a few numbers, its state."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kronax.linalg.arrays.mode_products import HIGHEST, same_rank

# Products with matrices of at most this size are written out: an entry is a few operations on all
# lanes at once. Larger ones are products of matrices.
UNROLLED = 4


class StateSpace(eqx.Module):
    """`x_{i+1} = A_i x_i + e_i` with `cov(e_i) = Q_i` and `cov(x_0) = P`: a value is `x[0]`.

    The value of the process at place `i` is the first entry of its state, plus independent values
    of variance `nugget`. Nothing is inverted: two equal places have `A = I` and `Q = 0`.

    Args:
        transitions: `A`, `(*batch, n - 1, d, d)`, or `(*batch, d, d)` if they are all the same.
        innovations: `Q`, alike. Not as `P − A P Aᵀ`, of which small steps leave nothing.
        initial: `P`, `(*batch, d, d)`.
        nugget: `(*batch, n)`, or `(*batch,)` if it is the same everywhere; `None` for zero.
        regular: whether all steps are the same.
        stationary: whether `P` is the covariance at every place.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> decay = jnp.exp(-jnp.array([1.0, 0.5]))[:, None, None]
        >>> space = kx.StateSpace(decay, 1 - decay**2, jnp.ones((1, 1)))
        >>> [round(x, 3) for x in kx.Markov(space, 3).to_dense()[0].tolist()]
        [1.0, 0.368, 0.223]
    """

    transitions: Float[Array, "*steps d d"]
    innovations: Float[Array, "*steps d d"]
    initial: Float[Array, "*batch d d"]
    nugget: Array | None = None
    regular: bool = eqx.field(static=True, default=False)
    stationary: bool = eqx.field(static=True, default=True)

    @property
    def order(self) -> int:
        """Length of the state."""
        return self.initial.shape[-1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.initial.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes."""
        return self.initial.shape[:-2]

    @property
    def nugget_varies(self) -> bool:
        """Whether the nugget differs from place to place."""
        return self.nugget is not None and self.nugget.ndim > len(self.batch_shape)

    @property
    def event_ndims(self) -> "StateSpace":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        steps = 2 if self.regular else 3
        nugget = None if self.nugget is None else int(self.nugget_varies)
        return StateSpace(  # numbers in place of arrays
            steps,  # type: ignore[arg-type]
            steps,  # type: ignore[arg-type]
            2,  # type: ignore[arg-type]
            nugget,  # type: ignore[arg-type]
            self.regular,
            self.stationary,
        )

    def scaled(self, scalar: Array) -> "StateSpace":
        """The process times the root of a number."""
        nugget = None if self.nugget is None else jnp.multiply(*same_rank(scalar, self.nugget))
        return StateSpace(
            self.transitions,
            scalar * self.innovations,
            scalar * self.initial,
            nugget,
            self.regular,
            self.stationary,
        )

    def steps(self) -> Any:
        """What a `lax.scan` over the places runs over, the last place included (no batch).

        From the last place there is no step: what stands there is never used.
        """
        if self.regular:
            return None
        return tuple(
            jnp.concatenate([x, x[-1:]]) if len(x) else jnp.zeros((1, *x.shape[1:]), x.dtype)
            for x in (self.transitions, self.innovations)
        )

    def step(self, steps: Any) -> tuple[Array, Array]:
        """`A` and `Q` of one turn of such a scan."""
        return (self.transitions, self.innovations) if steps is None else steps


def times(a: Array, x: Array) -> Array:
    """`A x` for a matrix `(d, d)` and states `(d, *lanes)`."""
    size = a.shape[-1]
    if size > UNROLLED:
        return jnp.einsum("ij,j...->i...", a, x, precision=HIGHEST)
    return jnp.stack([sum_of(a[i, k] * x[k] for k in range(size)) for i in range(size)])


def sandwich(a: Array, p: Array) -> Array:
    """`A P Aᵀ` for covariances of states `(d, d, *lanes)`."""
    return times_right(times(a, p), a)


def times_right(x: Array, a: Array) -> Array:
    """`X Aᵀ` for matrices `(d, d, *lanes)`."""
    return jnp.moveaxis(times(a, jnp.moveaxis(x, 1, 0)), 0, 1)


def product(x: Array, y: Array) -> Array:
    """`X Y` lane by lane, `(d, d, *lanes)` each."""
    size = x.shape[1]
    if size > UNROLLED:
        return jnp.einsum("ik...,kj...->ij...", x, y, precision=HIGHEST)
    return sum_of(x[:, k, None] * y[None, k] for k in range(size))


def applied(x: Array, v: Array) -> Array:
    """`X v` lane by lane, `(d, d, *lanes)` and `(d, *lanes)`."""
    return product(x, v[:, None])[:, 0]


def sum_of(terms: Any) -> Array:
    """The sum of some arrays, without a zero in front."""
    first, *rest = terms
    return sum(rest, first)


def covariances(space: StateSpace, size: int) -> Array:
    """The covariance of the state at every place, `(n, d, d)` (no batch)."""
    if space.stationary:
        return jnp.broadcast_to(space.initial, (size, *space.initial.shape))

    def body(p: Array, steps: Any) -> tuple[Array, Array]:
        a, q = space.step(steps)
        return sandwich(a, p) + q, p

    return lax.scan(body, space.initial, space.steps(), length=size)[1]
