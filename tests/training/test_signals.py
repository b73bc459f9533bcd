import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

import tiny
from ddae_jax.training import signals
from ddae_jax.training.signals import Interrupted, StopRequest


def test_nothing_is_asked_for_at_first():
    with StopRequest() as stop:
        assert not stop
        assert stop.received is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request_and_is_told_once(number, capfd):
    with StopRequest() as stop:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop
    told = capfd.readouterr().err.split()
    assert told[0] == f"{number.name}:"
    assert told.count("stopping;") == 1


def test_where_there_is_nothing_to_save_a_stop_ends_the_body_at_once():
    begun, ended = [], []

    def body():
        with stop.at_once():
            begun.append(1)
            signal.raise_signal(signal.SIGTERM)
            ended.append(1)

    with StopRequest() as stop:
        with pytest.raises(Interrupted):
            body()
        signal.raise_signal(signal.SIGTERM)  # outside the body, it is only noted
        with pytest.raises(Interrupted):
            body()  # the stop was requested before
    assert (begun, ended) == ([1], [])


def test_no_handler_of_errors_takes_a_stop_for_one():
    def body():
        with stop.at_once(), contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)

    with StopRequest() as stop, pytest.raises(Interrupted):
        body()


def lost_in_the_garbage_collector(body):
    def callback(phase, info):
        body()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


class LostWhereItGoes:
    def __init__(self, body):
        self.body = body

    def __del__(self):
        self.body()


def lost_in_a_weak_reference(body):
    target = LostWhereItGoes(lambda: None)
    reference = weakref.ref(target, lambda _: body())
    del target
    assert reference() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "where", [lost_in_the_garbage_collector, LostWhereItGoes, lost_in_a_weak_reference]
)
def test_a_stop_amid_a_callback_whose_errors_are_forgotten_ends_the_body_still(where, capfd):
    """The garbage collector calls JAX; an exception that is raised there never reaches the body."""
    signalled = []

    def once():
        if not signalled:
            signalled.append(1)
            signal.raise_signal(signal.SIGTERM)

    def body():
        with stop.at_once():
            where(once)
            while time.monotonic() < began + 20:
                time.sleep(0.01)

    began = time.monotonic()
    with StopRequest() as stop:
        with pytest.raises(Interrupted):
            body()
        assert signalled
        assert stop.received == signal.SIGTERM
    assert time.monotonic() - began < 10
    if where is not lost_in_a_weak_reference:  # it cannot be told from another function
        assert "Exception ignored" not in capfd.readouterr().err


PROGRAM = """
import ctypes, sys, time
from ddae_jax.training import signals
from ddae_jax.training.signals import Interrupted, StopRequest

signals._UNREACHED_S, signals._TOGETHER_S = 1.0, 2.0

def never_returns():
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # no signal ends this wait

def is_slow():
    for _ in range(100):
        time.sleep(0.1)

with StopRequest(lambda stop: 75) as stop:
    body = stop.at_once if sys.argv[1] == "at_once" else stop.together
    try:
        with body():
            print("begun", flush=True)
            {"never": never_returns, "slow": is_slow}[sys.argv[2]]()
    except Interrupted:
        sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "seconds", "status"),
    [(["at_once", "never"], 1, 75), (["together", "never"], 2, 1), (["together", "slow"], 2, 1)],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_body_that_no_exception_ends_ends_with_the_process(arguments, seconds, status, number):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.5)  # until the body waits
    began = time.monotonic()
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    assert process.returncode == status, log
    assert seconds <= time.monotonic() - began < seconds + 5
    assert f"{number.name}: what is going on has not ended for {seconds} s" in log
    assert "The same command continues from the latest checkpoint" in log


def test_a_slow_body_that_may_be_left_anywhere_is_left_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "at_once", "slow"],
        env=tiny.environment(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"begun\n"
    process.terminate()
    assert process.wait(timeout=30) == 3
    process.communicate()


@pytest.mark.slow
def test_nothing_is_limited_between_bodies(monkeypatch):
    monkeypatch.setattr(signals, "_UNREACHED_S", 0.1)
    before = set(threading.enumerate())
    with StopRequest() as stop:
        with stop.at_once():
            pass
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.6)
    assert stop.received == signal.SIGTERM
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_after_the_body_nobody_is_reminded():
    with StopRequest() as stop:
        with pytest.raises(Interrupted), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        began = time.monotonic()
        while time.monotonic() < began + 1.2:
            time.sleep(0.01)
        assert stop._reminder is None


def test_handlers_are_put_back():
    def own(number, frame):
        raise AssertionError

    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    try:
        signal.signal(signal.SIGTERM, own)
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) != own
        assert signal.getsignal(signal.SIGTERM) == own
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
        with pytest.raises(ZeroDivisionError), StopRequest():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_ends_at_once(first):
    with StopRequest() as stop:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == first


def test_a_repeated_sigterm_stays_a_request():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_ctrl_c_works_again_afterwards():
    # Processes that a shell starts in the background ignore SIGINT from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
