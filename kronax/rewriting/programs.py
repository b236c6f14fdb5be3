"""Functions as traced programs, kept from call to call."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from numpyro.distributions import Distribution

from kronax.rewriting.references import References, references
from kronax.rewriting.sites import Capture, surroundings

# Programs of other shapes that are kept for one function.
MAX_PROGRAMS = 16
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_prng_impl",
)


class Program(NamedTuple):
    """A traced function: its equations, and what it returns beside arrays."""

    closed: Any
    others: Any
    structure: Any

    def returned(self, arrays: Sequence[Any]) -> Any:
        """What the function returns, with these arrays in it."""
        return eqx.combine(jax.tree.unflatten(self.structure, arrays), self.others)


class Programs:
    """The programs of a function, by the shapes of its arguments.

    One is used again while the arguments that are no arrays, and all that the function refers to,
    are the same.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.kept: OrderedDict[Any, tuple[References, Program]] = OrderedDict()

    def of(self, args: Any, kwargs: Any) -> tuple[Program, list[Any]]:
        """The program for these arguments, and those of them that are arrays."""
        dynamic, static = eqx.partition((args, kwargs), is_array)
        leaves, treedef = jax.tree.flatten(dynamic)
        referred = references(self.function, *jax.tree.leaves(static))
        key = (
            treedef,
            jax.tree.structure(static),
            tuple(map(jax.typeof, leaves)),
            tuple(getattr(jax.config, name, None) for name in SETTINGS),
            Distribution._validate_args,
            surroundings(),
        )
        held = self.kept.get(key)
        if held is not None and referred is not None and referred.same_as(held[0]):
            self.kept.move_to_end(key)
            return held[1], leaves
        program = self._traced(leaves, treedef, static)
        if referred is not None and not any(
            isinstance(c, jax.core.Tracer) for c in program.closed.consts
        ):
            self.kept[key] = referred, program
            if len(self.kept) > MAX_PROGRAMS:
                self.kept.popitem(last=False)
        return program, leaves

    def _traced(self, leaves: list[Any], treedef: Any, static: Any) -> Program:
        rest: list[Any] = []

        def flat(*arrays: Any) -> Any:
            args, kwargs = eqx.combine(jax.tree.unflatten(treedef, arrays), static)
            with Capture():
                returned = self.function(*args, **kwargs)
            results, others = eqx.partition(returned, is_array)
            rest[:] = [others, jax.tree.structure(results)]
            return jax.tree.leaves(results)

        return Program(jax.make_jaxpr(flat)(*leaves), *rest)


def is_array(value: Any) -> bool:
    """Whether a value is traced; others are constants of the program."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)
