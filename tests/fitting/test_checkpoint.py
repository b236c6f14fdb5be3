"""A fit that is interrupted, killed or resumed."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kronax as kx
from tests.everyday import everyday
from tests.fitting.cases import draws, fit, make, natural

Y = draws()[0]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole():
    return fit(y=Y)


def same(result, other):
    assert result.num_steps == other.num_steps
    np.testing.assert_array_equal(result.losses, other.losses)
    np.testing.assert_array_equal(result.gradient_norms, other.gradient_norms)
    for path, value in natural(other).items():
        np.testing.assert_array_equal(natural(result)[path], value)


def stop_after(steps):
    return lambda so_far: so_far.num_steps >= steps


def test_a_callback_sees_the_fit_so_far_and_may_end_it():
    seen = []

    def look(so_far):
        seen.append((so_far.num_steps, so_far.loss, so_far.reason, so_far.model.noise.item()))
        return so_far.num_steps >= 3

    result = fit(y=Y, callback=look)
    assert not result.converged
    assert result.reason == "the callback asked to stop"
    steps, losses, reasons, _ = zip(*seen, strict=True)
    assert result.num_steps == steps[-1] >= 3
    assert losses[-1] < losses[0]
    assert reasons[0] == "it is still running"
    assert fit(y=Y, callback=lambda so_far: None).converged


@pytest.mark.parametrize("every", [1, 3])
def test_a_stopped_fit_goes_on_to_the_same_numbers(tmp_path, whole, every):
    path = tmp_path / "fit.ckpt"
    options = {"y": Y, "checkpoint": path, "checkpoint_every": every}
    seen = []

    def stop(so_far):
        seen.append(so_far.wall_time)
        return so_far.num_steps >= 4

    first = fit(**options, callback=stop)
    assert first.num_steps < whole.num_steps
    # Its end is what writing took: that is in no checkpoint.
    saved = json.loads(path.read_bytes().split(b"\n")[1])["seconds"]
    assert seen[-1] <= saved <= first.wall_time
    result = fit(**options)
    same(result, whole)
    assert result.wall_time > saved
    same(fit(**options), whole)  # there is nothing left to do
    assert [p.name for p in tmp_path.iterdir()] == ["fit.ckpt"]


@pytest.mark.parametrize("limit", everyday([2, 4], [2]))
def test_a_fit_at_its_limit_goes_on_with_a_higher_one(tmp_path, whole, limit):
    path = tmp_path / "fit.ckpt"
    assert fit(y=Y, checkpoint=path, num_steps=limit).num_steps == limit
    same(fit(y=Y, checkpoint=path), whole)
    with pytest.raises(ValueError, match=f"at least the {whole.num_steps} steps.*got {limit}"):
        fit(y=Y, checkpoint=path, num_steps=limit)


def test_a_tighter_tolerance_goes_on(tmp_path, whole):
    path = tmp_path / "fit.ckpt"
    loose = fit(y=Y, checkpoint=path, tolerance=1e-3)
    assert loose.converged
    assert loose.num_steps < whole.num_steps
    same(fit(y=Y, checkpoint=path), whole)


OTHERS = {
    "random": {
        "optimizer": optax.chain(optax.add_noise(0.01, 0.55, jax.random.key(0)), optax.adam(0.05)),
        "num_steps": 30,
    },
    "adam": {"optimizer": optax.adam(0.05), "num_steps": 30},
    "restarts": {"restarts": 2},
    "independent": {"y": draws(2), "independent": True},
}


@pytest.mark.parametrize("name", everyday(OTHERS, ["random", "independent"]))
def test_other_optimisers_and_several_fits_resume(tmp_path, name):
    options = {"y": Y, **OTHERS[name]}
    expected = fit(**options)
    options["checkpoint"] = tmp_path / name
    stopped = fit(**options, callback=lambda so_far: True)
    assert np.max(stopped.num_steps) < np.max(expected.num_steps)
    result = fit(**options)
    np.testing.assert_array_equal(result.losses, expected.losses)
    assert result.reason == expected.reason


def test_another_fit_is_refused(tmp_path):
    path = tmp_path / "fit.ckpt"
    fit(y=Y, checkpoint=path, num_steps=2)
    for other in (
        {"y": Y + 1},
        {"y": Y, "gp": kx.replace(make(), {"noise": 0.31})},
        {"y": Y, "freeze": ("noise",)},
        {"y": Y, "optimizer": optax.adam(0.1)},
        {"y": Y, "restarts": 1},
    ):
        with pytest.raises(ValueError, match="belongs to another fit"):
            fit(**other, checkpoint=path, num_steps=2)


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "text"])
def test_a_damaged_file_is_never_taken_for_a_checkpoint(tmp_path, damage):
    path = tmp_path / "fit.ckpt"
    fit(y=Y, checkpoint=path, num_steps=2)
    content = path.read_bytes()
    flipped = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
    half = content[: len(content) // 2]
    path.write_bytes({"half": half, "empty": b"", "flipped": flipped, "text": b"x,y\n"}[damage])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        fit(y=Y, checkpoint=path, num_steps=2)


@pytest.mark.parametrize("number", [b'"num_steps": 2', b'"seconds": '])
def test_a_damaged_header_is_seen(tmp_path, number):
    path = tmp_path / "fit.ckpt"
    fit(y=Y, checkpoint=path, num_steps=2)
    content = path.read_bytes()
    start = content.index(number)
    place = next(i for i in range(start, len(content)) if chr(content[i]) in "0123456789")
    path.write_bytes(content[:place] + b"7" + content[place + 1 :])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        fit(y=Y, checkpoint=path, num_steps=2)


def test_a_checkpoint_of_the_earlier_format_is_refused_by_name(tmp_path):
    path = tmp_path / "fit.ckpt"
    for before, version in ((b"", 1), (b"0f\n", 2)):
        path.write_bytes(before + json.dumps({"format": f"kronax fit {version}"}).encode() + b"\nx")
        with pytest.raises(ValueError, match="of an earlier version of kronax"):
            fit(y=Y, checkpoint=path)


def test_paths_that_cannot_be_written_raise_before_the_fit(tmp_path):
    with pytest.raises(IsADirectoryError, match="path of a file; got the folder"):
        fit(y=Y, checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match="folder of the checkpoint must exist"):
        fit(y=Y, checkpoint=tmp_path / "no" / "fit.ckpt")


SLOW_FIT = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
import optax
from tests.fitting.cases import draws, fit

def slowly(so_far):
    print(so_far.num_steps, flush=True)
    time.sleep(0.05)

options = {"y": draws()[0], "optimizer": optax.adam(0.01), "num_steps": 3000}
result = fit(**options, callback=slowly)
print("ended:", result.reason, result.num_steps, result.loss.hex(), flush=True)
fit(**options, callback=slowly, checkpoint=sys.argv[1], checkpoint_every=5)
"""


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_FIT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def read_until(process, condition, seconds=90):
    """The first line that meets the condition; the process is killed if none comes."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        return next((line for line in process.stdout if condition(line)), None)
    finally:
        timer.cancel()


@pytest.mark.slow
def test_an_interrupted_process_returns_the_best_so_far_and_a_killed_one_resumes(tmp_path):
    """One process, for two fits."""
    options = {"y": Y, "optimizer": optax.adam(0.01), "num_steps": 3000}
    expected, path = fit(**options), tmp_path / "fit.ckpt"
    with start(path) as process:
        assert read_until(process, lambda line: int(line) >= 20), "the fit never took 20 steps"
        process.send_signal(signal.SIGINT)
        line = read_until(process, lambda line: line.startswith("ended"))
        assert line is not None, "the fit did not end"
        assert line.startswith("ended: it was interrupted")
        assert read_until(process, lambda line: int(line) >= 20), "the second never did"
        process.kill()
    assert path.exists()
    options["checkpoint"] = path
    taken = fit(**options, checkpoint_every=5, callback=lambda so_far: True)
    assert 5 <= taken.num_steps < 3000, "nothing was resumed"
    np.testing.assert_array_equal(fit(**options).losses, expected.losses)


def test_interruption_leaves_the_signal_handler_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    asked = []

    def interrupt(so_far):
        asked.append(1)
        os.kill(os.getpid(), signal.SIGINT)

    result = fit(y=Y, callback=interrupt)
    assert result.reason == "it was interrupted"
    assert len(asked) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interruption_raises():
    def twice(so_far):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(y=Y, callback=twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_fits_run_in_other_threads():
    ends = []
    thread = threading.Thread(target=lambda: ends.append(fit(y=Y, num_steps=2)))
    thread.start()
    thread.join()
    assert ends[0].num_steps == 2


def away_from(c):
    return lambda m: jnp.sum((m.lengthscale - c) ** 2)


def test_another_loss_or_another_learning_rate_is_refused(tmp_path):
    """A closure has no name of its own: its value at the saved point tells."""
    kernel, path = kx.RBF(1.0), tmp_path / "fit.ckpt"
    kx.fit(kernel, loss=away_from(3.0), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="belongs to another fit"):
        kx.fit(kernel, loss=away_from(30.0), checkpoint=path, progress=False)
    path.unlink()
    options = {"y": Y, "num_steps": 2, "checkpoint": path}
    fit(**options, optimizer=optax.adam(1e-2))
    with pytest.raises(ValueError, match="belongs to another fit"):
        fit(**options, optimizer=optax.adam(1e-1))


def test_a_callback_that_raises_loses_nothing(tmp_path, whole):
    path = tmp_path / "fit.ckpt"

    def fails(so_far):
        raise RuntimeError("the disk of the callback is full")

    with pytest.raises(RuntimeError, match="disk of the callback"):
        fit(y=Y, checkpoint=path, callback=fails)
    assert path.exists()
    same(fit(y=Y, checkpoint=path), whole)


def test_a_callback_may_answer_with_any_boolean():
    assert fit(y=Y, callback=lambda r: r.gradient_norms[-1] < 1e9).reason.startswith("the callback")
    with pytest.raises(TypeError, match=r"must return None, or a boolean.*got 'stop'"):
        fit(y=Y, callback=lambda r: "stop")
