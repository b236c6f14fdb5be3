"""Likelihoods of counts."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.annotations import OptionalArray, ParameterArray
from kronax.domains import data, parameter
from kronax.gp.likelihoods.base import (
    AbstractLikelihood,
    Moments,
    Support,
    cells_like,
    per_cell,
)
from kronax.gp.likelihoods.incomplete import (
    log_excess,
    log_factorial_excess,
    log_gamma_excess,
    lower_beta,
    upper_gamma,
)
from kronax.linalg.arrays.precision import where

COUNTS = Support(0.0, jnp.inf, True, "counts: 0, 1, 2, …")
# Where nothing was counted, a search starts at a rate of half an event.
HALF = 0.5


def _exposure() -> Any:
    def convert(value: Any) -> Any:
        return None if value is None else per_cell(value, "exposure")

    return data(default=None, converter=convert)


class _Counts(AbstractLikelihood):
    """Counts with a mean of `exposure · exp(f)`."""

    cell_fields: ClassVar[Mapping[str, Any]] = MappingProxyType({"exposure": per_cell})
    is_log_concave: ClassVar[bool] = True
    filler: ClassVar[float] = 0.0
    response_name: ClassVar[str] = "rate"

    exposure: eqx.AbstractVar[Array | None]

    def log_exposure(self, f: Array) -> Array:
        """Zero where no exposure is given."""
        return jnp.zeros_like(f) if self.exposure is None else jnp.log(cells_like(self.exposure, f))

    @property
    def support(self) -> Support:
        """Counts."""
        return COUNTS

    def start(self, y: Array) -> Array:
        """The logarithm of the observed rate."""
        return jnp.log(y + HALF) - self.log_exposure(y)

    def response(self, f: Array) -> Array:
        """The rate per unit of exposure."""
        return jnp.exp(f)

    def mean(self, f: Array) -> Array:
        """The expected count."""
        return jnp.exp(f + self.log_exposure(f))

    def moments(self, mean: Array, variance: Array) -> Moments:
        """In closed form: rates are log-normal, of which nodes miss the tail."""
        middle, excess = mean + variance / 2, jnp.expm1(variance)
        rate, own = self.response(middle), self.mean(middle)
        # Given f the variance is a polynomial of the mean, whose square has this average.
        noise = own + self.dispersion(mean) * jnp.square(own) * (1 + excess)
        spread = jnp.square(own) * excess + noise
        return Moments(rate, jnp.square(rate) * excess, own, spread)

    @abc.abstractmethod
    def dispersion(self, f: Array) -> Array:
        """By how many squares of the mean the variance is more than the mean."""

    def variance(self, f: Array) -> Array:
        """That of the mean, or more."""
        mean = self.mean(f)
        return mean + self.dispersion(f) * jnp.square(mean)


class Poisson(_Counts):
    """Counts that are Poisson distributed with mean `exposure · exp(f)`.

    Args:
        exposure: what a rate refers to, such as a population or a time: a positive number, or one
            per cell that broadcasts to the grid, by default 1. An offset of the log rate is
            `exp(offset)` here.

    Raises:
        ValueError: if an exposure is not positive.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> likelihood = kx.Poisson(exposure=jnp.array([1.0, 100.0]))
        >>> [round(mean, 3) for mean in likelihood.mean(jnp.zeros(2)).tolist()]
        [1.0, 100.0]
    """

    exposure: OptionalArray = _exposure()

    def log_density(self, y: Array, f: Array) -> Array:
        """`y log λ − λ − log y!`."""
        # Beside a rate that equals the count: its terms are large, and cancel.
        log_ratio = f + self.log_exposure(f) - jnp.log(jnp.maximum(y, 1))
        largest = -log_factorial_excess(y)
        return y * log_ratio - jnp.maximum(y, 1) * jnp.expm1(log_ratio) + largest

    def expected(self, y: Array, mean: Array, variance: Array) -> Array:
        """In closed form: the mean of a log-normal rate is known."""
        rate, half = self.mean(mean), variance / 2
        is_narrow = half < 1
        excess = rate * jnp.expm1(jnp.where(is_narrow, half, 0))
        excess = jnp.where(is_narrow, excess, self.mean(mean + half) - rate)
        return self.log_density(y, mean) - excess

    def expected_derivatives(self, y: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """In closed form."""
        rate = self.mean(mean + variance / 2)
        return y - rate, rate

    def dispersion(self, f: Array) -> Array:
        """None."""
        return jnp.zeros_like(f)

    def variance(self, f: Array) -> Array:
        """That of the mean."""
        return self.mean(f)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Poisson counts."""
        return jax.random.poisson(key, self.mean(f)).astype(f.dtype)

    def cdf(self, y: Array, f: Array) -> Array:
        """By the incomplete gamma function."""
        y = jnp.floor(y)
        return where(y < 0, 0.0, upper_gamma(jnp.maximum(y, 0) + 1, self.mean(f)))


class NegativeBinomial(_Counts):
    """Counts with mean `μ = exposure · exp(f)` and variance `μ + μ² / concentration`.

    Args:
        concentration: positive; large values approach the Poisson distribution.
        exposure: what a rate refers to: a positive number, or one per cell, by default 1.

    Raises:
        ValueError: if the concentration or an exposure is not positive.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.NegativeBinomial(concentration=2.0).variance(jnp.zeros(())).item()
        1.5
    """

    concentration: ParameterArray = parameter(constraints.positive, default=1.0)
    exposure: OptionalArray = _exposure()

    def log_density(self, y: Array, f: Array) -> Array:
        """`log Γ(y + r) / (Γ(r) y!) − r log(1 + μ/r) − y log(1 + r/μ)`."""
        # Beside a mean that equals the count: its terms are large, and cancel.
        r = self.concentration.astype(f.dtype)
        log_mean, one = f + self.log_exposure(f), jnp.maximum(y, 1)
        orders = log_gamma_excess(y + r) - log_gamma_excess(r) - log_factorial_excess(y)
        largest = jnp.where(y > 0, orders, 0)
        shares, away = (one / (one + r), r / (one + r)), log_mean - jnp.log(one)
        below = -r * jax.nn.softplus(log_mean - jnp.log(r))
        return jnp.where(y > 0, largest - (y + r) * log_excess(*shares, away), below)

    def dispersion(self, f: Array) -> Array:
        """The less, the larger the concentration."""
        return 1 / self.concentration.astype(f.dtype)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Poisson counts whose rates are Gamma distributed."""
        rate_key, count_key = jax.random.split(key)
        r, mean = self.concentration.astype(f.dtype), self.mean(f)
        rate = mean * jax.random.gamma(rate_key, r, mean.shape, f.dtype) / r
        return jax.random.poisson(count_key, rate).astype(f.dtype)

    def cdf(self, y: Array, f: Array) -> Array:
        """By the incomplete beta function."""
        r = self.concentration.astype(f.dtype)
        y, log_odds = jnp.floor(y), jnp.log(r) - f - self.log_exposure(f)
        return where(y < 0, 0.0, lower_beta(r, jnp.maximum(y, 0) + 1, log_odds))
