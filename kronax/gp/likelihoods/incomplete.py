"""Incomplete gamma and beta functions that keep their digits at large parameters.

Those of JAX take differences of log gamma functions as they are: in single precision a count of
1 000 costs four digits, and one of 10⁶ all of them.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammainc, gammaincc, gammaln, ndtr
from jaxtyping import Array

from kronax.linalg.arrays.precision import where

# From this number on Stirling's series is right to 2e-12.
STIRLING = 16.0
# From this parameter on an expansion of the incomplete gamma function is right to 1e-10, which is
# less than the fraction of JAX loses; in single precision from the second one on, to 1e-6.
LARGE, LARGE_SINGLE = 1000.0, 20.0
# Its first two corrections about no deviation (Temme 1979), in powers of the deviation.
CORRECTION = (-139 / 777600, 1 / 2835, 1 / 864, -2 / 135, 1 / 12, -1 / 3)
SECOND = (7.649e-6, -1.81e-5, -4.019e-7, 2.05761e-4, -9.902263e-4, 1 / 378, -1 / 288, -1 / 540)
# The fraction of the incomplete beta function ends sooner: after some 100 terms at 1 000.
MOST_TERMS = 500
# Log odds beyond are those of zero and one.
FAR = 1e30


def log_factorial_excess(y: Array) -> Array:
    """`log y! − y log y + y`, of which large counts keep all digits; for a count of zero, 1."""
    few, many = jnp.minimum(jnp.maximum(y, 1), STIRLING), jnp.maximum(y, STIRLING)
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
    """The regularised upper incomplete gamma function, at large `a` by Temme's expansion."""
    is_large = a >= _large(x)
    exact = gammaincc(jnp.where(is_large, 1, a), jnp.where(is_large, 1, x))
    eta, density, correction = _temme(where(is_large, a, LARGE), x)
    return jnp.where(is_large, ndtr(-eta) + density * correction, exact)


def lower_gamma(a: Array, x: Array) -> Array:
    """The same of the lower function, whose small values keep their digits."""
    is_large = a >= _large(x)
    exact = gammainc(jnp.where(is_large, 1, a), jnp.where(is_large, 1, x))
    eta, density, correction = _temme(where(is_large, a, LARGE), x)
    return jnp.where(is_large, ndtr(eta) - density * correction, exact)


def _large(x: Array) -> float:
    return LARGE_SINGLE if jnp.finfo(x.dtype).bits < 64 else LARGE


def _temme(a: Array, x: Array) -> tuple[Array, Array, Array]:
    """A normal deviation, its density, and by how much of that the normal one is off."""
    mu = (jnp.minimum(x, jnp.finfo(x.dtype).max) - a) / a
    is_near = jnp.abs(mu) < 0.02
    near, far = jnp.where(is_near, mu, 0), jnp.where(is_near, 1, mu)
    root = jnp.sqrt(jnp.polyval(jnp.array([1 / 3, -2 / 5, 1 / 2, -2 / 3, 1], mu.dtype), near))
    eta_far = jnp.sign(far) * jnp.sqrt(2 * (far - jnp.log1p(far)))
    correction_near = jnp.polyval(jnp.array(CORRECTION, mu.dtype), near * root)
    correction = jnp.where(is_near, correction_near, 1 / far - 1 / eta_far)
    eta = jnp.where(is_near, near * root, eta_far)
    # Beyond 1.5 the density of 20 and more leaves nothing of it.
    second = jnp.polyval(jnp.array(SECOND, mu.dtype), jnp.minimum(jnp.maximum(eta, -1.5), 1.5))
    density = jnp.exp(-a * jnp.square(eta) / 2) / jnp.sqrt(2 * jnp.pi * a)
    return eta * jnp.sqrt(a), density, correction + second / a


def lower_beta(a: Array, b: Array, log_odds: Array) -> Array:
    """The regularised incomplete beta function `I_x(a, b)` at `log x − log(1 − x)`.

    By the continued fraction of DiDonato and Morris (1992) on the side of the lesser tail, whose
    terms are positive, and where both parameters are large by Temme's expansion (1982), right to
    1e-7 from 1 000 on.
    """
    a, b, log_odds = jnp.broadcast_arrays(a, b, log_odds)
    away = jnp.minimum(jnp.maximum(log_odds + jnp.log(b / a), -FAR), FAR)
    is_upper = away > 0
    a, b = jnp.where(is_upper, b, a), jnp.where(is_upper, a, b)
    away = -jnp.abs(away)
    is_large = jnp.minimum(a, b) >= LARGE
    few, rest = (jnp.where(is_large, 1, x) for x in (a, b))
    tail = jnp.where(is_large, _beta_expansion(a, b, away), _beta_fraction(few, rest, away))
    return jnp.where(is_upper, 1 - tail, tail)


def _beta_expansion(a: Array, b: Array, away: Array) -> Array:
    """Temme's, for log odds `away` of those of `a / (a + b)`, zero or less."""
    p, q = a / (a + b), b / (a + b)
    s, skew = jnp.sqrt(p * q), q - p
    is_near = away > -0.05
    d, far = jnp.where(is_near, away, 0), jnp.where(is_near, -1, away)
    # η² = 2 (log(p eᵈ + q) − p d), by its powers of d: the cumulants of one trial.
    powers = [skew / 3, (1 - 6 * s**2) / 12, skew * (1 - 12 * s**2) / 60]
    powers.append((1 - 30 * s**2 + 120 * s**4) / 360)
    u = d * (powers[0] + d * (powers[1] + d * (powers[2] + d * powers[3])))
    root = jnp.sqrt(1 + u)
    # 1/η − √(pq) / (x − p), of which both terms are 1 / (s d) at first.
    less = -(powers[0] + d * (powers[1] + d * (powers[2] + d * powers[3]))) / (root * (1 + root))
    close = (less + 0.5 - p - d / 12 + d**3 / 720) / s
    eta_far = -jnp.sqrt(2 * log_excess(p, q, far))
    correction = jnp.where(is_near, close, 1 / eta_far - (p + 1 / jnp.expm1(far)) / s)
    score = jnp.where(is_near, s * d * root, eta_far) * jnp.sqrt(a + b)
    density = jnp.exp(-jnp.square(score) / 2) / jnp.sqrt(2 * jnp.pi * (a + b))
    return ndtr(score) + density * correction


def _beta_fraction(a: Array, b: Array, away: Array) -> Array:
    """That of DiDonato and Morris, equation 9, for log odds as above."""
    p, q = a / (a + b), b / (a + b)
    odds = jnp.exp(away)
    x, y = (part / (q + p * odds) for part in (p * odds, q))
    excess = -a * q * jnp.expm1(away) / (q + p * odds)  # a − (a + b) x
    first = (1 + excess) * a / (a + 1)

    def term(state: tuple[Array, ...]) -> tuple[Array, ...]:
        n, above, below, last, _ = state
        w = n * (b - n) * x
        size = a + 2 * n - 1
        alpha = (a + n - 1) / size * ((a + b + n - 1) / size) * w * x
        beta = n + w / size + (a + n) / (size + 2) * (1 + excess + n * (1 + y))
        top, bottom = alpha * above + beta * last, alpha * below + beta
        return n + 1, last / bottom, 1 / bottom, top / bottom, last

    def goes_on(state: tuple[Array, ...]) -> Array:
        n, *_, new, old = state
        # Rounding alone moves the last digit for ever.
        is_open = jnp.abs(new - old) > 4 * jnp.finfo(x.dtype).eps * jnp.abs(new)
        return (n < MOST_TERMS) & jnp.any(is_open)

    one = jnp.ones((), x.dtype)
    start: tuple[Array, ...] = (one, 0 * x, 1 / first, 1 / first, jnp.full_like(x, jnp.inf))
    *_, fraction, _ = lax.while_loop(goes_on, term, start)
    orders = log_gamma_excess(a + b) - log_gamma_excess(a) - log_gamma_excess(b)
    return fraction * jnp.exp(orders - (a + b) * log_excess(p, q, away))
