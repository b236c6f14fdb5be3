"""What eight virtual devices compute and plan: `python -m tests.devices` answers line by line."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from math import prod
from tempfile import TemporaryDirectory
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import kronax as kx
from kronax.fitting import driver

GRID = (16, 12)
LARGE = (64, 48, 40)
BATCH = 16
UNEVEN = (64, 32)
SOLID = (32, 24, 16)
SETS = (8, 8, 6)
COUNTS = np.round(np.exp(np.random.default_rng(0).normal(size=(4, *SETS[1:]))))
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


def likelihood(gp: kx.GridGP, y: Any) -> Any:
    """Value and gradient, in parameters and data."""

    def value(kernels: Any, y: Any) -> Any:
        return jnp.sum(eqx.tree_at(lambda gp: gp.kernels, gp, kernels).log_marginal_likelihood(y))

    return jax.value_and_grad(value, (0, 1))(gp.kernels, y)


def counted(shape: tuple[int, ...]) -> kx.GridGP:
    """Counts, whose data sets have sites of their own."""
    gp = model(shape)
    return kx.GridGP(gp.kernels, gp.axes, likelihood=kx.Poisson())


def uneven(shape: tuple[int, ...] = UNEVEN) -> kx.GridGP:
    """Gaps, by iterations whose box and probes are small beside the grid."""
    gp, few = model(shape), kx.Iteration(box_size=16, num_probes=4, num_draws=8)
    observed = np.random.default_rng(1).uniform(size=shape) > 0.2
    options = {"observed": observed, "gaps": "iterative", "iteration": few}
    return kx.GridGP(gp.kernels, gp.axes, 0.1, **options)


def of_posterior(gp: kx.GridGP, y: Any) -> Any:
    """Mean, variance, a draw and leave-one-out."""
    post = gp.condition(y)
    left_out = post.leave_one_out()
    draw = post.sample(jax.random.key(0))
    return post.mean(), post.variance(), draw, left_out.mean, left_out.variance


def ahead(gp: kx.GridGP, y: Any) -> Any:
    """On new coordinates."""
    post, new = gp.condition(y), (NEW, None)
    return post.mean(axes=new), post.variance(axes=new), post.sample(jax.random.key(0), axes=new)


# By name: a model, a function of it and data, the data, and over what they are shared out.
CASES: dict[str, tuple[Callable, Callable, np.ndarray, P]] = {
    "sets of counts": (
        lambda: counted(SETS[1:]),
        likelihood,
        np.round(np.exp(data(*SETS))),
        P(("a", "b")),
    ),
    "a grid of counts": (
        lambda: counted(GRID),
        lambda gp, y: (likelihood(gp, y), of_posterior(gp, y)),
        np.round(np.exp(data(*GRID))),
        P("a", "b"),
    ),
    "a mean by iterations": (
        lambda: uneven(SOLID),
        lambda gp, y: gp.condition(y).mean(),
        data(*SOLID),
        P("a", None, "b"),
    ),
    "iterations": (uneven, likelihood, data(*UNEVEN), P("a", "b")),
    "a posterior by iterations": (uneven, of_posterior, data(*UNEVEN), P("a", "b")),
    "new places by iterations": (uneven, ahead, data(*UNEVEN), P("a", "b")),
    "new places": (lambda: model(GRID), ahead, data(*GRID), P("a", "b")),
}


def of_case(name: str) -> dict[str, Any]:
    """Numbers of a case on eight devices and on one, what these send, and what each holds."""
    build, function, y, spec = CASES[name]
    gp = build()
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    shared = jax.device_put(y, NamedSharding(mesh, spec))
    call = jax.jit(lambda gp, y: function(gp, y))
    eight, one = (call.lower(gp, x).compile() for x in (shared, y))
    return {
        "numbers": [told(x) for x in jax.tree.leaves(eight(gp, shared))],
        "alone": [np.asarray(x).tolist() for x in jax.tree.leaves(one(gp, y))],
        "communicated": communicated(eight),
        "eight": planned(eight),
        "one": planned(one),
    }


def of_fits() -> dict[str, Any]:
    """Independent fits of data sets, and what a step of them sends."""
    mesh = Mesh(np.array(jax.devices()), ("a",))
    y = jax.device_put(data(*SETS), NamedSharding(mesh, P("a")))
    programs, advance = [], driver.advance

    def watched(*given: Any) -> Any:
        programs.append(advance.lower(*given).compile())
        return programs[-1](*given)

    driver.advance = watched
    try:
        fit = kx.fit(model(SETS[1:]), y, independent=True, num_steps=3, progress=False)
    finally:
        driver.advance = advance
    sent = [communicated(program.compiled) for program in programs]
    return {"losses": np.asarray(fit.losses).tolist(), "communicated": sent}


def of_posteriors() -> dict[str, Any]:
    """Posteriors of data sets with a likelihood, each with its own sites on its two devices."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    y = jax.device_put(COUNTS, NamedSharding(mesh, P("a", "b")))
    posts = counted(SETS[1:]).condition(y)
    found = of_counts(posts, y)
    with TemporaryDirectory() as folder:
        kx.save(f"{folder}/posts", posts)
        loaded = kx.load(f"{folder}/posts")
    return {
        "numbers": [np.asarray(x).tolist() for x in found],
        "is shared": [x.sharding.is_equivalent_to(y.sharding, x.ndim) for x in found],
        "devices": [sorted(d.id for d in x.devices()) for post in posts for x in leaves_of(post)],
        "score": told(posts.leave_one_out().log_score),
        "chosen": np.asarray(posts[1:3].mean()).tolist(),
        "loaded": np.asarray(loaded.mean()).tolist(),
    }


def leaves_of(post: Any) -> list[Any]:
    """The arrays that grow with the data."""
    return [post.data, post.sites.mean, post.weights, post.mean()]


def of_counts(posts: Any, y: Any) -> list[Any]:
    """What all of them answer, each shared out as the data are."""
    density = posts.log_prob(y, pointwise=True)
    return [posts.mean(), posts.variance(), posts.sample(jax.random.key(0)), density]


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


def printed(script: str) -> str:
    """What a script prints that is run as it stands, in the default precision."""
    with jax.enable_x64(False), redirect_stdout(StringIO()) as output:
        exec(script, {"__name__": "__main__"})
    return output.getvalue()


def answer(question: str) -> Any:
    """To the name of a case, or to a script."""
    others = {"": run, "fits": of_fits, "posteriors": of_posteriors}
    if question in others:
        return others[question]()
    return of_case(question) if question in CASES else printed(question)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
