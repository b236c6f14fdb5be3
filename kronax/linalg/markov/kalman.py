"""What all ways along a Markov axis share."""

import abc
from collections.abc import Sequence
from functools import reduce
from math import prod
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import HIGHEST, outer, same_rank
from kronax.linalg.decompositions.abstract import AbstractSignalPlusNoise, Rows
from kronax.linalg.estimates.certificates import Estimate, exact_estimate
from kronax.linalg.markov import full_state
from kronax.linalg.markov.factor import Markov, MarkovAhead, MarkovPart
from kronax.linalg.markov.full_state import FullState
from kronax.linalg.spectral.conditional_variances import Places, priors_of

# So many numbers of right-hand sides are solved for at once.
CHUNK = 1_000_000
# By `n²`, the derivative of so many solves takes as long as that of a decomposition of the axis:
# some operations `n³`, where a step of a filter takes microseconds.
SOLVES = 1e-4


class AbstractKalman(AbstractSignalPlusNoise):
    """Signal plus noise by a Kalman filter along a Markov axis."""

    @property
    def is_filtered(self) -> bool:
        """It is."""
        return True

    @property
    @abc.abstractmethod
    def axis(self) -> int:
        """The Markov axis."""

    @property
    def factor(self) -> Markov:
        """The Markov factor."""
        return self.op.factors[self.axis]

    @property
    def batch_size(self) -> int:
        """How many right-hand sides are solved for at once."""
        return max(1, CHUNK // prod(self.op.grid_shape))

    def variance_given(self, places: Sequence[Places]) -> Array:
        """Of places on a grid; a value, held constant.

        By the smoother on the axis itself and where the process goes on to new places of it; by
        rows of covariances along it prior less explained, one solve per row.
        """
        along = places[self.axis]
        if along.rows is None or isinstance(along.rows, MarkovAhead | MarkovPart):
            return lax.stop_gradient(self._smoothed_variance(places))
        pairs = list(zip(self.op.factors, places, strict=True))
        prior = _outer([f.diagonal() if p.prior is None else p.prior for f, p in pairs])
        rows = [f.to_dense() if p.rows is None else p.rows for f, p in pairs]
        return lax.stop_gradient(jnp.subtract(*same_rank(prior, self.explained(rows))))

    def variance_ahead(self, places: Sequence[Places]) -> Array | None:
        """The same of new places along the Markov axis alone, with derivatives in them as well.

        `None` if another axis has new ones, or where a matrix of the Markov axis is no larger.
        """
        ahead = places[self.axis].rows
        others = [p.rows for i, p in enumerate(places) if i != self.axis]
        state = self.state()
        if state is None or not isinstance(ahead, MarkovAhead) or others != [None] * len(others):
            return None
        found = full_state.smoothed(self._going_on(state, ahead)).variances
        shape = [n for i, n in enumerate(self.op.grid_shape) if i != self.axis]
        found = ahead.unsorted(found)[ahead.old :].reshape(-1, *shape)
        return jnp.moveaxis(found, 0, self.axis)

    def are_few(self, rows: Rows) -> bool:
        """Whether a solve for each is cheaper than a decomposition of the Markov axis."""
        pairs = zip(rows, self.op.grid_shape, strict=True)
        return prod(n if x is None else x.shape[0] for x, n in pairs) < SOLVES * self.factor.size**2

    def by_solves(self, rows: Rows) -> Array:
        """`diag(C S⁻¹ Cᵀ)` for `C = ⊗rows[i]`, without a batch: one solve for every row of `C`."""
        eyes = [jnp.eye(n, dtype=self.op.dtype) for n in self.op.grid_shape]
        filled = [e if row is None else row for row, e in zip(rows, eyes, strict=True)]
        shape = tuple(row.shape[0] for row in filled)
        index = np.indices(shape).reshape(len(shape), -1)

        @jax.checkpoint
        def one(place: Array) -> Array:
            vector = outer([row[k] for row, k in zip(filled, place, strict=True)])
            return jnp.sum(vector * self.solve(vector))

        return lax.map(one, jnp.asarray(index.T), batch_size=self.batch_size).reshape(shape)

    @abc.abstractmethod
    def state(self) -> FullState | None:
        """All places at once, with a precision for every cell; `None` where that is too large."""

    def _going_on(self, state: FullState, ahead: MarkovAhead) -> FullState:
        """The same at new times as well, where nothing is observed."""
        precisions = ahead.padded(self.factor.unsorted(state.precisions), 0)
        return FullState(ahead.space, state.places, precisions)

    def _along(self, places: Sequence[Places]) -> tuple[MarkovAhead | None, Any, Array]:
        """Where the process goes on, the weights of a part of the state, and prior variances."""
        rows, prior = places[self.axis].rows, places[self.axis].prior
        is_part = isinstance(rows, MarkovPart)
        ahead, part = (rows.ahead, rows.weights) if is_part else (rows, None)
        return ahead, part, self.factor.diagonal() if prior is None else prior

    @abc.abstractmethod
    def _smoothed_variance(self, places: Sequence[Places]) -> Array:
        """On the axis itself, or at places where the process goes on."""

    def variance_at(self, *parts: Sequence[Places]) -> Estimate:
        """Prior less explained; one solve per place."""
        (places,) = parts
        prior = priors_of(parts)
        rows = [p.rows for p in places]

        def one(row: list[Array]) -> Array:
            vector = outer(row)
            return jnp.sum(vector * self.solve(vector))

        return exact_estimate(prior - lax.map(one, rows, batch_size=self.batch_size))

    def covariance_at(self, *parts: tuple[Sequence[Places], Sequence[Array]]) -> Array:
        """Prior less explained; one solve per place."""
        ((places, priors),) = parts
        rows = [p.rows for p in places]

        def one(row: list[Array]) -> Array:
            weights = self.solve(outer(row))
            for i, rows_i in enumerate(rows):
                weights = _contracted(rows_i, weights, i)
            return weights

        return reduce(mul, priors) - lax.map(one, rows, batch_size=self.batch_size)


def _outer(vectors: Sequence[Array]) -> Array:
    """The outer product over batches."""
    total = jnp.ones((), vectors[0].dtype)
    for v in vectors:
        total = jnp.multiply(*same_rank(total[..., None], v))
    return total


def _contracted(rows: Array, x: Array, i: int) -> Array:
    """The first place axis of `x` with its rows: `(m, n_0)` joins, later ones go place by place."""
    if i == 0:
        return jnp.tensordot(rows, x, axes=1, precision=HIGHEST)
    return jnp.einsum("mn,mn...->m...", rows, x, precision=HIGHEST)
