"""The ways to state the matrix of a distribution: covariance, Cholesky or precision factors.

What a distribution needs of its matrix `S` (its log-determinant, quadratic forms, draws) is found
from the parameters as they were given: nothing is squared or inverted first where it need not be.
"""

import abc
from collections.abc import Callable
from functools import partial
from math import log, pi
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.mode_products import map_batch, matmul, same_rank
from kronax.linalg.arrays.precision import Conditioning, warn_of_ratio
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.decompositions.factorized import Factorized
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.factorizations import inverse_matrix
from kronax.linalg.factors.triangular import LowerTriangular
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.functions.logdet import inv_quad, logdet, watched_logpdf
from kronax.linalg.functions.solve import solve_grid
from kronax.linalg.operators.diagnose import explain_not_finite, explained, refuse_indefinite
from kronax.linalg.operators.draws import draw_normal
from kronax.linalg.operators.kronecker import Kronecker, as_kronecker, num_cells
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, as_products


class AbstractForm(eqx.Module):
    """A symmetric positive definite matrix `S` over a grid, with or without a batch."""

    operator: eqx.AbstractVar[Kronecker | KroneckerPlusNoise]

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.operator.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes, with one matrix per entry."""
        return self.operator.batch_shape

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.operator.dtype

    @abc.abstractmethod
    def covariance(self) -> Kronecker | KroneckerPlusNoise:
        """`S` as an operator."""

    @abc.abstractmethod
    def logdet(self) -> Array:
        """`log det S`."""

    @abc.abstractmethod
    def inv_quad(self, residual: Array) -> Array:
        """`rᵀ S⁻¹ r` for residuals in the grid layout."""

    def ends(self) -> Conditioning | None:
        """Of the operator, as found by its decomposition; inside one `jit` that is shared."""
        return decomposition_of(self.operator).as_covariance().ends()

    @abc.abstractmethod
    def inverse_factors(self) -> list[Array] | None:
        """The matrices whose Kronecker product is `S⁻¹`; `None` if there are none (noise)."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, lead: tuple[int, ...]) -> Array:
        """Independent draws from `N(0, S)` for every entry of `lead`, reparametrised."""

    @abc.abstractmethod
    def check_values(self) -> None:
        """Refuse concrete values that make no covariance; traced ones pass."""

    def explain(self, result: Array) -> None:
        """Raise if a concrete result is not finite because of the matrix."""
        if checks.is_concrete(result) and not np.isfinite(np.asarray(result)).all():
            self.check_values()

    def without_decomposition(self) -> "AbstractForm":
        """The same form of an operator that carries no decomposition."""
        if self.operator.decomposition is None:
            return self
        return eqx.tree_at(
            lambda f: (f.operator.decomposition, f.operator.made_of), self, (None,) * 2
        )

    def normal_logpdf(self, residual: Array) -> Array:
        """Log density of `N(0, S)`."""
        return self.watched(_normal_logpdf, residual)

    def watched(self, density: Callable[..., Array], *args: Array) -> Array:
        """`density(form, *args)`, with a warning where concrete values are too ill-conditioned."""
        if not checks.is_concrete(self, args):
            return density(self, *args)
        value, found = _with_ends(density, self, *args)
        of = "a factor" if isinstance(self.operator, Kronecker) else "the covariance"
        warn_of_ratio(found, "The log density may be wrong", of=of)
        return value


class CovarianceForm(AbstractForm):
    """`S` itself: covariance factors, with or without noise."""

    operator: Kronecker | KroneckerPlusNoise

    def covariance(self) -> Kronecker | KroneckerPlusNoise:
        """The operator as it was given."""
        return self.operator

    def logdet(self) -> Array:
        """One `eigh` per dense factor with noise, one Cholesky without."""
        value = _logdet(self.operator)
        self.explain(value)
        return value

    def inv_quad(self, residual: Array) -> Array:
        """The same decompositions as `logdet`; inside one `jit` they are shared."""
        return _inv_quad(self.operator, residual)

    def normal_logpdf(self, residual: Array) -> Array:
        """Both from one decomposition."""
        return watched_logpdf(residual, self.operator)

    def inverse_factors(self) -> list[Array] | None:
        """The inverse of every factor without noise."""
        if isinstance(self.operator, KroneckerPlusNoise):
            return None
        return _inverses(self.operator)

    def draw(self, key: PRNGKeyArray, lead: tuple[int, ...]) -> Array:
        """Symmetric roots per axis, which exist where Cholesky gives NaN."""
        return explained(draw_normal(key, self.operator, lead), self.operator)

    def check_values(self) -> None:
        """Refuse indefinite factors; singular ones are left to the functions that cannot."""
        if isinstance(self.operator, Kronecker):
            refuse_indefinite(self.operator, "covariance")
            return
        refuse_indefinite(self.operator.kronecker, "signal")
        if isinstance(self.operator.noise, Kronecker):
            refuse_indefinite(self.operator.noise, "noise")

    def explain(self, result: Array) -> None:
        """Also if a factor is singular and must not be."""
        explain_not_finite(result, self.operator, covariance=True)


class CholeskyForm(AbstractForm):
    """`S = (⊗L_i)(⊗L_i)ᵀ` from lower triangular factors; no decomposition at all."""

    operator: Kronecker

    def covariance(self) -> Kronecker:
        """`L_i L_iᵀ` per axis."""
        dense = [f.to_dense() for f in self.operator.factors]
        return Kronecker(*(matmul(m, jnp.swapaxes(m, -1, -2)) for m in dense))

    def logdet(self) -> Array:
        """From the diagonals."""
        return 2 * Factorized(self.operator).logdet()

    def inv_quad(self, residual: Array) -> Array:
        """One triangular solve per axis."""
        return _sum_of_squares(solve_grid(self.operator, residual), len(self.grid_shape))

    def inverse_factors(self) -> list[Array]:
        """`L_i⁻ᵀ L_i⁻¹` per axis."""
        inverses = _inverses(self.operator)
        return [matmul(jnp.swapaxes(m, -1, -2), m) for m in inverses]

    def draw(self, key: PRNGKeyArray, lead: tuple[int, ...]) -> Array:
        """`(⊗L_i) z`."""
        return self.operator.mv_grid(_white(key, self, lead))

    def check_values(self) -> None:
        """Refuse a zero on a diagonal."""
        for k, factor in enumerate(self.operator.factors):
            diagonal = factor.diagonal()
            if checks.is_concrete(diagonal) and not np.asarray(diagonal).all():
                place = tuple(int(i) for i in np.argwhere(np.asarray(diagonal) == 0)[0])
                raise np.linalg.LinAlgError(
                    f"Cholesky factor {k} must have no zero on its diagonal; got one at place "
                    f"{place[-1]}. A singular covariance has no density: add noise."
                )


class PrecisionForm(AbstractForm):
    """`S⁻¹ = ⊗P_i` from symmetric positive definite precision factors."""

    operator: Kronecker

    def covariance(self) -> Kronecker:
        """`P_i⁻¹` per axis, by one Cholesky each."""
        inverses = [(m + jnp.swapaxes(m, -1, -2)) / 2 for m in _inverses(self.operator)]
        return Kronecker(*(Dense(m, positive_definite=True) for m in inverses))

    def logdet(self) -> Array:
        """One Cholesky per factor; NaN if one is not positive definite."""
        value = -_logdet(self.operator)
        self.explain(value)
        return value

    def inv_quad(self, residual: Array) -> Array:
        """One product: nothing is solved."""
        product = jnp.multiply(*same_rank(residual, self.operator.mv_grid(residual)))
        return jnp.sum(product, _axes(len(self.grid_shape)))

    def inverse_factors(self) -> list[Array]:
        """The precision factors."""
        return [f.to_dense() for f in self.operator.factors]

    def draw(self, key: PRNGKeyArray, lead: tuple[int, ...]) -> Array:
        """`(⊗C_i)⁻ᵀ z` with `P_i = C_i C_iᵀ`: triangular solves."""
        root = cholesky(self.operator, what="precision")
        return solve_grid(root.T, _white(key, self, lead))

    def check_values(self) -> None:
        """Refuse factors that are not positive definite."""
        refuse_indefinite(self.operator, "precision", definite=True)


def form_of(
    name: str, factors: Any, scale_trils: Any, precision_factors: Any, *, checked: bool = True
) -> AbstractForm:
    """The form of a distribution's matrix, from what its constructor was given.

    Args:
        name: of the distribution, for errors.
        factors: covariance factors, or an operator that may have noise of its own.
        scale_trils: Cholesky factors.
        precision_factors: precision factors.
        checked: refuse entries above the diagonal of Cholesky factors, which are never read.
    """
    ways = {"factors": factors, "scale_trils": scale_trils, "precision_factors": precision_factors}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) != 1:
        raise TypeError(
            f"{name} needs exactly one of `factors`, `scale_trils` and `precision_factors`; got "
            f"{' and '.join(f'`{way}`' for way in given) if given else 'none of them'}."
        )
    if scale_trils is not None:
        return CholeskyForm(triangular(scale_trils, checked))
    operator = _operator(factors if precision_factors is None else precision_factors, given[0])
    if precision_factors is not None:
        if isinstance(operator, KroneckerPlusNoise):
            raise TypeError(
                f"The precision factors of {name} must be one Kronecker product; got one plus "
                "noise. Pass `noise` beside them: it is added to the covariance."
            )
        operator.check_covariance(f"the precision of {name}")
        return PrecisionForm(operator)
    if isinstance(operator, Kronecker):
        operator.check_covariance(name)
    return CovarianceForm(operator)


def add_noise(form: AbstractForm, noise: Any, *, is_batched: bool) -> CovarianceForm:
    """The form of `S + noise`; only covariance factors take noise, others are turned into them.

    Args:
        form: of the matrix without this noise.
        noise: a variance, one per batch entry, or a `kx.Kronecker`.
        is_batched: the location has batch axes, so that a vector of noises may be a batch.
    """
    signal = form.covariance()
    if isinstance(signal, KroneckerPlusNoise):
        return CovarianceForm(signal + noise)
    return CovarianceForm(_with_noise(signal, noise, is_batched))


def triangular(scale_trils: Any, checked: bool = True) -> Kronecker:
    """Cholesky factors, arrays or `kx.LowerTriangular`, as a product."""
    given = isinstance(scale_trils, list | tuple)
    factors = scale_trils if given else as_kronecker(scale_trils, "scale_trils").factors

    def one(factor: Any) -> LowerTriangular:
        if isinstance(factor, LowerTriangular):
            return factor
        return LowerTriangular(factor if checked else jnp.tril(factor))

    return Kronecker(*(one(f) for f in factors))


def cholesky(op: Kronecker, jitter: float = 0.0, what: str = "covariance") -> Kronecker:
    """`⊗L_i` with `L_i L_iᵀ = K_i + jitter · I`.

    Raises:
        ValueError: where a concrete one is not positive definite; traced ones give NaN.
    """
    roots = []
    for k, factor in enumerate(op.factors):
        identity = jnp.eye(factor.size, dtype=factor.dtype)
        matrix = jnp.add(*same_rank(factor.to_dense(), jitter * identity))
        root = jnp.linalg.cholesky(matrix)
        if checks.is_concrete(root) and not np.isfinite(np.asarray(root)).all():
            refuse_indefinite(op, what)
            raise np.linalg.LinAlgError(
                f"Kronecker factor {k} of the {what} must be positive definite to have a Cholesky "
                f"factor; it is singular in {op.dtype} with jitter={jitter}. Pass a larger jitter, "
                "1e-6 times its diagonal for example."
            )
        roots.append(LowerTriangular(root))
    return Kronecker(*roots)


def _operator(factors: Any, name: str) -> Kronecker | KroneckerPlusNoise:
    factors = as_products(factors)
    if isinstance(factors, KroneckerPlusNoise):
        return factors
    if isinstance(factors, list | tuple):
        return Kronecker(*factors)
    return as_kronecker(factors, name)


def _with_noise(signal: Kronecker, noise: Any, is_batched: bool) -> KroneckerPlusNoise:
    """Noise may have a batch that the factors lack: the first factor gets size-one axes."""
    grid = signal.grid_shape
    shape = () if isinstance(noise, AbstractOperator) else np.shape(noise)
    looks_like_cells = shape[-len(grid) :] == grid or shape in [
        (n,) for n in (*grid, num_cells(signal))
    ]
    if not is_batched and not signal.batch_shape and shape and looks_like_cells:
        raise ValueError(
            f"The noise must be one variance, or one per batch entry; got shape {shape} on the "
            f"grid {grid} without a batch. For variances along an axis pass kx.Kronecker("
            "kx.Diagonal(variances), kx.ScaledIdentity(1.0, n)); for a batch of noises give the "
            "factors or loc a batch axis as well."
        )
    missing = 0 if isinstance(noise, Kronecker) else np.ndim(noise) - len(signal.batch_shape)
    if missing > 0:
        first = jax.tree.map(lambda a: a[(None,) * missing], signal.factors[0])
        signal = Kronecker(first, *signal.factors[1:])
    return KroneckerPlusNoise(signal, noise)


def _normal_logpdf(form: AbstractForm, residual: Array) -> Array:
    constant = num_cells(form.operator) * log(2 * pi)
    quadratic, log_det = same_rank(form.inv_quad(residual), form.logdet())
    return -0.5 * (quadratic + log_det + constant)


@partial(jax.jit, static_argnums=0)
def _with_ends(
    density: Callable[..., Array], form: AbstractForm, *args: Array
) -> tuple[Array, Conditioning | None]:
    return density(form, *args), form.ends()


@jax.jit
def _logdet(op: Kronecker | KroneckerPlusNoise) -> Array:
    return logdet(op) if isinstance(op, KroneckerPlusNoise) else Factorized(_held(op)).logdet()


@jax.jit
def _inv_quad(op: Kronecker | KroneckerPlusNoise, residual: Array) -> Array:
    return inv_quad(op if isinstance(op, KroneckerPlusNoise) else _held(op), residual)


def _held(op: Kronecker) -> Kronecker:
    """The same product with its factors known to be positive definite."""
    return Kronecker(*op.factors, decomposition=op.factorize(positive_definite=True))


def _inverses(op: Kronecker) -> list[Array]:
    """`K_i⁻¹` per axis, right at every order of derivative."""
    is_covariance = not any(isinstance(f, LowerTriangular) for f in op.factors)
    return [
        map_batch(inverse_matrix, f.batch_shape, (f.to_dense(), 2), (held, held.event_ndims))
        for f, held in zip(op.factors, op.factorize(is_covariance), strict=True)
    ]


def _white(key: PRNGKeyArray, form: AbstractForm, lead: tuple[int, ...]) -> Array:
    return normal_numbers(key, (*lead, *form.grid_shape), form.dtype)


def _sum_of_squares(x: Array, num_axes: int) -> Array:
    return jnp.sum(jnp.square(x), _axes(num_axes))


def _axes(num_axes: int) -> tuple[int, ...]:
    return tuple(range(-num_axes, 0))
