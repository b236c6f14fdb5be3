"""What eight virtual devices compute and plan, as one JSON object: `python -m tests.devices`."""

import json
import re
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import kronax as kx

GRID = (16, 12)
LARGE = (64, 48, 40)
BATCH = 16
NEW = np.linspace(1.1, 2.0, 8)
COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)


def model(shape: tuple[int, ...]) -> kx.GridGP:
    """Regular, irregular and again irregular axes."""
    kernels = (kx.RBF(0.3), kx.Matern32(0.5), kx.Matern12(0.4))[: len(shape)]
    return kx.GridGP(
        kernels, [np.linspace(0, 1, n) ** (1 + i / 9) for i, n in enumerate(shape)], 0.1
    )


def data(*shape: int) -> np.ndarray:
    """The same everywhere."""
    return np.random.default_rng(0).normal(size=shape)


def communicated(compiled: Any) -> dict[str, list[int]]:
    """Per kind of collective how many numbers each of them gives a device."""
    found: dict[str, list[int]] = {}
    for line in compiled.as_text().splitlines():
        if match := COLLECTIVE.search(line):
            sizes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            count = sum(prod(int(n) for n in s.split(",") if n) for s in sizes)
            found.setdefault(match[2], []).append(count)
    return found


def planned(compiled: Any) -> int:
    """Bytes per device: what comes, what goes, and what is held in between."""
    plan = compiled.memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes


def everything(gp: kx.GridGP, y: Any) -> dict[str, Any]:
    """Likelihood, derivatives, prediction, draws and leave-one-out of a grid."""
    slope = jax.grad(
        lambda noise, y: kx.replace(gp, {"noise": noise}).log_marginal_likelihood(y), (0, 1)
    )
    post = gp.condition(y)
    left_out = post.leave_one_out()
    return {
        "value": gp.log_marginal_likelihood(y),
        "slopes": slope(gp.noise, y),
        "mean": post.mean(),
        "variance": post.variance(),
        "draw": post.sample(jax.random.key(0)),
        "ahead": post.mean(axes=(NEW, None)),
        "left out": (left_out.mean, left_out.variance),
    }


def of_batch(gp: kx.GridGP, y: Any) -> dict[str, Any]:
    """The same of data sets."""
    post = gp.condition(y)
    return {
        "value": gp.log_marginal_likelihood(y),
        "slope": jax.grad(lambda y: gp.log_marginal_likelihood(y).sum())(y),
        "mean": post.mean(),
        "draw": post.sample(jax.random.key(0)),
    }


def told(result: Any) -> Any:
    """Numbers and how they are shared out."""
    return jax.tree.map(lambda x: [np.asarray(x).tolist(), str(x.sharding.spec)], result)


def run() -> dict[str, Any]:
    """All figures."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    gp = model(GRID)
    y = jax.device_put(data(*GRID), NamedSharding(mesh, P("a", "b")))
    grid = jax.jit(lambda y: everything(gp, y)).lower(y).compile()
    sets = jax.device_put(data(BATCH, *GRID), NamedSharding(mesh, P(("a", "b"))))
    batch = jax.jit(lambda y: of_batch(gp, y)).lower(sets).compile()
    explicit = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Explicit,))
    eager = gp.log_marginal_likelihood(
        jax.device_put(data(BATCH, *GRID), NamedSharding(explicit, P("a")))
    )
    return {
        "grid": told(grid(y)),
        "grid communicated": communicated(grid),
        "batch": told(batch(sets)),
        "batch communicated": communicated(batch),
        "eager": told(eager),
        **plans(mesh),
    }


def plans(mesh: Mesh) -> dict[str, Any]:
    """Memory and communication of value and gradient on a larger grid, by XLA's plan."""
    gp = model(LARGE)
    function = jax.jit(
        jax.value_and_grad(lambda n, y: kx.replace(gp, {"noise": n}).log_marginal_likelihood(y))
    )
    whole = jax.ShapeDtypeStruct(LARGE, jnp.float64)
    spread = jax.ShapeDtypeStruct(
        LARGE, jnp.float64, sharding=NamedSharding(mesh, P("a", None, "b"))
    )
    one, eight = (function.lower(gp.noise, y).compile() for y in (whole, spread))
    ahead = jax.jit(lambda y: gp.condition(y).mean(axes=(NEW, None, None))).lower(spread).compile()
    return {
        "one": planned(one),
        "eight": planned(eight),
        "large communicated": communicated(eight),
        "ahead communicated": communicated(ahead),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(run()))
