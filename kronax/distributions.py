"""NumPyro distributions with Kronecker structure."""

from math import log, pi, prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from kronax.linalg import checks
from kronax.linalg.diagnose import explain_not_finite
from kronax.linalg.eigenbases import full_block
from kronax.linalg.factors.triangular import LowerTriangular
from kronax.linalg.kronecker import Kronecker, as_kronecker, num_cells
from kronax.linalg.logdet import log_abs_det, normal_logpdf_grid
from kronax.linalg.modes import matmul
from kronax.linalg.noise import KroneckerPlusNoise
from kronax.linalg.operators import AbstractOperator
from kronax.linalg.sample import apply_roots, draw_normal
from kronax.linalg.solve import solve_grid


class KroneckerNormal(dist.Distribution):
    """`N(loc, K_1 ⊗ … ⊗ K_d + noise)` over a grid, as a NumPyro distribution.

    Args:
        loc: mean; a number, a grid array, or a flat one; leading axes are batch axes.
        factors: covariance factors, arrays or operators; or one `kx.Kronecker`, with or without
            noise of its own.
        noise: a variance σ² (NumPyro and PyMC take σ: square it), one per batch entry, or a
            `kx.Kronecker`; `None` for a noise-free covariance.
        scale_trils: Cholesky factors instead of `factors`.
        flatten: events are `(N,)` instead of grid-shaped.

    Raises:
        ValueError: if shapes do not fit, or concrete values are no covariance.
        TypeError: unless exactly one of `factors` and `scale_trils` is given.

    Examples:
        >>> import jax, jax.numpy as jnp, kronax as kx
        >>> d = kx.KroneckerNormal(0.0, (jnp.eye(3), jnp.eye(2)), 0.1)
        >>> d.event_shape, d.sample(jax.random.key(0), (5,)).shape
        ((3, 2), (5, 3, 2))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real}
    reparametrized_params: ClassVar[list[str]] = ["loc"]
    pytree_data_fields = ("loc", "covariance", "scale_tril")
    pytree_aux_fields = ("flatten",)

    def __init__(
        self,
        loc: Any = 0.0,
        factors: Any = None,
        noise: Any = None,
        *,
        scale_trils: Any = None,
        flatten: bool = False,
        validate_args: bool | None = None,
    ):
        if (factors is None) == (scale_trils is None):
            raise TypeError(
                "KroneckerNormal needs exactly one of `factors` and `scale_trils`; got "
                f"{'neither' if factors is None else 'both'}."
            )
        self.scale_tril = None if scale_trils is None else _triangular(scale_trils)
        signal = _kronecker(factors) if self.scale_tril is None else _squared(self.scale_tril)
        batched = np.ndim(loc) > len(signal.grid_shape)
        if isinstance(signal, KroneckerPlusNoise):
            self.covariance = signal if noise is None else signal + noise
        else:
            self.covariance = signal if noise is None else _with_noise(signal, noise, batched)
        if isinstance(self.covariance, Kronecker) and self.scale_tril is None:
            self.covariance.check_covariance("KroneckerNormal")
        self.flatten = flatten
        loc = _located(loc, self.covariance)
        grid = self.covariance.grid_shape
        batch_shape = checks.check_broadcast(
            [loc.shape[: loc.ndim - len(grid)], self.covariance.batch_shape], "loc and factors"
        )
        self.loc = jnp.broadcast_to(loc, (*batch_shape, *grid))
        event_shape = (self.covariance.shape[-1],) if flatten else grid
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Real arrays of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, reparametrised: per-axis roots, no decomposition of the whole."""
        lead = (*sample_shape, *self.batch_shape)
        if self.scale_tril is None or isinstance(self.covariance, KroneckerPlusNoise):
            draw = draw_normal(key, self.covariance, lead)
            explain_not_finite(draw, self.covariance)
            return self._shaped(self.loc + draw)
        grid = self.covariance.grid_shape
        white = jax.random.normal(key, (*lead, *grid), self.covariance.dtype)
        roots = [full_block(f.to_dense()) for f in self.scale_tril.factors]
        return self._shaped(self.loc + apply_roots(roots, white))

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Log density; one `eigh` per factor with noise, one Cholesky without."""
        residual = self._residual(value)
        if self.scale_tril is None or isinstance(self.covariance, KroneckerPlusNoise):
            log_density = normal_logpdf_grid(residual, self.covariance)
            # NaN in the value is the value's own fault.
            blamed = jnp.where(jnp.isfinite(residual).all(), log_density, 0.0)
            explain_not_finite(blamed, self.covariance, covariance=True)
            return log_density
        return _log_prob_from_root(residual, self.scale_tril)

    def mask(self, mask: Any) -> Any:
        """NumPyro's mask over batch entries; one over the cells of an event raises.

        Raises:
            ValueError: if the mask has the shape of the event: NumPyro would then count the whole
                density once per cell.
        """
        shape = np.shape(mask)
        if shape and shape[-len(self.event_shape) :] == self.event_shape != self.batch_shape:
            raise ValueError(
                f"A mask has the shape of the batch {self.batch_shape}; got {shape}, which ends as "
                f"the event {self.event_shape} does. Missing cells inside an event need "
                "kx.MaskedKroneckerNormal, which is not available yet: leave out whole slices of "
                "an axis instead."
            )
        return super().mask(mask)

    @property
    def mean(self) -> Array:
        """`loc`."""
        return self._shaped(self.loc)

    @property
    def variance(self) -> Array:
        """The diagonal of the covariance."""
        diagonal = jnp.broadcast_to(self.covariance.diagonal(), self.loc.shape)
        return self._shaped(diagonal)

    def _residual(self, value: Any) -> Array:
        dtype, event = self.covariance.dtype, self.event_shape
        checks.check_precision(value, "The value", dtype)
        array = checks.array_of_reals(value, "The value", finite=False).astype(dtype)
        if array.shape[max(array.ndim - len(event), 0) :] != event:
            raise ValueError(
                f"The value must have shape (*batch, {', '.join(map(str, event))}); got shape "
                f"{array.shape}. With flatten={not self.flatten} events are "
                f"{'grids' if self.flatten else 'flat'}."
            )
        grid = (*array.shape[: array.ndim - len(event)], *self.covariance.grid_shape)
        return array.reshape(grid) - self.loc

    def _shaped(self, grid: Array) -> Array:
        if not self.flatten:
            return grid
        num_axes = len(self.covariance.grid_shape)
        return grid.reshape(*grid.shape[: grid.ndim - num_axes], *self.event_shape)


def _kronecker(factors: Any) -> Kronecker | KroneckerPlusNoise:
    if isinstance(factors, KroneckerPlusNoise):
        return factors
    if isinstance(factors, list | tuple):
        return Kronecker(*factors)
    return as_kronecker(factors, "factors")


def _triangular(scale_trils: Any) -> Kronecker:
    return Kronecker(
        *(f if isinstance(f, LowerTriangular) else LowerTriangular(f) for f in scale_trils)
    )


def _squared(root: Kronecker) -> Kronecker:
    """`L Lᵀ` per axis."""
    dense = [f.to_dense() for f in root.factors]
    return Kronecker(*(matmul(m, jnp.swapaxes(m, -1, -2)) for m in dense))


def _with_noise(signal: Kronecker, noise: Any, batched: bool) -> KroneckerPlusNoise:
    """Noise may have a batch that the factors lack: the first factor gets size-one axes."""
    grid = signal.grid_shape
    shape = () if isinstance(noise, AbstractOperator) else np.shape(noise)
    looks_like_cells = shape[-len(grid) :] == grid or shape in [(n,) for n in (*grid, prod(grid))]
    if not batched and not signal.batch_shape and shape and looks_like_cells:
        raise ValueError(
            f"The noise must be one variance, or one per batch entry; got shape {shape} on the "
            f"grid {grid} without a batch. For variances along an axis pass kx.Kronecker("
            "kx.Diagonal(variances), kx.ScaledIdentity(1.0, n)); for a batch of noises give the "
            "factors or loc a batch axis as well."
        )
    missing = 0 if isinstance(noise, Kronecker) else np.ndim(noise) - len(signal.batch_shape)
    if missing > 0:
        first = jax.tree.map(lambda a: a[(None,) * missing], signal.factors[0])
        signal = Kronecker(first, *signal.factors[1:])
    return KroneckerPlusNoise(signal, noise)


def _located(loc: Any, covariance: Kronecker | KroneckerPlusNoise) -> Array:
    """`loc` with at least the axes of the grid."""
    grid = covariance.grid_shape
    if np.ndim(loc) == 0:
        checks.check_precision(loc, "loc", covariance.dtype)
        return jnp.broadcast_to(jnp.asarray(loc).astype(covariance.dtype), grid)
    checks.check_precision(loc, "loc", covariance.dtype)
    array = checks.array_of_reals(loc, "loc").astype(covariance.dtype)
    trailing = array.shape[-len(grid) :]
    if array.ndim >= len(grid) and all(m in (1, n) for m, n in zip(trailing, grid, strict=True)):
        return jnp.broadcast_to(array, (*array.shape[: array.ndim - len(grid)], *grid))
    return checks.grid_of(array, grid, "loc", covariance.dtype)[0]


@jax.jit
def _log_prob_from_root(residual: Array, root: Kronecker) -> Array:
    white = solve_grid(root, residual)
    quadratic = jnp.sum(jnp.square(white), axis=tuple(range(-len(root.grid_shape), 0)))
    return -0.5 * (quadratic + num_cells(root) * log(2 * pi)) - log_abs_det(root)
