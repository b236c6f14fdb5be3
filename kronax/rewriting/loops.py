"""Branches and loops: what is made in a body stays structured there, what is carried is formed."""

from typing import Any

import jax
from jax import lax

from kronax.rewriting.interpreter import Deferred, Run, closed_of, may_hold_product, unshared
from kronax.rewriting.report import DenseProductError, Log
from kronax.rewriting.values.tensors import Tensor


def _structured(values: Any) -> bool:
    return any(isinstance(v, Tensor | Deferred) for v in values)


def _cond(run: Run, eqn: Any, index: Any, *operands: Any) -> Any:
    branches = [closed_of(branch) for branch in eqn.params["branches"]]
    if eqn.params.get("branches_platforms") is not None:
        return _any_platform(run, eqn, branches, operands)
    if not _structured(operands) and not may_hold_product(eqn):
        return None
    place = run.here

    def one(branch: Any) -> Any:
        def body() -> list[Any]:
            results = run.evaluate(branch.jaxpr, branch.consts, unshared(operands))
            return [run.formed(r, place) for r in results]

        return body

    return list(lax.switch(run.plain(index), [one(branch) for branch in branches]))


def _any_platform(run: Run, eqn: Any, branches: Any, operands: Any) -> Any:
    """One that stays structured, of branches that are the same function on several platforms."""
    if not _structured(operands):
        return None
    place = run.here
    for branch in branches:
        trial = Run(Log(strict=True), run.rules, run.starters, run.same_draws)
        try:
            results = trial.evaluate(branch.jaxpr, branch.consts, operands, place)
        except DenseProductError:
            continue
        run.log.events += trial.log.events
        return results
    return None


def _scan(run: Run, eqn: Any, *values: Any) -> Any:
    if not _structured(values) and not may_hold_product(eqn):
        return None
    params, place = eqn.params, run.here
    body = closed_of(params["jaxpr"])
    num_consts, carried = _counts(params, len(values))
    consts = values[:num_consts]
    rest = [run.formed(v, place) for v in values[num_consts:]]

    def step(carry: Any, x: Any) -> Any:
        results = run.evaluate(body.jaxpr, body.consts, (*unshared(consts), *carry, *x))
        arrays = [run.formed(r, place) for r in results]
        return tuple(arrays[:carried]), tuple(arrays[carried:])

    last, stacked = lax.scan(
        step,
        tuple(rest[:carried]),
        tuple(rest[carried:]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*last, *stacked]


def _counts(params: Any, num_values: int) -> tuple[int, int]:
    """How many values of a scan are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # Since JAX 0.12 the three kinds of values are told by a tree of three.
    kinds = params["ft_in"].update(range(num_values)).unpack()
    consts, carried, _ = (len(list(kind)) for kind in kinds)
    return consts, carried


def _while(run: Run, eqn: Any, *values: Any) -> Any:
    if not _structured(values) and not may_hold_product(eqn):
        return None
    params, place = eqn.params, run.here
    first, second = params["cond_nconsts"], params["body_nconsts"]
    of_condition, of_body = values[:first], values[first : first + second]
    start = tuple(run.formed(v, place) for v in values[first + second :])
    condition, body = closed_of(params["cond_jaxpr"]), closed_of(params["body_jaxpr"])

    def holds(carry: Any) -> jax.Array:
        (result,) = run.evaluate(
            condition.jaxpr, condition.consts, (*unshared(of_condition), *carry)
        )
        return run.formed(result, place)

    def step(carry: Any) -> Any:
        results = run.evaluate(body.jaxpr, body.consts, (*unshared(of_body), *carry))
        return tuple(run.formed(r, place) for r in results)

    return list(lax.while_loop(holds, step, start))


LOOP_RULES: dict[str, Any] = {"cond": _cond, "scan": _scan, "while": _while}
