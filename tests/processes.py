"""A process that fits data which it shares with others: `python -m tests.processes …`."""

import json
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import kronax as kx

SHAPE = (8, 9)
BATCH = 4


def data() -> np.ndarray:
    """Data sets of which a process loads its part only."""
    return np.random.default_rng(0).normal(size=(BATCH, *SHAPE)).cumsum(-1)


def model() -> kx.GridGP:
    """The same in every process."""
    axes = [np.linspace(0, 1, n) ** 1.1 for n in SHAPE]
    return kx.GridGP((kx.Matern32(0.5), kx.RBF(0.4)), axes, noise=0.3)


def shared(values: np.ndarray, spec: PartitionSpec, mesh: jax.sharding.Mesh) -> jax.Array:
    """An array of which this process gives what its devices hold."""
    sharding = NamedSharding(mesh, spec)
    places = sharding.addressable_devices_indices_map(values.shape).values()
    rows = sorted({(i[0].start or 0, i[0].stop or len(values)) for i in places})
    local = values[rows[0][0] : rows[-1][1]]
    return jax.make_array_from_process_local_data(sharding, local, values.shape)


def numbers(num_steps: int, checkpoint: str | None) -> dict:
    """What is to be the same with any number of processes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("devices",))
    gp, key = model(), jax.random.key(1)
    y: Any = data()[0]
    if len(jax.devices()) > 1:
        y = shared(y, PartitionSpec("devices"), mesh)
    value = gp.log_marginal_likelihood(y)
    slope = jax.jit(jax.grad(lambda gp, y: gp.log_marginal_likelihood(y)))(gp, y)
    fit = kx.fit(gp, y, num_steps=num_steps, checkpoint=checkpoint, checkpoint_every=2)
    draw = gp.condition(y).sample(key)
    return {
        "value": float(value),
        "slope": [np.asarray(x).tolist() for x in jax.tree.leaves(slope)],
        "losses": fit.losses.tolist(),
        "draw": multihost_utils.process_allgather(draw, tiled=True).tolist(),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    process, count, port, what, path = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(
            f"localhost:{port}", int(count), int(process), heartbeat_timeout_seconds=10
        )
    if what == "numbers":
        print(json.dumps(numbers(4, path or None)))
    elif what == "continued":
        fit = kx.fit(model(), data()[0], num_steps=6, checkpoint=path)
        print(json.dumps({"losses": fit.losses.tolist()}))
    elif what == "killed":
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
        y = shared(data()[0], PartitionSpec("devices"), mesh)

        def stop(found: kx.FitResult) -> None:
            if int(process) == 1:
                os.kill(os.getpid(), 9)

        kx.fit(model(), y, num_steps=50, tolerance=0.0, callback=stop)
