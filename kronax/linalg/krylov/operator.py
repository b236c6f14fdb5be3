"""An operator without an exact decomposition that `kx.solve` and its kin take: by iterations."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import Ends
from kronax.linalg.estimates.certificates import (
    DEFAULT,
    ConvergenceError,
    Estimate,
    Iteration,
    settled,
    skew_quantile,
)
from kronax.linalg.factors.abstract_operator import AbstractOperator, AbstractSolvable
from kronax.linalg.functions.conditioning import largest_eigenvalue
from kronax.linalg.functions.solve import solve_grid
from kronax.linalg.krylov.density import density_estimate, iterative_logdet, iterative_logpdf
from kronax.linalg.krylov.plus_diagonal import KroneckerPlusDiagonal
from kronax.linalg.krylov.solve import iterative_solve, solve_estimate
from kronax.linalg.krylov.variances import (
    covariance_estimate,
    explained_estimate,
    inverse_estimate,
    iterative_posterior_variances,
    places_estimate,
    posterior_estimate,
    term_posterior_estimate,
)
from kronax.linalg.operators.sum_of_products import KroneckerTerms


class Iterative(AbstractSolvable):
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
    def factors(self) -> tuple[Any, ...]:
        """The factors of the signal."""
        return self.op.factors

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.op.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """None."""
        return self.op.batch_shape

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.op.dtype

    @property
    def T(self) -> "Iterative":
        """Itself: it is symmetric."""
        return self

    @property
    def observed(self) -> Bool[Array, "..."]:
        """True where a cell is observed."""
        return self.op.observed

    def mv_grid(self, x: Array) -> Array:
        """Multiply what is observed; zero at the gaps."""
        return self.op.mv_grid(x)

    def diagonal(self) -> Array:
        """The diagonal, zero at the gaps."""
        return self.op.diagonal()

    def to_dense(self) -> Array:
        """The `(N, N)` matrix, zero in the rows and columns of gaps: for tests only."""
        return self.op.to_dense()

    def scaled(self, scalar: Array) -> "Iterative":
        """`scalar * self`."""
        return Iterative(self.op.scaled(scalar), self.iteration)

    def __add__(self, other: Any) -> AbstractOperator:
        raise TypeError(
            "Nothing can be added to a kx.Iterative: add to the variances of its operator instead."
        )

    __radd__ = __add__

    def solve(self, b: Any) -> Array:
        """See `kx.solve`."""
        return iterative_solve(self.op, b, iteration=self.iteration).value

    def solved(self, b: Array) -> Estimate:
        """`op⁻¹ b` for checked vectors in the grid layout, whether it converged or not."""
        return solve_estimate(self.op, self.held(b), self.iteration)

    def weights(self, b: Array) -> Estimate:
        """`op⁻¹ b`, made for products with covariances of the signal: see `solve_estimate`."""
        return solve_estimate(self.op, self.held(b), self.iteration, True)

    def data_weights(self, residual: Array, weights: Array) -> Array:
        """`op⁻¹ b` number by number, from what the posterior leaves of the data."""
        if isinstance(self.op.kronecker, KroneckerTerms):
            return weights
        return jnp.multiply(*same_rank(self.op.precisions, self.held(residual)))

    def solve_grid(self, b: Array) -> Array:
        """`kx.solve` for checked vectors in the grid layout."""
        return self._settled(self.solved(b), "the solve")

    def density(self, residual: Array) -> Estimate:
        """`logpdf_grid`, whether it converged or not."""
        return density_estimate(self.held(residual), self.op, self.iteration)

    def logpdf_grid(self, residual: Array) -> Array:
        """`kx.normal_logpdf` for checked residuals in the grid layout."""
        return self._settled(self.density(residual), "the log density")

    def logdet(self) -> Array:
        """See `kx.logdet`."""
        return iterative_logdet(self.op, iteration=self.iteration).value

    def inv_quad(self, b: Any) -> Array:
        """See `kx.inv_quad`."""
        grid, _ = self.vector(b, "b")
        axes = tuple(range(-len(self.grid_shape), 0))
        return jnp.sum(grid * self.solve_grid(grid), axis=axes)

    def normal_logpdf(self, y: Any, mean: Any) -> Array:
        """See `kx.normal_logpdf`; the density of the observed cells."""
        return iterative_logpdf(y, mean, self.op, iteration=self.iteration).value

    def inverse_diagonal(self) -> Array:
        """See `kx.inverse_diagonal`; zero at the gaps. By draws, values only."""
        return self._settled(self.inverse_estimate(), "the draws")

    def inverse_estimate(self) -> Estimate:
        """The diagonal of the inverse, `1/v − (1/v)² diag(K − K op⁻¹ K)`, with its error."""
        if not isinstance(self.op.kronecker, KroneckerTerms):
            return inverse_estimate(self.op, self.iteration)
        return _inverse_of_terms(self.op, self.iteration)

    def explained(self, rows: Sequence[Array | None]) -> Estimate:
        """`conjugated_inverse_diagonal`, with its error."""
        return explained_estimate(self.op, list(rows), self.iteration)

    def conjugated_inverse_diagonal(self, rows: Sequence[Array]) -> Array:
        """`diag(C op⁻¹ Cᵀ)` for `C = ⊗rows[i]`, covariances with the signal. By draws."""
        return self._settled(self.explained(rows), "the draws")

    def posterior(self, term: int | None = None) -> Estimate:
        """`posterior_diagonal`, with its error; of one term of a signal of several if given."""
        if term is None:
            return posterior_estimate(self.op, self.iteration)
        return term_posterior_estimate(self.op, term, self.iteration)

    def posterior_diagonal(self) -> Array:
        """`diag(K − K op⁻¹ K)`, as `kx.iterative_posterior_variances` has it."""
        return iterative_posterior_variances(self.op, iteration=self.iteration).value

    def explained_at(self, *products: Sequence[Float[Array, "m _"]]) -> Estimate:
        """The diagonal of `inverse_at`, with its error; rows may be a sum of products."""
        return places_estimate(self.op, tuple(map(tuple, products)), self.iteration)

    def covariance_at(self, *products: Sequence[Float[Array, "m _"]]) -> Array:
        """`inverse_at` between all places; rows may be a sum of products."""
        estimate = covariance_estimate(self.op, tuple(map(tuple, products)), self.iteration)
        return self._settled(estimate, "the solves at scattered places")

    def decompose(self) -> "Iterative":
        """Itself: there is no decomposition to carry."""
        return self

    def ends(self) -> Ends:
        """Bounds: row sums, and the least noise."""
        noise = jnp.where(self.observed, self.op.variances, jnp.nan)
        signal = largest_eigenvalue(self.op.kronecker)
        return Ends(signal + jnp.nanmax(noise), jnp.nanmin(noise))

    def draw(self, key: Array, lead: tuple[int, ...]) -> Array:
        """See `kx.sample_normal`; zero at the gaps."""
        return self.op.draw(key, lead)

    def _settled(self, estimate: Estimate, what: str) -> Array:
        return settled(estimate, self.iteration, what).value


@partial(jax.jit, static_argnums=1)
def _inverse_of_terms(op: KroneckerPlusDiagonal, iteration: Iteration) -> Estimate:
    """`inverse_estimate` of a signal of several terms: of two ways the more certain, as for one."""
    found, precisions = posterior_estimate(op, iteration), op.precisions
    key = jax.random.fold_in(jax.random.key(iteration.seed), 2)
    solved = solve_estimate(op, op.draw(key, (iteration.num_draws,)), iteration)
    squares = jnp.square(solved.value)
    plain = jnp.std(squares, axis=0) / jnp.sqrt(iteration.num_draws - 1.0).astype(op.dtype)
    standard_error = precisions**2 * found.standard_error
    is_plain = plain < standard_error
    value = precisions - precisions**2 * found.value
    standard_error = jnp.where(is_plain, plain, standard_error)
    return Estimate(
        value=jnp.where(is_plain, jnp.mean(squares, axis=0), value),
        error=skew_quantile(iteration.num_draws) * standard_error,
        standard_error=standard_error,
        residual=jnp.maximum(found.residual, solved.residual),
        num_steps=jnp.maximum(found.num_steps, solved.num_steps),
        converged=found.converged & solved.converged,
    )


def signal_weights(op: Any, b: Array) -> Array:
    """`op⁻¹ b` in the grid layout, to be multiplied by covariances of the signal."""
    if isinstance(op, Iterative):
        return settled(op.weights(b), op.iteration, "the posterior").value
    return solve_grid(op, b)


def check_draws(draws: Array, op: Iterative) -> None:
    """Refuse concrete draws whose solves did not converge: they are NaN everywhere."""
    if bool(np.isnan(np.asarray(draws)).all()):
        raise ConvergenceError(
            "The iterations of the draws must reach their tolerance within "
            f"{op.iteration.max_steps} steps. Raise `max_steps` or `box_size` of kx.Iteration, or "
            "loosen its `tolerance`."
        )
