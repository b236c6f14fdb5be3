"""The multivariate t distribution over a grid."""

from math import pi, prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.distributions.util import validate_sample

from kronax.distributions.batches import vmap_over_grid
from kronax.distributions.forms import AbstractForm
from kronax.distributions.grids import GridDistribution, eagerly
from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


class KroneckerStudentT(GridDistribution):
    """The multivariate t distribution over a grid: a normal field whose scale is random.

    One scale, `√(df / χ²_df)`, belongs to the whole grid: a few wild *grids* in a batch, not a few
    wild cells. The scale matrix `⊗K_i + noise` takes every form that `KroneckerNormal` takes, at
    the same cost.

    Args:
        df: degrees of freedom, one per batch entry.
        loc: as in `KroneckerNormal`.
        factors: factors of the scale matrix, which is the covariance times `(df - 2) / df`.
        noise: a variance added to the scale matrix; it shares the random scale.
        scale_trils: Cholesky factors instead of `factors`.
        precision_factors: factors of the inverse instead of `factors`.
        flatten: events are `(N,)` instead of grid-shaped.

    Raises:
        ValueError: if shapes do not fit, `df` is not positive, or concrete values make no scale
            matrix (with NumPyro's `validate_args`, under jit as well).
        TypeError: unless exactly one of `factors`, `scale_trils` and `precision_factors` is given.

    Examples:
        >>> import jax, jax.numpy as jnp, kronax as kx
        >>> d = kx.KroneckerStudentT(4.0, 0.0, (jnp.eye(3), jnp.eye(2)), 0.1)
        >>> d.event_shape, d.sample(jax.random.key(0), (5,)).shape
        ((3, 2), (5, 3, 2))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": constraints.positive,
        **GridDistribution.arg_constraints,
    }
    reparametrized_params: ClassVar[list[str]] = list(arg_constraints)
    pytree_data_fields: ClassVar[tuple[str, ...]] = ("df",)

    def __init__(
        self,
        df: Any,
        loc: Any = 0.0,
        factors: Any = None,
        noise: Any = None,
        *,
        scale_trils: Any = None,
        precision_factors: Any = None,
        flatten: bool = False,
        validate_args: bool | None = None,
    ):
        checks_values = self._validate_args if validate_args is None else validate_args
        self.df = _degrees(df, checks_values)
        self._set_up(
            loc,
            factors,
            noise,
            scale_trils,
            precision_factors,
            flatten=flatten,
            validate_args=validate_args,
            what="df, loc",
            extra_batch=(self.df.shape,),
        )
        self.df = jnp.broadcast_to(self.df.astype(self.form.dtype), self.batch_shape)

    @classmethod
    def infer_shapes(  # type: ignore[override]
        cls, df: Any = (), *args: Any, **kwargs: Any
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As `KroneckerNormal.infer_shapes`, with the shape of `df` in front."""
        batch_shape, event_shape = super().infer_shapes(*args, **kwargs)
        return jnp.broadcast_shapes(tuple(df), batch_shape), event_shape

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] | int = ()) -> Array:
        """Draws, reparametrised in every parameter."""
        checks.check_key(key)
        normal_key, scale_key = jax.random.split(key)
        lead = self._lead(sample_shape)
        chi_squares = jax.random.chisquare(scale_key, self.df, lead, self.form.dtype)
        scales = self._on_cells(jnp.sqrt(jnp.divide(*same_rank(self.df, chi_squares))))
        draw = self.form.draw(normal_key, lead)
        loc, scales, draw = same_rank(self.loc, scales, draw)
        return self._shaped(loc + scales * draw)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Log density, in nats."""
        residual = self.residual(value)
        value = self.form.watched(_log_density, residual, self.df)
        return self._explained(value, residual)

    @property
    def mean(self) -> Array:
        """`loc`; infinite where `df ≤ 1`, as NumPyro has it."""
        df, loc = same_rank(self._on_cells(self.df), self.loc)
        return self._shaped(where(df <= 1, jnp.inf, loc))

    @property
    def variance(self) -> Array:
        """The diagonal of the covariance; infinite where `df ≤ 2`, NaN where `df ≤ 1`."""
        diagonal = self.form.covariance().diagonal()
        diagonal = jnp.multiply(*same_rank(self._on_cells(self._ratio()), diagonal))
        return self._shaped(jnp.broadcast_to(diagonal, (*self._lead(), *self.grid_shape)))

    @property
    def scale(self) -> Kronecker | KroneckerPlusNoise:
        """The scale matrix `⊗K_i + noise` as an operator."""
        return self.form.covariance()

    @property
    def covariance(self) -> Kronecker | KroneckerPlusNoise:
        """The covariance, `df / (df - 2)` times the scale matrix, as an operator."""
        return _scaled(self.scale, self._ratio())

    @property
    def covariance_matrix(self) -> Array:
        """The dense `(*batch, N, N)` covariance, for small grids only."""
        dense = jnp.multiply(*same_rank(self._ratio()[..., None, None], self.scale.to_dense()))
        return jnp.broadcast_to(dense, (*self._lead(), *dense.shape[-2:]))

    def entropy(self) -> Array:
        """Differential entropy in nats: one log-determinant."""
        size = prod(self.grid_shape)
        half, whole = self.df / 2, (self.df + size) / 2
        spread = whole * (digamma(whole) - digamma(half))
        log_det, rest = same_rank(self.form.logdet(), _log_norm(self.df, size) + spread)
        return 0.5 * log_det + rest

    def _ratio(self) -> Array:
        """The covariance over the scale matrix."""
        ratio = where(self.df > 2, self.df / where(self.df > 2, self.df - 2, 1), jnp.inf)
        return where(self.df <= 1, jnp.nan, ratio)

    def _on_cells(self, x: Array) -> Array:
        return x.reshape(*x.shape, *(1,) * len(self.grid_shape))

    def _with_batch(self, batch_shape: tuple[int, ...]) -> Any:
        new = super()._with_batch(batch_shape)
        new.df = jnp.broadcast_to(self.df, batch_shape)
        return new


def _degrees(df: Any, checks_values: bool) -> Array:
    with eagerly(df):
        df = checks.whole(df)
        value = jnp.asarray(float(df)) if isinstance(df, int | float) else df
        value = checks.array_of_reals(value, "df", finite=checks_values)
        if checks_values and checks.is_concrete(value) and not (np.asarray(value) > 0).all():
            raise ValueError(
                f"df, the degrees of freedom, must be positive; got {np.asarray(value).min()}. "
                "Below 2 the variance is infinite; a large value is nearly the normal."
            )
        return value


def _log_norm(df: Array, size: int) -> Array:
    """Minus the constant of the log density, without the determinant."""
    return gammaln(df / 2) - gammaln((df + size) / 2) + size / 2 * jnp.log(df * pi)


@jax.jit
def _log_density(form: AbstractForm, residual: Array, df: Array) -> Array:
    size = prod(form.grid_shape)
    quadratic, df, log_det = same_rank(form.inv_quad(residual), df, form.logdet())
    return -0.5 * ((df + size) * jnp.log1p(quadratic / df) + log_det) - _log_norm(df, size)


def _scaled(op: Any, ratio: Array) -> Any:
    if isinstance(op, KroneckerPlusNoise):
        noise: Any = op.noise
        if isinstance(noise, Kronecker):
            noise = _scaled(noise, ratio)
        else:
            noise = jnp.multiply(*same_rank(ratio, noise))
        return KroneckerPlusNoise(_scaled(op.kronecker, ratio), noise)
    if ratio.ndim == 0:
        return ratio * op
    first, *others = op.factors
    scaled = jnp.multiply(*same_rank(ratio[..., None, None], first.to_dense()))
    return Kronecker(scaled, *others)


@vmap_over.register
def vmap_over_student_t(d: KroneckerStudentT, df: Any = None, loc: Any = None, **axes: Any) -> Any:
    """The axes of a mapped distribution."""
    mapped = vmap_over_grid(d, loc, **axes)
    mapped.df = df
    return mapped
