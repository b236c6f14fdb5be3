"""An operator without an exact decomposition that `kx.solve` and its kin take: by iterations."""

from collections.abc import Sequence
from functools import reduce
from operator import add, mul
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import Ends, where
from kronax.linalg.decompositions.abstract import AbstractSignalPlusNoise, Rows
from kronax.linalg.decompositions.restricted import AbstractRestricted
from kronax.linalg.estimates.certificates import (
    DEFAULT,
    ConvergenceError,
    Estimate,
    Iteration,
    or_a_box,
    settled,
)
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.krylov.density import density_estimate, iterative_logdet
from kronax.linalg.krylov.markov_reference import MarkovPreconditioner, largest_along
from kronax.linalg.krylov.solve import has_box, prepared, solve_estimate
from kronax.linalg.krylov.variances import (
    covariance_estimate,
    explained_estimate,
    inverse_estimate,
    iterative_posterior_variances,
    places_estimate,
    posterior_estimate,
    values_only,
)
from kronax.linalg.markov.lanes import markov_axis
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.operators.sum_of_products import KroneckerTerms
from kronax.linalg.spectral.conditional_variances import Places, priors_of, rows_of
from kronax.linalg.spectral.conditioning import largest_eigenvalue


class Iterative(AbstractRestricted):
    """An operator with the iterations that stand for its decomposition.

    `kx.solve`, `logdet`, `inv_quad`, `normal_logpdf`, `inverse_diagonal` and `sample_normal` take
    it like any other operator. Their results are those of `kx.iterative_solve` and its kin without
    the certificates: what does not converge raises, or is NaN under jit, unless `on_failure` is
    `"flag"`. Solves have derivatives of every order, densities and log-determinants first ones.

    Args:
        op: the operator.
        iteration: how.

    Raises:
        TypeError: if the operator has no iterative solves.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> variances = jnp.array([[1.0, 3.0], [1.0, jnp.inf]])
        >>> op = kx.KroneckerPlusDiagonal(kx.Kronecker(jnp.eye(2), jnp.eye(2)), variances)
        >>> kx.solve(kx.Iterative(op), jnp.ones((2, 2))).round(4).tolist()
        [[0.5, 0.25], [0.5, 0.0]]
    """

    op: KroneckerPlusDiagonal
    iteration: Iteration = eqx.field(static=True)

    def __init__(self, op: KroneckerPlusDiagonal, iteration: Iteration = DEFAULT):
        if not isinstance(op, KroneckerPlusDiagonal):
            raise TypeError(
                "kx.Iterative takes a kx.KroneckerPlusDiagonal; got "
                f"{type(op).__name__}. Other operators have exact decompositions: use them as they "
                "are."
            )
        self.op = op
        self.iteration = iteration

    @property
    def observed(self) -> Bool[Array, "..."]:
        """True where a cell is observed."""
        return self.op.observed

    def scaled(self, scalar: Array) -> "Iterative":
        """`scalar * self`."""
        return Iterative(self.op.scaled(scalar), self.iteration)

    def __add__(self, other: Any) -> AbstractOperator:
        raise TypeError(
            "Nothing can be added to a kx.Iterative: add to the variances of its operator instead."
        )

    __radd__ = __add__

    def decomposed(self) -> "Iterations":
        """By iterations."""
        return Iterations(self)

    def carrying(self, computed: None) -> "Iterative":
        """Itself: there is nothing to carry."""
        return self

    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """See `kx.sample_normal`; zero at the gaps."""
        return self.op.draw(key, lead)


class Iterations(AbstractSignalPlusNoise):
    """Conjugate gradients, probes and draws, in place of a decomposition.

    Answers to the common questions are settled: what did not converge raises, or is NaN if traced,
    unless it is to be flagged. The questions after them have certificates.
    """

    op: Iterative

    is_exact = False

    @property
    def has_box(self) -> bool:
        """Whether `box_size` has a say; see `has_box`."""
        return has_box(self.op.op)

    def settled(self, estimate: Estimate, what: str, *, is_marked: bool = False) -> Estimate:
        """As the settings of the iterations ask for."""
        return settled(estimate, self.op.iteration, what, self.has_box, is_marked=is_marked)

    def solve(self, b: Array) -> Array:
        """See `kx.iterative_solve`."""
        return self.settled(self.solved(b), "the solve", is_marked=True).value

    def logdet(self) -> Array:
        """See `kx.iterative_logdet`."""
        return iterative_logdet(self.op.op, iteration=self.op.iteration).value

    def inv_quad(self, b: Array) -> Array:
        """By a solve."""
        axes = tuple(range(-len(self.op.grid_shape), 0))
        return jnp.sum(self.op.held(b) * self.solve(b), axis=axes)

    def logpdf(self, residual: Array) -> Array:
        """See `kx.iterative_logpdf`."""
        return self.settled(self.density(residual), "the log density").value

    def inverse_diagonal(self) -> Array:
        """By draws, values only."""
        return self.settled(self.inverse_estimate(), "the draws").value

    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """For `C = ⊗rows[i]`, covariances with the signal. By draws."""
        assert others is None, "two sides are for terms beside the noise"
        return self.settled(self.explained_estimate(rows), "the draws").value

    def posterior_diagonal(self) -> Array:
        """See `kx.iterative_posterior_variances`."""
        return iterative_posterior_variances(self.op.op, iteration=self.op.iteration).value

    def variance_at(self, *parts: Sequence[Places]) -> Estimate:
        """One solve per place."""
        explained = places_estimate(self.op.op, rows_of(parts), iteration=self.op.iteration)
        return explained.scaled(-1.0).shifted(priors_of(parts))

    def covariance_at(self, *parts: tuple[Sequence[Places], Sequence[Array]]) -> Array:
        """One solve per place."""
        rows = rows_of([places for places, _ in parts])
        estimate = covariance_estimate(self.op.op, rows, iteration=self.op.iteration)
        explained = self.settled(estimate, "the solves at scattered places").value
        return reduce(add, (reduce(mul, priors) for _, priors in parts)) - explained

    def computed(self) -> None:
        """Nothing."""

    def ends(self) -> Ends:
        """Bounds: row sums or the trace at the observed cells, and the least noise."""
        signal, noise = self.op.op.kronecker, self.op.op.variances
        noise = where(self.op.observed, noise, jnp.nan)
        trace = jnp.sum(self.op.held(signal.diagonal()))
        axis = markov_axis(self.op.op)
        if axis is None:
            whole = largest_eigenvalue(signal)
        else:
            assert isinstance(signal, Kronecker)
            whole = largest_along(signal, axis)
        largest = jnp.minimum(whole, trace)
        return Ends(largest + jnp.nanmax(noise), jnp.nanmin(noise))

    @property
    def is_filtered(self) -> bool:
        """Whether the even grid that the iterations start from is filtered along a Markov axis."""
        return markov_axis(self.op.op) is not None

    def filtered(self) -> MarkovPreconditioner:
        """The iterations from that even grid: of values only."""
        # They hold the operator constant: without this its derivatives would be zero.
        held = prepared(values_only(self.op.op), self.op.iteration)
        assert isinstance(held, MarkovPreconditioner)
        return held

    def solved(self, b: Array) -> Estimate:
        """`S⁻¹ b`, whether it converged or not."""
        return solve_estimate(self.op.op, self.op.held(b), self.op.iteration)

    def weights(self, b: Array) -> Estimate:
        """`S⁻¹ b`, made for products with covariances of the signal: see `solve_estimate`."""
        return solve_estimate(self.op.op, self.op.held(b), self.op.iteration, True)

    def data_weights(self, residual: Array, weights: Array) -> Array:
        """`S⁻¹ b` number by number, from what the posterior leaves of the data."""
        if isinstance(self.op.op.kronecker, KroneckerTerms):
            return weights
        return jnp.multiply(*same_rank(self.op.op.precisions, self.op.held(residual)))

    def density(self, residual: Array) -> Estimate:
        """`logpdf`, whether it converged or not."""
        return density_estimate(self.op.held(residual), self.op.op, self.op.iteration)

    def inverse_estimate(self) -> Estimate:
        """The diagonal of the inverse, `1/v − (1/v)² diag(K − K S⁻¹ K)`, with its error."""
        return inverse_estimate(self.op.op, iteration=self.op.iteration)

    def explained_estimate(self, rows: Rows) -> Estimate:
        """`explained`, with its error."""
        return explained_estimate(self.op.op, list(rows), iteration=self.op.iteration)

    def posterior(self, term: int | None = None) -> Estimate:
        """`posterior_diagonal`, with its error; of one term of a signal of several if given."""
        return posterior_estimate(self.op.op, iteration=self.op.iteration, term=term)


def check_draws(draws: Array, op: Iterative) -> None:
    """Refuse concrete draws whose solves did not converge: they are NaN everywhere."""
    if bool(np.isnan(np.asarray(draws)).all()):
        raise ConvergenceError(
            "The iterations of the draws must reach their tolerance within "
            f"{op.iteration.max_steps} steps. Raise {or_a_box('max_steps', has_box(op.op))} of "
            "kx.Iteration, or loosen its `tolerance`."
        )
