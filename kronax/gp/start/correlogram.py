"""How data on a grid are correlated along one axis, by distance."""

from typing import NamedTuple

import numpy as np

# Means are over pairs of at most these many places with all others, fewer on the longest axes, and
# over at most these many cells of the data; both are evenly spread.
MOST_ANCHORS = 64
MOST_PAIRS = 2_000_000
MOST_CELLS = 4_000_000
# Lags grow by this factor, from the usual distance of neighbours on.
RATIO = 1.25
# The correlation of the squared exponential at one lengthscale; that of other kernels is near it.
AT_LENGTHSCALE = float(np.exp(-0.5))
# Between a third, of a correlation that is a parabola at zero, and one, of one that is a line.
TO_ZERO = 0.5
# A lengthscale that the data cannot show is at most this many times the longest lag.
MOST_LAGS = 2.0


class Correlogram(NamedTuple):
    """Mean correlation of pairs of cells that differ in their place on one axis only, by lag."""

    lags: np.ndarray
    correlations: np.ndarray

    @property
    def nugget(self) -> float | None:
        """The share of the variance that is gone at the smallest lag already, if it can be told.

        From the smallest lag to zero the correlation rises by `TO_ZERO` of what the line through
        the two smallest says.
        """
        if len(self.lags) < 2:
            return None
        (d1, d2), (r1, r2) = self.lags[:2], self.correlations[:2]
        rise = TO_ZERO * max(0.0, r1 - r2) * d1 / (d2 - d1)
        return float(1 - min(1.0, r1 + rise))

    def length(self, signal: float, *, returns: bool = False) -> float | None:
        """The lag at which the correlation of the signal falls to that at one lengthscale.

        Args:
            signal: the share of the variance that is not noise.
            returns: whether the correlation comes back, as that of a periodic kernel does: then
                what it comes back to must fall.
        """
        if not len(self.lags):
            return None
        lags, values = self.lags, self.correlations / signal
        if returns:
            # The longest lags have few pairs, and no second return.
            near = lags <= max(lags[-1] / 2, lags[0])
            lags, values = lags[near], np.maximum.accumulate(values[near][::-1])[::-1]
        lags, values = np.append(0.0, lags), np.append(1.0, np.clip(values, 0, 1))
        below = np.flatnonzero(values < AT_LENGTHSCALE)
        if below.size:
            k = int(below[0])
            part = (values[k - 1] - AT_LENGTHSCALE) / (values[k - 1] - values[k])
            return float(lags[k - 1] + part * (lags[k] - lags[k - 1]))
        most = MOST_LAGS * lags[-1]
        last = values[-1]
        return float(most if last >= 1 else min(most, lags[-1] / np.sqrt(-2 * np.log(last))))


class Products:
    """Mean products of the data at pairs of places of one axis, relative to the mean square."""

    def __init__(self, rows: np.ndarray, mean_square: float):
        """From data `(n, m)`, `m` cells at each of `n` places, NaN where there are none."""
        n, m = rows.shape
        columns = rows[:, :: max(1, -(-n * m // MOST_CELLS))]
        count = min(n, MOST_ANCHORS, max(8, MOST_PAIRS // n))
        self.anchors = np.unique(np.linspace(0, n - 1, count).round().astype(int))
        seen = ~np.isnan(columns)
        scaled = np.where(seen, columns, 0.0) / np.sqrt(mean_square)
        products = scaled[self.anchors] @ scaled.T
        if seen.all():
            counts = np.full(products.shape, float(columns.shape[1]))
        else:
            counts = seen[self.anchors].astype(float) @ seen.T.astype(float)
        self.known = counts > 0
        self.values = products / np.maximum(counts, 1.0)

    def by_distance(self, places: np.ndarray) -> Correlogram:
        """The correlations by Euclidean distance of places `(n, p)`."""
        gaps = places[self.anchors, None, :] - places[None, :, :]
        distances = np.sqrt(np.sum(np.square(gaps), axis=-1))
        apart = (distances > 0) & self.known
        if not apart.any():
            return Correlogram(np.zeros(0), np.zeros(0))
        nearest = np.min(np.where(apart, distances, np.inf), axis=1)
        smallest = float(np.median(nearest[np.isfinite(nearest)]))
        # The first lag is all that is nearer than neighbours usually are, and the neighbours.
        steps = np.log(distances[apart] / smallest) / np.log(RATIO)
        lag = np.maximum(0, np.floor(steps + 0.5).astype(int))
        count = np.bincount(lag)
        kept = count > 0
        return Correlogram(
            np.bincount(lag, distances[apart])[kept] / count[kept],
            np.bincount(lag, self.values[apart])[kept] / count[kept],
        )
