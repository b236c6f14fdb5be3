"""What a long fit says where nobody watches."""

import re
import time

import numpy as np
import pytest

import kronax as kx
from kronax.fitting import driver

X = np.linspace(0, 1, 6)
GP = kx.GridGP((kx.RBF(0.3),), (X,), noise=0.1)
LINE = re.compile(r"fit: step (\d+) of at most 40, loss -?[\d.]+, \d+ s")


@pytest.fixture
def soon(monkeypatch):
    """A second is a long time."""
    monkeypatch.setattr(driver, "SECONDS_TO_BAR", 0.0)
    monkeypatch.setattr(driver, "SECONDS_TO_LINE", 0.01)
    monkeypatch.setattr(driver, "SECONDS_PER_CHUNK", 0.0)


def run(**options):
    return kx.fit(GP, np.sin(5 * X), num_steps=40, callback=lambda _: time.sleep(0.01), **options)


def test_lines_come_at_growing_intervals(soon, capsys):
    steps = run().num_steps
    found = [int(step) for step in LINE.findall(capsys.readouterr().err)]
    assert 1 <= len(found) < steps
    assert found == sorted(set(found))


def test_a_quiet_fit_is_quiet(soon, capsys):
    run(progress=False)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_a_short_fit_says_nothing(capsys):
    run()
    assert "fit:" not in capsys.readouterr().err


def test_compilation_is_announced(soon, capsys):
    with driver.Bar(3, True):
        time.sleep(0.1)
    assert "fit: compiling, or in its first step, for 0 s" in capsys.readouterr().err
