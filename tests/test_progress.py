"""What long calls say while they run, and what a fit says of the time that is left."""

import io
import time

import jax
import numpy as np
import pytest

import kronax as kx
from kronax import progress
from kronax.fitting import driver


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def soon(monkeypatch):
    """A second is a long time."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for name in ("SECONDS_TO_SHOW", "SECONDS_TO_LINE", "SECONDS_BETWEEN"):
        monkeypatch.setattr(progress, name, 0.01)


def test_a_long_call_says_what_it_does_and_wipes_it(soon, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with progress.Watch().over(lambda: "the work"):
        time.sleep(0.2)
    assert "the work: 0 s" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_in_a_log_it_says_so_at_growing_intervals(soon, capsys):
    with progress.Watch().over(lambda: "the work"):
        time.sleep(0.5)
    assert 1 <= capsys.readouterr().err.count("the work: 0 s\n") < 8


def fails_inside(watch):
    with watch.over(lambda: "inner"):
        time.sleep(0.1)
    raise ZeroDivisionError


def test_calls_inside_are_part_of_it_and_errors_end_it(soon, capsys):
    watch = progress.Watch()
    with pytest.raises(ZeroDivisionError), watch.over(lambda: "outer"):
        fails_inside(watch)
    with watch.over(lambda: "next"):
        time.sleep(0.1)
    said = capsys.readouterr().err
    assert "outer" in said
    assert "inner" not in said
    assert "next" in said


def test_it_can_be_switched_off_and_is_quiet_in_short_calls(soon, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress.Watch().over(lambda: "the work"):
        time.sleep(0.1)
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(progress, "SECONDS_TO_LINE", 5.0)
    with progress.Watch().over(lambda: "the work"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_verbs_are_watched(monkeypatch):
    said = []

    class Seen(progress.Watch):
        def over(self, what):
            said.append(what())
            return super().over(what)

    monkeypatch.setattr("kronax.gp.model.marginal_likelihood.WATCH", Seen())
    x = np.linspace(0, 1, 4)
    gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
    post = gp.condition(np.zeros((4, 4)))
    post.mean()
    post.leave_slice_out(0)
    gp.log_marginal_likelihood(np.zeros((4, 4)))
    gp.sample(jax.random.key(0))
    expected = ("gp.condition", "post.mean", "post.leave_slice_out")
    expected += ("gp.log_marginal_likelihood", "gp.sample", "the trial of iterations")
    assert {f"{name} on 4 × 4 cells" for name in expected} <= set(said)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        (10.0 ** -np.arange(10), 11.0),  # a tenth each step, to 1e-20: 11 after the median of three
        (np.full(20, 1.0), None),
        (10.0 ** np.arange(10), None),
        (10.0 ** -np.arange(5), None),
        (np.r_[np.full(9, 1.0), np.nan], None),
    ],
)
def test_steps_that_are_left(norms, expected):
    found = progress.steps_left(norms, 1e-19)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_fit_says_how_long_it_may_still_take(monkeypatch, capsys):
    for name, value in (("SECONDS_TO_BAR", 0.0), ("SECONDS_TO_LINE", 0.01), ("LINE_GROWTH", 1.0)):
        monkeypatch.setattr(driver, name, value)
    monkeypatch.setattr(driver, "SECONDS_PER_CHUNK", 0.0)
    x = np.linspace(0, 1, 6)
    gp = kx.GridGP((kx.RBF(0.3),), (x,), noise=0.1)
    kx.fit(gp, np.sin(5 * x), num_steps=200, callback=lambda _: time.sleep(0.01))
    lines = capsys.readouterr().err.splitlines()
    assert any("at most" in line.split(" s, ")[-1] for line in lines)
    assert any(" s, about " in line and line.endswith(" left") for line in lines)
