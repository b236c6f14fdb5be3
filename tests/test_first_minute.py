"""What a fresh process does before it computes anything: imports, and reading compiled programs."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import jax
import kronax as kx
jax.config.update("jax_num_cpu_devices", 2)  # raises where the import has started the devices
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
import numpy as np
x, z = np.linspace(0, 1, 20), np.array([0.0, 0.3, 0.4, 0.9])
y = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.2)), (x, z), noise=np.float32(0.1))
fitted = kx.fit(gp, y, num_steps=3, progress=False).model
post = fitted.condition(y)
found = [fitted.log_marginal_likelihood(y).item(), post.mean([x + 0.01, None]).sum().item()]
found.append(post.variance().sum().item())
cache = "/jax/compilation_cache/cache_"
print(json.dumps([found, events.count(cache + "hits"), events.count(cache + "misses")]))
"""


@pytest.mark.ci
def test_a_second_process_finds_its_programs_in_the_cache(tmp_path):
    # The settings of this test alone.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERSIST"))}
    (first, hits, misses), (second, later_hits, later_misses) = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", SCRIPT, str(tmp_path)],
                env=own,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    )
    assert second == first
    # Some small programs are the same as others.
    assert hits < misses
    assert (later_hits, later_misses) == (hits + misses, 0)
