"""Normal distributions over a grid: what they share, and the one that is observed everywhere."""

from math import log, pi
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions.util import validate_sample

from kronax.distributions.grids import GridDistribution
from kronax.linalg.arrays.checks import check_key
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


class GridNormal(GridDistribution):
    """`N(loc, S)` over a grid: draws and moments. Abstract: densities are in the final classes."""

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] | int = ()) -> Array:
        """Draws, reparametrised: per-axis roots, no decomposition of the whole."""
        check_key(key)
        draw = self.form.draw(key, self._lead(sample_shape))
        return self._shaped(jnp.add(*same_rank(self.loc, draw)))

    @property
    def mean(self) -> Array:
        """`loc`."""
        return self._shaped(self.loc)

    @property
    def variance(self) -> Array:
        """The diagonal of the covariance."""
        diagonal = self.covariance.diagonal()
        return self._shaped(jnp.broadcast_to(diagonal, (*self._lead(), *self.grid_shape)))

    @property
    def covariance(self) -> Kronecker | KroneckerPlusNoise:
        """The covariance as an operator; it has no batch axes that only `loc` has."""
        return self.form.covariance()

    @property
    def covariance_matrix(self) -> Array:
        """The dense `(*batch, N, N)` covariance, for small grids only."""
        dense = self.covariance.to_dense()
        return jnp.broadcast_to(dense, (*self._lead(), *dense.shape[-2:]))


class KroneckerNormal(GridNormal):
    """`N(loc, K_1 ⊗ … ⊗ K_d + noise)` over a grid, as a NumPyro distribution.

    A log density takes one `eigh` per dense factor with noise and one Cholesky without; from
    Cholesky or precision factors without noise it takes no more than triangular solves or products.
    With two Cholesky factors it is NumPyro's `MatrixNormal(loc, row, column)`, to the same numbers.

    Args:
        loc: mean; a number, a grid array, or a flat one; leading axes are batch axes.
        factors: covariance factors, arrays or operators; or one `kx.Kronecker`, with or without
            noise of its own.
        noise: a variance σ² (NumPyro and PyMC take σ: square it), one per batch entry, or a
            `kx.Kronecker`; `None` for a noise-free covariance. It is added to the covariance also
            where Cholesky or precision factors are given (these are squared or inverted for it).
        scale_trils: Cholesky factors instead of `factors`.
        precision_factors: factors of the inverse instead of `factors`, positive definite.
        flatten: events are `(N,)` instead of grid-shaped.

    Raises:
        ValueError: if shapes do not fit, or concrete values are no covariance (with NumPyro's
            `validate_args`, under jit as well).
        TypeError: unless exactly one of `factors`, `scale_trils` and `precision_factors` is given.

    Examples:
        >>> import jax, jax.numpy as jnp, kronax as kx
        >>> d = kx.KroneckerNormal(0.0, (jnp.eye(3), jnp.eye(2)), 0.1)
        >>> d.event_shape, d.sample(jax.random.key(0), (5,)).shape
        ((3, 2), (5, 3, 2))
    """

    def __init__(
        self,
        loc: Any = 0.0,
        factors: Any = None,
        noise: Any = None,
        *,
        scale_trils: Any = None,
        precision_factors: Any = None,
        flatten: bool = False,
        validate_args: bool | None = None,
    ):
        self._set_up(
            loc,
            factors,
            noise,
            scale_trils,
            precision_factors,
            flatten=flatten,
            validate_args=validate_args,
        )

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Log density, in nats."""
        residual = self.residual(value)
        return self._explained(self.form.normal_logpdf(residual), residual)

    def entropy(self) -> Array:
        """Differential entropy in nats: one log-determinant."""
        size = self.covariance.shape[-1]
        value = 0.5 * self.form.logdet() + size * (1 + log(2 * pi)) / 2
        return jnp.broadcast_to(value, self._lead())
