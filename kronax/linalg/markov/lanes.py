"""Signal plus noise with one Markov axis: a Kalman filter for every mode of the other axes."""

from collections.abc import Sequence
from functools import reduce
from math import log, pi, prod
from operator import mul
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fingerprints import held
from kronax.linalg.arrays.mode_products import apply_along, map_batch, same_rank
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.decompositions.abstract import Rows
from kronax.linalg.decompositions.implicit import implicit_solve
from kronax.linalg.decompositions.restricted import AbstractRestricted
from kronax.linalg.decompositions.spectral import Spectral
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.eigenbases import SymmetricBlocks, dual, eigenbases
from kronax.linalg.factors.submatrix import restricted
from kronax.linalg.markov import full_state
from kronax.linalg.markov.factor import Markov, MarkovAhead
from kronax.linalg.markov.filter import Lanes
from kronax.linalg.markov.kalman import AbstractKalman
from kronax.linalg.markov.smoother import Smoothed, gains, predicted, smoothed, solved
from kronax.linalg.markov.value_and_rules import (
    Bases,
    Constants,
    MarkovSum,
    lanes_of,
    log_det_and_quadratic,
    rotated,
)
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, aligned
from kronax.linalg.spectral.conditional_variances import (
    AxisModes,
    Places,
    applied,
    axis_shares,
    lifted,
    unexplained,
)
from kronax.linalg.spectral.value_and_rules import (
    TwoTermSum,
    Weights,
    log_det_basis,
    rotate,
    unrotate,
)
from kronax.linalg.state_spaces.state_space import StateSpace


class OtherBases(eqx.Module):
    """What an operator carries: the eigenbases of the axes beside the Markov one, in order."""

    bases: Bases


class Pieces(eqx.Module):
    """An operator taken apart: the Markov axis, and the bases of the others.

    Args:
        others: the blocks of the other axes, signal and noise.
        bases: in which both are diagonal.
        space: the process along the Markov axis.
        levels: the noise along it, sorted, `(*batch, n)`, or `(*batch,)` if `uniform`.
    """

    others: tuple[tuple[SymmetricBlocks, ...], tuple[SymmetricBlocks, ...]]
    bases: Bases
    space: StateSpace
    levels: Array
    uniform: bool = eqx.field(static=True)

    @property
    def event_ndims(self) -> "Pieces":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        signal, noise = (tuple(b.event_ndims for b in blocks) for blocks in self.others)
        bases = tuple(b.event_ndims for b in self.bases)
        levels: Any = 0 if self.uniform else 1
        return Pieces((signal, noise), bases, self.space.event_ndims, levels, self.uniform)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast batch of all of it."""
        pairs = zip(jax.tree.leaves(self), jax.tree.leaves(self.event_ndims), strict=True)
        return jnp.broadcast_shapes(*(x.shape[: x.ndim - ndim] for x, ndim in pairs))


def markov_axis(op: Any) -> int | None:
    """The axis that is filtered: the longest Markov one with independent noise along it."""
    if not isinstance(op.kronecker, Kronecker):
        return None
    noise: Any = getattr(getattr(op, "noise", None), "factors", [None] * len(op.factors))
    usable = [
        (factor.size, i)
        for i, (factor, own) in enumerate(zip(op.factors, noise, strict=True))
        if isinstance(factor, Markov) and isinstance(own, Diagonal | ScaledIdentity | None)
    ]
    return max(usable)[1] if usable else None


class KalmanLanes(AbstractKalman):
    """`⊗K_i + ⊗N_i` with one Markov axis: `eigh` of the others, a filter for each of their modes.

    Cost and memory are linear in the Markov axis. Derivatives of solves, log-determinants and
    quadratic forms are right at the same orders as elsewhere; those of diagonals are of first order
    and, but for a long axis with few places, go through the dense matrix of the Markov axis.

    Args:
        op: the operator, or its rows and columns at the times that have data.
    """

    op: Any

    @property
    def whole(self) -> KroneckerPlusNoise:
        """The operator on the whole grid."""
        return self.op.op if isinstance(self.op, AbstractRestricted) else self.op

    @property
    def axis(self) -> int:
        """The Markov axis."""
        axis = markov_axis(self.whole)
        assert axis is not None, "no Markov axis"
        return axis

    @property
    def observed(self) -> np.ndarray | None:
        """Which of the sorted times have data; `None` for all."""
        if not isinstance(self.op, AbstractRestricted):
            return None
        others = tuple(i for i in range(len(self.op.grid_shape)) if i != self.axis)
        observed = self.op.observed.any(axis=others)
        return None if observed.all() else np.asarray(self.factor.sorted(observed))

    @property
    def num_observed(self) -> int:
        """The number of cells with data."""
        size = prod(self.whole.grid_shape)
        observed = self.observed
        return size if observed is None else size // len(observed) * int(observed.sum())

    def solve(self, b: Array) -> Array:
        """Rotated, filtered, smoothed, and rotated back."""

        def one(held: tuple[Pieces], v: Array, transpose: bool) -> Array:
            (piece,) = held
            lanes = self._lanes(piece)
            at = gains(piece.space, lanes, self.factor.size)

            def alone(v: Array) -> Array:
                turned = self._front(v)
                found = solved(piece.space, lanes, at, rotated(piece.bases, turned))
                return self._back(unrotate(piece.bases, found.reshape(turned.shape)))

            for _ in range(v.ndim - len(self.whole.grid_shape)):
                alone = jax.vmap(alone)
            return alone(v)

        return implicit_solve(self.op, (lax.stop_gradient(self._pieces()),), one, self.op.held(b))

    def logdet(self) -> Array:
        """The sum of what every value adds."""
        return self._two_terms(None, (1.0, 0.0))

    def inv_quad(self, b: Array) -> Array:
        """The squared innovations."""
        return self._two_terms(b, (0.0, 1.0))

    def logpdf(self, residual: Array) -> Array:
        """Both from one filter."""
        both = self._two_terms(residual, (-0.5, -0.5))
        return both - self.num_observed * log(2 * pi) / 2

    def inverse_diagonal(self) -> Array:
        """From the smoother."""
        return self.op.held(self.explained([None] * len(self.whole.grid_shape)))

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """By the smoother; rows along the Markov axis take a solve each."""
        sides = [list(rows), list(rows if others is None else others)]
        k, pieces = self.axis, lax.stop_gradient(self._pieces())

        def one(piece: Pieces, sides: list) -> Array:
            (c, b), (rest_c, rest_b) = ([x[k] for x in sides], [_without(x, k) for x in sides])
            lanes = self._lanes(piece)
            if c is None and b is None:
                look = self._smoothed(piece.space, lanes, self.factor.size)
                value = self.factor.unsorted(look.inverse)
            else:
                value = self._between(piece, lanes, c, b)
            value = value.reshape(value.shape[0], *(x.values.shape[-1] for x in piece.bases))
            for i, (basis, u, v) in enumerate(zip(piece.bases, rest_c, rest_b, strict=True)):
                u, v = (basis.matrix() if x is None else basis.right(x) for x in (u, v))
                value = apply_along(u * v, value, i - len(piece.bases))
            return jnp.moveaxis(value, 0, k)

        ndims = [[None if x is None else 2 for x in side] for side in sides]
        given = [x.shape[:-2] for side in sides for x in side if x is not None]
        batch = jnp.broadcast_shapes(pieces.batch_shape, *given)
        held = lax.stop_gradient(sides)
        value = map_batch(one, batch, (pieces, pieces.event_ndims), (held, ndims))
        is_own = others is None and all(row is None for row in rows)
        if is_own and (state := self.state()) is not None:
            return with_value(self._on_grid(full_state.smoothed(state).inverse), value)
        if others is None and not batch and self.are_few(rows):
            return with_value(self.by_solves(rows), value)
        inner, kept = self._dense()
        at_kept = [None if others is None else self._at(side, kept) for side in sides]
        return with_value(inner.explained(self._at(sides[0], kept), at_kept[1]), value)

    def state(self) -> full_state.FullState | None:
        """All modes in one filter, for derivatives; `None` where a dense matrix is no larger."""
        return full_state.of_operator(self.whole, self.axis, getattr(self.op, "observed", True))

    def posterior_diagonal(self) -> Array:
        """Sums of products, none of them a difference where there are data."""
        places = [Places(None)] * len(self.whole.grid_shape)
        if (state := self.state()) is not None:
            like = self._on_grid(full_state.smoothed(state).variances)
            return with_value(like, self.variance_given(places))
        rows = [f.to_dense() for f in self.whole.factors]
        inner, kept = self._dense()
        prior = self.whole.kronecker.diagonal()
        like = jnp.subtract(*same_rank(prior, inner.explained(self._at(rows, kept))))
        return with_value(like, self.variance_given(places))

    def _smoothed_variance(self, places: Sequence[Places]) -> Array:
        k, pieces = self.axis, self._pieces()
        ahead, part, prior = self._along(places)

        def one(piece: Pieces, places: list[Places], prior: Array) -> Array:
            duals = map(dual, piece.bases, *piece.others)
            axes = [AxisModes(b, v) for b, v in zip(piece.bases, duals, strict=True)]
            moved = [a if p.rows is None else lifted(a) for a, p in zip(axes, places, strict=True)]
            shares = list(map(axis_shares, moved, axes, places))
            bases = tuple(a.basis for a in moved)
            known = self._variances(piece, self._lanes(piece, bases), ahead, part)
            if not shares:
                return known[:, 0]
            known = known.reshape(-1, *(b.values.shape[-1] for b in bases))
            left = unexplained(shares)
            value = applied(shares, known) + prior.reshape(-1, *(1,) * left.ndim) * left[None]
            return jnp.moveaxis(value, 0, k)

        rest = _without(places, k)
        held, ndims = [rest, prior], [[p.event_ndims for p in rest], 1]
        pairs = zip(jax.tree.leaves(held), jax.tree.leaves(ndims), strict=True)
        given = [x.shape[: x.ndim - ndim] for x, ndim in pairs]
        batch = jnp.broadcast_shapes(pieces.batch_shape, *given)
        return map_batch(
            one, batch, (pieces, pieces.event_ndims), (rest, ndims[0]), (prior, ndims[1])
        )

    def times_given_others(self, fields: Array) -> tuple[Array, Array, Array]:
        """Whole times, each given all others: `C_t x_t` of fields, the diagonals, `log det C_t`.

        `C_t = ([S⁻¹]_tt)⁻¹ = V diag(1 / [S_a⁻¹]_tt) Vᵀ` with the dual bases `V` of the others.
        Without a batch; values, held constant.
        """
        piece = lax.stop_gradient(self._pieces())
        look = self._smoothed(piece.space, self._lanes(piece), self.factor.size)
        duals = tuple(map(dual, piece.bases, *piece.others))
        weights = self.factor.unsorted(1 / look.inverse)
        weights = weights.reshape(-1, *(b.values.shape[-1] for b in piece.bases))

        def one(x: Array) -> Array:
            front = jnp.moveaxis(x, self.axis, 0)
            return jnp.moveaxis(unrotate(duals, weights * rotate(duals, front)), 0, self.axis)

        for _ in range(fields.ndim - len(self.whole.grid_shape)):
            one = jax.vmap(one)
        diagonal = weights
        for i, basis in enumerate(duals):
            squares = jnp.square(basis.matrix())
            diagonal = apply_along(squares, diagonal, i - len(duals))
        whole = log_det_basis(piece.bases) if piece.bases else 0.0
        across = tuple(range(1, weights.ndim))
        log_det = jnp.sum(jnp.log(weights), axis=across) - whole
        return one(fields), jnp.moveaxis(diagonal, 0, self.axis), log_det

    def computed(self) -> OtherBases:
        """One eigenbasis per axis beside the Markov one."""
        return OtherBases(self._bases())

    def ends(self) -> Ends | None:
        """Of what is decomposed: the other axes, with the largest variance along this one.

        The filter itself loses no digits.
        """
        pieces = self._pieces()
        if not pieces.bases:
            return None
        top, most, least = (
            reduce(mul, [end(v, -1) for v in values])
            for end, values in (
                (jnp.max, [b.values for b in pieces.bases]),
                (jnp.max, [b.noise_values for b in pieces.bases]),
                (jnp.min, [b.noise_values for b in pieces.bases]),
            )
        )
        levels = pieces.levels[..., None] if pieces.uniform else pieces.levels
        scale = jnp.max(pieces.space.initial[..., 0, 0])
        return Ends(top * scale + most * jnp.max(levels, -1), least * jnp.min(levels, -1))

    def _bases(self) -> Bases:
        whole = self.whole
        carried = held(self.op, getattr(self.op, "decomposition", None))
        if isinstance(carried, OtherBases):
            return lax.stop_gradient(carried.bases)
        pairs = zip(*self._blocks(), strict=True)
        return eigenbases(pairs, batched=bool(whole.batch_shape))

    def _blocks(self) -> tuple[tuple[SymmetricBlocks, ...], tuple[SymmetricBlocks, ...]]:
        """Signal and noise of the other axes; the Markov axis has a number for its noise."""
        whole, k = self.whole, self.axis
        noise: Any = [None] * len(whole.factors)
        if isinstance(whole.noise, Kronecker):
            noise = whole.noise.factors
        one = jnp.ones((), whole.dtype)
        pairs = [
            aligned(f, ScaledIdentity(one, f.size) if n is None else n)
            for f, n in zip(_without(whole.factors, k), _without(noise, k), strict=True)
        ]
        return tuple(p for p, _ in pairs), tuple(n for _, n in pairs)

    def _pieces(self) -> Pieces:
        whole = self.whole
        if not isinstance(whole.noise, Kronecker):
            levels, uniform = whole.noise, True
        else:
            along = whole.noise.factors[self.axis]
            uniform = isinstance(along, ScaledIdentity)
            levels = along.scale if isinstance(along, ScaledIdentity) else along.diagonal()
        if not uniform and self.factor.order is not None:
            levels = levels[..., self.factor.order.sorting]
        return Pieces(self._blocks(), self._bases(), self.factor.space, levels, uniform)

    def _lanes(self, piece: Pieces, bases: Bases | None = None) -> Lanes:
        observed = None if self.observed is None else jnp.asarray(self.observed)
        return lanes_of(piece.bases if bases is None else bases, piece.levels, observed)

    def _front(self, x: Array) -> Array:
        return self.factor.sorted(jnp.moveaxis(x, self.axis, 0))

    def _back(self, x: Array) -> Array:
        return jnp.moveaxis(self.factor.unsorted(x), 0, self.axis)

    def _two_terms(self, y: Array | None, weights: Weights) -> Array:
        pieces, num_axes = self._pieces(), len(self.whole.grid_shape)
        y = None if y is None else self.op.held(y)
        lead = () if y is None else y.shape[: y.ndim - num_axes]
        batch = checks.check_broadcast([pieces.batch_shape, lead], "the operator and the vector")

        def one(piece: Pieces, y: Array | None) -> Array:
            data = None if y is None else self._front(y)
            problem = MarkovSum(TwoTermSum(*piece.others, data), piece.space, piece.levels)
            observed = None if self.observed is None else jnp.asarray(self.observed)
            constants = Constants.of(
                lax.stop_gradient(problem),
                lax.stop_gradient(piece.bases),
                self.factor.size,
                observed,
            )
            return log_det_and_quadratic(problem, constants, weights=weights)

        return map_batch(
            one, batch, (pieces, pieces.event_ndims), (y, None if y is None else num_axes)
        )

    def _smoothed(self, space: StateSpace, lanes: Lanes, size: int, part: Any = None) -> Smoothed:
        return smoothed(space, lanes, predicted(space, lanes, size), part)

    def _variances(
        self, piece: Pieces, lanes: Lanes, ahead: MarkovAhead | None, part: Any
    ) -> Array:
        """Of the signal given the data, over `λ`, at all times of all lanes or at new ones."""
        space, size = piece.space, self.factor.size
        if ahead is not None:
            known = jnp.ones(size, bool) if lanes.observed is None else lanes.observed
            observed, levels = self.factor.unsorted(known), lanes.levels
            if levels.ndim:
                levels = ahead.padded(self.factor.unsorted(levels), 1)
            lanes = lanes._replace(observed=ahead.padded(observed, False), levels=levels)
            space, size = ahead.space, ahead.size
        look = self._smoothed(space, lanes, size, part)
        nugget = jnp.zeros((), space.dtype) if space.nugget is None else space.nugget
        nugget = nugget[:, None] if space.nugget_varies else nugget
        levels = lanes.levels[:, None] if lanes.levels.ndim else lanes.levels
        known = lanes.noise[None] * levels * (look.shares + nugget * look.inverse)
        if part is not None:
            known = look.variances
        elif lanes.observed is not None:
            known = jnp.where(lanes.observed[:, None], known, look.variances + nugget)
        return self.factor.unsorted(known) if ahead is None else ahead.at_new(known)

    def _between(self, piece: Pieces, lanes: Lanes, c: Array | None, b: Array | None) -> Array:
        """`c_iᵀ S_a⁻¹ b_i` for the rows of two matrices, `(m, lanes)`."""
        eye = jnp.eye(self.factor.size, dtype=piece.space.dtype)
        c, b = (eye if x is None else x for x in (c, b))
        at = gains(piece.space, lanes, self.factor.size)

        def one(pair: tuple[Array, Array]) -> Array:
            left, right = (self.factor.sorted(x)[:, None] for x in pair)
            right = jnp.broadcast_to(right, at.precision.shape)
            return jnp.sum(left * solved(piece.space, lanes, at, right), axis=0)

        return lax.map(one, (c, b))

    def _on_grid(self, x: Array) -> Array:
        return full_state.on_grid(x, self.factor, self.axis, self.whole.grid_shape)

    def _dense(self) -> tuple[Spectral, np.ndarray]:
        """The operator at the times with data, the Markov factor as a matrix; for derivatives."""
        whole, k = self.whole, self.axis
        observed = np.ones(self.factor.size, bool) if self.observed is None else self.observed
        kept = np.flatnonzero(np.asarray(self.factor.unsorted(observed)))
        factors = list(whole.factors)
        factors[k] = restricted(Dense(self.factor.to_dense()), kept)
        noise: Any = whole.noise
        if isinstance(noise, Kronecker):
            own = list(noise.factors)
            own[k] = restricted(own[k], kept)
            noise = Kronecker(*own)
        return Spectral(KroneckerPlusNoise(Kronecker(*factors), noise)), kept

    def _at(self, rows: Sequence[Array | None], kept: np.ndarray) -> list[Array | None]:
        """Rows with the columns along the Markov axis that have data."""
        if len(kept) == self.factor.size:
            return list(rows)
        own = rows[self.axis]
        own = jnp.eye(self.factor.size, dtype=self.whole.dtype) if own is None else own
        return [own[..., kept] if i == self.axis else row for i, row in enumerate(rows)]


def _without(items: Any, k: int) -> list:
    return [x for i, x in enumerate(items) if i != k]
