"""The smaller grid that an operator with gaps is computed on, and the way there and back.

Whole missing slabs are dropped from their axis. With the method `"merged"` the gap axes become one
axis of the observed cells, behind the shared axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import same_rank, taken
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal
from kronax.linalg.factors.submatrix import restricted
from kronax.linalg.gaps.rules import merged_matrix
from kronax.linalg.gaps.variances import merged_rows
from kronax.linalg.operators.gap_geometry import Gaps, Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise
from kronax.linalg.spectral.conditional_variances import Places
from kronax.linalg.spectral.low_rank import is_diagonal


@dataclass(frozen=True)
class InnerGrid:
    """A static value: which cells of the whole grid are left, and in which order."""

    mask: Mask
    is_merged: bool

    @property
    def gaps(self) -> Gaps:
        """The gaps that dropping slabs leaves."""
        return self.mask.gaps

    @cached_property
    def _places(self) -> np.ndarray:
        """Per inner cell its place in the flattened whole grid."""
        mask = self.mask
        places = np.arange(mask.array.size).reshape(mask.shape)[np.ix_(*mask.kept)]
        if not self.is_merged:
            return places
        gaps = self.gaps
        front = places.transpose((*gaps.shared, *gaps.axes)).reshape(*gaps.shared_sizes, -1)
        return front[..., ~gaps.missing.array.ravel()]

    @cached_property
    def _back(self) -> np.ndarray:
        """Per cell of the whole grid its place among the inner ones; their number for none."""
        back = np.full(self.mask.array.size, self._places.size)
        back[self._places.ravel()] = np.arange(self._places.size)
        return back

    @property
    def _is_whole(self) -> bool:
        return not self.is_merged and self._places.shape == self.mask.shape

    def squeezed(self, x: Array) -> Array:
        """A vector over the whole grid on the inner one."""
        if self._is_whole:
            return x
        lead = x.shape[: x.ndim - len(self.mask.shape)]
        return x.reshape(*lead, -1)[..., self._places.ravel()].reshape(*lead, *self._places.shape)

    def embedded(self, x: Array) -> Array:
        """A vector over the inner grid on the whole one, with zeros elsewhere."""
        if self._is_whole:
            return x
        lead = x.shape[: x.ndim - self._places.ndim]
        padded = jnp.concatenate([x.reshape(*lead, -1), jnp.zeros((*lead, 1), x.dtype)], axis=-1)
        return padded[..., self._back].reshape(*lead, *self.mask.shape)

    def operator(self, op: KroneckerPlusNoise) -> KroneckerPlusNoise:
        """`op` on the inner grid."""
        noise: Any = op.noise
        if isinstance(noise, Kronecker):
            noise = Kronecker(*self._factors(noise.factors))
        return KroneckerPlusNoise(Kronecker(*self._factors(op.factors)), noise)

    def _factors(self, factors: Sequence[Any]) -> list[Any]:
        kept = [restricted(f, k) for f, k in zip(factors, self.mask.kept, strict=True)]
        if not self.is_merged:
            return kept
        gaps = self.gaps
        along = [kept[i] for i in gaps.axes]
        if all(is_diagonal(f) for f in along):
            index = zip(along, gaps.observed.T, strict=True)
            values = [f.diagonal()[..., places] for f, places in index]
            last: Any = Diagonal(reduce(lambda a, b: jnp.multiply(*same_rank(a, b)), values))
        else:
            last = Dense(merged_matrix([f.to_dense() for f in along], gaps))
        return [*(kept[i] for i in gaps.shared), last]

    def places(
        self, factors: Sequence[Any], places: Sequence[Places], *, scattered: bool = False
    ) -> tuple[list[Places], list[np.ndarray | None]]:
        """Places on the whole grid as places of the inner one, and which are coordinates of it."""
        kept: list[Places] = []
        own: list[np.ndarray | None] = []
        for factor, place, k in zip(factors, places, self.mask.kept, strict=True):
            rows, prior, is_whole = *place, len(k) == factor.size
            own.append(k if rows is None and not is_whole else None)
            if rows is None and (self.is_merged or not is_whole):
                rows = factor.to_dense()
                prior = factor.diagonal() if prior is None else prior
            kept.append(Places(None if rows is None else taken(rows, k, -1), prior))
        if not self.is_merged:
            return kept, own
        gaps, among = self.gaps, None
        if all(places[i].rows is None for i in gaps.axes):
            pairs = zip(gaps.axes, gaps.observed.T, strict=True)
            index = [self.mask.kept[i][k] for i, k in pairs]
            among = np.ravel_multi_index(index, [self.mask.shape[i] for i in gaps.axes])
        merged = merged_places([kept[i] for i in gaps.axes], gaps, scattered=scattered)
        return [*(kept[i] for i in gaps.shared), merged], [*(own[i] for i in gaps.shared), among]

    def rows(self, rows: Sequence[Array | None]) -> list[Array]:
        """The columns of `⊗rows[i]` that belong to inner cells, one matrix per inner axis.

        Rows that are `None` are those of the identity.
        """
        dtype = next((row.dtype for row in rows if row is not None), None)
        whole = [
            jnp.eye(n, dtype=dtype) if row is None else row
            for row, n in zip(rows, self.mask.shape, strict=True)
        ]
        kept = [taken(row, k, -1) for row, k in zip(whole, self.mask.kept, strict=True)]
        if not self.is_merged:
            return kept
        gaps = self.gaps
        return [*(kept[i] for i in gaps.shared), merged_rows(kept, gaps, kept[0].dtype)]


def merged_places(places: Sequence[Places], gaps: Gaps, *, scattered: bool) -> Places:
    """The places of the gap axes as those of one axis of the observed cells."""
    whole: Any = None
    for place, index in zip(places, gaps.observed.T, strict=True):
        assert place.rows is not None
        assert place.prior is not None
        rows, prior = place.rows[..., index], place.prior
        if whole is None:
            whole = rows, prior
        elif scattered:
            whole = whole[0] * rows, whole[1] * prior
        else:
            product = whole[0][..., :, None, :] * rows[..., None, :, :]
            variances = whole[1][..., :, None] * prior[..., None, :]
            whole = (
                product.reshape(*product.shape[:-3], -1, len(index)),
                variances.reshape(*variances.shape[:-2], -1),
            )
    return Places(*whole)
