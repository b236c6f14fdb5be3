"""Simple processes as recursions, and the sum and the product of independent ones."""

from itertools import accumulate

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST
from kronax.linalg.state_spaces.state_space import StateSpace


def level(gaps: Array, variance: Array) -> StateSpace:
    """One value, the same at all places."""
    ones = jnp.ones((*gaps.shape, 1, 1), gaps.dtype)
    initial = jnp.reshape(variance, (1, 1)).astype(gaps.dtype)
    return StateSpace(ones, 0 * ones, initial, regular=gaps.ndim == 0)


def wave(cycles: Array, variance: Array | None = None) -> StateSpace:
    """A sine wave of unknown amplitude and phase, which goes on by so many cycles at each step."""
    angle = 2 * np.pi * (cycles - jnp.round(cycles))  # a large angle keeps its digits
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rows = [jnp.stack(row, axis=-1) for row in ((cosine, sine), (-sine, cosine))]
    turns = jnp.stack(rows, axis=-2)
    initial = jnp.eye(2, dtype=turns.dtype)
    initial = initial if variance is None else variance * initial
    return StateSpace(turns, jnp.zeros_like(turns), initial, regular=cycles.ndim == 0)


def white(gaps: Array, variance: Array, are_apart: bool) -> StateSpace:
    """An independent value at every place; equal places share one.

    Args:
        gaps: between neighbours.
        variance: of the values.
        are_apart: whether no gap is known to be zero: then a nugget says it all, and there is no
            state. Else the state is the value, which a step either keeps or forgets.
    """
    regular = gaps.ndim == 0
    if are_apart:
        none = jnp.zeros((*gaps.shape, 0, 0), gaps.dtype)
        return StateSpace(none, none, jnp.zeros((0, 0), gaps.dtype), variance, regular)
    kept = (gaps == 0).astype(gaps.dtype)[..., None, None]
    return StateSpace(kept, (1 - kept) * variance, jnp.reshape(variance, (1, 1)), regular=regular)


def with_state(space: StateSpace) -> StateSpace:
    """The same process with a first entry of its state, zero if it had none."""
    if space.order:
        return space
    zeros = jnp.zeros((*space.transitions.shape[:-2], 1, 1), space.dtype)
    initial = jnp.zeros((*space.batch_shape, 1, 1), space.dtype)
    return StateSpace(zeros, zeros, initial, space.nugget, space.regular, space.stationary)


def added(*spaces: StateSpace) -> StateSpace:
    """The sum of independent processes: its value, then what is left of their states.

    The value of the first gives way to that of the sum; the others keep theirs.
    """
    held = [space for space in spaces if space.order] or [spaces[0]]
    nuggets = [space.nugget for space in spaces if space.nugget is not None]
    firsts = np.array(list(accumulate(space.order for space in held))[:-1], int)
    steps = _side_by_side([space.transitions for space in held])
    driven = _side_by_side([space.innovations for space in held])
    initial = _side_by_side([space.initial for space in held])
    return StateSpace(
        _steps_of_total(steps, firsts),
        _of_total(driven, firsts),
        _of_total(initial, firsts),
        sum(nuggets[1:], nuggets[0]) if nuggets else None,
        all(space.regular for space in spaces),
        all(space.stationary for space in spaces),
    )


def _steps_of_total(x: Array, firsts: np.ndarray) -> Array:
    """Transitions of side-by-side states, where the first entry gives way to the sum of values.

    Args:
        x: block-diagonal.
        firsts: where the values of the others stand.
    """
    if not firsts.size:
        return x
    x = _with_total(x, firsts)
    # The inverse of that basis takes the others off the sum again.
    return x.at[..., firsts].add(-x[..., :1])


def _of_total(p: Array, firsts: np.ndarray) -> Array:
    """The covariance of such states, alike."""
    if not firsts.size:
        return p
    return _with_total(jnp.swapaxes(_with_total(p, firsts), -1, -2), firsts)


def _with_total(x: Array, firsts: np.ndarray) -> Array:
    """The rows of the others' values added to the first row."""
    return x.at[..., 0, :].add(jnp.sum(x[..., firsts, :], axis=-2))


def _side_by_side(matrices: list[Array]) -> Array:
    """A block-diagonal matrix."""
    lead = jnp.broadcast_shapes(*(m.shape[:-2] for m in matrices))
    size, start = sum(m.shape[-1] for m in matrices), 0
    total = jnp.zeros((*lead, size, size), jnp.result_type(*matrices))
    for m in matrices:
        block = slice(start, start + m.shape[-1])
        wide = jnp.broadcast_to(m.astype(total.dtype), (*lead, *m.shape[-2:]))
        total = total.at[..., block, block].set(wide)
        start += m.shape[-1]
    return total


def product(a: StateSpace, b: StateSpace) -> StateSpace:
    """The process whose covariance is the product: all products of entries of the states.

    Its innovations are sums of positive semidefinite matrices: nothing cancels.

    Raises:
        ValueError: if one of them is not stationary.
    """
    if not (a.stationary and b.stationary):
        raise ValueError(
            "Both state spaces of a product must be stationary; got one that is not. Give the "
            "product as one kernel with a `state_space` of its own."
        )
    kept = jnp.einsum(
        "...ij,jk,...lk->...il", a.transitions, a.initial, a.transitions, precision=HIGHEST
    )
    driven = _kron(a.innovations, b.initial) + _kron(kept, b.innovations)
    return StateSpace(
        _kron(a.transitions, b.transitions),
        driven,
        _kron(a.initial, b.initial),
        _nugget(a, b),
        a.regular and b.regular,
    )


def _kron(x: Array, z: Array) -> Array:
    """The Kronecker product of the last two axes."""
    lead = jnp.broadcast_shapes(x.shape[:-2], z.shape[:-2])
    x, z = (jnp.broadcast_to(m, (*lead, *m.shape[-2:])) for m in (x, z))
    pairs = x[..., :, None, :, None] * z[..., None, :, None, :]
    return pairs.reshape(*lead, *(m * k for m, k in zip(x.shape[-2:], z.shape[-2:], strict=True)))


def _nugget(a: StateSpace, b: StateSpace) -> Array | None:
    """`(p + n)(p' + n') − p p'` for variances `p` of the states and nuggets `n`."""
    terms = []
    if a.nugget is not None:
        terms.append(a.nugget * _variance(b))
    if b.nugget is not None:
        terms.append(b.nugget * _variance(a))
    if a.nugget is not None and b.nugget is not None:
        terms.append(a.nugget * b.nugget)
    return sum(terms[1:], terms[0]) if terms else None


def _variance(space: StateSpace) -> Array:
    return space.initial[0, 0] if space.order else jnp.zeros((), space.dtype)
