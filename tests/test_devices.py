"""Data that are shared out over devices, and over processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import kronax as kx
from tests import devices, processes
from tests.everyday import everyday

ROOT = Path(__file__).parents[1]


def environment(num_devices: int) -> dict[str, str]:
    count = "--xla_force_host_platform_device_count"
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Without host callbacks, which run on one device.
        "EQX_ON_ERROR": "nan",
    }


@pytest.fixture(scope="module")
def of_eight() -> Iterator[Callable[[str], Any]]:
    """What a Python with eight devices answers, the same one to all tests."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.devices"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(8), cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    ) as process:

        def ask(question: str) -> Any:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, "the process has ended; its error is above"
            return json.loads(answer)

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def found(of_eight: Callable[[str], Any]) -> dict[str, Any]:
    """What eight devices compute."""
    return of_eight("")


def dense(shape: tuple[int, ...], y: np.ndarray) -> dict[str, Any]:
    """The same by the dense covariance, in NumPy."""
    gp = devices.model(shape)
    axes = [np.linspace(0, 1, n) ** (1 + i / 9) for i, n in enumerate(shape)]
    lags = [np.abs(x[:, None] - x) for x in axes]
    first = np.exp(-np.square(lags[0] / 0.3) / 2)
    scaled = np.sqrt(3) * lags[1] / 0.5
    second = (1 + scaled) * np.exp(-scaled)
    k, noise = np.kron(first, second), float(gp.noise)
    inverse = np.linalg.inv(k + noise * np.eye(len(k)))
    weights = y.reshape(*y.shape[: y.ndim - 2], -1) @ inverse
    quadratic = np.sum(weights * y.reshape(weights.shape), -1)
    _, log_det = np.linalg.slogdet(inverse)
    ahead = np.exp(-np.square((devices.NEW[:, None] - axes[0]) / 0.3) / 2)
    variance = np.diagonal(k - k @ inverse @ k).reshape(shape)
    own = 1 / np.diagonal(inverse)
    slope = (np.sum(np.square(weights)) - np.trace(inverse)) / 2
    return {
        "value": (log_det - quadratic - len(k) * np.log(2 * np.pi)) / 2,
        "slopes": [slope, -weights.reshape(y.shape)],
        "slope": -weights.reshape(y.shape),
        "mean": (weights @ k).reshape(y.shape),
        "variance": variance,
        "ahead": (weights @ np.kron(ahead, second).T).reshape(*y.shape[:-2], 8, shape[1]),
        "left out": [y - (weights * own).reshape(y.shape), own.reshape(shape)],
    }


def check(found: Any, truth: Any, spec: str, names: list[str]) -> None:
    for name in names:
        entries = found[name] if isinstance(truth[name], list) else [found[name]]
        values = truth[name] if isinstance(truth[name], list) else [truth[name]]
        for (numbers, own), value in zip(entries, values, strict=True):
            error = np.max(np.abs(np.asarray(numbers) - value)) / np.max(np.abs(value))
            assert error < 1e-11, (name, error)
            if np.ndim(value):
                assert own == spec, (name, own)


def test_one_grid_over_two_of_its_axes(found: dict[str, Any]) -> None:
    truth = dense(devices.GRID, devices.data(*devices.GRID))
    names = ["value", "slopes", "mean", "variance", "ahead", "left out"]
    check(found["grid"], truth, "P('a', 'b')", names)
    assert found["grid"]["draw"][1] == "P('a', 'b')"


def test_draws_are_those_of_one_device(found: dict[str, Any]) -> None:
    y = devices.data(*devices.GRID)
    draw = devices.model(devices.GRID).condition(y).sample(jax.random.key(0))
    np.testing.assert_allclose(found["grid"]["draw"][0], draw, atol=1e-12)


def test_data_sets_stay_where_they_are(found: dict[str, Any]) -> None:
    y = devices.data(devices.BATCH, *devices.GRID)
    truth = dense(devices.GRID, y)
    check(found["batch"], truth, "P(('a', 'b'),)", ["value", "slope", "mean"])
    assert found["batch"]["draw"][1] == "P(('a', 'b'),)"
    check({"value": found["eager"]}, truth, "P('a',)", ["value"])
    moved = found["batch communicated"]
    assert max((n for kind in moved.values() for n in kind), default=0) <= prod(devices.GRID), moved


def test_no_device_is_sent_a_whole_grid(found: dict[str, Any]) -> None:
    num_cells, small = prod(devices.LARGE), sum(n**2 for n in devices.LARGE)
    for name in ("large communicated", "ahead communicated"):
        moved = found[name]
        assert max(moved["all-to-all"]) <= 1.1 * num_cells / 8
        assert max(n for kind in moved.values() for n in kind) <= max(num_cells / 8 * 1.1, small)


def test_memory_of_a_device(found: dict[str, Any]) -> None:
    """Of the grid an eighth; the matrices of the axes, with room to decompose them, are whole."""
    matrices = 8 * sum(n**2 for n in devices.LARGE)
    assert found["eight"] <= 1.5 * found["one"] / 8 + 6 * matrices


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def started(what: str, path: str = "") -> Any:
    port = free_port()
    return both([["-m", "tests.processes", str(i), "2", port, what, path] for i in range(2)])


@contextmanager
def both(commands: list[list[str]], folder: Path = ROOT) -> Iterator[list[Any]]:
    """Two processes with four devices each, which end with the test, whatever it finds."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=environment(4),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def moved(found: dict[str, Any]) -> list[int]:
    """How many numbers each collective gives a device, but for all-to-alls."""
    kinds = found["communicated"]
    return sorted(n for kind in kinds if kind != "all-to-all" for n in kinds[kind])


@pytest.mark.parametrize(
    "name", everyday(devices.CASES, ["sets of counts", "a mean by iterations"])
)
def test_eight_devices_are_as_one(of_eight: Callable[[str], Any], name: str) -> None:
    found = of_eight(name)
    _, _, y, spec = devices.CASES[name]
    shapes = {y.shape, (len(devices.NEW), *y.shape[1:])}
    for (numbers, own), one in zip(found["numbers"], found["alone"], strict=True):
        np.testing.assert_allclose(numbers, one, rtol=0, atol=1e-12 * np.nanmax(np.abs(one)))
        assert np.shape(one) not in shapes or own == str(spec)
    if name == "sets of counts":
        parameters = sum(np.size(x) for x, _ in found["numbers"]) - y.size
        assert "all-to-all" not in found["communicated"]
        assert sum(moved(found)) <= parameters
    if name == "a mean by iterations":
        assert moved(found)[-1] < y.size / 8
        matrices = 8 * sum(n**2 for n in y.shape)
        assert found["eight"] <= 1.5 * found["one"] / 8 + 6 * matrices


def check_fits(found: dict[str, Any]) -> None:
    """Independent fits send nothing."""
    gp, y = devices.model(devices.SETS[1:]), devices.data(*devices.SETS)
    alone = kx.fit(gp, y, independent=True, num_steps=3)
    np.testing.assert_allclose(found["losses"], alone.losses, rtol=1e-11)
    assert found["communicated"] == [{}] * len(found["communicated"])
    # Each call is given its state as the first one is: they share a program.
    assert all(place == found["places"][0] for place in found["places"])
    assert len(found["places"]) > 1


def check_posteriors(found: dict[str, Any]) -> None:
    """Those of data sets with a likelihood lie as the data do."""
    posts = devices.counted(devices.SETS[1:]).condition(devices.COUNTS)
    alone = devices.of_counts(posts, devices.COUNTS)
    for numbers, one in zip(found["numbers"], alone, strict=True):
        np.testing.assert_allclose(numbers, one, rtol=1e-9, atol=1e-10)
    assert all(found["is shared"])
    own = [[0, 1]] * 8 + [[2, 3]] * 8
    assert found["devices"] == own
    score, spec = found["score"]
    np.testing.assert_allclose(score, posts.leave_one_out().log_score, rtol=1e-9)
    assert spec == "P('a',)"
    np.testing.assert_array_equal(found["chosen"], np.asarray(found["numbers"][0])[1:3])
    np.testing.assert_allclose(found["loaded"], alone[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", everyday(["fits", "posteriors"], ["fits"]))
def test_many_data_sets_each_with_its_own(of_eight: Callable[[str], Any], name: str) -> None:
    {"fits": check_fits, "posteriors": check_posteriors}[name](of_eight(name))


def scripts() -> list[str]:
    page = (ROOT / "docs" / "devices.md").read_text()
    return re.findall(r"^```(?:\{code-block\} )?python\n(.*?)^```", page, re.M | re.S)


@pytest.mark.parametrize("number", [0, 1])
def test_a_script_of_the_page_runs_as_it_stands(
    of_eight: Callable[[str], Any], number: int
) -> None:
    assert of_eight(scripts()[number]) == "True\n"


@pytest.mark.ci
def test_the_script_for_several_processes_runs_as_it_stands(tmp_path: Path) -> None:
    """But for the port, which another program may have."""
    script = scripts()[2].replace("1234", free_port())
    with both([["-c", script, str(i)] for i in range(2)], tmp_path) as processes:
        (first, error), (second, other_error) = (p.communicate(timeout=300) for p in processes)
    # Gloo writes to the output as well.
    assert "noise " in first, error[-3000:]
    assert not [process.returncode for process in processes if process.returncode], other_error
    assert "noise " not in second
    assert [path.name for path in tmp_path.iterdir()] == ["fit.kx"]


def check_numbers(found: list[Any], checkpoint: Path) -> None:
    """A fit and a draw; one process goes on from the checkpoint of the two."""
    assert found[0] == found[1]
    assert found[0]["converged"]
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]
    gp, y = processes.model(), processes.data()
    alone = kx.fit(gp, y, num_steps=6)
    continued = kx.fit(gp, y, num_steps=6, checkpoint=checkpoint)
    draw = gp.condition(y).sample(jax.random.key(1))
    np.testing.assert_allclose(found[0]["losses"], alone.losses[:5], rtol=1e-11)
    np.testing.assert_allclose(found[0]["norms"], alone.gradient_norms[:5], rtol=1e-8)
    np.testing.assert_allclose(continued.losses, alone.losses, rtol=1e-10)
    np.testing.assert_allclose(found[0]["draw"], draw, atol=1e-11)


def check_members(found: list[Any], _: Path) -> None:
    """The posterior of counts is in the process that has the data."""
    mean = processes.counted().condition(processes.counts()).mean()
    for own in found:
        np.testing.assert_allclose(own["mean"], mean, rtol=1e-9, atol=1e-10)
        assert "another process" in own["other"]


@pytest.mark.ci
@pytest.mark.parametrize("name", everyday(["numbers", "posteriors"], ["numbers"]))
def test_two_processes_are_as_one(name: str, tmp_path: Path) -> None:
    found = []
    with started(name, str(tmp_path / "fit")) as both:
        for process in both:
            out, err = process.communicate(timeout=300)
            assert not process.returncode, err[-3000:]
            found.append(json.loads(out.splitlines()[-1]))
    {"numbers": check_numbers, "posteriors": check_members}[name](found, tmp_path / "fit")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others() -> None:
    """What waits for its numbers ends with an error, soon."""
    with started("killed") as (survivor, killed):
        assert killed.wait(300) == -signal.SIGKILL
        assert survivor.wait(60) != 0
