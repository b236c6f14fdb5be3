"""The search for the sites of a likelihood.

*Variational*: of all normal distributions the one nearest to the posterior by the divergence
`KL(q ‖ p)`. At cell marginals `(m, v)` its sites are `W = E[−∂² log p(y|f)]` and
`z = m + E[∂ log p(y|f)] / W`. *Laplace*: the same with the log density's own derivatives at the
mode, without averages.

For fixed variances the mean maximises `Σ E log p(y|f) − ½ aᵀ K a` with `m = K a`, and conditioning
on the sites is its Newton step: a search along the line between two means costs nothing but the
likelihood, and makes it safe from any start. The variances follow one step behind, by all of their
change or, where that swings, by the share that Aitken's relaxation finds from the last two changes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.model.process import AbstractProcess
from kronax.gp.model.solver_choice import is_iterative
from kronax.gp.sites.sites import Sites, given, moments
from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import ConvergenceError

MOST_STEPS = 100
OTHER_START = "Start at other parameters: gp.initialise(y)."
MUST_CONVERGE = "The search for the sites must converge"
# Rounding, not the search, is what is left of changes that no longer fall: after so many steps that
# do not lower the smallest change, one of at most so many tolerances is the end.
MOST_STALLED, ROUNDED = 8, 50
# Halvings of a step along the line.
MOST_HALVINGS = 12
# The precision of a site that only pulls, in squared slopes and precisions of the prior.
UPWARDS = 1e-4
# Of their change the variances move by at least and at most so much.
LEAST_SHARE, MOST_SHARE = 0.05, 1.5


class Cells(Protocol):
    """What a search asks of a process: how its cells depend on the function."""

    @property
    def likelihood(self) -> AbstractLikelihood | None:
        """Of an observation given the function."""

    @property
    def approximation(self) -> str:
        """How derivatives are taken: "variational" or "laplace"."""

    @property
    def observed(self) -> Any:
        """Where there are data, in its `array`; `None` for everywhere."""


class Hint(NamedTuple):
    """Where a search may start: the end of one at other parameters. NaN says that there is none."""

    mean: Array
    variance: Array


def no_hint(shape: tuple[int, ...], dtype: Any) -> Hint:
    """Nothing to start from."""
    none: Any = np.full(shape, np.nan, dtype)
    return Hint(none, none)


def find(gp: AbstractProcess, y: Array, hint: Hint) -> tuple[Sites, Hint]:
    """The sites of a process given data, held constant, and where another search may start.

    Data are filled in the gaps. Where the search does not converge the hint stays as it was.
    """
    arrays, rest = eqx.partition((gp, y, hint), eqx.is_array)
    gp, y, hint = eqx.combine(lax.stop_gradient(arrays), rest)
    return Search.of(gp, y).run(hint)


@eqx.filter_jit
def first_sites(gp: AbstractProcess, y: Array) -> tuple[Array, Array]:
    """Targets and precisions that a search for checked data starts from."""
    return Search.of(gp, filled(gp, y)).sites_at_data()


def filled(gp: AbstractProcess, y: Array) -> Array:
    """Data with a possible observation in the gaps."""
    assert gp.likelihood is not None
    return y if gp.observed is None else jnp.where(gp.observed.array, y, gp.likelihood.filler)


def tolerance_of(gp: AbstractProcess, dtype: Any) -> float:
    """Changes of a step, in deviations, below which sites are found.

    The evidence is stationary in them, so that its error is of the order of the square. Variances
    by draws are not known better.
    """
    return 1e-4 if is_iterative(gp) else tolerance_for(dtype)


def tolerance_for(dtype: Any) -> float:
    """The same on exact routes."""
    return 1e-6 if jnp.finfo(dtype).eps < 1e-10 else 1e-3


def site_of(
    gp: Cells, y: Array, mean: Array, variance: Array | None, prior: Array
) -> tuple[Array, Array]:
    """Targets and precisions of the sites, zero at gaps; without variances, of a Laplace one.

    A precision is at least a tiny share of that of the prior and of the squared slope: the target
    keeps the slope whatever the precision, and stays where numbers carry it. A log density that
    bends upwards, as of an outlier, so has a site that only pulls; its share is one that iterations
    carry as well.
    """
    assert gp.likelihood is not None
    mean, variance = _finite_at_gaps(gp, mean, variance)
    if variance is None:
        slope, bend = gp.likelihood.derivatives(y, mean)
    else:
        slope, bend = gp.likelihood.expected_derivatives(y, mean, variance)
    share = jnp.finfo(mean.dtype).eps ** 0.5 if gp.likelihood.is_log_concave else UPWARDS
    least = share * (jnp.square(slope) + 1 / prior)
    precision = jnp.maximum(bend, least)
    target = mean + slope / precision
    seen = _seen(gp)
    return jnp.where(seen, target, 0), jnp.where(seen, precision, 0)


def expected_log_density(gp: Cells, y: Array, mean: Array, variance: Array | None) -> Array:
    """`E log p(y|f)` at every cell, zero at gaps; without variances, at the mean."""
    assert gp.likelihood is not None
    mean, variance = _finite_at_gaps(gp, mean, variance)
    if variance is None:
        value = gp.likelihood.log_density(y, mean)
    else:
        value = gp.likelihood.expected(y, mean, variance)
    return jnp.where(_seen(gp), value, 0)


def _finite_at_gaps(gp: Cells, mean: Array, variance: Array | None) -> tuple[Array, Array | None]:
    """Marginals that are harmless at gaps: what overflows has no derivative, masked or not."""
    spread = None if variance is None else jnp.where(_seen(gp), variance, 1)
    return jnp.where(_seen(gp), mean, 0), spread


def _seen(gp: Cells) -> Any:
    return True if gp.observed is None else jnp.asarray(gp.observed.array)


class _Place(NamedTuple):
    """Where a search is: marginals and weights, and the sites that led there.

    `given_mean` and `given_variance` are those given these sites, `spread` is the last change of
    the logarithms of the variances, of which they went the share `share`.
    """

    mean: Array
    variance: Array
    weights: Array
    target: Array
    precision: Array
    given_mean: Array
    given_variance: Array
    share: Array
    spread: Array
    change: Array
    least_change: Array
    num_stalled: Array
    num_steps: Array


class Search(NamedTuple):
    """A process and data, and what stays the same from step to step."""

    gp: "Cells"
    y: Array
    prior_mean: Array
    prior_variance: Array
    tolerance: float
    # From targets and precisions of sites to mean, variance and weights given them.
    conditioned: Callable[[Array, Array], tuple[Array, Array, Array]]

    @classmethod
    def of(cls, gp: AbstractProcess, y: Array) -> "Search":
        """For checked data that are filled in the gaps."""
        prior = gp.covariance(include_noise=False).diagonal()
        mean = gp.mean_on((None,) * len(gp.axes))
        mean, prior = (jnp.broadcast_to(x, y.shape) for x in (mean, prior))

        def conditioned(target: Array, precision: Array) -> tuple[Array, Array, Array]:
            post = given(gp, target, precision)
            return *moments(post), post.weights

        return cls(gp, y, mean, prior, tolerance_of(gp, y.dtype), conditioned)

    def run(self, hint: Hint) -> tuple[Sites, Hint]:
        """The sites, and where another search may start."""
        end = lax.while_loop(self.goes_on, self.step, self.first(hint))
        converged = (end.change <= self.tolerance) | self.is_rounded(end)
        sites = Sites(
            target=end.target,
            precision=end.precision,
            mean=end.given_mean,
            variance=end.given_variance,
            num_steps=end.num_steps,
            change=end.change,
            converged=converged,
        )
        known = Hint(end.mean, end.variance)
        return sites, jax.tree.map(lambda new, old: jnp.where(converged, new, old), known, hint)

    def first(self, hint: Hint) -> _Place:
        """From the data, or from where another search ended: a whole step."""
        from_data = self.sites_at_data()
        from_hint = self.sites(hint.mean, hint.variance)
        is_known = jnp.isfinite(hint.mean).all()
        target, precision = (
            jnp.where(is_known, a, b) for a, b in zip(from_hint, from_data, strict=True)
        )
        mean, variance, weights = self.conditioned(target, precision)
        return _Place(
            mean=mean,
            variance=variance,
            weights=weights,
            target=target,
            precision=precision,
            given_mean=mean,
            given_variance=variance,
            share=jnp.ones((), mean.dtype),
            spread=jnp.zeros_like(mean),
            change=jnp.asarray(jnp.inf, mean.dtype),
            least_change=jnp.asarray(jnp.inf, mean.dtype),
            num_stalled=jnp.zeros((), jnp.int32),
            num_steps=jnp.zeros((), jnp.int32),
        )

    def sites_at_data(self) -> tuple[Array, Array]:
        """Where a function that suits the data cell by cell has its Laplace sites."""
        assert self.gp.likelihood is not None
        start = jnp.where(_seen(self.gp), self.gp.likelihood.start(self.y), 0)
        return site_of(self.gp, self.y, start, None, self.prior_variance)

    def step(self, at: _Place) -> _Place:
        """A Newton step for the mean, as far as it gains, and one of the variances."""
        target, precision = self.sites(at.mean, at.variance)
        mean, variance, weights = self.conditioned(target, precision)

        def along(t: Array) -> tuple[Array, Array]:
            return at.mean + t * (mean - at.mean), at.weights + t * (weights - at.weights)

        moved_mean, moved_weights = along(
            _step_size(lambda t: self.objective(*along(t), at.variance))
        )
        ratio = variance / at.variance
        spread = jnp.where(_seen(self.gp), jnp.log(ratio), 0)
        share = _relaxed(at.share, at.spread, spread)
        change = self.largest((mean - at.mean) / jnp.sqrt(variance))
        if self.is_variational:
            change = jnp.maximum(change, self.largest(spread))
        return _Place(
            mean=moved_mean,
            variance=at.variance * ratio**share,
            weights=moved_weights,
            target=target,
            precision=precision,
            given_mean=mean,
            given_variance=variance,
            share=share,
            spread=spread,
            change=change,
            least_change=jnp.minimum(change, at.least_change),
            num_stalled=jnp.where(change < at.least_change, 0, at.num_stalled + 1),
            num_steps=at.num_steps + 1,
        )

    def goes_on(self, at: _Place) -> Array:
        """Whether a change is left, and every number is finite."""
        is_sound = jnp.isfinite(at.change) | (at.num_steps == 0)
        is_open = (at.change > self.tolerance) & ~self.is_rounded(at)
        return is_sound & is_open & (at.num_steps < MOST_STEPS)

    def is_rounded(self, at: _Place) -> Array:
        """Whether rounding is all that still changes."""
        return (at.num_stalled >= MOST_STALLED) & (at.change <= ROUNDED * self.tolerance)

    @property
    def is_variational(self) -> bool:
        """Whether derivatives are averaged over the marginals."""
        return self.gp.approximation == "variational"

    def sites(self, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Those at marginals."""
        averaged = variance if self.is_variational else None
        return site_of(self.gp, self.y, mean, averaged, self.prior_variance)

    def objective(self, mean: Array, weights: Array, variance: Array) -> Array:
        """What the mean maximises for fixed variances."""
        averaged = variance if self.is_variational else None
        fit = jnp.sum(expected_log_density(self.gp, self.y, mean, averaged))
        return fit - jnp.sum(weights * (mean - self.prior_mean)) / 2

    def largest(self, x: Array) -> Array:
        """The largest absolute value at cells with data."""
        return jnp.max(jnp.where(_seen(self.gp), jnp.abs(x), 0))


def _relaxed(share: Array, before: Array, now: Array) -> Array:
    """Aitken's relaxation: the share at which the last change would have led to none now.

    Changes that grow, as those of the mean drive them, tell of no such share: all of it then.
    """
    difference = now - before
    square = jnp.sum(jnp.square(difference))
    found = -share * jnp.sum(before * difference) / jnp.where(square > 0, square, 1)
    return where(found <= 0, 1.0, jnp.minimum(jnp.maximum(found, LEAST_SHARE), MOST_SHARE))


def _step_size(objective: Any) -> Array:
    """The largest of 1, ½, ¼, … that does not lower the objective."""
    start = objective(0.0)
    rounding = 100 * jnp.finfo(start.dtype).eps * jnp.abs(start)

    def too_long(state: tuple[Array, Array]) -> Array:
        t, value = state
        is_lower = ~(value >= start - rounding)
        return is_lower & (t > 0.5**MOST_HALVINGS)

    def halved(state: tuple[Array, Array]) -> tuple[Array, Array]:
        t = state[0] / 2
        return t, objective(t)

    one = jnp.ones((), start.dtype)
    return lax.while_loop(too_long, halved, (one, objective(one)))[0]


def check_converged(sites: Sites) -> None:
    """Refuse sites that are concrete and not found.

    Raises:
        ConvergenceError: with how far the search came.
    """
    if not bool(sites.converged):
        raise ConvergenceError(
            f"{MUST_CONVERGE}; after {int(sites.num_steps)} of {MOST_STEPS} steps a step still "
            f"moved the function by {float(sites.change):.2g} standard deviations. {OTHER_START}"
        )
