"""lineax's automatic choice of a solver, which asks operators of kronax for theirs first.

`lx.AutoLinearSolver` chooses by an operator's tags among lineax's own solvers, all of which take
the whole matrix; there is nothing to register another with. So its methods, those of the contract
`lx.AbstractLinearSolver`, are replaced once by ones that hand such operators, and states made of
them, to `KroneckerSolver`, and leave everything else to the method that was there.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import equinox as eqx
import lineax as lx

from kronax.lineax.multiples import unwrapped
from kronax.lineax.solver import KroneckerSolver


class _OfKronecker(eqx.Module):
    """A state of `KroneckerSolver` in the hands of `lx.AutoLinearSolver`."""

    solver: KroneckerSolver
    state: Any


@cache
def ask_operators_first() -> None:
    """Replace the methods of `lx.AutoLinearSolver`, once."""
    auto = lx.AutoLinearSolver
    for name, replaced in (
        ("init", _init),
        ("select_solver", _select_solver),
        ("compute", _compute),
        ("transpose", _transpose),
        ("conj", _conj),
    ):
        original = getattr(auto, name)
        setattr(auto, name, wraps(original)(replaced(original)))


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, operator: Any, options: dict[str, Any]) -> Any:
        if unwrapped(operator) is None:
            return original(self, operator, options)
        solver = KroneckerSolver(self.well_posed)
        return _OfKronecker(solver, solver.init(operator, options))

    return init


def _select_solver(original: Callable[..., Any]) -> Callable[..., Any]:
    def select_solver(self: Any, operator: Any) -> Any:
        is_own = unwrapped(operator) is not None
        return KroneckerSolver(self.well_posed) if is_own else original(self, operator)

    return select_solver


def _compute(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute(self: Any, state: Any, vector: Any, options: dict[str, Any]) -> Any:
        if not isinstance(state, _OfKronecker):
            return original(self, state, vector, options)
        return state.solver.compute(state.state, vector, options)

    return compute


def _transpose(original: Callable[..., Any]) -> Callable[..., Any]:
    def transpose(self: Any, state: Any, options: dict[str, Any]) -> Any:
        if not isinstance(state, _OfKronecker):
            return original(self, state, options)
        turned, options = state.solver.transpose(state.state, options)
        return _OfKronecker(state.solver, turned), options

    return transpose


def _conj(original: Callable[..., Any]) -> Callable[..., Any]:
    def conj(self: Any, state: Any, options: dict[str, Any]) -> Any:
        is_own = isinstance(state, _OfKronecker)
        return (state, options) if is_own else original(self, state, options)

    return conj
