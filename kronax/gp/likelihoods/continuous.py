"""Likelihoods of numbers that are not normal: outliers, detection limits, positive data, shares."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, log_ndtr, ndtr
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.annotations import ParameterArray
from kronax.domains import data, parameter
from kronax.gp.likelihoods.base import (
    AbstractLikelihood,
    Moments,
    Support,
    cells_like,
    refuse_labels,
)
from kronax.gp.likelihoods.incomplete import lower_beta, lower_gamma
from kronax.linalg.arrays.precision import where

REALS = Support(-jnp.inf, jnp.inf, False, "real numbers")
POSITIVE = Support(0.0, jnp.inf, False, "positive", is_open=True)
LOG_2PI = float(np.log(2 * np.pi))


class StudentT(AbstractLikelihood):
    """Measurements with outliers: `y = f + scale · t`, `t` of Student's distribution.

    The log density has no single bend: where an observation is far off it pulls less the farther
    it is. So there can be several answers; the search starts at the data.

    Args:
        df: degrees of freedom, positive; small ones have heavy tails.
        scale: in units of the data, a standard deviation and no variance.

    Raises:
        ValueError: if one is not positive.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> round(kx.StudentT(df=4.0, scale=0.1).variance(jnp.zeros(())).item(), 3)
        0.02
    """

    response_name: ClassVar[str] = "location"

    df: ParameterArray = parameter(constraints.positive, default=4.0, start=4.0)
    scale: ParameterArray = parameter(constraints.positive, default=1.0)

    @property
    def support(self) -> Support:
        """All real numbers."""
        return REALS

    def start(self, y: Array) -> Array:
        """The data."""
        return y

    def starts(self, noise: float) -> dict[str, float]:
        """The scale."""
        return {"scale": float(np.sqrt(noise))}

    def log_density(self, y: Array, f: Array) -> Array:
        """`−½ (ν + 1) log(1 + r²/ν)` for the residual `r` in scales, and its constant."""
        nu, scale = self.df.astype(f.dtype), self.scale.astype(f.dtype)
        constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - jnp.log(nu * jnp.pi) / 2
        tail = (nu + 1) / 2 * jnp.log1p(jnp.square((y - f) / scale) / nu)
        return constant - jnp.log(scale) - tail

    def response(self, f: Array) -> Array:
        """The location."""
        return f

    def mean(self, f: Array) -> Array:
        """The location."""
        return f

    def variance(self, f: Array) -> Array:
        """Infinite for two degrees of freedom and less."""
        nu, scale = self.df.astype(f.dtype), self.scale.astype(f.dtype)
        value = jnp.square(scale) * where(nu > 2, nu / where(nu > 2, nu - 2, 1), jnp.inf)
        return jnp.broadcast_to(value, f.shape)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """The location plus noise."""
        draws = jax.random.t(key, self.df.astype(f.dtype), f.shape, f.dtype)
        return f + self.scale.astype(f.dtype) * draws

    def cdf(self, y: Array, f: Array) -> Array:
        """By the incomplete beta function."""
        nu = self.df.astype(f.dtype)
        r = (y - f) / self.scale.astype(f.dtype)
        log_odds = jnp.log(nu) - 2 * jnp.log(jnp.abs(r))
        tail = lower_beta(nu / 2, jnp.asarray(0.5, f.dtype), log_odds) / 2
        return jnp.where(r > 0, 1 - tail, tail)


def limit(value: Any, name: str) -> Array:
    """A number or one per cell, infinity included."""
    refuse_labels(value, name)
    array = jnp.asarray(value, float) if not hasattr(value, "dtype") else jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    if not isinstance(array, jax.core.Tracer) and np.isnan(np.asarray(array)).any():
        raise ValueError(f"`{name}` must hold numbers or infinity; got NaN.")
    return array


class CensoredNormal(AbstractLikelihood):
    """Normal measurements of which those beyond a limit are only known to lie there.

    A value at a limit or beyond stands for "at least so much" or "at most so much": a detection
    limit, a full scale, a floor of zero.

    Args:
        noise: the variance σ² (not σ) of the measurements.
        lower: the lower limit, minus infinity for none: a number, or one per cell.
        upper: the upper limit.

    Raises:
        ValueError: if the variance is not positive, or a lower limit is not below its upper one.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> rain = kx.CensoredNormal(0.1, lower=0.0)
        >>> jnp.exp(rain.log_density(jnp.zeros(()), jnp.zeros(()))).item()
        0.5
    """

    cell_fields: ClassVar[Mapping[str, Any]] = MappingProxyType({"lower": limit, "upper": limit})
    is_log_concave: ClassVar[bool] = True
    response_name: ClassVar[str] = "value"

    noise: ParameterArray = parameter(constraints.positive)
    lower: Array = data()
    upper: Array = data()

    def __init__(self, noise: Any = 1.0, lower: Any = -np.inf, upper: Any = np.inf):
        self.noise = noise
        self.lower, self.upper = limit(lower, "lower"), limit(upper, "upper")
        known = not any(isinstance(x, jax.core.Tracer) for x in (self.lower, self.upper))
        if known and not bool((np.asarray(self.lower) < np.asarray(self.upper)).all()):
            raise ValueError(
                f"`lower` must be below `upper` at every cell; got {self.lower} and {self.upper}."
            )

    @property
    def support(self) -> Support:
        """All real numbers, those beyond a limit count as at it."""
        return REALS

    def start(self, y: Array) -> Array:
        """The data."""
        return jnp.clip(y, cells_like(self.lower, y), cells_like(self.upper, y))

    def starts(self, noise: float) -> dict[str, float]:
        """The variance of the measurements."""
        return {"noise": noise}

    def log_density(self, y: Array, f: Array) -> Array:
        """The density inside of the limits, the probability of being beyond at them."""
        scale = jnp.sqrt(self.noise.astype(f.dtype))
        lower, upper = cells_like(self.lower, f), cells_like(self.upper, f)
        is_low, is_high = y <= lower, y >= upper
        # The branches that are not taken must have finite derivatives.
        inside = jnp.where(is_low | is_high, f, y)
        low = jnp.where(is_low, lower, f)
        high = jnp.where(is_high, upper, f)
        density = -jnp.square((inside - f) / scale) / 2 - jnp.log(scale) - LOG_2PI / 2
        below, above = log_ndtr((low - f) / scale), log_ndtr((f - high) / scale)
        return jnp.where(is_low, below, jnp.where(is_high, above, density))

    def response(self, f: Array) -> Array:
        """The value without limits."""
        return f

    def mean(self, f: Array) -> Array:
        """The value without limits."""
        return f

    def variance(self, f: Array) -> Array:
        """That of a measurement without limits."""
        return jnp.broadcast_to(self.noise.astype(f.dtype), f.shape)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Measurements, with limits."""
        y = f + jnp.sqrt(self.noise.astype(f.dtype)) * jax.random.normal(key, f.shape, f.dtype)
        return jnp.clip(y, cells_like(self.lower, f), cells_like(self.upper, f))

    def cdf(self, y: Array, f: Array) -> Array:
        """Of measurements with limits."""
        value = ndtr((y - f) / jnp.sqrt(self.noise.astype(f.dtype)))
        is_below, is_above = y < cells_like(self.lower, f), y >= cells_like(self.upper, f)
        return where(is_below, 0.0, where(is_above, 1.0, value))


class Gamma(AbstractLikelihood):
    """Positive data with mean `exp(f)` and variance `exp(2 f) / concentration`.

    Args:
        concentration: positive; the shape of the distribution.

    Raises:
        ValueError: if it is not positive.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Gamma(concentration=4.0).variance(jnp.zeros(())).item()
        0.25
    """

    is_log_concave: ClassVar[bool] = True

    concentration: ParameterArray = parameter(constraints.positive, default=1.0, start=1.0)

    @property
    def support(self) -> Support:
        """Positive numbers."""
        return POSITIVE

    def start(self, y: Array) -> Array:
        """The logarithm of the data."""
        return jnp.log(y)

    def log_density(self, y: Array, f: Array) -> Array:
        """With shape `a` and rate `a exp(−f)`."""
        a = self.concentration.astype(f.dtype)
        log_y = jnp.log(y)
        return a * (jnp.log(a) + log_y - f - jnp.exp(log_y - f)) - gammaln(a) - log_y

    def expected(self, y: Array, mean: Array, variance: Array) -> Array:
        """In closed form: `exp(−f)` is log-normal."""
        a = self.concentration.astype(mean.dtype)
        log_ratio = jnp.log(y) - mean
        return self.log_density(y, mean) - a * jnp.exp(log_ratio) * jnp.expm1(variance / 2)

    def expected_derivatives(self, y: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """In closed form."""
        a = self.concentration.astype(mean.dtype)
        log_ratio = jnp.log(y) - mean + variance / 2
        return a * jnp.expm1(log_ratio), a * jnp.exp(log_ratio)

    def moments(self, mean: Array, variance: Array) -> Moments:
        """In closed form: means are log-normal, of which nodes miss the tail."""
        own, excess = jnp.exp(mean + variance / 2), jnp.expm1(variance)
        noise = (1 + excess) / self.concentration.astype(mean.dtype)
        spread = jnp.square(own) * excess
        return Moments(own, spread, own, spread + jnp.square(own) * noise)

    def response(self, f: Array) -> Array:
        """The mean."""
        return jnp.exp(f)

    def mean(self, f: Array) -> Array:
        """`exp(f)`."""
        return jnp.exp(f)

    def variance(self, f: Array) -> Array:
        """In proportion to the squared mean."""
        return jnp.exp(2 * f) / self.concentration.astype(f.dtype)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Gamma distributed numbers."""
        a = self.concentration.astype(f.dtype)
        return jnp.exp(f) * jax.random.gamma(key, a, f.shape, f.dtype) / a

    def cdf(self, y: Array, f: Array) -> Array:
        """By the incomplete gamma function."""
        a = self.concentration.astype(f.dtype)
        return lower_gamma(a, a * jnp.maximum(y, 0) * jnp.exp(-f))


class Beta(AbstractLikelihood):
    """Shares between 0 and 1 with mean `p = logit⁻¹(f)` and variance `p (1 − p) / (1 + size)`.

    Args:
        concentration: the sum of the two parameters of the Beta distribution, positive.

    Raises:
        ValueError: if it is not positive.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> round(kx.Beta(concentration=4.0).variance(jnp.zeros(())).item(), 3)
        0.05
    """

    response_name: ClassVar[str] = "share"

    concentration: ParameterArray = parameter(constraints.positive, default=10.0, start=10.0)

    @property
    def support(self) -> Support:
        """Between zero and one."""
        return Support(0.0, 1.0, False, "between 0 and 1, both left out", is_open=True)

    def start(self, y: Array) -> Array:
        """The log odds of the data."""
        return jnp.log(y) - jnp.log1p(-y)

    def _parameters(self, f: Array) -> tuple[Array, Array]:
        # A parameter of zero, where a share of one or zero is certain, has no density at all.
        size, tiny = self.concentration.astype(f.dtype), jnp.finfo(f.dtype).tiny
        a, b = size * jax.nn.sigmoid(f), size * jax.nn.sigmoid(-f)
        return jnp.maximum(a, tiny), jnp.maximum(b, tiny)

    def log_density(self, y: Array, f: Array) -> Array:
        """`(a − 1) log y + (b − 1) log(1 − y) − log B(a, b)`."""
        a, b = self._parameters(f)
        size = self.concentration.astype(f.dtype)
        # log Γ(a) of what one adds to a: at a mean near zero its derivatives leave the precision.
        one = [jnp.log(size) + jax.nn.log_sigmoid(x) - gammaln(1 + p) for x, p in ((f, a), (-f, b))]
        constant = gammaln(size) + one[0] + one[1]
        return constant + (a - 1) * jnp.log(y) + (b - 1) * jnp.log1p(-y)

    def response(self, f: Array) -> Array:
        """The mean."""
        return jax.nn.sigmoid(f)

    def mean(self, f: Array) -> Array:
        """`logit⁻¹(f)`."""
        return jax.nn.sigmoid(f)

    def variance(self, f: Array) -> Array:
        """Less than that of yes and no."""
        spread = jax.nn.sigmoid(f) * jax.nn.sigmoid(-f)
        return spread / (1 + self.concentration.astype(f.dtype))

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Beta distributed shares."""
        a, b = self._parameters(f)
        return jax.random.beta(key, a, b)

    def cdf(self, y: Array, f: Array) -> Array:
        """By the incomplete beta function."""
        a, b = self._parameters(f)
        y = jnp.clip(y, 0, 1)
        return lower_beta(a, b, jnp.log(y) - jnp.log1p(-y))
