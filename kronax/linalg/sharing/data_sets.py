"""A function of each of many data sets, which stay on the devices where they are.

One after another: a search ends when its own data set allows it, and what it needs is held once.
`jax.lax.map` is that on one device. Of several, each goes through the data sets that it has.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad
from jaxtyping import Array

from kronax.linalg.arrays.fibres import Fibrewise, shared_out
from kronax.linalg.arrays.primitives import DerivativeOrderError, nested_vmap


def of_each(function: Callable[[Any, Any], tuple[Array, Any]], model: Any, sets: Any) -> Any:
    """`function(model, one)`, a number and a pytree beside it, for every one of `sets`.

    The number has a first derivative in all that is given, what is beside it has none.

    Args:
        function: of a module.
        model: a pytree of arrays, and of what is hashable.
        sets: a pytree of arrays with a leading axis, which counts data sets.
    """
    if jax.device_count() == 1:
        return lax.map(lambda one: function(model, one), sets)
    arrays, rest = eqx.partition((model, sets), eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)
    num_own = len(jax.tree.leaves(sets))
    others, other_tree = jax.tree.flatten(rest)
    static = {"tree": tree, "others": tuple(others), "other_tree": other_tree}
    own = (None,) * (len(leaves) - num_own) + (0,) * num_own
    alone = [
        jax.ShapeDtypeStruct(x.shape if k is None else x.shape[1:], x.dtype)
        for x, k in zip(leaves, own, strict=True)
    ]
    found: Any = jax.tree.structure(jax.eval_shape(partial(_called, function, **static), *alone))
    results = _each(function)._bind(
        *leaves,
        axis=None,
        are_grids=(False,) * len(leaves),
        results=(False,) * found.num_leaves,
        static=tuple(sorted(static.items())),
        batch=(own,),
    )
    return jax.tree.unflatten(found, results)


def _called(
    function: Callable, *leaves: Array, tree: Any, others: tuple, other_tree: Any
) -> tuple[Array, Any]:
    arrays, rest = jax.tree.unflatten(tree, leaves), jax.tree.unflatten(other_tree, others)
    return function(*eqx.combine(arrays, rest))


class _Each(Fibrewise):
    """A primitive of it: its first mapped axis is that of the data sets.

    Args:
        name: shown in jaxprs.
        function: of flat arrays of one data set, to a flat list.
        is_slope: whether it has no further derivative.
    """

    def __init__(self, name: str, function: Callable, is_slope: bool = False):
        super().__init__(name, function)
        self.is_slope = is_slope

    def _evaluate(self, *operands: Any, axis: Any, batch: tuple, static: tuple, **_: Any) -> list:
        return _mapped(partial(self.function, **dict(static)), operands, batch)

    def _partitioned(self, *operands: Any, axis: int | None, **params: Any) -> list:
        batch, static = params.pop("batch"), params.pop("static")
        # Constants are no part of a partitioned call: here they are operands, whole everywhere.
        num = len(operands)
        levels = zip(*batch, strict=True)
        skipped = [sum(k is not None for k in own) for own in levels]
        alone = [
            jax.ShapeDtypeStruct(x.shape[n:], x.dtype)
            for x, n in zip(operands, skipped, strict=True)
        ]
        closed = jax.make_jaxpr(partial(self.function, **dict(static)))(*alone)
        batch = tuple((*level, *(None,) * len(closed.consts)) for level in batch)

        def evaluated(*leaves: Array) -> list[Array]:
            return jax.core.eval_jaxpr(closed.jaxpr, leaves[num:], *leaves[:num])

        def run(_: Any, *arrays: Array) -> list[Array]:
            return _mapped(evaluated, arrays, batch)

        every = (*operands, *closed.consts)
        params["are_grids"] = (False,) * len(every)
        return shared_out(run, axis, every, batch=batch, **params)

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        moving = tuple(i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero))
        if moving and self.is_slope:
            raise DerivativeOrderError(
                "What is searched for in each data set has first derivatives only. Take the second "
                "as differences of gradients."
            )
        count = len(params["results"])
        changed = {"results": (False,) * (count + len(moving))}
        primitive = _slopes(self, moving) if moving else self
        found = primitive._bind(*primals, **{**params, **changed})
        values, slopes = found[:count], found[count:]
        zeros = [ad.Zero(jax.typeof(v).to_tangent_aval()) for v in values]
        if not moving:
            return values, zeros
        levels = [*reversed(params["batch"])]
        along = [_along(slopes[k], tangents[i], i, levels) for k, i in enumerate(moving)]
        return values, [sum(along[1:], along[0]), *zeros[1:]]


def _mapped(function: Callable, operands: Any, batch: tuple) -> list[Array]:
    """One after another along the first mapped axis, together along the others."""
    own, *outer = batch

    def run(*arrays: Any) -> list[Array]:
        def one(some: list[Array]) -> list[Array]:
            left = iter(some)
            return function(
                *(x if k is None else next(left) for x, k in zip(arrays, own, strict=True))
            )

        return lax.map(one, [x for x, k in zip(arrays, own, strict=True) if k is not None])

    return nested_vmap(run, tuple(outer))(*operands)


def _along(slope: Array, tangent: Array, i: int, levels: list[tuple]) -> Array:
    """Slopes times a tangent that may lack mapped axes: one number per data set."""
    count = sum(level[i] is not None for level in levels)
    lead = iter(tangent.shape[:count])
    shape = [1 if level[i] is None else next(lead) for level in levels]
    moved = slope * tangent.reshape(*shape, *tangent.shape[count:])
    return jnp.sum(moved, axis=tuple(range(len(levels), moved.ndim)))


@lru_cache(maxsize=512)
def _each(function: Callable) -> _Each:
    def flat(*leaves: Array, **static: Any) -> list[Array]:
        return jax.tree.leaves(_called(function, *leaves, **static))

    return _Each("kronax_each_data_set", flat)


@lru_cache(maxsize=512)
def _slopes(each: _Each, moving: tuple[int, ...]) -> _Each:
    """The same, and the gradient of the number in the operands `moving`."""

    def function(*leaves: Array, **static: Any) -> list[Array]:
        def moved(*some: Array) -> tuple[Array, list[Array]]:
            full = list(leaves)
            for i, x in zip(moving, some, strict=True):
                full[i] = x
            value, *beside = each.function(*full, **static)
            return value, beside

        by = jax.value_and_grad(moved, tuple(range(len(moving))), has_aux=True)
        (value, beside), slopes = by(*(leaves[i] for i in moving))
        return [value, *beside, *slopes]

    return _Each(f"{each.name}_slopes", function, is_slope=True)
