"""Likelihoods of counts."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, gammaincc, gammaln, ndtr
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

COUNTS = Support(0.0, jnp.inf, True, "counts: 0, 1, 2, …")
# Where nothing was counted, a search starts at a rate of half an event.
HALF = 0.5
# From this count on Stirling's series is right to 2e-12.
STIRLING = 16.0
# From this count on an expansion of the incomplete gamma function is right to 3e-8.
LARGE = 1000.0
# That of its correction about no deviation (Temme 1979).
CORRECTION = (-139 / 777600, 1 / 2835, 1 / 864, -2 / 135, 1 / 12, -1 / 3)


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
        return jnp.where(y < 0, 0.0, upper_gamma(jnp.maximum(y, 0) + 1, self.mean(f)))


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
        y, share = jnp.floor(y), r / (r + self.mean(f))
        return jnp.where(y < 0, 0.0, betainc(r, jnp.maximum(y, 0) + 1, share))


def log_factorial_excess(y: Array) -> Array:
    """`log y! − y log y + y`, of which large counts keep all digits; for a count of zero, 1."""
    few, many = jnp.clip(y, 1, STIRLING), jnp.maximum(y, STIRLING)
    # With y itself under the factorial, which is 1 for none.
    direct = gammaln(jnp.minimum(y, STIRLING) + 1) - jnp.minimum(y, STIRLING) * jnp.log(few) + few
    series = 1 / (12 * many) - 1 / (360 * many**3) + 1 / (1260 * many**5)
    return jnp.where(y < STIRLING, direct, jnp.log(2 * jnp.pi * many) / 2 + series)


def log_gamma_excess(x: Array) -> Array:
    """`log Γ(x) − x log x + x`, of which large numbers keep all digits; for positive ones."""
    few, many = jnp.minimum(x, STIRLING), jnp.maximum(x, STIRLING)
    direct = gammaln(few) - few * jnp.log(few) + few
    return jnp.where(x < STIRLING, direct, log_factorial_excess(many) - jnp.log(many))


def log_excess(share: Array, rest: Array, away: Array) -> Array:
    """`log(p eᵈ + 1 − p) − p d` for a share `p`, of order `d²` about zero, and its rest `1 − p`.

    It is the same for the rest and `−d`: the smaller share has all its digits.
    """
    small = jnp.minimum(share, rest)
    d = jnp.where(share <= rest, away, -away)
    near = jnp.clip(d, -1, 1)
    close = jnp.log1p(small * jnp.expm1(near)) - small * near
    far = jnp.logaddexp(jnp.log1p(-small), jnp.log(small) + d) - small * d
    return jnp.where(jnp.abs(d) < 1, close, far)


def upper_gamma(a: Array, x: Array) -> Array:
    """The regularised upper incomplete gamma function, at large `a` by Temme's expansion.

    The series of JAX takes time in proportion to the root of `a`, and loses its digits in `a`.
    """
    is_large = a >= LARGE
    exact = gammaincc(jnp.where(is_large, 1, a), jnp.where(is_large, 1, x))
    return jnp.where(is_large, _temme(jnp.maximum(a, LARGE), x), exact)


def _temme(a: Array, x: Array) -> Array:
    mu = (jnp.minimum(x, jnp.finfo(x.dtype).max) - a) / a
    is_near = jnp.abs(mu) < 0.02
    near, far = jnp.where(is_near, mu, 0), jnp.where(is_near, 1, mu)
    root = jnp.sqrt(jnp.polyval(jnp.array([1 / 3, -2 / 5, 1 / 2, -2 / 3, 1], mu.dtype), near))
    eta_far = jnp.sign(far) * jnp.sqrt(2 * (far - jnp.log1p(far)))
    correction_near = jnp.polyval(jnp.array(CORRECTION, mu.dtype), near * root)
    correction = jnp.where(is_near, correction_near, 1 / far - 1 / eta_far)
    eta = jnp.where(is_near, near * root, eta_far)
    density = jnp.exp(-a * jnp.square(eta) / 2) / jnp.sqrt(2 * jnp.pi * a)
    return ndtr(-eta * jnp.sqrt(a)) + density * correction
