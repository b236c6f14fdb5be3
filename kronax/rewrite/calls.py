"""Rules of library functions as a whole, where their primitives say too little."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from kronax.linalg.functions.logdet import logdet
from kronax.linalg.operators.kronecker import Kronecker
from kronax.rewrite.interpreter import Run
from kronax.rewrite.roots import asked, note_solve
from kronax.rewrite.values.matrices import operator_of
from kronax.rewrite.values.tensors import Tensor


def _slogdet(run: Run, eqn: Any, *values: Any) -> Any:
    """Sign and logarithm of the determinant."""
    matrix = values[0]
    if len(values) != 1 or not isinstance(matrix, Tensor) or not matrix.is_product:
        return None
    if str(eqn.params["jaxpr"]) not in _references(matrix.shape, matrix.dtype):
        return None
    op = asked(operator_of, matrix)
    value = asked(logdet, op)
    sign = jnp.ones((), op.dtype)
    if isinstance(op, Kronecker):
        size = matrix.shape[-1]
        for factor in op.factors:
            # An even power of a sign that is not zero is one.
            own = jnp.linalg.slogdet(factor.to_dense())[0]
            sign = sign * own ** (1 if size // factor.size % 2 else 2)
    note_solve(run, matrix, op, "kx.logdet")
    shape = eqn.outvars[0].aval.shape
    return [jnp.broadcast_to(sign, shape), jnp.broadcast_to(value, shape)]


@lru_cache(maxsize=64)
def _references(shape: tuple[int, ...], dtype: Any) -> tuple[str, ...]:
    """The programs of JAX's own function of that name, for a batch and mapped over one."""
    mapped: Any = jnp.linalg.slogdet
    found = []
    for function in (jnp.linalg.slogdet, None)[: len(shape) - 1]:
        if function is None:
            for _ in shape[:-2]:
                mapped = jax.vmap(mapped)
        closed = jax.make_jaxpr(function or mapped)(jax.ShapeDtypeStruct(shape, dtype))
        if len(closed.jaxpr.eqns) == 1:
            found.append(str(closed.jaxpr.eqns[0].params["jaxpr"]))
    return tuple(found)


CALL_RULES: dict[str, Any] = {"call:slogdet": _slogdet}
