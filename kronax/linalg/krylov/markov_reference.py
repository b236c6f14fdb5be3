"""The complete grid that an uneven one with a Markov axis is compared with, in linear time.

Let `A = K + diag(1/W)` at the observed cells, with `W = 0` at gaps, and let `w` be the largest
precision of every time: `S = K + diag(1/w)` has no gaps, and a filter solves it. What a cell lacks
of the best of its time, `Δ = w − W`, is zero but at gaps and where the noise is uneven, and with
`T = (K⁻¹ + w)⁻¹ = K S⁻¹ w⁻¹`

    log det A = log det (I + w K) − Σ_observed log W + log det C,   C = I − Δ^½ T Δ^½,
    A⁻¹ b = W (b − f),   f = T (W b + Δ^½ x),   C x = Δ^½ T W b.

The eigenvalues of `C` lie between `1 / (1 + w Λ)` and one. Scattered gaps leave them near one, as
little of a smooth field is in the gaps alone; long outages leave small ones. `reference` is closer
where the noise is uneven and in its box, but decomposes all axes, and its products take the square
of the longest.

With `J = S⁻¹ w⁻¹ = K⁻¹ T` the derivatives are `dT = Jᵀ dK J` and, for `E = (K⁻¹ + W)⁻¹`,

    d log det C = −tr [C⁻¹ Δ^½ dT Δ^½] + tr [E dW],   E = T + T Δ^½ C⁻¹ Δ^½ T.
"""

from collections.abc import Sequence
from functools import reduce
from math import log, prod
from operator import mul
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import apply_all
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.estimates.certificates import Estimate, Iteration, trace_error
from kronax.linalg.estimates.draws import Drawn, Ended, by_draws, more_certain
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.krylov.abstract import (
    AbstractLogdetDerivative,
    AbstractOneProduct,
    AbstractReference,
    PosteriorDraws,
    ProbedLogdet,
    noise_logdet,
)
from kronax.linalg.krylov.conjugate_gradients import Krylov
from kronax.linalg.markov.factor import Markov
from kronax.linalg.markov.filter import Gain, Lanes
from kronax.linalg.markov.lanes import KalmanLanes
from kronax.linalg.markov.smoother import gains, solved_columns
from kronax.linalg.markov.value_and_rules import lanes_of
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal, draw_signal
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import Places
from kronax.linalg.spectral.conditioning import row_sum
from kronax.linalg.spectral.value_and_rules import rotate, unrotate

# Of the largest eigenvalue along the axis: products with a normal vector, and the part of that
# along any one direction that 1 % have less than.
POWER, LEAST_PART = 8, 0.0125
# A time without data has this share of the largest precision, so that it is no case of its own.
LEAST_PRECISION = 1e-8


class MarkovReference(AbstractReference):
    """The reference of an uneven grid with a Markov axis, held constant.

    Args:
        kronecker: the signal.
        axis: which of its axes is filtered.
        bases: of the signal on the others.
        lanes: one for each of their modes.
        at: what a value tells of every lane, at every time.
        whole: `w`, broadcasting to the grid.
        lacking: `Δ^½`, a grid array.
    """

    kronecker: Kronecker
    axis: int = eqx.field(static=True)
    bases: tuple[Eigenbasis, ...]
    lanes: Lanes
    at: Gain
    whole: Array
    lacking: Array

    @property
    def factor(self) -> Markov:
        """The Markov axis."""
        factor: Any = self.kronecker.factors[self.axis]
        return factor

    @property
    def even(self) -> KalmanLanes:
        """`S`, and how it is solved."""
        return KalmanLanes(whole_grid(self.kronecker, self.whole, self.axis))

    def given(self, x: Array) -> tuple[Array, Array]:
        """`J x` and `T x = K J x` for columns `(k, *grid)`: a filter forward and one back."""
        front = self.factor.sorted(jnp.moveaxis(x / self.whole[None], self.axis + 1, 0))
        turned = rotate(self.bases, front)
        columns = turned.reshape(*turned.shape[:2], -1)

        def back(y: Array) -> Array:
            there = self.factor.unsorted(unrotate(self.bases, y.reshape(turned.shape)))
            return jnp.moveaxis(there, 0, self.axis + 1)

        weights, values = solved_columns(self.factor.space, self.lanes, self.at, columns)
        return back(weights), back(values)

    def mv(self, x: Array) -> Array:
        """`C x` for columns `(k, *grid)`."""
        return x - self.lacking[None] * self.given(self.lacking[None] * x)[1]

    def bound(self, r: Array) -> Array:
        """`rᵀ C⁻¹ r` per column from above: `C⁻¹ = I + Δ^½ E Δ^½` with `E` below `K`."""
        axes, scaled = tuple(range(1, r.ndim)), self.lacking[None] * r
        return jnp.sum(r**2 + scaled * self.kronecker.mv_grid(scaled), axes)

    @property
    def least(self) -> Array:
        """A bound of the eigenvalues of `C` from below."""
        return 1 / (1 + jnp.max(self.whole) * self.most)

    @property
    def most(self) -> Array:
        """A bound of those of the signal from above, by the trace along the Markov axis."""
        return _bound(self.kronecker, self.axis, jnp.sum(self.factor.diagonal()))

    def started(self, precisions: Array, y: Array) -> tuple[Array, Array]:
        """`Δ^½ T W y`, and what is iterated from: `yᵀ W (y − T W y)`."""
        known = self.given(precisions[None] * y)[1]
        energy = jnp.sum(precisions[None] * y * (y - known), tuple(range(1, y.ndim)))
        return self.lacking[None] * known, energy

    def finished(self, precisions: Array, y: Array, solution: Array) -> tuple[Array, Array, Array]:
        """`f`, `K⁻¹ f`, and `(y − f)ᵀ W (y − f) + fᵀ K⁻¹ f`, one number per column."""
        filled = precisions[None] * y + self.lacking[None] * solution
        weights, smooth = self.given(filled)
        parts = precisions[None] * (y - smooth) ** 2 + smooth * weights
        return smooth, weights, jnp.sum(parts, tuple(range(1, y.ndim)))

    def probes(self, signs: Array) -> Array:
        """Random signs in the cells where `C` is not the identity."""
        return jnp.where(self.lacking[None] > 0, signs, 0)

    @property
    def known_logdet(self) -> Array:
        """The trace of `C − I`."""
        return -jnp.sum(self.lacking**2 * self.variances())

    def variances(self) -> Array:
        """`diag(T)`, a grid array."""
        return self.even.variance_given([Places(None)] * self.lacking.ndim)


def largest_along(kronecker: Kronecker, axis: int) -> Array:
    """A bound of the largest eigenvalue from above, in 99 of 100 cases; some times too large.

    Covariances along a Markov axis may be negative, and their absolute values have no recursion:
    in place of row sums it is `(‖Kᵖ g‖² / q)^(1/2p)` of a normal vector `g`, with the 1 % quantile
    `q` of its squared part along the eigenvector; never more than the trace.
    """
    factor: Any = kronecker.factors[axis]
    start = normal_numbers(jax.random.key(0), (factor.size,), factor.dtype)

    def again(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, log_norm = carry
        norm = jnp.linalg.norm(x)
        return factor.mv(x / jnp.where(norm > 0, norm, 1)), log_norm + jnp.log(norm)

    x, log_norm = lax.fori_loop(0, POWER, again, (start, jnp.zeros((), factor.dtype)))
    largest = jnp.exp((log_norm + jnp.log(jnp.linalg.norm(x)) - log(LEAST_PART)) / POWER)
    return _bound(kronecker, axis, jnp.minimum(largest, jnp.sum(factor.diagonal())))


def _bound(kronecker: Kronecker, axis: int, along: Array) -> Array:
    others = (f for i, f in enumerate(kronecker.factors) if i != axis)
    return reduce(mul, map(row_sum, others), along)


def whole_grid(kronecker: Kronecker, whole: Array, axis: int) -> KroneckerPlusNoise:
    """`S`, with the precisions `w` held constant."""
    one = jnp.ones((), whole.dtype)
    noise: list[Any] = [ScaledIdentity(one, f.size) for f in kronecker.factors]
    noise[axis] = Diagonal(1 / lax.stop_gradient(whole).ravel())
    return KroneckerPlusNoise(kronecker, Kronecker(*noise))


def markov_reference(op: KroneckerPlusDiagonal, axis: int) -> MarkovReference:
    """The reference of an operator one axis of which is Markov."""
    kronecker: Any
    kronecker, precisions = lax.stop_gradient((op.kronecker, op.precisions))
    others = tuple(i for i in range(precisions.ndim) if i != axis)
    whole = jnp.max(precisions, axis=others, keepdims=True)
    whole = jnp.maximum(whole, LEAST_PRECISION * jnp.max(whole))
    factor: Any = kronecker.factors[axis]
    bases = KalmanLanes(whole_grid(kronecker, whole, axis)).computed().bases
    lanes = lanes_of(bases, factor.sorted(1 / whole.ravel()), None)
    lacking = jnp.sqrt(jnp.maximum(whole - precisions, 0))
    at = gains(factor.space, lanes, factor.size)
    return MarkovReference(kronecker, axis, bases, lanes, at, whole, lacking)


class MarkovDerivative(AbstractLogdetDerivative):
    """What the differential of `log det C` is made of, per probe; all of it constant.

    Args:
        left: `J Δ^½ C⁻¹ g`, `(k, *grid)`.
        right: `J Δ^½ g`, likewise.
        variations: what multiplies `dW`, likewise.
    """

    left: Array
    right: Array
    variations: Array

    def along(self, signal: Kronecker, precisions: Array) -> Array:
        """A function of signal and precisions with this differential, per probe."""
        axes = tuple(range(1, precisions.ndim + 1))
        along = jnp.sum(self.left * signal.mv_grid(self.right), axes)
        return jnp.sum(precisions[None] * self.variations, axes) - along


class Twins(NamedTuple):
    """Fields given data with gaps and uneven noise, and given twins of these without.

    Args:
        weights: `A⁻¹ d`, `(count, *grid)`.
        smooth: `K A⁻¹ d`, likewise.
        even_weights: `S⁻¹ d'`, likewise.
        even_smooth: `K S⁻¹ d'`, likewise.
        ended: how the iterations did.
    """

    weights: Array
    smooth: Array
    even_weights: Array
    even_smooth: Array
    ended: Ended


class MarkovPreconditioner(AbstractOneProduct):
    """One product with a Markov axis, which is filtered."""

    op: KroneckerPlusDiagonal
    reference: MarkovReference
    iteration: Iteration = eqx.field(static=True)

    def known_logdet(self, op: KroneckerPlusDiagonal) -> Array:
        """`log det (I + w K) − Σ log W + tr (C − I)`."""
        held = self.reference
        most = op.variances.size / held.factor.size * jnp.sum(jnp.log(held.whole))
        kronecker: Any = op.kronecker
        even = KalmanLanes(whole_grid(kronecker, held.whole, held.axis))
        return even.logdet() + most + noise_logdet(op) + held.known_logdet

    def probed(self, white: Array, krylov: Krylov) -> ProbedLogdet:
        """From probes at the cells that lack something.

        The logarithm is compared with the multiple of `C − I` that is closest over the spectrum
        that the probes saw: all of it lies below one.
        """
        held, size = self.reference, jnp.sum(white[0] ** 2)
        cross, second = jnp.sum(krylov.cross), jnp.sum(krylov.second)
        seen = second > jnp.finfo(white.dtype).eps ** 0.5
        share = jnp.where(seen, jnp.maximum(cross / jnp.where(seen, second, 1), 1), 1)
        forms = size * (krylov.log_form - share * (krylov.first - 1))
        squares = krylov.log_square - 2 * share * krylov.cross + share**2 * krylov.second
        squares = size * jnp.where(seen, jnp.maximum(squares, 0), krylov.second)
        error, spread = trace_error(forms, squares, size)
        left, found = held.given(held.lacking[None] * krylov.solution)
        right, known = held.given(held.lacking[None] * white)
        return ProbedLogdet(
            forms=forms + (share - 1) * held.known_logdet,
            error=error,
            standard_error=spread,
            left=size * jnp.mean(krylov.log_left),
            inverse=jnp.mean(jnp.sum(white * krylov.solution, tuple(range(1, white.ndim)))),
            derivative=MarkovDerivative(left, right, held.variances()[None] + found * known),
        )

    def sensitivity(self, squares: Array, inverse: Array) -> tuple[Array, Array]:
        """The filter loses no digits; the other axes are decomposed: see `probes.sensitivity`."""
        held = self.reference
        trace = jnp.sum(self.op.precisions)
        largest = largest_along(held.kronecker, held.axis)
        signal = largest * (jnp.max(squares, initial=0.0) + trace)
        ratios = held.whole * jnp.broadcast_to(held.kronecker.diagonal(), self.op.grid_shape)
        return signal + inverse, ratios

    def certain_variances(self) -> Array:
        """Those of the even grid."""
        return self.reference.variances()

    def posterior_draws(self, key: Array, count: int) -> PosteriorDraws:
        """The rest is the difference of the squares of twins."""
        precisions = self.op.precisions
        fields, noise, found = self._drawn_twins(key, count)
        here, there = fields - found.smooth, fields - found.even_smooth
        return PosteriorDraws(
            fields=here,
            rest=here**2 - there**2,
            # `W (d − f)`, which is no difference of large numbers.
            weights=precisions[None] * here + jnp.sqrt(precisions)[None] * noise,
            ended=found.ended,
        )

    def explained(self, rows: Sequence[Array | None]) -> Estimate:
        """That of the even grid is exact, and twins say what gaps and uneven noise change."""
        full = self.rows(rows)

        def draw(key: Array, count: int) -> Drawn:
            _, _, found = self._drawn_twins(key, count)
            here, there = apply_all(full, found.weights), apply_all(full, found.even_weights)
            return Drawn(here**2 - there**2, here**2, found.ended)

        certain = self.reference.even.explained(full)
        known = more_certain(certain, 0.0)
        return by_draws(self.op, self.iteration, certain.shape, draw, known)

    def _drawn_twins(self, key: Array, count: int) -> tuple[Array, Array, Twins]:
        """Fields, noise, and what data say of them."""
        field_key, noise_key = jax.random.split(key)
        fields = draw_signal(field_key, self.op.kronecker, (count,))
        noise = normal_numbers(noise_key, fields.shape, fields.dtype)
        return fields, noise, self.twins(fields, noise)

    def twins(self, fields: Array, noise: Array) -> Twins:
        """Of draws `(count, *grid)` of the signal and of white noise."""
        held, precisions = self.reference, self.op.precisions
        seen = precisions > 0
        scale = jnp.where(seen, 1 / jnp.sqrt(jnp.where(seen, precisions, 1)), 0)
        data = jnp.where(seen[None], fields + scale[None] * noise, 0)
        columns, energy = held.started(precisions, data)
        krylov = held.iterate(columns, self.iteration, energy=energy)
        smooth, weights, _ = held.finished(precisions, data, krylov.solution)
        even = held.given(held.whole[None] * fields + jnp.sqrt(held.whole)[None] * noise)
        return Twins(weights, smooth, *even, krylov.ended)


def numbers_of_filter(shape: tuple[int, ...], state: int, iteration: Iteration) -> float:
    """Numbers that a value and gradient hold at once for a state of so many numbers, about.

    By the plans that XLA made for six grids of 12 000 and 150 000 cells, which it is within a tenth
    of: gains of every lane and time, and states of every probe.
    """
    return float(prod(shape) * (20 + 7 * state**2 + (20 + 5 * state) * iteration.num_probes))
