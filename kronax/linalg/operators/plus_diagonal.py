"""Kronecker products plus a variance of its own at every cell, with gaps or without."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.abstract_operator import AbstractObserved
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.operators.draws import draw_normal
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.sum_of_products import Signal, as_signal


class KroneckerPlusDiagonal(AbstractObserved):
    """`⊗K_i + diag(variances)` at the observed cells of a grid: one variance per cell.

    The signal may be a sum of any number of products, `Σ_j ⊗K_ji`; of a sum of three terms white
    noise is one. It has no exact decomposition. `kx.iterative_logpdf`, `kx.iterative_solve` and
    their kin take it, and say how far to trust what they return.

    Vectors stay grid arrays: what they hold at gaps is ignored (NaN included), and results are
    zero there.

    Args:
        kronecker: the signal, symmetric positive semidefinite factors without a batch; a tuple of
            products is their sum.
        variances: σ² (not σ) of every cell, an array that broadcasts to the grid. Infinity marks a
            gap.
        observed: a boolean array of the grid's shape, true where a cell is observed; further gaps.

    Raises:
        ValueError: if a factor is not square or not symmetric, a variance is zero, negative or
            NaN, a shape does not fit, or no cell is observed.
        TypeError: if the signal is no Kronecker product or `observed` is not boolean.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), variances)
        >>> op.mv(jnp.ones((2, 2))).tolist()
        [[2.0, 4.0], [2.0, 0.0]]
        >>> along = kx.Kronecker(jnp.ones((2, 2)), jnp.eye(2))
        >>> across = kx.Kronecker(jnp.eye(2), jnp.ones((2, 2)))
        >>> kx.KroneckerPlusDiagonal((along, across), 1.0).mv(jnp.ones((2, 2))).tolist()
        [[5.0, 5.0], [5.0, 5.0]]
    """

    kronecker: Signal
    variances: Array

    def __init__(
        self,
        kronecker: Any,
        variances: Float[Any, "..."],
        *,
        observed: Bool[Any, "..."] | None = None,
    ):
        self.kronecker = as_signal(kronecker, "KroneckerPlusDiagonal")
        self.kronecker.check_covariance("a sum with noise")
        if isinstance(self.kronecker, Kronecker):
            self.kronecker = self.kronecker.symmetrised()
        if self.kronecker.batch_shape:
            raise ValueError(
                "The factors of KroneckerPlusDiagonal must have no batch axes; got batch "
                f"{self.kronecker.batch_shape}. Map over the batch with jax.vmap."
            )
        self.variances = _checked_variances(variances, observed, self.kronecker)

    @property
    def factors(self) -> tuple[AbstractFactor, ...]:
        """The factors of the signal, those of its terms one after another."""
        return self.kronecker.factors

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.kronecker.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.kronecker.dtype

    @property
    def T(self) -> "KroneckerPlusDiagonal":
        """Itself, being symmetric."""
        return self

    @property
    def observed(self) -> Bool[Array, "..."]:
        """True where a cell is observed."""
        return ~jnp.isposinf(self.variances)

    @property
    def precisions(self) -> Array:
        """`1 / variances`, zero at the gaps; NaN where a traced variance is not positive."""
        finite = jnp.where(self.observed, self.variances, 1)
        return where(self.observed, 1 / where(finite > 0, finite, jnp.nan), 0)

    def mv_grid(self, x: Array) -> Array:
        """Multiply what is observed; zero at the gaps."""
        x = self.held(x)
        noise = jnp.multiply(*same_rank(self.held(self.variances), x))
        return self.held(self.kronecker.mv_grid(x) + noise)

    def diagonal(self) -> Array:
        """The diagonal, zero at the gaps."""
        return self.held(self.kronecker.diagonal() + self.held(self.variances))

    def to_dense(self) -> Array:
        """The `(N, N)` matrix, zero in the rows and columns of gaps: for tests only."""
        cells = self.observed.ravel()
        noise = jnp.diag(self.held(self.variances).ravel())
        return jnp.where(cells[:, None] & cells[None], self.kronecker.to_dense() + noise, 0)

    def scaled(self, scalar: Array) -> "KroneckerPlusDiagonal":
        """`scalar * self`: both terms are scaled."""
        return KroneckerPlusDiagonal(
            self.kronecker.scaled(scalar),
            scalar * self.held(self.variances),
            observed=self.observed,
        )

    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """Draws from `N(0, op)`, one per entry of `lead`; zero at the gaps."""
        scale = jnp.sqrt(jnp.where(self.observed, self.variances, 1))
        return self.held(_draw(key, self.kronecker, scale, lead))


def _draw(key: Array, kronecker: Signal, scale: Array, lead: tuple[int, ...]) -> Array:
    signal_key, noise_key = jax.random.split(key)
    signal = draw_signal(signal_key, kronecker, lead)
    noise = normal_numbers(noise_key, (*lead, *kronecker.grid_shape), kronecker.dtype)
    return signal + jnp.multiply(*same_rank(scale, noise))


def draw_signal(key: Array, signal: Signal, lead: tuple[int, ...]) -> Array:
    """Draws from `N(0, signal)`, one per entry of `lead`; each term takes numbers of its own."""
    if isinstance(signal, Kronecker):
        return draw_normal(key, signal, lead)
    keys = jax.random.split(key, len(signal.terms))
    draws = [draw_normal(k, term, lead) for k, term in zip(keys, signal.terms, strict=True)]
    return sum(draws[1:], draws[0])


def _checked_variances(variances: Any, observed: Any, kronecker: Signal) -> Array:
    grid = kronecker.grid_shape
    checks.check_precision(variances, "The noise variances", kronecker.dtype)
    if isinstance(variances, int | float) and not isinstance(variances, bool):
        variances = np.asarray(variances, dtype=kronecker.dtype)
    array = checks.array_of_reals(variances, "The noise variances", finite=False)
    array = array.astype(kronecker.dtype)
    try:
        fits = jnp.broadcast_shapes(array.shape, grid) == grid
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"The noise variances must broadcast to the grid {grid}; got shape {array.shape}. "
            "Give one variance per cell, infinity where a cell is missing."
        )
    array = jnp.broadcast_to(array, grid)
    if observed is not None:
        mask = Mask.of(observed, grid).array if checks.is_concrete(observed) else observed
        array = where(mask, array, jnp.inf)
    if checks.is_concrete(array):
        check_variances(np.asarray(array))
    return array


def check_variances(values: np.ndarray) -> None:
    """Refuse variances per cell that are not positive, or all infinite."""
    bad = ~(values > 0)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"The noise variances must be positive; got {values[place]} at cell {place} "
            f"({int(bad.sum())} such). Give σ² > 0, infinity where a cell is missing."
        )
    if not np.isfinite(values).any():
        raise ValueError(
            "At least one cell must be observed; got an infinite variance at every cell. "
            "Infinity marks a gap."
        )
