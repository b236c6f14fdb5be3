"""The primitive that carries a derivative rule.

`jax.custom_jvp` is not enough here: JAX 0.10.2 loses an inner rule when reverse-mode partial
evaluation passes through `scan` or `map`, which gives silently wrong Hessians. A real primitive
keeps its rule under every transformation, on every JAX version.

Two kinds are enough. A `RulePrimitive` is a function whose derivative is written by hand. A
`LinearPrimitive` is the last link of such a chain: linear in its tangents, transposable, and it
refuses to be differentiated in its coefficients, because that order has no rule.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from kronax.linalg.devices.partition import devices_wanted


class DerivativeOrderError(NotImplementedError):
    """A derivative of an order for which no exact rule exists was asked for."""


def nested_vmap(function: Callable, batch: tuple[tuple[int | None, ...], ...]) -> Callable:
    """`function` of flat arguments, mapped once per entry of `batch`, the innermost first."""
    for in_axes in batch:
        function = jax.vmap(function, in_axes=in_axes)
    return function


class Batched:
    """What all kinds share: evaluation, shapes, lowering and the stack of mapped axes.

    The flat operands of the underlying primitive are mapped by the static parameter `batch`, one
    tuple of `in_axes` per level of `vmap`; so a batched call is the same primitive again, and an
    operand without a batch is never copied along it.
    """

    def __init__(self, name: str):
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True
        self.primitive.def_impl(self._once)
        self.primitive.def_abstract_eval(self._abstract)
        mlir.register_lowering(self.primitive, mlir.lower_fun(self._once, multiple_results=True))
        batching.primitive_batchers[self.primitive] = self._batch_rule
        ad.primitive_jvps[self.primitive] = self._jvp

    def _evaluate(self, *flat, **params) -> list:
        raise NotImplementedError

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        raise NotImplementedError

    def _once(self, *flat, **params):
        return self._compiled(params)(*flat)

    def _compiled(self, params: dict) -> Any:
        """`_evaluate`, traced once for all that ask for it: shapes, values and lowering."""
        return _compiled(self._evaluate, tuple(sorted(params.items())))

    def _abstract(self, *avals, **params):
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        outputs = self._compiled(params).eval_shape(*shapes)
        return [jax.core.ShapedArray(out.shape, out.dtype) for out in outputs]

    def _batch_rule(self, flat, dims, *, batch, **params):
        size = next(x.shape[d] for x, d in zip(flat, dims, strict=True) if d is not None)
        flat = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(flat, dims, strict=True)]
        in_axes = [None if d is None else 0 for d in dims]
        flat, in_axes = self._map_operands(flat, in_axes, size, **params)
        outputs = self.primitive.bind(*flat, batch=(*batch, tuple(in_axes)), **params)
        return outputs, [0] * len(outputs)

    def _map_operands(self, flat, in_axes, size, **params):
        return flat, in_axes


@lru_cache(maxsize=512)
def _compiled(evaluate: Callable, params: tuple) -> Callable:
    return jax.jit(partial(evaluate, **dict(params)))


@lru_cache(maxsize=1024)
def _of_leaves(function: Callable, tree: Any, static: tuple) -> Any:
    """`function` of the leaves of its two arguments; JAX traces it once for one kind of leaves."""

    def run(*leaves):
        return function(*jax.tree.unflatten(tree, leaves), **dict(static))

    return jax.jit(run)


class RulePrimitive(Batched):
    """A function with a derivative rule that every transformation keeps.

    Args:
        name: shown in jaxprs.
        function: `function(operands, constants, **static)` returning a pytree of arrays.
        derivative: `derivative(operands, constants, tangents, **static)` returning the tangent of
            `function`'s output. `tangents` is a flat list, one entry per leaf of `operands`, with
            `None` where an operand is not differentiated. It must be linear in the tangents, with
            coefficients that are themselves differentiable (or refuse to be).

    `constants` are functions of the operands whose derivative the rule already contains (an
    eigendecomposition, say): their own tangents are ignored.
    """

    def __init__(self, name: str, function: Callable, derivative: Callable):
        super().__init__(name)
        self.function = function
        self.derivative = derivative

    def __call__(self, operands: Any, constants: Any = (), **static: Any) -> Any:
        """Evaluate on pytrees of arrays; `static` must be hashable."""
        flat, tree = jax.tree.flatten((operands, constants))
        num_operands = len(jax.tree.leaves(operands))
        settings = tuple(sorted(static.items()))
        out_tree = jax.tree.structure(_of_leaves(self.function, tree, settings).eval_shape(*flat))
        outputs = self.primitive.bind(
            *flat,
            tree=tree,
            num_operands=num_operands,
            static=settings,
            batch=(),
            devices=devices_wanted(),
        )
        return jax.tree.unflatten(out_tree, outputs)

    def _evaluate(self, *flat, tree, num_operands, static, batch, devices):
        return jax.tree.leaves(nested_vmap(_of_leaves(self.function, tree, static), batch)(*flat))

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        num_operands, batch = params["num_operands"], params["batch"]
        moving = [i for i, t in enumerate(tangents[:num_operands]) if not isinstance(t, ad.Zero)]
        values = self.primitive.bind(*primals, **params)
        if not moving:
            return values, [ad.Zero(jax.typeof(v).to_tangent_aval()) for v in values]

        def run(*leaves):
            leaves, moved = leaves[: len(primals)], leaves[len(primals) :]
            operands, constants = jax.tree.unflatten(params["tree"], leaves)
            given: list = [None] * num_operands
            for i, tangent in zip(moving, moved, strict=True):
                given[i] = tangent
            return jax.tree.leaves(
                self.derivative(operands, constants, given, **dict(params["static"]))
            )

        stack = tuple((*level, *(level[i] for i in moving)) for level in batch)
        return values, nested_vmap(run, stack)(*primals, *(tangents[i] for i in moving))


class LinearPrimitive(Batched):
    """A function that is linear in its tangents; differentiating its coefficients raises.

    Args:
        name: shown in jaxprs.
        function: `function(coefficients, tangents, **static)`, linear in `tangents`, returning a
            pytree of arrays.
        what: what a further derivative would be of, for the error.
        checked: used in place of `function` where tangents are pushed forward: it may make the
            result NaN along tangents for which there is no derivative.
    """

    def __init__(self, name: str, function: Callable, what: str, checked: Callable | None = None):
        super().__init__(name)
        self.name = name
        self.function = function
        self.what = what
        self.checked = function if checked is None else checked
        ad.primitive_transposes[self.primitive] = self._transpose

    def __call__(self, coefficients: Any, tangents: Any, **static: Any) -> Any:
        """Evaluate on pytrees of arrays; `static` must be hashable."""
        flat, tree = jax.tree.flatten((coefficients, tangents))
        settings = tuple(sorted(static.items()))
        out_tree = jax.tree.structure(_of_leaves(self.function, tree, settings).eval_shape(*flat))
        outputs = self.primitive.bind(
            *flat,
            tree=tree,
            num_coefficients=len(jax.tree.leaves(coefficients)),
            static=settings,
            batch=(),
            devices=devices_wanted(),
        )
        return jax.tree.unflatten(out_tree, outputs)

    def _evaluate(self, *flat, **params):
        return self.applied(self.checked, *flat, **params)

    def applied(self, function, *flat, tree, num_coefficients, static, batch, devices):
        """`function` of flat arguments, which is `self.function` or `self.checked`."""
        return jax.tree.leaves(nested_vmap(_of_leaves(function, tree, static), batch)(*flat))

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> Any:
        num_coefficients = params["num_coefficients"]
        if any(not isinstance(t, ad.Zero) for t in tangents[:num_coefficients]):
            raise DerivativeOrderError(
                f"{self.what} has no exact derivative rule of this order; one order less is "
                "supported. Differentiate fewer times, or take the last order by finite "
                "differences of the exact derivative below it."
            )
        bind = partial(self.primitive.bind, **params)
        moving = [ad.instantiate_zeros(t) for t in tangents[num_coefficients:]]
        return bind(*primals), bind(*primals[:num_coefficients], *moving)

    def _transpose(self, cotangents, *flat, num_coefficients, **params):
        coefficients, tangents = flat[:num_coefficients], flat[num_coefficients:]
        avals = tuple((t.aval if ad.is_undefined_primal(t) else jax.typeof(t)) for t in tangents)
        shapes = tuple((aval.shape, aval.dtype) for aval in avals)
        settings = tuple(sorted({**params, "num_coefficients": num_coefficients}.items()))
        pull = _transposed(self, settings, shapes)
        pulled = pull(list(coefficients), [ad.instantiate_zeros(ct) for ct in cotangents])
        return [None] * num_coefficients + [
            ct if ad.is_undefined_primal(t) else None
            for t, ct in zip(tangents, pulled, strict=True)
        ]


@lru_cache(maxsize=512)
def _transposed(linear: LinearPrimitive, params: tuple, shapes: tuple) -> LinearPrimitive:
    """The transpose as a primitive of its own, so that it refuses a further order as well."""

    def function(coefficients, cotangents):
        def forward(*tangents):
            return linear.applied(linear.function, *coefficients, *tangents, **dict(params))

        targets = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
        return list(jax.linear_transpose(forward, *targets)(cotangents))

    return LinearPrimitive(f"{linear.name}_transpose", function, linear.what)


def by_gradient(gradient: RulePrimitive) -> Callable:
    """The derivative of a number whose gradient in the `needed` operands is a primitive too."""

    def derivative(operands: Any, constants: Any, tangents: list, **static: Any) -> Any:
        needed = tuple(t is not None for t in tangents)
        slopes = gradient(operands, constants, needed=needed, **static)
        moving = [t for t in tangents if t is not None]
        return sum(jnp.sum(g * t) for g, t in zip(slopes, moving, strict=True))

    return derivative


def by_product(product: LinearPrimitive) -> Callable:
    """The derivative of such a gradient, whose product with the `given` tangents is a primitive."""

    def derivative(operands: Any, constants: Any, tangents: list, **static: Any) -> Any:
        given = tuple(t is not None for t in tangents)
        moving = [t for t in tangents if t is not None]
        return product((operands, constants), moving, given=given, **static)

    return derivative


def gradient_along(
    function: Callable[..., Array],
    leaves: list[Array],
    moving: list[Array],
    *,
    given: tuple[bool, ...],
    needed: tuple[bool, ...],
) -> list[Array]:
    """The derivative of the gradient of `function(*leaves)` in the `needed` leaves.

    It is along `moving`, one tangent for every leaf that is `given` one.
    """
    inputs, outputs = ([k for k, is_one in enumerate(marks) if is_one] for marks in (given, needed))

    def put(places: list[int], values: Any, into: list[Array]) -> list[Array]:
        filled = list(into)
        for k, value in zip(places, values, strict=True):
            filled[k] = value
        return filled

    def slopes(*moved: Array) -> Any:
        here = put(inputs, moved, leaves)
        value = jax.grad(
            lambda *targets: function(*put(outputs, targets, here)),
            argnums=tuple(range(len(outputs))),
        )
        return list(value(*(here[k] for k in outputs)))

    return jax.jvp(slopes, [leaves[k] for k in inputs], moving)[1]


def by_surrogate(name: str, value: Callable, surrogate: Callable, what: str) -> RulePrimitive:
    """A primitive of values that were found, with the first derivative of another function.

    Args:
        name: of the primitive.
        value: `value(found)`.
        surrogate: `surrogate(*operands, found)`, of which the derivative in the operands counts.
        what: named where a second derivative is asked for.
    """

    def derivative(coefficients: Any, tangents: list) -> Any:
        operands, found = coefficients
        leaves, tree = jax.tree.flatten(operands)
        full = [
            jnp.zeros_like(x) if t is None else t for x, t in zip(leaves, tangents, strict=True)
        ]

        def moved(*leaves: Any) -> Any:
            return surrogate(*jax.tree.unflatten(tree, leaves), found)

        return jax.jvp(moved, tuple(leaves), tuple(full))[1]

    tangent = LinearPrimitive(f"{name}_tangent", derivative, what)
    return RulePrimitive(
        name,
        lambda operands, found: value(found),
        lambda operands, found, tangents: tangent((operands, found), tangents),
    )


def _same(like: Any, found: Any, tangents: list) -> Any:
    return tangents[0]


# `with_value(like, found)` is the array `found` with the derivatives of `like`: where the stable
# form of a value is not that of its derivative. Under jit `like` itself is never computed.
with_value = RulePrimitive("kronax_with_value", lambda like, found: found, _same)


def _once(operands: Any, constants: Any, tangents: list) -> Any:
    return _once_tangent(operands, tangents)


# `once_differentiable(x)` is `x`; what is computed from it refuses a second derivative in it.
_once_tangent = LinearPrimitive(
    "kronax_once_tangent", lambda operands, tangents: tangents[0], "The approximate evidence"
)
once_differentiable = RulePrimitive("kronax_once", lambda x, constants: x, _once)
