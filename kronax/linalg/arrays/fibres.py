"""The primitive of functions along one axis of a grid, where its cells are shared out over devices.

It says to XLA's partitioner what `partition` does; on one device it is the function itself. Its
derivatives are those of the function, and are such primitives again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, mlir
from jaxtyping import Array

from kronax.linalg.arrays.primitives import Batched, nested_vmap
from kronax.linalg.devices.partition import WHOLE, Form, devices_wanted, partitioned


class Fibrewise(Batched):
    """`function(axis, *operands, **static)`, a list of arrays, one fibre along `axis` by one.

    Args:
        name: shown in jaxprs.
        function: of arrays on the grid, which may differ in their size along the axis, and of small
            arrays. Results that are small are sums over fibres. Where nothing has to be whole it is
            called with the `Part` of the grid that it is given, in place of an axis.
    """

    def __init__(self, name: str, function: Callable[..., Sequence[Array]]):
        super().__init__(name)
        self.name = name
        self.function = function
        self.primitive.def_impl(self._apply)
        mlir.register_lowering(self.primitive, self._lowered)
        ad.primitive_transposes[self.primitive] = self._transpose

    def __call__(
        self,
        axis: int | None,
        *operands: Array,
        grids: tuple[int, ...],
        results: tuple[bool, ...] = (True,),
        **static: Any,
    ) -> list[Array]:
        """Evaluate.

        Args:
            axis: negative, or none, where nothing has to be whole.
            operands: arrays.
            grids: which of them are on the grid.
            results: which of the results are.
            static: hashable settings of the function.
        """
        if jax.device_count() == 1:
            return list(self.function(WHOLE if axis is None else axis, *operands, **static))
        return self._bind(
            *operands,
            axis=axis,
            are_grids=tuple(i in grids for i in range(len(operands))),
            results=results,
            static=tuple(sorted(static.items())),
            batch=(),
        )

    def _bind(self, *operands: Any, **params: Any) -> list[Any]:
        return self.primitive.bind(*operands, **{**params, "devices": devices_wanted()})

    def _apply(self, *operands: Any, **params: Any) -> Any:
        return _compiled(self, tuple(sorted(params.items(), key=lambda p: p[0])))(*operands)

    def _lowered(self, context: Any, *operands: Any, **params: Any) -> Any:
        """In a program of one device, as `jax.shard_map` has it, there is nothing to share out."""
        manual = getattr(context.module_context.axis_context, "manual_axes", ())
        lower = self._evaluate if manual else self._partitioned
        return mlir.lower_fun(lower, multiple_results=True)(context, *operands, **params)

    def _evaluate(self, *operands: Any, axis: Any, batch: tuple, static: tuple, **_: Any) -> list:
        along = WHOLE if axis is None else axis

        def run(*arrays: Any) -> list[Array]:
            return list(self.function(along, *arrays, **dict(static)))

        return nested_vmap(run, batch)(*operands)

    def _partitioned(self, *operands: Any, axis: int | None, **params: Any) -> list:
        def run(axis: Any, *arrays: Any) -> list:
            return self._evaluate(*arrays, axis=axis, **params)

        return shared_out(run, axis, operands, **params)

    def _batch_rule(self, flat: Any, dims: Any, *, batch: tuple, **params: Any) -> Any:
        """Axes that all arrays on the grid have, and no other, are more cells to go through."""
        mapped = tuple(d is not None for d in dims)
        if not batch and mapped == params["are_grids"] and all(params["results"]):
            moved = [
                x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(flat, dims, strict=True)
            ]
            outputs = self.primitive.bind(*moved, batch=batch, **params)
            return outputs, [0] * len(outputs)
        return super()._batch_rule(flat, dims, batch=batch, **params)

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        moving = tuple(i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero))
        values = self._bind(*primals, **params)
        if not moving:
            return values, [ad.Zero(jax.typeof(v).to_tangent_aval()) for v in values]
        kinds, batch = params["are_grids"], params["batch"]
        changed = {
            "are_grids": (*kinds, *(kinds[i] for i in moving)),
            "batch": tuple((*level, *(level[i] for i in moving)) for level in batch),
        }
        given = [tangents[i] for i in moving]
        return values, _tangent(self, moving)._bind(*primals, *given, **{**params, **changed})

    def _transpose(self, cotangents: Any, *flat: Any, **params: Any) -> Any:
        wanted = tuple(i for i, x in enumerate(flat) if ad.is_undefined_primal(x))
        batch, kinds = params["batch"], params["are_grids"]
        known = [i for i in range(len(flat)) if i not in wanted]
        count = len(cotangents)
        forms = []
        for i in wanted:
            aval = flat[i].aval
            levels = sum(level[i] is not None for level in batch)
            size = aval.shape[params["axis"]] if kinds[i] else aval.shape[levels:]
            forms.append((kinds[i], size, aval.dtype))
        are_grids = (*(kinds[i] for i in known), *params["results"])
        pullback = _pullback(
            self, wanted, tuple(forms), params["static"], count, are_grids.index(True)
        )
        pulled = pullback._bind(
            *(flat[i] for i in known),
            *(ad.instantiate_zeros(ct) for ct in cotangents),
            axis=params["axis"],
            are_grids=are_grids,
            results=tuple(kinds[i] for i in wanted),
            static=(),
            batch=tuple((*(level[i] for i in known), *(0,) * count) for level in batch),
        )
        found: list[Any] = [None] * len(flat)
        for i, ct in zip(wanted, pulled, strict=True):
            outermost_first = enumerate(reversed(batch))
            alone = tuple(k for k, level in outermost_first if level[i] is None)
            found[i] = jnp.sum(ct, axis=alone) if alone else ct
        return found


@lru_cache(maxsize=512)
def _compiled(fibrewise: Fibrewise, params: tuple) -> Callable:
    return jax.jit(partial(fibrewise.primitive.bind, **dict(params)))


@lru_cache(maxsize=512)
def _tangent(fibrewise: Fibrewise, moving: tuple[int, ...]) -> Fibrewise:
    """The derivative along tangents of the operands `moving`, which come last."""

    def function(axis: int, *arrays: Array, **static: Any) -> list[Array]:
        primals, tangents = arrays[: -len(moving)], arrays[-len(moving) :]

        def moved(*some: Array) -> list[Array]:
            full = list(primals)
            for i, x in zip(moving, some, strict=True):
                full[i] = x
            return list(fibrewise.function(axis, *full, **static))

        return jax.jvp(moved, tuple(primals[i] for i in moving), tangents)[1]

    return Fibrewise(f"{fibrewise.name}_tangent", function)


@lru_cache(maxsize=512)
def _pullback(
    fibrewise: Fibrewise,
    wanted: tuple[int, ...],
    forms: tuple,
    static: tuple,
    num_results: int,
    like: int,
) -> Fibrewise:
    """The transpose in the operands `wanted`; those that are known come first, then cotangents.

    Args:
        fibrewise: of which.
        wanted: which of its operands.
        forms: of these: whether they are on the grid, their size along the axis or their shape, and
            their precision.
        static: settings of the function.
        num_results: of the function.
        like: which of the operands here is on the grid: of the other axes a device may have a part.
    """

    def function(axis: int, *arrays: Array) -> list[Array]:
        targets = []
        for is_grid, size, dtype in forms:
            shape = size
            if is_grid:
                shape = [*arrays[like].shape]
                shape[axis] = size
            targets.append(jax.ShapeDtypeStruct(tuple(shape), dtype))

        def forward(*some: Array) -> list[Array]:
            places, known = dict(zip(wanted, some, strict=True)), iter(arrays)
            count = len(arrays) + len(wanted) - num_results
            full = [places[i] if i in places else next(known) for i in range(count)]
            return list(fibrewise.function(axis, *full, **dict(static)))

        return list(jax.linear_transpose(forward, *targets)(list(arrays[-num_results:])))

    return Fibrewise(f"{fibrewise.name}_transpose", function)


def shared_out(
    run: Callable, axis: int | None, operands: Any, *, batch: tuple, **params: Any
) -> list:
    """`run(axis, *operands)` as a call of which the partitioner gives every device its part."""
    found = jax.eval_shape(partial(run, axis), *operands)
    every = tuple(reversed(range(len(batch))))
    forms = [
        Form(is_grid, tuple(k for k in every if batch[k][i] is not None), x.ndim)
        for i, (x, is_grid) in enumerate(zip(operands, params["are_grids"], strict=True))
    ]
    results = [
        Form(is_grid, every, x.ndim) for x, is_grid in zip(found, params["results"], strict=True)
    ]
    return list(partitioned(run, axis, forms, results)(*operands))


def _called(axis: int, *operands: Array, tree: Any, method: Callable, **options: Any) -> list:
    *leaves, x = operands
    return [method(jax.tree.unflatten(tree, leaves), x, axis, **options)]


_of_held = Fibrewise("kronax_of_fibres", _called)


def on_fibres(method: Callable, held: Any, x: Array, axis: int, **options: Any) -> Array:
    """`method(held, x, axis, **options)`, for whole fibres of `x` along `axis < 0`.

    Args:
        method: a function of a module, whose result is on the grid.
        held: a pytree of small arrays.
        x: on the grid.
        axis: along which it works.
        options: hashable.
    """
    if jax.device_count() == 1:
        return method(held, x, axis, **options)
    leaves, tree = jax.tree.flatten(held)
    return _of_held(axis, *leaves, x, grids=(len(leaves),), tree=tree, method=method, **options)[0]


def take_along(x: Array, places: Array, axis: int) -> Array:
    """`jnp.take(x, places, axis)` for `axis < 0` of an array on the grid."""
    return on_fibres(_taken, places, x, axis)


def _taken(places: Array, x: Array, axis: int) -> Array:
    return jnp.take(x, places, axis=axis)


class _SharedLike(Fibrewise):
    """The identity in its first operand."""

    def __init__(self) -> None:
        super().__init__("kronax_shared_like", lambda axis, x, like: [x])

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        moved = ad.instantiate_zeros(tangents[0])
        values = self._bind(*primals, **params)
        return values, self._bind(moved, primals[1], **params)

    def _transpose(self, cotangents: Any, *flat: Any, **params: Any) -> Any:
        levels = params["batch"]
        every = {**params, "batch": tuple((0, like) for _, like in levels)}
        (found,) = self._bind(ad.instantiate_zeros(cotangents[0]), flat[1], **every)
        alone = tuple(k for k, level in enumerate(reversed(levels)) if level[0] is None)
        return [jnp.sum(found, axis=alone) if alone else found, None]


_shared_like = _SharedLike()


def shared_like(x: Array, like: Array) -> Array:
    """`x`, shared out over devices as `like` is, whose last axes are those of `x`, of any sizes.

    For what does not come from data on the grid, and would be whole on every device.
    """
    return _shared_like(None, x, jax.lax.stop_gradient(like), grids=(0, 1))[0]
