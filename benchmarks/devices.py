"""W13: what several devices hold and send each other, by the compiled programs' own figures.

Nothing is run: value and gradient of the marginal likelihood, and condition with the mean, are
compiled for arrays that are not there, on 1, 8 and 64 virtual devices. Bytes are per device. What
is sent is the sum of the results of all collectives, of which a device keeps its own part.
"""

import json
import os
import re
import subprocess
import sys
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kronax as kx
from benchmarks.markdown import grid, table
from benchmarks.measure import ROOT, save

SHAPES = [(1024, 320, 320), (1024, 1000, 960), (2048, 2560, 1920)]
QUICK_SHAPES = [(64, 48, 40)]
NUM_DEVICES = (1, 8, 64)
COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
SIZES = {"f64": 8, "f32": 4, "u32": 4, "s32": 4, "pred": 1, "u8": 1, "u64": 8, "s64": 8}


def model(shape: tuple[int, ...]) -> kx.GridGP:
    """In float64, on axes without structure: every matrix is dense."""
    axes = [np.linspace(0, 1, n) ** 1.1 for n in shape]
    return kx.GridGP((kx.Matern32(0.3), kx.RBF(0.2), kx.Matern52(0.2)), axes, noise=0.1)


def likelihood(gp: kx.GridGP, y: Any) -> Any:
    """Value, and gradient in every parameter."""
    return jax.value_and_grad(lambda gp: gp.log_marginal_likelihood(y))(gp)


def mean(gp: kx.GridGP, y: Any) -> Any:
    """Of the posterior."""
    return gp.condition(y).mean()


def sent(compiled: Any) -> dict[str, int]:
    """Bytes per kind of collective, of one device."""
    total: dict[str, int] = {}
    for line in compiled.as_text().splitlines():
        if match := COLLECTIVE.search(line):
            parts = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            count = sum(SIZES[k] * prod(int(n) for n in s.split(",") if n) for k, s in parts)
            total[match[2]] = total.get(match[2], 0) + count
    return total


def plan(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row per program, for all devices of this process and data shared out along one axis."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    sharding = NamedSharding(mesh, PartitionSpec("devices")) if mesh.size > 1 else None
    y = jax.ShapeDtypeStruct(shape, jnp.float64, sharding=sharding)
    gp, rows = model(shape), []
    for function in (likelihood, mean):
        compiled = jax.jit(function).lower(gp, y).compile()
        held = compiled.memory_analysis()
        rows.append(
            {
                "shape": list(shape),
                "devices": mesh.size,
                "program": function.__name__,
                "data_bytes": held.argument_size_in_bytes,
                "result_bytes": held.output_size_in_bytes,
                "between_bytes": held.temp_size_in_bytes,
                "sent_bytes": sent(compiled),
            }
        )
    return rows


def devices_table(rows: list[dict[str, Any]]) -> str:
    """What a device holds and is sent, with the data of the whole grid beside it."""
    body = []
    for row in rows:
        whole = 8 * prod(row["shape"])
        held = sum(row[f"{part}_bytes"] for part in ("data", "result", "between"))
        moved = row["sent_bytes"]
        body.append(
            [
                f"{prod(row['shape']):,}",
                grid(row),
                f"{whole / 2**30:.3g}",
                "value and gradient" if row["program"] == "likelihood" else "posterior mean",
                str(row["devices"]),
                f"{held / 2**30:.3g}",
                f"{moved.get('all-to-all', 0) / 2**30:.3g}",
                f"{sum(n for kind, n in moved.items() if kind != 'all-to-all') / 2**30:.2g}",
            ]
        )
    header = ["cells", "grid", "data, GiB", "", "devices", "held by each, GiB"]
    return table([*header, "all-to-all", "other collectives"], body)


def run(quick: bool) -> None:
    """Compile every size for every number of devices, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        for count in NUM_DEVICES[:2] if quick else NUM_DEVICES:
            flags = f"--xla_force_host_platform_device_count={count}"
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.devices", json.dumps(shape)],
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            rows += json.loads(done.stdout.splitlines()[-1])
            for row in rows[-2:]:
                held = sum(row[f"{part}_bytes"] for part in ("data", "result", "between"))
                moved = sum(row["sent_bytes"].values())
                print(
                    f"{prod(shape):,} cells, {count} devices, {row['program']}: "
                    f"{held / 2**30:.3g} GiB held, {moved / 2**30:.3g} GiB sent",
                    flush=True,
                )
            save("devices", rows, quick)


if __name__ == "__main__":
    print(json.dumps(plan(tuple(json.loads(sys.argv[1])))))
