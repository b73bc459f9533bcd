"""An iterator read in the background: waits that are given up, and reads that hang."""

import itertools
import logging
import signal
import threading
import time

import pytest

from ddae_jax.data import background_iterator
from ddae_jax.data.background_iterator import BackgroundIterator

NEVER = lambda: False  # noqa: E731
AT_ONCE = lambda: True  # noqa: E731


@pytest.fixture
def gate():
    """An event that is set at the latest when the test is over, so that no thread remains."""
    event = threading.Event()
    yield event
    event.set()


def numbers(gate, closed_at=3):
    """Counts from 0, and waits for the gate before one number."""
    for number in itertools.count():
        if number == closed_at:
            gate.wait()
        yield number


def test_items_come_in_their_order_and_none_is_read_before_it_is_asked_for():
    read = []
    background = BackgroundIterator(lambda: map(read.append, itertools.count()), lambda items: None)
    for number in range(3):
        assert read == list(range(number))
        background.next_unless(NEVER)
    background.close()


def test_a_wait_that_is_given_up_loses_nothing(gate):
    background = BackgroundIterator(lambda: numbers(gate), lambda items: None)
    assert [background.next_unless(AT_ONCE) for _ in range(3)] == [0, 1, 2]
    began = time.monotonic()
    assert background.next_unless(AT_ONCE) is None
    assert background.next_unless(AT_ONCE) is None
    assert time.monotonic() - began < 2
    gate.set()
    assert [background.next_unless(NEVER) for _ in range(2)] == [3, 4]
    background.close()


def test_errors_of_reading_are_raised():
    def broken():
        yield 0
        raise ZeroDivisionError

    background = BackgroundIterator(broken, lambda items: None)
    assert background.next_unless(NEVER) == 0
    with pytest.raises(ZeroDivisionError):
        background.next_unless(NEVER)
    background.close()


def test_a_long_wait_is_logged_less_and_less_often(gate, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(background_iterator, "_LONG_WAIT_S", 0.15)
    monkeypatch.setattr(background_iterator, "_LOOK_EVERY_S", 0.01)
    background = BackgroundIterator(lambda: numbers(gate, closed_at=0), lambda items: None)
    began = time.monotonic()
    assert background.next_unless(lambda: time.monotonic() - began > 0.5) is None
    assert 1 <= len(caplog.messages) <= 2
    assert "no batch has come for 0 s" in caplog.messages[0]
    gate.set()
    background.close()


def test_closing_does_not_wait_for_a_read_that_hangs(gate, monkeypatch):
    monkeypatch.setattr(background_iterator, "_KILLED_S", 0.1)
    background = BackgroundIterator(lambda: numbers(gate, closed_at=0), lambda items: gate.wait())
    assert background.next_unless(AT_ONCE) is None
    began = time.monotonic()
    background.close()
    assert time.monotonic() - began < 2


def test_the_thread_that_reads_leaves_signals_to_others():
    def blocked():
        yield signal.pthread_sigmask(signal.SIG_BLOCK, [])

    background = BackgroundIterator(blocked, lambda items: None)
    assert {signal.SIGTERM, signal.SIGINT} <= background.next_unless(NEVER)
    assert not {signal.SIGTERM, signal.SIGINT} & signal.pthread_sigmask(signal.SIG_BLOCK, [])
    background.close()
