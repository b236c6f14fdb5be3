"""What is asked of an operator that is solved with, whatever the way."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
from jaxtyping import Array

from kronax.linalg.arrays.precision import Conditioning
from kronax.linalg.estimates.certificates import Estimate, exact_estimate
from kronax.linalg.spectral.conditional_variances import Places

Rows = Sequence[Array | None]


class AbstractDecomposition(eqx.Module):
    """An operator `S` with the way in which it is solved: one final class per way.

    Vectors are checked, in the grid layout, and zero at gaps; a batch may lead. What is computed
    on the way is held constant: derivatives flow to the leaves of `op`. Inside one `jit` the same
    decomposition is computed once, however often it is asked for.

    Args:
        op: the operator; if it carries what was computed (`kx.decompose`), that is used.
    """

    op: eqx.AbstractVar[Any]

    # By iterations, answers have certificates, and raise outside of `jit` where these fail.
    is_exact = True

    @abc.abstractmethod
    def solve(self, b: Array) -> Array:
        """`S⁻¹ b`, right at every order of derivative."""

    @abc.abstractmethod
    def logdet(self) -> Array:
        """`log det S`, one per entry of the batch."""

    @abc.abstractmethod
    def inv_quad(self, b: Array) -> Array:
        """`bᵀ S⁻¹ b`."""

    @abc.abstractmethod
    def logpdf(self, residual: Array) -> Array:
        """Log density of `N(0, S)`."""

    @abc.abstractmethod
    def inverse_diagonal(self) -> Array:
        """The diagonal of `S⁻¹`, grid-shaped; zero at gaps."""

    @abc.abstractmethod
    def computed(self) -> Any:
        """What `kx.decompose` lets the operator carry; `None` for nothing."""

    def ends(self) -> Conditioning | None:
        """The largest and smallest eigenvalue, bounds on them, or what they are found from."""
        return None

    def as_covariance(self) -> "AbstractDecomposition":
        """The way of an operator that is known to be a covariance."""
        return self


class AbstractSignalPlusNoise(AbstractDecomposition):
    """The covariance of data, a signal `K` plus noise `N` at the observed cells of a grid."""

    @property
    def is_filtered(self) -> bool:
        """Whether places along a Markov axis are given as the process that goes on to them."""
        return False

    @abc.abstractmethod
    def explained(self, rows: Rows, others: Rows | None = None) -> Array:
        """`diag(C S⁻¹ Bᵀ)` for `C = ⊗rows[i]`, each `(*batch, m_i, n_i)`, and `B` alike or `C`.

        `None` is the identity. Right to first order.
        """

    @abc.abstractmethod
    def posterior_diagonal(self) -> Array:
        """`diag(K − K S⁻¹ K)`, the variance of the signal given data, on the whole grid."""

    @abc.abstractmethod
    def variance_at(self, *parts: Sequence[Places]) -> Estimate:
        """The variances of places scattered over the grid, given data; values only.

        Args:
            parts: what is known of the places, of every part of the function with a covariance
                that is a product: one row per axis each.
        """

    @abc.abstractmethod
    def covariance_at(self, *parts: tuple[Sequence[Places], Sequence[Array]]) -> Array:
        """The covariance of such places given data, `(m, m)`; values only.

        Args:
            parts: as in `variance_at`, each with the prior covariances of the places on every axis.
        """

    def explained_by_roots(self, pairs: Sequence[tuple[Array, Array | None]]) -> Array:
        """`explained` for rows that come with those of a thin root; see `root_rows`."""
        return self.explained([row for row, _ in pairs])

    # By iterations, these have certificates; elsewhere they are exact.

    def weights(self, b: Array) -> Estimate:
        """`S⁻¹ b`, to be multiplied by covariances with the signal."""
        return exact_estimate(self.solve(b))

    def density(self, residual: Array) -> Estimate:
        """`logpdf`."""
        return exact_estimate(self.logpdf(residual))

    def settled(self, estimate: Estimate, what: str, *, is_marked: bool = False) -> Estimate:
        """The estimate, unless iterations failed that are to raise; NaN then if it is traced.

        `weights` and `solve` are NaN by themselves: their estimates come marked.
        """
        return estimate
