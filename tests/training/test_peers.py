"""Tests of processes that watch each other, played by threads with real connections."""

import contextlib
import queue
import socket
import time

import pytest

import tiny
from ddae_jax.training import peers
from ddae_jax.training.peers import _Peers

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(peers, "_GRACE_S", 0.1)
    monkeypatch.setattr(peers, "_CONNECT_S", 2.0)


class Process:
    """One of several processes; it records the indices of others that it learns to be gone."""

    def __init__(self, token="ours"):
        self.gone = queue.Queue()
        self.peers = _Peers(token, lambda index, host: self.gone.put((index, host)))

    def fall(self):
        """Ends without a message, as a killed process does."""
        self.peers._is_over = True
        for connection in list(self.peers._connections.values()):
            with contextlib.suppress(OSError):  # the connection may be closed already
                connection.shutdown(socket.SHUT_RDWR)

    def wait_until_watching(self, *others):
        for _ in range(500):
            if set(self.peers._connections) == set(others):
                return
            time.sleep(0.01)
        raise AssertionError(f"{self.peers._connections} instead of {others}")


@pytest.fixture
def three():
    """Returns the first process, and two that are connected to it."""
    processes = [Process() for _ in range(3)]
    listener = peers._listener()
    port = listener.getsockname()[1]
    processes[0].peers.accept(listener, 2)
    for index in (1, 2):
        processes[index].peers.connect(["no such host", "localhost"], port, index)
        processes[index].wait_until_watching(0)
    processes[0].wait_until_watching(1, 2)
    yield processes
    for process in processes:
        process.fall()


def test_one_that_falls_is_told_to_all_others(three):
    three[1].fall()
    assert three[0].gone.get(timeout=5) == (1, HOST)
    assert tuple(three[2].gone.get(timeout=5)) == (1, HOST)


def test_where_the_first_falls_all_others_notice(three):
    three[0].fall()
    for process in three[1:]:
        assert process.gone.get(timeout=5) == (0, HOST)


def test_who_says_goodbye_is_not_missed(three):
    three[1].peers.say_goodbye()
    three[1].fall()
    three[0].peers.say_goodbye()
    three[0].fall()
    with pytest.raises(queue.Empty):
        three[2].gone.get(timeout=0.5)
    assert three[0].gone.empty()


def test_who_ends_by_itself_meanwhile_is_left_to(three):
    """All processes may have failed for the same reason, and each reports its own error."""
    three[1].fall()
    three[0].peers._is_over = True
    with pytest.raises(queue.Empty):
        three[0].gone.get(timeout=0.5)


def test_a_stranger_is_not_listened_to(caplog):
    listener = peers._listener()
    first, port = Process(), listener.getsockname()[1]
    first.peers.accept(listener, 1)
    for line in (b'{"token": "theirs", "index": 1, "host": "x"}\n', b"GET / HTTP/1.1\n\n", b"[]\n"):
        with socket.create_connection(("localhost", port), timeout=5) as stranger:
            stranger.sendall(line)
            assert stranger.recv(100) == b""
    assert first.peers._connections == {}
    Process("theirs").peers.connect(["localhost"], port, 1)
    assert f"the first process cannot be reached at port {port} of localhost" in caplog.text
    assert "the others end a minute later, with a message of JAX" in caplog.text
    known = Process()
    known.peers.connect(["localhost"], port, 1)
    first.wait_until_watching(1)
    known.peers.say_goodbye()


def test_the_names_of_this_machine_come_first_and_once():
    found = peers._own_hosts()
    assert found[0] == HOST
    assert len(set(found)) == len(found)


def test_an_abort_waits_until_a_thread_has_said_why():
    program = """
import ctypes, os, threading, time
from ddae_jax.training import peers
peers.delay_aborts()
threading.Thread(target=lambda: (time.sleep(0.3), peers.end_without(3, "there"))).start()
ctypes.CDLL(None).abort()
"""
    done = tiny.run_program(program)
    assert done.returncode == 1
    assert done.stderr.startswith("error: process 3 of this run, on there, is gone: it has failed")
