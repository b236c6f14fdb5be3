"""The covariance of data at some cells of a grid with a Markov axis, and how it is solved."""

from collections.abc import Sequence
from math import log, pi
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.fingerprints import fingerprint
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.arrays.primitives import with_value
from kronax.linalg.decompositions.abstract import Rows
from kronax.linalg.decompositions.implicit import implicit_solve
from kronax.linalg.decompositions.restricted import AbstractMasked
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.eigenbases import Eigenbasis, eigenbasis
from kronax.linalg.markov import full_state, square_root
from kronax.linalg.markov.full_state import FullState
from kronax.linalg.markov.full_state_value import Weights, log_det_and_quadratic
from kronax.linalg.markov.kalman import AbstractKalman
from kronax.linalg.markov.lanes import KalmanLanes, markov_axis
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, aligned
from kronax.linalg.spectral.conditional_variances import (
    AxisModes,
    Places,
    axis_shares,
    lifted,
    unexplained,
)


class MarkovAtObserved(AbstractMasked):
    """Signal plus noise at some cells of a grid, one axis of which is Markov.

    Where whole times are missing and the noise has a structure, every mode of the other axes is
    filtered alone. Any other gaps, and a variance per cell, take one filter of all places at once.

    Args:
        op: a Kronecker product with a `kx.Markov` factor, plus noise that does not correlate.
        mask: where cells are observed; infinite variances of `op`, also traced ones, are gaps too.
        decomposition: what was computed of it.
    """

    op: KroneckerPlusNoise | KroneckerPlusDiagonal
    mask: Mask = eqx.field(static=True)
    decomposition: Any = None
    made_of: Any = None

    @property
    def axis(self) -> int:
        """The Markov axis that is filtered."""
        axis = markov_axis(self.op)
        assert axis is not None, "no Markov axis"
        return axis

    @property
    def misses_whole_times(self) -> bool:
        """Whether no time has gaps in some places alone."""
        return misses_whole_times(self.mask, self.axis)

    def scaled(self, scalar: Array) -> "MarkovAtObserved":
        """`scalar * self`."""
        return MarkovAtObserved(self.op.scaled(scalar), self.mask)

    def __add__(self, other: Any) -> AbstractOperator:
        raise TypeError(
            "Nothing can be added to a covariance at observed cells: add to the operator that it "
            "is made of."
        )

    __radd__ = __add__

    def decomposed(self) -> "KalmanLanes | KalmanPlaces":
        """Mode by mode where that is possible."""
        is_even = isinstance(self.op, KroneckerPlusNoise) and self.misses_whole_times
        return KalmanLanes(self) if is_even else KalmanPlaces(self)

    def carrying(self, computed: Any) -> "MarkovAtObserved":
        """The same operator with what was computed of it."""
        made_of = None if computed is None else fingerprint(self)
        return MarkovAtObserved(self.op, self.mask, computed, made_of)

    def mappable(self) -> "MarkovAtObserved":
        """The same without its decomposition, every leaf with the batch axes in front."""
        op: Any = self.op
        return MarkovAtObserved(op.mappable(), self.mask)

    def event_ndims(self) -> "MarkovAtObserved":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        op: Any = self.op
        return MarkovAtObserved(op.event_ndims(), self.mask)


def misses_whole_times(mask: Mask, axis: int) -> bool:
    """Whether no place along the axis has gaps at some places of the others alone."""
    others = tuple(i for i in range(mask.array.ndim) if i != axis)
    observed = mask.array.any(axis=others, keepdims=True)
    return bool((mask.array == observed).all())


class KalmanPlaces(AbstractKalman):
    """Any gaps and a variance per cell: one filter whose state is that of all places.

    `O(n m³ d²)` operations for `m` places and `n` times; derivatives of every order.
    """

    op: MarkovAtObserved

    @property
    def axis(self) -> int:
        """The Markov axis."""
        return self.op.axis

    def state(self) -> FullState:
        """The process over places and times, with precisions that are zero at gaps."""
        op: Any = self.op.op
        if isinstance(op, KroneckerPlusDiagonal):
            precisions = op.precisions
        else:
            noise = op.noise
            levels = noise.diagonal() if isinstance(noise, Kronecker) else noise
            precisions = jnp.broadcast_to(1 / levels, op.grid_shape)
        precisions = jnp.where(self.op.mask.array, precisions, 0)
        return full_state.of_grid(self.op.factors, self.op.axis, precisions)

    def solve(self, b: Array) -> Array:
        """One pass forward and one back."""

        def one(held: tuple[Any, ...], v: Array, transpose: bool) -> Array:
            state, found = held

            def alone(v: Array) -> Array:
                return self._back(full_state.solved(state, found, self._front(v)))

            for _ in range(v.ndim - len(self.op.grid_shape)):
                alone = jax.vmap(alone)
            return alone(v)

        state = lax.stop_gradient(self.state())
        held = (state, full_state.filtered(state))
        return implicit_solve(self.op, held, one, self.op.held(b))

    def logdet(self) -> Array:
        """The sum of what every time adds."""
        return self._terms(jnp.zeros(self.op.grid_shape, self.op.dtype), (1.0, 0.0))

    def inv_quad(self, b: Array) -> Array:
        """The squared innovations."""
        return self._terms(b, (0.0, 1.0))

    def logpdf(self, residual: Array) -> Array:
        """Both from one filter."""
        terms = self._terms(residual, (-0.5, -0.5))
        return terms - jnp.sum(jnp.asarray(self.op.observed), dtype=terms.dtype) * (log(2 * pi) / 2)

    def inverse_diagonal(self) -> Array:
        """Sums of squares, with the derivative of the smoother."""
        state = self.state()
        look = full_state.smoothed(state)
        value = with_value(look.inverse, square_root.inverse_diagonal(state))
        return self.op.held(self._back(value))

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """One solve for every row."""
        assert others is None, "two sides are for terms beside the noise"
        if all(row is None for row in rows):
            return self.inverse_diagonal()
        return self.by_solves(rows)

    def posterior_diagonal(self) -> Array:
        """Sums of squares, with the derivative of the smoother."""
        state = self.state()
        look = full_state.smoothed(state)
        return with_value(self._back(look.variances), self._back(square_root.variances(state)))

    def _smoothed_variance(self, places: Sequence[Places]) -> Array:
        """New places are known by the old ones: `B = C K_s⁻¹`, and what is left of them."""
        state, k = self.state(), self.axis
        ahead, part, prior = self._along(places)
        others = [
            (f, p) for i, (f, p) in enumerate(zip(self.op.factors, places, strict=True)) if i != k
        ]
        axes, moved, rows = [], [], []
        one = jnp.ones((), self.op.dtype)
        for factor, place in others:
            basis = eigenbasis(*aligned(factor, ScaledIdentity(one, factor.size)))
            axes.append(AxisModes(basis, basis))
            moved.append(axes[-1] if place.rows is None else lifted(axes[-1]))
            rows.append(_by_old(moved[-1].basis, place.rows))
        shares = list(map(axis_shares, moved, axes, [place for _, place in others]))
        if ahead is not None:
            state = self._going_on(state, ahead)
        by_old = Kronecker(*rows).to_dense() if rows else None
        known = square_root.variances(state, by_old, part)
        known = self.factor.unsorted(known) if ahead is None else ahead.at_new(known)
        left = unexplained(shares) if shares else jnp.zeros((), self.op.dtype)
        value = known + prior[:, None] * left.ravel()[None]
        return jnp.moveaxis(value.reshape(-1, *left.shape), 0, k)

    def computed(self) -> None:
        """Nothing that is cheaper to keep than to make again."""
        return None

    def ends(self) -> Ends:
        """A bound: the largest row sum of the places, and the smallest variance of the noise."""
        state = self.state()
        largest = jnp.max(jnp.sum(jnp.abs(state.places), axis=-1)) * state.space.initial[0, 0]
        least = 1 / jnp.max(state.precisions)
        return Ends(largest + least, least)

    def _terms(self, y: Array, weights: Weights) -> Array:
        state = self.state()

        def alone(y: Array) -> Array:
            return log_det_and_quadratic(state, self._front(y), weights)

        for _ in range(y.ndim - len(self.op.grid_shape)):
            alone = jax.vmap(alone)
        return alone(y)

    def _front(self, x: Array) -> Array:
        return full_state.by_times(x, self.factor, self.op.axis)

    def _back(self, x: Array) -> Array:
        return full_state.on_grid(x, self.factor, self.op.axis, self.op.grid_shape)


def _by_old(basis: Eigenbasis, rows: Array | None) -> Array:
    """`C K⁻¹` for new places along one axis; the identity for its own."""
    if rows is None:
        return jnp.eye(basis.values.shape[-1], dtype=basis.values.dtype)
    return basis.unrotate(basis.right(rows) / basis.values[None], -1)
