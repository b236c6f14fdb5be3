"""What one orthonormal basis keeps of a sum of products: a box of it, and the diagonal beyond.

In a basis `⊗Q_i` that nearly fits all terms the matrix of `K = Σ_j ⊗_i K_ji` is nearly diagonal.
Where the signal is, in a box of the leading eigenvectors of every axis, it is kept whole.
"""

from functools import reduce
from operator import add

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import apart, apply_all, matmul, outer
from kronax.linalg.factors.eigenbases import Eigenbasis
from kronax.linalg.krylov.preconditioner import Reference, diagonal_between
from kronax.linalg.operators.sum_of_products import KroneckerTerms
from kronax.linalg.sharing.boxes import in_box, outside_box, with_box
from kronax.linalg.spectral.value_and_rules import rotate, unrotate


class BoxedSum(eqx.Module):
    """`K_r`, differentiable in the terms for a constant basis.

    Args:
        bases: `Q_i`.
        box: per axis, which of their columns.
        inside: the matrix of `K` on the box, `(r, r)`.
        outside: its diagonal, a grid array, zero on the box.
    """

    bases: tuple[Eigenbasis, ...]
    box: tuple[Array, ...]
    inside: Array
    outside: Array

    def scaled(self, share: Array) -> "BoxedSum":
        """A multiple."""
        return BoxedSum(self.bases, self.box, share * self.inside, share * self.outside)

    def mv_grid(self, x: Array) -> Array:
        """`K_r` for columns `(…, *grid)`."""
        columns = x.reshape(-1, *self.outside.shape)
        spectrum = jax.vmap(lambda v: rotate(self.bases, v))(columns)
        moved = matmul(in_box(spectrum, self.box), self.inside)
        moved = with_box(self.outside[None] * spectrum, self.box, moved)
        return jax.vmap(lambda v: unrotate(self.bases, v))(moved).reshape(x.shape)


def boxed_sum(
    signal: KroneckerTerms, bases: tuple[Eigenbasis, ...], box: tuple[Array, ...]
) -> BoxedSum:
    """What the basis keeps of a sum of products."""
    terms = in_bases(signal, bases)
    inside = [
        reduce(jnp.kron, [m[jnp.ix_(c, c)] for m, c in zip(term, box, strict=True)])
        for term in terms
    ]
    outside = outside_box(_diagonal(terms), box)
    return BoxedSum(bases, box, reduce(add, inside), outside)


def _diagonal(terms: list[list[Array]]) -> Array:
    return reduce(add, [outer([jnp.diagonal(m) for m in term]) for term in terms])


def in_bases(signal: KroneckerTerms, bases: tuple[Eigenbasis, ...]) -> list[list[Array]]:
    """`Q_iᵀ K_ji Q_i`, per term and axis; differentiable in the signal."""
    return [
        [b.right(b.right(f.to_dense()).T) for f, b in zip(term.factors, bases, strict=True)]
        for term in signal.terms
    ]


def term_diagonals(held: Reference, signal: KroneckerTerms) -> list[Array]:
    """The diagonal of `Qᵀ K_j Q`, per term; they add up to `Λ`."""
    found, turn = [], held.turn
    assert turn is not None
    for term in signal.terms:
        kept = boxed_sum(KroneckerTerms([term]), held.bases, held.box)
        inside = jnp.sum(turn * matmul(kept.inside, turn), 0)
        found.append(with_box(kept.outside, held.box, inside))
    return found


def known_trace(held: Reference, signal: KroneckerTerms) -> Array:
    """`tr F²` of `F = S_r^-½ (K − K_r) S_r^-½` on the even grid, `S_r = K_r + I/w`.

    Between the box and what is outside, and outside off the diagonal. In the basis the squares of
    the entries of `⊗K_ji` are products again. Differentiable in the signal; `S_r` is constant.
    """
    inverse = held.smooth / held.noise
    on_box, outside = held.on_box_of(inverse), outside_box(inverse, held.box)
    terms = in_bases(signal, held.bases)
    total = -jnp.sum((outside * _diagonal(terms)) ** 2)
    for j, left in enumerate(terms):
        for k, right in enumerate(terms[: j + 1]):
            squares = apply_all([a * b for a, b in zip(left, right, strict=True)], outside)
            sides = [_columns(term, held.box) for term in (left, right)]
            squares = squares + 2 * diagonal_between(sides[0], on_box, sides[1])
            total = total + (1 if j == k else 2) * jnp.sum(outside * apart(squares))
    return total


def _columns(matrices: list[Array], box: tuple[Array, ...]) -> list[Array]:
    return [m[:, chosen] for m, chosen in zip(matrices, box, strict=True)]


class ExactDerivative(eqx.Module):
    """The differential of `log det (I + wK_r) − Σ log W + tr (C − I)`.

    Args:
        inside: what multiplies that of the box.
        outside: of the diagonal outside.
        precisions: of `W`.
    """

    inside: Array
    outside: Array
    precisions: Array

    @classmethod
    def of(cls, held: Reference, precisions: Array) -> "ExactDerivative":
        """With `d log det (I + wK_r) = tr S_r⁻¹ dK_r` and `dT = N dK_r N`, `N = (I + wK_r)⁻¹`."""
        inverse, smooth = held.smooth / held.noise, held.on_box(held.smooth)
        inside = jnp.diag(held.on_box(inverse)) + smooth[:, None] * held.inside * smooth[None]
        excess = apply_all([b.matrix().T ** 2 for b in held.bases], held.excess)
        observed = precisions > 0
        logs = jnp.where(observed, 1 / jnp.where(observed, precisions, 1), 0)
        return cls(
            held.turned_back(inside),
            inverse + held.smooth**2 * excess,
            held.diagonal_of(held.filter**2) - logs,
        )

    def along(self, signal: BoxedSum, precisions: Array) -> Array:
        """A function of the operands with this derivative."""
        along = jnp.sum(self.inside * signal.inside) + jnp.sum(self.outside * signal.outside)
        return along + jnp.sum(self.precisions * precisions)
