import io
import itertools
import logging
import re

import pytest
from rich.console import Console

from ddae_jax.training import display as display_module
from ddae_jax.training.display import ProgressDisplay

METRICS = {"loss": 1.23456, "images_per_s": 12345.6}


class Clock:
    """Clock that stands still until it is set."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display_module, "time", clock)
    return clock


@pytest.fixture
def plain_lines(monkeypatch, caplog):
    """Returns what is logged while standard error is not a terminal."""
    monkeypatch.setattr(display_module, "_console", Console(file=io.StringIO()))
    caplog.set_level(logging.INFO, "ddae_jax")
    return lambda: [record.getMessage() for record in caplog.records]


def test_without_a_terminal_there_are_plain_lines_with_rate_loss_and_time_left(plain_lines, clock):
    display = ProgressDisplay(400, start_step=100)
    clock.now += 50
    display.update(200, METRICS)
    display.close()
    # 100 steps took 50 s, so the remaining 200 take 100 s.
    assert plain_lines() == ["step 200/400  loss 1.235  12,346 img/s  1:40 left"]


def test_on_a_terminal_the_bar_moves_with_every_step(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(display_module, "_console", console)
    display = ProgressDisplay(40)
    display.update(10, METRICS)
    display.advance(13)
    display.close()
    assert "13/40" in console.file.getvalue()


def test_plain_lines_come_now_and_then_and_at_the_end(plain_lines, clock):
    display = ProgressDisplay(10, plain_every_s=10)
    for step in range(1, 11):
        clock.now += 4
        display.update(step, METRICS)
    shown = [int(re.match(r"step (\d+)/10", line)[1]) for line in plain_lines()]
    assert shown == [1, 4, 7, 10]
    assert plain_lines()[-1].endswith("0:00 left")


def test_beta_is_shown_from_the_first_depth_to_the_last(plain_lines, clock):
    betas = {"beta/pixels/depth_12": 0.25, "beta/pixels/depth_6": -0.5, "beta/pixels/depth_8": 0.0}
    ProgressDisplay(2, plain_every_s=0).update(1, METRICS | betas | {"plain_loss": 2.5})
    (line,) = plain_lines()
    assert "loss 1.235  plain 2.500  beta pixels -0.50..+0.25" in line


def test_a_beta_that_is_not_learned_is_not_shown(plain_lines, clock):
    betas = {"beta/pixels/depth_12": 0.0, "plain_loss": 1.23456}
    ProgressDisplay(2, plain_every_s=0).update(1, METRICS | betas)
    (line,) = plain_lines()
    assert "beta" not in line
    assert "plain" not in line


def test_the_first_record_may_come_at_once(plain_lines, clock):
    display = ProgressDisplay(10, start_step=5)
    clock.now += 1e-9
    display.update(5, METRICS)
    assert len(plain_lines()) == 1


def test_on_a_terminal_a_bar_moves(monkeypatch, caplog):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, legacy_windows=False)
    monkeypatch.setattr(display_module, "_console", console)
    caplog.set_level(logging.INFO, "ddae_jax")
    display = ProgressDisplay(40, start_step=10)
    for step in itertools.chain(range(11, 30), [30]):
        display.update(step, METRICS)
    display.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "pretraining" in shown
    assert "30/40" in shown
    assert "loss 1.235  12,346 img/s" in shown
    assert caplog.records == []  # no plain lines through the bar
