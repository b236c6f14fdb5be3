"""A process that fits data which it shares with others: `python -m tests.processes …`."""

import json
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import kronax as kx

SHAPE = (8, 9)


def data() -> np.ndarray:
    """Of which a process loads its part only."""
    return np.random.default_rng(0).normal(size=SHAPE).cumsum(-1)


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


def counts() -> np.ndarray:
    """Two data sets."""
    return np.round(np.exp(np.random.default_rng(0).normal(size=(2, *SHAPE))))


def counted() -> kx.GridGP:
    """With sites of its own for each of them."""
    return kx.GridGP(model().kernels, model().axes, likelihood=kx.Poisson())


def posteriors() -> dict:
    """Each in the process that has its data, over the devices there."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("sets", "rows"))
    y = shared(counts(), PartitionSpec("sets", "rows"), mesh)
    posts = counted().condition(y)
    try:
        other = str(posts[1 - jax.process_index()])
    except ValueError as error:
        other = str(error)
    mean = multihost_utils.process_allgather(posts.mean(), tiled=True)
    return {"mean": mean.tolist(), "other": other}


def numbers(num_steps: int, checkpoint: str) -> dict:
    """A fit and a draw, to be the same with any number of processes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    y = shared(data(), PartitionSpec("devices"), mesh)
    fit = kx.fit(model(), y, num_steps=num_steps, checkpoint=checkpoint, checkpoint_every=2)
    # One that has converged is looked at once more.
    ended = kx.fit(kx.replace(model(), {"noise": 1e-5}), y, num_steps=4, tolerance=1e9)
    draw = model().condition(y).sample(jax.random.key(1))
    return {
        "losses": fit.losses.tolist(),
        "norms": fit.gradient_norms.tolist(),
        "converged": ended.converged or "noise" in ended.reason,
        "draw": multihost_utils.process_allgather(draw, tiled=True).tolist(),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    process, count, port, what, path = sys.argv[1:]
    jax.distributed.initialize(
        f"localhost:{port}", int(count), int(process), heartbeat_timeout_seconds=10
    )
    if what == "numbers":
        print(json.dumps(numbers(4, path)))
    elif what == "posteriors":
        print(json.dumps(posteriors()))
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
        y = shared(data(), PartitionSpec("devices"), mesh)
        while True:
            print(float(model().log_marginal_likelihood(y)), flush=True)
            if int(process) == 1:
                os.kill(os.getpid(), 9)
