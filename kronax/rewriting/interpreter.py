"""A traced program run again, equation by equation, with products that are not formed."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from kronax.linalg.arrays.checks import is_concrete
from kronax.rewriting.report import Log, Place, is_library
from kronax.rewriting.values.matrices import describe
from kronax.rewriting.values.meanings import Density
from kronax.rewriting.values.tensors import Tensor, Unstructured, identity

# Calls of which the body may be run in place.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# What acts on the world outside of the program although nobody uses its results.
KEPT = ("numpyro_site",)
# Those with derivative rules of their own, which stay the user's.
WITH_RULES = ("custom_jvp_call", "custom_vjp_call")


class Equation:
    """One equation with its values, and its results once somebody needs them as arrays."""

    def __init__(self, eqn: Any, values: Sequence[Any]):
        self.eqn, self.values = eqn, values
        self.results: list[Any] | None = None

    def computed(self, run: "Run", place: Place) -> list[Any]:
        """The results as the dense code computes them; `place` is what needs them."""
        if self.results is None:
            self.results = bind(self.eqn, [run.formed(v, place) for v in self.values])
        return self.results


class Deferred:
    """A result that is not computed yet, with what it means.

    Args:
        equation: that it comes from.
        meaning: what a later equation may do better with than with an array.
        index: among the results.
    """

    def __init__(self, equation: Equation, meaning: Any, index: int = 0):
        self.equation, self.meaning, self.index = equation, meaning, index

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        return self.equation.eqn.outvars[self.index].aval.shape

    @property
    def dtype(self) -> Any:
        """Of the array that it stands for."""
        return self.equation.eqn.outvars[self.index].aval.dtype


def unshared(values: Sequence[Any]) -> list[Any]:
    """The same values for another trace: what is formed there must not be used outside of it."""
    made: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, Tensor):
            copy: Any = dataclasses.replace(value)
        elif isinstance(value, Deferred):
            copy = Deferred(equation(value.equation), copied(value.meaning), value.index)
        else:
            return value
        made[id(value)] = copy
        return copy

    def equation(old: Equation) -> Equation:
        if id(old) not in made:
            new = Equation(old.eqn, old.values)
            if old.results is None:
                new.values = [copied(value) for value in old.values]
            new.results = old.results
            made[id(old)] = new
        return made[id(old)]

    return [copied(value) for value in values]


Rule = Callable[..., list[Any] | None]


class Run:
    """One run of a program.

    Args:
        log: of what happens.
        rules: by primitive; a rule returns the results, or None where it has none.
        starters: the primitives whose rules are asked although all values are plain arrays.
        same_draws: whether a Cholesky factor is to be the dense code's own, not any root.
    """

    def __init__(
        self,
        log: Log,
        rules: dict[str, Rule],
        starters: frozenset[str],
        same_draws: bool = True,
    ):
        self.log, self.rules, self.starters = log, rules, starters
        self.same_draws = same_draws
        self._eqn: Any = None
        self._outer: Place | None = None
        # Which results of the present equation somebody uses.
        self.used: list[bool] = []

    @property
    def here(self) -> Place:
        """Where the present equation stands in the user's program."""
        return self._outer or Place.of(self._eqn)

    def evaluate(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        args: Sequence[Any],
        outer: Place | None = None,
        wanted: Sequence[bool] | None = None,
    ) -> list[Any]:
        """The results of a program, without what no wanted result and no effect depends on.

        Args:
            jaxpr: the program.
            consts: its constants.
            args: its arguments.
            outer: the library call that it is the body of.
            wanted: which results are; others are None.
        """
        wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
        env: dict[Any, Any] = {}
        env.update(zip(jaxpr.constvars, map(_recognised, consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            if not isinstance(atom, Literal):
                return env[atom]
            return np.asarray(atom.val, getattr(atom.aval, "dtype", None))

        for eqn, used in _live(jaxpr, tuple(wanted)):
            values = [read(atom) for atom in eqn.invars]
            self._eqn, self._outer, self.used = eqn, outer, used
            with _in_context(eqn):
                results = self._equation(eqn, values, outer)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) if want else None for v, want in zip(jaxpr.outvars, wanted, strict=True)]

    def formed(self, value: Any, place: Place, why: str | None = None) -> Array:
        """A value as an array, with a warning where a product is formed."""
        if isinstance(value, Tensor):
            if value.is_product:
                self.log.formed(place, describe(value), value.shape, why)
            return value.dense
        if isinstance(value, Deferred):
            if not self.same_draws and hasattr(value.meaning, "by_another_root"):
                return value.meaning.by_another_root()
            if isinstance(value.meaning, Density):
                return value.meaning.value().astype(value.dtype)
            return value.equation.computed(self, place)[value.index]
        return value

    def plain(self, value: Any) -> Any:
        """A value as an array if that forms no product.

        Raises:
            Unstructured: if it would.
        """
        if isinstance(value, Deferred) or (isinstance(value, Tensor) and value.is_product):
            raise Unstructured("two values that are not formed")
        return value.dense if isinstance(value, Tensor) else value

    def _equation(self, eqn: Any, values: list[Any], outer: Place | None) -> list[Any]:
        name = eqn.primitive.name
        structured = any(isinstance(v, Tensor | Deferred) for v in values)
        if structured and _is_empty(eqn):
            return [jnp.zeros(out.aval.shape, out.aval.dtype) for out in eqn.outvars]
        why = None
        rule = self.rules.get(_called(eqn)) or self.rules.get(name)
        filled = name in KEPT or all(0 not in getattr(a.aval, "shape", ()) for a in eqn.invars)
        if rule is not None and filled and (structured or name in self.starters):
            # A product that was left apart goes on as its parts.
            parts = [
                v.meaning if isinstance(v, Deferred) and isinstance(v.meaning, Tensor) else v
                for v in values
            ]
            try:
                results = rule(self, eqn, *parts)
            except Unstructured as error:
                why, results = str(error), None
            if results is not None and _fit(results, eqn):
                return results
        if name in CALLS and (structured or may_hold_product(eqn)):
            return self._call(eqn, values, outer)
        self._eqn, self._outer = eqn, outer
        place = self.here if structured else None
        return bind(eqn, [self.formed(v, place, why) if place else v for v in values])

    def _call(self, eqn: Any, values: list[Any], outer: Place | None) -> list[Any]:
        """Run the body of a call in place, or keep its derivative rule around the new body."""
        closed = closed_of(eqn.params[CALLS[eqn.primitive.name]])
        library = _is_from_library(closed)
        place = outer or (Place.of(eqn) if library else None)
        if eqn.primitive.name not in WITH_RULES or library:
            return self.evaluate(closed.jaxpr, closed.consts, values, place, self.used)
        args = [self.formed(v, self.here) for v in values]

        def body(*inner: Array) -> list[Array]:
            results = self.evaluate(closed.jaxpr, closed.consts, inner)
            return [self.formed(r, Place.of(eqn)) for r in results]

        inside = jax.make_jaxpr(body)(*args)
        return bind(eqn, args, call_jaxpr=inside)


def _is_empty(eqn: Any) -> bool:
    """Whether results have no entries, so that nothing need be formed for them."""
    if eqn.effects or eqn.primitive.name in KEPT:
        return False
    avals = [out.aval for out in eqn.outvars]
    return all(jnp.issubdtype(a.dtype, jnp.number) and 0 in a.shape for a in avals)


def bind(eqn: Any, args: Sequence[Any], **changed: Any) -> list[Any]:
    """An equation as it stands, or with other parameters."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    results = eqn.primitive.bind(*args, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def closed_of(jaxpr: Any) -> Any:
    """A program with its constants."""
    return jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())


@lru_cache(maxsize=4096)
def _live(jaxpr: Any, wanted: tuple[bool, ...]) -> list[tuple[Any, list[bool]]]:
    """The equations that a wanted result or an effect depends on, with what is used of each."""
    pairs = zip(jaxpr.outvars, wanted, strict=True)
    needed = {v for v, want in pairs if want and not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        used = [v in needed for v in eqn.outvars]
        if any(used) or eqn.effects or eqn.primitive.name in KEPT:
            kept.append((eqn, used))
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return kept[::-1]


@contextmanager
def _in_context(eqn: Any) -> Any:
    context = getattr(eqn, "ctx", None)
    if context is None:
        yield
    else:
        with context.manager:
            yield


def _called(eqn: Any) -> str:
    """The name of a library function that is called, which its rule has to verify."""
    named = eqn.primitive.name in ("jit", "pjit", "custom_jvp_call")
    return f"call:{eqn.params.get('name')}" if named else ""


def _is_from_library(closed: Any) -> bool:
    info = getattr(closed.jaxpr, "debug_info", None)
    where = getattr(info, "func_src_info", None) or ""
    return "site-packages" in where or is_library(where.rpartition(" at ")[2])


def may_hold_product(eqn: Any) -> bool:
    """Whether a body holds what a Kronecker product is made with, or an identity."""
    return any(_holds_structure(closed_of(j).jaxpr) for j in _inside(eqn))


@lru_cache(maxsize=4096)
def _holds_structure(jaxpr: Any) -> bool:
    return any(
        _makes_structure(eqn) or any(_holds_structure(closed_of(j).jaxpr) for j in _inside(eqn))
        for eqn in jaxpr.eqns
    )


def _makes_structure(eqn: Any) -> bool:
    """An outer product of matrices, axes of one that are merged, or indices of a matrix."""
    name, rank = eqn.primitive.name, len(getattr(eqn.outvars[0].aval, "shape", ()))
    if name == "reshape":
        before = len(eqn.invars[0].aval.shape)
        return before > 3 or (before, rank) == (2, 1)
    if name == "dot_general":
        return rank > 3 and not eqn.params["dimension_numbers"][0][0]
    return (name == "mul" and rank > 3) or (name == "iota" and rank == 2)


def _inside(eqn: Any) -> list[Any]:
    found = []
    for value in eqn.params.values():
        each = value if isinstance(value, tuple | list) else [value]
        found += [v for v in each if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
    return found


def _recognised(constant: Any) -> Any:
    """A multiple of the identity that a program closes over, as one; others as they are."""
    shape = jnp.shape(constant)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2 or not is_concrete(constant):
        return constant
    if not jnp.issubdtype(constant.dtype, jnp.floating):
        return constant
    values = np.asarray(constant)
    scale = values[0, 0]
    # Most others are told by their first row.
    if not np.isfinite(scale) or scale == 0 or values[0, 1:].any():
        return constant
    if not (np.diagonal(values) == scale).all() or np.count_nonzero(values) != shape[0]:
        return constant
    return identity(shape[0], values.dtype).scaled(scale)


def _fit(results: Sequence[Any], eqn: Any) -> bool:
    """Whether results are of the kind that the program says; else they are not used."""
    return all(
        isinstance(result, Deferred)
        or (tuple(result.shape), result.dtype) == (tuple(out.aval.shape), out.aval.dtype)
        for result, out in zip(results, eqn.outvars, strict=True)
    )


def settled(tensor: Tensor) -> Any:
    """A tensor, or its array where it has nothing to exploit."""
    return tensor if tensor.has_structure else tensor.dense


def is_number(value: Any) -> bool:
    """Whether a value is an array of one number."""
    return not isinstance(value, Tensor | Deferred) and np.prod(jnp.shape(value)) == 1
