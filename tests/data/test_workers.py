"""Processes that read live and end with the one that they read for, in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny

PROGRAM = """
import signal, sys
import numpy as np
from ddae_jax.data.pipeline import Augmentation, TrainLoader
from ddae_jax.data.sources import make_source

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    signal.signal(signal.SIGINT, lambda *_: print("asked", flush=True))
    source = make_source("digits", channels=1)
    loader = TrainLoader(source, Augmentation((8, 8)), batch_size=32, seed=0, num_workers=2)
    for line in sys.stdin:
        if line == "close\\n":
            loader.close()
            print("closed", flush=True)
        else:
            print("read", next(loader)["label"].sum(), flush=True)
"""


def children(pid):
    """Process IDs of living children."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def wait_until_gone(processes, timeout_s):
    deadline = time.monotonic() + timeout_s
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline, f"{processes} still live after {timeout_s} s"
        time.sleep(0.05)


@pytest.fixture
def reader(tmp_path):
    """A process that reads with two workers, a batch for each line that it gets."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, program],
        env=tiny.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def ask(process, line="read"):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().split()[0]


def workers_of(process):
    """The two that read; a third child keeps account of shared memory."""
    assert ask(process) == "read"
    found = children(process.pid)
    assert len(found) >= 2
    return found


def test_a_signal_to_the_whole_group_is_left_to_the_parent(reader):
    workers = workers_of(reader)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(reader.pid, number)
        assert reader.stdout.readline() == "asked\n"
        for _ in range(30):  # more than had been read ahead
            assert ask(reader) == "read"
        assert set(workers) <= set(children(reader.pid))


def test_closing_ends_them(reader):
    workers = workers_of(reader)
    started = time.monotonic()
    assert ask(reader, "close") == "closed"
    assert time.monotonic() - started < 20
    assert len(children(reader.pid)) <= len(workers) - 2


def test_where_the_parent_is_killed_they_end_too(reader):
    workers = workers_of(reader)
    reader.kill()
    reader.wait()
    wait_until_gone(workers, timeout_s=10)
