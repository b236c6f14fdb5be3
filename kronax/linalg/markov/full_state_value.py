"""`a · log det S + b · yᵀ S⁻¹ y` of data at any cells, by the filter of all places and backward.

The gradient is the filter backward, in closed form (modified Bryson-Frazier): `r` and `Λ`, the
derivatives in the mean and the covariance of the state, from what was found at every time on the
way. Derivatives of higher orders are those of the plain recursion.
"""

from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, matmul
from kronax.linalg.arrays.primitives import RulePrimitive, by_gradient, gradient_along
from kronax.linalg.markov.full_state import FullState, updated
from kronax.linalg.state_spaces.state_space import StateSpace

# Longer axes are cut into about √n blocks, of which a reverse pass holds one at a time.
LONG = 2000

Weights = tuple[float, float]


class Kept(NamedTuple):
    """What is known at one time once its values are.

    Args:
        mean: of the state, `(d, m)`.
        covariance: `P`, `(d, d, m, m)`.
        inverse: `L⁻¹`, `(m, m)`.
        half: `(L Lᵀ)⁻¹ W^½ P_0j`, of `P` before, `(m, d·m)`.
        weights: `W^½ (L Lᵀ)⁻¹ W^½ (y − m_0)`, `(m,)`.
    """

    mean: Array
    covariance: Array
    inverse: Array
    half: Array
    weights: Array


class Found(NamedTuple):
    """Of the filter of some data.

    Args:
        logdet: `log det S`.
        quadratic: `yᵀ S⁻¹ y`.
        on_the_way: `Kept` at all times; of a long axis mean and covariance before every block.
    """

    logdet: Array
    quadratic: Array
    on_the_way: Any


def log_det_and_quadratic(state: FullState, y: Array, weights: Weights) -> Array:
    """`a log det S + b yᵀ S⁻¹ y` of what is observed of `y`, `(n, m)`; right at every order.

    Args:
        state: with positive precisions where there are data.
        y: by sorted times; ignored at gaps.
        weights: `a` and `b`.
    """
    found = _found(*lax.stop_gradient((state, y)))
    return _primitive((state, y), found, weights=weights)


def _forward(state: FullState, carry: Any, step: Any) -> tuple[Any, tuple[Any, Kept]]:
    """One time: mean and covariance at the next one, what this one adds, what was found."""
    mean, p = carry
    value, (root, nugget, steps) = step
    lower = state.innovation(p, root, nugget)
    after, update = updated(state, p, root, lower, nugget)
    v = matmul(update.inverse, root * (value - mean[0]))
    mean = mean + matmul(v, update.white).reshape(mean.shape)
    ahead = matmul(state.space.step(steps)[0], mean), state.ahead(after, steps)
    kept = Kept(mean, after, update.inverse, update.half, root * matmul(v, update.inverse))
    # Added up at the end: one after another the rounding of equal terms is a bias.
    terms = 2 * jnp.sum(jnp.log(jnp.diagonal(lower))), jnp.sum(jnp.square(v))
    return ahead, (terms, kept)


def _start(state: FullState) -> tuple[Array, Array]:
    """Mean and covariance before the first values."""
    p = state.start()
    return jnp.zeros((p.shape[0], p.shape[-1]), p.dtype), p


def _steps(state: FullState, y: Array) -> Any:
    return jnp.where(state.precisions > 0, y, 0), state.steps()


def _blocks(tree: Any, size: int) -> tuple[Any, Any]:
    """About `√n` blocks of a long axis, and what is left over."""
    length = int(sqrt(size))
    whole = size // length * length
    head = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), tree)
    return head, jax.tree.map(lambda x: x[whole:], tree)


def _joined(head: Any, tail: Any) -> Any:
    """The opposite."""
    return jax.tree.map(lambda x, z: jnp.concatenate([x.reshape(-1, *x.shape[2:]), z]), head, tail)


def _found(state: FullState, y: Array) -> Found:
    def body(carry: Any, step: Any) -> Any:
        return _forward(state, carry, step)

    def block(carry: Any, part: Any) -> Any:
        after, (terms, _) = lax.scan(body, carry, part)
        return after, (terms, carry)

    start, steps = _start(state), _steps(state, y)
    if state.size < LONG:
        terms, on_the_way = lax.scan(body, start, steps)[1]
    else:
        head, tail = _blocks(steps, state.size)
        last, (terms, starts) = lax.scan(block, start, head)
        terms, on_the_way = _joined(terms, block(last, tail)[1][0]), (starts, last)
    return Found(terms[0].sum() - _scale(state), terms[1].sum(), on_the_way)


def _scale(state: FullState) -> Array:
    """`log det W` of what is observed."""
    known = state.precisions > 0
    return jnp.sum(jnp.log(jnp.where(known, state.precisions, 1)))


def _plain(state: FullState, y: Array, weights: Weights) -> Array:
    """The same for ordinary differentiation."""
    body = jax.checkpoint(lambda carry, step: _terms_alone(state, carry, step))
    start, steps = _start(state), _steps(state, y)
    if state.size < LONG:
        terms = lax.scan(body, start, steps)[1]
    else:
        head, tail = _blocks(steps, state.size)
        block = jax.checkpoint(lambda carry, part: lax.scan(body, carry, part))
        last, terms = lax.scan(block, start, head)
        terms = _joined(terms, lax.scan(body, last, tail)[1])
    return weights[0] * (terms[0].sum() - _scale(state)) + weights[1] * terms[1].sum()


def _terms_alone(state: FullState, carry: Any, step: Any) -> Any:
    ahead, (terms, _) = _forward(state, carry, step)
    return ahead, terms


def _value(operands: Any, found: Found, *, weights: Weights) -> Array:
    return weights[0] * found.logdet + weights[1] * found.quadratic


class Total(NamedTuple):
    """Of all later times: the derivative in `K_s`, and the sum of `Λ` where all `Q` are the same.

    Args:
        places: of the second what follows from `Λ` is left out.
        ell: `(d, d, m, m)`.
    """

    places: Array
    ell: Array | None


class Slopes(NamedTuple):
    """Derivatives at one time, in `A`, `Q` where it varies, the nugget, `w` and `y`."""

    transition: Array
    innovation: Any
    nugget: Array | None
    precisions: Array
    data: Array


def _gradient(
    operands: Any, found: Found, *, weights: Weights, needed: tuple[bool, ...]
) -> list[Array]:
    """The gradient of `_value` in the leaves that are `needed`."""
    state, y = operands
    space, places = state.space, state.places
    order, m = space.order, places.shape[-1]

    def body(carry: Any, step: Any) -> tuple[Any, Slopes]:
        return _backward(state, weights, carry, step)

    def block(carry: Any, part: Any) -> tuple[Any, Slopes]:
        start, steps = part
        kept = lax.scan(lambda c, step: _forward(state, c, step), start, steps)[1][1]
        return lax.scan(body, carry, (kept, steps[1]), reverse=True)

    zero = jnp.zeros((order, order, m, m), y.dtype)
    total = Total(jnp.zeros((m, m), y.dtype), zero if space.regular else None)
    end = jnp.zeros((order, m), y.dtype), zero, total
    steps = _steps(state, y)
    if state.size < LONG:
        carry, by = lax.scan(body, end, (found.on_the_way, steps[1]), reverse=True)
    else:
        (starts, last), (head, tail) = found.on_the_way, _blocks(steps, state.size)
        carry, rest = block(end, (last, tail))
        carry, first = lax.scan(block, carry, (starts, head), reverse=True)
        by = _joined(first, rest)
    _, ell, total = carry
    by_places = total.places + _contracted(space.initial, ell)
    if total.ell is not None:
        by_places += _contracted(space.innovations, total.ell)
        by_q = _contracted(total.ell, places)
    else:
        by_q = by.innovation[:-1]
    by_space = StateSpace(
        jnp.sum(by.transition, axis=0) if space.regular else by.transition[:-1],
        by_q,
        _contracted(ell, places),
        by.nugget if space.nugget_varies or by.nugget is None else jnp.sum(by.nugget),
        space.regular,
        space.stationary,
    )
    by_leaf = jax.tree.leaves((FullState(by_space, by_places, by.precisions), by.data))
    return [slope for slope, want in zip(by_leaf, needed, strict=True) if want]


def _contracted(a: Array, b: Array) -> Array:
    """Over the last two axes of the first and the first two of the second."""
    return jnp.tensordot(a, b, precision=HIGHEST)


def _backward(state: FullState, weights: Weights, carry: Any, step: Any) -> tuple[Any, Slopes]:
    """One time backward: from `r` and `Λ` of the state at the next one to those at this one."""
    r, ell, total = carry
    kept, (root, nugget, steps) = step
    a, q = state.space.step(steps)
    order = r.shape[0]
    by_q, by_places = None, None
    if state.space.regular:
        total = total._replace(ell=total.ell + ell)
    else:
        by_q, by_places = _contracted(ell, state.places), _contracted(q, ell)
    # `Λ A`, and `Aᵀ Λ A`; first axes are exchanged, as these are the ones that cost nothing.
    half = matmul(a.T, jnp.swapaxes(ell, 0, 1).reshape(order, -1)).reshape(ell.shape)
    half = jnp.swapaxes(half, 0, 1).reshape(order, -1)
    by_a = 2 * matmul(half, kept.covariance.reshape(order, -1).T) + matmul(r, kept.mean.T)
    ell, r = matmul(a.T, half).reshape(ell.shape), matmul(a.T, r)
    r, ell, by_value, inside = _unseen(state, weights, r, ell, kept, root, nugget)
    known = root > 0
    own = inside if inside.ndim == 1 else jnp.diagonal(inside)
    by_w = jnp.where(known, -own / jnp.where(known, root, 1) ** 4, 0)
    by_nugget = None
    if state.space.nugget is not None:
        by_nugget = jnp.sum(inside * state.places)
        own = (state.space.nugget if nugget is None else nugget) * inside
        by_places = own if by_places is None else by_places + own
    if by_places is not None:
        total = total._replace(places=total.places + by_places)
    return (r, ell, total), Slopes(by_a, by_q, by_nugget, by_w, by_value)


def _unseen(
    state: FullState,
    weights: Weights,
    r: Array,
    ell: Array,
    kept: Kept,
    root: Array,
    nugget: Array | None,
) -> tuple[Array, Array, Array, Array]:
    """Back over the values at one time, by `T = I − H eᵀ`, `H = P_j0 W^½ (L Lᵀ)⁻¹ W^½`.

    Its first columns have `W^-½ (L Lᵀ)⁻¹ W^½` where there are data: of a difference from one,
    little noise leaves nothing, and `Λ` is as large as the noise is small.

    Returns:
        `r`, `Λ`, and the derivatives in the values and in their covariance, of which it is the
        diagonal without a nugget.
    """
    on_logdet, on_quadratic = weights
    order, m = r.shape
    known, alpha = root > 0, kept.weights
    inverse = matmul(kept.inverse.T, kept.inverse)
    precision = root[:, None] * inverse * root[None]
    gain = root[:, None] * kept.half
    left = root[:, None] * inverse / jnp.where(known, root, 1)[None]
    if state.space.nugget is not None:
        own = (state.space.nugget if nugget is None else nugget) * state.places
        left = left + matmul(precision, own)
    left = jnp.where(known[None], left, jnp.eye(m, dtype=r.dtype) - gain[:, :m])
    column = jnp.concatenate([left, -gain[:, m:]], axis=1)
    # `Λ H` and `Λ T e` are `Λ e` together: the smaller one is multiplied out.
    whole = jnp.swapaxes(ell, 1, 2).reshape(order * m, -1)
    small = (jnp.diagonal(gain) > 0.5)[:, None]
    product = matmul(jnp.where(small, column, gain), whole)
    other = whole[:m] - product
    by_gain, turned = jnp.where(small, other, product), jnp.where(small, product, other)
    seen = matmul(gain, r.ravel())
    by_score = on_logdet * precision - on_quadratic * alpha[:, None] * alpha[None]
    if state.space.nugget is None:
        inside = jnp.diagonal(by_score) - seen * alpha + jnp.sum(gain * by_gain, axis=1)
    else:
        both = seen[:, None] * alpha[None]
        inside = by_score - (both + both.T) / 2 + matmul(gain, by_gain.T)
    first = matmul(column, r.ravel())
    corner = matmul(turned, column.T) + alpha[:, None] * first[None]
    corner = (corner + corner.T) / 2 + by_score
    rows = jnp.moveaxis(turned.reshape(m, order, m), 1, 0)[1:]
    rows = rows + alpha[None, :, None] * r[1:, None] / 2
    lower = jnp.concatenate([jnp.swapaxes(rows, 1, 2)[:, None], ell[1:, 1:]], axis=1)
    ell = jnp.concatenate([jnp.concatenate([corner[None], rows])[None], lower])
    r = jnp.concatenate([(first - 2 * on_quadratic * alpha)[None], r[1:]])
    return r, ell, 2 * on_quadratic * alpha + seen, inside


def _along(
    operands: Any,
    found: Found,
    tangents: list,
    *,
    weights: Weights,
    needed: tuple[bool, ...],
) -> list[Array]:
    """The derivative of `_gradient`, from the plain recursion."""
    leaves, tree = jax.tree.flatten(operands)

    def value(*leaves: Array) -> Array:
        state, y = jax.tree.unflatten(tree, leaves)
        return _plain(state, y, weights)

    return gradient_along(
        value,
        leaves,
        [t for t in tangents if t is not None],
        given=tuple(t is not None for t in tangents),
        needed=needed,
    )


_primitive = RulePrimitive(
    "kronax_full_state_value",
    _value,
    by_gradient(RulePrimitive("kronax_full_state_gradient", _gradient, _along)),
)
