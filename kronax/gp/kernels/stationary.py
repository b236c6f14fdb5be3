"""Kernels of the difference between two points."""

from math import pi
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.annotations import ParameterArray
from kronax.domains import parameter
from kronax.gp.kernels.base import Exchangeable, Kernel, Ones, as_points
from kronax.gp.kernels.markov import are_apart, checked_gaps, not_markov, single
from kronax.gp.kernels.radial import (
    FAR,
    bounded,
    distance,
    matern32,
    matern52,
    mismatch,
    ratio,
    rational_quadratic,
    squared_distance,
)
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import where
from kronax.linalg.state_spaces import algebra
from kronax.linalg.state_spaces.cosines import cosine_series, enough_terms
from kronax.linalg.state_spaces.matern import RATES, matern
from kronax.linalg.state_spaces.state_space import StateSpace


def check_per_dimension(what: str, shape: tuple[int, ...], x: np.ndarray, name: str) -> None:
    """Refuse a value per dimension that is not one per dimension of an axis."""
    if shape not in ((), x.shape[1:]):
        raise ValueError(f"The kernel of {name}: {mismatch(what, shape, x.shape[1:])}")


class Isotropic(Kernel):
    """A kernel of the distance in lengthscales; isotropic if it has a single lengthscale."""

    not_markov: ClassVar[str] = (
        "it is infinitely smooth, so that no state of finite length tells its future"
    )
    lengthscale: eqx.AbstractVar[Array]

    @property
    def stationary(self) -> bool:
        """Always."""
        return True

    @property
    def isotropic(self) -> bool:
        """With one lengthscale for all dimensions."""
        return jnp.ndim(self.lengthscale) == 0

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse lengthscales for another number of dimensions."""
        check_per_dimension("lengthscale", jnp.shape(self.lengthscale), x, name)

    def _matern(self, order: int, gaps: Any) -> StateSpace:
        steps = as_points(checked_gaps(gaps), self)
        ratio = bounded(steps, 0 * steps, single(self.lengthscale, "lengthscale", self))
        return matern(order, RATES[order] * ratio)


class SquaredExponential(Isotropic):
    """`exp(−r²/2)`, `r = |x − x'| / ℓ`; infinitely smooth. Also `kx.RBF`.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.SquaredExponential(1.0).evaluate(0.0, 1.0).item(), 4)
        0.6065
    """

    lengthscale: ParameterArray = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return jnp.exp(-squared_distance(x, z, self.lengthscale) / 2)


RBF = SquaredExponential


class Matern12(Isotropic):
    """`exp(−r)`, `r = |x − x'| / ℓ`; continuous and nowhere smooth (Ornstein–Uhlenbeck).

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.Matern12(1.0).evaluate(0.0, 1.0).item(), 4)
        0.3679
    """

    lengthscale: ParameterArray = parameter(constraints.positive, start="lengthscale")

    @property
    def has_slope(self) -> bool:
        """Never, as predictions have a kink at every observation."""
        return False

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return jnp.exp(-distance(x, z, self.lengthscale))

    def state_space(self, gaps: Any) -> StateSpace:
        """Its state is its value."""
        return self._matern(1, gaps)


class Matern32(Isotropic):
    """`(1 + √3 r) exp(−√3 r)`, `r = |x − x'| / ℓ`; once differentiable.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.Matern32(1.0).evaluate(0.0, 1.0).item(), 4)
        0.4834
    """

    lengthscale: ParameterArray = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return matern32(3 * squared_distance(x, z, self.lengthscale))

    def state_space(self, gaps: Any) -> StateSpace:
        """Its state is its value and its slope."""
        return self._matern(2, gaps)


class Matern52(Isotropic):
    """`(1 + √5 r + 5 r²/3) exp(−√5 r)`, `r = |x − x'| / ℓ`; twice differentiable.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.Matern52(1.0).evaluate(0.0, 1.0).item(), 4)
        0.524
    """

    lengthscale: ParameterArray = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return matern52(5 * squared_distance(x, z, self.lengthscale))

    def state_space(self, gaps: Any) -> StateSpace:
        """Its state is its value and two derivatives."""
        return self._matern(3, gaps)


class RationalQuadratic(Isotropic):
    """`(1 + r²/(2α))^(−α)`, `r = |x − x'| / ℓ`; a mixture of lengthscales.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.
        alpha: `α > 0`; the larger, the nearer to `SquaredExponential`.

    Examples:
        >>> import kronax as kx
        >>> round(kx.RationalQuadratic(1.0, 1.0).evaluate(0.0, 1.0).item(), 4)
        0.6667
    """

    lengthscale: ParameterArray = parameter(constraints.positive, start="lengthscale")
    alpha: ParameterArray = parameter(constraints.positive, start=1.0)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return rational_quadratic(x, z, self.lengthscale, self.alpha)


class Periodic(Kernel):
    """`exp(−2 sin²(π |x − x'| / p) / ℓ²)`; repeats with period `p`.

    Twice the lengthscale of PyMC and GPJax, and the root of GPyTorch's.

    On a Markov axis it is a series of cosines, with a state of `2 num_terms + 1` numbers. Where the
    terms left out have more than `1e3` roundings of the variance, which is the most that a
    covariance is then wrong by, it is refused, and NaN under jit: the default is enough for
    lengthscales above 0.6 in float64, and above 0.25 in float32.

    Args:
        period: `p > 0` in units of the axis.
        lengthscale: `ℓ > 0`, without units.
        num_terms: of the series of cosines, on a Markov axis alone.

    Raises:
        ValueError: if there is no term.

    Examples:
        >>> import kronax as kx
        >>> kx.Periodic(period=1.0, lengthscale=0.5).evaluate(0.0, 1.0).round(4).item()
        1.0
    """

    period: ParameterArray = parameter(constraints.positive, start="as given")
    lengthscale: ParameterArray = parameter(constraints.positive, start=1.0)
    num_terms: int = eqx.field(static=True, default=16)

    def __check_init__(self) -> None:
        """Refuse a series without terms."""
        if not isinstance(self.num_terms, int) or self.num_terms < 1:
            raise ValueError(f"num_terms must be an integer, at least 1; got {self.num_terms!r}.")

    @property
    def stationary(self) -> bool:
        """Always; not isotropic, because it knows its own period."""
        return True

    def state_space(self, gaps: Any) -> StateSpace:
        """A constant and some waves, whose weights fall off faster than geometrically."""
        steps, period = as_points(checked_gaps(gaps), self), single(self.period, "period", self)
        lengthscale = single(self.lengthscale, "lengthscale", self)
        if is_concrete(self.lengthscale):
            # By NumPy: what JAX makes of it is traced where only shapes are asked for.
            host = np.asarray(self.lengthscale)
            enough = enough_terms(host.item() ** -2, host.dtype)
            if enough > self.num_terms:
                raise not_markov(self, f"at this lengthscale it needs num_terms={enough}")
        cycles = ratio(steps, 0 * steps, period, "period")
        return cosine_series(cycles, lengthscale**-2, self.num_terms)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        angle = pi * (x - z) / self.period
        return jnp.exp(-2 * squared_distance(jnp.sin(angle), 0.0 * angle, self.lengthscale))


class Cosine(Kernel):
    """`cos(2π Σ (x − x') / p)`; a wave of fixed period and unknown phase.

    Two functions span it, the sine and the cosine: multiply it by another kernel for a wave whose
    phase drifts.

    Args:
        period: `p > 0` in units of the axis; `(p,)` for one per dimension, of plane waves.

    Examples:
        >>> import kronax as kx
        >>> kx.Cosine(period=2.0).evaluate(0.0, 1.0).item()
        -1.0
    """

    period: ParameterArray = parameter(constraints.positive, start="as given")

    @property
    def stationary(self) -> bool:
        """Always; not isotropic, because a wave has a direction."""
        return True

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse periods for another number of dimensions."""
        check_per_dimension("period", jnp.shape(self.period), x, name)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return jnp.cos(2 * pi * jnp.sum(ratio(x, z, self.period, "period")))

    def state_space(self, gaps: Any) -> StateSpace:
        """A cosine and a sine."""
        steps = as_points(checked_gaps(gaps), self)
        return algebra.wave(ratio(steps, 0 * steps, single(self.period, "period", self), "period"))


class SpectralMixture(Kernel):
    """`Σ_q w_q Π_p exp(−2π² τ² σ_qp²) cos(2π τ μ_qp)`, `τ = x_p − x'_p`; any spectrum.

    Its spectral density is a mixture of normal densities, mirrored at frequency zero. The weights
    sum to one, so that a number in front is the variance and nothing is counted twice; only the
    order of the components is left open. The likelihood has many optima: start from frequencies
    seen in a periodogram, below half the sampling rate.

    Args:
        weights: `w`, `(q,)`, positive, of sum one.
        means: `μ > 0`, frequencies in cycles per unit of the axis, `(q,)` or `(q, p)`.
        scales: `σ > 0`, widths of the peaks in the same units and shape: a component loses its
            phase over a distance of about `1 / (2π σ)`.

    Raises:
        ValueError: if the shapes do not match.

    Examples:
        >>> import kronax as kx
        >>> kernel = kx.SpectralMixture(weights=[0.7, 0.3], means=[1.0, 0.1], scales=[0.01, 0.2])
        >>> kernel.evaluate(0.0, 0.0).round(4).item()
        1.0
    """

    not_markov: ClassVar[str] = (
        "its components are infinitely smooth, so that no state of finite length tells its future"
    )
    weights: ParameterArray = parameter(constraints.simplex)
    means: ParameterArray = parameter(constraints.positive)
    scales: ParameterArray = parameter(constraints.positive)

    def __check_init__(self) -> None:
        """Refuse shapes that do not match."""
        shapes = [jnp.shape(v) for v in (self.weights, self.means, self.scales)]
        if len(shapes[0]) != 1 or shapes[1] != shapes[2] or shapes[1][:1] != shapes[0]:
            raise ValueError(
                "A spectral mixture must have weights (q,), and means and scales both (q,) or "
                f"(q, p); got shapes {shapes[0]}, {shapes[1]} and {shapes[2]}."
            )

    @property
    def stationary(self) -> bool:
        """Always; not isotropic, because its waves have a direction."""
        return True

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse frequencies for another number of dimensions."""
        check_per_dimension("mean of a spectral mixture", self.means.shape[1:], x, name)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        if self.means.shape[1:] != jnp.shape(x):
            raise ValueError(
                mismatch("mean of a spectral mixture", self.means.shape[1:], jnp.shape(x))
            )
        # Per component and dimension: `(q, p)`.
        means, scales = (jnp.reshape(v, (v.shape[0], -1)) for v in (self.means, self.scales))
        lag = jnp.atleast_1d(x - z)[None]
        # Far away the phase counts no more; neither may overflow there.
        far = jnp.abs(lag * scales) > FAR
        width, phase = where(far, FAR, lag * scales), jnp.where(far, 0, lag * means)
        decay = jnp.exp(-2 * pi**2 * jnp.sum(jnp.square(width), axis=1))
        return jnp.sum(self.weights * decay * jnp.prod(jnp.cos(2 * pi * phase), axis=1))


class Constant(Exchangeable):
    """The same covariance `c` between all points: an unknown common offset.

    Args:
        variance: `c > 0`.

    Examples:
        >>> import kronax as kx
        >>> kx.Constant(2.0).evaluate(0.0, 1.0).item()
        2.0
    """

    variance: ParameterArray = parameter(constraints.positive, default=1.0, start=1.0)

    def split_scale(self) -> tuple[Kernel, Array | None]:
        """It is nothing but a scale."""
        return Ones(), self.variance

    def state_space(self, gaps: Any) -> StateSpace:
        """A value that stays."""
        return algebra.level(as_points(checked_gaps(gaps), self), self.variance)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The constant."""
        return self.variance


class Indicator(Exchangeable):
    """One where two points are the same, else zero: what `White` is without its variance."""

    @property
    def has_slope(self) -> bool:
        """Never, as predictions jump at every observation."""
        return False

    @property
    def uncorrelated(self) -> bool:
        """Always."""
        return True

    def state_space(self, gaps: Any) -> StateSpace:
        """Nothing of one value tells of the next."""
        steps = as_points(checked_gaps(gaps), self)
        return algebra.white(steps, jnp.ones((), steps.dtype), are_apart(gaps))

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return jnp.all(x == z).astype(jnp.result_type(x, z))


class White(Exchangeable):
    """`c` where `x = x'`, else zero: an independent value at every point.

    Unlike noise it belongs to the function. A point that occurs twice on the axis, or again among
    new coordinates (to rounding), has one value; at any other new point the prediction is the
    prior's. In a sum it is an effect of each place alone (a nugget), on its own it says that the
    slices along an axis are independent: that axis then needs no decomposition.

    Args:
        variance: `c > 0`.

    Examples:
        >>> import kronax as kx
        >>> kx.White(2.0)([0.0, 1.0], [1.0]).tolist()
        [[0.0], [2.0]]
    """

    variance: ParameterArray = parameter(constraints.positive, default=1.0, start=1.0)

    @property
    def has_slope(self) -> bool:
        """Never, as predictions jump at every observation."""
        return False

    @property
    def uncorrelated(self) -> bool:
        """Always."""
        return True

    def split_scale(self) -> tuple[Kernel, Array | None]:
        """Its variance is a scale."""
        return Indicator(), self.variance

    def state_space(self, gaps: Any) -> StateSpace:
        """Nothing of one value tells of the next."""
        return algebra.white(as_points(checked_gaps(gaps), self), self.variance, are_apart(gaps))

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return self.variance * Indicator().evaluate(x, z).astype(self.variance.dtype)
