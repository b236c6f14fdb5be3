"""`a · log det S + b · yᵀ S⁻¹ y` of `S = K_t ⊗ (⊗K_i) + diag(ν) ⊗ (⊗N_i)`, right to second order.

One axis, the first here, is Markov; the others are diagonalised together, and every mode of them
is a lane of the filter. As in `linalg.spectral.value_and_rules` nothing goes through eigenvectors:
the gradient is known in closed form, and its derivative is that of the gradient of a surrogate
with frozen bases. For an off-diagonal part `O` of an axis the log-determinant of that has the
term `−½ Σ O_ac² tr(S_a⁻¹ K S_c⁻¹ K)`, the traces by a recursion over pairs of lanes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, apart, gram, matmul, outer, sum_others
from kronax.linalg.arrays.primitives import (
    LinearPrimitive,
    RulePrimitive,
    by_gradient,
    by_product,
    gradient_along,
)
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, split_blocks
from kronax.linalg.markov.factor import multiplied
from kronax.linalg.markov.filter import Filtered, Lanes, filtered, slopes
from kronax.linalg.markov.smoother import gains, pair_sums, smoothed, solved
from kronax.linalg.spectral.value_and_rules import (
    TwoTermSum,
    Weights,
    apply_blocks,
    diagonal_of,
    in_basis,
    log_det_basis,
    off_diagonal,
    rotate,
    rotations,
    unrotate,
)
from kronax.linalg.state_spaces.state_space import StateSpace, sum_of

Bases = tuple[Eigenbasis, ...]


class MarkovSum(NamedTuple):
    """What is differentiated.

    Args:
        others: the blocks of both terms on the other axes, and the data `(n, *others)`.
        space: the process along the Markov axis.
        levels: `ν`, `(n,)` or `()`.
    """

    others: TwoTermSum
    space: StateSpace
    levels: Array


class Constants(NamedTuple):
    """What was computed of it, and where there are data, `(n,)` or everywhere."""

    bases: Bases
    logdet: Array
    quadratic: Array
    found: Filtered
    observed: Array | None

    @classmethod
    def of(
        cls, problem: MarkovSum, bases: Bases, size: int, observed: Array | None = None
    ) -> "Constants":
        """The filter of the data, or of zeros if there are none."""
        y, space, levels = problem.others.y, problem.space, problem.levels
        lanes = lanes_of(bases, levels, observed)
        shape = (size, lanes.signal.size)
        data = jnp.zeros(shape, levels.dtype) if y is None else rotated(bases, y)
        return cls(bases, *filtered(space, lanes, data), observed)


def lanes_of(bases: Bases, levels: Array, observed: Array | None) -> Lanes:
    """One lane per mode of the other axes; one if there are no others."""
    if not bases:
        one = jnp.ones(1, levels.dtype)
        return Lanes(one, one, levels, observed)
    values = (outer([b.values for b in bases]), outer([b.noise_values for b in bases]))
    return Lanes(values[0].ravel(), values[1].ravel(), levels, observed)


def flat(x: Array) -> Array:
    """`(n, *others)` as `(n, lanes)`."""
    return x.reshape(x.shape[0], -1)


def rotated(bases: Bases, y: Array) -> Array:
    """`Wᵀ` along the other axes, as `(n, lanes)`."""
    return flat(rotate(bases, y))


def _value(problem: MarkovSum, constants: Constants, *, weights: Weights) -> Array:
    on_logdet, on_quadratic = weights
    total = jnp.zeros((), constants.logdet.dtype)
    if on_logdet:
        if constants.observed is None:
            count: Any = constants.found.means.shape[0]
        else:
            count = jnp.sum(constants.observed, dtype=total.dtype)
        basis = log_det_basis(constants.bases) if constants.bases else 0.0
        total += on_logdet * (jnp.sum(constants.logdet) - count * basis)
    if on_quadratic:
        total += on_quadratic * jnp.sum(constants.quadratic)
    return total


def _gradient(
    problem: MarkovSum, constants: Constants, *, weights: Weights, needed: tuple[bool, ...]
) -> list[Array]:
    """The gradient of `_value` in the leaves of `problem` that are `needed`.

    With `u = 2 b α`, that of `K_i` is `W_i G W_iᵀ`, where `G` has the slopes of the lanes on its
    diagonal and `−U_(i) diag(λ_{-i}) (K_t U)_(i)ᵀ / 4b` beside it.
    """
    bases, space = constants.bases, problem.space
    lanes = lanes_of(bases, problem.levels, constants.observed)
    y, size = problem.others.y, constants.found.means.shape[0]
    data = jnp.zeros((size, lanes.signal.size), lanes.signal.dtype)
    data = data if y is None else rotated(bases, y)
    found = slopes(space, lanes, data, constants.found, weights)
    shape = tuple(b.values.shape[-1] for b in bases)
    levels = problem.levels.reshape(*problem.levels.shape, *(1,) * problem.levels.ndim * len(bases))
    u = found.data.reshape(size, *shape)
    terms = (
        ([b.values for b in bases], found.signal, found.explained.reshape(u.shape)),
        ([b.noise_values for b in bases], found.noise, levels * u),
    )
    by_leaf: list[Array] = []
    for blocks, (values, on_lanes, product) in zip(
        (problem.others.signal, problem.others.noise), terms, strict=True
    ):
        on_lanes = on_lanes.reshape(shape)
        for i, (block, basis) in enumerate(zip(blocks, bases, strict=True)):
            weight, axis = outer(values, skip=i), i - len(bases)
            diagonal = sum_others(weight * on_lanes, axis)
            pair = None
            if weights[1] and y is not None:
                pair = (-u * weight[None] / (4 * weights[1]), product)
            by_leaf += _block_slopes(block, basis, diagonal, pair, axis)
    if y is not None:
        by_leaf.append(unrotate(bases, u))
    by_leaf += [*jax.tree.leaves(found.space), found.levels]
    return [slope for slope, want in zip(by_leaf, needed, strict=True) if want]


def _block_slopes(
    block: SymmetricBlocks,
    basis: Eigenbasis,
    diagonal: Array,
    pair: tuple[Array, Array] | None,
    axis: int,
) -> list[Array]:
    """In the blocks of one axis: `W G Wᵀ`, and of that what a block has."""
    pieces = [split_blocks(x, block.sizes, axis) for x in pair or ()]
    by_block = []
    for k, (ndim, w, own) in enumerate(
        zip(block.ndims, basis.blocks, split_blocks(diagonal, block.sizes, -1), strict=True)
    ):
        if ndim == 0 or w is None:
            by_block.append(jnp.sum(own) if ndim == 0 else own)
            continue
        slope = jnp.diag(own)
        if pieces:
            beside = gram(pieces[0][k], pieces[1][k], axis)
            slope = slope + off_diagonal(beside + beside.T) / 2
        turned = matmul(w, slope)
        full = ndim == 2
        by_block.append(apart(matmul(turned, w.T)) if full else jnp.sum(turned * w, axis=-1))
    return by_block


def _hessian_product(
    coefficients: tuple[MarkovSum, Constants],
    moving: list[Array],
    *,
    weights: Weights,
    needed: tuple[bool, ...],
    given: tuple[bool, ...],
) -> list[Array]:
    """The derivative of `_gradient` along `moving`, the tangents of the `given` leaves."""
    problem, constants = coefficients
    bases = constants.bases
    turned = MarkovSum(in_basis(problem.others, bases), problem.space, problem.levels)
    here, treedef = jax.tree.flatten(turned)
    to_basis, from_basis = rotations(problem.others, bases)
    extra = len(here) - len(to_basis)
    to_basis, from_basis = ([*maps, *[_same] * extra] for maps in (to_basis, from_basis))
    pairs = zip(to_basis, given, strict=True)
    turns = [turn for turn, is_given in pairs if is_given]
    tangents = [turn(t) for turn, t in zip(turns, moving, strict=True)]
    surrogate = _Surrogate.around(turned, constants, weights)
    found = gradient_along(
        lambda *leaves: surrogate(jax.tree.unflatten(treedef, leaves), weights),
        here,
        tangents,
        given=given,
        needed=needed,
    )
    backs = [back for back, is_needed in zip(from_basis, needed, strict=True) if is_needed]
    return [back(t) for back, t in zip(backs, found, strict=True)]


def _same(x: Array) -> Array:
    return x


class _Surrogate(NamedTuple):
    """Agrees with `_value` to second order around diagonal blocks, with frozen bases.

    The lanes alone are as the filter has them. For what is beside them, `E`, the quadratic form has
    `−α̂ᵀ E α̂ + (E α)ᵀ S⁻¹ E α` with `α̂ = α + S⁻¹ (ŷ − S_a α)`.

    Args:
        space, lanes: those around which it is.
        gains: of their filter.
        start: `α = S⁻¹ ŷ`, `(n, *others)`; `None` where nothing is beside the lanes.
        couplings: per axis `tr(S_a⁻¹ K S_c⁻¹ K)`, the same with `N` twice, and with both.
        observed: where there are data.
    """

    space: StateSpace
    lanes: Lanes
    gains: Any
    start: Array | None
    couplings: list[tuple[Array, Array, Array]]
    observed: Array | None

    @classmethod
    def around(cls, turned: MarkovSum, constants: Constants, weights: Weights) -> "_Surrogate":
        others, space, levels = turned
        bases, observed = constants.bases, constants.observed
        lanes = lanes_of(bases, levels, observed)
        size = constants.found.means.shape[0]
        at = gains(space, lanes, size)
        start, couplings = None, []
        are_coupled = any(2 in b.ndims for b in (*others.signal, *others.noise))
        if weights[1] and are_coupled:
            start = solved(space, lanes, at, flat(others.y)).reshape(others.y.shape)
        if weights[0] and are_coupled:
            couplings = _couplings(space, lanes, bases, constants.found)
        return cls(space, lanes, at, start, couplings, observed)

    def __call__(self, problem: MarkovSum, weights: Weights) -> Array:
        """The value at moved blocks, process, levels and data."""
        on_logdet, on_quadratic = weights
        others, space, levels = problem
        lanes = self.lanes._replace(levels=levels)
        if others.signal:
            signal, noise = (
                outer([diagonal_of(b) for b in blocks]).ravel()
                for blocks in (others.signal, others.noise)
            )
            lanes = lanes._replace(signal=signal, noise=noise)
        nothing = jnp.zeros(self.gains.precision.shape, levels.dtype)
        data = flat(others.y) if on_quadratic else nothing
        logs, squares, _ = filtered(space, lanes, data)
        total = on_logdet * jnp.sum(logs) + on_quadratic * jnp.sum(squares)
        for i, coupling in enumerate(self.couplings):
            total -= on_logdet / 2 * _coupled(others.signal[i], others.noise[i], *coupling)
        if self.start is not None:
            own, beside = self._apply(problem, lanes)
            change = solved(self.space, self.lanes, self.gains, flat(2 * (others.y - own) - beside))
            total -= on_quadratic * jnp.sum(beside * (self.start + change.reshape(beside.shape)))
        return total

    def _apply(self, problem: MarkovSum, lanes: Lanes) -> tuple[Array, Array]:
        """`S_a α` of the lanes, and `E α` of what is beside them, where there are data."""
        x: Any = self.start
        others, space, levels = problem
        # As a function of all leaves, as it is in the filter, where `Q` makes what follows.
        space = dataclasses.replace(space, stationary=False)
        along = multiplied(space, flat(x)).reshape(x.shape)
        noise = levels.reshape(*levels.shape, *(1,) * (x.ndim - 1) * levels.ndim) * x
        values = (v.reshape(1, *x.shape[1:]) for v in (lanes.signal, lanes.noise))
        own = sum_of(v * term for v, term in zip(values, (along, noise), strict=True))
        total = apply_blocks(others.signal, along) + apply_blocks(others.noise, noise)
        if self.observed is None:
            return own, total - own
        observed = self.observed.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(observed, own, 0), jnp.where(observed, total - own, 0)


def _couplings(
    space: StateSpace, lanes: Lanes, bases: Bases, found: Filtered
) -> list[tuple[Array, Array, Array]]:
    shape = tuple(b.values.shape[-1] for b in bases)
    size = found.means.shape[0]
    signal, noise = [b.values for b in bases], [b.noise_values for b in bases]
    couplings = []
    for i in range(len(bases)):
        # The lanes in groups that differ along axis i alone.
        def grouped(x: Array, i: int = i) -> Array:
            x = x.reshape(*x.shape[:-1], *shape)
            return jnp.moveaxis(x, x.ndim - len(shape) + i, -1).reshape(
                *x.shape[: x.ndim - len(shape)], -1
            )

        own = lanes._replace(signal=grouped(lanes.signal), noise=grouped(lanes.noise))
        look = smoothed(space, own, grouped(found.covariances))
        at = gains(space, own, size)
        sums = pair_sums(space, own, at, look, shape[i])

        def pairs(x: Array, y: Array, i: int = i) -> Array:
            x, y = (v.reshape(v.shape[0], -1, shape[i]) for v in (x, y))
            return jnp.einsum("nga,ngc->gac", x, y, precision=HIGHEST)

        levels = lanes.levels.reshape(-1, 1) if lanes.levels.ndim else lanes.levels
        nugget = space.nugget
        if nugget is not None and space.nugget_varies:
            nugget = nugget[:, None]
        shares = look.shares if nugget is None else look.shares + nugget * look.inverse
        inverse = levels * look.inverse
        lam, mu = (x.reshape(-1, shape[i]) for x in (own.signal, own.noise))
        k_others, n_others = (
            grouped(jnp.broadcast_to(outer(v, skip=i), shape).ravel()).reshape(-1, shape[i])[:, :1]
            for v in (signal, noise)
        )
        k_others, n_others = k_others[..., None], n_others[..., None]
        both_k = pairs(shares, shares) + 2 * mu[:, :, None] * mu[:, None] * sums
        both_n = pairs(inverse, inverse) + 2 * lam[:, :, None] * lam[:, None] * sums
        mixed = pairs(shares, inverse) - 2 * mu[:, :, None] * lam[:, None] * sums
        couplings.append(
            (
                jnp.sum(k_others**2 * both_k, axis=0),
                jnp.sum(n_others**2 * both_n, axis=0),
                jnp.sum(k_others * n_others * mixed, axis=0),
            )
        )
    return couplings


def _coupled(
    signal: SymmetricBlocks, noise: SymmetricBlocks, by_k: Array, by_n: Array, mixed: Array
) -> Array:
    """`Σ_{a≠c} tr(S_a⁻¹ E_ac S_c⁻¹ E_ca)` over the off-diagonal entries of one axis."""
    total = jnp.zeros((), by_k.dtype)
    start = 0
    for k, k_ndim, n, n_ndim, size in zip(
        signal.arrays, signal.ndims, noise.arrays, noise.ndims, signal.sizes, strict=True
    ):
        cut = slice(start, start + size)
        start += size
        if k_ndim == 2:
            total += jnp.sum(jnp.square(off_diagonal(k)) * by_k[cut, cut])
        if n_ndim == 2:
            total += jnp.sum(jnp.square(off_diagonal(n)) * by_n[cut, cut])
        if k_ndim == n_ndim == 2:
            total += 2 * jnp.sum(off_diagonal(k) * off_diagonal(n) * mixed[cut, cut])
    return total


hessian_product = LinearPrimitive(
    "kronax_markov_hessian_product", _hessian_product, "A log-determinant or quadratic form"
)
gradient = RulePrimitive("kronax_markov_gradient", _gradient, by_product(hessian_product))
log_det_and_quadratic = RulePrimitive("kronax_markov_value", _value, by_gradient(gradient))
