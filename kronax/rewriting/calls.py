"""Rules of library functions as a whole, where their primitives say too little."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from kronax.linalg.functions.logdet import logdet
from kronax.linalg.operators.kronecker import Kronecker
from kronax.rewriting.interpreter import Run, closed_of
from kronax.rewriting.roots import asked, note_solve
from kronax.rewriting.values.determinants import general_slogdet
from kronax.rewriting.values.matrices import operator_of
from kronax.rewriting.values.tensors import Tensor


def _slogdet(run: Run, eqn: Any, *values: Any) -> Any:
    """Sign and logarithm of the determinant."""
    matrix = values[0]
    if len(values) != 1 or not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if str(body) not in _references(matrix.shape, matrix.dtype):
        return None
    op = asked(operator_of, matrix)
    if isinstance(op, Kronecker):
        value, sign = asked(logdet, op), jnp.ones((), op.dtype)
        size = matrix.shape[-1]
        for factor in op.factors:
            # An even power of a sign that is not zero is one.
            own = jnp.linalg.slogdet(factor.to_dense())[0]
            sign = sign * own ** (1 if size // factor.size % 2 else 2)
    else:
        sign, value = asked(general_slogdet, op)
    note_solve(run, matrix, op, "kx.logdet")
    shape = eqn.outvars[0].aval.shape
    return [jnp.broadcast_to(sign, shape), jnp.broadcast_to(value, shape)]


@lru_cache(maxsize=64)
def _references(shape: tuple[int, ...], dtype: Any) -> tuple[str, ...]:
    """The programs of JAX's own function of that name, for a batch and mapped over one."""
    mapped: Any = jnp.linalg.slogdet
    found: list[str] = []
    for function in (jnp.linalg.slogdet, None)[: len(shape) - 1]:
        if function is None:
            for _ in shape[:-2]:
                mapped = jax.vmap(mapped)
        closed = jax.make_jaxpr(function or mapped)(jax.ShapeDtypeStruct(shape, dtype))
        found += map(str, _bodies(closed.jaxpr, len(closed.jaxpr.outvars)))
    return tuple(found)


def _bodies(jaxpr: Any, results: int) -> Iterator[Any]:
    """The bodies of a call that is all there is, and of the call inside of it."""
    if len(jaxpr.eqns) != 1 or len(jaxpr.eqns[0].outvars) != results:
        return
    params = jaxpr.eqns[0].params
    body = params.get("jaxpr", params.get("call_jaxpr"))
    if body is not None:
        yield body
        yield from _bodies(closed_of(body).jaxpr, results)


CALL_RULES: dict[str, Any] = {"call:slogdet": _slogdet, "call:_slogdet_lu": _slogdet}
