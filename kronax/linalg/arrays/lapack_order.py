"""Decompose batched factors one after another.

On CPU, JAX 0.10.2 hands the matrices of a batched decomposition to XLA's own thread pool and waits
for them there. Two such calls at once can use up the pool and wait for each other for ever. Single
matrices have no such problem, and two of them at once are faster than one after another; so the
order is enforced for batches only, those of an outer `vmap` included. Triangular solves have the
same problem, and no order that could be known here: a batch of them is solved matrix by matrix.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Result = TypeVar("Result")
HAS_DEADLOCK = jax.__version_info__ < (0, 12)


def matrix_by_matrix(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of arrays, which an outer `vmap` repeats in a loop where a batch could deadlock.

    It cannot be differentiated in reverse mode: for what a derivative rule contains.
    """
    in_a_loop = jax.custom_batching.sequential_vmap(function)

    @functools.wraps(function)
    def call(*arrays: Array) -> Array:
        # Asked at the call: to ask at an import would start the devices, which a user may still
        # have to configure.
        could_deadlock = HAS_DEADLOCK and jax.default_backend() == "cpu"
        return (in_a_loop if could_deadlock else function)(*arrays)

    return call


def in_sequence(
    function: Callable[[Any], Result], items: Iterable[Any], *, batched: bool
) -> list[Result]:
    """`[function(item) for item in items]`, each waiting for the one before where it is batched.

    Args:
        function: decomposes one pytree of arrays.
        items: what is decomposed.
        batched: the arrays have batch axes of their own.
    """
    results: list[Result] = []
    token = None
    for item in items:
        if token is not None:
            item = jax.tree.map(
                lambda x, t=token: _after(x, t, batched) if eqx.is_inexact_array(x) else x, item
            )
        results.append(function(item))
        leaves = [x for x in jax.tree.leaves(results[-1]) if eqx.is_inexact_array(x)]
        token = jax.lax.stop_gradient(leaves[0]) if leaves else token
    return results


def _after(x: Array, token: Array, batched: bool) -> Array:
    return _after_p.bind(x, token, batched=batched)


def _evaluate(x: Array, token: Array, *, batched: bool) -> Array:
    # Zero times the token is not simplified away (it might be NaN), so the order holds.
    return x + 0 * token.ravel()[0].astype(x.dtype) if batched else x


def _jvp(primals: Any, tangents: Any, *, batched: bool) -> Any:
    return _after_p.bind(*primals, batched=batched), tangents[0]


def _batch(operands: Any, dims: Any, *, batched: bool) -> Any:
    x, token = operands
    return _after_p.bind(x, token, batched=batched or dims[0] is not None), dims[0]


_after_p = Primitive("kronax_after")
_after_p.def_impl(lambda x, token, *, batched: _evaluate(x, token, batched=batched))
_after_p.def_abstract_eval(lambda x, token, *, batched: jax.core.ShapedArray(x.shape, x.dtype))
mlir.register_lowering(_after_p, mlir.lower_fun(_evaluate, multiple_results=False))
ad.primitive_jvps[_after_p] = _jvp
batching.primitive_batchers[_after_p] = _batch
