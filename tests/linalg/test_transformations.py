"""Values, gradients and Hessians stay right inside every transformation and control flow.

JAX 0.10 loses derivative rules inside loops, silently; nothing here may.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.cases import CASES
from tests.everyday import everyday, full
from tests.linalg.contracted import (
    FUSED,
    QUICK,
    SECOND_ORDER,
    expected,
    outputs,
    three_orders,
    weights_of,
)
from tests.tolerances import assert_close


def in_scan(f, theta):
    return lax.scan(lambda carry, t: (carry + f(t), None), 0.0, jnp.stack([theta, theta]))[0] / 2


def in_map(f, theta):
    return jnp.sum(lax.map(f, jnp.stack([theta, theta]))) / 2


def in_fori_loop(f, theta):
    return lax.fori_loop(0, 2, lambda _, total: total + f(theta), 0.0) / 2


def in_cond(f, theta):
    return lax.cond(jnp.sum(theta) < 1, f, lambda t: jnp.sum(t), theta)


def in_vmap(f, theta):
    return jnp.sum(jax.vmap(f)(jnp.stack([theta, theta]))) / 2


def in_scan_of_vmap(f, theta):
    return in_scan(partial(in_vmap, f), theta)


def in_cond_of_checkpoint(f, theta):
    return in_cond(partial(in_checkpoint, f), theta)


def in_jit(f, theta):
    return jax.jit(f)(theta)


def in_nested_jit(f, theta):
    return jax.jit(lambda t: jax.jit(f)(t) * 1.0)(theta)


def in_checkpoint(f, theta):
    return jax.checkpoint(f)(theta)


WRAPPERS = {
    wrapper.__name__: wrapper
    for wrapper in (
        in_jit,
        in_nested_jit,
        in_vmap,
        in_scan,
        in_map,
        in_fori_loop,
        in_cond,
        in_checkpoint,
        in_scan_of_vmap,
        in_cond_of_checkpoint,
    )
}
LOOPS = ("in_scan", "in_map", "in_checkpoint")


@cache
def total_of(name, names):
    """The weighted sum of functions, as a function of `theta`, and its derivatives."""
    case = CASES[name]
    weights = weights_of(case)

    def total(theta):
        return sum(outputs(case.layout, names, case.leaves, weights, theta).values())

    truth = [sum(expected(case, n)[order] for n in names) for order in range(3)]
    return total, truth, case.theta


ALL = (*SECOND_ORDER, "normal_logpdf")
REPEATED = "one axis, repeated eigenvalues"


# The density is the primitive of its two parts: they are taken alone where rules get lost.
INSIDE = [
    *(
        (REPEATED, ALL if wrapper in LOOPS else FUSED, wrapper, "forward over reverse")
        for wrapper in WRAPPERS
    ),
    (REPEATED, FUSED, "in_scan", "reverse over reverse"),
    *(("exchangeable, rho = 0", FUSED, wrapper, "reverse over reverse") for wrapper in LOOPS),
    ("noise-free, one axis", SECOND_ORDER, "in_scan", "reverse over reverse"),
]
# A scan of a `vmap` holds both, as a condition does of a checkpoint, and every compiled function
# holds a `jit`; maps and counted loops are scans.
EVERYDAY = (
    (REPEATED, "in_cond_of_checkpoint", "forward over reverse"),
    (REPEATED, "in_scan_of_vmap", "forward over reverse"),
    (REPEATED, "in_scan", "reverse over reverse"),
    ("noise-free, one axis", "in_scan", "reverse over reverse"),
)


@pytest.mark.parametrize(
    ("name", "names", "wrapper", "modes"),
    everyday(INSIDE, [case for case in INSIDE if (case[0], *case[2:]) in EVERYDAY]),
)
def test_inside(name, names, wrapper, modes):
    total, truth, theta = total_of(name, names)
    wrapped = partial(WRAPPERS[wrapper], total)
    all_orders = jax.jit(partial(three_orders, modes, wrapped), compiler_options=QUICK)
    for order, (ours, expected_order) in enumerate(zip(all_orders(theta), truth, strict=True)):
        assert_close(ours, np.asarray(expected_order), order)


@pytest.mark.parametrize("name", [full("exchangeable, rho = 0"), "full Kronecker noise"])
def test_vmap_over_different_operators(name):
    """A batch of operators by `vmap`, each against the same operator alone."""
    total, _, theta = total_of(name, FUSED)
    gradient = jax.grad(total)
    thetas = 0.01 * np.abs(np.random.default_rng(2).normal(size=(3, theta.size)))
    function = jax.jit(gradient, compiler_options=QUICK)
    together = jax.jit(jax.vmap(gradient), compiler_options=QUICK)(thetas)
    alone = np.stack([function(t) for t in thetas])
    assert np.ptp(alone, axis=0).max() > 1e-3
    assert_close(together, alone, 1)
