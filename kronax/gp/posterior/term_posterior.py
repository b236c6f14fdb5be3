"""The terms of an additive model given data: `post.terms["trend"]`."""

from typing import Any, NoReturn

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.model.process import AbstractPosterior
from kronax.gp.posterior import predict
from kronax.gp.posterior.covariance import PosteriorCovariance
from kronax.gp.posterior.density import check_number
from kronax.gp.posterior.draws import posterior_draws
from kronax.gp.posterior.scattered import covariance_at, mean_at, scattered_points, variance_at
from kronax.gp.posterior.slopes import slope_of_mean
from kronax.gp.summaries import quantiles_of, tails
from kronax.linalg.arrays.checks import check_key, shape_of
from kronax.linalg.estimates.certificates import Estimate
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.paths import nearest


class TermPosteriors(dict[str, "TermPosterior"]):
    """The terms by name, in the order given; an unknown name raises and suggests the nearest."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(f"There is no term {name!r}.{nearest(name, list(self))}")


class TermPosterior(eqx.Module):
    """One term of an additive model given data; the other terms and the noise are taken off.

    The means of all terms and the mean function add up to the mean of the function, and draws of
    all terms with one key to the draw of the function with that key. Arguments are as in the
    methods of `kx.Posterior`; noise belongs to no term. A term that is `kx.White` on an axis falls
    back to its prior at new places of it.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> terms = {"slow": (kx.RBF(1.0), kx.RBF(0.3)), "fast": (0.1 * kx.RBF(0.1), kx.RBF(0.3))}
        >>> post = kx.GridGP(terms=terms, axes=(x, x), noise=0.1).condition(jnp.outer(x, x))
        >>> parts = post.terms["slow"].mean() + post.terms["fast"].mean()
        >>> bool(jnp.allclose(parts, post.mean(), atol=1e-4))
        True
    """

    posterior: AbstractPosterior
    name: str = eqx.field(static=True)

    def __repr__(self) -> str:
        return f"Term {self.name!r} of a posterior given data of shape {self.posterior.y.shape}"

    def mean(self, axes: Any = None, points: Any = None) -> Float[Array, "..."]:
        """Posterior mean of the term, grid-shaped, or `(*batch, m)` at scattered points.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if there is not one entry per axis, or coordinates have another form.
        """
        post = self.posterior
        if points is not None:
            return mean_at(post, scattered_points(post.gp, points, axes), self.name)
        return predict.mean(post, predict.new_points(post, axes), self.name)

    def mean_derivative(
        self, axis: int | str, axes: Any = None, points: Any = None
    ) -> Float[Array, "..."]:
        """The derivative of that mean along one axis, per unit of the axis.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if the term has no derivative along the axis.
        """
        return slope_of_mean(self.posterior, axis, axes, points, self.name)

    def variance(self, axes: Any = None, points: Any = None) -> Float[Array, "..."]:
        """Posterior variance of the term; right to first order, at scattered points values only.

        By iterations it comes from draws: `variance_estimate` tells how certain it is.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if there is not one entry per axis, or coordinates have another form.
            NotImplementedError: at scattered points with low-rank axes.
        """
        what = f"Posterior variances of {self.name!r}"
        return self.posterior.certain(self.variance_estimate(axes, points), what)

    def variance_estimate(self, axes: Any = None, points: Any = None) -> Estimate:
        """`variance` with its certificate, as for a posterior; errors of zero if it is exact.

        Raises:
            ConvergenceError: if an iteration does not converge (traced ones give NaN).
            KeyError: as in `variance`.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        post = self.posterior
        if points is not None:
            places = scattered_points(post.gp, points, axes)
            return post.settled(variance_at(post, places, self.name))
        new = predict.new_points(post, axes)
        return post.settled(predict.variance_estimate(post, new, self.name))

    def std(self, axes: Any = None, points: Any = None) -> Float[Array, "..."]:
        """Posterior standard deviation of the term: the root of `variance`.

        Raises:
            KeyError: as in `variance`.
            TypeError: as in `variance`.
            ValueError: as in `variance`.
        """
        return safe_sqrt(self.variance(axes, points))

    def quantile(self, q: Any, axes: Any = None, points: Any = None) -> Float[Array, "..."]:
        """Posterior quantiles of the term, as for a posterior; several probabilities lead.

        Raises:
            KeyError: as in `variance`.
            TypeError: as in `variance`; or if `q` holds no real numbers.
            ValueError: as in `variance`; or if a probability is not between 0 and 1.
        """
        return quantiles_of(q, self.mean(axes, points), self.variance(axes, points))

    def interval(
        self, level: float = 0.95, axes: Any = None, points: Any = None
    ) -> tuple[Array, Array]:
        """The central interval of the term with some probability: its lower and its upper end.

        Raises:
            KeyError: as in `variance`.
            TypeError: as in `variance`; or if `level` is no number.
            ValueError: as in `variance`; or if the level is not between 0 and 1.
        """
        ends = self.quantile(tails(level), axes, points)
        return ends[0], ends[1]

    def covariance(self, axes: Any = None, points: Any = None) -> PosteriorCovariance | Dense:
        """Posterior covariance of the term on a grid, as an operator; a `kx.Dense` at points.

        Raises:
            KeyError: if an axis name is unknown.
            TypeError: if both `axes` and `points` are given.
            ValueError: if there is not one entry per axis, or coordinates have another form.
        """
        post = self.posterior
        if points is not None:
            places = scattered_points(post.gp, points, axes)
            check_number(places[0].raw.shape[0])
            return Dense(covariance_at(post, places, self.name))
        return predict.covariance(post, predict.new_points(post, axes), None, self.name)

    def sample(
        self, key: PRNGKeyArray, axes: Any = None, sample_shape: tuple[int, ...] | int = ()
    ) -> Float[Array, "..."]:
        """Posterior draws of the term: its part of `post.sample` with the same key and shape.

        Raises:
            KeyError: if an axis name is unknown.
            ValueError: if there is not one entry per axis, or coordinates have another form.
        """
        post = self.posterior
        check_key(key)
        shape = shape_of(sample_shape)
        signal_key, _ = jax.random.split(key)
        return posterior_draws(
            post, signal_key, predict.new_points(post, axes), shape, None, self.name
        )
