"""kronax's ways of solving as a solver of lineax."""

from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from kronax.linalg.arrays.mode_products import apply_all, outer
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.functions.choice import solvable
from kronax.linalg.functions.decompose import decompose, without_checksum
from kronax.linalg.functions.solve import Inverse, solve_grid
from kronax.linalg.lineax_factor import cut, laid_end_to_end
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum, as_kronecker
from kronax.lineax.multiples import Multiple, unwrapped


class Exact(eqx.Module):
    """What solves with a square operator, of full rank."""

    op: Any
    is_turned: bool = eqx.field(static=True, default=False)

    @classmethod
    def of(cls, op: AbstractOperator) -> "Exact":
        """Decompose the operator."""
        if isinstance(op, Inverse):
            return cls(op)
        return cls(without_checksum(decompose(solvable(op, "solve"))))

    def turned(self) -> "Exact":
        """What solves with the transpose."""
        return Exact(self.op, not self.is_turned)

    def apply(self, b: Array) -> Array:
        """Solve for a flat vector."""
        grid = self.op.held(b.reshape(self.op.grid_shape))
        if not self.is_turned:
            return self._solve(grid).reshape(-1)
        (solution,) = jax.linear_transpose(self._solve, grid)(grid)
        return solution.reshape(-1)

    def _solve(self, grid: Array) -> Array:
        if isinstance(self.op, Inverse):
            return self.op.op.mv_grid(grid)
        return solve_grid(self.op, grid)


class Shifted(eqx.Module):
    """The eigenbasis of every symmetric factor, for `scalar · ⊗K_i + shift · I`, or `⊕K_i`.

    The sum may be indefinite, which a covariance with noise must not be.
    """

    bases: tuple[Array, ...]
    values: Array

    @classmethod
    def of(cls, found: Multiple) -> "Shifted":
        """Decompose every factor."""
        assert found.shift is not None
        parts = [jnp.linalg.eigh(f.to_dense()) for f in found.op.factors]
        values, bases = zip(*parts, strict=True)
        if isinstance(found.op, KroneckerSum):
            ones = [jnp.ones_like(v) for v in values]
            terms = [outer([*ones[:i], v, *ones[i + 1 :]]) for i, v in enumerate(values)]
            spectrum = sum(terms[1:], terms[0])
        else:
            spectrum = outer(values)
        return cls(bases, found.scalar * spectrum + found.shift)

    def turned(self) -> "Shifted":
        """Itself."""
        return self

    def apply(self, b: Array) -> Array:
        """Solve for a flat vector."""
        rotated = apply_all([q.T for q in self.bases], b.reshape(self.values.shape))
        return apply_all(self.bases, rotated / self.values).reshape(-1)


class PseudoInverse(eqx.Module):
    """The singular value decomposition of every factor: `(A ⊗ B)⁺ = A⁺ ⊗ B⁺`.

    Small singular values are told from zero among those of the product, as `lx.SVD` does.
    """

    left: tuple[Array, ...]
    values: tuple[Array, ...]
    right: tuple[Array, ...]

    @classmethod
    def of(cls, op: Kronecker) -> "PseudoInverse":
        """Decompose every factor."""
        parts = [jnp.linalg.svd(f.to_dense(), full_matrices=False) for f in op.factors]
        left, values, right = zip(*parts, strict=True)
        return cls(left, values, tuple(r.T for r in right))

    def turned(self) -> "PseudoInverse":
        """That of the transpose."""
        return PseudoInverse(self.right, self.values, self.left)

    def apply(self, b: Array) -> Array:
        """The least-squares solution of least norm for a flat vector."""
        rows, columns = (prod(m.shape[0] for m in side) for side in (self.left, self.right))
        values = outer(self.values)
        cutoff = 2 * jnp.finfo(values.dtype).eps * max(rows, columns) * jnp.max(values)
        is_zero = values <= cutoff
        rotated = apply_all([u.T for u in self.left], b.reshape([u.shape[0] for u in self.left]))
        scaled = jnp.where(is_zero, 0, rotated / jnp.where(is_zero, 1, values))
        return apply_all(self.right, scaled).reshape(-1)


class State(eqx.Module):
    """What `KroneckerSolver.init` computes.

    Args:
        way: how vectors are solved for.
        scalar: that the operator is a multiple of what `way` is made of by.
        structures: of solutions and of right-hand sides, flattened.
    """

    way: Exact | Shifted | PseudoInverse
    scalar: Array
    structures: Any = eqx.field(static=True)


@eqx.filter_jit
def _exact(found: Multiple) -> tuple[Exact | Shifted, Array]:
    """In one program, in which no value is looked at: lineax tells of failures in its own way."""
    if found.shift is None:
        return Exact.of(found.op), found.scalar
    return Shifted.of(found), jnp.ones_like(found.scalar)


class KroneckerSolver(lx.AbstractLinearSolver[State]):
    """`kx.solve` as a solver of lineax; `lx.AutoLinearSolver` chooses it by itself.

    Args:
        well_posed: as in `lx.AutoLinearSolver`: true for square operators of full rank, false for
            the pseudo-inverse of a Kronecker product, `None` for that where it is rectangular.
    """

    well_posed: bool | None = True

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> State:
        """Decompose, factor by factor.

        Raises:
            TypeError: if the operator is none of kronax, or has no exact way.
            ValueError: if it is rectangular, and the solver only for well-posed problems.
        """
        del options
        found = unwrapped(operator)
        if found is None:
            raise TypeError(
                f"KroneckerSolver takes kx.as_lineax(op), and multiples of it; got "
                f"{type(operator).__name__}. Choose another solver of lineax."
            )
        op, scalar = found.op, found.scalar
        is_square = op.shape[-1] == op.shape[-2]
        if not is_square and self.well_posed:
            raise ValueError(
                "A rectangular operator has no well-posed solve; got one of shape "
                f"{op.shape[-2:]}. Pass lx.AutoLinearSolver(well_posed=False) for least squares."
            )
        structures = (operator.in_structure(), operator.out_structure())
        flattened = tuple(
            (tuple(leaves), tree) for leaves, tree in map(jax.tree.flatten, structures)
        )
        is_product = isinstance(op, Kronecker | AbstractFactor) and found.shift is None
        if is_square and (self.well_posed is not False or not is_product):
            return State(*_exact(found), flattened)
        return State(PseudoInverse.of(as_kronecker(op)), scalar, flattened)

    def compute(
        self, state: State, vector: Any, options: dict[str, Any]
    ) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """Solve for a vector."""
        del options
        (leaves, tree), _ = state.structures
        flat = laid_end_to_end(vector, state.scalar.dtype)
        solution = state.way.apply(flat) / state.scalar
        return cut(solution, jax.tree.unflatten(tree, leaves)), lx.RESULTS.successful, {}

    def transpose(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """The state of the transpose."""
        turned = State(state.way.turned(), state.scalar, state.structures[::-1])
        return turned, options

    def conj(self, state: State, options: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Itself: numbers are real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Unless a pseudo-inverse is asked for."""
        return self.well_posed is not False
