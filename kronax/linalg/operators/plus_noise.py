"""A Kronecker product plus noise, and the exact sum of two Kronecker products: one case."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kronax.linalg.arrays import checks
from kronax.linalg.arrays.fingerprints import fingerprint, held
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.factors.abstract_operator import AbstractOperator, define_sums
from kronax.linalg.factors.base import AbstractFactor, cast
from kronax.linalg.factors.dense import Dense
from kronax.linalg.factors.diagonal import Diagonal, ScaledIdentity
from kronax.linalg.factors.eigenbases import Eigenbasis, SymmetricBlocks, eigenbases, full_block
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum, as_kronecker


class KroneckerPlusNoise(AbstractOperator):
    """`⊗K_i + σ² I`, `⊗K_i + ⊗N_i` with any positive semidefinite `N_i`, or `⊕K_i + σ² I`.

    Both terms are diagonalised together, axis by axis: one `eigh` per axis that is not diagonal.
    Either term may be singular as long as the sum is positive definite. `kx.Kronecker(A, B) + 0.1`
    makes one.

    Args:
        kronecker: the signal, a `kx.Kronecker` or `kx.KroneckerSum` of symmetric positive
            semidefinite factors.
        noise: the variance σ² (not σ), a number or an array that broadcasts to the batch shape of
            the signal; or, beside a product, a `kx.Kronecker` of covariances over the same grid.

    Raises:
        ValueError: if a factor is not square or not symmetric, if the noise is negative, or if the
            two grids differ.
        TypeError: if `noise` is neither a number nor a Kronecker product.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> op = kx.KroneckerPlusNoise(kx.Kronecker(jnp.eye(3), jnp.eye(2)), 1.0)
        >>> round(kx.logdet(op).item(), 4)
        4.1589
    """

    kronecker: Kronecker | KroneckerSum
    noise: Array | Kronecker
    decomposition: tuple[Eigenbasis, ...] | eqx.Module | None
    made_of: tuple[Array, ...] | None

    def __init__(
        self, kronecker: Any, noise: Any, *, decomposition: Any = None, made_of: Any = None
    ):
        if not isinstance(kronecker, KroneckerSum):
            kronecker = as_kronecker(kronecker, "The signal of KroneckerPlusNoise")
        kronecker.check_covariance("a sum with noise")
        self.kronecker = kronecker.symmetrised()
        self.noise = _checked_noise(noise, self.kronecker)
        self.decomposition, self.made_of = decomposition, made_of

    @property
    def factors(self) -> tuple[AbstractFactor, ...]:
        """The factors of the signal."""
        return self.kronecker.factors

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.kronecker.grid_shape

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast batch of signal and noise."""
        noise = self.noise
        extra = noise.batch_shape if isinstance(noise, Kronecker) else noise.shape
        return jnp.broadcast_shapes(self.kronecker.batch_shape, extra)

    @property
    def dtype(self) -> Any:
        """Floating-point type of the entries."""
        return self.kronecker.dtype

    @property
    def T(self) -> "KroneckerPlusNoise":
        """Itself, being symmetric."""
        return self

    def mv_grid(self, x: Array) -> Array:
        """Both terms, added."""
        if isinstance(self.noise, Kronecker):
            return jnp.add(*same_rank(self.kronecker.mv_grid(x), self.noise.mv_grid(x)))
        noise = jnp.multiply(*same_rank(self._noise_grid(), x))
        return jnp.add(*same_rank(self.kronecker.mv_grid(x), noise))

    def diagonal(self) -> Array:
        """The diagonal, `(*batch, *grid)`."""
        if isinstance(self.noise, Kronecker):
            return jnp.add(*same_rank(self.kronecker.diagonal(), self.noise.diagonal()))
        return jnp.add(*same_rank(self.kronecker.diagonal(), self._noise_grid()))

    def to_dense(self) -> Array:
        """The `(*batch, N, N)` matrix: for tests and small grids only."""
        if isinstance(self.noise, Kronecker):
            return jnp.add(*same_rank(self.kronecker.to_dense(), self.noise.to_dense()))
        identity = jnp.eye(self.shape[-1], dtype=self.dtype)
        noise = jnp.multiply(*same_rank(self.noise[..., None, None], identity))
        return jnp.add(*same_rank(self.kronecker.to_dense(), noise))

    def scaled(self, scalar: Array) -> "KroneckerPlusNoise":
        """`scalar * self`: both terms are scaled."""
        return KroneckerPlusNoise(scalar * self.kronecker, scalar * self.noise)

    def carrying(self, computed: Any) -> "KroneckerPlusNoise":
        """The same sum with the decomposition that was computed of it."""
        made_of = fingerprint(self)
        return KroneckerPlusNoise(
            self.kronecker, self.noise, decomposition=computed, made_of=made_of
        )

    def mappable(self) -> "KroneckerPlusNoise":
        """The same sum without its decomposition, every leaf with the batch axes in front."""
        noise = self.noise.mappable() if isinstance(self.noise, Kronecker) else self.noise
        return KroneckerPlusNoise(self.kronecker.mappable(), noise)

    def event_ndims(self) -> "KroneckerPlusNoise":
        """The number of axes of every leaf without its batch, as a matching pytree."""
        noise = self.noise.event_ndims() if isinstance(self.noise, Kronecker) else 0
        return _unchecked(self.kronecker.event_ndims(), noise)

    def blocks(self) -> tuple[tuple[SymmetricBlocks, ...], tuple[SymmetricBlocks, ...]]:
        """The symmetric blocks of signal and noise, per axis."""
        if isinstance(self.noise, Kronecker):
            noise = self.noise.factors
        else:
            one = jnp.ones((), self.dtype)
            sizes = self.grid_shape
            noise = (
                ScaledIdentity(self.noise, sizes[0]),
                *(ScaledIdentity(one, n) for n in sizes[1:]),
            )
        pairs = [aligned(k, n) for k, n in zip(self.kronecker.factors, noise, strict=True)]
        return tuple(k for k, _ in pairs), tuple(n for _, n in pairs)

    def eigenbases(self) -> tuple[Eigenbasis, ...]:
        """One basis per axis, held constant: computed, or the ones that the operator carries."""
        if isinstance(self.decomposition, tuple):
            return lax.stop_gradient(held(self, self.decomposition))
        pairs = zip(*self.blocks(), strict=True)
        found = eigenbases(pairs, batched=bool(self.batch_shape))
        if not isinstance(self.kronecker, KroneckerSum):
            return found
        return tuple(dataclasses.replace(basis, adds=True) for basis in found)

    def _noise_grid(self) -> Array:
        assert not isinstance(self.noise, Kronecker)
        return self.noise.reshape(*self.noise.shape, *(1,) * len(self.grid_shape))


def with_noise(op: Any) -> Any:
    """A Kronecker sum as one with a variance of zero; other operators as they are."""
    return KroneckerPlusNoise(op, 0.0) if isinstance(op, KroneckerSum) else op


def as_products(op: Any) -> Any:
    """A Kronecker sum of two, plus noise, as `A ⊗ I + I ⊗ (B + σ² I)`; others as they are.

    Raises:
        NotImplementedError: for a sum of more.
    """
    op = with_noise(op)
    if not (isinstance(op, KroneckerPlusNoise) and isinstance(op.kronecker, KroneckerSum)):
        return op
    if len(op.factors) > 2:
        raise NotImplementedError(
            "Here a Kronecker sum must have two factors, so that it is two Kronecker products; got "
            f"{len(op.factors)}. kx.normal_logpdf and kx.sample_normal take any number of them."
        )
    assert not isinstance(op.noise, Kronecker)
    first, last = op.factors
    one = jnp.ones((), op.dtype)
    signal = Kronecker(first, ScaledIdentity(one, last.size))
    return KroneckerPlusNoise(
        signal, Kronecker(ScaledIdentity(one, first.size), last.shifted(op.noise))
    )


def _checked_noise(noise: Any, kronecker: Kronecker | KroneckerSum) -> Array | Kronecker:
    if isinstance(noise, AbstractOperator):
        if isinstance(kronecker, KroneckerSum):
            raise TypeError(_three_terms(kronecker, type(noise).__name__))
        noise = as_kronecker(noise, "The noise")
        noise.check_covariance("noise")
        noise = noise.symmetrised()
        if noise.grid_shape != kronecker.grid_shape:
            raise ValueError(
                "Signal and noise must be over the same grid; got "
                f"{kronecker.grid_shape} and {noise.grid_shape}. Give one noise factor per axis, "
                "kx.ScaledIdentity(1.0, n) where the noise does not vary."
            )
        checks.check_precision(noise, "The noise", kronecker.dtype)
        checks.check_broadcast(
            [kronecker.batch_shape, noise.batch_shape], "the signal and the noise"
        )
        if noise.dtype != kronecker.dtype:
            noise = Kronecker(*(cast(f, kronecker.dtype) for f in noise.factors))
        return noise
    if isinstance(noise, int | float) and not isinstance(noise, bool):
        noise = np.asarray(noise, dtype=kronecker.dtype)
    checks.check_precision(noise, "The noise variance", kronecker.dtype)
    value = checks.array_of_reals(noise, "The noise variance").astype(kronecker.dtype)
    batch = kronecker.batch_shape
    if value.ndim > len(batch) or not _broadcasts(value.shape, batch):
        raise ValueError(
            "The noise variance must be a single number, or one per entry of the batch "
            f"{batch}; got shape {value.shape}. For noise that differs along an axis pass "
            "kx.Kronecker(kx.Diagonal(variances), kx.ScaledIdentity(1.0, n)); `op + array` is not "
            "elementwise."
        )
    if checks.is_concrete(value) and bool((np.asarray(value) < 0).any()):
        raise ValueError(
            f"The noise variance must not be negative; got {float(np.asarray(value).min())}. "
            "It is a variance σ², not a logarithm or a standard deviation."
        )
    return value


def aligned(
    signal: AbstractFactor, noise: AbstractFactor
) -> tuple[SymmetricBlocks, SymmetricBlocks]:
    """The blocks of both terms of one axis in the same coordinates.

    A multiple of the identity is one in any coordinates; two different structures share none but
    the places, and meet as full matrices.
    """
    k, n = signal.blocks(), noise.blocks()
    if (k.sizes, k.transform) == (n.sizes, n.transform):
        return k, n
    if n.ndims == (0,):
        return k, _like(n, k)
    if k.ndims == (0,):
        return _like(k, n), n
    return full_block(signal.to_dense()), full_block(noise.to_dense())


def _like(multiple: SymmetricBlocks, other: SymmetricBlocks) -> SymmetricBlocks:
    """A multiple of the identity, cut into the blocks of `other`."""
    count = len(other.sizes)
    return SymmetricBlocks(multiple.arrays * count, (0,) * count, other.sizes, other.transform)


def _broadcasts(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    try:
        return len(jnp.broadcast_shapes(shape, batch)) == len(batch)
    except ValueError:
        return False


def _unchecked(kronecker: Any, noise: Any) -> KroneckerPlusNoise:
    op = object.__new__(KroneckerPlusNoise)
    fields = {"kronecker": kronecker, "noise": noise, "decomposition": None, "made_of": None}
    for name, value in fields.items():
        object.__setattr__(op, name, value)
    return op


def _sum(first: AbstractOperator, second: Any) -> AbstractOperator:
    """What `first + second` is; only sums that stay exact are made."""
    if isinstance(second, AbstractOperator):
        return _sum_of_operators(first, second)
    if isinstance(first, KroneckerPlusNoise):
        added = _checked_noise(second, first.kronecker)
        if isinstance(first.noise, Kronecker):
            raise TypeError(_three_terms(first, "a number"))
        return KroneckerPlusNoise(first.kronecker, first.noise + added)
    return KroneckerPlusNoise(first, second)


def _sum_of_operators(first: AbstractOperator, second: AbstractOperator) -> AbstractOperator:
    for noisy, other in ((first, second), (second, first)):
        if isinstance(noisy, KroneckerPlusNoise | KroneckerSum):
            raise TypeError(_three_terms(noisy, type(other).__name__))
    if first.grid_shape != second.grid_shape:
        raise ValueError(
            "Operators that are added must be over the same grid; got "
            f"{first.grid_shape} and {second.grid_shape}."
        )
    matrices = (Dense, Diagonal, ScaledIdentity)
    if isinstance(first, Diagonal | ScaledIdentity) and isinstance(
        second, Diagonal | ScaledIdentity
    ):
        return Diagonal(first.diagonal() + second.diagonal())
    if isinstance(first, matrices) and isinstance(second, matrices):
        return Dense(first.to_dense() + second.to_dense())
    return KroneckerPlusNoise(as_kronecker(first), as_kronecker(second))


def _three_terms(noisy: KroneckerPlusNoise | KroneckerSum, other: str) -> str:
    signal = noisy.kronecker if isinstance(noisy, KroneckerPlusNoise) else noisy
    got = "a Kronecker sum" if isinstance(signal, KroneckerSum) else "a Kronecker product"
    if isinstance(noisy, KroneckerPlusNoise):
        got += " plus Kronecker noise" if isinstance(noisy.noise, Kronecker) else " plus noise"
    return (
        f"A sum of more than two terms has no exact decomposition; got {got} plus {other}. "
        "Put what the terms share into one factor, add fewer terms, or give all of them to "
        "kx.KroneckerPlusDiagonal as a tuple: kx.iterative_logpdf and its kin take any number."
    )


define_sums(_sum)
