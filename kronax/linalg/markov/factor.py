"""The covariance of a Markov process along one axis: products, roots and solves in linear time."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, map_batch, same_rank
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.state_spaces.algebra import with_state
from kronax.linalg.state_spaces.state_space import StateSpace, covariances, sandwich, times


@dataclass(frozen=True)
class Order:
    """An order of places as a static value: hashable, so that jit and pytrees can carry it."""

    bits: bytes

    @classmethod
    def of(cls, index: np.ndarray) -> "Order | None":
        """That of a permutation; `None` for the one that changes nothing."""
        index = np.asarray(index, np.int64)
        return None if np.array_equal(index, np.arange(index.size)) else cls(index.tobytes())

    @cached_property
    def sorting(self) -> np.ndarray:
        """Which place stands where once they are sorted."""
        return np.frombuffer(self.bits, np.int64)

    @cached_property
    def back(self) -> np.ndarray:
        """The inverse."""
        return np.argsort(self.sorting)


class Markov(AbstractFactor):
    """A covariance along an axis whose process is Markov: Matérn of order 1/2, 3/2, 5/2 and more.

    Products cost `O(n d²)` operations and memory `O(n d²)` for a state of `d` numbers; nothing of
    size `n²` is made but by `to_dense`. In a `kx.KroneckerPlusNoise` whose noise does not
    correlate along this axis, solves, log-determinants, variances and their derivatives are linear
    in `n` as well.

    Args:
        space: the process at the sorted places, as a linear recursion.
        size: length of the axis.
        order: of the places as the user has them, if they are not sorted: `order[k]` is the
            number of the `k`-th smallest.

    Raises:
        ValueError: if the recursion is not one of so many places.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> space = kx.Matern32(2.0).state_space(jnp.array([1.0, 0.5, 2.0]))
        >>> factor = kx.Markov(space, 4)
        >>> factor.to_dense().shape, factor.mv(jnp.ones(4)).shape
        ((4, 4), (4,))
    """

    leaves_have_batch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True
    space: StateSpace
    size: int = eqx.field(static=True)
    order: Order | None = eqx.field(static=True)

    def __init__(self, space: StateSpace, size: int, order: Any = None):
        self.space, self.size = with_state(space), size
        self.order = order if order is None or isinstance(order, Order) else Order.of(order)

    def __check_init__(self) -> None:
        """Refuse a recursion of another length."""
        super().__check_init__()
        steps = self.space.transitions.shape[-3] if not self.space.regular else self.size - 1
        if steps != self.size - 1:
            raise ValueError(
                f"A Markov factor of size {self.size} must have {self.size - 1} transitions, from "
                f"each place to the next; got {steps}."
            )

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.space.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes of the process."""
        return self.space.batch_shape

    def event_ndims(self) -> Any:
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return _unchecked(self.space.event_ndims, self.size, self.order)

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return super(AbstractFactor, self).mv(x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`: one recursion forward, one backward."""
        front = jnp.moveaxis(x, axis, 0)
        product = multiplied(self.space, self.sorted(front.reshape(self.size, -1)))
        return jnp.moveaxis(self.unsorted(product).reshape(front.shape), 0, axis)

    def to_dense(self) -> Array:
        """The matrix: for tests and small axes only."""

        def one(space: StateSpace) -> Array:
            eye = jnp.eye(self.size, dtype=self.dtype)
            return self.unsorted(multiplied(space, self.sorted(eye)))

        return map_batch(one, self.batch_shape, (self.space, self.space.event_ndims))

    def diagonal(self) -> Array:
        """The variances, `(*batch, n)`."""

        def one(space: StateSpace) -> Array:
            values = covariances(space, self.size)[:, 0, 0]
            return self.unsorted(values if space.nugget is None else values + space.nugget)

        return map_batch(one, self.batch_shape, (self.space, self.space.event_ndims))

    def scaled(self, scalar: Array) -> "Markov":
        """`scalar * self`."""
        return Markov(self.space.scaled(scalar), self.size, self.order)

    def shifted(self, scalar: Array) -> "Markov":
        """`self + scalar · I`: the number joins the nugget."""
        own = jnp.zeros((), self.dtype) if self.space.nugget is None else self.space.nugget
        space = dataclasses.replace(self.space, nugget=jnp.add(*same_rank(own, scalar)))
        return Markov(space, self.size, self.order)

    def root(self) -> Any:
        """The Cholesky factor of the sorted places, as a recursion."""
        return map_batch(
            lambda space: _root(self, space),
            self.batch_shape,
            (self.space, self.space.event_ndims),
        )

    def sorted(self, x: Any) -> Any:
        """What lies along the first axis of `x`, in the order of the places."""
        return x if self.order is None else x[self.order.sorting]

    def unsorted(self, x: Any) -> Any:
        """The same back in the user's order."""
        return x if self.order is None else x[self.order.back]


def _unchecked(space: Any, size: int, order: Any) -> Markov:
    factor = object.__new__(Markov)
    for name, value in {"space": space, "size": size, "order": order}.items():
        object.__setattr__(factor, name, value)
    return factor


def multiplied(space: StateSpace, x: Array, part: Array | None = None) -> Array:
    """`K x` along the first axis of `x` `(n, lanes)`: what lies behind, then what lies ahead.

    With weights of the entries of the state, `part`, it is what they make of it, in place of the
    value, that has these covariances; without a nugget.
    """
    whole = covariances(space, len(x))
    first, zero = whole[:, :, 0], jnp.zeros((space.order, x.shape[1]), x.dtype)
    shown = first if part is None else jnp.einsum("nij,j->ni", whole, part, precision=HIGHEST)
    steps = space.steps()

    def forward(state: Array, step: Any) -> tuple[Array, Array]:
        value, p, steps = step
        state = state + p[:, None] * value[None]
        asked = state[0] if part is None else jnp.sum(part[:, None] * state, axis=0)
        return times(space.step(steps)[0], state), asked

    def backward(state: Array, step: Any) -> tuple[Array, Array]:
        value, p, steps = step
        state = times(space.step(steps)[0].T, state)
        return state.at[0].add(value), jnp.sum(p[:, None] * state, axis=0)

    total = lax.scan(forward, zero, (x, first, steps))[1]
    total = total + lax.scan(backward, zero, (x, shown, steps), reverse=True)[1]
    if space.nugget is None or part is not None:
        return total
    return total + (space.nugget[:, None] if space.nugget_varies else space.nugget) * x


class MarkovRoot(eqx.Module):
    """`L` with `L Lᵀ = K`, lower triangular for sorted places: a value is told by those before it.

    Args:
        factor: whose root it is, or the places of which, old and new, are drawn together.
        gains: what a new value tells of the state, `(*batch, n, d)`.
        deviations: of every value given those before it, `(*batch, n)`.
    """

    factor: Any
    gains: Array
    deviations: Array

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.factor.size

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes."""
        return self.deviations.shape[:-1]

    @property
    def event_ndims(self) -> "MarkovRoot":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return MarkovRoot(self.factor.event_ndims(), 2, 1)  # type: ignore[arg-type]

    def apply(self, z: Array, axis: int) -> Array:
        """`L z` along `axis < 0` of `z` (no batch)."""
        space, front = self.factor.space, jnp.moveaxis(z, axis, 0)
        flat = front.reshape(self.size, -1)

        def body(state: Array, step: Any) -> tuple[Array, Array]:
            value, gain, deviation, steps = step
            new = deviation * value
            told = state + gain[:, None] * new[None]
            return times(space.step(steps)[0], told), state[0] + new

        zero = jnp.zeros((space.order, flat.shape[1]), z.dtype)
        steps = (flat, self.gains, self.deviations, space.steps())
        values = self.factor.unsorted(lax.scan(body, zero, steps)[1])
        return jnp.moveaxis(values.reshape(front.shape), 0, axis)


def _root(factor: Any, space: StateSpace) -> MarkovRoot:
    """By the filter of values without noise."""
    nugget = jnp.zeros((), space.dtype) if space.nugget is None else space.nugget
    nugget = jnp.broadcast_to(nugget, factor.size)

    def body(p: Array, step: Any) -> tuple[Array, tuple[Array, Array]]:
        nugget, steps = step
        total = p[0, 0] + nugget
        known = total > 0
        gain = jnp.where(known, p[0], 0) / jnp.where(known, total, 1)
        left = p - gain[:, None] * p[0][None]
        own = p[0] * (nugget / jnp.where(known, total, 1))  # no difference in the first row
        left = left.at[0].set(own).at[:, 0].set(own)
        a, q = space.step(steps)
        return sandwich(a, left) + q, (gain, total)

    steps = (nugget, space.steps())
    gains, totals = lax.scan(body, space.initial, steps)[1]
    return MarkovRoot(dataclasses.replace(factor, space=space), gains, safe_sqrt(totals))


class MarkovAhead(eqx.Module):
    """A Markov process at the places of an axis and at new ones, before, between and after.

    A new place that is an old one stands beside it, with no step between: traced ones may move
    away from there. It has the nugget of that place.

    Args:
        space: the process at all of them, sorted.
        sorting: which of them, old ones first, stands where then, `(old + ahead,)`.
        back: where every one of them is found then.
        same: where it, or the old place that it is.
        old: number of old places.
    """

    space: StateSpace
    sorting: Array
    back: Array
    same: Array
    old: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Number of places, old and new."""
        return self.sorting.shape[0]

    def event_ndims(self) -> "MarkovAhead":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return MarkovAhead(self.space.event_ndims, 1, 1, 1, self.old)  # type: ignore[arg-type]  # numbers

    def sorted(self, x: Array) -> Array:
        """What lies along the first axis of `x`, old places first, in the order of the places."""
        return x[self.sorting]

    def unsorted(self, x: Array) -> Array:
        """The same back, old places first.

        A nugget is not told apart from the rest: with one, a new place that is an old one has what
        that has.
        """
        return x[self.back if self.space.nugget is None else self.same]

    def at_new(self, x: Array) -> Array:
        """What is known at the new places; where these are old ones, what is known there."""
        return x[self.same[self.old :]]

    def multiplied(self, x: Array, part: Array | None = None) -> Array:
        """`K x` for `x` `(old + ahead, lanes)`, old places first; see `multiplied`."""
        smooth = dataclasses.replace(self.space, nugget=None)
        total = multiplied(smooth, self.sorted(x), part)[self.back]
        nugget = self.space.nugget
        if nugget is None or part is not None:
            return total
        nugget = nugget[:, None] if self.space.nugget_varies else nugget
        return total + (nugget * jnp.zeros_like(x).at[self.same].add(x))[self.same]

    def padded(self, x: Array, value: Any) -> Array:
        """Numbers at the old places, and the same `value` at all new ones, sorted."""
        rest = jnp.full((self.size - self.old, *x.shape[1:]), value, x.dtype)
        return self.sorted(jnp.concatenate([x, rest]))

    def scaled(self, scalar: Array) -> "MarkovAhead":
        """The process times the root of a number."""
        return dataclasses.replace(self, space=self.space.scaled(scalar))

    def root(self) -> MarkovRoot:
        """That of all places together."""
        return _root(self, self.space)


class MarkovPart(eqx.Module):
    """One of the processes whose sum an axis has, at its places or at new ones.

    Args:
        weights: of the entries of the state, which make its value.
        ahead: the sum at old and new places, `None` for the places of the axis.
    """

    weights: tuple[float, ...] = eqx.field(static=True)
    ahead: MarkovAhead | None = None

    def event_ndims(self) -> "MarkovPart":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        return MarkovPart(self.weights, None if self.ahead is None else self.ahead.event_ndims())


class MarkovCross(AbstractFactor):
    """The covariances of the new places with the old ones, or the transpose, in linear time.

    Args:
        joint: of both.
        size: number of columns.
        is_transposed: whether the columns are the new places.
        part: weights of the entries of the state at the new places, such as those of the slope;
            its value by default. Not of a transpose.
    """

    joint: MarkovAhead
    size: int = eqx.field(static=True)
    is_transposed: bool = eqx.field(static=True, default=False)
    part: Array | None = None

    @property
    def output_grid_shape(self) -> tuple[int, ...]:
        """The number of rows."""
        return (self.joint.size - self.size,)

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.joint.space.dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def T(self) -> "MarkovCross":
        """The transpose."""
        assert self.part is None, "the values at old places tell of what new values are"
        return MarkovCross(self.joint, self.output_grid_shape[0], not self.is_transposed)

    def mv(self, x: Array) -> Array:
        """Multiply along the last axis of `x`."""
        return super(AbstractFactor, self).mv(x)

    def mv_along(self, x: Array, axis: int) -> Array:
        """Multiply along `axis < 0` of `x`, as all places together with zeros at the others."""
        front, old = jnp.moveaxis(x, axis, 0), self.joint.old
        flat = front.reshape(self.size, -1)
        none = jnp.zeros((self.joint.size - self.size, flat.shape[1]), flat.dtype)
        pair = [none, flat] if self.is_transposed else [flat, none]
        product = self.joint.multiplied(jnp.concatenate(pair), self.part)
        kept = product[:old] if self.is_transposed else product[old:]
        return jnp.moveaxis(kept.reshape(-1, *front.shape[1:]), 0, axis)

    def to_dense(self) -> Array:
        """The matrix."""
        return self.mv_along(jnp.eye(self.size, dtype=self.dtype), -2)

    def scaled(self, scalar: Array) -> "MarkovCross":
        """`scalar * self`."""
        return MarkovCross(self.joint.scaled(scalar), self.size, self.is_transposed, self.part)
