"""Likelihoods of yes and no, and of how often yes."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jaxtyping import Array, PRNGKeyArray

from kronax.domains import data
from kronax.gp.likelihoods.base import AbstractLikelihood, Support, cells_like, per_cell
from kronax.gp.likelihoods.incomplete import log_excess, log_factorial_excess, lower_beta
from kronax.linalg.arrays.precision import where

Link = Literal["logit", "probit"]
LINKS = ("logit", "probit")


def _link(value: Any) -> Any:
    if value not in LINKS:
        raise ValueError(f"`link` must be 'logit' or 'probit'; got {value!r}.")
    return value


class _Trials(AbstractLikelihood):
    """How many of some trials succeed."""

    is_log_concave: ClassVar[bool] = True
    filler: ClassVar[float] = 0.0
    response_name: ClassVar[str] = "probability"

    link: eqx.AbstractVar[Link]

    @property
    @abc.abstractmethod
    def trials(self) -> Array:
        """How many there are."""

    def start(self, y: Array) -> Array:
        """The observed share, drawn half a success and half a failure to the middle."""
        share = (y + 0.5) / (cells_like(self.trials, y) + 1)
        return ndtri(share) if self.link == "probit" else jnp.log(share) - jnp.log1p(-share)

    def log_density(self, y: Array, f: Array) -> Array:
        """`y log p + (n − y) log(1 − p)`, and how many orders there are."""
        n = cells_like(self.trials, f)
        log_cdf = log_ndtr if self.link == "probit" else jax.nn.log_sigmoid
        yes, no = log_cdf(f), log_cdf(-f)
        # Beside a probability that equals the share: terms of many trials are large, and cancel.
        is_some = (y > 0) & (y < n)
        share, rest = (where(is_some, x / n, 0.5) for x in (y, n - y))
        away = yes - no - jnp.log(share) + jnp.log(rest)
        orders = [log_factorial_excess(x) for x in (n, y, n - y)]
        some = orders[0] - orders[1] - orders[2] - n * log_excess(share, rest, away)
        return jnp.where(is_some, some, y * yes + (n - y) * no)

    def response(self, f: Array) -> Array:
        """The probability of success."""
        return ndtr(f) if self.link == "probit" else jax.nn.sigmoid(f)

    def mean(self, f: Array) -> Array:
        """`n p`."""
        return cells_like(self.trials, f) * self.response(f)

    def variance(self, f: Array) -> Array:
        """`n p (1 − p)`."""
        return self.mean(f) * self.response(-f)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """Numbers of successes."""
        return jax.random.binomial(key, cells_like(self.trials, f), self.response(f))

    def cdf(self, y: Array, f: Array) -> Array:
        """By the incomplete beta function."""
        n, k = cells_like(self.trials, f), jnp.floor(y)
        failure = log_ndtr(-f) - log_ndtr(f) if self.link == "probit" else -f  # its log odds
        inside = jnp.clip(k, 0, jnp.maximum(n - 1, 0))
        value = lower_beta(jnp.maximum(n - inside, 1), inside + 1, failure)
        return where(k < 0, 0.0, where(k >= n, 1.0, value))


class Binomial(_Trials):
    """How many of `total_count` trials succeed, each with probability `logit⁻¹(f)` or `Φ(f)`.

    Args:
        total_count: the number of trials, one or one per cell.
        link: "logit", or "probit".

    Raises:
        ValueError: if a number of trials is not a positive whole number, or the link is unknown.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Binomial(10).mean(jnp.zeros(())).item()
        5.0
    """

    cell_fields: ClassVar[Mapping[str, Any]] = MappingProxyType({"total_count": per_cell})

    total_count: Array = data(converter=lambda value: per_cell(value, "total_count"))
    link: Link = eqx.field(static=True, default="logit", converter=_link)

    def __check_init__(self) -> None:
        """Refuse fractions of trials."""
        count = self.total_count
        if not isinstance(count, jax.core.Tracer) and np.any(np.asarray(count) % 1):
            raise ValueError("`total_count` must hold whole numbers of trials; got fractions.")

    @property
    def trials(self) -> Array:
        """How many there are."""
        return self.total_count

    @property
    def support(self) -> Support:
        """From none to all trials."""
        return Support(0.0, self.total_count, True, "whole numbers from 0 to `total_count`")


class Bernoulli(_Trials):
    """Yes or no, 1 or 0: yes with probability `logit⁻¹(f)` or `Φ(f)`.

    Args:
        link: "logit", or "probit".

    Raises:
        ValueError: if the link is unknown.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> kx.Bernoulli(link="probit").response(jnp.zeros(())).item()
        0.5
    """

    link: Link = eqx.field(static=True, default="logit", converter=_link)

    @property
    def trials(self) -> Array:
        """One."""
        return jnp.ones(())

    @property
    def support(self) -> Support:
        """Zero or one."""
        return Support(0.0, 1.0, True, "0 or 1")
